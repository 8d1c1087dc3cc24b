//! The gradient of the decay: which passes calculate it, and what they keep.
//!
//! A token's log decay scales the state before it, so its gradient is the product of that state with the gradient of the state after
//! it. Both are known at the ends of chunks: the sweep over keys and values gives the states from the first token on, the sweep over
//! queries and gradients of the output the gradients from the last one on. The chunks of a sequence are its segments, at most
//! [`FAN`] at a time; longer sequences are cut into longer stretches first, as often as it takes, each of which then is a sequence
//! that starts from its own state and ends in its own gradient. So the states that are kept do not depend on the length.

use wattn_shaders::{Access, DECAY_CHUNK, Kernel, LinearKey, LinearOp};

use crate::capabilities::Capabilities;
use crate::lightning::{Lightning, Tokens};
use crate::linear_plan::{PlannedSweep, batches, longest_walk, planned};
use crate::plan::Part;
use crate::sweep::{Sweep, Tensor};

/// Parts that a stretch of tokens is cut into at a time, at most.
const FAN: u32 = 64;

/// How the gradient of the decay is calculated, after the sweeps.
#[derive(Debug, Clone, PartialEq)]
pub struct PlannedDecay {
    /// The sweep that gives the states before stretches, and the one that gives the gradients of the states after them.
    pub sweeps: [PlannedSweep; 2],
    /// The pipeline that gives the stretches of a stretch the states that they start from.
    pub scan_within: LinearKey,
    /// The pipeline that calculates the gradients of a chunk.
    pub chunk: LinearKey,
    /// The pipeline that sums them, for slopes.
    pub sum: Option<LinearKey>,
    /// Tokens of the stretches that a sequence is cut into, then of those that these are cut into, and so on to chunks.
    pub stretches: Vec<u32>,
}

impl PlannedDecay {
    /// The passes for `lightning`, where it asks for them.
    pub(crate) fn new(lightning: &Lightning, extent: Tokens, kernel: Kernel, device: &Capabilities) -> Option<Self> {
        if !lightning.decay_gradient {
            return None;
        }
        let given = |on: bool, tensor| on.then_some(tensor);
        let states = Sweep {
            q: Tensor::Q,
            k: Tensor::K,
            v: Tensor::V,
            out: Tensor::Out,
            state0: given(lightning.initial_state, Tensor::State0),
            state: None,
            transposed: false,
            reversed: false,
        };
        let gradients = Sweep {
            q: Tensor::K,
            k: Tensor::Q,
            v: Tensor::GradOut,
            out: Tensor::Dv,
            state0: given(lightning.final_state, Tensor::GradState),
            reversed: true,
            ..states
        };
        let sweeps = [states, gradients].map(|sweep| {
            let mut planned = planned(lightning, sweep, kernel, device);
            planned.segment();
            planned
        });
        let longest = longest_walk(&sweeps, device);
        let scan = sweeps[0].states.map_or(sweeps[0].walk, |[_, scan]| scan);
        // Of the tile kernels neither needs subgroups here, and matrices have no part in it.
        let walk = sweeps[0].states.map_or(sweeps[0].walk, |[segment, _]| segment);
        let chunk = LinearKey {
            op: LinearOp::Decay,
            kernel: if walk.kernel == Kernel::Matrix { Kernel::TileUniversal } else { walk.kernel },
            lanes: walk.lanes,
            q: lightning.q,
            kv: lightning.kv,
            // Narrower than what sweeps load at once.
            access: lightning.access,
            state: false,
            ..scan
        };
        let sum = LinearKey { op: LinearOp::DecaySum, access: Access::Any, state: false, ..scan };
        Some(Self {
            scan_within: LinearKey { op: LinearOp::ScanWithin, state: false, ..scan },
            sum: (!lightning.is_gated()).then_some(sum),
            chunk,
            stretches: stretches(extent.tokens, longest),
            sweeps,
        })
    }

    /// Its pipelines.
    pub fn keys(&self) -> impl Iterator<Item = LinearKey> + '_ {
        let within = (self.stretches.len() > 1).then_some(self.scan_within);
        let states = self.sweeps.iter().flat_map(|s| s.states.into_iter().flatten());
        states.chain(within).chain([self.chunk]).chain(self.sum)
    }

    /// Stretches of each kind whose states a part keeps at a time: as many states before them, and gradients after them.
    #[must_use]
    pub fn kept(&self, extent: Tokens, part: &Part) -> Vec<u32> {
        let sequences = if extent.packed { extent.batch } else { part.batch.end - part.batch.start };
        let mut whole = extent.tokens;
        let mut kept = Vec::new();
        for &tokens in &self.stretches {
            let each = whole.div_ceil(tokens);
            let equal = each.saturating_mul(sequences);
            // Packed sequences are together as long as one, but each may leave a part of a stretch empty.
            let together = (extent.tokens / tokens).saturating_add(sequences);
            kept.push(if extent.packed { equal.min(together) } else { equal });
            whole = tokens;
        }
        kept
    }

    /// Bytes of scratch memory of a part: states and gradients, and for each a log decay or a sum.
    pub(crate) fn workspace(&self, lightning: &Lightning, extent: Tokens, part: &Part) -> u64 {
        let kept: u64 = self.kept(extent, part).into_iter().map(u64::from).sum();
        let heads = u64::from(part.kv_heads.end - part.kv_heads.start);
        let state = u64::from(lightning.dims.qk()) * u64::from(lightning.dims.value());
        (2 * kept).saturating_mul(heads).saturating_mul((state + 1) * 4)
    }

    /// The same of one head and batch entry, for the size of bindings.
    pub(crate) fn row(&self, lightning: &Lightning, extent: Tokens) -> u64 {
        let one = Part { batch: 0..batches(extent).min(1), kv_heads: 0..1 };
        self.workspace(lightning, extent, &one)
    }

    /// Dispatches a part.
    pub(crate) fn dispatches(&self, extent: Tokens) -> u64 {
        self.dispatches_of(extent.tokens, 0)
    }

    fn dispatches_of(&self, tokens: u32, level: usize) -> u64 {
        if level + 1 == self.stretches.len() {
            return 5 + u64::from(self.sum.is_some());
        }
        let length = self.stretches[level];
        let of =
            |count: u32, tokens| if count > 0 { u64::from(count) * self.dispatches_of(tokens, level + 1) } else { 0 };
        4 + of(tokens / length, length) + of((tokens % length).min(1), tokens % length)
    }
}

/// Lengths of stretches for sequences of `tokens`: each a multiple of the next and no longer than `longest`, the last a chunk.
fn stretches(tokens: u32, longest: u32) -> Vec<u32> {
    let mut lengths = vec![DECAY_CHUNK];
    loop {
        let last = lengths[lengths.len() - 1];
        let next = last.saturating_mul(FAN).min(longest / last * last);
        if u64::from(last) * u64::from(FAN) >= u64::from(tokens) || next <= last {
            lengths.reverse();
            return lengths;
        }
        lengths.push(next);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn stretches_are_cut_until_they_are_few() {
        assert_eq!(stretches(0, 1 << 29), [64]);
        assert_eq!(stretches(4096, 1 << 29), [64]);
        assert_eq!(stretches(4097, 1 << 29), [4096, 64]);
        assert_eq!(stretches(1 << 18, 1 << 29), [4096, 64]);
        assert_eq!(stretches(1 << 29, 1 << 29), [1 << 24, 1 << 18, 4096, 64]);
        // Where walks are short, there are more of the longest.
        assert_eq!(stretches(1 << 29, 30_000), [28_672, 4096, 64]);
    }
}
