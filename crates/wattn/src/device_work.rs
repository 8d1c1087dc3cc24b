//! Work of few queries whose lengths lie on the device.

use std::sync::atomic::{AtomicBool, Ordering};

use wattn_scheduler::PlanError;
use wattn_scheduler::shaders::{Key, LengthsKey, MergeKey, SplitKey};
use wgpu::{Buffer, BufferDescriptor, BufferUsages, CommandEncoder};

use crate::decode_plan::DecodePlan;
use crate::dispatch::{self, Dispatch};
use crate::engine::Engine;
use crate::error::EncodeError;
use crate::operands::Span;

/// The work of calls of which only the device knows how many keys each sequence has, as after speculative decoding or where a kernel
/// decides when a sequence ends: made on the device, from lengths that the host never reads.
///
/// It is made anew by [`update`](Self::update), and used by whatever is recorded after that: layer after layer, step after step.
///
/// ```
/// # fn main() -> Result<(), Box<dyn std::error::Error>> {
/// use wattn::{Attention, Engine, Extent, HeadDim, Heads, Lengths, Operands, View};
/// # use wattn::wgpu;
/// # if Engine::headless().is_err() { return Ok(()) }
/// let engine = Engine::headless()?;
/// let decode = Attention::new(Heads::grouped(8, 2)?, HeadDim::new(64)?).causal().decode();
/// let plan = engine.plan(&decode, Extent { batch: 3, queries: 1, keys: 512, packed: false })?;
/// # let buffer = |size: u64| engine.device().create_buffer(&wgpu::BufferDescriptor { label: None, size,
/// #     usage: wgpu::BufferUsages::STORAGE, mapped_at_creation: false });
/// # let (q, k, v, out) = (buffer(3 * 8 * 256), buffer(3 * 2 * 512 * 256), buffer(3 * 2 * 512 * 256), buffer(3 * 8 * 256));
/// # let workspace = buffer(plan.workspace_bytes());
/// let lengths = buffer(12);   // three u32, which some kernel of the application writes
///
/// let work = plan.device_work(Lengths::Full, &[])?;
/// let mut encoder = engine.device().create_command_encoder(&Default::default());
/// work.update(&mut encoder, &lengths, 0)?;
/// let operands = Operands::new(View::bhsd(&q), View::bhsd(&k), View::bhsd(&v), View::bhsd(&out));
/// plan.encode(&mut encoder, &work, &operands, &workspace)?;
/// engine.queue().submit([encoder.finish()]);
/// # Ok(()) }
/// ```
#[derive(Debug)]
pub struct DeviceWork {
    engine: Engine,
    work: wattn_scheduler::DeviceWork,
    /// Workgroups that take a stretch.
    share: u32,
    /// The pipelines that make it and follow it.
    keys: [Key; 3],
    /// What the device makes of it, words.
    made: Buffer,
    /// Whether an update was recorded.
    updated: AtomicBool,
}

impl DeviceWork {
    pub(crate) fn new(plan: &DecodePlan, work: wattn_scheduler::DeviceWork) -> Result<Self, PlanError> {
        let engine = plan.engine();
        let (needed, available) = (4 * work.words(), engine.capabilities().binding_bytes);
        if needed > available {
            let advice = "; longer stretches, or fewer sequences at a time, would do";
            return Err(PlanError::Limit { argument: "work", needed, available, unit: "bytes of work", advice });
        }
        let made = engine.device().create_buffer(&BufferDescriptor {
            label: Some("wattn work"),
            size: needed,
            usage: BufferUsages::STORAGE | BufferUsages::INDIRECT | BufferUsages::COPY_SRC,
            mapped_at_creation: false,
        });
        let details = plan.details();
        let share = details.decode.attention().heads().key_value() * details.splits;
        let split = Key::Split(SplitKey { device: true, ..details.split });
        let merge = Key::Merge(MergeKey { device: true, ..details.merge });
        Ok(Self {
            engine: engine.clone(),
            work,
            share,
            keys: [Key::Lengths(LengthsKey), split, merge],
            made,
            updated: AtomicBool::new(false),
        })
    }

    pub(crate) fn keys(&self) -> &[Key; 3] {
        &self.keys
    }

    /// What the host knows of it.
    #[must_use]
    pub fn details(&self) -> &wattn_scheduler::DeviceWork {
        &self.work
    }

    /// Records that the work is made from what `lengths` holds by then: how many keys each sequence has, as `u32` from number `first`
    /// on. A sequence has no more of them than the host said, whatever is read.
    ///
    /// # Errors
    /// A buffer that is too small, not for storage, or the one that holds the work.
    pub fn update(&self, encoder: &mut CommandEncoder, lengths: &Buffer, first: u32) -> Result<(), EncodeError> {
        if !lengths.usage().contains(BufferUsages::STORAGE) {
            return Err(EncodeError::Usage { argument: "lengths", given: lengths.usage() });
        }
        if lengths == &self.made {
            return Err(EncodeError::Aliased { written: "work", other: "lengths" });
        }
        let (offset, bytes) = (4 * u64::from(first), 4 * self.work.templates.len() as u64);
        let (needed, available) = (offset + bytes, lengths.size());
        if needed > available {
            return Err(EncodeError::TooSmall { argument: "lengths", needed, available });
        }
        if bytes == 0 {
            return Ok(());
        }
        // Bindings begin at multiples of their own.
        let capabilities = self.engine.capabilities();
        let before = offset % u64::from(capabilities.binding_alignment);
        let read = Span { offset: offset - before, size: before + bytes, ..Span::whole(0) };
        #[expect(clippy::cast_possible_truncation, reason = "below the alignment")]
        let params = self.work.params(self.share, before as u32 / 4, capabilities.workgroups_per_axis);
        let mut words: Vec<u32> = bytemuck::cast_slice(std::slice::from_ref(&params)).to_vec();
        words.extend_from_slice(bytemuck::cast_slice(&self.work.templates));
        words.extend_from_slice(self.work.row_tiles.as_flattened());
        let bound = [Some((lengths, read)), None, None, Some((&self.made, self.span())), None, None, None];
        let dispatch = Dispatch::new(&self.engine, &Key::Lengths(LengthsKey), &bound, &words, [1, 1])?;
        dispatch::encode(encoder, vec![dispatch]);
        self.updated.store(true, Ordering::Relaxed);
        Ok(())
    }

    /// What the device makes of it, as words in the form that `flash_lengths.wgsl` describes: to be copied from, and looked at.
    #[must_use]
    pub fn buffer(&self) -> &Buffer {
        &self.made
    }

    /// Refuses work that is not made by anything recorded so far.
    pub(crate) fn check_made(&self) -> Result<(), EncodeError> {
        let made = self.updated.load(Ordering::Relaxed) || self.work.templates.is_empty();
        if made { Ok(()) } else { Err(EncodeError::NotMade) }
    }

    pub(crate) fn span(&self) -> Span {
        Span::whole(self.made.size())
    }
}
