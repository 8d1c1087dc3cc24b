//! Decayed linear attention, forward, every pair of tokens by itself.

use super::{LinearOutput, LinearProblem};
use crate::rows::{add_scaled, dot, row, row_mut};

impl LinearProblem<'_> {
    /// The sums that the recurrence stands for, with `G_st` the sum of the decays of the tokens after `s`, up to `t`:
    ///
    /// `out_t = scale sum_(s<=t) exp(G_st) (q_t . k_s) v_s + scale exp(G_t) q_t state`, where `G_t` counts the first
    /// token too, and likewise the final state.
    ///
    /// # Panics
    /// If a slice of the problem does not have the length that its extents ask for.
    pub fn parallel(&self) -> LinearOutput {
        self.assert_lengths();
        let mut out = vec![0.0; self.v.len()];
        let mut states = Vec::new();
        for seq in self.sequences() {
            for h in 0..self.heads {
                let first = self.first_state(&seq, h);
                for t in seq.tokens.clone() {
                    let ix = self.row_ix(&seq, h, t);
                    let q = row(self.q, ix, self.key_dim);
                    let out_row = row_mut(&mut out, ix, self.value_dim);
                    // From the newest token to the oldest, so that the decay between is a running sum.
                    let mut between = 0.0;
                    for s in (seq.tokens.start..=t).rev() {
                        let s_ix = self.row_ix(&seq, h, s);
                        let score = dot(q, row(self.k, s_ix, self.key_dim));
                        let weight = self.factor() * f64::exp(between) * score;
                        add_scaled(out_row, weight, row(self.v, s_ix, self.value_dim));
                        between += self.log_decay(&seq, h, s);
                    }
                    for (d, q) in q.iter().enumerate() {
                        add_scaled(out_row, self.factor() * between.exp() * q, row(&first, d, self.value_dim));
                    }
                }

                let mut state = vec![0.0; first.len()];
                let mut after = 0.0;
                for s in seq.tokens.clone().rev() {
                    let s_ix = self.row_ix(&seq, h, s);
                    for (d, k) in row(self.k, s_ix, self.key_dim).iter().enumerate() {
                        let v = row(self.v, s_ix, self.value_dim);
                        add_scaled(row_mut(&mut state, d, self.value_dim), f64::exp(after) * k, v);
                    }
                    after += self.log_decay(&seq, h, s);
                }
                add_scaled(&mut state, after.exp(), &first);
                states.extend(state);
            }
        }
        LinearOutput { out, state: states }
    }
}
