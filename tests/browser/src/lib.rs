//! Cases of the catalogue in a browser: on its WebGPU, through its compiler of WGSL, by calls that are awaited.
#![cfg(target_arch = "wasm32")]

use anyhow::{Context, Result, ensure};
use js_sys::{Function, JsString};
use wasm_bindgen::prelude::{JsError, JsValue, wasm_bindgen};
use wattn::{
    Attention, Engine, Extent, HeadDim, Heads, Kernel, Lightning, LightningState, wanted_features, wanted_limits, wgpu,
};
use wattn_cases::{Comparison, based_catalogue, catalogue, decode_catalogue, linear_catalogue};
use wattn_tests::{Variant, based_on_host, linear_on_host, softmax_on_host};

/// Runs the cases whose names contain one of `filters`, which blanks part, and tells a line each. As the browser's device has it, and
/// `tile-universal` in the shape of GPUs, which the browsers of most have.
///
/// # Errors
/// No device, no such case, or a case that fails; all are run.
#[wasm_bindgen]
pub async fn run(filters: String, tell: Function) -> Result<(), JsError> {
    let tell = |line: String| drop(tell.call1(&JsValue::NULL, &JsString::from(line)));
    std::panic::set_hook(Box::new(|panic| web_error(&panic.to_string())));
    all(&filters, &tell).await.map_err(|error| JsError::new(&format!("{error:#}")))
}

#[wasm_bindgen]
extern "C" {
    #[wasm_bindgen(js_namespace = console, js_name = error)]
    fn web_error(line: &str);
}

async fn all(filters: &str, tell: &dyn Fn(String)) -> Result<()> {
    let engine = engine(tell).await?;
    refusals(&engine).await?;
    let filters: Vec<&str> = filters.split_whitespace().collect();
    let wanted = |name: &str| filters.iter().any(|filter| name.contains(filter));
    let names: Vec<&str> = [catalogue(), decode_catalogue()]
        .into_iter()
        .flatten()
        .map(|recipe| recipe.name)
        .chain(linear_catalogue().into_iter().map(|recipe| recipe.name))
        .chain(based_catalogue().into_iter().map(|recipe| recipe.name))
        .collect();
    for filter in &filters {
        ensure!(names.iter().any(|name| name.contains(filter)), "no case contains {filter:?}");
    }
    let (mut ran, mut failed) = (0, 0);
    let mut judge = |name: &str, judged: Result<Vec<Comparison>>| {
        let wrong = judged.and_then(|judged| {
            ensure!(!judged.is_empty(), "nothing was compared");
            let wrong = judged.iter().filter(|comparison| !comparison.pass);
            let wrong: Vec<String> =
                wrong.map(|c| format!("{}: {}", c.output, c.error.as_deref().unwrap_or_default())).collect();
            ensure!(wrong.is_empty(), "{}", wrong.join("; "));
            Ok(judged.iter().map(|comparison| comparison.elements).sum::<usize>())
        });
        ran += 1;
        match wrong {
            Ok(elements) => tell(format!("ok      {name}: {elements} elements")),
            Err(error) => {
                failed += 1;
                tell(format!("FAILED  {name}: {error:#}"));
            }
        }
    };
    for (few_queries, recipes) in [(false, catalogue()), (true, decode_catalogue())] {
        for recipe in recipes.into_iter().filter(|recipe| wanted(recipe.name)) {
            let case = recipe.build();
            let universal = Variant { gpu_shape: !few_queries, ..Kernel::TileUniversal.into() };
            for (label, variant) in [("", None), ("/tile-universal", Some(universal))] {
                let judged = softmax_on_host(&engine, &case, variant, few_queries).await;
                judge(&format!("{}{label}", recipe.name), judged);
            }
        }
    }
    for recipe in linear_catalogue().into_iter().filter(|recipe| wanted(recipe.name)) {
        let case = recipe.build();
        for variant in Variant::schedules(Kernel::TileUniversal) {
            judge(&format!("{}/{variant}", recipe.name), linear_on_host(&engine, &case, Some(variant)).await);
        }
    }
    for recipe in based_catalogue().into_iter().filter(|recipe| wanted(recipe.name)) {
        let case = recipe.build();
        for variant in Variant::schedules(Kernel::TileUniversal) {
            judge(&format!("{}/{variant}", recipe.name), based_on_host(&engine, &case, Some(variant)).await);
        }
    }
    tell(format!("{ran} runs, {failed} failed, {} pipelines", engine.pipelines()));
    ensure!(ran > 0, "no cases are named");
    ensure!(failed == 0, "{failed} of {ran} failed");
    Ok(())
}

/// What a browser's device refuses, it tells late; and what waits is an error.
async fn refusals(engine: &Engine) -> Result<()> {
    let attention = Attention::new(Heads::new(1)?, HeadDim::new(4)?);
    let (extent, rows) = (Extent::new(1, 2, 2), [1.0; 8]);
    let broken = Engine::builder(engine.device(), engine.queue()).rewrite(|_, source| source + "no WGSL").build();
    let refused = broken.on_host().attention(&attention, extent, &rows, &rows, &rows).await;
    ensure!(refused.is_err(), "a kernel that does not compile gave {refused:?}");
    let waited = engine.blocking().attention(&attention, extent, &rows, &rows, &rows);
    ensure!(waited.is_err(), "a browser waited");
    let out = engine.on_host().attention(&attention, extent, &rows, &rows, &rows).await?;
    ensure!(out == rows, "after a refusal: {out:?}");

    let state = LightningState::new(engine, &Lightning::new(1, HeadDim::new(4)?), 1)?;
    ensure!(state.save().is_err(), "a browser waited for a state");
    let saved = state.save_async().await?;
    ensure!(LightningState::restore(engine, &saved)?.shape() == state.shape(), "another state");
    Ok(())
}

async fn engine(tell: &dyn Fn(String)) -> Result<Engine> {
    let instance = wgpu::Instance::new(wgpu::InstanceDescriptor::new_without_display_handle());
    let adapter = instance.request_adapter(&wgpu::RequestAdapterOptions::default()).await.context("no adapter")?;
    let (device, queue) = adapter
        .request_device(&wgpu::DeviceDescriptor {
            label: Some("wattn"),
            required_features: wanted_features(&adapter),
            required_limits: wanted_limits(&adapter),
            ..wgpu::DeviceDescriptor::default()
        })
        .await?;
    let engine = Engine::builder(&device, &queue).build();
    tell(format!("{:?}\n{:?}", adapter.get_info(), engine.capabilities()));
    Ok(engine)
}
