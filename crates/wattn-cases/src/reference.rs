//! What must come out of a case, by the oracle.

use std::collections::{BTreeMap, BTreeSet};

use rand::{Rng, SeedableRng};
use rand_pcg::Pcg64Mcg;
use wattn_oracle::{Broadcast, PackedLengths, SoftmaxProblem};

use crate::{Dims, Layout, SoftmaxCase, Storage, Tensor};

/// Which rows of a result are looked at.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Rows {
    /// Every query of every head.
    All,
    /// Some queries of every head: the first, the last, and random ones.
    Sampled {
        /// How many of each batch entry's head, or of a packed batch's head.
        per_head: usize,
        /// Chooses the random ones.
        seed: u64,
    },
}

/// Expected outputs, as pairs of the flat element index in that output and its value.
#[derive(Clone, Debug)]
pub struct Reference {
    /// Elements of `out`, in the case's layout.
    pub out: Vec<(usize, f64)>,
    /// Elements of `lse`.
    pub lse: Vec<(usize, f64)>,
    /// All elements of the gradients, where one comes in.
    pub gradients: References,
    /// Largest magnitude of a logit that matters in these rows; see [`wattn_oracle::Row::largest_logit`].
    pub largest_logit: f64,
}

/// What must come out, by output: pairs of the flat element index in that output and its value.
pub type References = BTreeMap<&'static str, Vec<(usize, f64)>>;

/// The operands of a case, as the oracle takes them.
struct Operands {
    q: Vec<f64>,
    k: Vec<f64>,
    v: Vec<f64>,
    causal_offsets: Option<Vec<i64>>,
    alibi_slopes: Option<Vec<f64>>,
    sinks: Option<Vec<f64>>,
    bias: Option<([usize; 4], Vec<f64>)>,
    kv_lens: Option<Vec<usize>>,
    cu_seqlens: Option<[Vec<usize>; 2]>,
}

pub(crate) fn wide(values: &[f32]) -> Vec<f64> {
    values.iter().map(|&x| x.into()).collect()
}

pub(crate) fn counts(values: &[u32]) -> Vec<usize> {
    values.iter().map(|&x| x as usize).collect()
}

/// All elements of an output as the tensor that a file holds.
pub(crate) fn stored(shape: &[usize], mut pairs: Vec<(usize, f64)>) -> Tensor {
    pairs.sort_by_key(|&(ix, _)| ix);
    Tensor::new(Storage::F32, shape, pairs.into_iter().map(|(_, x)| x as f32).collect())
}

impl Operands {
    fn new(case: &SoftmaxCase) -> Self {
        let turn = |tensor| case.layout.heads_first(tensor);
        Self {
            q: turn(&case.q),
            k: turn(&case.k),
            v: turn(&case.v),
            causal_offsets: case.causal_offsets.as_ref().map(|offsets| offsets.iter().map(|&x| x.into()).collect()),
            alibi_slopes: case.alibi_slopes.as_deref().map(wide),
            sinks: case.sinks.as_deref().map(wide),
            bias: case.bias.as_ref().map(|bias| {
                let shape = bias.shape.as_slice().try_into().expect("bias has four axes");
                (shape, wide(&bias.values))
            }),
            kv_lens: case.kv_lens.as_deref().map(counts),
            cu_seqlens: case.cu_seqlens.as_ref().map(|(q, k)| [counts(q), counts(k)]),
        }
    }

    fn problem<'a>(&'a self, case: &'a SoftmaxCase) -> SoftmaxProblem<'a> {
        let Dims { batch, heads, kv_heads, queries, keys, head_dim, value_dim } = case.dims();
        let [left, right] = case.window.map(|side| side.map(|n| n as usize));
        SoftmaxProblem {
            batch,
            heads,
            kv_heads,
            queries,
            keys,
            head_dim,
            value_dim,
            q: &self.q,
            k: &self.k,
            v: &self.v,
            scale: case.scale,
            causal: case.causal,
            causal_offsets: self.causal_offsets.as_deref(),
            window: (left, right),
            softcap: case.softcap,
            alibi_slopes: self.alibi_slopes.as_deref(),
            bias: self.bias.as_ref().map(|(shape, values)| Broadcast { values, shape: *shape }),
            mask: case.mask.as_ref().map(|mask| Broadcast { values: &mask.values, shape: mask.shape }),
            sinks: self.sinks.as_deref(),
            kv_lens: self.kv_lens.as_deref(),
            packed: self.cu_seqlens.as_ref().map(|[q, k]| PackedLengths { q, k }),
        }
    }
}

impl SoftmaxCase {
    /// Calculates what must come out.
    ///
    /// # Panics
    /// If the case does not pass its [`check`](Self::check).
    pub fn reference(&self, rows: Rows) -> Reference {
        let operands = Operands::new(self);
        let problem = operands.problem(self);
        let dims = self.dims();
        let mut reference =
            Reference { out: Vec::new(), lse: Vec::new(), gradients: self.gradients(), largest_logit: 0.0 };
        for b in 0..dims.batch {
            for h in 0..dims.heads {
                let head_ix = b * dims.heads + h;
                for i in chosen(rows, dims.queries, head_ix) {
                    let row = problem.flash_forward_row(b, h, i);
                    let row_ix = match self.layout {
                        Layout::Bhsd => head_ix * dims.queries + i,
                        Layout::Bshd | Layout::Packed => (b * dims.queries + i) * dims.heads + h,
                    };
                    let elements = row.out.into_iter().enumerate();
                    reference.out.extend(elements.map(|(d, x)| (row_ix * dims.value_dim + d, x)));
                    reference.lse.push((head_ix * dims.queries + i, row.lse));
                    reference.largest_logit = reference.largest_logit.max(row.largest_logit);
                }
            }
        }
        reference
    }

