//! Calls on host slices, for the edges: tests, tools, first steps. Each uploads, runs, and reads back.

use std::future::poll_fn;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Poll, Waker};
use std::time::Duration;

use half::{bf16, f16};
use wattn_scheduler::shaders::Storage;
use wattn_scheduler::{Attention, Extent, Lengths};
use wgpu::{Buffer, BufferDescriptor, BufferUsages, MapMode, PollType};

use crate::engine::{Engine, ready};
use crate::error::RunError;
use crate::operands::Operands;
use crate::view::View;

/// The order of the axes of q, k, v and the output on the host.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum HostLayout {
    /// [batch, heads, sequence, dim]; packed: [heads, total, dim].
    #[default]
    Bhsd,
    /// [batch, sequence, heads, dim]; packed: [total, heads, dim].
    Bshd,
}

/// A bias or a mask on the host: [batch or 1, heads or 1, queries, keys].
#[derive(Debug, Clone, Copy)]
pub struct HostScores<'a, T> {
    /// The entries, contiguous.
    pub values: &'a [T],
    /// Whether each batch entry has its own.
    pub per_batch: bool,
    /// Whether each query head has its own.
    pub per_head: bool,
}

/// Operands on the host. Numbers are rounded to the storage that the operator asks for.
#[derive(Debug, Clone, Copy, Default)]
pub struct HostOperands<'a> {
    /// The order of axes.
    pub layout: HostLayout,
    /// Queries.
    pub q: &'a [f32],
    /// Keys.
    pub k: &'a [f32],
    /// Values.
    pub v: &'a [f32],
    /// Additive bias; -inf masks.
    pub bias: Option<HostScores<'a, f32>>,
    /// Mask; true may attend.
    pub mask: Option<HostScores<'a, bool>>,
    /// How long the sequences are.
    pub lengths: Lengths<'a>,
    /// Offsets of a top-left causal mask.
    pub causal_offsets: &'a [i32],
    /// ALiBi slopes, one a query head.
    pub alibi_slopes: &'a [f32],
    /// Sinks, one a query head.
    pub sinks: &'a [f32],
}

/// The result of a call on the host.
#[derive(Debug, Clone, PartialEq)]
pub struct HostOutput {
    /// The output, in the operands' layout.
    pub out: Vec<f32>,
    /// Log-sum-exp [batch, heads, queries] (packed: [heads, total]), where asked for; else empty.
    pub lse: Vec<f32>,
}

/// Blocking calls of an engine; see [`Engine::blocking`].
#[derive(Debug, Clone)]
pub struct Blocking {
    engine: Engine,
    timeout: Duration,
}

impl Engine {
    /// Blocking calls on host slices.
    ///
    /// ```
    /// # fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// use wattn::{Attention, Engine, Extent, HeadDim, Heads};
    /// # if Engine::headless().is_err() { return Ok(()) }
    /// let engine = Engine::headless()?;
    /// let attention = Attention::new(Heads::new(1)?, HeadDim::new(2)?).causal();
    /// let (q, k) = ([1.0, 0.0, 0.0, 1.0], [1.0, 0.0, 0.0, 2.0]);
    /// let out = engine.blocking().attention(&attention, Extent::new(1, 2, 2), &q, &k, &[1.0, 2.0, 3.0, -1.0])?;
    /// assert!((out[2] - 2.608859).abs() < 1e-5);
    /// # Ok(()) }
    /// ```
    #[must_use]
    pub fn blocking(&self) -> Blocking {
        Blocking { engine: self.clone(), timeout: Duration::from_secs(120) }
    }

    /// Runs on host slices and returns when the result is there. On native targets each poll of the future polls the device.
    ///
    /// # Errors
    /// Slices of the wrong length, a refused problem, or a device that fails.
    pub async fn run_on_host(
        &self,
        attention: &Attention,
        extent: Extent,
        operands: &HostOperands<'_>,
    ) -> Result<HostOutput, RunError> {
        let call = Call::submit(self, attention, extent, operands)?;
        call.map();
        poll_fn(|context| {
            // In browsers the device polls itself.
            let lost = self.device().poll(PollType::Poll).err();
            match (lost, call.mapped(Some(context.waker()))) {
                (Some(error), _) => Poll::Ready(Err(RunError::Device(error.to_string()))),
                (None, Some(result)) => Poll::Ready(result),
                (None, None) => {
                    if !cfg!(target_arch = "wasm32") {
                        context.waker().wake_by_ref();
                    }
                    Poll::Pending
                }
            }
        })
        .await?;
        call.read(attention)
    }
}

