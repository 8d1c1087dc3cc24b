//! Case files of decayed linear attention.

use std::collections::BTreeMap;

use crate::{Decay, LinearCase};

use super::parts::{Options, Tensors};

/// Reads the case, but for its decay with `decay`.
pub(super) fn read(
    name: String,
    options: &mut Options,
    tensors: &mut Tensors<'_>,
    decay: fn(&mut Tensors<'_>) -> Result<Decay, String>,
) -> Result<LinearCase, String> {
    let cu_seqlens = tensors.totals("cu_seqlens")?;
    let mut case = LinearCase {
        name,
        source: options.take("source")?,
        layout: options.layout(cu_seqlens.is_some())?,
        scale: options.take("scale")?,
        q: tensors.operand("q")?,
        k: tensors.operand("k")?,
        v: tensors.operand("v")?,
        decay: decay(tensors)?,
        state: tensors.float("state")?,
        cu_seqlens,
        grad_out: tensors.float("grad.out")?,
        grad_state: tensors.float("grad.state")?,
        grad_decay: true,
        rms_tolerance: options.take("rms_tolerance")?,
        expect: BTreeMap::new(),
    };
    case.expect = tensors.expected(&case.outputs())?;
    Ok(case)
}

/// The decay of op `lightning`.
pub(super) fn slopes(tensors: &mut Tensors<'_>) -> Result<Decay, String> {
    let slopes = tensors.per_head("slopes")?;
    slopes.map(Decay::Slopes).ok_or_else(|| "there is no `slopes`".into())
}

/// The decay of op `gated_linear`.
pub(super) fn gates(tensors: &mut Tensors<'_>) -> Result<Decay, String> {
    let gates = tensors.operand("g")?;
    if gates.shape.len() == 4 {
        return Err("vector gates are not supported yet".into());
    }
    Ok(Decay::Gates(gates))
}
