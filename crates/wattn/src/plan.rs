//! A plan that can be encoded: the scheduler's decision, bound to an engine.

use std::fmt;
use std::ops::Range;

use wattn_scheduler::shaders::{Key, Params, Sequence};
use wattn_scheduler::{Attention, Order, Part, sequences, work_list};
use wgpu::{CommandEncoder, ComputePass};

use crate::dispatch::{self, Dispatch};
use crate::engine::Engine;
use crate::error::EncodeError;
use crate::operands::{Checked, Operands, Resolved, Span};

/// How a problem runs on an engine's device. Prints itself; may be encoded any number of times, with other lengths and buffers.
#[derive(Debug, Clone)]
pub struct Plan {
    engine: Engine,
    plan: wattn_scheduler::Plan,
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
        dispatch::encode(encoder, dispatches);
        Ok(())
    }

    /// Records the call into a compute pass that the caller has open, beside other work.
    ///
    /// # Errors
    /// As [`encode`](Self::encode).
    pub fn encode_in_pass(&self, pass: &mut ComputePass<'_>, operands: &Operands<'_>) -> Result<(), EncodeError> {
        dispatch::encode_in_pass(pass, self.dispatches(operands, None)?);
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
        dispatch::encode(encoder, dispatches);
        Ok(())
    }

    #[expect(clippy::cast_possible_truncation, reason = "bounded by the workgroups, below 2^32")]
    fn part_count(&self) -> u32 {
        self.plan.parts.len().max(1) as u32
    }

    fn dispatches(&self, operands: &Operands<'_>, slice: Option<u32>) -> Result<Vec<Dispatch>, EncodeError> {
        let plan = &self.plan;
        let checked = Checked::new(&plan.attention, plan.extent, plan.key.access, None, operands)?;
        let all = sequences(&self.plan.attention, self.plan.extent, operands.lengths, operands.causal_offsets)?;
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
            dispatches.extend(self.dispatch(part, &checked, operands, &sequences, share)?);
        }
        Ok(dispatches)
    }

    /// The dispatch of a part, or the share `index` of `count` of it; none where there is nothing to compute.
    fn dispatch(
        &self,
        part: &Part,
        checked: &Checked<'_>,
        operands: &Operands<'_>,
        sequences: &[Sequence],
        share: (u32, u32),
    ) -> Result<Option<Dispatch>, EncodeError> {
        let plan = &self.plan;
        let order = Order::of(self.engine.capabilities());
        let list = work_list(sequences, plan.key.shape.tile_queries(), order);
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
        let units = Units::new(&plan.attention);
        let slopes = RECORD * count(sequences.len());
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
            ..Params::default()
        };
        let list = bytemuck::cast_slice(&list);
        let words = words(&params, sequences, [operands.alibi_slopes, operands.sinks], units.log, &[], list);

        let bound = [
            Some((checked.q.buffer, q)),
            k.map(|k| (checked.k.buffer, k)),
            v.map(|v| (checked.v.buffer, v)),
            Some((checked.out.buffer, out)),
            checked.lse.map(|r| r.buffer).zip(lse),
            checked.bias.map(|r| r.buffer).zip(bias),
            checked.mask.map(|r| r.buffer).zip(mask),
        ];
        let grid = plan.grid(workgroups.end - workgroups.start);
        Dispatch::new(&self.engine, &Key::Flash(plan.key), &bound, &words, grid).map(Some)
    }
}

/// Words of a sequence in `aux`.
#[expect(clippy::cast_possible_truncation, reason = "a few words")]
pub(crate) const RECORD: u32 = size_of::<Sequence>() as u32 / 4;

/// The words of `aux`: parameters, sequences, slopes, sinks, page tables, work list.
pub(crate) fn words(
    params: &Params,
    sequences: &[Sequence],
    [slopes, sinks]: [&[f32]; 2],
    log: f32,
    tables: &[u32],
    list: &[u32],
) -> Vec<u32> {
    let numbers = slopes.len() + sinks.len() + tables.len() + list.len();
    let mut words: Vec<u32> = Vec::with_capacity(size_of::<Params>() / 4 + size_of_val(sequences) / 4 + numbers);
    words.extend_from_slice(bytemuck::cast_slice(std::slice::from_ref(params)));
    words.extend_from_slice(bytemuck::cast_slice(sequences));
    words.extend(slopes.iter().chain(sinks).map(|x| (x * log).clamp(f32::MIN, f32::MAX).to_bits()));
    words.extend_from_slice(tables);
    words.extend_from_slice(list);
    if numbers == 0 && sequences.is_empty() {
        words.push(0); // a binding holds one of the words that follow the parameters at least
    }
    words
}

impl fmt::Display for Plan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.plan.fmt(f)
    }
}

/// The unit that a kernel takes its weights in: log2 where nothing forbids it, natural with a bias (see `weight_natural.wgsl`).
#[derive(Debug, Clone, Copy)]
pub(crate) struct Units {
    /// What a natural score is multiplied by.
    pub(crate) log: f32,
    pub(crate) scale: f32,
    pub(crate) softcap: f32,
}

impl Units {
    pub(crate) fn new(attention: &Attention) -> Self {
        let log = if attention.options().bias { 1.0 } else { std::f32::consts::LOG2_E };
        let scale = attention.effective_scale();
        match attention.cap() {
            Some(cap) => Self { log, scale: scale / cap, softcap: cap * log },
            None => Self { log, scale: scale * log, softcap: 0.0 },
        }
    }
}

/// The largest divisor of `n` that is at most `most`, which is at least 1.
pub(crate) fn divisor(n: u32, most: u32) -> u32 {
    (1..=most.min(n)).rev().find(|&d| n.is_multiple_of(d)).unwrap_or(1)
}

/// The share `index` of `count` of `0..total`, as even as whole workgroups allow.
#[expect(clippy::cast_possible_truncation, reason = "at most `total`")]
pub(crate) fn slice_of(total: u32, (index, count): (u32, u32)) -> Range<u32> {
    let bound = |i: u32| (u64::from(total) * u64::from(i) / u64::from(count)) as u32;
    bound(index)..bound(index + 1)
}

#[expect(clippy::cast_possible_truncation, reason = "plans hold fewer than 2^32 workgroups and heads")]
pub(crate) fn count(len: usize) -> u32 {
    len as u32
}
