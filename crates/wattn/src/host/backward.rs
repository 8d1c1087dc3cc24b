//! The gradients of softmax attention on host slices.

use wattn_scheduler::shaders::Storage;
use wattn_scheduler::{AttentionBackward, Extent};
use wgpu::BufferUsages;

use super::Blocking;
use super::call::{Call, Written};
use super::memory::{buffer, check, packed, upload};
use super::softmax::{HostOperands, HostOutput, Inputs, Sizes};
use crate::backward_operands::BackwardOperands;
use crate::engine::Engine;
use crate::error::RunError;
use crate::view::View;

/// What a backward call takes beside the operands of its forward call.
#[derive(Debug, Clone, Copy, Default)]
pub struct HostIncoming<'a> {
    /// The gradient of the output, in the operands' layout.
    pub grad_out: &'a [f32],
    /// With [`lse_gradient`](AttentionBackward::lse_gradient): that of the log-sum-exp, [batch, heads, queries] (packed:
    /// [heads, total]); else empty.
    pub grad_lse: &'a [f32],
    /// What the forward call gave with its log-sum-exp; without it, the forward pass runs again.
    pub forward: Option<&'a HostOutput>,
}

/// Gradients on the host, each of the extents and in the order of axes of what it is a gradient of.
#[derive(Debug, Clone, PartialEq)]
pub struct HostGradients {
    /// Of queries.
    pub dq: Vec<f32>,
    /// Of keys.
    pub dk: Vec<f32>,
    /// Of values.
    pub dv: Vec<f32>,
    /// Of the bias, where asked for; else empty. Summed over batch entries or heads that share an entry.
    pub dbias: Vec<f32>,
    /// Of the sinks, one a query head, where asked for; else empty.
    pub dsinks: Vec<f32>,
    /// Of the ALiBi slopes, one a query head, where asked for; else empty.
    pub dslopes: Vec<f32>,
}

impl Blocking {
    /// The gradients of softmax attention on host slices.
    ///
    /// ```
    /// # fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// use wattn::{Attention, Engine, Extent, HeadDim, Heads, HostIncoming, HostOperands};
    /// # if Engine::headless().is_err() { return Ok(()) }
    /// let engine = Engine::headless()?;
    /// let backward = Attention::new(Heads::new(1)?, HeadDim::new(2)?).causal().backward();
    /// let (q, k, v) = ([1.0, 0.0, 0.0, 1.0], [1.0, 0.0, 0.0, 2.0], [1.0, 2.0, 3.0, -1.0]);
    /// let operands = HostOperands { q: &q, k: &k, v: &v, ..HostOperands::default() };
    /// let incoming = HostIncoming { grad_out: &[1.0, 0.0, 1.0, 0.0], ..HostIncoming::default() };
    /// let gradients = engine.blocking().attention_backward(&backward, Extent::new(1, 2, 2), &operands, &incoming)?;
    /// // The weights of a row add up to one, and so do the gradients of the values that it sees.
    /// assert!((gradients.dv[0] + gradients.dv[2] - 2.0).abs() < 1e-5);
    /// assert_eq!(gradients.dq[..2], [0.0, 0.0]); // the first query sees one key, whatever it holds
    /// # Ok(()) }
    /// ```
    ///
    /// # Errors
    /// Slices of the wrong length, a refused problem, a device that fails or takes too long.
    pub fn attention_backward(
        &self,
        backward: &AttentionBackward,
        extent: Extent,
        operands: &HostOperands<'_>,
        incoming: &HostIncoming<'_>,
    ) -> Result<HostGradients, RunError> {
        let engine = &self.engine;
        let call = Call::new(engine, |call| submit(engine, call, backward, extent, operands, incoming))?;
        let mut results = self.results(call)?;
        let [dq, dk, dv] = ["dq", "dk", "dv"].map(|name| results.take(name));
        let [dbias, dsinks, dslopes] = ["dbias", "dsinks", "dslopes"].map(|name| results.take(name));
        Ok(HostGradients { dq, dk, dv, dbias, dsinks, dslopes })
    }
}

