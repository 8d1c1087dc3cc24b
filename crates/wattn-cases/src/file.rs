//! Reads case files: one problem each, with the outputs that must come out, as safetensors.

use std::{collections::BTreeMap, fs, path::Path};

use safetensors::{Dtype, SafeTensors, tensor::TensorView};
use serde::de::DeserializeOwned;
use serde_json::{Map, Value};

use crate::{Causal, Layout, Mask, SoftmaxCase, Storage, Tensor};

/// What a case file holds, as far as it can be run.
#[derive(Clone, Debug)]
pub struct CaseFile {
    /// The case's name; that of the file if it gives none.
    pub case: String,
    /// Every expected output that the file holds, in alphabetical order.
    pub expected: Vec<String>,
    /// Those of them that cannot be calculated yet, and why. The others can.
    pub unsupported: Vec<(String, String)>,
    /// The problem, or what is wrong with it: then no output can be calculated.
    pub content: Result<SoftmaxCase, String>,
}

/// Outputs of the backward pass, and the gradients that it starts from.
const GRADIENTS: [&str; 6] = ["dq", "dk", "dv", "dbias", "dsinks", "dalibi_slopes"];
const INCOMING: [&str; 2] = ["grad.out", "grad.lse"];
const OTHER_OPS: [&str; 4] = ["lightning", "based", "gated_linear", "delta"];

impl CaseFile {
    /// Reads a file. Nothing in it is ignored: an op, option or tensor that is not known makes `content` an error that
    /// names it.
    pub fn read(path: &Path) -> Self {
        let name = path.file_stem().unwrap_or_default().to_string_lossy();
        match fs::read(path) {
            Ok(bytes) => Self::parse(&name, &bytes),
            Err(error) => Self::unread(&name, format!("{}: {error}", path.display())),
        }
    }

    /// Like [`read`](Self::read), from the bytes of a file of this name.
    pub fn parse(name: &str, bytes: &[u8]) -> Self {
        let mut file = Self::unread(name, String::new());
        file.content = file.parse_content(bytes);
        file
    }

    fn unread(name: &str, error: String) -> Self {
        let (expected, unsupported) = (Vec::new(), Vec::new());
        Self { case: name.into(), expected, unsupported, content: Err(error) }
    }

    fn parse_content(&mut self, bytes: &[u8]) -> Result<SoftmaxCase, String> {
        let not_safetensors = |error| format!("not a safetensors file: {error}");
        let (_, header) = SafeTensors::read_metadata(bytes).map_err(not_safetensors)?;
        let file = SafeTensors::deserialize(bytes).map_err(not_safetensors)?;
        let mut tensors = Tensors(file.tensors().into_iter().collect());
        let expected = tensors.0.keys().filter_map(|name| name.strip_prefix("expect."));
        self.expected = expected.map(str::to_owned).collect();

        let metadata = header.metadata().clone().unwrap_or_default();
        if let Some(other) = metadata.keys().find(|&key| key != "wattn") {
            return Err(format!("unknown metadata `{other}`"));
        }
        let json = metadata.get("wattn").ok_or("the metadata has no `wattn`")?;
        let json = serde_json::from_str(json).map_err(|error| format!("`wattn`: {error}"))?;
        let mut options = Options(json);
        if let Some(case) = options.take::<String>("case")? {
            self.case = case;
        }
        let op: String = options.take("op")?.ok_or("there is no `op`")?;
        if op != "softmax" {
            let known = OTHER_OPS.contains(&op.as_str());
            let problem = if known { "is not supported yet" } else { "is unknown" };
            return Err(format!("op `{op}` {problem}"));
        }

        for name in GRADIENTS {
            if tensors.0.remove(&format!("expect.{name}")).is_some() {
                let reason = "the backward pass is not supported yet";
                self.unsupported.push((name.into(), reason.into()));
            }
        }
        for name in INCOMING {
            tensors.0.remove(name);
        }
        let case = softmax(self.case.clone(), &mut options, &mut tensors)?;
        if let Some(key) = options.0.keys().next() {
            return Err(format!("unknown option `{key}`"));
        }
        if let Some(name) = tensors.0.keys().next() {
            return Err(format!("unknown tensor `{name}`"));
        }
        case.check()?;
        Ok(case)
    }
}

