//! A linear attention problem as plain data.

use std::collections::BTreeMap;

use crate::{
    Layout, LinearCase, Storage, Tensor,
    inputs::{Source, alibi_slopes},
    linear::Decay,
    recipe::totals,
};

/// How the state of a [`LinearRecipe`] decays.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Decays {
    /// One slope per head, or one for all.
    Slopes(&'static [f32]),
    /// The slopes that the authors of `ALiBi` use for a power of two of heads.
    Alibi,
    /// A gate per token: minus this times the square of a normal value, but for one in ten, which is 0.
    Gates(f32),
    /// The same with -1e6 in the place of 0: nothing is left of what came before, but all of what comes after.
    Resets(f32),
}

/// A decayed linear attention problem. `..LinearRecipe::default()` is a plain one: f32, one batch entry, two heads, 64
/// tokens and elements, slopes like those of `ALiBi`, the gradient of `out` coming in, that of the decay going out.
#[derive(Clone, Copy, Debug, PartialEq)]
#[allow(missing_docs, reason = "fields without a comment are those of LinearCase")]
pub struct LinearRecipe {
    pub name: &'static str,
    pub batch: usize,
    pub heads: usize,
    /// Of a packed batch: not used.
    pub tokens: usize,
    pub key_dim: usize,
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
    pub decay: Decays,
    /// Adds a normal state before the first token.
    pub state: bool,
    /// Adds a normal gradient of the output.
    pub grad_out: bool,
    /// Adds a normal gradient of the state after the last token.
    pub grad_state: bool,
    pub grad_decay: bool,
    /// Tokens of each sequence of a packed batch; not packed if empty.
    pub sequences: &'static [u32],
    pub rms_tolerance: Option<f64>,
}

impl Default for LinearRecipe {
    fn default() -> Self {
        Self {
            name: "lightning/plain",
            batch: 1,
            heads: 2,
            tokens: 64,
            key_dim: 64,
            value_dim: 64,
            q_storage: Storage::F32,
            kv_storage: Storage::F32,
            sizes: [1.0; 3],
            bshd: false,
            scale: None,
            decay: Decays::Alibi,
            state: false,
            grad_out: true,
            grad_state: false,
            grad_decay: true,
            sequences: &[],
            rms_tolerance: None,
        }
    }
}

impl LinearRecipe {
    /// Makes the tensors; the same ones each time.
    pub fn build(&self) -> LinearCase {
        let mut source = Source::named(self.name);
        let cu_seqlens = (!self.sequences.is_empty()).then(|| totals(self.sequences.iter().copied()));
        let layout = match (&cu_seqlens, self.bshd) {
            (Some(_), _) => Layout::Packed,
            (None, true) => Layout::Bshd,
            (None, false) => Layout::Bhsd,
        };
        let tokens = if layout == Layout::Packed { self.sequences.iter().sum::<u32>() as usize } else { self.tokens };
        let keys = layout.shape([self.batch, self.heads, tokens, self.key_dim]);
        let values = layout.shape([self.batch, self.heads, tokens, self.value_dim]);
        let sequences = if layout == Layout::Packed { self.sequences.len() } else { self.batch };
        let states = [sequences, self.heads, self.key_dim, self.value_dim];
        let mut sized = |storage, shape: &[usize], size: f32| {
            let normals = source.normals(shape.iter().product());
            Tensor::new(storage, shape, normals.into_iter().map(|x| x * size).collect())
        };
        let mut case = LinearCase {
            name: self.name.into(),
            source: None,
            layout,
            scale: self.scale,
            q: sized(self.q_storage, &keys, self.sizes[0]),
            k: sized(self.kv_storage, &keys, self.sizes[1]),
            v: sized(self.kv_storage, &values, self.sizes[2]),
            decay: Decay::Slopes(Vec::new()),
            state: self.state.then(|| sized(Storage::F32, &states, 1.0)),
            cu_seqlens,
            grad_out: self.grad_out.then(|| sized(self.q_storage, &values, 1.0)),
            grad_state: self.grad_state.then(|| sized(Storage::F32, &states, 1.0)),
            grad_decay: self.grad_decay,
            rms_tolerance: self.rms_tolerance,
            expect: BTreeMap::new(),
        };
        case.decay = match self.decay {
            Decays::Slopes(&[slope]) => Decay::Slopes(vec![slope; self.heads]),
            Decays::Slopes(slopes) => Decay::Slopes(slopes.to_vec()),
            Decays::Alibi => Decay::Slopes(alibi_slopes(self.heads)),
            Decays::Gates(size) | Decays::Resets(size) => {
                let some = if matches!(self.decay, Decays::Resets(_)) { -1e6 } else { 0.0 };
                let mut gate = || if source.chance(0.1) { some } else { -size * source.normal().powi(2) };
                let shape = case.gates_shape();
                let gates = (0..shape.iter().product()).map(|_| gate()).collect();
                Decay::Gates(Tensor::new(Storage::F32, &shape, gates))
            }
        };
        case
    }
}
