//! The work of the calls of a plan for few queries: from lengths, or from a step of a cache.

use wattn_shaders::{MergeKey, Sequence};

use crate::decode::Split;
use crate::decode_plan::{DecodePlan, LEAST_KEYS};
use crate::decode_work::{Prefix, Work};
use crate::device_work::DeviceWork;
use crate::error::PlanError;
use crate::pages::{CacheStep, StepSequence};
use crate::plan::{check_span, check_workgroups};
use crate::work::{self, Lengths, Placed};

impl DecodePlan {
    /// The work of a call of these lengths.
    ///
    /// # Errors
    /// Lengths or offsets that do not fit the extent, or keys that lie in a cache: its steps bring their own.
    pub fn work(&self, lengths: Lengths<'_>, causal_offsets: &[i32]) -> Result<Work, PlanError> {
        self.check_uncached()?;
        let sequences = work::sequences(&self.decode.attention, self.extent, lengths, causal_offsets)?;
        self.checked(self.splitting.work(sequences, &[], Vec::new(), self.extent.queries))
    }

    /// The work of a step of the cache that the plan reads.
    ///
    /// # Errors
    /// More sequences, tokens or keys than the extent has, keys that the queries see but that were evicted, or a plan without a cache.
    pub fn work_of(&self, step: &CacheStep) -> Result<Work, PlanError> {
        let sequences = self.check_step(step)?;
        let prefixes = if self.decode.cascade { self.prefixes(step, &sequences) } else { Vec::new() };
        self.checked(self.splitting.work(sequences, &prefixes, step.tables.clone(), step.new_tokens()))
    }

    /// The sequences of a step that fits the plan.
    fn check_step(&self, step: &CacheStep) -> Result<Vec<Sequence>, PlanError> {
        let attention = &self.decode.attention;
        let Some(cache) = self.decode.cache else {
            return Err(PlanError::invalid("step", "a step of a cache", "lengths, since the plan reads no cache"));
        };
        // Of layers any number: each has buffers of its own.
        if step.layout().layers(1) != cache.layers(1) {
            let [given, planned] = [step.layout(), &cache].map(|layout| format!("a cache of {layout}"));
            return Err(PlanError::invalid("step", given, format!("{planned}, as planned")));
        }
        // Those that are left: a window's sequences go round in few pages.
        let keys: u64 = step.sequences.iter().map(|s| u64::from(s.tokens - s.evicted)).sum();
        for (argument, given, most) in [
            ("sequences", step.sequences.len() as u64, self.extent.batch),
            ("queries", step.new_tokens().into(), self.extent.queries),
            ("keys", keys, self.extent.keys),
        ] {
            if given > most.into() {
                return Err(PlanError::invalid(argument, given, format!("at most {most}, as planned")));
            }
        }
        let mut q_start = 0;
        let mut sequences = Vec::with_capacity(step.sequences.len());
        for s in &step.sequences {
            let sequence = work::sequence(attention, 0, (q_start, s.new), (s.first_entry, s.tokens), 0);
            let first = work::key_range(&sequence, 0).0;
            if s.new > 0 && sequence.keys > 0 && first < s.evicted {
                return Err(PlanError::invalid(
                    "step",
                    format!("{} whose queries see from key {first} on", s.id),
                    format!("keys from {} on, since those before were evicted", s.evicted),
                ));
            }
            q_start += s.new;
            sequences.push(sequence);
        }
        Ok(sequences)
    }

    /// The work of calls of which only the device knows how many keys there are: at most those of `most`, and few queries each.
    ///
    /// # Errors
    /// Lengths or offsets that do not fit the extent, a sequence of many queries, or keys that lie in a cache.
    pub fn device_work(&self, most: Lengths<'_>, causal_offsets: &[i32]) -> Result<DeviceWork, PlanError> {
        self.check_uncached()?;
        if self.parts.len() > 1 {
            let advice = " with lengths on the device; ask for a higher max_storage_buffer_binding_size";
            return Err(PlanError::Limit {
                argument: "extent",
                needed: self.parts.len() as u64,
                available: 1,
                unit: "bindings of keys and values",
                advice,
            });
        }
        let attention = &self.decode.attention;
        let placed = work::placed(attention, self.extent, most, causal_offsets)?;
        let templates = placed.iter().map(|p| work::template(attention, p)).collect();
        self.on_device(templates, Vec::new(), self.extent.queries)
    }

