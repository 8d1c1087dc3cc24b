//! Refusals: each names the argument, what was given and what is allowed.

use std::fmt::Display;
use std::sync::{Arc, OnceLock};

use anyhow::{Result, bail, ensure};
use libtest_mimic::Trial;
use wattn::wgpu::{Buffer, BufferDescriptor, BufferUsages, CommandEncoderDescriptor};
use wattn::{Attention, Engine, Extent, HeadDim, Heads, Kernel, Lengths, Operands, Plan, PlanError, Storage, View};

use crate::gpu::{Gpu, poisoned};

const F32: usize = 4;
/// Elements of q and out, of k and v, and of lse.
const SIZES: [usize; 3] = [2 * 4 * 20 * 64, 2 * 2 * 48 * 64, 2 * 4 * 20];

/// A device with a buffer for each operand of a problem with 2 batch entries, 4 on 2 heads, 20 queries and 48 keys.
struct Bench {
    engine: Engine,
    q: Buffer,
    k: Buffer,
    v: Buffer,
    out: Buffer,
    lse: Buffer,
    /// 10 elements short of the smallest operand.
    short: Buffer,
    /// Without the usage that shaders need.
    copy_only: Buffer,
}

fn attention() -> Result<Attention, PlanError> {
    Ok(Attention::new(Heads::grouped(4, 2)?, HeadDim::new(64)?))
}

fn extent() -> Extent {
    Extent::new(2, 20, 48)
}

impl Bench {
    fn new(engine: &Engine) -> Self {
        let [q, k, lse] = SIZES;
        let copy_only = engine.device().create_buffer(&BufferDescriptor {
            label: None,
            size: (q * F32) as u64,
            usage: BufferUsages::COPY_DST,
            mapped_at_creation: false,
        });
        Self {
            engine: engine.clone(),
            q: poisoned(engine, q),
            k: poisoned(engine, k),
            v: poisoned(engine, k),
            out: poisoned(engine, q),
            lse: poisoned(engine, lse),
            short: poisoned(engine, lse - 10),
            copy_only,
        }
    }

    /// What encoding says, with the operands changed, to a plan with LSE and what `options` adds.
    fn encode<'a>(
        &'a self,
        options: fn(Attention) -> Attention,
        change: impl FnOnce(&'a Self, &mut Operands<'a>),
    ) -> Result<String> {
        let plan = self.engine.plan(&options(attention()?.lse()), extent())?;
        self.encode_plan(&plan, change)
    }

    fn encode_plan<'a>(&'a self, plan: &Plan, change: impl FnOnce(&'a Self, &mut Operands<'a>)) -> Result<String> {
        let [q, k, v, out] = [&self.q, &self.k, &self.v, &self.out].map(View::bhsd);
        let mut operands = Operands { lse: Some(View::bhsd(&self.lse)), ..Operands::new(q, k, v, out) };
        change(self, &mut operands);
        let mut encoder = self.engine.device().create_command_encoder(&CommandEncoderDescriptor::default());
        refusal(plan.encode(&mut encoder, &operands))
    }

    /// What planning says.
    fn plan(&self, attention: Result<Attention, PlanError>, extent: Extent) -> Result<String> {
        refusal(attention.and_then(|attention| self.engine.plan(&attention, extent)))
    }
}

fn refusal<T>(result: Result<T, impl Display>) -> Result<String> {
    match result {
        Ok(_) => bail!("it was accepted"),
        Err(error) => Ok(error.to_string()),
    }
}

/// The options of a plan that has none but LSE.
fn plain(attention: Attention) -> Attention {
    attention
}

