//! The layers of a decoder around attention: products, RMS norm, rotary positions, `SiLU`. Activations are `[tokens, features]`.

use anyhow::{Context, Result};
use ndarray::linalg::{general_mat_mul, general_mat_vec_mul};
use ndarray::{Array1, Array2, Axis};
use rayon::prelude::*;

use crate::gguf::Gguf;

/// y = x Wᵀ, shared out over all cores.
#[derive(Debug)]
pub(crate) struct Dense {
    weight: Array2<f32>, // [outputs, inputs]
}

impl Dense {
    pub(crate) fn load(file: &Gguf<'_>, name: &str, inputs: usize, outputs: usize) -> Result<Self> {
        Ok(Self { weight: file.matrix(&format!("{name}.weight"), [outputs, inputs])? })
    }

    /// `[tokens, inputs]` to `[tokens, outputs]`, dense and row-major.
    pub(crate) fn forward(&self, x: &Array2<f32>) -> Array2<f32> {
        let outputs = self.weight.nrows();
        let mut y = Array2::zeros((x.nrows(), outputs));
        let share = outputs.div_ceil(rayon::current_num_threads());
        let weights = self.weight.axis_chunks_iter(Axis(0), share).into_par_iter();
        y.axis_chunks_iter_mut(Axis(1), share).into_par_iter().zip(weights).for_each(|(mut y, weight)| {
            if x.nrows() == 1 {
                general_mat_vec_mul(1.0, &weight, &x.row(0), 0.0, &mut y.row_mut(0));
            } else {
                general_mat_mul(1.0, x, &weight.t(), 0.0, &mut y);
            }
        });
        y
    }

    /// The rows of these numbers, as of an embedding.
    pub(crate) fn rows(&self, numbers: &[u32]) -> Result<Array2<f32>> {
        let mut rows = Array2::zeros((numbers.len(), self.weight.ncols()));
        for (mut row, &number) in rows.rows_mut().into_iter().zip(numbers) {
            let own = self.weight.rows().into_iter().nth(number as usize);
            row.assign(&own.with_context(|| format!("there is no row {number}"))?);
        }
        Ok(rows)
    }
}

/// Each row to a mean square of 1, then scaled per feature.
#[derive(Debug)]
pub(crate) struct RmsNorm {
    weight: Array1<f32>,
    epsilon: f64,
}

impl RmsNorm {
    pub(crate) fn load(file: &Gguf<'_>, name: &str, features: usize, epsilon: f64) -> Result<Self> {
        Ok(Self { weight: file.vector(&format!("{name}.weight"), features)?, epsilon })
    }

    pub(crate) fn apply(&self, x: &Array2<f32>) -> Array2<f32> {
        let mut normed = x.clone();
        for mut row in normed.rows_mut() {
            let mean = row.iter().map(|&x| f64::from(x).powi(2)).sum::<f64>() / row.len() as f64;
            let scale = 1.0 / (mean + self.epsilon).sqrt();
            row.zip_mut_with(&self.weight, |x, weight| *x = (f64::from(*x) * scale) as f32 * weight);
        }
        normed
    }
}

/// Rotary positions: neighbouring numbers `2i` and `2i + 1` of a head turn by `position · base^(-2i / dim)`.
#[derive(Debug)]
pub(crate) struct Rope {
    frequencies: Vec<f64>,
}

/// The turns of some positions.
#[derive(Debug)]
pub(crate) struct Turns(Vec<Vec<[f32; 2]>>); // [position][pair]: cosine and sine

impl Rope {
    pub(crate) fn new(dim: usize, base: f64) -> Self {
        Self { frequencies: (0..dim).step_by(2).map(|i| base.powf(-(i as f64) / dim as f64)).collect() }
    }

    pub(crate) fn turns(&self, first: usize, count: usize) -> Turns {
        let turn = |position: usize| {
            let angles = self.frequencies.iter().map(|frequency| position as f64 * frequency);
            angles.map(|angle| [angle.cos() as f32, angle.sin() as f32]).collect()
        };
        Turns((first..first + count).map(turn).collect())
    }
}

impl Turns {
    /// Turns every head of `[positions, heads · dim]`.
    pub(crate) fn rotate(&self, x: &mut Array2<f32>) {
        for (mut row, turns) in x.rows_mut().into_iter().zip(&self.0) {
            for (mut pair, [cos, sin]) in row.exact_chunks_mut(2).into_iter().zip(turns.iter().cycle()) {
                let (a, b) = (pair[0], pair[1]);
                (pair[0], pair[1]) = (a * cos - b * sin, a * sin + b * cos);
            }
        }
    }
}

/// x / (1 + e⁻ˣ).
pub(crate) fn silu(x: f32) -> f32 {
    x / (1.0 + (-x).exp())
}

#[cfg(test)]
mod tests {
    use ndarray::array;

    use super::*;

    #[test]
    fn dense_is_x_times_transposed_weight() {
        let dense = Dense { weight: array![[1.0, 2.0], [3.0, 4.0], [5.0, 6.0]] };
        assert_eq!(dense.forward(&array![[1.0, 10.0]]), array![[21.0, 43.0, 65.0]]);
        assert_eq!(dense.forward(&array![[1.0, 10.0], [0.0, 1.0]]), array![[21.0, 43.0, 65.0], [2.0, 4.0, 6.0]]);
        assert_eq!(dense.rows(&[2, 0]).unwrap(), array![[5.0, 6.0], [1.0, 2.0]]);
        assert!(dense.rows(&[3]).is_err());
    }

    #[test]
    fn rms_norm_keeps_the_mean() {
        let norm = RmsNorm { weight: array![1.0, 2.0], epsilon: 0.0 };
        let normed = norm.apply(&array![[3.0, 3.0], [-4.0, 0.0]]);
        let expected = array![[1.0, 2.0], [-std::f32::consts::SQRT_2, 0.0]];
        assert!((normed - expected).iter().all(|x: &f32| x.abs() < 1e-6));
    }

    #[test]
    fn rope_turns_neighbours_of_every_head() {
        let rope = Rope::new(4, 100.0);
        let mut x = array![[1.0, 0.0, 1.0, 0.0, 0.0, 2.0, 0.0, 1.0]];
        rope.turns(0, 1).rotate(&mut x);
        assert_eq!(x, array![[1.0, 0.0, 1.0, 0.0, 0.0, 2.0, 0.0, 1.0]], "the first position stays");
        rope.turns(3, 1).rotate(&mut x);
        let ((sin, cos), (slow_sin, slow_cos)) = (3.0_f32.sin_cos(), 0.3_f32.sin_cos());
        let expected = array![[cos, sin, slow_cos, slow_sin, -2.0 * sin, 2.0 * cos, -slow_sin, slow_cos]];
        assert!((x - expected).iter().all(|x: &f32| x.abs() < 1e-6));
    }

    #[test]
    fn silu_is_x_times_its_sigmoid() {
        for (x, expected) in [(0.0, 0.0), (1.0, 0.731_058_6), (-1.0, -0.268_941_4), (-200.0, 0.0)] {
            assert!((silu(x) - expected).abs() < 1e-6, "silu({x}) = {}", silu(x));
        }
    }
}
