//! Gradients of softmax attention: worked examples that were calculated elsewhere, and finite differences.

#![allow(clippy::approx_constant, reason = "a gradient that happens to be 1/sqrt(2)")]

mod common;

use common::{assert_near, check_gradient, values};
use wattn_oracle::{Broadcast, Causal, PackedLengths, SoftmaxProblem};

const Q: [f64; 8] = [1.0, 0.0, 0.0, 1.0, 1.0, 1.0, 0.5, -0.5];
const K: [f64; 8] = [1.0, 0.0, 0.0, 2.0, -1.0, 1.0, 0.5, 0.5];
const V: [f64; 8] = [1.0, 2.0, 3.0, -1.0, 0.0, 1.0, 2.0, 0.0];
const GRAD: [f64; 8] = [1.0, 0.0, 0.0, 1.0, 1.0, -1.0, 0.5, 0.5];
/// The examples are printed with six decimals.
const PRINTED: f64 = 1.01e-6;

/// Four queries and keys of two elements, one head, causal.
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
        causal: Some(Causal::BottomRight),
        ..SoftmaxProblem::default()
    }
}

#[test]
fn causal() {
    let got = canonical().flash_backward(&GRAD, None);
    assert_near(&got.dq, &[0.0, 0.0, 0.333732, -0.667463, -0.29317, 1.441798, 0.158257, -0.107138], PRINTED);
    assert_near(
        &got.dk,
        &[-0.524655, -0.298258, 0.856497, 0.536722, -0.31769, -0.252616, -0.014152, 0.014152],
        PRINTED,
    );
    assert_near(&got.dv, &[1.492795, 0.120374, 0.648267, 0.300746, 0.212321, -0.067737, 0.146617, 0.146617], PRINTED);
}

#[test]
fn a_gradient_of_the_log_sum_exp() {
    let got = canonical().flash_backward(&GRAD, Some(&[1.0, -1.0, 0.5, 2.0]));
    assert_near(&got.dq, &[0.707107, 0.0, 0.195442, -1.805098, -0.24227, 1.898582, 0.751705, 0.713627], PRINTED);
}

#[test]
fn softcap_sink_and_bias() {
    let bias = [0.1, 0.0, 0.0, 0.0, -0.2, 0.3, 0.0, 0.0, 0.0, 0.1, -0.1, 0.0, 0.2, 0.0, 0.1, 0.4];
    let bias = Some(Broadcast { values: &bias, shape: [1, 1, 4, 4] });
    let problem = SoftmaxProblem { softcap: Some(1.0), sinks: Some(&[0.5]), bias, ..canonical() };
    let got = problem.flash_backward(&GRAD, None);
    assert_near(&got.dsinks, &[-0.653403], PRINTED);
    assert_near(&got.dq, &[0.110039, 0.0, 0.230194, -0.121484, -0.053638, 0.132038, 0.152104, 0.016487], PRINTED);
    assert_near(&got.dk, &[-0.07522, -0.077, 0.165983, 0.097902, -0.199679, -0.185499, 0.01599, -0.01599], PRINTED);
    let dbias = [
        [0.247293, 0.0, 0.0, 0.0],
        [0.325543, -0.407562, 0.0, 0.0],
        [-0.55335, 1.089077, -0.272362, 0.0],
        [0.19491, 0.016491, -0.031865, 0.045227],
    ];
    assert_near(&got.dbias, dbias.as_flattened(), PRINTED);
}

#[test]
fn a_group_of_heads_adds_up() {
    // The second query head has the queries of the first in reverse.
    let reversed: Vec<f64> = Q.chunks(2).rev().flatten().copied().collect();
    let q = [&Q[..], &reversed].concat();
    let problem = SoftmaxProblem { heads: 2, q: &q, ..canonical() };
    let got = problem.flash_backward(&[GRAD, GRAD].concat(), None);
    assert_near(&got.dk, &[0.044529, -0.114215, 0.36511, 0.931002, -0.363883, -0.830938, -0.045756, 0.014152], PRINTED);
}

/// `sum(grad_out out) + sum(grad_lse lse)`; rows that see nothing have no log-sum-exp to move.
fn loss(problem: &SoftmaxProblem<'_>, grad_out: &[f64], grad_lse: &[f64]) -> f64 {
    let output = problem.flash_forward();
    let out: f64 = output.out.iter().zip(grad_out).map(|(a, b)| a * b).sum();
    out + output.lse.iter().zip(grad_lse).filter(|(lse, _)| lse.is_finite()).map(|(a, b)| a * b).sum::<f64>()
}

