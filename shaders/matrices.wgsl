// The workgroup memory that they are loaded from and stored to, before all other, so that it begins at a multiple of 16 bytes.
var<workgroup> sh_slab: array<Half8, SLAB>;   // queries or keys [row, HEAD_STRIDE], values at VALUES_AT [column, KEY_STRIDE]
var<workgroup> sh_scores: array<array<f32, 4>, TILE_Q * SCORE_STRIDE>;   // [query, key], then output [query, GROUP columns]
var<workgroup> sh_weights: array<Half8, TILE_Q * KEY_STRIDE>;            // [query, key]
var<workgroup> sh_risen: atomic<u32>;   // whether the reference of a row with weights has moved
