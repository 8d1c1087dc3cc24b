//! The catalogues and case files of linear attention.

use std::{collections::BTreeSet, collections::HashMap, fs, path::Path};

use safetensors::{Dtype, tensor::TensorView};
use wattn_cases::{
    Case, CaseFile, Layout, References, Rules, Storage, Tensor, based_catalogue, compare, linear_catalogue, write,
};

/// Every case of both catalogues.
fn all() -> Vec<Case> {
    let linear = linear_catalogue().into_iter().map(|recipe| recipe.build().into());
    linear.chain(based_catalogue().into_iter().map(|recipe| recipe.build().into())).collect()
}

fn reference(case: &Case) -> References {
    match case {
        Case::Softmax(_) => panic!("softmax"),
        Case::Linear(case) => case.reference(),
        Case::Based(case) => case.reference(),
    }
}

fn rules(case: &Case, output: &str) -> Rules {
    match case {
        Case::Softmax(_) => panic!("softmax"),
        Case::Linear(case) => case.rules(output),
        Case::Based(case) => case.rules(output),
    }
}

fn expect_reference(case: &mut Case) {
    match case {
        Case::Softmax(_) => panic!("softmax"),
        Case::Linear(case) => case.expect_reference(),
        Case::Based(case) => case.expect_reference(),
    }
}

fn expected(case: &Case, output: &str) -> Option<Vec<(usize, f64)>> {
    match case {
        Case::Softmax(case) => case.expected(output),
        Case::Linear(case) => case.expected(output),
        Case::Based(case) => case.expected(output),
    }
}

/// The reference as a device would give it.
fn dense(pairs: &[(usize, f64)]) -> Vec<f32> {
    let mut values = vec![f32::NAN; pairs.len()];
    pairs.iter().for_each(|&(ix, x)| values[ix] = x as f32);
    values
}

#[test]
fn golden_files_agree_with_the_oracle() {
    let golden = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/golden");
    let (mut files, mut outputs) = (0, 0);
    for op in ["lightning", "gated_linear", "based"] {
        for entry in fs::read_dir(golden.join(op)).unwrap() {
            let file = CaseFile::read(&entry.unwrap().path());
            files += 1;
            if file.case == "vector_d64" {
                assert_eq!(file.content.unwrap_err(), "vector gates are not supported yet");
                continue;
            }
            let case = file.content.unwrap();
            assert_eq!(case.op(), op);
            let reference = reference(&case);
            for output in &file.expected {
                let want = expected(&case, output).unwrap();
                let comparison = compare(output, &dense(&reference[output.as_str()]), &want, &rules(&case, output));
                assert!(comparison.pass && comparison.rms_ratio < 1e-6, "{}: {comparison:?}", file.case);
                outputs += 1;
            }
        }
    }
    assert_eq!((files, outputs), (13, 76));
}

#[test]
fn names_are_unique_and_say_the_op() {
    let cases = all();
    let names: BTreeSet<_> = cases.iter().map(Case::name).collect();
    assert_eq!(names.len(), cases.len());
    assert!(cases.iter().all(|case| case.name().strip_prefix(case.op()).is_some_and(|rest| rest.starts_with('/'))));
}

#[test]
fn every_case_is_consistent_and_small() {
    for case in all() {
        assert_eq!(case.check(), Ok(()), "{}", case.name());
        let elements: usize = reference(&case).values().map(Vec::len).sum();
        assert!(elements <= 400_000, "{}: {elements} elements", case.name());
    }
}

/// A result that is right to the last bit of f32 passes, and a wrong one does not.
#[test]
fn every_case_can_tell_right_from_wrong() {
    let mut all_zero = Vec::new();
    for case in all() {
        for (output, want) in reference(&case) {
            let rules = rules(&case, output);
            let fits = |x: f64| rules.storage.round(x as f32).is_finite();
            assert!(want.iter().all(|&(_, x)| fits(x)), "{} {output}", case.name());
            let mut got = dense(&want);
            let right = compare(output, &got, &want, &rules);
            assert!(right.pass, "{}: {right:?}", case.name());
            if got.iter().all(|&x| x == 0.0) {
                all_zero.push(format!("{} {output}", case.name()));
                continue;
            }
            for x in &mut got {
                *x *= 1.05;
            }
            let wrong = compare(output, &got, &want, &rules);
            assert!(!wrong.pass, "{} {output} is not checked: {wrong:?}", case.name());
        }
    }
    all_zero.retain(|name| !name.contains("no_tokens"));
    // Without a state before it, a token's decay has no effect, and a query none on the state after it.
    assert_eq!(all_zero, ["lightning/one_token dslopes", "lightning/grad_state_only dq", "based/state_grad_alone dq"]);
}

