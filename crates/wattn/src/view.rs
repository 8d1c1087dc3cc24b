//! Where an operand lies: a buffer, an offset and strides.

use wgpu::Buffer;

/// How a tensor is laid out.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
enum Layout {
    Bhsd { batch: bool, heads: bool },
    Bshd,
    Strided([u32; 4]),
}

/// A tensor in a buffer: [batch, heads, sequence, dim], in any order that strides can say.
///
/// Offsets and strides count elements: numbers of the operand's storage type; words of 32 keys for a mask. A stride of 0 repeats
/// along its axis, for operands that are read.
#[derive(Debug, Clone, Copy)]
pub struct View<'a> {
    pub(crate) buffer: &'a Buffer,
    pub(crate) offset: u64,
    layout: Layout,
}

impl<'a> View<'a> {
    /// Contiguous [batch, heads, sequence, dim]; packed: [heads, total, dim]; a bias or mask: [batch, heads, queries, keys].
    #[must_use]
    pub fn bhsd(buffer: &'a Buffer) -> Self {
        Self { buffer, offset: 0, layout: Layout::Bhsd { batch: true, heads: true } }
    }

    /// Contiguous [batch, sequence, heads, dim]; packed: [total, heads, dim].
    #[must_use]
    pub fn bshd(buffer: &'a Buffer) -> Self {
        Self { buffer, offset: 0, layout: Layout::Bshd }
    }

    /// Strides of batch, head, sequence and dim; of a bias or mask: batch, head, query and key (a mask's keys are contiguous).
    #[must_use]
    pub fn strided(buffer: &'a Buffer, strides: [u32; 4]) -> Self {
        Self { buffer, offset: 0, layout: Layout::Strided(strides) }
    }

    /// A contiguous bias or mask [batch or 1, heads or 1, queries, keys]: `true` where that axis is there, `false` where its one
    /// entry serves all.
    #[must_use]
    pub fn scores(buffer: &'a Buffer, batch: bool, heads: bool) -> Self {
        Self { buffer, offset: 0, layout: Layout::Bhsd { batch, heads } }
    }

    /// The same view, starting at an element of the buffer.
    #[must_use]
    pub fn at(mut self, offset: u64) -> Self {
        self.offset = offset;
        self
    }

    /// Strides for a tensor of these extents.
    pub(crate) fn strides(&self, [_, heads, seq, dim]: [u64; 4]) -> [u64; 4] {
        match self.layout {
            Layout::Strided(strides) => strides.map(u64::from),
            Layout::Bshd => [seq * heads * dim, dim, heads * dim, 1],
            Layout::Bhsd { batch, heads: per_head } => {
                let head = if per_head { seq * dim } else { 0 };
                let count = if per_head { heads } else { 1 };
                [if batch { count * seq * dim } else { 0 }, head, dim, 1]
            }
        }
    }
}
