//! Decayed linear attention, forward, one token after the other.

use super::{LinearOutput, LinearProblem};
use crate::rows::{Sequence, add_scaled, row, row_mut};

impl LinearProblem<'_> {
    /// The recurrence as it is defined: the state decays, the token is added, the query reads.
    ///
    /// ```
    /// use wattn_oracle::{LinearDecay, LinearProblem};
    ///
    /// let problem = LinearProblem {
    ///     batch: 1, heads: 1, tokens: 2, key_dim: 1, value_dim: 1,
    ///     q: &[1.0, 1.0],
    ///     k: &[1.0, 1.0],
    ///     v: &[4.0, 5.0],
    ///     decay: LinearDecay::Slopes(&[2.0_f64.ln()]),
    ///     ..LinearProblem::default()
    /// };
    /// let output = problem.recurrent();
    /// assert_eq!(output.out, [4.0, 7.0]); // half of the first value is left when the second is added
    /// assert_eq!(output.state, [7.0]);
    /// ```
    ///
    /// # Panics
    /// If a slice of the problem does not have the length that its extents ask for.
    pub fn recurrent(&self) -> LinearOutput {
        self.assert_lengths();
        let mut out = vec![0.0; self.v.len()];
        let mut states = Vec::new();
        for seq in self.sequences() {
            for h in 0..self.heads {
                let mut state = self.first_state(&seq, h);
                for t in seq.tokens.clone() {
                    self.advance(&mut state, &seq, h, t);
                    let ix = self.row_ix(&seq, h, t);
                    let out_row = row_mut(&mut out, ix, self.value_dim);
                    for (q, state_row) in row(self.q, ix, self.key_dim).iter().zip(state.chunks(self.value_dim)) {
                        add_scaled(out_row, self.factor() * q, state_row);
                    }
                }
                states.extend(state);
            }
        }
        LinearOutput { out, state: states }
    }

    /// `state_t = exp(g_t) state_(t-1) + k_t v_tT`
    pub(super) fn advance(&self, state: &mut [f64], seq: &Sequence, h: usize, t: usize) {
        let ix = self.row_ix(seq, h, t);
        let decay = self.log_decay(seq, h, t).exp();
        let v = row(self.v, ix, self.value_dim);
        for (k, state_row) in row(self.k, ix, self.key_dim).iter().zip(state.chunks_mut(self.value_dim)) {
            for (x, v) in state_row.iter_mut().zip(v) {
                *x = decay * *x + k * v;
            }
        }
    }
}
