//! A problem as plain data, from which its tensors are made when they are needed.

use std::collections::BTreeMap;

use crate::{
    Causal, Layout, Mask, SoftmaxCase, Storage, Tensor,
    inputs::{Source, alibi_slopes},
};

/// What queries and keys hold; values are always normal.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Values {
    /// Normal, mean 0 and variance 1.
    Normal,
    /// Normal, queries times this: logits of about this size.
    Large(f32),
    /// One half everywhere: all logits of a problem are equal.
    Constant,
    /// One element per query and per key, 1 in keys and plus or minus this in queries: few different logits, all exact.
    OneHot(f32),
}

/// What an additive bias holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Bias {
    /// Normal.
    Normal,
    /// Normal, a quarter of it `f32::MIN`, which is a number like any other; no row has nothing else.
    MinSome,
    /// Normal, with some rows that are `f32::MIN` throughout.
    MinRows,
    /// Normal, a quarter of it negative infinity, and with it one whole row and one whole column.
    Masking,
    /// All near -2^30, exact in f32 after any small number is added.
    Below,
}

/// Which extents of a bias or mask are its own, and not 1.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Spread {
    /// Batch and heads.
    Full,
    /// Heads.
    PerHead,
    /// Batch.
    PerBatch,
    /// Neither.
    Shared,
}

/// A softmax attention problem. `..Recipe::default()` is a plain one: f32, one batch entry, two heads, 64 queries, keys
/// and elements.
#[derive(Clone, Copy, Debug, PartialEq)]
#[allow(missing_docs, reason = "fields without a comment are those of SoftmaxCase")]
pub struct Recipe {
    pub name: &'static str,
    pub batch: usize,
    pub heads: usize,
    pub kv_heads: usize,
    /// Of a packed batch: not used.
    pub queries: usize,
    /// Of a packed batch: not used.
    pub keys: usize,
    pub head_dim: usize,
    pub value_dim: usize,
    /// Of queries and output.
    pub q_storage: Storage,
    /// Of keys and values.
    pub kv_storage: Storage,
    /// Makes the layout [`Layout::Bshd`].
    pub bshd: bool,
    pub scale: Option<f64>,
    pub causal: Option<Causal>,
    /// One per batch entry, or one for all; none if empty.
    pub causal_offsets: &'static [i32],
    pub window: [Option<u32>; 2],
    pub softcap: Option<f64>,
    /// Adds the slopes that the authors of `ALiBi` use for a power of two of heads.
    pub alibi: bool,
    pub bias: Option<(Bias, Spread)>,
    /// Adds a random mask that lets three quarters through, but for one whole row and one whole column.
    pub mask: Option<Spread>,
    /// Adds normal sinks.
    pub sinks: bool,
    /// None if empty.
    pub kv_lens: &'static [u32],
    /// Queries and keys of each sequence of a packed batch; not packed if empty.
    pub sequences: &'static [(u32, u32)],
    pub values: Values,
    /// Fills every key that no query sees with NaN and infinity, in `k` and in `v`; and every query that sees no key, in `q` and in
    /// the gradient of the output.
    pub poison: bool,
    /// Adds a normal gradient of the output.
    pub backward: bool,
    /// Adds a normal gradient of the log-sum-exp.
    pub grad_lse: bool,
    /// What incoming gradients are multiplied by.
    pub gradients: f32,
    pub rms_tolerance: Option<f64>,
}

impl Default for Recipe {
    fn default() -> Self {
        Self {
            name: "softmax/plain",
            batch: 1,
            heads: 2,
            kv_heads: 2,
            queries: 64,
            keys: 64,
            head_dim: 64,
            value_dim: 64,
            q_storage: Storage::F32,
            kv_storage: Storage::F32,
            bshd: false,
            scale: None,
            causal: None,
            causal_offsets: &[],
            window: [None; 2],
            softcap: None,
            alibi: false,
            bias: None,
            mask: None,
            sinks: false,
            kv_lens: &[],
            sequences: &[],
            values: Values::Normal,
            poison: false,
            backward: false,
            grad_lse: false,
            gradients: 1.0,
            rms_tolerance: None,
        }
    }
}

