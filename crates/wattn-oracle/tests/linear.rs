//! Decayed linear attention: worked examples that were calculated elsewhere, its two forms, and its gradients.

mod common;

use common::{assert_near, check_gradient, values};
use wattn_oracle::{LinearDecay, LinearOutput, LinearProblem};

const Q: [f64; 8] = [1.0, 0.0, 0.0, 1.0, 1.0, 1.0, 0.5, -0.5];
const K: [f64; 8] = [1.0, 0.0, 0.0, 2.0, -1.0, 1.0, 0.5, 0.5];
const V: [f64; 8] = [1.0, 2.0, 3.0, -1.0, 0.0, 1.0, 2.0, 0.0];
const GRAD: [f64; 8] = [1.0, 0.0, 0.0, 1.0, 1.0, -1.0, 0.5, 0.5];
const STATE: [f64; 4] = [1.0, 2.0, 3.0, 4.0];
const HALF: [f64; 1] = [std::f64::consts::LN_2];

/// Four tokens of two elements, one head whose state halves.
fn canonical<'a>() -> LinearProblem<'a> {
    LinearProblem {
        batch: 1,
        heads: 1,
        tokens: 4,
        key_dim: 2,
        value_dim: 2,
        q: &Q,
        k: &K,
        v: &V,
        decay: LinearDecay::Slopes(&HALF),
        ..LinearProblem::default()
    }
}

#[track_caller]
fn assert_printed(problem: LinearProblem<'_>, out: &[f64], state: &[f64]) {
    for got in [problem.recurrent(), problem.parallel()] {
        assert_near(&got.out, out, 1.01e-6);
        assert_near(&got.state, state, 1.01e-6);
    }
}

#[test]
fn lightning() {
    assert_printed(canonical(), &[1.0, 2.0, 6.0, -2.0, 3.25, -0.5, -0.6875, -0.125], &[1.125, -0.25, 2.5, 0.0]);
    let got = canonical().backward(&GRAD, None);
    assert_near(&got.dq, &[1.0, 0.0, 1.0, -2.0, 0.75, 3.0, 0.4375, 1.25], 1e-12);
    assert_near(&got.dk, &[0.84375, 0.65625, 2.125, 0.875, -0.875, -1.125, 0.5, -0.5], 1e-12);
    assert_near(&got.dv, &[1.28125, -0.21875, 0.875, 0.875, -0.25, -0.25, 0.0, 0.0], 1e-12);
    assert_near(&got.dslopes, &[-3.03125], 1e-12);
}

#[test]
fn lightning_with_a_state() {
    let problem = LinearProblem { state: Some(&STATE), ..canonical() };
    assert_printed(problem, &[1.5, 3.0, 6.75, -1.0, 3.75, 0.25, -0.75, -0.1875], &[1.1875, -0.125, 2.6875, 0.25]);
    let got = problem.backward(&GRAD, None);
    assert_near(&got.dq, &[1.5, 1.5, 1.5, -1.0, 0.625, 2.875, 0.53125, 1.46875], 1e-12);
    assert_near(&got.dstate, &[0.640_625, -0.109_375, 0.109_375, 0.109_375], 1e-12);
}

#[test]
fn gates() {
    let problem = LinearProblem { decay: LinearDecay::Gates(&[-0.1, -0.5, -0.2, -1.0]), ..canonical() };
    assert_printed(
        problem,
        &[1.0, 2.0, 6.0, -2.0, 5.40897, -0.644291, -0.812241, 0.115998],
        &[1.182684, -0.002512, 2.807165, -0.234509],
    );
    assert_near(&problem.backward(&GRAD, None).dg, &[0.0, -0.359573, 5.889079, -0.348121], 1.01e-6);
}

#[test]
fn no_tokens_leave_the_state_as_it_is() {
    let empty = LinearProblem { tokens: 0, q: &[], k: &[], v: &[], state: Some(&STATE), ..canonical() };
    assert_printed(empty, &[], &STATE);
    assert_eq!(empty.backward(&[], Some(&STATE)).dstate, STATE);
}

