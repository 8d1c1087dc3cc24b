//! Problems of decayed linear attention: lengths around the chunks, decays, states, head dims and storage types.

use crate::{Decays, LinearRecipe, Storage};

fn lightning(name: &'static str, tokens: usize) -> LinearRecipe {
    LinearRecipe { name, tokens, ..LinearRecipe::default() }
}

fn gated(name: &'static str, tokens: usize) -> LinearRecipe {
    LinearRecipe { decay: Decays::Gates(0.2), scale: Some(0.125), ..lightning(name, tokens) }
}

fn dims(key_dim: usize, value_dim: usize, recipe: LinearRecipe) -> LinearRecipe {
    LinearRecipe { key_dim, value_dim, ..recipe }
}

fn with_state(recipe: LinearRecipe) -> LinearRecipe {
    LinearRecipe { state: true, grad_state: true, ..recipe }
}

fn stored(q_storage: Storage, kv_storage: Storage, recipe: LinearRecipe) -> LinearRecipe {
    LinearRecipe { q_storage, kv_storage, scale: Some(0.125), ..recipe }
}

/// All problems of linear attention that are checked for correctness.
pub fn linear_catalogue() -> Vec<LinearRecipe> {
    [lengths(), decays(), states(), head_dims(), storage()].concat()
}

fn lengths() -> Vec<LinearRecipe> {
    vec![
        lightning("lightning/plain", 64),
        lightning("lightning/no_tokens", 0),
        lightning("lightning/one_token", 1),
        // Around chunks of 8, 32 and 64.
        dims(32, 32, lightning("lightning/len_7", 7)),
        dims(32, 32, lightning("lightning/len_8", 8)),
        dims(32, 32, lightning("lightning/len_9", 9)),
        lightning("lightning/len_31", 31),
        with_state(lightning("lightning/len_32_state", 32)),
        lightning("lightning/len_33", 33),
        with_state(lightning("lightning/len_63_state", 63)),
        with_state(lightning("lightning/len_64_state", 64)),
        lightning("lightning/len_65", 65),
        LinearRecipe { batch: 3, ..dims(32, 32, lightning("lightning/prime_97_b3", 97)) },
        LinearRecipe { heads: 1, ..lightning("lightning/prime_131_h1", 131) },
        LinearRecipe { heads: 3, ..dims(16, 32, lightning("lightning/prime_199_h3", 199)) },
        gated("gated_linear/plain", 64),
        LinearRecipe { heads: 3, ..with_state(gated("gated_linear/one_token_state", 1)) },
        gated("gated_linear/len_31", 31),
        with_state(gated("gated_linear/len_33_state", 33)),
        gated("gated_linear/len_63", 63),
        with_state(gated("gated_linear/len_65_state", 65)),
        LinearRecipe { batch: 2, ..dims(32, 32, gated("gated_linear/prime_131_b2", 131)) },
        // Beyond the 4,096 tokens whose chunks are held at a time.
        LinearRecipe { heads: 1, ..dims(16, 16, with_state(gated("gated_linear/len_4100_state", 4100))) },
        LinearRecipe { heads: 1, ..dims(8, 8, lightning("lightning/len_10000", 10_000)) },
    ]
}

fn decays() -> Vec<LinearRecipe> {
    let decay = |decay, recipe| LinearRecipe { decay, ..recipe };
    vec![
        decay(Decays::Slopes(&[0.0]), lightning("lightning/slope_0", 70)),
        decay(Decays::Slopes(&[8.0]), with_state(lightning("lightning/slope_8", 70))),
        decay(Decays::Slopes(&[0.0, 8.0, 0.5, 2.0]), LinearRecipe { heads: 4, ..lightning("lightning/slopes", 67) }),
        // The state is below the smallest f32 after some tokens.
        decay(Decays::Slopes(&[100.0, 0.01]), lightning("lightning/slope_100", 33)),
        decay(Decays::Slopes(&[f32::MAX, 0.01]), with_state(lightning("lightning/slope_max_state", 33))),
        LinearRecipe { heads: 8, ..dims(16, 16, lightning("lightning/alibi_h8", 70)) },
        LinearRecipe { scale: Some(0.125), ..lightning("lightning/scale", 50) },
        decay(Decays::Gates(0.0), with_state(gated("gated_linear/gates_0", 70))),
        decay(Decays::Gates(8.0), with_state(gated("gated_linear/gates_8", 70))),
        decay(Decays::Resets(0.02), with_state(gated("gated_linear/resets", 130))),
        decay(Decays::Resets(2.0), dims(32, 32, with_state(gated("gated_linear/resets_2", 70)))),
        LinearRecipe { scale: None, ..gated("gated_linear/scale_1", 50) },
    ]
}

