//! Softmax attention, forward, in two passes over the keys of a row: the maximum, then the sums.

use crate::SoftmaxProblem;

/// Share of a row's denominator below which a key's logit has no bearing on the row's rounding error.
const NEGLIGIBLE: f64 = 1e-9;

/// The result for one query.
#[derive(Clone, Debug, PartialEq)]
pub struct Row {
    /// `[value_dim]`; zeros if the query sees no key.
    pub out: Vec<f64>,
    /// Natural logarithm of the denominator, sink included. For a query that sees no key: its sink, or negative
    /// infinity.
    pub lse: f64,
    /// Largest magnitude of a logit, over the keys that carry more than 1e-9 of the denominator: what the error of a
    /// calculation in f32 is proportional to.
    pub largest_logit: f64,
}

/// The result for all queries.
#[derive(Clone, Debug, PartialEq)]
pub struct Output {
    /// `[batch, heads, queries, value_dim]`
    pub out: Vec<f64>,
    /// `[batch, heads, queries]`
    pub lse: Vec<f64>,
}

impl SoftmaxProblem<'_> {
    /// One row: `out_i = sum_j exp(s_ij - lse_i) v_j` over the keys `j` that query `i` sees, where `s_ij` is their
    /// logit and `lse_i = ln(sum_j exp(s_ij) + exp(sink))`. Keys that the query does not see are never read.
    ///
    /// # Panics
    /// If a slice of the problem does not have the length that its extents ask for, or an index is out of range.
    pub fn flash_forward_row(&self, b: usize, h: usize, i: usize) -> Row {
        self.assert_lengths();
        let sink = self.sinks.map(|sinks| sinks[h]);
        let scores: Vec<(usize, f64)> =
            (0..self.keys).filter(|&j| self.sees(b, h, i, j)).map(|j| (j, self.score(b, h, i, j))).collect();
        let mut out = vec![0.0; self.value_dim];
        if scores.is_empty() {
            let lse = sink.unwrap_or(f64::NEG_INFINITY);
            return Row { out, lse, largest_logit: 0.0 };
        }

        let max = scores.iter().map(|&(_, s)| s).chain(sink).fold(f64::NEG_INFINITY, f64::max);

        let mut denominator = sink.map_or(0.0, |sink| (sink - max).exp());
        for &(j, s) in &scores {
            let p = (s - max).exp();
            denominator += p;
            let v_start = ((b * self.kv_heads + self.kv_head(h)) * self.keys + j) * self.value_dim;
            for (x, v) in out.iter_mut().zip(&self.v[v_start..v_start + self.value_dim]) {
                *x += p * v;
            }
        }
        for x in &mut out {
            *x /= denominator;
        }
        let largest_logit = scores
            .iter()
            .filter(|&&(_, s)| (s - max).exp() > NEGLIGIBLE * denominator)
            .fold(0.0, |largest: f64, &(_, s)| largest.max(s.abs()));
        Row { out, lse: max + denominator.ln(), largest_logit }
    }

    /// All rows of the problem.
    ///
    /// ```
    /// use wattn_oracle::{Causal, SoftmaxProblem};
    ///
    /// let problem = SoftmaxProblem {
    ///     batch: 1, heads: 1, kv_heads: 1, queries: 2, keys: 2, head_dim: 1, value_dim: 1,
    ///     q: &[1.0, 0.0],
    ///     k: &[5.0, 7.0],
    ///     v: &[2.0, 4.0],
    ///     causal: Some(Causal::BottomRight),
    ///     ..SoftmaxProblem::default()
    /// };
    /// let output = problem.flash_forward();
    /// assert_eq!(output.out, [2.0, 3.0]); // the first query sees one key, the second sees both alike
    /// assert_eq!(output.lse, [5.0, 2.0_f64.ln()]);
    /// ```
    ///
    /// # Panics
    /// If a slice of the problem does not have the length that its extents ask for.
    pub fn flash_forward(&self) -> Output {
        let mut output = Output { out: Vec::new(), lse: Vec::new() };
        for b in 0..self.batch {
            for h in 0..self.heads {
                for i in 0..self.queries {
                    let row = self.flash_forward_row(b, h, i);
                    output.out.extend(row.out);
                    output.lse.push(row.lse);
                }
            }
        }
        output
    }
}
