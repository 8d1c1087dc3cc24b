//! A plan of linear attention: which kernels run, in which schedule, over what, and what that costs.

use std::fmt;

use wattn_shaders::{Access, BROADCAST_CLASS, HEAD_CLASSES, Kernel, LinearKey, LinearOp, Storage, table};

use crate::capabilities::Capabilities;
use crate::choose;
use crate::cost::{Cost, Estimate, Task, share};
use crate::decay_plan::PlannedDecay;
use crate::error::{PlanError, refuse_int8};
use crate::lightning::{Lightning, Pass, Schedule, Tokens};
use crate::plan::{MAX_LENGTH, Part, Rows, SLICE_SECONDS, check_workgroups, fit_parts, grid};
use crate::segments::{schedule, segments};
use crate::sweep::{Sweep, Tensor};

/// One sweep with its pipelines.
#[derive(Debug, Clone, PartialEq)]
pub struct PlannedSweep {
    /// Which tensor plays which role.
    pub sweep: Sweep,
    /// The pipeline that writes the outputs.
    pub walk: LinearKey,
    /// Of [`Schedule::Segments`]: the pipelines that give each segment the state it starts from.
    pub states: Option<[LinearKey; 2]>,
    /// Of [`Schedule::Sequential`] in several stretches: the pipeline of all but the first, which goes on from the one before.
    pub resumed: Option<LinearKey>,
    /// The dim that plays the key dim, and the one that plays the value dim.
    pub dims: [u32; 2],
}

impl PlannedSweep {
    /// Workgroups of one of its pipelines that share a segment of a head.
    #[must_use]
    pub fn splits(&self, key: &LinearKey) -> u32 {
        let [key_dim, value_dim] = self.dims;
        match key.op {
            LinearOp::Scan | LinearOp::ScanWithin => (key_dim * value_dim).div_ceil(key.columns()),
            LinearOp::Decay | LinearOp::DecaySum => 1,
            _ => value_dim.div_ceil(4 * key.columns()),
        }
    }

    /// Walks stretches one after the other.
    fn stretch(&mut self) {
        self.walk.state = true;
        self.resumed = Some(LinearKey { resumed: true, ..self.walk });
    }

    /// Walks segments side by side instead.
    pub(crate) fn segment(&mut self) {
        // Neither queries nor subgroups have a part in the states.
        let kernel = if self.walk.kernel == Kernel::TileSubgroup { Kernel::TileUniversal } else { self.walk.kernel };
        let segment = LinearKey { op: LinearOp::Segment, kernel, q: self.walk.kv, state: false, ..self.walk };
        // All scans of a kind are one pipeline, and write the last states.
        let scan = LinearKey {
            op: LinearOp::Scan,
            kernel: Kernel::TileUniversal,
            lanes: 0,
            square: None,
            q: Storage::F32,
            kv: Storage::F32,
            access: Access::Any,
            head_class: 0,
            padded: false,
            ..self.walk
        };
        self.states = Some([segment, scan]);
        self.walk.state = false;
    }
}

/// How a problem of linear attention runs on a device. All that is decided, is decided here; it prints itself.
#[derive(Debug, Clone, PartialEq)]
pub struct LinearPlan {
    /// The problem.
    pub lightning: Lightning,
    /// Its extent.
    pub extent: Tokens,
    /// Its sweeps, in order.
    pub sweeps: Vec<PlannedSweep>,
    /// What gives the gradient of the decay, after them.
    pub decay: Option<PlannedDecay>,
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
    /// Scratch memory that the caller provides, bytes: the states of all segments, whatever the number of tokens; one state a sequence,
    /// where stretches hand on those that the caller has no use for; with the gradient of the decay, those of a few levels of segments.
    pub workspace_bytes: u64,
    /// Useful floating point operations: `4 key_dim value_dim` a token, head and sweep; the gradient of the decay counts as two.
    pub flops: u64,
    /// Bytes that must move at least: every operand once.
    pub bytes: u64,
    /// A rough estimate of the time.
    pub estimate: Estimate,
}

