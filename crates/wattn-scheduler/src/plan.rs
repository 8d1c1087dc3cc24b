//! A plan: which kernel runs, with which tile, over what, and what that costs.

use std::fmt;
use std::ops::Range;

use wattn_shaders::{FlashKey, table};

use crate::attention::{Attention, Causal, Extent};
use crate::capabilities::Capabilities;
use crate::choose;
use crate::cost::{Cost, Estimate, Task, share, walked_scores};
use crate::error::{PlanError, refuse_int8};
use crate::work::{self, Lengths};

/// A stretch of batch entries and key/value heads that one dispatch serves, since a binding cannot hold more.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Part {
    /// Batch entries; all of them where sequences are packed.
    pub batch: Range<u32>,
    /// Key/value heads.
    pub kv_heads: Range<u32>,
}

/// How an attention problem runs on a device. All that is decided, is decided here; it prints itself.
#[derive(Debug, Clone, PartialEq)]
pub struct Plan {
    /// The problem.
    pub attention: Attention,
    /// Its extent.
    pub extent: Extent,
    /// The pipeline.
    pub key: FlashKey,
    /// Why this kernel and this shape.
    pub reason: String,
    /// Dispatches, each with bindings of its own.
    pub parts: Vec<Part>,
    /// Workgroups that share a tile of queries, each with a part of the value dim.
    pub splits: u32,
    /// Key/value heads whose tiles run side by side, at most.
    pub head_block: u32,
    /// Submissions that keep each below about half a second by estimate, for callers who submit in between.
    pub slices: u32,
    /// Workgroups in all, at most (exactly, where lengths are full).
    pub workgroups: u64,
    /// Workgroup memory, bytes a workgroup.
    pub workgroup_bytes: u32,
    /// Workgroup memory that the device allows.
    pub workgroup_bytes_limit: u32,
    /// Workgroups along one axis of a dispatch, at most.
    pub workgroups_per_axis: u32,
    /// Scratch memory that the caller provides, bytes. None for the forward pass.
    pub workspace_bytes: u64,
    /// Scores that are visible, over all heads and with full lengths.
    pub scores: u64,
    /// Floating point operations of those scores: `2 (head_dim + value_head_dim)` each.
    pub flops: u64,
    /// Bytes that must move at least: every operand once.
    pub bytes: u64,
    /// A rough estimate of the time.
    pub estimate: Estimate,
}

/// What one submission should take at most, seconds: operating systems reset a GPU after about two.
pub(crate) const SLICE_SECONDS: f64 = 0.5;

/// The longest sequence: positions and their differences fit a signed 32-bit integer with room.
pub(crate) const MAX_LENGTH: u32 = 1 << 29;

/// Dispatches that one plan may take: more than memory for their operands allows.
const MAX_PARTS: u64 = 1 << 16;

impl Plan {
    /// Plans `attention` over `extent` on a device.
    ///
    /// # Errors
    /// An impossible shape or option, a device limit, or a pinned kernel that cannot serve.
    pub fn new(attention: &Attention, extent: Extent, device: &Capabilities) -> Result<Self, PlanError> {
        check(attention, extent, device)?;
        let (key, reason) = choose::kernel(attention, device)?;
        check_turns(attention, extent, &key, device)?;
        let splits = attention.head_dim.value().div_ceil(table::VALUE_SPLIT);
        let heads = attention.heads;

        let tile = key.shape.tile_queries();
        // Saturating, here and below: what does not fit 64 bits is beyond every limit.
        let workgroups =
            tiles(extent, extent.queries, tile).saturating_mul(u64::from(heads.query()) * u64::from(splits));
        check_workgroups(workgroups)?;

        let parts = parts(attention, extent, device)?;

        let scores = full_scores(attention, extent).saturating_mul(u64::from(heads.query()));
        let (qk, value) = (u64::from(attention.head_dim.qk()), u64::from(attention.head_dim.value()));
        let flops = scores.saturating_mul(2 * (qk + value));
        let bytes = compulsory_bytes(attention, extent);
        let walked = walked_scores(attention, extent, tile, scores / u64::from(heads.query()));
        let cost = Cost {
            flops: walked.saturating_mul(2 * (qk + value)).saturating_mul(heads.query().into()),
            bytes,
            dispatches: parts.len() as u64,
            share: share(Task::Forward, key.kernel, Some(key.shape), device.kind),
        };
        let estimate = cost.estimate(device);
        #[expect(
            clippy::cast_possible_truncation,
            clippy::cast_sign_loss,
            reason = "bounded by the workgroups, below 2^32"
        )]
        let slices = (estimate.seconds / SLICE_SECONDS).ceil().clamp(1.0, (workgroups.max(1)) as f64) as u32;

        Ok(Self {
            attention: *attention,
            extent,
            key,
            reason,
            parts,
            splits,
            head_block: head_block(attention, extent, device),
            slices,
            workgroups,
            workgroup_bytes: table::workgroup_bytes(&key),
            workgroup_bytes_limit: device.workgroup_bytes,
            workgroups_per_axis: device.workgroups_per_axis,
            workspace_bytes: 0,
            scores,
            flops,
            bytes,
            estimate,
        })
    }

    /// The grid of a dispatch of `workgroups`, which the kernel numbers row by row: beyond one axis, rows are filled evenly.
    #[must_use]
    pub fn grid(&self, workgroups: u32) -> [u32; 2] {
        grid(workgroups, self.workgroups_per_axis)
    }
}

