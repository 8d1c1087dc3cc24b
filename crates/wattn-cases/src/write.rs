//! Writes case files, so that a case can be replayed somewhere else.

use std::{collections::HashMap, fs, path::Path};

use anyhow::Context as _;
use safetensors::{Dtype, tensor::TensorView};
use serde_json::{Map, Value, json};

use crate::{Causal, Layout, SoftmaxCase, Storage, Tensor};

/// Writes a case with its expected outputs; [`CaseFile::read`](crate::CaseFile::read) gives it back.
///
/// # Errors
/// If the file cannot be written.
pub fn write(path: &Path, case: &SoftmaxCase) -> anyhow::Result<()> {
    let bytes = bytes(case).context(case.name.clone())?;
    fs::write(path, bytes).with_context(|| path.display().to_string())
}

/// A tensor of the file: name, type, extents, bytes.
type Entry = (String, Dtype, Vec<usize>, Vec<u8>);

fn bytes(case: &SoftmaxCase) -> anyhow::Result<Vec<u8>> {
    let metadata = HashMap::from([("wattn".to_owned(), options(case).to_string())]);
    let entries = entries(case);
    let views = entries
        .iter()
        .map(|(name, dtype, shape, bytes)| Ok((name, TensorView::new(*dtype, shape.clone(), bytes)?)))
        .collect::<anyhow::Result<Vec<_>>>()?;
    Ok(safetensors::serialize(views, Some(metadata))?)
}

/// The one offset that stands for all of them, if one does.
fn common_offset(case: &SoftmaxCase) -> Option<i32> {
    let (&first, others) = case.causal_offsets.as_deref()?.split_first()?;
    others.iter().all(|&offset| offset == first).then_some(first)
}

fn options(case: &SoftmaxCase) -> Value {
    let causal = case.causal.map(|causal| match causal {
        Causal::TopLeft => "top_left",
        Causal::BottomRight => "bottom_right",
    });
    let all = [
        ("case", json!(case.name)),
        ("op", json!("softmax")),
        ("source", json!(case.source)),
        ("layout", json!((case.layout == Layout::Bshd).then_some("bshd"))),
        ("scale", json!(case.scale)),
        ("causal", json!(causal)),
        ("causal_offset", json!(common_offset(case))),
        ("window", json!((case.window != [None; 2]).then_some(case.window))),
        ("softcap", json!(case.softcap)),
        ("rms_tolerance", json!(case.rms_tolerance)),
    ];
    let given = all.into_iter().filter(|(_, value)| !value.is_null());
    Value::Object(given.map(|(key, value)| (key.to_owned(), value)).collect::<Map<_, _>>())
}

fn entries(case: &SoftmaxCase) -> Vec<Entry> {
    let float = |name: &str, tensor: &Tensor| {
        let dtype = match tensor.storage {
            Storage::F32 => Dtype::F32,
            Storage::F16 => Dtype::F16,
            Storage::Bf16 => Dtype::BF16,
        };
        (name.to_owned(), dtype, tensor.shape.clone(), tensor.bytes())
    };
    let mut entries = vec![float("q", &case.q), float("k", &case.k), float("v", &case.v)];
    entries.extend(case.bias.iter().map(|bias| float("bias", bias)));
    entries.extend(case.expect.iter().map(|(name, tensor)| float(&format!("expect.{name}"), tensor)));
    for (name, values) in [("alibi_slopes", &case.alibi_slopes), ("sinks", &case.sinks)] {
        let tensor = values.as_ref().map(|x| Tensor::new(Storage::F32, &[x.len()], x.clone()));
        entries.extend(tensor.map(|tensor| float(name, &tensor)));
    }
    if let Some(mask) = &case.mask {
        let values = mask.values.iter().map(|&seen| u8::from(seen)).collect();
        entries.push(("mask".into(), Dtype::BOOL, mask.shape.to_vec(), values));
    }
    let wide = |values: &[u32]| values.iter().map(|&x| i64::from(x)).collect::<Vec<i64>>();
    let (cu_q, cu_k) = case.cu_seqlens.as_ref().map(|(q, k)| (wide(q), wide(k))).unzip();
    let offsets = case.causal_offsets.as_deref().filter(|_| common_offset(case).is_none());
    let integers = [
        ("kv_lens", case.kv_lens.as_deref().map(wide)),
        ("cu_seqlens_q", cu_q),
        ("cu_seqlens_k", cu_k),
        ("causal_offset", offsets.map(|x| x.iter().map(|&x| x.into()).collect())),
    ];
    for (name, values) in integers {
        let Some(values) = values else { continue };
        let bytes = values.iter().flat_map(|x| x.to_le_bytes()).collect();
        entries.push((name.into(), Dtype::I64, vec![values.len()], bytes));
    }
    entries
}
