//! A plan for few queries over many keys: kernels, rows, stretches, workspace.

use std::fmt;

use wattn_shaders::{
    Access, FlashKey, Kernel, MergeKey, SPLIT_ROWS, ScoreOptions, Sequence, SplitKey, SplitMatrices, Storage, table,
};

use crate::attention::{Attention, Causal, Extent};
use crate::cache::CacheLayout;
use crate::capabilities::{Capabilities, DeviceKind};
use crate::choose;
use crate::cost::{Cost, Estimate, Task, rows_while_reading, share};
use crate::decode::{Decode, Split};
use crate::decode_work::{Source, Splitting, Work, partial_bytes};
use crate::error::PlanError;
use crate::order::Order;
use crate::plan::{Part, check, most_keys as most_tile_keys, parts, span};
use crate::work::{self, UNBOUNDED};

/// Row tiles of a sequence that still counts as having few queries.
const MOST_TILES: u32 = 4;

/// Keys of the shortest stretch worth a workgroup, unless the caller says otherwise.
pub(crate) const LEAST_KEYS: u32 = 128;

/// Stretches that may be asked for: of the least length, they hold all keys that kernels can count.
#[expect(clippy::cast_possible_truncation, reason = "2^30")]
const MOST_STRETCHES: u32 = UNBOUNDED as u32 / LEAST_KEYS;

/// How attention of few queries over many keys runs on a device. Prints itself; [`Work`] says what a call does.
#[derive(Debug, Clone, PartialEq)]
pub struct DecodePlan {
    /// The problem.
    pub decode: Decode,
    /// Its extent: what a call may have at most.
    pub extent: Extent,
    /// The pipeline of sequences with few queries.
    pub split: SplitKey,
    /// And what merges its partial results.
    pub merge: MergeKey,
    /// The pipeline of sequences with many queries, where the extent allows for any.
    pub tiles: Option<FlashKey>,
    /// Why these kernels.
    pub reason: String,
    /// As many calls of the kernels as bindings of the device's size ask for: batch entries and key/value heads of each.
    pub parts: Vec<Part>,
    /// Workgroups that share rows, each with a part of the value dim.
    pub splits: u32,
    /// Sequences of more rows (queries times heads of the group) are attended in tiles.
    pub most_rows: u32,
    /// Scratch memory that the caller provides, bytes: enough for any call. [`Work`] tells how much of it a call takes.
    pub workspace_bytes: u64,
    /// Workgroup memory, bytes a workgroup.
    pub workgroup_bytes: u32,
    pub(crate) splitting: Splitting,
    pub(crate) device: Capabilities,
    /// Keys that a query tile may walk.
    pub(crate) most_tile_keys: u32,
}

