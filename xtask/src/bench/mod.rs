//! `cargo xtask bench`: how fast each case is on this device, against what the device can do and against unfused passes.
//!
//! No case is timed that was not found right in the same run, reduced in full and in rows of its full size. Time against length and
//! generation go beyond what was checked: their kernels were found right at 1,024 or 8,192 tokens (the gates), and for one token or
//! 1,024 keys.

mod backward;
mod based;
mod ceilings;
mod clock;
mod compare;
mod contest;
mod decode;
mod device;
mod generation;
mod host;
mod lengths;
mod linear;
mod planned;
mod report;
mod row;
mod shader;
mod stats;
mod table;
#[path = "../../../crates/wattn/src/tune/ticks.rs"]
mod ticks;
mod unfused;

use std::path::PathBuf;

use anyhow::{Context, Result, ensure};
use indicatif::{ProgressBar, ProgressStyle};
use wattn::Engine;
use wattn_cases::{
    BasedRecipe, LinearRecipe, Recipe, based_bench_catalogue, bench_catalogue, decode_bench_catalogue,
    linear_bench_catalogue,
};
use wattn_tests::Variant;

use crate::report::{guarded, writable};
use crate::select::{Selection, trusted};

use ceilings::Ceilings;
use clock::Clock;
use compare::Verdict;
use contest::{Contestant, Effort, Outcome, Runner, Subject, contest};
use device::Device;
use row::{Figures, Row, Run, Shared};
use unfused::{Form, Passes, Unfused};

/// The cases of a quick run.
const QUICK: [&str; 8] = [
    "softmax/full_1024",
    "softmax/causal_1024",
    "softmax/full_1024_f16",
    "softmax/gqa_9_3_causal_1024",
    "softmax/backward_1024",
    "lightning/forward_8192",
    "lightning/backward_8192",
    "based/forward_8192",
];
/// What a filter may name beside cases.
const SWEEPS: [&str; 2] = ["lengths", "generation"];
/// The case that all kernels are timed on.
const SHOWCASE: &str = "softmax/full_1024";

/// How fast the kernels are on a device, against its own ceilings
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// Only cases whose name contains this; `lengths` alone for time against length, `generation` for decode
    #[arg(long, value_name = "S")]
    filter: Option<String>,
    #[command(flatten)]
    selection: Selection,
    /// Fewer repetitions and, unless filtered, few cases
    #[arg(long)]
    quick: bool,
    /// Write the results to this file
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
    /// Compare with the results in this file; fails if a case has become slower
    #[arg(long, value_name = "FILE")]
    baseline: Option<PathBuf>,
    /// Write a page with tables and charts to this directory
    #[arg(long, value_name = "DIR")]
    report: Option<PathBuf>,
}

