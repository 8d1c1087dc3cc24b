//! The golden vectors, which were made without any of this code.

use std::{fs, path::Path};

use safetensors::{Dtype, SafeTensors};
use serde_json::Value;
use wattn_oracle::{BasedProblem, Broadcast, Causal, LinearDecay, LinearProblem, PackedLengths, SoftmaxProblem};

/// A tensor's extents, and its values as f64, whatever their type.
fn tensor(file: &SafeTensors<'_>, name: &str) -> Option<(Vec<usize>, Vec<f64>)> {
    let view = file.tensor(name).ok()?;
    let words = view.data().chunks_exact(4).map(|word| <[u8; 4]>::try_from(word).unwrap());
    let values = match view.dtype() {
        Dtype::F32 => words.map(|word| f32::from_le_bytes(word).into()).collect(),
        Dtype::I32 => words.map(|word| i32::from_le_bytes(word).into()).collect(),
        other => panic!("{name} is {other:?}"),
    };
    Some((view.shape().to_vec(), values))
}

/// `[total, heads, dim]` to `[heads, total, dim]`.
fn heads_first(shape: &[usize], values: &[f64]) -> Vec<f64> {
    let &[total, heads, dim] = shape else { panic!("{shape:?}") };
    let mut turned = Vec::with_capacity(values.len());
    for h in 0..heads {
        for n in 0..total {
            turned.extend_from_slice(&values[(n * heads + h) * dim..][..dim]);
        }
    }
    turned
}

/// `norm(got - want) / norm(want)` over finite elements; infinite ones must be equal.
fn rms_ratio(got: &[f64], want: &[f64]) -> f64 {
    assert_eq!(got.len(), want.len());
    let (mut difference, mut norm) = (0.0, 0.0);
    for (&g, &w) in got.iter().zip(want) {
        if w.is_finite() {
            difference += (g - w) * (g - w);
            norm += w * w;
        } else {
            assert_eq!(g, w);
        }
    }
    assert!(norm > 0.0);
    (difference / norm).sqrt()
}

/// The options of a case file, all of which must be among the `known`, and its bytes.
fn read(path: &Path, known: &[&str]) -> (Value, Vec<u8>) {
    let bytes = fs::read(path).unwrap();
    let (_, header) = SafeTensors::read_metadata(&bytes).unwrap();
    let options: Value = serde_json::from_str(&header.metadata().as_ref().unwrap()["wattn"]).unwrap();
    for key in options.as_object().unwrap().keys() {
        assert!(["case", "op", "source"].contains(&key.as_str()) || known.contains(&key.as_str()), "{key}");
    }
    (options, bytes)
}

/// Calls `check` for each file of a folder, of which there are so many.
fn for_each_file(folder: &str, files: usize, check: impl Fn(&Path)) {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/golden").join(folder);
    let paths: Vec<_> = fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path()).collect();
    assert_eq!(paths.len(), files);
    paths.iter().for_each(|path| check(path));
}

#[track_caller]
fn assert_agrees(path: &Path, output: &str, got: &[f64], want: &[f64]) {
    let error = rms_ratio(got, want);
    assert!(error < 1e-6, "{} {output}: {error:e}", path.display());
}

fn check_softmax(path: &Path) {
    let (options, bytes) = read(path, &["causal", "window", "softcap", "rms_tolerance"]);
    let file = SafeTensors::deserialize(&bytes).unwrap();

    let integers = |name| {
        let (_, values) = tensor(&file, name)?;
        Some(values.into_iter().map(|x| x as usize).collect::<Vec<_>>())
    };
    let totals = integers("cu_seqlens_q").zip(integers("cu_seqlens_k"));
    let [q, k, v] = ["q", "k", "v"].map(|name| {
        let (shape, values) = tensor(&file, name).unwrap();
        if totals.is_none() {
            return (shape, values);
        }
        (vec![1, shape[1], shape[0], shape[2]], heads_first(&shape, &values))
    });
    let bias = tensor(&file, "bias");
    let slopes = tensor(&file, "alibi_slopes");
    let sinks = tensor(&file, "sinks");
    let kv_lens = integers("kv_lens");
    let window = |side: usize| options["window"][side].as_u64().map(|n| n as usize);
    let problem = SoftmaxProblem {
        batch: q.0[0],
        heads: q.0[1],
        kv_heads: k.0[1],
        queries: q.0[2],
        keys: k.0[2],
        head_dim: q.0[3],
        value_dim: v.0[3],
        q: &q.1,
        k: &k.1,
        v: &v.1,
        causal: options["causal"].as_str().map(|causal| match causal {
            "top_left" => Causal::TopLeft,
            "bottom_right" => Causal::BottomRight,
            other => panic!("{other}"),
        }),
        window: (window(0), window(1)),
        softcap: options["softcap"].as_f64(),
        alibi_slopes: slopes.as_ref().map(|(_, slopes)| &slopes[..]),
        bias: bias.as_ref().map(|(shape, values)| Broadcast { values, shape: shape.as_slice().try_into().unwrap() }),
        sinks: sinks.as_ref().map(|(_, sinks)| &sinks[..]),
        kv_lens: kv_lens.as_deref(),
        packed: totals.as_ref().map(|(q, k)| PackedLengths { q, k }),
        ..SoftmaxProblem::default()
    };
    let got = problem.flash_forward();

    let (shape, mut want) = tensor(&file, "expect.out").unwrap();
    if totals.is_some() {
        want = heads_first(&shape, &want);
    }
    let (_, lse) = tensor(&file, "expect.lse").unwrap();
    assert_agrees(path, "out", &got.out, &want);
    assert_agrees(path, "lse", &got.lse, &lse);
}

