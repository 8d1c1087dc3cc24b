//! A plan of BASED linear attention: which kernels run, over what, and what that costs.

use std::fmt;
use std::ops::Range;

use wattn_shaders::{Access, BROADCAST_FEATURES, BasedKey, Kernel, Key, MATRIX_FEATURES, Storage, table};

use crate::based::Based;
use crate::based_steps::{BasedStates, BasedStep, steps};
use crate::capabilities::Capabilities;
use crate::choose;
use crate::cost::{Cost, Estimate, Task, share};
use crate::error::{PlanError, refuse_int8};
use crate::lightning::{Pass, Schedule, Tokens};
use crate::linear_plan::{batches, slices};
use crate::plan::{MAX_LENGTH, Part, Rows, fit_parts, grid};
use crate::segments::{schedule, segments};

/// How a problem of BASED linear attention runs on a device. All that is decided, is decided here; it prints itself.
#[derive(Debug, Clone, PartialEq)]
pub struct BasedPlan {
    /// The problem.
    pub based: Based,
    /// Its extent.
    pub extent: Tokens,
    /// The kernel design of all that has several.
    pub kernel: Kernel,
    /// Its dispatches, in order, for each part.
    pub steps: Vec<BasedStep>,
    /// How tokens are shared out.
    pub schedule: Schedule,
    /// Tokens of a segment, of [`Schedule::Segments`]; else of a stretch that is walked in one dispatch.
    pub segment_tokens: u32,
    /// Segments of all sequences together, at most.
    pub segments: u32,
    /// Why this kernel and this schedule.
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
    /// Bytes that the start of a binding is a multiple of.
    pub binding_alignment: u32,
    /// Scratch memory that the caller provides, bytes; see [`workspace`](Self::workspace).
    pub workspace_bytes: u64,
    /// Useful floating point operations: `4 rows (value_dim + 1)` a token, head and output.
    pub flops: u64,
    /// Bytes that must move at least: every operand once.
    pub bytes: u64,
    /// A rough estimate of the time.
    pub estimate: Estimate,
}

/// What lies where in the scratch memory of a part, in bytes; parts take turns.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct BasedWorkspace {
    /// Backward: what the gradient of q leaves for those of k and v, [batch, heads, tokens, numbers a token].
    pub records: Range<u64>,
    /// The states of segments.
    pub segments: Range<u64>,
    /// The states of all keys of each sequence, where every query sees them and they are not the caller's.
    pub sequences: Range<u64>,
    /// The states that stretches hand on, two a sequence.
    pub turns: Range<u64>,
    /// What is bound in place of states that are not there, where they are bound as written.
    pub none: Range<u64>,
}

