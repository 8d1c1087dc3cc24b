//! Whether a result is right.

use crate::{Reference, SoftmaxCase, Storage};

/// An element may be off by this many times the tolerance times the largest expected magnitude.
const ELEMENT_FACTOR: f64 = 64.0;
/// Rounding of a logit in f32 moves its weight by this share, per unit of the logit.
const PER_LOGIT: f64 = 1.2e-7;
/// A sum over more terms than this may be less exact, with the square root of their number.
const TERMS: f64 = 4096.0;
/// No tolerance is derived beyond this, however large the logits are: of all zeros the ratio is 1.
const MOST: f64 = 0.05;
/// For the norm of a result that must be zero.
const ZERO: f64 = 1e-6;

/// What the tolerance of one output depends on.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Rules {
    /// Elements that the output has; those that are looked at may be fewer.
    pub elements: usize,
    /// How the output is stored.
    pub storage: Storage,
    /// Largest magnitude of a logit.
    pub largest_logit: f64,
    /// Terms of the longest sum.
    pub terms: usize,
    /// Replaces everything that is derived from the above.
    pub rms_tolerance: Option<f64>,
}

impl Rules {
    fn tolerance(&self) -> f64 {
        let storage = match self.storage {
            Storage::F32 => 5e-6,
            Storage::F16 => 1e-3,
            Storage::Bf16 => 8e-3,
        };
        let terms = (self.terms as f64 / TERMS).max(1.0).sqrt();
        self.rms_tolerance.unwrap_or(((storage + PER_LOGIT * self.largest_logit) * terms).min(MOST))
    }
}

/// How far a result is from what it must be.
#[derive(Clone, Debug, PartialEq)]
#[must_use = "a comparison that nobody looks at is no check"]
pub struct Comparison {
    /// The output.
    pub output: String,
    /// Largest error of a finite element.
    pub max_abs: f64,
    /// `norm(got - want) / norm(want)` over the finite elements; `norm(got)` where all of `want` is zero.
    pub rms_ratio: f64,
    /// The largest `rms_ratio` that passes.
    pub tolerance: f64,
    /// How many elements were compared.
    pub elements: usize,
    /// The verdict.
    pub pass: bool,
    /// Why it does not pass.
    pub error: Option<String>,
}

/// Compares elements of an output with pairs of element index and expected value.
///
/// Negative infinity must come out as such, and so must every number: NaN fails, and so does an element that is
/// missing. It fails too if there is nothing to compare, unless the output has no elements.
pub fn compare(output: &str, got: &[f32], want: &[(usize, f64)], rules: &Rules) -> Comparison {
    let mut error = None;
    let mut fail = |message: String| {
        error.get_or_insert(message);
    };
    if got.len() != rules.elements {
        fail(format!("{} elements instead of {}", got.len(), rules.elements));
    } else if want.is_empty() && rules.elements > 0 {
        fail("nothing was compared".into());
    }

    let (mut difference, mut norm) = (0.0, 0.0);
    let (mut max_abs, mut worst, mut largest) = (0.0_f64, 0, 0.0_f64);
    let mut elements = 0;
    for &(ix, w) in want {
        let Some(&g) = got.get(ix) else {
            fail(format!("element {ix} is missing"));
            continue;
        };
        elements += 1;
        let g = f64::from(g);
        if w.is_finite() && g.is_finite() {
            difference += (g - w) * (g - w);
            norm += w * w;
            largest = largest.max(w.abs());
            if (g - w).abs() > max_abs {
                (max_abs, worst) = ((g - w).abs(), ix);
            }
        } else if g != w || w != f64::NEG_INFINITY {
            fail(format!("element {ix} is {g} instead of {w}"));
        }
    }

    let all_zero = norm == 0.0;
    let tolerance = if all_zero { ZERO } else { rules.tolerance() };
    let rms_ratio = if all_zero { difference.sqrt() } else { (difference / norm).sqrt() };
    if rms_ratio.is_nan() || rms_ratio > tolerance {
        fail(format!("rms_ratio {rms_ratio:.2e} is above {tolerance:.2e}"));
    }
    let max_allowed = ELEMENT_FACTOR * tolerance * largest;
    if !all_zero && max_abs > max_allowed {
        fail(format!("element {worst} is off by {max_abs:.2e}, more than {max_allowed:.2e}"));
    }
    Comparison { output: output.into(), max_abs, rms_ratio, tolerance, elements, pass: error.is_none(), error }
}

