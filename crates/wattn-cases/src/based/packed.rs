//! Packed moments: what devices keep, each of the symmetric ones once, the weights beside the values.

use wattn_oracle::BasedMoments;

use crate::Tensor;

/// The rows of packed moments: `(0, 0)` for the sum itself, `(0, j)` for those of `k_j`, `(i, j)` with `i <= j` for those of `k_i k_j`,
/// counted from 1.
fn rows(key_dim: usize) -> Vec<(usize, usize)> {
    (0..=key_dim).flat_map(|i| (i..=key_dim).map(move |j| (i, j))).collect()
}

/// Adds a key with its value to the packed moments of one head.
pub(super) fn add(state: &mut [f32], k: &[f32], v: &[f32]) {
    let unit = |i: usize| if i == 0 { 1.0 } else { k[i - 1] };
    for (row, (i, j)) in state.chunks_exact_mut(v.len() + 1).zip(rows(k.len())) {
        let kk = unit(i) * unit(j);
        row.iter_mut().zip(v.iter().chain(&[1.0])).for_each(|(sum, v)| *sum += kk * v);
    }
}

/// The moments as the oracle has them, all numbers of symmetric ones from the one that is kept, and the counts of each head.
pub(super) fn unpacked(state: &Tensor, key_dim: usize, value_dim: usize) -> (Vec<f64>, BasedMoments) {
    unpack(state, key_dim, value_dim, true)
}

/// The gradient of the moments from that of packed ones: only the one that is kept has one.
pub(super) fn unpacked_gradient(state: &Tensor, key_dim: usize, value_dim: usize) -> (Vec<f64>, BasedMoments) {
    unpack(state, key_dim, value_dim, false)
}

fn unpack(state: &Tensor, key_dim: usize, value_dim: usize, both: bool) -> (Vec<f64>, BasedMoments) {
    let rows = rows(key_dim);
    let heads = state.shape[0] * state.shape[1];
    let mut moments = BasedMoments::zeros(heads, key_dim, value_dim);
    let mut counts = Vec::new();
    for (h, state) in state.values.chunks_exact(rows.len() * (value_dim + 1)).enumerate() {
        for (row, &(i, j)) in state.chunks_exact(value_dim + 1).zip(&rows) {
            let (weight, values) = (f64::from(row[value_dim]), row[..value_dim].iter().map(|&x| f64::from(x)));
            let put = |all: &mut Vec<f64>, at: usize| {
                all[at * value_dim..].iter_mut().zip(values.clone()).for_each(|(to, x)| *to = x);
            };
            match (i, j) {
                (0, 0) => {
                    counts.push(weight);
                    put(&mut moments.s0, h);
                }
                (0, j) => {
                    moments.z1[h * key_dim + j - 1] = weight;
                    put(&mut moments.s1, h * key_dim + j - 1);
                }
                (i, j) => {
                    let at = |i: usize, j: usize| (h * key_dim + i - 1) * key_dim + j - 1;
                    for at in [at(i, j), at(j, i)].into_iter().take(1 + usize::from(both)) {
                        moments.z2[at] = weight;
                        put(&mut moments.s2, at);
                    }
                }
            }
        }
    }
    (counts, moments)
}

/// The gradient of packed moments from that of all: the one that is kept stands for both.
pub(super) fn packed_gradient(counts: &[f64], moments: &BasedMoments, key_dim: usize, value_dim: usize) -> Vec<f64> {
    let mut packed = Vec::new();
    for (h, count) in counts.iter().enumerate() {
        for (i, j) in rows(key_dim) {
            let values = |all: &[f64], at: usize| all[at * value_dim..(at + 1) * value_dim].to_vec();
            let (row, weight) = match (i, j) {
                (0, 0) => (values(&moments.s0, h), *count),
                (0, j) => (values(&moments.s1, h * key_dim + j - 1), moments.z1[h * key_dim + j - 1]),
                (i, j) => {
                    let at = |i: usize, j: usize| (h * key_dim + i - 1) * key_dim + j - 1;
                    let (one, other) = (values(&moments.s2, at(i, j)), values(&moments.s2, at(j, i)));
                    if i == j {
                        (one, moments.z2[at(i, j)])
                    } else {
                        let sum = one.iter().zip(&other).map(|(a, b)| a + b).collect();
                        (sum, moments.z2[at(i, j)] + moments.z2[at(j, i)])
                    }
                }
            };
            packed.extend(row);
            packed.push(weight);
        }
    }
    packed
}