/// Runs the benchmark.
pub(crate) fn run(args: Args) -> Result<()> {
    let filter = args.filter.as_deref();
    let swept = |name: &str| filter.map_or(!args.quick, |filter| name == filter);
    ensure!(
        args.baseline.is_none() || !SWEEPS.iter().any(|name| filter == Some(name)),
        "{} is not compared with a baseline, cases are",
        filter.unwrap_or_default()
    );
    let adapter = args.selection.adapter()?;
    let before = args.baseline.as_deref().map(compare::load).transpose()?;
    if let Some(before) = &before {
        compare::comparable(before, &device::identity(&adapter.get_info()), args.selection.trusted)?;
    }
    let engine = device::open(&adapter)?;
    let pinned = args.selection.variant();
    let picked = |name: &str| filter.map_or(!args.quick || QUICK.contains(&name), |filter| name.contains(filter));
    let [sweep, generate] = SWEEPS.map(swept);
    // What the sweep times must have been found right in this run.
    let wanted = |name: &str| picked(name) || (sweep && lengths::is_gate(name));
    let recipes: Vec<Recipe> = bench_catalogue().into_iter().filter(|recipe| wanted(recipe.name)).collect();
    let linear: Vec<LinearRecipe> = linear_bench_catalogue().into_iter().filter(|recipe| wanted(recipe.name)).collect();
    let based: Vec<BasedRecipe> = based_bench_catalogue().into_iter().filter(|recipe| wanted(recipe.name)).collect();
    let decode: Vec<Recipe> = decode_bench_catalogue().into_iter().filter(|recipe| wanted(recipe.name)).collect();
    let cases = recipes.len() + decode.len() + linear.len() + based.len();
    ensure!(cases > 0 || generate, "no case matches {:?}", filter.unwrap_or_default());
    if let Some(before) = &before {
        let softmax = recipes.iter().chain(&decode).map(|recipe| recipe.name);
        let names: Vec<&str> =
            softmax.chain(linear.iter().map(|recipe| recipe.name)).chain(based.iter().map(|r| r.name)).collect();
        ensure!(before.rows.iter().any(|row| names.contains(&&*row.case)), "the baseline has none of these cases");
    }
    args.json.as_deref().map(writable).transpose()?;
    args.report.as_deref().map(report::prepare).transpose()?;

    let bar = ProgressBar::new(cases as u64 + 1);
    bar.set_style(ProgressStyle::with_template("{bar:30} {pos}/{len} {msg} {elapsed}")?);
    bar.set_message("ceilings");
    bar.tick();
    let clock = Clock::new(engine.device(), engine.queue());
    let ceilings = Ceilings::measure(&engine, &clock)?;
    let host = host::HostCosts::measure(&engine, &clock)?;
    let device = Device::describe(&engine, &ceilings, host);
    bar.suspend(|| println!("{}", table::headline(&device)));

    // Plans tell how long they should take on a device of these rates.
    let trusted = trusted(&engine, &adapter).rates(device.rates()).build();
    let checked = Engine::builder(engine.device(), engine.queue())
        .matrix_properties(adapter.cooperative_matrix_properties())
        .rates(device.rates())
        .build();
    let (engine, trusted) = if args.selection.trusted { (trusted, None) } else { (checked, Some(trusted)) };
    let effort = if args.quick { Effort::QUICK } else { Effort::FULL }.on(engine.capabilities().kind);
    let bench = Bench { engine, trusted, clock, ceilings, effort, bar: bar.clone() };
    let mut rows = Vec::new();
    for recipe in &recipes {
        bar.inc(1);
        bar.set_message(recipe.name);
        if recipe.backward {
            rows.push(bench.backward(recipe, pinned));
        } else {
            rows.extend(bench.case(recipe, pinned));
        }
    }
    for recipe in &decode {
        bar.inc(1);
        bar.set_message(recipe.name);
        rows.push(bench.decode(recipe, pinned));
    }
    for recipe in &linear {
        bar.inc(1);
        bar.set_message(recipe.name);
        rows.push(bench.linear(recipe, pinned));
    }
    for recipe in &based {
        bar.inc(1);
        bar.set_message(recipe.name);
        rows.push(bench.based(recipe, pinned));
    }
    let mut lengths = Vec::new();
    if sweep {
        bar.set_message("time against length");
        let passed = |case: &str| rows.iter().any(|row: &Row| row.case == case && row.median_us.is_some());
        lengths = lengths::measure(&bench.engine, &bench.clock, &bench.ceilings, pinned, passed);
    }
    let mut generation = Vec::new();
    if generate {
        bar.set_message("generation");
        generation = generation::measure(&bench.engine, &bench.clock, &bench.ceilings, pinned);
    }
    bar.finish_and_clear();
    if !rows.is_empty() {
        println!("\n{}", table::table(&rows));
    }
    if !lengths.is_empty() {
        println!("\n{}", table::lengths(&lengths));
    }
    if !generation.is_empty() {
        println!("\n{}", table::generation(&generation));
    }

    let run = Run { schema: 1, trusted: args.selection.trusted, device, rows, lengths, generation };
    if let Some(path) = &args.json {
        std::fs::write(path, serde_json::to_string_pretty(&run)? + "\n")
            .with_context(|| format!("writing {}", path.display()))?;
    }
    if let Some(directory) = &args.report {
        report::write(directory, &run)?;
    }
    finish(&run, before.as_ref())
}

