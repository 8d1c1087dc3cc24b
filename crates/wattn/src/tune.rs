//! Tuning: which kernel, shape, schedule and stretches a device is fastest with, measured and remembered.

mod agree;
mod clock;
mod file;
mod sample;
mod ticks;

use std::fmt;
use std::sync::{MutexGuard, PoisonError};

use wattn_scheduler::{Choice, PlanError, Tunable};

use crate::engine::Engine;
use crate::error::{RunError, TuneError};
use crate::host::{Call, Loaded, Results};
use crate::operator::Operator;
use clock::Clock;
use file::{Entry, Recalled};

pub use file::Tuning;

/// Measurements of each candidate, of which the median counts.
const ROUNDS: usize = 7;

/// What a measurement takes at least, seconds, where so many calls in a row do.
const LEAST_SECONDS: f64 = 0.01;
const MOST_CALLS: f64 = 32.0;

/// What takes this many times as long as the fastest at first is not measured again.
const HOPELESS: f64 = 3.0;

/// Of the time of the plan's own choice, what another must stay below to take its place: less is noise.
const GAIN: f64 = 0.97;

/// An operator that an engine can tune: [`Attention`](crate::Attention), [`AttentionBackward`](crate::AttentionBackward) and
/// [`Decode`](crate::Decode); [`Lightning`](crate::Lightning) and [`Based`](crate::Based), forward and backward.
pub trait Tune: Operator<Extent: Copy> + Tunable<Size = <Self as Operator>::Extent> + sample::Sample {}

impl<O: Operator<Extent: Copy> + Tunable<Size = <O as Operator>::Extent> + sample::Sample> Tune for O {}

/// What tuning has found. Prints itself, a line a candidate.
#[derive(Debug, Clone, PartialEq)]
pub struct Tuned {
    /// The problem, and all that are like it.
    pub problem: String,
    /// What was tried: first what plans choose untuned.
    pub candidates: Vec<Candidate>,
    /// What plans choose from now on.
    pub best: Choice,
}

/// What came of one candidate.
#[derive(Debug, Clone, PartialEq)]
pub struct Candidate {
    /// The kernel, with its shape, schedule or stretches.
    pub choice: Choice,
    /// The median of the seconds that a call takes; or why it is out of the question.
    pub seconds: Result<f64, String>,
}

impl fmt::Display for Tuned {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.problem)?;
        self.candidates.iter().try_for_each(|Candidate { choice, seconds }| {
            let mark = if *choice == self.best { '*' } else { ' ' };
            match seconds {
                Ok(seconds) => write!(f, "\n{mark} {:.3} ms  {choice}", seconds * 1e3),
                Err(why) => write!(f, "\n{mark} {choice}: {why}"),
            }
        })
    }
}

impl Engine {
    /// Measures which kernel, shape, schedule and stretches suit this problem and those like it on this device, and has later plans of
    /// this engine choose them; with [`EngineBuilder::tuning`](crate::EngineBuilder::tuning), those of later engines too. It takes seconds
    /// (of gradients on a CPU driver, which compiles slowly, up to a minute), and the device to itself.
    ///
    /// Candidates are what the planner chooses untuned, and the few that its estimate puts next. Each first has to agree with the
    /// planner's own choice on a small problem of the same options and then on the whole one, outputs and workspace full of NaN before:
    /// what does not is never chosen. Time is the device's own where it was created with `TIMESTAMP_QUERY` and
    /// `TIMESTAMP_QUERY_INSIDE_ENCODERS`, else the wall clock's. Problems whose batch, lengths and windows round up to the same powers of
    /// two are taken for alike.
    ///
    /// Few queries are measured in a [typical call](crate::Decode::typical) within the extent; over a cache, in one layer of another one
    /// of its layout, which takes as much memory. [`split_into`](crate::Decode::split_into) and [`Decode::kernel`](crate::Decode::kernel)
    /// pin what there is to choose, as stretches of [fixed length](crate::Decode::split_keys) do, since they promise the same bits in any
    /// batch.
    ///
    /// ```
    /// # fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// # let engine = match wattn::Engine::headless() { Ok(engine) => engine, Err(_) => return Ok(()) };
    /// use wattn::{Attention, Extent, HeadDim, Heads};
    /// let attention = Attention::new(Heads::new(2)?, HeadDim::new(16)?).causal();
    /// println!("{}", engine.tune(&attention, Extent::new(1, 64, 64))?);
    /// assert!(engine.plan(&attention, Extent::new(1, 50, 64))?.to_string().contains("tuned: "));
    /// # Ok(()) }
    /// ```
    ///
    /// # Errors
    /// A refused problem (steps of linear attention, and operators with a pinned kernel, shape, schedule or stretches, leave nothing
    /// to choose), a device that fails, a file that cannot be written (this engine keeps what was found all the same).
    pub fn tune<O: Tune>(&self, operator: &O, extent: <O as Operator>::Extent) -> Result<Tuned, TuneError> {
        if operator.is_pinned() {
            return Err(TuneError::Pinned);
        }
        let choices = operator.candidates(extent, self.capabilities())?;
        let found = |choice| Candidate { choice, seconds: Ok(0.0) };
        let mut candidates: Vec<Candidate> = choices.into_iter().map(found).collect();
        let mut own = 0.0;
        for (extent, measured) in [(operator.small(extent)?, false), (extent, true)] {
            self.try_all(operator, extent, &mut candidates, measured)?;
            own = candidates[0].seconds.clone().map_err(TuneError::Own)?;
        }
        let right = candidates.iter().filter_map(|c| c.seconds.as_ref().ok().map(|&seconds| (c.choice, seconds)));
        let fastest = right.min_by(|a, b| a.1.total_cmp(&b.1)).filter(|best| best.1 < own * GAIN);
        let (best, seconds) = fastest.unwrap_or((candidates[0].choice, own));
        let entry = Entry {
            device: self.inner.name.clone(),
            shaders: wattn_shaders::FINGERPRINT.to_owned(),
            problem: operator.problem(extent),
            choice: best.to_string(),
            milliseconds: seconds * 1e3,
            untuned: candidates[0].choice.to_string(),
            untuned_milliseconds: own * 1e3,
        };
        // Plans need not wait for the file.
        let path = self.tuning().remember(entry.clone());
        path.map_or(Ok(()), |path| file::keep(&path, &entry))?;
        Ok(Tuned { problem: operator.problem(extent), candidates, best })
    }

