//! The softmax attention problem: its tensors, which query sees which key, and the logit of such a pair.

/// How the causal limit lies in a rectangle of queries and keys.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Causal {
    /// Query `i` sees key `j` when `j <= i`, or `j <= i + offset` where
    /// [`causal_offsets`](SoftmaxProblem::causal_offsets) are given.
    TopLeft,
    /// Query `i` sees key `j` when `j <= i + keys - queries`: the last query sees the last key.
    BottomRight,
}

/// A tensor `[batch or 1, heads or 1, queries, keys]`, contiguous, whose extents of 1 are repeated.
#[derive(Clone, Copy, Debug)]
pub struct Broadcast<'a, T> {
    /// The stored elements.
    pub values: &'a [T],
    /// The stored extents.
    pub shape: [usize; 4],
}

impl<T: Copy> Broadcast<'_, T> {
    fn at(&self, b: usize, h: usize, i: usize, j: usize) -> T {
        let [n_batch, n_heads, n_queries, n_keys] = self.shape;
        let b = if n_batch == 1 { 0 } else { b };
        let h = if n_heads == 1 { 0 } else { h };
        self.values[((b * n_heads + h) * n_queries + i) * n_keys + j]
    }
}

/// The sequences of a packed batch, as running totals: sequence `n` has the queries `q[n]..q[n + 1]` and the keys
/// `k[n]..k[n + 1]`.
#[derive(Clone, Copy, Debug)]
pub struct PackedLengths<'a> {
    /// `[sequences + 1]`, from 0 to the total number of queries.
    pub q: &'a [usize],
    /// `[sequences + 1]`, from 0 to the total number of keys.
    pub k: &'a [usize],
}

/// Softmax attention, as in `FlashAttention` ([arXiv 2205.14135], [arXiv 2307.08691]), of one problem:
///
/// `out = softmax(mask(softcap(scale q kT) + alibi + bias)) v`, with `softcap(x) = c tanh(x / c)`.
///
/// Tensors are contiguous, `[batch, heads, sequence, dim]`. A packed batch has `batch` = 1 and its sequences one after
/// the other along the sequence axis. Query head `h` reads key/value head `h / (heads / kv_heads)`.
///
/// Below, the *keys that exist* are `kv_lens[b]` of them where given, in a packed batch those of the query's own
/// sequence, otherwise `keys`; likewise `queries`. `i` and `j` count within the sequence.
///
/// [arXiv 2205.14135]: https://arxiv.org/abs/2205.14135
/// [arXiv 2307.08691]: https://arxiv.org/abs/2307.08691
#[derive(Clone, Copy, Debug, Default)]
pub struct SoftmaxProblem<'a> {
    /// Number of batch entries.
    pub batch: usize,
    /// Number of query heads, a multiple of `kv_heads`.
    pub heads: usize,
    /// Number of key/value heads.
    pub kv_heads: usize,
    /// Number of queries per batch entry; the total of a packed batch.
    pub queries: usize,
    /// Number of keys per batch entry; the total of a packed batch.
    pub keys: usize,
    /// Elements of a query and of a key.
    pub head_dim: usize,
    /// Elements of a value and of an output row.
    pub value_dim: usize,
    /// `[batch, heads, queries, head_dim]`
    pub q: &'a [f64],
    /// `[batch, kv_heads, keys, head_dim]`
    pub k: &'a [f64],
    /// `[batch, kv_heads, keys, value_dim]`
    pub v: &'a [f64],
    /// Factor of `q kT`; `1 / sqrt(head_dim)` if `None`.
    pub scale: Option<f64>,
    /// The causal limit; every query sees every key if `None`.
    pub causal: Option<Causal>,
    /// `[batch]`, or one per sequence of a packed batch: shifts [`Causal::TopLeft`] by this many keys.
    pub causal_offsets: Option<&'a [i64]>,
    /// Keys seen to the left and to the right of `i + keys - queries`, which is seen too, whatever `causal` is;
    /// `None` is unbounded.
    pub window: (Option<usize>, Option<usize>),
    /// The `c` of `softcap`, > 0; applied before `alibi_slopes`, bias and masks.
    pub softcap: Option<f64>,
    /// `[heads]`: adds `-slope |i + keys - queries - j|`.
    pub alibi_slopes: Option<&'a [f64]>,
    /// Added to the logits; negative infinity hides the key.
    pub bias: Option<Broadcast<'a, f64>>,
    /// `true` where a query may see a key.
    pub mask: Option<Broadcast<'a, bool>>,
    /// `[heads]`: one more logit in the denominator of every row, with no value.
    pub sinks: Option<&'a [f64]>,
    /// `[batch]`: the keys that exist, at most `keys` of them.
    pub kv_lens: Option<&'a [usize]>,
    /// Makes this a packed batch. Not combined with `bias`, `mask` and `kv_lens`.
    pub packed: Option<PackedLengths<'a>>,
}

/// The batch entry or packed sequence that a query belongs to.
struct Sequence {
    /// Which one, over all of the batch.
    ix: usize,
    first_query: usize,
    n_queries: usize,
    first_key: usize,
    n_keys: usize,
}