impl DecodePlan {
    /// Plans `decode` for calls of up to `extent`: of a batch of equal sequences, or of packed ones, which the keys of a cache ask for
    /// (`keys` are those of all sequences together then, each counted where it is shared).
    ///
    /// # Errors
    /// An impossible shape or option, a device limit, or a pinned kernel that cannot serve.
    pub fn new(decode: &Decode, extent: Extent, device: &Capabilities) -> Result<Self, PlanError> {
        let attention = &decode.attention;
        match &decode.cache {
            Some(cache) => check_cache(attention, cache, extent)?,
            None if decode.cascade => {
                return Err(PlanError::invalid("cascade", "views of keys", "a cache, whose pages tell what is shared"));
            }
            None => {}
        }
        if decode.cascade && (attention.options.alibi || attention.window != (None, None)) {
            let allowed = "attention without either, since a shared key's distance differs from query to query";
            return Err(PlanError::invalid("cascade", "ALiBi or a window", allowed));
        }
        check(attention, extent, device)?;
        let heads = attention.heads;
        // Pages hold all heads of their tokens.
        let parts = match decode.cache {
            Some(_) => vec![Part { batch: 0..1, kv_heads: 0..heads.key_value() }],
            None => parts(attention, extent, device)?,
        };
        let (split, reason) = split_key(decode, extent, device)?;
        let most_rows = MOST_TILES * split.rows;
        let longest = if extent.packed { extent.queries } else { extent.queries.min(u32::MAX / heads.group()) };
        let tiles = if longest.saturating_mul(heads.group()) > most_rows {
            let (key, _) = choose::kernel(&Attention { kv: unlike_f16([split.k, split.v]), ..*attention }, device)?;
            Some(FlashKey { k: split.k, v: split.v, paged: split.paged, ..key })
        } else {
            None
        };
        let most_keys = device.loop_turns.map_or(u32::MAX, |turns| {
            const SPARE: u32 = 1024;
            (turns - SPARE) / split.turns(attention.head_dim.qk()) * split.keys()
        });
        let kv_heads = heads.key_value();
        let splitting = Splitting {
            source: Source { causal: attention.causal, window: attention.window, extent, cache: decode.cache },
            group: heads.group(),
            rows: split.rows,
            most_rows,
            tile: tiles.map_or(1, |key| key.shape.tile_queries()),
            keys: match decode.split {
                Split::Keys(keys) => Some(keys),
                Split::Device | Split::Stretches(_) => None,
            },
            busy: match decode.split {
                Split::Stretches(stretches) => stretches.min(MOST_STRETCHES),
                Split::Device | Split::Keys(_) => busy(kv_heads, device),
            },
            step: LEAST_KEYS,
            most_keys,
            kv_heads,
            paged: split.paged,
            order: Order::of(device),
            workers: if device.kind == DeviceKind::Cpu { 4 } else { device.width() },
        };
        let workspace_bytes = splitting.most_bytes(attention, extent, decode.cascade);
        if workspace_bytes > device.binding_bytes {
            return Err(PlanError::Limit {
                argument: "workspace",
                needed: workspace_bytes,
                available: device.binding_bytes,
                unit: "bytes of partial results",
                advice: "; longer stretches, or fewer sequences at a time, would do",
            });
        }
        let merge = MergeKey {
            out: attention.q,
            access: if split.access == Access::Vec8 { Access::Vec4 } else { split.access },
            natural: attention.options.bias,
            sinks: attention.options.sinks,
            lse: attention.options.lse,
            device: false,
        };
        Ok(Self {
            decode: *decode,
            extent,
            split,
            merge,
            tiles,
            reason,
            parts,
            splits: attention.head_dim.value().div_ceil(table::VALUE_SPLIT),
            most_rows,
            workspace_bytes,
            workgroup_bytes: split.workgroup_bytes(),
            splitting,
            device: *device,
            most_tile_keys: tiles.map_or(u32::MAX, |key| most_tile_keys(attention, &key, device)),
        })
    }

    /// Bytes of workspace that a call takes whose work has so many partial rows.
    #[must_use]
    pub fn bytes_of(&self, partial_rows: u32) -> u64 {
        let attention = &self.decode.attention;
        partial_bytes(partial_rows.into(), attention.heads.key_value(), attention.head_dim.value())
    }

    /// Floating point operations of the scores that a call's queries see: `2 (head_dim + value_head_dim)` each.
    #[must_use]
    pub fn flops(&self, work: &Work) -> u64 {
        let attention = &self.decode.attention;
        let own = &work.sequences[..work.sequences.len() - work.prefixes];
        let scores: u64 = own.iter().map(work::visited_scores).sum();
        let numbers = u64::from(attention.head_dim.qk() + attention.head_dim.value());
        scores.saturating_mul(2 * numbers * u64::from(attention.heads.query()))
    }

