//! Attention of all layers on the GPU, over keys and values that stay there in the pages of a cache.

use std::sync::mpsc;

use anyhow::{Context, Result};
use wattn::wgpu::{
    Buffer, BufferDescriptor, BufferUsages, CommandEncoder, CommandEncoderDescriptor, MapMode, PollType,
};
use wattn::{
    Attention, CacheLayout, CacheStep, DecodePlan, Engine, Extent, HeadDim, Heads, KvCache, Operands, SequenceId,
    Storage, View, Work,
};
use wattn_examples::smollm2::{HEAD_DIM, HEADS, KV_HEADS, LAYERS};

/// Tokens a page.
const PAGE: u32 = 16;
/// Pages that a conversation starts with.
const PAGES: u32 = 16;

/// The keys and values of a conversation.
pub(crate) struct Cache {
    engine: Engine,
    attention: Attention,
    cache: KvCache,
    conversation: SequenceId,
    tokens: u32,
    step: Option<Step>,
    rows: Rows,
}

/// What is the same for all layers.
struct Step {
    step: CacheStep,
    plan: DecodePlan,
    work: Work,
}

/// What comes and goes at each call.
struct Rows {
    tokens: usize,
    q: Buffer,
    k: Buffer,
    v: Buffer,
    out: Buffer,
    /// The output, for the host.
    read: Buffer,
    workspace: Buffer,
}

impl Cache {
    pub(crate) fn new(engine: &Engine) -> Result<Self> {
        let size = |n: usize| u32::try_from(n).context("a size beyond 32 bits");
        let (heads, dim) = (Heads::grouped(size(HEADS)?, size(KV_HEADS)?)?, HeadDim::new(size(HEAD_DIM)?)?);
        let layout = CacheLayout::new(size(KV_HEADS)?, dim, PAGE, PAGES)?.layers(size(LAYERS)?);
        let mut cache = KvCache::new(engine, layout)?;
        let conversation = cache.create();
        let attention = Attention::new(heads, dim).causal();
        let rows = Rows::new(engine, 1, 4);
        Ok(Self { engine: engine.clone(), attention, cache, conversation, tokens: 0, step: None, rows })
    }

    /// Adds the tokens of k and v to a layer; what their queries see of all its tokens up to their own. The first layer makes room for
    /// them in all.
    pub(crate) fn attend(&mut self, layer: usize, q: &[f32], k: &[f32], v: &[f32]) -> Result<Vec<f32>> {
        let mut encoder = self.engine.device().create_command_encoder(&CommandEncoderDescriptor::default());
        if layer == 0 {
            self.step = Some(self.make_room(&mut encoder, q.len() / (HEADS * HEAD_DIM))?);
        }
        let Self { engine, cache, rows, .. } = self;
        let Step { step, plan, work } = self.step.as_ref().context("layers come in order")?;
        for (buffer, numbers) in [(&rows.q, q), (&rows.k, k), (&rows.v, v)] {
            engine.queue().write_buffer(buffer, 0, bytemuck::cast_slice(numbers));
        }
        let layer = u32::try_from(layer)?;
        cache.append(&mut encoder, step, layer, View::bshd(&rows.k), View::bshd(&rows.v), Storage::F32)?;
        let operands = Operands::new(View::bshd(&rows.q), cache.k(layer)?, cache.v(layer)?, View::bshd(&rows.out));
        plan.encode(&mut encoder, work, &operands, &rows.workspace)?;
        let bytes = size_of_val(q) as u64;
        encoder.copy_buffer_to_buffer(&rows.out, 0, &rows.read, 0, bytes);
        engine.queue().submit([encoder.finish()]);
        rows.download(engine, bytes)
    }

    /// Pages and buffers for so many tokens more.
    fn make_room(&mut self, encoder: &mut CommandEncoder, tokens: usize) -> Result<Step> {
        let queries = u32::try_from(tokens)?;
        self.tokens += queries;
        let (needed, pages) = (self.cache.layout().pages_for(self.tokens), self.cache.layout().pages());
        if needed > pages {
            self.cache.grow(encoder, needed.max(2 * pages) - pages)?;
        }
        let step = self.cache.extend(encoder, &[(self.conversation, queries)])?;
        let layout = *self.cache.layout();
        let extent = Extent::packed(1, queries, PAGE * layout.pages());
        let plan = self.engine.plan(&self.attention.decode().cached(layout), extent)?;
        let workspace = plan.workspace_bytes().max(4);
        if self.rows.tokens < tokens || self.rows.workspace.size() < workspace {
            self.rows = Rows::new(&self.engine, tokens.max(self.rows.tokens), workspace);
        }
        Ok(Step { work: plan.work_of(&step)?, step, plan })
    }
}

impl Rows {
    fn new(engine: &Engine, tokens: usize, workspace: u64) -> Self {
        let buffer = |size, usage| {
            let label = Some("chat");
            engine.device().create_buffer(&BufferDescriptor { label, size, usage, mapped_at_creation: false })
        };
        let rows = |heads: usize, usage| buffer((tokens * heads * HEAD_DIM * size_of::<f32>()) as u64, usage);
        let (given, read) =
            (BufferUsages::STORAGE | BufferUsages::COPY_DST, BufferUsages::MAP_READ | BufferUsages::COPY_DST);
        Self {
            tokens,
            q: rows(HEADS, given),
            k: rows(KV_HEADS, given),
            v: rows(KV_HEADS, given),
            out: rows(HEADS, BufferUsages::STORAGE | BufferUsages::COPY_SRC),
            read: rows(HEADS, read),
            workspace: buffer(workspace, BufferUsages::STORAGE),
        }
    }

    fn download(&self, engine: &Engine, bytes: u64) -> Result<Vec<f32>> {
        let (sender, receiver) = mpsc::channel();
        self.read.map_async(MapMode::Read, 0..bytes, move |result| {
            // The receiver is gone only if the wait below failed, which reports itself.
            let _ = sender.send(result);
        });
        engine.device().poll(PollType::wait_indefinitely()).context("waiting for the device")?;
        receiver.recv().context("the buffer was not mapped")?.context("mapping the buffer")?;
        let out = bytemuck::pod_collect_to_vec(&self.read.get_mapped_range(0..bytes)?);
        self.read.unmap();
        Ok(out)
    }
}
