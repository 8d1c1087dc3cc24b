//! `cargo xtask verify`: the whole catalogue against the oracle, by every kernel that can serve.

use std::collections::BTreeMap;
use std::fs;
use std::path::PathBuf;
use std::time::Instant;

use anyhow::{Context, Result, ensure};
use indicatif::{ProgressBar, ProgressStyle};
use serde::Serialize;
use serde_json::to_value;
use wattn::{Kernel, PlanError, Split};
use wattn_cases::{
    BasedCase, BasedRecipe, Case, LinearCase, LinearRecipe, Recipe, Reference, References, SoftmaxCase,
    based_catalogue, catalogue, decode_catalogue, linear_catalogue, write,
};
use wattn_tests::{Ran, Variant, decode_kernels, judge, judge_based, judge_decode, judge_linear, plan_decode, rows};

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

/// Stretches of keys so short that small cases of few queries have several.
const SHORT: Split = Split::Keys(80);

/// A kernel that cannot serve a case, and why.
#[derive(Debug, Serialize)]
struct Skip {
    case: String,
    kernel: String,
    reason: String,
}

/// A problem of the catalogue, not built yet.
#[derive(Debug, Clone, Copy)]
enum Problem {
    Softmax(Recipe),
    /// Rounded to f16, for the kernel that takes nothing else.
    Half(Recipe),
    Decode(Recipe),
    HalfDecode(Recipe),
    Linear(LinearRecipe),
    HalfLinear(LinearRecipe),
    Based(BasedRecipe),
    HalfBased(BasedRecipe),
}

/// A case with what must come out of it.
enum Judge {
    Softmax(Box<SoftmaxCase>, Reference),
    Half(Box<SoftmaxCase>, Reference),
    Decode(Box<SoftmaxCase>, Reference),
    HalfDecode(Box<SoftmaxCase>, Reference),
    Linear(Box<LinearCase>, References),
    HalfLinear(Box<LinearCase>, References),
    Based(Box<BasedCase>, References),
    HalfBased(Box<BasedCase>, References),
}

impl Problem {
    fn all() -> Vec<Self> {
        let softmax = catalogue().into_iter().flat_map(|recipe| {
            let case = recipe.build();
            let half = case.in_f16().map(|_| Self::Half(recipe));
            [Some(Self::Softmax(recipe)), half].into_iter().flatten()
        });
        let linear = linear_catalogue().into_iter().flat_map(|recipe| {
            let half = recipe.build().in_f16().map(|_| Self::HalfLinear(recipe));
            [Some(Self::Linear(recipe)), half].into_iter().flatten()
        });
        let based = based_catalogue().into_iter().flat_map(|recipe| {
            let half = recipe.build().in_f16().map(|_| Self::HalfBased(recipe));
            [Some(Self::Based(recipe)), half].into_iter().flatten()
        });
        let decode = decode_catalogue().into_iter().flat_map(|recipe| {
            let half = recipe.build().in_f16().map(|_| Self::HalfDecode(recipe));
            [Some(Self::Decode(recipe)), half].into_iter().flatten()
        });
        softmax.chain(decode).chain(linear).chain(based).collect()
    }

    fn name(&self) -> &'static str {
        match self {
            Self::Softmax(recipe) | Self::Half(recipe) | Self::Decode(recipe) | Self::HalfDecode(recipe) => recipe.name,
            Self::Linear(recipe) | Self::HalfLinear(recipe) => recipe.name,
            Self::Based(recipe) | Self::HalfBased(recipe) => recipe.name,
        }
    }

    fn is_half(&self) -> bool {
        matches!(self, Self::Half(_) | Self::HalfDecode(_) | Self::HalfLinear(_) | Self::HalfBased(_))
    }

    /// The name, told apart from that of the case that it is rounded from.
    fn label(&self) -> String {
        if self.is_half() { format!("{} in f16", self.name()) } else { self.name().to_owned() }
    }

    fn build(&self) -> Judge {
        match self {
            Self::Softmax(recipe) => {
                let case = recipe.build();
                let reference = case.reference(rows(&case));
                Judge::Softmax(Box::new(case), reference)
            }
            Self::Half(recipe) => {
                let case = recipe.build().in_f16().expect("such problems alone are listed");
                let reference = case.reference(rows(&case));
                Judge::Half(Box::new(case), reference)
            }
            Self::Decode(recipe) => {
                let case = recipe.build();
                let reference = case.reference(rows(&case));
                Judge::Decode(Box::new(case), reference)
            }
            Self::HalfDecode(recipe) => {
                let case = recipe.build().in_f16().expect("such problems alone are listed");
                let reference = case.reference(rows(&case));
                Judge::HalfDecode(Box::new(case), reference)
            }
            Self::Linear(recipe) => {
                let case = recipe.build();
                let reference = case.reference();
                Judge::Linear(Box::new(case), reference)
            }
            Self::HalfLinear(recipe) => {
                let case = recipe.build().in_f16().expect("such problems alone are listed");
                let reference = case.reference();
                Judge::HalfLinear(Box::new(case), reference)
            }
            Self::Based(recipe) => {
                let case = recipe.build();
                let reference = case.reference();
                Judge::Based(Box::new(case), reference)
            }
            Self::HalfBased(recipe) => {
                let case = recipe.build().in_f16().expect("such problems alone are listed");
                let reference = case.reference();
                Judge::HalfBased(Box::new(case), reference)
            }
        }
    }
}

