//! Every case of the bench catalogues of softmax attention on the device that wgpu prefers, forward, backward and of few queries, and
//! steps of caches: by the wall clock around each submission.

use std::time::Duration;

use anyhow::Result;
use criterion::measurement::WallTime;
use criterion::{BenchmarkGroup, BenchmarkId, Criterion, SamplingMode};
use wattn::Engine;
use wattn_benches::{Ready, ReadyAppend, ReadyBackward, ReadyDecode};
use wattn_cases::{Recipe, SoftmaxCase, bench_catalogue, decode_bench_catalogue};

/// The cases whose heads and dims caches have.
const CACHES: [&str; 3] = ["decode/8192_d128", "decode/8192_d64", "decode/uniform_d64"];
/// New tokens of each sequence: one that generates, a prompt.
const NEW_TOKENS: [u32; 2] = [1, 512];

/// Loads a case, and gives what runs it so many times.
type Load = for<'a> fn(&'a Engine, &'a SoftmaxCase) -> Box<dyn Fn(u64) -> Duration + 'a>;

fn forward<'a>(engine: &'a Engine, case: &'a SoftmaxCase) -> Box<dyn Fn(u64) -> Duration + 'a> {
    let ready = Ready::new(engine, case).expect("cases of the catalogue run");
    Box::new(move |calls| ready.time(calls).expect("the device is there"))
}

fn backward<'a>(engine: &'a Engine, case: &'a SoftmaxCase) -> Box<dyn Fn(u64) -> Duration + 'a> {
    let ready = ReadyBackward::new(engine, case).expect("cases of the catalogue run");
    Box::new(move |calls| ready.time(calls).expect("the device is there"))
}

fn decode<'a>(engine: &'a Engine, case: &'a SoftmaxCase) -> Box<dyn Fn(u64) -> Duration + 'a> {
    let ready = ReadyDecode::new(engine, case).expect("cases of the catalogue run");
    Box::new(move |calls| ready.time(calls).expect("the device is there"))
}

/// Loads a case when its turn comes, so that a filter skips the work too.
fn bench(group: &mut BenchmarkGroup<'_, WallTime>, engine: &Engine, recipe: &Recipe, load: Load) {
    let mut case = None;
    group.bench_function(BenchmarkId::from_parameter(recipe.name), |b| {
        let run = load(engine, case.get_or_insert_with(|| recipe.build()));
        b.iter_custom(run);
    });
}

fn main() -> Result<()> {
    let mut criterion = Criterion::default().configure_from_args();
    let engine = Engine::headless()?;
    let mut group = criterion.benchmark_group("kernels");
    group.sample_size(10).sampling_mode(SamplingMode::Flat).measurement_time(Duration::from_secs(2));
    group.warm_up_time(Duration::from_millis(500));
    for recipe in bench_catalogue() {
        bench(&mut group, &engine, &recipe, if recipe.backward { backward } else { forward });
    }
    for recipe in decode_bench_catalogue() {
        bench(&mut group, &engine, &recipe, decode);
    }
    for recipe in decode_bench_catalogue().into_iter().filter(|recipe| CACHES.contains(&recipe.name)) {
        for tokens in NEW_TOKENS {
            let name = recipe.name.replace("decode/", "cache/append_");
            group.bench_function(BenchmarkId::new(name, tokens), |b| {
                let ready = ReadyAppend::new(&engine, &recipe, tokens).expect("caches of this size are made");
                b.iter_custom(|calls| ready.time(calls).expect("the device is there"));
            });
        }
    }
    group.finish();
    criterion.final_summary();
    Ok(())
}
