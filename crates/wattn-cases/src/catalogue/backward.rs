//! Gradients: of every option, on few different pipelines.

use super::options::every_option;
use super::{BOTTOM_RIGHT, TOP_LEFT, sized};
use crate::{Bias, Recipe, Spread, Storage, Values};

pub(super) fn recipes() -> Vec<Recipe> {
    let all = [ranges(), scores(), dims()].concat();
    all.into_iter().map(|recipe| Recipe { backward: true, ..recipe }).collect()
}

/// Which pairs there are: one pipeline for all.
fn ranges() -> Vec<Recipe> {
    let causal = |recipe| Recipe { causal: BOTTOM_RIGHT, ..recipe };
    let grouped = |heads, kv_heads, recipe| Recipe { heads, kv_heads, ..recipe };
    let lse = |recipe| Recipe { grad_lse: true, ..recipe };
    let pack = |name, sequences| Recipe { name, sequences, ..Recipe::default() };
    vec![
        sized("softmax/backward_single_token", 1, 1),
        sized("softmax/backward_no_queries", 0, 33),
        sized("softmax/backward_no_keys", 33, 0),
        lse(Recipe { batch: 2, bshd: true, ..grouped(6, 2, sized("softmax/backward_gqa_bshd_dlse", 33, 67)) }),
        causal(grouped(8, 1, sized("softmax/backward_mqa_causal", 70, 41))),
        Recipe { scale: Some(0.3), ..causal(sized("softmax/backward_scale_causal", 65, 130)) },
        Recipe {
            batch: 3,
            causal: TOP_LEFT,
            causal_offsets: &[-3, 0, 40],
            ..sized("softmax/backward_offset_per_batch", 33, 70)
        },
        Recipe { causal: TOP_LEFT, causal_offsets: &[-100], ..sized("softmax/backward_offset_hides_all", 20, 70) },
        Recipe { window: [Some(7), Some(4)], ..sized("softmax/backward_window_both", 131, 131) },
        Recipe { window: [Some(3), Some(3)], ..sized("softmax/backward_window_long_q", 131, 17) },
        Recipe { window: [Some(4), Some(3)], poison: true, ..sized("softmax/backward_poison_window", 20, 100) },
        Recipe { batch: 3, kv_lens: &[0, 17, 64], poison: true, ..sized("softmax/backward_poison_kv_lens", 40, 64) },
        lse(causal(Recipe {
            heads: 4,
            ..pack("softmax/backward_packed_empty_gqa", &[(0, 0), (5, 0), (0, 9), (40, 12), (13, 37), (0, 0)])
        })),
        Recipe { poison: true, ..pack("softmax/backward_poison_packed", &[(20, 20), (0, 33), (30, 11)]) },
        Recipe { values: Values::Large(30.0), ..causal(sized("softmax/backward_logits_30", 33, 70)) },
        // Few keys share them, so that gradients of scores are beyond the range of f16, where those of q, k and v are not.
        Recipe { gradients: 8192.0, ..sized("softmax/backward_large_gradients", 33, 5) },
    ]
}

/// What changes the logits.
fn scores() -> Vec<Recipe> {
    let bias = |bias, spread, recipe| Recipe { batch: 2, bias: Some((bias, spread)), ..recipe };
    let causal = |recipe| Recipe { causal: BOTTOM_RIGHT, ..recipe };
    vec![
        Recipe { softcap: Some(1.5), ..causal(sized("softmax/backward_softcap_causal", 40, 40)) },
        // Of eight heads, the first has a slope so steep that gradients of scores grow 2^10 times from tile to tile.
        Recipe {
            heads: 8,
            batch: 2,
            kv_lens: &[60, 9],
            alibi: true,
            ..sized("softmax/backward_alibi_kv_lens", 33, 64)
        },
        Recipe {
            sequences: &[(9, 33), (40, 17)],
            heads: 4,
            alibi: true,
            ..sized("softmax/backward_alibi_packed", 0, 0)
        },
        Recipe { sinks: true, grad_lse: true, ..causal(sized("softmax/backward_sinks_empty_rows", 70, 17)) },
        Recipe { sinks: true, poison: true, ..causal(sized("softmax/backward_poison_sinks", 70, 17)) },
        Recipe { sinks: true, ..sized("softmax/backward_sinks_no_keys", 5, 0) },
        Recipe { sinks: true, sequences: &[(5, 0), (0, 3), (33, 40)], ..sized("softmax/backward_sinks_packed", 0, 0) },
        bias(Bias::Normal, Spread::PerHead, sized("softmax/backward_bias_per_head", 20, 65)),
        causal(bias(Bias::Normal, Spread::PerBatch, sized("softmax/backward_bias_per_batch_causal", 40, 40))),
        Recipe {
            heads: 4,
            kv_lens: &[13, 40],
            ..bias(Bias::Normal, Spread::Shared, sized("softmax/backward_bias_shared_gqa_kv_lens", 31, 40))
        },
        // Sums over nothing, which are zeros.
        Recipe { batch: 0, ..bias(Bias::Normal, Spread::PerHead, sized("softmax/backward_bias_no_batch", 5, 33)) },
        Recipe { poison: true, ..bias(Bias::Masking, Spread::Shared, sized("softmax/backward_poison_bias", 33, 70)) },
        Recipe { batch: 2, mask: Some(Spread::Shared), poison: true, ..sized("softmax/backward_poison_mask", 33, 70) },
        // Queries that only the last keys of a tile see.
        Recipe { mask: Some(Spread::Shared), window: [Some(3); 2], ..sized("softmax/backward_mask_window", 70, 70) },
        Recipe {
            heads: 4,
            mask: Some(Spread::PerHead),
            sinks: true,
            poison: true,
            ..causal(sized("softmax/backward_poison_mask_gqa_sinks", 70, 50))
        },
        Recipe { grad_lse: true, ..every_option("softmax/backward_every_option") },
    ]
}

/// Head dims and storage types.
fn dims() -> Vec<Recipe> {
    use Storage::{Bf16, F16, F32};
    let causal = |recipe| Recipe { causal: BOTTOM_RIGHT, ..recipe };
    let stored = |q_storage, kv_storage, recipe| Recipe { q_storage, kv_storage, ..recipe };
    let dims = |name, head_dim, value_dim| Recipe { head_dim, value_dim, ..sized(name, 33, 47) };
    vec![
        causal(dims("softmax/backward_d13_v7_causal", 13, 7)),
        Recipe { bshd: true, heads: 4, ..dims("softmax/backward_d160_v136_gqa_bshd", 160, 136) },
        causal(dims("softmax/backward_d256_causal", 256, 256)),
        stored(F16, F16, causal(dims("softmax/backward_f16_causal", 64, 64))),
        stored(Bf16, Bf16, Recipe { bshd: true, heads: 4, ..dims("softmax/backward_bf16_gqa_bshd", 64, 64) }),
        stored(F32, Bf16, causal(dims("softmax/backward_q_f32_kv_bf16_causal", 16, 16))),
        stored(Bf16, Bf16, causal(dims("softmax/backward_bf16_d50_v34_causal", 50, 34))),
    ]
}
