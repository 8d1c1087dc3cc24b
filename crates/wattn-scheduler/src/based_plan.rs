//! A plan of BASED linear attention: which kernels run, over what, and what that costs.

use std::fmt;

use wattn_shaders::{Access, BROADCAST_FEATURES, BasedKey, BasedOp, FEATURE_CLASSES, Kernel, Storage, table};

use crate::based::Based;
use crate::capabilities::{Capabilities, DeviceKind, Driver};
use crate::error::PlanError;
use crate::lightning::Tokens;
use crate::linear_plan::{batches, slices};
use crate::plan::{MAX_LENGTH, Part, Rows, fit_parts, grid};

/// How a problem of BASED linear attention runs on a device. All that is decided, is decided here; it prints itself.
#[derive(Debug, Clone, PartialEq)]
pub struct BasedPlan {
    /// The problem.
    pub based: Based,
    /// Its extent.
    pub extent: Tokens,
    /// The pipelines, in order: one that adds and reads token by token, or, where queries see all keys, one that adds and one that
    /// reads.
    pub keys: Vec<BasedKey>,
    /// Workgroups that share a sequence of a head, each with its own part of the value dim.
    pub splits: u32,
    /// Why this kernel.
    pub reason: String,
    /// Stretches of batch entries and heads, each with bindings of its own.
    pub parts: Vec<Part>,
    /// Submissions that keep each below about half a second by estimate.
    pub slices: u32,
    /// Workgroup memory, bytes a workgroup.
    pub workgroup_bytes: u32,
    /// Workgroup memory that the device allows.
    pub workgroup_bytes_limit: u32,
    /// Workgroups along one axis of a dispatch, at most.
    pub workgroups_per_axis: u32,
    /// Scratch memory that the caller provides, bytes: the states of all keys, where queries see all and states are not written.
    pub workspace_bytes: u64,
    /// Useful floating point operations: `4 rows (value_dim + 1)` a token and head.
    pub flops: u64,
    /// Bytes that must move at least: every operand once.
    pub bytes: u64,
    /// A rough estimate of the time from the device's kind alone, seconds.
    pub estimated_seconds: f64,
}

impl BasedPlan {
    /// Plans `based` over `extent` on a device.
    ///
    /// # Errors
    /// An impossible shape or option, a device limit, or a pinned kernel that cannot serve.
    pub fn new(based: &Based, extent: Tokens, device: &Capabilities) -> Result<Self, PlanError> {
        based.check()?;
        if extent.tokens > MAX_LENGTH {
            return Err(PlanError::invalid("tokens", extent.tokens, format!("at most {MAX_LENGTH}")));
        }
        let (kernel, reason) = kernel(based, device)?;
        let keys = keys(based, kernel, device);
        let heads = u64::from(based.heads);
        let columns = keys.first().map_or(1, BasedKey::columns);
        let splits = based.dims.value().div_ceil(4 * columns);
        let workgroups = (u64::from(extent.batch) * heads).saturating_mul(splits.into());
        let needed = |size: fn(&BasedKey) -> u32| u64::from(keys.iter().map(size).max().unwrap_or(0));
        let state = u64::from(based.state_rows()) * (u64::from(based.dims.value()) + 1);
        // Saturating, here and below: what does not fit 64 bits is beyond every limit.
        let states = (state * 4).saturating_mul(u64::from(extent.batch) * heads);
        let workspace_bytes = if based.causal || based.final_state { 0 } else { states };
        for (argument, needed, available, unit, advice) in [
            ("extent", workgroups, (1 << 32) - 1, "workgroups", "; plan the batch in pieces"),
            (
                "device",
                needed(BasedKey::workgroup_bytes),
                device.workgroup_bytes.into(),
                "bytes of workgroup memory",
                "",
            ),
            ("device", needed(BasedKey::invocations), device.workgroup_invocations.into(), "invocations", ""),
            ("device", 8, device.storage_buffers.into(), "storage buffers", ""),
            ("extent", workspace_bytes, device.binding_bytes, "bytes of states", "; plan the batch in pieces"),
        ] {
            if needed > available {
                return Err(PlanError::Limit { argument, needed, available, unit, advice });
            }
        }

        check_turns(extent, &keys, device)?;
        let parts = fit_parts(&rows(based, extent, state * 4), based.heads, batches(extent), device)?;
        let tokens = (u64::from(extent.tokens) * u64::from(batches(extent))).saturating_mul(heads);
        let flops = (4 * state).saturating_mul(tokens);
        let row = |dim: u32, storage: Storage| u64::from(dim) * u64::from(storage.bytes());
        let dim = based.dims.qk() + based.dims.value();
        let given = u64::from(based.initial_state) + u64::from(based.final_state);
        let bytes =
            tokens.saturating_mul(row(dim, based.q) + row(dim, based.kv)).saturating_add(states.saturating_mul(given));
        let (rate, bandwidth) = device.rates();
        #[expect(clippy::cast_precision_loss, reason = "an estimate")]
        let estimated_seconds = (flops as f64 / rate).max(bytes as f64 / bandwidth);
        #[expect(clippy::cast_possible_truncation, reason = "within the device's limit")]
        let workgroup_bytes = needed(BasedKey::workgroup_bytes) as u32;
        Ok(Self {
            based: based.clone(),
            extent,
            keys,
            splits,
            reason,
            parts,
            slices: slices(estimated_seconds),
            workgroup_bytes,
            workgroup_bytes_limit: device.workgroup_bytes,
            workgroups_per_axis: device.workgroups_per_axis,
            workspace_bytes,
            flops,
            bytes,
            estimated_seconds,
        })
    }