impl Recipe {
    /// The same problem with at most this many queries and keys: small enough to be checked in full.
    pub fn reduced(self, tokens: usize) -> Self {
        Self { queries: self.queries.min(tokens), keys: self.keys.min(tokens), ..self }
    }

    /// Makes the tensors; the same ones each time.
    pub fn build(&self) -> SoftmaxCase {
        let mut source = Source::named(self.name);
        let totals = |side: fn(&(u32, u32)) -> u32| totals(self.sequences.iter().map(side));
        let cu_seqlens = (!self.sequences.is_empty()).then(|| (totals(|s| s.0), totals(|s| s.1)));
        let layout = match (&cu_seqlens, self.bshd) {
            (Some(_), _) => Layout::Packed,
            (None, true) => Layout::Bshd,
            (None, false) => Layout::Bhsd,
        };
        let (queries, keys) = match &cu_seqlens {
            Some((q, k)) => (*q.last().unwrap_or(&0) as usize, *k.last().unwrap_or(&0) as usize),
            None => (self.queries, self.keys),
        };
        let shape = |heads, len, dim| layout.shape([self.batch, heads, len, dim]);
        let [q, k, v] = [
            shape(self.heads, queries, self.head_dim),
            shape(self.kv_heads, keys, self.head_dim),
            shape(self.kv_heads, keys, self.value_dim),
        ];
        let n = |shape: &[usize]| shape.iter().product::<usize>();
        let (q_values, k_values) = self.queries_and_keys(&mut source, n(&q), n(&k));
        let v_values = source.normals(n(&v));
        let sequences = if layout == Layout::Packed { self.sequences.len() } else { self.batch };
        let mut case = SoftmaxCase {
            name: self.name.into(),
            source: None,
            layout,
            scale: self.scale,
            causal: self.causal,
            causal_offsets: match self.causal_offsets {
                [] => None,
                &[offset] => Some(vec![offset; sequences]),
                offsets => Some(offsets.to_vec()),
            },
            window: self.window,
            softcap: self.softcap,
            q: Tensor::new(self.q_storage, &q, q_values),
            k: Tensor::new(self.kv_storage, &k, k_values),
            v: Tensor::new(self.kv_storage, &v, v_values),
            alibi_slopes: self.alibi.then(|| alibi_slopes(self.heads)),
            sinks: self.sinks.then(|| source.normals(self.heads)),
            bias: self.bias.map(|(bias, spread)| self.bias(&mut source, bias, spread)),
            mask: self.mask.map(|spread| self.mask(&mut source, spread)),
            kv_lens: (!self.kv_lens.is_empty()).then(|| self.kv_lens.to_vec()),
            cu_seqlens,
            grad_out: None,
            grad_lse: None,
            rms_tolerance: self.rms_tolerance,
            expect: BTreeMap::new(),
        };
        let mut gradient = |storage, shape: Vec<usize>| {
            let normals = source.normals(n(&shape)).into_iter().map(|x| x * self.gradients);
            Tensor::new(storage, &shape, normals.collect())
        };
        case.grad_out = self.backward.then(|| gradient(self.q_storage, case.out_shape()));
        case.grad_lse = self.grad_lse.then(|| gradient(Storage::F32, case.lse_shape()));
        if self.poison {
            poison(&mut case);
        }
        case
    }

    fn queries_and_keys(&self, source: &mut Source, n_q: usize, n_k: usize) -> (Vec<f32>, Vec<f32>) {
        // Element `row * 5 % dim` is set, so that neighbours differ and equal ones recur.
        let one_hot = |n: usize, value: f32| -> Vec<f32> {
            let set = |ix: usize| ix % self.head_dim == ix / self.head_dim * 5 % self.head_dim;
            let sign = |ix: usize| if ix / self.head_dim % 3 == 2 { -value } else { value };
            (0..n).map(|ix| if set(ix) { sign(ix) } else { 0.0 }).collect()
        };
        match self.values {
            Values::Normal => (source.normals(n_q), source.normals(n_k)),
            Values::Large(factor) => {
                let q = source.normals(n_q).into_iter().map(|x| x * factor).collect();
                (q, source.normals(n_k))
            }
            Values::Constant => (vec![0.5; n_q], vec![0.5; n_k]),
            Values::OneHot(value) => (one_hot(n_q, value), one_hot(n_k, 1.0)),
        }
    }

