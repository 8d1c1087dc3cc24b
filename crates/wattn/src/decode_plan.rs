//! A plan for few queries over many keys that can be encoded: the scheduler's decision, bound to an engine.

use std::fmt;

use wattn_scheduler::shaders::{Access, Key, Params};
use wattn_scheduler::{CacheStep, Lengths, PlanError, Work};
use wgpu::{Buffer, BufferUsages, CommandEncoder, ComputePass};

use crate::dispatch::{self, Dispatch};
use crate::engine::Engine;
use crate::error::EncodeError;
use crate::operands::{Checked, Operands, Resolved, Span};
use crate::plan::{RECORD, Units, count, words};

/// How attention of few queries over many keys runs on an engine's device. Prints itself; may be encoded any number of times.
#[derive(Debug, Clone)]
pub struct DecodePlan {
    engine: Engine,
    plan: wattn_scheduler::DecodePlan,
}

impl DecodePlan {
    pub(crate) fn new(engine: Engine, plan: wattn_scheduler::DecodePlan) -> Self {
        Self { engine, plan }
    }

    /// What the scheduler decided: kernels, rows, stretches, memory.
    #[must_use]
    pub fn details(&self) -> &wattn_scheduler::DecodePlan {
        &self.plan
    }

    /// Bytes of scratch memory that are enough for any call of this plan.
    #[must_use]
    pub fn workspace_bytes(&self) -> u64 {
        self.plan.workspace_bytes
    }

    /// The work of calls of these lengths, the same for all layers of a model; it prints how even it is.
    ///
    /// # Errors
    /// Lengths or offsets that do not fit the extent, or keys that lie in a cache: see [`KvCache`](crate::KvCache) then.
    pub fn work(&self, lengths: Lengths<'_>, causal_offsets: &[i32]) -> Result<Work, PlanError> {
        self.plan.work(lengths, causal_offsets)
    }

    /// The work of a step of the [`KvCache`](crate::KvCache) that the plan reads, the same for all layers.
    ///
    /// # Errors
    /// More sequences, tokens or keys than the extent has, keys that the queries see but that were evicted, or a plan without a cache.
    pub fn work_of(&self, step: &CacheStep) -> Result<Work, PlanError> {
        self.plan.work_of(step)
    }

    /// Records a call into `encoder`, in a compute pass of its own. Nothing is submitted. Lengths and offsets are those of `work`;
    /// `workspace` is not looked at where the work needs none.
    ///
    /// # Errors
    /// Operands that do not fit the plan or the work or overlap; a kernel that the device refuses. Nothing has been recorded then.
    pub fn encode(
        &self,
        encoder: &mut CommandEncoder,
        work: &Work,
        operands: &Operands<'_>,
        workspace: &Buffer,
    ) -> Result<(), EncodeError> {
        dispatch::encode(encoder, self.dispatches(work, operands, workspace)?);
        Ok(())
    }

    /// Records a call into a compute pass that the caller has open, beside other work.
    ///
    /// # Errors
    /// As [`encode`](Self::encode).
    pub fn encode_in_pass(
        &self,
        pass: &mut ComputePass<'_>,
        work: &Work,
        operands: &Operands<'_>,
        workspace: &Buffer,
    ) -> Result<(), EncodeError> {
        dispatch::encode_in_pass(pass, self.dispatches(work, operands, workspace)?);
        Ok(())
    }

    fn dispatches(
        &self,
        work: &Work,
        operands: &Operands<'_>,
        workspace: &Buffer,
    ) -> Result<Vec<Dispatch>, EncodeError> {
        let call = Call::new(self, work, operands, workspace)?;
        [call.tiles()?, call.stretches()?, call.merges()?].into_iter().flatten().map(Ok).collect()
    }
}

impl fmt::Display for DecodePlan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.plan.fmt(f)
    }
}

/// One call: its operands checked, ready to be bound.
struct Call<'a> {
    engine: &'a Engine,
    plan: &'a wattn_scheduler::DecodePlan,
    work: &'a Work,
    operands: &'a Operands<'a>,
    checked: Checked<'a>,
    workspace: &'a Buffer,
    workspace_bytes: u64,
    units: Units,
}

