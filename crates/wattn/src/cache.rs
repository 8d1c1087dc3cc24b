//! A cache of keys and values on a device: its pages' buffers, and what is recorded to fill them.

use wattn_scheduler::shaders::{Access, AppendKey, Key, Params, Sequence, Storage};
use wattn_scheduler::{CacheError, CacheLayout, CacheStep, Pages, PlanError, SequenceId};
use wgpu::{Buffer, BufferDescriptor, BufferUsages, CommandEncoder, ErrorFilter};

use crate::device_work::DeviceWork;
use crate::dispatch::{self, Dispatch};
use crate::engine::Engine;
use crate::error::{EncodeError, RunError};
use crate::operands::Resolved;
use crate::plan::{RECORD, count};
use crate::scope::Scope;
use crate::view::View;

/// Keys and values of many sequences, in pages that sequences share until one of them writes.
///
/// The host keeps the page tables ([`Pages`]), the device the pages: for each layer a buffer of keys and one of values,
/// `[pages, kv heads, page, dim]`. A step makes room for new tokens; then, layer by layer, their keys and values are appended and
/// attended to, all in one encoder.
///
/// ```
/// # fn main() -> Result<(), Box<dyn std::error::Error>> {
/// use wattn::{Attention, CacheLayout, Engine, Extent, HeadDim, Heads, KvCache, Operands, View};
/// # use wattn::wgpu;
/// # if Engine::headless().is_err() { return Ok(()) }
/// let engine = Engine::headless()?;
/// let layout = CacheLayout::new(3, HeadDim::new(64)?, 16, 64)?;
/// let mut cache = KvCache::new(&engine, layout)?;
/// let decode = Attention::new(Heads::grouped(9, 3)?, HeadDim::new(64)?).causal().decode().cached(layout);
/// let plan = engine.plan(&decode, Extent::packed(4, 32, 1024))?;
/// # let rows = |heads: u64| engine.device().create_buffer(&wgpu::BufferDescriptor { label: None, size: 13 * heads * 256,
/// #     usage: wgpu::BufferUsages::STORAGE, mapped_at_creation: false });
/// # let (q, k, v, out) = (rows(9), rows(3), rows(3), rows(9));
/// # let workspace = engine.device().create_buffer(&wgpu::BufferDescriptor { label: None, size: plan.workspace_bytes(),
/// #     usage: wgpu::BufferUsages::STORAGE, mapped_at_creation: false });
///
/// let (one, other) = (cache.create(), cache.create());
/// let mut encoder = engine.device().create_command_encoder(&Default::default());
/// // The first tokens of one sequence, and one token of another: rows [13, heads, 64].
/// let step = cache.extend(&mut encoder, &[(one, 12), (other, 1)])?;
/// let work = plan.work_of(&step)?;
/// cache.append(&mut encoder, &step, 0, View::bshd(&k), View::bshd(&v), wattn::Storage::F32)?;
/// let operands = Operands::new(View::bshd(&q), cache.k(0)?, cache.v(0)?, View::bshd(&out));
/// plan.encode(&mut encoder, &work, &operands, &workspace)?;
/// engine.queue().submit([encoder.finish()]);
/// # Ok(()) }
/// ```
#[derive(Debug)]
pub struct KvCache {
    engine: Engine,
    pages: Pages,
    /// Keys and values of each layer.
    layers: Vec<[Buffer; 2]>,
}

impl KvCache {
    /// An empty cache.
    ///
    /// # Errors
    /// Buffers beyond a binding of the device, or a device without the memory.
    pub fn new(engine: &Engine, layout: CacheLayout) -> Result<Self, RunError> {
        let layers = buffers(engine, &layout)?;
        Ok(Self { engine: engine.clone(), pages: Pages::new(layout), layers })
    }

    /// Its layout; another one after it has grown.
    #[must_use]
    pub fn layout(&self) -> &CacheLayout {
        self.pages.layout()
    }

    /// Its sequences and their pages.
    #[must_use]
    pub fn pages(&self) -> &Pages {
        &self.pages
    }

    /// A sequence without tokens.
    pub fn create(&mut self) -> SequenceId {
        self.pages.create()
    }

    /// Another sequence with the same tokens, without a copy: pages are shared until one of both writes to one.
    ///
    /// # Errors
    /// An unknown sequence.
    pub fn fork(&mut self, id: SequenceId) -> Result<SequenceId, CacheError> {
        self.pages.fork(id)
    }

    /// Keeps the first `tokens` tokens of a sequence.
    ///
    /// # Errors
    /// An unknown sequence, or more tokens than it has, or fewer than were evicted.
    pub fn truncate(&mut self, id: SequenceId, tokens: u32) -> Result<(), CacheError> {
        self.pages.truncate(id, tokens)
    }

