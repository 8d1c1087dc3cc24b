//! Head dims and storage types: each line here is one more pipeline to compile.

use super::{BOTTOM_RIGHT, options::every_option};
use crate::{Recipe, Storage};

fn dims(name: &'static str, head_dim: usize, value_dim: usize) -> Recipe {
    Recipe { name, head_dim, value_dim, queries: 33, keys: 47, ..Recipe::default() }
}

fn stored(q_storage: Storage, kv_storage: Storage, recipe: Recipe) -> Recipe {
    Recipe { q_storage, kv_storage, ..recipe }
}

pub(super) fn recipes() -> Vec<Recipe> {
    [head_dims(), storage()].concat()
}

fn head_dims() -> Vec<Recipe> {
    let causal = |recipe| Recipe { causal: BOTTOM_RIGHT, ..recipe };
    vec![
        dims("softmax/d8", 8, 8),
        causal(dims("softmax/d16_causal", 16, 16)),
        dims("softmax/d32", 32, 32),
        causal(dims("softmax/d40_causal", 40, 40)),
        Recipe { heads: 4, ..dims("softmax/d72_v48_gqa", 72, 48) },
        Recipe { bshd: true, ..dims("softmax/d80_bshd", 80, 80) },
        Recipe { queries: 65, keys: 65, ..causal(dims("softmax/d128_causal", 128, 128)) },
        dims("softmax/d96_v160", 96, 160),
        causal(dims("softmax/d192_v128_causal", 192, 128)),
        dims("softmax/d256", 256, 256),
        Recipe { heads: 4, kv_heads: 1, ..causal(dims("softmax/d576_v512_mqa_causal", 576, 512)) },
        causal(dims("softmax/d13_v7_causal", 13, 7)),
        Recipe { bshd: true, ..dims("softmax/d50_v33_bshd", 50, 33) },
    ]
}

fn storage() -> Vec<Recipe> {
    use Storage::{Bf16, F16, F32};
    let causal = |recipe| Recipe { causal: BOTTOM_RIGHT, ..recipe };
    vec![
        stored(F16, F16, dims("softmax/f16", 64, 64)),
        Recipe {
            heads: 6,
            window: [Some(20), Some(0)],
            queries: 70,
            keys: 70,
            ..stored(F16, F16, dims("softmax/f16_gqa_window", 64, 64))
        },
        Recipe {
            batch: 2,
            kv_lens: &[9, 30],
            poison: true,
            ..stored(F16, F16, dims("softmax/f16_poison_kv_lens", 64, 64))
        },
        Recipe { bshd: true, ..causal(stored(F16, F16, dims("softmax/f16_d32_causal", 32, 32))) },
        causal(stored(F16, F16, dims("softmax/f16_d128_causal", 128, 128))),
        Recipe { heads: 4, kv_heads: 1, ..stored(F16, F16, dims("softmax/f16_d576_v512_mqa", 576, 512)) },
        stored(F16, F16, every_option("softmax/f16_every_option")),
        stored(Bf16, Bf16, dims("softmax/bf16", 64, 64)),
        Recipe {
            sequences: &[(33, 33), (0, 0), (20, 20)],
            ..causal(stored(Bf16, Bf16, dims("softmax/bf16_packed_causal", 64, 64)))
        },
        stored(Bf16, Bf16, dims("softmax/bf16_d72_v48", 72, 48)),
        causal(stored(F16, F32, dims("softmax/q_f16_kv_f32_causal", 16, 16))),
        stored(F32, F16, dims("softmax/q_f32_kv_f16", 16, 16)),
        stored(F32, Bf16, dims("softmax/q_f32_kv_bf16", 16, 16)),
    ]
}
