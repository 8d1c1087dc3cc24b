//! Calls on host slices: cases of the catalogue, against the oracle, and refusals.

use std::sync::Arc;

use anyhow::{Context, Result, ensure};
use libtest_mimic::Trial;
use pollster::block_on;
use wattn::{
    Attention, Based, Decay, Extent, HeadDim, Heads, HostIncoming, HostLinear, HostOperands, Lightning, Tokens,
};
use wattn_cases::{
    Comparison, LinearCase, Recipe, Rows, SoftmaxCase, based_catalogue, catalogue, compare, decode_catalogue,
    linear_catalogue,
};
use wattn_tests::{
    attention, attention_backward, based, based_on_host, based_tokens, extent, host_based, host_linear, host_operands,
    host_result, lightning, linear_on_host, softmax_on_host, tokens,
};

use crate::gpu::Gpu;
use crate::linear_calls::refused;

pub(crate) fn trials(gpu: &Arc<Gpu>) -> Vec<Trial> {
    type Body = fn(&Gpu) -> Result<()>;
    let bodies: [(&str, Body); 9] = [
        ("gradients", gradients),
        ("decode", decode),
        ("lightning", lightning_calls),
        ("a_step", a_step),
        ("based", based_calls),
        ("without_tokens", without_tokens),
        ("a_gate_forgets", a_gate_forgets),
        ("slices_are_refused", slices_are_refused),
        ("threads_share_a_device", threads_share_a_device),
    ];
    bodies.into_iter().map(|(name, body)| gpu.trial(&format!("host/{name}"), body)).collect()
}

fn named(all: Vec<Recipe>, name: &str) -> Result<SoftmaxCase> {
    Ok(all.into_iter().find(|recipe| recipe.name == name).with_context(|| format!("no case {name}"))?.build())
}

fn linear(name: &str) -> Result<LinearCase> {
    let recipe = linear_catalogue().into_iter().find(|recipe| recipe.name == name);
    Ok(recipe.with_context(|| format!("no case {name}"))?.build())
}

fn judge(gpu: &Gpu, judged: Result<Vec<Comparison>>, outputs: usize) -> Result<()> {
    let judged = judged?;
    ensure!(judged.len() == outputs, "{judged:?}");
    judged.iter().try_for_each(|comparison| gpu.check(comparison))
}

/// Awaited calls are right, blocking ones give the same bits, and so do those that are given the forward pass.
fn gradients(gpu: &Gpu) -> Result<()> {
    let (engine, blocking) = (&gpu.engine, gpu.engine.blocking());
    for (name, outputs) in [
        ("softmax/backward_every_option", 8),
        ("softmax/backward_sinks_packed", 6),
        ("softmax/backward_bf16_gqa_bshd", 5),
    ] {
        let case = named(catalogue(), name)?;
        judge(gpu, block_on(softmax_on_host(engine, &case, None, false)), outputs)?;
        let reference = case.reference(Rows::All);
        let names: Vec<&str> = reference.gradients.keys().copied().collect();
        let (backward, extent, operands) =
            (attention_backward(&case, None, &names)?, extent(&case)?, host_operands(&case));
        let incoming = HostIncoming {
            grad_out: &case.grad_out.as_ref().context("a gradient comes in")?.values,
            grad_lse: case.grad_lse.as_ref().map(|tensor| &tensor.values[..]).unwrap_or_default(),
            forward: None,
        };
        let got = block_on(engine.on_host().attention_backward(&backward, extent, &operands, &incoming))?;
        let given = [&got.dbias, &got.dsinks, &got.dslopes].map(|values| !values.is_empty());
        ensure!(given == ["dbias", "dsinks", "dalibi_slopes"].map(|name| names.contains(&name)), "{given:?} given");

        let forward = blocking.run(&attention(&case)?, extent, &operands)?;
        for forward in [None, Some(&forward)] {
            let incoming = HostIncoming { forward, ..incoming };
            let again = blocking.attention_backward(&backward, extent, &operands, &incoming)?;
            ensure!(again == got, "{name}: other bits");
        }
    }
    Ok(())
}

