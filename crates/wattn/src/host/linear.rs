//! Linear attention on host slices: Lightning and BASED, forward, backward and one step.

use std::collections::BTreeMap;

use wattn_scheduler::shaders::Storage;
use wattn_scheduler::{Based, HeadDim, Lightning, Pass, Tensor, Tokens};
use wgpu::{Buffer, BufferUsages, CommandEncoder};

use super::call::{Call, Loaded, Results, Written};
use super::memory::{buffer, check, packed, upload};
use super::{Blocking, HostLayout};
use crate::based_operands::{self, BasedOperands};
use crate::based_plan::BasedPlan;
use crate::engine::Engine;
use crate::error::{EncodeError, RunError};
use crate::linear_operands::{self, LinearOperands, is_state};
use crate::linear_plan::LinearPlan;
use crate::view::View;

/// Operands of linear attention on the host; what the call has no use for stays empty. Numbers are rounded to the storage that the
/// operator asks for.
#[derive(Debug, Clone, Copy, Default)]
pub struct HostLinear<'a> {
    /// The order of the axes of rows: of q, k and v, the output, and their gradients.
    pub layout: HostLayout,
    /// Queries, rows of the key dim or of the feature dim.
    pub q: &'a [f32],
    /// Keys, likewise.
    pub k: &'a [f32],
    /// Values, rows of the value dim.
    pub v: &'a [f32],
    /// States to start from, and before a step: [sequences, heads, key dim, value dim], of BASED
    /// [sequences, heads, [state rows](Based::state_rows), value dim + 1].
    pub state0: &'a [f32],
    /// Log decays, [batch, heads, tokens] (packed: [heads, total]), at most 0.
    pub gate: &'a [f32],
    /// Backward: the gradient of the output.
    pub grad_out: &'a [f32],
    /// Backward: the gradient of the states after the last token.
    pub grad_state: &'a [f32],
    /// Where packed sequences begin and end, from 0 to the total: `sequences + 1` numbers.
    pub bounds: &'a [u32],
    /// Of BASED: how many keys each batch entry has, where these are fewer than its tokens.
    pub key_lengths: &'a [u32],
}

/// The result of a call of linear attention on the host; what the call does not give is empty.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct HostLinearOutput {
    /// The output, rows of the value dim.
    pub out: Vec<f32>,
    /// The states after the last token, where asked for.
    pub state: Vec<f32>,
    /// The gradient of queries.
    pub dq: Vec<f32>,
    /// That of keys.
    pub dk: Vec<f32>,
    /// That of values.
    pub dv: Vec<f32>,
    /// That of the states to start from, where there are any.
    pub dstate: Vec<f32>,
    /// That of the log decays, where asked for.
    pub dg: Vec<f32>,
    /// That of the slopes, one a head, where asked for.
    pub dslopes: Vec<f32>,
}

impl HostLinearOutput {
    pub(super) fn of(mut results: Results) -> Self {
        let [out, state, dq, dk] = ["out", "state", "dq", "dk"].map(|name| results.take(name));
        let [dv, dstate, dg, dslopes] = ["dv", "dstate", "dg", "dslopes"].map(|name| results.take(name));
        Self { out, state, dq, dk, dv, dstate, dg, dslopes }
    }
}

impl Blocking {
    /// Linear attention with decay on host slices: what the operator is set to, the forward pass, its gradients or one step.
    ///
    /// ```
    /// # fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// use wattn::{Decay, Engine, HeadDim, HostLinear, Lightning, Tokens};
    /// # if Engine::headless().is_err() { return Ok(()) }
    /// let engine = Engine::headless()?;
    /// let lightning = Lightning::new(1, HeadDim::new(1)?).decay(Decay::Slopes(vec![2_f32.ln()])).final_state();
    /// let rows = HostLinear { q: &[1.0; 3], k: &[1.0; 3], v: &[8.0, 4.0, 2.0], ..HostLinear::default() };
    /// let got = engine.blocking().lightning(&lightning, Tokens::new(1, 3), &rows)?;
    /// // Half is forgotten each time: 8, 4 + 4, 4 + 2.
    /// assert!((got.out[1] - 8.0).abs() < 1e-5 && (got.state[0] - 6.0).abs() < 1e-5);
    ///
    /// let grad_out = [0.0, 0.0, 1.0];
    /// let backward = lightning.backward();
    /// let rows = HostLinear { grad_out: &grad_out, grad_state: &[0.0], ..rows };
    /// let gradients = engine.blocking().lightning(&backward, Tokens::new(1, 3), &rows)?;
    /// assert!((gradients.dv[0] - 0.25).abs() < 1e-5 && (gradients.dq[2] - 6.0).abs() < 1e-5);
    /// # Ok(()) }
    /// ```
    ///
    /// # Errors
    /// Slices of the wrong length, a refused problem, a device that fails or takes too long.
    pub fn lightning(
        &self,
        lightning: &Lightning,
        extent: Tokens,
        operands: &HostLinear<'_>,
    ) -> Result<HostLinearOutput, RunError> {
        self.results(lightning_call(&self.engine, lightning, extent, operands)?).map(HostLinearOutput::of)
    }

