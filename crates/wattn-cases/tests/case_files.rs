//! Case files: the golden ones, those that we write, and those that must be refused.

use std::{collections::HashMap, fs, path::Path};

use safetensors::{Dtype, tensor::TensorView};
use wattn_cases::{CaseFile, Rows, SoftmaxCase, catalogue, compare, write};

#[test]
fn golden_files_agree_with_the_oracle() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/golden/softmax");
    let (mut files, mut compared) = (0, 0);
    for entry in fs::read_dir(folder).unwrap() {
        let file = CaseFile::read(&entry.unwrap().path());
        let case = file.softmax().unwrap();
        assert_eq!(file.expected.len(), case.expect.len());
        let reference = case.reference(Rows::All);
        let forward = [("out", &reference.out), ("lse", &reference.lse)];
        for (output, got) in forward.into_iter().chain(reference.gradients.iter().map(|(name, got)| (*name, got))) {
            // Files need not have them all.
            let Some(want) = case.expected(output) else { continue };
            compared += 1;
            let mut values = vec![f32::NAN; got.len()];
            got.iter().for_each(|&(ix, x)| values[ix] = x as f32);
            let rules = case.rules(output, &reference);
            let comparison = compare(output, &values, &want, &rules);
            assert!(comparison.pass && comparison.rms_ratio < 1e-6, "{}: {comparison:?}", file.case);
        }
        files += 1;
    }
    assert_eq!((files, compared), (21, 21 * 5 + 2));
}

/// Equal to the last bit, NaN included.
fn fingerprint(case: &SoftmaxCase) -> String {
    let mut case = case.clone();
    let tensors = [&mut case.q, &mut case.k, &mut case.v];
    let bits: Vec<Vec<u8>> = tensors.iter().map(|tensor| tensor.bytes()).collect();
    tensors.into_iter().for_each(|tensor| tensor.values.clear());
    format!("{case:?} {bits:?}")
}

#[test]
fn what_is_written_is_read_back() {
    let folder = tempdir();
    for recipe in catalogue() {
        let mut case = recipe.build();
        case.expect_reference();
        let path = folder.join(format!("{}.safetensors", case.name.replace('/', "_")));
        write(&path, &case).unwrap();
        let file = CaseFile::read(&path);
        assert_eq!(file.case, case.name);
        assert_eq!(file.expected, case.expect.keys().cloned().collect::<Vec<_>>());
        let back = file.softmax().unwrap();
        assert!(fingerprint(back) == fingerprint(&case), "{}", case.name);
    }
    fs::remove_dir_all(folder).unwrap();
}

fn tempdir() -> std::path::PathBuf {
    let folder = std::env::temp_dir().join(format!("wattn-cases-{}", std::process::id()));
    fs::create_dir_all(&folder).unwrap();
    folder
}

type Parts<'a> = Vec<(&'a str, Dtype, Vec<usize>)>;

/// A file of zeros.
fn file(json: &str, parts: Parts<'_>) -> CaseFile {
    let zeros = vec![0; 1 << 16];
    let views = parts.into_iter().map(|(name, dtype, shape)| {
        let n_bytes = shape.iter().product::<usize>() * dtype.bitsize() / 8;
        (name, TensorView::new(dtype, shape, &zeros[..n_bytes]).unwrap())
    });
    let metadata = HashMap::from([("wattn".to_owned(), json.to_owned())]);
    CaseFile::parse("stem", &safetensors::serialize(views, Some(metadata)).unwrap())
}

/// Two batch entries, four heads on two, three queries, five keys.
fn operands() -> Parts<'static> {
    vec![
        ("q", Dtype::F32, vec![2, 4, 3, 8]),
        ("k", Dtype::F32, vec![2, 2, 5, 8]),
        ("v", Dtype::F32, vec![2, 2, 5, 6]),
        ("expect.out", Dtype::F32, vec![2, 4, 3, 6]),
        ("expect.dq", Dtype::F32, vec![2, 4, 3, 8]),
        ("grad.out", Dtype::F32, vec![2, 4, 3, 6]),
    ]
}

const PLAIN: &str = r#"{"case": "x", "op": "softmax"}"#;

fn with(name: &'static str, dtype: Dtype, shape: &[usize]) -> CaseFile {
    let mut parts = operands();
    parts.retain(|part| part.0 != name);
    parts.push((name, dtype, shape.to_vec()));
    file(PLAIN, parts)
}

#[track_caller]
fn assert_refused(file: CaseFile, naming: &str) {
    let error = file.content.unwrap_err();
    assert!(error.contains(naming), "{error}");
    assert!(file.expected.iter().any(|name| name == "out"), "expected outputs are still listed");
}

#[test]
fn gradients_come_with_what_they_start_from() {
    let whole = file(PLAIN, operands());
    assert_eq!(whole.case, "x");
    assert_eq!(whole.expected, ["dq", "out"]);
    assert!(whole.softmax().unwrap().has_backward());
    let mut parts = operands();
    parts.retain(|part| part.0 != "grad.out");
    assert_refused(file(PLAIN, parts), "`expect.dq` without `grad.out`");
    assert_refused(with("expect.dbias", Dtype::F32, &[1, 1, 3, 5]), "no output `dbias` here");
    assert_refused(with("grad.out", Dtype::F16, &[2, 4, 3, 6]), "grad.out");
    assert_refused(with("grad.lse", Dtype::F32, &[2, 3, 4]), "grad.lse");
}

