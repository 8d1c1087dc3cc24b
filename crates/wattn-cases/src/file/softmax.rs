//! Case files of softmax attention.

use crate::{Causal, Layout, SoftmaxCase};

use super::parts::{Options, Tensors};

pub(super) fn read(name: String, options: &mut Options, tensors: &mut Tensors<'_>) -> Result<SoftmaxCase, String> {
    let cu_seqlens = match (tensors.totals("cu_seqlens_q")?, tensors.totals("cu_seqlens_k")?) {
        (Some(q), Some(k)) => Some((q, k)),
        (None, None) => None,
        _ => return Err("`cu_seqlens_q` and `cu_seqlens_k` go together".into()),
    };
    let layout = options.layout(cu_seqlens.is_some())?;
    let causal: Option<String> = options.take("causal")?;
    let causal = match causal.as_deref() {
        None => None,
        Some("top_left") => Some(Causal::TopLeft),
        Some("bottom_right") => Some(Causal::BottomRight),
        Some(other) => return Err(format!("unknown `causal` \"{other}\"")),
    };
    let mut case = SoftmaxCase {
        name,
        source: options.take("source")?,
        layout,
        scale: options.take("scale")?,
        causal,
        causal_offsets: None,
        window: options.take("window")?.unwrap_or_default(),
        softcap: options.take("softcap")?,
        q: tensors.operand("q")?,
        k: tensors.operand("k")?,
        v: tensors.operand("v")?,
        alibi_slopes: tensors.per_head("alibi_slopes")?,
        sinks: tensors.per_head("sinks")?,
        bias: tensors.float("bias")?,
        mask: tensors.mask("mask")?,
        kv_lens: tensors.key_lengths("kv_lens")?,
        cu_seqlens,
        rms_tolerance: options.take("rms_tolerance")?,
        grad_out: tensors.float("grad.out")?,
        grad_lse: tensors.float("grad.lse")?,
        expect: tensors.expected(&SoftmaxCase::OUTPUTS)?,
    };
    let offset: Option<i32> = options.take("causal_offset")?;
    case.causal_offsets = match (offset, tensors.integers("causal_offset")?) {
        (None, None) => None,
        (Some(offset), None) => Some(vec![offset; case.sequences()]),
        (None, Some(_)) if layout == Layout::Packed => {
            return Err("the tensor `causal_offset` does not go with `cu_seqlens_q`".into());
        }
        (None, Some(offsets)) => {
            let narrow = offsets.into_iter().map(i32::try_from).collect::<Result<_, _>>();
            Some(narrow.map_err(|_| "`causal_offset` is beyond 32 bits")?)
        }
        (Some(_), Some(_)) => return Err("`causal_offset` is given twice".into()),
    };
    Ok(case)
}
