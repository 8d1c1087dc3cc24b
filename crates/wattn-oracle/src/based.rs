//! The BASED linear attention problem: its tensors, its moments, and what every form of it needs.

mod backward;
mod moments;
mod parallel;
mod recurrent;

pub use backward::BasedGradients;
pub use moments::BasedMoments;

use std::ops::Range;

use crate::rows::{Sequence, dot, row, sequences};

/// The linear attention of BASED ([arXiv 2402.18668]), whose weight is the Taylor expansion of the exponential, of one
/// problem:
///
/// `out_i = sum_j w_ij v_j / (sum_j w_ij + eps)` with `w = 1 + x + x^2 / 2` and `x_ij = scale q_i . k_j`.
///
/// Tensors are contiguous, `[batch, heads, tokens, dim]`. A packed batch has `batch` = 1 and its sequences one after
/// the other along the token axis. A key that does not exist adds nothing, where a key of zeros would have the weight
/// 1.
///
/// [arXiv 2402.18668]: https://arxiv.org/abs/2402.18668
#[derive(Clone, Copy, Debug)]
pub struct BasedProblem<'a> {
    /// Number of batch entries.
    pub batch: usize,
    /// Number of heads of q, k and v alike.
    pub heads: usize,
    /// Number of tokens per batch entry; the total of a packed batch.
    pub tokens: usize,
    /// Elements of a query and of a key.
    pub feature_dim: usize,
    /// Elements of a value and of an output row.
    pub value_dim: usize,
    /// Factor of `q kT`; `1 / sqrt(feature_dim)` if `None`.
    pub scale: Option<f64>,
    /// Added to the denominator.
    pub eps: f64,
    /// Whether query `i` sees key `j` only when `j <= i`.
    pub causal: bool,
    /// Whether there is a denominator.
    pub normalize: bool,
    /// `[batch, heads, tokens, feature_dim]`
    pub q: &'a [f64],
    /// `[batch, heads, tokens, feature_dim]`
    pub k: &'a [f64],
    /// `[batch, heads, tokens, value_dim]`
    pub v: &'a [f64],
    /// `[batch]`: the keys that exist, at most `tokens` of them; queries beyond them see all that do. Not combined
    /// with `bounds`.
    pub lengths: Option<&'a [usize]>,
    /// The keys before the first token, which every query sees; none if `None`.
    pub state: Option<BasedState<'a>>,
    /// `[sequences + 1]`, running totals from 0 to `tokens`: makes this a packed batch.
    pub bounds: Option<&'a [usize]>,
}

/// What is kept of keys and values that are gone.
#[derive(Clone, Copy, Debug)]
pub struct BasedState<'a> {
    /// `[batch or sequences]`: how many there were.
    pub counts: &'a [usize],
    /// Their moments.
    pub moments: &'a BasedMoments,
}

/// Causal and normalised, with `eps` = 1e-6.
impl Default for BasedProblem<'_> {
    fn default() -> Self {
        Self {
            batch: 0,
            heads: 0,
            tokens: 0,
            feature_dim: 0,
            value_dim: 0,
            scale: None,
            eps: 1e-6,
            causal: true,
            normalize: true,
            q: &[],
            k: &[],
            v: &[],
            lengths: None,
            state: None,
            bounds: None,
        }
    }
}

/// The result for all tokens.
#[derive(Clone, Debug, PartialEq)]
pub struct BasedOutput {
    /// `[batch, heads, tokens, value_dim]`; zeros if a query sees no key.
    pub out: Vec<f64>,
    /// `[batch or sequences]`: how many keys the moments hold.
    pub counts: Vec<usize>,
    /// The moments after the last token.
    pub moments: BasedMoments,
}

/// The sums of one query over the keys that it sees.
struct Sums {
    /// `[value_dim]`: `sum w v`
    values: Vec<f64>,
    /// `sum w`
    weights: f64,
}

impl BasedProblem<'_> {
    fn sequences(&self) -> Vec<Sequence> {
        sequences(self.batch, self.tokens, self.bounds)
    }

    /// The row of token `t` in q, k, v and out.
    fn row_ix(&self, seq: &Sequence, h: usize, t: usize) -> usize {
        (seq.b * self.heads + h) * self.tokens + t
    }

    /// The keys of a sequence that exist.
    fn keys(&self, seq: &Sequence) -> Range<usize> {
        let len = self.lengths.map_or(usize::MAX, |lengths| lengths[seq.b]);
        seq.tokens.start..seq.tokens.end.min(seq.tokens.start.saturating_add(len))
    }

    /// The keys that query `t` sees.
    fn seen(&self, seq: &Sequence, t: usize) -> Range<usize> {
        let keys = self.keys(seq);
        if self.causal { keys.start..keys.end.min(t + 1) } else { keys }
    }

    /// How many keys there were before the first token.
    fn first_count(&self, seq: &Sequence) -> usize {
        self.state.map_or(0, |state| state.counts[seq.ix])
    }

    /// The moments of one head before the first token.
    fn first_moments(&self, seq: &Sequence, h: usize) -> BasedMoments {
        let none = || BasedMoments::zeros(1, self.feature_dim, self.value_dim);
        self.state
            .map_or_else(none, |state| state.moments.head(seq.ix * self.heads + h, self.feature_dim, self.value_dim))
    }

    fn factor(&self) -> f64 {
        self.scale.unwrap_or(1.0 / (self.feature_dim as f64).sqrt())
    }

    /// The `x` of a query and a key, by their rows.
    fn score(&self, q_ix: usize, k_ix: usize) -> f64 {
        self.factor() * dot(row(self.q, q_ix, self.feature_dim), row(self.k, k_ix, self.feature_dim))
    }

    /// What the sums of a query are divided by.
    fn denominator(&self, sums: &Sums) -> f64 {
        // With no key at all, nothing over nothing is to be 0 even where `eps` is.
        if self.normalize && sums.weights != 0.0 { sums.weights + self.eps } else { 1.0 }
    }

    /// An output row.
    fn finish(&self, sums: &Sums) -> Vec<f64> {
        sums.values.iter().map(|x| x / self.denominator(sums)).collect()
    }

    /// How many keys there are after the last token, `[batch or sequences]`.
    fn last_counts(&self) -> Vec<usize> {
        self.sequences().iter().map(|seq| self.first_count(seq) + self.keys(seq).len()).collect()
    }

    /// Panics where a slice does not have the length that its extents ask for.
    fn assert_lengths(&self) {
        let Self { batch, heads, tokens, feature_dim, value_dim, .. } = *self;
        let rows = batch * heads * tokens;
        assert_eq!(self.q.len(), rows * feature_dim, "length of q");
        assert_eq!(self.k.len(), rows * feature_dim, "length of k");
        assert_eq!(self.v.len(), rows * value_dim, "length of v");
        assert!(self.lengths.is_none_or(|lengths| lengths.len() == batch), "length of lengths");
        assert!(self.lengths.is_none() || self.bounds.is_none(), "a packed batch has no lengths");
        if let Some(BasedState { counts, moments }) = self.state {
            let sequences = self.sequences().len();
            assert_eq!(counts.len(), sequences, "length of counts");
            moments.assert_lengths(sequences * heads, feature_dim, value_dim);
        }
    }
}
