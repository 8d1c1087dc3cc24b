//! BASED beyond single cases: decode, states, determinism, long sequences, refusals, plain devices.

use std::ops::Range;
use std::sync::Arc;

use anyhow::{Result, ensure};
use libtest_mimic::Trial;
use wattn::wgpu::{CommandEncoderDescriptor, Features, Limits};
use wattn::{
    Based, BasedOperands, BasedState, Capabilities, EncodeError, Engine, HeadDim, Kernel, LightningState, Schedule,
    Storage, Tokens, View,
};
use wattn_cases::{BasedCase, BasedRecipe, compare};
use wattn_tests::{EVERY, Variant, based, based_backward, judge_based, run_based, unpack_states};

use crate::gpu::{Gpu, download, poisoned, upload};
use crate::linear_calls::{refused, submit};

pub(crate) fn trials(gpu: &Arc<Gpu>) -> Vec<Trial> {
    type Body = fn(&Gpu) -> Result<()>;
    let bodies: [(&str, Body); 11] = [
        ("steps_are_the_whole", steps_are_the_whole),
        ("steps_of_odd_dims", steps_of_odd_dims),
        ("a_step_out_of_place", a_step_out_of_place),
        ("two_calls_are_one", two_calls_are_one),
        ("a_saved_state_goes_on_bit_by_bit", a_saved_state_goes_on_bit_by_bit),
        ("webgpu_defaults", webgpu_defaults),
        ("small_bindings_split_heads", small_bindings_split_heads),
        ("stretches_one_after_the_other", stretches_one_after_the_other),
        ("long_gradients", long_gradients),
        ("plans_are_refused", plans_are_refused),
        ("operands_are_refused", operands_are_refused),
    ];
    let mut trials: Vec<Trial> =
        bodies.into_iter().map(|(name, body)| gpu.trial(&format!("based/{name}"), body)).collect();
    for variant in Variant::linear() {
        trials.push(gpu.trial_by(variant, "based/same_bits_twice", plain_refusal, same_bits_twice));
    }
    for variant in EVERY.map(Variant::from) {
        trials.push(gpu.trial_by(variant, "based/a_hundred_thousand_tokens", plain_refusal, a_hundred_thousand_tokens));
    }
    trials
}

/// Why a device cannot have a variant for a plain problem, which those of this file differ from by nothing that decides it.
fn plain_refusal(variant: Variant, device: &Capabilities) -> Result<Option<String>> {
    variant.based_refusal(device, &BasedRecipe::default().build())
}

fn case(name: &'static str, tokens: usize) -> BasedCase {
    BasedRecipe { name, tokens, batch: 2, heads: 3, value_dim: 20, ..BasedRecipe::default() }.build()
}

fn size(n: usize) -> Result<u32> {
    Ok(u32::try_from(n)?)
}

/// The output, and the packed states after the last token, against the oracle.
fn check(gpu: &Gpu, case: &BasedCase, out: Vec<f32>, states: &[f32]) -> Result<()> {
    let (reference, mut got) = (case.reference(), unpack_states(case, states));
    got.insert("out", out);
    for (name, want) in reference.iter().filter(|(name, _)| !name.starts_with('d')) {
        gpu.check(&compare(name, &got[name], want, &case.rules(name)))?;
    }
    Ok(())
}

/// Every token by a step of its own, on the state in place; the last output row is that of a call on all tokens.
fn steps(gpu: &Gpu, case: &BasedCase) -> Result<()> {
    let engine = &gpu.engine;
    let dims = case.dims();
    let state = BasedState::new(engine, &based(case)?, size(dims.batch)?)?;
    let plan = engine.plan(&based(case)?.step(), Tokens::new(size(dims.batch)?, 1))?;
    let [q, k, v] = [&case.q, &case.k, &case.v].map(|tensor| upload(engine, &tensor.values));
    let out = poisoned(engine, dims.batch * dims.heads * dims.tokens * dims.value_dim);
    let strides = |dim: usize| -> Result<[u32; 4]> {
        Ok([size(dims.heads * dims.tokens * dim)?, size(dims.tokens * dim)?, size(dim)?, 1])
    };
    let (keys, values) = (strides(dims.key_dim)?, strides(dims.value_dim)?);
    // All steps in one encoder: each sees what the one before it left.
    submit(engine, |encoder| {
        for token in 0..dims.tokens as u64 {
            let view = |buffer, strides: [u32; 4]| View::strided(buffer, strides).at(token * u64::from(strides[2]));
            let operands = BasedOperands {
                out: Some(view(&out, values)),
                state: Some(state.view()),
                ..BasedOperands::new(view(&q, keys), view(&k, keys), view(&v, values))
            };
            plan.encode(encoder, &operands)?;
        }
        Ok(())
    })?;
    check(gpu, case, download(engine, &out)?, &download(engine, state.buffer())?)
}

