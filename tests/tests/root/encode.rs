//! Encoding: one plan many times into one encoder, views in any order, slices, large grids.

use std::sync::Arc;

use anyhow::{Result, ensure};
use libtest_mimic::Trial;
use wattn::wgpu::{Buffer, CommandEncoder, CommandEncoderDescriptor, ComputePassDescriptor};
use wattn::{Attention, Capabilities, Engine, Extent, HeadDim, Heads, Kernel, Lengths, Operands, Plan, Rates, View};
use wattn_cases::{Causal, Recipe, Rows, SoftmaxCase, compare};
use wattn_tests::{Loaded, Variant, attention, extent, judge_all};

use crate::gpu::{Gpu, download, poisoned, upload};

pub(crate) fn trials(gpu: &Arc<Gpu>) -> Vec<Trial> {
    type Body = fn(&Gpu, Variant) -> Result<()>;
    let bodies: [(&str, Body); 6] = [
        ("three_calls_in_one_encoder", three_calls_in_one_encoder),
        ("three_calls_in_one_pass", three_calls_in_one_pass),
        ("permuted_strides", permuted_strides),
        ("slices_are_the_whole", slices_are_the_whole),
        ("same_bits_twice", same_bits_twice),
        ("beyond_65535_workgroups", beyond_65535_workgroups),
    ];
    let of = |variant| bodies.map(|(name, body)| gpu.trial_by(variant, &format!("encode/{name}"), plain_refusal, body));
    let mut trials: Vec<Trial> = gpu.variants().into_iter().flat_map(of).collect();
    trials.push(gpu.trial("encode/dropped_encoders_leak_nothing", dropped_encoders_leak_nothing));
    trials
}

/// Why a device cannot have a variant for a plain problem, which those of this file differ from by nothing that decides it.
fn plain_refusal(variant: Variant, device: &Capabilities) -> Result<Option<String>> {
    variant.refusal(device, &Recipe::default().build())
}

fn plan(engine: &Engine, case: &SoftmaxCase, variant: Variant) -> Result<Plan> {
    Ok(engine.plan(&variant.force(attention(case)?), extent(case)?)?)
}

fn encoder(engine: &Engine) -> CommandEncoder {
    engine.device().create_command_encoder(&CommandEncoderDescriptor::default())
}

/// Three cases of equal extents and unequal lengths, one after the other in the same buffers.
struct Three {
    cases: [SoftmaxCase; 3],
    q: Buffer,
    k: Buffer,
    v: Buffer,
    out: Buffer,
    lse: Buffer,
}

impl Three {
    fn new(engine: &Engine) -> Self {
        let case = |name, kv_lens| {
            let causal = Some(Causal::BottomRight);
            Recipe { name, queries: 20, keys: 48, causal, kv_lens, ..Recipe::default() }.build()
        };
        let cases = [case("encode/first", &[48]), case("encode/second", &[17]), case("encode/third", &[33])];
        let joined = |values: fn(&SoftmaxCase) -> &[f32]| upload(engine, &cases.each_ref().map(values).concat());
        Self {
            q: joined(|case| &case.q.values),
            k: joined(|case| &case.k.values),
            v: joined(|case| &case.v.values),
            out: poisoned(engine, 3 * cases[0].q.values.len()),
            lse: poisoned(engine, 3 * 2 * 20),
            cases,
        }
    }

    fn operands(&self) -> impl Iterator<Item = Operands<'_>> {
        (0..).zip(&self.cases).map(|(n, case)| {
            let view = |buffer, len: usize| View::bhsd(buffer).at(n * len as u64);
            let (q, k) = (case.q.values.len(), case.k.values.len());
            Operands {
                lse: Some(view(&self.lse, 2 * 20)),
                lengths: Lengths::Keys(case.kv_lens.as_deref().unwrap_or_default()),
                ..Operands::new(view(&self.q, q), view(&self.k, k), view(&self.v, k), view(&self.out, q))
            }
        })
    }

    fn check(&self, gpu: &Gpu) -> Result<()> {
        let (out, lse) = (download(&gpu.engine, &self.out)?, download(&gpu.engine, &self.lse)?);
        for (n, case) in self.cases.iter().enumerate() {
            let reference = case.reference(Rows::All);
            let (out_len, lse_len) = (case.q.values.len(), 2 * 20);
            let out = &out[n * out_len..][..out_len];
            let lse = &lse[n * lse_len..][..lse_len];
            gpu.check(&compare("out", out, &reference.out, &case.rules("out", &reference)))?;
            gpu.check(&compare("lse", lse, &reference.lse, &case.rules("lse", &reference)))?;
        }
        Ok(())
    }
}

fn three_calls_in_one_encoder(gpu: &Gpu, variant: Variant) -> Result<()> {
    let engine = &gpu.engine;
    let three = Three::new(engine);
    let plan = plan(engine, &three.cases[0], variant)?;
    let mut encoder = encoder(engine);
    for operands in three.operands() {
        plan.encode(&mut encoder, &operands)?;
    }
    engine.queue().submit([encoder.finish()]);
    three.check(gpu)
}

