//! A plan of the backward pass of softmax attention: its passes, in order, and what they cost.

use std::fmt;
use std::ops::Range;

use wattn_shaders::{
    Access, BackwardOp, DBIAS_TILE, FlashBackwardKey, Kernel, Key, LaneShape, MatrixShape, ScoreOptions, Shape,
    bindings, table,
};

use crate::attention::{Attention, Extent};
use crate::backward::AttentionBackward;
use crate::capabilities::Capabilities;
use crate::choose::{self, BackwardShapes};
use crate::cost::{Cost, Estimate, Task, share, walked_scores};
use crate::error::PlanError;
use crate::plan::{
    Part, Rows, SLICE_SECONDS, check, check_workgroups, fit_parts, full_scores, grid, head_block, head_bytes, span,
    tiles,
};

/// One pass: a kernel over all queries or keys.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct BackwardStep {
    /// The pipeline.
    pub key: FlashBackwardKey,
    /// Workgroups that share a tile, each with a part of the result's dim.
    pub splits: u32,
}

/// How the gradients of an attention problem are calculated on a device. Prints itself.
#[derive(Debug, Clone, PartialEq)]
pub struct BackwardPlan {
    /// The problem.
    pub backward: AttentionBackward,
    /// Its extent.
    pub extent: Extent,
    /// The kernel of the passes over scores.
    pub kernel: Kernel,
    /// Why this kernel and these shapes.
    pub reason: String,
    /// The passes, in order.
    pub steps: Vec<BackwardStep>,
    /// Stretches of batch entries and heads, each with dispatches and bindings of its own.
    pub parts: Vec<Part>,
    /// Key/value heads whose tiles run side by side, at most.
    pub head_block: u32,
    /// Vec4 of the record of a query and head: its log-sum-exp and delta, and beside a bias or a mask its gradient of the output.
    pub record: u32,
    /// Submissions of a pass over scores that keep each below about half a second by estimate.
    pub slices: u32,
    /// Workgroup memory, bytes a workgroup, of the pass that takes most.
    pub workgroup_bytes: u32,
    /// Workgroup memory that the device allows.
    pub workgroup_bytes_limit: u32,
    /// Workgroups along one axis of a dispatch, at most.
    pub workgroups_per_axis: u32,
    /// Scratch memory that the caller provides, bytes: the records of all queries.
    pub workspace_bytes: u64,
    /// Scores that are visible, over all heads and with full lengths.
    pub scores: u64,
    /// Floating point operations of the five products of those scores, `2 (3 head_dim + 2 value_head_dim)` each. Kernels calculate
    /// scores more than once, which is not counted.
    pub flops: u64,
    /// Bytes that must move at least: every operand once.
    pub bytes: u64,
    /// A rough estimate of the time.
    pub estimate: Estimate,
}