/// Every gradient of a problem against central differences.
fn check_gradients(problem: SoftmaxProblem<'_>) {
    let rows = problem.batch * problem.heads * problem.queries;
    let (grad_out, grad_lse) = (values(rows * problem.value_dim, 11), values(rows, 12));
    let got = problem.flash_backward(&grad_out, Some(&grad_lse));
    let loss = |problem: SoftmaxProblem<'_>| loss(&problem, &grad_out, &grad_lse);
    check_gradient(&got.dq, problem.q, |q| loss(SoftmaxProblem { q, ..problem }));
    check_gradient(&got.dk, problem.k, |k| loss(SoftmaxProblem { k, ..problem }));
    check_gradient(&got.dv, problem.v, |v| loss(SoftmaxProblem { v, ..problem }));
    if let Some(bias) = problem.bias {
        check_gradient(&got.dbias, bias.values, |values| {
            loss(SoftmaxProblem { bias: Some(Broadcast { values, ..bias }), ..problem })
        });
    }
    if let Some(sinks) = problem.sinks {
        check_gradient(&got.dsinks, sinks, |sinks| loss(SoftmaxProblem { sinks: Some(sinks), ..problem }));
    }
    if let Some(slopes) = problem.alibi_slopes {
        check_gradient(&got.dalibi_slopes, slopes, |slopes| {
            loss(SoftmaxProblem { alibi_slopes: Some(slopes), ..problem })
        });
    }
}

#[test]
fn gradients_are_those_of_finite_differences() {
    let (q, k, v) = (values(2 * 4 * 5 * 3, 1), values(2 * 2 * 7 * 3, 2), values(2 * 2 * 7 * 2, 3));
    let plain = SoftmaxProblem {
        batch: 2,
        heads: 4,
        kv_heads: 2,
        queries: 5,
        keys: 7,
        head_dim: 3,
        value_dim: 2,
        q: &q,
        k: &k,
        v: &v,
        ..SoftmaxProblem::default()
    };
    check_gradients(plain);
    check_gradients(SoftmaxProblem { scale: Some(-0.7), window: (Some(1), Some(2)), ..plain });
    check_gradients(SoftmaxProblem { kv_lens: Some(&[0, 3]), causal: Some(Causal::BottomRight), ..plain });
    let (slopes, sinks) = ([0.5, 0.25, 0.0, 1.0], [0.3, -1.0, 2.0, 0.0]);
    let mask: Vec<bool> = (0..5 * 7).map(|n| n % 3 != 1).collect();
    for shape in [[2, 4, 5, 7], [1, 4, 5, 7], [2, 1, 5, 7], [1, 1, 5, 7]] {
        let bias = values(shape.iter().product(), 4);
        check_gradients(SoftmaxProblem {
            softcap: Some(1.5),
            alibi_slopes: Some(&slopes),
            sinks: Some(&sinks),
            bias: Some(Broadcast { values: &bias, shape }),
            mask: Some(Broadcast { values: &mask, shape: [1, 1, 5, 7] }),
            causal: Some(Causal::TopLeft),
            causal_offsets: Some(&[1, -2]),
            ..plain
        });
    }
    let packed = Some(PackedLengths { q: &[0, 2, 2, 5], k: &[0, 3, 7, 7] });
    let (q, k, v) = (&q[..4 * 5 * 3], &k[..2 * 7 * 3], &v[..2 * 7 * 2]);
    check_gradients(SoftmaxProblem { batch: 1, q, k, v, packed, alibi_slopes: Some(&slopes), ..plain });
}

#[test]
fn rows_without_keys_move_nothing_but_their_sink() {
    let nothing = SoftmaxProblem { kv_lens: Some(&[0]), ..canonical() };
    let got = nothing.flash_backward(&GRAD, Some(&[1.0; 4]));
    assert!([got.dq, got.dk, got.dv].concat().iter().all(|&x| x == 0.0));
    let got = SoftmaxProblem { sinks: Some(&[0.5]), ..nothing }.flash_backward(&GRAD, Some(&[1.0, 2.0, 3.0, 4.0]));
    assert_near(&got.dsinks, &[10.0], 1e-12);
}
