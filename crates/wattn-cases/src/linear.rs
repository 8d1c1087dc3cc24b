//! One decayed linear attention problem with its tensors.

mod check;
mod recipe;
mod reference;

pub use recipe::{Decays, LinearRecipe};

use std::collections::BTreeMap;

use crate::{Layout, Rules, Storage, Tensor};

/// The extents of a problem of linear attention. A packed batch has `batch` = 1, and `tokens` is its total.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(missing_docs, reason = "the names say it")]
pub struct LinearDims {
    pub batch: usize,
    pub heads: usize,
    pub tokens: usize,
    pub key_dim: usize,
    pub value_dim: usize,
}

impl LinearDims {
    pub(crate) fn of(layout: Layout, q: &Tensor, v: &Tensor) -> Self {
        let [batch, heads, tokens, key_dim] = layout.axes(&q.shape);
        let [_, _, _, value_dim] = layout.axes(&v.shape);
        Self { batch, heads, tokens, key_dim, value_dim }
    }
}

/// The logarithm of the factor by which the state decays before a token is added.
#[derive(Clone, Debug, PartialEq)]
pub enum Decay {
    /// `[heads]`, at least 0, of which this is the negative: op `lightning`.
    Slopes(Vec<f32>),
    /// `[batch, heads, tokens]` whatever the layout, packed `[heads, total]`, f32, at most 0: op `gated_linear`.
    Gates(Tensor),
}

/// `state_t = exp(g_t) state_(t-1) + k_t v_tT`, `out_t = scale q_t state_t`, with all that it takes and, in a case from
/// a file, what must come out. [`wattn_oracle::LinearProblem`] says what each part means.
#[derive(Clone, Debug, PartialEq)]
pub struct LinearCase {
    /// Unique in the catalogue.
    pub name: String,
    /// Where the expected outputs come from.
    pub source: Option<String>,
    /// Of q, k, v and out, and of their gradients.
    pub layout: Layout,
    /// Factor of the output; 1 if `None`.
    pub scale: Option<f64>,
    /// Queries, in `layout`.
    pub q: Tensor,
    /// Keys, in `layout`.
    pub k: Tensor,
    /// Values, in `layout`, stored like `k`.
    pub v: Tensor,
    /// How the state decays.
    pub decay: Decay,
    /// `[batch or sequences, heads, key_dim, value_dim]`, f32: the state before the first token.
    pub state: Option<Tensor>,
    /// Running totals of the tokens, `[sequences + 1]`; present in [`Layout::Packed`] only.
    pub cu_seqlens: Option<Vec<u32>>,
    /// The gradient of `out`, in `layout`, stored like `q`.
    pub grad_out: Option<Tensor>,
    /// The gradient of the state after the last token, like `state`.
    pub grad_state: Option<Tensor>,
    /// Whether the backward pass gives the gradient of the decay too.
    pub grad_decay: bool,
    /// Replaces the tolerance that the storage type asks for.
    pub rms_tolerance: Option<f64>,
    /// Expected outputs, with the extents that [`output`](Self::output) gives.
    pub expect: BTreeMap<String, Tensor>,
}

impl LinearCase {
    /// The operator's name in case files.
    pub fn op(&self) -> &'static str {
        match self.decay {
            Decay::Slopes(_) => "lightning",
            Decay::Gates(_) => "gated_linear",
        }
    }

    /// The names of all outputs; those of the backward pass start with `d`.
    pub fn outputs(&self) -> [&'static str; 7] {
        let decay = match self.decay {
            Decay::Slopes(_) => "dslopes",
            Decay::Gates(_) => "dg",
        };
        ["out", "state", "dq", "dk", "dv", "dstate", decay]
    }

    /// The extents of the problem.
    pub fn dims(&self) -> LinearDims {
        LinearDims::of(self.layout, &self.q, &self.v)
    }

    /// Batch entries, or sequences of a packed batch.
    pub fn sequences(&self) -> usize {
        self.cu_seqlens.as_ref().map_or_else(|| self.dims().batch, |totals| totals.len().saturating_sub(1))
    }

    /// Whether a gradient comes in.
    pub fn has_backward(&self) -> bool {
        self.grad_out.is_some() || self.grad_state.is_some()
    }

    /// The extents of the gates, and of their gradient.
    pub(crate) fn gates_shape(&self) -> Vec<usize> {
        let LinearDims { batch, heads, tokens, .. } = self.dims();
        if self.layout == Layout::Packed { vec![heads, tokens] } else { vec![batch, heads, tokens] }
    }

    /// The extents of an output and how it is stored; `None` if there is no such output.
    pub fn output(&self, name: &str) -> Option<(Vec<usize>, Storage)> {
        let LinearDims { batch, heads, tokens, key_dim, value_dim } = self.dims();
        let rows = |dim| self.layout.shape([batch, heads, tokens, dim]);
        let name = self.outputs().into_iter().find(|&output| output == name)?;
        Some(match name {
            "out" => (rows(value_dim), self.q.storage),
            "dq" => (rows(key_dim), self.q.storage),
            "dk" => (rows(key_dim), self.k.storage),
            "dv" => (rows(value_dim), self.k.storage),
            "dslopes" => (vec![heads], Storage::F32),
            "dg" => (self.gates_shape(), Storage::F32),
            _ => (vec![self.sequences(), heads, key_dim, value_dim], Storage::F32),
        })
    }

    /// The same problem in f16, for kernels that take nothing else: where it is in f32 and its dims are even.
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
        let (shape, storage) = self.output(name).unwrap_or_else(|| panic!("{} has no output `{name}`", self.op()));
        let LinearDims { batch, tokens, key_dim, value_dim, .. } = self.dims();
        let terms = match name {
            // Inner products of whole states, and for a slope their sum.
            "dg" => tokens.max(key_dim * value_dim),
            "dslopes" => batch * tokens * key_dim * value_dim,
            _ => tokens,
        };
        Rules {
            elements: shape.iter().product(),
            storage,
            largest_logit: 0.0,
            terms,
            rms_tolerance: self.rms_tolerance,
        }
    }

    /// The expected output `name` of a case file, element by element as [`compare`](crate::compare) takes it.
    pub fn expected(&self, name: &str) -> Option<Vec<(usize, f64)>> {
        self.expect.get(name).map(Tensor::elements)
    }
}
