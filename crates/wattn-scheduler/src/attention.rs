//! What is asked for: the operator and its extent.

use std::fmt;

use wattn_shaders::{Access, Kernel, ScoreOptions, Shape, Storage, table::MAX_DIM};

use crate::error::PlanError;

/// The heads of queries and of keys and values. Query head `h` reads key/value head `h / (query / key_value)`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Heads {
    query: u32,
    key_value: u32,
}

impl Heads {
    /// As many key/value heads as query heads.
    ///
    /// # Errors
    /// Zero heads.
    pub fn new(heads: u32) -> Result<Self, PlanError> {
        Self::grouped(heads, heads)
    }

    /// Grouped heads (arXiv 2305.13245): `query / key_value` neighbouring query heads share a key/value head.
    ///
    /// # Errors
    /// Zero heads, or query heads that are no multiple of the key/value heads.
    pub fn grouped(query: u32, key_value: u32) -> Result<Self, PlanError> {
        if query == 0 || key_value == 0 || !query.is_multiple_of(key_value) {
            return Err(PlanError::invalid(
                "heads",
                format!("{query} query and {key_value} key/value heads"),
                "at least one of each, query heads a multiple of key/value heads",
            ));
        }
        Ok(Self { query, key_value })
    }

    /// Query heads.
    #[must_use]
    pub fn query(self) -> u32 {
        self.query
    }

    /// Key/value heads.
    #[must_use]
    pub fn key_value(self) -> u32 {
        self.key_value
    }

    /// Query heads per key/value head.
    #[must_use]
    pub fn group(self) -> u32 {
        self.query / self.key_value
    }
}

/// The dims of a head: of queries and keys, and of values and the output.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct HeadDim {
    qk: u32,
    value: u32,
}

impl HeadDim {
    /// One dim for queries, keys and values, from 1 to 576.
    ///
    /// # Errors
    /// A dim out of range.
    pub fn new(dim: u32) -> Result<Self, PlanError> {
        Self::with_value(dim, dim)
    }

    /// A value dim of its own.
    ///
    /// # Errors
    /// A dim out of range.
    pub fn with_value(qk: u32, value: u32) -> Result<Self, PlanError> {
        for (argument, dim) in [("head_dim", qk), ("value_head_dim", value)] {
            if dim == 0 || dim > MAX_DIM {
                return Err(PlanError::invalid(argument, dim, format!("1 to {MAX_DIM}")));
            }
        }
        Ok(Self { qk, value })
    }

    /// The dim of queries and keys.
    #[must_use]
    pub fn qk(self) -> u32 {
        self.qk
    }

    /// The dim of values and the output.
    #[must_use]
    pub fn value(self) -> u32 {
        self.value
    }
}

/// Which keys lie in a query's future.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub enum Causal {
    /// None: every query sees every key.
    #[default]
    No,
    /// The last query sees the last key: key `j` is visible to query `i` when `j <= i + keys - queries`.
    BottomRight,
    /// The first query sees the first key: `j <= i + offset`, with one offset a batch entry given at each call.
    TopLeft,
}

/// Softmax attention: `out = softmax(mask(softcap(scale q k^T) + alibi + bias)) v`, one option a method.
///
/// The tiled form is that of FlashAttention (arXiv 2205.14135, 2307.08691): scores are never stored.
///
/// ```
/// use wattn_scheduler::{Attention, HeadDim, Heads};
/// # fn main() -> Result<(), wattn_scheduler::PlanError> {
/// let attention = Attention::new(Heads::grouped(9, 3)?, HeadDim::new(64)?).causal().sliding(1024);
/// # let _ = attention; Ok(()) }
/// ```
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Attention {
    pub(crate) heads: Heads,
    pub(crate) head_dim: HeadDim,
    pub(crate) scale: Option<f32>,
    pub(crate) causal: Causal,
    pub(crate) window: (Option<u32>, Option<u32>),
    pub(crate) softcap: Option<f32>,
    pub(crate) options: ScoreOptions,
    pub(crate) q: Storage,
    pub(crate) kv: Storage,
    pub(crate) access: Access,
    pub(crate) kernel: Option<Kernel>,
    pub(crate) shape: Option<Shape>,
}

impl Attention {
    /// Full attention in f32 with scale `1 / sqrt(head_dim)`.
    #[must_use]
    pub fn new(heads: Heads, head_dim: HeadDim) -> Self {
        let whole = head_dim.qk.is_multiple_of(4) && head_dim.value.is_multiple_of(4);
        Self {
            heads,
            head_dim,
            scale: None,
            causal: Causal::No,
            window: (None, None),
            softcap: None,
            options: ScoreOptions::default(),
            q: Storage::F32,
            kv: Storage::F32,
            access: if whole { Access::Vec4 } else { Access::Any },
            kernel: None,
            shape: None,
        }
    }

    /// What scores are multiplied by, in place of `1 / sqrt(head_dim)`.
    #[must_use]
    pub fn scale(mut self, scale: f32) -> Self {
        self.scale = Some(scale);
        self
    }

    /// Hides the future, bottom-right: the last query sees the last key.
    #[must_use]
    pub fn causal(mut self) -> Self {
        self.causal = Causal::BottomRight;
        self
    }

    /// Hides the future, top-left: query `i` sees keys `j <= i + offset`; offsets are given at each call, one a batch entry or none.
    #[must_use]
    pub fn causal_top_left(mut self) -> Self {
        self.causal = Causal::TopLeft;
        self
    }

