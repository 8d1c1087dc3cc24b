//! A plan of any operator with buffers of its own, for timing kernels that have been checked already.

use anyhow::{Context, Result};
use wattn::wgpu::util::{BufferInitDescriptor, DeviceExt};
use wattn::wgpu::{self, Buffer, BufferUsages, CommandEncoder, ComputePass};
use wattn::{
    Attention, Based, BasedOperands, BasedPlan, BasedState, DecodePlan, Engine, Extent, Lengths, Lightning,
    LightningState, LinearOperands, LinearPlan, Operands, Pass, Plan, Tokens, View, Work,
};

use super::ceilings::{Around, Ceilings};
use super::clock::{Clock, Sample};
use super::stats::{Series, Summary};

/// A plan, and all that it reads and writes, with room for f32.
pub(crate) struct Planned {
    plan: Kind,
    q: Buffer,
    k: Buffer,
    v: Buffer,
    out: Buffer,
    /// Of a backward pass: dq, dk, dv.
    gradients: Option<[Buffer; 3]>,
    workspace: Option<Buffer>,
}

enum Kind {
    Softmax(Plan),
    Decode(Box<DecodePlan>, Work),
    /// A step has a state.
    Linear(Box<LinearPlan>, Option<LightningState>),
    /// So has a forward pass that leaves states.
    Based(BasedPlan, Option<BasedState>),
}

impl Planned {
    /// Softmax attention of few queries over full keys.
    pub(crate) fn decode(engine: &Engine, attention: &Attention, extent: Extent) -> Result<Self> {
        let plan = engine.plan(&attention.decode(), extent)?;
        let work = plan.work(Lengths::Full, &[])?;
        let workspace = Some(buffer(engine, plan.workspace_bytes().max(4))?);
        Ok(Self { workspace, ..Self::of_heads(engine, Kind::Decode(Box::new(plan), work), attention, extent)? })
    }

    /// Softmax attention, forward.
    pub(crate) fn softmax(engine: &Engine, attention: &Attention, extent: Extent) -> Result<Self> {
        Self::of_heads(engine, Kind::Softmax(engine.plan(attention, extent)?), attention, extent)
    }

    fn of_heads(engine: &Engine, plan: Kind, attention: &Attention, extent: Extent) -> Result<Self> {
        let (heads, dims) = (attention.heads(), attention.head_dim());
        let rows = |heads: u32, length: u32, dim: u32| floats(engine, [extent.batch * heads, length, dim]);
        let (query, key) = (heads.query(), heads.key_value());
        Ok(Self {
            plan,
            q: rows(query, extent.queries, dims.qk())?,
            k: rows(key, extent.keys, dims.qk())?,
            v: rows(key, extent.keys, dims.value())?,
            out: rows(query, extent.queries, dims.value())?,
            gradients: None,
            workspace: None,
        })
    }

    /// Lightning attention: forward, or a step on a state of its own.
    pub(crate) fn lightning(engine: &Engine, lightning: &Lightning, tokens: Tokens) -> Result<Self> {
        let plan = engine.plan(lightning, tokens)?;
        let (workspace, dims) = (plan.workspace_bytes(), lightning.dims());
        let step = matches!(lightning.pass(), Pass::Step { .. });
        let state = step.then(|| LightningState::new(engine, lightning, tokens.batch)).transpose()?;
        let sizes = [tokens.batch * lightning.heads(), tokens.tokens, dims.qk(), dims.value()];
        Self::linear(engine, Kind::Linear(Box::new(plan), state), sizes, workspace)
    }

    /// BASED's linear attention: forward, with the states after it where they are asked for, backward, or a step on a state of its own.
    pub(crate) fn based(engine: &Engine, based: &Based, tokens: Tokens) -> Result<Self> {
        let plan = engine.plan(based, tokens)?;
        let (workspace, dims) = (plan.workspace_bytes(), based.dims());
        let writes_state = based.has_final_state() && based.pass() != Pass::Backward;
        let state = writes_state.then(|| BasedState::new(engine, based, tokens.batch)).transpose()?;
        let sizes = [tokens.batch * based.heads(), tokens.tokens, dims.qk(), dims.value()];
        let planned = Self::linear(engine, Kind::Based(plan, state), sizes, workspace)?;
        if based.pass() != Pass::Backward {
            return Ok(planned);
        }
        let gradient = |dim: u32| floats(engine, [sizes[0], sizes[1], dim]);
        Ok(Self { gradients: Some([gradient(dims.qk())?, gradient(dims.qk())?, gradient(dims.value())?]), ..planned })
    }