impl Judge {
    fn variants(&self, device: &Device, pinned: Option<Kernel>) -> Vec<Variant> {
        let mut variants = match self {
            Self::Softmax(case, _) => Variant::of(case, device.engine.capabilities()),
            Self::Half(..) | Self::HalfDecode(..) => vec![Kernel::Matrix.into()],
            Self::Decode(case, _) => decode_kernels(case).map(Variant::from).collect(),
            Self::Linear(case, _) => Variant::linear_of([case.q.storage, case.k.storage]),
            Self::Based(case, _) => Variant::linear_of([case.q.storage, case.k.storage]),
            Self::HalfLinear(..) | Self::HalfBased(..) => Variant::schedules(Kernel::Matrix).to_vec(),
        };
        variants.retain(|variant| pinned.is_none_or(|kernel| kernel == variant.kernel));
        variants
    }

    fn refusal(&self, device: &Device, variant: Variant) -> Result<Option<String>> {
        match self {
            Self::Softmax(case, _) | Self::Half(case, _) => variant.refusal(device.engine.capabilities(), case),
            Self::Decode(case, _) | Self::HalfDecode(case, _) => {
                match plan_decode(&device.engine, case, Some(variant.kernel), SHORT)? {
                    Err(PlanError::Kernel { reason, .. }) => Ok(Some(reason)),
                    _ => Ok(None),
                }
            }
            Self::Linear(case, _) | Self::HalfLinear(case, _) => {
                variant.linear_refusal(device.engine.capabilities(), case)
            }
            Self::Based(case, _) | Self::HalfBased(case, _) => {
                variant.based_refusal(device.engine.capabilities(), case)
            }
        }
    }

    fn run(&self, device: &Device, variant: Variant) -> Result<Ran> {
        match self {
            Self::Softmax(case, reference) | Self::Half(case, reference) => {
                let (plan, comparisons) = judge(&device.engine, case, Some(variant), reference)?;
                Ok(Ran::softmax(&plan, comparisons))
            }
            Self::Decode(case, reference) | Self::HalfDecode(case, reference) => {
                let kernel = Some(variant.kernel);
                let (plan, comparisons) = judge_decode(&device.engine, case, kernel, SHORT, reference)?;
                Ok(Ran::decode(&plan, comparisons.into()))
            }
            Self::Linear(case, reference) | Self::HalfLinear(case, reference) => {
                let (plan, comparisons) = judge_linear(&device.engine, case, Some(variant), reference)?;
                Ok(Ran::linear(&plan, comparisons))
            }
            Self::Based(case, reference) | Self::HalfBased(case, reference) => {
                let (plan, comparisons) = judge_based(&device.engine, case, Some(variant), reference)?;
                Ok(Ran::based(&plan, comparisons))
            }
        }
    }

    fn outputs(&self) -> Vec<&'static str> {
        match self {
            Self::Softmax(_, reference) | Self::Half(_, reference) => {
                ["out", "lse"].into_iter().chain(reference.gradients.keys().copied()).collect()
            }
            Self::Decode(..) | Self::HalfDecode(..) => vec!["out", "lse"],
            Self::Linear(_, reference) | Self::HalfLinear(_, reference) => reference.keys().copied().collect(),
            Self::Based(_, reference) | Self::HalfBased(_, reference) => reference.keys().copied().collect(),
        }
    }

    /// The case with its expected outputs.
    fn expecting(&self) -> Case {
        match self {
            Self::Softmax(case, _) | Self::Half(case, _) | Self::Decode(case, _) | Self::HalfDecode(case, _) => {
                let mut case = case.as_ref().clone();
                case.expect_reference();
                case.into()
            }
            Self::Linear(case, _) | Self::HalfLinear(case, _) => {
                let mut case = case.as_ref().clone();
                case.expect_reference();
                case.into()
            }
            Self::Based(case, _) | Self::HalfBased(case, _) => {
                let mut case = case.as_ref().clone();
                case.expect_reference();
                case.into()
            }
        }
    }
}

/// What the run has found so far.
struct Run {
    device: Device,
    pinned: Option<Kernel>,
    progress: ProgressBar,
    rows: Vec<Row>,
    skipped: Vec<Skip>,
    /// Runs of each case, by [`Problem::label`].
    runs: BTreeMap<String, usize>,
    failed: usize,
}

