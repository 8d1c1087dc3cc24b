//! Softmax attention on host slices, forward.

use wattn_scheduler::shaders::Storage;
use wattn_scheduler::{Attention, Extent, Lengths};
use wgpu::{Buffer, CommandEncoder};

use super::call::{Call, Loaded, Results, Written};
use super::memory::{check, mask_words, packed, upload};
use super::{Blocking, HostLayout};
use crate::engine::Engine;
use crate::error::{EncodeError, RunError};
use crate::operands::Operands;
use crate::plan::Plan;
use crate::view::View;

/// A bias or a mask on the host: [batch or 1, heads or 1, queries, keys].
#[derive(Debug, Clone, Copy)]
pub struct HostScores<'a, T> {
    /// The entries, contiguous.
    pub values: &'a [T],
    /// Whether each batch entry has its own.
    pub per_batch: bool,
    /// Whether each query head has its own.
    pub per_head: bool,
}

/// Operands on the host. Numbers are rounded to the storage that the operator asks for.
#[derive(Debug, Clone, Copy, Default)]
pub struct HostOperands<'a> {
    /// The order of axes.
    pub layout: HostLayout,
    /// Queries.
    pub q: &'a [f32],
    /// Keys.
    pub k: &'a [f32],
    /// Values.
    pub v: &'a [f32],
    /// Additive bias; -inf masks.
    pub bias: Option<HostScores<'a, f32>>,
    /// Mask; true may attend.
    pub mask: Option<HostScores<'a, bool>>,
    /// How long the sequences are.
    pub lengths: Lengths<'a>,
    /// Offsets of a top-left causal mask.
    pub causal_offsets: &'a [i32],
    /// ALiBi slopes, one a query head.
    pub alibi_slopes: &'a [f32],
    /// Sinks, one a query head.
    pub sinks: &'a [f32],
}

/// The result of a call on the host.
#[derive(Debug, Clone, PartialEq)]
pub struct HostOutput {
    /// The output, in the operands' layout.
    pub out: Vec<f32>,
    /// Log-sum-exp [batch, heads, queries] (packed: [heads, total]), where asked for; else empty.
    pub lse: Vec<f32>,
}

impl HostOutput {
    pub(super) fn of(mut results: Results) -> Self {
        Self { out: results.take("out"), lse: results.take("lse") }
    }
}

impl Blocking {
    /// Attention without per-call options on contiguous [batch, heads, sequence, dim] slices.
    ///
    /// # Errors
    /// As [`run`](Self::run).
    pub fn attention(
        &self,
        attention: &Attention,
        extent: Extent,
        q: &[f32],
        k: &[f32],
        v: &[f32],
    ) -> Result<Vec<f32>, RunError> {
        Ok(self.run(attention, extent, &HostOperands { q, k, v, ..HostOperands::default() })?.out)
    }

    /// Attention on host slices.
    ///
    /// # Errors
    /// Slices of the wrong length, a refused problem, a device that fails or takes too long.
    pub fn run(
        &self,
        attention: &Attention,
        extent: Extent,
        operands: &HostOperands<'_>,
    ) -> Result<HostOutput, RunError> {
        self.results(call(&self.engine, attention, extent, operands)?).map(HostOutput::of)
    }
}

pub(super) fn call(
    engine: &Engine,
    attention: &Attention,
    extent: Extent,
    operands: &HostOperands<'_>,
) -> Result<Call, RunError> {
    Call::new(engine, |call| {
        let plan = engine.plan(attention, extent)?;
        call.run(&LoadedSoftmax::new(engine, attention, extent, operands)?, &plan, plan.slices())
    })
}

/// The operands of a forward call, on the device.
pub(crate) struct LoadedSoftmax<'a> {
    inputs: Inputs<'a>,
    outputs: Outputs,
}

impl<'a> LoadedSoftmax<'a> {
    pub(crate) fn new(
        engine: &Engine,
        attention: &Attention,
        extent: Extent,
        host: &'a HostOperands<'a>,
    ) -> Result<Self, RunError> {
        let inputs = Inputs::upload(engine, attention, extent, host)?;
        Ok(Self { inputs, outputs: Outputs::new(engine, attention, extent)? })
    }
}

impl Loaded<Plan> for LoadedSoftmax<'_> {
    fn encode_slice(&self, plan: &Plan, encoder: &mut CommandEncoder, slice: u32) -> Result<(), EncodeError> {
        plan.encode_slice(encoder, &self.outputs.operands(&self.inputs), slice)
    }

    fn written(&self) -> Vec<&Written> {
        self.outputs.written()
    }
}

/// What a call reads, on the device.
pub(super) struct Inputs<'a> {
    host: &'a HostOperands<'a>,
    q: Buffer,
    k: Buffer,
    v: Buffer,
    bias: Option<Buffer>,
    mask: Option<Buffer>,
}

