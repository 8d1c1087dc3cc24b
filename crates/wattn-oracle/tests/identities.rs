//! Identities between problems that must have the same result.

use wattn_oracle::{Broadcast, Causal, Output, PackedLengths, SoftmaxProblem};

const BOTTOM_RIGHT: Option<Causal> = Some(Causal::BottomRight);
const TOP_LEFT: Option<Causal> = Some(Causal::TopLeft);
const EMPTY: f64 = f64::NEG_INFINITY;

#[track_caller]
fn assert_near(got: &[f64], want: &[f64], tolerance: f64) {
    assert_eq!(got.len(), want.len());
    for (n, (g, w)) in got.iter().zip(want).enumerate() {
        assert!(g == w || (g - w).abs() <= tolerance, "element {n}: {g} instead of {w}");
    }
}

#[track_caller]
fn assert_same(got: &Output, want: &Output) {
    assert!(!want.out.is_empty());
    assert_near(&got.out, &want.out, 1e-12);
    assert_near(&got.lse, &want.lse, 1e-12);
}

/// Values in -1..1 that repeat late enough.
fn values(n: usize, seed: usize) -> Vec<f64> {
    (0..n).map(|x| ((x * x + 7 * x + 13 * seed) as f64 * 0.37).sin()).collect()
}

/// Two batch entries, four heads on two, five queries, seven keys.
struct Tensors {
    q: Vec<f64>,
    k: Vec<f64>,
    v: Vec<f64>,
}

impl Tensors {
    fn new() -> Self {
        let [q, k, v] = [2 * 4 * 5 * 3, 2 * 2 * 7 * 3, 2 * 2 * 7 * 4];
        Self { q: values(q, 1), k: values(k, 2), v: values(v, 3) }
    }

    fn problem(&self) -> SoftmaxProblem<'_> {
        SoftmaxProblem {
            batch: 2,
            heads: 4,
            kv_heads: 2,
            queries: 5,
            keys: 7,
            head_dim: 3,
            value_dim: 4,
            q: &self.q,
            k: &self.k,
            v: &self.v,
            ..SoftmaxProblem::default()
        }
    }
}

#[test]
fn causal_limits_agree() {
    let tensors = Tensors::new();
    let bottom_right = SoftmaxProblem { causal: BOTTOM_RIGHT, ..tensors.problem() };
    let want = bottom_right.flash_forward();
    let offset = SoftmaxProblem { causal: TOP_LEFT, causal_offsets: Some(&[2, 2]), ..tensors.problem() };
    assert_same(&offset.flash_forward(), &want);
    let window = SoftmaxProblem { window: (None, Some(0)), ..tensors.problem() };
    assert_same(&window.flash_forward(), &want);
    let huge = SoftmaxProblem { window: (Some(usize::MAX), Some(usize::MAX)), ..bottom_right };
    assert_same(&huge.flash_forward(), &want);
    let negative = SoftmaxProblem { causal_offsets: Some(&[-5, -4]), ..offset }.flash_forward();
    assert!(negative.lse[..4 * 5].iter().all(|&lse| lse == EMPTY));
    assert_eq!(negative.lse[20..].iter().filter(|lse| lse.is_finite()).count(), 4);
}

#[test]
fn a_window_centres_on_the_aligned_key() {
    let tensors = Tensors::new();
    let problem = SoftmaxProblem { window: (Some(0), Some(0)), ..tensors.problem() };
    let got = problem.flash_forward();
    let aligned_keys_of_first_head = &tensors.v[2 * 4..7 * 4];
    assert_near(&got.out[..5 * 4], aligned_keys_of_first_head, 1e-15);
}

#[test]
fn key_lengths_shorten_the_sequence() {
    let tensors = Tensors::new();
    let options = |problem| SoftmaxProblem {
        causal: BOTTOM_RIGHT,
        window: (Some(3), None),
        alibi_slopes: Some(&[0.5, 0.25, 0.125, 0.0625]),
        ..problem
    };
    let got = options(SoftmaxProblem { kv_lens: Some(&[0, 6]), ..tensors.problem() });
    let got = got.flash_forward();
    assert_near(&got.lse[..20], &[EMPTY; 20], 0.0);

    let cut = |t: &[f64], dim: usize| [&t[14 * dim..20 * dim], &t[21 * dim..27 * dim]].concat();
    let (k, v) = (cut(&tensors.k, 3), cut(&tensors.v, 4));
    let alone = SoftmaxProblem { batch: 1, keys: 6, q: &tensors.q[60..], k: &k, v: &v, ..tensors.problem() };
    let want = options(alone).flash_forward();
    assert_near(&got.out[80..], &want.out, 1e-12);
    assert_near(&got.lse[20..], &want.lse, 1e-12);

    let causal = SoftmaxProblem { causal: BOTTOM_RIGHT, ..tensors.problem() };
    let clamped = SoftmaxProblem { kv_lens: Some(&[7, 99]), ..causal };
    assert_same(&clamped.flash_forward(), &causal.flash_forward());
}