    /// Runs all candidates that are still in question on one problem, and measures those that remain so.
    fn try_all<O: Tune>(
        &self,
        operator: &O,
        extent: <O as Operator>::Extent,
        candidates: &mut [Candidate],
        measured: bool,
    ) -> Result<(), RunError> {
        let mut plans = Vec::new();
        for (at, candidate) in candidates.iter_mut().enumerate().filter(|(_, c)| c.seconds.is_ok()) {
            match self.plan(&operator.with(candidate.choice), extent) {
                Ok(plan) => plans.push((at, plan)),
                Err(error) => candidate.seconds = Err(error.to_string()),
            }
        }
        operator.loaded(self, extent, plans.iter().map(|(_, plan)| plan), &mut |loaded| {
            let mut expected = None;
            let mut right = Vec::new();
            for (at, plan) in &plans {
                match self.judge::<O>(loaded, plan, &mut expected) {
                    Ok(()) => right.push((*at, plan)),
                    Err(why) => candidates[*at].seconds = Err(why),
                }
            }
            if measured {
                let plans: Vec<_> = right.iter().map(|&(_, plan)| plan).collect();
                for (&(at, _), seconds) in right.iter().zip(self.measure::<O>(loaded, &plans)?) {
                    candidates[at].seconds = Ok(seconds);
                }
            }
            Ok(())
        })
    }

    /// Whether a plan writes what is expected; of the first one, whether it writes numbers everywhere, which are expected from then on.
    fn judge<O: Tune>(
        &self,
        loaded: &dyn Loaded<O::Plan>,
        plan: &O::Plan,
        expected: &mut Option<Results>,
    ) -> Result<(), String> {
        loaded.poison(self);
        let run = Call::new(self, |call| call.run(loaded, plan, O::slices(plan)));
        let got = run.and_then(|call| self.blocking().results(call)).map_err(|error| error.to_string())?;
        agree::agree(&got, expected.as_ref().unwrap_or(&got), &loaded.written())?;
        expected.get_or_insert(got);
        Ok(())
    }

    /// The median of the seconds that each plan takes.
    fn measure<O: Tune>(&self, loaded: &dyn Loaded<O::Plan>, plans: &[&O::Plan]) -> Result<Vec<f64>, RunError> {
        let clock = Clock::new(self)?;
        let time = |plan: &O::Plan, calls| clock.time(loaded, plan, O::slices(plan), calls);
        let mut times = Vec::new();
        for plan in plans {
            times.push(vec![time(plan, 1)?]);
        }
        let hopeless = HOPELESS * times.iter().map(|times| times[0]).fold(f64::INFINITY, f64::min);
        // Interleaved, so that what else goes on meets all alike.
        for _ in 0..ROUNDS {
            for (times, plan) in times.iter_mut().zip(plans).filter(|(times, _)| times[0] <= hopeless) {
                let calls = calls_for(times[0]);
                times.push(time(plan, calls)? / f64::from(calls));
            }
        }
        let median = |mut times: Vec<f64>| {
            times.sort_by(f64::total_cmp);
            times[times.len() / 2]
        };
        Ok(times.into_iter().map(median).collect())
    }

    fn tuning(&self) -> MutexGuard<'_, Tuning> {
        self.inner.tuning.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "clamped")]
fn calls_for(seconds: f64) -> u32 {
    (LEAST_SECONDS / seconds).ceil().clamp(1.0, MOST_CALLS) as u32
}

/// Plans as was tuned, where that was; `reason` is the plan's.
pub(crate) fn plan<O: Tunable, P>(
    engine: &Engine,
    operator: &O,
    size: O::Size,
    plan: impl Fn(&O) -> Result<P, PlanError>,
    reason: impl Fn(&mut P) -> &mut String,
) -> Result<P, PlanError> {
    if operator.is_pinned() {
        return plan(operator);
    }
    let recalled = engine.tuning().recall(&engine.inner.name, || operator.problem(size));
    let why = match recalled {
        Recalled::Nothing => return plan(operator),
        Recalled::Stale(why) => why.to_owned(),
        Recalled::Found(entry) => {
            let chosen = operator.menu(size, engine.capabilities()).into_iter().find(|c| c.to_string() == entry.choice);
            match chosen.map(|choice| plan(&operator.with(choice))) {
                Some(Ok(mut tuned)) => {
                    *reason(&mut tuned) = entry.to_string();
                    return Ok(tuned);
                }
                Some(Err(error)) => format!("{}: {error}", entry.choice),
                None => format!("{} is not on the menu of this problem on this device", entry.choice),
            }
        }
    };
    log::info!("a tuned choice is ignored: {why}");
    let mut untuned = plan(operator)?;
    reason(&mut untuned).push_str(&format!("; a tuned choice is ignored: {why}"));
    Ok(untuned)
}

impl From<PlanError> for TuneError {
    fn from(error: PlanError) -> Self {
        RunError::from(error).into()
    }
}
