//! Real models that take their attention from outside, so that an example can hand it to wattn.
//!
//! Everything but attention runs on the CPU in plain f32: projections, norms and activations are not what wattn is
//! about. A model asks for attention through a closure and does not know what runs it.

#![forbid(unsafe_code)]

pub mod minilm;
pub mod smollm2;

mod blocks;
mod bpe;
mod gguf;
mod layers;
mod wordpiece;

/// The sizes of one attention call of an encoder. q, k, v and the result are dense `[batch, seq, heads, head_dim]`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct AttentionShape {
    /// Rows of the padded batch.
    pub batch: usize,
    /// Positions per row, padding included; queries and keys alike.
    pub seq: usize,
    /// Attention heads.
    pub heads: usize,
    /// Numbers per head and position.
    pub head_dim: usize,
}

impl AttentionShape {
    /// How many numbers q, k, v and the result hold, each.
    pub fn elements(&self) -> usize {
        self.batch * self.seq * self.heads * self.head_dim
    }
}
