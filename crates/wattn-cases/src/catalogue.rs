//! The named problems on which every kernel is judged. Small, since they also run on software drivers.

mod backward;
mod based;
mod bench;
mod decode;
mod dims;
mod lengths;
mod linear;
mod options;
mod ranges;
mod values;

pub use based::{based_bench_catalogue, based_catalogue};
pub use bench::{bench_catalogue, decode_bench_catalogue};
pub use decode::decode_catalogue;
pub use linear::{linear_bench_catalogue, linear_catalogue};

use crate::{Causal, Recipe};

const BOTTOM_RIGHT: Option<Causal> = Some(Causal::BottomRight);
const TOP_LEFT: Option<Causal> = Some(Causal::TopLeft);

fn sized(name: &'static str, queries: usize, keys: usize) -> Recipe {
    Recipe { name, queries, keys, ..Recipe::default() }
}

/// All problems of softmax attention that are checked for correctness.
pub fn catalogue() -> Vec<Recipe> {
    [lengths::recipes(), ranges::recipes(), options::recipes(), values::recipes(), dims::recipes(), backward::recipes()]
        .concat()
}
