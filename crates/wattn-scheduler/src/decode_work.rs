//! The work of one call over unequal sequences: stretches of keys of like cost, and what merges them.

use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::fmt;

use wattn_shaders::Sequence;

use crate::work::{key_range, work_list};

/// What the kernels of one call are told to do, from its lengths. The same for all layers of a model: made once a step.
#[derive(Debug, Clone, PartialEq)]
pub struct Work {
    /// The sequences.
    pub sequences: Vec<Sequence>,
    /// The page tables of the sequences, one after the other, where keys lie in pages.
    pub tables: Vec<u32>,
    /// Queries of all packed sequences together, or of each batch entry.
    pub queries: u32,
    /// (sequence, query tile) pairs of the sequences that have many queries, heaviest first.
    pub tiles: Vec<[u32; 2]>,
    /// Stretches of keys of the others: sequence, row tile, first key, end, first partial row. Longest first.
    pub stretches: Vec<[u32; 5]>,
    /// Their rows: sequence, row, and which of `parts` belong to it: first and count.
    pub rows: Vec<[u32; 4]>,
    /// Numbers of partial rows.
    pub parts: Vec<u32>,
    /// Partial rows of a key/value head.
    pub partial_rows: u32,
    /// The load of the busiest of the device's workers over their mean, by keys: 1 is even.
    pub balance: f64,
    /// The longest stretch that any workgroup walks.
    pub longest: u32,
}

/// How a plan turns sequences into work.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct Splitting {
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
    /// Key/value heads.
    pub(crate) kv_heads: u32,
    /// Workgroups that run at the same time, for the balance.
    pub(crate) workers: u32,
}

impl Splitting {
    pub(crate) fn work(&self, sequences: Vec<Sequence>, tables: Vec<u32>, queries: u32) -> Work {
        let few = |s: &Sequence| s.queries.saturating_mul(self.group) <= self.most_rows;
        let mut tiles = Vec::new();
        let mut row_tiles = Vec::new();
        for (record, s) in (0..).zip(&sequences) {
            if few(s) {
                let count = (s.queries * self.group).div_ceil(self.rows);
                row_tiles.extend((0..count).map(|tile| (record, tile, self.tile_range(s, tile))));
            }
        }
        let many: Vec<Sequence> =
            sequences.iter().map(|s| if few(s) { Sequence { queries: 0, ..*s } } else { *s }).collect();
        tiles.extend(work_list(&many, self.tile.max(1)));

        let total: u64 = row_tiles.iter().map(|(_, _, (lo, hi))| u64::from(hi - lo)).sum();
        let keys = self.keys.unwrap_or_else(|| self.even(total)).min(self.most_keys);
        let mut stretches = Vec::new();
        let mut rows = Vec::new();
        let mut parts = Vec::new();
        let mut partial_rows = 0;
        for &(record, tile, (lo, hi)) in &row_tiles {
            let s = &sequences[record as usize];
            let tile_rows = self.rows.min(s.queries * self.group - tile * self.rows);
            let first_partial = partial_rows;
            let mut first = lo;
            while first < hi {
                let end = (first / keys + 1).saturating_mul(keys).min(hi);
                stretches.push([record, tile, first, end, partial_rows]);
                partial_rows += tile_rows;
                first = end;
            }
            for row in 0..tile_rows {
                let from = count(parts.len());
                parts.extend((first_partial..partial_rows).step_by(tile_rows as usize).map(|partial| partial + row));
                rows.push([record, tile * self.rows + row, from, count(parts.len()) - from]);
            }
        }
        // Stable, so that equal stretches stay in order.
        stretches.sort_by_key(|[_, _, first, end, _]| Reverse(end - first));
        let longest = stretches.first().map_or(0, |[_, _, first, end, _]| end - first);
        let balance = self.balance(&stretches);
        Work { sequences, tables, queries, tiles, stretches, rows, parts, partial_rows, balance, longest }
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

    /// Stretches go to whoever is free, longest first.
    fn balance(&self, stretches: &[[u32; 5]]) -> f64 {
        let mut workers: BinaryHeap<Reverse<u64>> = (0..self.workers).map(|_| Reverse(0)).collect();
        let mut total = 0;
        for [_, _, first, end, _] in stretches {
            for _ in 0..self.kv_heads {
                let Some(Reverse(load)) = workers.pop() else { return 1.0 };
                workers.push(Reverse(load + u64::from(end - first)));
                total += u64::from(end - first);
            }
        }
        let most = workers.into_iter().map(|Reverse(load)| load).max().unwrap_or(0);
        #[expect(clippy::cast_precision_loss, reason = "a ratio")]
        let ratio = most as f64 * f64::from(self.workers) / total as f64;
        if total == 0 { 1.0 } else { ratio }
    }
}

impl Work {
    /// Bytes of workspace that a call of this work takes.
    #[must_use]
    pub fn workspace_bytes(&self, kv_heads: u32, value_dim: u32) -> u64 {
        partial_bytes(u64::from(self.partial_rows), kv_heads, value_dim)
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
            "{} sequences: {} stretches of at most {} keys for {} rows, balance {:.2} (busiest worker over the mean); {} query tiles",
            self.sequences.len(),
            self.stretches.len(),
            self.longest,
            self.rows.len(),
            self.balance,
            self.tiles.len(),
        )
    }
}

#[expect(clippy::cast_possible_truncation, reason = "bounded by the rows of a plan")]
fn count(len: usize) -> u32 {
    len as u32
}
