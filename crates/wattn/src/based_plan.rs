//! A plan of BASED linear attention that can be encoded: the scheduler's decision, bound to an engine.

use std::fmt;
use std::ops::Range;

use wattn_scheduler::shaders::{self, Access, BasedKey, Key, LinearParams, Segment, StateView, Walk};
use wattn_scheduler::{BasedStates, BasedStep, BasedWorkspace, Part, Tensor};
use wgpu::{CommandEncoder, ComputePass};

use crate::based_operands::{BasedOperands, CheckedBased, Sequence};
use crate::bound::{Binder, Bound};
use crate::dispatch::{self, Dispatch};
use crate::engine::Engine;
use crate::error::EncodeError;
use crate::linear_plan::{NONE, count};
use crate::operands::Span;

/// How a problem of BASED linear attention runs on an engine's device. Prints itself; may be encoded any number of times.
#[derive(Debug, Clone)]
pub struct BasedPlan {
    engine: Engine,
    plan: wattn_scheduler::BasedPlan,
}

impl BasedPlan {
    pub(crate) fn new(engine: Engine, plan: wattn_scheduler::BasedPlan) -> Self {
        Self { engine, plan }
    }

    /// The engine it was planned on.
    #[must_use]
    pub fn engine(&self) -> &Engine {
        &self.engine
    }

    /// What the scheduler decided: kernel, memory, FLOPs, bytes.
    #[must_use]
    pub fn details(&self) -> &wattn_scheduler::BasedPlan {
        &self.plan
    }

    /// Bytes of scratch memory that each call needs: the states of segments, if there are any, or those that stretches hand on; those of
    /// sequences, where every query sees every key and they are not asked for; backward, two numbers a token (more where the value dim takes several passes).
    #[must_use]
    pub fn workspace_bytes(&self) -> u64 {
        self.plan.workspace_bytes
    }

    /// Records the call into `encoder`, in a compute pass of its own. Nothing is submitted.
    ///
    /// # Errors
    /// Operands that do not fit the plan or overlap; a kernel that the device refuses. Nothing has been recorded then.
    pub fn encode(&self, encoder: &mut CommandEncoder, operands: &BasedOperands<'_>) -> Result<(), EncodeError> {
        dispatch::encode(encoder, self.dispatches(operands)?.into_iter().flatten().collect());
        Ok(())
    }

    /// Records the call into a compute pass that the caller has open, beside other work.
    ///
    /// # Errors
    /// As [`encode`](Self::encode).
    pub fn encode_in_pass(&self, pass: &mut ComputePass<'_>, operands: &BasedOperands<'_>) -> Result<(), EncodeError> {
        dispatch::encode_in_pass(pass, self.dispatches(operands)?.into_iter().flatten().collect());
        Ok(())
    }

    /// How many slices the call comes in: one where it is short, else one a dispatch. [`encode`](Self::encode) takes all at once.
    #[must_use]
    pub fn slices(&self) -> u32 {
        if self.plan.slices > 1 { count(self.plan.steps.len() * self.plan.parts.len()).max(1) } else { 1 }
    }

    /// Records one slice, for callers who submit in between. Slices must be submitted in order; all are needed.
    ///
    /// # Errors
    /// As [`encode`](Self::encode), or a slice that is not there.
    pub fn encode_slice(
        &self,
        encoder: &mut CommandEncoder,
        operands: &BasedOperands<'_>,
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

    /// The dispatches of all parts, in order; none where there is nothing to do.
    fn dispatches(&self, operands: &BasedOperands<'_>) -> Result<Vec<Option<Dispatch>>, EncodeError> {
        let checked = CheckedBased::new(&self.plan, operands)?;
        let steps = |part| self.plan.steps.iter().map(move |step| (part, step));
        let calls = self.plan.parts.iter().flat_map(steps);
        calls.map(|(part, step)| Call::new(self, step, part, &checked).dispatch()).collect()
    }
}

impl fmt::Display for BasedPlan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.plan.fmt(f)
    }
}

/// A step over one part of the batch entries and heads.
struct Call<'a> {
    plan: &'a wattn_scheduler::BasedPlan,
    step: &'a BasedStep,
    checked: &'a CheckedBased<'a>,
    binder: Binder<'a>,
    heads: u32,
    segments: Vec<Segment>,
    walks: Vec<Walk>,
    workspace: BasedWorkspace,
}

