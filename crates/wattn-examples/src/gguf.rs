//! GGUF files, as far as `SmolLM2` needs them: metadata, and tensors in F32, `Q8_0` and `Q4_1` as f32.
//!
//! A file is a header, metadata, descriptions of tensors and their data, all little-endian. Quantised tensors are rows of blocks of 32
//! numbers that share a scale.

use std::collections::HashMap;

use anyhow::{Context, Result, bail, ensure};
use half::f16;
use ndarray::{Array1, Array2};
use rayon::prelude::*;

/// Numbers a quantised block.
const BLOCK: usize = 32;

/// A metadata value, of the kinds that are looked at.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Value {
    Integer(i128),
    Float(f64),
    Text(String),
    List(Vec<Value>),
}

/// How the numbers of a tensor are stored.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Storage {
    F32,
    Q4_1,
    Q8_0,
}

impl Storage {
    fn block(self) -> usize {
        if self == Self::F32 { 1 } else { BLOCK }
    }

    /// Bytes a block.
    fn bytes(self) -> usize {
        match self {
            Self::F32 => 4,
            Self::Q4_1 => 4 + BLOCK / 2,
            Self::Q8_0 => 2 + BLOCK,
        }
    }

    fn decode(self, block: &[u8], out: &mut [f32]) {
        let half = |at: usize| f16::from_le_bytes([block[at], block[at + 1]]).to_f32();
        match self {
            Self::F32 => out[0] = f32::from_le_bytes([block[0], block[1], block[2], block[3]]),
            // A scale and a least value; then the first sixteen numbers in the low halves of bytes, the others in the high ones.
            Self::Q4_1 => {
                let (scale, least) = (half(0), half(2));
                let (low, high) = out.split_at_mut(BLOCK / 2);
                for ((byte, low), high) in block[4..].iter().zip(low).zip(high) {
                    *low = f32::from(byte & 15) * scale + least;
                    *high = f32::from(byte >> 4) * scale + least;
                }
            }
            Self::Q8_0 => {
                let scale = half(0);
                for (byte, number) in block[2..].iter().zip(out) {
                    *number = f32::from(i8::from_le_bytes([*byte])) * scale;
                }
            }
        }
    }
}

#[derive(Debug)]
struct Tensor {
    /// As stored: the innermost first.
    dims: Vec<usize>,
    kind: u32,
    offset: usize,
}

/// An open file.
#[derive(Debug)]
pub(crate) struct Gguf<'a> {
    metadata: HashMap<String, Value>,
    tensors: HashMap<String, Tensor>,
    data: &'a [u8],
}

impl<'a> Gguf<'a> {
    pub(crate) fn parse(bytes: &'a [u8]) -> Result<Self> {
        let mut reader = Reader { bytes, at: 0 };
        ensure!(reader.take(4)? == b"GGUF", "this is no GGUF file");
        let version = reader.u32()?;
        ensure!(version == 3, "version {version} of GGUF, expected 3");
        let (tensors, values) = (reader.size()?, reader.size()?);
        let mut metadata = HashMap::new();
        for _ in 0..values {
            let key = reader.text()?;
            let kind = reader.u32()?;
            let value = reader.value(kind).with_context(|| format!("metadata {key}"))?;
            metadata.insert(key, value);
        }
        let mut described = HashMap::new();
        for _ in 0..tensors {
            let name = reader.text()?;
            let count = reader.u32()?;
            let dims = (0..count).map(|_| reader.size()).collect::<Result<_>>()?;
            described.insert(name, Tensor { dims, kind: reader.u32()?, offset: reader.size()? });
        }
        let alignment = match metadata.get("general.alignment") {
            Some(Value::Integer(bytes)) => usize::try_from(*bytes)?.max(1),
            _ => 32,
        };
        let data = bytes.get(reader.at.next_multiple_of(alignment)..).unwrap_or_default();
        Ok(Self { metadata, tensors: described, data })
    }

