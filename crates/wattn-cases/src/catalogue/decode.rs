//! Few queries over many keys, with every option.

use super::{BOTTOM_RIGHT, TOP_LEFT, sized};
use crate::{Bias, Recipe, Spread, Storage, Values};

/// All problems of softmax attention of few queries that are checked for correctness.
pub fn decode_catalogue() -> Vec<Recipe> {
    [lengths(), options(), dims()].concat()
}

fn grouped(heads: usize, kv_heads: usize, recipe: Recipe) -> Recipe {
    Recipe { heads, kv_heads, ..recipe }
}

fn causal(recipe: Recipe) -> Recipe {
    Recipe { causal: BOTTOM_RIGHT, ..recipe }
}

fn lengths() -> Vec<Recipe> {
    vec![
        causal(grouped(8, 2, sized("decode/one_query", 1, 200))),
        causal(grouped(8, 2, sized("decode/three_queries", 3, 150))),
        grouped(9, 3, sized("decode/group_of_three", 2, 131)),
        grouped(2, 2, sized("decode/one_head_a_group", 1, 131)),
        sized("decode/one_key", 1, 1),
        sized("decode/no_keys", 2, 0),
        sized("decode/no_queries", 0, 20),
        causal(sized("decode/empty_rows", 5, 3)),
        Recipe { batch: 3, kv_lens: &[0, 200, 37], ..causal(grouped(4, 1, sized("decode/kv_lens", 1, 200))) },
        Recipe { batch: 2, kv_lens: &[60, 131], poison: true, ..grouped(4, 2, sized("decode/poison_kv_lens", 2, 131)) },
        Recipe { causal: TOP_LEFT, ..sized("decode/top_left", 3, 50) },
        // Prefill, decode and nothing beside each other.
        Recipe {
            sequences: &[(40, 60), (1, 150), (0, 5), (2, 2), (3, 0), (1, 1)],
            ..causal(grouped(4, 2, sized("decode/mixed_packed", 0, 0)))
        },
    ]
}

fn options() -> Vec<Recipe> {
    let window = |left, right, recipe| Recipe { window: [left, right], ..recipe };
    let four = |name| grouped(4, 1, sized(name, 2, 140));
    vec![
        window(Some(40), Some(0), four("decode/window")),
        window(Some(20), Some(10), causal(sized("decode/window_both", 4, 140))),
        Recipe { softcap: Some(1.5), ..causal(four("decode/softcap_causal")) },
        Recipe { alibi: true, ..causal(four("decode/alibi_causal")) },
        Recipe { sinks: true, ..four("decode/sinks") },
        // Maxima that rise from one turn of a kernel to the next.
        Recipe { values: Values::Large(100.0), ..four("decode/logits_100") },
        Recipe { sinks: true, ..causal(sized("decode/sinks_empty_rows", 5, 3)) },
        Recipe { batch: 2, bias: Some((Bias::Masking, Spread::PerHead)), poison: true, ..four("decode/poison_bias") },
        Recipe {
            batch: 2,
            bias: Some((Bias::MinRows, Spread::Shared)),
            rms_tolerance: Some(5e-6),
            ..four("decode/bias_f32_min_rows")
        },
        Recipe { batch: 2, mask: Some(Spread::PerBatch), poison: true, ..four("decode/poison_mask") },
        Recipe { queries: 3, keys: 140, ..super::options::every_option("decode/every_option") },
    ]
}

fn dims() -> Vec<Recipe> {
    let dims = |head_dim, value_dim, recipe| Recipe { head_dim, value_dim, ..recipe };
    let stored = |q, kv, recipe| Recipe { q_storage: q, kv_storage: kv, ..recipe };
    vec![
        dims(128, 128, causal(grouped(8, 2, sized("decode/d128", 1, 150)))),
        dims(40, 24, causal(grouped(4, 1, sized("decode/d40_dv24", 2, 90)))),
        dims(37, 19, grouped(4, 1, sized("decode/d37_dv19", 2, 90))),
        dims(160, 192, causal(sized("decode/d160_dv192", 1, 70))),
        stored(Storage::F16, Storage::F16, causal(grouped(4, 1, sized("decode/f16", 2, 140)))),
        stored(Storage::Bf16, Storage::Bf16, causal(grouped(4, 1, sized("decode/bf16", 2, 140)))),
        stored(Storage::F32, Storage::F16, causal(grouped(4, 1, sized("decode/f32_on_f16", 2, 140)))),
    ]
}
