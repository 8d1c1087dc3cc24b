//! What must come out of a linear attention case, by the oracle.

use wattn_oracle::{LinearDecay, LinearProblem};

use crate::{
    LinearCase, LinearDims, References, Tensor,
    linear::Decay,
    reference::{counts, stored, wide},
};

impl LinearCase {
    /// Calculates what must come out: `out` and `state`, and the gradients if one comes in.
    ///
    /// # Panics
    /// If the case does not pass its [`check`](Self::check).
    pub fn reference(&self) -> References {
        let LinearDims { batch, heads, tokens, key_dim, value_dim } = self.dims();
        let [q, k, v] = [&self.q, &self.k, &self.v].map(|tensor| self.layout.heads_first(tensor));
        let wide_tensor = |tensor: &Option<Tensor>| tensor.as_ref().map(|tensor| wide(&tensor.values));
        let (state, grad_state) = (wide_tensor(&self.state), wide_tensor(&self.grad_state));
        let bounds = self.cu_seqlens.as_deref().map(counts);
        let decay = match &self.decay {
            Decay::Slopes(slopes) => wide(slopes),
            Decay::Gates(gates) => wide(&gates.values),
        };
        let problem = LinearProblem {
            batch,
            heads,
            tokens,
            key_dim,
            value_dim,
            scale: self.scale,
            q: &q,
            k: &k,
            v: &v,
            decay: match self.decay {
                Decay::Slopes(_) => LinearDecay::Slopes(&decay),
                Decay::Gates(_) => LinearDecay::Gates(&decay),
            },
            state: state.as_deref(),
            bounds: bounds.as_deref(),
        };

        let output = problem.recurrent();
        let mut results = vec![("out", output.out), ("state", output.state)];
        if self.has_backward() {
            let zeros = || vec![0.0; v.len()];
            let grad_out = self.grad_out.as_ref().map_or_else(zeros, |grad| self.layout.heads_first(grad));
            let grads = problem.backward(&grad_out, grad_state.as_deref());
            results.extend([("dq", grads.dq), ("dk", grads.dk), ("dv", grads.dv), ("dstate", grads.dstate)]);
            results.extend(self.grad_decay.then_some(match self.decay {
                Decay::Slopes(_) => ("dslopes", grads.dslopes),
                Decay::Gates(_) => ("dg", grads.dg),
            }));
        }
        let shape = |name| self.output(name).expect("an output").0;
        let place = |(name, values): (&'static str, Vec<f64>)| match name {
            "out" | "dq" | "dk" | "dv" => (name, self.layout.elements(&shape(name), values)),
            _ => (name, values.into_iter().enumerate().collect()),
        };
        results.into_iter().map(place).collect()
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
