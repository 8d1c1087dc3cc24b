//! What is timed: kernels and baselines, each checked against the oracle before it counts, and their samples taken in turn, so that
//! whatever else the machine does falls on all of them alike.

use std::time::Instant;

use anyhow::{Context, Result, bail};
use wattn::{DeviceKind, Engine, Plan};
use wattn_cases::{Recipe, Reference, Rows, SoftmaxCase};
use wattn_tests::{Loaded, Variant, attention, extent};

use super::backward;
use super::based;
use super::ceilings::{Around, Beside, Ceilings};
use super::clock::{Clock, Sample};
use super::decode;
use super::linear;
use super::row::Figures;
use super::stats::{Series, Summary};
use super::unfused::Passes;

/// Queries and keys at most, or tokens, of the problem that is checked in full: no multiple of any tile or chunk.
pub(crate) const REDUCED: usize = 193;
/// Rows of each head that are checked at full size.
const ROWS: usize = 8;
/// Short kernels are repeated within a sample until it takes this long, seconds.
const SAMPLE: f64 = 0.005;
/// Calls within a sample at most.
const REPEATS: f64 = 64.0;

/// A case with what must come out of it, in full and reduced.
pub(crate) struct Subject {
    pub(crate) full: SoftmaxCase,
    pub(crate) full_reference: Reference,
    pub(crate) reduced: SoftmaxCase,
    pub(crate) reduced_reference: Reference,
}

impl Subject {
    pub(crate) fn new(recipe: &Recipe) -> Self {
        let (full, reduced) = (recipe.build(), recipe.reduced(REDUCED).build());
        let full_reference = full.reference(Rows::Sampled { per_head: ROWS, seed: 1 });
        let reduced_reference = reduced.reference(Rows::All);
        Self { full, full_reference, reduced, reduced_reference }
    }
}

/// A kernel that passed its checks, ready to run.
pub(crate) struct Contestant<'a> {
    pub(crate) plan: Plan,
    loaded: Loaded<'a>,
    /// The first call of the checks, seconds: includes compiling what this run has not compiled before.
    first: f64,
}

impl<'a> Contestant<'a> {
    /// Plans the case and checks the kernel, on the reduced problem and on rows of the full one.
    pub(crate) fn new(engine: &Engine, subject: &'a Subject, variant: Option<Variant>) -> Result<Self> {
        let (_, _, first) = checked(engine, &subject.reduced, &subject.reduced_reference, variant)?;
        let (plan, loaded, _) = checked(engine, &subject.full, &subject.full_reference, variant)?;
        Ok(Self { plan, loaded, first })
    }

    #[expect(clippy::cast_precision_loss, reason = "counts of operations, for rates")]
    pub(crate) fn figures(&self) -> Figures {
        let plan = self.plan.details();
        Figures {
            kernel: plan.key.kernel.name(),
            tile: [plan.key.shape.tile_queries(), plan.key.shape.tile_keys()],
            flops: plan.flops as f64,
            bytes: plan.bytes as f64,
            workspace_bytes: plan.workspace_bytes,
            predicted: plan.estimate.seconds,
            first: self.first,
        }
    }

    fn sample(&self, clock: &Clock, count: u32) -> Result<Sample> {
        let operands = self.loaded.operands();
        let slices = self.plan.slices();
        if slices > 1 {
            return clock.slices(slices, |encoder, slice| Ok(self.plan.encode_slice(encoder, &operands, slice)?));
        }
        let sample = clock.pass(|pass| {
            for _ in 0..count {
                self.plan.encode_in_pass(pass, &operands)?;
            }
            Ok(())
        });
        Ok(sample?.of(count))
    }
}

/// The kernel that a case is planned with.
pub(crate) fn kernel(engine: &Engine, subject: &Subject, variant: Option<Variant>) -> Result<&'static str> {
    Ok(planned(engine, &subject.full, variant)?.details().key.kernel.name())
}

fn planned(engine: &Engine, case: &SoftmaxCase, variant: Option<Variant>) -> Result<Plan> {
    let operator = attention(case)?;
    let operator = variant.map_or(operator, |variant| variant.force(operator));
    Ok(engine.plan(&operator, extent(case)?)?)
}

fn checked<'a>(
    engine: &Engine,
    case: &'a SoftmaxCase,
    reference: &Reference,
    variant: Option<Variant>,
) -> Result<(Plan, Loaded<'a>, f64)> {
    let plan = planned(engine, case, variant)?;
    let loaded = Loaded::new(engine, case);
    let started = Instant::now();
    let outputs = loaded.run(engine, &plan)?;
    let seconds = started.elapsed().as_secs_f64();
    for comparison in outputs.compare(case, reference) {
        if !comparison.pass {
            let error = comparison.error.unwrap_or_default();
            bail!("{} is wrong ({} elements checked): {error}", comparison.output, comparison.elements);
        }
    }
    Ok((plan, loaded, seconds))
}

/// How long to measure.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Effort {
    /// Samples of a kernel, at least and at most.
    pub(crate) samples: [usize; 2],
    /// Samples of a baseline.
    pub(crate) baseline_samples: usize,
    /// A kernel is sampled for this long, seconds, within those bounds.
    pub(crate) seconds: f64,
    /// A baseline that is predicted to take longer than this is left out, seconds.
    pub(crate) longest_baseline: f64,
}