impl<'a> Call<'a> {
    fn new(plan: &'a BasedPlan, step: &'a BasedStep, part: &Part, checked: &'a CheckedBased<'a>) -> Self {
        let BasedPlan { engine, plan } = plan;
        let mut call = Self {
            plan,
            step,
            checked,
            binder: Binder { engine, extent: plan.extent, part: part.clone() },
            heads: part.kv_heads.end - part.kv_heads.start,
            segments: Vec::new(),
            walks: Vec::new(),
            workspace: plan.workspace(part),
        };
        let sequences = (0..).zip(&checked.sequences);
        let own = sequences.filter(|(index, _)| plan.extent.packed || part.batch.contains(index));
        for (place, (index, sequence)) in (0..).zip(own) {
            call.add_sequence(place, index, sequence);
        }
        // The longest start first.
        if !step.segmented && call.walks.is_empty() {
            call.segments.sort_by_key(|s| std::cmp::Reverse(s.tokens));
        }
        call
    }

    /// Adds the segments of the sequence `index`, which is number `place` of this part.
    fn add_sequence(&mut self, place: u32, index: u32, sequence: &Sequence) {
        let &Sequence { start, tokens, keys } = sequence;
        let step = self.step;
        let turns = step.from.into_iter().chain(step.to).any(|states| states == BasedStates::Turns);
        let segmented = turns || step.segmented || step.based_key().is_none();
        let length = if segmented { self.plan.segment_tokens } else { tokens.max(1) };
        let first = count(self.segments.len());
        let turn = |stretch: u32| 2 * place + stretch % 2;
        if turns && step.based_key().is_none() {
            // What the last stretch has left is copied, as a walk over one segment that starts from nothing.
            self.segments.extend([Segment::default(); 2]);
            let last = turn(tokens.saturating_sub(1) / length);
            self.walks.push(Walk { first: last, segments: 1, state0: NONE, state: index });
            return;
        }
        let state = |states: Option<BasedStates>, segment: u32| match states {
            None => NONE,
            Some(BasedStates::Operand(_)) => index,
            Some(BasedStates::Segments) => segment,
            Some(BasedStates::Sequences) => place,
            Some(BasedStates::Turns) => turn(segment),
        };
        let own_stretch = |done: &u32| !turns || *done == step.stretch * length;
        // There is a segment even without tokens, since states go on.
        for done in (0..tokens.max(1)).step_by(length as usize).filter(own_stretch) {
            let own = count(self.segments.len());
            let len = length.min(tokens - done);
            // The place of the first token of the stretch in its sequence.
            let at = if step.reversed { tokens - done - len } else { done };
            let ends = done + len == tokens || matches!(step.to, Some(BasedStates::Segments | BasedStates::Turns));
            let (before, after) = if turns { (step.stretch + 1, step.stretch) } else { (own, own) };
            self.segments.push(Segment {
                batch: if self.plan.extent.packed { 0 } else { index },
                origin: if step.reversed { (start + at + len).wrapping_sub(1) } else { start + at },
                tokens: len,
                keys: keys.saturating_sub(at).min(len),
                state0: state(step.from, before),
                state: if ends { state(step.to, after) } else { NONE },
            });
        }
        if step.based_key().is_none() {
            let segments = count(self.segments.len()) - first;
            self.walks.push(Walk { first, segments, state0: state(step.from, 0), state: state(step.to, 0) });
        }
    }

