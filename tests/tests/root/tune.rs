//! Tuning: what is measured is right, remembered, and chosen from then on.

use std::env::temp_dir;
use std::fs;
use std::path::{Path, PathBuf};
use std::process;
use std::sync::Arc;

use anyhow::{Context, Result, ensure};
use libtest_mimic::Trial;
use wattn::{
    Attention, Based, CacheLayout, Candidate, Choice, Decay, DeviceKind, Engine, Extent, HeadDim, Heads, Kernel,
    Lightning, Schedule, Split, Storage, Tokens, Tune, TuneError, Tuned, Tuning,
};
use wattn_cases::{BasedRecipe, Causal, Comparison, LinearRecipe, Recipe, Rows};
use wattn_shaders::{BackwardOp, Key, LaneShape, LinearOp, Shape};
use wattn_tests::{
    BackwardRun, Loaded, attention, attention_backward, based, based_tokens, extent, judge_all, judge_based,
    judge_decode, judge_linear, lightning, tokens,
};

use crate::gpu::Gpu;

pub(crate) fn trials(gpu: &Arc<Gpu>) -> Vec<Trial> {
    type Body = fn(&Gpu) -> Result<()>;
    let bodies: [(&str, Body); 10] = [
        ("softmax", softmax),
        ("backward", softmax_backward),
        ("decode", few_queries),
        ("lightning", lightning_and_gates),
        ("based", based_attention),
        ("wrong_candidates_are_never_chosen", wrong_candidates_are_never_chosen),
        ("wrong_gradients_and_stretches_are_never_chosen", wrong_gradients_and_stretches_are_never_chosen),
        ("what_others_leave_is_not_read", what_others_leave_is_not_read),
        ("broken_files_and_pinned_operators", broken_files_and_pinned_operators),
        ("every_option", every_option),
    ];
    bodies.map(|(name, body)| gpu.trial(&format!("tune/{name}"), body)).into()
}

/// A file of its own for each trial.
struct File(PathBuf);

impl File {
    fn new(gpu: &Gpu, name: &str) -> Self {
        let file = format!("wattn-tune-{}-{}-{name}.json", process::id(), gpu.label.replace('/', "-"));
        Self(temp_dir().join(file))
    }
}

impl Drop for File {
    fn drop(&mut self) {
        // Where a trial fails early there is none.
        let _ = fs::remove_file(&self.0);
    }
}

/// Another engine on the same device.
fn opened(gpu: &Gpu, path: &Path) -> Result<Engine> {
    Ok(Engine::builder(gpu.engine.device(), gpu.engine.queue()).tuning(Tuning::open(path)?).build())
}

