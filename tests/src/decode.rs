//! Runs a case of softmax attention through the plan for few queries.

use anyhow::{Result, ensure};
use wattn::wgpu::util::{BufferInitDescriptor, DeviceExt};
use wattn::wgpu::{self, Buffer, BufferUsages};
use wattn::{DecodePlan, Engine, Kernel, Lengths, Operands, PlanError, Split};
use wattn_cases::{Comparison, Reference, SoftmaxCase, Storage};

use crate::problem::{attention, extent};
use crate::run::{Loaded, Outputs};

/// The kernels of few queries. [Some](decode_kernels) take f16 alone.
pub const DECODE_KERNELS: [Kernel; 3] = [Kernel::TileUniversal, Kernel::Broadcast, Kernel::Matrix];

/// Those that are worth testing on a case: `matrix` where it is in f16.
pub fn decode_kernels(case: &SoftmaxCase) -> impl Iterator<Item = Kernel> {
    let half = [case.q.storage, case.k.storage] == [Storage::F16; 2];
    DECODE_KERNELS.into_iter().filter(move |&kernel| half || kernel != Kernel::Matrix)
}

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
        Split::Stretches(stretches) => decode.split_into(stretches),
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

/// Lengths that lie on the device.
#[must_use]
pub fn lengths_buffer(engine: &Engine, lengths: &[u32]) -> Buffer {
    let usage = BufferUsages::STORAGE | BufferUsages::COPY_SRC | BufferUsages::COPY_DST;
    let contents = bytemuck::cast_slice(lengths);
    engine.device().create_buffer_init(&BufferInitDescriptor { label: Some("lengths"), contents, usage })
}

/// Plans a case for few queries, runs it, and compares with `reference`: one comparison an output. Lengths that differ are also left
/// to the device, which must come to the same bits.
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
    let outputs = run_decode(engine, case, &plan, None)?;
    if let Some(lengths) = &case.kv_lens {
        let on_device = run_decode(engine, case, &plan, Some(lengths))?;
        let bits = |values: &[f32]| values.iter().map(|x| x.to_bits()).collect::<Vec<_>>();
        let same = bits(&on_device.out) == bits(&outputs.out) && bits(&on_device.lse) == bits(&outputs.lse);
        ensure!(same, "lengths on the device change the bits");
    }
    Ok((plan, outputs.compare(case, reference)))
}

/// Runs a plan for a case, with the case's lengths or with lengths that lie on the device.
///
/// # Errors
/// A device that fails.
pub fn run_decode(
    engine: &Engine,
    case: &SoftmaxCase,
    plan: &DecodePlan,
    on_device: Option<&[u32]>,
) -> Result<Outputs> {
    let loaded = Loaded::new(engine, case);
    let given = loaded.operands();
    let operands = Operands { lengths: Lengths::Full, causal_offsets: &[], ..given };
    let workspace = workspace(engine, plan.workspace_bytes());
    let mut encoder = engine.device().create_command_encoder(&wgpu::CommandEncoderDescriptor::default());
    if let Some(lengths) = on_device {
        let work = plan.device_work(Lengths::Full, given.causal_offsets)?;
        work.update(&mut encoder, &lengths_buffer(engine, lengths), 0)?;
        plan.encode(&mut encoder, &work, &operands, &workspace)?;
    } else {
        let work = plan.work(given.lengths, given.causal_offsets)?;
        plan.encode(&mut encoder, &work, &operands, &workspace)?;
    }
    engine.queue().submit([encoder.finish()]);
    loaded.read(engine)
}