impl BackwardPlan {
    /// Plans the gradients of an attention over `extent` on a device.
    ///
    /// # Errors
    /// An impossible shape or option, a device limit, or a pinned kernel that cannot serve.
    pub fn new(backward: &AttentionBackward, extent: Extent, device: &Capabilities) -> Result<Self, PlanError> {
        let attention = &backward.attention;
        check(attention, extent, device)?;
        check_options(backward)?;
        let (kernel, shapes, reason) = choose::backward(attention, device)?;
        let steps = steps(backward, kernel, shapes, device);

        let value_chunks = attention.head_dim.value().div_ceil(4);
        let record = if attention.options.masks_elements() { 1 + value_chunks } else { 1 };
        let mut parts = parts(backward, extent, record, device)?;
        check_steps(backward, extent, &steps, &parts, device)?;
        if parts.is_empty() {
            // Sums over nothing are zeros that someone has to write.
            parts.push(Part { batch: 0..0, kv_heads: 0..attention.heads.key_value() });
        }

        let heads = u64::from(attention.heads.query());
        let scores = full_scores(attention, extent).saturating_mul(heads);
        let (qk, value) = (u64::from(attention.head_dim.qk()), u64::from(attention.head_dim.value()));
        let flops = scores.saturating_mul(2 * (3 * qk + 2 * value));
        let bytes = compulsory_bytes(backward, extent);
        // Most of the time goes by in the two walks over scores, for queries and for keys.
        let walk = steps.iter().find(|step| matches!(step.key.op, BackwardOp::Dq { .. }));
        let walked = walked_scores(attention, extent, walk.map_or(1, |step| step.key.tile()), scores / heads);
        let cost = Cost {
            flops: walked.saturating_mul(heads).saturating_mul(2 * (3 * qk + 2 * value)),
            bytes,
            dispatches: (parts.len() * steps.len()) as u64,
            share: share(Task::Backward, kernel, walk.map(|step| step.key.shape), device.kind),
        };
        let estimate = cost.estimate(device);
        #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "bounded on both sides")]
        let slices = (estimate.seconds / SLICE_SECONDS).ceil().clamp(1.0, 65_536.0) as u32;
        let entries = if extent.packed { 1 } else { u64::from(extent.batch) };
        let records = entries.saturating_mul(heads).saturating_mul(extent.queries.into());
        Ok(Self {
            backward: *backward,
            extent,
            kernel,
            reason,
            parts,
            head_block: head_block(attention, extent, device),
            record,
            slices,
            workgroup_bytes: steps.iter().map(|step| step.key.workgroup_bytes()).max().unwrap_or(0),
            workgroup_bytes_limit: device.workgroup_bytes,
            workgroups_per_axis: device.workgroups_per_axis,
            workspace_bytes: records.saturating_mul(u64::from(record) * 16),
            steps,
            scores,
            flops,
            bytes,
            estimate,
        })
    }

    /// The grid of a dispatch of `workgroups`, which the kernel numbers row by row.
    #[must_use]
    pub fn grid(&self, workgroups: u32) -> [u32; 2] {
        grid(workgroups, self.workgroups_per_axis)
    }

    /// The pipelines, in order.
    pub fn keys(&self) -> impl Iterator<Item = Key> {
        self.steps.iter().map(|step| Key::FlashBackward(step.key))
    }

    /// How the passes over scores are laid out.
    #[must_use]
    pub fn shape(&self) -> Shape {
        let walk = |step: &&BackwardStep| matches!(step.key.op, BackwardOp::Dq { .. });
        self.steps.iter().find(walk).map_or(Shape::Tile(table::TILE_GPU), |step| step.key.shape)
    }

    /// The shape that gives these passes where it is pinned; none where their tiles differ.
    pub(crate) fn pinned_shape(&self) -> Option<Shape> {
        let own = self.shape();
        let unlike = |step: &BackwardStep| {
            let tile = step.key.op == BackwardOp::Dv && matches!(step.key.shape, Shape::Tile(_));
            tile && step.key.shape != own
        };
        (!self.steps.iter().any(unlike)).then_some(own)
    }
}

/// Gradients of what is not there.
fn check_options(backward: &AttentionBackward) -> Result<(), PlanError> {
    let options = backward.attention.options;
    for (asked, there, argument, allowed) in [
        (backward.bias_gradient, options.bias, "bias_gradient", "attention with a bias"),
        (backward.sinks_gradient, options.sinks, "sinks_gradient", "attention with sinks"),
        (backward.slopes_gradient, options.alibi, "slopes_gradient", "attention with alibi"),
    ] {
        if asked && !there {
            return Err(PlanError::invalid(argument, "attention without it", allowed));
        }
    }
    Ok(())
}

