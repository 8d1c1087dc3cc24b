//! Buffers that show what went wrong: outputs are filled with NaN before a run and fenced with guard words, inputs are fenced with NaN.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use wattn::Engine;
use wattn::wgpu::util::{BufferInitDescriptor, DeviceExt};
use wattn::wgpu::{self, Buffer, BufferUsages};
use wattn_cases::{Storage, Tensor};

/// A NaN as f32, as two f16 and as two bf16: what outputs hold and are fenced with.
const POISON: u32 = 0x7fff_7fff;
/// Another one, around inputs: read too far and written too far, it does not pass for a guard word.
const FENCE: u32 = 0x7fd5_7fd5;
/// Bytes of guard words at each end of a buffer.
pub(crate) const GUARD: usize = 256;

fn guarded(engine: &Engine, label: &str, bytes: &[u8], word: u32) -> Buffer {
    let guard = bytemuck::cast_slice::<u32, u8>(&[word; GUARD / 4]).to_vec();
    let padding = vec![0xff; bytes.len().next_multiple_of(4) - bytes.len()];
    let contents = [&guard, bytes, &padding, &guard].concat();
    let usage = BufferUsages::STORAGE | BufferUsages::COPY_SRC | BufferUsages::COPY_DST;
    engine.device().create_buffer_init(&BufferInitDescriptor { label: Some(label), contents: &contents, usage })
}

/// An input.
pub(crate) fn fenced(engine: &Engine, label: &str, bytes: &[u8]) -> Buffer {
    guarded(engine, label, bytes, FENCE)
}

/// An output of this many bytes.
pub(crate) fn poisoned(engine: &Engine, label: &str, bytes: usize) -> Buffer {
    let words = vec![POISON; bytes.div_ceil(4)];
    guarded(engine, label, bytemuck::cast_slice(&words).get(..bytes).unwrap_or_default(), POISON)
}

/// The numbers of an output.
///
/// # Errors
/// A device that fails, or a guard word that was overwritten.
pub(crate) fn read(
    engine: &Engine,
    buffer: &Buffer,
    label: &str,
    storage: Storage,
    shape: &[usize],
) -> Result<Vec<f32>> {
    let bytes = read_buffer(engine, buffer)?;
    let size = shape.iter().product::<usize>() * storage.size();
    let (before, rest) = bytes.split_at(GUARD);
    let (inside, after) = rest.split_at(size);
    let after = &after[size.next_multiple_of(4) - size..];
    let intact = |guard: &[u8]| guard.iter().eq(POISON.to_le_bytes().iter().cycle().take(GUARD));
    ensure!(intact(before) && intact(after), "{label}: a guard word was overwritten");
    Ok(Tensor::from_bytes(storage, shape, inside).values)
}

/// A buffer's bytes.
///
/// # Errors
/// A device that fails or does not finish within ten minutes.
fn read_buffer(engine: &Engine, buffer: &Buffer) -> Result<Vec<u8>> {
    let (device, queue) = (engine.device(), engine.queue());
    let target = device.create_buffer(&wgpu::BufferDescriptor {
        label: Some("read back"),
        size: buffer.size(),
        usage: BufferUsages::MAP_READ | BufferUsages::COPY_DST,
        mapped_at_creation: false,
    });
    let mut encoder = device.create_command_encoder(&wgpu::CommandEncoderDescriptor::default());
    encoder.copy_buffer_to_buffer(buffer, 0, &target, 0, buffer.size());
    let submission = queue.submit([encoder.finish()]);
    let (sender, receiver) = std::sync::mpsc::channel();
    target.slice(..).map_async(wgpu::MapMode::Read, move |result| {
        // The receiver is gone only if the wait below failed, which reports itself.
        let _ = sender.send(result);
    });
    let timeout = Some(Duration::from_secs(600));
    device
        .poll(wgpu::PollType::Wait { submission_index: Some(submission), timeout })
        .context("waiting for the device")?;
    receiver.recv().context("the buffer was not mapped")?.context("mapping the buffer")?;
    Ok(target.slice(..).get_mapped_range()?.to_vec())
}