    pub(crate) fn list(&self, key: &str) -> Result<&[Value]> {
        match self.metadata.get(key) {
            Some(Value::List(values)) => Ok(values),
            other => bail!("metadata {key} is {other:?}, expected a list"),
        }
    }

    /// The tensor `name` as `[rows, columns]`; refused when the file has another shape.
    pub(crate) fn matrix(&self, name: &str, [rows, columns]: [usize; 2]) -> Result<Array2<f32>> {
        Ok(Array2::from_shape_vec([rows, columns], self.numbers(name, &[columns, rows])?)?)
    }

    /// The tensor `name` as `[length]`.
    pub(crate) fn vector(&self, name: &str, length: usize) -> Result<Array1<f32>> {
        Ok(Array1::from_vec(self.numbers(name, &[length])?))
    }

    fn numbers(&self, name: &str, dims: &[usize]) -> Result<Vec<f32>> {
        let tensor = self.tensors.get(name).with_context(|| format!("there is no tensor {name}"))?;
        ensure!(tensor.dims == dims, "tensor {name} is {:?}, expected {dims:?}", tensor.dims);
        let storage = match tensor.kind {
            0 => Storage::F32,
            3 => Storage::Q4_1,
            8 => Storage::Q8_0,
            other => bail!("tensor {name} is of type {other}; F32 (0), Q4_1 (3) and Q8_0 (8) are read"),
        };
        let count: usize = dims.iter().product();
        ensure!(dims[0].is_multiple_of(storage.block()), "rows of tensor {name} are no whole blocks");
        let size = count / storage.block() * storage.bytes();
        let bytes = self.data.get(tensor.offset..).and_then(|data| data.get(..size));
        let bytes = bytes.with_context(|| format!("the file ends within tensor {name}"))?;
        let mut numbers = vec![0.0; count];
        let blocks = numbers.par_chunks_mut(storage.block()).zip(bytes.par_chunks(storage.bytes()));
        blocks.with_min_len(1024).for_each(|(out, block)| storage.decode(block, out));
        Ok(numbers)
    }
}

struct Reader<'a> {
    bytes: &'a [u8],
    at: usize,
}