    /// BASED's linear attention on host slices: what the operator is set to, the forward pass, its gradients or one step.
    ///
    /// ```
    /// # fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// use wattn::{Based, Engine, HeadDim, HostLinear, Tokens};
    /// # if Engine::headless().is_err() { return Ok(()) }
    /// let engine = Engine::headless()?;
    /// let based = Based::new(1, HeadDim::new(1)?);
    /// let rows = HostLinear { q: &[2.0, 2.0], k: &[0.0, 1.0], v: &[6.0, 0.0], ..HostLinear::default() };
    /// let got = engine.blocking().based(&based, Tokens::new(1, 2), &rows)?;
    /// // Weights of 1 and of 1 + 2 + 2^2 / 2.
    /// assert!((got.out[0] - 6.0).abs() < 1e-4 && (got.out[1] - 1.0).abs() < 1e-4);
    ///
    /// let rows = HostLinear { grad_out: &[0.0, 1.0], ..rows };
    /// let gradients = engine.blocking().based(&based.backward(), Tokens::new(1, 2), &rows)?;
    /// assert!((gradients.dv[0] - 1.0 / 6.0).abs() < 1e-4 && (gradients.dv[1] - 5.0 / 6.0).abs() < 1e-4);
    /// # Ok(()) }
    /// ```
    ///
    /// # Errors
    /// As [`lightning`](Self::lightning).
    pub fn based(
        &self,
        based: &Based,
        extent: Tokens,
        operands: &HostLinear<'_>,
    ) -> Result<HostLinearOutput, RunError> {
        self.results(based_call(&self.engine, based, extent, operands)?).map(HostLinearOutput::of)
    }
}

pub(super) fn lightning_call(
    engine: &Engine,
    lightning: &Lightning,
    extent: Tokens,
    operands: &HostLinear<'_>,
) -> Result<Call, RunError> {
    Call::new(engine, |call| {
        let plan = engine.plan(lightning, extent)?;
        let loaded = LoadedLinear::new(engine, &plan, operands, plan.workspace_bytes())?;
        call.run(&loaded, &plan, plan.slices())
    })
}

/// The operands of calls of [`Lightning`], on the device.
pub(crate) struct LoadedLinear<'a> {
    host: &'a HostLinear<'a>,
    tensors: Tensors,
    gate: Option<Buffer>,
    dg: Option<Written>,
    dslopes: Option<Written>,
    workspace: Buffer,
}

impl<'a> LoadedLinear<'a> {
    /// Those of a plan's operator, with as much scratch memory as the largest plan of it needs.
    pub(crate) fn new(
        engine: &Engine,
        plan: &LinearPlan,
        host: &'a HostLinear<'a>,
        workspace_bytes: u64,
    ) -> Result<Self, RunError> {
        let wattn_scheduler::LinearPlan { lightning, extent, .. } = plan.details();
        let sizes = Sizes::new(*extent, lightning.heads(), lightning.dims());
        let gated = lightning.is_gated();
        check("gate", host.gate.len(), if gated { sizes.rows(1) } else { 0 })?;
        check("key_lengths", host.key_lengths.len(), 0)?;
        let state = lightning.dims().qk() as usize * lightning.dims().value() as usize;
        let in_place = lightning.pass() == Pass::Step { in_place: true };
        let kind = Kind { storage: [lightning.q_storage(), lightning.kv_storage()], state, in_place };
        let tensors = Tensors::new(engine, &sizes, kind, &linear_operands::used(plan.details()), host)?;
        let gate = gated.then(|| upload(engine, "gate", bytemuck::cast_slice(host.gate))).transpose()?;
        let decay = |of_gates: bool, name, elements| {
            let wanted = lightning.has_decay_gradient() && gated == of_gates;
            wanted.then(|| Written::new(engine, name, elements, Storage::F32)).transpose()
        };
        let (dg, dslopes) = (decay(true, "dg", sizes.rows(1))?, decay(false, "dslopes", sizes.heads)?);
        let workspace = buffer(engine, "workspace", workspace_bytes, BufferUsages::STORAGE | BufferUsages::COPY_DST)?;
        Ok(Self { host, tensors, gate, dg, dslopes, workspace })
    }

