//! Case files of BASED linear attention.

use crate::BasedCase;

use super::parts::{Options, Tensors};

pub(super) fn read(name: String, options: &mut Options, tensors: &mut Tensors<'_>) -> Result<BasedCase, String> {
    let cu_seqlens = tensors.totals("cu_seqlens")?;
    Ok(BasedCase {
        name,
        source: options.take("source")?,
        layout: options.layout(cu_seqlens.is_some())?,
        scale: options.take("scale")?,
        eps: options.take("eps")?,
        causal: options.take("causal")?.unwrap_or(true),
        normalize: options.take("normalize")?.unwrap_or(true),
        q: tensors.operand("q")?,
        k: tensors.operand("k")?,
        v: tensors.operand("v")?,
        kv_lens: tensors.key_lengths("kv_lens")?,
        cu_seqlens,
        state: tensors.float("state")?,
        grad_out: tensors.float("grad.out")?,
        grad_state: tensors.float("grad.state")?,
        rms_tolerance: options.take("rms_tolerance")?,
        expect: tensors.expected(&BasedCase::OUTPUTS)?,
    })
}