fn decode(gpu: &Gpu) -> Result<()> {
    let engine = &gpu.engine;
    for name in ["decode/every_option", "decode/mixed_packed", "decode/kv_lens"] {
        let case = named(decode_catalogue(), name)?;
        judge(gpu, block_on(softmax_on_host(engine, &case, None, true)), 2)?;
        let (decode, extent, operands) = (attention(&case)?.decode(), extent(&case)?, host_operands(&case));
        let awaited = block_on(engine.on_host().decode(&decode, extent, &operands))?;
        ensure!(engine.blocking().decode(&decode, extent, &operands)? == awaited, "{name}: other bits");
    }
    Ok(())
}

fn lightning_calls(gpu: &Gpu) -> Result<()> {
    let engine = &gpu.engine;
    for name in ["lightning/state_b2_h3", "gated_linear/packed_state", "lightning/f16_state"] {
        let case = linear(name)?;
        judge(gpu, block_on(linear_on_host(engine, &case, None)), case.reference().len())?;
        let (forward, tokens, rows) = (lightning(&case)?, tokens(&case)?, host_linear(&case));
        let awaited = block_on(engine.on_host().lightning(&forward, tokens, &rows))?;
        ensure!(engine.blocking().lightning(&forward, tokens, &rows)? == awaited, "{name}: other bits");
    }
    Ok(())
}

/// In place and out of place, the state goes in and comes out.
fn a_step(gpu: &Gpu) -> Result<()> {
    let case = linear("gated_linear/one_token_state")?;
    let reference = case.reference();
    let lightning = lightning(&case)?;
    for step in [lightning.clone().step(), lightning.step_out_of_place()] {
        let got = gpu.engine.blocking().lightning(&step, tokens(&case)?, &host_linear(&case))?;
        for name in ["out", "state"] {
            gpu.check(&compare(name, host_result(&got, name), &reference[name], &case.rules(name)))?;
        }
    }
    Ok(())
}

fn based_calls(gpu: &Gpu) -> Result<()> {
    let engine = &gpu.engine;
    for name in ["based/state_b2_h3", "based/state_kv_lens", "based/state_packed"] {
        let recipe = based_catalogue().into_iter().find(|recipe| recipe.name == name);
        let case = recipe.with_context(|| format!("no case {name}"))?.build();
        judge(gpu, block_on(based_on_host(engine, &case, None)), case.reference().len())?;
        let (forward, tokens, rows) = (based(&case)?, based_tokens(&case)?, host_based(&case));
        let awaited = block_on(engine.on_host().based(&forward, tokens, &rows))?;
        ensure!(engine.blocking().based(&forward, tokens, &rows)? == awaited, "{name}: other bits");
    }
    Ok(())
}

/// States go through calls without tokens as they are, and so do their gradients.
fn without_tokens(gpu: &Gpu) -> Result<()> {
    let blocking = gpu.engine.blocking();
    let (tokens, state) = (Tokens::new(1, 0), [0.5, -1.0, 2.0, 0.25].repeat(4 * 3));
    let lightning = Lightning::new(3, HeadDim::new(4)?).initial_state().final_state();
    let forward = blocking.lightning(&lightning, tokens, &HostLinear { state0: &state, ..HostLinear::default() })?;
    ensure!(forward.out.is_empty() && forward.state == state, "{forward:?}");
    let gradients = HostLinear { state0: &state, grad_state: &state, ..HostLinear::default() };
    let backward = blocking.lightning(&lightning.backward(), tokens, &gradients)?;
    ensure!(backward.dq.is_empty() && backward.dv.is_empty() && backward.dstate == state, "{backward:?}");
    let based = Based::new(1, HeadDim::new(4)?);
    ensure!(blocking.based(&based, tokens, &HostLinear::default())?.out.is_empty(), "numbers of no tokens");
    Ok(())
}