impl Effort {
    /// For figures to keep.
    pub(crate) const FULL: Self = Self { samples: [9, 30], baseline_samples: 3, seconds: 0.3, longest_baseline: 8.0 };
    /// For a first look.
    pub(crate) const QUICK: Self = Self { samples: [5, 9], baseline_samples: 2, seconds: 0.1, longest_baseline: 2.5 };

    /// The same on a device. Drivers reset a GPU that is busy for two seconds.
    pub(crate) fn on(self, kind: DeviceKind) -> Self {
        let longest = if kind == DeviceKind::Cpu { f64::INFINITY } else { 1.0 };
        Self { longest_baseline: self.longest_baseline.min(longest), ..self }
    }
}

/// Something whose samples are taken in turn with others'.
pub(crate) enum Runner<'a> {
    Kernel(&'a Contestant<'a>),
    Backward(&'a backward::Contestant<'a>),
    Baseline(&'a Passes<'a>),
    Decode(&'a decode::Contestant<'a>),
    Linear(&'a linear::Contestant<'a>),
    Scan(&'a linear::Scan<'a>),
    Based(&'a based::Contestant),
}

impl Runner<'_> {
    fn sample(&self, clock: &Clock, count: u32) -> Result<Sample> {
        match self {
            Self::Kernel(contestant) => contestant.sample(clock, count),
            Self::Backward(contestant) => contestant.sample(clock, count),
            Self::Baseline(passes) => passes.sample(clock, count),
            Self::Decode(contestant) => contestant.sample(clock, count),
            Self::Linear(contestant) => contestant.sample(clock, count),
            Self::Scan(scan) => scan.sample(clock, count),
            Self::Based(contestant) => contestant.planned.sample(clock, count),
        }
    }

    /// How often it may be repeated within a sample.
    fn repeats(&self) -> f64 {
        let whole = match self {
            Self::Kernel(contestant) => contestant.plan.slices() == 1,
            Self::Decode(_) => true,
            Self::Backward(contestant) => contestant.run.plan().slices() == 1,
            Self::Linear(contestant) => contestant.plan.slices() == 1,
            Self::Based(contestant) => contestant.planned.slices() == 1,
            Self::Baseline(_) | Self::Scan(_) => true,
        };
        if whole { REPEATS } else { 1.0 }
    }

    /// Samples of it, at least and at most.
    fn samples(&self, effort: Effort) -> [usize; 2] {
        match self {
            Self::Baseline(_) | Self::Scan(_) => [effort.baseline_samples; 2],
            _ => effort.samples,
        }
    }
}

/// One runner's turns.
struct Turns<'a> {
    runner: &'a Runner<'a>,
    count: u32,
    wanted: usize,
    series: Series,
    /// For each sample the ceilings' sample before it.
    at: Vec<usize>,
}

impl<'a> Turns<'a> {
    /// Sizes the samples by a run that warms up.
    #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "bounded on both sides")]
    fn new(runner: &'a Runner<'a>, clock: &Clock, effort: Effort, cold: bool) -> Result<Self> {
        let seconds = runner.sample(clock, 1)?.seconds();
        let count = (SAMPLE / seconds).ceil().clamp(1.0, if cold { 1.0 } else { runner.repeats() });
        let [least, most] = runner.samples(effort);
        let wanted = ((effort.seconds / (seconds * count)).ceil() as usize).clamp(least, most);
        Ok(Self { runner, count: count as u32, wanted, series: Series::default(), at: Vec::new() })
    }
}

/// What came out for one runner.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Outcome {
    pub(crate) time: Summary,
    pub(crate) beside: Beside,
}

/// Samples all runners of a problem in turn, and the ceilings before each sample and after the last.
///
/// Where memory bounds the problem, a sample is one call. Of several in a row, all but the first may find their operands in a GPU's last
/// cache (50 to 256 MB), against a ceiling that does not; the ceilings' copies right before leave nothing of them there.
pub(crate) fn contest(
    clock: &Clock,
    ceilings: &Ceilings,
    effort: Effort,
    problem: &Figures,
    runners: &[Runner<'_>],
) -> Result<Vec<Outcome>> {
    let mut around = Around::default();
    let cold = ceilings.memory_bounds(problem);
    let turns = |runner| Turns::new(runner, clock, effort, cold);
    let mut all = runners.iter().map(turns).collect::<Result<Vec<_>>>()?;
    let rounds = all.iter().map(|turns| turns.wanted).max().unwrap_or(0);
    for round in 0..rounds {
        for turns in &mut all {
            // Those that want fewer samples spread theirs over all rounds.
            if turns.series.0.len() * rounds <= round * turns.wanted {
                turns.at.push(around.0.len());
                ceilings.sample(clock, &mut around)?;
                turns.series.0.push(turns.runner.sample(clock, turns.count)?);
            }
        }
    }
    ceilings.sample(clock, &mut around)?;
    let outcome = |turns: &Turns<'_>| {
        let beside = ceilings.beside(&around, &turns.series, &turns.at)?;
        Some(Outcome { time: turns.series.summary()?, beside })
    };
    all.iter().map(|turns| outcome(turns).context("no samples")).collect()
}
