//! From a case to the library's operator.

use anyhow::{Context, Result};
use wattn::{Attention, Extent, HeadDim, Heads, Storage};
use wattn_cases::{Causal, Layout, SoftmaxCase};

/// The operator of a case, its log-sum-exp always asked for.
///
/// # Errors
/// Sizes that the library refuses.
pub fn attention(case: &SoftmaxCase) -> Result<Attention> {
    let dims = case.dims();
    let size = |n: usize| u32::try_from(n).context("a size beyond 32 bits");
    let heads = Heads::grouped(size(dims.heads)?, size(dims.kv_heads)?)?;
    let head_dim = HeadDim::with_value(size(dims.head_dim)?, size(dims.value_dim)?)?;
    let mut attention =
        Attention::new(heads, head_dim).lse().mixed_storage(storage(case.q.storage), storage(case.k.storage));
    #[expect(clippy::cast_possible_truncation, reason = "options are f64 in files, f32 on devices")]
    if let Some(scale) = case.scale {
        attention = attention.scale(scale as f32);
    }
    #[expect(clippy::cast_possible_truncation, reason = "options are f64 in files, f32 on devices")]
    if let Some(cap) = case.softcap {
        attention = attention.softcap(cap as f32);
    }
    attention = match case.causal {
        None => attention,
        Some(Causal::BottomRight) => attention.causal(),
        Some(Causal::TopLeft) => attention.causal_top_left(),
    };
    attention = attention.window(case.window[0], case.window[1]);
    for (on, option) in [
        (case.alibi_slopes.is_some(), Attention::alibi as fn(Attention) -> Attention),
        (case.bias.is_some(), Attention::bias),
        (case.mask.is_some(), Attention::mask),
        (case.sinks.is_some(), Attention::sinks),
    ] {
        if on {
            attention = option(attention);
        }
    }
    Ok(attention)
}

/// The extent of a case.
///
/// # Errors
/// Sizes beyond 32 bits.
pub fn extent(case: &SoftmaxCase) -> Result<Extent> {
    let dims = case.dims();
    let size = |n: usize| u32::try_from(n).context("a size beyond 32 bits");
    let (queries, keys) = (size(dims.queries)?, size(dims.keys)?);
    Ok(match case.layout {
        Layout::Packed => Extent::packed(size(case.sequences())?, queries, keys),
        Layout::Bhsd | Layout::Bshd => Extent::new(size(dims.batch)?, queries, keys),
    })
}

pub(crate) fn storage(storage: wattn_cases::Storage) -> Storage {
    match storage {
        wattn_cases::Storage::F32 => Storage::F32,
        wattn_cases::Storage::F16 => Storage::F16,
        wattn_cases::Storage::Bf16 => Storage::Bf16,
    }
}
