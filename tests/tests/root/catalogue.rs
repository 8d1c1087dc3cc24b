//! Every problem of the catalogue, by every variant, against the oracle.

use std::sync::{Arc, OnceLock};

use anyhow::Result;
use libtest_mimic::Trial;
use wattn::{Capabilities, Kernel};
use wattn_cases::{Reference, SoftmaxCase, catalogue};
use wattn_tests::{Variant, judge, rows};

use crate::gpu::Gpu;

/// A case whose reference is calculated once, for all variants and devices.
pub(crate) struct Case {
    case: SoftmaxCase,
    /// The only kernel that runs it, where it is the catalogue's rounded to what that kernel takes.
    only: Option<Kernel>,
    reference: OnceLock<Reference>,
}

pub(crate) fn cases() -> Vec<Arc<Case>> {
    let with_reference = |case, only| Arc::new(Case { case, only, reference: OnceLock::new() });
    let all = catalogue().into_iter().map(|recipe| recipe.build()).flat_map(|case| {
        let half = case.in_f16().map(|half| with_reference(half, Some(Kernel::Matrix)));
        [Some(with_reference(case, None)), half]
    });
    all.flatten().collect()
}

pub(crate) fn trials(gpu: &Arc<Gpu>, cases: &[Arc<Case>]) -> Vec<Trial> {
    let mut trials = Vec::new();
    for case in cases {
        let variants = match case.only {
            Some(kernel) => vec![kernel.into()],
            None => gpu.variants_of(&case.case),
        };
        for variant in variants {
            let (tried, shared) = (Arc::clone(case), Arc::clone(case));
            let refusal = move |variant: Variant, device: &Capabilities| variant.refusal(device, &tried.case);
            trials.push(
                gpu.trial_by(variant, &case.case.name, refusal, move |gpu, variant| check(gpu, &shared, variant)),
            );
        }
    }
    trials
}

fn check(gpu: &Gpu, case: &Case, variant: Variant) -> Result<()> {
    let reference = case.reference.get_or_init(|| case.case.reference(rows(&case.case)));
    let (_, comparisons) = judge(&gpu.engine, &case.case, Some(variant), reference)?;
    comparisons.iter().try_for_each(|comparison| gpu.check(comparison))
}