/// Two batch entries, three heads, seven tokens, keys of three elements and values of two.
struct Tensors {
    q: Vec<f64>,
    k: Vec<f64>,
    v: Vec<f64>,
    slopes: Vec<f64>,
    gates: Vec<f64>,
    state: Vec<f64>,
}

const ROWS: usize = 2 * 3 * 7;
const STATES: usize = 2 * 3 * 3 * 2;

impl Tensors {
    fn new() -> Self {
        Self {
            q: values(ROWS * 3, 1),
            k: values(ROWS * 3, 2),
            v: values(ROWS * 2, 3),
            slopes: vec![0.0, 0.3, 8.0],
            gates: values(ROWS, 4).into_iter().map(|x| -x.abs()).collect(),
            state: values(STATES, 5),
        }
    }

    fn problem(&self) -> LinearProblem<'_> {
        LinearProblem {
            batch: 2,
            heads: 3,
            tokens: 7,
            key_dim: 3,
            value_dim: 2,
            scale: Some(0.7),
            q: &self.q,
            k: &self.k,
            v: &self.v,
            decay: LinearDecay::Slopes(&self.slopes),
            state: Some(&self.state),
            bounds: None,
        }
    }

    fn gated(&self) -> LinearProblem<'_> {
        LinearProblem { decay: LinearDecay::Gates(&self.gates), ..self.problem() }
    }

    /// The first head of the first entry and the three that follow, as sequences of seven, none and fourteen tokens.
    fn packed(&self) -> LinearProblem<'_> {
        let bounds: &[usize] = &[0, 7, 7, 21];
        LinearProblem { batch: 1, heads: 2, tokens: 21, state: None, bounds: Some(bounds), ..self.gated() }
    }
}

#[test]
fn the_two_forms_agree() {
    let tensors = Tensors::new();
    let packed_state = values(3 * 2 * 3 * 2, 6);
    let problems = [
        tensors.problem(),
        LinearProblem { state: None, scale: None, ..tensors.problem() },
        tensors.gated(),
        tensors.packed(),
        LinearProblem { state: Some(&packed_state), ..tensors.packed() },
    ];
    for problem in problems {
        let (recurrent, parallel) = (problem.recurrent(), problem.parallel());
        assert_near(&recurrent.out, &parallel.out, 1e-12);
        assert_near(&recurrent.state, &parallel.state, 1e-12);
    }
}

#[test]
fn slopes_are_equal_gates() {
    let tensors = Tensors::new();
    let gates: Vec<f64> = (0..ROWS).map(|ix| -tensors.slopes[ix / 7 % 3]).collect();
    let gated = LinearProblem { decay: LinearDecay::Gates(&gates), ..tensors.problem() };
    assert_eq!(gated.recurrent(), tensors.problem().recurrent());
}

#[test]
fn a_sequence_continues_from_its_state() {
    let tensors = Tensors::new();
    let whole = LinearProblem { batch: 1, heads: 1, tokens: 42, state: Some(&tensors.state[..6]), ..tensors.gated() };
    let part = |from: usize, to: usize, state: &[f64]| -> LinearOutput {
        LinearProblem {
            tokens: to - from,
            q: &tensors.q[from * 3..to * 3],
            k: &tensors.k[from * 3..to * 3],
            v: &tensors.v[from * 2..to * 2],
            decay: LinearDecay::Gates(&tensors.gates[from..to]),
            state: Some(state),
            ..whole
        }
        .recurrent()
    };
    let want = whole.recurrent();
    for split in [0, 1, 17, 41, 42] {
        let first = part(0, split, &tensors.state[..6]);
        let second = part(split, 42, &first.state);
        assert_near(&[first.out, second.out].concat(), &want.out, 1e-12);
        assert_near(&second.state, &want.state, 1e-12);
    }
}

