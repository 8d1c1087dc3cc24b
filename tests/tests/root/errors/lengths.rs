//! Lengths that do not go with the plan.

use anyhow::Result;
use wattn::{Extent, Lengths};

use super::{Bad, Bench, attention, plain};

pub(super) const LENGTHS: &[Bad] = &[
    (
        "three_lengths_for_two_entries",
        |b| b.encode(plain, |_, o| o.lengths = Lengths::Keys(&[1, 2, 3])),
        &["lengths", "3", "2, one a batch entry"],
    ),
    (
        "bounds_without_packing",
        |b| b.encode(plain, |_, o| o.lengths = Lengths::Packed { queries: &[0, 20], keys: &[0, 48] }),
        &["lengths", "packed"],
    ),
    ("packing_without_bounds", |b| packed(b, Lengths::Full), &["lengths", "no bounds", "Lengths::Packed"]),
    (
        "bounds_fall",
        |b| packed(b, Lengths::Packed { queries: &[0, 21, 20], keys: &[0, 9, 48] }),
        &["lengths.queries", "do not rise", "3 rising bounds from 0 to 20"],
    ),
    (
        "bounds_end_early",
        |b| packed(b, Lengths::Packed { queries: &[0, 5, 20], keys: &[0, 9, 40] }),
        &["lengths.keys", "40", "48"],
    ),
    (
        "bounds_start_late",
        |b| packed(b, Lengths::Packed { queries: &[1, 5, 20], keys: &[0, 9, 48] }),
        &["lengths.queries", "from 1 to 20", "from 0 to 20"],
    ),
    (
        "too_many_bounds",
        |b| packed(b, Lengths::Packed { queries: &[0, 5, 9, 20], keys: &[0, 9, 20, 48] }),
        &["lengths.queries", "4 bounds", "3 rising bounds"],
    ),
    (
        "empty_bounds",
        |b| packed(b, Lengths::Packed { queries: &[], keys: &[] }),
        &["lengths.queries", "no bounds", "3 rising bounds"],
    ),
];

/// What a plan for two packed sequences says to these lengths.
fn packed<'a>(bench: &'a Bench, lengths: Lengths<'a>) -> Result<String> {
    let plan = bench.engine.plan(&attention()?.lse(), Extent::packed(2, 20, 48))?;
    bench.encode_plan(&plan, |_, operands| operands.lengths = lengths)
}
