//! Worked examples on four queries and keys of two elements, calculated elsewhere.

#![allow(clippy::approx_constant, reason = "a logit that happens to be 1/sqrt(2)")]

use wattn_oracle::{Broadcast, Causal, PackedLengths, SoftmaxProblem};

const Q: [f64; 8] = [1.0, 0.0, 0.0, 1.0, 1.0, 1.0, 0.5, -0.5];
const K: [f64; 8] = [1.0, 0.0, 0.0, 2.0, -1.0, 1.0, 0.5, 0.5];
const V: [f64; 8] = [1.0, 2.0, 3.0, -1.0, 0.0, 1.0, 2.0, 0.0];
const BOTTOM_RIGHT: Option<Causal> = Some(Causal::BottomRight);
const TOP_LEFT: Option<Causal> = Some(Causal::TopLeft);
const EMPTY: f64 = f64::NEG_INFINITY;

/// Four queries and keys of two elements, one head.
fn canonical<'a>() -> SoftmaxProblem<'a> {
    SoftmaxProblem {
        batch: 1,
        heads: 1,
        kv_heads: 1,
        queries: 4,
        keys: 4,
        head_dim: 2,
        value_dim: 2,
        q: &Q,
        k: &K,
        v: &V,
        ..SoftmaxProblem::default()
    }
}

#[track_caller]
fn assert_near(got: &[f64], want: &[f64], tolerance: f64) {
    assert_eq!(got.len(), want.len());
    for (n, (g, w)) in got.iter().zip(want).enumerate() {
        assert!(g == w || (g - w).abs() <= tolerance, "element {n}: {g} instead of {w}");
    }
}

/// The examples are printed with six decimals.
#[track_caller]
fn assert_printed(problem: SoftmaxProblem<'_>, out: &[f64], lse: &[f64]) {
    let got = problem.flash_forward();
    assert_near(&got.out, out, 1.01e-6);
    assert_near(&got.lse, lse, 1.01e-6);
}

#[test]
fn full() {
    assert_printed(
        canonical(),
        &[1.592694, 0.717711, 1.889909, -0.009939, 2.009285, 0.102839, 1.437817, 0.835198],
        &[1.598438, 2.147741, 2.215881, 1.226787],
    );
}

#[test]
fn causal() {
    assert_printed(
        SoftmaxProblem { causal: BOTTOM_RIGHT, ..canonical() },
        &[1.0, 2.0, 2.608859, -0.413289, 2.011921, 0.132045, 1.437817, 0.835198],
        &[0.707107, 1.631835, 1.965904, 1.226787],
    );
}

#[test]
fn window() {
    assert_printed(
        SoftmaxProblem { window: (Some(1), Some(0)), ..canonical() },
        &[1.0, 2.0, 2.608859, -0.413289, 2.413289, -0.608859, 1.339523, 0.330238],
        &[0.707107, 1.631835, 1.631835, 0.400834],
    );
}

#[test]
fn causal_softcap() {
    assert_printed(
        SoftmaxProblem { causal: BOTTOM_RIGHT, softcap: Some(1.0), ..canonical() },
        &[1.0, 2.0, 2.417114, -0.125671, 1.732968, 0.426122, 1.442117, 0.804232],
        &[0.608859, 1.23291, 1.661942, 1.250538],
    );
}

#[test]
fn causal_sink() {
    assert_printed(
        SoftmaxProblem { causal: BOTTOM_RIGHT, sinks: Some(&[0.5]), ..canonical() },
        &[0.551592, 1.103185, 1.972761, -0.31252, 1.634553, 0.107278, 0.969232, 0.563007],
        &[1.302053, 1.911315, 2.173625, 1.621164],
    );
}

#[test]
fn causal_alibi() {
    assert_printed(
        SoftmaxProblem { causal: BOTTOM_RIGHT, alibi_slopes: Some(&[0.5]), ..canonical() },
        &[1.0, 2.0, 2.742984, -0.614475, 1.940746, -0.000615, 1.591541, 0.418859],
        &[0.707107, 1.551762, 1.444779, 0.586795],
    );
}

#[test]
fn fewer_queries_than_keys() {
    let last_two = SoftmaxProblem { queries: 2, q: &Q[4..], ..canonical() };
    assert_printed(
        SoftmaxProblem { causal: BOTTOM_RIGHT, ..last_two },
        &[2.011921, 0.132045, 1.437817, 0.835198],
        &[1.965904, 1.226787],
    );
    assert_printed(
        SoftmaxProblem { causal: TOP_LEFT, ..last_two },
        &[1.0, 2.0, 1.514367, 1.22845],
        &[0.707107, 0.650859],
    );
}

#[test]
fn more_queries_than_keys() {
    assert_printed(
        SoftmaxProblem { keys: 2, k: &K[..4], v: &V[..4], causal: BOTTOM_RIGHT, ..canonical() },
        &[0.0, 0.0, 0.0, 0.0, 1.0, 2.0, 1.514367, 1.22845],
        &[EMPTY, EMPTY, 0.707107, 0.650859],
    );
}

#[test]
fn packed_causal() {
    let packed = Some(PackedLengths { q: &[0, 1, 4], k: &[0, 1, 4] });
    let got = SoftmaxProblem { causal: BOTTOM_RIGHT, packed, ..canonical() }.flash_forward();
    let want = [1.0, 2.0, 3.0, -1.0, 2.413289, -0.608859, 1.751745, 0.0];
    assert_near(&got.out, &want, 1.01e-6);
}

#[test]
fn empty_rows() {
    let no_keys = SoftmaxProblem { keys: 0, k: &[], v: &[], ..canonical() };
    assert_printed(no_keys, &[0.0; 8], &[EMPTY; 4]);
    assert_printed(SoftmaxProblem { sinks: Some(&[-3.5]), ..no_keys }, &[0.0; 8], &[-3.5; 4]);
    let no_queries = SoftmaxProblem { queries: 0, q: &[], ..canonical() };
    assert_printed(no_queries, &[], &[]);
}

#[test]
fn the_largest_logit_ignores_keys_without_weight() {
    let bias = [0.0, 0.0, f64::from(f32::MIN), -50.0].repeat(4);
    let bias = Some(Broadcast { values: &bias[..], shape: [1, 1, 4, 4] });
    let row = SoftmaxProblem { bias, ..canonical() }.flash_forward_row(0, 0, 1);
    assert_near(&[row.largest_logit], &[2.0_f64.sqrt()], 1e-12);
}