#[test]
fn layouts_agree() {
    let turn = |tensor: &Tensor| {
        let [batch, heads, len, dim] = tensor.shape[..] else { panic!() };
        let old = |ix: usize| {
            let [d, h, n, b] = [ix % dim, ix / dim % heads, ix / dim / heads % len, ix / dim / heads / len];
            tensor.values[((b * heads + h) * len + n) * dim + d]
        };
        Tensor::new(tensor.storage, &[batch, len, heads, dim], (0..tensor.values.len()).map(old).collect())
    };
    let recipe = linear_catalogue().into_iter().find(|recipe| recipe.name == "lightning/state_b2_h3").unwrap();
    let bhsd = recipe.build();
    let mut bshd = bhsd.clone();
    bshd.layout = Layout::Bshd;
    for tensor in [&mut bshd.q, &mut bshd.k, &mut bshd.v] {
        *tensor = turn(tensor);
    }
    bshd.grad_out = bhsd.grad_out.as_ref().map(turn);
    assert_eq!(bshd.check(), Ok(()));
    let (want, got) = (bhsd.reference(), bshd.reference());
    for (output, want) in want {
        let (shape, _) = bhsd.output(output).unwrap();
        let want = Tensor::new(Storage::F32, &shape, dense(&want));
        let rows = ["out", "dq", "dk", "dv"].contains(&output);
        let want = if rows { turn(&want) } else { want };
        assert_eq!(dense(&got[output]), want.values, "{output}");
    }
}

/// Equal to the last bit, NaN included.
fn fingerprint(case: &Case) -> String {
    let mut case = case.clone();
    let tensors = match &mut case {
        Case::Softmax(case) => [&mut case.q, &mut case.k, &mut case.v],
        Case::Linear(case) => [&mut case.q, &mut case.k, &mut case.v],
        Case::Based(case) => [&mut case.q, &mut case.k, &mut case.v],
    };
    let bits: Vec<Vec<u8>> = tensors.iter().map(|tensor| tensor.bytes()).collect();
    tensors.into_iter().for_each(|tensor| tensor.values.clear());
    format!("{case:?} {bits:?}")
}

#[test]
fn what_is_written_is_read_back() {
    let folder = std::env::temp_dir().join(format!("wattn-linear-cases-{}", std::process::id()));
    fs::create_dir_all(&folder).unwrap();
    for mut case in all() {
        expect_reference(&mut case);
        let path = folder.join("case.safetensors");
        write(&path, &case).unwrap();
        let file = CaseFile::read(&path);
        assert_eq!(file.case, case.name());
        let back = file.content.unwrap();
        assert!(fingerprint(&back) == fingerprint(&case), "{}", case.name());
    }
    fs::remove_dir_all(folder).unwrap();
}