    /// Gives back the pages of which all tokens lie before the `first` one that is still needed: under a sliding window of `n` keys,
    /// `evict(id, tokens.saturating_sub(n))` after each step keeps a sequence in a ring of pages.
    ///
    /// # Errors
    /// An unknown sequence, or a token that it does not have.
    pub fn evict(&mut self, id: SequenceId, first: u32) -> Result<(), CacheError> {
        self.pages.evict(id, first)
    }

    /// Forgets a sequence; its pages are free again, but for those that others share.
    ///
    /// # Errors
    /// An unknown sequence.
    pub fn release(&mut self, id: SequenceId) -> Result<(), CacheError> {
        self.pages.release(id)
    }

    /// Makes room for new tokens of each sequence, and records the copies of shared pages that will be written. What comes out is good
    /// for all layers, until the cache changes. The host's tables have changed with this call: submit the encoder before others that
    /// use the cache; if it is dropped instead, pages that were to be copied are not, and their sequences have to be released.
    ///
    /// # Errors
    /// An unknown sequence, one given twice, one that becomes too long, or too few free pages; nothing has changed then.
    pub fn extend(&mut self, encoder: &mut CommandEncoder, new: &[(SequenceId, u32)]) -> Result<CacheStep, CacheError> {
        let step = self.pages.extend(new)?;
        let bytes = [self.layout().k_page_bytes(), self.layout().v_page_bytes()];
        for copy in &step.copies {
            for (buffer, bytes) in self.layers.iter().flat_map(|layer| layer.iter().zip(bytes)) {
                let at = |page: u32| u64::from(page) * bytes;
                // A buffer may not be copied into itself, so that the page goes by way of another one.
                let between = self.engine.device().create_buffer(&BufferDescriptor {
                    label: Some("wattn page"),
                    size: bytes,
                    usage: BufferUsages::COPY_SRC | BufferUsages::COPY_DST,
                    mapped_at_creation: false,
                });
                encoder.copy_buffer_to_buffer(buffer, at(copy.from), &between, 0, bytes);
                encoder.copy_buffer_to_buffer(&between, 0, buffer, at(copy.to), bytes);
            }
        }
        Ok(step)
    }

    /// Records that the keys and values of a step's new tokens go to their pages, in one layer: rows `[kv heads, new tokens, dim]`,
    /// in the order of the step, stored as `storage`.
    ///
    /// # Errors
    /// A step of another cache or from before this one has changed, a layer that is not there, views that do not fit the step, or 8-bit
    /// `storage`, which only caches have.
    pub fn append(
        &self,
        encoder: &mut CommandEncoder,
        step: &CacheStep,
        layer: u32,
        k: View<'_>,
        v: View<'_>,
        storage: Storage,
    ) -> Result<(), EncodeError> {
        self.append_rows(encoder, step, None, layer, [k, v], storage)
    }

    /// The same where only the device knows how many tokens the sequences have, as `work` was told when it was last updated: the new
    /// ones are the last of those. As long as that is fewer than the host knows of, a sequence must not be forked, so that what is
    /// written is in no page of another one.
    ///
    /// # Errors
    /// As [`append`](Self::append), or work of another step or that was not updated yet.
    #[expect(clippy::too_many_arguments, reason = "those of `append`, and the work")]
    pub fn append_at(
        &self,
        encoder: &mut CommandEncoder,
        step: &CacheStep,
        work: &DeviceWork,
        layer: u32,
        k: View<'_>,
        v: View<'_>,
        storage: Storage,
    ) -> Result<(), EncodeError> {
        if !work.details().is_of(step) {
            return Err(EncodeError::OtherWork);
        }
        work.check_made()?;
        self.append_rows(encoder, step, Some(work), layer, [k, v], storage)
    }