/// A grid of `workgroups` that are numbered row by row: beyond one axis, rows are filled evenly.
///
/// # Panics
/// If `per_axis` is 0.
#[must_use]
pub fn grid(workgroups: u32, per_axis: u32) -> [u32; 2] {
    let rows = workgroups.div_ceil(per_axis).max(1);
    [workgroups.div_ceil(rows), rows]
}

pub(crate) fn check(attention: &Attention, extent: Extent, device: &Capabilities) -> Result<(), PlanError> {
    refuse_int8([attention.q, attention.kv])?;
    for (argument, value) in [("queries", extent.queries), ("keys", extent.keys)] {
        if value > MAX_LENGTH {
            return Err(PlanError::invalid(argument, value, format!("at most {MAX_LENGTH}")));
        }
    }
    if let Some(scale) = attention.scale.filter(|s| !s.is_finite()) {
        return Err(PlanError::invalid("scale", scale, "a finite number"));
    }
    if let Some(cap) = attention.softcap.filter(|c| !(c.is_finite() && *c > 0.0)) {
        return Err(PlanError::invalid("softcap", cap, "a finite number above 0"));
    }
    let options = attention.options;
    if extent.packed && (options.bias || options.mask) {
        return Err(PlanError::invalid(
            "extent",
            "packed sequences with a bias or a mask",
            "packed sequences without either",
        ));
    }
    for (argument, dim, storage) in [
        ("head_dim", attention.head_dim.qk(), attention.q),
        ("head_dim", attention.head_dim.qk(), attention.kv),
        ("value_head_dim", attention.head_dim.value(), attention.kv),
        ("value_head_dim", attention.head_dim.value(), attention.q),
    ] {
        if storage.bytes() == 2 && !dim.is_multiple_of(2) {
            let allowed = format!("even dims in {storage} (pad with a zero)");
            return Err(PlanError::invalid(argument, dim, allowed));
        }
    }
    let buffers = 5 + u32::from(options.lse) + u32::from(options.bias) + u32::from(options.mask);
    if buffers > device.storage_buffers {
        return Err(PlanError::Limit {
            argument: "options",
            needed: buffers.into(),
            available: device.storage_buffers.into(),
            unit: "storage buffers",
            advice: "; ask for a higher max_storage_buffers_per_shader_stage",
        });
    }
    Ok(())
}

/// Some drivers end long loops without a word: keys that these would not reach are refused.
fn check_turns(attention: &Attention, extent: Extent, key: &FlashKey, device: &Capabilities) -> Result<(), PlanError> {
    let span = span(attention, extent.keys, key.shape.tile_queries());
    check_span(span, most_keys(attention, key, device))
}

/// Of `rows` keys or queries, those that a tile of the others walks at most.
pub(crate) fn span(attention: &Attention, rows: u32, tile: u32) -> u32 {
    let right = match attention.causal {
        Causal::BottomRight => Some(0),
        // Where a top-left diagonal lies is not known before a call.
        Causal::No | Causal::TopLeft => attention.window.1,
    };
    match (attention.window.0, right) {
        (Some(left), Some(right)) => left.saturating_add(right).saturating_add(1).saturating_add(tile).min(rows),
        _ => rows,
    }
}

/// Keys that a workgroup may walk before the driver ends its loops.
pub(crate) fn most_keys(attention: &Attention, key: &FlashKey, device: &Capabilities) -> u32 {
    /// Turns left for what comes before and after the keys.
    const SPARE: u32 = 1024;
    let Some(turns) = device.loop_turns else { return u32::MAX };
    (turns - SPARE) / table::turns(key, attention.head_dim.qk()) * key.shape.tile_keys()
}

