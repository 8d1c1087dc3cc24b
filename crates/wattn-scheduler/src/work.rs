//! From lengths to work: the key range of every query as two shifts a sequence, and the list of query tiles.

use wattn_shaders::Sequence;

use crate::attention::{Attention, Causal, Extent};
use crate::error::PlanError;
use crate::order::Order;

/// How long the sequences of a call are.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Lengths<'a> {
    /// As the extent says.
    #[default]
    Full,
    /// Keys that exist, for each batch entry; at most the extent's keys count.
    Keys(&'a [u32]),
    /// Where packed sequences begin and end, from 0 to the totals: `sequences + 1` numbers each.
    Packed {
        /// Bounds of the queries.
        queries: &'a [u32],
        /// Bounds of the keys.
        keys: &'a [u32],
    },
}

/// A shift beyond any length, for sides that are unbounded.
pub(crate) const UNBOUNDED: i64 = 1 << 30;

/// Where a sequence of a call lies.
pub(crate) struct Placed {
    pub(crate) batch: u32,
    /// The first query, and how many.
    pub(crate) queries: (u32, u32),
    /// The first key, and how many.
    pub(crate) keys: (u32, u32),
    /// Keys that lie in memory.
    pub(crate) stored: u32,
    /// Of a top-left diagonal.
    pub(crate) offset: i32,
}

/// The sequences of a call, with the key range of their queries.
///
/// # Errors
/// Lengths or offsets that do not fit the extent.
pub fn sequences(
    attention: &Attention,
    extent: Extent,
    lengths: Lengths<'_>,
    causal_offsets: &[i32],
) -> Result<Vec<Sequence>, PlanError> {
    let placed = placed(attention, extent, lengths, causal_offsets)?;
    let sequence =
        |p: Placed| Sequence { stored: p.stored, ..sequence(attention, p.batch, p.queries, p.keys, p.offset) };
    Ok(placed.into_iter().map(sequence).collect())
}

/// Where the sequences of a call lie.
pub(crate) fn placed(
    attention: &Attention,
    extent: Extent,
    lengths: Lengths<'_>,
    causal_offsets: &[i32],
) -> Result<Vec<Placed>, PlanError> {
    let count = extent.batch as usize;
    check_offsets(attention, count, causal_offsets)?;
    let offset = |b: usize| {
        if causal_offsets.len() == 1 { causal_offsets[0] } else { causal_offsets.get(b).copied().unwrap_or(0) }
    };
    let entry = |batch: u32, keys: u32| Placed {
        batch,
        queries: (0, extent.queries),
        keys: (0, keys.min(extent.keys)),
        stored: extent.keys,
        offset: offset(batch as usize),
    };
    match (extent.packed, lengths) {
        (false, Lengths::Full) => Ok((0..extent.batch).map(|b| entry(b, extent.keys)).collect()),
        (false, Lengths::Keys(keys)) => {
            if keys.len() != count {
                return Err(PlanError::invalid(
                    "lengths",
                    format!("{} key lengths", keys.len()),
                    format!("{count}, one a batch entry"),
                ));
            }
            Ok((0..extent.batch).zip(keys).map(|(b, &n)| entry(b, n)).collect())
        }
        (true, Lengths::Packed { queries, keys }) => {
            check_bounds("lengths.queries", queries, count, extent.queries)?;
            check_bounds("lengths.keys", keys, count, extent.keys)?;
            let bounds = queries.windows(2).zip(keys.windows(2)).enumerate();
            Ok(bounds
                .map(|(b, (q, k))| Placed {
                    batch: 0,
                    queries: (q[0], q[1] - q[0]),
                    keys: (k[0], k[1] - k[0]),
                    stored: k[1] - k[0],
                    offset: offset(b),
                })
                .collect())
        }
        (false, Lengths::Packed { .. }) => Err(PlanError::invalid(
            "lengths",
            "bounds of packed sequences",
            "key lengths, since the extent is not packed",
        )),
        (true, _) => Err(PlanError::invalid("lengths", "no bounds", "Lengths::Packed, since the extent is packed")),
    }
}