    /// The grid of a dispatch of `workgroups`, which the kernels number row by row.
    #[must_use]
    pub fn grid(&self, workgroups: u32) -> [u32; 2] {
        grid(workgroups, self.workgroups_per_axis)
    }
}

/// Some drivers end long loops without a word: walks that these would not finish are refused.
fn check_turns(extent: Tokens, keys: &[BasedKey], device: &Capabilities) -> Result<(), PlanError> {
    /// Turns left for what comes before and after the walk.
    const SPARE: u32 = 2048;
    let Some(turns) = device.loop_turns() else { return Ok(()) };
    let most = keys.iter().map(|key| (turns - SPARE) / key.turns() * key.chunk()).min().unwrap_or(u32::MAX);
    if extent.tokens > most {
        return Err(PlanError::Limit {
            argument: "tokens",
            needed: extent.tokens.into(),
            available: most.into(),
            unit: "tokens in one loop",
            advice: ", it ends longer ones; calls in pieces that hand on their state would do",
        });
    }
    Ok(())
}

/// The kernel that serves, and why.
fn kernel(based: &Based, device: &Capabilities) -> Result<(Kernel, String), PlanError> {
    if let Some(kernel) = based.kernel {
        let why = serves(kernel, based, device).map_err(|reason| PlanError::Kernel { kernel, reason })?;
        return Ok((kernel, format!("pinned; {why}")));
    }
    let order = match device.kind {
        DeviceKind::Cpu => [Kernel::Broadcast, Kernel::TileUniversal, Kernel::TileSubgroup],
        _ => [Kernel::TileSubgroup, Kernel::TileUniversal, Kernel::Broadcast],
    };
    let mut reasons = Vec::new();
    for kernel in order {
        match serves(kernel, based, device) {
            Ok(why) => {
                let passed_over: String = reasons.iter().map(|r| format!("; {r}")).collect();
                return Ok((kernel, format!("{why}{passed_over}")));
            }
            Err(reason) => reasons.push(format!("not {kernel}: {reason}")),
        }
    }
    Err(PlanError::NoKernel { reasons: reasons.join("; ") })
}

fn serves(kernel: Kernel, based: &Based, device: &Capabilities) -> Result<String, String> {
    match (kernel, device.subgroups) {
        (Kernel::TileUniversal, _) => Ok("the state in workgroup memory".to_owned()),
        (Kernel::TileSubgroup | Kernel::Broadcast, None) => Err("the device has no subgroups".to_owned()),
        (Kernel::TileSubgroup, Some((min, _))) if min < 8 => {
            Err(format!("subgroups may have {min} lanes, 8 are needed"))
        }
        (Kernel::TileSubgroup, Some(_)) => Ok("the state in workgroup memory; rows follow subgroups".to_owned()),
        (Kernel::Broadcast, Some((min, max))) => {
            if min != max || !table::LANES.contains(&min) {
                return Err(format!("subgroups have {min} to {max} lanes, one of {:?} is needed", table::LANES));
            }
            if based.access == Access::Any {
                return Err("the state in registers needs dims and strides that are multiples of four".to_owned());
            }
            if based.dims.qk() > BROADCAST_FEATURES {
                return Err(format!(
                    "the state of a feature dim of {} does not fit in registers, that of {BROADCAST_FEATURES} does",
                    based.dims.qk()
                ));
            }
            if matches!(device.driver, Driver::Llvmpipe { mesa } if mesa > 22 && (mesa < 26 || min > 8)) {
                return Err("this driver takes minutes to compile it".to_owned());
            }
            Ok(format!("a CPU driver with subgroups of {min}, the state in registers"))
        }
        _ => Err("it is not in this version's menu".to_owned()),
    }
}

