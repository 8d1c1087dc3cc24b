//! The moments of keys and values, which are all that a query needs of them.

use crate::rows::{add_scaled, dot, row, row_mut};

/// Sums over the keys and values of a sequence and head; how many there are is known apart.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct BasedMoments {
    /// `[batch or sequences, heads, value_dim]`: `sum v`
    pub s0: Vec<f64>,
    /// `[batch or sequences, heads, feature_dim, value_dim]`: `sum k vT`
    pub s1: Vec<f64>,
    /// `[batch or sequences, heads, feature_dim, feature_dim, value_dim]`: `sum k kT v`
    pub s2: Vec<f64>,
    /// `[batch or sequences, heads, feature_dim]`: `sum k`
    pub z1: Vec<f64>,
    /// `[batch or sequences, heads, feature_dim, feature_dim]`: `sum k kT`
    pub z2: Vec<f64>,
}

impl BasedMoments {
    /// The moments of nothing, for so many sequences times heads.
    pub fn zeros(heads: usize, feature_dim: usize, value_dim: usize) -> Self {
        Self {
            s0: vec![0.0; heads * value_dim],
            s1: vec![0.0; heads * feature_dim * value_dim],
            s2: vec![0.0; heads * feature_dim * feature_dim * value_dim],
            z1: vec![0.0; heads * feature_dim],
            z2: vec![0.0; heads * feature_dim * feature_dim],
        }
    }

    /// Those of one head of one sequence.
    pub(super) fn head(&self, ix: usize, feature_dim: usize, value_dim: usize) -> Self {
        Self {
            s0: row(&self.s0, ix, value_dim).to_vec(),
            s1: row(&self.s1, ix, feature_dim * value_dim).to_vec(),
            s2: row(&self.s2, ix, feature_dim * feature_dim * value_dim).to_vec(),
            z1: row(&self.z1, ix, feature_dim).to_vec(),
            z2: row(&self.z2, ix, feature_dim * feature_dim).to_vec(),
        }
    }

    /// Puts the moments of one more head after these.
    pub(super) fn append(&mut self, head: &Self) {
        self.s0.extend(&head.s0);
        self.s1.extend(&head.s1);
        self.s2.extend(&head.s2);
        self.z1.extend(&head.z1);
        self.z2.extend(&head.z2);
    }

    /// Adds a key `k` with its value `v`, counting `w` times in `z1` and `z2`, to the moments of one head; `weights` are
    /// the factors of the orders 0, 1 and 2.
    pub(super) fn add(&mut self, k: &[f64], v: &[f64], w: f64, weights: [f64; 3]) {
        add_scaled(&mut self.s0, weights[0], v);
        add_scaled(&mut self.z1, weights[1] * w, k);
        for (i, k_i) in k.iter().enumerate() {
            add_scaled(row_mut(&mut self.s1, i, v.len()), weights[1] * k_i, v);
            add_scaled(row_mut(&mut self.z2, i, k.len()), weights[2] * w * k_i, k);
            for (j, k_j) in k.iter().enumerate() {
                add_scaled(row_mut(&mut self.s2, i * k.len() + j, v.len()), weights[2] * k_i * k_j, v);
            }
        }
    }

    /// Adds other moments.
    pub(super) fn add_all(&mut self, other: &Self) {
        add_scaled(&mut self.s0, 1.0, &other.s0);
        add_scaled(&mut self.s1, 1.0, &other.s1);
        add_scaled(&mut self.s2, 1.0, &other.s2);
        add_scaled(&mut self.z1, 1.0, &other.z1);
        add_scaled(&mut self.z2, 1.0, &other.z2);
    }

    /// `s0 + a x s1 + b x xT s2` of one head, `[value_dim]`, with `weights` = `[1, a, b]`.
    pub(super) fn values(&self, x: &[f64], weights: [f64; 3]) -> Vec<f64> {
        let value_dim = self.s0.len();
        let mut sum = vec![0.0; value_dim];
        add_scaled(&mut sum, weights[0], &self.s0);
        for (i, x_i) in x.iter().enumerate() {
            add_scaled(&mut sum, weights[1] * x_i, row(&self.s1, i, value_dim));
            for (j, x_j) in x.iter().enumerate() {
                add_scaled(&mut sum, weights[2] * x_i * x_j, row(&self.s2, i * x.len() + j, value_dim));
            }
        }
        sum
    }

    /// `n + a x z1 + b x xT z2` of one head, with `weights` = `[n, a, b]`.
    pub(super) fn weight(&self, x: &[f64], weights: [f64; 3]) -> f64 {
        let second: f64 = x.iter().enumerate().map(|(i, x_i)| x_i * dot(x, row(&self.z2, i, x.len()))).sum();
        weights[0] + weights[1] * dot(x, &self.z1) + weights[2] * second
    }

    /// The gradient with respect to `x` of `values . grad + weight * w` of one head, `[x.len()]`.
    pub(super) fn grad_x(&self, x: &[f64], grad: &[f64], w: f64, weights: [f64; 3]) -> Vec<f64> {
        let second =
            |i: usize, j: usize| dot(row(&self.s2, i * x.len() + j, grad.len()), grad) + self.z2[i * x.len() + j] * w;
        (0..x.len())
            .map(|i| {
                let first = dot(row(&self.s1, i, grad.len()), grad) + self.z1[i] * w;
                let both: f64 = x.iter().enumerate().map(|(j, x_j)| (second(i, j) + second(j, i)) * x_j).sum();
                weights[1] * first + weights[2] * both
            })
            .collect()
    }

    /// Panics where a slice does not have the length that so many sequences times heads ask for.
    pub(super) fn assert_lengths(&self, heads: usize, feature_dim: usize, value_dim: usize) {
        assert_eq!(self.s0.len(), heads * value_dim, "length of s0");
        assert_eq!(self.s1.len(), heads * feature_dim * value_dim, "length of s1");
        assert_eq!(self.s2.len(), heads * feature_dim * feature_dim * value_dim, "length of s2");
        assert_eq!(self.z1.len(), heads * feature_dim, "length of z1");
        assert_eq!(self.z2.len(), heads * feature_dim * feature_dim, "length of z2");
    }
}
