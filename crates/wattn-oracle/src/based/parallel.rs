//! BASED linear attention, forward, every query and key by themselves.

use super::{BasedMoments, BasedOutput, BasedProblem, Sums};
use crate::rows::{Sequence, add_scaled, row, row_mut};

/// `1 + x + x^2 / 2`
pub(super) fn weight(x: f64) -> f64 {
    1.0 + x + x * x / 2.0
}

impl BasedProblem<'_> {
    /// The formula as it is written. Moments are read only where the problem brings some, and written once at the end.
    ///
    /// # Panics
    /// If a slice of the problem does not have the length that its extents ask for.
    pub fn parallel(&self) -> BasedOutput {
        self.assert_lengths();
        let Self { feature_dim, value_dim, .. } = *self;
        let mut out = vec![0.0; self.v.len()];
        let mut all = BasedMoments::default();
        for seq in self.sequences() {
            for h in 0..self.heads {
                let mut moments = self.first_moments(&seq, h);
                for t in seq.tokens.clone() {
                    let out_row = self.finish(&self.sums(&moments, &seq, h, t));
                    row_mut(&mut out, self.row_ix(&seq, h, t), value_dim).copy_from_slice(&out_row);
                }
                for ix in self.keys(&seq).map(|t| self.row_ix(&seq, h, t)) {
                    let (k, v) = (row(self.k, ix, feature_dim), row(self.v, ix, value_dim));
                    add_scaled(&mut moments.s0, 1.0, v);
                    add_scaled(&mut moments.z1, 1.0, k);
                    for (i, &k_i) in k.iter().enumerate() {
                        add_scaled(row_mut(&mut moments.s1, i, value_dim), k_i, v);
                        for (j, &k_j) in k.iter().enumerate() {
                            moments.z2[i * feature_dim + j] += k_i * k_j;
                            add_scaled(row_mut(&mut moments.s2, i * feature_dim + j, value_dim), k_i * k_j, v);
                        }
                    }
                }
                all.append(&moments);
            }
        }
        BasedOutput { out, counts: self.last_counts(), moments: all }
    }

    /// The sums of query `t`, with the moments that were there before the first token.
    pub(super) fn sums(&self, first: &BasedMoments, seq: &Sequence, h: usize, t: usize) -> Sums {
        let ix = self.row_ix(seq, h, t);
        let mut sums = match self.state {
            Some(_) => self.read(first, self.first_count(seq), row(self.q, ix, self.feature_dim)),
            None => Sums { values: vec![0.0; self.value_dim], weights: 0.0 },
        };
        for key_ix in self.seen(seq, t).map(|s| self.row_ix(seq, h, s)) {
            let w = weight(self.score(ix, key_ix));
            add_scaled(&mut sums.values, w, row(self.v, key_ix, self.value_dim));
            sums.weights += w;
        }
        sums
    }
}
