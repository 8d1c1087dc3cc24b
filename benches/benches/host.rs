//! What a call costs on the host: planning, and encoding a plan.

use std::time::{Duration, Instant};

use anyhow::Result;
use criterion::Criterion;
use wattn::Engine;
use wattn_benches::{Ready, TYPICAL, encoder, recipe, submit};
use wattn_tests::{attention, extent};

/// Encoding queues a write of parameters, which pile up until something is submitted: done after this many calls.
const FLUSH: u64 = 32;

fn main() -> Result<()> {
    let mut criterion = Criterion::default().configure_from_args();
    let engine = Engine::headless()?;
    let case = recipe(TYPICAL)?.build();
    let ready = Ready::new(&engine, &case)?;

    let (operator, extent) = (attention(&case)?, extent(&case)?);
    criterion.bench_function("plan", |b| b.iter(|| engine.plan(&operator, extent)));

    // Into encoders that are dropped, so that nothing runs.
    criterion.bench_function("encode", |b| {
        b.iter_custom(|calls| {
            let mut total = Duration::ZERO;
            for call in 0..calls {
                if call % FLUSH == 0 {
                    submit(&engine, encoder(&engine)).expect("the device is there");
                }
                let mut encoder = encoder(&engine);
                let started = Instant::now();
                ready.plan.encode(&mut encoder, &ready.loaded.operands()).expect("encoded before");
                total += started.elapsed();
            }
            total
        });
    });
    criterion.bench_function("empty submission", |b| {
        b.iter_custom(|calls| {
            (0..calls).map(|_| submit(&engine, encoder(&engine)).expect("the device is there")).sum()
        });
    });
    criterion.final_summary();
    Ok(())
}