    fn operands(&self) -> LinearOperands<'_> {
        let view = |tensor| self.tensors.view(tensor, self.host.layout);
        let [q, k, v] = self.tensors.rows.each_ref().map(|buffer| self.host.layout.view(buffer));
        LinearOperands {
            out: view(Tensor::Out),
            state0: view(Tensor::State0),
            state: view(Tensor::State),
            gate: self.gate.as_ref().map(View::bhsd),
            grad_out: view(Tensor::GradOut),
            grad_state: view(Tensor::GradState),
            dq: view(Tensor::Dq),
            dk: view(Tensor::Dk),
            dv: view(Tensor::Dv),
            dstate: view(Tensor::Dstate),
            dg: self.dg.as_ref().map(Written::view),
            dslopes: self.dslopes.as_ref().map(Written::view),
            bounds: self.host.bounds,
            workspace: Some(&self.workspace),
            ..LinearOperands::new(q, k, v)
        }
    }
}

impl Loaded<LinearPlan> for LoadedLinear<'_> {
    fn encode_slice(&self, plan: &LinearPlan, encoder: &mut CommandEncoder, slice: u32) -> Result<(), EncodeError> {
        plan.encode_slice(encoder, &self.operands(), slice)
    }

    fn written(&self) -> Vec<&Written> {
        self.tensors.written.values().chain(&self.dg).chain(&self.dslopes).collect()
    }

    #[cfg(feature = "tune")]
    fn scratch(&self) -> Option<&Buffer> {
        Some(&self.workspace)
    }
}

pub(super) fn based_call(
    engine: &Engine,
    based: &Based,
    extent: Tokens,
    operands: &HostLinear<'_>,
) -> Result<Call, RunError> {
    Call::new(engine, |call| {
        let plan = engine.plan(based, extent)?;
        let loaded = LoadedBased::new(engine, &plan, operands, plan.workspace_bytes())?;
        call.run(&loaded, &plan, plan.slices())
    })
}

/// The operands of calls of [`Based`], on the device.
pub(crate) struct LoadedBased<'a> {
    host: &'a HostLinear<'a>,
    tensors: Tensors,
    workspace: Buffer,
}

impl<'a> LoadedBased<'a> {
    /// Those of a plan's operator, with as much scratch memory as the largest plan of it needs.
    pub(crate) fn new(
        engine: &Engine,
        plan: &BasedPlan,
        host: &'a HostLinear<'a>,
        workspace_bytes: u64,
    ) -> Result<Self, RunError> {
        let wattn_scheduler::BasedPlan { based, extent, .. } = plan.details();
        let sizes = Sizes::new(*extent, based.heads(), based.dims());
        check("gate", host.gate.len(), 0)?;
        let state = based.state_rows() as usize * (based.dims().value() as usize + 1);
        let in_place = based.pass() == Pass::Step { in_place: true };
        let kind = Kind { storage: [based.q_storage(), based.kv_storage()], state, in_place };
        let tensors = Tensors::new(engine, &sizes, kind, &based_operands::used(plan.details()), host)?;
        let workspace = buffer(engine, "workspace", workspace_bytes, BufferUsages::STORAGE | BufferUsages::COPY_DST)?;
        Ok(Self { host, tensors, workspace })
    }

    fn operands(&self) -> BasedOperands<'_> {
        let view = |tensor| self.tensors.view(tensor, self.host.layout);
        let [q, k, v] = self.tensors.rows.each_ref().map(|buffer| self.host.layout.view(buffer));
        BasedOperands {
            out: view(Tensor::Out),
            state0: view(Tensor::State0),
            state: view(Tensor::State),
            grad_out: view(Tensor::GradOut),
            grad_state: view(Tensor::GradState),
            dq: view(Tensor::Dq),
            dk: view(Tensor::Dk),
            dv: view(Tensor::Dv),
            dstate: view(Tensor::Dstate),
            bounds: self.host.bounds,
            key_lengths: self.host.key_lengths,
            workspace: Some(&self.workspace),
            ..BasedOperands::new(q, k, v)
        }
    }
}