/// Tunes, and checks what the file and later engines make of it; `judge` runs a case by what an engine plans.
fn tuned<O: Tune>(
    gpu: &Gpu,
    name: &str,
    operator: &O,
    extent: <O as wattn::Operator>::Extent,
    judge: impl Fn(&Engine) -> Result<(String, Vec<Comparison>)>,
) -> Result<Tuned>
where
    <O as wattn::Operator>::Plan: ToString,
{
    let file = File::new(gpu, name);
    let engine = opened(gpu, &file.0)?;
    let untuned = engine.plan(operator, extent)?.to_string();
    let tuned = engine.tune(operator, extent)?;
    // Few keys are split in one way where it takes much to keep a device busy, and one kernel of few queries may be all that it can have.
    let alone = tuned.best.stretches.is_some() && engine.capabilities().kind != DeviceKind::Cpu;
    ensure!(tuned.candidates.len() > 1 || alone, "{tuned}");
    for Candidate { choice, seconds } in &tuned.candidates {
        let seconds = seconds.as_ref().map_err(|why| anyhow::anyhow!("{choice}: {why}"))?;
        ensure!(*seconds > 0.0, "{tuned}");
    }
    let found = format!("by {}", tuned.best);

    // By the engine that tuned, and by another that reads the file.
    for engine in [&engine, &opened(gpu, &file.0)?] {
        let plan = engine.plan(operator, extent)?.to_string();
        ensure!(plan.contains("(tuned: ") && plan.contains(&found), "{plan}");
        let (planned, comparisons) = judge(engine)?;
        ensure!(planned.contains("(tuned: "), "{planned}");
        comparisons.iter().try_for_each(|comparison| gpu.check(comparison))?;
    }

    // What other shaders were measured with, and what no menu has, is ignored, and that is said.
    let text = fs::read_to_string(&file.0)?;
    ensure!(text.contains("64-bit integers") == engine.capabilities().int64, "{text}");
    let best = format!(r#""choice": "{}""#, tuned.best);
    for (from, to, why) in [
        (wattn_shaders::FINGERPRINT, "0123456789abcdef", "measured with other shaders"),
        (best.as_str(), r#""choice": "no-such-kernel""#, "no-such-kernel is not on the menu"),
    ] {
        ensure!(text.contains(from), "{from} is not in {text}");
        fs::write(&file.0, text.replace(from, to))?;
        let plan = opened(gpu, &file.0)?.plan(operator, extent)?.to_string();
        ensure!(plan.contains(why), "{plan}");
        let pipeline = |plan: &str| plan.lines().find(|line| line.contains("pipeline")).map(str::to_owned);
        ensure!(pipeline(&plan) == pipeline(&untuned), "{plan}\ninstead of\n{untuned}");
    }
    Ok(tuned)
}

fn softmax(gpu: &Gpu) -> Result<()> {
    let (name, causal) = ("tune/softmax", Some(Causal::BottomRight));
    let recipe = Recipe { name, queries: 70, keys: 140, head_dim: 16, value_dim: 16, causal, ..Recipe::default() };
    let case = recipe.build();
    tuned(gpu, "softmax", &attention(&case)?, extent(&case)?, |engine| {
        let (plan, comparisons) = judge_all(engine, &case, None, Rows::All)?;
        Ok((plan.to_string(), comparisons))
    })?;
    Ok(())
}

fn softmax_backward(gpu: &Gpu) -> Result<()> {
    let (name, causal) = ("tune/backward", Some(Causal::BottomRight));
    let recipe = Recipe { name, queries: 70, keys: 140, head_dim: 16, value_dim: 16, causal, ..Recipe::default() };
    let case = Recipe { backward: true, ..recipe }.build();
    let reference = case.reference(Rows::All);
    let outputs: Vec<&str> = reference.gradients.keys().copied().collect();
    tuned(gpu, "backward", &attention_backward(&case, None, &outputs)?, extent(&case)?, |engine| {
        let loaded = Loaded::new(engine, &case);
        loaded.run(engine, &engine.plan(&attention(&case)?, extent(&case)?)?)?;
        let run = BackwardRun::new(engine, loaded, None, &reference)?;
        run.submit()?;
        Ok((run.plan().to_string(), run.compare(&reference)?))
    })?;
    Ok(())
}

fn few_queries(gpu: &Gpu) -> Result<()> {
    let (name, causal) = ("tune/decode", Some(Causal::BottomRight));
    let recipe =
        Recipe { name, batch: 2, queries: 3, keys: 600, head_dim: 16, value_dim: 16, causal, ..Recipe::default() };
    let case = recipe.build();
    let reference = case.reference(Rows::All);
    let tuned = tuned(gpu, "decode", &attention(&case)?.decode(), extent(&case)?, |engine| {
        let (plan, comparisons) = judge_decode(engine, &case, None, Split::Device, &reference)?;
        Ok((plan.to_string(), comparisons.into()))
    })?;
    ensure!(tuned.candidates.iter().all(|candidate| candidate.choice.stretches.is_some()), "{tuned}");
    Ok(())
}

fn lightning_and_gates(gpu: &Gpu) -> Result<()> {
    let name = "tune/lightning";
    let case =
        LinearRecipe { name, tokens: 200, key_dim: 16, value_dim: 16, grad_out: false, ..LinearRecipe::default() };
    let case = case.build();
    let reference = case.reference();
    tuned(gpu, "lightning", &lightning(&case)?, tokens(&case)?, |engine| {
        let (plan, comparisons) = judge_linear(engine, &case, None, &reference)?;
        Ok((plan.to_string(), comparisons))
    })?;
    Ok(())
}

fn based_attention(gpu: &Gpu) -> Result<()> {
    let name = "tune/based";
    let recipe =
        BasedRecipe { name, tokens: 150, feature_dim: 8, value_dim: 16, state: true, ..BasedRecipe::default() };
    let case = BasedRecipe { grad_out: false, ..recipe }.build();
    let reference = case.reference();
    tuned(gpu, "based", &based(&case)?, based_tokens(&case)?, |engine| {
        let (plan, comparisons) = judge_based(engine, &case, None, &reference)?;
        Ok((plan.to_string(), comparisons))
    })?;
    Ok(())
}

/// What the trial below does to some designs: results that are a hundredth off, and none at all, at no time.
const MUTATIONS: [fn(&str) -> String; 2] = [
    |source| source.replace("1.0 / l", "1.01 / l"),
    |source| {
        let main = source.find("fn main(").expect("an entry point");
        let body = main + source[main..].find('{').expect("its body") + 1;
        format!("{} if true {{ return; }} {}", &source[..body], &source[body..])
    },
];

fn wrong_candidates_are_never_chosen(gpu: &Gpu) -> Result<()> {
    let attention = Attention::new(Heads::new(2)?, HeadDim::new(16)?);
    let extent = Extent::new(1, 40, 40);
    let chosen = |engine: &Engine| engine.plan(&attention, extent).map(|plan| plan.details().key);
    let key = chosen(&gpu.engine)?;
    if is_mutated(key.kernel, Some(key.shape)) {
        return Ok(()); // without subgroups there is no other design to hold it against
    }
    let rewrites: [fn(&Key, String) -> String; 2] =
        [|key, source| mutated(key, source, 0), |key, source| mutated(key, source, 1)];
    for (rewrite, message) in rewrites.into_iter().zip(["off by", "NaN"]) {
        let engine = Engine::builder(gpu.engine.device(), gpu.engine.queue()).rewrite(rewrite).build();
        let tuned = engine.tune(&attention, extent)?;
        let mut wrong = 0;
        for Candidate { choice, seconds } in &tuned.candidates {
            match seconds {
                Ok(_) => ensure!(!is_mutated(choice.kernel, choice.shape), "{tuned}"),
                Err(why) => {
                    ensure!(is_mutated(choice.kernel, choice.shape) && why.contains(message), "{choice}: {why}");
                    wrong += 1;
                }
            }
        }
        ensure!(wrong > 0, "none was mutated: {tuned}");
        ensure!(!is_mutated(tuned.best.kernel, tuned.best.shape), "{tuned}");
        let key = chosen(&engine)?;
        ensure!(!is_mutated(key.kernel, Some(key.shape)), "{key}");
    }
    Ok(())
}

/// The designs that no planner puts first where it has the choice.
fn is_mutated(kernel: Kernel, shape: Option<Shape>) -> bool {
    kernel == Kernel::TileUniversal || matches!(shape, Some(Shape::Lanes(LaneShape { rows: 16, .. })))
}

fn mutated(key: &Key, source: String, mutation: usize) -> String {
    match key {
        Key::Flash(key) if is_mutated(key.kernel, Some(key.shape)) => {
            let mutated = MUTATIONS[mutation](&source);
            assert_ne!(mutated, source, "{key} is as it was");
            mutated
        }
        _ => source,
    }
}

/// Of gradients those of q by some designs, and the stretches of all kernels but the planner's own, are nothing at all, at no time; over a
/// cache, they are of the first sequence's keys.
fn wrong_gradients_and_stretches_are_never_chosen(gpu: &Gpu) -> Result<()> {
    let engine = Engine::builder(gpu.engine.device(), gpu.engine.queue()).rewrite(without_some).build();
    let attention = Attention::new(Heads::new(2)?, HeadDim::new(16)?);
    let backward = attention.backward();
    let tuned = engine.tune(&backward, Extent::new(1, 40, 40));
    only_right_ones(tuned, "NaN", |choice| is_mutated(choice.kernel, choice.shape))?;
    let tuned = engine.tune(&attention.decode(), Extent::new(1, 1, 600));
    only_right_ones(tuned, "NaN", |choice| choice.kernel == Kernel::TileUniversal)?;
    let decode = attention.decode().cached(CacheLayout::new(2, HeadDim::new(16)?, 16, 80)?);
    let extent = Extent::packed(2, 2, 1200);
    if engine.plan(&decode, extent)?.details().split.kernel == Kernel::TileUniversal {
        return Ok(()); // the planner's own is among those
    }
    only_right_ones(engine.tune(&decode, extent), "off by", |choice| choice.kernel == Kernel::TileUniversal)
}

/// That those are out of the question which are wrong, and why.
fn only_right_ones(tuned: Result<Tuned, TuneError>, message: &str, is_wrong: impl Fn(&Choice) -> bool) -> Result<()> {
    let tuned = match tuned {
        // Without subgroups there is no other design to hold it against.
        Err(TuneError::Own(why)) if why.contains("NaN") => return Ok(()),
        tuned => tuned?,
    };
    for Candidate { choice, seconds } in &tuned.candidates {
        let found_out = seconds.as_ref().is_err_and(|why| why.contains(message));
        ensure!(found_out == is_wrong(choice) && found_out == seconds.is_err(), "{tuned}");
    }
    ensure!(tuned.candidates.iter().any(|c| is_wrong(&c.choice)), "none was mutated: {tuned}");
    ensure!(!is_wrong(&tuned.best), "{tuned}");
    Ok(())
}

fn without_some(key: &Key, source: String) -> String {
    let place = "aux.params.tables + s.k_start";
    let wrong = match key {
        Key::FlashBackward(key) => matches!(key.op, BackwardOp::Dq { .. }) && is_mutated(key.kernel, Some(key.shape)),
        Key::Split(key) if key.kernel == Kernel::TileUniversal && key.paged => {
            assert!(source.contains(place), "{key} reads no tables");
            return source.replace(place, "aux.params.tables");
        }
        Key::Split(key) => key.kernel == Kernel::TileUniversal,
        _ => false,
    };
    if wrong { MUTATIONS[1](&source) } else { source }
}

/// Segments of all kernels but `broadcast` leave no decays: what candidates before left in the workspace would do.
fn what_others_leave_is_not_read(gpu: &Gpu) -> Result<()> {
    let lightning = Lightning::new(2, HeadDim::new(16)?).decay(Decay::Gates);
    let engine = Engine::builder(gpu.engine.device(), gpu.engine.queue()).rewrite(without_totals).build();
    let extent = Tokens::new(1, 300);
    if engine.plan(&lightning, extent)?.details().sweeps[0].walk.kernel != Kernel::Broadcast {
        return Ok(()); // nothing would be right
    }
    let tuned = engine.tune(&lightning, extent)?;
    let mut segments = tuned.candidates.iter().filter(|c| c.choice.schedule == Some(Schedule::Segments));
    let right = segments.next().context("none in segments")?;
    ensure!(right.choice.kernel == Kernel::Broadcast && right.seconds.is_ok(), "{tuned}");
    let wrong: Vec<_> = segments.collect();
    ensure!(!wrong.is_empty(), "{tuned}");
    ensure!(wrong.iter().all(|c| c.seconds.as_ref().is_err_and(|why| why.contains("NaN"))), "{tuned}");
    Ok(())
}

fn without_totals(key: &Key, source: String) -> String {
    match key {
        Key::Linear(key) if key.op == LinearOp::Segment && key.kernel != Kernel::Broadcast => {
            let mutated = source.replace("store_total(s, head, decay);", "");
            assert_ne!(mutated, source, "{key} is as it was");
            mutated
        }
        _ => source,
    }
}

fn broken_files_and_pinned_operators(gpu: &Gpu) -> Result<()> {
    let file = File::new(gpu, "broken");
    fs::write(&file.0, "{ \"version\": 1, ")?;
    let error = Tuning::open(&file.0).err().context("a broken file is read")?;
    ensure!(matches!(error, TuneError::File { .. }) && error.to_string().contains("-broken.json: "), "{error}");

    let pinned = Attention::new(Heads::new(2)?, HeadDim::new(16)?).kernel(Kernel::TileUniversal);
    let error = gpu.engine.tune(&pinned, Extent::new(1, 8, 8)).err().context("a pinned kernel was tuned")?;
    ensure!(matches!(error, TuneError::Pinned), "{error}");
    let attention = Attention::new(Heads::new(2)?, HeadDim::new(16)?);
    let free = attention.decode();
    let extent = Extent::new(1, 1, 300);
    let engine = gpu.timing()?;
    engine.tune(&free, extent)?;
    for pinned in [free.split_keys(64), free.split_into(2), free.kernel(Kernel::TileUniversal)] {
        let error = engine.tune(&pinned, extent).err().context("pinned stretches were tuned")?;
        ensure!(matches!(error, TuneError::Pinned), "{error}");
        let plan = engine.plan(&pinned, extent)?.to_string();
        ensure!(!plan.contains("tuned"), "{plan}");
    }
    let error = engine.tune(&pinned.backward(), extent).err().context("a pinned kernel was tuned")?;
    ensure!(matches!(error, TuneError::Pinned), "{error}");
    let layout = CacheLayout::new(2, HeadDim::new(16)?, 16, 100)?;
    let error = engine.tune(&free.cached(layout), extent).err().context("a batch over a cache was tuned")?;
    ensure!(error.to_string().starts_with("extent: a batch given"), "{error}");
    let step = Lightning::new(2, HeadDim::new(16)?).step();
    let error = gpu.engine.tune(&step, Tokens::new(1, 1)).err().context("a step was tuned")?;
    ensure!(error.to_string() == "pass: one step given, allowed is forward or backward, to be tuned", "{error}");
    Ok(())
}

/// Operands for all options are made, and the candidates agree on them; by the device's clock.
fn every_option(gpu: &Gpu) -> Result<()> {
    // One of its own, since what it remembers would have a say in other trials.
    let engine = gpu.timing()?;
    let right = |tuned: Tuned| {
        let wrong = tuned.candidates.iter().find(|candidate| candidate.seconds.is_err());
        ensure!(wrong.is_none(), "{tuned}");
        Ok(())
    };
    let plain = Attention::new(Heads::grouped(4, 2)?, HeadDim::with_value(16, 8)?).lse().sinks().alibi().softcap(20.0);
    right(engine.tune(&plain.bias().mask(), Extent::new(2, 20, 40))?)?;
    right(engine.tune(&plain.sliding(9).storage(Storage::F16), Extent::packed(3, 50, 70))?)?;
    right(engine.tune(&plain.bias().mask().decode(), Extent::new(2, 2, 300))?)?;
    right(engine.tune(&plain.causal_top_left().decode(), Extent::new(2, 2, 300))?)?;
    let layout = CacheLayout::new(2, HeadDim::with_value(16, 8)?, 16, 80)?;
    let decode = plain.causal().storage(Storage::F16).decode();
    right(engine.tune(&decode.cached(layout.storage(Storage::F16, Storage::Int8)), Extent::packed(3, 40, 900))?)?;
    let decode = Attention::new(Heads::grouped(4, 2)?, HeadDim::with_value(16, 8)?).causal().decode();
    right(engine.tune(&decode.cached(layout).cascade(), Extent::packed(2, 2, 4000))?)?;
    // More sequences than tokens are written at a time elsewhere.
    let many = CacheLayout::new(2, HeadDim::with_value(16, 8)?, 16, 2100)?;
    right(engine.tune(&decode.cached(many), Extent::packed(2100, 2100, 2100))?)?;
    let gradients = plain.bias().mask().backward().bias_gradient().sinks_gradient().slopes_gradient().lse_gradient();
    right(engine.tune(&gradients, Extent::new(2, 20, 40))?)?;
    right(engine.tune(&plain.sliding(9).storage(Storage::F16).backward(), Extent::packed(3, 50, 70))?)?;
    let backward = Lightning::new(2, HeadDim::new(16)?).decay(Decay::Gates).backward().decay_gradient();
    right(engine.tune(&backward.initial_state().final_state(), Tokens::packed(3, 170))?)?;
    let backward = Based::new(2, HeadDim::with_value(8, 16)?).backward().initial_state().final_state();
    right(engine.tune(&backward.storage(Storage::F16), Tokens::packed(2, 130))?)
}
