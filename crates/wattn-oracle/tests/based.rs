//! BASED linear attention: worked examples that were calculated elsewhere, its two forms, and its gradients.

#![allow(clippy::approx_constant, reason = "a sum that happens to be sqrt(2)")]

mod common;

use common::{assert_near, check_gradient, values};
use wattn_oracle::{BasedMoments, BasedOutput, BasedProblem, BasedState};

const Q: [f64; 8] = [1.0, 0.0, 0.0, 1.0, 1.0, 1.0, 0.5, -0.5];
const K: [f64; 8] = [1.0, 0.0, 0.0, 2.0, -1.0, 1.0, 0.5, 0.5];
const V: [f64; 8] = [1.0, 2.0, 3.0, -1.0, 0.0, 1.0, 2.0, 0.0];
const GRAD: [f64; 8] = [1.0, 0.0, 0.0, 1.0, 1.0, -1.0, 0.5, 0.5];

/// Four tokens of two elements, one head.
fn canonical<'a>() -> BasedProblem<'a> {
    BasedProblem {
        batch: 1,
        heads: 1,
        tokens: 4,
        feature_dim: 2,
        value_dim: 2,
        eps: 1e-12,
        q: &Q,
        k: &K,
        v: &V,
        ..BasedProblem::default()
    }
}

#[test]
fn normalised() {
    let want = [1.0, 2.0, 2.546918, -0.320377, 1.914791, 0.23543, 1.440595, 0.808748];
    for got in [canonical().recurrent(), canonical().parallel()] {
        assert_near(&got.out, &want, 1.01e-6);
        assert_eq!(got.counts, [4]);
        assert_near(&got.moments.s0, &[6.0, 2.0], 1e-12);
        assert_near(&got.moments.s1, &[2.0, 1.0, 7.0, -1.0], 1e-12);
        assert_near(&got.moments.s2, &[1.5, 3.0, 0.5, -1.0, 0.5, -1.0, 12.5, -3.0], 1e-12);
        assert_near(&got.moments.z1, &[0.5, 3.5], 1e-12);
        assert_near(&got.moments.z2, &[2.25, -0.75, -0.75, 5.25], 1e-12);
    }
    let got = canonical().backward(&GRAD, None);
    assert_near(&got.dq, &[0.0, 0.0, 0.371698, -0.52566, -0.210267, 0.946203, 0.12694, -0.064278], 1.01e-6);
    let dk = [-0.456339, -0.187224, 0.618096, 0.362639, -0.315835, -0.278891, -0.012587, 0.012587];
    assert_near(&got.dk, &dk, 1.01e-6);
    let dv = [1.509362, 0.121554, 0.613388, 0.315102, 0.234469, -0.079438, 0.142782, 0.142782];
    assert_near(&got.dv, &dv, 1.01e-6);
}

#[test]
fn raw() {
    let problem = BasedProblem { normalize: false, ..canonical() };
    let want = [1.957107, 3.914214, 11.242641, -1.414214, 12.199747, 1.5, 5.044733, 2.832107];
    assert_near(&problem.recurrent().out, &want, 1.01e-6);
    assert_near(&problem.parallel().out, &want, 1.01e-6);
}

/// Two batch entries, two heads, seven tokens, keys of three elements and values of two.
struct Tensors {
    q: Vec<f64>,
    k: Vec<f64>,
    v: Vec<f64>,
    /// Of three keys for the first entry, two for the second.
    state: BasedMoments,
}

const ROWS: usize = 2 * 2 * 7;
const COUNTS: [usize; 2] = [3, 2];

/// Moments of values, for so many heads.
fn moments(heads: usize, seed: usize) -> BasedMoments {
    BasedMoments {
        s0: values(heads * 2, seed),
        s1: values(heads * 6, seed + 1),
        s2: values(heads * 18, seed + 2),
        z1: values(heads * 3, seed + 3),
        z2: values(heads * 9, seed + 4),
    }
}