impl<'a> Reader<'a> {
    fn take(&mut self, count: usize) -> Result<&'a [u8]> {
        let taken = self.bytes.get(self.at..).and_then(|rest| rest.get(..count)).context("the file ends early")?;
        self.at += count;
        Ok(taken)
    }

    fn array<const N: usize>(&mut self) -> Result<[u8; N]> {
        Ok(self.take(N)?.try_into()?)
    }

    fn u32(&mut self) -> Result<u32> {
        Ok(u32::from_le_bytes(self.array()?))
    }

    fn size(&mut self) -> Result<usize> {
        Ok(usize::try_from(u64::from_le_bytes(self.array()?))?)
    }

    fn text(&mut self) -> Result<String> {
        let length = self.size()?;
        Ok(String::from_utf8(self.take(length)?.to_vec())?)
    }

    fn value(&mut self, kind: u32) -> Result<Value> {
        Ok(match kind {
            0 | 7 => Value::Integer(u8::from_le_bytes(self.array()?).into()),
            1 => Value::Integer(i8::from_le_bytes(self.array()?).into()),
            2 => Value::Integer(u16::from_le_bytes(self.array()?).into()),
            3 => Value::Integer(i16::from_le_bytes(self.array()?).into()),
            4 => Value::Integer(self.u32()?.into()),
            5 => Value::Integer(i32::from_le_bytes(self.array()?).into()),
            6 => Value::Float(f32::from_le_bytes(self.array()?).into()),
            8 => Value::Text(self.text()?),
            9 => {
                let (kind, count) = (self.u32()?, self.size()?);
                ensure!(kind != 9, "lists of lists are not read");
                Value::List((0..count).map(|_| self.value(kind)).collect::<Result<_>>()?)
            }
            10 => Value::Integer(u64::from_le_bytes(self.array()?).into()),
            11 => Value::Integer(i64::from_le_bytes(self.array()?).into()),
            12 => Value::Float(f64::from_le_bytes(self.array()?)),
            other => bail!("unknown type {other}"),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A file of one list, one float and one matrix of two rows.
    fn file(kind: u32, columns: u64, data: &[u8]) -> Vec<u8> {
        let mut file = b"GGUF".to_vec();
        let text = |file: &mut Vec<u8>, text: &str| {
            file.extend((text.len() as u64).to_le_bytes());
            file.extend(text.as_bytes());
        };
        file.extend(3_u32.to_le_bytes());
        file.extend([1_u64, 2].map(u64::to_le_bytes).concat());
        text(&mut file, "pieces");
        file.extend([9_u32, 8].map(u32::to_le_bytes).concat());
        file.extend(2_u64.to_le_bytes());
        text(&mut file, "a");
        text(&mut file, "bc");
        text(&mut file, "eps");
        file.extend(6_u32.to_le_bytes());
        file.extend(0.5_f32.to_le_bytes());
        text(&mut file, "w");
        file.extend(2_u32.to_le_bytes());
        file.extend([columns, 2].map(u64::to_le_bytes).concat());
        file.extend(kind.to_le_bytes());
        file.extend(0_u64.to_le_bytes());
        file.resize(file.len().next_multiple_of(32), 0);
        file.extend(data);
        file
    }

    #[test]
    fn metadata_and_plain_numbers() -> Result<()> {
        let data: Vec<u8> = [1.0_f32, 2.0, 3.0, 4.0, 5.0, 6.0].map(f32::to_le_bytes).concat();
        let bytes = file(0, 3, &data);
        let file = Gguf::parse(&bytes)?;
        assert_eq!(file.list("pieces")?, ["a", "bc"].map(|text| Value::Text(text.into())));
        assert_eq!(file.metadata["eps"], Value::Float(0.5));
        assert_eq!(file.matrix("w", [2, 3])?, ndarray::array![[1.0, 2.0, 3.0], [4.0, 5.0, 6.0]]);
        assert!(file.matrix("w", [3, 2]).is_err(), "another shape");
        Ok(())
    }

    #[test]
    fn blocks_have_scales_and_least_values() -> Result<()> {
        let half = |x: f32| f16::from_f32(x).to_le_bytes();
        let mut data = [half(0.5), half(-2.0)].concat();
        data.extend((0..16).map(|n| n | (15 - n) << 4));
        data.extend([half(1.0), half(0.0)].concat());
        data.extend([0x21; 16]);
        let bytes = file(3, 32, &data);
        let w = Gguf::parse(&bytes)?.matrix("w", [2, 32])?;
        assert_eq!([w[[0, 0]], w[[0, 15]], w[[0, 16]], w[[0, 31]]], [-2.0, 5.5, 5.5, -2.0]);
        assert_eq!([w[[1, 3]], w[[1, 20]]], [1.0, 2.0]);

        let mut data = half(0.25).to_vec();
        data.extend((0..32).map(|n: u8| n.wrapping_sub(16)));
        data.extend(half(0.0));
        data.extend([1; 32]);
        let bytes = file(8, 32, &data);
        let w = Gguf::parse(&bytes)?.matrix("w", [2, 32])?;
        assert_eq!([w[[0, 0]], w[[0, 16]], w[[0, 31]], w[[1, 0]]], [-4.0, 0.0, 3.75, 0.0]);
        Ok(())
    }

    #[test]
    fn a_cut_file_is_refused() {
        let bytes = file(0, 3, &[0; 24]);
        for length in 0..bytes.len() {
            let read = Gguf::parse(&bytes[..length]).and_then(|file| file.matrix("w", [2, 3]));
            assert!(read.is_err(), "{length} of {} bytes", bytes.len());
        }
    }
}
