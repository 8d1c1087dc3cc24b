//! Every case of the bench catalogue on the device that wgpu prefers, by the wall clock around each submission.

use std::time::Duration;

use anyhow::Result;
use criterion::{BenchmarkId, Criterion, SamplingMode};
use wattn::Engine;
use wattn_benches::Ready;
use wattn_cases::bench_catalogue;

fn main() -> Result<()> {
    let mut criterion = Criterion::default().configure_from_args();
    let engine = Engine::headless()?;
    let mut group = criterion.benchmark_group("kernels");
    group.sample_size(10).sampling_mode(SamplingMode::Flat).measurement_time(Duration::from_secs(2));
    group.warm_up_time(Duration::from_millis(500));
    for recipe in bench_catalogue() {
        // Loaded when its turn comes, so that a filter skips the work too.
        let mut case = None;
        group.bench_function(BenchmarkId::from_parameter(recipe.name), |b| {
            let case = case.get_or_insert_with(|| recipe.build());
            let ready = Ready::new(&engine, case).expect("cases of the catalogue run");
            b.iter_custom(|calls| ready.time(calls).expect("the device is there"));
        });
    }
    group.finish();
    criterion.final_summary();
    Ok(())
}
