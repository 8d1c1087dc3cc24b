//! A plan of linear attention that can be encoded: the scheduler's decision, bound to an engine.

use std::fmt;
use std::rc::Rc;

use wattn_scheduler::shaders::{self, Access, Key, LinearKey, LinearOp, LinearParams, Segment, StateView, Walk};
use wattn_scheduler::{Part, PlannedSweep, Tensor};
use wgpu::{CommandEncoder, ComputePass};

use crate::bound::{Binder, Bound};
use crate::decay_jobs;
use crate::dispatch::{self, Dispatch};
use crate::engine::Engine;
use crate::error::EncodeError;
use crate::linear_operands::{CheckedLinear, LinearOperands};
use crate::operands::Span;

/// How a problem of linear attention runs on an engine's device. Prints itself; may be encoded any number of times.
#[derive(Debug, Clone)]
pub struct LinearPlan {
    engine: Engine,
    pub(crate) plan: wattn_scheduler::LinearPlan,
}

/// No state to start from.
pub(crate) const NONE: u32 = u32::MAX;

impl LinearPlan {
    pub(crate) fn new(engine: Engine, plan: wattn_scheduler::LinearPlan) -> Self {
        Self { engine, plan }
    }

    /// The engine it was planned on.
    #[must_use]
    pub fn engine(&self) -> &Engine {
        &self.engine
    }

    /// What the scheduler decided: kernel, schedule, memory, FLOPs, bytes.
    #[must_use]
    pub fn details(&self) -> &wattn_scheduler::LinearPlan {
        &self.plan
    }

    /// Bytes of scratch memory that each call needs: 0, the states of segments, those that stretches hand on, or what the gradient of the
    /// decay takes.
    #[must_use]
    pub fn workspace_bytes(&self) -> u64 {
        self.plan.workspace_bytes
    }

    /// Records the call into `encoder`, in a compute pass of its own. Nothing is submitted.
    ///
    /// # Errors
    /// Operands that do not fit the plan or overlap; a kernel that the device refuses. Nothing has been recorded then.
    pub fn encode(&self, encoder: &mut CommandEncoder, operands: &LinearOperands<'_>) -> Result<(), EncodeError> {
        dispatch::encode(encoder, self.dispatches(operands)?);
        Ok(())
    }

    /// Records the call into a compute pass that the caller has open, beside other work.
    ///
    /// # Errors
    /// As [`encode`](Self::encode).
    pub fn encode_in_pass(&self, pass: &mut ComputePass<'_>, operands: &LinearOperands<'_>) -> Result<(), EncodeError> {
        dispatch::encode_in_pass(pass, self.dispatches(operands)?);
        Ok(())
    }

    /// How many slices the call comes in: one where it is short, else one a dispatch. [`encode`](Self::encode) takes all at once.
    #[must_use]
    pub fn slices(&self) -> u32 {
        if self.plan.slices > 1 { u32::try_from(self.plan.dispatches()).unwrap_or(u32::MAX).max(1) } else { 1 }
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
        let checked = CheckedLinear::new(&self.plan, operands)?;
        let dispatch = match self.jobs(&checked).get(slice as usize) {
            Some((call, key)) => call.dispatch(key)?,
            None => None,
        };
        dispatch::encode(encoder, dispatch.into_iter().collect());
        Ok(())
    }

    /// All dispatches, in order.
    fn dispatches(&self, operands: &LinearOperands<'_>) -> Result<Vec<Dispatch>, EncodeError> {
        let checked = CheckedLinear::new(&self.plan, operands)?;
        self.jobs(&checked).iter().filter_map(|(call, key)| call.dispatch(key).transpose()).collect()
    }

    /// What each dispatch is for, in order: as many as the plan says, also where one finds nothing to do.
    pub(crate) fn jobs<'a>(&'a self, checked: &'a CheckedLinear<'a>) -> Vec<Job<'a>> {
        let mut jobs = Vec::new();
        for sweep in &self.plan.sweeps {
            for part in &self.plan.parts {
                let call = Rc::new(Call::new(self, sweep, part, checked, 0));
                let keys = sweep.states.into_iter().flatten().chain([sweep.walk]);
                jobs.extend(keys.map(|key| (Rc::clone(&call), key)));
                let resumed =
                    sweep.resumed.into_iter().flat_map(|key| (1..self.plan.stretches()).map(move |n| (n, key)));
                jobs.extend(resumed.map(|(n, key)| (Rc::new(Call::new(self, sweep, part, checked, n)), key)));
            }
        }
        if let Some(decay) = &self.plan.decay {
            for part in &self.plan.parts {
                jobs.extend(decay_jobs::jobs(self, decay, part, checked));
            }
        }
        jobs
    }
}