/// The comparison with an earlier run, and whether this one is good.
fn finish(run: &Run, before: Option<&Run>) -> Result<()> {
    let mut slower = 0;
    if let Some(before) = before {
        println!("\nagainst the baseline of {}:", before.device.commit.as_deref().unwrap_or("an unknown commit"));
        let changes = compare::compare(before, run);
        for change in &changes {
            println!("{change}");
        }
        ensure!(!changes.is_empty(), "the baseline has no time of these cases");
        let alone = run.rows.len() - changes.len();
        if alone > 0 {
            println!("{alone} without a counterpart");
        }
        slower = changes.iter().filter(|change| change.verdict == Verdict::Slower).count();
    }
    let wrong = |row: &&Row| row.error.is_some() || row.baseline_error.is_some();
    let lines = run.lengths.iter().filter(|line| line.error.is_some()).map(|line| line.op.as_str());
    let stuck = run.generation.iter().filter(|op| op.error.is_some()).map(|op| op.op.as_str()).chain(lines);
    let failed: Vec<&str> = run.rows.iter().filter(wrong).map(|row| row.case.as_str()).chain(stuck).collect();
    ensure!(failed.is_empty(), "{} FAILED: {}", failed.len(), failed.join(", "));
    let ran = run.rows.iter().any(|row| row.median_us.is_some())
        || run.lengths.iter().any(|line| !line.points.is_empty())
        || run.generation.iter().any(|op| !op.points.is_empty());
    ensure!(ran, "nothing was timed: the pinned kernel cannot serve");
    ensure!(slower == 0, "{slower} slower beyond noise");
    Ok(())
}

/// What all cases are measured with.
struct Bench {
    engine: Engine,
    /// The same device, but kernels whose loops wgpu does not count, unless `engine` has these.
    trusted: Option<Engine>,
    clock: Clock,
    ceilings: Ceilings,
    effort: Effort,
    bar: ProgressBar,
}

