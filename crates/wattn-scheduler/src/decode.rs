//! Few queries over long keys: what is asked for.

use crate::attention::Attention;
use crate::cache::CacheLayout;

/// How long the stretches are into which keys are split.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub enum Split {
    /// As many as keep the device busy, from all lengths of the call.
    #[default]
    Device,
    /// Whole multiples of this many keys, counted from a sequence's first: a row's bits do not depend on what else is in the batch.
    Keys(u32),
}

/// Softmax attention of few queries over many keys: decoding, and prefill beside it in the same call.
///
/// Keys are split into stretches over workgroups (Flash-Decoding), in which the query heads of a group share each key that is read;
/// the partial results are merged by their log-sum-exp. Sequences of many queries are attended in tiles as by [`Attention`] itself.
///
/// ```
/// use wattn_scheduler::{Attention, HeadDim, Heads};
/// # fn main() -> Result<(), wattn_scheduler::PlanError> {
/// let decode = Attention::new(Heads::grouped(32, 8)?, HeadDim::new(128)?).causal().decode().split_keys(256);
/// # let _ = decode; Ok(()) }
/// ```
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Decode {
    pub(crate) attention: Attention,
    pub(crate) split: Split,
    pub(crate) cache: Option<CacheLayout>,
}

impl Attention {
    /// The same attention for few queries over many keys.
    #[must_use]
    pub fn decode(self) -> Decode {
        Decode { attention: self, split: Split::Device, cache: None }
    }
}

impl Decode {
    /// Splits keys at multiples of `keys`, at least one, whatever the device and the batch: the batch-invariant mode.
    #[must_use]
    pub fn split_keys(mut self, keys: u32) -> Self {
        self.split = Split::Keys(keys.max(1));
        self
    }

    /// Reads keys and values from the pages of a cache of this layout. Queries are packed then.
    #[must_use]
    pub fn cached(mut self, layout: CacheLayout) -> Self {
        self.cache = Some(layout);
        self
    }

    /// The attention.
    #[must_use]
    pub fn attention(&self) -> &Attention {
        &self.attention
    }

    /// How keys are split.
    #[must_use]
    pub fn split(&self) -> Split {
        self.split
    }

    /// The layout of the cache that is read, where one is.
    #[must_use]
    pub fn cache(&self) -> Option<&CacheLayout> {
        self.cache.as_ref()
    }
}