impl Blocking {
    /// How long one submission may take before the call fails; two minutes unless set.
    #[must_use]
    pub fn timeout(mut self, timeout: Duration) -> Self {
        self.timeout = timeout;
        self
    }

    /// Attention without per-call options on contiguous [batch, heads, sequence, dim] slices.
    ///
    /// # Errors
    /// As [`run`](Self::run).
    pub fn attention(
        &self,
        attention: &Attention,
        extent: Extent,
        q: &[f32],
        k: &[f32],
        v: &[f32],
    ) -> Result<Vec<f32>, RunError> {
        Ok(self.run(attention, extent, &HostOperands { q, k, v, ..HostOperands::default() })?.out)
    }

    /// Attention on host slices.
    ///
    /// # Errors
    /// Slices of the wrong length, a refused problem, a device that fails or takes too long.
    pub fn run(
        &self,
        attention: &Attention,
        extent: Extent,
        operands: &HostOperands<'_>,
    ) -> Result<HostOutput, RunError> {
        let mut call = Call::submit(&self.engine, attention, extent, operands)?;
        for submission in std::mem::take(&mut call.submissions) {
            self.wait(Some(submission))?;
        }
        call.map();
        self.wait(None)?;
        call.mapped(None).unwrap_or_else(|| Err(RunError::Device("a finished buffer was not mapped".to_owned())))?;
        call.read(attention)
    }

    fn wait(&self, submission_index: Option<wgpu::SubmissionIndex>) -> Result<(), RunError> {
        let wait = PollType::Wait { submission_index, timeout: Some(self.timeout) };
        self.engine.device().poll(wait).map(drop).map_err(|error| RunError::Device(error.to_string()))
    }
}

/// A submitted call, its results on the way back.
struct Call {
    out: Buffer,
    lse: Option<Buffer>,
    submissions: Vec<wgpu::SubmissionIndex>,
    mapping: Arc<Mutex<Mapping>>,
}

#[derive(Default)]
struct Mapping {
    pending: usize,
    failure: Option<String>,
    waker: Option<Waker>,
}

impl Call {
    fn submit(
        engine: &Engine,
        attention: &Attention,
        extent: Extent,
        operands: &HostOperands<'_>,
    ) -> Result<Self, RunError> {
        // A lost device shows as an error of whatever is done with it next.
        let validation = engine.device().push_error_scope(wgpu::ErrorFilter::Validation);
        let call = Self::submit_unchecked(engine, attention, extent, operands);
        match ready(validation.pop()).flatten() {
            Some(error) => call.and(Err(RunError::Device(error.to_string()))),
            None => call,
        }
    }

    fn submit_unchecked(
        engine: &Engine,
        attention: &Attention,
        extent: Extent,
        operands: &HostOperands<'_>,
    ) -> Result<Self, RunError> {
        let plan = engine.plan(attention, extent)?;
        let sizes = Sizes::new(attention, extent);
        let (q, kv) = (attention.q_storage(), attention.kv_storage());
        for (argument, given, needed) in
            [("q", operands.q.len(), sizes.q), ("k", operands.k.len(), sizes.k), ("v", operands.v.len(), sizes.v)]
        {
            check(argument, given, needed)?;
        }
        let scores = |per_batch, per_head| sizes.scores(per_batch, per_head);
        let up = |argument, bytes: &[u8]| upload(engine, argument, bytes);
        let q_buffer = up("q", &packed(operands.q, q))?;
        let k_buffer = up("k", &packed(operands.k, kv))?;
        let v_buffer = up("v", &packed(operands.v, kv))?;
        let bias = match &operands.bias {
            Some(bias) => {
                check("bias", bias.values.len(), scores(bias.per_batch, bias.per_head))?;
                Some(up("bias", bytemuck::cast_slice(bias.values))?)
            }
            None => None,
        };
        let mask = match &operands.mask {
            Some(mask) => {
                check("mask", mask.values.len(), scores(mask.per_batch, mask.per_head))?;
                Some(up("mask", bytemuck::cast_slice(&mask_words(mask.values, extent.keys as usize)))?)
            }
            None => None,
        };
        let written = BufferUsages::STORAGE | BufferUsages::COPY_SRC;
        let out_bytes = sizes.out as u64 * u64::from(q.bytes());
        let lse_bytes = sizes.lse as u64 * 4;
        let out = buffer(engine, "out", out_bytes, written)?;
        let lse = if attention.options().lse { Some(buffer(engine, "lse", lse_bytes, written)?) } else { None };

        let view = |buffer| match operands.layout {
            HostLayout::Bhsd => View::bhsd(buffer),
            HostLayout::Bshd => View::bshd(buffer),
        };
        let call = Operands {
            lse: lse.as_ref().map(View::bhsd),
            bias: operands.bias.zip(bias.as_ref()).map(|(b, buffer)| View::scores(buffer, b.per_batch, b.per_head)),
            mask: operands.mask.zip(mask.as_ref()).map(|(m, buffer)| View::scores(buffer, m.per_batch, m.per_head)),
            lengths: operands.lengths,
            causal_offsets: operands.causal_offsets,
            alibi_slopes: operands.alibi_slopes,
            sinks: operands.sinks,
            ..Operands::new(view(&q_buffer), view(&k_buffer), view(&v_buffer), view(&out))
        };
        let mut submissions = Vec::new();
        for slice in 0..plan.slices() {
            let mut encoder = engine.device().create_command_encoder(&wgpu::CommandEncoderDescriptor::default());
            plan.encode_slice(&mut encoder, &call, slice)?;
            submissions.push(engine.queue().submit([encoder.finish()]));
        }
        let read = |argument, source: &Buffer, bytes: u64| -> Result<Buffer, RunError> {
            let target = buffer(engine, argument, bytes, BufferUsages::MAP_READ | BufferUsages::COPY_DST)?;
            let mut encoder = engine.device().create_command_encoder(&wgpu::CommandEncoderDescriptor::default());
            encoder.copy_buffer_to_buffer(source, 0, &target, 0, source.size());
            engine.queue().submit([encoder.finish()]);
            Ok(target)
        };
        let lse = match &lse {
            Some(buffer) => Some(read("lse", buffer, lse_bytes)?),
            None => None,
        };
        let out = read("out", &out, out_bytes)?;
        Ok(Self { out, lse, submissions, mapping: Arc::default() })
    }