/// Refuses more keys in one walk than the driver's loops allow.
pub(crate) fn check_span(keys: u32, most: u32) -> Result<(), PlanError> {
    if keys > most {
        return Err(PlanError::Limit {
            argument: "keys",
            needed: keys.into(),
            available: most.into(),
            unit: "keys in one loop",
            advice: ", it ends longer ones; a window, or pieces merged by their log-sum-exp, would do",
        });
    }
    Ok(())
}

/// Tiles of the queries or keys of all sequences, `rows` a batch entry, at most.
pub(crate) fn tiles(extent: Extent, rows: u32, tile: u32) -> u64 {
    if extent.packed {
        // Each sequence may leave a part of one empty.
        u64::from(rows / tile) + u64::from(extent.batch)
    } else {
        u64::from(extent.batch) * u64::from(rows.div_ceil(tile))
    }
}

/// Workgroups are numbered by 32 bits.
pub(crate) fn check_workgroups(workgroups: u64) -> Result<(), PlanError> {
    if workgroups >= 1 << 32 {
        return Err(PlanError::Limit {
            argument: "extent",
            needed: workgroups,
            available: (1 << 32) - 1,
            unit: "workgroups",
            advice: "; plan the batch in pieces",
        });
    }
    Ok(())
}

/// Visible scores of one head with full lengths. Packed sequences are counted as if equally long: their bounds come later.
pub(crate) fn full_scores(attention: &Attention, extent: Extent) -> u64 {
    let one = |queries, keys| {
        let extent = Extent::new(1, queries, keys);
        let full = work::sequences(attention, extent, Lengths::Full, &[]);
        full.map_or(0, |s| s.iter().map(work::visited_scores).sum::<u64>())
    };
    let batch = u64::from(extent.batch);
    if extent.packed {
        let count = extent.batch.max(1);
        batch.saturating_mul(one(extent.queries / count, extent.keys / count))
    } else {
        batch.saturating_mul(one(extent.queries, extent.keys))
    }
}

fn compulsory_bytes(attention: &Attention, extent: Extent) -> u64 {
    let options = attention.options;
    let [q, k, v, out, lse, bias, mask] = head_bytes(attention, extent);
    let sequences = if extent.packed { 1 } else { u64::from(extent.batch) };
    let (heads, kv_heads) = (u64::from(attention.heads.query()), u64::from(attention.heads.key_value()));
    let scores = if options.bias { bias } else { 0 } + if options.mask { mask } else { 0 };
    let by_query = heads.saturating_mul(q + out + scores + if options.lse { lse } else { 0 });
    by_query.saturating_add(kv_heads.saturating_mul(k + v)).saturating_mul(sequences)
}

/// Bytes of one (batch entry, head) of q, k, v, out, lse, bias and mask.
pub(crate) fn head_bytes(attention: &Attention, extent: Extent) -> [u64; 7] {
    let (queries, keys) = (u64::from(extent.queries), u64::from(extent.keys));
    let (qk, value) = (u64::from(attention.head_dim.qk()), u64::from(attention.head_dim.value()));
    let (q, kv) = (u64::from(attention.q.bytes()), u64::from(attention.kv.bytes()));
    [
        queries * qk * q,
        keys * qk * kv,
        keys * value * kv,
        queries * value * q,
        queries * 4,
        queries * keys * 4,
        queries * keys.div_ceil(32) * 4,
    ]
}

/// Bytes that one operand takes for one (batch entry, key/value head).
#[derive(Debug, Clone, Copy)]
pub(crate) struct Rows {
    pub(crate) argument: &'static str,
    pub(crate) bytes: u64,
}

pub(crate) fn parts(attention: &Attention, extent: Extent, device: &Capabilities) -> Result<Vec<Part>, PlanError> {
    let options = attention.options;
    let group = u64::from(attention.heads.group());
    let [q, k, v, out, lse, bias, mask] = head_bytes(attention, extent);
    let used = [
        (true, "q", q.saturating_mul(group)),
        (true, "k", k),
        (true, "v", v),
        (true, "out", out.saturating_mul(group)),
        (options.lse, "lse", lse.saturating_mul(group)),
        (options.bias, "bias", bias.saturating_mul(group)),
        (options.mask, "mask", mask.saturating_mul(group)),
    ];
    let rows: Vec<Rows> =
        used.into_iter().filter(|u| u.0).map(|(_, argument, bytes)| Rows { argument, bytes }).collect();
    let batch = if extent.packed { 1 } else { extent.batch };
    fit_parts(&rows, [batch, attention.heads.key_value()], u64::MAX, device)
}

