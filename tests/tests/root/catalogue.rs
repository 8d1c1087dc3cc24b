//! Every problem of the catalogue, by every variant, against the oracle.

use std::sync::{Arc, OnceLock};

use anyhow::{Result, ensure};
use libtest_mimic::Trial;
use wattn::Kernel;
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
            let (shared, name) = (Arc::clone(case), &case.case.name);
            trials.push(match variant.refusal(&gpu.engine, &case.case) {
                Ok(Some(_)) => refused(gpu, variant, name, move |gpu| refusal_stands(gpu, &shared.case, variant)),
                _ => gpu.trial_by(variant, name, move |gpu, variant| check(gpu, &shared, variant)),
            });
        }
    }
    trials
}

/// A trial that shows as ignored, with the reason in its kind.
pub(crate) fn refused(
    gpu: &Arc<Gpu>,
    variant: Variant,
    name: &str,
    run: impl FnOnce(&Gpu) -> Result<()> + Send + 'static,
) -> Trial {
    gpu.trial_by(variant, name, move |gpu, _| run(gpu)).with_kind("cannot serve").with_ignored_flag(true)
}

/// What runs where ignored trials are asked for.
pub(crate) fn refusal_stands(gpu: &Gpu, case: &SoftmaxCase, variant: Variant) -> Result<()> {
    ensure!(variant.refusal(&gpu.engine, case)?.is_some(), "{variant} serves after all");
    Ok(())
}

fn check(gpu: &Gpu, case: &Case, variant: Variant) -> Result<()> {
    let reference = case.reference.get_or_init(|| case.case.reference(rows(&case.case)));
    let (_, comparisons) = judge(&gpu.engine, &case.case, Some(variant), reference)?;
    comparisons.iter().try_for_each(|comparison| gpu.check(comparison))
}
