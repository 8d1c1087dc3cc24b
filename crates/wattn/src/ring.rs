//! Parameter slots: each encoded call gets a stretch of a storage buffer that no call in flight uses.
//!
//! One plan may be encoded many times into one encoder with different lengths. `Queue::write_buffer` takes effect before the whole
//! submission, so each call needs memory of its own. A slot returns when its submission is done, or its encoder is dropped.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use wgpu::{Buffer, BufferDescriptor, BufferUsages, Device};

/// The least size of a chunk, bytes.
const CHUNK: u64 = 256 << 10;

#[derive(Debug)]
pub(crate) struct Ring {
    chunks: Arc<Mutex<Chunks>>,
    buffers: Mutex<HashMap<u64, Buffer>>,
    alignment: u64,
}

/// What is in use. No wgpu object lies here: in browsers these stay on their thread, and leases may not.
#[derive(Debug, Default)]
struct Chunks {
    next: u64,
    live: Vec<Chunk>,
}

/// Slots are handed out front to back; the chunk starts over when none is in use.
#[derive(Debug)]
struct Chunk {
    id: u64,
    size: u64,
    used: u64,
    slots: usize,
}

/// A slot in use, until its lease is dropped.
#[derive(Debug)]
pub(crate) struct Slot {
    pub(crate) buffer: Buffer,
    pub(crate) offset: u64,
    pub(crate) size: u64,
    pub(crate) lease: Lease,
}

/// Dropping it gives its slot back.
#[derive(Debug)]
pub(crate) struct Lease {
    chunk: u64,
    chunks: Arc<Mutex<Chunks>>,
}

impl Ring {
    pub(crate) fn new(alignment: u32) -> Self {
        Self { chunks: Arc::default(), buffers: Mutex::default(), alignment: u64::from(alignment) }
    }

    pub(crate) fn slot(&self, device: &Device, size: u64) -> Slot {
        let reserved = size.next_multiple_of(self.alignment);
        let mut buffers = lock(&self.buffers);
        let mut chunks = lock(&self.chunks);
        buffers.retain(|&id, _| chunks.live.iter().any(|c| c.id == id));
        let at = chunks.live.iter().position(|c| c.used + reserved <= c.size).unwrap_or_else(|| {
            let (id, size) = (chunks.next, reserved.max(CHUNK));
            chunks.next += 1;
            chunks.live.push(Chunk { id, size, used: 0, slots: 0 });
            chunks.live.len() - 1
        });
        let chunk = &mut chunks.live[at];
        let offset = chunk.used;
        chunk.used += reserved;
        chunk.slots += 1;
        let buffer = buffers.entry(chunk.id).or_insert_with(|| {
            device.create_buffer(&BufferDescriptor {
                label: Some("wattn parameters"),
                size: chunk.size,
                usage: BufferUsages::STORAGE | BufferUsages::COPY_DST,
                mapped_at_creation: false,
            })
        });
        let lease = Lease { chunk: chunk.id, chunks: Arc::clone(&self.chunks) };
        Slot { buffer: buffer.clone(), offset, size, lease }
    }

    #[cfg(test)]
    fn in_use(&self) -> (usize, usize) {
        let chunks = lock(&self.chunks);
        (chunks.live.len(), chunks.live.iter().map(|c| c.slots).sum())
    }
}

impl Drop for Lease {
    fn drop(&mut self) {
        let live = &mut lock(&self.chunks).live;
        if let Some(at) = live.iter().position(|c| c.id == self.chunk) {
            live[at].slots -= 1;
            if live[at].slots == 0 {
                live[at].used = 0;
                // One idle chunk is kept; a burst's others go back to the device with the next slot.
                if live.iter().filter(|c| c.slots == 0).count() > 1 {
                    live.swap_remove(at);
                }
            }
        }
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
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
        assert!(large.buffer.size() >= CHUNK * 2);
        assert_eq!(lock(&ring.buffers).len(), 2, "the burst's buffers went back");
    }
}