impl fmt::Display for LinearPlan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.plan.fmt(f)
    }
}

/// A dispatch: one of a call's pipelines.
pub(crate) type Job<'a> = (Rc<Call<'a>>, LinearKey);

/// A sweep over one part of the batch entries and heads.
pub(crate) struct Call<'a> {
    plan: &'a LinearPlan,
    sweep: &'a PlannedSweep,
    checked: &'a CheckedLinear<'a>,
    binder: Binder<'a>,
    heads: u32,
    pub(crate) segments: Vec<Segment>,
    pub(crate) walks: Vec<Walk>,
    /// States in the workspace, and the place of the first segment's among them.
    pub(crate) states: u32,
    pub(crate) first_state: u32,
    workspace: Option<Span>,
}

impl<'a> Call<'a> {
    /// A call without any tokens.
    pub(crate) fn empty(
        plan: &'a LinearPlan,
        sweep: &'a PlannedSweep,
        part: &Part,
        checked: &'a CheckedLinear<'a>,
    ) -> Self {
        Self {
            plan,
            sweep,
            checked,
            binder: Binder { engine: &plan.engine, extent: plan.plan.extent, part: part.clone() },
            heads: part.kv_heads.end - part.kv_heads.start,
            segments: Vec::new(),
            walks: Vec::new(),
            states: 0,
            first_state: 0,
            workspace: checked.workspace.map(|_| Span::whole(plan.plan.workspace_bytes)),
        }
    }

    /// A sweep over all tokens, or over one stretch of each sequence.
    fn new(
        plan: &'a LinearPlan,
        sweep: &'a PlannedSweep,
        part: &Part,
        checked: &'a CheckedLinear<'a>,
        stretch: u32,
    ) -> Self {
        let mut call = Self::empty(plan, sweep, part, checked);
        let sequences = (0..).zip(&checked.sequences);
        let own = sequences.filter(|(index, _)| plan.plan.extent.packed || part.batch.contains(index));
        for (place, (index, &(start, tokens))) in (0..).zip(own) {
            call.add_sequence(place, index, (start, tokens), stretch);
        }
        // The longest segments start first.
        if sweep.states.is_none() {
            call.segments.sort_by_key(|s| std::cmp::Reverse(s.tokens));
        }
        call.states = count(call.segments.len());
        call
    }

    /// Adds the segments of the sequence `index`, which is number `place` of this part; or where they are walked one after the other
    /// the one that is number `stretch`.
    fn add_sequence(&mut self, place: u32, index: u32, (start, tokens): (u32, u32), stretch: u32) {
        let batch = if self.plan.plan.extent.packed { 0 } else { index };
        let reversed = self.sweep.sweep.reversed;
        let at = |done: u32| {
            if reversed { (start + tokens).wrapping_sub(1 + done) } else { start + done }
        };
        let state0 =
            if self.sweep.sweep.state0.is_some() || self.sweep.walk.op == LinearOp::Step { index } else { NONE };
        let length = self.plan.plan.segment_tokens;
        if self.sweep.states.is_none() {
            // The states of a sequence have one place, which each stretch takes them from and leaves them in.
            let state = if self.hands_on() { place } else { index };
            let done = length * stretch;
            // There is a first one even without tokens, since states go on.
            if stretch == 0 || done < tokens {
                let tokens = length.min(tokens - done);
                let state0 = if stretch > 0 { state } else { state0 };
                self.segments.push(Segment { batch, origin: at(done), tokens, keys: tokens, state0, state });
            }
            return;
        }
        let first = count(self.segments.len());
        for done in (0..tokens).step_by(length as usize) {
            let own = count(self.segments.len());
            let tokens = length.min(tokens - done);
            self.segments.push(Segment { batch, origin: at(done), tokens, keys: tokens, state0: own, state: own });
        }
        self.walks.push(Walk { first, segments: count(self.segments.len()) - first, state0, state: index });
    }

