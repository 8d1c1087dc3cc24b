//! A plan that can be encoded: the scheduler's decision, bound to an engine.

use std::fmt;
use std::ops::Range;
use std::sync::Arc;

use wattn_scheduler::shaders::{Params, Sequence, bindings};
use wattn_scheduler::{Part, sequences, work_list};
use wgpu::{
    BindGroup, BindGroupDescriptor, BindGroupEntry, BindingResource, BufferBinding, CommandEncoder, ComputePass,
};

use crate::engine::{Engine, Pipeline};
use crate::error::EncodeError;
use crate::operands::{Checked, Operands, Resolved, Span};
use crate::ring::Slot;

/// How a problem runs on an engine's device. Prints itself; may be encoded any number of times, with other lengths and buffers.
#[derive(Debug, Clone)]
pub struct Plan {
    engine: Engine,
    plan: wattn_scheduler::Plan,
}

/// One dispatch, ready to record.
struct Dispatch {
    pipeline: Arc<Pipeline>,
    bind_group: BindGroup,
    grid: [u32; 2],
    slot: Slot,
}

impl Plan {
    pub(crate) fn new(engine: Engine, plan: wattn_scheduler::Plan) -> Self {
        Self { engine, plan }
    }

    /// What the scheduler decided: kernel, tile, dispatches, memory, FLOPs, bytes.
    #[must_use]
    pub fn details(&self) -> &wattn_scheduler::Plan {
        &self.plan
    }

    /// The engine it was planned on.
    #[must_use]
    pub fn engine(&self) -> &Engine {
        &self.engine
    }

    /// Records the call into `encoder`, in a compute pass of its own. Nothing is submitted.
    ///
    /// # Errors
    /// Operands that do not fit the plan or overlap; a kernel that the device refuses. Nothing has been recorded then.
    pub fn encode(&self, encoder: &mut CommandEncoder, operands: &Operands<'_>) -> Result<(), EncodeError> {
        let dispatches = self.dispatches(operands, None)?;
        self.encode_dispatches(encoder, dispatches);
        Ok(())
    }

    /// Records the call into a compute pass that the caller has open, beside other work.
    ///
    /// # Errors
    /// As [`encode`](Self::encode).
    pub fn encode_in_pass(&self, pass: &mut ComputePass<'_>, operands: &Operands<'_>) -> Result<(), EncodeError> {
        for dispatch in self.dispatches(operands, None)? {
            record(pass, &dispatch);
            pass.on_submitted_work_done(move || drop(dispatch.slot));
        }
        Ok(())
    }

    /// How many slices the call comes in: each is short enough (about half a second by estimate) that an operating system does not
    /// take a busy GPU for a hung one. [`encode`](Self::encode) takes all of them at once.
    #[must_use]
    pub fn slices(&self) -> u32 {
        let parts = self.part_count();
        parts * self.plan.slices.div_ceil(parts)
    }

    /// Records one slice, for callers who submit in between. Slices may come in any order; all are needed.
    ///
    /// # Errors
    /// As [`encode`](Self::encode), or a slice that is not there.
    pub fn encode_slice(
        &self,
        encoder: &mut CommandEncoder,
        operands: &Operands<'_>,
        slice: u32,
    ) -> Result<(), EncodeError> {
        if slice >= self.slices() {
            return Err(EncodeError::Slice { given: slice, slices: self.slices() });
        }
        let dispatches = self.dispatches(operands, Some(slice))?;
        self.encode_dispatches(encoder, dispatches);
        Ok(())
    }

    #[expect(clippy::cast_possible_truncation, reason = "bounded by the workgroups, below 2^32")]
    fn part_count(&self) -> u32 {
        self.plan.parts.len().max(1) as u32
    }

    fn encode_dispatches(&self, encoder: &mut CommandEncoder, dispatches: Vec<Dispatch>) {
        if dispatches.is_empty() {
            return;
        }
        let descriptor = wgpu::ComputePassDescriptor { label: Some("wattn"), timestamp_writes: None };
        let mut pass = encoder.begin_compute_pass(&descriptor);
        for dispatch in &dispatches {
            record(&mut pass, dispatch);
        }
        drop(pass);
        let slots: Vec<Slot> = dispatches.into_iter().map(|d| d.slot).collect();
        encoder.on_submitted_work_done(move || drop(slots));
    }

