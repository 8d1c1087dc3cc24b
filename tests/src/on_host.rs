//! Runs cases by calls on host slices that are awaited, as an application in a browser would.

use std::borrow::Cow;

use anyhow::{Context, Result};
use wattn::{Engine, HostIncoming, HostLayout, HostLinear, HostLinearOutput, HostOperands, HostScores, Lengths};
use wattn_cases::{BasedCase, Comparison, Decay, Layout, LinearCase, Rows, SoftmaxCase, Tensor, compare};

use crate::backward::attention_backward;
use crate::based::{based, based_backward, based_tokens, unpack_states};
use crate::linear::{lightning, lightning_backward, tokens};
use crate::problem::{attention, extent};
use crate::variant::Variant;

fn layout(layout: Layout) -> HostLayout {
    match layout {
        Layout::Bhsd => HostLayout::Bhsd,
        Layout::Bshd | Layout::Packed => HostLayout::Bshd,
    }
}

fn values(tensor: &Option<Tensor>) -> &[f32] {
    tensor.as_ref().map(|tensor| &tensor.values[..]).unwrap_or_default()
}

/// What an operator asks for and a case has not.
fn or_zeros(tensor: &Option<Tensor>, elements: usize) -> Cow<'_, [f32]> {
    tensor.as_ref().map_or_else(|| vec![0.0; elements].into(), |tensor| (&tensor.values[..]).into())
}

/// A case's operands.
#[must_use]
pub fn host_operands(case: &SoftmaxCase) -> HostOperands<'_> {
    let spread = |shape: &[usize]| (shape[0] == case.dims().batch, shape[1] == case.dims().heads);
    HostOperands {
        layout: layout(case.layout),
        q: &case.q.values,
        k: &case.k.values,
        v: &case.v.values,
        bias: case.bias.as_ref().map(|bias| {
            let (per_batch, per_head) = spread(&bias.shape);
            HostScores { values: &bias.values, per_batch, per_head }
        }),
        mask: case.mask.as_ref().map(|mask| {
            let (per_batch, per_head) = spread(&mask.shape);
            HostScores { values: &mask.values, per_batch, per_head }
        }),
        lengths: match (&case.kv_lens, &case.cu_seqlens) {
            (Some(keys), _) => Lengths::Keys(keys),
            (None, Some((queries, keys))) => Lengths::Packed { queries, keys },
            (None, None) => Lengths::Full,
        },
        causal_offsets: case.causal_offsets.as_deref().unwrap_or_default(),
        alibi_slopes: case.alibi_slopes.as_deref().unwrap_or_default(),
        sinks: case.sinks.as_deref().unwrap_or_default(),
    }
}

/// A case's operands, of the forward pass.
#[must_use]
pub fn host_linear(case: &LinearCase) -> HostLinear<'_> {
    HostLinear {
        layout: layout(case.layout),
        q: &case.q.values,
        k: &case.k.values,
        v: &case.v.values,
        state0: values(&case.state),
        gate: match &case.decay {
            Decay::Gates(gates) => &gates.values,
            Decay::Slopes(_) => &[],
        },
        bounds: case.cu_seqlens.as_deref().unwrap_or_default(),
        ..HostLinear::default()
    }
}

/// A case's operands, of the forward pass.
#[must_use]
pub fn host_based(case: &BasedCase) -> HostLinear<'_> {
    HostLinear {
        layout: layout(case.layout),
        q: &case.q.values,
        k: &case.k.values,
        v: &case.v.values,
        state0: values(&case.state),
        bounds: case.cu_seqlens.as_deref().unwrap_or_default(),
        key_lengths: case.kv_lens.as_deref().unwrap_or_default(),
        ..HostLinear::default()
    }
}

/// A result by the name that cases have for it.
#[must_use]
pub fn host_result<'a>(got: &'a HostLinearOutput, name: &str) -> &'a [f32] {
    match name {
        "out" => &got.out,
        "state" => &got.state,
        "dq" => &got.dq,
        "dk" => &got.dk,
        "dv" => &got.dv,
        "dg" => &got.dg,
        "dslopes" => &got.dslopes,
        _ => &got.dstate,
    }
}