impl BasedPlan {
    /// Plans `based` over `extent` on a device.
    ///
    /// # Errors
    /// An impossible shape or option, a device limit, or a pinned kernel that cannot serve.
    pub fn new(based: &Based, extent: Tokens, device: &Capabilities) -> Result<Self, PlanError> {
        based.check()?;
        check(based, extent)?;
        let (kernel, mut reason) = choose::linear((Task::Based, based.dims.qk()), based.kernel, device, |kernel| {
            serves(kernel, based, device)
        })?;
        let heads = u64::from(based.heads);
        let splits = |steps: &[BasedStep]| steps.iter().map(|s| s.splits(based)).collect::<Vec<_>>();
        let sequential = steps(based, kernel, Schedule::Sequential, 1, device);
        let fewest = splits(&sequential).into_iter().min().unwrap_or(1);
        let items = (u64::from(extent.batch) * heads).saturating_mul(fewest.into());
        let longest = longest_walk(&sequential, device);
        // What no walk reaches at once takes several stretches, where it leaves its states.
        let stretched = based.pass == Pass::Forward && based.causal;
        let schedule = match based.pass {
            Pass::Step { .. } => Schedule::Sequential,
            _ => {
                let longest = if stretched { MAX_LENGTH } else { longest };
                schedule(based.schedule, extent, items, longest, device, &mut reason)?
            }
        };
        let (segment_tokens, segments, steps) = match schedule {
            Schedule::Sequential if extent.tokens > longest => {
                let in_stretches = |stretches| steps(based, kernel, schedule, stretches, device);
                let tokens = longest_walk(&in_stretches(2), device);
                (tokens, extent.batch, in_stretches(extent.tokens.div_ceil(tokens)))
            }
            Schedule::Sequential => (extent.tokens.max(1), extent.batch, sequential),
            Schedule::Segments => {
                let (tokens, segments) = segments(extent, items, longest, device);
                (tokens, segments, steps(based, kernel, schedule, 1, device))
            }
        };
        let most = splits(&steps).into_iter().max().unwrap_or(1);
        let workgroups = (u64::from(segments.max(extent.batch)) * heads).saturating_mul(most.into());
        let needed = |size: fn(&BasedKey) -> u32| steps.iter().filter_map(BasedStep::based_key).map(size).max();
        let workgroup_bytes = needed(BasedKey::workgroup_bytes).unwrap_or(0);
        let invocations = needed(BasedKey::invocations).unwrap_or(0);
        for (argument, needed, available, unit, advice) in [
            ("extent", workgroups, (1 << 32) - 1, "workgroups", "; plan the batch in pieces"),
            ("device", workgroup_bytes.into(), device.workgroup_bytes.into(), "bytes of workgroup memory", ""),
            ("device", invocations.into(), device.workgroup_invocations.into(), "invocations", ""),
            ("device", 8, device.storage_buffers.into(), "storage buffers", ""),
        ] {
            if needed > available {
                return Err(PlanError::Limit { argument, needed, available, unit, advice });
            }
        }

        let mut plan = Self {
            based: based.clone(),
            extent,
            kernel,
            steps,
            schedule,
            segment_tokens,
            segments,
            reason,
            parts: Vec::new(),
            slices: 1,
            workgroup_bytes,
            workgroup_bytes_limit: device.workgroup_bytes,
            workgroups_per_axis: device.workgroups_per_axis,
            binding_alignment: device.binding_alignment,
            workspace_bytes: 0,
            flops: 0,
            bytes: compulsory_bytes(based, extent),
            estimate: Estimate { seconds: 0.0, measured: false },
        };
        plan.parts = fit_parts(&plan.rows(), [batches(extent), based.heads], u64::MAX, device)?;
        plan.workspace_bytes = plan.parts.iter().map(|part| plan.workspace(part).none.end).max().unwrap_or(0);
        // Saturating: what does not fit 64 bits is beyond every limit.
        let tokens = (u64::from(extent.tokens) * u64::from(batches(extent))).saturating_mul(heads);
        let outputs = if based.pass == Pass::Backward { 3 } else { 1 };
        plan.flops = (4 * outputs * plan.state_size()).saturating_mul(tokens);
        let task = if based.pass == Pass::Backward { Task::BasedBackward } else { Task::Based };
        let cost = Cost {
            flops: plan.flops,
            bytes: plan.bytes,
            dispatches: (plan.steps.len() * plan.parts.len()) as u64,
            share: share(task, kernel, None, device.kind),
        };
        plan.estimate = cost.estimate(device);
        plan.slices = slices(plan.estimate.seconds);
        Ok(plan)
    }

