//! Few queries over many keys, timed beside the forward kernel on the same problem.

use std::time::Instant;

use anyhow::{Result, bail};
use wattn::wgpu::Buffer;
use wattn::{DecodePlan, Engine, Kernel, Lengths, Operands, Split, Work};
use wattn_cases::{Reference, SoftmaxCase};
use wattn_tests::{Loaded, plan_decode, workspace};

use super::clock::{Clock, Sample};
use super::contest::Subject;
use super::row::Figures;

/// The kernel that a case is planned with.
pub(crate) fn kernel(engine: &Engine, subject: &Subject, kernel: Option<Kernel>) -> Result<&'static str> {
    Ok(plan_decode(engine, &subject.full, kernel, Split::Device)??.details().split.kernel.name())
}

/// A plan that passed its checks, ready to run.
pub(crate) struct Contestant<'a> {
    plan: DecodePlan,
    work: Work,
    loaded: Loaded<'a>,
    workspace: Buffer,
    /// The first call of the checks, seconds.
    first: f64,
}

impl<'a> Contestant<'a> {
    /// Plans the case and checks it, on the reduced problem and on rows of the full one.
    pub(crate) fn new(engine: &Engine, clock: &Clock, subject: &'a Subject, kernel: Option<Kernel>) -> Result<Self> {
        let reduced = Self::checked(engine, clock, &subject.reduced, &subject.reduced_reference, kernel)?;
        let full = Self::checked(engine, clock, &subject.full, &subject.full_reference, kernel)?;
        Ok(Self { first: reduced.first, ..full })
    }

    fn checked(
        engine: &Engine,
        clock: &Clock,
        case: &'a SoftmaxCase,
        reference: &Reference,
        kernel: Option<Kernel>,
    ) -> Result<Self> {
        let plan = plan_decode(engine, case, kernel, Split::Device)??;
        let loaded = Loaded::new(engine, case);
        let given = loaded.operands();
        let work = plan.work(given.lengths, given.causal_offsets)?;
        let workspace = workspace(engine, plan.workspace_bytes());
        let mut contestant = Self { plan, work, loaded, workspace, first: 0.0 };
        let started = Instant::now();
        contestant.sample(clock, 1)?;
        contestant.first = started.elapsed().as_secs_f64();
        for comparison in contestant.loaded.read(engine)?.compare(case, reference) {
            if !comparison.pass {
                let error = comparison.error.unwrap_or_default();
                bail!("{} is wrong ({} elements checked): {error}", comparison.output, comparison.elements);
            }
        }
        Ok(contestant)
    }

    /// Of the lengths of the call, which may be shorter than the plan allows.
    #[expect(clippy::cast_precision_loss, reason = "counts of operations, for rates")]
    pub(crate) fn figures(&self) -> Figures {
        let plan = self.plan.details();
        Figures {
            kernel: plan.split.kernel.name(),
            tile: [plan.split.rows, self.work.longest],
            flops: plan.flops(&self.work) as f64,
            bytes: plan.moved_bytes(&self.work) as f64,
            workspace_bytes: plan.workspace_bytes,
            predicted: plan.estimate(&self.work).seconds,
            first: self.first,
        }
    }

    pub(crate) fn sample(&self, clock: &Clock, count: u32) -> Result<Sample> {
        let operands = Operands { lengths: Lengths::Full, causal_offsets: &[], ..self.loaded.operands() };
        let sample = clock.pass(|pass| {
            for _ in 0..count {
                self.plan.encode_in_pass(pass, &self.work, &operands, &self.workspace)?;
            }
            Ok(())
        });
        Ok(sample?.of(count))
    }
}
