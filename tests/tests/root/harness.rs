//! The harness can fail: a right result of a device, made wrong in one way each, is caught.

use std::sync::{Arc, OnceLock};

use anyhow::{Result, ensure};
use libtest_mimic::Trial;
use wattn::wgpu::CommandEncoderDescriptor;
use wattn::{Engine, Extent, Operands, Plan};
use wattn_cases::{Comparison, Recipe, Reference, Rows, SoftmaxCase};
use wattn_tests::{Loaded, Outputs, attention, extent};

use crate::gpu::Gpu;

/// A case with what a device made of it, found right.
struct Sample {
    case: SoftmaxCase,
    reference: Reference,
    outputs: Outputs,
    comparisons: [Comparison; 2],
}

impl Sample {
    fn new(gpu: &Gpu) -> Result<Self> {
        let case = Recipe { name: "harness", queries: 33, keys: 47, kv_lens: &[41], ..Recipe::default() }.build();
        let outputs = Loaded::new(&gpu.engine, &case).run(&gpu.engine, &plan(&gpu.engine, &case)?)?;
        let reference = case.reference(Rows::All);
        let comparisons = outputs.compare(&case, &reference);
        comparisons.iter().try_for_each(|comparison| gpu.check(comparison))?;
        Ok(Self { case, reference, outputs, comparisons })
    }

    fn compare(&self, outputs: &Outputs) -> [Comparison; 2] {
        outputs.compare(&self.case, &self.reference)
    }
}

fn plan(engine: &Engine, case: &SoftmaxCase) -> Result<Plan> {
    Ok(engine.plan(&attention(case)?, extent(case)?)?)
}

