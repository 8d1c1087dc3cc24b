//! A plan of the backward pass of softmax attention that can be encoded.

use std::fmt;

use wattn_scheduler::shaders::{
    Access, BackwardOp, Binding, DBIAS_TILE, Key, Params, ScoreView, Sequence, View, bindings,
};
use wattn_scheduler::{BackwardStep, Order, Part, key_work_list, sequences, work_list};
use wgpu::{CommandEncoder, ComputePass};

use crate::backward_operands::{BackwardOperands, CheckedBackward};
use crate::bound::Bound;
use crate::dispatch::{self, Dispatch};
use crate::engine::Engine;
use crate::error::EncodeError;
use crate::operands::{Resolved, Span};
use crate::plan::{RECORD, Units, count, divisor, slice_of, words};

/// How the gradients of an attention problem are calculated on an engine's device. Prints itself; may be encoded any number of times,
/// with other lengths and buffers.
#[derive(Debug, Clone)]
pub struct BackwardPlan {
    engine: Engine,
    plan: wattn_scheduler::BackwardPlan,
}

/// One pass over one part, or a share of it.
#[derive(Debug, Clone, Copy)]
struct Job<'a> {
    part: &'a Part,
    step: &'a BackwardStep,
    /// Which of how many.
    share: (u32, u32),
}

impl BackwardPlan {
    pub(crate) fn new(engine: Engine, plan: wattn_scheduler::BackwardPlan) -> Self {
        Self { engine, plan }
    }

    /// What the scheduler decided: kernel, passes, memory, FLOPs, bytes.
    #[must_use]
    pub fn details(&self) -> &wattn_scheduler::BackwardPlan {
        &self.plan
    }

    /// The engine it was planned on.
    #[must_use]
    pub fn engine(&self) -> &Engine {
        &self.engine
    }

    /// Bytes of scratch memory that each call needs: some numbers a query and head, whatever the number of keys.
    #[must_use]
    pub fn workspace_bytes(&self) -> u64 {
        self.plan.workspace_bytes
    }

    /// Records the call into `encoder`, in a compute pass of its own. Nothing is submitted.
    ///
    /// # Errors
    /// Operands that do not fit the plan or overlap; a kernel that the device refuses. Nothing has been recorded then.
    pub fn encode(&self, encoder: &mut CommandEncoder, operands: &BackwardOperands<'_>) -> Result<(), EncodeError> {
        dispatch::encode(encoder, self.dispatches(operands, None)?);
        Ok(())
    }

    /// Records the call into a compute pass that the caller has open, beside other work.
    ///
    /// # Errors
    /// As [`encode`](Self::encode).
    pub fn encode_in_pass(
        &self,
        pass: &mut ComputePass<'_>,
        operands: &BackwardOperands<'_>,
    ) -> Result<(), EncodeError> {
        dispatch::encode_in_pass(pass, self.dispatches(operands, None)?);
        Ok(())
    }

    /// How many slices the call comes in: one where it is short, else one for each pass, or share of a pass that takes about half a
    /// second by estimate. [`encode`](Self::encode) takes all of them at once.
    #[must_use]
    pub fn slices(&self) -> u32 {
        if self.plan.slices > 1 { count(self.jobs().len()).max(1) } else { 1 }
    }

    /// Records one slice, for callers who submit in between. Slices must be submitted in order; all are needed.
    ///
    /// # Errors
    /// As [`encode`](Self::encode), or a slice that is not there.
    pub fn encode_slice(
        &self,
        encoder: &mut CommandEncoder,
        operands: &BackwardOperands<'_>,
        slice: u32,
    ) -> Result<(), EncodeError> {
        let slices = self.slices();
        if slice >= slices {
            return Err(EncodeError::Slice { given: slice, slices });
        }
        dispatch::encode(encoder, self.dispatches(operands, (slices > 1).then_some(slice))?);
        Ok(())
    }