    /// The pipelines of all steps.
    pub fn keys(&self) -> impl Iterator<Item = Key> + '_ {
        // Stretches after the second have the pipeline of the second.
        self.steps.iter().filter(|step| step.stretch < 2).map(|step| step.key)
    }

    /// Stretches of the longest sequence that are walked one after the other; one but for long sequences on drivers that end long loops.
    #[must_use]
    pub fn stretches(&self) -> u32 {
        self.steps.iter().map(|step| step.stretch + 1).max().unwrap_or(1)
    }

    /// The grid of a dispatch of `workgroups`, which the kernels number row by row.
    #[must_use]
    pub fn grid(&self, workgroups: u32) -> [u32; 2] {
        grid(workgroups, self.workgroups_per_axis)
    }

    /// Numbers of a state.
    fn state_size(&self) -> u64 {
        u64::from(self.based.state_rows()) * (u64::from(self.based.dims.value()) + 1)
    }

    /// Numbers that the gradient of q leaves for each token: two; and where the value dim takes several passes, their sums.
    #[must_use]
    pub fn record_size(&self) -> u32 {
        let passes = self.steps.iter().filter_map(BasedStep::based_key).any(|key| key.passes);
        match (self.based.pass, passes) {
            (Pass::Backward, false) => 2,
            (Pass::Backward, true) => 3 + self.based.dims.qk() + 1,
            _ => 0,
        }
    }

    /// Where the workspace of a part has what.
    #[must_use]
    pub fn workspace(&self, part: &Part) -> BasedWorkspace {
        let [batch, heads] = [&part.batch, &part.kv_heads].map(|range| u64::from(range.end - range.start));
        let states = |on: bool, items: u64| {
            if on { items.saturating_mul(heads).saturating_mul(self.state_size() * 4) } else { 0 }
        };
        let sequences = if self.extent.packed { u64::from(self.extent.batch) } else { batch };
        let kept = |states| self.steps.iter().any(|step| step.to == Some(states));
        // What is bound has some bytes, also without tokens.
        let records = u64::from(self.record_size()) * 4 * u64::from(self.extent.tokens.max(1));
        let after = |before: &Range<u64>, bytes: u64| {
            // What is empty takes no room.
            let start =
                if bytes == 0 { before.end } else { before.end.next_multiple_of(self.binding_alignment.max(4).into()) };
            start..start.saturating_add(bytes)
        };
        let records = 0..records.saturating_mul(batch * heads);
        let segments = after(&records, states(self.schedule == Schedule::Segments, self.own_segments() * batch));
        let own = after(&segments, states(kept(BasedStates::Sequences), sequences));
        let turns = after(&own, states(kept(BasedStates::Turns), 2 * sequences));
        let missing =
            |step: &BasedStep| step.from.is_none() && step.based_key().is_some_and(BasedKey::binds_state0_written);
        let none = after(&turns, if self.steps.iter().any(missing) { 4 } else { 0 });
        BasedWorkspace { records, segments, sequences: own, turns, none }
    }

    /// Segments of a batch entry, at most.
    fn own_segments(&self) -> u64 {
        self.segments.div_ceil(batches(self.extent).max(1)).into()
    }

    /// Bytes of one (batch entry, head) of each operand.
    fn rows(&self) -> Vec<Rows> {
        let (based, tokens) = (&self.based, u64::from(self.extent.tokens));
        let row = |dim: u32, storage: Storage| tokens * u64::from(dim) * u64::from(storage.bytes());
        let (features, value) = (based.dims.qk(), based.dims.value());
        // The states of packed sequences, and those of segments, are in one binding whatever the batch entry.
        let turns = self.steps.iter().any(|step| step.to == Some(BasedStates::Turns));
        let sequences = if self.extent.packed { self.extent.batch.into() } else { 1 } * if turns { 2 } else { 1 };
        let segments = if self.schedule == Schedule::Segments { self.own_segments() } else { 0 };
        [
            ("q", row(features, based.q)),
            ("k", row(features, based.kv)),
            ("v", row(value, based.kv)),
            ("out", row(value, based.q)),
            ("state", sequences.max(segments).saturating_mul(self.state_size() * 4)),
            ("workspace", tokens * u64::from(self.record_size()) * 4),
        ]
        .map(|(argument, bytes)| Rows { argument, bytes })
        .to_vec()
    }
}

fn check(based: &Based, extent: Tokens) -> Result<(), PlanError> {
    refuse_int8([based.q, based.kv])?;
    if extent.tokens > MAX_LENGTH {
        return Err(PlanError::invalid("tokens", extent.tokens, format!("at most {MAX_LENGTH}")));
    }
    if matches!(based.pass, Pass::Step { .. }) && (extent.tokens != 1 || extent.packed) {
        return Err(PlanError::invalid("extent", extent, "one token a batch entry, since a step takes one"));
    }
    Ok(())
}

/// Tokens that one workgroup may walk before the driver ends its loops.
fn longest_walk(steps: &[BasedStep], device: &Capabilities) -> u32 {
    /// Turns left for what comes before and after the walk.
    const SPARE: u32 = 2048;
    let Some(turns) = device.loop_turns else { return MAX_LENGTH };
    let of = |key: &BasedKey| (turns - SPARE) / key.turns() * key.chunk();
    steps.iter().filter_map(BasedStep::based_key).map(of).min().unwrap_or(MAX_LENGTH)
}

fn compulsory_bytes(based: &Based, extent: Tokens) -> u64 {
    let row = |dim: u32, storage: Storage| u64::from(dim) * u64::from(storage.bytes());
    let (features, value) = (based.dims.qk(), based.dims.value());
    let q_like = row(features, based.q) + row(value, based.q);
    let kv_like = row(features, based.kv) + row(value, based.kv);
    // The backward pass reads q, k, v and the output's gradient, and writes dq, dk and dv.
    let token = match based.pass {
        Pass::Backward => q_like + 2 * kv_like + row(features, based.q),
        _ => q_like + kv_like,
    };
    let heads = u64::from(based.heads);
    let tokens = (u64::from(extent.tokens) * u64::from(batches(extent))).saturating_mul(heads);
    let in_place = u64::from(based.pass == Pass::Step { in_place: true });
    let states = u64::from(based.initial_state) + u64::from(based.final_state) + in_place;
    let state = u64::from(based.state_rows()) * (u64::from(value) + 1) * 4;
    tokens.saturating_mul(token).saturating_add((state * states).saturating_mul(u64::from(extent.batch) * heads))
}