impl Tensors {
    fn new() -> Self {
        let mut state = moments(4, 5);
        // Large enough on the diagonal for a sum of squares.
        (0..4 * 9).filter(|ix| ix % 4 == 0).for_each(|ix| state.z2[ix] += 2.0);
        Self { q: values(ROWS * 3, 1), k: values(ROWS * 3, 2), v: values(ROWS * 2, 3), state }
    }

    fn problem(&self) -> BasedProblem<'_> {
        BasedProblem {
            batch: 2,
            heads: 2,
            tokens: 7,
            feature_dim: 3,
            value_dim: 2,
            eps: 0.01,
            q: &self.q,
            k: &self.k,
            v: &self.v,
            ..BasedProblem::default()
        }
    }

    /// Every kind of problem.
    fn problems(&self) -> Vec<BasedProblem<'_>> {
        let plain = self.problem();
        let state = Some(BasedState { counts: &COUNTS, moments: &self.state });
        vec![
            plain,
            BasedProblem { scale: Some(0.7), normalize: false, ..plain },
            BasedProblem { causal: false, ..plain },
            BasedProblem { causal: false, normalize: false, ..plain },
            BasedProblem { lengths: Some(&[0, 4]), ..plain },
            BasedProblem { lengths: Some(&[99, 4]), causal: false, ..plain },
            BasedProblem { state, ..plain },
            BasedProblem { state, lengths: Some(&[0, 4]), causal: false, ..plain },
            BasedProblem { state, normalize: false, ..plain },
            BasedProblem { batch: 1, tokens: 14, bounds: Some(&[0, 1, 1, 14]), ..plain },
            BasedProblem { batch: 1, tokens: 14, bounds: Some(&[0, 6, 14]), state, ..plain },
        ]
    }
}

#[track_caller]
fn assert_same(got: &BasedOutput, want: &BasedOutput) {
    assert_eq!(got.counts, want.counts);
    let of = |x: &BasedOutput| {
        let BasedMoments { s0, s1, s2, z1, z2 } = x.moments.clone();
        [x.out.clone(), s0, s1, s2, z1, z2]
    };
    for (got, want) in of(got).iter().zip(&of(want)) {
        assert_near(got, want, 1e-12);
    }
}

#[test]
fn the_two_forms_agree() {
    for problem in Tensors::new().problems() {
        assert_same(&problem.recurrent(), &problem.parallel());
    }
}

#[test]
fn keys_that_do_not_exist_are_never_read() {
    let mut tensors = Tensors::new();
    let result = |tensors: &Tensors| BasedProblem { lengths: Some(&[0, 4]), ..tensors.problem() }.recurrent();
    let want = result(&tensors);
    assert_eq!(want.counts, [0, 4]);
    assert_eq!(want.out[..28], [0.0; 28], "a query that sees no key");
    for ix in (0..ROWS).filter(|ix| ix / 14 == 0 || ix % 7 >= 4) {
        tensors.k[ix * 3..][..3].fill(f64::NAN);
        tensors.v[ix * 2..][..2].fill(f64::INFINITY);
    }
    assert_same(&result(&tensors), &want);
}

#[test]
fn a_sequence_continues_from_its_state() {
    let tensors = Tensors::new();
    let whole = BasedProblem { batch: 1, heads: 1, tokens: ROWS, ..tensors.problem() };
    let part = |from: usize, to: usize, state: Option<BasedState<'_>>| {
        BasedProblem {
            tokens: to - from,
            q: &tensors.q[from * 3..to * 3],
            k: &tensors.k[from * 3..to * 3],
            v: &tensors.v[from * 2..to * 2],
            state,
            ..whole
        }
        .recurrent()
    };
    for split in [0, 1, 13, ROWS] {
        let first = part(0, split, None);
        let state = BasedState { counts: &first.counts, moments: &first.moments };
        let second = part(split, ROWS, Some(state));
        let together = BasedOutput { out: [first.out, second.out].concat(), ..second };
        assert_same(&together, &whole.recurrent());
    }
}