/// Runs a case forward, and backward where it has gradients, and judges all outputs.
///
/// # Errors
/// A refused problem, a device that fails.
pub async fn softmax_on_host(
    engine: &Engine,
    case: &SoftmaxCase,
    variant: Option<Variant>,
    few_queries: bool,
) -> Result<Vec<Comparison>> {
    let (extent, operands, host) = (extent(case)?, host_operands(case), engine.on_host());
    let reference = case.reference(Rows::All);
    let attention = attention(case)?.lse();
    let attention = variant.map_or(attention, |variant| variant.force(attention));
    let got = if few_queries {
        host.decode(&attention.decode(), extent, &operands).await?
    } else {
        host.run(&attention, extent, &operands).await?
    };
    let mut judged = vec![
        compare("out", &got.out, &reference.out, &case.rules("out", &reference)),
        compare("lse", &got.lse, &reference.lse, &case.rules("lse", &reference)),
    ];
    if !few_queries && case.has_backward() {
        let names: Vec<&str> = reference.gradients.keys().copied().collect();
        let backward = attention_backward(case, variant, &names)?;
        let grad_out = &case.grad_out.as_ref().context("a gradient comes in")?.values;
        let incoming = HostIncoming { grad_out, grad_lse: values(&case.grad_lse), forward: None };
        let got = host.attention_backward(&backward, extent, &operands, &incoming).await?;
        for (&name, want) in &reference.gradients {
            let values = match name {
                "dq" => &got.dq,
                "dk" => &got.dk,
                "dv" => &got.dv,
                "dbias" => &got.dbias,
                "dsinks" => &got.dsinks,
                _ => &got.dslopes,
            };
            judged.push(compare(name, values, want, &case.rules(name, &reference)));
        }
    }
    Ok(judged)
}

/// Runs a case forward, and backward where it has gradients, and judges all outputs.
///
/// # Errors
/// A refused problem, a device that fails.
pub async fn linear_on_host(engine: &Engine, case: &LinearCase, variant: Option<Variant>) -> Result<Vec<Comparison>> {
    let (reference, tokens, host) = (case.reference(), tokens(case)?, engine.on_host());
    let forced = |lightning| match variant {
        Some(variant) => variant.force_linear(lightning),
        None => lightning,
    };
    let forward = host.lightning(&forced(lightning(case)?), tokens, &host_linear(case)).await?;
    let mut backward = None;
    if case.has_backward() {
        let grad_out = or_zeros(&case.grad_out, forward.out.len());
        let [state0, grad_state] = [&case.state, &case.grad_state].map(|tensor| or_zeros(tensor, forward.state.len()));
        let rows = HostLinear { state0: &state0, grad_out: &grad_out, grad_state: &grad_state, ..host_linear(case) };
        backward = Some(host.lightning(&forced(lightning_backward(case)?), tokens, &rows).await?);
    }
    let judge = |(&name, want): (&&'static str, &Vec<_>)| {
        let got = backward.as_ref().filter(|_| name.starts_with('d')).unwrap_or(&forward);
        compare(name, host_result(got, name), want, &case.rules(name))
    };
    Ok(reference.iter().map(judge).collect())
}

/// Runs a case forward, and backward where it has gradients, and judges all outputs.
///
/// # Errors
/// A refused problem, a device that fails.
pub async fn based_on_host(engine: &Engine, case: &BasedCase, variant: Option<Variant>) -> Result<Vec<Comparison>> {
    let (reference, tokens, host) = (case.reference(), based_tokens(case)?, engine.on_host());
    let forced = |based| match variant {
        Some(variant) => variant.force_based(based),
        None => based,
    };
    let forward = host.based(&forced(based(case)?), tokens, &host_based(case)).await?;
    let mut backward = None;
    if case.has_backward() {
        let grad_out = or_zeros(&case.grad_out, forward.out.len());
        let rows = HostLinear { grad_out: &grad_out, grad_state: values(&case.grad_state), ..host_based(case) };
        backward = Some(host.based(&forced(based_backward(case)?), tokens, &rows).await?);
    }
    let moments = unpack_states(case, &forward.state);
    let judge = |(&name, want): (&&'static str, &Vec<_>)| {
        let got = match (name, &backward) {
            ("out", _) => &forward.out[..],
            (name, Some(backward)) if name.starts_with('d') => host_result(backward, name),
            (name, _) => &moments[name],
        };
        compare(name, got, want, &case.rules(name))
    };
    Ok(reference.iter().map(judge).collect())
}