impl<'a> Inputs<'a> {
    pub(super) fn upload(
        engine: &Engine,
        attention: &Attention,
        extent: Extent,
        host: &'a HostOperands<'a>,
    ) -> Result<Self, RunError> {
        let sizes = Sizes::new(attention, extent);
        let (q, kv) = (attention.q_storage(), attention.kv_storage());
        for (argument, given, needed) in
            [("q", host.q.len(), sizes.q), ("k", host.k.len(), sizes.k), ("v", host.v.len(), sizes.v)]
        {
            check(argument, given, needed)?;
        }
        let bias = match &host.bias {
            Some(bias) => {
                check("bias", bias.values.len(), sizes.scores(bias.per_batch, bias.per_head))?;
                Some(upload(engine, "bias", bytemuck::cast_slice(bias.values))?)
            }
            None => None,
        };
        let mask = match &host.mask {
            Some(mask) => {
                check("mask", mask.values.len(), sizes.scores(mask.per_batch, mask.per_head))?;
                let words = mask_words(mask.values, extent.keys as usize);
                Some(upload(engine, "mask", bytemuck::cast_slice(&words))?)
            }
            None => None,
        };
        Ok(Self {
            host,
            q: upload(engine, "q", &packed(host.q, q))?,
            k: upload(engine, "k", &packed(host.k, kv))?,
            v: upload(engine, "v", &packed(host.v, kv))?,
            bias,
            mask,
        })
    }

    /// The operands of a forward call.
    pub(super) fn operands<'b>(&'b self, out: &'b Buffer, lse: Option<&'b Buffer>) -> Operands<'b> {
        let view = |buffer| self.host.layout.view(buffer);
        let (bias, mask) = (self.host.bias.zip(self.bias.as_ref()), self.host.mask.zip(self.mask.as_ref()));
        Operands {
            lse: lse.map(View::bhsd),
            bias: bias.map(|(host, buffer)| View::scores(buffer, host.per_batch, host.per_head)),
            mask: mask.map(|(host, buffer)| View::scores(buffer, host.per_batch, host.per_head)),
            lengths: self.host.lengths,
            causal_offsets: self.host.causal_offsets,
            alibi_slopes: self.host.alibi_slopes,
            sinks: self.host.sinks,
            ..Operands::new(view(&self.q), view(&self.k), view(&self.v), view(out))
        }
    }
}

/// What a forward call writes, on the device.
pub(super) struct Outputs {
    out: Written,
    lse: Option<Written>,
}

impl Outputs {
    pub(super) fn new(engine: &Engine, attention: &Attention, extent: Extent) -> Result<Self, RunError> {
        let sizes = Sizes::new(attention, extent);
        let lse = attention.options().lse.then(|| Written::new(engine, "lse", sizes.lse, Storage::F32));
        Ok(Self { out: Written::new(engine, "out", sizes.out, attention.q_storage())?, lse: lse.transpose()? })
    }

    pub(super) fn operands<'b>(&'b self, inputs: &'b Inputs<'_>) -> Operands<'b> {
        inputs.operands(&self.out.buffer, self.lse.as_ref().map(|lse| &lse.buffer))
    }

    pub(super) fn written(&self) -> Vec<&Written> {
        self.lse.iter().chain([&self.out]).collect()
    }
}

/// Numbers in each operand.
pub(super) struct Sizes {
    pub(super) q: usize,
    pub(super) k: usize,
    pub(super) v: usize,
    pub(super) out: usize,
    pub(super) lse: usize,
    batch: usize,
    pub(super) heads: usize,
    queries: usize,
    keys: usize,
}

/// No slice is as long as a product that saturates: with 32 bits, as in browsers, some do.
fn product<const N: usize>(factors: [usize; N]) -> usize {
    factors.into_iter().fold(1, usize::saturating_mul)
}

impl Sizes {
    pub(super) fn new(attention: &Attention, extent: Extent) -> Self {
        let batch = if extent.packed { 1 } else { extent.batch as usize };
        let (heads, kv_heads) = (attention.heads().query() as usize, attention.heads().key_value() as usize);
        let (qk, value) = (attention.head_dim().qk() as usize, attention.head_dim().value() as usize);
        let (queries, keys) = (extent.queries as usize, extent.keys as usize);
        Self {
            q: product([batch, heads, queries, qk]),
            k: product([batch, kv_heads, keys, qk]),
            v: product([batch, kv_heads, keys, value]),
            out: product([batch, heads, queries, value]),
            lse: product([batch, heads, queries]),
            batch,
            heads,
            queries,
            keys,
        }
    }

    pub(super) fn scores(&self, per_batch: bool, per_head: bool) -> usize {
        let [batch, heads] = [if per_batch { self.batch } else { 1 }, if per_head { self.heads } else { 1 }];
        product([batch, heads, self.queries, self.keys])
    }
}
