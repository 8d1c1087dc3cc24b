//! What planning refuses.

use anyhow::ensure;
use wattn::{Attention, Extent, HeadDim, Heads, Kernel, Storage};

use super::{Bad, attention, extent, refusal};

pub(super) const PLANS: &[Bad] = &[
    ("heads_not_divisible", |_| refusal(Heads::grouped(9, 2)), &["heads", "9", "2", "multiple"]),
    ("no_heads", |_| refusal(Heads::new(0)), &["heads", "0", "at least one"]),
    ("head_dim_0", |_| refusal(HeadDim::new(0)), &["head_dim", "0", "1 to 576"]),
    ("head_dim_577", |_| refusal(HeadDim::new(577)), &["head_dim", "577", "1 to 576"]),
    ("value_head_dim_600", |_| refusal(HeadDim::with_value(64, 600)), &["value_head_dim", "600", "1 to 576"]),
    ("softcap_0", |b| b.plan(Ok(attention()?.softcap(0.0)), extent()), &["softcap", "0 given", "above 0"]),
    ("softcap_nan", |b| b.plan(Ok(attention()?.softcap(f32::NAN)), extent()), &["softcap", "NaN", "finite"]),
    ("scale_nan", |b| b.plan(Ok(attention()?.scale(f32::NAN)), extent()), &["scale", "NaN", "finite"]),
    ("scale_infinite", |b| b.plan(Ok(attention()?.scale(f32::INFINITY)), extent()), &["scale", "inf", "finite"]),
    (
        "odd_f16_dim",
        |b| b.plan(Ok(Attention::new(Heads::new(1)?, HeadDim::new(33)?).storage(Storage::F16)), extent()),
        &["head_dim", "33", "even"],
    ),
    (
        "odd_bf16_value_dim",
        |b| {
            let dims = HeadDim::with_value(32, 7)?;
            b.plan(Ok(Attention::new(Heads::new(1)?, dims).mixed_storage(Storage::F32, Storage::Bf16)), extent())
        },
        &["value_head_dim", "7", "even"],
    ),
    (
        "too_many_queries",
        |b| b.plan(attention(), Extent::new(1, 600_000_000, 1)),
        &["queries", "600000000", "536870912"],
    ),
    ("packed_with_mask", |b| b.plan(Ok(attention()?.mask()), Extent::packed(2, 20, 48)), &["extent", "packed", "mask"]),
    (
        "pinned_kernel_cannot_serve",
        |b| {
            let wide = Attention::new(Heads::new(1)?, HeadDim::new(256)?).kernel(Kernel::Broadcast);
            let message = b.plan(Ok(wide), extent())?;
            // Where it cannot run at all, it says that instead.
            let fixed = b.engine.capabilities().subgroups.is_some_and(|(min, max)| min == max && min <= 16);
            ensure!(!fixed || message.contains("256") && message.contains("128"), "{message:?}");
            Ok(message)
        },
        &["kernel broadcast cannot serve"],
    ),
];
