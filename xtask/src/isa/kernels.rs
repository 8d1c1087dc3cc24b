//! Which kernels are looked at: those that the scheduler plans for a device, of every operator, on each tier that can serve.

use std::collections::BTreeMap;

use anyhow::Result;
use wattn_scheduler::{
    Attention, BackwardPlan, Based, BasedPlan, CacheLayout, Capabilities, Decay, DecodePlan, Extent, HeadDim, Heads,
    Lightning, LinearPlan, Pass, Plan, PlanError, Schedule, Tokens,
};
use wattn_shaders::{Access, AppendKey, Kernel, Key, LengthsKey, Storage, table};

/// Head dims, and value dims with them.
const DIMS: [u32; 2] = [64, 128];

/// The feature dim of BASED in its published models.
const FEATURES: u32 = 16;

const HEADS: u32 = 8;
const TOKENS: u32 = 4096;

/// Tokens of linear attention: beyond 4,096 the gradient of its decay takes one kernel more.
const LINEAR_TOKENS: u32 = 8192;

/// The pipelines of all plans for this device, each once, and whether it is planned without a pinned kernel.
pub(super) fn keys(device: &Capabilities) -> Result<BTreeMap<Key, bool>> {
    let mut keys = BTreeMap::from_iter(appended().chain([Key::Lengths(LengthsKey)]).map(|key| (key, true)));
    for dim in DIMS {
        for kernel in [None].into_iter().chain(Kernel::ALL.map(Some)) {
            let found = [
                forward(dim, kernel, device)?,
                backward(dim, kernel, device)?,
                decode(dim, kernel, device)?,
                lightning(dim, kernel, device)?,
                based(dim, kernel, device)?,
            ];
            for key in found.into_iter().flatten() {
                *keys.entry(key).or_default() |= kernel.is_none();
            }
        }
    }
    Ok(keys)
}

/// Bytes of workgroup memory that a kernel declares.
pub(super) fn shared_bytes(key: &Key) -> u32 {
    match key {
        Key::Flash(key) => table::workgroup_bytes(key),
        Key::Split(key) => key.workgroup_bytes(),
        Key::FlashBackward(key) => key.workgroup_bytes(),
        Key::Linear(key) => key.workgroup_bytes(),
        Key::Based(key) => key.workgroup_bytes(),
        Key::Lengths(_) => LengthsKey::WORKGROUP_BYTES,
        Key::Merge(_) | Key::Append(_) => 0,
    }
}

/// What a plan says: a pinned kernel that cannot serve on the device is nothing to look at, any other refusal is an error.
fn planned<P>(plan: Result<P, PlanError>, kernel: Option<Kernel>) -> Result<Option<P>> {
    match plan {
        Ok(plan) => Ok(Some(plan)),
        Err(_) if kernel.is_some() => Ok(None),
        Err(error) => Err(error.into()),
    }
}

fn forward(dim: u32, kernel: Option<Kernel>, device: &Capabilities) -> Result<Vec<Key>> {
    let plain = attention(Heads::new(HEADS)?, dim, kernel)?;
    let mut operators = vec![plain, plain.storage(Storage::F16)];
    if on_matrices(kernel, device) {
        operators.push(plain.storage(Storage::F16).softcap(30.0).alibi().bias().mask().sinks().lse());
    }
    let mut keys = Vec::new();
    for operator in operators {
        let plan = planned(Plan::new(&operator, Extent::new(1, TOKENS, TOKENS), device), kernel)?;
        keys.extend(plan.map(|plan| Key::Flash(plan.key)));
    }
    Ok(keys)
}

fn backward(dim: u32, kernel: Option<Kernel>, device: &Capabilities) -> Result<Vec<Key>> {
    let plain = attention(Heads::new(HEADS)?, dim, kernel)?;
    let options = plain.alibi().bias().sinks().backward();
    let extent = Extent::new(1, TOKENS, TOKENS);
    let mut keys = Vec::new();
    for operator in [plain.backward(), options.bias_gradient().sinks_gradient().slopes_gradient()] {
        let plan = planned(BackwardPlan::new(&operator, extent, device), kernel)?;
        keys.extend(plan.iter().flat_map(BackwardPlan::keys));
    }
    // In f16, on matrices: tiles have the code that they have in f32, but for how rows are loaded.
    let half = planned(BackwardPlan::new(&plain.storage(Storage::F16).backward(), extent, device), kernel)?;
    keys.extend(half.iter().filter(|plan| plan.kernel == Kernel::Matrix).flat_map(BackwardPlan::keys));
    Ok(keys)
}

fn decode(dim: u32, kernel: Option<Kernel>, device: &Capabilities) -> Result<Vec<Key>> {
    let heads = Heads::grouped(4 * HEADS, HEADS)?;
    let cache = CacheLayout::new(HEADS, HeadDim::new(dim)?, 16, TOKENS)?.storage(Storage::F16, Storage::Int8);
    let plain = attention(heads, dim, kernel)?.decode();
    let mut cases = vec![(plain, Extent::new(8, 1, TOKENS)), (plain.cached(cache), Extent::packed(8, TOKENS, TOKENS))];
    if on_matrices(kernel, device) {
        // By themselves matrices are planned for more rows than a group's.
        let half = attention(heads, dim, kernel)?.storage(Storage::F16);
        let every = half.softcap(30.0).alibi().bias().mask().decode();
        let cache = cache.storage(Storage::F16, Storage::F16);
        cases.push((half.decode().cached(cache), Extent::packed(8, TOKENS, TOKENS)));
        // One strip of rows, and two.
        cases.extend([half.decode(), every].map(|operator| (operator, Extent::new(8, 4, TOKENS))));
        cases.push((half.decode(), Extent::new(8, 8, TOKENS)));
    }
    let mut keys = Vec::new();
    for (operator, extent) in cases {
        let Some(plan) = planned(DecodePlan::new(&operator, extent, device), kernel)? else { continue };
        keys.extend([Key::Split(plan.split), Key::Merge(plan.merge)]);
        keys.extend(plan.tiles.map(Key::Flash));
    }
    Ok(keys)
}