fn steps_are_the_whole(gpu: &Gpu) -> Result<()> {
    steps(gpu, &case("based/steps", 21))?;
    let wide = BasedRecipe { name: "based/wide_steps", tokens: 5, heads: 1, value_dim: 256, ..BasedRecipe::default() };
    steps(gpu, &BasedRecipe { feature_dim: 32, ..wide }.build())
}

fn steps_of_odd_dims(gpu: &Gpu) -> Result<()> {
    let recipe =
        BasedRecipe { name: "based/odd_steps", tokens: 9, batch: 2, normalize: false, ..BasedRecipe::default() };
    steps(gpu, &BasedRecipe { feature_dim: 13, value_dim: 7, ..recipe }.build())
}

fn a_step_out_of_place(gpu: &Gpu) -> Result<()> {
    let engine = &gpu.engine;
    let case = BasedRecipe { name: "based/step", tokens: 1, state: true, ..BasedRecipe::default() }.build();
    let dims = case.dims();
    let before = upload(engine, &case.state.as_ref().map_or(Vec::new(), |state| state.values.clone()));
    let plan = engine.plan(&based(&case)?.step_out_of_place(), Tokens::new(1, 1))?;
    let [q, k, v] = [&case.q, &case.k, &case.v].map(|tensor| upload(engine, &tensor.values));
    let (out, after) =
        (poisoned(engine, dims.heads * dims.value_dim), poisoned(engine, case.state_shape().iter().product()));
    let operands = BasedOperands {
        out: Some(View::bhsd(&out)),
        state0: Some(View::bhsd(&before)),
        state: Some(View::bhsd(&after)),
        ..BasedOperands::new(View::bhsd(&q), View::bhsd(&k), View::bhsd(&v))
    };
    submit(engine, |encoder| Ok(plan.encode(encoder, &operands)?))?;
    check(gpu, &case, download(engine, &out)?, &download(engine, &after)?)
}