fn steps(
    backward: &AttentionBackward,
    kernel: Kernel,
    shapes: BackwardShapes,
    device: &Capabilities,
) -> Vec<BackwardStep> {
    let attention = &backward.attention;
    let (qk, value) = (attention.head_dim.qk(), attention.head_dim.value());
    let single = single(attention);
    let options = single.options;
    let unit = ScoreOptions { bias: options.bias, ..ScoreOptions::default() };
    let delta = FlashBackwardKey {
        op: BackwardOp::Delta { incoming: backward.lse_gradient },
        kv: attention.q,
        options: ScoreOptions::default(),
        ..single
    };
    let numbers = FlashBackwardKey {
        q: Default::default(),
        kv: Default::default(),
        access: Access::Vec4,
        beside: false,
        ..single
    };
    let slopes = backward.slopes_gradient;
    let dq = BackwardOp::Dq { slopes };
    let walks = match shapes {
        BackwardShapes::Rows(shape) => {
            let [head_class, value_class] = [qk, value].map(|dim| table::dim_class(dim).unwrap_or(table::VALUE_SPLIT));
            let wide = choose::wide(attention, device);
            let key = FlashBackwardKey {
                kernel,
                shape: Shape::Lanes(shape),
                access: if wide { Access::Vec8 } else { attention.access },
                head_class,
                padded: head_class > qk || value_class > value,
                value_class,
                ..single
            };
            // With both a bias and a mask eight bindings hold one result.
            let keys = if options.bias && options.mask {
                vec![BackwardOp::Dk, BackwardOp::Dv]
            } else {
                vec![BackwardOp::DkDv]
            };
            // Keys have two gradients to queries' one.
            let half = Shape::Lanes(LaneShape { rows: shape.rows.div_ceil(2), ..shape });
            let walk = |op, shape| BackwardStep { key: FlashBackwardKey { op, shape, ..key }, splits: 1 };
            let keys = keys.into_iter().map(|op| walk(op, half));
            [walk(dq, key.shape)].into_iter().chain(keys).collect::<Vec<_>>()
        }
        BackwardShapes::Tiles { head, value: tile } => {
            [(dq, head, qk), (BackwardOp::Dk, head, qk), (BackwardOp::Dv, tile, value)]
                .map(|(op, shape, dim)| {
                    let (value_class, splits) = part_of(dim);
                    let key = FlashBackwardKey { op, kernel, shape: Shape::Tile(shape), value_class, ..single };
                    BackwardStep { key, splits }
                })
                .to_vec()
        }
        BackwardShapes::Matrices(shape) => matrix_walks(attention, slopes, shape).to_vec(),
    };
    let once = |key| BackwardStep { key, splits: 1 };
    let mut all = vec![once(delta)];
    all.extend(walks);
    for (asked, key) in [
        (backward.bias_gradient, single),
        (backward.sinks_gradient, FlashBackwardKey { op: BackwardOp::Dsinks, options: unit, ..numbers }),
        (
            backward.slopes_gradient,
            FlashBackwardKey { op: BackwardOp::Dslopes, options: ScoreOptions::default(), ..numbers },
        ),
    ] {
        if asked {
            all.push(once(key));
        }
    }
    all
}

/// The key of the gradient of the bias. Kernels of one layout, as this one, are shared by all designs and take vec4.
fn single(attention: &Attention) -> FlashBackwardKey {
    let options = ScoreOptions { sinks: false, lse: false, ..attention.options };
    FlashBackwardKey {
        op: BackwardOp::Dbias,
        kernel: Kernel::TileUniversal,
        shape: Shape::Tile(table::TILE_GPU),
        q: attention.q,
        kv: attention.kv,
        access: attention.access,
        head_class: 0,
        padded: false,
        value_class: 0,
        beside: options.masks_elements(),
        options,
    }
}

/// Upper bound of the part of a result's dim that one workgroup handles, and how many parts there are.
fn part_of(dim: u32) -> (u32, u32) {
    let class = table::dim_class(dim).unwrap_or(table::VALUE_SPLIT);
    (class, dim.div_ceil(table::VALUE_SPLIT))
}

