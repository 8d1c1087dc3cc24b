//! What a call costs on the host and in submissions, beside the kernel itself.

use std::time::Instant;

use anyhow::{Context, Result};
use ndarray::{Array2, linalg};
use serde::{Deserialize, Serialize};
use wattn::{Engine, wgpu};
use wattn_tests::{Loaded, attention, extent};

use super::clock::Clock;
use super::shader::{module, pipeline};
use super::stats::median;

const SAMPLES: usize = 400;

/// Medians, microseconds.
#[derive(Debug, Clone, Copy, Serialize, Deserialize)]
pub(crate) struct HostCosts {
    /// Planning.
    pub(crate) plan_us: f64,
    /// Encoding a plan whose pipeline is compiled.
    pub(crate) encode_us: f64,
    /// Submitting nothing and waiting for it.
    pub(crate) empty_submit_us: f64,
    /// Submitting one dispatch of an empty kernel and waiting for it.
    pub(crate) dispatch_us: f64,
    /// Each further such dispatch in the same pass.
    pub(crate) next_dispatch_us: f64,
}

/// FLOP/s of products of two matrices of 1,024 rows and columns in f32 on all cores, by the crate `matrixmultiply`: what kernels that a
/// CPU driver compiles may be held against.
pub(crate) fn sgemm_rate() -> Option<f64> {
    const SIDE: usize = 1024;
    let factor = Array2::from_elem((SIDE, SIDE), 0.5_f32);
    let mut product = factor.clone();
    let seconds: Vec<f64> = (0..9)
        .map(|_| {
            let started = Instant::now();
            linalg::general_mat_mul(1.0, &factor, &factor, 0.0, &mut product);
            started.elapsed().as_secs_f64()
        })
        .collect();
    Some(2.0 * (SIDE as f64).powi(3) / median(&seconds)?)
}

impl HostCosts {
    /// Measures on a small problem.
    pub(crate) fn measure(engine: &Engine, clock: &Clock) -> Result<Self> {
        let case = wattn_cases::Recipe::default().build();
        let (attention, extent) = (attention(&case)?, extent(&case)?);
        let plan = engine.plan(&attention, extent)?;
        let loaded = Loaded::new(engine, &case);
        loaded.run(engine, &plan)?;

        let module = module(engine.device(), "nothing", &[], &[include_str!("../../../shaders/bench/copy.wgsl")])?;
        let nothing = pipeline(engine.device(), &module, "nothing", None, &[]);
        let dispatches = |count: u32| -> Result<f64> {
            let mut encoder = clock.encoder();
            let mut pass = encoder.begin_compute_pass(&wgpu::ComputePassDescriptor::default());
            pass.set_pipeline(&nothing);
            for _ in 0..count {
                pass.dispatch_workgroups(1, 1, 1);
            }
            drop(pass);
            clock.submissions(vec![encoder])
        };
        dispatches(1)?;
        let (one, many) = (typical(|| dispatches(1))?, typical(|| dispatches(17))?);

        Ok(Self {
            plan_us: typical(|| {
                let started = Instant::now();
                let plan = engine.plan(&attention, extent)?;
                let seconds = started.elapsed().as_secs_f64();
                drop(plan);
                Ok(seconds)
            })?,
            encode_us: typical(|| {
                let mut encoder = clock.encoder();
                let started = Instant::now();
                plan.encode(&mut encoder, &loaded.operands())?;
                let seconds = started.elapsed().as_secs_f64();
                clock.submissions(vec![encoder])?;
                Ok(seconds)
            })?,
            empty_submit_us: typical(|| clock.submissions(vec![clock.encoder()]))?,
            dispatch_us: one,
            next_dispatch_us: (many - one).max(0.0) / 16.0,
        })
    }
}

/// The median, microseconds.
fn typical(mut seconds: impl FnMut() -> Result<f64>) -> Result<f64> {
    let all: Vec<f64> = (0..SAMPLES).map(|_| seconds()).collect::<Result<_>>()?;
    Ok(median(&all).context("no samples")? * 1e6)
}