/// A name, a bad call that returns its refusal, and what that must contain.
type Bad = (&'static str, fn(&Bench) -> Result<String>, &'static [&'static str]);

pub(crate) fn trials(gpu: &Arc<Gpu>) -> Vec<Trial> {
    let bench = Arc::new(OnceLock::new());
    let trial = |&(name, call, needed): &Bad| {
        let bench = Arc::clone(&bench);
        gpu.trial(&format!("errors/{name}"), move |gpu| {
            let message = call(bench.get_or_init(|| Bench::new(&gpu.engine)))?;
            for part in needed {
                ensure!(message.contains(part), "{message:?} does not contain {part:?}");
            }
            Ok(())
        })
    };
    let mut trials: Vec<Trial> = [PLANS, BUFFERS, VIEWS, OPTIONS, LENGTHS].concat().iter().map(trial).collect();
    trials.push(gpu.trial("errors/beyond_a_binding", beyond_a_binding));
    trials
}

const PLANS: &[Bad] = &[
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

const BUFFERS: &[Bad] = &[
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
    ("no_storage_usage", |b| b.encode(plain, |b, o| o.q = View::bhsd(&b.copy_only)), &["q:", "COPY_DST", "STORAGE"]),
];

const VIEWS: &[Bad] = &[
    (
        "misaligned_offset",
        |b| b.encode(plain, |b, o| o.k = View::bhsd(&b.k).at(2)),
        &["k:", "offset", "2", "multiple of 4", "any_strides"],
    ),
    (
        "misaligned_stride",
        |b| b.encode(plain, |b, o| o.v = View::strided(&b.v, [6144, 3072, 66, 1])),
        &["v:", "sequence stride", "66", "multiple of 4"],
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

const OPTIONS: &[Bad] = &[
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

const LENGTHS: &[Bad] = &[
    (
        "three_lengths_for_two_entries",
        |b| b.encode(plain, |_, o| o.lengths = Lengths::Keys(&[1, 2, 3])),
        &["lengths", "3", "2, one a batch entry"],
    ),
    (
        "bounds_without_packing",
        |b| b.encode(plain, |_, o| o.lengths = Lengths::Packed { queries: &[0, 20], keys: &[0, 48] }),
        &["lengths", "packed"],
    ),
    ("packing_without_bounds", |b| packed(b, Lengths::Full), &["lengths", "no bounds", "Lengths::Packed"]),
    (
        "bounds_fall",
        |b| packed(b, Lengths::Packed { queries: &[0, 21, 20], keys: &[0, 9, 48] }),
        &["lengths.queries", "do not rise", "3 rising bounds from 0 to 20"],
    ),
    (
        "bounds_end_early",
        |b| packed(b, Lengths::Packed { queries: &[0, 5, 20], keys: &[0, 9, 40] }),
        &["lengths.keys", "40", "48"],
    ),
    (
        "bounds_start_late",
        |b| packed(b, Lengths::Packed { queries: &[1, 5, 20], keys: &[0, 9, 48] }),
        &["lengths.queries", "from 1 to 20", "from 0 to 20"],
    ),
    (
        "too_many_bounds",
        |b| packed(b, Lengths::Packed { queries: &[0, 5, 9, 20], keys: &[0, 9, 20, 48] }),
        &["lengths.queries", "4 bounds", "3 rising bounds"],
    ),
    (
        "empty_bounds",
        |b| packed(b, Lengths::Packed { queries: &[], keys: &[] }),
        &["lengths.queries", "no bounds", "3 rising bounds"],
    ),
];

/// What a plan for two packed sequences says to these lengths.
fn packed<'a>(bench: &'a Bench, lengths: Lengths<'a>) -> Result<String> {
    let plan = bench.engine.plan(&attention()?.lse(), Extent::packed(2, 20, 48))?;
    bench.encode_plan(&plan, |_, operands| operands.lengths = lengths)
}

/// On a device with small bindings: a head that is too long, and a layout that spreads a part too far.
fn beyond_a_binding(gpu: &Gpu) -> Result<()> {
    let engine = gpu.limited(|limits| limits.max_storage_buffer_binding_size = 32 << 10)?;
    let bench = Bench::new(&engine);
    let too_long = bench.plan(attention(), Extent::new(1, 20, 200))?;
    for part in [": 51200 bytes", "allows 32", "max_storage_buffer_binding_size"] {
        ensure!(too_long.contains(part), "{too_long:?} does not contain {part:?}");
    }
    // Two key/value heads of 24 KiB serve in two parts, but side by side in each row they reach over 48 KiB.
    let plan = engine.plan(&attention()?.lse(), Extent::new(1, 20, 96))?;
    ensure!(plan.details().parts.len() == 2, "{} parts", plan.details().parts.len());
    let spread = bench.encode_plan(&plan, |bench, operands| operands.k = View::bshd(&bench.k))?;
    for part in ["k:", "48896", "32768"] {
        ensure!(spread.contains(part), "{spread:?} does not contain {part:?}");
    }
    Ok(())
}
