//! The problems whose speed is measured. Their full size is for devices; [`Recipe::reduced`] gives the size at which
//! each is checked first.

use super::BOTTOM_RIGHT;
use crate::{Bias, Recipe, Spread, Storage};

fn square(name: &'static str, tokens: usize) -> Recipe {
    Recipe { name, heads: 8, kv_heads: 8, queries: tokens, keys: tokens, ..Recipe::default() }
}

/// The problems that are timed.
pub fn bench_catalogue() -> Vec<Recipe> {
    let causal = |recipe| Recipe { causal: BOTTOM_RIGHT, ..recipe };
    let dims = |dim, recipe| Recipe { head_dim: dim, value_dim: dim, ..recipe };
    let stored = |storage, recipe| Recipe { q_storage: storage, kv_storage: storage, ..recipe };
    let backward = |recipe| Recipe { backward: true, ..recipe };
    let long = |name| Recipe { heads: 2, kv_heads: 2, ..square(name, 8192) };
    vec![
        square("softmax/full_1024", 1024),
        causal(square("softmax/causal_1024", 1024)),
        long("softmax/full_8192"),
        Recipe { window: [Some(127), Some(0)], ..long("softmax/window_128_of_8192") },
        dims(16, square("softmax/full_1024_d16", 1024)),
        dims(32, square("softmax/full_1024_d32", 1024)),
        dims(128, square("softmax/full_1024_d128", 1024)),
        stored(Storage::F16, square("softmax/full_1024_f16", 1024)),
        stored(Storage::Bf16, square("softmax/full_1024_bf16", 1024)),
        Recipe { heads: 9, kv_heads: 3, ..causal(square("softmax/gqa_9_3_causal_1024", 1024)) },
        Recipe { queries: 512, ..causal(square("softmax/prefill_512_of_2048", 2048)) },
        Recipe { alibi: true, ..causal(square("softmax/alibi_causal_1024", 1024)) },
        Recipe { softcap: Some(30.0), ..causal(square("softmax/softcap_causal_1024", 1024)) },
        Recipe { bias: Some((Bias::Normal, Spread::PerHead)), ..square("softmax/bias_1024", 1024) },
        backward(square("softmax/backward_1024", 1024)),
        backward(causal(square("softmax/backward_causal_1024", 1024))),
        backward(dims(128, square("softmax/backward_512_d128", 512))),
        backward(stored(Storage::F16, square("softmax/backward_1024_f16", 1024))),
        backward(Recipe { heads: 9, kv_heads: 3, ..causal(square("softmax/backward_gqa_9_3_causal_512", 512)) }),
    ]
}

/// The problems of few queries that are timed.
pub fn decode_bench_catalogue() -> Vec<Recipe> {
    let decode = |name, dim, [heads, kv_heads]: [usize; 2], keys| Recipe {
        name,
        heads,
        kv_heads,
        queries: 1,
        keys,
        head_dim: dim,
        value_dim: dim,
        causal: BOTTOM_RIGHT,
        ..Recipe::default()
    };
    /// One sequence of 8,192 keys among 31 of 256; and as many keys in sequences alike.
    const SKEWED: [u32; 32] = {
        let mut lengths = [256; 32];
        lengths[0] = 8192;
        lengths
    };
    let stored = |storage, recipe| Recipe { q_storage: storage, kv_storage: storage, ..recipe };
    vec![
        decode("decode/8192_d128", 128, [32, 8], 8192),
        stored(Storage::F16, decode("decode/8192_d128_f16", 128, [32, 8], 8192)),
        decode("decode/8192_d64", 64, [9, 3], 8192),
        Recipe { batch: 32, kv_lens: &SKEWED, ..decode("decode/skewed_d64", 64, [8, 2], 8192) },
        Recipe { batch: 32, kv_lens: &[504; 32], ..decode("decode/uniform_d64", 64, [8, 2], 8192) },
    ]
}
