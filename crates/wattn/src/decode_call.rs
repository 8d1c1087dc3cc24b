//! One call of a plan for few queries: its operands checked, and bound for the dispatches.

use wattn_scheduler::shaders::{Access, Key, MergeKey, Params, SplitKey};
use wattn_scheduler::{Lengths, Part};
use wgpu::{Buffer, BufferUsages};

use crate::decode_plan::AnyWork;
use crate::dispatch::{Dispatch, Grid};
use crate::engine::Engine;
use crate::error::EncodeError;
use crate::operands::{Checked, Operands, Resolved, Span};
use crate::plan::{RECORD, Units, count, words};

const GRID: u64 = wattn_scheduler::DeviceWork::GRID;

/// One call: its operands checked, ready to be bound.
pub(crate) struct Call<'a> {
    engine: &'a Engine,
    plan: &'a wattn_scheduler::DecodePlan,
    work: AnyWork<'a>,
    operands: &'a Operands<'a>,
    checked: Checked<'a>,
    workspace: &'a Buffer,
    workspace_bytes: u64,
    units: Units,
}

impl<'a> Call<'a> {
    pub(crate) fn new(
        engine: &'a Engine,
        plan: &'a wattn_scheduler::DecodePlan,
        work: AnyWork<'a>,
        operands: &'a Operands<'a>,
        workspace: &'a Buffer,
    ) -> Result<Self, EncodeError> {
        if operands.lengths != Lengths::Full {
            return Err(EncodeError::Unused { argument: "lengths" });
        }
        if !operands.causal_offsets.is_empty() {
            return Err(EncodeError::Unused { argument: "causal_offsets" });
        }
        let own = match work {
            AnyWork::Host(work) => plan.made(work),
            AnyWork::Device(work) => plan.made_on_device(work.details()),
        };
        if !own {
            return Err(EncodeError::OtherWork);
        }
        if let AnyWork::Device(work) = work {
            work.check_made()?;
        }
        let attention = plan.decode.attention();
        let workspace_bytes = plan.bytes_of(work.partial_rows());
        if workspace_bytes > 0 {
            if matches!(work, AnyWork::Device(work) if work.buffer() == workspace) {
                return Err(EncodeError::Aliased { written: "workspace", other: "work" });
            }
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
        extent.queries = work.queries();
        let checked = Checked::new(attention, extent, access, plan.decode.cache(), operands)?;
        if workspace_bytes > 0 {
            checked.check_apart("workspace", workspace)?;
        }
        if let AnyWork::Device(work) = work {
            checked.check_apart("work", work.buffer())?;
        }
        let units = Units::new(attention);
        Ok(Self { engine, plan, work, operands, checked, workspace, workspace_bytes, units })
    }

    /// The sequences of many queries, in tiles.
    pub(crate) fn tiles(&self, part: &Part) -> Result<Option<Dispatch>, EncodeError> {
        // Lengths on the device are of sequences with few queries.
        let AnyWork::Host(work) = self.work else { return Ok(None) };
        let list: Vec<[u32; 2]> = self.of_part(part, &work.tiles).collect();
        let Some(key) = self.plan.tiles.filter(|_| !list.is_empty()) else { return Ok(None) };
        let group = self.plan.decode.attention().heads().group();
        let entries = count(list.len());
        let workgroups = entries * heads(part) * group * self.plan.splits;
        let inputs = self.inputs(part, key.access)?;
        let out = Some(self.bind(part, self.checked.out)?);
        let lse = self.checked.lse.map(|lse| self.bind(part, lse)).transpose()?;
        let params = Params {
            entries,
            head_block: group,
            out: view(&out),
            lse: view(&lse),
            ..self.params(part, &inputs, workgroups)
        };
        let [q, k, v, bias, mask] = inputs;
        let grid = Grid::Known(self.plan.grid(workgroups));
        self.dispatch(&Key::Flash(key), &[q, k, v, out, lse, bias, mask], params, list.as_flattened(), grid).map(Some)
    }

    /// The stretches of keys of the others.
    pub(crate) fn stretches(&self, part: &Part) -> Result<Option<Dispatch>, EncodeError> {
        let mut list: Vec<[u32; 5]> = Vec::new();
        let (workgroups, grid) = match self.work {
            AnyWork::Host(work) => {
                list.extend(self.of_part(part, &work.stretches));
                let workgroups = count(list.len()) * heads(part) * self.plan.splits;
                (workgroups, Grid::Known(self.plan.grid(workgroups)))
            }
            AnyWork::Device(work) => (work.details().stretches, Grid::Told(work.buffer().clone(), GRID)),
        };
        if workgroups == 0 {
            return Ok(None);
        }
        let inputs = self.inputs(part, self.plan.split.access)?;
        let mut params = self.params(part, &inputs, workgroups);
        if let AnyWork::Device(work) = self.work {
            params.list = work.details().stretches_at();
        }
        let [q, k, v, bias, mask] = inputs;
        let partials = Some((self.workspace, Span::whole(self.workspace_bytes)));
        let key = SplitKey { device: self.work.device().is_some(), ..self.plan.split };
        let bound = [q, k, v, partials, self.made(), bias, mask];
        self.dispatch(&Key::Split(key), &bound, params, list.as_flattened(), grid).map(Some)
    }

    /// Their partial results, made one.
    pub(crate) fn merges(&self, part: &Part) -> Result<Option<Dispatch>, EncodeError> {
        let mut list: Vec<u32> = Vec::new();
        let rows = match self.work {
            AnyWork::Host(work) => {
                let rows: Vec<[u32; 4]> = self.of_part(part, &work.rows).collect();
                // What the rows point to follows them.
                let parts = 4 * count(rows.len());
                list.extend(rows.iter().flat_map(|&[record, row, first, n]| [record, row, parts + first, n]));
                list.extend_from_slice(&work.parts);
                count(rows.len())
            }
            AnyWork::Device(work) => work.details().rows,
        };
        let workgroups = rows * heads(part);
        if workgroups == 0 {
            return Ok(None);
        }
        let out = Some(self.bind(part, self.checked.out)?);
        let lse = self.checked.lse.map(|lse| self.bind(part, lse)).transpose()?;
        let partials = (self.workspace_bytes > 0).then(|| (self.workspace, Span::whole(self.workspace_bytes)));
        let mut params = Params { out: view(&out), lse: view(&lse), ..self.params(part, &[None; 5], workgroups) };
        if let AnyWork::Device(work) = self.work {
            params.list = work.details().rows_at();
        }
        let bound = [partials, self.made(), None, out, lse, None, None];
        let key = MergeKey { device: self.work.device().is_some(), ..self.plan.merge };
        self.dispatch(&Key::Merge(key), &bound, params, &list, Grid::Known(self.plan.grid(workgroups))).map(Some)
    }

    /// q, k, v, bias and mask for a kernel that loads rows so. With no keys at all there is nothing to bind but queries.
    fn inputs(&self, part: &Part, access: Access) -> Result<[Option<(&'a Buffer, Span)>; 5], EncodeError> {
        let optional = |resolved: Option<Resolved<'a>>| {
            resolved.filter(|r| !r.is_empty()).map(|resolved| self.bind(part, resolved)).transpose()
        };
        let rows = |resolved: Resolved<'a>| optional(Some(resolved.counted_by(access)));
        let checked = &self.checked;
        Ok([rows(checked.q)?, rows(checked.k)?, rows(checked.v)?, optional(checked.bias)?, optional(checked.mask)?])
    }

    /// What the device made of the work.
    fn made(&self) -> Option<(&'a Buffer, Span)> {
        match self.work {
            AnyWork::Host(_) => None,
            AnyWork::Device(work) => Some((work.buffer(), work.span())),
        }
    }

    /// What of a list concerns the batch entries of a part; its entries begin with their sequence.
    fn of_part<const N: usize>(&self, part: &Part, list: &'a [[u32; N]]) -> impl Iterator<Item = [u32; N]> {
        let sequences = self.work.sequences();
        let batch = part.batch.clone();
        list.iter().copied().filter(move |entry| batch.contains(&sequences[entry[0] as usize].batch))
    }

    fn bind(&self, part: &Part, resolved: Resolved<'a>) -> Result<(&'a Buffer, Span), EncodeError> {
        let capabilities = self.engine.capabilities();
        let (alignment, limit) = (u64::from(capabilities.binding_alignment), capabilities.binding_bytes);
        // Pages of a cache are no batch entries: one part is all there is.
        let one = self.plan.parts.len() == 1;
        let span = if one { resolved.whole_span(alignment, limit) } else { resolved.span(part, alignment, limit) }?;
        Ok((resolved.buffer, span))
    }

    fn params(&self, part: &Part, inputs: &[Option<(&'a Buffer, Span)>; 5], workgroups: u32) -> Params {
        let attention = self.plan.decode.attention();
        let (group, dims) = (attention.heads().group(), attention.head_dim());
        let [q, k, v, bias, mask] = inputs;
        let scores =
            |bound: &Option<(&Buffer, Span)>| bound.as_ref().map_or_else(Default::default, |(_, s)| s.scores());
        let slopes = RECORD * count(self.work.sequences().len());
        let sinks = slopes + count(self.operands.alibi_slopes.len());
        let tables = sinks + count(self.operands.sinks.len());
        Params {
            last: workgroups,
            head_first: part.kv_heads.start * group,
            heads: heads(part) * group,
            group,
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
            records: self.work.device().map_or(0, |work| work.details().records_at()),
            slopes,
            sinks,
            list: tables + count(self.work.tables().len()),
            partials: self.work.partial_rows(),
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
        grid: Grid,
    ) -> Result<Dispatch, EncodeError> {
        let words = words(
            &params,
            self.work.sequences(),
            [self.operands.alibi_slopes, self.operands.sinks],
            self.units.log,
            self.work.tables(),
            list,
        );
        Dispatch::new(self.engine, key, bound, &words, grid)
    }
}

/// Key/value heads of a part.
fn heads(part: &Part) -> u32 {
    part.kv_heads.end - part.kv_heads.start
}

fn view(bound: &Option<(&Buffer, Span)>) -> wattn_scheduler::shaders::View {
    bound.as_ref().map_or_else(Default::default, |(_, span)| span.view)
}
