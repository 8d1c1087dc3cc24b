//! Linear attention beyond single cases: decode, states, determinism, long sequences, refusals, plain devices.

use std::sync::Arc;

use anyhow::{Result, ensure};
use libtest_mimic::Trial;
use wattn::wgpu::{Buffer, BufferUsages, CommandEncoderDescriptor, Features, Limits};
use wattn::{
    Capabilities, Decay, EncodeError, Engine, HeadDim, Kernel, Lightning, LightningState, LinearOperands, Schedule,
    Storage, Tokens, View,
};
use wattn_cases::{Decays, LinearCase, LinearRecipe, References, compare};
use wattn_tests::{EVERY, Variant, judge_linear, lightning, lightning_backward};

use crate::gpu::{Gpu, download, poisoned, upload};

pub(crate) fn trials(gpu: &Arc<Gpu>) -> Vec<Trial> {
    type Body = fn(&Gpu) -> Result<()>;
    let bodies: [(&str, Body); 11] = [
        ("steps_are_the_whole", steps_are_the_whole),
        ("gated_steps_are_the_whole", gated_steps_are_the_whole),
        ("a_step_out_of_place", a_step_out_of_place),
        ("two_calls_are_one", two_calls_are_one),
        ("a_saved_state_goes_on_bit_by_bit", a_saved_state_goes_on_bit_by_bit),
        ("stretches_of_stretches", stretches_of_stretches),
        ("stretches_one_after_the_other", stretches_one_after_the_other),
        ("webgpu_defaults", webgpu_defaults),
        ("small_bindings_split_heads", small_bindings_split_heads),
        ("plans_are_refused", plans_are_refused),
        ("operands_are_refused", operands_are_refused),
    ];
    let mut trials: Vec<Trial> =
        bodies.into_iter().map(|(name, body)| gpu.trial(&format!("linear/{name}"), body)).collect();
    for variant in Variant::linear() {
        trials.push(gpu.trial_by(variant, "linear/same_bits_twice", plain_refusal, same_bits_twice));
    }
    for variant in EVERY.map(Variant::from) {
        trials.push(gpu.trial_by(
            variant,
            "linear/a_hundred_thousand_tokens",
            plain_refusal,
            a_hundred_thousand_tokens,
        ));
    }
    trials
}

/// Why a device cannot have a variant for a plain problem, which those of this file differ from by nothing that decides it.
fn plain_refusal(variant: Variant, device: &Capabilities) -> Result<Option<String>> {
    variant.linear_refusal(device, &LinearRecipe::default().build())
}

/// Submits what `record` records.
pub(crate) fn submit(
    engine: &Engine,
    record: impl FnOnce(&mut wattn::wgpu::CommandEncoder) -> Result<()>,
) -> Result<()> {
    let mut encoder = engine.device().create_command_encoder(&CommandEncoderDescriptor::default());
    record(&mut encoder)?;
    engine.queue().submit([encoder.finish()]);
    Ok(())
}

fn case(name: &'static str, tokens: usize) -> LinearCase {
    LinearRecipe { name, tokens, batch: 2, heads: 3, key_dim: 16, value_dim: 20, ..LinearRecipe::default() }.build()
}