#[test]
fn packed_sequences_are_separate_problems() {
    let tensors = Tensors::new();
    let bounds = [0, 5, 5, 6];
    let part = |from: usize, to: usize| BasedProblem {
        batch: 1,
        heads: 1,
        tokens: to - from,
        q: &tensors.q[from * 3..to * 3],
        k: &tensors.k[from * 3..to * 3],
        v: &tensors.v[from * 2..to * 2],
        ..tensors.problem()
    };
    let together = BasedProblem { bounds: Some(&bounds), ..part(0, 6) }.recurrent();
    assert_eq!(together.counts, [5, 0, 1]);
    for n in 0..3 {
        let alone = part(bounds[n], bounds[n + 1]).recurrent();
        assert_near(&together.out[bounds[n] * 2..bounds[n + 1] * 2], &alone.out, 0.0);
        assert_near(&together.moments.s2[n * 18..][..18], &alone.moments.s2, 0.0);
    }
}

/// The loss whose gradients `backward` gives.
fn loss(problem: BasedProblem<'_>, grad_out: &[f64], grad: &BasedMoments) -> f64 {
    let BasedOutput { out, moments, .. } = problem.parallel();
    let pairs = [
        (&out[..], grad_out),
        (&moments.s0, &grad.s0),
        (&moments.s1, &grad.s1),
        (&moments.s2, &grad.s2),
        (&moments.z1, &grad.z1),
        (&moments.z2, &grad.z2),
    ];
    pairs.iter().flat_map(|(x, y)| x.iter().zip(*y)).map(|(x, y)| x * y).sum()
}

#[test]
fn gradients_are_those_of_finite_differences() {
    for problem in Tensors::new().problems() {
        let heads = problem.bounds.map_or(problem.batch, |bounds| bounds.len() - 1) * problem.heads;
        let (grad_out, grad) = (values(problem.v.len(), 7), moments(heads, 20));
        let loss = |problem: BasedProblem<'_>| loss(problem, &grad_out, &grad);
        let got = problem.backward(&grad_out, Some(&grad));
        check_gradient(&got.dq, problem.q, |q| loss(BasedProblem { q, ..problem }));
        check_gradient(&got.dk, problem.k, |k| loss(BasedProblem { k, ..problem }));
        check_gradient(&got.dv, problem.v, |v| loss(BasedProblem { v, ..problem }));

        let Some(BasedState { counts, moments }) = problem.state else { continue };
        let with =
            |moments: &BasedMoments| loss(BasedProblem { state: Some(BasedState { counts, moments }), ..problem });
        let d = &got.dmoments;
        check_gradient(&d.s0, &moments.s0, |x| with(&BasedMoments { s0: x.to_vec(), ..moments.clone() }));
        check_gradient(&d.s1, &moments.s1, |x| with(&BasedMoments { s1: x.to_vec(), ..moments.clone() }));
        check_gradient(&d.s2, &moments.s2, |x| with(&BasedMoments { s2: x.to_vec(), ..moments.clone() }));
        check_gradient(&d.z1, &moments.z1, |x| with(&BasedMoments { z1: x.to_vec(), ..moments.clone() }));
        check_gradient(&d.z2, &moments.z2, |x| with(&BasedMoments { z2: x.to_vec(), ..moments.clone() }));
    }
}

#[test]
fn a_query_without_keys_gives_no_gradient() {
    let grads = BasedProblem { lengths: Some(&[0]), ..canonical() }.backward(&GRAD, None);
    let moments = [&grads.dmoments.s0, &grads.dmoments.s1, &grads.dmoments.s2, &grads.dmoments.z1, &grads.dmoments.z2];
    let all = [&grads.dq, &grads.dk, &grads.dv, &grads.dcounts].into_iter().chain(moments);
    assert!(all.flatten().all(|&x| x == 0.0), "{grads:?}");
    // Without a denominator it is a sum like any other, whose gradient the state has.
    let raw = BasedProblem { lengths: Some(&[0]), normalize: false, ..canonical() }.backward(&GRAD, None);
    assert!(raw.dmoments.s0.iter().any(|&x| x != 0.0) && raw.dcounts == [0.0]);
}
