//! What the criterion benches share: cases and calls on a device, ready to be timed.
//!
//! They are for comparing one commit with the next (`cargo bench -p wattn-benches -- --save-baseline before`). What a device reaches
//! against its ceilings is `cargo xtask bench`, which checks results too.

mod append;
mod backward;
mod decode;
mod forward;

use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use wattn::Engine;
use wattn::wgpu::{CommandEncoder, CommandEncoderDescriptor, PollType};
use wattn_cases::{Recipe, bench_catalogue};

pub use append::ReadyAppend;
pub use backward::ReadyBackward;
pub use decode::ReadyDecode;
pub use forward::Ready;

/// The case that stands for all where the case does not matter.
pub const TYPICAL: &str = "softmax/causal_1024";

/// A timed case by its name.
///
/// # Errors
/// No such case.
pub fn recipe(name: &str) -> Result<Recipe> {
    bench_catalogue().into_iter().find(|recipe| recipe.name == name).with_context(|| format!("no case {name}"))
}

/// An encoder on the device.
#[must_use]
pub fn encoder(engine: &Engine) -> CommandEncoder {
    engine.device().create_command_encoder(&CommandEncoderDescriptor::default())
}

/// Submits, waits, and tells how long that took.
///
/// # Errors
/// A device that fails.
pub fn submit(engine: &Engine, encoder: CommandEncoder) -> Result<Duration> {
    let commands = encoder.finish();
    let started = Instant::now();
    engine.queue().submit([commands]);
    engine.device().poll(PollType::wait_indefinitely()).context("waiting for the device")?;
    Ok(started.elapsed())
}

/// The time of `calls` calls, each slice of which `encode` records for a submission of its own.
fn time(
    engine: &Engine,
    calls: u64,
    slices: u32,
    encode: impl Fn(&mut CommandEncoder, u32) -> Result<()>,
) -> Result<Duration> {
    let mut total = Duration::ZERO;
    for _ in 0..calls {
        for slice in 0..slices {
            let mut encoder = encoder(engine);
            encode(&mut encoder, slice)?;
            total += submit(engine, encoder)?;
        }
    }
    Ok(total)
}
