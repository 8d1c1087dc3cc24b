//! Softmax attention.

use std::time::Duration;

use anyhow::Result;
use wattn::{Engine, Plan};
use wattn_cases::SoftmaxCase;
use wattn_tests::{Loaded, attention, extent};

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

    /// The time of `calls` calls, each submitted on its own.
    ///
    /// # Errors
    /// A device that fails.
    pub fn time(&self, calls: u64) -> Result<Duration> {
        super::time(self.engine, calls, self.plan.slices(), |encoder, slice| {
            Ok(self.plan.encode_slice(encoder, &self.loaded.operands(), slice)?)
        })
    }
}
