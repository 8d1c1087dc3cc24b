//! `cargo xtask bench`: how fast each case is on this device, against what the device can do and against unfused passes.
//!
//! Nothing is timed that was not found right in the same run.

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

use crate::report::guarded;
use crate::select::{Selection, trusted};

use ceilings::Ceilings;
use clock::Clock;
use compare::Verdict;
use contest::{Contestant, Effort, Runner, Subject, contest};
use device::Device;
use row::{Row, Run, Shared};
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
/// The case that all kernels are timed on.
const SHOWCASE: &str = "softmax/full_1024";

/// How fast the kernels are on a device, against its own ceilings
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// Only cases whose name contains this; `lengths` for time against length, `generation` for decode
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
    let adapter = args.selection.adapter()?;
    let before = args.baseline.as_deref().map(compare::load).transpose()?;
    if let Some(before) = &before {
        compare::comparable(before, &device::identity(&adapter.get_info()), args.selection.trusted)?;
    }
    let engine = device::open(&adapter)?;
    let pinned = args.selection.variant();
    let picked = |name: &str| match (&args.filter, args.quick) {
        (Some(filter), _) => name.contains(filter.as_str()),
        (None, true) => QUICK.contains(&name),
        (None, false) => true,
    };
    let (sweep, generate) = (picked("lengths"), picked("generation"));
    // What the sweep times must have been found right in this run.
    let wanted = |name: &str| picked(name) || (sweep && lengths::is_gate(name));
    let recipes: Vec<Recipe> = bench_catalogue().into_iter().filter(|recipe| wanted(recipe.name)).collect();
    let linear: Vec<LinearRecipe> = linear_bench_catalogue().into_iter().filter(|recipe| wanted(recipe.name)).collect();
    let based: Vec<BasedRecipe> = based_bench_catalogue().into_iter().filter(|recipe| wanted(recipe.name)).collect();
    let decode: Vec<Recipe> = decode_bench_catalogue().into_iter().filter(|recipe| wanted(recipe.name)).collect();
    let cases = recipes.len() + decode.len() + linear.len() + based.len();
    ensure!(cases > 0 || generate, "no case matches {:?}", args.filter.unwrap_or_default());

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
    let effort = if args.quick { Effort::QUICK } else { Effort::FULL };
    let bench = Bench { engine, trusted, clock, ceilings, effort, bar: bar.clone() };
    let mut rows = Vec::new();
    for recipe in &recipes {
        bar.inc(1);
        bar.set_message(recipe.name);
        if recipe.backward {
            rows.push(bench.backward(recipe, pinned)?);
        } else {
            rows.extend(bench.case(recipe, pinned)?);
        }
    }
    for recipe in &decode {
        bar.inc(1);
        bar.set_message(recipe.name);
        rows.push(bench.decode(recipe, pinned)?);
    }
    for recipe in &linear {
        bar.inc(1);
        bar.set_message(recipe.name);
        rows.push(bench.linear(recipe, pinned)?);
    }
    for recipe in &based {
        bar.inc(1);
        bar.set_message(recipe.name);
        rows.push(bench.based(recipe, pinned)?);
    }
    let mut lengths = Vec::new();
    if sweep {
        bar.set_message("time against length");
        let passed = |case: &str| rows.iter().any(|row: &Row| row.case == case && row.median_us.is_some());
        lengths = lengths::measure(&bench.engine, &bench.clock, passed)?;
    }
    let mut generation = Vec::new();
    if generate {
        bar.set_message("generation");
        generation = generation::measure(&bench.engine, &bench.clock);
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
        ensure!(!changes.is_empty(), "the baseline has none of these cases");
        let alone = run.rows.len() - changes.len();
        if alone > 0 {
            println!("{alone} without a counterpart");
        }
        slower = changes.iter().filter(|change| change.verdict == Verdict::Slower).count();
    }
    let wrong = |row: &&Row| row.error.is_some() || row.baseline_error.is_some();
    let stuck = run.generation.iter().filter(|op| op.error.is_some()).map(|op| op.op.as_str());
    let failed: Vec<&str> = run.rows.iter().filter(wrong).map(|row| row.case.as_str()).chain(stuck).collect();
    ensure!(failed.is_empty(), "{} FAILED: {}", failed.len(), failed.join(", "));
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
    fn case(&self, recipe: &Recipe, pinned: Option<Variant>) -> Result<Vec<Row>> {
        let subject = Subject::new(recipe);
        let mut rows = Vec::new();
        let mut contestants = Vec::new();
        let mut variants = vec![pinned];
        if pinned.is_none() && recipe.name == SHOWCASE {
            let device = self.engine.capabilities();
            for variant in Variant::all(device) {
                match variant.refusal(device, &subject.full)? {
                    Some(reason) => {
                        self.bar.suspend(|| println!("{}: without {variant}, since {reason}", recipe.name));
                    }
                    None => variants.push(Some(variant)),
                }
            }
        }
        for variant in variants {
            let label = variant.map_or("plan".into(), |v| v.to_string());
            let row = Row::new(recipe, &label);
            match guarded(|| Contestant::new(&self.engine, &subject, variant)) {
                // The plan's own choice is there already.
                Ok(new) if contestants.iter().any(|(_, c): &(_, Contestant<'_>)| same_pipeline(c, &new)) => {}
                Ok(contestant) => contestants.push((row, contestant)),
                Err(error) => rows.push(row.failed(&error)),
            }
        }
        let trusted = self.trusted.as_ref().filter(|_| pinned.is_none() && recipe.name == SHOWCASE);
        if let Some(engine) = trusted {
            let row = Row::new(recipe, "trusted");
            match guarded(|| Contestant::new(engine, &subject, None)) {
                Ok(contestant) => contestants.push((row, contestant)),
                Err(error) => rows.push(row.failed(&error)),
            }
        }
        let Some((_, first)) = contestants.first() else { return Ok(rows) };

        let unfused = Unfused::new(&self.engine, &subject.full);
        let reduced = Unfused::new(&self.engine, &subject.reduced);
        let flops = first.plan.details().flops;
        let [naive, tiled] = [Form::Naive, Form::Tiled].map(|form| match (&unfused, &reduced) {
            (Some(full), Some(reduced)) => self.baseline(form, [full, reduced], &subject, flops),
            _ => Ok(None),
        });
        let error = [&naive, &tiled].into_iter().find_map(|form| form.as_ref().err());
        let baseline_error = error.map(|error| format!("{error:#}"));
        let [naive, tiled] = [naive, tiled].map(|form| form.ok().flatten());

        let mut runners: Vec<Runner<'_>> = contestants.iter().map(|(_, c)| Runner::Kernel(c)).collect();
        runners.extend([&naive, &tiled].into_iter().flatten().map(Runner::Baseline));
        let outcomes = contest(&self.clock, &self.ceilings, self.effort, &runners)?;

        let (own, baselines) = outcomes.split_at(contestants.len());
        let mut baselines = baselines.iter().map(|outcome| outcome.time.median);
        let shared = Shared {
            baseline: naive.as_ref().and_then(|_| baselines.next()),
            tiled: tiled.as_ref().and_then(|_| baselines.next()),
            baseline_workspace_bytes: unfused.as_ref().map(|unfused| unfused.workspace_bytes),
            baseline_error,
        };
        let measured =
            contestants.iter().zip(own).map(|((row, c), outcome)| row.clone().measured(c.figures(), *outcome, &shared));
        rows.splice(0..0, measured.collect::<Vec<_>>());
        Ok(rows)
    }

    /// One case of few queries: a row for the plan's choice or the pinned kernel, with the forward kernel as its baseline.
    fn decode(&self, recipe: &Recipe, pinned: Option<Variant>) -> Result<Row> {
        let subject = Subject::new(recipe);
        let label = pinned.map_or("plan".into(), |v| v.to_string());
        let row = Row { op: "softmax_decode".into(), ..Row::new(recipe, &label) };
        let kernel = pinned.map(|variant| variant.kernel);
        let contestant = match guarded(|| decode::Contestant::new(&self.engine, &subject, kernel)) {
            Ok(contestant) => contestant,
            Err(error) => return Ok(row.failed(&error)),
        };
        let forward = match guarded(|| Contestant::new(&self.engine, &subject, None)) {
            Ok(forward) => forward,
            Err(error) => return Ok(row.failed(&error)),
        };
        let runners = [Runner::Decode(&contestant), Runner::Kernel(&forward)];
        let outcomes = contest(&self.clock, &self.ceilings, self.effort, &runners)?;
        let baseline = outcomes.get(1).map(|outcome| outcome.time.median);
        let outcome = outcomes.first().context("no outcome")?;
        Ok(row.measured(contestant.figures(), *outcome, &Shared { baseline, ..Shared::default() }))
    }

    /// One backward pass of softmax attention: a row for the plan's choice or the pinned kernel.
    fn backward(&self, recipe: &Recipe, pinned: Option<Variant>) -> Result<Row> {
        let row = Row::new(recipe, &pinned.map_or("plan".into(), |v| v.to_string()));
        let subject = backward::Subject::new(recipe);
        let contestant = match guarded(|| backward::Contestant::new(&self.engine, &subject, pinned)) {
            Ok(contestant) => contestant,
            Err(error) => return Ok(row.failed(&error)),
        };
        let outcomes = contest(&self.clock, &self.ceilings, self.effort, &[Runner::Backward(&contestant)])?;
        let outcome = outcomes.first().context("no outcome")?;
        Ok(row.measured(contestant.figures(), *outcome, &Shared::default()))
    }

    /// One case of linear attention: a row for the plan's choice or the pinned kernel, with the token-by-token scan as its baseline.
    fn linear(&self, recipe: &LinearRecipe, pinned: Option<Variant>) -> Result<Row> {
        let subject = linear::Subject::new(recipe);
        let row = Row::linear(recipe, subject.op(), &pinned.map_or("plan".into(), |v| v.to_string()));
        let contestant = match guarded(|| linear::Contestant::new(&self.engine, &subject, pinned)) {
            Ok(contestant) => contestant,
            Err(error) => return Ok(row.failed(&error)),
        };
        let scan = linear::Scan::new(&self.engine, &self.clock, &subject);
        let baseline_error = scan.as_ref().err().map(|error| format!("{error:#}"));
        let scan = scan.ok().flatten();
        let mut runners = vec![Runner::Linear(&contestant)];
        runners.extend(scan.as_ref().map(Runner::Scan));
        let outcomes = contest(&self.clock, &self.ceilings, self.effort, &runners)?;
        let baseline = outcomes.get(1).map(|outcome| outcome.time.median);
        let shared = Shared { baseline, baseline_error, ..Shared::default() };
        let outcome = outcomes.first().context("no outcome")?;
        Ok(row.measured(contestant.figures(), *outcome, &shared))
    }

    /// One case of BASED's linear attention: a row for the plan's choice or the pinned kernel.
    fn based(&self, recipe: &BasedRecipe, pinned: Option<Variant>) -> Result<Row> {
        let row = Row::based(recipe, &pinned.map_or("plan".into(), |v| v.to_string()));
        let subject = based::Subject::new(recipe);
        let contestant = match guarded(|| based::Contestant::new(&self.engine, &subject, pinned)) {
            Ok(contestant) => contestant,
            Err(error) => return Ok(row.failed(&error)),
        };
        let outcomes = contest(&self.clock, &self.ceilings, self.effort, &[Runner::Based(&contestant)])?;
        let outcome = outcomes.first().context("no outcome")?;
        Ok(row.measured(contestant.figures()?, *outcome, &Shared::default()))
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

fn same_pipeline(a: &Contestant<'_>, b: &Contestant<'_>) -> bool {
    a.plan.details().key == b.plan.details().key
}
