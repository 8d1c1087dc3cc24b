//! The gradients of softmax attention on host slices.

use wattn_scheduler::shaders::Storage;
use wattn_scheduler::{AttentionBackward, Extent};
use wgpu::{Buffer, BufferUsages, CommandEncoder};

use super::call::{Call, Loaded, Results, Written};
use super::memory::{buffer, check, packed, upload};
use super::softmax::{HostOperands, HostOutput, HostScores, Inputs, Sizes};
use super::{Blocking, HostLayout};
use crate::backward_operands::BackwardOperands;
use crate::backward_plan::BackwardPlan;
use crate::engine::Engine;
use crate::error::{EncodeError, RunError};
use crate::operands::Operands;
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

impl HostGradients {
    pub(super) fn of(mut results: Results) -> Self {
        let [dq, dk, dv] = ["dq", "dk", "dv"].map(|name| results.take(name));
        let [dbias, dsinks, dslopes] = ["dbias", "dsinks", "dslopes"].map(|name| results.take(name));
        Self { dq, dk, dv, dbias, dsinks, dslopes }
    }
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
        self.results(call(&self.engine, backward, extent, (operands, incoming))?).map(HostGradients::of)
    }
}

pub(super) fn call(
    engine: &Engine,
    backward: &AttentionBackward,
    extent: Extent,
    (operands, incoming): (&HostOperands<'_>, &HostIncoming<'_>),
) -> Result<Call, RunError> {
    Call::new(engine, |call| {
        let plan = engine.plan(backward, extent)?;
        let loaded = LoadedBackward::new(engine, backward, extent, operands, incoming, plan.workspace_bytes())?;
        if incoming.forward.is_none() {
            let forward = engine.plan(&backward.attention().lse(), extent)?;
            let views = loaded.forward();
            call.submit(forward.slices(), |encoder, slice| forward.encode_slice(encoder, &views, slice))?;
        }
        call.run(&loaded, &plan, plan.slices())
    })
}

/// The operands of a backward call, on the device.
pub(crate) struct LoadedBackward<'a> {
    inputs: Inputs<'a>,
    layout: HostLayout,
    out: Buffer,
    lse: Buffer,
    grad_out: Buffer,
    grad_lse: Option<Buffer>,
    /// Of q, k and v.
    rows: [Written; 3],
    /// Of the bias, for each batch entry and head where these are set.
    dbias: Option<(Written, bool, bool)>,
    dsinks: Option<Written>,
    dslopes: Option<Written>,
    workspace: Buffer,
}

impl<'a> LoadedBackward<'a> {
    /// With as much scratch memory; what the forward pass gives is room for it, where `incoming` has none.
    pub(crate) fn new(
        engine: &Engine,
        backward: &AttentionBackward,
        extent: Extent,
        host: &'a HostOperands<'a>,
        incoming: &HostIncoming<'_>,
        workspace_bytes: u64,
    ) -> Result<Self, RunError> {
        let attention = backward.attention();
        let sizes = Sizes::new(attention, extent);
        let (q, kv) = (attention.q_storage(), attention.kv_storage());
        check("grad_out", incoming.grad_out.len(), sizes.out)?;
        check("grad_lse", incoming.grad_lse.len(), if backward.has_lse_gradient() { sizes.lse } else { 0 })?;
        let inputs = Inputs::upload(engine, attention, extent, host)?;
        let written = |argument, elements, storage| Written::new(engine, argument, elements, storage);
        let (out, lse) = match incoming.forward {
            Some(given) => {
                check("out", given.out.len(), sizes.out)?;
                check("lse", given.lse.len(), sizes.lse)?;
                let lse = upload(engine, "lse", bytemuck::cast_slice(&given.lse))?;
                (upload(engine, "out", &packed(&given.out, q))?, lse)
            }
            None => (written("out", sizes.out, q)?.buffer, written("lse", sizes.lse, Storage::F32)?.buffer),
        };
        let grad_lse = backward.has_lse_gradient();
        let grad_lse = grad_lse.then(|| upload(engine, "grad_lse", bytemuck::cast_slice(incoming.grad_lse)));
        let optional =
            |wanted: bool, argument, elements| wanted.then(|| written(argument, elements, Storage::F32)).transpose();
        // Where the bias is missing, encoding says so.
        let bias = host.bias.filter(|_| backward.has_bias_gradient());
        let dbias = bias.map(|HostScores { per_batch, per_head, .. }| {
            let made = written("dbias", sizes.scores(per_batch, per_head), Storage::F32)?;
            Ok::<_, RunError>((made, per_batch, per_head))
        });
        Ok(Self {
            inputs,
            layout: host.layout,
            out,
            lse,
            grad_out: upload(engine, "grad_out", &packed(incoming.grad_out, q))?,
            grad_lse: grad_lse.transpose()?,
            rows: [written("dq", sizes.q, q)?, written("dk", sizes.k, kv)?, written("dv", sizes.v, kv)?],
            dbias: dbias.transpose()?,
            dsinks: optional(backward.has_sinks_gradient(), "dsinks", sizes.heads)?,
            dslopes: optional(backward.has_slopes_gradient(), "dslopes", sizes.heads)?,
            workspace: buffer(engine, "workspace", workspace_bytes, BufferUsages::STORAGE | BufferUsages::COPY_DST)?,
        })
    }

    /// The operands of the forward call.
    fn forward(&self) -> Operands<'_> {
        self.inputs.operands(&self.out, Some(&self.lse))
    }

    fn operands(&self) -> BackwardOperands<'_> {
        let forward = self.forward();
        let [dq, dk, dv] = self.rows.each_ref().map(|written| self.layout.view(&written.buffer));
        let dbias = self.dbias.as_ref();
        BackwardOperands {
            grad_lse: self.grad_lse.as_ref().map(View::bhsd),
            dbias: dbias.map(|(made, per_batch, per_head)| View::scores(&made.buffer, *per_batch, *per_head)),
            dsinks: self.dsinks.as_ref().map(Written::view),
            dslopes: self.dslopes.as_ref().map(Written::view),
            bias: forward.bias,
            mask: forward.mask,
            lengths: forward.lengths,
            causal_offsets: forward.causal_offsets,
            alibi_slopes: forward.alibi_slopes,
            sinks: forward.sinks,
            ..BackwardOperands::new(
                [forward.q, forward.k, forward.v],
                [forward.out, View::bhsd(&self.lse), self.layout.view(&self.grad_out)],
                [dq, dk, dv],
                &self.workspace,
            )
        }
    }
}

impl Loaded<BackwardPlan> for LoadedBackward<'_> {
    fn encode_slice(&self, plan: &BackwardPlan, encoder: &mut CommandEncoder, slice: u32) -> Result<(), EncodeError> {
        plan.encode_slice(encoder, &self.operands(), slice)
    }

    fn written(&self) -> Vec<&Written> {
        let dbias = self.dbias.as_ref().map(|dbias| &dbias.0);
        self.rows.iter().chain(dbias).chain(&self.dsinks).chain(&self.dslopes).collect()
    }

    #[cfg(feature = "tune")]
    fn scratch(&self) -> Option<&Buffer> {
        Some(&self.workspace)
    }
}