/// Compares all outputs that the file expects, each with a result of this name.
#[track_caller]
fn assert_all_agree(path: &Path, file: &SafeTensors<'_>, results: &[(&str, &[f64])]) {
    for name in file.names() {
        let Some(output) = name.strip_prefix("expect.") else { continue };
        let (_, want) = tensor(file, name).unwrap();
        let named = results.iter().filter(|(name, _)| *name == output);
        let mut compared = 0;
        for (_, got) in named {
            assert_agrees(path, output, got, &want);
            compared += 1;
        }
        assert!(compared > 0, "{} {output}", path.display());
    }
}

fn check_linear(path: &Path) {
    let (options, bytes) = read(path, &["scale"]);
    let file = SafeTensors::deserialize(&bytes).unwrap();
    let values = |name| tensor(&file, name).map(|(_, values)| values);
    let [(q_shape, q), (_, k), (v_shape, v)] = ["q", "k", "v"].map(|name| tensor(&file, name).unwrap());
    let (slopes, gates, state) = (values("slopes"), values("g"), values("state"));
    let problem = LinearProblem {
        batch: q_shape[0],
        heads: q_shape[1],
        tokens: q_shape[2],
        key_dim: q_shape[3],
        value_dim: v_shape[3],
        scale: options["scale"].as_f64(),
        q: &q,
        k: &k,
        v: &v,
        decay: match (&slopes, &gates) {
            (Some(slopes), None) => LinearDecay::Slopes(slopes),
            (None, Some(gates)) => LinearDecay::Gates(gates),
            _ => panic!("{}", path.display()),
        },
        state: state.as_deref(),
        bounds: None,
    };
    let (recurrent, parallel) = (problem.recurrent(), problem.parallel());
    let grads = problem.backward(&values("grad.out").unwrap(), values("grad.state").as_deref());
    let results: [(&str, &[f64]); 10] = [
        ("out", &recurrent.out),
        ("state", &recurrent.state),
        ("out", &parallel.out),
        ("state", &parallel.state),
        ("dq", &grads.dq),
        ("dk", &grads.dk),
        ("dv", &grads.dv),
        ("dstate", &grads.dstate),
        ("dslopes", &grads.dslopes),
        ("dg", &grads.dg),
    ];
    assert_all_agree(path, &file, &results);
}

fn check_based(path: &Path) {
    let (options, bytes) = read(path, &["scale", "eps", "causal", "normalize"]);
    let file = SafeTensors::deserialize(&bytes).unwrap();
    let [(q_shape, q), (_, k), (v_shape, v)] = ["q", "k", "v"].map(|name| tensor(&file, name).unwrap());
    let problem = BasedProblem {
        batch: q_shape[0],
        heads: q_shape[1],
        tokens: q_shape[2],
        feature_dim: q_shape[3],
        value_dim: v_shape[3],
        scale: options["scale"].as_f64(),
        eps: options["eps"].as_f64().unwrap(),
        causal: options["causal"].as_bool().unwrap_or(true),
        normalize: options["normalize"].as_bool().unwrap_or(true),
        q: &q,
        k: &k,
        v: &v,
        ..BasedProblem::default()
    };
    let (recurrent, parallel) = (problem.recurrent(), problem.parallel());
    let grads = problem.backward(&tensor(&file, "grad.out").unwrap().1, None);
    let moments = &recurrent.moments;
    let results: [(&str, &[f64]); 10] = [
        ("out", &recurrent.out),
        ("out", &parallel.out),
        ("s0", &moments.s0),
        ("s1", &moments.s1),
        ("s2", &moments.s2),
        ("z1", &moments.z1),
        ("z2", &moments.z2),
        ("dq", &grads.dq),
        ("dk", &grads.dk),
        ("dv", &grads.dv),
    ];
    assert_all_agree(path, &file, &results);
}

#[test]
fn golden_softmax() {
    for_each_file("softmax", 21, check_softmax);
}

#[test]
fn golden_lightning() {
    for_each_file("lightning", 5, check_linear);
}

#[test]
fn golden_gated_linear() {
    for_each_file("gated_linear", 3, |path| {
        // A gate per key channel is another operator.
        if path.file_stem().unwrap() != "vector_d64" {
            check_linear(path);
        }
    });
}

#[test]
fn golden_based() {
    for_each_file("based", 5, check_based);
}