#[test]
fn packed_sequences_are_separate_problems() {
    let tensors = Tensors::new();
    let state = values(3 * 6, 6);
    let bounds = [0, 5, 5, 6];
    let base = LinearProblem { batch: 1, heads: 1, tokens: 6, state: Some(&state), ..tensors.gated() };
    let part = |from: usize, to: usize, state| LinearProblem {
        tokens: to - from,
        q: &tensors.q[from * 3..to * 3],
        k: &tensors.k[from * 3..to * 3],
        v: &tensors.v[from * 2..to * 2],
        decay: LinearDecay::Gates(&tensors.gates[from..to]),
        state: Some(state),
        ..base
    };
    let together = LinearProblem { bounds: Some(&bounds), ..part(0, 6, &state) }.recurrent();
    for n in 0..3 {
        let alone = part(bounds[n], bounds[n + 1], &state[n * 6..][..6]).recurrent();
        assert_near(&together.out[bounds[n] * 2..bounds[n + 1] * 2], &alone.out, 0.0);
        assert_near(&together.state[n * 6..][..6], &alone.state, 0.0);
    }
}

/// The loss whose gradients `backward` gives.
fn loss(problem: LinearProblem<'_>, grad_out: &[f64], grad_state: &[f64]) -> f64 {
    let output = problem.parallel();
    let pairs = output.out.iter().zip(grad_out).chain(output.state.iter().zip(grad_state));
    pairs.map(|(x, y)| x * y).sum()
}

#[track_caller]
fn check_gradients(problem: LinearProblem<'_>) {
    let n_states = problem.bounds.map_or(problem.batch, |bounds| bounds.len() - 1) * problem.heads * 6;
    let (grad_out, grad_state) = (values(problem.v.len(), 7), values(n_states, 8));
    let zeros = vec![0.0; n_states];
    let loss = |problem: LinearProblem<'_>| loss(problem, &grad_out, &grad_state);
    let got = problem.backward(&grad_out, Some(&grad_state));
    check_gradient(&got.dq, problem.q, |q| loss(LinearProblem { q, ..problem }));
    check_gradient(&got.dk, problem.k, |k| loss(LinearProblem { k, ..problem }));
    check_gradient(&got.dv, problem.v, |v| loss(LinearProblem { v, ..problem }));
    let state = problem.state.unwrap_or(&zeros);
    check_gradient(&got.dstate, state, |state| loss(LinearProblem { state: Some(state), ..problem }));
    match problem.decay {
        LinearDecay::Slopes(slopes) => check_gradient(&got.dslopes, slopes, |slopes| {
            loss(LinearProblem { decay: LinearDecay::Slopes(slopes), ..problem })
        }),
        LinearDecay::Gates(gates) => {
            check_gradient(&got.dg, gates, |gates| loss(LinearProblem { decay: LinearDecay::Gates(gates), ..problem }))
        }
    }
}

#[test]
fn gradients_are_those_of_finite_differences() {
    let tensors = Tensors::new();
    check_gradients(tensors.problem());
    check_gradients(tensors.gated());
    check_gradients(LinearProblem { state: None, scale: None, ..tensors.gated() });
    check_gradients(tensors.packed());
}

#[test]
fn gradients_go_on_to_the_part_before() {
    let tensors = Tensors::new();
    let problem = LinearProblem { batch: 1, heads: 1, tokens: 42, state: None, ..tensors.gated() };
    let grad_out = values(42 * 2, 7);
    let want = problem.backward(&grad_out, None);
    let first = LinearProblem {
        tokens: 20,
        q: &tensors.q[..60],
        k: &tensors.k[..60],
        v: &tensors.v[..40],
        decay: LinearDecay::Gates(&tensors.gates[..20]),
        ..problem
    };
    let state = first.recurrent().state;
    let second = LinearProblem {
        tokens: 22,
        q: &tensors.q[60..],
        k: &tensors.k[60..],
        v: &tensors.v[40..],
        decay: LinearDecay::Gates(&tensors.gates[20..]),
        state: Some(&state),
        ..problem
    };
    let second = second.backward(&grad_out[40..], None);
    let first = first.backward(&grad_out[..40], Some(&second.dstate));
    assert_near(&[first.dk, second.dk].concat(), &want.dk, 1e-12);
    assert_near(&[first.dg, second.dg].concat(), &want.dg, 1e-12);
}