fn softmax(name: String, options: &mut Options, tensors: &mut Tensors<'_>) -> Result<SoftmaxCase, String> {
    let cu_seqlens = match (tensors.totals("cu_seqlens_q")?, tensors.totals("cu_seqlens_k")?) {
        (Some(q), Some(k)) => Some((q, k)),
        (None, None) => None,
        _ => return Err("`cu_seqlens_q` and `cu_seqlens_k` go together".into()),
    };
    let layout: Option<String> = options.take("layout")?;
    let layout = match (layout.as_deref(), &cu_seqlens) {
        (None | Some("bshd"), Some(_)) => Layout::Packed,
        (None | Some("bhsd"), None) => Layout::Bhsd,
        (Some("bshd"), None) => Layout::Bshd,
        (Some(other), _) => return Err(format!("unknown `layout` \"{other}\"")),
    };
    let causal: Option<String> = options.take("causal")?;
    let causal = match causal.as_deref() {
        None => None,
        Some("top_left") => Some(Causal::TopLeft),
        Some("bottom_right") => Some(Causal::BottomRight),
        Some(other) => return Err(format!("unknown `causal` \"{other}\"")),
    };
    let mut case = SoftmaxCase {
        name,
        source: options.take("source")?,
        layout,
        scale: options.take("scale")?,
        causal,
        causal_offsets: None,
        window: options.take("window")?.unwrap_or_default(),
        softcap: options.take("softcap")?,
        q: tensors.float("q")?.ok_or("there is no `q`")?,
        k: tensors.float("k")?.ok_or("there is no `k`")?,
        v: tensors.float("v")?.ok_or("there is no `v`")?,
        alibi_slopes: tensors.per_head("alibi_slopes")?,
        sinks: tensors.per_head("sinks")?,
        bias: tensors.float("bias")?,
        mask: tensors.mask("mask")?,
        kv_lens: tensors.key_lengths("kv_lens")?,
        cu_seqlens,
        rms_tolerance: options.take("rms_tolerance")?,
        expect: BTreeMap::new(),
    };
    for output in ["out", "lse"] {
        if let Some(tensor) = tensors.float(&format!("expect.{output}"))? {
            case.expect.insert(output.into(), tensor);
        }
    }
    let offset: Option<i32> = options.take("causal_offset")?;
    case.causal_offsets = match (offset, tensors.integers("causal_offset")?) {
        (None, None) => None,
        (Some(offset), None) => Some(vec![offset; case.sequences()]),
        (None, Some(_)) if layout == Layout::Packed => {
            return Err("the tensor `causal_offset` does not go with `cu_seqlens_q`".into());
        }
        (None, Some(offsets)) => {
            let narrow = offsets.into_iter().map(i32::try_from).collect::<Result<_, _>>();
            Some(narrow.map_err(|_| "`causal_offset` is beyond 32 bits")?)
        }
        (Some(_), Some(_)) => return Err("`causal_offset` is given twice".into()),
    };
    Ok(case)
}

/// Options that nobody has taken yet.
struct Options(Map<String, Value>);

impl Options {
    fn take<T: DeserializeOwned>(&mut self, key: &str) -> Result<Option<T>, String> {
        let value = self.0.remove(key).unwrap_or_default();
        serde_json::from_value(value).map_err(|error| format!("option `{key}`: {error}"))
    }
}

/// Tensors that nobody has taken yet.
struct Tensors<'a>(BTreeMap<String, TensorView<'a>>);

impl Tensors<'_> {
    fn float(&mut self, name: &str) -> Result<Option<Tensor>, String> {
        let Some(view) = self.0.remove(name) else { return Ok(None) };
        let storage = match view.dtype() {
            Dtype::F32 => Storage::F32,
            Dtype::F16 => Storage::F16,
            Dtype::BF16 => Storage::Bf16,
            other => return Err(format!("tensor `{name}` is {other:?}, not F32, F16 or BF16")),
        };
        Ok(Some(Tensor::from_bytes(storage, view.shape(), view.data())))
    }

    fn per_head(&mut self, name: &str) -> Result<Option<Vec<f32>>, String> {
        match self.float(name)? {
            None => Ok(None),
            Some(Tensor { storage: Storage::F32, shape, values }) if shape.len() == 1 => Ok(Some(values)),
            Some(Tensor { storage, shape, .. }) => {
                Err(format!("tensor `{name}` is {storage} {shape:?}, not f32 [heads]"))
            }
        }
    }

    fn integers(&mut self, name: &str) -> Result<Option<Vec<i64>>, String> {
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

    fn totals(&mut self, name: &str) -> Result<Option<Vec<u32>>, String> {
        let Some(values) = self.integers(name)? else { return Ok(None) };
        let totals = values.into_iter().map(u32::try_from).collect::<Result<_, _>>();
        Ok(Some(totals.map_err(|_| format!("`{name}` is negative or beyond 32 bits"))?))
    }

    /// Key lengths are clamped to the keys that there are, below and above.
    fn key_lengths(&mut self, name: &str) -> Result<Option<Vec<u32>>, String> {
        let clamp = |x: i64| u32::try_from(x.max(0)).unwrap_or(u32::MAX);
        Ok(self.integers(name)?.map(|values| values.into_iter().map(clamp).collect()))
    }

    fn mask(&mut self, name: &str) -> Result<Option<Mask>, String> {
        let Some(view) = self.0.remove(name) else { return Ok(None) };
        let (Dtype::BOOL | Dtype::U8, &[b, h, i, j]) = (view.dtype(), view.shape()) else {
            let (dtype, shape) = (view.dtype(), view.shape());
            return Err(format!("tensor `{name}` is {dtype:?} {shape:?}, not BOOL with four axes"));
        };
        let values = view.data().iter().map(|&x| x != 0).collect();
        Ok(Some(Mask { shape: [b, h, i, j], values }))
    }
}