fn submit(
    engine: &Engine,
    call: &mut Call,
    backward: &AttentionBackward,
    extent: Extent,
    operands: &HostOperands<'_>,
    incoming: &HostIncoming<'_>,
) -> Result<(), RunError> {
    let plan = engine.plan(backward, extent)?;
    let attention = backward.attention().lse();
    let sizes = Sizes::new(&attention, extent);
    let (q, kv) = (attention.q_storage(), attention.kv_storage());
    check("grad_out", incoming.grad_out.len(), sizes.out)?;
    check("grad_lse", incoming.grad_lse.len(), if backward.has_lse_gradient() { sizes.lse } else { 0 })?;
    let inputs = Inputs::upload(engine, &attention, extent, operands)?;
    let (out, lse) = match incoming.forward {
        Some(given) => {
            check("out", given.out.len(), sizes.out)?;
            check("lse", given.lse.len(), sizes.lse)?;
            let lse = upload(engine, "lse", bytemuck::cast_slice(&given.lse))?;
            (upload(engine, "out", &packed(&given.out, q))?, lse)
        }
        None => {
            let forward = engine.plan(&attention, extent)?;
            let out = Written::new(engine, "out", sizes.out, q)?.buffer;
            let lse = Written::new(engine, "lse", sizes.lse, Storage::F32)?.buffer;
            let views = inputs.operands(&out, Some(&lse));
            call.submit(forward.slices(), |encoder, slice| forward.encode_slice(encoder, &views, slice))?;
            (out, lse)
        }
    };

    let grad_out = upload(engine, "grad_out", &packed(incoming.grad_out, q))?;
    let grad_lse = upload(engine, "grad_lse", bytemuck::cast_slice(incoming.grad_lse))?;
    let workspace = buffer(engine, "workspace", plan.workspace_bytes(), BufferUsages::STORAGE)?;
    let written = |argument, elements, storage| Written::new(engine, argument, elements, storage);
    let optional =
        |wanted: bool, argument, elements| wanted.then(|| written(argument, elements, Storage::F32)).transpose();
    let [dq, dk, dv] = [written("dq", sizes.q, q)?, written("dk", sizes.k, kv)?, written("dv", sizes.v, kv)?];
    // Where the bias is missing, encoding says so.
    let bias = operands.bias.filter(|_| backward.has_bias_gradient());
    let entries = bias.map_or(0, |bias| sizes.scores(bias.per_batch, bias.per_head));
    let dbias = optional(bias.is_some(), "dbias", entries)?;
    let dsinks = optional(backward.has_sinks_gradient(), "dsinks", sizes.heads)?;
    let dslopes = optional(backward.has_slopes_gradient(), "dslopes", sizes.heads)?;

    let forward = inputs.operands(&out, Some(&lse));
    let [rows_q, rows_k, rows_v] = [&dq, &dk, &dv].map(|written| operands.layout.view(&written.buffer));
    let views = BackwardOperands {
        grad_lse: backward.has_lse_gradient().then(|| View::bhsd(&grad_lse)),
        dbias: bias.zip(dbias.as_ref()).map(|(b, made)| View::scores(&made.buffer, b.per_batch, b.per_head)),
        dsinks: dsinks.as_ref().map(Written::view),
        dslopes: dslopes.as_ref().map(Written::view),
        bias: forward.bias,
        mask: forward.mask,
        lengths: operands.lengths,
        causal_offsets: operands.causal_offsets,
        alibi_slopes: operands.alibi_slopes,
        sinks: operands.sinks,
        ..BackwardOperands::new(
            [forward.q, forward.k, forward.v],
            [forward.out, View::bhsd(&lse), operands.layout.view(&grad_out)],
            [rows_q, rows_k, rows_v],
            &workspace,
        )
    };
    call.submit(plan.slices(), |encoder, slice| plan.encode_slice(encoder, &views, slice))?;
    let all = [Some(dq), Some(dk), Some(dv), dbias, dsinks, dslopes];
    all.iter().flatten().try_for_each(|written| call.read(written))
}
