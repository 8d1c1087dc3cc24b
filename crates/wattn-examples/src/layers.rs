//! The layers around attention: linear, layer norm, GELU. Activations are `[rows, features]`, a row being one position.

use anyhow::{Context, Result, ensure};
use ndarray::linalg::general_mat_mul;
use ndarray::{Array1, Array2, ArrayViewMut1, Axis};
use safetensors::{Dtype, SafeTensors};

/// The tensor `name` as `[rows, columns]`; refused when the file has another shape or type.
pub(crate) fn matrix(file: &SafeTensors<'_>, name: &str, shape: [usize; 2]) -> Result<Array2<f32>> {
    Ok(Array2::from_shape_vec(shape, numbers(file, name, &shape)?)?)
}

/// The tensor `name` as `[length]`.
pub(crate) fn vector(file: &SafeTensors<'_>, name: &str, length: usize) -> Result<Array1<f32>> {
    Ok(Array1::from_vec(numbers(file, name, &[length])?))
}

fn numbers(file: &SafeTensors<'_>, name: &str, shape: &[usize]) -> Result<Vec<f32>> {
    let tensor = file.tensor(name).with_context(|| format!("tensor {name}"))?;
    ensure!(
        tensor.dtype() == Dtype::F32 && tensor.shape() == shape,
        "tensor {name} is {:?} {:?}, expected F32 {shape:?}",
        tensor.dtype(),
        tensor.shape(),
    );
    let words = tensor.data().chunks_exact(4);
    Ok(words.map(|bytes| f32::from_le_bytes([bytes[0], bytes[1], bytes[2], bytes[3]])).collect())
}

/// y = x Wᵀ + b.
#[derive(Debug)]
pub(crate) struct Linear {
    weight: Array2<f32>, // [outputs, inputs]
    bias: Array1<f32>,   // [outputs]
}

impl Linear {
    pub(crate) fn load(file: &SafeTensors<'_>, name: &str, inputs: usize, outputs: usize) -> Result<Self> {
        Ok(Self {
            weight: matrix(file, &format!("{name}.weight"), [outputs, inputs])?,
            bias: vector(file, &format!("{name}.bias"), outputs)?,
        })
    }

    /// `[rows, inputs]` to `[rows, outputs]`, dense and row-major.
    pub(crate) fn forward(&self, x: &Array2<f32>) -> Array2<f32> {
        let mut y = Array2::zeros((x.nrows(), self.bias.len()));
        y += &self.bias;
        general_mat_mul(1.0, x, &self.weight.t(), 1.0, &mut y);
        y
    }
}

/// Each row to mean 0 and variance 1, then scaled and shifted per feature.
#[derive(Debug)]
pub(crate) struct LayerNorm {
    weight: Array1<f32>,
    bias: Array1<f32>,
    epsilon: f64,
}

impl LayerNorm {
    pub(crate) fn load(file: &SafeTensors<'_>, name: &str, features: usize, epsilon: f64) -> Result<Self> {
        Ok(Self {
            weight: vector(file, &format!("{name}.weight"), features)?,
            bias: vector(file, &format!("{name}.bias"), features)?,
            epsilon,
        })
    }

    pub(crate) fn apply(&self, x: &mut Array2<f32>) {
        x.axis_iter_mut(Axis(0)).for_each(|row| self.apply_row(row));
    }

    /// The sums are f64: they cost nothing here, and an epsilon of 1e-12 is below what f32 resolves.
    fn apply_row(&self, mut row: ArrayViewMut1<'_, f32>) {
        let count = row.len() as f64;
        let mean = row.iter().map(|&x| f64::from(x)).sum::<f64>() / count;
        let variance = row.iter().map(|&x| (f64::from(x) - mean).powi(2)).sum::<f64>() / count;
        let scale = 1.0 / (variance + self.epsilon).sqrt();
        for ((x, weight), bias) in row.iter_mut().zip(&self.weight).zip(&self.bias) {
            *x = ((f64::from(*x) - mean) * scale) as f32 * weight + bias;
        }
    }
}

/// x Φ(x), the exact form. The tanh approximation is off by up to 5e-4.
pub(crate) fn gelu(x: f32) -> f32 {
    0.5 * x * (1.0 + libm::erff(x * std::f32::consts::FRAC_1_SQRT_2))
}

#[cfg(test)]
mod tests {
    use ndarray::array;

    use super::*;

    #[test]
    fn linear_is_x_times_transposed_weight_plus_bias() {
        let linear = Linear { weight: array![[1.0, 2.0], [3.0, 4.0], [5.0, 6.0]], bias: array![0.5, 0.0, -1.0] };
        assert_eq!(linear.forward(&array![[1.0, 10.0], [0.0, 1.0]]), array![[21.5, 43.0, 64.0], [2.5, 4.0, 5.0]]);
    }

    #[test]
    fn layer_norm_scales_and_shifts() {
        let norm = LayerNorm { weight: array![1.0, 2.0], bias: array![0.0, 1.0], epsilon: 1e-12 };
        let mut rows = array![[1.0, 3.0], [1e-3, -1e-3]];
        norm.apply(&mut rows);
        let expected = array![[-1.0, 3.0], [1.0, -1.0]];
        assert!((rows - expected).iter().all(|x: &f32| x.abs() < 1e-5));
    }

    #[test]
    fn layer_norm_of_a_constant_row_is_its_bias() {
        let norm = LayerNorm { weight: array![1.0, 2.0], bias: array![0.25, 1.0], epsilon: 1e-12 };
        let mut rows = array![[7.0, 7.0]];
        norm.apply(&mut rows);
        assert_eq!(rows, array![[0.25, 1.0]]);
    }

    #[test]
    fn gelu_is_the_exact_form() {
        // x Φ(x) from a table of the normal distribution; the tanh form gives 0.841192 and -0.158808 at ±1.
        for (x, expected) in [(0.0, 0.0), (1.0, 0.841_344_8), (-1.0, -0.158_655_25), (2.0, 1.954_499_7)] {
            assert!((gelu(x) - expected).abs() < 1e-6, "gelu({x}) = {}", gelu(x));
        }
    }
}
