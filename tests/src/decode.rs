//! Runs a case of softmax attention through the plan for few queries.

use anyhow::Result;
use wattn::wgpu::util::{BufferInitDescriptor, DeviceExt};
use wattn::wgpu::{self, Buffer, BufferUsages};
use wattn::{DecodePlan, Engine, Kernel, Lengths, Operands, PlanError, Split};
use wattn_cases::{Comparison, Reference, SoftmaxCase};

use crate::problem::{attention, extent};
use crate::run::{Loaded, Outputs};

/// The kernels of few queries.
pub const DECODE_KERNELS: [Kernel; 2] = [Kernel::TileUniversal, Kernel::Broadcast];

/// Plans a case for few queries, with a kernel forced and keys split so.
///
/// # Errors
/// A refused problem.
pub fn plan_decode(
    engine: &Engine,
    case: &SoftmaxCase,
    kernel: Option<Kernel>,
    split: Split,
) -> Result<Result<DecodePlan, PlanError>> {
    let attention = attention(case)?;
    let decode = kernel.map_or(attention, |kernel| attention.kernel(kernel)).decode();
    let decode = match split {
        Split::Device => decode,
        Split::Keys(keys) => decode.split_keys(keys),
    };
    Ok(engine.plan(&decode, extent(case)?))
}

/// Scratch memory, filled with NaN.
#[must_use]
pub fn workspace(engine: &Engine, bytes: u64) -> Buffer {
    #[expect(clippy::cast_possible_truncation, reason = "tests are small")]
    let contents = vec![0xff; bytes.max(16) as usize];
    let descriptor =
        BufferInitDescriptor { label: Some("workspace"), contents: &contents, usage: BufferUsages::STORAGE };
    engine.device().create_buffer_init(&descriptor)
}

/// Plans a case for few queries, runs it, and compares with `reference`: one comparison an output.
///
/// # Errors
/// A refused problem or a device that fails.
pub fn judge_decode(
    engine: &Engine,
    case: &SoftmaxCase,
    kernel: Option<Kernel>,
    split: Split,
    reference: &Reference,
) -> Result<(DecodePlan, [Comparison; 2])> {
    let plan = plan_decode(engine, case, kernel, split)??;
    let outputs = run_decode(engine, case, &plan)?;
    Ok((plan, outputs.compare(case, reference)))
}

fn run_decode(engine: &Engine, case: &SoftmaxCase, plan: &DecodePlan) -> Result<Outputs> {
    let loaded = Loaded::new(engine, case);
    let operands = loaded.operands();
    let work = plan.work(operands.lengths, operands.causal_offsets)?;
    let operands = Operands { lengths: Lengths::Full, causal_offsets: &[], ..operands };
    let workspace = workspace(engine, plan.workspace_bytes());
    let mut encoder = engine.device().create_command_encoder(&wgpu::CommandEncoderDescriptor::default());
    plan.encode(&mut encoder, &work, &operands, &workspace)?;
    engine.queue().submit([encoder.finish()]);
    loaded.read(engine)
}