impl Bench {
    /// One case: a row for the plan's choice or the pinned kernel, and for the showcase one for each other variant that the device can have,
    /// and one for the plan's choice without wgpu's counters of loops.
    fn case(&self, recipe: &Recipe, pinned: Option<Variant>) -> Vec<Row> {
        let subject = Subject::new(recipe);
        let mut rows = Vec::new();
        let mut contestants = Vec::new();
        for variant in self.variants(recipe, &subject, pinned) {
            let row = Row::new(recipe, &label(variant)).by(contest::kernel(&self.engine, &subject, variant), variant);
            match guarded(|| Contestant::new(&self.engine, &subject, variant)) {
                // The plan's own choice is there already.
                Ok(new) if contestants.iter().any(|(_, c): &(_, Contestant<'_>)| same_pipeline(c, &new)) => {}
                Ok(contestant) => contestants.push((row, contestant)),
                Err(error) => rows.push(row.failed(&error)),
            }
        }
        let trusted = self.trusted.as_ref().filter(|_| pinned.is_none() && recipe.name == SHOWCASE);
        if let Some(engine) = trusted {
            let row = Row::new(recipe, "trusted").by(contest::kernel(engine, &subject, None), None);
            match guarded(|| Contestant::new(engine, &subject, None)) {
                Ok(contestant) => contestants.push((row, contestant)),
                Err(error) => rows.push(row.failed(&error)),
            }
        }
        let measured = guarded(|| self.measured(&subject, &contestants)).unwrap_or_else(|error| {
            let failed = |(row, _): &(Row, Contestant<'_>)| row.clone().failed(&error);
            contestants.iter().map(failed).collect()
        });
        rows.splice(0..0, measured);
        rows
    }

    /// What competes in a case: the plan's choice or the pinned kernel, and in the showcase all that the device can have.
    fn variants(&self, recipe: &Recipe, subject: &Subject, pinned: Option<Variant>) -> Vec<Option<Variant>> {
        let mut variants = vec![pinned];
        if pinned.is_some() || recipe.name != SHOWCASE {
            return variants;
        }
        let device = self.engine.capabilities();
        for variant in Variant::all(device) {
            if let Ok(Some(reason)) = variant.refusal(device, &subject.full) {
                self.bar.suspend(|| println!("{}: without {variant}, since {reason}", recipe.name));
            } else {
                variants.push(Some(variant));
            }
        }
        variants
    }

    /// The rows of a case's contestants, timed beside unfused passes.
    fn measured(&self, subject: &Subject, contestants: &[(Row, Contestant<'_>)]) -> Result<Vec<Row>> {
        let Some((_, first)) = contestants.first() else { return Ok(Vec::new()) };
        let unfused = Unfused::new(&self.engine, &subject.full);
        let reduced = Unfused::new(&self.engine, &subject.reduced);
        let flops = first.plan.details().flops;
        let [naive, tiled] = [Form::Naive, Form::Tiled].map(|form| match (&unfused, &reduced) {
            (Some(full), Some(reduced)) => self.baseline(form, [full, reduced], subject, flops),
            _ => Ok(None),
        });
        let error = [&naive, &tiled].into_iter().find_map(|form| form.as_ref().err());
        let baseline_error = error.map(|error| format!("{error:#}"));
        let [naive, tiled] = [naive, tiled].map(|form| form.ok().flatten());

        let mut runners: Vec<Runner<'_>> = contestants.iter().map(|(_, c)| Runner::Kernel(c)).collect();
        runners.extend([&naive, &tiled].into_iter().flatten().map(Runner::Baseline));
        let outcomes = contest(&self.clock, &self.ceilings, self.effort, &first.figures(), &runners)?;

        let (own, baselines) = outcomes.split_at(contestants.len());
        let mut baselines = baselines.iter().map(|outcome| outcome.time.median);
        let shared = Shared {
            baseline: naive.as_ref().and_then(|_| baselines.next()),
            tiled: tiled.as_ref().and_then(|_| baselines.next()),
            baseline_workspace_bytes: unfused.as_ref().map(|unfused| unfused.workspace_bytes),
            baseline_error,
        };
        let measured = |((row, c), outcome): (&(Row, Contestant<'_>), &Outcome)| {
            row.clone().measured(c.figures(), *outcome, &shared)
        };
        Ok(contestants.iter().zip(own).map(measured).collect())
    }

    /// One case of few queries: a row for the plan's choice or the pinned kernel, with the forward kernel as its baseline.
    fn decode(&self, recipe: &Recipe, pinned: Option<Variant>) -> Row {
        let subject = Subject::new(recipe);
        let kernel = pinned.map(|variant| variant.kernel);
        let row = Row { op: "softmax_decode".into(), ..Row::new(recipe, &label(pinned)) };
        row.by(decode::kernel(&self.engine, &subject, kernel), pinned).filled(|| {
            let contestant = decode::Contestant::new(&self.engine, &self.clock, &subject, kernel)?;
            let forward = Contestant::new(&self.engine, &subject, None)?;
            let runners = [Runner::Decode(&contestant), Runner::Kernel(&forward)];
            let figures = contestant.figures();
            let (outcome, baseline) = self.contest(&figures, &runners)?;
            Ok((figures, outcome, Shared { baseline, ..Shared::default() }))
        })
    }

    /// One backward pass of softmax attention: a row for the plan's choice or the pinned kernel.
    fn backward(&self, recipe: &Recipe, pinned: Option<Variant>) -> Row {
        let subject = backward::Subject::new(recipe);
        let kernel = backward::kernel(&self.engine, &subject, pinned);
        Row::new(recipe, &label(pinned)).by(kernel, pinned).filled(|| {
            let contestant = backward::Contestant::new(&self.engine, &subject, pinned)?;
            let figures = contestant.figures();
            let (outcome, _) = self.contest(&figures, &[Runner::Backward(&contestant)])?;
            Ok((figures, outcome, Shared::default()))
        })
    }

    /// One case of linear attention: a row for the plan's choice or the pinned kernel, with the token-by-token scan as its baseline.
    fn linear(&self, recipe: &LinearRecipe, pinned: Option<Variant>) -> Row {
        let subject = linear::Subject::new(recipe);
        let kernel = linear::kernel(&self.engine, &subject, pinned);
        Row::linear(recipe, subject.op(), &label(pinned)).by(kernel, pinned).filled(|| {
            let contestant = linear::Contestant::new(&self.engine, &subject, pinned)?;
            let scan = linear::Scan::new(&self.engine, &self.clock, &subject, self.effort.longest_baseline);
            let baseline_error = scan.as_ref().err().map(|error| format!("{error:#}"));
            let scan = scan.ok().flatten();
            let mut runners = vec![Runner::Linear(&contestant)];
            runners.extend(scan.as_ref().map(Runner::Scan));
            let figures = contestant.figures();
            let (outcome, baseline) = self.contest(&figures, &runners)?;
            Ok((figures, outcome, Shared { baseline, baseline_error, ..Shared::default() }))
        })
    }

    /// One case of BASED's linear attention: a row for the plan's choice or the pinned kernel.
    fn based(&self, recipe: &BasedRecipe, pinned: Option<Variant>) -> Row {
        let subject = based::Subject::new(recipe);
        Row::based(recipe, &label(pinned)).by(subject.kernel(&self.engine, pinned), pinned).filled(|| {
            let contestant = based::Contestant::new(&self.engine, &subject, pinned)?;
            let figures = contestant.figures()?;
            let (outcome, _) = self.contest(&figures, &[Runner::Based(&contestant)])?;
            Ok((figures, outcome, Shared::default()))
        })
    }

    /// What came out for the first runner, and the median of the second if there is one.
    fn contest(&self, problem: &Figures, runners: &[Runner<'_>]) -> Result<(Outcome, Option<f64>)> {
        let outcomes = contest(&self.clock, &self.ceilings, self.effort, problem, runners)?;
        Ok((*outcomes.first().context("no outcome")?, outcomes.get(1).map(|outcome| outcome.time.median)))
    }

    /// A baseline that passed its checks; `None` if it would take too long.
    #[expect(clippy::cast_precision_loss, reason = "a prediction")]
    fn baseline<'a>(
        &self,
        form: Form,
        [full, reduced]: [&'a Unfused<'a>; 2],
        subject: &Subject,
        flops: u64,
    ) -> Result<Option<Passes<'a>>> {
        // Rates that are reached about everywhere.
        let share = if form == Form::Naive { 40.0 } else { 8.0 };
        if flops as f64 / (self.ceilings.fma_rate / share) > self.effort.longest_baseline {
            return Ok(None);
        }
        let small = reduced.passes(form)?;
        small.sample(&self.clock, 1)?;
        small.verify(&subject.reduced_reference)?;
        let passes = full.passes(form)?;
        passes.sample(&self.clock, 1)?;
        passes.verify(&subject.full_reference)?;
        Ok(Some(passes))
    }
}

/// What a row's numbers are of.
fn label(pinned: Option<Variant>) -> String {
    pinned.map_or("plan".into(), |variant| variant.to_string())
}

fn same_pipeline(a: &Contestant<'_>, b: &Contestant<'_>) -> bool {
    a.plan.details().key == b.plan.details().key
}
