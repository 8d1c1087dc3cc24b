//! How many queries, keys and heads there are, and how they lie in memory.

use super::{BOTTOM_RIGHT, TOP_LEFT, sized};
use crate::Recipe;

pub(super) fn recipes() -> Vec<Recipe> {
    let causal = |recipe| Recipe { causal: BOTTOM_RIGHT, ..recipe };
    let top_left = |recipe| Recipe { causal: TOP_LEFT, ..recipe };
    let grouped = |heads, kv_heads, recipe| Recipe { heads, kv_heads, ..recipe };
    vec![
        sized("softmax/plain", 64, 64),
        sized("softmax/single_token", 1, 1),
        sized("softmax/no_queries", 0, 33),
        sized("softmax/no_keys", 33, 0),
        // Around the tile sizes 32 and 64.
        sized("softmax/len_31", 31, 31),
        causal(sized("softmax/len_32_causal", 32, 32)),
        sized("softmax/len_33", 33, 33),
        causal(sized("softmax/len_63_causal", 63, 63)),
        causal(sized("softmax/len_64_causal", 64, 64)),
        causal(sized("softmax/len_65_causal", 65, 65)),
        sized("softmax/len_65", 65, 65),
        Recipe { batch: 3, ..sized("softmax/prime_97", 97, 97) },
        causal(sized("softmax/prime_131_causal", 131, 131)),
        sized("softmax/short_q", 17, 131),
        causal(sized("softmax/short_q_causal", 17, 131)),
        causal(sized("softmax/long_q_causal", 131, 17)),
        top_left(sized("softmax/short_q_top_left", 17, 131)),
        top_left(sized("softmax/long_q_top_left", 131, 17)),
        grouped(9, 3, sized("softmax/gqa_9_3", 33, 47)),
        causal(grouped(8, 1, sized("softmax/mqa_8_1_causal", 37, 37))),
        causal(grouped(8, 2, sized("softmax/decode_gqa", 1, 133))),
        Recipe { batch: 2, bshd: true, ..grouped(3, 3, sized("softmax/bshd", 41, 67)) },
        Recipe { batch: 2, bshd: true, ..causal(grouped(4, 2, sized("softmax/bshd_gqa_causal", 70, 70))) },
    ]
}