/// What goes into a cache is copied by one kernel, whichever reads it.
fn appended() -> impl Iterator<Item = Key> {
    let to = [Storage::F32, Storage::F16, Storage::Bf16, Storage::Int8];
    to.into_iter().map(|to| Key::Append(AppendKey { from: Storage::F32, access: Access::Vec4, to, device: false }))
}

fn lightning(dim: u32, kernel: Option<Kernel>, device: &Capabilities) -> Result<Vec<Key>> {
    let plain = Lightning::new(HEADS, HeadDim::new(dim)?).decay(Decay::transnormer(3, 12));
    let plain = kernel.map_or(plain.clone(), |kernel| plain.kernel(kernel));
    let gates = plain.clone().decay(Decay::Gates);
    let [sequential, segments] = [Schedule::Sequential, Schedule::Segments].map(|by| plain.clone().schedule(by));
    let mut operators = vec![sequential, segments, gates];
    if on_matrices(kernel, device) {
        operators.extend(operators.clone().into_iter().map(|operator| operator.storage(Storage::F16)));
    }
    operators.extend([plain.clone().step(), plain.backward().decay_gradient()]);
    let mut keys = Vec::new();
    for operator in operators {
        let plan = planned(LinearPlan::new(&operator, tokens(operator.pass()), device), kernel)?;
        keys.extend(plan.iter().flat_map(LinearPlan::keys).map(Key::Linear));
    }
    Ok(keys)
}

fn based(dim: u32, kernel: Option<Kernel>, device: &Capabilities) -> Result<Vec<Key>> {
    let plain = Based::new(HEADS, HeadDim::with_value(FEATURES, dim)?);
    let plain = kernel.map_or(plain.clone(), |kernel| plain.kernel(kernel));
    let [sequential, segments] = [Schedule::Sequential, Schedule::Segments].map(|by| plain.clone().schedule(by));
    let all = plain.clone().causal(false);
    let mut operators = vec![sequential, segments, all.clone(), plain.clone().backward(), all.backward()];
    if on_matrices(kernel, device) {
        operators.extend(operators.clone().into_iter().map(|operator| operator.storage(Storage::F16)));
    }
    operators.push(plain.step());
    let mut keys = Vec::new();
    for operator in operators {
        let plan = planned(BasedPlan::new(&operator, tokens(operator.pass()), device), kernel)?;
        keys.extend(plan.iter().flat_map(BasedPlan::keys));
    }
    Ok(keys)
}

/// Whether what is looked at in f32 is looked at in f16 too: where matrices may multiply it, which take nothing else.
fn on_matrices(kernel: Option<Kernel>, device: &Capabilities) -> bool {
    device.matrix.is_some() && kernel.is_none_or(|kernel| kernel == Kernel::Matrix)
}

fn attention(heads: Heads, dim: u32, kernel: Option<Kernel>) -> Result<Attention> {
    let plain = Attention::new(heads, HeadDim::new(dim)?).causal();
    Ok(kernel.map_or(plain, |kernel| plain.kernel(kernel)))
}

fn tokens(pass: Pass) -> Tokens {
    Tokens::new(1, if matches!(pass, Pass::Step { .. }) { 1 } else { LINEAR_TOKENS })
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use wattn_scheduler::DeviceKind;

    use super::super::row::operator;
    use super::*;

    /// The operators of the pipelines for devices like these.
    fn operators(devices: &[Capabilities]) -> BTreeSet<String> {
        let all = devices.iter().flat_map(|device| keys(device).unwrap().into_keys());
        all.map(|key| operator(&key.to_string()).to_owned()).collect()
    }

    #[test]
    fn every_operator_is_looked_at() {
        let gpu = Capabilities {
            kind: DeviceKind::Discrete,
            subgroups: Some((32, 32)),
            binding_bytes: 2 << 30,
            ..Capabilities::webgpu_defaults()
        };
        let cpu = Capabilities { kind: DeviceKind::Cpu, subgroups: Some((8, 8)), int64: true, ..gpu };
        let stretches = Capabilities { loop_turns: Some(65_535), ..cpu };
        let wanted = "based_chunk based_gradient based_read based_read_gradient based_state based_step cache_append \
            flash_backward_dbias flash_backward_delta flash_backward_dk flash_backward_dkdv flash_backward_dq \
            flash_backward_dsinks flash_backward_dslopes flash_backward_dv flash_forward flash_lengths flash_merge \
            flash_split \
            lightning_chunk lightning_decay lightning_decay_sum lightning_scan lightning_scan_within lightning_segment \
            lightning_step";
        let wanted: BTreeSet<String> = wanted.split_whitespace().map(str::to_owned).collect();
        assert_eq!(operators(&[gpu, cpu, stretches]), wanted);
    }

    #[test]
    fn what_is_planned_by_itself_is_told_from_what_is_pinned() {
        let device = Capabilities { subgroups: Some((32, 32)), ..Capabilities::webgpu_defaults() };
        let planned = |kernel: Kernel| {
            let of = |key: &Key| matches!(key, Key::Flash(key) if key.kernel == kernel);
            keys(&device).unwrap().into_iter().any(|(key, planned)| of(&key) && planned)
        };
        assert!(planned(Kernel::TileSubgroup));
        assert!(!planned(Kernel::TileUniversal));
    }
}