    /// Binds the rows of a tensor in the units that its role loads.
    fn rows(&self, tensor: Option<Tensor>, access: Access) -> Result<Bound<'a>, EncodeError> {
        self.binder.rows(tensor.and_then(|tensor| self.checked.get(tensor)).map(|r| r.counted_by(access)))
    }

    /// Binds states, and says where they lie.
    fn states(&self, states: Option<BasedStates>) -> Result<(Bound<'a>, StateView), EncodeError> {
        let range = match states {
            None => return Ok((None, StateView::default())),
            Some(BasedStates::Operand(tensor)) => {
                let bound = self.binder.states(self.checked.get(tensor).copied())?;
                return Ok((bound, view(&bound)));
            }
            Some(BasedStates::Segments) => &self.workspace.segments,
            Some(BasedStates::Sequences) => &self.workspace.sequences,
            Some(BasedStates::Turns) => &self.workspace.turns,
        };
        let row = self.plan.based.dims().value() + 1;
        let head = self.plan.based.state_rows() * row;
        // The workspace counts heads from the part's first.
        let offset = 0_u32.wrapping_sub(self.binder.part.kv_heads.start.wrapping_mul(head));
        let view = StateView { offset, item: self.heads * head, head, row, column: 1 };
        Ok((self.scratch(range), view))
    }

    /// Binds a part of the workspace.
    fn scratch(&self, range: &Range<u64>) -> Bound<'a> {
        let span = Span { offset: range.start, ..Span::whole(range.end - range.start) };
        self.checked.workspace.filter(|_| !range.is_empty()).map(|buffer| (buffer, span))
    }

    /// Where the records of tokens lie.
    fn records(&self) -> shaders::View {
        let record = self.plan.record_size();
        let (tokens, Part { batch, kv_heads }) = (self.plan.extent.tokens, &self.binder.part);
        let (head, entry) = (tokens.wrapping_mul(record), tokens.wrapping_mul(record).wrapping_mul(self.heads));
        let skipped = batch.start.wrapping_mul(entry).wrapping_add(kv_heads.start.wrapping_mul(head));
        shaders::View { offset: 0_u32.wrapping_sub(skipped), batch: entry, head, seq: record, dim: 1 }
    }

    /// The dispatch; none where there is nothing to do.
    fn dispatch(&self) -> Result<Option<Dispatch>, EncodeError> {
        let (based, step) = (&self.plan.based, self.step);
        let splits = step.splits(based);
        let items = if step.based_key().is_some() { self.segments.len() } else { self.walks.len() };
        let workgroups = count(items) * self.heads * splits;
        if workgroups == 0 {
            return Ok(None);
        }
        let access = step.based_key().map_or(Access::Any, |key| key.access);
        let narrow = if access == Access::Vec8 { Access::Vec4 } else { access };
        let [k, v] = step.kv.map_or([None; 2], |kv| kv.map(Some));
        let (q, k) = (self.rows(step.q, access)?, self.rows(k, access)?);
        let (v, g) = (self.rows(v, narrow)?, self.rows(step.g, narrow)?);
        let out = step.out.and_then(|tensor| self.checked.get(tensor)).map(|r| r.counted_by(narrow));
        let out = self.binder.output(out)?;
        let ((state0, state0_view), (state, state_view)) = (self.states(step.from)?, self.states(step.to)?);
        let missing = step.from.is_none() && step.based_key().is_some_and(BasedKey::binds_state0_written);
        let state0 = if missing { self.scratch(&self.workspace.none) } else { state0 };
        let records = self.scratch(&self.workspace.records);

        let located = |bound: &Bound<'_>| bound.as_ref().map_or_else(shaders::View::default, |b| b.1.view);
        let (features, value) = (based.dims().qk(), based.dims().value());
        let scale = based.effective_scale();
        let joins = step.based_key().is_none();
        let params = LinearParams {
            first: 0,
            last: workgroups,
            head_first: self.binder.part.kv_heads.start,
            heads: self.heads,
            splits,
            // States are joined number by number, whatever they hold.
            head_dim: if joins { based.state_rows() } else { features },
            value_dim: if joins { value + 1 } else { value },
            head_chunks: features.div_ceil(4),
            value_chunks: value.div_ceil(4),
            state_rows: based.state_rows(),
            step: if step.reversed { u32::MAX } else { 1 },
            forward: if step.reversed { 0.0 } else { 1.0 },
            q: located(&q),
            k: located(&k),
            v: located(&v),
            out: located(&out),
            gate: self.records(),
            state0: state0_view,
            state: state_view,
            score_scale: scale,
            // Gradients of states are of the states themselves, which are not scaled.
            read_scale: if step.reversed { 1.0 } else { scale },
            write_scale: if step.reversed { scale } else { 1.0 },
            eps: based.effective_eps(),
            normalize: u32::from(based.is_normalized() && !step.reversed),
            segments: 0,
            walks: 6 * count(self.segments.len()),
            slopes: 6 * count(self.segments.len()) + 4 * count(self.walks.len()),
            totals: 0,
            g: located(&g),
            block: step.block,
        };
        let mut words: Vec<u32> = bytemuck::cast_slice(std::slice::from_ref(&params)).to_vec();
        words.extend_from_slice(bytemuck::cast_slice(&self.segments));
        words.extend_from_slice(bytemuck::cast_slice(&self.walks));
        let bound = match &step.key {
            Key::Based(key) if key.is_gradient() => [q, k, v, out, state0, g, records],
            Key::Based(_) => [q, k, v, out, state0, state, records],
            _ => {
                // Nothing is forgotten: slopes of 0.
                words.extend(vec![0; based.heads() as usize]);
                let (joined, state0) = match step.from {
                    Some(BasedStates::Turns) => (&self.workspace.turns, None),
                    _ => (&self.workspace.segments, state0),
                };
                [None, None, None, self.scratch(joined), state0, state, None]
            }
        };
        Dispatch::new(self.binder.engine, &step.key, &bound, &words, self.plan.grid(workgroups)).map(Some)
    }
}

fn view(bound: &Bound<'_>) -> StateView {
    bound.as_ref().map_or_else(StateView::default, |(_, span)| {
        let shaders::View { offset, batch, head, seq, dim } = span.view;
        StateView { offset, item: batch, head, row: seq, column: dim }
    })
}
