//! A plan of linear attention that can be encoded: the scheduler's decision, bound to an engine.

use std::fmt;

use wattn_scheduler::shaders::{self, Access, Key, LinearKey, LinearOp, LinearParams, Segment, StateView, Walk};
use wattn_scheduler::{Part, PlannedSweep, Tensor};
use wgpu::{CommandEncoder, ComputePass};

use crate::bound::{Binder, Bound};
use crate::dispatch::{self, Dispatch};
use crate::engine::Engine;
use crate::error::EncodeError;
use crate::linear_operands::{CheckedLinear, LinearOperands};
use crate::operands::Span;

/// How a problem of linear attention runs on an engine's device. Prints itself; may be encoded any number of times.
#[derive(Debug, Clone)]
pub struct LinearPlan {
    engine: Engine,
    plan: wattn_scheduler::LinearPlan,
}

/// No state to start from.
pub(crate) const NONE: u32 = u32::MAX;

impl LinearPlan {
    pub(crate) fn new(engine: Engine, plan: wattn_scheduler::LinearPlan) -> Self {
        Self { engine, plan }
    }

    /// What the scheduler decided: kernel, schedule, memory, FLOPs, bytes.
    #[must_use]
    pub fn details(&self) -> &wattn_scheduler::LinearPlan {
        &self.plan
    }

    /// Bytes of scratch memory that each call needs: 0, or the states of all segments.
    #[must_use]
    pub fn workspace_bytes(&self) -> u64 {
        self.plan.workspace_bytes
    }

    /// Records the call into `encoder`, in a compute pass of its own. Nothing is submitted.
    ///
    /// # Errors
    /// Operands that do not fit the plan or overlap; a kernel that the device refuses. Nothing has been recorded then.
    pub fn encode(&self, encoder: &mut CommandEncoder, operands: &LinearOperands<'_>) -> Result<(), EncodeError> {
        dispatch::encode(encoder, self.dispatches(operands)?.into_iter().flatten().collect());
        Ok(())
    }

    /// Records the call into a compute pass that the caller has open, beside other work.
    ///
    /// # Errors
    /// As [`encode`](Self::encode).
    pub fn encode_in_pass(&self, pass: &mut ComputePass<'_>, operands: &LinearOperands<'_>) -> Result<(), EncodeError> {
        dispatch::encode_in_pass(pass, self.dispatches(operands)?.into_iter().flatten().collect());
        Ok(())
    }

    /// How many slices the call comes in: one where it is short, else one a dispatch. [`encode`](Self::encode) takes all at once.
    #[must_use]
    pub fn slices(&self) -> u32 {
        #[expect(clippy::cast_possible_truncation, reason = "sweeps and parts are few")]
        let dispatches = (self.plan.keys().count() * self.plan.parts.len()) as u32;
        if self.plan.slices > 1 { dispatches.max(1) } else { 1 }
    }

    /// Records one slice, for callers who submit in between. Slices must be submitted in order; all are needed.
    ///
    /// # Errors
    /// As [`encode`](Self::encode), or a slice that is not there.
    pub fn encode_slice(
        &self,
        encoder: &mut CommandEncoder,
        operands: &LinearOperands<'_>,
        slice: u32,
    ) -> Result<(), EncodeError> {
        if slice >= self.slices() {
            return Err(EncodeError::Slice { given: slice, slices: self.slices() });
        }
        if self.slices() == 1 {
            return self.encode(encoder, operands);
        }
        let dispatch = self.dispatches(operands)?.into_iter().nth(slice as usize).flatten();
        dispatch::encode(encoder, dispatch.into_iter().collect());
        Ok(())
    }

    /// The dispatches of all sweeps, in order; none where there is nothing to do.
    fn dispatches(&self, operands: &LinearOperands<'_>) -> Result<Vec<Option<Dispatch>>, EncodeError> {
        let checked = CheckedLinear::new(&self.plan, operands)?;
        let mut dispatches = Vec::new();
        for sweep in &self.plan.sweeps {
            for part in &self.plan.parts {
                let call = Call::new(self, sweep, part, &checked)?;
                if let Some([segment, scan]) = &sweep.states {
                    dispatches.push(call.dispatch(segment)?);
                    dispatches.push(call.dispatch(scan)?);
                }
                dispatches.push(call.dispatch(&sweep.walk)?);
            }
        }
        Ok(dispatches)
    }
}

