//! What makes a case consistent, wherever it comes from.

use crate::{Causal, Layout, SoftmaxCase, Storage, Tensor};

pub(crate) fn ensure(condition: bool, message: impl FnOnce() -> String) -> Result<(), String> {
    if condition { Ok(()) } else { Err(message()) }
}

pub(crate) fn same<T: PartialEq + std::fmt::Debug>(what: &str, got: T, want: T) -> Result<(), String> {
    ensure(got == want, || format!("{what}: {got:?} where {want:?} is needed"))
}

/// Whether keys and values fit each other, and keys the queries, but for their batch, length and heads.
pub(crate) fn check_qkv(layout: Layout, [q, k, v]: [&Tensor; 3]) -> Result<(), String> {
    for (name, tensor) in [("q", q), ("k", k), ("v", v)] {
        same(&format!("number of axes of `{name}`"), tensor.shape.len(), layout.rank())?;
    }
    same("type of `v`, which is that of `k`", v.storage, k.storage)?;
    let dim = layout.rank() - 1;
    same("shape of `v` but for its last axis", &v.shape[..dim], &k.shape[..dim])?;
    same("head dim of `k`", k.shape[dim], q.shape[dim])
}

/// Whether running totals go from 0 to a length.
pub(crate) fn check_totals(name: &str, totals: &[u32], len: usize) -> Result<(), String> {
    same(&format!("start of {name}"), totals.first(), Some(&0))?;
    same(&format!("end of {name}"), totals.last().map(|&n| n as usize), Some(len))?;
    ensure(totals.is_sorted(), || format!("{name} decreases"))
}

/// Whether a tensor has these extents and, unless any will do, this type.
pub(crate) fn check_tensor(
    name: &str,
    tensor: &Tensor,
    shape: &[usize],
    storage: Option<Storage>,
) -> Result<(), String> {
    same(&format!("shape of `{name}`"), &tensor.shape[..], shape)?;
    storage.map_or(Ok(()), |storage| same(&format!("type of `{name}`"), tensor.storage, storage))
}

impl SoftmaxCase {
    /// Says what is wrong with the case: extents that do not fit together, options that contradict each other.
    ///
    /// # Errors
    /// The first contradiction, naming the tensor or option.
    pub fn check(&self) -> Result<(), String> {
        self.check_operands()?;
        self.check_options()?;
        self.check_lengths()?;
        self.check_broadcasts()?;
        for (name, tensor) in &self.expect {
            let (shape, _) = self.output(name).ok_or_else(|| format!("softmax has no output `{name}` here"))?;
            same(&format!("shape of `expect.{name}`"), &tensor.shape, &shape)?;
        }
        let backward = self.expect.keys().find(|name| name.starts_with('d'));
        if let Some(name) = backward.filter(|_| !self.has_backward()) {
            return Err(format!("`expect.{name}` without `grad.out` or `grad.lse`"));
        }
        if let Some(grad) = &self.grad_out {
            check_tensor("grad.out", grad, &self.out_shape(), Some(self.q.storage))?;
        }
        if let Some(grad) = &self.grad_lse {
            check_tensor("grad.lse", grad, &self.lse_shape(), Some(Storage::F32))?;
        }
        Ok(())
    }

    fn check_operands(&self) -> Result<(), String> {
        check_qkv(self.layout, [&self.q, &self.k, &self.v])?;
        if self.layout != Layout::Packed {
            same("batch of `k` and `v`", self.k.shape[0], self.q.shape[0])?;
        }
        let dims = self.dims();
        ensure(dims.head_dim > 0 && dims.value_dim > 0, || "a head dim is 0".into())?;
        ensure(dims.kv_heads > 0 && dims.heads.is_multiple_of(dims.kv_heads), || {
            format!("{} query heads on {} key/value heads", dims.heads, dims.kv_heads)
        })
    }

    fn check_options(&self) -> Result<(), String> {
        ensure(self.scale.is_none_or(f64::is_finite), || "`scale` is not finite".into())?;
        ensure(self.softcap.is_none_or(|c| c > 0.0), || "`softcap` is not above 0".into())?;
        ensure(self.rms_tolerance.is_none_or(|x| x > 0.0), || "`rms_tolerance` is not above 0".into())?;
        let heads = self.dims().heads;
        let per_head = [("alibi_slopes", &self.alibi_slopes), ("sinks", &self.sinks)];
        for (name, values) in per_head {
            if let Some(values) = values {
                same(&format!("length of `{name}`"), values.len(), heads)?;
            }
        }
        if let Some(offsets) = &self.causal_offsets {
            ensure(self.causal == Some(Causal::TopLeft), || {
                "`causal_offset` goes with `causal` = \"top_left\" only".into()
            })?;
            same("length of `causal_offset`", offsets.len(), self.sequences())?;
            let equal = offsets.windows(2).all(|pair| pair[0] == pair[1]);
            ensure(equal || self.layout != Layout::Packed, || {
                "a packed batch takes one `causal_offset` for all sequences".into()
            })?;
        }
        Ok(())
    }

    fn check_lengths(&self) -> Result<(), String> {
        let dims = self.dims();
        if let Some(lens) = &self.kv_lens {
            same("length of `kv_lens`", lens.len(), dims.batch)?;
        }
        same("presence of `cu_seqlens_q`", self.cu_seqlens.is_some(), self.layout == Layout::Packed)?;
        let Some((q, k)) = &self.cu_seqlens else { return Ok(()) };
        same("length of `cu_seqlens_k`", k.len(), q.len())?;
        for (name, totals, len) in [("q", q, dims.queries), ("k", k, dims.keys)] {
            check_totals(&format!("`cu_seqlens_{name}`"), totals, len)?;
        }
        let excluded =
            [("bias", self.bias.is_some()), ("mask", self.mask.is_some()), ("kv_lens", self.kv_lens.is_some())];
        for (name, present) in excluded {
            ensure(!present, || format!("`{name}` does not go with `cu_seqlens_q`"))?;
        }
        Ok(())
    }

    fn check_broadcasts(&self) -> Result<(), String> {
        let dims = self.dims();
        let bias = self.bias.as_ref();
        if let Some(&Tensor { storage, .. }) = bias {
            same("type of `bias`", storage, Storage::F32)?;
        }
        let shapes = [("bias", bias.map(|t| &t.shape[..])), ("mask", self.mask.as_ref().map(|t| &t.shape[..]))];
        for (name, shape) in shapes {
            let Some(shape) = shape else { continue };
            let full = [dims.batch, dims.heads, dims.queries, dims.keys];
            let fits = shape.len() == 4
                && (shape[0] == full[0] || shape[0] == 1)
                && (shape[1] == full[1] || shape[1] == 1)
                && shape[2..] == full[2..];
            ensure(fits, || format!("shape of `{name}`: {shape:?} does not spread to {full:?}"))?;
        }
        Ok(())
    }
}
