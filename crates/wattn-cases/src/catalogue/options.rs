//! What changes the logits: softcap, `ALiBi`, bias, mask and sinks.

use super::{BOTTOM_RIGHT, sized};
use crate::{Bias, Recipe, Spread, Values};

pub(super) fn recipes() -> Vec<Recipe> {
    [scores(), biases(), masks(), sinks(), combined()].concat()
}

fn scores() -> Vec<Recipe> {
    let alibi = |recipe| Recipe { alibi: true, ..recipe };
    vec![
        Recipe { scale: Some(0.3), ..sized("softmax/scale", 33, 33) },
        Recipe { softcap: Some(1.5), causal: BOTTOM_RIGHT, ..sized("softmax/softcap_causal", 65, 65) },
        // Scores far below the cap, where a tanh of differences of exponentials has few digits: one key's is the log-sum-exp.
        Recipe { softcap: Some(50.0), values: Values::Large(0.1), ..sized("softmax/softcap_far", 33, 1) },
        Recipe { causal: BOTTOM_RIGHT, ..alibi(sized("softmax/alibi_causal", 70, 70)) },
        Recipe { heads: 4, ..alibi(sized("softmax/alibi_gqa_short_q", 17, 90)) },
        Recipe { batch: 2, kv_lens: &[60, 9], ..alibi(sized("softmax/alibi_kv_lens", 33, 64)) },
        Recipe { sequences: &[(9, 33), (40, 17)], heads: 4, ..alibi(sized("softmax/alibi_packed", 0, 0)) },
    ]
}

fn biases() -> Vec<Recipe> {
    let bias = |bias, spread, recipe| Recipe { batch: 2, bias: Some((bias, spread)), ..recipe };
    vec![
        bias(Bias::Normal, Spread::Full, sized("softmax/bias_full", 33, 47)),
        bias(Bias::Normal, Spread::PerHead, sized("softmax/bias_per_head", 20, 65)),
        Recipe {
            causal: BOTTOM_RIGHT,
            ..bias(Bias::Normal, Spread::PerBatch, sized("softmax/bias_per_batch_causal", 65, 65))
        },
        Recipe {
            heads: 4,
            kv_lens: &[13, 40],
            ..bias(Bias::Normal, Spread::Shared, sized("softmax/bias_shared_gqa_kv_lens", 31, 40))
        },
        bias(Bias::MinSome, Spread::Full, sized("softmax/bias_f32_min", 33, 40)),
        // The largest lse are f32::MIN exactly, so it is the output that this one is about.
        Recipe {
            rms_tolerance: Some(5e-6),
            ..bias(Bias::MinRows, Spread::Shared, sized("softmax/bias_f32_min_rows", 33, 40))
        },
        bias(Bias::Masking, Spread::PerHead, sized("softmax/bias_infinite", 33, 70)),
        Recipe { poison: true, ..bias(Bias::Masking, Spread::Shared, sized("softmax/poison_bias", 33, 70)) },
    ]
}

fn masks() -> Vec<Recipe> {
    let mask = |spread, recipe| Recipe { batch: 2, mask: Some(spread), ..recipe };
    vec![
        mask(Spread::Full, sized("softmax/mask_full", 33, 47)),
        Recipe { causal: BOTTOM_RIGHT, ..mask(Spread::Shared, sized("softmax/mask_shared_causal", 65, 65)) },
        Recipe { kv_lens: &[70, 31], ..mask(Spread::PerHead, sized("softmax/mask_per_head_kv_lens", 20, 70)) },
        Recipe { heads: 4, bshd: true, ..mask(Spread::PerBatch, sized("softmax/mask_per_batch_gqa_bshd", 17, 33)) },
        Recipe { poison: true, ..mask(Spread::Shared, sized("softmax/poison_mask", 33, 70)) },
    ]
}

fn sinks() -> Vec<Recipe> {
    let sinks = |recipe| Recipe { sinks: true, ..recipe };
    let causal = |recipe| Recipe { causal: BOTTOM_RIGHT, ..recipe };
    vec![
        Recipe { heads: 4, ..causal(sinks(sized("softmax/sinks_gqa_causal", 65, 65))) },
        causal(sinks(sized("softmax/sinks_empty_rows", 70, 17))),
        sinks(sized("softmax/sinks_no_keys", 5, 0)),
        Recipe { sequences: &[(5, 0), (0, 3), (33, 40)], ..sinks(sized("softmax/sinks_packed_empty", 0, 0)) },
    ]
}

fn combined() -> Vec<Recipe> {
    vec![
        Recipe {
            softcap: Some(3.0),
            alibi: true,
            sinks: true,
            window: [Some(30), Some(0)],
            ..sized("softmax/softcap_alibi_sinks_window", 70, 70)
        },
        Recipe {
            batch: 2,
            bias: Some((Bias::Masking, Spread::PerHead)),
            mask: Some(Spread::PerBatch),
            sinks: true,
            ..sized("softmax/bias_mask_sinks", 33, 65)
        },
        every_option("softmax/every_option"),
    ]
}

/// Everything at once that can be at once, of small dims: drivers compile as many kernels as there are options and storage types, and
/// take longer for longer rows.
pub(super) fn every_option(name: &'static str) -> Recipe {
    Recipe {
        batch: 2,
        heads: 4,
        causal: BOTTOM_RIGHT,
        window: [Some(40), None],
        softcap: Some(2.0),
        alibi: true,
        bias: Some((Bias::Normal, Spread::PerHead)),
        mask: Some(Spread::Shared),
        sinks: true,
        kv_lens: &[70, 45],
        bshd: true,
        head_dim: 16,
        value_dim: 16,
        ..sized(name, 50, 70)
    }
}
