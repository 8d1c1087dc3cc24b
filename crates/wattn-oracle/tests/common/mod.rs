//! What several tests need.

#![allow(dead_code, reason = "each test takes some of it")]

#[track_caller]
pub(crate) fn assert_near(got: &[f64], want: &[f64], tolerance: f64) {
    assert_eq!(got.len(), want.len());
    for (n, (g, w)) in got.iter().zip(want).enumerate() {
        assert!(g == w || (g - w).abs() <= tolerance, "element {n}: {g} instead of {w}");
    }
}

/// Values in -1..1 that repeat late enough.
pub(crate) fn values(n: usize, seed: usize) -> Vec<f64> {
    (0..n).map(|x| ((x * x + 7 * x + 13 * seed) as f64 * 0.37).sin()).collect()
}

/// Compares a gradient with central differences of the loss, one element at a time.
#[track_caller]
pub(crate) fn check_gradient(got: &[f64], at: &[f64], loss: impl Fn(&[f64]) -> f64) {
    const STEP: f64 = 1e-5;
    let mut moved = at.to_vec();
    let differences: Vec<f64> = (0..at.len())
        .map(|n| {
            moved[n] = at[n] + STEP;
            let above = loss(&moved);
            moved[n] = at[n] - STEP;
            let below = loss(&moved);
            moved[n] = at[n];
            (above - below) / (2.0 * STEP)
        })
        .collect();
    let size = differences.iter().fold(1.0, |size: f64, x| size.max(x.abs()));
    assert_near(got, &differences, 1e-8 * size);
}