    /// What there is to do, in order: parts after each other, each pass after the ones that it reads from.
    fn jobs(&self) -> Vec<Job<'_>> {
        let parts = count(self.plan.parts.len()).max(1);
        let shares = |step: &BackwardStep| match step.key.op {
            BackwardOp::Delta { .. } | BackwardOp::Dsinks | BackwardOp::Dslopes => 1,
            _ => self.plan.slices.div_ceil(parts),
        };
        let jobs = self.plan.parts.iter().flat_map(|part| self.plan.steps.iter().map(move |step| (part, step)));
        jobs.flat_map(|(part, step)| (0..shares(step)).map(move |n| Job { part, step, share: (n, shares(step)) }))
            .collect()
    }

    fn dispatches(&self, operands: &BackwardOperands<'_>, slice: Option<u32>) -> Result<Vec<Dispatch>, EncodeError> {
        let checked = CheckedBackward::new(&self.plan, operands)?;
        let attention = self.plan.backward.attention();
        let all = sequences(attention, self.plan.extent, operands.lengths, operands.causal_offsets)?;
        let jobs = self.jobs().into_iter().zip(0..);
        jobs.filter(|(_, index)| slice.is_none_or(|slice| slice == *index))
            .filter_map(|(job, _)| self.dispatch(job, &checked, operands, &all).transpose())
            .collect()
    }

    /// One dispatch; none where there is nothing to compute.
    fn dispatch(
        &self,
        Job { part, step, share }: Job<'_>,
        checked: &CheckedBackward<'_>,
        operands: &BackwardOperands<'_>,
        all: &[Sequence],
    ) -> Result<Option<Dispatch>, EncodeError> {
        let (plan, key) = (&self.plan, &step.key);
        let attention = plan.backward.attention();
        let packed = plan.extent.packed;
        let sequences: Vec<Sequence> =
            all.iter().filter(|s| packed || part.batch.contains(&s.batch)).copied().collect();
        let group = attention.heads().group();
        let kv_heads = part.kv_heads.end - part.kv_heads.start;
        let owns_keys = matches!(key.op, BackwardOp::DkDv | BackwardOp::Dk | BackwardOp::Dv);
        let per_kv = if owns_keys { 1 } else { group };
        let heads = kv_heads * per_kv;
        let batches = part.batch.end - part.batch.start;
        let shared = Shared::new(checked.dbias.as_ref(), part, batches, heads);
        let order = Order::of(self.engine.capabilities());
        let list = match key.op {
            BackwardOp::Dq { .. } => work_list(&sequences, key.tile(), order),
            _ if owns_keys => key_work_list(&sequences, key.tile(), order),
            _ => Vec::new(),
        };
        let entries = count(list.len());
        let workgroups = slice_of(self.workgroups(step, entries, [batches, heads], &shared), share);
        if workgroups.is_empty() {
            return Ok(None);
        }

        let bind = |name| self.bind(name, key.access, part, checked);
        let mut bound = [None; 7];
        for binding in bindings(&Key::FlashBackward(*key)) {
            if let Some(place) = bound.get_mut(binding.slot as usize) {
                *place = bind(binding.name)?;
            }
        }
        let rows = self.bind("rows", key.access, part, checked)?;
        let views = Views(bindings(&Key::FlashBackward(*key)), bound);
        let rows = rows.map(|(_, span)| span.view).unwrap_or_default();
        let beside = View { offset: rows.offset.wrapping_add(1), ..rows };
        let units = Units::new(attention);
        let slopes = RECORD * count(sequences.len());
        let sinks = slopes + count(operands.alibi_slopes.len());
        let dims = attention.head_dim();
        let accumulate = match key.op {
            BackwardOp::Dbias => shared.accumulate,
            _ => part.batch.start > 0,
        };
        let params = Params {
            first: workgroups.start,
            last: workgroups.end,
            entries,
            head_first: part.kv_heads.start * per_kv,
            heads,
            head_block: divisor(kv_heads, plan.head_block) * per_kv,
            group,
            splits: step.splits,
            head_dim: dims.qk(),
            value_dim: dims.value(),
            head_chunks: dims.qk().div_ceil(4),
            value_chunks: dims.value().div_ceil(4),
            q: views.get("q"),
            k: views.get("k"),
            v: views.get("v"),
            out: views.get("out"),
            lse: views.get("lse"),
            bias: views.scores("bias"),
            mask: views.scores("mask"),
            score_scale: units.scale,
            softcap: units.softcap,
            records: 0,
            slopes,
            sinks,
            list: sinks + count(operands.sinks.len()),
            grad_out: if key.beside && !matches!(key.op, BackwardOp::Delta { .. }) {
                beside
            } else {
                views.get("grad_out")
            },
            grad_lse: views.get("grad_lse"),
            rows,
            dq: views.get("dq"),
            dk: views.get("dk"),
            dv: if matches!(key.op, BackwardOp::Dsinks | BackwardOp::Dslopes) {
                views.get(if key.op == BackwardOp::Dsinks { "dsinks" } else { "dslopes" })
            } else {
                views.get("dv")
            },
            dbias: views.scores("dbias"),
            gradient_scale: attention.effective_scale(),
            lse_scale: units.log,
            batch_first: part.batch.start,
            batches,
            queries: plan.extent.queries,
            keys: plan.extent.keys,
            shared_batches: shared.batches,
            shared_heads: shared.heads,
            accumulate: accumulate.into(),
            ..Params::default()
        };
        let list = bytemuck::cast_slice(&list);
        let words = words(&params, &sequences, [operands.alibi_slopes, operands.sinks], units.log, &[], list);
        let grid = plan.grid(workgroups.end - workgroups.start);
        Dispatch::new(&self.engine, &Key::FlashBackward(*key), &bound, &words, grid).map(Some)
    }

    /// Workgroups of a pass over a part.
    fn workgroups(&self, step: &BackwardStep, entries: u32, [batches, heads]: [u32; 2], shared: &Shared) -> u32 {
        let extent = self.plan.extent;
        match step.key.op {
            BackwardOp::Delta { .. } => (batches * heads * extent.queries).div_ceil(step.key.tile()),
            BackwardOp::Dsinks | BackwardOp::Dslopes => heads,
            BackwardOp::Dbias => {
                let squares = extent.queries.div_ceil(DBIAS_TILE) * extent.keys.div_ceil(DBIAS_TILE);
                shared.planes * squares
            }
            _ => entries * heads * step.splits,
        }
    }

    /// The binding of an operand: its part; nothing where it has no elements.
    fn bind<'b>(
        &self,
        name: &str,
        access: Access,
        part: &Part,
        checked: &CheckedBackward<'b>,
    ) -> Result<Bound<'b>, EncodeError> {
        let narrow = if access == Access::Vec8 { Access::Vec4 } else { access };
        let resolved = match name {
            "q" => Some(checked.q.counted_by(access)),
            "k" => Some(checked.k.counted_by(access)),
            "v" => Some(checked.v.counted_by(access)),
            "grad_out" => Some(checked.grad_out.counted_by(access)),
            "out" => Some(checked.out.counted_by(narrow)),
            "dq" => Some(checked.dq),
            "dk" => Some(checked.dk),
            "dv" => Some(checked.dv),
            "lse" => Some(checked.lse),
            "grad_lse" => checked.grad_lse,
            "bias" => checked.bias,
            "mask" => checked.mask,
            "dbias" => checked.dbias.as_ref().map(Resolved::own_entries),
            "dsinks" => checked.dsinks,
            "dslopes" => checked.dslopes,
            "rows" => checked.rows,
            _ => None,
        };
        let capabilities = self.engine.capabilities();
        let Some(resolved) = resolved.filter(|r| !r.is_empty()) else { return Ok(None) };
        // Numbers of heads are the same for all batch entries, and so is what these share; of none they are bound too.
        let once = Part { batch: 0..1, ..part.clone() };
        let shared = name == "dbias" && checked.dbias.is_some_and(|dbias| dbias.is_shared(0));
        let part = if shared || matches!(name, "dsinks" | "dslopes") { &once } else { part };
        let span = resolved.span(part, u64::from(capabilities.binding_alignment), capabilities.binding_bytes)?;
        Ok(Some((resolved.buffer, span)))
    }
}

