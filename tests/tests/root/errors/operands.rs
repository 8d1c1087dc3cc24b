//! What encoding refuses: buffers, views, and operands that do not go with the plan's options.

use wattn::wgpu::CommandEncoderDescriptor;
use wattn::{Attention, Operands, Storage, View};

use super::{Bad, SIZES, attention, extent, plain, refusal};

pub(super) const BUFFERS: &[Bad] = &[
    ("out_is_q", |b| b.encode(plain, |b, o| o.out = View::bhsd(&b.q)), &["out and q", "same buffer"]),
    ("out_is_lse", |b| b.encode(plain, |b, o| o.lse = Some(View::bhsd(&b.out))), &["out and lse", "same buffer"]),
    ("lse_is_k", |b| b.encode(plain, |b, o| o.lse = Some(View::bhsd(&b.k))), &["lse and k", "same buffer"]),
    ("short_q", |b| b.encode(plain, |b, o| o.q = View::bhsd(&b.short)), &["q:", "40960", "600"]),
    ("short_k", |b| b.encode(plain, |b, o| o.k = View::bhsd(&b.short)), &["k:", "49152", "600"]),
    ("short_v", |b| b.encode(plain, |b, o| o.v = View::bhsd(&b.short)), &["v:", "49152", "600"]),
    ("short_out", |b| b.encode(plain, |b, o| o.out = View::bhsd(&b.short)), &["out:", "40960", "600"]),
    ("short_lse", |b| b.encode(plain, |b, o| o.lse = Some(View::bhsd(&b.short))), &["lse:", "640", "600"]),
    (
        "short_bias",
        |b| b.encode(Attention::bias, |b, o| o.bias = Some(View::scores(&b.short, false, false))),
        &["bias:", "3840", "600"],
    ),
    (
        "short_mask",
        |b| b.encode(Attention::mask, |b, o| o.mask = Some(View::scores(&b.short, true, true))),
        &["mask:", "1280", "600"],
    ),
    ("past_the_end", |b| b.encode(plain, |b, o| o.q = View::bhsd(&b.q).at(64)), &["q:", "41216", "40960"]),
    ("far_past_the_end", |b| b.encode(plain, |b, o| o.q = View::bhsd(&b.q).at(u64::MAX - 7)), &["q:", "40960"]),
    ("no_storage_usage", |b| b.encode(plain, |b, o| o.q = View::bhsd(&b.copy_only)), &["q:", "COPY_DST", "STORAGE"]),
];

pub(super) const VIEWS: &[Bad] = &[
    (
        "misaligned_offset",
        |b| b.encode(plain, |b, o| o.k = View::bhsd(&b.k).at(2)),
        &["k:", "offset", "2", "a multiple of", "any_strides"],
    ),
    (
        "misaligned_stride",
        |b| b.encode(plain, |b, o| o.v = View::strided(&b.v, [6144, 3072, 66, 1])),
        &["v:", "sequence stride", "66", "a multiple of"],
    ),
    (
        "dims_apart",
        |b| b.encode(plain, |b, o| o.q = View::strided(&b.q, [64, 64, 64, 2])),
        &["q:", "dim stride", "2", "contiguous"],
    ),
    (
        "odd_offset_in_f16",
        |b| b.encode(|attention| attention.storage(Storage::F16).any_strides(), |b, o| o.q = View::bhsd(&b.q).at(3)),
        &["q:", "offset", "3", "even"],
    ),
    (
        "out_overlaps_itself",
        |b| b.encode(plain, |b, o| o.out = View::strided(&b.out, [5120, 1280, 32, 1])),
        &["out:", "sequence", "32", "64"],
    ),
    (
        "out_repeats_heads",
        |b| b.encode(plain, |b, o| o.out = View::strided(&b.out, [5120, 0, 64, 1])),
        &["out:", "head", "stride 0", "1"],
    ),
    (
        "mask_words_apart",
        |b| b.encode(Attention::mask, |b, o| o.mask = Some(View::strided(&b.k, [0, 0, 4, 2]))),
        &["mask:", "key stride", "2", "1 is needed"],
    ),
    (
        "no_such_slice",
        |b| {
            let plan = b.engine.plan(&attention()?, extent())?;
            let [q, k, v, out] = [&b.q, &b.k, &b.v, &b.out].map(View::bhsd);
            let mut encoder = b.engine.device().create_command_encoder(&CommandEncoderDescriptor::default());
            refusal(plan.encode_slice(&mut encoder, &Operands::new(q, k, v, out), 7))
        },
        &["slice", "7", "1"],
    ),
];

pub(super) const OPTIONS: &[Bad] = &[
    ("no_lse", |b| b.encode(plain, |_, o| o.lse = None), &["lse", "missing"]),
    ("no_bias", |b| b.encode(Attention::bias, |_, _| {}), &["bias", "missing"]),
    ("no_mask", |b| b.encode(Attention::mask, |_, _| {}), &["mask", "missing"]),
    ("no_slopes", |b| b.encode(Attention::alibi, |_, _| {}), &["alibi_slopes", "missing"]),
    (
        "unused_lse",
        |b| {
            let plan = b.engine.plan(&attention()?, extent())?;
            b.encode_plan(&plan, |_, _| {})
        },
        &["lse", "given", "does not have"],
    ),
    ("unused_bias", |b| b.encode(plain, |b, o| o.bias = Some(View::bhsd(&b.q))), &["bias", "given", "does not have"]),
    ("unused_mask", |b| b.encode(plain, |b, o| o.mask = Some(View::bhsd(&b.q))), &["mask", "given", "does not have"]),
    ("unused_sinks", |b| b.encode(plain, |_, o| o.sinks = &[0.0; 4]), &["sinks", "given", "does not have"]),
    (
        "unused_causal_offsets",
        |b| b.encode(Attention::causal, |_, o| o.causal_offsets = &[1]),
        &["causal_offsets", "given", "does not have"],
    ),
    (
        "three_slopes_for_four_heads",
        |b| b.encode(Attention::alibi, |_, o| o.alibi_slopes = &[0.5; 3]),
        &["alibi_slopes", "3 given", "4 needed"],
    ),
    (
        "five_sinks_for_four_heads",
        |b| b.encode(Attention::sinks, |_, o| o.sinks = &[0.5; 5]),
        &["sinks", "5 given", "4 needed"],
    ),
    (
        "infinite_sink",
        |b| b.encode(Attention::sinks, |_, o| o.sinks = &[0.0, 0.0, f32::INFINITY, 0.0]),
        &["sinks[2]", "inf", "finite"],
    ),
    (
        "nan_slope",
        |b| b.encode(Attention::alibi, |_, o| o.alibi_slopes = &[0.0, f32::NAN, 0.0, 0.0]),
        &["alibi_slopes[1]", "NaN", "finite"],
    ),
    (
        "three_offsets_for_two_entries",
        |b| b.encode(Attention::causal_top_left, |_, o| o.causal_offsets = &[1, 2, 3]),
        &["causal_offsets", "3", "2"],
    ),
    (
        "short_slice_on_the_host",
        |b| {
            let host = b.engine.blocking();
            refusal(host.attention(&attention()?, extent(), &[0.0; 3], &[0.0; SIZES[1]], &[0.0; SIZES[1]]))
        },
        &["q:", "3 numbers", "10240"],
    ),
];
