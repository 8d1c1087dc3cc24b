//! The decayed linear attention problem: its tensors and what every form of it needs.

mod backward;
mod parallel;
mod recurrent;

pub use backward::LinearGradients;

use crate::rows::{Sequence, row, sequences};

/// The logarithm of the factor by which the state decays before a token is added, at most 0.
#[derive(Clone, Copy, Debug)]
pub enum LinearDecay<'a> {
    /// `[heads]`, at least 0: minus this, at every token of the head.
    Slopes(&'a [f64]),
    /// `[batch, heads, tokens]`: one per token.
    Gates(&'a [f64]),
}

/// Linear attention whose state decays by one factor per head and token, as in Lightning Attention
/// ([arXiv 2405.17381]), `RetNet` and Mamba-2, of one problem:
///
/// `state_t = exp(g_t) state_(t-1) + k_t v_tT`, `out_t = scale q_t state_t`, with `g_t` the decay of token `t`.
///
/// Tensors are contiguous, `[batch, heads, tokens, dim]`. A packed batch has `batch` = 1 and its sequences one after
/// the other along the token axis; each starts from a state of its own. There is neither a denominator nor, by default,
/// a scale.
///
/// [arXiv 2405.17381]: https://arxiv.org/abs/2405.17381
#[derive(Clone, Copy, Debug)]
pub struct LinearProblem<'a> {
    /// Number of batch entries.
    pub batch: usize,
    /// Number of heads of q, k and v alike.
    pub heads: usize,
    /// Number of tokens per batch entry; the total of a packed batch.
    pub tokens: usize,
    /// Elements of a query and of a key.
    pub key_dim: usize,
    /// Elements of a value and of an output row.
    pub value_dim: usize,
    /// Factor of the output; 1 if `None`.
    pub scale: Option<f64>,
    /// `[batch, heads, tokens, key_dim]`
    pub q: &'a [f64],
    /// `[batch, heads, tokens, key_dim]`
    pub k: &'a [f64],
    /// `[batch, heads, tokens, value_dim]`
    pub v: &'a [f64],
    /// How the state decays.
    pub decay: LinearDecay<'a>,
    /// `[batch or sequences, heads, key_dim, value_dim]`: the state before the first token; zeros if `None`.
    pub state: Option<&'a [f64]>,
    /// `[sequences + 1]`, running totals from 0 to `tokens`: makes this a packed batch.
    pub bounds: Option<&'a [usize]>,
}

impl Default for LinearProblem<'_> {
    fn default() -> Self {
        Self {
            batch: 0,
            heads: 0,
            tokens: 0,
            key_dim: 0,
            value_dim: 0,
            scale: None,
            q: &[],
            k: &[],
            v: &[],
            decay: LinearDecay::Slopes(&[]),
            state: None,
            bounds: None,
        }
    }
}

/// The result for all tokens.
#[derive(Clone, Debug, PartialEq)]
pub struct LinearOutput {
    /// `[batch, heads, tokens, value_dim]`
    pub out: Vec<f64>,
    /// `[batch or sequences, heads, key_dim, value_dim]`: the state after the last token.
    pub state: Vec<f64>,
}

impl LinearProblem<'_> {
    fn sequences(&self) -> Vec<Sequence> {
        sequences(self.batch, self.tokens, self.bounds)
    }

    /// The row of token `t` in q, k, v and out.
    fn row_ix(&self, seq: &Sequence, h: usize, t: usize) -> usize {
        (seq.b * self.heads + h) * self.tokens + t
    }

    /// The logarithm of the decay at token `t`.
    fn log_decay(&self, seq: &Sequence, h: usize, t: usize) -> f64 {
        match self.decay {
            LinearDecay::Slopes(slopes) => -slopes[h],
            LinearDecay::Gates(gates) => gates[self.row_ix(seq, h, t)],
        }
    }

    /// `[key_dim, value_dim]`: the state before the first token.
    fn first_state(&self, seq: &Sequence, h: usize) -> Vec<f64> {
        let len = self.key_dim * self.value_dim;
        self.state.map_or_else(|| vec![0.0; len], |state| row(state, seq.ix * self.heads + h, len).to_vec())
    }

    fn factor(&self) -> f64 {
        self.scale.unwrap_or(1.0)
    }

    /// Panics where a slice does not have the length that its extents ask for.
    fn assert_lengths(&self) {
        let Self { batch, heads, tokens, key_dim, value_dim, .. } = *self;
        let rows = batch * heads * tokens;
        assert_eq!(self.q.len(), rows * key_dim, "length of q");
        assert_eq!(self.k.len(), rows * key_dim, "length of k");
        assert_eq!(self.v.len(), rows * value_dim, "length of v");
        match self.decay {
            LinearDecay::Slopes(slopes) => assert_eq!(slopes.len(), heads, "length of the slopes"),
            LinearDecay::Gates(gates) => assert_eq!(gates.len(), rows, "length of the gates"),
        }
        let states = self.sequences().len() * heads * key_dim * value_dim;
        assert!(self.state.is_none_or(|state| state.len() == states), "length of state");
    }
}
