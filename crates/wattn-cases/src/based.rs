//! One BASED linear attention problem with its tensors.

mod check;
mod packed;
mod recipe;
mod reference;

pub use recipe::BasedRecipe;

use std::collections::BTreeMap;

use crate::{Layout, LinearDims, Rules, Storage, Tensor};

/// `out = sum w v / (sum w + eps)`, `w = 1 + x + x^2 / 2`, `x = scale q . k`, with all that it takes and, in a case from
/// a file, what must come out. [`wattn_oracle::BasedProblem`] says what each part means.
#[derive(Clone, Debug, PartialEq)]
pub struct BasedCase {
    /// Unique in the catalogue.
    pub name: String,
    /// Where the expected outputs come from.
    pub source: Option<String>,
    /// Of q, k, v and out, and of their gradients.
    pub layout: Layout,
    /// Factor of `q kT`; `1 / sqrt(feature_dim)` if `None`.
    pub scale: Option<f64>,
    /// Added to the denominator; 1e-6 if `None`.
    pub eps: Option<f64>,
    /// Whether a query sees no later key.
    pub causal: bool,
    /// Whether there is a denominator.
    pub normalize: bool,
    /// Queries, in `layout`.
    pub q: Tensor,
    /// Keys, in `layout`.
    pub k: Tensor,
    /// Values, in `layout`, stored like `k`.
    pub v: Tensor,
    /// `[batch]`: the keys that exist; values beyond the number of tokens mean all of them.
    pub kv_lens: Option<Vec<u32>>,
    /// Running totals of the tokens, `[sequences + 1]`; present in [`Layout::Packed`] only.
    pub cu_seqlens: Option<Vec<u32>>,
    /// `[batch or sequences, heads, rows, value_dim + 1]`, f32: the packed moments of the keys before the first token, a row for each
    /// of 1, `k_i`, `k_i k_j` (`i <= j`), and in the last column those of the weights, 1 a key.
    pub state: Option<Tensor>,
    /// The gradient of `out`, in `layout`, stored like `q`.
    pub grad_out: Option<Tensor>,
    /// The gradient of the packed moments after the last token, like `state`.
    pub grad_state: Option<Tensor>,
    /// Replaces the tolerance that the storage type asks for.
    pub rms_tolerance: Option<f64>,
    /// Expected outputs, with the extents that [`output`](Self::output) gives.
    pub expect: BTreeMap<String, Tensor>,
}

impl BasedCase {
    /// The names of all outputs; those of the backward pass start with `d`.
    pub const OUTPUTS: [&'static str; 10] = ["out", "s0", "s1", "s2", "z1", "z2", "dq", "dk", "dv", "dstate"];

    /// Whether a gradient comes in.
    pub fn has_backward(&self) -> bool {
        self.grad_out.is_some() || self.grad_state.is_some()
    }

    /// The extents of packed moments.
    pub fn state_shape(&self) -> [usize; 4] {
        let LinearDims { heads, key_dim, value_dim, .. } = self.dims();
        [self.sequences(), heads, (key_dim + 1) * (key_dim + 2) / 2, value_dim + 1]
    }

    /// The extents of the problem, `key_dim` being the feature dim.
    pub fn dims(&self) -> LinearDims {
        LinearDims::of(self.layout, &self.q, &self.v)
    }

    /// Batch entries, or sequences of a packed batch.
    pub fn sequences(&self) -> usize {
        self.cu_seqlens.as_ref().map_or_else(|| self.dims().batch, |totals| totals.len().saturating_sub(1))
    }

    /// The extents of an output and how it is stored; `None` if there is no such output.
    pub fn output(&self, name: &str) -> Option<(Vec<usize>, Storage)> {
        let LinearDims { batch, heads, tokens, key_dim, value_dim } = self.dims();
        let rows = |dim| self.layout.shape([batch, heads, tokens, dim]);
        let state = |extents: &[usize]| ([&[self.sequences(), heads], extents].concat(), Storage::F32);
        Some(match name {
            "out" => (rows(value_dim), self.q.storage),
            "s0" => state(&[value_dim]),
            "s1" => state(&[key_dim, value_dim]),
            "s2" => state(&[key_dim, key_dim, value_dim]),
            "z1" => state(&[key_dim]),
            "z2" => state(&[key_dim, key_dim]),
            "dq" => (rows(key_dim), self.q.storage),
            "dk" => (rows(key_dim), self.k.storage),
            "dv" => (rows(value_dim), self.k.storage),
            "dstate" => (self.state_shape().to_vec(), Storage::F32),
            _ => return None,
        })
    }

    /// The same problem in f16, states in f32, for kernels that take nothing else: where it is in f32 and its dims are even.
    pub fn in_f16(&self) -> Option<Self> {
        let dims = self.dims();
        let even = dims.key_dim.is_multiple_of(2) && dims.value_dim.is_multiple_of(2);
        let plain = [self.q.storage, self.k.storage] == [Storage::F32; 2];
        (even && plain).then(|| Self {
            q: self.q.stored(Storage::F16),
            k: self.k.stored(Storage::F16),
            v: self.v.stored(Storage::F16),
            grad_out: self.grad_out.as_ref().map(|grad| grad.stored(Storage::F16)),
            // What is stated for f32 says nothing of how f16 rounds the output.
            rms_tolerance: self.rms_tolerance.map(|tolerance| tolerance + 1e-3),
            expect: BTreeMap::new(),
            ..self.clone()
        })
    }

    /// How an output is judged.
    ///
    /// # Panics
    /// If there is no such output.
    pub fn rules(&self, name: &str) -> Rules {
        let (shape, storage) = self.output(name).unwrap_or_else(|| panic!("based has no output `{name}`"));
        Rules {
            elements: shape.iter().product(),
            storage,
            largest_logit: 0.0,
            terms: self.dims().tokens,
            rms_tolerance: self.rms_tolerance,
        }
    }

    /// The expected output `name` of a case file, element by element as [`compare`](crate::compare) takes it.
    pub fn expected(&self, name: &str) -> Option<Vec<(usize, f64)>> {
        self.expect.get(name).map(Tensor::elements)
    }
}
