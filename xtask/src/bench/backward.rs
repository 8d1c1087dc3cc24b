//! The backward pass of softmax attention: its kernels, checked before they are timed.

use std::time::Instant;

use anyhow::{Result, bail, ensure};
use wattn::Engine;
use wattn_cases::{Recipe, Reference, Rows, SoftmaxCase};
use wattn_tests::{BackwardRun, Loaded, Variant, attention, attention_backward, extent};

use super::clock::{Clock, Sample};
use super::contest::REDUCED;
use super::row::Figures;

/// A case with what must come out of it, in full and reduced.
pub(crate) struct Subject {
    full: (SoftmaxCase, Reference),
    reduced: (SoftmaxCase, Reference),
}

impl Subject {
    pub(crate) fn new(recipe: &Recipe) -> Self {
        let with_reference = |case: SoftmaxCase| {
            let reference = case.reference(Rows::All);
            (case, reference)
        };
        Self { full: with_reference(recipe.build()), reduced: with_reference(recipe.reduced(REDUCED).build()) }
    }
}

/// A backward pass whose results were right, ready to run.
pub(crate) struct Contestant<'a> {
    pub(crate) run: BackwardRun<'a>,
    /// The first call of the checks, seconds: includes compiling what this run has not compiled before.
    first: f64,
}

impl<'a> Contestant<'a> {
    /// Checks what comes out, on the reduced problem and on the full one.
    pub(crate) fn new(engine: &Engine, subject: &'a Subject, variant: Option<Variant>) -> Result<Self> {
        let (_, first) = checked(engine, &subject.reduced, variant)?;
        let (run, _) = checked(engine, &subject.full, variant)?;
        Ok(Self { run, first })
    }

    pub(crate) fn sample(&self, clock: &Clock, count: u32) -> Result<Sample> {
        let (plan, operands) = (self.run.plan(), self.run.operands());
        if plan.slices() > 1 {
            return clock.slices(plan.slices(), |encoder, slice| Ok(plan.encode_slice(encoder, &operands, slice)?));
        }
        let sample = clock.pass(|pass| {
            for _ in 0..count {
                plan.encode_in_pass(pass, &operands)?;
            }
            Ok(())
        });
        Ok(sample?.of(count))
    }

    #[expect(clippy::cast_precision_loss, reason = "counts of operations, for rates")]
    pub(crate) fn figures(&self) -> Figures {
        let plan = self.run.plan().details();
        Figures {
            kernel: plan.kernel.name(),
            tile: [plan.shape().tile_queries(), plan.shape().tile_keys()],
            flops: plan.flops as f64,
            bytes: plan.bytes as f64,
            workspace_bytes: plan.workspace_bytes,
            predicted: plan.estimate.seconds,
            first: self.first,
        }
    }
}

/// The kernel that a case is planned with.
pub(crate) fn kernel(engine: &Engine, subject: &Subject, variant: Option<Variant>) -> Result<&'static str> {
    let (case, _) = &subject.full;
    Ok(engine.plan(&attention_backward(case, variant, &[])?, extent(case)?)?.details().kernel.name())
}

fn checked<'a>(
    engine: &Engine,
    (case, reference): &'a (SoftmaxCase, Reference),
    variant: Option<Variant>,
) -> Result<(BackwardRun<'a>, f64)> {
    let forward = engine.plan(&attention(case)?, extent(case)?)?;
    let loaded = Loaded::new(engine, case);
    loaded.run(engine, &forward)?;
    let run = BackwardRun::new(engine, loaded, variant, reference)?;
    let started = Instant::now();
    run.submit()?;
    let comparisons = run.compare(reference)?;
    let seconds = started.elapsed().as_secs_f64();
    ensure!(!comparisons.is_empty(), "nothing was compared");
    if let Some(wrong) = comparisons.into_iter().find(|comparison| !comparison.pass) {
        bail!("{} is wrong: {}", wrong.output, wrong.error.unwrap_or_default());
    }
    Ok((run, seconds))
}
