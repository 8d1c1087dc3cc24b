//! Refusals: each names the argument, what was given and what is allowed.

mod lengths;
mod operands;
mod plans;

use std::fmt::Display;
use std::sync::{Arc, OnceLock};

use anyhow::{Result, bail, ensure};
use libtest_mimic::Trial;
use wattn::wgpu::{Buffer, BufferDescriptor, BufferUsages, CommandEncoderDescriptor};
use wattn::{Attention, Engine, Extent, HeadDim, Heads, Operands, Plan, PlanError, View};

use crate::gpu::{Gpu, poisoned};

const F32: usize = 4;
/// Elements of q and out, of k and v, and of lse.
const SIZES: [usize; 3] = [2 * 4 * 20 * 64, 2 * 2 * 48 * 64, 2 * 4 * 20];

/// A device with a buffer for each operand of a problem with 2 batch entries, 4 on 2 heads, 20 queries and 48 keys.
struct Bench {
    engine: Engine,
    q: Buffer,
    k: Buffer,
    v: Buffer,
    out: Buffer,
    lse: Buffer,
    /// 10 elements short of the smallest operand.
    short: Buffer,
    /// Without the usage that shaders need.
    copy_only: Buffer,
}

fn attention() -> Result<Attention, PlanError> {
    Ok(Attention::new(Heads::grouped(4, 2)?, HeadDim::new(64)?))
}

fn extent() -> Extent {
    Extent::new(2, 20, 48)
}

impl Bench {
    fn new(engine: &Engine) -> Self {
        let [q, k, lse] = SIZES;
        let copy_only = engine.device().create_buffer(&BufferDescriptor {
            label: None,
            size: (q * F32) as u64,
            usage: BufferUsages::COPY_DST,
            mapped_at_creation: false,
        });
        Self {
            engine: engine.clone(),
            q: poisoned(engine, q),
            k: poisoned(engine, k),
            v: poisoned(engine, k),
            out: poisoned(engine, q),
            lse: poisoned(engine, lse),
            short: poisoned(engine, lse - 10),
            copy_only,
        }
    }

    /// What encoding says, with the operands changed, to a plan with LSE and what `options` adds.
    fn encode<'a>(
        &'a self,
        options: fn(Attention) -> Attention,
        change: impl FnOnce(&'a Self, &mut Operands<'a>),
    ) -> Result<String> {
        let plan = self.engine.plan(&options(attention()?.lse()), extent())?;
        self.encode_plan(&plan, change)
    }

    fn encode_plan<'a>(&'a self, plan: &Plan, change: impl FnOnce(&'a Self, &mut Operands<'a>)) -> Result<String> {
        let [q, k, v, out] = [&self.q, &self.k, &self.v, &self.out].map(View::bhsd);
        let mut operands = Operands { lse: Some(View::bhsd(&self.lse)), ..Operands::new(q, k, v, out) };
        change(self, &mut operands);
        let mut encoder = self.engine.device().create_command_encoder(&CommandEncoderDescriptor::default());
        refusal(plan.encode(&mut encoder, &operands))
    }

    /// What planning says.
    fn plan(&self, attention: Result<Attention, PlanError>, extent: Extent) -> Result<String> {
        refusal(attention.and_then(|attention| self.engine.plan(&attention, extent)))
    }
}

fn refusal<T>(result: Result<T, impl Display>) -> Result<String> {
    match result {
        Ok(_) => bail!("it was accepted"),
        Err(error) => Ok(error.to_string()),
    }
}

/// The options of a plan that has none but LSE.
fn plain(attention: Attention) -> Attention {
    attention
}

/// A name, a bad call that returns its refusal, and what that must contain.
type Bad = (&'static str, fn(&Bench) -> Result<String>, &'static [&'static str]);

pub(crate) fn trials(gpu: &Arc<Gpu>) -> Vec<Trial> {
    let bench = Arc::new(OnceLock::new());
    let trial = |&(name, call, needed): &Bad| {
        let bench = Arc::clone(&bench);
        gpu.trial(&format!("errors/{name}"), move |gpu| {
            let message = call(bench.get_or_init(|| Bench::new(&gpu.engine)))?;
            for part in needed {
                ensure!(message.contains(part), "{message:?} does not contain {part:?}");
            }
            Ok(())
        })
    };
    let mut trials: Vec<Trial> =
        [plans::PLANS, operands::BUFFERS, operands::VIEWS, operands::OPTIONS, lengths::LENGTHS]
            .concat()
            .iter()
            .map(trial)
            .collect();
    trials.push(gpu.trial("errors/beyond_a_binding", beyond_a_binding));
    trials
}

/// On a device with small bindings: a head that is too long, and a layout that spreads a part too far.
fn beyond_a_binding(gpu: &Gpu) -> Result<()> {
    let engine = gpu.limited(|limits| limits.max_storage_buffer_binding_size = 32 << 10)?;
    let bench = Bench::new(&engine);
    let too_long = bench.plan(attention(), Extent::new(1, 20, 200))?;
    for part in [": 51200 bytes", "allows 32", "max_storage_buffer_binding_size"] {
        ensure!(too_long.contains(part), "{too_long:?} does not contain {part:?}");
    }
    // Two key/value heads of 24 KiB serve in two parts, but side by side in each row they reach over 48 KiB.
    let plan = engine.plan(&attention()?.lse(), Extent::new(1, 20, 96))?;
    ensure!(plan.details().parts.len() == 2, "{} parts", plan.details().parts.len());
    let spread = bench.encode_plan(&plan, |bench, operands| operands.k = View::bshd(&bench.k))?;
    for part in ["k:", "48896", "32768"] {
        ensure!(spread.contains(part), "{spread:?} does not contain {part:?}");
    }
    Ok(())
}
