//! What makes a BASED case consistent.

use crate::{
    BasedCase, Layout, Storage,
    check::{check_qkv, check_tensor, check_totals, ensure, same},
};

impl BasedCase {
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
        ensure(self.eps.is_none_or(|x| x.is_finite() && x >= 0.0), || "`eps` is not finite or below 0".into())?;
        ensure(self.rms_tolerance.is_none_or(|x| x > 0.0), || "`rms_tolerance` is not above 0".into())?;
        same("presence of `cu_seqlens`", self.cu_seqlens.is_some(), self.layout == Layout::Packed)?;
        if let Some(totals) = &self.cu_seqlens {
            check_totals("`cu_seqlens`", totals, dims.tokens)?;
            ensure(self.kv_lens.is_none(), || "`kv_lens` does not go with `cu_seqlens`".into())?;
        }
        if let Some(lens) = &self.kv_lens {
            same("length of `kv_lens`", lens.len(), dims.batch)?;
        }
        if let Some(grad) = &self.grad_out {
            let (shape, storage) = self.output("out").expect("an output");
            check_tensor("grad.out", grad, &shape, Some(storage))?;
        }
        for (name, tensor) in [("state", &self.state), ("grad.state", &self.grad_state)] {
            let shape = self.state_shape();
            tensor.as_ref().map_or(Ok(()), |tensor| check_tensor(name, tensor, &shape, Some(Storage::F32)))?;
        }
        for (name, tensor) in &self.expect {
            let (shape, _) = self.output(name).ok_or_else(|| format!("based has no output `{name}`"))?;
            check_tensor(&format!("expect.{name}"), tensor, &shape, None)?;
            ensure(!name.starts_with('d') || self.has_backward(), || {
                format!("`expect.{name}` is there, but neither `grad.out` nor `grad.state`")
            })?;
        }
        Ok(())
    }
}