fn three_calls_in_one_pass(gpu: &Gpu, variant: Variant) -> Result<()> {
    let engine = &gpu.engine;
    let three = Three::new(engine);
    let plan = plan(engine, &three.cases[0], variant)?;
    let mut encoder = encoder(engine);
    let mut pass = encoder.begin_compute_pass(&ComputePassDescriptor::default());
    for operands in three.operands() {
        plan.encode_in_pass(&mut pass, &operands)?;
    }
    drop(pass);
    engine.queue().submit([encoder.finish()]);
    three.check(gpu)
}

/// Where each element of a contiguous `[batch, heads, sequence, dim]` lies in a buffer with these strides.
fn places(shape: &[usize], strides: [u32; 4]) -> Vec<usize> {
    let mut places = Vec::new();
    for b in 0..shape[0] {
        for h in 0..shape[1] {
            for n in 0..shape[2] {
                for d in 0..shape[3] {
                    places.push([b, h, n, d].iter().zip(strides).map(|(ix, stride)| ix * stride as usize).sum());
                }
            }
        }
    }
    places
}

fn scattered(values: &[f32], places: &[usize]) -> Vec<f32> {
    let mut scattered = vec![f32::NAN; places.iter().max().map_or(0, |last| last + 1)];
    for (&x, &place) in values.iter().zip(places) {
        scattered[place] = x;
    }
    scattered
}

/// q and out are [sequence, batch, heads, dim], v has a gap after each row, k is [batch, heads, dim, sequence] (in the kernel that
/// needs rows of whole vec4: has gaps too).
fn permuted_strides(gpu: &Gpu, variant: Variant) -> Result<()> {
    let engine = &gpu.engine;
    let name = "encode/permuted_strides";
    let recipe = Recipe { name, batch: 2, heads: 4, kv_heads: 2, queries: 20, keys: 48, ..Recipe::default() };
    let case = recipe.build();
    let out_strides = [4 * 64, 64, 2 * 4 * 64, 1];
    let lse_strides = [4, 1, 8, 1];
    let any = variant.kernel != Kernel::Broadcast;
    let gaps = |row| [2 * 48 * row, 48 * row, row, 1];
    let (k_strides, v_strides) = if any { ([2 * 64 * 48, 64 * 48, 1, 48], gaps(67)) } else { (gaps(72), gaps(80)) };
    let placed = |values: &[f32], shape, strides| upload(engine, &scattered(values, &places(shape, strides)));
    let q = placed(&case.q.values, &case.q.shape, out_strides);
    let k = placed(&case.k.values, &case.k.shape, k_strides);
    let v = placed(&case.v.values, &case.v.shape, v_strides);
    let (out, lse) = (poisoned(engine, case.q.values.len()), poisoned(engine, 2 * 4 * 20));

    let operands = Operands {
        lse: Some(View::strided(&lse, lse_strides)),
        ..Operands::new(
            View::strided(&q, out_strides),
            View::strided(&k, k_strides),
            View::strided(&v, v_strides),
            View::strided(&out, out_strides),
        )
    };
    let forced = variant.force(attention(&case)?);
    let plan = engine.plan(&if any { forced.any_strides() } else { forced }, extent(&case)?)?;
    let mut encoder = encoder(engine);
    plan.encode(&mut encoder, &operands)?;
    engine.queue().submit([encoder.finish()]);

    let gathered = |buffer: &Buffer, shape: &[usize], strides| -> Result<Vec<f32>> {
        let values = download(engine, buffer)?;
        Ok(places(shape, strides).into_iter().map(|place| values[place]).collect())
    };
    let reference = case.reference(Rows::All);
    let out = gathered(&out, &case.out_shape(), out_strides)?;
    let lse = gathered(&lse, &[2, 4, 20, 1], lse_strides)?;
    gpu.check(&compare("out", &out, &reference.out, &case.rules("out", &reference)))?;
    gpu.check(&compare("lse", &lse, &reference.lse, &case.rules("lse", &reference)))
}

