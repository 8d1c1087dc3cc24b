//! The work of one call of which only the device knows the lengths: what the host can say of it, and the room that it takes.

use wattn_shaders::{LengthsParams, Sequence};

use crate::decode_work::{Splitting, count};
use crate::error::PlanError;
use crate::pages::{CacheStep, StepSequence};
use crate::work::UNBOUNDED;

/// Words before the sections of the work: the number of workgroups of `flash_split`, and its grid.
const HEADER: u32 = 4;

/// Words of a sequence's record.
#[expect(clippy::cast_possible_truncation, reason = "a few words")]
const RECORD: u32 = size_of::<Sequence>() as u32 / 4;

/// Work whose lengths lie on the device, where `flash_lengths` makes it what [`Work`](crate::Work) is from lengths on the host.
#[derive(Debug, Clone, PartialEq)]
pub struct DeviceWork {
    /// The sequences: `keys` at most, and for shifts how far their windows reach (see `flash_lengths.wgsl`).
    pub templates: Vec<Sequence>,
    /// Sequence, row tile, and its first row among those of all sequences.
    pub row_tiles: Vec<[u32; 3]>,
    /// Rows of all sequences.
    pub rows: u32,
    /// The page tables of the sequences, one after the other, where keys lie in pages.
    pub tables: Vec<u32>,
    /// Queries of all packed sequences together, or of each batch entry.
    pub queries: u32,
    /// Stretches of keys, at most.
    pub stretches: u32,
    /// Partial rows of a key/value head, at most.
    pub partial_rows: u32,
    /// Of the plan that made it.
    pub(crate) splitting: Splitting,
}

impl DeviceWork {
    /// Byte offset in the work of the grid of `flash_split`, for an indirect dispatch.
    pub const GRID: u64 = 4;

    pub(crate) fn new(
        splitting: &Splitting,
        templates: Vec<Sequence>,
        tables: Vec<u32>,
        queries: u32,
        loop_turns: Option<u32>,
    ) -> Result<Self, PlanError> {
        let mut row_tiles = Vec::new();
        let (mut rows, mut keys) = (0, 0_u64);
        for (record, s) in (0..).zip(&templates) {
            if !splitting.few(s) {
                let allowed = format!("at most {} with lengths on the device", splitting.most_rows / splitting.group);
                return Err(PlanError::invalid("queries", s.queries, allowed));
            }
            for tile in 0..(s.queries * splitting.group).div_ceil(splitting.rows) {
                row_tiles.push([record, tile, rows + tile * splitting.rows]);
                keys += u64::from(walked(s, splitting));
            }
            rows += s.queries * splitting.group;
        }
        // The kernel adds up the keys of all row tiles, and has shifts by as much.
        let most = UNBOUNDED.unsigned_abs() - u64::from(splitting.busy);
        if keys > most {
            return Err(PlanError::Limit {
                argument: "lengths",
                needed: keys,
                available: most,
                unit: "keys of all row tiles",
                advice: "; fewer sequences at a time would do",
            });
        }
        let stretches = splitting.most_stretches(row_tiles.len() as u64, keys);
        // An invocation of `flash_lengths` looks for the tile of each of its stretches, and writes its rows.
        let turns = (stretches / 64 + 1) * u64::from(34 + splitting.rows);
        if loop_turns.is_some_and(|most| turns > most.into()) {
            return Err(PlanError::Limit {
                argument: "lengths",
                needed: turns,
                available: loop_turns.unwrap_or(0).into(),
                unit: "turns of the driver's loops",
                advice: "; longer stretches, or fewer sequences at a time, would do",
            });
        }
        #[expect(clippy::cast_possible_truncation, reason = "the plan has made sure that the workspace holds them")]
        let stretches = if keys == 0 { 0 } else { stretches as u32 };
        let partial_rows = stretches * splitting.rows;
        Ok(Self { templates, row_tiles, rows, tables, queries, stretches, partial_rows, splitting: *splitting })
    }

    /// Whether these are the sequences of a step.
    #[must_use]
    pub fn is_of(&self, step: &CacheStep) -> bool {
        let same = |(s, known): (&Sequence, &StepSequence)| {
            (s.queries, s.k_start, s.stored) == (known.new, known.first_entry, known.tokens)
        };
        self.tables == step.tables
            && self.templates.len() == step.sequences.len()
            && self.templates.iter().zip(&step.sequences).all(same)
    }

    /// Word offset of the sequences in the work.
    #[must_use]
    pub fn records_at(&self) -> u32 {
        HEADER
    }

    /// Word offset of the stretches in the work.
    #[must_use]
    pub fn stretches_at(&self) -> u32 {
        self.records_at() + RECORD * count(self.templates.len())
    }

    /// Word offset of the rows in the work; their parts follow.
    #[must_use]
    pub fn rows_at(&self) -> u32 {
        self.stretches_at() + 5 * self.stretches
    }

    /// Words of the work.
    #[must_use]
    pub fn words(&self) -> u64 {
        u64::from(self.spans_at()) + 2 * self.row_tiles.len() as u64
    }

    fn spans_at(&self) -> u32 {
        self.rows_at() + 4 * self.rows + self.partial_rows
    }

    /// What `flash_lengths` is told, before `templates` and `row_tiles`: that `share` workgroups take a stretch, and where in their
    /// binding the lengths begin.
    #[must_use]
    pub fn params(&self, share: u32, lengths: u32, workgroups_per_axis: u32) -> LengthsParams {
        let splitting = &self.splitting;
        LengthsParams {
            sequences: count(self.templates.len()),
            tiles: count(self.row_tiles.len()),
            tile_rows: splitting.rows,
            rows: self.rows,
            group: splitting.group,
            lengths,
            templates: 0,
            row_tiles: RECORD * count(self.templates.len()),
            keys: splitting.keys.unwrap_or(0),
            busy: splitting.busy,
            step: splitting.step,
            most_keys: splitting.most_keys,
            share,
            workgroups_per_axis,
            records: self.records_at(),
            stretches: self.stretches_at(),
            list: self.rows_at(),
            spans: self.spans_at(),
        }
    }
}

/// Keys that a row tile of a sequence walks, at most.
fn walked(template: &Sequence, splitting: &Splitting) -> u32 {
    let [left, right] = [template.lo_shift, template.hi_shift].map(i32::unsigned_abs);
    if i64::from(left.max(right)) == UNBOUNDED {
        return template.keys;
    }
    template.keys.min(left + right + 1 + splitting.reach())
}
