//! Key ranges and work lists against plain counting.

use proptest::prelude::*;
use wattn_scheduler::{
    Attention, Causal, Extent, HeadDim, Heads, Lengths, Order, key_range, key_work_list, query_range, sequences,
    tile_keys, tile_queries, visited_scores, work_list,
};

#[derive(Debug, Clone)]
struct Problem {
    attention: Attention,
    queries: u32,
    keys: u32,
    offset: i32,
    window: (Option<u32>, Option<u32>),
}

fn problems() -> impl Strategy<Value = Problem> {
    let side = prop::option::of(prop_oneof![0..80_u32, Just(u32::MAX)]);
    (0..3, 0..60_u32, 0..60_u32, -70..70_i32, (side.clone(), side)).prop_map(
        |(causal, queries, keys, offset, window)| {
            let plain = Attention::new(Heads::new(1).unwrap(), HeadDim::new(8).unwrap()).window(window.0, window.1);
            let attention = match causal {
                0 => plain,
                1 => plain.causal(),
                _ => plain.causal_top_left(),
            };
            Problem { attention, queries, keys, offset, window }
        },
    )
}

impl Problem {
    /// The definition, one pair at a time.
    fn sees(&self, i: u32, j: u32) -> bool {
        let (i, j) = (i64::from(i), i64::from(j));
        let own = i + i64::from(self.keys) - i64::from(self.queries);
        let past = match self.attention.causality() {
            Causal::No => true,
            Causal::BottomRight => j <= own,
            Causal::TopLeft => j <= i + i64::from(self.offset),
        };
        let left = self.window.0.is_none_or(|left| j >= own - i64::from(left));
        let right = self.window.1.is_none_or(|right| j <= own + i64::from(right));
        past && left && right
    }

    fn sequences(&self) -> Vec<wattn_scheduler::shaders::Sequence> {
        let offsets = [self.offset];
        let offsets = if self.attention.causality() == Causal::TopLeft { &offsets[..] } else { &[] };
        sequences(&self.attention, Extent::new(1, self.queries, self.keys), Lengths::Full, offsets).unwrap()
    }
}

proptest! {
    #[test]
    fn ranges_hold_exactly_the_visible_keys(problem in problems()) {
        let all = problem.sequences();
        let mut visible = 0;
        for i in 0..problem.queries {
            let (lo, hi) = key_range(&all[0], i);
            for j in 0..problem.keys {
                prop_assert_eq!((lo..hi).contains(&j), problem.sees(i, j), "query {} key {}", i, j);
                visible += u64::from(problem.sees(i, j));
            }
        }
        for j in 0..problem.keys {
            let (first, end) = query_range(&all[0], j);
            for i in 0..problem.queries {
                prop_assert_eq!((first..end).contains(&i), problem.sees(i, j), "key {} query {}", j, i);
            }
        }
        prop_assert_eq!(visited_scores(&all[0]), visible);
    }

    #[test]
    fn lists_hold_each_tile_once_heaviest_first(problem in problems(), tile in 1..40_u32, lengths in prop::collection::vec(0..60_u32, 1..6)) {
        let count = u32::try_from(lengths.len()).unwrap();
        let offsets = if problem.attention.causality() == Causal::TopLeft { vec![problem.offset; lengths.len()] } else { vec![] };
        let all = sequences(&problem.attention, Extent::new(count, problem.queries, 60), Lengths::Keys(&lengths), &offsets).unwrap();
        let list = work_list(&all, tile, Order::HeaviestFirst);
        let mut seen = list.clone();
        seen.sort_unstable();
        let want: Vec<[u32; 2]> = (0..count).flat_map(|b| (0..problem.queries.div_ceil(tile)).map(move |t| [b, t])).collect();
        prop_assert_eq!(seen, want);
        let weights: Vec<u32> = list.iter().map(|&[b, t]| tile_keys(&all[b as usize], t * tile, tile)).collect();
        prop_assert!(weights.is_sorted_by(|a, b| a >= b), "{:?}", weights);

        // Tiles of keys also where no key exists: their gradients are zeros that someone writes.
        let list = key_work_list(&all, tile, Order::HeaviestFirst);
        let mut seen = list.clone();
        seen.sort_unstable();
        let want: Vec<[u32; 2]> = (0..count).flat_map(|b| (0..60_u32.div_ceil(tile)).map(move |t| [b, t])).collect();
        prop_assert_eq!(seen, want);
        let weights: Vec<u32> = list.iter().map(|&[b, t]| tile_queries(&all[b as usize], t * tile, tile)).collect();
        prop_assert!(weights.is_sorted_by(|a, b| a >= b), "{:?}", weights);
    }
}