    fn append_rows(
        &self,
        encoder: &mut CommandEncoder,
        step: &CacheStep,
        work: Option<&DeviceWork>,
        layer: u32,
        [k, v]: [View<'_>; 2],
        storage: Storage,
    ) -> Result<(), EncodeError> {
        if storage == Storage::Int8 {
            let (given, allowed) =
                (storage.to_string(), "f32, f16 or bf16: the cache makes 8-bit numbers itself".to_owned());
            return Err(PlanError::Invalid { argument: "storage", given, allowed }.into());
        }
        if !self.pages.is_current(step) {
            return Err(EncodeError::OtherStep);
        }
        let [cache_k, cache_v] = self.layer(layer)?;
        let layout = self.layout();
        let both = [
            ("k", k, layout.dims().qk(), cache_k, layout.k_storage()),
            ("v", v, layout.dims().value(), cache_v, layout.v_storage()),
        ];
        let dispatches = both
            .into_iter()
            .filter(|_| step.new_tokens() > 0)
            .map(|(name, rows, dim, pool, to)| self.append_dispatch(step, work, (name, rows, storage), dim, (pool, to)))
            .collect::<Result<_, _>>()?;
        dispatch::encode(encoder, dispatches);
        Ok(())
    }

    fn append_dispatch(
        &self,
        step: &CacheStep,
        work: Option<&DeviceWork>,
        (name, rows, from): (&'static str, View<'_>, Storage),
        dim: u32,
        (pool, to): (&Buffer, Storage),
    ) -> Result<Dispatch, EncodeError> {
        let capabilities = self.engine.capabilities();
        let (alignment, limit) = (u64::from(capabilities.binding_alignment), capabilities.binding_bytes);
        let (kv_heads, tokens) = (self.layout().kv_heads(), step.new_tokens());
        let extent = [1, u64::from(kv_heads), u64::from(tokens), u64::from(dim)];
        let source = Resolved::new(name, &rows, extent, 1, (from, Access::Vec4))?;
        if source.buffer == pool {
            return Err(EncodeError::Aliased { written: "cache", other: name });
        }
        let source_span = source.whole_span(alignment, limit)?;
        let pool_span = self.resolved(name, pool, dim, to)?.whole_span(alignment, limit)?;

        let mut sequences = Vec::with_capacity(step.sequences.len());
        let mut records = Vec::with_capacity(tokens as usize);
        let mut q_start = 0;
        for (record, s) in (0_u32..).zip(&step.sequences) {
            if work.is_none() {
                let (k_start, stored) = (s.first_entry, s.tokens);
                sequences.push(Sequence { q_start, queries: s.new, k_start, stored, ..Sequence::default() });
            }
            records.extend(std::iter::repeat_n(record, s.new as usize));
            q_start += s.new;
        }
        let key = AppendKey { from, access: Access::Vec4, to, device: work.is_some() };
        let tables = RECORD * count(sequences.len());
        let params = Params {
            entries: tokens,
            heads: kv_heads,
            head_dim: dim,
            head_chunks: dim / 4,
            k: source_span.view,
            out: pool_span.view,
            records: work.map_or(0, |work| work.details().records_at()),
            tables,
            list: tables + count(step.tables.len()),
            page_log2: self.layout().page().ilog2(),
            ..Params::default()
        };
        let mut words: Vec<u32> = bytemuck::cast_slice(std::slice::from_ref(&params)).to_vec();
        words.extend_from_slice(bytemuck::cast_slice(&sequences));
        words.extend_from_slice(&step.tables);
        words.extend_from_slice(&records);
        let units = if to == Storage::Int8 { 1 } else { dim / 4 };
        let invocations = u64::from(tokens) * u64::from(kv_heads) * u64::from(units);
        let workgroups = u32::try_from(invocations.div_ceil(AppendKey::INVOCATIONS.into())).unwrap_or(u32::MAX);
        let made = work.map(|work| (work.buffer(), work.span()));
        let bound = [None, Some((source.buffer, source_span)), made, Some((pool, pool_span)), None, None, None];
        let grid = wattn_scheduler::grid(workgroups, capabilities.workgroups_per_axis);
        Dispatch::new(&self.engine, &Key::Append(key), &bound, &words, grid)
    }

    /// The keys of a layer, for a plan that reads this cache.
    ///
    /// # Errors
    /// A layer that is not there.
    pub fn k(&self, layer: u32) -> Result<View<'_>, PlanError> {
        let layout = self.layout();
        Ok(pool_view(&self.layer(layer)?[0], layout, layout.dims().qk(), layout.k_storage()))
    }