/// The walks on matrices. Where both dims are within the classes, the rows that a workgroup owns stay in its matrices.
pub(crate) fn matrix_walks(attention: &Attention, slopes: bool, shape: MatrixShape) -> [BackwardStep; 3] {
    let (qk, value) = (attention.head_dim.qk(), attention.head_dim.value());
    let key = FlashBackwardKey { kernel: Kernel::Matrix, shape: Shape::Matrix(shape), ..single(attention) };
    let ops = [(BackwardOp::Dq { slopes }, qk), (BackwardOp::Dk, qk), (BackwardOp::Dv, value)];
    if let (Some(head_class), Some(value_class)) = (table::dim_class(qk), table::dim_class(value)) {
        let padded = head_class > qk || value_class > value;
        return ops.map(|(op, _)| {
            let key = FlashBackwardKey { op, head_class, padded, value_class, ..key };
            BackwardStep { key, splits: 1 }
        });
    }
    let padded = [qk, value].iter().any(|dim| !dim.is_multiple_of(table::STREAM_DIMS));
    ops.map(|(op, dim)| {
        let (value_class, splits) = part_of(dim);
        BackwardStep { key: FlashBackwardKey { op, padded, value_class, ..key }, splits }
    })
}

/// What the device limits: bindings, workgroups, and turns of loops.
fn check_steps(
    backward: &AttentionBackward,
    extent: Extent,
    steps: &[BackwardStep],
    parts: &[Part],
    device: &Capabilities,
) -> Result<(), PlanError> {
    let attention = &backward.attention;
    let heads = attention.heads;
    // Packed sequences are one batch entry to all that does not walk them.
    let batch = if extent.packed { 1 } else { u64::from(extent.batch) };
    let (queries, keys) = (u64::from(extent.queries), u64::from(extent.keys));
    let (qk, value) = (attention.head_dim.qk(), attention.head_dim.value());
    // What sums over batch entries, and over heads, does so part by part.
    let entries = |range: &Range<u32>| u64::from(range.end - range.start);
    let batches = parts.iter().map(|part| entries(&part.batch)).max().unwrap_or(0);
    let planes = parts.iter().map(|part| entries(&part.batch) * entries(&part.kv_heads)).max().unwrap_or(0);
    for BackwardStep { key, splits } in steps {
        let buffers = bindings(&Key::FlashBackward(*key)).len() as u64;
        if buffers > u64::from(device.storage_buffers) {
            return Err(PlanError::Limit {
                argument: "options",
                needed: buffers,
                available: device.storage_buffers.into(),
                unit: "storage buffers",
                advice: "; ask for a higher max_storage_buffers_per_shader_stage",
            });
        }
        let tile = u64::from(key.tile());
        let square = u64::from(DBIAS_TILE);
        let query_heads = batch.saturating_mul(heads.query().into());
        let walks = |rows: u32, heads: u32| {
            tiles(extent, rows, key.tile()).saturating_mul(u64::from(heads) * u64::from(*splits))
        };
        // Workgroups, and turns of one of them.
        let turns = |rows: u32| {
            let steps = span(attention, rows, key.tile()).div_ceil(key.shape.tile_keys());
            u64::from(steps) * u64::from(key.turns(qk, value))
        };
        let (workgroups, turns) = match key.op {
            BackwardOp::Delta { .. } => (query_heads.saturating_mul(queries).div_ceil(tile), u64::from(value / 4)),
            BackwardOp::Dsinks | BackwardOp::Dslopes => (heads.query().into(), batches.saturating_mul(queries) / tile),
            BackwardOp::Dbias => (
                query_heads.saturating_mul(queries.div_ceil(square)).saturating_mul(keys.div_ceil(square)),
                planes.saturating_mul(bias_turns(attention)).saturating_mul(heads.group().into()),
            ),
            BackwardOp::Dq { .. } => (walks(extent.queries, heads.query()), turns(extent.keys)),
            BackwardOp::DkDv | BackwardOp::Dk | BackwardOp::Dv => {
                (walks(extent.keys, heads.key_value()), turns(extent.queries).saturating_mul(heads.group().into()))
            }
        };
        check_workgroups(workgroups)?;
        if let Some(most) = most_turns(device).filter(|&most| turns > most) {
            return Err(PlanError::Limit {
                argument: "extent",
                needed: turns,
                available: most,
                unit: "turns of the loops of one invocation",
                advice: ", it ends longer ones; a window, another kernel, or fewer heads a key/value head would do",
            });
        }
    }
    Ok(())
}

