//! The oracle, by rows: what a check costs.

use anyhow::Result;
use criterion::{BenchmarkId, Criterion, Throughput};
use wattn_benches::recipe;
use wattn_cases::Rows;

const ROWS: usize = 8;

fn main() -> Result<()> {
    let mut criterion = Criterion::default().configure_from_args();
    let mut group = criterion.benchmark_group("oracle rows");
    for name in ["softmax/full_1024", "softmax/causal_1024", "softmax/full_8192", "softmax/window_128_of_8192"] {
        let recipe = recipe(name)?;
        let case = recipe.build();
        group.throughput(Throughput::Elements((recipe.batch * recipe.heads * ROWS) as u64));
        let rows = Rows::Sampled { per_head: ROWS, seed: 1 };
        group.bench_function(BenchmarkId::from_parameter(name), |b| b.iter(|| case.reference(rows)));
    }
    group.finish();
    criterion.final_summary();
    Ok(())
}
