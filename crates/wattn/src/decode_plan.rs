//! A plan for few queries over many keys that can be encoded: the scheduler's decision, bound to an engine.

use std::fmt;

use wattn_scheduler::shaders::Sequence;
use wattn_scheduler::{CacheStep, Lengths, PlanError, Work};
use wgpu::{Buffer, CommandEncoder, ComputePass};

use crate::decode_call::Call;
use crate::device_work::DeviceWork;
use crate::dispatch::{self, Dispatch};
use crate::engine::Engine;
use crate::error::EncodeError;
use crate::operands::Operands;

/// How attention of few queries over many keys runs on an engine's device. Prints itself; may be encoded any number of times.
#[derive(Debug, Clone)]
pub struct DecodePlan {
    engine: Engine,
    plan: wattn_scheduler::DecodePlan,
}

impl DecodePlan {
    pub(crate) fn new(engine: Engine, plan: wattn_scheduler::DecodePlan) -> Self {
        Self { engine, plan }
    }

    /// What the scheduler decided: kernels, rows, stretches, memory.
    #[must_use]
    pub fn details(&self) -> &wattn_scheduler::DecodePlan {
        &self.plan
    }

    /// The engine it was planned on.
    #[must_use]
    pub fn engine(&self) -> &Engine {
        &self.engine
    }

    /// Bytes of scratch memory that are enough for any call of this plan.
    #[must_use]
    pub fn workspace_bytes(&self) -> u64 {
        self.plan.workspace_bytes
    }

    /// The work of calls of these lengths, the same for all layers of a model; it prints how even it is.
    ///
    /// # Errors
    /// Lengths or offsets that do not fit the extent, or keys that lie in a cache: see [`KvCache`](crate::KvCache) then.
    pub fn work(&self, lengths: Lengths<'_>, causal_offsets: &[i32]) -> Result<Work, PlanError> {
        self.plan.work(lengths, causal_offsets)
    }

    /// The work of a step of the [`KvCache`](crate::KvCache) that the plan reads, the same for all layers.
    ///
    /// # Errors
    /// More sequences, tokens or keys than the extent has, keys that the queries see but that were evicted, or a plan without a cache.
    pub fn work_of(&self, step: &CacheStep) -> Result<Work, PlanError> {
        self.plan.work_of(step)
    }

    /// The work of calls of which only the device knows how many keys there are: at most those of `most`, and few queries a sequence.
    ///
    /// # Errors
    /// Lengths or offsets that do not fit the extent, a sequence of many queries, or keys that lie in a cache.
    pub fn device_work(&self, most: Lengths<'_>, causal_offsets: &[i32]) -> Result<DeviceWork, PlanError> {
        DeviceWork::new(self, self.plan.device_work(most, causal_offsets)?)
    }

    /// The same for a step of the [`KvCache`](crate::KvCache) that the plan reads: a sequence has as many tokens as the device says,
    /// the new ones included, which are its last, and no more than the step says.
    ///
    /// # Errors
    /// As [`work_of`](Self::work_of), or a sequence of many new tokens or with evicted ones, or a plan for a cascade.
    pub fn device_work_of(&self, step: &CacheStep) -> Result<DeviceWork, PlanError> {
        DeviceWork::new(self, self.plan.device_work_of(step)?)
    }

    /// Records a call into `encoder`, in a compute pass of its own. Nothing is submitted. Lengths and offsets are those of `work`;
    /// `workspace` is not looked at where the work needs none. It is one submission however long the prompts are, where
    /// [`Plan`](crate::Plan) has slices: where drivers reset a GPU that is busy for seconds, give long ones in pieces.
    ///
    /// # Errors
    /// Operands that do not fit the plan or the work or overlap; work that the device was not told to make; a kernel that the device
    /// refuses. Nothing has been recorded then.
    pub fn encode<'a>(
        &self,
        encoder: &mut CommandEncoder,
        work: impl Into<AnyWork<'a>>,
        operands: &Operands<'_>,
        workspace: &Buffer,
    ) -> Result<(), EncodeError> {
        dispatch::encode(encoder, self.dispatches(work.into(), operands, workspace)?);
        Ok(())
    }

    /// Records a call into a compute pass that the caller has open, beside other work.
    ///
    /// # Errors
    /// As [`encode`](Self::encode).
    pub fn encode_in_pass<'a>(
        &self,
        pass: &mut ComputePass<'_>,
        work: impl Into<AnyWork<'a>>,
        operands: &Operands<'_>,
        workspace: &Buffer,
    ) -> Result<(), EncodeError> {
        dispatch::encode_in_pass(pass, self.dispatches(work.into(), operands, workspace)?);
        Ok(())
    }

    fn dispatches(
        &self,
        work: AnyWork<'_>,
        operands: &Operands<'_>,
        workspace: &Buffer,
    ) -> Result<Vec<Dispatch>, EncodeError> {
        let call = Call::new(&self.engine, &self.plan, work, operands, workspace)?;
        let mut dispatches = Vec::new();
        for part in &self.plan.parts {
            dispatches.extend([call.tiles(part)?, call.stretches(part)?, call.merges(part)?].into_iter().flatten());
        }
        Ok(dispatches)
    }
}

impl fmt::Display for DecodePlan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.plan.fmt(f)
    }
}

/// The work of a call, made by the host or by the device.
#[derive(Debug, Clone, Copy)]
pub enum AnyWork<'a> {
    /// Made by the host, from lengths that it knows.
    Host(&'a Work),
    /// Made by the device, from lengths that lie there.
    Device(&'a DeviceWork),
}

impl<'a> From<&'a Work> for AnyWork<'a> {
    fn from(work: &'a Work) -> Self {
        Self::Host(work)
    }
}

impl<'a> From<&'a DeviceWork> for AnyWork<'a> {
    fn from(work: &'a DeviceWork) -> Self {
        Self::Device(work)
    }
}

impl AnyWork<'_> {
    /// Queries of all packed sequences together, or of each batch entry.
    pub(crate) fn queries(&self) -> u32 {
        match self {
            Self::Host(work) => work.queries,
            Self::Device(work) => work.details().queries,
        }
    }

    pub(crate) fn tables(&self) -> &[u32] {
        match self {
            Self::Host(work) => &work.tables,
            Self::Device(work) => &work.details().tables,
        }
    }

    /// The sequences that the host sends.
    pub(crate) fn sequences(&self) -> &[Sequence] {
        match self {
            Self::Host(work) => &work.sequences,
            Self::Device(_) => &[],
        }
    }

    /// Partial rows of a key/value head, at most.
    pub(crate) fn partial_rows(&self) -> u32 {
        match self {
            Self::Host(work) => work.partial_rows,
            Self::Device(work) => work.details().partial_rows,
        }
    }

    pub(crate) fn device(&self) -> Option<&DeviceWork> {
        match self {
            Self::Host(_) => None,
            Self::Device(work) => Some(work),
        }
    }
}
