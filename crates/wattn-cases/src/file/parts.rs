//! The options and tensors of a file, taken one by one, so that what is left over is unknown.

use std::collections::BTreeMap;

use safetensors::{Dtype, tensor::TensorView};
use serde::de::DeserializeOwned;
use serde_json::{Map, Value};

use crate::{Layout, Mask, Storage, Tensor};

/// Options that nobody has taken yet.
pub(super) struct Options(pub(super) Map<String, Value>);

impl Options {
    pub(super) fn take<T: DeserializeOwned>(&mut self, key: &str) -> Result<Option<T>, String> {
        let value = self.0.remove(key).unwrap_or_default();
        serde_json::from_value(value).map_err(|error| format!("option `{key}`: {error}"))
    }

    /// The option `layout`.
    pub(super) fn layout(&mut self, packed: bool) -> Result<Layout, String> {
        let layout: Option<String> = self.take("layout")?;
        match (layout.as_deref(), packed) {
            (None | Some("bshd"), true) => Ok(Layout::Packed),
            (None | Some("bhsd"), false) => Ok(Layout::Bhsd),
            (Some("bshd"), false) => Ok(Layout::Bshd),
            (Some(other), _) => Err(format!("unknown `layout` \"{other}\"")),
        }
    }
}

/// Tensors that nobody has taken yet.
pub(super) struct Tensors<'a>(pub(super) BTreeMap<String, TensorView<'a>>);

impl Tensors<'_> {
    pub(super) fn float(&mut self, name: &str) -> Result<Option<Tensor>, String> {
        let Some(view) = self.0.remove(name) else { return Ok(None) };
        let storage = match view.dtype() {
            Dtype::F32 => Storage::F32,
            Dtype::F16 => Storage::F16,
            Dtype::BF16 => Storage::Bf16,
            other => return Err(format!("tensor `{name}` is {other:?}, not F32, F16 or BF16")),
        };
        Ok(Some(Tensor::from_bytes(storage, view.shape(), view.data())))
    }

    /// A tensor that must be there.
    pub(super) fn operand(&mut self, name: &str) -> Result<Tensor, String> {
        self.float(name)?.ok_or_else(|| format!("there is no `{name}`"))
    }

    /// The expected outputs of these names.
    pub(super) fn expected(&mut self, names: &[&str]) -> Result<BTreeMap<String, Tensor>, String> {
        let mut expected = BTreeMap::new();
        for &name in names {
            if let Some(tensor) = self.float(&format!("expect.{name}"))? {
                expected.insert(name.to_owned(), tensor);
            }
        }
        Ok(expected)
    }

    pub(super) fn per_head(&mut self, name: &str) -> Result<Option<Vec<f32>>, String> {
        match self.float(name)? {
            None => Ok(None),
            Some(Tensor { storage: Storage::F32, shape, values }) if shape.len() == 1 => Ok(Some(values)),
            Some(Tensor { storage, shape, .. }) => {
                Err(format!("tensor `{name}` is {storage} {shape:?}, not f32 [heads]"))
            }
        }
    }

    pub(super) fn integers(&mut self, name: &str) -> Result<Option<Vec<i64>>, String> {
        let Some(view) = self.0.remove(name) else { return Ok(None) };
        if view.shape().len() != 1 {
            return Err(format!("tensor `{name}` is {:?}, not a list", view.shape()));
        }
        let bytes = view.data();
        match view.dtype() {
            Dtype::I32 => {
                let word = |x: &[u8]| i32::from_le_bytes([x[0], x[1], x[2], x[3]]).into();
                Ok(Some(bytes.chunks_exact(4).map(word).collect()))
            }
            Dtype::I64 => {
                let word = |x: &[u8]| i64::from_le_bytes(x.try_into().expect("eight bytes"));
                Ok(Some(bytes.chunks_exact(8).map(word).collect()))
            }
            other => Err(format!("tensor `{name}` is {other:?}, not I32 or I64")),
        }
    }

    pub(super) fn totals(&mut self, name: &str) -> Result<Option<Vec<u32>>, String> {
        let Some(values) = self.integers(name)? else { return Ok(None) };
        let totals = values.into_iter().map(u32::try_from).collect::<Result<_, _>>();
        Ok(Some(totals.map_err(|_| format!("`{name}` is negative or beyond 32 bits"))?))
    }

    /// Key lengths are clamped to the keys that there are, below and above.
    pub(super) fn key_lengths(&mut self, name: &str) -> Result<Option<Vec<u32>>, String> {
        let clamp = |x: i64| u32::try_from(x.max(0)).unwrap_or(u32::MAX);
        Ok(self.integers(name)?.map(|values| values.into_iter().map(clamp).collect()))
    }

    pub(super) fn mask(&mut self, name: &str) -> Result<Option<Mask>, String> {
        let Some(view) = self.0.remove(name) else { return Ok(None) };
        let (Dtype::BOOL | Dtype::U8, &[b, h, i, j]) = (view.dtype(), view.shape()) else {
            let (dtype, shape) = (view.dtype(), view.shape());
            return Err(format!("tensor `{name}` is {dtype:?} {shape:?}, not BOOL with four axes"));
        };
        let values = view.data().iter().map(|&x| x != 0).collect();
        Ok(Some(Mask { shape: [b, h, i, j], values }))
    }
}