/// The plan is for so many keys that it comes in slices; at run time there are few, so that the test is quick. Keys overlap, and
/// all heads share them, so that they need little memory.
fn slices_are_the_whole(gpu: &Gpu, variant: Variant) -> Result<()> {
    const HEADS: u32 = 64;
    const QUERIES: u32 = 512;
    const KEYS: u32 = 60_000;
    let engine = &gpu.engine;
    let attention = variant.force(Attention::new(Heads::new(HEADS)?, HeadDim::new(64)?).lse());
    let extent = Extent::new(1, QUERIES, KEYS);
    let mut plan = engine.plan(&attention, extent)?;
    if plan.slices() == 1 {
        // The device is expected to be that fast.
        let slow = Rates { flops: 100_000_000_000, bandwidth: 10_000_000_000, dispatch_ns: 1000 };
        plan = Engine::builder(engine.device(), engine.queue()).rates(slow).build().plan(&attention, extent)?;
    }
    ensure!(plan.slices() > 1, "the plan has one slice");
    let wave = |n: u32| -> Vec<f32> { (0..n).map(|i| (i as f32 * 0.37).sin()).collect() };
    let elements = HEADS * QUERIES * 64;
    let (q, kv) = (upload(engine, &wave(elements)), upload(engine, &wave(KEYS * 8 + 64)));
    let keys = View::strided(&kv, [0, 0, 8, 1]);
    let run = |encode: &dyn Fn(&mut CommandEncoder, &Operands<'_>) -> Result<()>| -> Result<[Vec<u32>; 2]> {
        let (out, lse) = (poisoned(engine, elements as usize), poisoned(engine, (HEADS * QUERIES) as usize));
        let operands = Operands {
            lse: Some(View::bhsd(&lse)),
            lengths: Lengths::Keys(&[130]),
            ..Operands::new(View::bhsd(&q), keys, keys, View::bhsd(&out))
        };
        let mut encoder = encoder(engine);
        encode(&mut encoder, &operands)?;
        engine.queue().submit([encoder.finish()]);
        let bits = |values: Vec<f32>| values.into_iter().map(f32::to_bits).collect();
        Ok([bits(download(engine, &out)?), bits(download(engine, &lse)?)])
    };
    let whole = run(&|encoder, operands| Ok(plan.encode(encoder, operands)?))?;
    ensure!(whole.iter().flatten().all(|&bits| f32::from_bits(bits).is_finite()), "not all was written");
    let sliced = run(&|encoder, operands| {
        // In any order.
        (0..plan.slices()).rev().try_for_each(|slice| Ok(plan.encode_slice(encoder, operands, slice)?))
    })?;
    ensure!(whole == sliced, "slices give other bits");
    let all_but_one = run(&|encoder, operands| {
        (1..plan.slices()).try_for_each(|slice| Ok(plan.encode_slice(encoder, operands, slice)?))
    })?;
    ensure!(whole != all_but_one, "a slice that is left out is not missed");
    Ok(())
}

fn same_bits_twice(gpu: &Gpu, variant: Variant) -> Result<()> {
    let causal = Some(Causal::BottomRight);
    let recipe = Recipe { name: "encode/same_bits", heads: 4, queries: 131, keys: 131, causal, ..Recipe::default() };
    let case = recipe.build();
    let plan = plan(&gpu.engine, &case, variant)?;
    let run = || -> Result<Vec<u32>> {
        let outputs = Loaded::new(&gpu.engine, &case).run(&gpu.engine, &plan)?;
        Ok(outputs.out.iter().chain(&outputs.lse).map(|x| x.to_bits()).collect())
    };
    ensure!(run()? == run()?, "other bits the second time");
    Ok(())
}

/// One workgroup a query head and batch entry: more than WebGPU lets a dispatch have along one axis.
fn beyond_65535_workgroups(gpu: &Gpu, variant: Variant) -> Result<()> {
    const AXIS: u32 = 65_535;
    let (name, batch, heads, kv_heads) = ("encode/many_workgroups", 100, 700, 7);
    let recipe =
        Recipe { name, batch, heads, kv_heads, queries: 1, keys: 3, head_dim: 8, value_dim: 8, ..Recipe::default() };
    let case = recipe.build();
    let usual = gpu.engine.capabilities().workgroups_per_axis == AXIS;
    let engine = if usual {
        gpu.engine.clone()
    } else {
        gpu.limited(|limits| limits.max_compute_workgroups_per_dimension = AXIS)?
    };
    let (plan, comparisons) = judge_all(&engine, &case, Some(variant), Rows::All)?;
    ensure!(plan.details().workgroups > u64::from(AXIS), "{} workgroups", plan.details().workgroups);
    comparisons.iter().try_for_each(|comparison| gpu.check(comparison))
}

/// Parameters of calls that are never submitted are given back.
fn dropped_encoders_leak_nothing(gpu: &Gpu) -> Result<()> {
    // On a device of its own, since other trials allocate too.
    let engine = gpu.limited(|_| {})?;
    let case = Recipe { name: "encode/dropped", queries: 8, keys: 8, ..Recipe::default() }.build();
    let plan = engine.plan(&attention(&case)?, extent(&case)?)?;
    let loaded = Loaded::new(&engine, &case);
    let drop_many = |count: u32| -> Result<Option<u64>> {
        for _ in 0..count {
            plan.encode(&mut encoder(&engine), &loaded.operands())?;
        }
        // The parameters' way to the device waits for a submission, whichever it is.
        engine.queue().submit([]);
        engine.device().poll(wattn::wgpu::PollType::wait_indefinitely())?;
        // Not every backend tells.
        Ok(engine.device().generate_allocator_report().map(|report| report.total_allocated_bytes))
    };
    let (before, after) = (drop_many(100)?, drop_many(5000)?);
    ensure!(before == after, "{before:?} bytes allocated before 5000 dropped encoders, {after:?} after");
    // What was dropped has not harmed what runs.
    let outputs = loaded.run(&engine, &plan)?;
    outputs.compare(&case, &case.reference(Rows::All)).iter().try_for_each(|comparison| gpu.check(comparison))
}