    fn spread(&self, spread: Spread) -> [usize; 4] {
        let (batch, heads) = match spread {
            Spread::Full => (self.batch, self.heads),
            Spread::PerHead => (1, self.heads),
            Spread::PerBatch => (self.batch, 1),
            Spread::Shared => (1, 1),
        };
        [batch, heads, self.queries, self.keys]
    }

    /// The row and the column that are masked throughout, for element `ix` of a bias or mask.
    fn is_barred(&self, ix: usize) -> bool {
        ix / self.keys % self.queries == self.queries / 2 || ix % self.keys == self.keys / 3
    }

    fn bias(&self, source: &mut Source, bias: Bias, spread: Spread) -> Tensor {
        let shape = self.spread(spread);
        let mut value = |ix: usize| {
            let (row, col) = (ix / self.keys, ix % self.keys);
            let normal = source.normal();
            let quarter = source.chance(0.25);
            match bias {
                Bias::MinSome if quarter && col != row % self.keys => f32::MIN,
                Bias::MinRows if row % 5 == 1 => f32::MIN,
                Bias::Masking if quarter || self.is_barred(ix) => f32::NEG_INFINITY,
                Bias::Below => -((1_u32 << 30) as f32) - 128.0 * ((row + col) % 3) as f32,
                _ => normal,
            }
        };
        let values = (0..shape.iter().product()).map(&mut value).collect();
        Tensor::new(Storage::F32, &shape, values)
    }

    fn mask(&self, source: &mut Source, spread: Spread) -> Mask {
        let shape = self.spread(spread);
        let mut value = |ix: usize| source.chance(0.75) && !self.is_barred(ix);
        Mask { shape, values: (0..shape.iter().product()).map(&mut value).collect() }
    }
}

/// Running totals from 0.
pub(crate) fn totals(lens: impl Iterator<Item = u32>) -> Vec<u32> {
    let ends = lens.scan(0, |total, len| {
        *total += len;
        Some(*total)
    });
    std::iter::once(0).chain(ends).collect()
}

fn poison(case: &mut SoftmaxCase) {
    let dims = case.dims();
    let layout = case.layout;
    let fill = |tensor: &mut Tensor, seen: &[bool], [heads, len, dim]: [usize; 3]| {
        for ix in (0..seen.len()).filter(|&ix| !seen[ix]) {
            let [b, head, n] = [ix / len / heads, ix / len % heads, ix % len];
            let row = match layout {
                Layout::Bhsd => ix,
                Layout::Bshd | Layout::Packed => (b * len + n) * heads + head,
            };
            for (d, x) in tensor.values[row * dim..(row + 1) * dim].iter_mut().enumerate() {
                *x = [f32::NAN, f32::INFINITY, f32::NEG_INFINITY][(n + d) % 3];
            }
        }
    };
    let (queries, keys) = case.seen();
    fill(&mut case.k, &keys, [dims.kv_heads, dims.keys, dims.head_dim]);
    fill(&mut case.v, &keys, [dims.kv_heads, dims.keys, dims.value_dim]);
    fill(&mut case.q, &queries, [dims.heads, dims.queries, dims.head_dim]);
    if let Some(grad_out) = &mut case.grad_out {
        fill(grad_out, &queries, [dims.heads, dims.queries, dims.value_dim]);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Rows;

    #[test]
    fn poison_reaches_what_is_unseen_only() {
        let causal = Some(Causal::TopLeft);
        let plain = Recipe { batch: 2, queries: 3, keys: 9, kv_heads: 1, causal, bshd: true, ..Recipe::default() };
        let (clean, dirty) = (plain.build(), Recipe { poison: true, ..plain }.build());
        let finite = dirty.v.values.iter().filter(|x| x.is_finite()).count();
        assert_eq!(finite, 2 * 3 * 64);
        assert_eq!(clean.reference(Rows::All).out, dirty.reference(Rows::All).out);
    }

    #[test]
    fn reduced_problems_keep_all_but_their_lengths() {
        let long = Recipe { queries: 100, keys: 500, ..Recipe::default() };
        let dims = long.reduced(200).build().dims();
        assert_eq!((dims.queries, dims.keys, dims.heads), (100, 200, 2));
    }
}
