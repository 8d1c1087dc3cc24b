//! The work of one call over unequal sequences: stretches of keys of like cost, and what merges them.

use std::fmt;
use std::ops::Range;

use wattn_shaders::Sequence;

use crate::attention::{Causal, Extent};
use crate::cache::CacheLayout;
use crate::order::Order;
use crate::work::{key_range, work_list};

/// What the kernels of one call are told to do, from its lengths: made once a step, for all layers whose queries see the same keys.
#[derive(Debug, Clone, PartialEq)]
pub struct Work {
    /// The sequences, and after them the prefixes that some of them share.
    pub sequences: Vec<Sequence>,
    /// How many of these are prefixes.
    pub prefixes: usize,
    /// Keys of all sequences, those that are shared and read once counted once.
    pub keys: u64,
    /// The page tables of the sequences, one after the other, where keys lie in pages.
    pub tables: Vec<u32>,
    /// Queries of all packed sequences together, or of each batch entry.
    pub queries: u32,
    /// (sequence, query tile) pairs of the sequences that have many queries, in the order in which the device should start them.
    pub tiles: Vec<[u32; 2]>,
    /// Stretches of keys of the others: sequence, row tile, first key, end, first partial row. In the order in which the device
    /// should start them.
    pub stretches: Vec<[u32; 5]>,
    /// Their rows: sequence, row, and which of `parts` belong to it: first and count.
    pub rows: Vec<[u32; 4]>,
    /// Numbers of partial rows.
    pub parts: Vec<u32>,
    /// Partial rows of a key/value head.
    pub partial_rows: u32,
    /// The longest stretch that any workgroup walks.
    pub longest: u32,
    /// Of the plan that made it.
    pub(crate) splitting: Splitting,
}

impl Work {
    /// The load of the busiest of the device's workers over their mean, by keys: 1 is even. Calculated anew at each call.
    #[must_use]
    pub fn balance(&self) -> f64 {
        let Splitting { order, workers, kv_heads, .. } = self.splitting;
        let lengths = self.stretches.iter().map(|[_, _, first, end, _]| end - first);
        let workgroups: Vec<u32> = lengths.flat_map(|keys| std::iter::repeat_n(keys, kv_heads as usize)).collect();
        order.balance(&workgroups, workers)
    }
}

/// Keys that neighbouring sequences share.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Prefix {
    /// The first of the sequences.
    pub(crate) first: usize,
    /// How many they are.
    pub(crate) count: usize,
    /// How many keys, which all their queries see.
    pub(crate) keys: u32,
}

/// Rows of a sequence, or of a prefix, that share what is read.
struct RowTile {
    record: usize,
    tile: u32,
    /// The keys that some row of it sees.
    keys: Range<u32>,
    /// The partial rows of its stretches, one stretch after the other.
    partials: Range<u32>,
}

/// What tells, besides lengths, which keys a query sees and where they lie: work serves plans in which it is the same.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct Source {
    pub(crate) causal: Causal,
    pub(crate) window: (Option<u32>, Option<u32>),
    pub(crate) extent: Extent,
    pub(crate) cache: Option<CacheLayout>,
}

/// How a plan turns sequences into work.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct Splitting {
    /// What the sequences are taken from.
    pub(crate) source: Source,
    /// Query heads of a key/value head.
    pub(crate) group: u32,
    /// Rows of a workgroup.
    pub(crate) rows: u32,
    /// Sequences with more rows are attended in tiles.
    pub(crate) most_rows: u32,
    /// Queries of such a tile.
    pub(crate) tile: u32,
    /// Keys at whose multiples stretches end, where the caller says so.
    pub(crate) keys: Option<u32>,
    /// Else the stretches of a key/value head that keep the device busy,
    pub(crate) busy: u32,
    /// of so many keys at least, of which they are multiples,
    pub(crate) step: u32,
    /// and so many at most.
    pub(crate) most_keys: u32,
    /// Whether keys lie in pages.
    pub(crate) paged: bool,
    /// Key/value heads.
    pub(crate) kv_heads: u32,
    /// How the device shares out workgroups.
    pub(crate) order: Order,
    /// Workgroups that run at the same time, for the balance.
    pub(crate) workers: u32,
}

impl Splitting {
    /// Whether a sequence is split, rather than attended in tiles.
    pub(crate) fn few(&self, s: &Sequence) -> bool {
        s.queries.saturating_mul(self.group) <= self.most_rows
    }