fn keys(based: &Based, kernel: Kernel, device: &Capabilities) -> Vec<BasedKey> {
    let features = based.dims.qk();
    let lanes = match (kernel, device.subgroups) {
        (Kernel::Broadcast, Some((min, _))) => min,
        _ => 0,
    };
    // Vectors of sixteen lanes lose more by splitting 64-bit words than they gain.
    let wide = lanes > 0
        && features.is_multiple_of(8)
        && ((device.int64 && lanes < 16) || (based.q != Storage::F32 && based.kv != Storage::F32));
    let class = FEATURE_CLASSES.into_iter().find(|&class| features <= class).unwrap_or(0);
    let key = BasedKey {
        op: BasedOp::Chunk,
        kernel,
        lanes,
        q: based.q,
        kv: based.kv,
        access: if wide { Access::Vec8 } else { based.access },
        class,
        padded: class > features,
        weights: based.normalize || based.final_state,
        state: based.final_state,
    };
    if based.causal {
        return vec![key];
    }
    // What is not looked at, is the same in all.
    let add = BasedKey { op: BasedOp::State, q: Storage::F32, weights: true, state: true, ..key };
    let read = BasedKey { op: BasedOp::Read, kv: Storage::F32, weights: based.normalize, state: false, ..key };
    vec![add, read]
}

/// Bytes of one (batch entry, head) of each operand.
fn rows(based: &Based, extent: Tokens, state: u64) -> Vec<Rows> {
    let row = |dim: u32, storage: Storage| u64::from(extent.tokens) * u64::from(dim) * u64::from(storage.bytes());
    let (features, value) = (based.dims.qk(), based.dims.value());
    [
        ("q", row(features, based.q)),
        ("k", row(features, based.kv)),
        ("v", row(value, based.kv)),
        ("out", row(value, based.q)),
        // The states of packed sequences are in one binding whatever the batch entry.
        ("state", if extent.packed { u64::from(extent.batch) * state } else { state }),
    ]
    .map(|(argument, bytes)| Rows { argument, bytes })
    .to_vec()
}

impl fmt::Display for BasedPlan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (based, heads) = (&self.based, self.based.heads);
        let form = match (based.causal, based.normalize) {
            (true, true) => "",
            (true, false) => ", without denominator",
            (false, true) => ", every query sees every key",
            (false, false) => ", every query sees every key, without denominator",
        };
        let (features, value) = (based.dims.qk(), based.dims.value());
        writeln!(
            f,
            "BASED attention{form}: {}, {heads} heads, feature dim {features}, value dim {value}",
            self.extent
        )?;
        let first = self.keys.first();
        writeln!(f, "  kernel      {} ({})", first.map_or("none", |k| k.kernel.name()), self.reason)?;
        writeln!(
            f,
            "  schedule    sequential, chunks of {}, states of {} x {}, in {} parts of the value dim",
            first.map_or(0, BasedKey::chunk),
            based.state_rows(),
            value + 1,
            self.splits
        )?;
        writeln!(
            f,
            "  memory      {} of {} bytes of workgroup memory, {} bytes of workspace",
            self.workgroup_bytes, self.workgroup_bytes_limit, self.workspace_bytes
        )?;
        #[expect(clippy::cast_precision_loss, reason = "printed with four digits")]
        let (gflop, mbyte) = (self.flops as f64 / 1e9, self.bytes as f64 / 1e6);
        writeln!(f, "  work        {gflop:.3} GFLOP, {mbyte:.3} MB")?;
        write!(f, "  estimate    {:.3} ms (from the kind of device alone)", self.estimated_seconds * 1e3)?;
        for key in &self.keys {
            write!(f, "\n  pipeline    {key}")?;
        }
        Ok(())
    }
}
