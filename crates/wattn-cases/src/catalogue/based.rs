//! Problems of BASED linear attention.

use crate::{BasedRecipe, Storage};

fn sized(name: &'static str, tokens: usize) -> BasedRecipe {
    BasedRecipe { name, tokens, ..BasedRecipe::default() }
}

fn dims(feature_dim: usize, value_dim: usize, recipe: BasedRecipe) -> BasedRecipe {
    BasedRecipe { feature_dim, value_dim, ..recipe }
}

fn raw(recipe: BasedRecipe) -> BasedRecipe {
    BasedRecipe { normalize: false, ..recipe }
}

fn full(recipe: BasedRecipe) -> BasedRecipe {
    BasedRecipe { causal: false, ..recipe }
}

/// All problems of BASED linear attention that are checked for correctness.
pub fn based_catalogue() -> Vec<BasedRecipe> {
    [lengths(), options(), head_dims(), storage(), states(), segments()].concat()
}

fn lengths() -> Vec<BasedRecipe> {
    vec![
        sized("based/plain", 64),
        sized("based/no_tokens", 0),
        sized("based/one_token", 1),
        raw(sized("based/one_token_raw", 1)),
        full(sized("based/one_token_full", 1)),
        // Around chunks of 8, 32 and 64.
        sized("based/len_7", 7),
        sized("based/len_8", 8),
        raw(sized("based/len_9_raw", 9)),
        sized("based/len_31", 31),
        full(sized("based/len_32_full", 32)),
        raw(sized("based/len_33_raw", 33)),
        sized("based/len_63", 63),
        full(raw(sized("based/len_64_full_raw", 64))),
        sized("based/len_65", 65),
        full(sized("based/len_65_full", 65)),
        BasedRecipe { batch: 3, ..sized("based/prime_97_b3", 97) },
        BasedRecipe { heads: 1, ..raw(sized("based/prime_131_h1_raw", 131)) },
        BasedRecipe { heads: 3, ..sized("based/prime_199_h3", 199) },
    ]
}

fn options() -> Vec<BasedRecipe> {
    vec![
        BasedRecipe { scale: Some(1.0), ..sized("based/scale_1", 50) },
        BasedRecipe { eps: Some(0.5), ..sized("based/eps", 50) },
        BasedRecipe { eps: Some(0.0), ..full(sized("based/eps_0_full", 50)) },
        BasedRecipe { batch: 2, kv_lens: &[70, 31], poison: true, ..sized("based/kv_lens", 70) },
        BasedRecipe { batch: 3, kv_lens: &[0, 33, 1], poison: true, ..raw(sized("based/kv_lens_raw", 40)) },
        BasedRecipe { batch: 3, kv_lens: &[33, 0, 99], bshd: true, ..full(sized("based/kv_lens_full_bshd", 40)) },
        BasedRecipe { sequences: &[33, 0, 1, 64, 20], ..sized("based/packed", 0) },
        BasedRecipe { sequences: &[0, 9, 65, 1], ..raw(sized("based/packed_raw", 0)) },
        BasedRecipe { sequences: &[31, 0, 40], ..full(sized("based/packed_full", 0)) },
    ]
}

fn head_dims() -> Vec<BasedRecipe> {
    vec![
        dims(8, 16, sized("based/d8_v16", 40)),
        dims(16, 40, sized("based/d16_v40", 40)),
        dims(16, 128, sized("based/d16_v128", 40)),
        BasedRecipe { heads: 1, ..dims(16, 256, full(sized("based/d16_v256_full", 20))) },
        dims(13, 7, sized("based/d13_v7", 37)),
        dims(24, 33, raw(sized("based/d24_v33_raw", 37))),
        BasedRecipe { heads: 1, ..dims(32, 64, sized("based/d32_v64", 40)) },
        BasedRecipe { batch: 2, bshd: true, ..sized("based/bshd", 41) },
        BasedRecipe { bshd: true, ..dims(13, 7, full(sized("based/bshd_d13_v7_full", 33))) },
    ]
}