    /// A window of `left + 1 + right` keys around each query's own position `i + keys - queries`: both ends are inclusive, `None`
    /// is unbounded.
    #[must_use]
    pub fn window(mut self, left: impl Into<Option<u32>>, right: impl Into<Option<u32>>) -> Self {
        self.window = (left.into(), right.into());
        self
    }

    /// The last `keys` keys up to a query's own position, itself included: `window(keys - 1, 0)`; at least one.
    #[must_use]
    pub fn sliding(self, keys: u32) -> Self {
        self.window(keys.max(1) - 1, 0)
    }

    /// Scores pass through `cap * tanh(score / cap)`, before ALiBi, bias and masks.
    #[must_use]
    pub fn softcap(mut self, cap: f32) -> Self {
        self.softcap = Some(cap);
        self.options.softcap = true;
        self
    }

    /// Adds `-slope * |i + keys - queries - j|` (arXiv 2108.12409), one slope a query head, given at each call.
    #[must_use]
    pub fn alibi(mut self) -> Self {
        self.options.alibi = true;
        self
    }

    /// Adds a bias [batch or 1, heads or 1, queries, keys] in f32 to the scores; -inf masks.
    #[must_use]
    pub fn bias(mut self) -> Self {
        self.options.bias = true;
        self
    }

    /// Applies a mask [batch or 1, heads or 1, queries, keys] of one bit a score: set means the query may see the key.
    #[must_use]
    pub fn mask(mut self) -> Self {
        self.options.mask = true;
        self
    }

    /// One more logit a query head in the denominator, with no value; given at each call.
    #[must_use]
    pub fn sinks(mut self) -> Self {
        self.options.sinks = true;
        self
    }

    /// Writes the log-sum-exp of each row too, [batch, heads, queries] in f32.
    #[must_use]
    pub fn lse(mut self) -> Self {
        self.options.lse = true;
        self
    }

    /// The storage of q, k, v and the output.
    #[must_use]
    pub fn storage(self, storage: Storage) -> Self {
        self.mixed_storage(storage, storage)
    }

    /// The storage of q and the output, and that of k and v.
    #[must_use]
    pub fn mixed_storage(mut self, q: Storage, kv: Storage) -> Self {
        (self.q, self.kv) = (q, kv);
        self
    }

    /// Accepts views whose strides and offsets are no multiples of four elements (eight on CPU drivers, see
    /// [`Access`]), at the price of narrower loads. Dims that are no multiples of four imply it. In f32 the last dim need not be contiguous; in 16 bits strides, offsets and dims stay even.
    #[must_use]
    pub fn any_strides(mut self) -> Self {
        self.access = Access::Any;
        self
    }

    /// Pins the kernel: it runs, or planning fails. Where the driver is kept from it for being slow, it runs all the same, and the plan
    /// says so.
    #[must_use]
    pub fn kernel(mut self, kernel: Kernel) -> Self {
        self.kernel = Some(kernel);
        self
    }

    /// Pins a shape of the kernel's menu too, in place of the one chosen for the device.
    #[must_use]
    pub fn shape(mut self, shape: Shape) -> Self {
        self.shape = Some(shape);
        self
    }

    /// The heads.
    #[must_use]
    pub fn heads(&self) -> Heads {
        self.heads
    }

    /// The dims of a head.
    #[must_use]
    pub fn head_dim(&self) -> HeadDim {
        self.head_dim
    }

    /// The options that change a kernel's code.
    #[must_use]
    pub fn options(&self) -> ScoreOptions {
        self.options
    }

    /// The storage of q and the output.
    #[must_use]
    pub fn q_storage(&self) -> Storage {
        self.q
    }

    /// The storage of k and v.
    #[must_use]
    pub fn kv_storage(&self) -> Storage {
        self.kv
    }

    /// Which strides are accepted.
    #[must_use]
    pub fn access(&self) -> Access {
        self.access
    }

    /// Which keys are hidden as the future.
    #[must_use]
    pub fn causality(&self) -> Causal {
        self.causal
    }

    /// The softcap, where there is one.
    #[must_use]
    pub fn cap(&self) -> Option<f32> {
        self.softcap
    }

    /// The factor of the scores, the default filled in.
    #[must_use]
    pub fn effective_scale(&self) -> f32 {
        #[expect(clippy::cast_precision_loss, reason = "head dims are small")]
        self.scale.unwrap_or_else(|| 1.0 / (self.head_dim.qk as f32).sqrt())
    }
}

/// How much there is to attend, for one batch of equal sequences or for packed ones.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Extent {
    /// Batch entries, or packed sequences.
    pub batch: u32,
    /// Queries of each batch entry, or of all packed sequences together.
    pub queries: u32,
    /// Keys of each batch entry, or of all packed sequences together.
    pub keys: u32,
    /// Whether sequences of unequal lengths are packed one after the other, their bounds given at each call.
    pub packed: bool,
}

impl Extent {
    /// A batch of equal sequences. (Keys may still be limited for each entry at each call.)
    #[must_use]
    pub fn new(batch: u32, queries: u32, keys: u32) -> Self {
        Self { batch, queries, keys, packed: false }
    }

    /// `sequences` of unequal lengths, one after the other: q is [total queries, heads, dim], k and v [total keys, heads, dim].
    #[must_use]
    pub fn packed(sequences: u32, total_queries: u32, total_keys: u32) -> Self {
        Self { batch: sequences, queries: total_queries, keys: total_keys, packed: true }
    }
}

impl fmt::Display for Extent {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let what = if self.packed { "packed sequences of together" } else { "x" };
        write!(f, "{} {what} {} queries on {} keys", self.batch, self.queries, self.keys)
    }
}