    fn linear(engine: &Engine, plan: Kind, [heads, tokens, qk, value]: [u32; 4], workspace: u64) -> Result<Self> {
        let rows = |dim: u32| floats(engine, [heads, tokens, dim]);
        let workspace = (workspace > 0).then(|| buffer(engine, workspace)).transpose()?;
        let [q, k, v, out] = [rows(qk)?, rows(qk)?, rows(value)?, rows(value)?];
        Ok(Self { plan, q, k, v, out, gradients: None, workspace })
    }

    /// The plan of BASED's linear attention.
    pub(crate) fn based_plan(&self) -> Option<&BasedPlan> {
        match &self.plan {
            Kind::Based(plan, _) => Some(plan),
            Kind::Softmax(_) | Kind::Decode(..) | Kind::Linear(..) => None,
        }
    }

    /// Pieces that a call is submitted in.
    pub(crate) fn slices(&self) -> u32 {
        match &self.plan {
            Kind::Softmax(plan) => plan.slices(),
            Kind::Decode(..) => 1,
            Kind::Linear(plan, _) => plan.slices(),
            Kind::Based(plan, _) => plan.slices(),
        }
    }

    /// A few calls after a first one. Right before each, the ceilings' probes bring the device to its usual clocks and leave nothing of the
    /// operands in its caches.
    pub(crate) fn timed(&self, clock: &Clock, ceilings: &Ceilings, samples: usize) -> Result<Summary> {
        self.sample(clock, 1)?;
        let mut around = Around::default();
        let one = |_| {
            ceilings.sample(clock, &mut around)?;
            self.sample(clock, 1)
        };
        Series((0..samples).map(one).collect::<Result<_>>()?).summary().context("no samples")
    }

    /// Calls in one pass; a long one slice by slice, alone.
    pub(crate) fn sample(&self, clock: &Clock, count: u32) -> Result<Sample> {
        if self.slices() == 1 {
            let sample = clock.pass(|pass| (0..count).try_for_each(|_| self.encode(pass)))?;
            return Ok(sample.of(count));
        }
        clock.slices(self.slices(), |encoder, slice| self.encode_slice(encoder, slice))
    }

    fn encode(&self, pass: &mut ComputePass<'_>) -> Result<()> {
        match &self.plan {
            Kind::Softmax(plan) => plan.encode_in_pass(pass, &self.softmax_operands())?,
            Kind::Decode(plan, work) => plan.encode_in_pass(pass, work, &self.softmax_operands(), self.scratch()?)?,
            Kind::Linear(plan, state) => plan.encode_in_pass(pass, &self.linear_operands(state.as_ref()))?,
            Kind::Based(plan, state) => plan.encode_in_pass(pass, &self.based_operands(state.as_ref()))?,
        }
        Ok(())
    }

    fn encode_slice(&self, encoder: &mut CommandEncoder, slice: u32) -> Result<()> {
        match &self.plan {
            Kind::Softmax(plan) => plan.encode_slice(encoder, &self.softmax_operands(), slice)?,
            Kind::Decode(plan, work) => plan.encode(encoder, work, &self.softmax_operands(), self.scratch()?)?,
            Kind::Linear(plan, state) => plan.encode_slice(encoder, &self.linear_operands(state.as_ref()), slice)?,
            Kind::Based(plan, state) => plan.encode_slice(encoder, &self.based_operands(state.as_ref()), slice)?,
        }
        Ok(())
    }

    fn scratch(&self) -> Result<&Buffer> {
        self.workspace.as_ref().context("a plan with a workspace")
    }

