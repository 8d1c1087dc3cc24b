//! Devices that an application might own: WebGPU's defaults, small bindings, one that is gone.

use std::sync::Arc;

use anyhow::{Result, ensure};
use libtest_mimic::Trial;
use wattn::wgpu::{Features, Limits};
use wattn::{Engine, Kernel};
use wattn_cases::{Causal, Recipe, Rows, SoftmaxCase};
use wattn_tests::{attention, extent, judge_all};

use crate::gpu::Gpu;

pub(crate) fn trials(gpu: &Arc<Gpu>) -> Vec<Trial> {
    type Body = fn(&Gpu) -> Result<()>;
    let trials: [(&str, Body); 6] = [
        ("webgpu_defaults", webgpu_defaults),
        ("small_bindings_split_heads", small_bindings_split_heads),
        ("small_bindings_split_batches", small_bindings_split_batches),
        ("small_bindings_split_bias", small_bindings_split_bias),
        ("blocking_by_parts", blocking_by_parts),
        ("a_destroyed_device_is_an_error", a_destroyed_device_is_an_error),
    ];
    trials.map(|(name, body)| gpu.trial(&format!("device/{name}"), body)).into()
}

/// Runs by the planner's own choice; returns the parts of the plan.
fn judged(gpu: &Gpu, engine: &Engine, case: &SoftmaxCase) -> Result<usize> {
    let (plan, comparisons) = judge_all(engine, case, None, Rows::All)?;
    comparisons.iter().try_for_each(|comparison| gpu.check(comparison))?;
    Ok(plan.details().parts.len())
}

/// No optional feature and no limit beyond the defaults: the universal kernel serves.
fn webgpu_defaults(gpu: &Gpu) -> Result<()> {
    let engine = gpu.device(Features::empty(), Limits::default())?;
    let causal = Some(Causal::BottomRight);
    let case = Recipe { name: "device/defaults", queries: 70, keys: 97, causal, ..Recipe::default() }.build();
    let chosen = engine.plan(&attention(&case)?, extent(&case)?)?.details().key.kernel;
    ensure!(chosen == Kernel::TileUniversal, "{chosen} was chosen");
    judged(gpu, &engine, &case)?;
    Ok(())
}

/// A device whose bindings hold this many bytes.
fn with_bindings_of(gpu: &Gpu, bytes: u64) -> Result<Engine> {
    gpu.limited(|limits| limits.max_storage_buffer_binding_size = bytes)
}

/// A head of keys takes 25 KiB, so that two fit.
fn small_bindings_split_heads(gpu: &Gpu) -> Result<()> {
    let engine = with_bindings_of(gpu, 64 << 10)?;
    let recipe =
        Recipe { name: "device/heads", batch: 2, heads: 10, kv_heads: 5, queries: 30, keys: 100, ..Recipe::default() };
    let parts = judged(gpu, &engine, &recipe.build())?;
    ensure!(parts == 2 * 3, "{parts} parts");
    Ok(())
}

/// A batch entry takes 16 KiB, so that three fit.
fn small_bindings_split_batches(gpu: &Gpu) -> Result<()> {
    let engine = with_bindings_of(gpu, 64 << 10)?;
    let bshd = true;
    let kv_lens = &[32, 7, 20, 0, 32, 31, 1];
    let recipe = Recipe { name: "device/batches", batch: 7, queries: 32, keys: 32, bshd, kv_lens, ..Recipe::default() };
    let parts = judged(gpu, &engine, &recipe.build())?;
    ensure!(parts == 3, "{parts} parts");
    Ok(())
}

/// A bias is the largest operand, and its heads and batch entries are split like the others'.
fn small_bindings_split_bias(gpu: &Gpu) -> Result<()> {
    let engine = with_bindings_of(gpu, 64 << 10)?;
    let bias = Some((wattn_cases::Bias::Normal, wattn_cases::Spread::Full));
    let recipe = Recipe {
        name: "device/bias",
        batch: 2,
        heads: 4,
        kv_heads: 2,
        queries: 80,
        keys: 90,
        head_dim: 16,
        value_dim: 16,
        bias,
        ..Recipe::default()
    };
    let parts = judged(gpu, &engine, &recipe.build())?;
    ensure!(parts == 2 * 2, "{parts} parts");
    Ok(())
}

/// Blocking calls submit part by part.
fn blocking_by_parts(gpu: &Gpu) -> Result<()> {
    let engine = with_bindings_of(gpu, 64 << 10)?;
    let case = Recipe { name: "device/blocking", heads: 5, kv_heads: 5, keys: 200, ..Recipe::default() }.build();
    let attention = attention(&case)?;
    ensure!(engine.plan(&attention, extent(&case)?)?.slices() == 5, "a part a head was expected");
    let [q, k, v] = [&case.q, &case.k, &case.v].map(|tensor| tensor.values.as_slice());
    let operands = wattn::HostOperands { q, k, v, ..Default::default() };
    let output = engine.blocking().run(&attention, extent(&case)?, &operands)?;
    let outputs = wattn_tests::Outputs { out: output.out, lse: output.lse };
    outputs.compare(&case, &case.reference(Rows::All)).iter().try_for_each(|comparison| gpu.check(comparison))
}

fn a_destroyed_device_is_an_error(gpu: &Gpu) -> Result<()> {
    let engine = gpu.limited(|_| {})?;
    let case = Recipe { name: "device/destroyed", queries: 4, keys: 4, ..Recipe::default() }.build();
    engine.device().destroy();
    let [q, k, v] = [&case.q, &case.k, &case.v].map(|tensor| tensor.values.as_slice());
    let result = engine.blocking().attention(&attention(&case)?, extent(&case)?, q, k, v);
    ensure!(result.is_err(), "it ran");
    Ok(())
}