fn states() -> Vec<LinearRecipe> {
    let packed = |sequences, recipe| LinearRecipe { sequences, ..recipe };
    vec![
        LinearRecipe { state: true, ..lightning("lightning/state", 50) },
        LinearRecipe { grad_state: true, ..lightning("lightning/grad_state", 50) },
        LinearRecipe { grad_out: false, ..with_state(lightning("lightning/grad_state_only", 50)) },
        LinearRecipe { batch: 2, heads: 3, ..dims(32, 32, with_state(lightning("lightning/state_b2_h3", 41))) },
        with_state(lightning("lightning/state_no_tokens", 0)),
        LinearRecipe { state: true, ..gated("gated_linear/state", 50) },
        LinearRecipe { grad_state: true, ..gated("gated_linear/grad_state", 50) },
        packed(&[33, 0, 1, 64, 20], lightning("lightning/packed", 0)),
        packed(&[0, 70, 1, 5, 0], dims(32, 32, with_state(lightning("lightning/packed_state", 0)))),
        packed(&[9, 65, 0, 31], gated("gated_linear/packed", 0)),
        packed(&[1, 0, 40, 33], dims(32, 32, with_state(gated("gated_linear/packed_state", 0)))),
        LinearRecipe {
            heads: 1,
            ..packed(&[300, 4200, 0, 70], dims(16, 16, with_state(lightning("lightning/packed_long_state", 0))))
        },
    ]
}

fn head_dims() -> Vec<LinearRecipe> {
    vec![
        dims(16, 16, lightning("lightning/d16", 40)),
        dims(16, 64, lightning("lightning/d16_v64", 40)),
        dims(40, 80, with_state(lightning("lightning/d40_v80_state", 37))),
        dims(13, 7, with_state(lightning("lightning/d13_v7_state", 37))),
        dims(128, 128, with_state(lightning("lightning/d128_state", 70))),
        LinearRecipe { heads: 1, ..dims(256, 256, lightning("lightning/d256", 33)) },
        LinearRecipe { bshd: true, batch: 2, ..with_state(lightning("lightning/bshd_state", 41)) },
        LinearRecipe { bshd: true, ..dims(13, 7, lightning("lightning/bshd_d13_v7", 33)) },
        dims(13, 7, with_state(gated("gated_linear/d13_v7_state", 37))),
        LinearRecipe { heads: 1, ..dims(256, 128, with_state(gated("gated_linear/d256_v128_state", 70))) },
        LinearRecipe { bshd: true, batch: 2, ..gated("gated_linear/bshd", 41) },
    ]
}

fn storage() -> Vec<LinearRecipe> {
    use Storage::{Bf16, F16, F32};
    vec![
        with_state(stored(F16, F16, lightning("lightning/f16_state", 70))),
        LinearRecipe { bshd: true, ..stored(F16, F16, lightning("lightning/f16_bshd", 33)) },
        // States and weights beyond the range of f16, and next to nothing in it; outputs within.
        LinearRecipe {
            decay: Decays::Slopes(&[0.0]),
            sizes: [0.001, 256.0, 256.0],
            grad_out: false,
            ..stored(F16, F16, lightning("lightning/f16_large_state", 70))
        },
        LinearRecipe {
            sizes: [64.0, 1024.0, 0.0005],
            grad_out: false,
            ..stored(F16, F16, lightning("lightning/f16_large_weights", 70))
        },
        LinearRecipe {
            sizes: [256.0, 0.001, 0.001],
            grad_out: false,
            ..stored(F16, F16, lightning("lightning/f16_small_state", 70))
        },
        // Small dims from here on, of which kernels are compiled in less time.
        stored(Bf16, Bf16, dims(32, 32, lightning("lightning/bf16", 70))),
        LinearRecipe {
            sequences: &[33, 0, 20],
            ..stored(Bf16, Bf16, dims(32, 32, lightning("lightning/bf16_packed", 0)))
        },
        stored(F16, F32, dims(16, 16, lightning("lightning/q_f16_kv_f32", 40))),
        with_state(stored(F32, F16, dims(16, 16, lightning("lightning/q_f32_kv_f16_state", 40)))),
        stored(F16, F16, dims(32, 32, gated("gated_linear/f16", 70))),
    ]
}

/// The problems of linear attention that are timed: the forward pass, or where a gradient comes in the backward pass.
pub fn linear_bench_catalogue() -> Vec<LinearRecipe> {
    let timed = |recipe| LinearRecipe { heads: 8, grad_out: false, ..recipe };
    let backward = |recipe| LinearRecipe { grad_out: true, grad_decay: false, ..timed(recipe) };
    let decay = |recipe| LinearRecipe { grad_decay: true, ..backward(recipe) };
    vec![
        timed(lightning("lightning/forward_8192", 8192)),
        backward(lightning("lightning/backward_8192", 8192)),
        decay(lightning("lightning/backward_decay_8192", 8192)),
        timed(stored(Storage::F16, Storage::F16, lightning("lightning/forward_8192_f16", 8192))),
        timed(dims(128, 128, lightning("lightning/forward_4096_d128", 4096))),
        LinearRecipe { heads: 1, ..timed(lightning("lightning/forward_32768_h1", 32_768)) },
        timed(gated("gated_linear/forward_8192", 8192)),
    ]
}