impl fmt::Display for LinearPlan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.plan.fmt(f)
    }
}

/// A sweep over one part of the batch entries and heads.
struct Call<'a> {
    plan: &'a LinearPlan,
    sweep: &'a PlannedSweep,
    checked: &'a CheckedLinear<'a>,
    binder: Binder<'a>,
    heads: u32,
    segments: Vec<Segment>,
    walks: Vec<Walk>,
    workspace: Option<Span>,
}

impl<'a> Call<'a> {
    fn new(
        plan: &'a LinearPlan,
        sweep: &'a PlannedSweep,
        part: &Part,
        checked: &'a CheckedLinear<'a>,
    ) -> Result<Self, EncodeError> {
        let heads = part.kv_heads.end - part.kv_heads.start;
        let mut call = Self {
            plan,
            sweep,
            checked,
            binder: Binder { engine: &plan.engine, extent: plan.plan.extent, part: part.clone() },
            heads,
            segments: Vec::new(),
            walks: Vec::new(),
            workspace: checked.workspace.map(|_| Span::whole(plan.plan.workspace_bytes)),
        };
        for (index, &(start, tokens)) in (0..).zip(&checked.sequences) {
            if plan.plan.extent.packed || part.batch.contains(&index) {
                call.add_sequence(index, start, tokens);
            }
        }
        // The longest segments start first.
        if sweep.states.is_none() {
            call.segments.sort_by_key(|s| std::cmp::Reverse(s.tokens));
        }
        Ok(call)
    }

    fn add_sequence(&mut self, index: u32, start: u32, tokens: u32) {
        let batch = if self.plan.plan.extent.packed { 0 } else { index };
        let reversed = self.sweep.sweep.reversed;
        let at = |done: u32| {
            if reversed { (start + tokens).wrapping_sub(1 + done) } else { start + done }
        };
        let state0 =
            if self.sweep.sweep.state0.is_some() || self.sweep.walk.op == LinearOp::Step { index } else { NONE };
        if self.sweep.states.is_none() {
            self.segments.push(Segment { batch, origin: at(0), tokens, keys: tokens, state0, state: index });
            return;
        }
        let first = count(self.segments.len());
        let length = self.plan.plan.segment_tokens;
        for done in (0..tokens).step_by(length as usize) {
            let own = count(self.segments.len());
            let tokens = length.min(tokens - done);
            self.segments.push(Segment { batch, origin: at(done), tokens, keys: tokens, state0: own, state: own });
        }
        self.walks.push(Walk { first, segments: count(self.segments.len()) - first, state0, state: index });
    }

