//! Few queries over long keys: what is asked for.

use wattn_shaders::Kernel;

use crate::attention::{Attention, Extent};
use crate::cache::CacheLayout;

/// How long the stretches are into which keys are split.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub enum Split {
    /// As many as keep the device busy, from all lengths of the call.
    #[default]
    Device,
    /// Whole multiples of this many keys, counted from a sequence's first: a row's bits do not depend on what else is in the batch.
    Keys(u32),
    /// All keys of a call in about so many stretches a key/value head, at least one, as far as these get no shorter than 128 keys.
    Stretches(u32),
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
    pub(crate) kernel: Option<Kernel>,
    pub(crate) split: Split,
    pub(crate) cache: Option<CacheLayout>,
    pub(crate) cascade: bool,
}

impl Attention {
    /// The same attention for few queries over many keys.
    #[must_use]
    pub fn decode(self) -> Decode {
        Decode { attention: self, kernel: None, split: Split::Device, cache: None, cascade: false }
    }
}

impl Decode {
    /// Splits keys at multiples of `keys`, at least one, whatever the device and the batch: the batch-invariant mode.
    #[must_use]
    pub fn split_keys(mut self, keys: u32) -> Self {
        self.split = Split::Keys(keys.max(1));
        self
    }

    /// Splits all keys of a call into about so many stretches a key/value head, at least one, as far as these get no shorter than 128
    /// keys: instead of what the planner guesses of the device.
    #[must_use]
    pub fn split_into(mut self, stretches: u32) -> Self {
        self.split = Split::Stretches(stretches.max(1));
        self
    }

    /// Forces the kernel of sequences with few queries, where it is not to be that of the [attention](Attention::kernel), which attends
    /// the others in tiles.
    #[must_use]
    pub fn kernel(mut self, kernel: Kernel) -> Self {
        self.kernel = Some(kernel);
        self
    }

    /// Reads keys and values from the pages of a cache of this layout, in its storage: that of the attention's keys and values does
    /// not count. Queries are packed then.
    #[must_use]
    pub fn cached(mut self, layout: CacheLayout) -> Self {
        self.cache = Some(layout);
        self
    }

    /// Reads what neighbouring sequences of a step share, the pages of their common start, once for all their queries (cascade
    /// attention): sequences that were forked from one should stand beside each other. For sequences of few queries, without `ALiBi`
    /// or a window.
    #[must_use]
    pub fn cascade(mut self) -> Self {
        self.cascade = true;
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

    /// Whether what neighbouring sequences share is read once.
    #[must_use]
    pub fn is_cascade(&self) -> bool {
        self.cascade
    }

    /// What an extent amounts to in a typical call: sequences, queries and keys of each, which are equal. Over a cache each sequence has
    /// one new token, as in generation; no more keys than the pages hold.
    #[must_use]
    pub fn typical(&self, extent: Extent) -> [u32; 3] {
        let Extent { batch, queries, keys, packed } = extent;
        match &self.cache {
            Some(cache) => {
                let sequences = batch.min(queries).min(keys).min(cache.pages());
                let held = cache.pages().checked_div(sequences).unwrap_or(0) * cache.page();
                [sequences, 1, keys.checked_div(sequences).unwrap_or(0).min(held)]
            }
            None if packed => [batch, queries / batch.max(1), keys / batch.max(1)],
            None => [batch, queries, keys],
        }
    }

    /// The kernel of few queries that the caller asks for.
    pub(crate) fn pinned(&self) -> Option<Kernel> {
        self.kernel.or(self.attention.kernel)
    }
}