    fn map(&self) {
        let buffers = [Some(&self.out), self.lse.as_ref()];
        lock(&self.mapping).pending = buffers.iter().flatten().count();
        for buffer in buffers.into_iter().flatten() {
            let mapping = Arc::clone(&self.mapping);
            buffer.slice(..).map_async(MapMode::Read, move |result| {
                let mut mapping = lock(&mapping);
                mapping.pending -= 1;
                if let Err(error) = result {
                    mapping.failure = Some(error.to_string());
                }
                if let Some(waker) = mapping.waker.take() {
                    waker.wake();
                }
            });
        }
    }

    /// Whether all results are mapped, or failed; else the waker is kept.
    fn mapped(&self, waker: Option<&Waker>) -> Option<Result<(), RunError>> {
        let mut mapping = lock(&self.mapping);
        if mapping.pending > 0 {
            mapping.waker = waker.cloned();
            return None;
        }
        Some(mapping.failure.take().map_or(Ok(()), |failure| Err(RunError::Device(failure))))
    }

    fn read(&self, attention: &Attention) -> Result<HostOutput, RunError> {
        let bytes = |buffer: &Buffer| -> Result<Vec<u8>, RunError> {
            buffer
                .slice(..)
                .get_mapped_range()
                .map(|view| view.to_vec())
                .map_err(|error| RunError::Device(error.to_string()))
        };
        let lse = match &self.lse {
            Some(buffer) => unpacked(&bytes(buffer)?, Storage::F32),
            None => Vec::new(),
        };
        Ok(HostOutput { out: unpacked(&bytes(&self.out)?, attention.q_storage()), lse })
    }
}

/// Numbers in each operand.
struct Sizes {
    q: usize,
    k: usize,
    v: usize,
    out: usize,
    lse: usize,
    batch: usize,
    heads: usize,
    square: usize,
}

impl Sizes {
    fn new(attention: &Attention, extent: Extent) -> Self {
        let batch = if extent.packed { 1 } else { extent.batch as usize };
        let (heads, kv_heads) = (attention.heads().query() as usize, attention.heads().key_value() as usize);
        let (qk, value) = (attention.head_dim().qk() as usize, attention.head_dim().value() as usize);
        let (queries, keys) = (extent.queries as usize, extent.keys as usize);
        let rows = batch * heads * queries;
        let columns = batch * kv_heads * keys;
        Self {
            q: rows * qk,
            k: columns * qk,
            v: columns * value,
            out: rows * value,
            lse: rows,
            batch,
            heads,
            square: queries * keys,
        }
    }

    fn scores(&self, per_batch: bool, per_head: bool) -> usize {
        self.square * if per_batch { self.batch } else { 1 } * if per_head { self.heads } else { 1 }
    }
}

fn check(argument: &'static str, given: usize, needed: usize) -> Result<(), RunError> {
    if given == needed { Ok(()) } else { Err(RunError::Length { argument, given, needed }) }
}