/// Why a kernel can serve, or why not.
fn serves(kernel: Kernel, based: &Based, device: &Capabilities) -> Result<String, String> {
    match (kernel, device.subgroups) {
        (Kernel::TileUniversal, _) => Ok("the state in workgroup memory".to_owned()),
        (Kernel::TileSubgroup | Kernel::Broadcast, None) => Err("the device has no subgroups".to_owned()),
        (Kernel::TileSubgroup, _) if matches!(based.pass, Pass::Step { .. }) => {
            Err("no row of a step follows a subgroup".to_owned())
        }
        (Kernel::TileSubgroup, Some((min, _))) if min < 8 => {
            Err(format!("subgroups may have {min} lanes, 8 are needed"))
        }
        (Kernel::TileSubgroup, Some(_)) => Ok("the state in workgroup memory; rows follow subgroups".to_owned()),
        (Kernel::Broadcast, Some((min, max))) => {
            if matches!(based.pass, Pass::Step { .. }) {
                return Err("a step has nothing to broadcast".to_owned());
            }
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
            Ok(format!("a CPU driver with subgroups of {min}, the state in registers"))
        }
        (Kernel::Matrix, _) => matrix(based, device),
        _ => Err("it is not in this version's menu".to_owned()),
    }
}

fn matrix(based: &Based, device: &Capabilities) -> Result<String, String> {
    if matches!(based.pass, Pass::Step { .. }) {
        return Err("a step has nothing that matrices multiply".to_owned());
    }
    if based.dims.qk() > MATRIX_FEATURES {
        return Err(format!(
            "the state of a feature dim of {} does not fit in registers, that of {MATRIX_FEATURES} does",
            based.dims.qk()
        ));
    }
    let square = choose::matrix_square([based.q, based.kv], device)?;
    let steps = steps(based, Kernel::Matrix, Schedule::Segments, 1, device);
    let needed = |size: fn(&BasedKey) -> u32| steps.iter().filter_map(BasedStep::based_key).map(size).max();
    let bytes = needed(BasedKey::workgroup_bytes).unwrap_or(0);
    choose::square_fits(square, (bytes, needed(BasedKey::invocations).unwrap_or(0)), device)?;
    Ok(format!("matrices of {0} x {0}, {bytes} bytes fit {1}", square.side, device.workgroup_bytes))
}

impl fmt::Display for BasedPlan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (based, heads) = (&self.based, self.based.heads);
        let pass = match based.pass {
            Pass::Forward => "",
            Pass::Backward => ", backward",
            Pass::Step { .. } => ", one step",
        };
        let form = match (based.causal, based.normalize) {
            (true, true) => "",
            (true, false) => ", without denominator",
            (false, true) => ", every query sees every key",
            (false, false) => ", every query sees every key, without denominator",
        };
        let (features, value) = (based.dims.qk(), based.dims.value());
        writeln!(
            f,
            "BASED attention{pass}{form}: {}, {heads} heads, feature dim {features}, value dim {value}",
            self.extent
        )?;
        writeln!(f, "  kernel      {} ({})", self.kernel, self.reason)?;
        writeln!(
            f,
            "  schedule    {}, {} segments of at most {} tokens, states of {} x {}, {} dispatches",
            self.schedule,
            u64::from(self.segments) * u64::from(self.stretches()),
            self.segment_tokens,
            based.state_rows(),
            value + 1,
            self.steps.len() * self.parts.len()
        )?;
        writeln!(
            f,
            "  memory      {} of {} bytes of workgroup memory, {} bytes of workspace",
            self.workgroup_bytes, self.workgroup_bytes_limit, self.workspace_bytes
        )?;
        #[expect(clippy::cast_precision_loss, reason = "printed with four digits")]
        let (gflop, mbyte) = (self.flops as f64 / 1e9, self.bytes as f64 / 1e6);
        writeln!(f, "  work        {gflop:.3} GFLOP, {mbyte:.3} MB")?;
        write!(f, "  estimate    {}", self.estimate)?;
        for key in self.keys() {
            write!(f, "\n  pipeline    {key}")?;
        }
        Ok(())
    }
}