    /// Binds the rows of a tensor in the units that its role loads.
    fn rows(&self, tensor: Tensor, access: Access) -> Result<Bound<'a>, EncodeError> {
        self.binder.rows(self.checked.get(tensor).map(|r| r.counted_by(access)))
    }

    /// Binds what the sweep writes, likewise.
    fn output(&self, tensor: Tensor, access: Access) -> Result<Bound<'a>, EncodeError> {
        self.binder.output(self.checked.get(tensor).map(|r| r.counted_by(access)))
    }

    /// Binds a tensor of states.
    fn states(&self, tensor: Option<Tensor>) -> Result<Bound<'a>, EncodeError> {
        self.binder.states(tensor.and_then(|tensor| self.checked.get(tensor)).copied())
    }

    /// One of the sweep's dispatches; none where there is nothing to do.
    fn dispatch(&self, key: &LinearKey) -> Result<Option<Dispatch>, EncodeError> {
        let sweep = &self.sweep.sweep;
        let scan = key.op == LinearOp::Scan;
        let items = if scan { self.walks.len() } else { self.segments.len() };
        let splits = self.sweep.splits(key);
        let workgroups = count(items) * self.heads * splits;
        if workgroups == 0 {
            return Ok(None);
        }
        let workspace = self.checked.workspace.zip(self.workspace);
        let wide = key.access;
        let narrow = if wide == Access::Vec8 { Access::Vec4 } else { wide };
        let (q, k) = (self.rows(sweep.q, wide)?, self.rows(sweep.k, wide)?);
        let (v, out) = (self.rows(sweep.v, narrow)?, self.output(sweep.out, narrow)?);
        let (state0, state) = (self.states(sweep.state0)?, self.states(sweep.state)?);
        let gate = self.binder.rows(self.checked.gate)?;

        let rows = |bound: &Bound<'_>| bound.as_ref().map_or_else(Default::default, |b| b.1.view);
        let states = |bound: &Bound<'_>| bound.as_ref().map_or_else(Default::default, |b| self.state_view(&b.1.view));
        let [key_dim, value_dim] = self.sweep.dims;
        let size = key_dim * value_dim;
        // The workspace counts heads from the part's first.
        let own = StateView {
            offset: 0_u32.wrapping_sub(self.binder.part.kv_heads.start * size),
            item: self.heads * size,
            head: size,
            row: value_dim,
            column: 1,
        };
        let segmented = self.sweep.states.is_some();
        let lightning = &self.plan.plan.lightning;
        let slopes = lightning.slopes();
        let scale = lightning.effective_scale();
        let params = LinearParams {
            first: 0,
            last: workgroups,
            head_first: self.binder.part.kv_heads.start,
            heads: self.heads,
            splits,
            head_dim: key_dim,
            value_dim,
            head_chunks: key_dim.div_ceil(4),
            value_chunks: value_dim.div_ceil(4),
            state_rows: key_dim,
            step: if sweep.reversed { u32::MAX } else { 1 },
            forward: if sweep.reversed { 0.0 } else { 1.0 },
            q: rows(&q),
            k: rows(&k),
            v: rows(&v),
            out: rows(&out),
            gate: rows(&gate),
            state0: if segmented && !scan { own } else { states(&state0) },
            state: if segmented && !scan { own } else { states(&state) },
            score_scale: scale,
            // Gradients that come in with the state are of the state itself, which is not scaled.
            read_scale: if sweep.reversed { 1.0 } else { scale },
            write_scale: if sweep.reversed { scale } else { 1.0 },
            eps: 0.0,
            normalize: 0,
            segments: 0,
            walks: 6 * count(self.segments.len()),
            slopes: 6 * count(self.segments.len()) + 4 * count(self.walks.len()),
            totals: count(self.segments.len()) * self.heads * size,
            ..LinearParams::default()
        };
        let mut words: Vec<u32> = bytemuck::cast_slice(std::slice::from_ref(&params)).to_vec();
        let segments = self
            .segments
            .iter()
            .map(|s| Segment { state0: if key.op == LinearOp::Segment { NONE } else { s.state0 }, ..*s });
        words.extend_from_slice(bytemuck::cast_slice(&segments.collect::<Vec<_>>()));
        words.extend_from_slice(bytemuck::cast_slice(&self.walks));
        words.extend(slopes.iter().map(|s| s.to_bits()));

        let bound = match key.op {
            LinearOp::Scan => [None, None, None, workspace, state0, state, None],
            LinearOp::Segment => [None, k, v, None, None, workspace, gate],
            _ => [q, k, v, out, if segmented { workspace } else { state0 }, state, gate],
        };
        Dispatch::new(&self.plan.engine, &Key::Linear(*key), &bound, &words, self.plan.plan.grid(workgroups)).map(Some)
    }

    /// A state's view in the sweep's terms.
    fn state_view(&self, view: &shaders::View) -> StateView {
        let &shaders::View { offset, batch, head, seq, dim } = view;
        let (row, column) = if self.sweep.sweep.transposed { (dim, seq) } else { (seq, dim) };
        StateView { offset, item: batch, head, row, column }
    }
}

#[expect(clippy::cast_possible_truncation, reason = "plans hold fewer than 2^32 workgroups")]
pub(crate) fn count(len: usize) -> u32 {
    len as u32
}
