//! Attention of all layers on the GPU, over keys and values that stay there.

use std::sync::mpsc;

use anyhow::{Context, Result};
use wattn::wgpu::{Buffer, BufferDescriptor, BufferUsages, CommandEncoderDescriptor, MapMode, PollType};
use wattn::{Attention, Engine, Extent, HeadDim, Heads, Lengths, Operands, View};
use wattn_examples::smollm2::{HEAD_DIM, HEADS, KV_HEADS, LAYERS};

/// Numbers of a token in a layer's keys, and in its values.
const ROW: usize = KV_HEADS * HEAD_DIM;
/// Tokens that buffers grow by at least.
const GROWTH: usize = 256;

/// The keys and values of a conversation.
pub(crate) struct Cache {
    engine: Engine,
    attention: Attention,
    layers: Vec<Layer>,
    rows: Rows,
    /// Tokens that buffers have room for.
    capacity: usize,
}

struct Layer {
    keys: Buffer,   // [capacity, key heads, head dim]
    values: Buffer, // likewise
    tokens: usize,
}

/// What comes and goes at each call: queries, and what they see, for the device and for the host.
struct Rows {
    q: Buffer,
    out: Buffer,
    read: Buffer,
}

impl Cache {
    pub(crate) fn new(engine: &Engine) -> Result<Self> {
        let size = |n: usize| u32::try_from(n).context("a size beyond 32 bits");
        let heads = Heads::grouped(size(HEADS)?, size(KV_HEADS)?)?;
        let attention = Attention::new(heads, HeadDim::new(size(HEAD_DIM)?)?).causal();
        let layer = |_| Layer { keys: layer_rows(engine, GROWTH), values: layer_rows(engine, GROWTH), tokens: 0 };
        let layers = (0..LAYERS).map(layer).collect();
        Ok(Self {
            engine: engine.clone(),
            attention,
            layers,
            rows: Rows::new(engine, HEADS * HEAD_DIM),
            capacity: GROWTH,
        })
    }

    /// Adds the tokens of k and v to a layer; what their queries see of all its tokens up to their own.
    pub(crate) fn attend(&mut self, layer: usize, q: &[f32], k: &[f32], v: &[f32]) -> Result<Vec<f32>> {
        let (queries, before) = (k.len() / ROW, self.layers[layer].tokens);
        let keys = before + queries;
        if keys > self.capacity {
            self.grow(keys);
        }
        let Self { engine, layers, rows, .. } = self;
        let own = &mut layers[layer];
        own.tokens = keys;
        let bytes = size_of_val(q) as u64;
        if rows.q.size() < bytes {
            *rows = Rows::new(engine, q.len());
        }
        let at = (before * ROW * size_of::<f32>()) as u64;
        engine.queue().write_buffer(&own.keys, at, bytemuck::cast_slice(k));
        engine.queue().write_buffer(&own.values, at, bytemuck::cast_slice(v));
        engine.queue().write_buffer(&rows.q, 0, bytemuck::cast_slice(q));
        let extent = Extent::new(1, u32::try_from(queries)?, u32::try_from(self.capacity)?);
        let lengths = [u32::try_from(keys)?];
        let operands = Operands {
            lengths: Lengths::Keys(&lengths),
            ..Operands::new(View::bshd(&rows.q), View::bshd(&own.keys), View::bshd(&own.values), View::bshd(&rows.out))
        };
        let mut encoder = engine.device().create_command_encoder(&CommandEncoderDescriptor::default());
        engine.plan(&self.attention, extent)?.encode(&mut encoder, &operands)?;
        encoder.copy_buffer_to_buffer(&rows.out, 0, &rows.read, 0, bytes);
        engine.queue().submit([encoder.finish()]);
        rows.download(engine, bytes)
    }

    /// Room for `tokens`, and as many again.
    fn grow(&mut self, tokens: usize) {
        self.capacity = (2 * tokens).next_multiple_of(GROWTH);
        let mut encoder = self.engine.device().create_command_encoder(&CommandEncoderDescriptor::default());
        for layer in &mut self.layers {
            for old in [&mut layer.keys, &mut layer.values] {
                let new = layer_rows(&self.engine, self.capacity);
                encoder.copy_buffer_to_buffer(old, 0, &new, 0, old.size());
                *old = new;
            }
        }
        self.engine.queue().submit([encoder.finish()]);
    }
}

impl Rows {
    fn new(engine: &Engine, numbers: usize) -> Self {
        Self {
            q: buffer(engine, numbers, BufferUsages::STORAGE | BufferUsages::COPY_DST),
            out: buffer(engine, numbers, BufferUsages::STORAGE | BufferUsages::COPY_SRC),
            read: buffer(engine, numbers, BufferUsages::MAP_READ | BufferUsages::COPY_DST),
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

fn layer_rows(engine: &Engine, tokens: usize) -> Buffer {
    buffer(engine, tokens * ROW, BufferUsages::STORAGE | BufferUsages::COPY_DST | BufferUsages::COPY_SRC)
}

fn buffer(engine: &Engine, numbers: usize, usage: BufferUsages) -> Buffer {
    let size = (numbers * size_of::<f32>()) as u64;
    engine.device().create_buffer(&BufferDescriptor { label: Some("chat"), size, usage, mapped_at_creation: false })
}
