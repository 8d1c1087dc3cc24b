//! One softmax attention problem with its tensors.

use std::collections::BTreeMap;

use crate::{Causal, Layout, Storage, Tensor};

/// A boolean mask, `[batch or 1, heads or 1, queries, keys]`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Mask {
    /// Extents; those of 1 are repeated.
    pub shape: [usize; 4],
    /// `true` where a query may see a key.
    pub values: Vec<bool>,
}

/// The extents of a problem. A packed batch has `batch` = 1, and `queries` and `keys` are its totals.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(missing_docs, reason = "the names say it")]
pub struct Dims {
    pub batch: usize,
    pub heads: usize,
    pub kv_heads: usize,
    pub queries: usize,
    pub keys: usize,
    pub head_dim: usize,
    pub value_dim: usize,
}

/// `out = softmax(mask(softcap(scale q kT) + alibi + bias)) v`, with all that it takes and, in a case from a file, what
/// must come out. [`wattn_oracle::SoftmaxProblem`] says what each option means.
#[derive(Clone, Debug, PartialEq)]
pub struct SoftmaxCase {
    /// Unique in the catalogue.
    pub name: String,
    /// Where the expected outputs come from.
    pub source: Option<String>,
    /// Of q, k, v and out.
    pub layout: Layout,
    /// Factor of `q kT`; `1 / sqrt(head_dim)` if `None`.
    pub scale: Option<f64>,
    /// The causal limit.
    pub causal: Option<Causal>,
    /// One per batch entry, or per sequence of a packed batch (where all are equal); with [`Causal::TopLeft`] only.
    pub causal_offsets: Option<Vec<i32>>,
    /// Keys seen left and right of the aligned one, inclusive; `None` is unbounded.
    pub window: [Option<u32>; 2],
    /// The `c` of `c tanh(x / c)`.
    pub softcap: Option<f64>,
    /// Queries, in `layout`.
    pub q: Tensor,
    /// Keys, in `layout`.
    pub k: Tensor,
    /// Values, in `layout`, stored like `k`.
    pub v: Tensor,
    /// `[heads]`
    pub alibi_slopes: Option<Vec<f32>>,
    /// `[heads]`
    pub sinks: Option<Vec<f32>>,
    /// `[batch or 1, heads or 1, queries, keys]`, f32.
    pub bias: Option<Tensor>,
    /// Which pairs may see each other.
    pub mask: Option<Mask>,
    /// `[batch]`: the keys that exist; values beyond the number of keys mean all of them.
    pub kv_lens: Option<Vec<u32>>,
    /// Running totals of the queries and of the keys, `[sequences + 1]` each; present in [`Layout::Packed`] only.
    pub cu_seqlens: Option<(Vec<u32>, Vec<u32>)>,
    /// The gradient of `out`, in `layout`, stored like `q`.
    pub grad_out: Option<Tensor>,
    /// The gradient of `lse`, of its extents, f32.
    pub grad_lse: Option<Tensor>,
    /// Replaces the tolerance that the storage type and the logits ask for.
    pub rms_tolerance: Option<f64>,
    /// Expected outputs, with the extents that [`output`](Self::output) gives.
    pub expect: BTreeMap<String, Tensor>,
}

/// Problems that say nothing of a kernel in f16. Their gradients are small differences, of a single key an exact zero, of which rounding the
/// output, and weights on matrices, leaves less than results in f16 are held to. Tiles in f16 miss `logits_30` too, by twice as much as is
/// allowed, and meet `sinks_packed` narrowly.
const CANCELLING: [&str; 3] =
    ["softmax/backward_single_token", "softmax/backward_logits_30", "softmax/backward_sinks_packed"];

impl SoftmaxCase {
    /// The extents of the problem.
    pub fn dims(&self) -> Dims {
        let [batch, heads, queries, head_dim] = self.layout.axes(&self.q.shape);
        let [_, kv_heads, keys, value_dim] = self.layout.axes(&self.v.shape);
        Dims { batch, heads, kv_heads, queries, keys, head_dim, value_dim }
    }

    /// Batch entries, or sequences of a packed batch.
    pub fn sequences(&self) -> usize {
        match &self.cu_seqlens {
            Some((q, _)) => q.len().saturating_sub(1),
            None => self.q.shape.first().copied().unwrap_or(0),
        }
    }

