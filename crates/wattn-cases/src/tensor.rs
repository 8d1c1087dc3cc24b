//! Float tensors as a device stores them.

use std::fmt;

use half::{bf16, f16};

/// How an element is stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Storage {
    /// 32-bit IEEE.
    F32,
    /// 16-bit IEEE.
    F16,
    /// The upper half of an `F32`.
    Bf16,
}

impl Storage {
    /// Bytes per element.
    pub fn size(self) -> usize {
        match self {
            Self::F32 => 4,
            Self::F16 | Self::Bf16 => 2,
        }
    }

    /// The less exact one of two.
    pub(crate) fn coarser(self, other: Self) -> Self {
        self.max(other)
    }

    /// The nearest value that this type holds.
    pub fn round(self, x: f32) -> f32 {
        match self {
            Self::F32 => x,
            Self::F16 => f16::from_f32(x).to_f32(),
            Self::Bf16 => bf16::from_f32(x).to_f32(),
        }
    }
}

impl fmt::Display for Storage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::F32 => "f32",
            Self::F16 => "f16",
            Self::Bf16 => "bf16",
        })
    }
}

/// A contiguous tensor.
#[derive(Clone, Debug, PartialEq)]
pub struct Tensor {
    /// How the elements are stored.
    pub storage: Storage,
    /// Extents, slowest first.
    pub shape: Vec<usize>,
    /// The elements, each one exact in `storage`.
    pub values: Vec<f32>,
}

impl Tensor {
    /// Rounds `values` to `storage`.
    ///
    /// # Panics
    /// If `shape` does not hold that many values.
    pub fn new(storage: Storage, shape: &[usize], mut values: Vec<f32>) -> Self {
        assert_eq!(values.len(), shape.iter().product::<usize>(), "values of {shape:?}");
        for x in &mut values {
            *x = storage.round(*x);
        }
        Self { storage, shape: shape.to_vec(), values }
    }

    /// The same, rounded to `storage`.
    pub(crate) fn stored(&self, storage: Storage) -> Self {
        Self::new(storage, &self.shape, self.values.clone())
    }

    /// The elements as a device reads them: little-endian, without padding.
    pub fn bytes(&self) -> Vec<u8> {
        let values = self.values.iter();
        match self.storage {
            Storage::F32 => values.flat_map(|x| x.to_le_bytes()).collect(),
            Storage::F16 => values.flat_map(|&x| f16::from_f32(x).to_le_bytes()).collect(),
            Storage::Bf16 => values.flat_map(|&x| bf16::from_f32(x).to_le_bytes()).collect(),
        }
    }

    /// The elements as [`compare`](crate::compare) takes expected ones.
    pub(crate) fn elements(&self) -> Vec<(usize, f64)> {
        self.values.iter().map(|&x| f64::from(x)).enumerate().collect()
    }

    /// The reverse of [`bytes`](Self::bytes).
    ///
    /// # Panics
    /// If `shape` does not ask for that many bytes.
    pub fn from_bytes(storage: Storage, shape: &[usize], bytes: &[u8]) -> Self {
        let pairs = || bytes.chunks_exact(2).map(|x| [x[0], x[1]]);
        let values = match storage {
            Storage::F32 => {
                let words = bytes.chunks_exact(4);
                words.map(|x| f32::from_le_bytes([x[0], x[1], x[2], x[3]])).collect()
            }
            Storage::F16 => pairs().map(|x| f16::from_le_bytes(x).to_f32()).collect(),
            Storage::Bf16 => pairs().map(|x| bf16::from_le_bytes(x).to_f32()).collect(),
        };
        Self::new(storage, shape, values)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_and_back() {
        let values = vec![0.0, -0.0, 1.0, 1.0 / 3.0, -65504.0, f32::INFINITY, f32::NAN, 1e-7];
        for storage in [Storage::F32, Storage::F16, Storage::Bf16] {
            let tensor = Tensor::new(storage, &[2, 4], values.clone());
            let bytes = tensor.bytes();
            assert_eq!(bytes.len(), 8 * storage.size());
            let back = Tensor::from_bytes(storage, &[2, 4], &bytes);
            let bits = |t: &Tensor| t.values.iter().map(|x| x.to_bits()).collect::<Vec<_>>();
            assert_eq!(bits(&tensor), bits(&back), "{storage}");
        }
        let third = Tensor::new(Storage::F16, &[1], vec![1.0 / 3.0]);
        assert_eq!(third.values, [0.333_251_95]);
    }
}
