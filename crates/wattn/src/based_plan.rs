//! A plan of BASED linear attention that can be encoded: the scheduler's decision, bound to an engine.

use std::fmt;

use wattn_scheduler::Part;
use wattn_scheduler::shaders::{self, Access, BasedKey, BasedOp, Key, LinearParams, Segment, StateView};
use wgpu::{CommandEncoder, ComputePass};

use crate::based_operands::{BasedOperands, CheckedBased};
use crate::bound::{Binder, Bound};
use crate::dispatch::{self, Dispatch};
use crate::engine::Engine;
use crate::error::EncodeError;
use crate::linear_plan::{NONE, count};
use crate::operands::{Resolved, Span};

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

    /// What the scheduler decided: kernel, memory, FLOPs, bytes.
    #[must_use]
    pub fn details(&self) -> &wattn_scheduler::BasedPlan {
        &self.plan
    }

    /// Bytes of scratch memory that each call needs: 0, or states, where every query sees every key and they are not asked for.
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
        if self.plan.slices > 1 { count(self.plan.keys.len() * self.plan.parts.len()).max(1) } else { 1 }
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
        let each = |part: &Part| {
            let call = Call::new(self, part, &checked);
            self.plan.keys.iter().map(|key| call.dispatch(key)).collect::<Vec<_>>()
        };
        self.plan.parts.iter().flat_map(each).collect()
    }
}

impl fmt::Display for BasedPlan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.plan.fmt(f)
    }
}

/// A call over one part of the batch entries and heads.
struct Call<'a> {
    plan: &'a wattn_scheduler::BasedPlan,
    checked: &'a CheckedBased<'a>,
    binder: Binder<'a>,
    segments: Vec<Segment>,
}

impl<'a> Call<'a> {
    fn new(plan: &'a BasedPlan, part: &Part, checked: &'a CheckedBased<'a>) -> Self {
        let BasedPlan { engine, plan } = plan;
        let binder = Binder { engine, extent: plan.extent, part: part.clone() };
        let sequences = (0..).zip(&checked.sequences);
        let mut segments: Vec<Segment> = sequences
            .filter(|(index, _)| plan.extent.packed || part.batch.contains(index))
            .map(|(index, &(origin, tokens, keys))| Segment {
                batch: if plan.extent.packed { 0 } else { index },
                origin,
                tokens,
                keys,
                state0: index,
                state: index,
            })
            .collect();
        // The longest start first.
        segments.sort_by_key(|s| std::cmp::Reverse(s.tokens));
        Self { plan, checked, binder, segments }
    }

    /// The states that one dispatch writes and the next one reads: the caller's, or those in the workspace.
    fn between(&self, state: Bound<'a>) -> (Bound<'a>, StateView) {
        if state.is_some() {
            return (state, view(&state));
        }
        let (based, workspace) = (&self.plan.based, self.checked.workspace);
        let row = based.dims().value() + 1;
        let head = based.state_rows() * row;
        let view = StateView { offset: 0, item: based.heads() * head, head, row, column: 1 };
        (workspace.map(|buffer| (buffer, Span::whole(self.plan.workspace_bytes))), view)
    }

    /// One of the call's dispatches; none where there is nothing to do.
    fn dispatch(&self, key: &BasedKey) -> Result<Option<Dispatch>, EncodeError> {
        let (based, part) = (&self.plan.based, &self.binder.part);
        let heads = part.kv_heads.end - part.kv_heads.start;
        let workgroups = count(self.segments.len()) * heads * self.plan.splits;
        if workgroups == 0 {
            return Ok(None);
        }
        let checked = self.checked;
        let narrow = if key.access == Access::Vec8 { Access::Vec4 } else { key.access };
        let rows = |resolved, access| self.binder.rows(Some(Resolved::counted_by(resolved, access)));
        let (q, k) = (rows(&checked.q, key.access)?, rows(&checked.k, key.access)?);
        let v = rows(&checked.v, narrow)?;
        let out = self.binder.output(Some(Resolved::counted_by(&checked.out, narrow)))?;
        let (given0, given) = (self.binder.states(checked.state0)?, self.binder.states(checked.state)?);
        let between = self.between(given);
        let ((state0, state0_view), (state, state_view)) = match key.op {
            BasedOp::Chunk => ((given0, view(&given0)), (given, view(&given))),
            BasedOp::State => ((given0, view(&given0)), between),
            BasedOp::Read => (between, (None, StateView::default())),
        };
        let from_none = key.op != BasedOp::Read && given0.is_none();

        let located = |bound: &Bound<'_>| bound.as_ref().map_or_else(shaders::View::default, |b| b.1.view);
        let (features, value) = (based.dims().qk(), based.dims().value());
        let params = LinearParams {
            first: 0,
            last: workgroups,
            head_first: part.kv_heads.start,
            heads,
            splits: self.plan.splits,
            head_dim: features,
            value_dim: value,
            head_chunks: features.div_ceil(4),
            value_chunks: value.div_ceil(4),
            state_rows: based.state_rows(),
            step: 1,
            q: located(&q),
            k: located(&k),
            v: located(&v),
            out: located(&out),
            state0: state0_view,
            state: state_view,
            score_scale: based.effective_scale(),
            eps: based.effective_eps(),
            normalize: u32::from(based.is_normalized()),
            ..LinearParams::default()
        };
        let mut words: Vec<u32> = bytemuck::cast_slice(std::slice::from_ref(&params)).to_vec();
        let segments = self.segments.iter().map(|s| Segment { state0: if from_none { NONE } else { s.state0 }, ..*s });
        words.extend_from_slice(bytemuck::cast_slice(&segments.collect::<Vec<_>>()));
        let bound = [q, k, v, out, state0, state, None];
        Dispatch::new(self.binder.engine, &Key::Based(*key), &bound, &words, self.plan.grid(workgroups)).map(Some)
    }
}

fn view(bound: &Bound<'_>) -> StateView {
    bound.as_ref().map_or_else(StateView::default, |(_, span)| {
        let shaders::View { offset, batch, head, seq, dim } = span.view;
        StateView { offset, item: batch, head, row: seq, column: dim }
    })
}
