//! BASED linear attention, forward, through the moments of the keys and values.

use super::{BasedMoments, BasedOutput, BasedProblem, Sums};
use crate::rows::{Sequence, row, row_mut};

impl BasedProblem<'_> {
    /// One token after the other, as in decoding: the token is added to the moments, the query reads them. Without the
    /// causal limit all tokens are added before the first query reads.
    ///
    /// ```
    /// use wattn_oracle::BasedProblem;
    ///
    /// let problem = BasedProblem {
    ///     batch: 1, heads: 1, tokens: 2, feature_dim: 1, value_dim: 1,
    ///     eps: 0.0,
    ///     q: &[0.0, 1.0],
    ///     k: &[1.0, 2.0],
    ///     v: &[3.0, 18.0],
    ///     ..BasedProblem::default()
    /// };
    /// assert_eq!(problem.recurrent().out, [3.0, 13.0]); // the second query weighs the keys with 2.5 and 5
    /// ```
    ///
    /// # Panics
    /// If a slice of the problem does not have the length that its extents ask for.
    pub fn recurrent(&self) -> BasedOutput {
        self.assert_lengths();
        let mut out = vec![0.0; self.v.len()];
        let mut all = BasedMoments::default();
        for seq in self.sequences() {
            for h in 0..self.heads {
                let mut count = self.first_count(&seq);
                let mut moments = self.first_moments(&seq, h);
                let mut added = seq.tokens.start;
                for t in seq.tokens.clone() {
                    while added < self.seen(&seq, t).end {
                        self.add_token(&mut moments, &seq, h, added);
                        (count, added) = (count + 1, added + 1);
                    }
                    let ix = self.row_ix(&seq, h, t);
                    let sums = self.read(&moments, count, row(self.q, ix, self.feature_dim));
                    row_mut(&mut out, ix, self.value_dim).copy_from_slice(&self.finish(&sums));
                }
                all.append(&moments);
            }
        }
        BasedOutput { out, counts: self.last_counts(), moments: all }
    }

    fn add_token(&self, moments: &mut BasedMoments, seq: &Sequence, h: usize, t: usize) {
        let ix = self.row_ix(seq, h, t);
        moments.add(row(self.k, ix, self.feature_dim), row(self.v, ix, self.value_dim), 1.0, [1.0; 3]);
    }

    /// What a query finds in the moments: `1 + x + x^2 / 2`, summed over the keys.
    pub(super) fn read(&self, moments: &BasedMoments, count: usize, q: &[f64]) -> Sums {
        let [_, first, second] = self.orders();
        Sums {
            values: moments.values(q, [1.0, first, second]),
            weights: moments.weight(q, [count as f64, first, second]),
        }
    }

    /// The factors of the three orders of the expansion.
    pub(super) fn orders(&self) -> [f64; 3] {
        [1.0, self.factor(), self.factor() * self.factor() / 2.0]
    }
}
