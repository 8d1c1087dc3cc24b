//! Writes case files, so that a case can be replayed somewhere else.

use std::{
    collections::{BTreeMap, HashMap},
    fs,
    path::Path,
};

use anyhow::Context as _;
use safetensors::{Dtype, tensor::TensorView};
use serde_json::{Map, Value, json};

use crate::{BasedCase, Case, Causal, Decay, Layout, LinearCase, SoftmaxCase, Storage, Tensor};

/// Writes a case with its expected outputs; [`CaseFile::read`](crate::CaseFile::read) gives it back.
///
/// # Errors
/// If the file cannot be written.
pub fn write(path: &Path, case: impl Into<Case>) -> anyhow::Result<()> {
    let case = case.into();
    let bytes = bytes(&case).with_context(|| case.name().to_owned())?;
    fs::write(path, bytes).with_context(|| path.display().to_string())
}

/// Options of the file; those that are null are left out.
type Options = Vec<(&'static str, Value)>;

/// A tensor of the file: name, type, extents, bytes.
type Entry = (String, Dtype, Vec<usize>, Vec<u8>);

fn bytes(case: &Case) -> anyhow::Result<Vec<u8>> {
    let (options, entries) = match case {
        Case::Softmax(case) => (softmax_options(case), softmax_entries(case)),
        Case::Linear(case) => (linear_options(case), linear_entries(case)),
        Case::Based(case) => (based_options(case), based_entries(case)),
    };
    let given = options.into_iter().filter(|(_, value)| !value.is_null());
    let mut options: Map<_, _> = given.map(|(key, value)| (key.to_owned(), value)).collect();
    options.insert("op".into(), json!(case.op()));
    let metadata = HashMap::from([("wattn".to_owned(), Value::Object(options).to_string())]);
    let views = entries
        .iter()
        .map(|(name, dtype, shape, bytes)| Ok((name, TensorView::new(*dtype, shape.clone(), bytes)?)))
        .collect::<anyhow::Result<Vec<_>>>()?;
    Ok(safetensors::serialize(views, Some(metadata))?)
}

fn layout(layout: Layout) -> Value {
    json!((layout == Layout::Bshd).then_some("bshd"))
}

fn float(name: &str, tensor: &Tensor) -> Entry {
    let dtype = match tensor.storage {
        Storage::F32 => Dtype::F32,
        Storage::F16 => Dtype::F16,
        Storage::Bf16 => Dtype::BF16,
    };
    (name.to_owned(), dtype, tensor.shape.clone(), tensor.bytes())
}

fn per_head(name: &str, values: &[f32]) -> Entry {
    float(name, &Tensor::new(Storage::F32, &[values.len()], values.to_vec()))
}

fn integers(name: &str, values: impl Iterator<Item = i64>) -> Entry {
    let bytes: Vec<u8> = values.flat_map(i64::to_le_bytes).collect();
    (name.into(), Dtype::I64, vec![bytes.len() / 8], bytes)
}

fn counts(name: &str, values: &[u32]) -> Entry {
    integers(name, values.iter().map(|&x| x.into()))
}

fn expected(outputs: &BTreeMap<String, Tensor>) -> impl Iterator<Item = Entry> {
    outputs.iter().map(|(name, tensor)| float(&format!("expect.{name}"), tensor))
}

/// The one offset that stands for all of them, if one does.
fn common_offset(case: &SoftmaxCase) -> Option<i32> {
    let (&first, others) = case.causal_offsets.as_deref()?.split_first()?;
    others.iter().all(|&offset| offset == first).then_some(first)
}

fn softmax_options(case: &SoftmaxCase) -> Options {
    let causal = case.causal.map(|causal| match causal {
        Causal::TopLeft => "top_left",
        Causal::BottomRight => "bottom_right",
    });
    vec![
        ("case", json!(case.name)),
        ("source", json!(case.source)),
        ("layout", layout(case.layout)),
        ("scale", json!(case.scale)),
        ("causal", json!(causal)),
        ("causal_offset", json!(common_offset(case))),
        ("window", json!((case.window != [None; 2]).then_some(case.window))),
        ("softcap", json!(case.softcap)),
        ("rms_tolerance", json!(case.rms_tolerance)),
    ]
}

fn softmax_entries(case: &SoftmaxCase) -> Vec<Entry> {
    let mut entries = vec![float("q", &case.q), float("k", &case.k), float("v", &case.v)];
    for (name, tensor) in [("bias", &case.bias), ("grad.out", &case.grad_out), ("grad.lse", &case.grad_lse)] {
        entries.extend(tensor.iter().map(|tensor| float(name, tensor)));
    }
    entries.extend(expected(&case.expect));
    entries.extend(case.alibi_slopes.iter().map(|slopes| per_head("alibi_slopes", slopes)));
    entries.extend(case.sinks.iter().map(|sinks| per_head("sinks", sinks)));
    if let Some(mask) = &case.mask {
        let values = mask.values.iter().map(|&seen| u8::from(seen)).collect();
        entries.push(("mask".into(), Dtype::BOOL, mask.shape.to_vec(), values));
    }
    entries.extend(case.kv_lens.iter().map(|lens| counts("kv_lens", lens)));
    if let Some((q, k)) = &case.cu_seqlens {
        entries.extend([counts("cu_seqlens_q", q), counts("cu_seqlens_k", k)]);
    }
    let offsets = case.causal_offsets.iter().filter(|_| common_offset(case).is_none());
    entries.extend(offsets.map(|x| integers("causal_offset", x.iter().map(|&x| x.into()))));
    entries
}

fn linear_options(case: &LinearCase) -> Options {
    vec![
        ("case", json!(case.name)),
        ("source", json!(case.source)),
        ("layout", layout(case.layout)),
        ("scale", json!(case.scale)),
        ("rms_tolerance", json!(case.rms_tolerance)),
    ]
}

fn linear_entries(case: &LinearCase) -> Vec<Entry> {
    let mut entries = vec![float("q", &case.q), float("k", &case.k), float("v", &case.v)];
    entries.push(match &case.decay {
        Decay::Slopes(slopes) => per_head("slopes", slopes),
        Decay::Gates(gates) => float("g", gates),
    });
    for (name, tensor) in [("state", &case.state), ("grad.out", &case.grad_out), ("grad.state", &case.grad_state)] {
        entries.extend(tensor.iter().map(|tensor| float(name, tensor)));
    }
    entries.extend(case.cu_seqlens.iter().map(|totals| counts("cu_seqlens", totals)));
    entries.extend(expected(&case.expect));
    entries
}

fn based_options(case: &BasedCase) -> Options {
    vec![
        ("case", json!(case.name)),
        ("source", json!(case.source)),
        ("layout", layout(case.layout)),
        ("scale", json!(case.scale)),
        ("eps", json!(case.eps)),
        ("causal", json!(case.causal)),
        ("normalize", json!(case.normalize)),
        ("rms_tolerance", json!(case.rms_tolerance)),
    ]
}

fn based_entries(case: &BasedCase) -> Vec<Entry> {
    let mut entries = vec![float("q", &case.q), float("k", &case.k), float("v", &case.v)];
    for (name, tensor) in [("state", &case.state), ("grad.out", &case.grad_out), ("grad.state", &case.grad_state)] {
        entries.extend(tensor.iter().map(|tensor| float(name, tensor)));
    }
    entries.extend(case.kv_lens.iter().map(|lens| counts("kv_lens", lens)));
    entries.extend(case.cu_seqlens.iter().map(|totals| counts("cu_seqlens", totals)));
    entries.extend(expected(&case.expect));
    entries
}