impl LinearPlan {
    /// Plans `lightning` over `extent` on a device.
    ///
    /// # Errors
    /// An impossible shape or option, a device limit, or a pinned kernel that cannot serve.
    pub fn new(lightning: &Lightning, extent: Tokens, device: &Capabilities) -> Result<Self, PlanError> {
        lightning.check()?;
        check(lightning, extent)?;
        let (kernel, mut reason) =
            choose::linear((Task::Linear, registers(lightning)), lightning.kernel, device, |kernel| {
                serves(kernel, lightning, device)
            })?;
        let mut sweeps: Vec<PlannedSweep> =
            lightning.sweeps().into_iter().map(|s| planned(lightning, s, kernel, device)).collect();
        let heads = u64::from(lightning.heads);
        let splits = sweeps.iter().map(|s| u64::from(s.splits(&s.walk)));
        let (fewest, most) = (splits.clone().min().unwrap_or(1), splits.max().unwrap_or(1));
        let items = (u64::from(extent.batch) * heads).saturating_mul(fewest);
        let longest = longest_walk(&sweeps, device);
        let schedule = match lightning.pass {
            Pass::Step { .. } => Schedule::Sequential,
            // What no walk reaches at once, takes several stretches.
            _ => schedule(lightning.schedule, extent, items, MAX_LENGTH, device, &mut reason)?,
        };
        let (segment_tokens, segments) = match schedule {
            Schedule::Sequential => (extent.tokens.clamp(1, longest), extent.batch),
            Schedule::Segments => segments(extent, items, longest, device),
        };
        let decay = PlannedDecay::new(lightning, extent, kernel, device);
        let all = Part { batch: 0..extent.batch, kv_heads: 0..lightning.heads };
        let kept = decay.as_ref().and_then(|decay| decay.kept(extent, &all).into_iter().max()).unwrap_or(0);
        // Saturating, here and below: what does not fit 64 bits is beyond every limit.
        let largest = u64::from(segments.max(extent.batch).max(kept)).saturating_mul(heads * most);
        let scan = (u64::from(extent.batch) * heads).saturating_mul(state_size(lightning).div_ceil(64).into());
        check_workgroups(largest.max(scan))?;
        match schedule {
            Schedule::Segments => sweeps.iter_mut().for_each(PlannedSweep::segment),
            Schedule::Sequential if extent.tokens > segment_tokens => sweeps.iter_mut().for_each(PlannedSweep::stretch),
            Schedule::Sequential => {}
        }

        let rows = rows(lightning, extent, segments, schedule, decay.as_ref());
        let mut parts = fit_parts(&rows, [batches(extent), lightning.heads], u64::MAX, device)?;
        if parts.is_empty() && decay.is_some() {
            // Sums over nothing are zeros that someone has to write.
            parts.push(all);
        }
        let tokens = u64::from(extent.tokens) * u64::from(batches(extent));
        let state = u64::from(state_size(lightning));
        let flops = (4 * state)
            .saturating_mul(tokens.saturating_mul(heads))
            .saturating_mul(sweeps.len() as u64 + if decay.is_some() { 2 } else { 0 });
        let bytes = compulsory_bytes(lightning, extent);
        let walks = if schedule == Schedule::Segments { 3 } else { u64::from(extent.tokens.div_ceil(segment_tokens)) };
        let cost = Cost {
            flops,
            bytes,
            dispatches: walks.saturating_mul(sweeps.len() as u64).saturating_mul(parts.len() as u64),
            share: share(if decay.is_some() { Task::Decay } else { Task::Linear }, kernel, None, device.kind),
        };
        let estimate = cost.estimate(device);
        let tiles = || sweeps.iter().map(|s| s.walk).chain(decay.as_ref().map(|decay| decay.chunk));
        let (workgroup_bytes, needed) = (
            tiles().map(|key| key.workgroup_bytes()).max().unwrap_or(0),
            tiles().map(|key| key.invocations()).max().unwrap_or(0),
        );
        for (needed, available, unit) in [
            (workgroup_bytes, device.workgroup_bytes, "bytes of workgroup memory"),
            (needed, device.workgroup_invocations, "invocations"),
            (8, device.storage_buffers, "storage buffers"),
        ] {
            if needed > available {
                let (needed, available) = (needed.into(), available.into());
                return Err(PlanError::Limit { argument: "device", needed, available, unit, advice: "" });
            }
        }
        // The gradient of the decay comes after the sweeps, in the same memory.
        let workspace = |part: &Part| {
            let after = decay.as_ref().map_or(0, |decay| decay.workspace(lightning, extent, part));
            after.max(workspace(lightning, extent, segments, &sweeps, part))
        };
        let workspace_bytes = parts.iter().map(workspace).max().unwrap_or(0);
        Ok(Self {
            lightning: lightning.clone(),
            extent,
            sweeps,
            decay,
            schedule,
            segment_tokens,
            segments,
            reason,
            parts,
            slices: slices(estimate.seconds),
            workgroup_bytes,
            workgroup_bytes_limit: device.workgroup_bytes,
            workgroups_per_axis: device.workgroups_per_axis,
            workspace_bytes,
            flops,
            bytes,
            estimate,
        })
    }