impl Loaded<BasedPlan> for LoadedBased<'_> {
    fn encode_slice(&self, plan: &BasedPlan, encoder: &mut CommandEncoder, slice: u32) -> Result<(), EncodeError> {
        plan.encode_slice(encoder, &self.operands(), slice)
    }

    fn written(&self) -> Vec<&Written> {
        self.tensors.written.values().collect()
    }

    #[cfg(feature = "tune")]
    fn scratch(&self) -> Option<&Buffer> {
        Some(&self.workspace)
    }
}

/// How the tensors of an operator are stored.
struct Kind {
    /// Of q and what is stored like it, of k and v.
    storage: [Storage; 2],
    /// Numbers of a head's state.
    state: usize,
    /// Whether one state replaces the other.
    in_place: bool,
}

/// How much there is.
struct Sizes {
    sequences: usize,
    batch: usize,
    heads: usize,
    tokens: usize,
    dims: HeadDim,
}

impl Sizes {
    fn new(extent: Tokens, heads: u32, dims: HeadDim) -> Self {
        let (sequences, tokens) = (extent.batch as usize, extent.tokens as usize);
        Self { sequences, batch: if extent.packed { 1 } else { sequences }, heads: heads as usize, tokens, dims }
    }

    /// Numbers in rows of `dim`.
    fn rows(&self, dim: u32) -> usize {
        self.batch * self.heads * self.tokens * dim as usize
    }
}

/// A call's tensors on the device, but for decays.
struct Tensors {
    /// q, k and v.
    rows: [Buffer; 3],
    /// What else is read only.
    read: BTreeMap<Tensor, Buffer>,
    written: BTreeMap<Tensor, Written>,
}

impl Tensors {
    /// Those that a call uses, from the slices that it takes.
    fn new(
        engine: &Engine,
        sizes: &Sizes,
        Kind { storage, state, in_place }: Kind,
        used: &[Tensor],
        host: &HostLinear<'_>,
    ) -> Result<Self, RunError> {
        let form = |tensor: Tensor| {
            let dim = if tensor.has_value_dim() { sizes.dims.value() } else { sizes.dims.qk() };
            let stored = storage[usize::from(!tensor.is_stored_like_q())];
            if is_state(tensor) {
                (sizes.sequences * sizes.heads * state, Storage::F32)
            } else {
                (sizes.rows(dim), stored)
            }
        };
        let load = |tensor: Tensor, values: &[f32]| {
            let (elements, storage) = form(tensor);
            check(tensor.name(), values.len(), elements)?;
            upload(engine, tensor.name(), &packed(values, storage))
        };
        let rows = [load(Tensor::Q, host.q)?, load(Tensor::K, host.k)?, load(Tensor::V, host.v)?];
        let mut read = BTreeMap::new();
        for (tensor, values) in [(Tensor::GradOut, host.grad_out), (Tensor::GradState, host.grad_state)] {
            if used.contains(&tensor) {
                read.insert(tensor, load(tensor, values)?);
            } else {
                check(tensor.name(), values.len(), 0)?;
            }
        }
        let mut written = BTreeMap::new();
        for tensor in [Tensor::Out, Tensor::State, Tensor::Dq, Tensor::Dk, Tensor::Dv, Tensor::Dstate] {
            if used.contains(&tensor) {
                let (elements, storage) = form(tensor);
                written.insert(tensor, Written::new(engine, tensor.name(), elements, storage)?);
            }
        }
        // A step in place has the state before it where that after it will be.
        let before = written.get(&Tensor::State).filter(|_| in_place);
        if let Some(state) = before {
            check("state0", host.state0.len(), form(Tensor::State).0)?;
            engine.queue().write_buffer(&state.buffer, 0, bytemuck::cast_slice(host.state0));
        } else if used.contains(&Tensor::State0) {
            read.insert(Tensor::State0, load(Tensor::State0, host.state0)?);
        } else {
            check("state0", host.state0.len(), 0)?;
        }
        Ok(Self { rows, read, written })
    }

    /// The view of any but q, k and v.
    fn view(&self, tensor: Tensor, layout: HostLayout) -> Option<View<'_>> {
        let buffer = self.read.get(&tensor).or(self.written.get(&tensor).map(|written| &written.buffer))?;
        Some(if is_state(tensor) { View::bhsd(buffer) } else { layout.view(buffer) })
    }
}
