//! Few queries over many keys: `flash_split` and `flash_merge`.

use std::time::Duration;

use anyhow::Result;
use wattn::wgpu::Buffer;
use wattn::{DecodePlan, Engine, Lengths, Operands, Split, Work};
use wattn_cases::SoftmaxCase;
use wattn_tests::{Loaded, plan_decode, workspace};

/// A case of few queries planned and on the device, its pipelines compiled.
#[derive(Debug)]
pub struct ReadyDecode<'a> {
    engine: &'a Engine,
    plan: DecodePlan,
    work: Work,
    loaded: Loaded<'a>,
    workspace: Buffer,
}

impl<'a> ReadyDecode<'a> {
    /// Plans, shares out the work of the case's lengths, uploads, and runs once.
    ///
    /// # Errors
    /// A problem that is refused, a device that fails.
    pub fn new(engine: &'a Engine, case: &'a SoftmaxCase) -> Result<Self> {
        let plan = plan_decode(engine, case, None, Split::Device)??;
        let loaded = Loaded::new(engine, case);
        let given = loaded.operands();
        let work = plan.work(given.lengths, given.causal_offsets)?;
        let workspace = workspace(engine, plan.workspace_bytes());
        let ready = Self { engine, plan, work, loaded, workspace };
        ready.time(1)?;
        Ok(ready)
    }

    /// The time of `calls` calls, each submitted on its own.
    ///
    /// # Errors
    /// A device that fails.
    pub fn time(&self, calls: u64) -> Result<Duration> {
        let operands = Operands { lengths: Lengths::Full, causal_offsets: &[], ..self.loaded.operands() };
        super::time(self.engine, calls, 1, |encoder, _| {
            Ok(self.plan.encode(encoder, &self.work, &operands, &self.workspace)?)
        })
    }
}
