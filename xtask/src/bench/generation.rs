//! Decode, token by token: how many tokens a second one attention layer makes, with a state of fixed size or over a growing cache.

use anyhow::{Context, Result, ensure};
use serde::{Deserialize, Serialize};
use wattn::wgpu::util::{BufferInitDescriptor, DeviceExt};
use wattn::wgpu::{Buffer, BufferUsages};
use wattn::{
    Attention, Based, BasedOperands, Decay, Engine, Extent, HeadDim, Heads, Lightning, LinearOperands, Tokens, View,
};
use wattn_cases::{BasedRecipe, LinearRecipe, Recipe, References, Rules, compare};
use wattn_tests::{Variant, based as based_of, lightning as lightning_of};

use crate::report::guarded;

use super::ceilings::Ceilings;
use super::clock::Clock;
use super::contest;
use super::decode;
use super::device::read_f32;
use super::planned::Planned;
use super::row::failure;
use super::stats::Timer;

/// The attention layers of BASED's 1.3B model (arXiv 2402.18668): 16 heads of 112, 1792 together, and 16 features.
const HEADS: u32 = 16;
const DIM: u32 = 112;
const FEATURES: u32 = 16;
/// Keys of the growing cache; one of 32k tokens has 448 MiB in f32.
const CACHES: [u32; 6] = [1 << 10, 1 << 11, 1 << 12, 1 << 13, 1 << 14, 1 << 15];
const SAMPLES: usize = 9;

/// One operator's tokens a second.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct Generation {
    pub(crate) op: String,
    /// Bytes of the state, or of the keys and values of the longest cache.
    pub(crate) bytes: u64,
    pub(crate) points: Vec<Speed>,
    /// Why it was not timed, or no further.
    #[serde(default)]
    pub(crate) error: Option<String>,
    /// Why the pinned kernel was not tried.
    #[serde(default)]
    pub(crate) skipped: Option<String>,
}

/// Tokens a second after `tokens` others.
#[derive(Debug, Clone, Copy, Serialize, Deserialize)]
pub(crate) struct Speed {
    pub(crate) tokens: u32,
    pub(crate) per_second: f64,
    #[serde(default)]
    pub(crate) clock: Option<Timer>,
}