impl<'a> Call<'a> {
    fn new(
        plan: &'a DecodePlan,
        work: &'a Work,
        operands: &'a Operands<'a>,
        workspace: &'a Buffer,
    ) -> Result<Self, EncodeError> {
        let DecodePlan { engine, plan } = plan;
        if operands.lengths != Lengths::Full {
            return Err(EncodeError::Unused { argument: "lengths" });
        }
        if !operands.causal_offsets.is_empty() {
            return Err(EncodeError::Unused { argument: "causal_offsets" });
        }
        if !plan.made(work) {
            return Err(EncodeError::OtherWork);
        }
        let attention = plan.decode.attention();
        let workspace_bytes = work.workspace_bytes(attention.heads().key_value(), attention.head_dim().value());
        if workspace_bytes > 0 {
            if !workspace.usage().contains(BufferUsages::STORAGE) {
                return Err(EncodeError::Usage { argument: "workspace", given: workspace.usage() });
            }
            if workspace_bytes > workspace.size() {
                let (needed, available) = (workspace_bytes, workspace.size());
                return Err(EncodeError::TooSmall { argument: "workspace", needed, available });
            }
        }
        let wide = plan.split.access == Access::Vec8 || plan.tiles.is_some_and(|key| key.access == Access::Vec8);
        let access = if wide { Access::Vec8 } else { plan.split.access };
        let mut extent = plan.extent;
        extent.queries = work.queries;
        let checked = Checked::new(attention, extent, access, plan.decode.cache(), operands)?;
        checked.check_apart("workspace", workspace)?;
        let units = Units::new(attention);
        Ok(Self { engine, plan, work, operands, checked, workspace, workspace_bytes, units })
    }

    /// The sequences of many queries, in tiles.
    fn tiles(&self) -> Result<Option<Dispatch>, EncodeError> {
        let Some(key) = self.plan.tiles.filter(|_| !self.work.tiles.is_empty()) else { return Ok(None) };
        let attention = self.plan.decode.attention();
        let list = bytemuck::cast_slice(&self.work.tiles);
        let workgroups = count(self.work.tiles.len()) * attention.heads().query() * self.plan.splits;
        let entries = count(self.work.tiles.len());
        let inputs = self.inputs(key.access)?;
        let out = Some(self.bind(self.checked.out)?);
        let lse = self.checked.lse.map(|lse| self.bind(lse)).transpose()?;
        let params = Params {
            entries,
            head_block: attention.heads().group(),
            out: view(&out),
            lse: view(&lse),
            ..self.params(&inputs, workgroups)
        };
        let [q, k, v, bias, mask] = inputs;
        self.dispatch(&Key::Flash(key), &[q, k, v, out, lse, bias, mask], params, list, workgroups).map(Some)
    }

    /// The stretches of keys of the others.
    fn stretches(&self) -> Result<Option<Dispatch>, EncodeError> {
        if self.work.stretches.is_empty() {
            return Ok(None);
        }
        let list = bytemuck::cast_slice(&self.work.stretches);
        let kv_heads = self.plan.decode.attention().heads().key_value();
        let workgroups = count(self.work.stretches.len()) * kv_heads * self.plan.splits;
        let inputs = self.inputs(self.plan.split.access)?;
        let params = self.params(&inputs, workgroups);
        let [q, k, v, bias, mask] = inputs;
        let partials = Some((self.workspace, Span::whole(self.workspace_bytes)));
        self.dispatch(&Key::Split(self.plan.split), &[q, k, v, partials, None, bias, mask], params, list, workgroups)
            .map(Some)
    }

