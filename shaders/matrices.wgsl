// Cooperative matrices: factors in f16, sums in f32.
alias Left = coop_matSIDExSIDE<f16, A>;
alias Right = coop_matSIDExSIDE<f16, B>;
alias Sum = coop_matSIDExSIDE<f32, C>;

// The workgroup memory that they are loaded from and stored to, before all other, so that it begins at a multiple of 16 bytes.
// Four f16 are stored at once; by 16 bytes, that matrices are loaded from whole ones.
alias Half8 = array<array<f16, 4>, 2>;

var<workgroup> sh_slab: array<Half8, SLAB>;   // rows [row, dims], and columns [column, rows]
var<workgroup> sh_scores: array<array<f32, 4>, STRIPS * SIDE * SCORE_STRIDE>;   // [row, tile], then what is stored [row, GROUP columns]

fn halves(x: vec4<f32>) -> array<f16, 4> {
    return array<f16, 4>(f16(x.x), f16(x.y), f16(x.z), f16(x.w));
}