/// As few dispatches as bindings of the device's size allow, of `most` batch entries times heads each: whole batches together, else heads
/// of one batch entry.
pub(crate) fn fit_parts(
    rows: &[Rows],
    [batch, kv_heads]: [u32; 2],
    most: u64,
    device: &Capabilities,
) -> Result<Vec<Part>, PlanError> {
    // A binding starts at an aligned byte, so that it may hold that much more than its part.
    let room = device.binding_bytes.saturating_sub(u64::from(device.binding_alignment));
    let (argument, largest) = rows.iter().map(|r| (r.argument, r.bytes)).max_by_key(|r| r.1).unwrap_or(("q", 0));
    if largest > room {
        return Err(PlanError::Limit {
            argument,
            needed: largest,
            available: room,
            unit: "bytes for one key/value head",
            advice: "; ask for a higher max_storage_buffer_binding_size",
        });
    }
    let most = room.checked_div(largest).map_or(most, |n| n.min(most)).max(1);
    #[expect(clippy::cast_possible_truncation, reason = "bounded by a u32")]
    let fit = |count: u32, most: u64| most.min(u64::from(count)).max(1) as u32;
    let heads_at_once = fit(kv_heads, most);
    let batches_at_once = if heads_at_once == kv_heads { fit(batch, most / u64::from(kv_heads.max(1))) } else { 1 };
    let count = u64::from(batch.div_ceil(batches_at_once)) * u64::from(kv_heads.div_ceil(heads_at_once));
    if count > MAX_PARTS {
        return Err(PlanError::Limit {
            argument: "extent",
            needed: count,
            available: MAX_PARTS,
            unit: "dispatches",
            advice: "; plan the batch in pieces",
        });
    }
    let mut parts = Vec::new();
    for b in (0..batch).step_by(batches_at_once as usize) {
        for h in (0..kv_heads).step_by(heads_at_once as usize) {
            parts.push(Part {
                batch: b..b.saturating_add(batches_at_once).min(batch),
                kv_heads: h..h.saturating_add(heads_at_once).min(kv_heads),
            });
        }
    }
    Ok(parts)
}

/// Key/value heads whose tiles run side by side: where tiles differ in weight they share one list, as far as their keys and
/// values stay in the device's cache together; else each head's tiles follow each other and share its keys there.
pub(crate) fn head_block(attention: &Attention, extent: Extent, device: &Capabilities) -> u32 {
    let uneven = attention.causal != Causal::No || extent.packed;
    let [_, k, v, ..] = head_bytes(attention, extent);
    let fit = if uneven { device.cache_bytes() / (k + v).max(1) } else { 1 };
    u32::try_from(fit).unwrap_or(u32::MAX).clamp(1, attention.heads.key_value())
}

impl fmt::Display for Plan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (heads, dim) = (self.attention.heads, self.attention.head_dim);
        writeln!(
            f,
            "softmax attention: {}, heads {}/{}, head dim {}/{}",
            self.extent,
            heads.query(),
            heads.key_value(),
            dim.qk(),
            dim.value()
        )?;
        writeln!(f, "  kernel      {} ({})", self.key.kernel, self.reason)?;
        writeln!(
            f,
            "  tile        {} queries x {} keys, {} invocations",
            self.key.shape.tile_queries(),
            self.key.shape.tile_keys(),
            self.key.shape.invocations()
        )?;
        writeln!(
            f,
            "  dispatch    {} workgroups, {} dispatches, {} slices, {} value splits",
            self.workgroups,
            self.parts.len(),
            self.slices,
            self.splits
        )?;
        writeln!(
            f,
            "  memory      {} of {} bytes of workgroup memory, {} bytes of workspace",
            self.workgroup_bytes, self.workgroup_bytes_limit, self.workspace_bytes
        )?;
        #[expect(clippy::cast_precision_loss, reason = "printed with four digits")]
        let (gflop, mbyte) = (self.flops as f64 / 1e9, self.bytes as f64 / 1e6);
        writeln!(f, "  work        {} visible scores, {gflop:.3} GFLOP, {mbyte:.3} MB", self.scores)?;
        writeln!(f, "  estimate    {}", self.estimate)?;
        write!(f, "  pipeline    {}", self.key)
    }
}