    /// Bytes that a call moves at least: queries, outputs, and every key and value that some query may see once.
    #[must_use]
    pub fn moved_bytes(&self, work: &Work) -> u64 {
        let attention = &self.decode.attention;
        let (qk, value) = (u64::from(attention.head_dim.qk()), u64::from(attention.head_dim.value()));
        let own = &work.sequences[..work.sequences.len() - work.prefixes];
        let queries: u64 = own.iter().map(|s| u64::from(s.queries)).sum();
        let beyond = |s: &Sequence| u64::from(s.keys - work::tile_keys(s, 0, s.queries));
        let unseen: u64 = own.iter().filter(|s| s.queries > 0).map(beyond).sum();
        let key = u64::from(self.split.k.row_bytes(attention.head_dim.qk()))
            + u64::from(self.split.v.row_bytes(attention.head_dim.value()));
        let key = u64::from(attention.heads.key_value()) * key;
        let query = u64::from(attention.heads.query()) * (qk + value) * u64::from(attention.q.bytes());
        (work.keys - unseen).saturating_mul(key).saturating_add(queries.saturating_mul(query))
    }

    /// A rough estimate of the time of a call.
    #[must_use]
    pub fn estimate(&self, work: &Work) -> Estimate {
        let dispatches = u64::from(!work.tiles.is_empty()) + 2 * u64::from(!work.rows.is_empty());
        let cost = Cost {
            flops: self.flops(work),
            bytes: self.moved_bytes(work),
            dispatches: dispatches * self.parts.len() as u64,
            share: share(Task::FewQueries, self.split.kernel, None, self.device.kind),
        };
        cost.estimate(&self.device)
    }

    /// The grid of a dispatch of `workgroups`, which the kernels number row by row.
    #[must_use]
    pub fn grid(&self, workgroups: u32) -> [u32; 2] {
        crate::plan::grid(workgroups, self.device.workgroups_per_axis)
    }
}

fn check_cache(attention: &Attention, cache: &CacheLayout, extent: Extent) -> Result<(), PlanError> {
    if !extent.packed {
        return Err(PlanError::invalid("extent", "a batch", "packed sequences, since keys lie in a cache"));
    }
    if attention.causal == Causal::TopLeft {
        return Err(PlanError::invalid(
            "causal",
            "top-left",
            "bottom-right over a cache, which holds what came before",
        ));
    }
    if cache.kv_heads() != attention.heads.key_value() {
        let allowed = format!("{}, as of the cache", cache.kv_heads());
        return Err(PlanError::invalid("kv_heads", attention.heads.key_value(), allowed));
    }
    for (argument, given, of_cache) in [
        ("head_dim", attention.head_dim.qk(), cache.dims().qk()),
        ("value_head_dim", attention.head_dim.value(), cache.dims().value()),
    ] {
        if given != of_cache {
            return Err(PlanError::invalid(argument, given, format!("{of_cache}, as of the cache")));
        }
    }
    Ok(())
}

/// The pipeline of few rows, and why.
fn split_key(decode: &Decode, extent: Extent, device: &Capabilities) -> Result<(SplitKey, String), PlanError> {
    let attention = &decode.attention;
    if let Some(shape) = attention.shape {
        return Err(PlanError::invalid("shape", shape, "none for few queries, whose rows follow from the group"));
    }
    let queries = if extent.packed { 1 } else { extent.queries };
    let wanted = queries.saturating_mul(attention.heads.group());
    let serves = |kernel| {
        let (key, why) = match kernel {
            Kernel::Matrix => matrix_key(decode, wanted, device)?,
            Kernel::Broadcast => broadcast_key(decode, wanted, device)?,
            Kernel::TileUniversal => {
                let rows = enough(SPLIT_ROWS[1], wanted);
                (SplitKey { rows, ..plain_key(decode) }, "tiles in workgroup memory".to_owned())
            }
            _ => return Err("it is not on the menu of few queries".to_owned()),
        };
        choose::fits(key.workgroup_bytes(), key.invocations(), device)?;
        Ok((key, format!("{why}, {} rows share what is read", key.rows)))
    };
    let (_, key, reason) = choose::first_that_serves(decode.pinned(), &kernels(device), serves)?;
    Ok((key, reason))
}

/// The kernels of few queries in the order that suits the device.
pub(crate) fn kernels(device: &Capabilities) -> [Kernel; 2] {
    match device.kind {
        DeviceKind::Cpu => [Kernel::Broadcast, Kernel::TileUniversal],
        _ => [Kernel::Matrix, Kernel::TileUniversal],
    }
}