/// The views of what is bound, by name.
struct Views<'a>(Vec<Binding>, [Bound<'a>; 7]);

impl Views<'_> {
    fn span(&self, name: &str) -> Option<Span> {
        let binding = self.0.iter().find(|binding| binding.name == name)?;
        self.1.get(binding.slot as usize)?.map(|(_, span)| span)
    }

    fn get(&self, name: &str) -> View {
        self.span(name).map(|span| span.view).unwrap_or_default()
    }

    fn scores(&self, name: &str) -> ScoreView {
        self.span(name).as_ref().map(Span::scores).unwrap_or_default()
    }
}

/// Batch entries and heads of a part that share an entry of dbias.
struct Shared {
    batches: u32,
    heads: u32,
    /// Entries that are not the same.
    planes: u32,
    /// Whether earlier parts have added to the entries of this one.
    accumulate: bool,
}

impl Shared {
    fn new(dbias: Option<&Resolved<'_>>, part: &Part, batches: u32, heads: u32) -> Self {
        let shared = |axis| dbias.is_some_and(|dbias| dbias.is_shared(axis));
        let split = |axis, count| if shared(axis) { (count, 1) } else { (1, count) };
        let ((batches, own_batches), (heads, own_heads)) = (split(0, batches), split(1, heads));
        Self {
            batches,
            heads,
            planes: own_batches * own_heads,
            accumulate: (shared(0) && part.batch.start > 0) || (shared(1) && part.kv_heads.start > 0),
        }
    }
}

impl fmt::Display for BackwardPlan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.plan.fmt(f)
    }
}