    /// The work of a step of the cache that the plan reads, of which only the device knows how many tokens each sequence has: the new
    /// ones, which are its last, included, and no more than the step says.
    ///
    /// # Errors
    /// As [`work_of`](Self::work_of), or a sequence of many new tokens or with evicted ones, or a plan for a cascade.
    pub fn device_work_of(&self, step: &CacheStep) -> Result<DeviceWork, PlanError> {
        if self.decode.cascade {
            return Err(PlanError::invalid("cascade", "lengths on the device", "a step of which the host knows them"));
        }
        let sequences = self.check_step(step)?;
        if let Some(s) = step.sequences.iter().find(|s| s.evicted > 0) {
            // Of fewer tokens than the host knows of, queries see earlier keys.
            let given = format!("{}, of which {} tokens were evicted", s.id, s.evicted);
            return Err(PlanError::invalid("step", given, "sequences of which all tokens are there"));
        }
        let attention = &self.decode.attention;
        let placed = |(s, known): (&Sequence, &StepSequence)| Placed {
            batch: 0,
            queries: (s.q_start, s.queries),
            keys: (s.k_start, known.tokens),
            stored: known.tokens,
            offset: 0,
        };
        let placed = sequences.iter().zip(&step.sequences).map(placed);
        let templates = placed.map(|p| work::template(attention, &p)).collect();
        self.on_device(templates, step.tables.clone(), step.new_tokens())
    }

    fn on_device(&self, templates: Vec<Sequence>, tables: Vec<u32>, queries: u32) -> Result<DeviceWork, PlanError> {
        let longest = templates.iter().map(|s| s.keys).max().unwrap_or(0);
        self.check_parts(self.splitting.most_stretches(1, longest.into()))?;
        DeviceWork::new(&self.splitting, templates, tables, queries, self.device.loop_turns)
    }

    /// Refuses more parts of a row than the driver's loops can merge.
    fn check_parts(&self, parts: u64) -> Result<(), PlanError> {
        let turns = MergeKey::turns(parts, self.decode.attention.head_dim.value());
        match self.device.loop_turns {
            Some(most) if turns > most.into() => Err(PlanError::Limit {
                argument: "keys",
                needed: turns,
                available: most.into(),
                unit: "turns of the loops that merge a row's stretches",
                advice: "; longer stretches would do",
            }),
            _ => Ok(()),
        }
    }

    fn check_uncached(&self) -> Result<(), PlanError> {
        match self.decode.cache {
            Some(_) => Err(PlanError::invalid("lengths", "lengths", "a step of the cache, whose keys the plan reads")),
            None => Ok(()),
        }
    }

    /// Work that the device's loops and numbers can hold.
    pub(crate) fn checked(&self, work: Work) -> Result<Work, PlanError> {
        let attention = &self.decode.attention;
        if let Some(tiles) = self.tiles {
            let size = tiles.shape.tile_queries();
            let walked =
                |&[record, tile]: &[u32; 2]| work::tile_keys(&work.sequences[record as usize], tile * size, size);
            check_span(work.tiles.iter().map(walked).max().unwrap_or(0), self.most_tile_keys)?;
        }
        self.check_parts(work.rows.iter().map(|&[.., parts]| parts).max().unwrap_or(0).into())?;
        let (heads, splits) = (attention.heads, u64::from(self.splits));
        check_workgroups(work.tiles.len() as u64 * u64::from(heads.query()) * splits)?;
        check_workgroups(work.stretches.len().max(work.rows.len()) as u64 * u64::from(heads.key_value()) * splits)?;
        Ok(work)
    }

    /// Whether this work was made by this plan, or by one that sees the same keys of the same cache and splits them alike.
    #[must_use]
    pub fn made(&self, work: &Work) -> bool {
        work.splitting == self.splitting
    }

    /// The same of work whose lengths lie on the device.
    #[must_use]
    pub fn made_on_device(&self, work: &DeviceWork) -> bool {
        work.splitting == self.splitting
    }

    /// The pages that neighbours of a step have in common at their start, as far as all their new tokens see all of them.
    fn prefixes(&self, step: &CacheStep, sequences: &[Sequence]) -> Vec<Prefix> {
        let page = self.decode.cache.map_or(1, |cache| cache.page());
        let unit = match self.decode.split {
            // Whole stretches, so that their bits do not depend on who shares them.
            Split::Keys(keys) => keys.min(self.splitting.most_keys),
            Split::Device | Split::Stretches(_) => 1,
        };
        let common = |a: usize, b: usize| step.table(a).iter().zip(step.table(b)).take_while(|(a, b)| a == b).count();
        let can = |at: usize| {
            let s = &step.sequences[at];
            s.evicted == 0 && s.new > 0 && self.splitting.few(&sequences[at])
        };
        let mut prefixes = Vec::new();
        let mut first = 0;
        while first < sequences.len() {
            let (mut end, mut keys) = (first + 1, 0);
            if can(first) {
                keys = step.sequences[first].tokens - step.sequences[first].new;
                while end < sequences.len() && can(end) {
                    let s = &step.sequences[end];
                    #[expect(clippy::cast_possible_truncation, reason = "pages of a table")]
                    let shared = (common(first, end) as u32 * page).min(s.tokens - s.new).min(keys) / unit * unit;
                    // What is saved now, by all but the first, and what would be saved with one more.
                    let members = (end - first) as u64;
                    let (saved, joined) = ((members - 1) * u64::from(keys), members * u64::from(shared));
                    if shared < LEAST_KEYS.min(unit.max(page)) || joined < saved {
                        break;
                    }
                    keys = shared;
                    end += 1;
                }
            }
            if end > first + 1 {
                prefixes.push(Prefix { first, count: end - first, keys });
            }
            first = end;
        }
        prefixes
    }
}
