//! BASED's linear attention: its kernels, checked before they are timed.

use std::time::Instant;

use anyhow::{Context, Result, bail, ensure};
use wattn::{Based, Engine};
use wattn_cases::{BasedCase, BasedRecipe, References};
use wattn_shaders::Key;
use wattn_tests::{Variant, based, based_backward, based_tokens, judge_based};

use super::contest::REDUCED;
use super::planned::Planned;
use super::row::Figures;

/// A case with what must come out of it, in full and reduced.
pub(crate) struct Subject {
    full: (BasedCase, References),
    reduced: (BasedCase, References),
}

impl Subject {
    /// The forward pass of a recipe, or where a gradient comes in the backward pass.
    pub(crate) fn new(recipe: &BasedRecipe) -> Self {
        let with_reference = |case: BasedCase| {
            let reference = case.reference();
            (case, reference)
        };
        let reduced = BasedRecipe { tokens: recipe.tokens.min(REDUCED), ..*recipe };
        Self { full: with_reference(recipe.build()), reduced: with_reference(reduced.build()) }
    }
}

impl Subject {
    /// What is timed, with this forced.
    fn operator(&self, variant: Option<Variant>) -> Result<(&BasedCase, Based)> {
        let (case, _) = &self.full;
        let operator = if case.has_backward() { based_backward(case)? } else { based(case)? };
        Ok((case, variant.map_or(operator.clone(), |variant| variant.force_based(operator))))
    }

    /// The kernel that it is planned with.
    pub(crate) fn kernel(&self, engine: &Engine, variant: Option<Variant>) -> Result<&'static str> {
        let (case, operator) = self.operator(variant)?;
        Ok(engine.plan(&operator, based_tokens(case)?)?.details().kernel.name())
    }
}

/// A pass whose results were right, ready to run.
pub(crate) struct Contestant {
    pub(crate) planned: Planned,
    /// The first call of the checks, seconds: includes compiling what this run has not compiled before.
    first: f64,
}

impl Contestant {
    /// Checks what comes out, on the reduced problem and on the full one, and plans the full one for timing.
    pub(crate) fn new(engine: &Engine, subject: &Subject, variant: Option<Variant>) -> Result<Self> {
        let started = Instant::now();
        check(engine, &subject.reduced, variant)?;
        let first = started.elapsed().as_secs_f64();
        check(engine, &subject.full, variant)?;
        let (case, operator) = subject.operator(variant)?;
        Ok(Self { planned: Planned::based(engine, &operator, based_tokens(case)?)?, first })
    }

    #[expect(clippy::cast_precision_loss, reason = "counts of operations, for rates")]
    pub(crate) fn figures(&self) -> Result<Figures> {
        let plan = self.planned.based_plan().context("not a plan of BASED")?.details();
        let chunk = plan.keys().find_map(|key| match key {
            Key::Based(key) => Some(key.chunk()),
            _ => None,
        });
        Ok(Figures {
            kernel: plan.kernel.name(),
            tile: [chunk.unwrap_or(0), plan.segments],
            flops: plan.flops as f64,
            bytes: plan.bytes as f64,
            workspace_bytes: plan.workspace_bytes,
            predicted: plan.estimate.seconds,
            first: self.first,
        })
    }
}

fn check(engine: &Engine, (case, reference): &(BasedCase, References), variant: Option<Variant>) -> Result<()> {
    let (_, comparisons) = judge_based(engine, case, variant, reference)?;
    ensure!(!comparisons.is_empty(), "nothing was compared");
    if let Some(wrong) = comparisons.into_iter().find(|comparison| !comparison.pass) {
        bail!("{} is wrong: {}", wrong.output, wrong.error.unwrap_or_default());
    }
    Ok(())
}