    /// Whether stretches hand on states that the caller has no use for, in the workspace.
    fn hands_on(&self) -> bool {
        self.sweep.resumed.is_some() && self.sweep.sweep.state.is_none()
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

    /// Binds the gradient of the decay: of gates by tokens, of slopes whatever the batch entry.
    fn decay_gradient(&self) -> Result<Bound<'a>, EncodeError> {
        let gradient = self.checked.decay_gradient;
        if self.plan.plan.lightning.is_gated() { self.binder.rows(gradient) } else { self.binder.heads(gradient) }
    }

    /// One of the sweep's dispatches; none where there is nothing to do.
    fn dispatch(&self, key: &LinearKey) -> Result<Option<Dispatch>, EncodeError> {
        let sweep = &self.sweep.sweep;
        let scan = matches!(key.op, LinearOp::Scan | LinearOp::ScanWithin);
        let decay = matches!(key.op, LinearOp::Decay | LinearOp::DecaySum);
        let walks = scan || key.op == LinearOp::DecaySum;
        let items = if walks { self.walks.len() } else { self.segments.len() };
        let splits = self.sweep.splits(key);
        let workgroups = count(items) * self.heads * splits;
        if workgroups == 0 {
            return Ok(None);
        }
        let workspace = self.checked.workspace.zip(self.workspace);
        let wide = key.access;
        let narrow = if wide == Access::Vec8 { Access::Vec4 } else { wide };
        let (q, k) = (self.rows(sweep.q, wide)?, self.rows(sweep.k, wide)?);
        let v = self.rows(sweep.v, narrow)?;
        let out = if decay { self.rows(Tensor::GradOut, narrow)? } else { self.output(sweep.out, narrow)? };
        let state0 = if decay { self.decay_gradient()? } else { self.states(sweep.state0)? };
        let state = self.states(sweep.state)?;
        let gate = self.binder.rows(self.checked.gate)?;

        let rows = |bound: &Bound<'_>| bound.as_ref().map_or_else(Default::default, |b| b.1.view);
        let states = |bound: &Bound<'_>| bound.as_ref().map_or_else(Default::default, |b| self.state_view(&b.1.view));
        let [key_dim, value_dim] = self.sweep.dims;
        let size = key_dim * value_dim;
        // The workspace counts heads from the part's first.
        let own = StateView {
            offset: 0_u32.wrapping_sub(self.binder.part.kv_heads.start.wrapping_mul(size)),
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
            state0: if segmented && !scan && !decay { own } else { states(&state0) },
            state: if (segmented && !scan) || self.hands_on() { own } else { states(&state) },
            score_scale: scale,
            // Gradients that come in with the state are of the state itself, which is not scaled.
            read_scale: if sweep.reversed { 1.0 } else { scale },
            write_scale: if sweep.reversed { scale } else { 1.0 },
            eps: 0.0,
            normalize: 0,
            // A scan counts segments as it counts their states.
            segments: if scan { 0_u32.wrapping_sub(6 * self.first_state) } else { 0 },
            walks: 6 * count(self.segments.len()),
            slopes: 6 * count(self.segments.len()) + 4 * count(self.walks.len()),
            totals: self.states * self.heads * size,
            ..LinearParams::default()
        };
        let mut words: Vec<u32> = bytemuck::cast_slice(std::slice::from_ref(&params)).to_vec();
        let segments = self
            .segments
            .iter()
            .map(|s| Segment { state0: if key.op == LinearOp::Segment { NONE } else { s.state0 }, ..*s });
        words.extend_from_slice(bytemuck::cast_slice(&segments.collect::<Vec<_>>()));
        words.extend_from_slice(bytemuck::cast_slice(&self.walks));
        words.extend(slopes.iter().map(|s| s.min(STEEPEST).to_bits()));

        let bound = match key.op {
            LinearOp::Scan | LinearOp::ScanWithin => [None, None, None, workspace, state0, state, None],
            LinearOp::Segment => [None, k, v, None, None, workspace, gate],
            LinearOp::Decay | LinearOp::DecaySum => [q, k, v, out, state0, workspace, gate],
            _ => {
                let state = if self.hands_on() { workspace } else { state };
                [q, k, v, out, if segmented { workspace } else { state0 }, state, gate]
            }
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

/// A slope that leaves nothing of an f32, as any steeper one, whose products with numbers of tokens may be infinite.
const STEEPEST: f32 = 104.0;

#[expect(clippy::cast_possible_truncation, reason = "plans hold fewer than 2^32 workgroups")]
pub(crate) fn count(len: usize) -> u32 {
    len as u32
}