/// Stretches of a key/value head that should keep the device busy.
pub(crate) fn busy(kv_heads: u32, device: &Capabilities) -> u32 {
    (device.width() * 2).div_ceil(kv_heads)
}

/// As many rows of a menu as are wanted, or its most.
fn enough(menu: &[u32], wanted: u32) -> u32 {
    menu.iter().copied().find(|&rows| rows >= wanted).unwrap_or(menu[menu.len() - 1])
}

/// What the kernels have in common; the rest as of `tile-universal`.
fn plain_key(decode: &Decode) -> SplitKey {
    let attention = &decode.attention;
    let value = attention.head_dim.value().min(table::VALUE_SPLIT);
    let [k, v] = stored(decode);
    SplitKey {
        kernel: Kernel::TileUniversal,
        lanes: 0,
        matrices: None,
        rows: 0,
        q: attention.q,
        k,
        v,
        access: attention.access,
        paged: decode.cache.is_some(),
        device: false,
        head_class: 0,
        padded: false,
        value_class: table::dim_class(value).unwrap_or(table::VALUE_SPLIT),
        options: ScoreOptions { sinks: false, lse: false, ..attention.options },
    }
}

/// How k and v are stored.
fn stored(decode: &Decode) -> [Storage; 2] {
    let kv = decode.attention.kv;
    decode.cache.map_or([kv; 2], |cache| [cache.k_storage(), cache.v_storage()])
}

fn broadcast_key(decode: &Decode, wanted: u32, device: &Capabilities) -> Result<(SplitKey, String), String> {
    let attention = &decode.attention;
    let qk = attention.head_dim.qk();
    let head_class = table::dim_class(qk).ok_or_else(|| format!("head dim {qk} does not fit in registers"))?;
    let lanes = match device.subgroups {
        None => return Err("the device has no subgroups".to_owned()),
        Some((min, max)) if min != max || !table::LANES.contains(&min) => {
            return Err(format!("subgroups of {min} to {max} lanes are not on its menu"));
        }
        Some((min, _)) => min,
    };
    let wide = choose::wide(attention, device);
    let key = SplitKey {
        kernel: Kernel::Broadcast,
        lanes,
        rows: enough(SPLIT_ROWS[0], wanted),
        access: if wide { Access::Vec8 } else { attention.access },
        head_class,
        padded: head_class > qk,
        ..plain_key(decode)
    };
    Ok((key, format!("subgroups of {lanes}")))
}

fn matrix_key(decode: &Decode, wanted: u32, device: &Capabilities) -> Result<(SplitKey, String), String> {
    let attention = &decode.attention;
    let (side, subgroups) = choose::matrices([attention.q, unlike_f16(stored(decode))], device)?;
    let pinned = decode.pinned().is_some();
    let note = choose::note_on_matrices(pinned, device)?;
    if !pinned {
        pay(wanted, device)?;
    }
    let matrices = SplitMatrices::new(side, subgroups);
    let qk = attention.head_dim.qk();
    let head_class = table::dim_class(qk).unwrap_or(0);
    let key = SplitKey {
        kernel: Kernel::Matrix,
        matrices: Some(matrices),
        rows: enough(&matrices.rows(), wanted),
        head_class,
        padded: if head_class > 0 { head_class > qk } else { !qk.is_multiple_of(table::STREAM_DIMS) },
        ..plain_key(decode)
    };
    Ok((key, format!("matrices of {side} x {side} for {wanted} rows{note}")))
}

/// Of these, what is not f16, if anything.
fn unlike_f16([k, v]: [Storage; 2]) -> Storage {
    if k == Storage::F16 { v } else { k }
}

/// Whether matrices pay, or why not. Reading keys and values is what takes the time, and both kernels read them alike, while few rows leave
/// most of a matrix empty: matrices are faster only where tiles read keys more than once, or multiply longer than they read.
fn pay(wanted: u32, device: &Capabilities) -> Result<(), String> {
    let shared = SPLIT_ROWS[1][SPLIT_ROWS[1].len() - 1];
    let multiplied = rows_while_reading(Kernel::TileUniversal, device);
    if wanted > shared.min(multiplied) {
        return Ok(());
    }
    Err(format!("tiles multiply {wanted} rows as fast as keys are read"))
}

