//! Softmax attention, backward, one pair of a query and a key at a time.

use crate::SoftmaxProblem;
use crate::rows::{add_scaled, dot, row, row_mut};

/// The gradients of all that goes into softmax attention.
#[derive(Clone, Debug, PartialEq)]
pub struct SoftmaxGradients {
    /// `[batch, heads, queries, head_dim]`
    pub dq: Vec<f64>,
    /// `[batch, kv_heads, keys, head_dim]`
    pub dk: Vec<f64>,
    /// `[batch, kv_heads, keys, value_dim]`
    pub dv: Vec<f64>,
    /// The extents of the bias: summed over what is repeated. Empty without a bias.
    pub dbias: Vec<f64>,
    /// `[heads]`; empty without sinks.
    pub dsinks: Vec<f64>,
    /// `[heads]`; empty without slopes.
    pub dalibi_slopes: Vec<f64>,
}

impl SoftmaxProblem<'_> {
    /// The gradients of `sum(grad_out out) + sum(grad_lse lse)`, by the formulas of `FlashAttention`-2 ([arXiv 2307.08691]): with
    /// `p_ij = exp(s_ij - lse_i)` and `delta_i = grad_out_i . out_i - grad_lse_i`,
    ///
    /// `ds_ij = p_ij (grad_out_i . v_j - delta_i)`, `dv_j = sum_i p_ij grad_out_i`, and a softcap `c tanh(x / c) = u` between scores and
    /// logits passes on `1 - (u / c)^2` of it.
    ///
    /// `grad_lse` is zero if `None`.
    ///
    /// [arXiv 2307.08691]: https://arxiv.org/abs/2307.08691
    ///
    /// # Panics
    /// If a slice does not have the length that the extents ask for.
    pub fn flash_backward(&self, grad_out: &[f64], grad_lse: Option<&[f64]>) -> SoftmaxGradients {
        let Self { batch, heads, kv_heads, queries, keys, head_dim, value_dim, .. } = *self;
        assert_eq!(grad_out.len(), batch * heads * queries * value_dim, "length of grad_out");
        assert!(grad_lse.is_none_or(|t| t.len() == batch * heads * queries), "length of grad_lse");
        let mut gradients = SoftmaxGradients {
            dq: vec![0.0; self.q.len()],
            dk: vec![0.0; self.k.len()],
            dv: vec![0.0; self.v.len()],
            dbias: vec![0.0; self.bias.map_or(0, |bias| bias.values.len())],
            dsinks: vec![0.0; self.sinks.map_or(0, <[f64]>::len)],
            dalibi_slopes: vec![0.0; self.alibi_slopes.map_or(0, <[f64]>::len)],
        };
        for b in 0..batch {
            for h in 0..heads {
                for i in 0..queries {
                    let forward = self.flash_forward_row(b, h, i);
                    let query = (b * heads + h) * queries + i;
                    let grad = row(grad_out, query, value_dim);
                    // The output of a query that sees no key is 0, whatever its gradient: NaN, too.
                    let sees = (0..keys).any(|j| self.sees(b, h, i, j));
                    let through_out = if sees { dot(grad, &forward.out) } else { 0.0 };
                    let delta = through_out - grad_lse.map_or(0.0, |t| t[query]);
                    if let Some(sinks) = self.sinks {
                        gradients.dsinks[h] -= (sinks[h] - forward.lse).exp() * delta;
                    }
                    for j in (0..keys).filter(|&j| self.sees(b, h, i, j)) {
                        let key = (b * kv_heads + self.kv_head(h)) * keys + j;
                        let p = (self.score(b, h, i, j) - forward.lse).exp();
                        add_scaled(row_mut(&mut gradients.dv, key, value_dim), p, grad);
                        let ds = p * (dot(grad, row(self.v, key, value_dim)) - delta);
                        if let Some(bias) = self.bias {
                            let [n_batch, n_heads, ..] = bias.shape;
                            let (b, h) = (if n_batch == 1 { 0 } else { b }, if n_heads == 1 { 0 } else { h });
                            gradients.dbias[((b * n_heads + h) * queries + i) * keys + j] += ds;
                        }
                        if self.alibi_slopes.is_some() {
                            gradients.dalibi_slopes[h] -= ds * self.distance(b, i, j);
                        }
                        let passed = self.softcap.map_or(1.0, |c| 1.0 - (self.capped(b, h, i, j) / c).powi(2));
                        let dt = self.factor() * ds * passed;
                        add_scaled(row_mut(&mut gradients.dq, query, head_dim), dt, row(self.k, key, head_dim));
                        add_scaled(row_mut(&mut gradients.dk, key, head_dim), dt, row(self.q, query, head_dim));
                    }
                }
            }
        }
        gradients
    }
}