    /// What gradients must come out: those of all that the case has.
    fn gradients(&self) -> References {
        if !self.has_backward() {
            return References::new();
        }
        let operands = Operands::new(self);
        let zeros = || vec![0.0; self.out_shape().iter().product()];
        let grad_out = self.grad_out.as_ref().map_or_else(zeros, |tensor| self.layout.heads_first(tensor));
        let grad_lse = self.grad_lse.as_ref().map(|tensor| wide(&tensor.values));
        let found = operands.problem(self).flash_backward(&grad_out, grad_lse.as_deref());
        let rows = |tensor: &Tensor, values| self.layout.elements(&tensor.shape, values);
        let mut all = References::from([
            ("dq", rows(&self.q, found.dq)),
            ("dk", rows(&self.k, found.dk)),
            ("dv", rows(&self.v, found.dv)),
        ]);
        for (name, on, values) in [
            ("dbias", self.bias.is_some(), found.dbias),
            ("dsinks", self.sinks.is_some(), found.dsinks),
            ("dalibi_slopes", self.alibi_slopes.is_some(), found.dalibi_slopes),
        ] {
            if on {
                all.insert(name, values.into_iter().enumerate().collect());
            }
        }
        all
    }

    /// Stores all of the reference as the expected outputs, so that the case can be written to a file.
    pub fn expect_reference(&mut self) {
        let Reference { out, lse, gradients, .. } = self.reference(Rows::All);
        for (name, shape, pairs) in [("out", self.out_shape(), out), ("lse", self.lse_shape(), lse)] {
            self.expect.insert(name.into(), stored(&shape, pairs));
        }
        for (name, pairs) in gradients {
            let (shape, _) = self.output(name).expect("an output of the case");
            self.expect.insert(name.into(), stored(&shape, pairs));
        }
        self.source = Some("wattn-oracle, f64".into());
    }

    /// Which queries see any key, `[batch, heads, queries]`, and which keys any query sees, `[batch, kv_heads, keys]`.
    pub(crate) fn seen(&self) -> (Vec<bool>, Vec<bool>) {
        let operands = Operands::new(self);
        let problem = operands.problem(self);
        let dims = self.dims();
        let group = dims.heads / dims.kv_heads;
        let mut queries = vec![false; dims.batch * dims.heads * dims.queries];
        let mut keys = vec![false; dims.batch * dims.kv_heads * dims.keys];
        for head_ix in 0..dims.batch * dims.heads {
            let (b, h) = (head_ix / dims.heads, head_ix % dims.heads);
            for i in 0..dims.queries {
                for j in (0..dims.keys).filter(|&j| problem.sees(b, h, i, j)) {
                    queries[head_ix * dims.queries + i] = true;
                    keys[(b * dims.kv_heads + h / group) * dims.keys + j] = true;
                }
            }
        }
        (queries, keys)
    }
}

/// The rows of one head to look at, in order.
fn chosen(rows: Rows, queries: usize, head_ix: usize) -> Vec<usize> {
    match rows {
        Rows::Sampled { per_head, seed } if per_head < queries => {
            let mut random = Pcg64Mcg::seed_from_u64(seed ^ ((head_ix as u64) << 32));
            let mut rows: BTreeSet<usize> = [0, queries - 1].into_iter().take(per_head).collect();
            while rows.len() < per_head {
                rows.insert(random.random_range(0..queries));
            }
            rows.into_iter().collect()
        }
        Rows::All | Rows::Sampled { .. } => (0..queries).collect(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Causal, Recipe};

    #[test]
    fn layouts_agree() {
        let recipe = Recipe { batch: 2, heads: 4, queries: 5, keys: 9, ..Recipe::default() };
        let bhsd = recipe.build();
        let mut bshd = bhsd.clone();
        bshd.layout = Layout::Bshd;
        for tensor in [&mut bshd.q, &mut bshd.k, &mut bshd.v] {
            let [batch, heads, len, dim] = tensor.shape[..] else { panic!() };
            let (shape, old) = (vec![batch, len, heads, dim], tensor.values.clone());
            tensor.shape = shape;
            for (ix, x) in tensor.values.iter_mut().enumerate() {
                let [d, h, n, b] = [ix % dim, ix / dim % heads, ix / dim / heads % len, ix / dim / heads / len];
                *x = old[((b * heads + h) * len + n) * dim + d];
            }
        }
        let (want, got) = (bhsd.reference(Rows::All), bshd.reference(Rows::All));
        assert_eq!(want.lse, got.lse);
        let got: std::collections::HashMap<usize, f64> = got.out.into_iter().collect();
        for (ix, x) in want.out {
            let [d, i, h, b] = [ix % 64, ix / 64 % 5, ix / 64 / 5 % 4, ix / 64 / 5 / 4];
            assert_eq!(got[&(((b * 5 + i) * 4 + h) * 64 + d)], x);
        }
    }

    #[test]
    fn sampled_rows_are_rows_of_all() {
        let case = Recipe { queries: 40, causal: Some(Causal::BottomRight), ..Recipe::default() };
        let case = case.build();
        let all = case.reference(Rows::All);
        let some = case.reference(Rows::Sampled { per_head: 7, seed: 1 });
        assert_eq!(some.lse.len(), 2 * 7);
        assert!(some.lse.iter().chain(&[all.lse[0], all.lse[79]]).all(|row| all.lse.contains(row)));
        assert!(some.lse.contains(&all.lse[0]) && some.lse.contains(&all.lse[79]));
        assert!(some.out.iter().all(|element| all.out.contains(element)));
        assert_eq!(case.reference(Rows::Sampled { per_head: 99, seed: 1 }).out, all.out);
    }
}