    /// The pipelines of all sweeps, and of the gradient of the decay.
    pub fn keys(&self) -> impl Iterator<Item = LinearKey> + '_ {
        let sweeps = self.sweeps.iter().flat_map(|s| s.states.into_iter().flatten().chain([s.walk]).chain(s.resumed));
        sweeps.chain(self.decay.iter().flat_map(PlannedDecay::keys))
    }

    /// Stretches of the longest sequence that are walked one after the other; one but for long sequences on drivers that end long loops.
    #[must_use]
    pub fn stretches(&self) -> u32 {
        match self.schedule {
            Schedule::Sequential => self.extent.tokens.div_ceil(self.segment_tokens).max(1),
            Schedule::Segments => 1,
        }
    }

    /// Dispatches of a call, those that find nothing to do included.
    #[must_use]
    pub fn dispatches(&self) -> u64 {
        let sweep = |s: &PlannedSweep| if s.states.is_some() { 3 } else { u64::from(self.stretches()) };
        let sweeps: u64 = self.sweeps.iter().map(sweep).sum();
        let decay = self.decay.as_ref().map_or(0, |decay| decay.dispatches(self.extent));
        sweeps.saturating_add(decay).saturating_mul(self.parts.len() as u64)
    }

    /// The grid of a dispatch of `workgroups`, which the kernels number row by row.
    #[must_use]
    pub fn grid(&self, workgroups: u32) -> [u32; 2] {
        grid(workgroups, self.workgroups_per_axis)
    }
}

fn check(lightning: &Lightning, extent: Tokens) -> Result<(), PlanError> {
    refuse_int8([lightning.q, lightning.kv])?;
    if extent.tokens > MAX_LENGTH {
        return Err(PlanError::invalid("tokens", extent.tokens, format!("at most {MAX_LENGTH}")));
    }
    if matches!(lightning.pass, Pass::Step { .. }) && (extent.tokens != 1 || extent.packed) {
        return Err(PlanError::invalid("extent", extent, "one token a batch entry, since a step takes one"));
    }
    Ok(())
}

/// Batch entries along the operands' first axis.
pub(crate) fn batches(extent: Tokens) -> u32 {
    if extent.packed { 1 } else { extent.batch }
}

fn state_size(lightning: &Lightning) -> u32 {
    lightning.dims.qk() * lightning.dims.value()
}

fn class(dim: u32) -> u32 {
    HEAD_CLASSES.into_iter().find(|&class| dim <= class).unwrap_or(0)
}

/// Rows of a state that `broadcast` keeps in registers.
pub(crate) fn registers(lightning: &Lightning) -> u32 {
    class(state_dim(lightning))
}

/// The dim that is rows of a state: backward, each of the two is in one of the sweeps.
fn state_dim(lightning: &Lightning) -> u32 {
    let (qk, value) = (lightning.dims.qk(), lightning.dims.value());
    if lightning.pass == Pass::Backward { qk.max(value) } else { qk }
}

/// Why a kernel can serve, or why not.
fn serves(kernel: Kernel, lightning: &Lightning, device: &Capabilities) -> Result<String, String> {
    match (kernel, device.subgroups) {
        (Kernel::TileUniversal, _) => Ok("the state in registers, with a copy in workgroup memory".to_owned()),
        (Kernel::TileSubgroup | Kernel::Broadcast, None) => Err("the device has no subgroups".to_owned()),
        (Kernel::TileSubgroup, _) if matches!(lightning.pass, Pass::Step { .. }) => {
            Err("no row of a step follows a subgroup".to_owned())
        }
        (Kernel::TileSubgroup, Some((min, _))) if min < 8 => {
            Err(format!("subgroups may have {min} lanes, 8 are needed"))
        }
        (Kernel::TileSubgroup, Some(_)) => {
            Ok("the state in registers, with a copy in workgroup memory; rows follow subgroups".to_owned())
        }
        (Kernel::Broadcast, Some((min, max))) => {
            if matches!(lightning.pass, Pass::Step { .. }) {
                return Err("a step has nothing to broadcast".to_owned());
            }
            if min != max || !table::LANES.contains(&min) {
                return Err(format!("subgroups have {min} to {max} lanes, one of {:?} is needed", table::LANES));
            }
            if lightning.access == Access::Any {
                return Err("the state in registers needs dims and strides that are multiples of four".to_owned());
            }
            let dim = state_dim(lightning);
            if dim > BROADCAST_CLASS {
                return Err(format!("a dim of {dim} does not fit in registers, at most {BROADCAST_CLASS} does"));
            }
            Ok(format!("a CPU driver with subgroups of {min}, the state in registers"))
        }
        (Kernel::Matrix, _) => matrix(lightning, device),
        _ => Err("it is not in this version's menu".to_owned()),
    }
}

