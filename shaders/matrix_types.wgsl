// Cooperative matrices: factors in f16, sums in f32.
alias Left = coop_matSIDExSIDE<f16, A>;
alias Right = coop_matSIDExSIDE<f16, B>;
alias Sum = coop_matSIDExSIDE<f32, C>;

// How they lie in workgroup memory: four f16 are stored at once; by 16 bytes, that matrices are loaded from whole ones.
alias Half8 = array<array<f16, 4>, 2>;

fn halves(x: vec4<f32>) -> array<f16, 4> {
    return array<f16, 4>(f16(x.x), f16(x.y), f16(x.z), f16(x.w));
}