/// A forward pass from a state to the next; returns the output.
fn forward(engine: &Engine, case: &BasedCase, rows: Range<usize>, state: &mut BasedState) -> Result<Vec<f32>> {
    let dims = case.dims();
    let part = |values: &[f32], dim: usize| -> Vec<f32> {
        values.chunks(dims.tokens * dim).flat_map(|head| &head[rows.start * dim..rows.end * dim]).copied().collect()
    };
    let [q, k] = [&case.q, &case.k].map(|tensor| upload(engine, &part(&tensor.values, dims.key_dim)));
    let v = upload(engine, &part(&case.v.values, dims.value_dim));
    let out = poisoned(engine, dims.batch * dims.heads * rows.len() * dims.value_dim);
    let plan = engine.plan(&based(case)?.initial_state(), Tokens::new(size(dims.batch)?, size(rows.len())?))?;
    let next = state.like()?;
    submit(engine, |encoder| {
        let operands = BasedOperands {
            out: Some(View::bhsd(&out)),
            state0: Some(state.view()),
            state: Some(next.view()),
            ..BasedOperands::new(View::bhsd(&q), View::bhsd(&k), View::bhsd(&v))
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
    let case = case("based/two_calls", 75);
    let mut state = BasedState::new(&gpu.engine, &based(&case)?, 2)?;
    let first = forward(&gpu.engine, &case, 0..41, &mut state)?;
    let second = forward(&gpu.engine, &case, 41..75, &mut state)?;
    let heads = first.chunks(41 * 20).zip(second.chunks(34 * 20));
    let joined = heads.flat_map(|(a, b)| [a, b].concat()).collect();
    ensure!(state.tokens() == 75, "{} tokens", state.tokens());
    check(gpu, &case, joined, &download(&gpu.engine, state.buffer())?)
}

/// A state that was saved, and restored on another device, goes on with the same bits.
fn a_saved_state_goes_on_bit_by_bit(gpu: &Gpu) -> Result<()> {
    let case = case("based/saved", 50);
    let mut state = BasedState::new(&gpu.engine, &based(&case)?, 2)?;
    forward(&gpu.engine, &case, 0..23, &mut state)?;
    let saved = state.save()?;
    let other = gpu.limited(|_| {})?;
    let mut restored = BasedState::restore(&other, &saved)?;
    ensure!(restored.tokens() == 23, "{} tokens", restored.tokens());
    ensure!(restored.save()? == saved, "saving again gives other bytes");
    let (here, there) =
        (forward(&gpu.engine, &case, 23..50, &mut state)?, forward(&other, &case, 23..50, &mut restored)?);
    ensure!(here.iter().zip(&there).all(|(a, b)| a.to_bits() == b.to_bits()), "other bits");
    ensure!(BasedState::restore(&other, &saved[..saved.len() - 4]).is_err(), "a cut file was restored");
    ensure!(LightningState::restore(&other, &saved).is_err(), "states of another operator were restored");
    Ok(())
}

/// No optional feature and no limit beyond the defaults: the universal kernel serves.
fn webgpu_defaults(gpu: &Gpu) -> Result<()> {
    let engine = gpu.device(Features::empty(), Limits::default())?;
    let recipe = BasedRecipe { name: "based/defaults", tokens: 70, state: true, ..BasedRecipe::default() };
    let case = recipe.build();
    let (plan, comparisons) = judge_based(&engine, &case, None, &case.reference())?;
    ensure!(plan.details().kernel == Kernel::TileUniversal, "{} was chosen", plan.details().kernel);
    comparisons.iter().try_for_each(|comparison| gpu.check(comparison))
}

/// A state takes 40 KiB and a head of values 50 KiB, so that two fit; segments too.
fn small_bindings_split_heads(gpu: &Gpu) -> Result<()> {
    let engine = gpu.limited(|limits| limits.max_storage_buffer_binding_size = 128 << 10)?;
    for causal in [true, false] {
        let recipe = BasedRecipe { name: "based/bindings", tokens: 200, heads: 5, causal, ..BasedRecipe::default() };
        let case = BasedRecipe { state: true, grad_state: true, batch: 2, ..recipe }.build();
        for variant in Variant::schedules(Kernel::TileUniversal) {
            let (plan, comparisons) = judge_based(&engine, &case, Some(variant), &case.reference())?;
            ensure!(plan.details().parts.len() > 4, "{} parts", plan.details().parts.len());
            comparisons.iter().try_for_each(|comparison| gpu.check(comparison))?;
        }
    }
    Ok(())
}

fn same_bits_twice(gpu: &Gpu, variant: Variant) -> Result<()> {
    let recipe =
        BasedRecipe { name: "based/bits", tokens: 300, state: true, grad_state: true, ..BasedRecipe::default() };
    let case = recipe.build();
    let run = || run_based(&gpu.engine, &case, Some(variant), true);
    let ((_, first), (_, second)) = (run()?, run()?);
    for (name, values) in &first {
        let same = values.iter().zip(&second[name]).all(|(a, b)| a.to_bits() == b.to_bits());
        ensure!(same && !values.is_empty(), "{name} has other bits");
    }
    Ok(())
}

/// More tokens than some drivers let a loop turn.
fn a_hundred_thousand_tokens(gpu: &Gpu, variant: Variant) -> Result<()> {
    let recipe = BasedRecipe { name: "based/long", tokens: 1 << 17, heads: 1, ..BasedRecipe::default() };
    let case = BasedRecipe { value_dim: 16, grad_out: false, ..recipe }.build();
    let (plan, comparisons) = judge_based(&gpu.engine, &case, Some(variant), &case.reference())?;
    comparisons.iter().try_for_each(|comparison| gpu.check(comparison))?;
    // Where the driver ends such loops, a walk comes in stretches.
    ensure!(plan.details().schedule == Schedule::Segments, "one head walks {} tokens", case.dims().tokens);
    let pinned = Variant { schedule: Some(Schedule::Sequential), ..variant };
    let (plan, comparisons) = judge_based(&gpu.engine, &case, Some(pinned), &case.reference())?;
    ensure!((plan.details().stretches() > 1) == gpu.engine.capabilities().loop_turns.is_some(), "{plan}");
    comparisons.iter().try_for_each(|comparison| gpu.check(comparison))
}

/// A driver that ends loops much earlier: states go from stretch to stretch in the workspace.
fn stretches_one_after_the_other(gpu: &Gpu) -> Result<()> {
    let engine = gpu.ending_loops()?;
    let small = BasedRecipe { heads: 2, feature_dim: 8, value_dim: 40, grad_out: false, ..BasedRecipe::default() };
    for recipe in [
        BasedRecipe { name: "based/two_stretches", tokens: 3000, batch: 2, ..small },
        BasedRecipe { name: "based/stretches_raw_state", tokens: 4500, state: true, normalize: false, ..small },
        BasedRecipe { name: "based/stretches_kv_lens", tokens: 4500, batch: 2, kv_lens: &[4500, 1000], ..small },
        BasedRecipe { name: "based/stretches_packed", sequences: &[10, 0, 5000, 2100], state: true, ..small },
    ] {
        let case = recipe.build();
        for kernel in EVERY {
            let variant = Variant { schedule: Some(Schedule::Sequential), ..kernel.into() };
            let extent = wattn_tests::based_tokens(&case)?;
            let Ok(plan) = engine.plan(&variant.force_based(based(&case)?), extent) else { continue };
            ensure!(plan.details().stretches() > 1, "{plan}");
            let (_, comparisons) = judge_based(&engine, &case, Some(variant), &case.reference())?;
            comparisons.iter().try_for_each(|comparison| gpu.check(comparison))?;
        }
    }
    stretches_without_final_states(&engine, &BasedRecipe { name: "based/stateless", tokens: 3000, ..small }.build())
}

/// What nobody asks for changes no bit of the rest.
fn stretches_without_final_states(engine: &Engine, case: &BasedCase) -> Result<()> {
    let dims = case.dims();
    let head_dim = HeadDim::with_value(size(dims.key_dim)?, size(dims.value_dim)?)?;
    let plain = Based::new(size(dims.heads)?, head_dim).schedule(Schedule::Sequential);
    let plan = engine.plan(&plain, wattn_tests::based_tokens(case)?)?;
    let [q, k, v] = [&case.q, &case.k, &case.v].map(|tensor| upload(engine, &tensor.values));
    let out = poisoned(engine, case.v.values.len());
    let workspace = poisoned(engine, usize::try_from(plan.workspace_bytes() / 4)?);
    let operands = BasedOperands {
        out: Some(View::bhsd(&out)),
        workspace: Some(&workspace),
        ..BasedOperands::new(View::bhsd(&q), View::bhsd(&k), View::bhsd(&v))
    };
    submit(engine, |encoder| Ok(plan.encode(encoder, &operands)?))?;
    let variant = Variant { schedule: Some(Schedule::Sequential), ..plan.details().kernel.into() };
    let (_, with_states) = run_based(engine, case, Some(variant), false)?;
    let same = download(engine, &out)?.iter().zip(&with_states["out"]).all(|(a, b)| a.to_bits() == b.to_bits());
    ensure!(same && plan.details().stretches() > 1, "other bits: {plan}");
    Ok(())
}

/// The walk of the gradients is the one that such drivers end first.
fn long_gradients(gpu: &Gpu) -> Result<()> {
    let recipe = BasedRecipe { name: "based/long_gradients", tokens: 10_000, heads: 1, ..BasedRecipe::default() };
    let case = BasedRecipe { feature_dim: 8, value_dim: 16, ..recipe }.build();
    let extent = wattn_tests::based_tokens(&case)?;
    let sequential = gpu.engine.plan(&based_backward(&case)?.schedule(Schedule::Sequential), extent);
    if gpu.engine.capabilities().loop_turns.is_some() {
        refused(sequential, &["schedule", "10000"])?;
    }
    let (_, comparisons) = judge_based(&gpu.engine, &case, None, &case.reference())?;
    comparisons.iter().try_for_each(|comparison| gpu.check(comparison))?;
    for tokens in [1 << 16, 1 << 17, 1 << 20] {
        let plan = gpu.engine.plan(&based_backward(&case)?, Tokens::new(1, tokens))?;
        ensure!(plan.details().segments >= 4, "{plan}");
    }
    Ok(())
}

fn plans_are_refused(gpu: &Gpu) -> Result<()> {
    let plan = |based: Based, extent| gpu.engine.plan(&based, extent);
    let new = |heads, feature, value| Ok::<_, anyhow::Error>(Based::new(heads, HeadDim::with_value(feature, value)?));
    let some = Tokens::new(1, 8);
    refused(plan(new(0, 16, 64)?, some), &["heads", "0"])?;
    refused(plan(new(1, 33, 64)?, some), &["feature_dim", "33", "32"])?;
    refused(plan(new(1, 16, 260)?.backward(), some), &["value_head_dim", "260", "256"])?;
    refused(plan(new(1, 16, 64)?.scale(f32::INFINITY), some), &["scale", "inf"])?;
    refused(plan(new(1, 15, 64)?.storage(Storage::F16), some), &["feature_dim", "15", "even"])?;
    refused(plan(new(1, 16, 64)?.step(), some), &["extent", "one token"])?;
    refused(plan(new(1, 16, 64)?.step(), Tokens::packed(1, 1)), &["extent", "one token"])?;
    refused(plan(new(1, 16, 64)?, Tokens::new(1, u32::MAX)), &["tokens", "536870912"])?;
    // Where it cannot run at all, it says that instead.
    let fixed = plan(new(1, 16, 64)?.kernel(Kernel::Broadcast), some).is_ok();
    let size = if fixed { "20" } else { "subgroups" };
    let step = if gpu.engine.capabilities().subgroups.is_some() { "step" } else { "subgroups" };
    refused(plan(new(1, 20, 64)?.kernel(Kernel::Broadcast), some), &["broadcast", size])?;
    refused(plan(new(1, 16, 64)?.step().kernel(Kernel::Broadcast), Tokens::new(1, 1)), &["broadcast", step])
}

fn operands_are_refused(gpu: &Gpu) -> Result<()> {
    let engine = &gpu.engine;
    let buffer = || upload(engine, &[0.0; 8 * 16]);
    let (q, k, v, out, state) = (buffer(), buffer(), buffer(), buffer(), upload(engine, &[0.0; 153 * 17]));
    let good = BasedOperands {
        out: Some(View::bhsd(&out)),
        ..BasedOperands::new(View::bhsd(&q), View::bhsd(&k), View::bhsd(&v))
    };
    let plain = Based::new(1, HeadDim::new(16)?);
    let call = |based: &Based, extent: Tokens, operands: BasedOperands<'_>| -> Result<Result<(), EncodeError>> {
        let plan = engine.plan(based, extent)?;
        let mut encoder = engine.device().create_command_encoder(&CommandEncoderDescriptor::default());
        Ok(plan.encode(&mut encoder, &operands))
    };
    let some = Tokens::new(1, 8);
    ensure!(call(&plain, some, good)?.is_ok(), "what is right was refused");
    refused(call(&plain, some, BasedOperands { out: None, ..good })?, &["out", "missing"])?;
    refused(
        call(&plain, some, BasedOperands { state: Some(View::bhsd(&state)), ..good })?,
        &["state", "does not have"],
    )?;
    refused(call(&plain, some, BasedOperands { dq: Some(View::bhsd(&out)), ..good })?, &["dq"])?;
    refused(call(&plain.clone().final_state(), some, good)?, &["state", "missing"])?;
    refused(call(&plain.clone().backward(), some, BasedOperands { out: None, ..good })?, &["grad_out", "missing"])?;
    refused(call(&plain, some, BasedOperands { q: View::bhsd(&q).at(4), ..good })?, &["q"])?;
    refused(call(&plain, some, BasedOperands { out: Some(View::bhsd(&q)), ..good })?, &["out", "q", "same buffer"])?;
    refused(call(&plain, Tokens::new(1, 9), good)?, &["576", "512"])?;
    refused(call(&plain, some, BasedOperands { bounds: &[0, 8], ..good })?, &["bounds"])?;
    refused(call(&plain, some, BasedOperands { key_lengths: &[8, 8], ..good })?, &["key_lengths", "2", "1"])?;
    let packed = Tokens::packed(2, 8);
    refused(call(&plain, packed, good)?, &["bounds", "3 rising", "8"])?;
    refused(
        call(&plain, packed, BasedOperands { bounds: &[0, 4, 8], key_lengths: &[4, 4], ..good })?,
        &["key_lengths"],
    )?;
    let full = plain.clone().causal(false);
    refused(call(&full, some, good)?, &["workspace", "missing"])?;
    let small = upload(engine, &[0.0; 2]);
    refused(call(&full, some, BasedOperands { workspace: Some(&small), ..good })?, &["workspace", "10404", "8"])?;
    let step = plain.step();
    let one = BasedOperands { state: Some(View::bhsd(&state)), ..good };
    ensure!(call(&step, Tokens::new(1, 1), one)?.is_ok(), "a step was refused");
    refused(call(&step, Tokens::new(1, 1), BasedOperands { key_lengths: &[1], ..one })?, &["key_lengths"])?;
    refused(call(&step, Tokens::new(1, 1), good)?, &["state", "missing"])
}