fn matrix(lightning: &Lightning, device: &Capabilities) -> Result<String, String> {
    if matches!(lightning.pass, Pass::Step { .. }) {
        return Err("a step has nothing that matrices multiply".to_owned());
    }
    let square = choose::matrix_square([lightning.q, lightning.kv], device)?;
    let sweeps = lightning.sweeps().into_iter().map(|sweep| key(lightning, &sweep, Kernel::Matrix, device));
    let bytes = sweeps.map(|key| key.workgroup_bytes()).max().unwrap_or(0);
    choose::square_fits(square, (bytes, square.threads), device)?;
    Ok(format!("matrices of {0} x {0}, {bytes} bytes fit {1}", square.side, device.workgroup_bytes))
}

/// The pipeline of a sweep's outputs.
fn key(lightning: &Lightning, sweep: &Sweep, kernel: Kernel, device: &Capabilities) -> LinearKey {
    let dim = |tensor: Tensor| if tensor.has_value_dim() { lightning.dims.value() } else { lightning.dims.qk() };
    let storage = |tensor: Tensor| if tensor.is_stored_like_q() { lightning.q } else { lightning.kv };
    let step = matches!(lightning.pass, Pass::Step { .. });
    let lanes = match (kernel, device.subgroups) {
        (Kernel::Broadcast, Some((min, _))) => min,
        _ => 0,
    };
    let (q, kv, head_dim) = (storage(sweep.q), storage(sweep.k), dim(sweep.q));
    let wide = lanes > 0 && head_dim.is_multiple_of(8) && device.loads_wide();
    let head_class = if step { 0 } else { class(head_dim) };
    let square = if kernel == Kernel::Matrix { choose::matrix_square([q, kv], device).ok() } else { None };
    // Squares of matrices may be larger than the class.
    let staged = square.map_or(head_class, |square| head_class.next_multiple_of(square.edge));
    LinearKey {
        op: if step { LinearOp::Step } else { LinearOp::Chunk },
        kernel,
        lanes,
        square,
        q,
        kv,
        access: if wide { Access::Vec8 } else { lightning.access },
        head_class,
        padded: (lanes > 0 || square.is_some()) && staged > head_dim,
        gated: lightning.is_gated(),
        state: match lightning.pass {
            Pass::Step { in_place } => in_place,
            _ => sweep.state.is_some(),
        },
        resumed: false,
    }
}

/// A sweep, walked sequentially.
pub(crate) fn planned(lightning: &Lightning, sweep: Sweep, kernel: Kernel, device: &Capabilities) -> PlannedSweep {
    let (qk, value) = (lightning.dims.qk(), lightning.dims.value());
    let dims = if sweep.q.has_value_dim() { [value, qk] } else { [qk, value] };
    PlannedSweep { sweep, walk: key(lightning, &sweep, kernel, device), states: None, resumed: None, dims }
}

/// Tokens that one workgroup may walk before the driver ends its loops.
pub(crate) fn longest_walk(sweeps: &[PlannedSweep], device: &Capabilities) -> u32 {
    /// Turns left for what comes before and after the walk.
    const SPARE: u32 = 1024;
    let Some(turns) = device.loop_turns else { return MAX_LENGTH };
    let of = |sweep: &PlannedSweep| (turns - SPARE) / sweep.walk.turns(sweep.dims[0]) * sweep.walk.chunk();
    sweeps.iter().map(of).min().unwrap_or(MAX_LENGTH)
}

/// Bytes of scratch memory of a part: the states of its segments, and their decays; or those of its sequences that stretches hand on.
fn workspace(lightning: &Lightning, extent: Tokens, segments: u32, sweeps: &[PlannedSweep], part: &Part) -> u64 {
    let [batch, heads] = [&part.batch, &part.kv_heads].map(|range| u64::from(range.end - range.start));
    let own = u64::from(segments.div_ceil(batches(extent).max(1))) * batch;
    let state = u64::from(state_size(lightning)) * 4;
    let sweep = |s: &PlannedSweep| match (s.states, s.resumed, s.sweep.state) {
        (Some(_), ..) => state + 4 * u64::from(lightning.is_gated()),
        (None, Some(_), None) => state,
        _ => 0,
    };
    let most = sweeps.iter().map(sweep).max().unwrap_or(0);
    own.saturating_mul(heads).saturating_mul(most)
}

