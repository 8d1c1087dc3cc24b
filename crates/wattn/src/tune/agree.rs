//! Whether results agree.

use wattn_scheduler::shaders::Storage;

use crate::host::{Results, Written};

/// An element may be off by this many times the tolerance times the largest: as far as tests allow, which is not twice that.
const ELEMENT_FACTOR: f64 = 32.0;

/// For the norm of a result that must be zero.
const ZERO: f64 = 1e-6;

/// Whether results are those that are expected, as far as two right kernels agree; or the first that is not.
pub(super) fn agree(got: &Results, expected: &Results, written: &[&Written]) -> Result<(), String> {
    written.iter().try_for_each(|output| {
        let name = output.argument();
        compare(output.storage(), got.get(name), expected.get(name)).map_err(|why| format!("{name}: {why}"))
    })
}

fn compare(storage: Storage, got: &[f32], expected: &[f32]) -> Result<(), String> {
    if got.len() != expected.len() {
        return Err(format!("{} elements instead of {}", got.len(), expected.len()));
    }
    let (mut difference, mut norm) = (0.0, 0.0);
    let (mut worst, mut largest) = ((0, 0.0), 0.0_f64);
    for (ix, (&x, &want)) in got.iter().zip(expected).enumerate() {
        // Rows that see no key have a log-sum-exp of -inf.
        if [x, want] == [f32::NEG_INFINITY; 2] {
            continue;
        }
        if !x.is_finite() || !want.is_finite() {
            return Err(format!("element {ix} is {x} instead of {want}"));
        }
        let (off, want) = ((f64::from(x) - f64::from(want)).abs(), f64::from(want));
        difference += off.powi(2);
        norm += want.powi(2);
        largest = largest.max(want.abs());
        if off > worst.1 {
            worst = (ix, off);
        }
    }
    if norm == 0.0 {
        let norm = difference.sqrt();
        return if norm > ZERO { Err(format!("off by {norm:.1e}, more than {ZERO:.1e}, from zero")) } else { Ok(()) };
    }
    // Twice what tests allow a kernel, since both may be off.
    let tolerance = match storage {
        Storage::F32 | Storage::Int8 => 1e-5,
        Storage::F16 => 2e-3,
        Storage::Bf16 => 1.6e-2,
    };
    let ratio = (difference / norm).sqrt();
    if ratio > tolerance {
        return Err(format!("off by {ratio:.1e} of its norm, more than {tolerance:.1e}"));
    }
    let ((ix, worst), allowed) = (worst, ELEMENT_FACTOR * tolerance * largest);
    if worst > allowed {
        return Err(format!("element {ix} is off by {worst:.1e}, more than {allowed:.1e}"));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tune::sample::numbers;

    #[track_caller]
    fn assert_wrong(storage: Storage, got: &[f32], expected: &[f32], needle: &str) {
        let why = compare(storage, got, expected).unwrap_err();
        assert!(why.contains(needle), "{why}");
    }

    #[test]
    fn norms_and_elements_are_compared() {
        let want = numbers(&[1_000_000], 1);
        let off = |by: f32| want.iter().map(|x| x * (1.0 + by)).collect::<Vec<_>>();
        compare(Storage::F32, &off(8e-6), &want).unwrap();
        assert_wrong(Storage::F32, &off(2e-5), &want, "of its norm");
        assert_wrong(Storage::F32, &want[1..], &want, "999999 elements");
        // Among so many that the norm does not notice.
        let mut got = want.clone();
        got[640..704].fill(0.0);
        assert_wrong(Storage::Bf16, &got, &want, "is off by");
    }

    #[test]
    fn only_negative_infinity_is_expected_beside_numbers() {
        compare(Storage::F32, &[1.0, f32::NEG_INFINITY], &[1.0, f32::NEG_INFINITY]).unwrap();
        for x in [f32::INFINITY, f32::NAN] {
            assert_wrong(Storage::F32, &[1.0, x], &[1.0, x], "element 1 is");
        }
        assert_wrong(Storage::F32, &[f32::MIN], &[f32::NEG_INFINITY], "instead of -inf");
        assert_wrong(Storage::F32, &[f32::NEG_INFINITY], &[1.0], "element 0 is -inf");
    }

    #[test]
    fn zeros_have_an_absolute_tolerance() {
        compare(Storage::F32, &[1e-7; 4], &[0.0; 4]).unwrap();
        assert_wrong(Storage::Bf16, &[0.0, 1e-5], &[0.0; 2], "from zero");
        compare(Storage::F32, &[], &[]).unwrap();
    }
}