    /// The extents of `out`, in the case's layout.
    pub fn out_shape(&self) -> Vec<usize> {
        let mut shape = self.q.shape.clone();
        *shape.last_mut().expect("q has a head dim") = self.dims().value_dim;
        shape
    }

    /// The extents of `lse`: `[batch, heads, queries]` whatever the layout, `[heads, total]` for a packed batch.
    pub fn lse_shape(&self) -> Vec<usize> {
        let Dims { batch, heads, queries, .. } = self.dims();
        match self.layout {
            Layout::Packed => vec![heads, queries],
            Layout::Bhsd | Layout::Bshd => vec![batch, heads, queries],
        }
    }

    /// The names of all outputs, forward and backward.
    pub const OUTPUTS: [&'static str; 8] = ["out", "lse", "dq", "dk", "dv", "dbias", "dsinks", "dalibi_slopes"];

    /// Whether a gradient comes in.
    pub fn has_backward(&self) -> bool {
        self.grad_out.is_some() || self.grad_lse.is_some()
    }

    /// The extents of an output and how it is stored; `None` if there is no such output.
    pub fn output(&self, name: &str) -> Option<(Vec<usize>, Storage)> {
        let per_head = |values: &Option<Vec<f32>>| values.as_ref().map(|values| (vec![values.len()], Storage::F32));
        match name {
            "out" => Some((self.out_shape(), self.q.storage)),
            "lse" => Some((self.lse_shape(), Storage::F32)),
            "dq" => Some((self.q.shape.clone(), self.q.storage)),
            "dk" => Some((self.k.shape.clone(), self.k.storage)),
            "dv" => Some((self.v.shape.clone(), self.v.storage)),
            "dbias" => self.bias.as_ref().map(|bias| (bias.shape.clone(), Storage::F32)),
            "dsinks" => per_head(&self.sinks),
            "dalibi_slopes" => per_head(&self.alibi_slopes),
            _ => None,
        }
    }

    /// The same problem in f16, for kernels that take nothing else: where it is in f32, its dims are even and it does
    /// not cancel. Queries beyond the range of f16 are scaled down and the scale up, by a power of two, so that logits stay
    /// what they are.
    pub fn in_f16(&self) -> Option<Self> {
        let dims = self.dims();
        let even = dims.head_dim.is_multiple_of(2) && dims.value_dim.is_multiple_of(2);
        if !even || CANCELLING.contains(&&*self.name) || [self.q.storage, self.k.storage] != [Storage::F32; 2] {
            return None;
        }
        let largest = self.q.values.iter().filter(|x| x.is_finite()).fold(1.0_f32, |most, x| most.max(x.abs()));
        let factor = (largest / 32_768.0).log2().ceil().max(0.0).exp2();
        let scale = self.scale.unwrap_or_else(|| (dims.head_dim as f64).sqrt().recip()) * f64::from(factor);
        let q = self.q.values.iter().map(|x| x / factor).collect();
        Some(Self {
            scale: Some(scale),
            q: Tensor::new(Storage::F16, &self.q.shape, q),
            k: self.k.stored(Storage::F16),
            v: self.v.stored(Storage::F16),
            grad_out: self.grad_out.as_ref().map(|tensor| tensor.stored(Storage::F16)),
            // What is stated for f32 says nothing of how f16 rounds the output.
            rms_tolerance: self.rms_tolerance.map(|tolerance| tolerance + 1e-3),
            expect: BTreeMap::new(),
            ..self.clone()
        })
    }

    /// The expected output `name` of a case file, element by element as [`compare`](crate::compare) takes it.
    pub fn expected(&self, name: &str) -> Option<Vec<(usize, f64)>> {
        self.expect.get(name).map(Tensor::elements)
    }
}

#[cfg(test)]
mod tests {
    use crate::{Recipe, Rows, Values};

    #[test]
    fn problems_in_f16_have_the_same_logits() {
        let exact = Recipe { values: Values::OneHot(800_000.0), queries: 5, keys: 7, ..Recipe::default() }.build();
        let half = exact.in_f16().unwrap();
        assert!(half.q.values.iter().all(|x| x.is_finite()));
        let logit = |case: &super::SoftmaxCase| case.reference(Rows::All).largest_logit;
        assert!((logit(&half) / logit(&exact) - 1.0).abs() < 1e-3);
        assert!(half.in_f16().is_none());
        assert!(Recipe { value_dim: 7, ..Recipe::default() }.build().in_f16().is_none());
    }
}
