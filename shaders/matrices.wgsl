// The workgroup memory that cooperative matrices are loaded from and stored to, before all other, so that it begins at a multiple of 16 bytes.
var<workgroup> sh_slab: array<Half8, SLAB>;   // rows [row, dims], and columns [column, rows]
var<workgroup> sh_scores: array<array<f32, 4>, STRIPS * SIDE * SCORE_STRIDE>;   // [row, tile], then what is stored [row, some columns]