impl Splitting {
    /// Workspace of any call within `extent`.
    fn most_bytes(&self, attention: &Attention, extent: Extent, cascade: bool) -> u64 {
        let (batch, queries) = (u64::from(extent.batch), u64::from(extent.queries));
        let keys = u64::from(extent.keys);
        let walked = u64::from(span(attention, extent.keys, self.reach()));
        let group = u64::from(self.group);
        // Of packed sequences, the most row tiles that one may have; keys are those of all.
        let one = (queries * group).min(self.most_rows.into()).div_ceil(self.rows.into());
        let (tiles, tile_keys) = if extent.packed {
            let tiles = (one * batch).min(batch + (queries * group).div_ceil(self.rows.into()));
            (tiles, keys.saturating_mul(one).min(walked.saturating_mul(tiles)))
        } else if queries * group > u64::from(self.most_rows) {
            (0, 0)
        } else {
            (one * batch, walked.saturating_mul(one * batch))
        };
        // Prefixes have tiles of their own.
        let tiles = if cascade { 2 * tiles } else { tiles };
        let stretches = if tile_keys == 0 { 0 } else { self.most_stretches(tiles, tile_keys) };
        partial_bytes(stretches.saturating_mul(self.rows.into()), self.kv_heads, attention.head_dim.value())
    }

    /// Queries of a row tile after its first one, at most.
    pub(crate) fn reach(&self) -> u32 {
        self.rows.div_ceil(self.group)
    }

    /// Stretches of so many row tiles, whose keys are so many together, at most.
    pub(crate) fn most_stretches(&self, tiles: u64, keys: u64) -> u64 {
        // Each tile may start and end within a stretch.
        let ends = tiles.saturating_mul(2);
        let whole = match self.keys {
            Some(length) => keys / u64::from(length.min(self.most_keys)),
            // No more than are asked for, nor than have the least length; those that are too long are cut.
            None => u64::from(self.busy).min(keys / u64::from(self.step)) + keys / u64::from(self.most_keys),
        };
        whole.saturating_add(ends)
    }
}

impl fmt::Display for DecodePlan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let attention = &self.decode.attention;
        let (heads, dim) = (attention.heads, attention.head_dim);
        writeln!(
            f,
            "softmax attention of few queries: {}, heads {}/{}, head dim {}/{}",
            self.extent,
            heads.query(),
            heads.key_value(),
            dim.qk(),
            dim.value()
        )?;
        writeln!(f, "  kernel      flash_split on {} ({}), then flash_merge", self.split.kernel, self.reason)?;
        match self.decode.split {
            Split::Device => {
                writeln!(f, "  stretches   as many as keep the device busy, {} keys at least", self.splitting.step)?
            }
            Split::Keys(asked) => {
                let keys = asked.min(self.splitting.most_keys);
                let cut =
                    if keys < asked { format!(", not {asked}: this driver ends longer loops") } else { String::new() };
                writeln!(f, "  stretches   of {keys} keys, whatever else is in the batch{cut}")?;
            }
            Split::Stretches(most) => {
                writeln!(f, "  stretches   about {most} a key/value head, {} keys at least", self.splitting.step)?
            }
        }
        if let Some(cache) = &self.decode.cache {
            writeln!(
                f,
                "  cache       {} pages of {} tokens, keys {}, values {}",
                cache.pages(),
                cache.page(),
                self.split.k,
                self.split.v
            )?;
        }
        if let Some(tiles) = &self.tiles {
            writeln!(f, "  prefill     sequences of more than {} rows by {tiles}", self.most_rows)?;
        }
        writeln!(
            f,
            "  memory      {} bytes of workgroup memory, {} bytes of workspace at most",
            self.workgroup_bytes, self.workspace_bytes
        )?;
        write!(f, "  pipeline    {}", self.split)
    }
}