    fn dispatches(&self, operands: &Operands<'_>, slice: Option<u32>) -> Result<Vec<Dispatch>, EncodeError> {
        let checked = Checked::new(&self.plan, operands)?;
        let all = sequences(&self.plan.attention, self.plan.extent, operands.lengths, operands.causal_offsets)?;
        let pipeline = self.engine.pipeline(&self.plan.key)?;
        let parts = self.part_count();
        let mut dispatches = Vec::with_capacity(self.plan.parts.len());
        for (index, part) in (0..).zip(&self.plan.parts) {
            let share = match slice {
                Some(slice) if slice % parts != index => continue,
                Some(slice) => (slice / parts, self.plan.slices.div_ceil(parts)),
                None => (0, 1),
            };
            let sequences: Vec<Sequence> = if parts == 1 {
                all.clone()
            } else {
                all.iter().filter(|s| part.batch.contains(&s.batch)).copied().collect()
            };
            dispatches.extend(self.dispatch(&pipeline, part, &checked, operands, &sequences, share)?);
        }
        Ok(dispatches)
    }

    /// The dispatch of a part, or the share `index` of `count` of it; none where there is nothing to compute.
    fn dispatch(
        &self,
        pipeline: &Arc<Pipeline>,
        part: &Part,
        checked: &Checked<'_>,
        operands: &Operands<'_>,
        sequences: &[Sequence],
        share: (u32, u32),
    ) -> Result<Option<Dispatch>, EncodeError> {
        let plan = &self.plan;
        let list = work_list(sequences, plan.key.shape.tile_queries());
        let group = plan.attention.heads().group();
        let heads = (part.kv_heads.end - part.kv_heads.start) * group;
        let entries = count(list.len());
        let workgroups = slice_of(entries * heads * plan.splits, share);
        if workgroups.is_empty() {
            return Ok(None);
        }

        let capabilities = self.engine.capabilities();
        let (alignment, limit) = (u64::from(capabilities.binding_alignment), capabilities.binding_bytes);
        let span = |resolved: &Resolved<'_>| resolved.span(part, alignment, limit);
        let optional = |resolved: &Option<Resolved<'_>>| resolved.as_ref().map(span).transpose();
        let q = span(&checked.q)?;
        let out = span(&checked.out)?;
        // With no keys at all there is nothing to bind: the kernel's loops are empty.
        let keys = plan.extent.keys > 0;
        let k = if keys { Some(span(&checked.k)?) } else { None };
        let v = if keys { Some(span(&checked.v)?) } else { None };
        let lse = optional(&checked.lse)?;
        let bias = if keys { optional(&checked.bias)? } else { None };
        let mask = if keys { optional(&checked.mask)? } else { None };

        let view = |span: &Option<Span>| span.as_ref().map_or_else(Default::default, |s| s.view);
        let scores = |span: &Option<Span>| span.as_ref().map_or_else(Default::default, Span::scores);
        let units = Units::new(plan);
        let slopes = 8 * count(sequences.len());
        let sinks = slopes + count(operands.alibi_slopes.len());
        let params = Params {
            first: workgroups.start,
            last: workgroups.end,
            entries,
            head_first: part.kv_heads.start * group,
            heads,
            head_block: divisor(part.kv_heads.end - part.kv_heads.start, plan.head_block) * group,
            group,
            splits: plan.splits,
            head_dim: plan.attention.head_dim().qk(),
            value_dim: plan.attention.head_dim().value(),
            head_chunks: plan.attention.head_dim().qk().div_ceil(4),
            value_chunks: plan.attention.head_dim().value().div_ceil(4),
            q: q.view,
            k: view(&k),
            v: view(&v),
            out: out.view,
            lse: view(&lse),
            bias: scores(&bias),
            mask: scores(&mask),
            score_scale: units.scale,
            softcap: units.softcap,
            records: 0,
            slopes,
            sinks,
            list: sinks + count(operands.sinks.len()),
        };
        let slot = self.write(&params, sequences, operands, units.log, &list);

        let bound = [
            (checked.q.buffer, Some(&q)),
            (checked.k.buffer, k.as_ref()),
            (checked.v.buffer, v.as_ref()),
            (checked.out.buffer, Some(&out)),
            (checked.lse.map_or(checked.out.buffer, |r| r.buffer), lse.as_ref()),
            (checked.bias.map_or(checked.q.buffer, |r| r.buffer), bias.as_ref()),
            (checked.mask.map_or(checked.q.buffer, |r| r.buffer), mask.as_ref()),
        ];
        let entries: Vec<BindGroupEntry<'_>> = bindings(&plan.key)
            .map(|binding| {
                let (buffer, span) = match bound.get(binding.slot as usize) {
                    Some(&(buffer, Some(span))) => (buffer, (span.offset, span.size)),
                    _ => (&slot.buffer, (slot.offset, slot.size)),
                };
                let resource = BufferBinding { buffer, offset: span.0, size: wgpu::BufferSize::new(span.1) };
                BindGroupEntry { binding: binding.slot, resource: BindingResource::Buffer(resource) }
            })
            .collect();
        let bind_group = self.engine.device().create_bind_group(&BindGroupDescriptor {
            label: Some("wattn"),
            layout: &pipeline.layout,
            entries: &entries,
        });
        let grid = plan.grid(workgroups.end - workgroups.start);
        Ok(Some(Dispatch { pipeline: Arc::clone(pipeline), bind_group, grid, slot }))
    }