/// The device's outputs of tokens `[b, h, t, d]` that were calculated one token at a time.
fn check(gpu: &Gpu, case: &LinearCase, got: &[(&'static str, Vec<f32>)], reference: &References) -> Result<()> {
    for (name, values) in got {
        gpu.check(&compare(name, values, &reference[name], &case.rules(name)))?;
    }
    Ok(())
}

/// Every token by a step of its own, on the state in place; the last output row is that of a call on all tokens.
fn steps(gpu: &Gpu, case: &LinearCase) -> Result<()> {
    let engine = &gpu.engine;
    let dims = case.dims();
    let state = LightningState::new(engine, &lightning(case)?, u32::try_from(dims.batch)?)?;
    let plan = engine.plan(&lightning(case)?.step(), Tokens::new(u32::try_from(dims.batch)?, 1))?;
    let [q, k, v] = [&case.q, &case.k, &case.v].map(|tensor| upload(engine, &tensor.values));
    let gates = match &case.decay {
        wattn_cases::Decay::Gates(gates) => Some(upload(engine, &gates.values)),
        wattn_cases::Decay::Slopes(_) => None,
    };
    let out = poisoned(engine, dims.batch * dims.heads * dims.tokens * dims.value_dim);
    let strides = |dim: usize| -> Result<[u32; 4]> {
        let size = |n: usize| u32::try_from(n);
        Ok([size(dims.heads * dims.tokens * dim)?, size(dims.tokens * dim)?, size(dim)?, 1])
    };
    let (keys, values, one) = (strides(dims.key_dim)?, strides(dims.value_dim)?, strides(1)?);
    // All steps in one encoder: each sees what the one before it left.
    submit(engine, |encoder| {
        for token in 0..dims.tokens as u64 {
            let view = |buffer, strides: [u32; 4]| View::strided(buffer, strides).at(token * u64::from(strides[2]));
            let operands = LinearOperands {
                out: Some(view(&out, values)),
                state: Some(state.view()),
                gate: gates.as_ref().map(|gates| view(gates, one)),
                ..LinearOperands::new(view(&q, keys), view(&k, keys), view(&v, values))
            };
            plan.encode(encoder, &operands)?;
        }
        Ok(())
    })?;
    let got = [("out", download(engine, &out)?), ("state", download(engine, state.buffer())?)];
    check(gpu, case, &got, &case.reference())
}

fn steps_are_the_whole(gpu: &Gpu) -> Result<()> {
    steps(gpu, &case("linear/steps", 21))
}

fn gated_steps_are_the_whole(gpu: &Gpu) -> Result<()> {
    let recipe = LinearRecipe { decay: Decays::Gates(0.3), key_dim: 40, ..LinearRecipe::default() };
    steps(gpu, &LinearRecipe { name: "linear/gated_steps", tokens: 19, batch: 2, ..recipe }.build())
}

fn a_step_out_of_place(gpu: &Gpu) -> Result<()> {
    let engine = &gpu.engine;
    let case =
        LinearRecipe { name: "linear/step", tokens: 1, heads: 2, state: true, ..LinearRecipe::default() }.build();
    let dims = case.dims();
    let before = case.state.as_ref().map(|state| upload(engine, &state.values)).expect("the recipe has a state");
    let after = poisoned(engine, dims.heads * dims.key_dim * dims.value_dim);
    let out = poisoned(engine, dims.heads * dims.value_dim);
    let [q, k, v] = [&case.q, &case.k, &case.v].map(|tensor| upload(engine, &tensor.values));
    let plan = engine.plan(&lightning(&case)?.step_out_of_place(), Tokens::new(1, 1))?;
    let operands = LinearOperands {
        out: Some(View::bhsd(&out)),
        state0: Some(View::bhsd(&before)),
        state: Some(View::bhsd(&after)),
        ..LinearOperands::new(View::bhsd(&q), View::bhsd(&k), View::bhsd(&v))
    };
    submit(engine, |encoder| Ok(plan.encode(encoder, &operands)?))?;
    check(gpu, &case, &[("out", download(engine, &out)?), ("state", download(engine, &after)?)], &case.reference())
}

/// A forward pass from a state to the next; returns the output.
fn forward(
    engine: &Engine,
    case: &LinearCase,
    rows: std::ops::Range<usize>,
    state: &mut LightningState,
) -> Result<Vec<f32>> {
    let dims = case.dims();
    let part = |values: &[f32], dim: usize| -> Vec<f32> {
        values.chunks(dims.tokens * dim).flat_map(|head| &head[rows.start * dim..rows.end * dim]).copied().collect()
    };
    let (key, value) = (dims.key_dim, dims.value_dim);
    let [q, k] = [&case.q, &case.k].map(|tensor| upload(engine, &part(&tensor.values, key)));
    let v = upload(engine, &part(&case.v.values, value));
    let out = poisoned(engine, dims.batch * dims.heads * rows.len() * value);
    let tokens = u32::try_from(rows.len())?;
    let plan = engine
        .plan(&lightning(case)?.initial_state().final_state(), Tokens::new(u32::try_from(dims.batch)?, tokens))?;
    let next = state.like()?;
    submit(engine, |encoder| {
        let operands = LinearOperands {
            out: Some(View::bhsd(&out)),
            state0: Some(state.view()),
            state: Some(next.view()),
            ..LinearOperands::new(View::bhsd(&q), View::bhsd(&k), View::bhsd(&v))
        };
        Ok(plan.encode(encoder, &operands)?)
    })?;
    let tokens = state.tokens();
    *state = next;
    state.set_tokens(tokens + rows.len() as u64);
    download(engine, &out)
}

/// A sequence in two calls, the state carried between them, gives what one call gives.
fn two_calls_are_one(gpu: &Gpu) -> Result<()> {
    let case = case("linear/two_calls", 75);
    let reference = case.reference();
    let mut state = LightningState::new(&gpu.engine, &lightning(&case)?, 2)?;
    let first = forward(&gpu.engine, &case, 0..41, &mut state)?;
    let second = forward(&gpu.engine, &case, 41..75, &mut state)?;
    let joined: Vec<f32> = first
        .chunks(41 * 20)
        .zip(second.chunks(34 * 20))
        .flat_map(|(a, b)| a.iter().chain(b).copied().collect::<Vec<_>>())
        .collect();
    ensure!(state.tokens() == 75, "{} tokens", state.tokens());
    check(gpu, &case, &[("out", joined), ("state", download(&gpu.engine, state.buffer())?)], &reference)
}

/// A state that was saved, and restored on another device, goes on with the same bits.
fn a_saved_state_goes_on_bit_by_bit(gpu: &Gpu) -> Result<()> {
    let case = case("linear/saved", 50);
    let mut state = LightningState::new(&gpu.engine, &lightning(&case)?, 2)?;
    forward(&gpu.engine, &case, 0..23, &mut state)?;
    let saved = state.save()?;
    let other = gpu.limited(|_| {})?;
    let mut restored = LightningState::restore(&other, &saved)?;
    ensure!(restored.tokens() == 23, "{} tokens", restored.tokens());
    ensure!(restored.save()? == saved, "saving again gives other bytes");
    ensure!(pollster::block_on(restored.save_async())? == saved, "saving without blocking gives other bytes");
    let (here, there) =
        (forward(&gpu.engine, &case, 23..50, &mut state)?, forward(&other, &case, 23..50, &mut restored)?);
    ensure!(here.iter().zip(&there).all(|(a, b)| a.to_bits() == b.to_bits()), "other bits");
    let broken = LightningState::restore(&other, &saved[..saved.len() - 4]);
    ensure!(broken.is_err(), "a cut file was restored");
    Ok(())
}

/// No optional feature and no limit beyond the defaults: the universal kernel serves.
fn webgpu_defaults(gpu: &Gpu) -> Result<()> {
    let engine = gpu.device(Features::empty(), Limits::default())?;
    let case = LinearRecipe { name: "linear/defaults", tokens: 70, state: true, ..LinearRecipe::default() }.build();
    let (plan, comparisons) = judge_linear(&engine, &case, None, &case.reference())?;
    let kernel = plan.details().sweeps[0].walk.kernel;
    ensure!(kernel == Kernel::TileUniversal, "{kernel} was chosen");
    comparisons.iter().try_for_each(|comparison| gpu.check(comparison))
}

/// A head takes two states of 4 KiB for the gradient of the decay, so that two heads fit. Which kernel runs does not matter.
fn small_bindings_split_heads(gpu: &Gpu) -> Result<()> {
    let engine = gpu.limited(|limits| limits.max_storage_buffer_binding_size = 22 << 10)?;
    let recipe = LinearRecipe { name: "linear/bindings", tokens: 33, heads: 5, state: true, ..LinearRecipe::default() };
    let case = LinearRecipe { key_dim: 32, value_dim: 32, ..recipe }.build();
    for variant in Variant::schedules(Kernel::TileUniversal) {
        let (_, comparisons) = judge_linear(&engine, &case, Some(variant), &case.reference())?;
        let plan = engine.plan(&variant.force_linear(lightning_backward(&case)?), wattn_tests::tokens(&case)?)?;
        ensure!(plan.details().parts.len() == 3, "{} parts", plan.details().parts.len());
        comparisons.iter().try_for_each(|comparison| gpu.check(comparison))?;
    }
    Ok(())
}

fn same_bits_twice(gpu: &Gpu, variant: Variant) -> Result<()> {
    let recipe = LinearRecipe { name: "linear/bits", tokens: 300, grad_state: true, ..LinearRecipe::default() };
    for decay in [recipe.decay, Decays::Gates(0.2)] {
        let case = LinearRecipe { decay, ..recipe }.build();
        let run = || wattn_tests::run_linear(&gpu.engine, &case, Some(variant));
        let (first, second) = (run()?, run()?);
        for (name, values) in &first {
            let same = values.iter().zip(&second[name]).all(|(a, b)| a.to_bits() == b.to_bits());
            ensure!(same && !values.is_empty(), "{name} has other bits");
        }
    }
    Ok(())
}

/// Slopes of 0 (a state that grows all the way) and of 8, over many chunks.
fn a_hundred_thousand_tokens(gpu: &Gpu, variant: Variant) -> Result<()> {
    let recipe = LinearRecipe {
        name: "linear/long",
        tokens: 100_000,
        heads: 2,
        key_dim: 16,
        value_dim: 16,
        ..LinearRecipe::default()
    };
    let case = LinearRecipe { decay: Decays::Slopes(&[0.0, 8.0]), grad_out: false, ..recipe }.build();
    let (plan, comparisons) = judge_linear(&gpu.engine, &case, Some(variant), &case.reference())?;
    comparisons.iter().try_for_each(|comparison| gpu.check(comparison))?;
    // Where the driver ends such loops, a walk comes in stretches.
    ensure!(plan.details().schedule == Schedule::Segments, "two heads walk {} tokens", case.dims().tokens);
    let pinned = Variant { schedule: Some(Schedule::Sequential), ..variant };
    let (plan, comparisons) = judge_linear(&gpu.engine, &case, Some(pinned), &case.reference())?;
    let stretched = plan.details().stretches() > 1;
    ensure!(stretched == gpu.engine.capabilities().loop_turns.is_some(), "{plan}");
    comparisons.iter().try_for_each(|comparison| gpu.check(comparison))
}

/// A driver that ends loops much earlier: states go from stretch to stretch, in the workspace or where the caller has them.
fn stretches_one_after_the_other(gpu: &Gpu) -> Result<()> {
    let engine = gpu.ending_loops()?;
    let small = LinearRecipe { heads: 2, key_dim: 8, value_dim: 12, ..LinearRecipe::default() };
    let stateful = LinearRecipe { state: true, grad_state: true, ..small };
    for recipe in [
        LinearRecipe { name: "linear/two_stretches", tokens: 5200, batch: 2, ..small },
        LinearRecipe { name: "linear/stretches_state", tokens: 10_000, ..stateful },
        LinearRecipe { name: "linear/stretches_gates", tokens: 5200, decay: Decays::Gates(0.1), ..stateful },
        LinearRecipe { name: "linear/stretches_packed", sequences: &[10, 0, 10_000, 5200], ..stateful },
        LinearRecipe { name: "linear/stretches_packed_stateless", sequences: &[5200, 1], ..small },
    ] {
        let case = LinearRecipe { grad_decay: false, ..recipe }.build();
        for kernel in EVERY {
            let variant = Variant { schedule: Some(Schedule::Sequential), ..kernel.into() };
            if variant.linear_refusal(engine.capabilities(), &case)?.is_some() {
                continue;
            }
            let plan = engine.plan(&variant.force_linear(lightning_backward(&case)?), wattn_tests::tokens(&case)?)?;
            ensure!(plan.details().stretches() > 1, "{plan}");
            let (_, comparisons) = judge_linear(&engine, &case, Some(variant), &case.reference())?;
            comparisons.iter().try_for_each(|comparison| gpu.check(comparison))?;
        }
    }
    Ok(())
}

/// The gradient of the decay of a sequence that is cut three times.
fn stretches_of_stretches(gpu: &Gpu) -> Result<()> {
    let recipe =
        LinearRecipe { name: "linear/stretches", heads: 1, key_dim: 4, value_dim: 4, ..LinearRecipe::default() };
    let case = LinearRecipe { tokens: (64 * 4096) + 4096 + 70, decay: Decays::Gates(0.2), ..recipe }.build();
    let plan = gpu.engine.plan(&lightning_backward(&case)?, wattn_tests::tokens(&case)?)?;
    let levels = plan.details().decay.as_ref().map_or(0, |decay| decay.stretches.len());
    ensure!(levels == 3, "{levels} levels");
    let (_, comparisons) = judge_linear(&gpu.engine, &case, None, &case.reference())?;
    comparisons.iter().try_for_each(|comparison| gpu.check(comparison))
}

/// An error whose message has all of `needles`.
#[track_caller]
pub(crate) fn refused<T: std::fmt::Debug, E: std::fmt::Display>(
    result: std::result::Result<T, E>,
    needles: &[&str],
) -> Result<()> {
    let Err(error) = result else { anyhow::bail!("{needles:?} was accepted") };
    let text = error.to_string();
    for needle in needles {
        ensure!(text.contains(needle), "{text:?} does not say {needle:?}");
    }
    Ok(())
}

fn plans_are_refused(gpu: &Gpu) -> Result<()> {
    let plan = |lightning: Lightning, extent| gpu.engine.plan(&lightning, extent);
    let new = |heads, dim| Ok::<_, anyhow::Error>(Lightning::new(heads, HeadDim::new(dim)?));
    let some = Tokens::new(1, 8);
    refused(plan(new(0, 16)?, some), &["heads", "0"])?;
    refused(plan(new(1, 264)?, some), &["head_dim", "264", "256"])?;
    refused(plan(new(2, 16)?.decay(Decay::slopes(&[0.1])), some), &["slopes", "1", "2"])?;
    refused(plan(new(1, 16)?.decay(Decay::slopes(&[-0.5])), some), &["slopes", "-0.5"])?;
    refused(plan(new(1, 16)?.decay(Decay::slopes(&[f32::NAN])), some), &["slopes", "NaN"])?;
    refused(plan(new(1, 16)?.decay(Decay::transnormer(5, 5)), some), &["decay", "layer 5 of 5"])?;
    let slopes = Decay::slopes(&[0.1]);
    refused(plan(new(1, 16)?.backward().decay_gradient(), some), &["decay_gradient", "no decay"])?;
    refused(plan(new(1, 16)?.decay(slopes.clone()).decay_gradient(), some), &["decay_gradient", "forward"])?;
    refused(plan(new(1, 16)?.decay(slopes).decay_gradient().step(), Tokens::new(1, 1)), &["decay_gradient", "step"])?;
    refused(plan(new(1, 16)?.scale(f32::INFINITY), some), &["scale", "inf"])?;
    refused(plan(new(1, 15)?.storage(Storage::F16), some), &["head_dim", "15", "even"])?;
    refused(plan(new(1, 16)?.step(), some), &["extent", "one token"])?;
    refused(plan(new(1, 16)?, Tokens::new(1, u32::MAX)), &["tokens", "536870912"])?;
    // Where it cannot run at all, it says that instead.
    let fixed = plan(new(1, 16)?.kernel(Kernel::Broadcast), some).is_ok();
    let size = if fixed { "200" } else { "subgroups" };
    refused(plan(new(1, 200)?.kernel(Kernel::Broadcast), some), &["broadcast", size])
}

fn operands_are_refused(gpu: &Gpu) -> Result<()> {
    let engine = &gpu.engine;
    let buffer = || upload(engine, &[0.0; 8 * 16]);
    let (q, k, v, out, state): (Buffer, Buffer, Buffer, Buffer, Buffer) =
        (buffer(), buffer(), buffer(), buffer(), upload(engine, &[0.0; 256]));
    let good = LinearOperands {
        out: Some(View::bhsd(&out)),
        ..LinearOperands::new(View::bhsd(&q), View::bhsd(&k), View::bhsd(&v))
    };
    let plain = Lightning::new(1, HeadDim::new(16)?);
    let call = |lightning: &Lightning,
                extent: Tokens,
                operands: LinearOperands<'_>|
     -> Result<std::result::Result<(), EncodeError>> {
        let plan = engine.plan(lightning, extent)?;
        let mut encoder = engine.device().create_command_encoder(&CommandEncoderDescriptor::default());
        Ok(plan.encode(&mut encoder, &operands))
    };
    let some = Tokens::new(1, 8);
    ensure!(call(&plain, some, good)?.is_ok(), "what is right was refused");
    refused(call(&plain, some, LinearOperands { out: None, ..good })?, &["out", "missing"])?;
    refused(
        call(&plain, some, LinearOperands { state: Some(View::bhsd(&state)), ..good })?,
        &["state", "does not have"],
    )?;
    refused(call(&plain, some, LinearOperands { gate: Some(View::bhsd(&state)), ..good })?, &["gate"])?;
    refused(call(&plain, some, LinearOperands { dq: Some(View::bhsd(&state)), ..good })?, &["dq"])?;
    refused(call(&plain.clone().final_state(), some, good)?, &["state", "missing"])?;
    refused(call(&plain.clone().backward(), some, LinearOperands { out: None, ..good })?, &["grad_out", "missing"])?;
    refused(call(&plain, some, LinearOperands { dg: Some(View::bhsd(&state)), ..good })?, &["dg", "does not have"])?;
    refused(call(&plain, some, LinearOperands { q: View::bhsd(&q).at(4), ..good })?, &["q"])?;
    refused(call(&plain, some, LinearOperands { out: Some(View::bhsd(&q)), ..good })?, &["out", "q", "same buffer"])?;
    refused(call(&plain, Tokens::new(1, 9), good)?, &["576", "512"])?;
    refused(call(&plain, some, LinearOperands { bounds: &[0, 8], ..good })?, &["bounds"])?;
    let (dq, dk, dv, slopes) = (buffer(), buffer(), buffer(), upload(engine, &[0.0]));
    let backward = LinearOperands {
        out: None,
        grad_out: Some(View::bhsd(&out)),
        dq: Some(View::bhsd(&dq)),
        dk: Some(View::bhsd(&dk)),
        dv: Some(View::bhsd(&dv)),
        ..good
    };
    let with_slopes = LinearOperands { dslopes: Some(View::bhsd(&slopes)), ..backward };
    let decay = plain.clone().decay(Decay::slopes(&[0.1])).backward();
    refused(call(&decay, some, with_slopes)?, &["dslopes", "does not have"])?;
    let decay = decay.decay_gradient();
    refused(call(&decay, some, backward)?, &["dslopes", "missing"])?;
    refused(call(&decay, some, with_slopes)?, &["workspace", "missing"])?;
    let (dslopes, workspace) = (Some(View::bhsd(&q)), Some(&state));
    refused(call(&decay, some, LinearOperands { dslopes, workspace, ..backward })?, &["workspace", "2056", "1024"])?;
    let gates = decay.decay(Decay::Gates);
    let gated = LinearOperands { gate: Some(View::bhsd(&state)), ..backward };
    refused(call(&gates, some, gated)?, &["dg", "missing"])?;
    let packed = Tokens::packed(2, 8);
    refused(call(&plain, packed, good)?, &["bounds", "3 rising", "8"])?;
    refused(call(&plain, packed, LinearOperands { bounds: &[0, 9, 8], ..good })?, &["bounds", "do not rise"])?;
    refused(call(&plain, packed, LinearOperands { bounds: &[0, 4, 7], ..good })?, &["bounds", "0 to 8"])?;
    let segments = plain.clone().schedule(Schedule::Segments);
    refused(call(&segments, some, good)?, &["workspace", "missing"])?;
    let small = upload(engine, &[0.0; 2]);
    refused(call(&segments, some, LinearOperands { workspace: Some(&small), ..good })?, &["workspace", "8"])?;
    let copied = engine.device().create_buffer(&wattn::wgpu::BufferDescriptor {
        label: None,
        size: 1 << 16,
        usage: BufferUsages::COPY_DST,
        mapped_at_creation: false,
    });
    refused(call(&segments, some, LinearOperands { workspace: Some(&copied), ..good })?, &["workspace", "STORAGE"])
}