impl SoftmaxProblem<'_> {
    fn sequence(&self, b: usize, i: usize) -> Sequence {
        if let Some(PackedLengths { q, k }) = self.packed {
            let ix =
                (0..q.len() - 1).find(|&n| q[n] <= i && i < q[n + 1]).expect("the running totals cover every query");
            Sequence {
                ix,
                first_query: q[ix],
                n_queries: q[ix + 1] - q[ix],
                first_key: k[ix],
                n_keys: k[ix + 1] - k[ix],
            }
        } else {
            Sequence {
                ix: b,
                first_query: 0,
                n_queries: self.queries,
                first_key: 0,
                n_keys: self.kv_lens.map_or(self.keys, |lens| lens[b].min(self.keys)),
            }
        }
    }

    /// Whether query `i` of head `h` and batch entry `b` sees key `j`. In a packed batch, `i` and `j` count over all
    /// sequences.
    pub fn sees(&self, b: usize, h: usize, i: usize, j: usize) -> bool {
        let seq = self.sequence(b, i);
        if j < seq.first_key || j >= seq.first_key + seq.n_keys {
            return false;
        }
        let row = (i - seq.first_query) as i128;
        let col = (j - seq.first_key) as i128;
        let aligned = row + seq.n_keys as i128 - seq.n_queries as i128;

        let causal = match self.causal {
            None => true,
            Some(Causal::TopLeft) => col <= row + self.causal_offsets.map_or(0, |offsets| offsets[seq.ix]) as i128,
            Some(Causal::BottomRight) => col <= aligned,
        };
        let left = self.window.0.is_none_or(|n| col >= aligned - n as i128);
        let right = self.window.1.is_none_or(|n| col <= aligned + n as i128);
        let mask = self.mask.is_none_or(|mask| mask.at(b, h, i, j));
        let bias = self.bias.is_none_or(|bias| bias.at(b, h, i, j) != f64::NEG_INFINITY);
        causal && left && right && mask && bias
    }

    /// The logit of query `i` and key `j`, which it must see.
    pub(crate) fn score(&self, b: usize, h: usize, i: usize, j: usize) -> f64 {
        let mut s = self.capped(b, h, i, j);
        if let Some(slopes) = self.alibi_slopes {
            s -= slopes[h] * self.distance(b, i, j);
        }
        if let Some(bias) = self.bias {
            s += bias.at(b, h, i, j);
        }
        s
    }

    /// `softcap(scale q kT)`, what of the logit comes from q and k.
    pub(crate) fn capped(&self, b: usize, h: usize, i: usize, j: usize) -> f64 {
        let q_start = ((b * self.heads + h) * self.queries + i) * self.head_dim;
        let k_start = ((b * self.kv_heads + self.kv_head(h)) * self.keys + j) * self.head_dim;
        let mut dot = 0.0;
        for d in 0..self.head_dim {
            dot += self.q[q_start + d] * self.k[k_start + d];
        }

        let s = dot * self.factor();
        self.softcap.map_or(s, |c| c * (s / c).tanh())
    }

    /// The factor of `q kT`.
    pub(crate) fn factor(&self) -> f64 {
        self.scale.unwrap_or(1.0 / (self.head_dim as f64).sqrt())
    }

    /// `|i + keys - queries - j|`, of the query's own sequence.
    pub(crate) fn distance(&self, b: usize, i: usize, j: usize) -> f64 {
        let seq = self.sequence(b, i);
        let aligned = (i - seq.first_query + seq.n_keys) as f64 - seq.n_queries as f64;
        (aligned - (j - seq.first_key) as f64).abs()
    }

    /// The key/value head that query head `h` reads.
    pub(crate) fn kv_head(&self, h: usize) -> usize {
        h / (self.heads / self.kv_heads)
    }

    /// Panics where a slice does not have the length that its extents ask for.
    pub(crate) fn assert_lengths(&self) {
        let Self { batch, heads, kv_heads, queries, keys, head_dim, value_dim, .. } = *self;
        assert_eq!(heads % kv_heads, 0, "heads are a multiple of kv_heads");
        assert_eq!(self.q.len(), batch * heads * queries * head_dim, "length of q");
        assert_eq!(self.k.len(), batch * kv_heads * keys * head_dim, "length of k");
        assert_eq!(self.v.len(), batch * kv_heads * keys * value_dim, "length of v");
        for (name, tensor) in [("alibi_slopes", self.alibi_slopes), ("sinks", self.sinks)] {
            assert!(tensor.is_none_or(|t| t.len() == heads), "length of {name}");
        }
        assert!(self.kv_lens.is_none_or(|t| t.len() == batch), "length of kv_lens");
        if let Some(PackedLengths { q, k }) = self.packed {
            assert_eq!(batch, 1, "batch of a packed batch");
            assert_eq!(q.len(), k.len(), "lengths of the running totals");
            assert_eq!((q.first(), q.last()), (Some(&0), Some(&queries)), "ends of packed.q");
            assert_eq!((k.first(), k.last()), (Some(&0), Some(&keys)), "ends of packed.k");
            assert!(
                self.bias.is_none() && self.mask.is_none() && self.kv_lens.is_none(),
                "a packed batch has no bias, mask or kv_lens"
            );
        }
        let sequences = self.packed.map_or(batch, |packed| packed.q.len() - 1);
        assert!(self.causal_offsets.is_none_or(|t| t.len() == sequences), "length of causal_offsets");
        let shapes = [self.bias.map(|t| (t.shape, t.values.len())), self.mask.map(|t| (t.shape, t.values.len()))];
        for (shape, len) in shapes.into_iter().flatten() {
            assert!(shape[0] == batch || shape[0] == 1, "batch of bias or mask");
            assert!(shape[1] == heads || shape[1] == 1, "heads of bias or mask");
            assert_eq!(shape[2..], [queries, keys], "extents of bias or mask");
            assert_eq!(len, shape.iter().product::<usize>(), "length of bias or mask");
        }
    }
}