    fn softmax_operands(&self) -> Operands<'_> {
        Operands::new(View::bhsd(&self.q), View::bhsd(&self.k), View::bhsd(&self.v), View::bhsd(&self.out))
    }

    fn linear_operands<'a>(&'a self, state: Option<&'a LightningState>) -> LinearOperands<'a> {
        LinearOperands {
            out: Some(View::bhsd(&self.out)),
            state: state.map(LightningState::view),
            workspace: self.workspace.as_ref(),
            ..LinearOperands::new(View::bhsd(&self.q), View::bhsd(&self.k), View::bhsd(&self.v))
        }
    }

    fn based_operands<'a>(&'a self, state: Option<&'a BasedState>) -> BasedOperands<'a> {
        let operands = BasedOperands {
            workspace: self.workspace.as_ref(),
            ..BasedOperands::new(View::bhsd(&self.q), View::bhsd(&self.k), View::bhsd(&self.v))
        };
        let out = Some(View::bhsd(&self.out));
        match &self.gradients {
            None => BasedOperands { out, state: state.map(BasedState::view), ..operands },
            Some([dq, dk, dv]) => {
                let [dq, dk, dv] = [dq, dk, dv].map(|buffer| Some(View::bhsd(buffer)));
                BasedOperands { grad_out: out, dq, dk, dv, ..operands }
            }
        }
    }
}

/// Operands, filled.
fn floats(engine: &Engine, shape: [u32; 3]) -> Result<Buffer> {
    // A view of nothing is a buffer too.
    let operand = buffer(engine, shape.into_iter().map(u64::from).product::<u64>().max(4) * 4)?;
    fill(engine, &operand);
    Ok(operand)
}

/// A buffer; memory that a device does not have is an error.
fn buffer(engine: &Engine, size: u64) -> Result<Buffer> {
    let device = engine.device();
    let memory = device.push_error_scope(wgpu::ErrorFilter::OutOfMemory);
    let validation = device.push_error_scope(wgpu::ErrorFilter::Validation);
    let usage = BufferUsages::STORAGE | BufferUsages::COPY_DST;
    let made =
        device.create_buffer(&wgpu::BufferDescriptor { label: Some("timed"), size, usage, mapped_at_creation: false });
    let errors = [pollster::block_on(validation.pop()), pollster::block_on(memory.pop())];
    match errors.into_iter().flatten().next() {
        Some(error) => Err(error).with_context(|| format!("a buffer of {size} bytes")),
        None => Ok(made),
    }
}

/// Writes numbers without a pattern: with zeros a GPU switches fewer transistors, and clocks higher than with anybody's data.
fn fill(engine: &Engine, operand: &Buffer) {
    // A prime of words, so that no rows are alike at a power of two apart.
    let words: Vec<u32> = (0..65_521_u32).map(ordinary).collect();
    let contents = bytemuck::cast_slice(&words);
    let usage = BufferUsages::COPY_SRC;
    let block = BufferInitDescriptor { label: Some("numbers"), contents, usage };
    let block = engine.device().create_buffer_init(&block);
    let mut encoder = engine.device().create_command_encoder(&wgpu::CommandEncoderDescriptor::default());
    for at in (0..operand.size()).step_by(contents.len()) {
        encoder.copy_buffer_to_buffer(&block, 0, operand, at, block.size().min(operand.size() - at));
    }
    engine.queue().submit([encoder.finish()]);
}

/// Bits that are a finite number as one f32, as two f16 and as two bf16: those of the f32 are from 0.5 to 1, of either sign.
fn ordinary(n: u32) -> u32 {
    let scattered = n.wrapping_mul(0x9e37_79b1);
    let scattered = (scattered ^ scattered >> 15).wrapping_mul(0x85eb_ca77);
    (scattered ^ scattered >> 13) & 0x807f_83ff | 0x3f00_3800
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_buffers_hold_are_numbers_in_every_storage() {
        for bits in (0..100_000).map(ordinary) {
            assert!((0.5..1.0).contains(&f32::from_bits(bits).abs()), "{bits:x}");
            for half in [bits & 0xffff, bits >> 16] {
                let exponents = [half >> 10 & 0x1f, half >> 7 & 0xff];
                assert!((14..=15).contains(&exponents[0]) && exponents[1] < 127, "{half:x}");
            }
        }
    }
}
