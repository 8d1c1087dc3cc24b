//! Rows of contiguous tensors, and the sequences that share a state.

use std::ops::Range;

/// Row `ix` of a tensor whose last extent is `dim`.
pub(crate) fn row(values: &[f64], ix: usize, dim: usize) -> &[f64] {
    &values[ix * dim..(ix + 1) * dim]
}

/// Row `ix` of a tensor whose last extent is `dim`.
pub(crate) fn row_mut(values: &mut [f64], ix: usize, dim: usize) -> &mut [f64] {
    &mut values[ix * dim..(ix + 1) * dim]
}

pub(crate) fn dot(a: &[f64], b: &[f64]) -> f64 {
    a.iter().zip(b).map(|(x, y)| x * y).sum()
}

/// Adds `factor` times `values` to `sum`.
pub(crate) fn add_scaled(sum: &mut [f64], factor: f64, values: &[f64]) {
    for (x, y) in sum.iter_mut().zip(values) {
        *x += factor * y;
    }
}

/// Tokens that share a state: those of a batch entry, or of one sequence of a packed batch.
#[derive(Clone, Debug)]
pub(crate) struct Sequence {
    /// Which one, over all of the batch.
    pub(crate) ix: usize,
    /// Its batch entry.
    pub(crate) b: usize,
    /// Where it lies along the token axis.
    pub(crate) tokens: Range<usize>,
}

/// All sequences, in order. `bounds` are the running totals of a packed batch.
///
/// # Panics
/// If `bounds` are not running totals of `tokens`, or the batch has more than one entry beside them.
pub(crate) fn sequences(batch: usize, tokens: usize, bounds: Option<&[usize]>) -> Vec<Sequence> {
    let Some(bounds) = bounds else {
        return (0..batch).map(|b| Sequence { ix: b, b, tokens: 0..tokens }).collect();
    };
    assert_eq!(batch, 1, "batch of a packed batch");
    assert_eq!((bounds.first(), bounds.last()), (Some(&0), Some(&tokens)), "ends of bounds");
    assert!(bounds.is_sorted(), "bounds decrease");
    bounds.windows(2).enumerate().map(|(ix, ends)| Sequence { ix, b: 0, tokens: ends[0]..ends[1] }).collect()
}
