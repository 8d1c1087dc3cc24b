// Cooperative matrices: factors in f16, sums in f32.
alias Left = coop_matSIDExSIDE<f16, A>;
alias Right = coop_matSIDExSIDE<f16, B>;
alias Sum = coop_matSIDExSIDE<f32, C>;