/// Mask bits as the kernels read them: 32 keys a word, least bit first, each row padded to whole words.
#[must_use]
pub fn mask_words(values: &[bool], keys: usize) -> Vec<u32> {
    let word = |bits: &[bool]| bits.iter().rev().fold(0, |word, &bit| word << 1 | u32::from(bit));
    values.chunks(keys.max(1)).flat_map(|row| row.chunks(32).map(word)).collect()
}

fn packed(values: &[f32], storage: Storage) -> Vec<u8> {
    match storage {
        // Plans refuse 8 bits outside of caches.
        Storage::F32 | Storage::Int8 => bytemuck::cast_slice(values).to_vec(),
        Storage::F16 => {
            let (least, most) = (f16::MIN.to_f32(), f16::MAX.to_f32());
            values.iter().flat_map(|&x| f16::from_f32(x.clamp(least, most)).to_le_bytes()).collect()
        }
        Storage::Bf16 => {
            let (least, most) = (bf16::MIN.to_f32(), bf16::MAX.to_f32());
            values.iter().flat_map(|&x| bf16::from_f32(x.clamp(least, most)).to_le_bytes()).collect()
        }
    }
}

fn unpacked(bytes: &[u8], storage: Storage) -> Vec<f32> {
    let pairs = || bytes.chunks_exact(2).map(|b| u16::from_le_bytes([b[0], b[1]]));
    match storage {
        Storage::F32 | Storage::Int8 => {
            bytes.chunks_exact(4).map(|b| f32::from_le_bytes([b[0], b[1], b[2], b[3]])).collect()
        }
        Storage::F16 => pairs().map(|b| f16::from_bits(b).to_f32()).collect(),
        Storage::Bf16 => pairs().map(|b| bf16::from_bits(b).to_f32()).collect(),
    }
}

fn upload(engine: &Engine, argument: &'static str, bytes: &[u8]) -> Result<Buffer, RunError> {
    let made = buffer(engine, argument, bytes.len() as u64, BufferUsages::STORAGE | BufferUsages::COPY_DST)?;
    engine.queue().write_buffer(&made, 0, bytes);
    Ok(made)
}

/// A buffer of at least `bytes` (wgpu has no empty ones); refused memory is an error.
fn buffer(engine: &Engine, argument: &'static str, bytes: u64, usage: BufferUsages) -> Result<Buffer, RunError> {
    let device = engine.device();
    let memory = device.push_error_scope(wgpu::ErrorFilter::OutOfMemory);
    let validation = device.push_error_scope(wgpu::ErrorFilter::Validation);
    let size = bytes.max(4).next_multiple_of(4);
    let made =
        device.create_buffer(&BufferDescriptor { label: Some(argument), size, usage, mapped_at_creation: false });
    let errors = [ready(validation.pop()), ready(memory.pop())];
    match errors.into_iter().flatten().flatten().next() {
        Some(error) => Err(RunError::OutOfMemory { argument, bytes: size, message: error.to_string() }),
        None => Ok(made),
    }
}

/// A buffer's bytes, once all that was submitted is done.
#[cfg(feature = "states")]
pub(crate) fn download(engine: &Engine, buffer: &Buffer, timeout: Duration) -> Result<Vec<u8>, RunError> {
    let target = self::buffer(engine, "state", buffer.size(), BufferUsages::MAP_READ | BufferUsages::COPY_DST)?;
    let mut encoder = engine.device().create_command_encoder(&wgpu::CommandEncoderDescriptor::default());
    encoder.copy_buffer_to_buffer(buffer, 0, &target, 0, buffer.size());
    engine.queue().submit([encoder.finish()]);
    let mapped = Arc::new(Mutex::new(None));
    let result = Arc::clone(&mapped);
    target.slice(..).map_async(MapMode::Read, move |mapped| {
        *result.lock().unwrap_or_else(PoisonError::into_inner) = Some(mapped);
    });
    let failed = |error: &dyn std::fmt::Display| RunError::Device(error.to_string());
    let wait = PollType::Wait { submission_index: None, timeout: Some(timeout) };
    engine.device().poll(wait).map_err(|error| failed(&error))?;
    let mapped = mapped.lock().unwrap_or_else(PoisonError::into_inner).take();
    mapped.unwrap_or(Err(wgpu::BufferAsyncError)).map_err(|error| failed(&error))?;
    Ok(target.slice(..).get_mapped_range().map_err(|error| failed(&error))?.to_vec())
}

fn lock(mapping: &Mutex<Mapping>) -> std::sync::MutexGuard<'_, Mapping> {
    mapping.lock().unwrap_or_else(PoisonError::into_inner)
}
