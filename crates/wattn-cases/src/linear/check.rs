//! What makes a linear attention case consistent.

use crate::{
    Layout, LinearCase, Storage,
    check::{check_qkv, check_tensor, check_totals, ensure, same},
    linear::Decay,
};

impl LinearCase {
    /// Says what is wrong with the case: extents that do not fit together, options that contradict each other.
    ///
    /// # Errors
    /// The first contradiction, naming the tensor or option.
    pub fn check(&self) -> Result<(), String> {
        check_qkv(self.layout, [&self.q, &self.k, &self.v])?;
        same("shape of `k`", &self.k.shape, &self.q.shape)?;
        let dims = self.dims();
        ensure(dims.heads > 0, || "there are no heads".into())?;
        ensure(dims.key_dim > 0 && dims.value_dim > 0, || "a head dim is 0".into())?;
        ensure(self.scale.is_none_or(f64::is_finite), || "`scale` is not finite".into())?;
        ensure(self.rms_tolerance.is_none_or(|x| x > 0.0), || "`rms_tolerance` is not above 0".into())?;
        same("presence of `cu_seqlens`", self.cu_seqlens.is_some(), self.layout == Layout::Packed)?;
        if let Some(totals) = &self.cu_seqlens {
            check_totals("`cu_seqlens`", totals, dims.tokens)?;
        }
        self.check_decay()?;
        for (name, tensor, like) in [
            ("state", &self.state, "state"),
            ("grad.out", &self.grad_out, "out"),
            ("grad.state", &self.grad_state, "state"),
        ] {
            let (shape, storage) = self.output(like).expect("an output");
            tensor.as_ref().map_or(Ok(()), |tensor| check_tensor(name, tensor, &shape, Some(storage)))?;
        }
        for (name, tensor) in &self.expect {
            let (shape, _) = self.output(name).ok_or_else(|| format!("{} has no output `{name}`", self.op()))?;
            check_tensor(&format!("expect.{name}"), tensor, &shape, None)?;
            ensure(!name.starts_with('d') || self.has_backward(), || {
                format!("`expect.{name}` is there, but neither `grad.out` nor `grad.state`")
            })?;
        }
        Ok(())
    }

    fn check_decay(&self) -> Result<(), String> {
        match &self.decay {
            Decay::Slopes(slopes) => {
                same("length of `slopes`", slopes.len(), self.dims().heads)?;
                ensure(slopes.iter().all(|x| x.is_finite() && *x >= 0.0), || {
                    "`slopes` holds a value that is not finite or below 0".into()
                })
            }
            Decay::Gates(gates) => {
                check_tensor("g", gates, &self.gates_shape(), Some(Storage::F32))?;
                ensure(gates.values.iter().all(|x| x.is_finite() && *x <= 0.0), || {
                    "`g` holds a value that is not finite or above 0".into()
                })
            }
        }
    }
}
