//! Decayed linear attention, backward: the adjoint of the recurrence, one token after the other from the last.

use super::LinearProblem;
use crate::rows::{add_scaled, dot, row, row_mut};

/// The gradients of `sum(out grad_out) + sum(final state grad_state)`.
#[derive(Clone, Debug, PartialEq)]
pub struct LinearGradients {
    /// `[batch, heads, tokens, key_dim]`
    pub dq: Vec<f64>,
    /// `[batch, heads, tokens, key_dim]`
    pub dk: Vec<f64>,
    /// `[batch, heads, tokens, value_dim]`
    pub dv: Vec<f64>,
    /// `[batch or sequences, heads, key_dim, value_dim]`, of the state before the first token, also where none is given.
    pub dstate: Vec<f64>,
    /// `[batch, heads, tokens]`, of the logarithm of each token's decay.
    pub dg: Vec<f64>,
    /// `[heads]`, of a slope that all tokens of the head share: minus the sum of `dg`.
    pub dslopes: Vec<f64>,
}

impl LinearProblem<'_> {
    /// Keeps the states of a head and sequence, then goes back over its tokens. With `R` the gradient of `state_t`, to
    /// which `out_t` adds `scale q_t grad_out_tT`:
    ///
    /// `dq_t = scale state_t grad_out_t`, `dk_t = R v_t`, `dv_t = RT k_t`, `dg_t = sum(R exp(g_t) state_(t-1))`, and
    /// `exp(g_t) R` goes on to the token before.
    ///
    /// `grad_out` is `[batch, heads, tokens, value_dim]`, `grad_state` like the state, zeros if `None`.
    ///
    /// # Panics
    /// If a slice does not have the length that its extents ask for.
    pub fn backward(&self, grad_out: &[f64], grad_state: Option<&[f64]>) -> LinearGradients {
        self.assert_lengths();
        let Self { heads, key_dim, value_dim, .. } = *self;
        let state_len = key_dim * value_dim;
        let rows = self.batch * heads * self.tokens;
        assert_eq!(grad_out.len(), self.v.len(), "length of grad_out");
        let states_len = self.sequences().len() * heads * state_len;
        assert!(grad_state.is_none_or(|grad| grad.len() == states_len), "length of grad_state");
        let mut grads = LinearGradients {
            dq: vec![0.0; self.q.len()],
            dk: vec![0.0; self.k.len()],
            dv: vec![0.0; self.v.len()],
            dstate: Vec::new(),
            dg: vec![0.0; rows],
            dslopes: vec![0.0; heads],
        };

        for seq in self.sequences() {
            for h in 0..heads {
                let mut states = vec![self.first_state(&seq, h)];
                for (n, t) in seq.tokens.clone().enumerate() {
                    let mut state = states[n].clone();
                    self.advance(&mut state, &seq, h, t);
                    states.push(state);
                }

                let zeros = vec![0.0; state_len];
                let mut grad = grad_state.map_or(zeros, |grad| row(grad, seq.ix * heads + h, state_len).to_vec());
                for (n, t) in seq.tokens.clone().enumerate().rev() {
                    let ix = self.row_ix(&seq, h, t);
                    let (before, state) = (&states[n], &states[n + 1]);
                    let (q, k) = (row(self.q, ix, key_dim), row(self.k, ix, key_dim));
                    let (v, grad_out) = (row(self.v, ix, value_dim), row(grad_out, ix, value_dim));
                    for d in 0..key_dim {
                        let grad_row = row_mut(&mut grad, d, value_dim);
                        add_scaled(grad_row, self.factor() * q[d], grad_out);
                        grads.dq[ix * key_dim + d] = self.factor() * dot(row(state, d, value_dim), grad_out);
                        grads.dk[ix * key_dim + d] = dot(grad_row, v);
                        add_scaled(row_mut(&mut grads.dv, ix, value_dim), k[d], grad_row);
                    }
                    let decay = self.log_decay(&seq, h, t).exp();
                    for x in &mut grad {
                        *x *= decay;
                    }
                    grads.dg[ix] = dot(&grad, before);
                    grads.dslopes[h] -= grads.dg[ix];
                }
                grads.dstate.extend(grad);
            }
        }
        grads
    }
}