fn compulsory_bytes(backward: &AttentionBackward, extent: Extent) -> u64 {
    let options = backward.attention.options;
    let heads = backward.attention.heads;
    let [q, k, v, out, lse, bias, mask] = head_bytes(&backward.attention, extent);
    let sequences = if extent.packed { 1 } else { u64::from(extent.batch) };
    let used = |on: bool, bytes: u64| if on { bytes } else { 0 };
    let scores = used(options.bias, bias) + used(backward.bias_gradient, bias) + used(options.mask, mask);
    let by_query =
        u64::from(heads.query()).saturating_mul(2 * (q + out) + lse + used(backward.lse_gradient, lse) + scores);
    by_query.saturating_add(u64::from(heads.key_value()).saturating_mul(2 * (k + v))).saturating_mul(sequences)
}

fn parts(
    backward: &AttentionBackward,
    extent: Extent,
    record: u32,
    device: &Capabilities,
) -> Result<Vec<Part>, PlanError> {
    let attention = &backward.attention;
    let options = attention.options;
    let group = u64::from(attention.heads.group());
    let [q, k, v, out, _, bias, mask] = head_bytes(attention, extent);
    let records = u64::from(extent.queries) * u64::from(record) * 16;
    let used = [
        (true, "q", q.saturating_mul(group)),
        (true, "k", k),
        (true, "v", v),
        (true, "out", out.saturating_mul(group)),
        (options.bias, "bias", bias.saturating_mul(group)),
        (options.mask, "mask", mask.saturating_mul(group)),
        (true, "workspace", records.saturating_mul(group)),
    ];
    let rows: Vec<Rows> =
        used.into_iter().filter(|u| u.0).map(|(_, argument, bytes)| Rows { argument, bytes }).collect();
    let batch = if extent.packed { 1 } else { extent.batch };
    // The gradient of a bias goes through all heads and batch entries that share it, for all that is known before a call.
    let most = match most_turns(device).filter(|_| backward.bias_gradient) {
        Some(most) => most / bias_turns(attention).saturating_mul(group),
        None => u64::MAX,
    };
    fit_parts(&rows, [batch, attention.heads.key_value()], most, device)
}

/// Turns of loops that a walk may take, where the driver ends long ones.
fn most_turns(device: &Capabilities) -> Option<u64> {
    /// Turns left for what comes before and after a walk.
    const SPARE: u32 = 1024;
    device.loop_turns.map(|turns| u64::from(turns - SPARE))
}

/// Turns of loops that the gradient of the bias takes for a head of a batch entry.
fn bias_turns(attention: &Attention) -> u64 {
    u64::from(attention.head_dim.qk() / 4 + attention.head_dim.value() / 4 + 4)
}

impl fmt::Display for BackwardPlan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (heads, dim) = (self.backward.attention.heads, self.backward.attention.head_dim);
        writeln!(
            f,
            "softmax attention, backward: {}, heads {}/{}, head dim {}/{}",
            self.extent,
            heads.query(),
            heads.key_value(),
            dim.qk(),
            dim.value()
        )?;
        writeln!(f, "  kernel      {} ({})", self.kernel, self.reason)?;
        writeln!(
            f,
            "  dispatch    {} passes, {} parts, {} slices each",
            self.steps.len(),
            self.parts.len(),
            self.slices
        )?;
        writeln!(
            f,
            "  memory      {} of {} bytes of workgroup memory, {} bytes of workspace",
            self.workgroup_bytes, self.workgroup_bytes_limit, self.workspace_bytes
        )?;
        #[expect(clippy::cast_precision_loss, reason = "printed with four digits")]
        let (gflop, mbyte) = (self.flops as f64 / 1e9, self.bytes as f64 / 1e6);
        writeln!(f, "  work        {} visible scores, {gflop:.3} GFLOP, {mbyte:.3} MB", self.scores)?;
        write!(f, "  estimate    {}", self.estimate)?;
        self.steps.iter().try_for_each(|step| write!(f, "\n  pipeline    {}", step.key))
    }
}