    /// The values of a layer, for a plan that reads this cache.
    ///
    /// # Errors
    /// A layer that is not there.
    pub fn v(&self, layer: u32) -> Result<View<'_>, PlanError> {
        let layout = self.layout();
        Ok(pool_view(&self.layer(layer)?[1], layout, layout.dims().value(), layout.v_storage()))
    }

    fn layer(&self, layer: u32) -> Result<&[Buffer; 2], PlanError> {
        let (given, allowed) = (layer.to_string(), format!("below {}", self.layers.len()));
        self.layers.get(layer as usize).ok_or(PlanError::Invalid { argument: "layer", given, allowed })
    }

    fn resolved<'a>(
        &self,
        name: &'static str,
        pool: &'a Buffer,
        dim: u32,
        storage: Storage,
    ) -> Result<Resolved<'a>, EncodeError> {
        let layout = self.layout();
        let extent = [layout.pages(), layout.kv_heads(), layout.page(), dim].map(u64::from);
        Resolved::new(name, &pool_view(pool, layout, dim, storage), extent, 1, (storage, Access::Vec4))
    }

    /// Adds pages: larger buffers, into which the present pages are copied by what is recorded; submit the encoder before others that
    /// use the cache, or what it held is lost. Plans of the layout before refuse steps of it.
    ///
    /// # Errors
    /// Buffers beyond a binding of the device, or a device without the memory; nothing has changed then.
    pub fn grow(&mut self, encoder: &mut CommandEncoder, pages: u32) -> Result<(), RunError> {
        let mut grown = self.pages.clone();
        grown.grow(pages)?;
        let layers = buffers(&self.engine, grown.layout())?;
        for (old, new) in self.layers.iter().flatten().zip(layers.iter().flatten()) {
            encoder.copy_buffer_to_buffer(old, 0, new, 0, old.size());
        }
        (self.pages, self.layers) = (grown, layers);
        Ok(())
    }

    /// Records copies of a sequence's keys and values of one layer, as they are stored, into buffers `[kv heads, tokens, dim]`, without
    /// the tokens that were evicted; rows of 8-bit numbers are `dim + 4` bytes, the last four their scale, an f32. Returns how many tokens.
    ///
    /// # Errors
    /// An unknown sequence, a layer that is not there, or buffers that are too small or may not be copied to.
    pub fn export(
        &self,
        encoder: &mut CommandEncoder,
        id: SequenceId,
        layer: u32,
        k: &Buffer,
        v: &Buffer,
    ) -> Result<u32, RunError> {
        let layout = self.layout();
        let table = self.pages.table(id)?;
        let tokens = self.pages.kept(id)?;
        let pools = self.layer(layer)?;
        let rows =
            [layout.k_storage().row_bytes(layout.dims().qk()), layout.v_storage().row_bytes(layout.dims().value())];
        let out = [("k", k), ("v", v)];
        for ((argument, buffer), row) in out.into_iter().zip(rows) {
            let needed = u64::from(layout.kv_heads()) * u64::from(tokens) * u64::from(row);
            if needed > buffer.size() {
                return Err(EncodeError::TooSmall { argument, needed, available: buffer.size() }.into());
            }
            if !buffer.usage().contains(BufferUsages::COPY_DST) {
                return Err(RunError::CopyUsage { argument, given: buffer.usage() });
            }
        }
        for ((pool, (_, buffer)), row) in pools.iter().zip(out).zip(rows) {
            let row = u64::from(row);
            for head in 0..u64::from(layout.kv_heads()) {
                for (n, &page) in (0_u64..).zip(table) {
                    let page_tokens = u64::from(layout.page());
                    let first = n * page_tokens;
                    let count = page_tokens.min(u64::from(tokens) - first);
                    let from = (u64::from(page) * u64::from(layout.kv_heads()) + head) * page_tokens * row;
                    let to = (head * u64::from(tokens) + first) * row;
                    encoder.copy_buffer_to_buffer(pool, from, buffer, to, count * row);
                }
            }
        }
        Ok(tokens)
    }
}

/// Pages as a view: rows of a head follow each other, heads of a page, pages. Rows of 8-bit numbers are followed by their scale.
fn pool_view<'a>(buffer: &'a Buffer, layout: &CacheLayout, dim: u32, storage: Storage) -> View<'a> {
    let row = storage.row_bytes(dim) / storage.bytes();
    let head = layout.page() * row;
    View::strided(buffer, [layout.kv_heads() * head, head, row, 1])
}

/// The buffers of all layers.
fn buffers(engine: &Engine, layout: &CacheLayout) -> Result<Vec<[Buffer; 2]>, RunError> {
    let device = engine.device();
    let limit = engine.capabilities().binding_bytes.min(device.limits().max_buffer_size);
    let sizes = [("k", layout.k_page_bytes()), ("v", layout.v_page_bytes())]
        .map(|(name, page)| (name, page.saturating_mul(layout.pages().into())));
    for (argument, needed) in sizes {
        if needed > limit {
            let (available, unit) = (limit, "bytes of pages in one layer");
            let advice = "; fewer pages, or a higher max_storage_buffer_binding_size";
            return Err(PlanError::Limit { argument, needed, available, unit, advice }.into());
        }
    }
    let scope = Scope::open(device, &[ErrorFilter::OutOfMemory]);
    let made = (0..layout.layer_count())
        .map(|_| {
            sizes.map(|(_, size)| {
                device.create_buffer(&BufferDescriptor {
                    label: Some("wattn cache"),
                    size,
                    usage: BufferUsages::STORAGE | BufferUsages::COPY_SRC | BufferUsages::COPY_DST,
                    mapped_at_creation: false,
                })
            })
        })
        .collect();
    match scope.close() {
        Some(error) => {
            Err(RunError::OutOfMemory { argument: "cache", bytes: layout.bytes(), message: error.to_string() })
        }
        None => Ok(made),
    }
}
