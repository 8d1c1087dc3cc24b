//! What must come out of a BASED case, by the oracle.

use wattn_oracle::{BasedProblem, BasedState};

use super::packed::{packed_gradient, unpacked, unpacked_gradient};
use crate::{
    BasedCase, LinearDims, References, Tensor,
    reference::{counts, stored},
};

impl BasedCase {
    /// Calculates what must come out: `out` and the states, and the gradients if one comes in, that of the state if there
    /// is one. `dq` and `dk` are left out where no query sees two keys and there is a denominator: the output does not
    /// depend on q and k then, and what remains is rounding noise.
    ///
    /// # Panics
    /// If the case does not pass its [`check`](Self::check).
    pub fn reference(&self) -> References {
        let LinearDims { batch, heads, tokens, key_dim, value_dim } = self.dims();
        let [q, k, v] = [&self.q, &self.k, &self.v].map(|tensor| self.layout.heads_first(tensor));
        let (lengths, bounds) = (self.kv_lens.as_deref().map(counts), self.cu_seqlens.as_deref().map(counts));
        let state = self.state.as_ref().map(|state| unpacked(state, key_dim, value_dim));
        // As many keys in all heads.
        let before: Vec<usize> = state.iter().flat_map(|(n, _)| n.iter().step_by(heads).map(|&n| n as usize)).collect();
        let state = state.as_ref().map(|(_, moments)| BasedState { counts: &before, moments });
        let default = BasedProblem::default();
        let problem = BasedProblem {
            batch,
            heads,
            tokens,
            feature_dim: key_dim,
            value_dim,
            scale: self.scale,
            eps: self.eps.unwrap_or(default.eps),
            causal: self.causal,
            normalize: self.normalize,
            q: &q,
            k: &k,
            v: &v,
            lengths: lengths.as_deref(),
            state,
            bounds: bounds.as_deref(),
        };

        let output = problem.recurrent();
        let moments = output.moments;
        let states =
            [("s0", moments.s0), ("s1", moments.s1), ("s2", moments.s2), ("z1", moments.z1), ("z2", moments.z2)];
        let mut rows = vec![("out", output.out)];
        let mut dstate = None;
        if self.has_backward() {
            let zeros = || vec![0.0; v.len()];
            let grad_out = self.grad_out.as_ref().map_or_else(zeros, |grad| self.layout.heads_first(grad));
            let unpack = |grad: &Tensor| unpacked_gradient(grad, key_dim, value_dim);
            let (count_grads, grad_state) = self.grad_state.as_ref().map(unpack).unzip();
            let grads = problem.backward(&grad_out, grad_state.as_ref());
            rows.push(("dv", grads.dv));
            if !self.normalize || output.counts.iter().any(|&n| n > 1) {
                rows.extend([("dq", grads.dq), ("dk", grads.dk)]);
            }
            if self.state.is_some() {
                let added = count_grads.unwrap_or_else(|| vec![0.0; grads.dcounts.len()]);
                let dcounts: Vec<f64> = grads.dcounts.iter().zip(added).map(|(a, b)| a + b).collect();
                dstate = Some(("dstate", packed_gradient(&dcounts, &grads.dmoments, key_dim, value_dim)));
            }
        }
        let shape = |name| self.output(name).expect("an output").0;
        let rows = rows.into_iter().map(|(name, values)| (name, self.layout.elements(&shape(name), values)));
        let states = states.into_iter().chain(dstate);
        rows.chain(states.map(|(name, values)| (name, values.into_iter().enumerate().collect()))).collect()
    }

    /// Stores the reference as the expected outputs, so that the case can be written to a file.
    pub fn expect_reference(&mut self) {
        for (name, pairs) in self.reference() {
            let (shape, _) = self.output(name).expect("an output");
            self.expect.insert(name.into(), stored(&shape, pairs));
        }
        self.source = Some("wattn-oracle, f64".into());
    }
}