#[test]
fn packed_sequences_are_separate_problems() {
    let tensors = Tensors::new();
    let (q, k, v) = (&tensors.q[..30], &tensors.k[..42], &tensors.v[..56]);
    let options = |problem| SoftmaxProblem { causal: BOTTOM_RIGHT, alibi_slopes: Some(&[0.5]), ..problem };
    let base = SoftmaxProblem { batch: 1, heads: 1, kv_heads: 1, ..tensors.problem() };
    let lengths = PackedLengths { q: &[0, 0, 6, 8, 10], k: &[0, 3, 7, 7, 14] };
    let together = options(SoftmaxProblem { queries: 10, keys: 14, q, k, v, packed: Some(lengths), ..base });
    let got = together.flash_forward();
    for n in 0..4 {
        let [q0, q1, k0, k1] = [lengths.q[n], lengths.q[n + 1], lengths.k[n], lengths.k[n + 1]];
        let alone = options(SoftmaxProblem {
            queries: q1 - q0,
            keys: k1 - k0,
            q: &q[q0 * 3..q1 * 3],
            k: &k[k0 * 3..k1 * 3],
            v: &v[k0 * 4..k1 * 4],
            ..base
        });
        let want = alone.flash_forward();
        assert_near(&got.out[q0 * 4..q1 * 4], &want.out, 1e-12);
        assert_near(&got.lse[q0..q1], &want.lse, 1e-12);
    }
}

#[test]
fn grouped_heads_read_consecutive_heads() {
    let tensors = Tensors::new();
    let repeat =
        |t: &[f64], row: usize| -> Vec<f64> { t.chunks(7 * row).flat_map(|head| [head, head].concat()).collect() };
    let (k, v) = (repeat(&tensors.k, 3), repeat(&tensors.v, 4));
    let repeated = SoftmaxProblem { kv_heads: 4, k: &k, v: &v, ..tensors.problem() };
    assert_same(&tensors.problem().flash_forward(), &repeated.flash_forward());
}

fn spread<T>(values: &[T], shape: [usize; 4]) -> Option<Broadcast<'_, T>> {
    Some(Broadcast { values, shape })
}

#[test]
fn masks_hide_keys_and_broadcast() {
    let tensors = Tensors::new();
    let hidden = |i: usize, j: usize| j == 3 || i == 2 || i + j == 4;
    let mask: Vec<bool> = (0..35).map(|x| !hidden(x / 7, x % 7)).collect();
    let bias: Vec<f64> = mask.iter().map(|&seen| if seen { 0.0 } else { EMPTY }).collect();
    let full_mask = mask.repeat(8);

    let mut problem = tensors.problem();
    problem.mask = spread(&mask, [1, 1, 5, 7]);
    let want = problem.flash_forward();
    assert_eq!(want.lse[2], EMPTY);
    problem.mask = spread(&full_mask, [2, 4, 5, 7]);
    assert_same(&problem.flash_forward(), &want);
    problem.mask = None;
    problem.bias = spread(&bias, [1, 1, 5, 7]);
    assert_same(&problem.flash_forward(), &want);
}

#[test]
fn a_bias_that_is_constant_along_a_row_only_moves_lse() {
    let tensors = Tensors::new();
    let plain = tensors.problem().flash_forward();
    let values: Vec<f64> = (0..4).flat_map(|n| [f64::from(n); 35]).collect();
    let mut problem = tensors.problem();

    problem.bias = spread(&values, [1, 4, 5, 7]);
    let mut want = plain.clone();
    for (row, lse) in want.lse.iter_mut().enumerate() {
        *lse += (row / 5 % 4) as f64;
    }
    assert_same(&problem.flash_forward(), &want);

    problem.bias = spread(&values[..70], [2, 1, 5, 7]);
    let mut want = plain;
    for (row, lse) in want.lse.iter_mut().enumerate() {
        *lse += (row / 20) as f64;
    }
    assert_same(&problem.flash_forward(), &want);
}

#[test]
fn hidden_keys_are_never_read() {
    let mut tensors = Tensors::new();
    let mask: Vec<bool> = (0..35).map(|x| x % 7 != 3).collect();
    let result = |tensors: &Tensors| {
        let mut problem = tensors.problem();
        problem.mask = spread(&mask, [1, 1, 5, 7]);
        problem.kv_lens = Some(&[6, 6]);
        problem.flash_forward()
    };
    let want = result(&tensors);
    for head in 0..4 {
        for j in [3, 6] {
            tensors.k[(head * 7 + j) * 3..][..3].fill(f64::NAN);
            tensors.v[(head * 7 + j) * 4..][..4].fill(f64::INFINITY);
        }
    }
    assert_same(&result(&tensors), &want);
}
