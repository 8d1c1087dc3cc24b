//! `cargo xtask verify`: the whole catalogue against the oracle, by every kernel that can serve.

use std::fs;
use std::path::PathBuf;
use std::time::Instant;

use anyhow::{Context, Result, ensure};
use indicatif::{ProgressBar, ProgressStyle};
use serde::Serialize;
use serde_json::to_value;
use wattn_cases::{Recipe, Reference, SoftmaxCase, catalogue, write};
use wattn_tests::{Variant, judge, rows};

use crate::report::{Row, guarded, target, write_json};
use crate::select::{Device, Selection};

/// What `verify` takes.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// Only cases whose name contains this
    #[arg(long, value_name = "S")]
    filter: Option<String>,
    #[command(flatten)]
    selection: Selection,
    /// Writes the rows here
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
}

/// A kernel that cannot serve a case, and why.
#[derive(Debug, Serialize)]
struct Skip {
    case: String,
    kernel: String,
    reason: String,
}

/// What the run has found so far.
struct Run {
    device: Device,
    variants: Vec<Variant>,
    progress: ProgressBar,
    rows: Vec<Row>,
    skipped: Vec<Skip>,
    runs: usize,
    failed: usize,
}

/// Checks every case; fails, after all have run, if any did or if nothing was compared.
pub(crate) fn run(args: &Args) -> Result<()> {
    let device = args.selection.device()?;
    println!("{device}");
    let filter = args.filter.as_deref().unwrap_or_default();
    let recipes: Vec<Recipe> = catalogue().into_iter().filter(|recipe| recipe.name.contains(filter)).collect();
    let pinned = args.selection.kernel;
    let mut variants = Variant::all(device.engine.capabilities());
    variants.retain(|variant| pinned.is_none_or(|kernel| kernel == variant.kernel));

    let start = Instant::now();
    let progress = progress(recipes.len());
    let mut run = Run { device, variants, progress, rows: Vec::new(), skipped: Vec::new(), runs: 0, failed: 0 };
    for recipe in &recipes {
        run.progress.set_message(recipe.name);
        run.check(recipe);
        run.progress.inc(1);
    }
    run.progress.finish_and_clear();
    if let Some(path) = &args.json {
        write_json(path, &run.device, &run.rows, [("skipped", to_value(&run.skipped)?)])?;
    }

    let elements: usize = run.rows.iter().map(|row| row.elements).sum();
    println!(
        "{} cases, {} runs: {elements} elements compared, {} runs skipped, {} failed, {:.0} s",
        recipes.len(),
        run.runs,
        run.skipped.len(),
        run.failed,
        start.elapsed().as_secs_f64()
    );
    ensure!(run.failed == 0, "{} of {} runs failed", run.failed, run.runs);
    ensure!(elements > 0, "nothing was compared");
    Ok(())
}

/// Drawn on a terminal only.
fn progress(cases: usize) -> ProgressBar {
    let style = ProgressStyle::with_template("{wide_bar} {pos}/{len} {msg}");
    ProgressBar::new(cases as u64).with_style(style.unwrap_or_else(|_| ProgressStyle::default_bar()))
}

impl Run {
    fn say(&self, line: &str) {
        self.progress.suspend(|| println!("{line}"));
    }

    /// One case by all variants.
    fn check(&mut self, recipe: &Recipe) {
        let case = recipe.build();
        let reference = case.reference(rows(&case));
        let (first, mut served) = (self.rows.len(), 0);
        let mut refusals = Vec::new();
        for variant in self.variants.clone() {
            if let Ok(Some(reason)) = variant.refusal(&self.device.engine, &case) {
                refusals.push(format!("skip  {:<34} {variant}: {reason}", case.name));
                self.skipped.push(Skip { case: case.name.clone(), kernel: variant.to_string(), reason });
                continue;
            }
            served += 1;
            self.judge(&case, variant, &reference);
        }
        let judged = &self.rows[first..];
        if served > 0 && judged.iter().all(|row| row.pass) {
            self.say(&format!("ok    {:<34} {}; {served} kernel variants", case.name, worst(judged)));
        }
        refusals.iter().for_each(|line| self.say(line));
    }

    fn judge(&mut self, case: &SoftmaxCase, variant: Variant, reference: &Reference) {
        self.runs += 1;
        let judged = match guarded(|| judge(&self.device.engine, case, Some(variant), reference)) {
            Ok((plan, comparisons)) => comparisons.map(|comparison| Row::compared(&case.name, &plan, comparison)),
            Err(error) => ["out", "lse"].map(|output| Row {
                kernel: Some(variant.kernel.name()),
                ..Row::failed(&case.name, Some(output), format!("{error:#}"))
            }),
        };
        if judged.iter().any(|row| !row.pass) {
            self.failed += 1;
            for row in judged.iter().filter(|row| !row.pass) {
                let [output, error] = [&row.output, &row.error].map(|text| text.as_deref().unwrap_or_default());
                self.say(&format!("FAIL  {:<34} {variant} {output}: {error}", case.name));
            }
            let again = self.dump(case, variant);
            self.say(&format!("      {}", again.unwrap_or_else(|error| format!("it could not be saved: {error:#}"))));
        }
        self.rows.extend(judged);
    }

    /// Writes the case with its expected outputs; returns the command that runs it again.
    fn dump(&self, case: &SoftmaxCase, variant: Variant) -> Result<String> {
        let folder = target().join("failures");
        fs::create_dir_all(&folder).with_context(|| folder.display().to_string())?;
        let path = folder.join(format!("{}.safetensors", case.name.replace('/', "-")));
        let mut case = case.clone();
        case.expect_reference();
        write(&path, &case)?;
        let shape = if variant.shape.is_some() { " --gpu-shape" } else { "" };
        let (path, label) = (path.display(), &self.device.label);
        Ok(format!("cargo xtask replay {path} --adapter {label} --kernel {}{shape}", variant.kernel))
    }
}

/// The output nearest to its tolerance.
fn worst(rows: &[Row]) -> String {
    let share = |row: &Row| row.rms_ratio.unwrap_or(f64::NAN) / row.tolerance.unwrap_or(f64::NAN);
    let Some(row) = rows.iter().max_by(|a, b| share(a).total_cmp(&share(b))) else { return String::new() };
    let text = |text: Option<&str>| text.unwrap_or_default().to_owned();
    format!(
        "{} {:.1e} of {:.1e} by {}",
        text(row.output.as_deref()),
        row.rms_ratio.unwrap_or(f64::NAN),
        row.tolerance.unwrap_or(f64::NAN),
        text(row.kernel)
    )
}
