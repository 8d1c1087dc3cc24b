//! Attention of all layers on the GPU, over keys and values that stay there in pages.

use std::sync::mpsc;

use anyhow::{Context, Result};
use wattn::wgpu::{Buffer, BufferDescriptor, BufferUsages, CommandEncoderDescriptor, MapMode, PollType};
use wattn::{
    Attention, CacheError, CacheLayout, CacheStep, DecodePlan, Engine, Extent, HeadDim, Heads, KvCache, Operands,
    SequenceId, Storage, View, Work,
};
use wattn_examples::smollm2::{HEAD_DIM, HEADS, KV_HEADS, LAYERS};

/// Tokens of a page.
const PAGE: u32 = 16;
/// Pages that the cache starts with and grows by.
const PAGES: u32 = 32;
/// Tokens that the model takes at once, at most: its context.
const CONTEXT: u32 = 8192;

/// The keys and values of a conversation.
pub(crate) struct Cache {
    engine: Engine,
    attention: Attention,
    plan: DecodePlan,
    cache: KvCache,
    sequence: SequenceId,
    /// Of the tokens that the layers are at.
    step: Option<(CacheStep, Work)>,
    rows: Rows,
}

/// What comes and goes at each call, for the device and for the host.
struct Rows {
    q: Buffer,
    k: Buffer,
    v: Buffer,
    out: Buffer,
    read: Buffer,
    workspace: Buffer,
    tokens: usize,
}

impl Cache {
    pub(crate) fn new(engine: &Engine) -> Result<Self> {
        let size = |n: usize| u32::try_from(n).context("a size beyond 32 bits");
        let heads = Heads::grouped(size(HEADS)?, size(KV_HEADS)?)?;
        let dims = HeadDim::new(size(HEAD_DIM)?)?;
        let attention = Attention::new(heads, dims).causal();
        let layout = CacheLayout::new(size(KV_HEADS)?, dims, PAGE, PAGES)?.layers(size(LAYERS)?);
        let mut cache = KvCache::new(engine, layout)?;
        let plan = plan(engine, &attention, &cache)?;
        let rows = Rows::new(engine, 1, plan.workspace_bytes());
        let sequence = cache.create();
        Ok(Self { engine: engine.clone(), attention, plan, cache, sequence, step: None, rows })
    }

    /// Adds the tokens of k and v to a layer; what their queries see of all its tokens up to their own. Layers come in order.
    pub(crate) fn attend(&mut self, layer: usize, q: &[f32], k: &[f32], v: &[f32]) -> Result<Vec<f32>> {
        let tokens = k.len() / (KV_HEADS * HEAD_DIM);
        let mut encoder = self.engine.device().create_command_encoder(&CommandEncoderDescriptor::default());
        if layer == 0 {
            let step = self.begin(u32::try_from(tokens)?)?;
            self.step = Some(step);
        }
        let (step, work) = self.step.as_ref().context("layers come in order")?;
        if self.rows.tokens < tokens {
            self.rows = Rows::new(&self.engine, tokens, self.plan.workspace_bytes());
        }
        let rows = &self.rows;
        for (buffer, values) in [(&rows.q, q), (&rows.k, k), (&rows.v, v)] {
            self.engine.queue().write_buffer(buffer, 0, bytemuck::cast_slice(values));
        }
        let layer = u32::try_from(layer)?;
        self.cache.append(&mut encoder, step, layer, View::bshd(&rows.k), View::bshd(&rows.v), Storage::F32)?;
        let (keys, values) = (self.cache.k(layer)?, self.cache.v(layer)?);
        let operands = Operands::new(View::bshd(&rows.q), keys, values, View::bshd(&rows.out));
        self.plan.encode(&mut encoder, work, &operands, &rows.workspace)?;
        let bytes = size_of_val(q) as u64;
        encoder.copy_buffer_to_buffer(&rows.out, 0, &rows.read, 0, bytes);
        self.engine.queue().submit([encoder.finish()]);
        rows.download(&self.engine, bytes)
    }

    /// Makes room for new tokens, and plans what all layers will do with them.
    fn begin(&mut self, tokens: u32) -> Result<(CacheStep, Work)> {
        let mut encoder = self.engine.device().create_command_encoder(&CommandEncoderDescriptor::default());
        let new = [(self.sequence, tokens)];
        let step = match self.cache.extend(&mut encoder, &new) {
            Err(CacheError::Full { needed, .. }) => {
                self.cache.grow(&mut encoder, needed.next_multiple_of(PAGES))?;
                self.plan = plan(&self.engine, &self.attention, &self.cache)?;
                self.cache.extend(&mut encoder, &new)?
            }
            step => step?,
        };
        self.engine.queue().submit([encoder.finish()]);
        let work = self.plan.work_of(&step)?;
        Ok((step, work))
    }
}

fn plan(engine: &Engine, attention: &Attention, cache: &KvCache) -> Result<DecodePlan> {
    Ok(engine.plan(&attention.decode().cached(*cache.layout()), Extent::packed(1, CONTEXT, CONTEXT))?)
}

impl Rows {
    fn new(engine: &Engine, tokens: usize, workspace_bytes: u64) -> Self {
        let queries = (tokens * HEADS * HEAD_DIM * size_of::<f32>()) as u64;
        let keys = (tokens * KV_HEADS * HEAD_DIM * size_of::<f32>()) as u64;
        let buffer = |size, usage| {
            let label = Some("chat");
            engine.device().create_buffer(&BufferDescriptor { label, size, usage, mapped_at_creation: false })
        };
        let input = BufferUsages::STORAGE | BufferUsages::COPY_DST;
        Self {
            q: buffer(queries, input),
            k: buffer(keys, input),
            v: buffer(keys, input),
            out: buffer(queries, BufferUsages::STORAGE | BufferUsages::COPY_SRC),
            read: buffer(queries, BufferUsages::MAP_READ | BufferUsages::COPY_DST),
            workspace: buffer(workspace_bytes, BufferUsages::STORAGE),
            tokens,
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
