//! BASED linear attention, backward, every query and key by themselves.

use super::{BasedMoments, BasedProblem, parallel::weight};
use crate::rows::{add_scaled, dot, row, row_mut};

/// The gradients of `sum(out grad_out) + sum(final moments grad_moments)`.
#[derive(Clone, Debug, PartialEq)]
pub struct BasedGradients {
    /// `[batch, heads, tokens, feature_dim]`
    pub dq: Vec<f64>,
    /// `[batch, heads, tokens, feature_dim]`; zeros for keys that do not exist.
    pub dk: Vec<f64>,
    /// `[batch, heads, tokens, value_dim]`; zeros for keys that do not exist.
    pub dv: Vec<f64>,
    /// Of the moments before the first token, also where none are given.
    pub dmoments: BasedMoments,
    /// `[batch or sequences, heads]`: of the number of keys before the first token, as if it were any number.
    pub dcounts: Vec<f64>,
}

impl BasedProblem<'_> {
    /// For each query `i`, with `z_i` its denominator, `dn_i = grad_out_i / z_i` and `dz_i = -(grad_out_i . out_i) /
    /// z_i` (without a denominator: `grad_out_i` and 0), and for each key `j` that it sees:
    ///
    /// `dw_ij = dn_i . v_j + dz_i`, `dx_ij = dw_ij (1 + x_ij)`; `dq_i` adds `scale dx_ij k_j`, `dk_j` adds
    /// `scale dx_ij q_i`, `dv_j` adds `w_ij dn_i`.
    ///
    /// Moments before the first token are keys like any other, and those after the last are sums over the keys. A query
    /// that sees no key has the output 0 whatever it is: it gives no gradient where there is a denominator.
    ///
    /// `grad_out` is `[batch, heads, tokens, value_dim]`; `grad_moments` are zeros if `None`.
    ///
    /// # Panics
    /// If a slice does not have the length that its extents ask for.
    pub fn backward(&self, grad_out: &[f64], grad_moments: Option<&BasedMoments>) -> BasedGradients {
        self.assert_lengths();
        let Self { heads, feature_dim, value_dim, .. } = *self;
        assert_eq!(grad_out.len(), self.v.len(), "length of grad_out");
        if let Some(grad) = grad_moments {
            grad.assert_lengths(self.sequences().len() * heads, feature_dim, value_dim);
        }
        let mut grads = BasedGradients {
            dq: vec![0.0; self.q.len()],
            dk: vec![0.0; self.k.len()],
            dv: vec![0.0; self.v.len()],
            dmoments: BasedMoments::default(),
            dcounts: Vec::new(),
        };

        for seq in self.sequences() {
            for h in 0..heads {
                let first = self.first_moments(&seq, h);
                let mut dfirst = BasedMoments::zeros(1, feature_dim, value_dim);
                let mut dcount = 0.0;
                for t in seq.tokens.clone() {
                    let ix = self.row_ix(&seq, h, t);
                    let (q, grad_out) = (row(self.q, ix, feature_dim), row(grad_out, ix, value_dim));
                    let sums = self.sums(&first, &seq, h, t);
                    if self.normalize && sums.weights == 0.0 {
                        continue;
                    }
                    let z = self.denominator(&sums);
                    let dn: Vec<f64> = grad_out.iter().map(|x| x / z).collect();
                    let dz = if self.normalize { -dot(grad_out, &self.finish(&sums)) / z } else { 0.0 };
                    for key_ix in self.seen(&seq, t).map(|s| self.row_ix(&seq, h, s)) {
                        let x = self.score(ix, key_ix);
                        let dw = dot(&dn, row(self.v, key_ix, value_dim)) + dz;
                        let dx = self.factor() * dw * (1.0 + x);
                        add_scaled(row_mut(&mut grads.dq, ix, feature_dim), dx, row(self.k, key_ix, feature_dim));
                        add_scaled(row_mut(&mut grads.dk, key_ix, feature_dim), dx, q);
                        add_scaled(row_mut(&mut grads.dv, key_ix, value_dim), weight(x), &dn);
                    }
                    let from_first = first.grad_x(q, &dn, dz, self.orders());
                    add_scaled(row_mut(&mut grads.dq, ix, feature_dim), 1.0, &from_first);
                    dfirst.add(q, &dn, dz, self.orders());
                    dcount += dz;
                }

                if let Some(grad) = grad_moments {
                    let grad = grad.head(seq.ix * heads + h, feature_dim, value_dim);
                    for ix in self.keys(&seq).map(|s| self.row_ix(&seq, h, s)) {
                        let (k, v) = (row(self.k, ix, feature_dim), row(self.v, ix, value_dim));
                        let dk = grad.grad_x(k, v, 1.0, [1.0; 3]);
                        add_scaled(row_mut(&mut grads.dk, ix, feature_dim), 1.0, &dk);
                        add_scaled(row_mut(&mut grads.dv, ix, value_dim), 1.0, &grad.values(k, [1.0; 3]));
                    }
                    dfirst.add_all(&grad);
                }
                grads.dmoments.append(&dfirst);
                grads.dcounts.push(dcount);
            }
        }
        grads
    }
}