#[test]
fn unknown_ops_and_options_are_named() {
    let options = [
        (r#"{"case": "x", "op": "delta"}"#, "op `delta` is not supported yet"),
        (r#"{"case": "x", "op": "soft"}"#, "op `soft` is unknown"),
        (r#"{"case": "x"}"#, "`op`"),
        (r#"{"op": "softmax", "dropout": 0.1}"#, "unknown option `dropout`"),
        (r#"{"op": "softmax", "window": [-1, 0]}"#, "option `window`"),
        (r#"{"op": "softmax", "causal": "yes"}"#, "unknown `causal` \"yes\""),
        (r#"{"op": "softmax", "causal": true}"#, "option `causal`"),
        (r#"{"op": "softmax", "causal": "bottom_right", "causal_offset": 1}"#, "`causal_offset`"),
        (r#"{"op": "softmax", "softcap": 0}"#, "`softcap`"),
        (r#"{"op": "softmax", "layout": "sbhd"}"#, "`layout`"),
        (r#"{"op": "softmax", "layout": "bshd"}"#, "head"),
        (r#"["softmax"]"#, "`wattn`"),
    ];
    for (json, naming) in options {
        assert_refused(file(json, operands()), naming);
    }
    let missing = CaseFile::read(Path::new("nowhere/absent.safetensors"));
    assert!(missing.case == "absent" && missing.content.is_err());
    assert!(CaseFile::parse("x", b"text").content.unwrap_err().contains("safetensors"));
}

#[test]
fn tensors_that_do_not_fit_are_named() {
    assert_refused(with("qk", Dtype::F32, &[1]), "unknown tensor `qk`");
    assert_refused(with("expect.state", Dtype::F32, &[1]), "unknown tensor `expect.state`");
    assert_refused(with("q", Dtype::F64, &[2, 4, 3, 8]), "`q` is F64");
    assert_refused(with("q", Dtype::F32, &[2, 3, 3, 8]), "3 query heads on 2");
    assert_refused(with("q", Dtype::F32, &[]), "number of axes of `q`");
    assert_refused(with("k", Dtype::F32, &[2, 2, 4, 8]), "shape of `v`");
    assert_refused(with("k", Dtype::F16, &[2, 2, 5, 8]), "type of `v`");
    assert_refused(with("k", Dtype::F32, &[2, 2, 5, 7]), "head dim of `k`");
    assert_refused(with("expect.out", Dtype::F32, &[2, 3, 4, 6]), "expect.out");
    assert_refused(with("sinks", Dtype::F32, &[2]), "`sinks`");
    assert_refused(with("bias", Dtype::F32, &[2, 2, 3, 5]), "`bias`");
    assert_refused(with("bias", Dtype::F16, &[2, 4, 3, 5]), "`bias`");
    assert_refused(with("mask", Dtype::F32, &[2, 4, 3, 5]), "`mask` is F32");
    assert_refused(with("mask", Dtype::BOOL, &[1, 1, 5, 3]), "`mask`");
    assert_refused(with("kv_lens", Dtype::I32, &[3]), "`kv_lens`");
    assert_refused(with("kv_lens", Dtype::F32, &[2]), "`kv_lens` is F32");
    assert_refused(with("causal_offset", Dtype::I64, &[2]), "`causal_offset`");
    assert_refused(with("cu_seqlens_q", Dtype::I32, &[2]), "go together");
    assert!(with("mask", Dtype::U8, &[2, 1, 3, 5]).content.is_ok());
    assert!(with("kv_lens", Dtype::I64, &[2]).content.is_ok());
}

#[test]
fn packed_batches_exclude_other_lengths() {
    let packed = |more: &[(&'static str, Dtype, &[usize])]| {
        let mut parts: Parts<'_> = vec![
            ("q", Dtype::F32, vec![0, 4, 8]),
            ("k", Dtype::F32, vec![0, 2, 8]),
            ("v", Dtype::F32, vec![0, 2, 6]),
            ("cu_seqlens_q", Dtype::I32, vec![3]),
            ("cu_seqlens_k", Dtype::I32, vec![3]),
            ("expect.out", Dtype::F32, vec![0, 4, 6]),
        ];
        parts.extend(more.iter().map(|&(name, dtype, shape)| (name, dtype, shape.to_vec())));
        file(PLAIN, parts)
    };
    assert_eq!(packed(&[]).softmax().unwrap().sequences(), 2);
    assert_refused(packed(&[("kv_lens", Dtype::I32, &[1])]), "`kv_lens` does not go");
    assert_refused(packed(&[("bias", Dtype::F32, &[1, 1, 0, 0])]), "`bias` does not go");
    assert_refused(packed(&[("mask", Dtype::BOOL, &[1, 1, 0, 0])]), "`mask` does not go");
    assert_refused(packed(&[("causal_offset", Dtype::I32, &[2])]), "`causal_offset` does not go");
}