    /// The work of these sequences. The prefixes, of neighbours with few queries each, are read once for all queries of theirs.
    pub(crate) fn work(
        &self,
        mut sequences: Vec<Sequence>,
        prefixes: &[Prefix],
        tables: Vec<u32>,
        queries: u32,
    ) -> Work {
        let many = |s: &Sequence| if self.few(s) { Sequence { queries: 0, ..*s } } else { *s };
        let tiles = work_list(&sequences.iter().map(many).collect::<Vec<_>>(), self.tile.max(1), self.order);

        // Each sequence's own keys begin where its prefix ends.
        let own = count(sequences.len());
        let all_keys: u64 = sequences.iter().map(|s| u64::from(s.keys)).sum();
        let read_once: u64 = prefixes.iter().map(|p| (p.count as u64 - 1) * u64::from(p.keys)).sum();
        let mut first_own = vec![0; sequences.len()];
        let mut shared_by = vec![None; sequences.len()];
        for (record, prefix) in (own..).zip(prefixes) {
            let members = prefix.first..prefix.first + prefix.count;
            let whole = u32::MAX >> 2;
            let head = sequences[members.start];
            let queries = sequences[members.clone()].iter().map(|s| s.queries).sum();
            #[expect(clippy::cast_possible_wrap, reason = "below 2^30")]
            let group =
                Sequence { queries, keys: prefix.keys, lo_shift: -(whole as i32), hi_shift: whole as i32, ..head };
            sequences.push(group);
            first_own[members.clone()].fill(prefix.keys);
            shared_by[members].fill(Some(record));
        }
        let mut row_tiles = Vec::new();
        let mut first_tile = vec![0; sequences.len()];
        for (record, s) in sequences.iter().enumerate() {
            first_tile[record] = row_tiles.len();
            if record < own as usize && !self.few(s) {
                continue;
            }
            for tile in 0..(s.queries * self.group).div_ceil(self.rows) {
                let (lo, hi) = self.tile_range(s, tile);
                let lo = lo.max(first_own.get(record).copied().unwrap_or(0));
                row_tiles.push(RowTile { record, tile, keys: lo.min(hi)..hi, partials: 0..0 });
            }
        }

        let total: u64 = row_tiles.iter().map(|t| u64::from(t.keys.end - t.keys.start)).sum();
        let keys = self.keys.unwrap_or_else(|| self.even(total)).min(self.most_keys);
        let mut stretches = Vec::new();
        let mut partial_rows = 0;
        for t in &mut row_tiles {
            let first_partial = partial_rows;
            let mut first = t.keys.start;
            while first < t.keys.end {
                let end = (first / keys + 1).saturating_mul(keys).min(t.keys.end);
                stretches.push([count(t.record), t.tile, first, end, partial_rows]);
                partial_rows += self.tile_rows(&sequences[t.record], t.tile);
                first = end;
            }
            t.partials = first_partial..partial_rows;
        }
        self.order.arrange(&mut stretches, |[_, _, first, end, _]| end - first);

        let mut rows = Vec::new();
        let mut parts = Vec::new();
        for (record, s) in sequences[..own as usize].iter().enumerate().filter(|(_, s)| self.few(s)) {
            for row in 0..s.queries * self.group {
                let first = count(parts.len());
                if let Some(prefix) = shared_by[record] {
                    let before = (s.q_start - sequences[prefix as usize].q_start) * self.group;
                    let tile = first_tile[prefix as usize] + ((before + row) / self.rows) as usize;
                    parts.extend(self.parts_of(&sequences, &row_tiles[tile], before + row));
                }
                let tile = first_tile[record] + (row / self.rows) as usize;
                parts.extend(self.parts_of(&sequences, &row_tiles[tile], row));
                rows.push([count(record), row, first, count(parts.len()) - first]);
            }
        }
        let longest = stretches.iter().map(|[_, _, first, end, _]| end - first).max().unwrap_or(0);
        Work {
            sequences,
            prefixes: prefixes.len(),
            keys: all_keys - read_once,
            tables,
            queries,
            tiles,
            stretches,
            rows,
            parts,
            partial_rows,
            longest,
            splitting: *self,
        }
    }

    /// Rows of a tile.
    fn tile_rows(&self, s: &Sequence, tile: u32) -> u32 {
        self.rows.min(s.queries * self.group - tile * self.rows)
    }

    /// The partial rows of a row that lies in this tile, in the order of their keys.
    fn parts_of(&self, sequences: &[Sequence], tile: &RowTile, row: u32) -> impl Iterator<Item = u32> {
        let step = self.tile_rows(&sequences[tile.record], tile.tile);
        let within = row % self.rows;
        tile.partials.clone().step_by(step as usize).map(move |partial| partial + within)
    }

    /// The keys that some row of a tile sees.
    fn tile_range(&self, s: &Sequence, tile: u32) -> (u32, u32) {
        let last = (((tile + 1) * self.rows).min(s.queries * self.group) - 1) / self.group;
        let (lo, hi) = (key_range(s, tile * self.rows / self.group).0, key_range(s, last).1);
        (lo.min(hi), hi)
    }

    /// Keys of a stretch, so that `busy` of them do all.
    fn even(&self, total: u64) -> u32 {
        let keys = u32::try_from(total.div_ceil(u64::from(self.busy))).unwrap_or(u32::MAX);
        keys.min(u32::MAX - self.step).next_multiple_of(self.step).max(self.step)
    }
}

/// Bytes of `rows` partial rows for each key/value head: value columns in vec4, and one more for maximum and sum.
pub(crate) fn partial_bytes(rows: u64, kv_heads: u32, value_dim: u32) -> u64 {
    rows.saturating_mul(u64::from(kv_heads)).saturating_mul(u64::from(value_dim.div_ceil(4) + 1) * 16)
}

impl fmt::Display for Work {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{} sequences, {} shared prefixes: {} stretches of at most {} keys for {} rows, balance {:.2} (busiest worker over the \
             mean); {} query tiles",
            self.sequences.len() - self.prefixes,
            self.prefixes,
            self.stretches.len(),
            self.longest,
            self.rows.len(),
            self.balance(),
            self.tiles.len(),
        )
    }
}

#[expect(clippy::cast_possible_truncation, reason = "bounded by the rows of a plan")]
pub(crate) fn count(len: usize) -> u32 {
    len as u32
}