type Parts = Vec<(&'static str, Dtype, Vec<usize>)>;

/// A file of zeros.
fn file(json: &str, parts: &Parts) -> CaseFile {
    let zeros = vec![0; 1 << 12];
    let views = parts.iter().map(|(name, dtype, shape)| {
        let n_bytes = shape.iter().product::<usize>() * dtype.bitsize() / 8;
        (*name, TensorView::new(*dtype, shape.clone(), &zeros[..n_bytes]).unwrap())
    });
    let metadata = HashMap::from([("wattn".to_owned(), json.to_owned())]);
    CaseFile::parse("stem", &safetensors::serialize(views, Some(metadata)).unwrap())
}

/// Two batch entries, three heads, five tokens, keys of four elements and values of two.
fn operands() -> Parts {
    vec![
        ("q", Dtype::F32, vec![2, 3, 5, 4]),
        ("k", Dtype::F32, vec![2, 3, 5, 4]),
        ("v", Dtype::F32, vec![2, 3, 5, 2]),
        ("grad.out", Dtype::F32, vec![2, 3, 5, 2]),
        ("expect.out", Dtype::F32, vec![2, 3, 5, 2]),
        ("expect.dq", Dtype::F32, vec![2, 3, 5, 4]),
    ]
}

const LIGHTNING: &str = r#"{"op": "lightning"}"#;
const GATED: &str = r#"{"op": "gated_linear"}"#;
const BASED: &str = r#"{"op": "based"}"#;

/// The operands of an op with one more tensor, or with another one of that name.
fn with(json: &str, name: &'static str, dtype: Dtype, shape: &[usize]) -> CaseFile {
    let mut parts = operands();
    match json {
        LIGHTNING => parts.push(("slopes", Dtype::F32, vec![3])),
        GATED => parts.push(("g", Dtype::F32, vec![2, 3, 5])),
        _ => {}
    }
    parts.retain(|part| part.0 != name);
    parts.push((name, dtype, shape.to_vec()));
    file(json, &parts)
}

#[track_caller]
fn assert_refused(file: CaseFile, naming: &str) {
    let error = file.content.unwrap_err();
    assert!(error.contains(naming), "{error}");
    assert!(file.expected.iter().any(|name| name == "out"), "expected outputs are still listed");
}

#[test]
fn every_output_is_taken() {
    let (f32, states, packed) = (Dtype::F32, [2, 3, 4, 2], [2, 3, 15, 3]);
    for (json, name, shape) in [
        (LIGHTNING, "state", &states[..]),
        (LIGHTNING, "grad.state", &states),
        (LIGHTNING, "expect.state", &states),
        (LIGHTNING, "expect.dstate", &states),
        (LIGHTNING, "expect.dslopes", &[3]),
        (GATED, "expect.dg", &[2, 3, 5]),
        (BASED, "expect.s0", &[2, 3, 2]),
        (BASED, "expect.s1", &states),
        (BASED, "expect.s2", &[2, 3, 4, 4, 2]),
        (BASED, "expect.z1", &[2, 3, 4]),
        (BASED, "expect.z2", &[2, 3, 4, 4]),
        (BASED, "expect.dv", &[2, 3, 5, 2]),
        (BASED, "state", &packed),
        (BASED, "grad.state", &packed),
        (BASED, "expect.dstate", &packed),
    ] {
        let file = with(json, name, f32, shape);
        assert!(file.content.is_ok(), "{name}: {:?}", file.content);
        let mut wrong = shape.to_vec();
        wrong[0] += 1;
        assert_refused(with(json, name, f32, &wrong), &format!("shape of `{name}`"));
    }
}

#[test]
fn tensors_that_do_not_fit_are_named() {
    let (f32, f16) = (Dtype::F32, Dtype::F16);
    assert_refused(with(LIGHTNING, "qk", f32, &[1]), "unknown tensor `qk`");
    assert_refused(with(LIGHTNING, "g", f32, &[2, 3, 5]), "unknown tensor `g`");
    assert_refused(with(LIGHTNING, "expect.dg", f32, &[2, 3, 5]), "unknown tensor `expect.dg`");
    assert_refused(with(LIGHTNING, "cu_seqlens_q", Dtype::I32, &[2]), "unknown tensor `cu_seqlens_q`");
    assert_refused(with(LIGHTNING, "slopes", f32, &[2]), "length of `slopes`");
    assert_refused(with(LIGHTNING, "k", f32, &[2, 1, 5, 4]), "shape of `v`");
    assert_refused(with(LIGHTNING, "q", f32, &[2, 6, 5, 4]), "shape of `k`");
    assert_refused(with(LIGHTNING, "v", f16, &[2, 3, 5, 2]), "type of `v`");
    assert_refused(with(LIGHTNING, "grad.out", f16, &[2, 3, 5, 2]), "type of `grad.out`");
    assert_refused(with(LIGHTNING, "state", f16, &[2, 3, 4, 2]), "type of `state`");
    assert_refused(with(GATED, "slopes", f32, &[3]), "unknown tensor `slopes`");
    assert_refused(with(GATED, "g", f32, &[2, 3, 5, 4]), "vector gates are not supported yet");
    assert_refused(with(GATED, "g", f32, &[3, 5]), "shape of `g`");
    assert_refused(with(BASED, "state", f16, &[2, 3, 15, 3]), "type of `state`");
    assert_refused(with(BASED, "kv_lens", Dtype::I32, &[3]), "length of `kv_lens`");
    assert_refused(file(LIGHTNING, &operands()), "there is no `slopes`");
    assert_refused(file(GATED, &operands()), "there is no `g`");
    let mut forward: Parts = operands();
    forward.retain(|part| part.0 != "grad.out");
    assert_refused(file(BASED, &forward), "`grad.out`");
}

#[test]
fn options_that_do_not_fit_are_named() {
    for (json, naming) in [
        (r#"{"op": "based", "window": [1, 1]}"#, "unknown option `window`"),
        (r#"{"op": "based", "causal": "yes"}"#, "option `causal`"),
        (r#"{"op": "based", "eps": -1}"#, "`eps`"),
        (r#"{"op": "based", "layout": "sbhd"}"#, "unknown `layout` \"sbhd\""),
        (r#"{"op": "lightning", "eps": 1}"#, "`slopes`"),
    ] {
        assert_refused(file(json, &operands()), naming);
    }
    assert!(file(BASED, &operands()).softmax().unwrap_err().contains("op `based` is not `softmax`"));
}