/// Checks each operator's kernel at these shapes and times it: of softmax attention the pinned one, if any; a step has one only.
pub(crate) fn measure(engine: &Engine, clock: &Clock, ceilings: &Ceilings, pinned: Option<Variant>) -> Vec<Generation> {
    type Measured<'a> = &'a dyn Fn(&mut Generation) -> Result<()>;
    let operators: [(&str, Measured<'_>); 3] = [
        ("based_step", &|into| based_step(engine, clock, ceilings, into)),
        ("lightning_step", &|into| lightning_step(engine, clock, ceilings, into)),
        ("softmax_decode", &|into| softmax(engine, clock, ceilings, pinned, into)),
    ];
    let one = |(op, measured): (&str, Measured<'_>)| {
        let mut into = Generation { op: op.into(), bytes: 0, points: Vec::new(), error: None, skipped: None };
        let stopped = guarded(|| measured(&mut into)).err();
        (into.error, into.skipped) = stopped.as_ref().map(failure).unwrap_or_default();
        into
    };
    operators.map(one).into()
}

fn based_step(engine: &Engine, clock: &Clock, ceilings: &Ceilings, into: &mut Generation) -> Result<()> {
    let recipe = BasedRecipe { name: "based_step", tokens: 1, heads: HEADS as usize, ..BasedRecipe::default() };
    let case = BasedRecipe { feature_dim: FEATURES as usize, value_dim: DIM as usize, state: true, ..recipe }.build();
    let state = case.state.as_ref().context("the recipe has no state")?;
    let given = Given::new(engine, [&case.q.values, &case.k.values, &case.v.values, &state.values]);
    let operands = BasedOperands {
        out: Some(View::bhsd(&given.out)),
        state: Some(View::bhsd(&given.state)),
        ..BasedOperands::new(View::bhsd(&given.q), View::bhsd(&given.k), View::bhsd(&given.v))
    };
    let mut encoder = clock.encoder();
    engine.plan(&based_of(&case)?.step(), Tokens::new(1, 1))?.encode(&mut encoder, &operands)?;
    clock.submissions(vec![encoder])?;
    given.check(engine, &case.reference(), &case.rules("out"))?;

    let based = Based::new(HEADS, HeadDim::with_value(FEATURES, DIM)?).step();
    steady(&Planned::based(engine, &based, Tokens::new(1, 1))?, clock, ceilings, given.state.size(), into)
}

fn lightning_step(engine: &Engine, clock: &Clock, ceilings: &Ceilings, into: &mut Generation) -> Result<()> {
    let recipe = LinearRecipe { name: "lightning_step", tokens: 1, heads: HEADS as usize, ..LinearRecipe::default() };
    let case = LinearRecipe { key_dim: DIM as usize, value_dim: DIM as usize, state: true, ..recipe }.build();
    let state = case.state.as_ref().context("the recipe has no state")?;
    let given = Given::new(engine, [&case.q.values, &case.k.values, &case.v.values, &state.values]);
    let operands = LinearOperands {
        out: Some(View::bhsd(&given.out)),
        state: Some(View::bhsd(&given.state)),
        ..LinearOperands::new(View::bhsd(&given.q), View::bhsd(&given.k), View::bhsd(&given.v))
    };
    let mut encoder = clock.encoder();
    engine.plan(&lightning_of(&case)?.step(), Tokens::new(1, 1))?.encode(&mut encoder, &operands)?;
    clock.submissions(vec![encoder])?;
    given.check(engine, &case.reference(), &case.rules("out"))?;

    let lightning = Lightning::new(HEADS, HeadDim::new(DIM)?).decay(Decay::transnormer(3, 12)).step();
    steady(&Planned::lightning(engine, &lightning, Tokens::new(1, 1))?, clock, ceilings, given.state.size(), into)
}

/// One query over a growing cache.
fn softmax(
    engine: &Engine,
    clock: &Clock,
    ceilings: &Ceilings,
    pinned: Option<Variant>,
    into: &mut Generation,
) -> Result<()> {
    let [heads, dim] = [HEADS as usize, DIM as usize];
    let recipe = Recipe { name: "softmax", queries: 1, keys: 1024, heads, kv_heads: heads, ..Recipe::default() };
    let subject = contest::Subject::new(&Recipe { head_dim: dim, value_dim: dim, ..recipe });
    decode::Contestant::new(engine, clock, &subject, pinned.map(|variant| variant.kernel))?;

    let attention = Attention::new(Heads::new(HEADS)?, HeadDim::new(DIM)?);
    let attention = pinned.map_or(attention, |variant| variant.force(attention));
    for keys in CACHES {
        // A device may lack the memory, or a limit: the line ends there.
        let planned = match Planned::decode(engine, &attention, Extent::new(1, 1, keys)) {
            Ok(planned) => planned,
            Err(error) if into.points.is_empty() => return Err(error),
            Err(_) => break,
        };
        let time = planned.timed(clock, ceilings, SAMPLES)?;
        into.points.push(Speed { tokens: keys, per_second: 1.0 / time.median, clock: Some(time.clock) });
        into.bytes = 2 * u64::from(keys) * u64::from(HEADS * DIM) * 4;
    }
    Ok(())
}

/// A step takes as long after many tokens as after few, since its state does not grow: it is timed once.
fn steady(planned: &Planned, clock: &Clock, ceilings: &Ceilings, bytes: u64, into: &mut Generation) -> Result<()> {
    let time = planned.timed(clock, ceilings, SAMPLES)?;
    let (per_second, clock) = (1.0 / time.median, Some(time.clock));
    into.bytes = bytes;
    into.points = CACHES.map(|tokens| Speed { tokens, per_second, clock }).into();
    Ok(())
}

/// A step's operands on the device.
struct Given {
    q: Buffer,
    k: Buffer,
    v: Buffer,
    out: Buffer,
    state: Buffer,
}

impl Given {
    fn new(engine: &Engine, values: [&[f32]; 4]) -> Self {
        let [q, k, v, state] = values.map(|values| {
            let usage = BufferUsages::STORAGE | BufferUsages::COPY_SRC;
            let contents = bytemuck::cast_slice(values);
            engine.device().create_buffer_init(&BufferInitDescriptor { label: Some("step"), contents, usage })
        });
        let usage = BufferUsages::STORAGE | BufferUsages::COPY_SRC;
        let contents = vec![0xff; values[2].len() * 4];
        let out = engine.device().create_buffer_init(&BufferInitDescriptor {
            label: Some("out"),
            contents: &contents,
            usage,
        });
        Self { q, k, v, out, state }
    }

    fn check(&self, engine: &Engine, reference: &References, rules: &Rules) -> Result<()> {
        let comparison = compare("out", &read_f32(engine, &self.out)?, &reference["out"], rules);
        ensure!(comparison.pass, "the step is wrong: {}", comparison.error.unwrap_or_default());
        Ok(())
    }
}
