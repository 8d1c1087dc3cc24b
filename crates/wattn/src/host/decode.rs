//! Few queries over many keys on host slices.

use wattn_scheduler::{Attention, Decode, Extent, Lengths, Work};
use wgpu::{Buffer, BufferUsages, CommandEncoder};

use super::Blocking;
use super::call::{Call, Loaded, Written};
use super::memory::buffer;
use super::softmax::{HostOperands, HostOutput, Inputs, Outputs};
use crate::cache::KvCache;
use crate::decode_plan::DecodePlan;
use crate::engine::Engine;
use crate::error::{EncodeError, RunError};
use crate::operands::Operands;

impl Blocking {
    /// Attention of few queries over many keys, split over the device and merged, on host slices. (Keys that lie in a
    /// [`KvCache`](crate::KvCache) are on the device already: they are read by calls in an encoder.)
    ///
    /// ```
    /// # fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// use wattn::{Attention, Engine, Extent, HeadDim, Heads, HostOperands};
    /// # if Engine::headless().is_err() { return Ok(()) }
    /// let engine = Engine::headless()?;
    /// // One query of two heads that share 500 keys: all alike, so that what comes out is the mean of the values.
    /// let decode = Attention::new(Heads::grouped(2, 1)?, HeadDim::new(4)?).causal().lse().decode();
    /// let (q, k) = (vec![1.0; 2 * 4], vec![0.5; 500 * 4]);
    /// let v: Vec<f32> = (0..500 * 4).map(|at| (at / 4) as f32).collect();
    /// let operands = HostOperands { q: &q, k: &k, v: &v, ..HostOperands::default() };
    /// let got = engine.blocking().decode(&decode, Extent::new(1, 1, 500), &operands)?;
    /// assert!((got.out[0] - 249.5).abs() < 1e-2);
    /// assert!((got.lse[1] - (1.0 + 500_f32.ln())).abs() < 1e-4); // scores are 4 * 0.5 / sqrt(4)
    /// # Ok(()) }
    /// ```
    ///
    /// # Errors
    /// As [`run`](Self::run), and keys in a cache.
    pub fn decode(&self, decode: &Decode, extent: Extent, operands: &HostOperands<'_>) -> Result<HostOutput, RunError> {
        self.results(call(&self.engine, decode, extent, operands)?).map(HostOutput::of)
    }
}

pub(super) fn call(
    engine: &Engine,
    decode: &Decode,
    extent: Extent,
    operands: &HostOperands<'_>,
) -> Result<Call, RunError> {
    Call::new(engine, |call| {
        let plan = engine.plan(decode, extent)?;
        let works = vec![plan.work(operands.lengths, operands.causal_offsets)?];
        let (attention, workspace) = (decode.attention(), plan.workspace_bytes());
        let loaded = LoadedDecode::new(engine, attention, extent, operands, None, works, workspace)?;
        call.run(&loaded, &plan, 1)
    })
}

/// The operands of calls with few queries, on the device.
pub(crate) struct LoadedDecode<'a> {
    inputs: Inputs<'a>,
    outputs: Outputs,
    /// Where keys and values lie in pages.
    cache: Option<&'a KvCache>,
    /// Of each plan that may be run.
    works: Vec<Work>,
    workspace: Buffer,
}

impl<'a> LoadedDecode<'a> {
    /// Of plans that do this work, with as much scratch memory.
    pub(crate) fn new(
        engine: &Engine,
        attention: &Attention,
        extent: Extent,
        host: &'a HostOperands<'a>,
        cache: Option<&'a KvCache>,
        works: Vec<Work>,
        workspace_bytes: u64,
    ) -> Result<Self, RunError> {
        let inputs = Inputs::upload(engine, attention, extent, host)?;
        let outputs = Outputs::new(engine, attention, extent)?;
        let workspace = buffer(engine, "workspace", workspace_bytes, BufferUsages::STORAGE | BufferUsages::COPY_DST)?;
        Ok(Self { inputs, outputs, cache, works, workspace })
    }
}

impl Loaded<DecodePlan> for LoadedDecode<'_> {
    fn encode_slice(&self, plan: &DecodePlan, encoder: &mut CommandEncoder, _slice: u32) -> Result<(), EncodeError> {
        let work = self.works.iter().find(|work| plan.details().made(work)).ok_or(EncodeError::OtherWork)?;
        // Lengths and offsets are those of the work.
        let operands = self.outputs.operands(&self.inputs);
        let mut operands = Operands { lengths: Lengths::Full, causal_offsets: &[], ..operands };
        if let Some(cache) = self.cache {
            (operands.k, operands.v) = (cache.k(0)?, cache.v(0)?);
        }
        plan.encode(encoder, work, &operands, &self.workspace)
    }

    fn written(&self) -> Vec<&Written> {
        self.outputs.written()
    }

    #[cfg(feature = "tune")]
    fn scratch(&self) -> Option<&Buffer> {
        Some(&self.workspace)
    }
}
