//! Numbers on their way between host slices and buffers.

use half::{bf16, f16};
use wattn_scheduler::shaders::Storage;
use wgpu::{Buffer, BufferDescriptor, BufferUsages, CommandEncoderDescriptor, ErrorFilter};

use crate::engine::Engine;
use crate::error::RunError;
use crate::scope::Scope;

/// Refuses a slice of the wrong length.
pub(super) fn check(argument: &'static str, given: usize, needed: usize) -> Result<(), RunError> {
    if given == needed { Ok(()) } else { Err(RunError::Length { argument, given, needed }) }
}

/// Mask bits as the kernels read them: 32 keys a word, least bit first, each row padded to whole words.
#[must_use]
pub fn mask_words(values: &[bool], keys: usize) -> Vec<u32> {
    let word = |bits: &[bool]| bits.iter().rev().fold(0, |word, &bit| word << 1 | u32::from(bit));
    values.chunks(keys.max(1)).flat_map(|row| row.chunks(32).map(word)).collect()
}

/// The bytes of numbers that are rounded to this storage.
pub(super) fn packed(values: &[f32], storage: Storage) -> Vec<u8> {
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

/// The numbers of these bytes.
pub(super) fn unpacked(bytes: &[u8], storage: Storage) -> Vec<f32> {
    let pairs = || bytes.chunks_exact(2).map(|b| u16::from_le_bytes([b[0], b[1]]));
    match storage {
        Storage::F32 | Storage::Int8 => {
            bytes.chunks_exact(4).map(|b| f32::from_le_bytes([b[0], b[1], b[2], b[3]])).collect()
        }
        Storage::F16 => pairs().map(|b| f16::from_bits(b).to_f32()).collect(),
        Storage::Bf16 => pairs().map(|b| bf16::from_bits(b).to_f32()).collect(),
    }
}

/// A buffer that kernels read.
pub(crate) fn upload(engine: &Engine, argument: &'static str, bytes: &[u8]) -> Result<Buffer, RunError> {
    let made = buffer(engine, argument, bytes.len() as u64, BufferUsages::STORAGE | BufferUsages::COPY_DST)?;
    engine.queue().write_buffer(&made, 0, bytes);
    Ok(made)
}

/// A buffer of at least `bytes`; refused memory is an error. wgpu has no empty ones, and kernels bind a vec4 of what they might write.
pub(crate) fn buffer(
    engine: &Engine,
    argument: &'static str,
    bytes: u64,
    usage: BufferUsages,
) -> Result<Buffer, RunError> {
    let device = engine.device();
    let scope = Scope::open(device, &[ErrorFilter::OutOfMemory, ErrorFilter::Validation]);
    let size = bytes.max(16).next_multiple_of(4);
    let made =
        device.create_buffer(&BufferDescriptor { label: Some(argument), size, usage, mapped_at_creation: false });
    match scope.close() {
        Some(error) => Err(RunError::OutOfMemory { argument, bytes: size, message: error.to_string() }),
        None => Ok(made),
    }
}

/// A copy of a buffer, submitted, that the host can read once it is mapped.
pub(super) fn readable(engine: &Engine, argument: &'static str, source: &Buffer) -> Result<Buffer, RunError> {
    let target = buffer(engine, argument, source.size(), BufferUsages::MAP_READ | BufferUsages::COPY_DST)?;
    let mut encoder = engine.device().create_command_encoder(&CommandEncoderDescriptor::default());
    encoder.copy_buffer_to_buffer(source, 0, &target, 0, source.size());
    engine.queue().submit([encoder.finish()]);
    Ok(target)
}