    /// Their partial results, made one.
    fn merges(&self) -> Result<Option<Dispatch>, EncodeError> {
        if self.work.rows.is_empty() {
            return Ok(None);
        }
        // What the rows point to follows them.
        let rows = 4 * count(self.work.rows.len());
        let mut list: Vec<u32> = Vec::with_capacity(rows as usize + self.work.parts.len());
        list.extend(self.work.rows.iter().flat_map(|&[record, row, first, count]| [record, row, rows + first, count]));
        list.extend_from_slice(&self.work.parts);
        let workgroups = count(self.work.rows.len()) * self.plan.decode.attention().heads().key_value();
        let out = Some(self.bind(self.checked.out)?);
        let lse = self.checked.lse.map(|lse| self.bind(lse)).transpose()?;
        let partials = (self.workspace_bytes > 0).then(|| (self.workspace, Span::whole(self.workspace_bytes)));
        let params = Params { out: view(&out), lse: view(&lse), ..self.params(&[None; 5], workgroups) };
        let bound = [partials, None, None, out, lse, None, None];
        self.dispatch(&Key::Merge(self.plan.merge), &bound, params, &list, workgroups).map(Some)
    }

    /// q, k, v, bias and mask for a kernel that loads rows so. With no keys at all there is nothing to bind but queries.
    fn inputs(&self, access: Access) -> Result<[Option<(&'a Buffer, Span)>; 5], EncodeError> {
        let optional = |resolved: Option<Resolved<'a>>| {
            resolved.filter(|r| !r.is_empty()).map(|resolved| self.bind(resolved)).transpose()
        };
        let rows = |resolved: Resolved<'a>| optional(Some(resolved.counted_by(access)));
        let checked = &self.checked;
        Ok([rows(checked.q)?, rows(checked.k)?, rows(checked.v)?, optional(checked.bias)?, optional(checked.mask)?])
    }

    fn bind(&self, resolved: Resolved<'a>) -> Result<(&'a Buffer, Span), EncodeError> {
        let capabilities = self.engine.capabilities();
        let span = resolved.whole_span(u64::from(capabilities.binding_alignment), capabilities.binding_bytes)?;
        Ok((resolved.buffer, span))
    }

    fn params(&self, inputs: &[Option<(&'a Buffer, Span)>; 5], workgroups: u32) -> Params {
        let attention = self.plan.decode.attention();
        let (heads, dims) = (attention.heads(), attention.head_dim());
        let [q, k, v, bias, mask] = inputs;
        let scores =
            |bound: &Option<(&Buffer, Span)>| bound.as_ref().map_or_else(Default::default, |(_, s)| s.scores());
        let slopes = RECORD * count(self.work.sequences.len());
        let sinks = slopes + count(self.operands.alibi_slopes.len());
        let tables = sinks + count(self.operands.sinks.len());
        Params {
            last: workgroups,
            heads: heads.query(),
            group: heads.group(),
            splits: self.plan.splits,
            head_dim: dims.qk(),
            value_dim: dims.value(),
            head_chunks: dims.qk().div_ceil(4),
            value_chunks: dims.value().div_ceil(4),
            q: view(q),
            k: view(k),
            v: view(v),
            bias: scores(bias),
            mask: scores(mask),
            score_scale: self.units.scale,
            softcap: self.units.softcap,
            slopes,
            sinks,
            list: tables + count(self.work.tables.len()),
            partials: self.work.partial_rows,
            tables,
            page_log2: self.plan.decode.cache().map_or(0, |cache| cache.page().ilog2()),
            ..Params::default()
        }
    }

    fn dispatch(
        &self,
        key: &Key,
        bound: &[Option<(&Buffer, Span)>; 7],
        params: Params,
        list: &[u32],
        workgroups: u32,
    ) -> Result<Dispatch, EncodeError> {
        let words = words(
            &params,
            &self.work.sequences,
            [self.operands.alibi_slopes, self.operands.sinks],
            self.units.log,
            &self.work.tables,
            list,
        );
        Dispatch::new(self.engine, key, bound, &words, self.plan.grid(workgroups))
    }
}

fn view(bound: &Option<(&Buffer, Span)>) -> wattn_scheduler::shaders::View {
    bound.as_ref().map_or_else(Default::default, |(_, span)| span.view)
}