/// Name and body of a trial.
type Mutation = (&'static str, fn(&Gpu, &Sample) -> Result<()>);

const MUTATIONS: [Mutation; 9] = [
    ("one_element_off", one_element_off),
    ("one_row_scaled", one_row_scaled),
    ("a_key_dropped", a_key_dropped),
    ("heads_swapped", heads_swapped),
    ("rows_shifted", rows_shifted),
    ("nothing_written", nothing_written),
    ("a_row_unwritten", a_row_unwritten),
    ("a_guard_overwritten", a_guard_overwritten),
    ("lse_in_log2", lse_in_log2),
];

pub(crate) fn trials(gpu: &Arc<Gpu>) -> Vec<Trial> {
    let sample = Arc::new(OnceLock::new());
    let trial = |(name, run): Mutation| {
        let sample = Arc::clone(&sample);
        gpu.trial(&format!("harness/{name}"), move |gpu| {
            let sample = sample.get_or_init(|| Sample::new(gpu));
            run(gpu, sample.as_ref().map_err(|error| anyhow::anyhow!("the sample itself: {error:#}"))?)
        })
    };
    MUTATIONS.map(trial).into()
}

/// The comparison fails, and says what is wrong.
fn caught(comparison: &Comparison, message: &str) -> Result<()> {
    let error = comparison.error.as_deref().unwrap_or_default();
    ensure!(!comparison.pass, "{} passes", comparison.output);
    ensure!(error.contains(message), "{error:?} does not say {message:?}");
    Ok(())
}

/// So little that only the bound on single elements sees it: the tolerance is widened until the norm no longer does.
fn one_element_off(_: &Gpu, sample: &Sample) -> Result<()> {
    let largest = sample.reference.out.iter().map(|&(_, x)| x.abs()).fold(0.0, f64::max);
    let bound = 64.0 * sample.comparisons[0].tolerance * largest;
    let mut outputs = sample.outputs.clone();
    outputs.out[777] += (1.05 * bound) as f32;
    let [out, lse] = sample.compare(&outputs);
    ensure!(lse.pass, "lse was not touched");
    caught(&out, "")?;
    ensure!((out.max_abs / bound - 1.05).abs() < 0.05, "{:e} is not {bound:e} by 1.05", out.max_abs);
    // Just inside the bound, the norm is all that can object.
    let mut outputs = sample.outputs.clone();
    outputs.out[777] += (0.9 * bound) as f32;
    let [out, _] = sample.compare(&outputs);
    ensure!(out.error.is_none_or(|error| error.contains("rms_ratio")), "the bound on elements is too tight");
    Ok(())
}

fn one_row_scaled(_: &Gpu, sample: &Sample) -> Result<()> {
    let mut outputs = sample.outputs.clone();
    outputs.out[64 * 5..64 * 6].iter_mut().for_each(|x| *x *= 1.001);
    let [out, _] = sample.compare(&outputs);
    caught(&out, "rms_ratio")
}

fn a_key_dropped(_: &Gpu, sample: &Sample) -> Result<()> {
    let mut shorter = sample.case.clone();
    shorter.kv_lens = Some(vec![40]);
    let comparisons = sample.outputs.compare(&shorter, &shorter.reference(Rows::All));
    comparisons.iter().try_for_each(|comparison| caught(comparison, "rms_ratio"))
}

fn heads_swapped(_: &Gpu, sample: &Sample) -> Result<()> {
    let mut outputs = sample.outputs.clone();
    for values in [&mut outputs.out, &mut outputs.lse] {
        let half = values.len() / 2;
        values.rotate_left(half);
    }
    sample.compare(&outputs).iter().try_for_each(|comparison| caught(comparison, "rms_ratio"))
}

fn rows_shifted(_: &Gpu, sample: &Sample) -> Result<()> {
    let mut outputs = sample.outputs.clone();
    outputs.out.rotate_left(64);
    outputs.lse.rotate_left(1);
    sample.compare(&outputs).iter().try_for_each(|comparison| caught(comparison, "rms_ratio"))
}

fn lse_in_log2(_: &Gpu, sample: &Sample) -> Result<()> {
    let mut outputs = sample.outputs.clone();
    outputs.lse.iter_mut().for_each(|x| *x *= std::f32::consts::LOG2_E);
    let [_, lse] = sample.compare(&outputs);
    caught(&lse, "rms_ratio")
}

fn nothing_written(gpu: &Gpu, sample: &Sample) -> Result<()> {
    let untouched = Loaded::new(&gpu.engine, &sample.case).read(&gpu.engine)?;
    sample.compare(&untouched).iter().try_for_each(|comparison| caught(comparison, "element 0 is NaN"))
}

/// One head, so that a plan for fewer or more queries finds all others in their places.
fn one_head() -> SoftmaxCase {
    Recipe { name: "harness/one_head", heads: 1, kv_heads: 1, queries: 32, keys: 47, ..Recipe::default() }.build()
}

/// Runs a case by a plan for `queries`. They are read from k, which has enough: what lies behind q is NaN, and so would be what comes
/// of it, which is what guards hold.
fn run_with(gpu: &Gpu, case: &SoftmaxCase, queries: u32) -> Result<Outputs> {
    let engine = &gpu.engine;
    let plan = engine.plan(&attention(case)?, Extent { queries, ..extent(case)? })?;
    let loaded = Loaded::new(engine, case);
    let operands = loaded.operands();
    let mut encoder = engine.device().create_command_encoder(&CommandEncoderDescriptor::default());
    plan.encode(&mut encoder, &Operands { q: operands.k, ..operands })?;
    engine.queue().submit([encoder.finish()]);
    loaded.read(engine)
}

fn a_row_unwritten(gpu: &Gpu, _: &Sample) -> Result<()> {
    let case = one_head();
    let [out, lse] = run_with(gpu, &case, 31)?.compare(&case, &case.reference(Rows::All));
    caught(&out, &format!("element {} is NaN", 31 * 64))?;
    caught(&lse, "element 31 is NaN")
}

fn a_guard_overwritten(gpu: &Gpu, _: &Sample) -> Result<()> {
    let result = run_with(gpu, &one_head(), 33);
    let error = result.err().map(|error| error.to_string()).unwrap_or_default();
    ensure!(error == "out: a guard word was overwritten", "{error:?}");
    Ok(())
}