    /// Writes `aux`: parameters, sequences, slopes, sinks, work list.
    fn write(
        &self,
        params: &Params,
        sequences: &[Sequence],
        operands: &Operands<'_>,
        log: f32,
        list: &[[u32; 2]],
    ) -> Slot {
        let mut words: Vec<u32> = Vec::with_capacity(
            size_of::<Params>() / 4
                + sequences.len() * 8
                + operands.alibi_slopes.len()
                + operands.sinks.len()
                + list.len() * 2,
        );
        words.extend_from_slice(bytemuck::cast_slice(std::slice::from_ref(params)));
        words.extend_from_slice(bytemuck::cast_slice(sequences));
        let per_head = operands.alibi_slopes.iter().chain(operands.sinks);
        words.extend(per_head.map(|x| (x * log).clamp(f32::MIN, f32::MAX).to_bits()));
        words.extend_from_slice(bytemuck::cast_slice(list));
        let bytes: &[u8] = bytemuck::cast_slice(&words);
        let slot = self.engine.inner.ring.slot(self.engine.device(), bytes.len() as u64);
        self.engine.queue().write_buffer(&slot.buffer, slot.offset, bytes);
        slot
    }
}

impl fmt::Display for Plan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.plan.fmt(f)
    }
}

/// The unit that a kernel takes its weights in: log2 where nothing forbids it, natural with a bias (see `weight_natural.wgsl`).
struct Units {
    /// What a natural score is multiplied by.
    log: f32,
    scale: f32,
    softcap: f32,
}

impl Units {
    fn new(plan: &wattn_scheduler::Plan) -> Self {
        let log = if plan.attention.options().bias { 1.0 } else { std::f32::consts::LOG2_E };
        let scale = plan.attention.effective_scale();
        match plan.attention.cap() {
            Some(cap) => Self { log, scale: scale / cap, softcap: cap * log },
            None => Self { log, scale: scale * log, softcap: 0.0 },
        }
    }
}

fn record(pass: &mut ComputePass<'_>, dispatch: &Dispatch) {
    pass.set_pipeline(&dispatch.pipeline.pipeline);
    pass.set_bind_group(0, &dispatch.bind_group, &[]);
    pass.dispatch_workgroups(dispatch.grid[0], dispatch.grid[1], 1);
}

/// The largest divisor of `n` that is at most `most`, which is at least 1.
fn divisor(n: u32, most: u32) -> u32 {
    (1..=most.min(n)).rev().find(|&d| n.is_multiple_of(d)).unwrap_or(1)
}

/// The share `index` of `count` of `0..total`, as even as whole workgroups allow.
#[expect(clippy::cast_possible_truncation, reason = "at most `total`")]
fn slice_of(total: u32, (index, count): (u32, u32)) -> Range<u32> {
    let bound = |i: u32| (u64::from(total) * u64::from(i) / u64::from(count)) as u32;
    bound(index)..bound(index + 1)
}

#[expect(clippy::cast_possible_truncation, reason = "plans hold fewer than 2^32 workgroups and heads")]
fn count(len: usize) -> u32 {
    len as u32
}
