//! A BASED problem as plain data.

use std::collections::BTreeMap;

use super::packed;
use crate::{BasedCase, Layout, Storage, Tensor, inputs::Source, recipe::totals};

/// A BASED linear attention problem. `..BasedRecipe::default()` is a plain one: f32, one batch entry, two heads, 64
/// tokens, keys of 16 elements and values of 64, causal, normalised, the gradient of `out` coming in.
#[derive(Clone, Copy, Debug, PartialEq)]
#[allow(missing_docs, reason = "fields without a comment are those of BasedCase")]
pub struct BasedRecipe {
    pub name: &'static str,
    pub batch: usize,
    pub heads: usize,
    /// Of a packed batch: not used.
    pub tokens: usize,
    pub feature_dim: usize,
    pub value_dim: usize,
    /// Of queries and output, and of their gradients.
    pub q_storage: Storage,
    /// Of keys and values, and of their gradients.
    pub kv_storage: Storage,
    /// Factors of q, k and v.
    pub sizes: [f32; 3],
    /// Makes the layout [`Layout::Bshd`].
    pub bshd: bool,
    pub scale: Option<f64>,
    pub eps: Option<f64>,
    pub causal: bool,
    pub normalize: bool,
    /// Adds the state of five keys.
    pub state: bool,
    /// Adds a normal gradient of the output.
    pub grad_out: bool,
    /// Adds a normal gradient of the final state.
    pub grad_state: bool,
    /// None if empty.
    pub kv_lens: &'static [u32],
    /// Tokens of each sequence of a packed batch; not packed if empty.
    pub sequences: &'static [u32],
    /// Fills every key that does not exist with NaN and infinity, in `k` and in `v`.
    pub poison: bool,
    pub rms_tolerance: Option<f64>,
}

impl Default for BasedRecipe {
    fn default() -> Self {
        Self {
            name: "based/plain",
            batch: 1,
            heads: 2,
            tokens: 64,
            feature_dim: 16,
            value_dim: 64,
            q_storage: Storage::F32,
            kv_storage: Storage::F32,
            sizes: [1.0; 3],
            bshd: false,
            scale: None,
            eps: None,
            causal: true,
            normalize: true,
            state: false,
            grad_out: true,
            grad_state: false,
            kv_lens: &[],
            sequences: &[],
            poison: false,
            rms_tolerance: None,
        }
    }
}

impl BasedRecipe {
    /// Makes the tensors; the same ones each time.
    pub fn build(&self) -> BasedCase {
        let mut source = Source::named(self.name);
        let cu_seqlens = (!self.sequences.is_empty()).then(|| totals(self.sequences.iter().copied()));
        let layout = match (&cu_seqlens, self.bshd) {
            (Some(_), _) => Layout::Packed,
            (None, true) => Layout::Bshd,
            (None, false) => Layout::Bhsd,
        };
        let tokens = if layout == Layout::Packed { self.sequences.iter().sum::<u32>() as usize } else { self.tokens };
        let keys = layout.shape([self.batch, self.heads, tokens, self.feature_dim]);
        let values = layout.shape([self.batch, self.heads, tokens, self.value_dim]);
        let mut sized = |storage, shape: &[usize], size: f32| {
            let normals = source.normals(shape.iter().product());
            Tensor::new(storage, shape, normals.into_iter().map(|x| x * size).collect())
        };
        let mut case = BasedCase {
            name: self.name.into(),
            source: None,
            layout,
            scale: self.scale,
            eps: self.eps,
            causal: self.causal,
            normalize: self.normalize,
            q: sized(self.q_storage, &keys, self.sizes[0]),
            k: sized(self.kv_storage, &keys, self.sizes[1]),
            v: sized(self.kv_storage, &values, self.sizes[2]),
            kv_lens: (!self.kv_lens.is_empty()).then(|| self.kv_lens.to_vec()),
            cu_seqlens,
            state: None,
            grad_out: self.grad_out.then(|| sized(self.q_storage, &values, 1.0)),
            grad_state: None,
            rms_tolerance: self.rms_tolerance,
            expect: BTreeMap::new(),
        };
        let states = case.state_shape();
        case.grad_state = self.grad_state.then(|| sized(Storage::F32, &states, 1.0));
        case.state = self.state.then(|| self.five_keys(&states, &mut source));
        if self.poison {
            poison(&mut case);
        }
        case
    }
}

impl BasedRecipe {
    /// The packed moments of five normal keys and values a head.
    fn five_keys(&self, shape: &[usize], source: &mut Source) -> Tensor {
        let mut state = Tensor::new(Storage::F32, shape, vec![0.0; shape.iter().product()]);
        for head in state.values.chunks_exact_mut(shape[2] * shape[3]) {
            for _ in 0..5 {
                let (k, v) = (source.normals(self.feature_dim), source.normals(self.value_dim));
                packed::add(head, &k, &v);
            }
        }
        state
    }
}

fn poison(case: &mut BasedCase) {
    let Some(lens) = &case.kv_lens else { return };
    for tensor in [&mut case.k, &mut case.v] {
        let axes = case.layout.axes(&tensor.shape);
        for (ix, x) in tensor.values.iter_mut().enumerate() {
            let [b, t] = case.layout.entry_and_token(axes, ix);
            if t >= lens[b] as usize {
                *x = [f32::NAN, f32::INFINITY, f32::NEG_INFINITY][ix % 3];
            }
        }
    }
}