/// States to start from, and gradients of those that it ends in.
fn states() -> Vec<BasedRecipe> {
    let stateful = |recipe| BasedRecipe { state: true, grad_state: true, ..recipe };
    vec![
        BasedRecipe { batch: 2, heads: 3, ..stateful(sized("based/state_b2_h3", 45)) },
        BasedRecipe { grad_state: true, ..sized("based/grad_state", 33) },
        BasedRecipe { state: true, ..raw(sized("based/state_raw", 33)) },
        stateful(full(sized("based/state_full", 40))),
        stateful(full(raw(sized("based/state_full_raw", 33)))),
        BasedRecipe { grad_out: false, ..stateful(sized("based/state_grad_alone", 20)) },
        BasedRecipe { scale: Some(1.0), ..stateful(sized("based/state_scale_1", 33)) },
        BasedRecipe { sequences: &[20, 0, 1, 40], ..stateful(sized("based/state_packed", 0)) },
        BasedRecipe { batch: 3, kv_lens: &[50, 0, 13], poison: true, ..stateful(sized("based/state_kv_lens", 40)) },
        stateful(dims(8, 40, sized("based/state_d8_v40", 37))),
        stateful(dims(10, 6, sized("based/state_d10_v6", 37))),
        stateful(dims(13, 7, sized("based/state_d13_v7", 37))),
        BasedRecipe { heads: 1, ..stateful(dims(32, 64, sized("based/state_d32_v64", 20))) },
        stateful(dims(16, 80, sized("based/state_d16_v80", 20))),
        BasedRecipe { batch: 2, heads: 1, ..stateful(sized("based/state_one_token", 1)) },
        stateful(sized("based/state_no_tokens", 0)),
    ]
}

/// Sequences that come in several segments where segments are walked side by side.
fn segments() -> Vec<BasedRecipe> {
    let stateful = |recipe| BasedRecipe { state: true, grad_state: true, ..recipe };
    vec![
        stateful(sized("based/segments_300", 300)),
        stateful(full(sized("based/segments_full_270", 270))),
        BasedRecipe { heads: 1, sequences: &[140, 0, 257, 1, 129], ..stateful(sized("based/segments_packed", 0)) },
        BasedRecipe { sequences: &[0, 140, 131], ..full(sized("based/segments_packed_full", 0)) },
        BasedRecipe { batch: 3, kv_lens: &[300, 140, 0], poison: true, ..sized("based/segments_kv_lens", 260) },
        BasedRecipe {
            batch: 2,
            kv_lens: &[130, 9],
            ..stateful(full(raw(sized("based/segments_full_kv_lens_raw", 200))))
        },
        dims(16, 80, raw(sized("based/segments_v80_raw", 150))),
    ]
}

fn storage() -> Vec<BasedRecipe> {
    use Storage::{Bf16, F16, F32};
    let stored = |q_storage, kv_storage, recipe| BasedRecipe { q_storage, kv_storage, ..recipe };
    // Few pipelines: gradients of one pair of types have both in each role.
    let forward = |recipe| BasedRecipe { grad_out: false, ..recipe };
    vec![
        stored(F16, F16, sized("based/f16", 70)),
        forward(stored(F16, F16, full(sized("based/f16_full", 40)))),
        BasedRecipe { bshd: true, ..forward(stored(F16, F16, dims(16, 40, raw(sized("based/f16_bshd_v40_raw", 33))))) },
        // States beyond the range of f16, and next to nothing in it; outputs within.
        BasedRecipe { sizes: [0.02, 64.0, 1024.0], ..forward(stored(F16, F16, sized("based/f16_large_state", 70))) },
        BasedRecipe { sizes: [64.0, 0.02, 0.001], ..forward(stored(F16, F16, sized("based/f16_small_state", 70))) },
        // Likewise of moments that gradients meet, and those of gradients.
        BasedRecipe { sizes: [0.02, 64.0, 16.0], ..stored(F16, F16, sized("based/f16_large_moments", 70)) },
        BasedRecipe { sizes: [64.0, 0.02, 0.05], ..stored(F16, F16, sized("based/f16_small_moments", 70)) },
        stored(Bf16, Bf16, sized("based/bf16", 70)),
        BasedRecipe { sequences: &[33, 0, 20], ..stored(Bf16, Bf16, sized("based/bf16_packed", 0)) },
        forward(stored(F16, F32, sized("based/q_f16_kv_f32", 40))),
        stored(F32, F16, sized("based/q_f32_kv_f16", 40)),
        forward(stored(F32, Bf16, sized("based/q_f32_kv_bf16", 40))),
    ]
}

/// The problems of BASED's linear attention that are timed: the forward pass, or where a gradient comes in the backward pass.
pub fn based_bench_catalogue() -> Vec<BasedRecipe> {
    let timed = |recipe| BasedRecipe { heads: 8, grad_out: false, ..recipe };
    vec![
        timed(sized("based/forward_8192", 8192)),
        BasedRecipe { grad_out: true, ..timed(sized("based/backward_2048", 2048)) },
        BasedRecipe {
            q_storage: Storage::F16,
            kv_storage: Storage::F16,
            ..timed(sized("based/forward_8192_f16", 8192))
        },
    ]
}
