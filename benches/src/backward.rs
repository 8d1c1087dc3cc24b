//! The backward pass of softmax attention.

use std::time::Duration;

use anyhow::Result;
use wattn::Engine;
use wattn_cases::{Reference, References, SoftmaxCase};
use wattn_tests::BackwardRun;

use crate::forward::Ready;

/// A backward pass planned, its operands on the device, its pipelines compiled.
#[derive(Debug)]
pub struct ReadyBackward<'a> {
    engine: &'a Engine,
    run: BackwardRun<'a>,
}

impl<'a> ReadyBackward<'a> {
    /// The gradients of q, k and v of a case, whose forward pass runs first.
    ///
    /// # Errors
    /// A problem that is refused, a device that fails.
    pub fn new(engine: &'a Engine, case: &'a SoftmaxCase) -> Result<Self> {
        let Ready { loaded, .. } = Ready::new(engine, case)?;
        let (out, lse) = (Vec::new(), Vec::new());
        let nothing = Reference { out, lse, gradients: References::new(), largest_logit: 0.0 };
        let ready = Self { engine, run: BackwardRun::new(engine, loaded, None, &nothing)? };
        ready.time(1)?;
        Ok(ready)
    }

    /// The time of `calls` calls, each submitted on its own.
    ///
    /// # Errors
    /// A device that fails.
    pub fn time(&self, calls: u64) -> Result<Duration> {
        let (plan, operands) = (self.run.plan(), self.run.operands());
        super::time(self.engine, calls, plan.slices(), |encoder, slice| {
            Ok(plan.encode_slice(encoder, &operands, slice)?)
        })
    }
}
