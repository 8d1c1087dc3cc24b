//! Which range of keys a query sees.

use super::{BOTTOM_RIGHT, TOP_LEFT, sized};
use crate::Recipe;

pub(super) fn recipes() -> Vec<Recipe> {
    [offsets(), windows(), key_lengths(), packed(), poisoned()].concat()
}

fn offsets() -> Vec<Recipe> {
    let offset = |causal_offsets, recipe| Recipe { causal: TOP_LEFT, causal_offsets, ..recipe };
    vec![
        offset(&[5], sized("softmax/offset", 33, 70)),
        Recipe { batch: 3, ..offset(&[-3, 0, 40], sized("softmax/offset_per_batch", 33, 70)) },
        offset(&[-100], sized("softmax/offset_hides_all", 20, 70)),
    ]
}

fn windows() -> Vec<Recipe> {
    let window = |left, right, recipe| Recipe { window: [left, right], ..recipe };
    let causal = |recipe| Recipe { causal: BOTTOM_RIGHT, ..recipe };
    let huge = Some(u32::MAX);
    vec![
        window(Some(15), None, sized("softmax/window_left", 70, 70)),
        window(None, Some(7), sized("softmax/window_right", 70, 70)),
        window(Some(7), Some(4), sized("softmax/window_both", 131, 131)),
        window(Some(0), Some(0), sized("softmax/window_zero", 40, 70)),
        window(huge, huge, sized("softmax/window_huge", 65, 40)),
        window(Some(30), Some(5), sized("softmax/window_short_q", 17, 131)),
        window(Some(3), Some(3), sized("softmax/window_long_q", 131, 17)),
        causal(window(Some(31), Some(0), sized("softmax/sliding_causal", 130, 130))),
        causal(window(Some(40), Some(9), sized("softmax/sliding_causal_short_q", 19, 190))),
        Recipe { causal: TOP_LEFT, ..window(Some(40), Some(20), sized("softmax/window_top_left", 40, 70)) },
        Recipe { heads: 6, kv_heads: 2, ..causal(window(Some(20), None, sized("softmax/gqa_causal_window", 71, 71))) },
    ]
}

fn key_lengths() -> Vec<Recipe> {
    let lens = |kv_lens: &'static [u32], recipe| Recipe { batch: kv_lens.len(), kv_lens, ..recipe };
    let causal = |recipe| Recipe { causal: BOTTOM_RIGHT, ..recipe };
    vec![
        lens(&[0, 17, 64], sized("softmax/kv_lens", 40, 64)),
        lens(&[1000, 5], sized("softmax/kv_lens_clamped", 9, 33)),
        Recipe { heads: 4, ..causal(lens(&[70, 33, 1], sized("softmax/kv_lens_gqa_causal", 35, 70))) },
        Recipe {
            window: [Some(10), Some(2)],
            bshd: true,
            ..lens(&[90, 40], sized("softmax/kv_lens_window_bshd", 33, 90))
        },
        Recipe { causal: TOP_LEFT, ..lens(&[3, 29], sized("softmax/kv_lens_top_left", 35, 35)) },
    ]
}

fn packed() -> Vec<Recipe> {
    let pack = |name, sequences| Recipe { name, sequences, ..Recipe::default() };
    vec![
        pack("softmax/packed", &[(7, 9), (33, 1), (64, 65)]),
        Recipe { causal: BOTTOM_RIGHT, ..pack("softmax/packed_causal", &[(1, 1), (31, 31), (65, 65), (40, 40)]) },
        Recipe {
            causal: BOTTOM_RIGHT,
            heads: 4,
            ..pack("softmax/packed_empty_gqa", &[(0, 0), (5, 0), (0, 9), (40, 12), (13, 37), (0, 0)])
        },
        Recipe { causal: TOP_LEFT, causal_offsets: &[3], ..pack("softmax/packed_offset", &[(20, 33), (33, 20)]) },
        Recipe { window: [Some(12), Some(0)], ..pack("softmax/packed_window", &[(50, 50), (3, 40), (40, 3)]) },
    ]
}

/// Keys that no query sees hold NaN and infinity.
fn poisoned() -> Vec<Recipe> {
    let poison = |recipe| Recipe { poison: true, ..recipe };
    let poisoned = vec![
        Recipe { batch: 2, kv_lens: &[11, 50], ..sized("softmax/poison_kv_lens", 20, 64) },
        Recipe { window: [Some(4), Some(3)], ..sized("softmax/poison_window", 20, 100) },
        Recipe { causal: TOP_LEFT, ..sized("softmax/poison_top_left", 30, 90) },
        Recipe { sequences: &[(20, 20), (0, 33), (30, 11)], ..sized("softmax/poison_packed", 0, 0) },
    ];
    poisoned.into_iter().map(poison).collect()
}