/// A log decay of -inf leaves nothing of what came before, as any that is large does.
fn a_gate_forgets(gpu: &Gpu) -> Result<()> {
    let lightning = Lightning::new(1, HeadDim::new(4)?).decay(Decay::Gates).initial_state().final_state();
    let values = [0.5, -1.0, 2.0, 0.25].repeat(40);
    let outputs = |operator: &Lightning, gate: f32| {
        let mut gates = [-0.01; 40];
        gates[20] = gate;
        let (grad_out, grad_state) = (&values[..], &values[..16]);
        let rows = HostLinear {
            q: &values,
            k: &values,
            v: &values,
            state0: &values[..16],
            gate: &gates,
            ..HostLinear::default()
        };
        let rows = if *operator == lightning { rows } else { HostLinear { grad_out, grad_state, ..rows } };
        gpu.engine.blocking().lightning(operator, Tokens::new(1, 40), &rows)
    };
    for operator in [lightning.clone(), lightning.clone().backward().decay_gradient()] {
        let forgotten = outputs(&operator, f32::NEG_INFINITY)?;
        ensure!(forgotten == outputs(&operator, -1e9)?, "-inf is another gate than -1e9");
        ensure!(forgotten.dg.get(20).is_none_or(|&x| x == 0.0), "{:?}", forgotten.dg);
    }
    Ok(())
}

/// Whichever thread polls a device runs what others wait for.
fn threads_share_a_device(gpu: &Gpu) -> Result<()> {
    let attention = Attention::new(Heads::new(1)?, HeadDim::new(4)?);
    let values = [1.0; 3 * 4];
    let operands = HostOperands { q: &values, k: &values, v: &values, ..HostOperands::default() };
    let call = || gpu.engine.blocking().run(&attention, Extent::new(1, 3, 3), &operands);
    let alone = call()?;
    let calls = || {
        (0..200).try_for_each(|_| {
            ensure!(call()? == alone, "another result among threads");
            Ok(())
        })
    };
    std::thread::scope(|scope| {
        let threads = [(); 4].map(|()| scope.spawn(calls));
        threads.into_iter().try_for_each(|thread| thread.join().expect("no panic"))
    })
}

fn slices_are_refused(gpu: &Gpu) -> Result<()> {
    let blocking = gpu.engine.blocking();
    let attention = Attention::new(Heads::new(1)?, HeadDim::new(4)?);
    let (backward, extent) = (attention.backward(), Extent::new(1, 2, 2));
    let rows = HostOperands { q: &[0.0; 8], k: &[0.0; 8], v: &[0.0; 8], ..HostOperands::default() };
    let given = HostIncoming { grad_out: &[0.0; 8], ..HostIncoming::default() };
    let short = HostIncoming { grad_out: &[0.0; 7], ..given };
    refused(blocking.attention_backward(&backward, extent, &rows, &short), &["grad_out", "7", "8"])?;
    let unasked = HostIncoming { grad_lse: &[0.0; 2], ..given };
    refused(blocking.attention_backward(&backward, extent, &rows, &unasked), &["grad_lse", "2", "0"])?;
    let forward = wattn::HostOutput { out: vec![0.0; 8], lse: Vec::new() };
    let without_lse = HostIncoming { forward: Some(&forward), ..given };
    refused(blocking.attention_backward(&backward, extent, &rows, &without_lse), &["lse", "0", "2"])?;
    let biased = attention.bias().backward().bias_gradient();
    refused(blocking.attention_backward(&biased, extent, &rows, &given), &["bias", "missing"])?;
    refused(blocking.decode(&attention.decode(), Extent::new(1, 3, 2), &rows), &["q", "8", "12"])?;

    let lightning = Lightning::new(1, HeadDim::new(4)?);
    let rows = HostLinear { q: &[0.0; 8], k: &[0.0; 8], v: &[0.0; 8], ..HostLinear::default() };
    let two = Tokens::new(1, 2);
    let stateless = lightning.clone().initial_state();
    refused(blocking.lightning(&stateless, two, &rows), &["state0", "0", "16"])?;
    let stateful = HostLinear { state0: &[0.0; 16], ..rows };
    refused(blocking.lightning(&lightning, two, &stateful), &["state", "16", "0"])?;
    let gated = HostLinear { gate: &[0.0; 2], ..rows };
    refused(blocking.lightning(&lightning, two, &gated), &["gate", "2", "0"])?;
    refused(blocking.lightning(&lightning.clone().backward(), two, &rows), &["grad_out", "0", "8"])?;
    let counted = HostLinear { key_lengths: &[1], ..rows };
    refused(blocking.lightning(&lightning, two, &counted), &["key_lengths", "1", "0"])?;
    refused(blocking.based(&Based::new(1, HeadDim::new(4)?), two, &gated), &["gate", "2", "0"])
}