impl SoftmaxCase {
    /// How an output is judged; `reference` tells the size of the logits.
    ///
    /// # Panics
    /// If there is no such output.
    pub fn rules(&self, output: &str, reference: &Reference) -> Rules {
        let largest_logit = reference.largest_logit;
        let (shape, storage) = self.output(output).unwrap_or_else(|| panic!("{} has no `{output}`", self.name));
        let dims = self.dims();
        let repeated = |axis: usize, of: usize| of / self.bias.as_ref().map_or(of, |bias| bias.shape[axis].max(1));
        let terms = match output {
            "dk" | "dv" => dims.queries * dims.heads / dims.kv_heads,
            "dbias" => repeated(0, dims.batch) * repeated(1, dims.heads),
            "dsinks" => dims.batch * dims.queries,
            "dalibi_slopes" => dims.batch * dims.queries * dims.keys,
            _ => dims.keys,
        };
        // The backward pass reads the output of the forward pass, as exact as that is stored.
        let storage = match output {
            "dk" | "dv" | "dbias" | "dsinks" | "dalibi_slopes" => storage.coarser(self.q.storage),
            _ => storage,
        };
        Rules { elements: shape.iter().product(), storage, largest_logit, terms, rms_tolerance: self.rms_tolerance }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rules(elements: usize) -> Rules {
        let (storage, largest_logit) = (Storage::F32, 1.0);
        Rules { elements, storage, largest_logit, terms: 64, rms_tolerance: None }
    }

    /// Expected values 1, 2, 3 ... and the same as a result.
    fn sample(n: usize) -> (Vec<f32>, Vec<(usize, f64)>) {
        let want: Vec<_> = (0..n).map(|ix| (ix, (ix + 1) as f64)).collect();
        (want.iter().map(|&(_, w)| w as f32).collect(), want)
    }

    #[track_caller]
    fn assert_fails(got: &[f32], want: &[(usize, f64)], rules: &Rules, message: &str) {
        let comparison = compare("out", got, want, rules);
        assert!(!comparison.pass);
        assert!(comparison.error.as_ref().unwrap().contains(message), "{comparison:?}");
    }

    #[test]
    fn equal_passes() {
        let (got, want) = sample(100);
        let comparison = compare("out", &got, &want, &rules(100));
        assert!(comparison.pass && comparison.elements == 100 && comparison.rms_ratio == 0.0);
        let some = compare("out", &got, &want[40..50], &rules(100));
        assert!(some.pass && some.elements == 10);
    }

    #[test]
    fn one_wrong_element_fails() {
        let (mut got, want) = sample(100);
        got[17] *= 1.01;
        assert_fails(&got, &want, &rules(100), "rms_ratio");
        // Among so many that the norm does not notice.
        let (mut got, want) = sample(1_000_000);
        got[0] += 400.0;
        let comparison = compare("out", &got, &want, &rules(1_000_000));
        assert!(comparison.rms_ratio < comparison.tolerance);
        assert_fails(&got, &want, &rules(1_000_000), "element 0 is off");
    }

    #[test]
    fn not_a_number_fails() {
        let (mut got, want) = sample(100);
        got[3] = f32::NAN;
        assert_fails(&got, &want, &rules(100), "element 3 is NaN");
        got[3] = f32::INFINITY;
        assert_fails(&got, &want, &rules(100), "element 3 is inf");
        let (got, mut want) = sample(100);
        want[5].1 = f64::NAN;
        assert_fails(&got, &want, &rules(100), "instead of NaN");
    }

    #[test]
    fn negative_infinity_must_be_exact() {
        let (mut got, mut want) = sample(4);
        want[2].1 = f64::NEG_INFINITY;
        assert_fails(&got, &want, &rules(4), "instead of -inf");
        got[2] = f32::MIN;
        assert_fails(&got, &want, &rules(4), "instead of -inf");
        got[2] = f32::NEG_INFINITY;
        assert!(compare("lse", &got, &want, &rules(4)).pass);
        got[1] = f32::NEG_INFINITY;
        assert_fails(&got, &want, &rules(4), "element 1 is -inf");
        let nothing = [(0, f64::NEG_INFINITY)];
        assert!(compare("lse", &[f32::NEG_INFINITY], &nothing, &rules(1)).pass);
    }

    #[test]
    fn nothing_compared_fails() {
        let (got, want) = sample(4);
        assert_fails(&got, &[], &rules(4), "nothing was compared");
        assert_fails(&[], &[], &rules(4), "0 elements instead of 4");
        assert_fails(&got[..3], &want, &rules(4), "3 elements instead of 4");
        assert_fails(&got, &[(4, 0.0)], &rules(4), "element 4 is missing");
        assert!(compare("out", &[], &[], &rules(0)).pass);
    }

    #[test]
    fn zeros_have_an_absolute_tolerance() {
        let want: Vec<_> = (0..4).map(|ix| (ix, 0.0)).collect();
        assert!(compare("out", &[1e-7; 4], &want, &rules(4)).pass);
        assert_fails(&[0.0, 0.0, 1e-5, 0.0], &want, &rules(4), "rms_ratio");
    }

    #[test]
    fn the_tolerance_follows_storage_logits_and_terms() {
        let near = |rules: Rules, want: f64| {
            let got = rules.tolerance();
            assert!((got / want - 1.0).abs() < 1e-12, "{got} instead of {want}");
        };
        let base = Rules { largest_logit: 0.0, ..rules(1) };
        near(base, 5e-6);
        near(Rules { storage: Storage::F16, ..base }, 1e-3);
        near(Rules { storage: Storage::Bf16, ..base }, 8e-3);
        near(Rules { largest_logit: 100.0, ..base }, 1.7e-5);
        near(Rules { terms: 4 * 4096, ..base }, 1e-5);
        near(Rules { largest_logit: 1e7, ..base }, 0.05);
        near(Rules { terms: 4 * 4096, largest_logit: 9.0, rms_tolerance: Some(0.1), ..base }, 0.1);
    }
}
