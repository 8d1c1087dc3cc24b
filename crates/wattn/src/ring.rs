//! Parameter slots: each encoded call gets a stretch of a storage buffer that no call in flight uses.
//!
//! One plan may be encoded many times into one encoder with different lengths. `Queue::write_buffer` takes effect before the whole
//! submission, so each call needs memory of its own. A slot returns when its submission is done, or its encoder is dropped.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use wgpu::{Buffer, BufferDescriptor, BufferUsages, Device};

/// The least size of a chunk, bytes.
const CHUNK: u64 = 256 << 10;

#[derive(Debug, Clone)]
pub(crate) struct Ring {
    chunks: Arc<Mutex<Vec<Chunk>>>,
    alignment: u64,
}

/// Slots are handed out front to back; the chunk starts over when none is in use.
#[derive(Debug)]
struct Chunk {
    buffer: Buffer,
    used: u64,
    slots: usize,
}

/// A slot in use. Dropping it gives it back.
#[derive(Debug)]
pub(crate) struct Slot {
    pub(crate) buffer: Buffer,
    pub(crate) offset: u64,
    pub(crate) size: u64,
    chunks: Arc<Mutex<Vec<Chunk>>>,
}

impl Ring {
    pub(crate) fn new(alignment: u32) -> Self {
        Self { chunks: Arc::default(), alignment: u64::from(alignment) }
    }

    pub(crate) fn slot(&self, device: &Device, size: u64) -> Slot {
        let reserved = size.next_multiple_of(self.alignment);
        let mut chunks = lock(&self.chunks);
        let at = chunks.iter().position(|c| c.used + reserved <= c.buffer.size()).unwrap_or_else(|| {
            let buffer = device.create_buffer(&BufferDescriptor {
                label: Some("wattn parameters"),
                size: reserved.max(CHUNK),
                usage: BufferUsages::STORAGE | BufferUsages::COPY_DST,
                mapped_at_creation: false,
            });
            chunks.push(Chunk { buffer, used: 0, slots: 0 });
            chunks.len() - 1
        });
        let chunk = &mut chunks[at];
        let offset = chunk.used;
        chunk.used += reserved;
        chunk.slots += 1;
        Slot { buffer: chunk.buffer.clone(), offset, size, chunks: Arc::clone(&self.chunks) }
    }

    #[cfg(test)]
    fn in_use(&self) -> (usize, usize) {
        let chunks = lock(&self.chunks);
        (chunks.len(), chunks.iter().map(|c| c.slots).sum())
    }
}

impl Drop for Slot {
    fn drop(&mut self) {
        let mut chunks = lock(&self.chunks);
        if let Some(at) = chunks.iter().position(|c| c.buffer == self.buffer) {
            chunks[at].slots -= 1;
            if chunks[at].slots == 0 {
                chunks[at].used = 0;
                // One idle chunk is kept; a burst's others go back to the device.
                if chunks.iter().filter(|c| c.slots == 0).count() > 1 {
                    chunks.swap_remove(at);
                }
            }
        }
    }
}

fn lock(chunks: &Mutex<Vec<Chunk>>) -> MutexGuard<'_, Vec<Chunk>> {
    chunks.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn slots_never_overlap_and_come_back() {
        let (device, _queue) = Device::noop(&wgpu::DeviceDescriptor::default());
        let ring = Ring::new(256);
        let slots: Vec<Slot> = (0..2000).map(|n| ring.slot(&device, 100 + n)).collect();
        for (n, a) in slots.iter().enumerate() {
            for b in &slots[..n] {
                assert!(a.buffer != b.buffer || a.offset >= b.offset + b.size || b.offset >= a.offset + a.size);
            }
        }
        assert!(ring.in_use().0 > 1, "the test is meant to fill a chunk");
        drop(slots);
        assert_eq!(ring.in_use(), (1, 0));
        let large = ring.slot(&device, CHUNK * 2);
        assert_eq!(large.offset, 0);
    }
}
