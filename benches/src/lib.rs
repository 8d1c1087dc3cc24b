//! What the criterion benches share: a device, and a case loaded on it.
//!
//! They are for comparing one commit with the next (`cargo bench -p wattn-benches -- --save-baseline before`). What a device reaches
//! against its ceilings is `cargo xtask bench`, which checks results too.

use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use wattn::wgpu::{self, CommandEncoder};
use wattn::{Engine, Plan};
use wattn_cases::{Recipe, SoftmaxCase, bench_catalogue};
use wattn_tests::{Loaded, attention, extent};

/// The case that stands for all where the case does not matter.
pub const TYPICAL: &str = "softmax/causal_1024";

/// A timed case by its name.
///
/// # Errors
/// No such case.
pub fn recipe(name: &str) -> Result<Recipe> {
    bench_catalogue().into_iter().find(|recipe| recipe.name == name).with_context(|| format!("no case {name}"))
}

/// A case planned and on the device, its pipeline compiled.
#[derive(Debug)]
pub struct Ready<'a> {
    engine: &'a Engine,
    /// The plan's own choice of a kernel.
    pub plan: Plan,
    /// The tensors.
    pub loaded: Loaded<'a>,
}

impl<'a> Ready<'a> {
    /// Plans, uploads, and runs once, since drivers compile at the first dispatch.
    ///
    /// # Errors
    /// A problem that is refused, a device that fails.
    pub fn new(engine: &'a Engine, case: &'a SoftmaxCase) -> Result<Self> {
        let plan = engine.plan(&attention(case)?, extent(case)?)?;
        let loaded = Loaded::new(engine, case);
        loaded.run(engine, &plan)?;
        Ok(Self { engine, plan, loaded })
    }

    /// An encoder on the device.
    #[must_use]
    pub fn encoder(&self) -> CommandEncoder {
        self.engine.device().create_command_encoder(&wgpu::CommandEncoderDescriptor::default())
    }

    /// Submits, waits, and tells how long that took.
    ///
    /// # Errors
    /// A device that fails.
    pub fn submit(&self, encoder: CommandEncoder) -> Result<Duration> {
        let commands = encoder.finish();
        let started = Instant::now();
        self.engine.queue().submit([commands]);
        self.engine.device().poll(wgpu::PollType::wait_indefinitely()).context("waiting for the device")?;
        Ok(started.elapsed())
    }

    /// The time of `calls` calls, each submitted on its own.
    ///
    /// # Errors
    /// A device that fails.
    pub fn time(&self, calls: u64) -> Result<Duration> {
        let mut total = Duration::ZERO;
        for _ in 0..calls {
            for slice in 0..self.plan.slices() {
                let mut encoder = self.encoder();
                self.plan.encode_slice(&mut encoder, &self.loaded.operands(), slice)?;
                total += self.submit(encoder)?;
            }
        }
        Ok(total)
    }
}