fn check_offsets(attention: &Attention, count: usize, offsets: &[i32]) -> Result<(), PlanError> {
    if offsets.is_empty() {
        return Ok(());
    }
    if attention.causal != Causal::TopLeft {
        return Err(PlanError::invalid(
            "causal_offsets",
            format!("{} offsets", offsets.len()),
            "none without causal_top_left",
        ));
    }
    if offsets.len() != 1 && offsets.len() != count {
        let allowed = format!("none, 1 or {count} (one a batch entry)");
        return Err(PlanError::invalid("causal_offsets", format!("{} offsets", offsets.len()), allowed));
    }
    Ok(())
}

/// Refuses what is not the bounds of `count` sequences, `total` tokens together: rising, from 0 to that.
///
/// # Errors
/// What was given and what is allowed, under the name of `argument`.
pub fn check_bounds(argument: &'static str, bounds: &[u32], count: usize, total: u32) -> Result<(), PlanError> {
    let rises = bounds.windows(2).all(|w| w[0] <= w[1]);
    if bounds.len() != count + 1 || bounds[0] != 0 || bounds[count] != total || !rises {
        let given = match bounds {
            [] => "no bounds".to_owned(),
            [first, .., last] if rises => format!("{} bounds from {first} to {last}", bounds.len()),
            [only] => format!("one bound, {only}"),
            _ => format!("{} bounds that do not rise", bounds.len()),
        };
        return Err(PlanError::invalid(argument, given, format!("{} rising bounds from 0 to {total}", count + 1)));
    }
    Ok(())
}

pub(crate) fn sequence(
    attention: &Attention,
    batch: u32,
    (q_start, queries): (u32, u32),
    (k_start, keys): (u32, u32),
    offset: i32,
) -> Sequence {
    let diagonal = i64::from(keys) - i64::from(queries);
    let future = match attention.causal {
        Causal::No => UNBOUNDED,
        Causal::BottomRight => diagonal,
        Causal::TopLeft => i64::from(offset),
    };
    let right = attention.window.1.map_or(UNBOUNDED, |right| diagonal + i64::from(right));
    let left = attention.window.0.map_or(-UNBOUNDED, |left| diagonal - i64::from(left));
    let (lo, hi) = (left, future.min(right) + 1);
    // A range that is empty for every query would leave tiles whose keys nobody sees: no keys says the same.
    let stored = keys;
    let keys = if lo < hi { keys } else { 0 };
    #[expect(clippy::cast_possible_truncation, reason = "bounded by UNBOUNDED, or by lengths below it")]
    let shift = |x: i64| x.clamp(-UNBOUNDED, UNBOUNDED) as i32;
    Sequence {
        batch,
        q_start,
        queries,
        k_start,
        keys,
        lo_shift: shift(lo),
        hi_shift: shift(hi),
        diagonal: shift(diagonal),
        stored,
    }
}

/// A sequence of which only the device knows how many keys it has, and so where its diagonal lies: `keys` at most, and in place of
/// shifts how far its window reaches to either side of the diagonal, and where a top-left diagonal lies.
pub(crate) fn template(attention: &Attention, p: &Placed) -> Sequence {
    #[expect(clippy::cast_possible_truncation, reason = "bounded by UNBOUNDED")]
    let side = |side: Option<u32>| side.map_or(UNBOUNDED, i64::from).min(UNBOUNDED) as i32;
    let right = side(attention.window.1);
    let (right, diagonal) = match attention.causal {
        Causal::No => (right, side(None)),
        Causal::BottomRight => (0, side(None)),
        #[expect(clippy::cast_possible_truncation, reason = "bounded by UNBOUNDED")]
        Causal::TopLeft => (right, i64::from(p.offset).clamp(-UNBOUNDED, UNBOUNDED) as i32),
    };
    Sequence {
        batch: p.batch,
        q_start: p.queries.0,
        queries: p.queries.1,
        k_start: p.keys.0,
        keys: p.keys.1,
        lo_shift: side(attention.window.0),
        hi_shift: right,
        diagonal,
        stored: p.stored,
    }
}