/// Bytes of one (batch entry, head) of each operand.
fn rows(
    lightning: &Lightning,
    extent: Tokens,
    segments: u32,
    schedule: Schedule,
    decay: Option<&PlannedDecay>,
) -> Vec<Rows> {
    let row = |dim: u32, storage: Storage| u64::from(extent.tokens) * u64::from(dim) * u64::from(storage.bytes());
    let (qk, value) = (lightning.dims.qk(), lightning.dims.value());
    let state = u64::from(state_size(lightning)) * 4;
    // The states of packed sequences, and those of segments, are in one binding whatever the batch entry.
    let states = if extent.packed { u64::from(extent.batch).saturating_mul(state) } else { state };
    let segments = match schedule {
        Schedule::Segments => u64::from(segments.div_ceil(batches(extent).max(1))) * (state + 4),
        Schedule::Sequential => 0,
    };
    let gate = if lightning.is_gated() { u64::from(extent.tokens) * 4 } else { 0 };
    let kept = decay.map_or(0, |decay| decay.row(lightning, extent));
    [
        ("q", row(qk, lightning.q)),
        ("k", row(qk, lightning.kv)),
        ("v", row(value, lightning.kv)),
        ("out", row(value, lightning.q)),
        ("state", states.max(segments).max(kept)),
        ("gate", gate),
    ]
    .map(|(argument, bytes)| Rows { argument, bytes })
    .to_vec()
}

fn compulsory_bytes(lightning: &Lightning, extent: Tokens) -> u64 {
    let row = |dim: u32, storage: Storage| u64::from(dim) * u64::from(storage.bytes());
    let (qk, value) = (lightning.dims.qk(), lightning.dims.value());
    let q_like = row(qk, lightning.q) + row(value, lightning.q);
    let kv_like = row(qk, lightning.kv) + row(value, lightning.kv);
    // The backward pass reads q, k, v and the output's gradient, and writes dq, dk and dv.
    let token = match lightning.pass {
        Pass::Backward => q_like + 2 * kv_like + row(qk, lightning.q),
        _ => q_like + kv_like,
    };
    let heads = u64::from(lightning.heads);
    let tokens = (u64::from(extent.tokens) * u64::from(batches(extent))).saturating_mul(heads);
    let states = u64::from(lightning.initial_state) + u64::from(lightning.final_state);
    let in_place = u64::from(lightning.pass == Pass::Step { in_place: true });
    let state =
        (u64::from(state_size(lightning)) * 4 * (states + in_place)).saturating_mul(u64::from(extent.batch) * heads);
    let gate = if lightning.is_gated() { 4 + 4 * u64::from(lightning.decay_gradient) } else { 0 };
    let slopes = if lightning.decay_gradient && !lightning.is_gated() { 4 * heads } else { 0 };
    tokens.saturating_mul(token + gate).saturating_add(state).saturating_add(slopes)
}

#[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "clamped")]
pub(crate) fn slices(seconds: f64) -> u32 {
    (seconds / SLICE_SECONDS).ceil().clamp(1.0, 1024.0) as u32
}

impl fmt::Display for LinearPlan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (lightning, dims) = (&self.lightning, self.lightning.dims);
        let name = if lightning.is_gated() { "gated linear attention" } else { "lightning attention" };
        let pass = match lightning.pass {
            Pass::Forward => "",
            Pass::Backward => ", backward",
            Pass::Step { .. } => ", one step",
        };
        let (heads, qk, value) = (lightning.heads, dims.qk(), dims.value());
        writeln!(f, "{name}{pass}: {}, {heads} heads, head dim {qk}/{value}", self.extent)?;
        let kernel = self.sweeps.first().map_or("none", |s| s.walk.kernel.name());
        writeln!(f, "  kernel      {kernel} ({})", self.reason)?;
        let dispatches = self.dispatches();
        if matches!(lightning.pass, Pass::Step { .. }) {
            writeln!(f, "  schedule    one token of each sequence, {dispatches} dispatches")?;
        } else {
            let chunk = self.sweeps.first().map_or(0, |s| s.walk.chunk());
            writeln!(
                f,
                "  schedule    {}, {} segments of at most {} tokens, chunks of {chunk}, {} sweeps, {dispatches} dispatches",
                self.schedule,
                u64::from(self.segments) * u64::from(self.stretches()),
                self.segment_tokens,
                self.sweeps.len(),
            )?;
        }
        if let Some(decay) = &self.decay {
            let lengths: Vec<String> = decay.stretches.iter().map(ToString::to_string).collect();
            writeln!(f, "  decay       its gradient by stretches of {} tokens", lengths.join(", then of "))?;
        }
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