/// Checks every case; fails, after all have run, if any did, if no kernel served one, or if nothing was compared.
pub(crate) fn run(args: &Args) -> Result<()> {
    let device = args.selection.device()?;
    println!("{device}");
    let filter = args.filter.as_deref().unwrap_or_default();
    let pinned = args.selection.kernel;
    let matrices = pinned.map_or(device.engine.capabilities().matrix.is_some(), |kernel| kernel == Kernel::Matrix);
    let mut problems = Problem::all();
    problems.retain(|problem| problem.name().contains(filter) && (matrices || !problem.is_half()));

    let start = Instant::now();
    let progress = progress(problems.len());
    let mut run =
        Run { device, pinned, progress, rows: Vec::new(), skipped: Vec::new(), runs: BTreeMap::new(), failed: 0 };
    for problem in &problems {
        run.progress.set_message(problem.name());
        run.check(problem);
        run.progress.inc(1);
    }
    run.progress.finish_and_clear();
    let unserved: Vec<&str> =
        run.runs.iter().filter(|&(_, &runs)| runs == 0).map(|(label, _)| label.as_str()).collect();
    let mut reasons = BTreeMap::<String, usize>::new();
    for skip in &run.skipped {
        *reasons.entry(format!("{}: {}", skip.kernel, skip.reason)).or_default() += 1;
    }
    reasons.iter().for_each(|(reason, count)| println!("{count:>5} skipped, {reason}"));
    let elements: usize = run.rows.iter().map(|row| row.elements).sum();
    let runs: usize = run.runs.values().sum();
    println!(
        "{} cases, {runs} runs: {elements} elements compared, {} runs skipped, {} failed, {:.0} s",
        problems.len(),
        run.skipped.len(),
        run.failed,
        start.elapsed().as_secs_f64()
    );
    if let Some(path) = &args.json {
        let lists = [("skipped", to_value(&run.skipped)?), ("unserved", to_value(&unserved)?)];
        write_json(path, &run.device, &run.rows, lists)?;
    }
    ensure!(run.failed == 0, "{} of {runs} runs failed", run.failed);
    ensure!(pinned.is_some() || unserved.is_empty(), "no kernel serves {}", unserved.join(", "));
    ensure!(!run.rows.is_empty(), "nothing was compared");
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
    fn check(&mut self, problem: &Problem) {
        let (name, case) = (problem.label(), problem.build());
        let (first, mut served) = (self.rows.len(), 0);
        let mut refusals = Vec::new();
        for variant in case.variants(&self.device, self.pinned) {
            if let Ok(Some(reason)) = case.refusal(&self.device, variant) {
                refusals.push(format!("skip  {name:<34} {variant}: {reason}"));
                self.skipped.push(Skip { case: name.clone(), kernel: variant.to_string(), reason });
                continue;
            }
            served += 1;
            self.judge(problem, &case, variant);
        }
        let judged = &self.rows[first..];
        if served > 0 && judged.iter().all(|row| row.pass) {
            self.say(&format!("ok    {name:<34} {}; {served} kernel variants", worst(judged)));
        }
        self.runs.insert(name, served);
        refusals.iter().for_each(|line| self.say(line));
    }

    fn judge(&mut self, problem: &Problem, case: &Judge, variant: Variant) {
        let name = &problem.label();
        let (mut judged, error) = match guarded(|| case.run(&self.device, variant)) {
            Ok(ran) => (Row::compared(name, ran), "was not compared".to_owned()),
            Err(error) => (Vec::new(), format!("{error:#}")),
        };
        // An output without a row would pass for right.
        for output in case.outputs() {
            if judged.iter().all(|row| row.output.as_deref() != Some(output)) {
                let row = Row::failed(name, Some(output), error.as_str());
                judged.push(Row { kernel: Some(variant.kernel.name()), ..row });
            }
        }
        if judged.iter().any(|row| !row.pass) {
            self.failed += 1;
            for row in judged.iter().filter(|row| !row.pass) {
                let [output, error] = [&row.output, &row.error].map(|text| text.as_deref().unwrap_or_default());
                self.say(&format!("FAIL  {name:<34} {variant} {output}: {error}"));
            }
            let again = self.dump(problem, case, variant);
            self.say(&format!("      {}", again.unwrap_or_else(|error| format!("it could not be saved: {error:#}"))));
        }
        self.rows.extend(judged);
    }

    /// Writes the case with its expected outputs, where a file can say how it runs; returns the command that runs it again.
    fn dump(&self, problem: &Problem, case: &Judge, variant: Variant) -> Result<String> {
        let trusted = if self.device.trusted { " --trusted" } else { "" };
        if matches!(case, Judge::Decode(..) | Judge::HalfDecode(..)) {
            // A case file does not say that a plan for few queries runs it.
            let (name, label) = (problem.name(), &self.device.label);
            return Ok(format!(
                "cargo xtask verify --filter {name} --adapter {label} --kernel {}{trusted}",
                variant.kernel
            ));
        }
        let folder = target().join("failures");
        fs::create_dir_all(&folder).with_context(|| folder.display().to_string())?;
        let path = folder.join(format!("{}.safetensors", problem.label().replace(['/', ' '], "-")));
        write(&path, case.expecting())?;
        let shape = if variant.gpu_shape { " --gpu-shape" } else { "" };
        let (path, label) = (path.display(), &self.device.label);
        Ok(format!("cargo xtask replay {path} --adapter {label} --kernel {}{shape}{trusted}", variant.kernel))
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