/// The keys [lo, hi) that query `i` of a sequence sees; empty where `lo >= hi`.
#[must_use]
pub fn key_range(s: &Sequence, i: u32) -> (u32, u32) {
    let at = |shift: i32| i64::from(i) + i64::from(shift);
    #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "clamped to 0 ..= 2^31")]
    let clamp = |x: i64, top: i64| x.clamp(0, top) as u32;
    (clamp(at(s.lo_shift), UNBOUNDED * 2), clamp(at(s.hi_shift), i64::from(s.keys)))
}

/// The queries [first, end) of a sequence that see key `j`; empty where `first >= end`.
#[must_use]
pub fn query_range(s: &Sequence, j: u32) -> (u32, u32) {
    #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "clamped to 0 ..= 2^31")]
    let clamp = |x: i64, top: i64| x.clamp(0, top) as u32;
    let end = if j < s.keys { i64::from(s.queries) } else { 0 };
    (
        clamp(i64::from(j) - i64::from(s.hi_shift) + 1, UNBOUNDED * 2),
        clamp(i64::from(j) - i64::from(s.lo_shift) + 1, end),
    )
}

/// Scores that the queries of a sequence see, exactly.
#[must_use]
pub fn visited_scores(s: &Sequence) -> u64 {
    // With lo_shift < hi_shift, a query sees clamp(i + hi_shift) - clamp(i + lo_shift) keys, both clamped to 0 ..= keys.
    let sum = |shift: i32| clamped_sum(i64::from(s.queries), i64::from(shift), i64::from(s.keys));
    sum(s.hi_shift) - sum(s.lo_shift)
}

/// The sum of `clamp(i + shift, 0, top)` over `i` in `0 .. n`.
fn clamped_sum(n: i64, shift: i64, top: i64) -> u64 {
    let rise = (1 - shift).clamp(0, n); // the first i with a term above 0
    let flat = (top - shift).clamp(rise, n); // the first i whose term is `top`
    let rising = (flat - rise) * (rise + shift + flat - 1 + shift) / 2;
    (rising + (n - flat) * top).unsigned_abs()
}

/// Keys that a tile of queries [first, first + tile) walks.
///
/// # Panics
/// If the tile has no queries of the sequence.
#[must_use]
pub fn tile_keys(s: &Sequence, first: u32, tile: u32) -> u32 {
    let last = (first + tile).min(s.queries) - 1;
    key_range(s, last).1.saturating_sub(key_range(s, first).0)
}

/// Queries that a tile of keys [first, first + tile) walks.
#[must_use]
pub fn tile_queries(s: &Sequence, first: u32, tile: u32) -> u32 {
    let last = (first + tile).min(s.keys);
    if first < last { query_range(s, last - 1).1.saturating_sub(query_range(s, first).0) } else { 0 }
}

/// The (sequence, query tile) pairs of a call, arranged by the keys that they walk.
///
/// # Panics
/// If `tile` is 0.
#[must_use]
pub fn work_list(sequences: &[Sequence], tile: u32, order: Order) -> Vec<[u32; 2]> {
    arranged(sequences, tile, order, |s| s.queries, tile_keys)
}

/// The same with tiles of keys, those that no query sees included.
///
/// # Panics
/// If `tile` is 0.
#[must_use]
pub fn key_work_list(sequences: &[Sequence], tile: u32, order: Order) -> Vec<[u32; 2]> {
    arranged(sequences, tile, order, |s| s.stored, tile_queries)
}

fn arranged(
    sequences: &[Sequence],
    tile: u32,
    order: Order,
    rows: fn(&Sequence) -> u32,
    weight: fn(&Sequence, u32, u32) -> u32,
) -> Vec<[u32; 2]> {
    let tiles = |s: &Sequence| rows(s).div_ceil(tile);
    let mut list: Vec<(u32, [u32; 2])> = Vec::with_capacity(sequences.iter().map(|s| tiles(s) as usize).sum());
    for (record, s) in (0..).zip(sequences) {
        list.extend((0..tiles(s)).map(|t| (weight(s, t * tile, tile), [record, t])));
    }
    order.arrange(&mut list, |&(weight, _)| weight);
    list.into_iter().map(|(_, entry)| entry).collect()
}
