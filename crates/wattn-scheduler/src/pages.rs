//! Which pages of a cache hold which tokens of which sequence. Pure data: what it says to copy is for others to copy.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::atomic::{AtomicU64, Ordering};

use crate::PlanError;
use crate::cache::CacheLayout;

/// A sequence of a cache.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct SequenceId(u64);

impl fmt::Display for SequenceId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "sequence {}", self.0)
    }
}

/// Why a cache refused. Nothing has changed then.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum CacheError {
    /// Too few pages are free.
    #[error("pages: {needed} needed, {available} free; release sequences, or grow the cache")]
    Full {
        /// Pages needed.
        needed: u32,
        /// Pages that are free.
        available: u32,
    },
    /// A sequence that the cache does not have, or no longer has.
    #[error("{id}: the cache does not have it")]
    Unknown {
        /// The sequence.
        id: SequenceId,
    },
    /// A sequence that a step names twice.
    #[error("{id}: given twice in one step")]
    Twice {
        /// The sequence.
        id: SequenceId,
    },
    /// A length that a sequence cannot have.
    #[error("{id}: {given} tokens given, allowed are {allowed}")]
    Length {
        /// The sequence.
        id: SequenceId,
        /// The length given.
        given: u32,
        /// The lengths allowed.
        allowed: String,
    },
}

/// A page whose contents are needed in another one too, before that is written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PageCopy {
    /// The page that is read.
    pub from: u32,
    /// The page that is written.
    pub to: u32,
}

/// The sequences of one step of a model, each with its new tokens, and where all their tokens lie. Rows of queries, new keys and new
/// values lie in this order.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CacheStep {
    /// The sequences.
    pub sequences: Vec<StepSequence>,
    /// Pages of the sequences, one table after the other.
    pub tables: Vec<u32>,
    /// What must be copied before anything is appended.
    pub copies: Vec<PageCopy>,
    /// Of the pages as they were then.
    layout: CacheLayout,
    version: u64,
}

/// A sequence of a step.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct StepSequence {
    /// Which one.
    pub id: SequenceId,
    /// Its tokens, the new ones included.
    pub tokens: u32,
    /// How many of them are new.
    pub new: u32,
    /// Tokens at its start whose pages are gone.
    pub evicted: u32,
    /// Where its table begins.
    pub table: u32,
    /// Pages of its table.
    pub pages: u32,
    /// Where the entry of its very first page would lie: tables lack the pages that were evicted, so that this may wrap.
    pub first_entry: u32,
}

impl CacheStep {
    /// The pages of the sequence at this place of the step, without those evicted.
    ///
    /// # Panics
    /// At a place beyond the step's sequences.
    #[must_use]
    pub fn table(&self, at: usize) -> &[u32] {
        let s = &self.sequences[at];
        &self.tables[s.table as usize..(s.table + s.pages) as usize]
    }

    /// The layout of its cache.
    #[must_use]
    pub fn layout(&self) -> &CacheLayout {
        &self.layout
    }

    /// New tokens of all sequences.
    #[must_use]
    pub fn new_tokens(&self) -> u32 {
        self.sequences.iter().map(|s| s.new).sum()
    }
}

/// The pages of a cache: who holds them, and which are free.
#[derive(Debug, Clone)]
pub struct Pages {
    layout: CacheLayout,
    free: Vec<u32>,
    /// Sequences that hold each page.
    holders: Vec<u32>,
    sequences: BTreeMap<SequenceId, Held>,
    next: u64,
    /// Another number after each change of who holds what, and in each cache.
    version: u64,
}

/// Versions of all pages of the program.
static VERSIONS: AtomicU64 = AtomicU64::new(0);

fn new_version() -> u64 {
    VERSIONS.fetch_add(1, Ordering::Relaxed)
}

/// What a sequence holds.
#[derive(Debug, Clone, Default)]
struct Held {
    /// Its pages, without those evicted.
    pages: Vec<u32>,
    /// Pages evicted at its start.
    evicted: u32,
    tokens: u32,
}

/// What adding tokens takes.
struct Need {
    pages: u32,
    /// The last page is shared and not full: it is copied first.
    copy: bool,
}

impl Pages {
    /// All pages free.
    #[must_use]
    pub fn new(layout: CacheLayout) -> Self {
        let free = (0..layout.pages()).rev().collect();
        let holders = vec![0; layout.pages() as usize];
        Self { layout, free, holders, sequences: BTreeMap::new(), next: 0, version: new_version() }
    }

    /// The layout.
    #[must_use]
    pub fn layout(&self) -> &CacheLayout {
        &self.layout
    }

    /// Pages that no sequence holds.
    #[must_use]
    pub fn free(&self) -> u32 {
        self.layout.pages() - self.used()
    }

    /// Pages that some sequence holds.
    #[must_use]
    pub fn used(&self) -> u32 {
        #[expect(clippy::cast_possible_truncation, reason = "at most the pages of the layout")]
        let free = self.free.len() as u32;
        self.layout.pages() - free
    }

    /// The sequences.
    pub fn ids(&self) -> impl Iterator<Item = SequenceId> + '_ {
        self.sequences.keys().copied()
    }

    /// A sequence without tokens.
    pub fn create(&mut self) -> SequenceId {
        let id = SequenceId(self.next);
        self.next += 1;
        self.sequences.insert(id, Held::default());
        id
    }

    /// Tokens of a sequence, those evicted included.
    ///
    /// # Errors
    /// An unknown sequence.
    pub fn tokens(&self, id: SequenceId) -> Result<u32, CacheError> {
        Ok(self.held(id)?.tokens)
    }

    /// Tokens of a sequence from the first page on that was not evicted.
    ///
    /// # Errors
    /// An unknown sequence.
    pub fn kept(&self, id: SequenceId) -> Result<u32, CacheError> {
        let held = self.held(id)?;
        Ok(held.tokens.saturating_sub(held.evicted * self.layout.page()))
    }

    /// The pages of a sequence in order, without those evicted.
    ///
    /// # Errors
    /// An unknown sequence.
    pub fn table(&self, id: SequenceId) -> Result<&[u32], CacheError> {
        Ok(&self.held(id)?.pages)
    }

    /// Whether a step is of these pages, and nothing has been extended, truncated, evicted or released since.
    #[must_use]
    pub fn is_current(&self, step: &CacheStep) -> bool {
        step.version == self.version
    }

    /// Makes room for new tokens of each sequence: a step. A page that others hold too is copied before it is written.
    ///
    /// # Errors
    /// An unknown sequence, one given twice, one that becomes too long, or too few free pages.
    pub fn extend(&mut self, new: &[(SequenceId, u32)]) -> Result<CacheStep, CacheError> {
        let mut needs = Vec::with_capacity(new.len());
        let mut copies = BTreeMap::new();
        for (at, &(id, tokens)) in new.iter().enumerate() {
            if new[..at].iter().any(|(other, _)| *other == id) {
                return Err(CacheError::Twice { id });
            }
            needs.push(self.need(id, tokens, &mut copies)?);
        }
        let needed = needs.iter().fold(0_u32, |sum, need| sum.saturating_add(need.pages));
        let available = self.free();
        if needed > available {
            return Err(CacheError::Full { needed, available });
        }
        self.version = new_version();
        let sequences = Vec::with_capacity(new.len());
        let mut step =
            CacheStep { sequences, tables: Vec::new(), copies: Vec::new(), layout: self.layout, version: self.version };
        for (&(id, tokens), need) in new.iter().zip(needs) {
            let mut pages: Vec<u32> = (0..need.pages).filter_map(|_| self.take()).collect();
            let held = self.sequences.get_mut(&id).ok_or(CacheError::Unknown { id })?;
            if need.copy {
                let to = pages.remove(0);
                let from = held.pages.pop().ok_or(CacheError::Unknown { id })?;
                held.pages.push(to);
                self.holders[from as usize] -= 1;
                step.copies.push(PageCopy { from, to });
            }
            held.pages.extend(pages);
            held.tokens += tokens;
            let table = count(step.tables.len());
            step.tables.extend_from_slice(&held.pages);
            step.sequences.push(StepSequence {
                id,
                tokens: held.tokens,
                new: tokens,
                evicted: held.evicted * self.layout.page(),
                table,
                pages: count(held.pages.len()),
                first_entry: table.wrapping_sub(held.evicted),
            });
        }
        Ok(step)
    }

    /// What a sequence takes after others of the step that made `copies` of pages that they share: the last holder writes to its page.
    fn need(&self, id: SequenceId, new: u32, copies: &mut BTreeMap<u32, u32>) -> Result<Need, CacheError> {
        let held = self.held(id)?;
        let most = 1 << 29;
        let Some(tokens) = held.tokens.checked_add(new).filter(|&tokens| tokens <= most) else {
            let allowed = format!("at most {most} with the {} it has", held.tokens);
            return Err(CacheError::Length { id, given: new, allowed });
        };
        let pages = self.layout.pages_for(tokens) - held.evicted - count(held.pages.len());
        let written = new > 0 && !held.tokens.is_multiple_of(self.layout.page());
        let copy = written
            && held.pages.last().is_some_and(|&page| {
                let made = copies.entry(page).or_default();
                let shared = self.holders[page as usize] - *made > 1;
                *made += u32::from(shared);
                shared
            });
        Ok(Need { pages: pages + u32::from(copy), copy })
    }

    /// Another sequence with the same tokens: it shares all pages, until one of both writes to one.
    ///
    /// # Errors
    /// An unknown sequence.
    pub fn fork(&mut self, id: SequenceId) -> Result<SequenceId, CacheError> {
        let held = self.held(id)?.clone();
        for &page in &held.pages {
            self.holders[page as usize] += 1;
        }
        let fork = self.create();
        self.sequences.insert(fork, held);
        Ok(fork)
    }

    /// Keeps the first `tokens` tokens of a sequence.
    ///
    /// # Errors
    /// An unknown sequence, or more tokens than it has, or fewer than were evicted.
    pub fn truncate(&mut self, id: SequenceId, tokens: u32) -> Result<(), CacheError> {
        let held = self.held(id)?;
        let least = (held.evicted * self.layout.page()).min(held.tokens);
        if tokens > held.tokens || tokens < least {
            return Err(CacheError::Length { id, given: tokens, allowed: format!("{least} to {}", held.tokens) });
        }
        let keep = (self.layout.pages_for(tokens) - held.evicted) as usize;
        let held = self.sequences.get_mut(&id).ok_or(CacheError::Unknown { id })?;
        held.tokens = tokens;
        self.version = new_version();
        let dropped = held.pages.split_off(keep);
        self.drop_pages(&dropped);
        Ok(())
    }

    /// Gives back the pages of which all tokens lie before the `first` one that is still needed: under a sliding window, the pages of a
    /// sequence make a ring.
    ///
    /// # Errors
    /// An unknown sequence, or a token that it does not have.
    pub fn evict(&mut self, id: SequenceId, first: u32) -> Result<(), CacheError> {
        let held = self.held(id)?;
        if first > held.tokens {
            return Err(CacheError::Length { id, given: first, allowed: format!("at most {}", held.tokens) });
        }
        let gone = (first / self.layout.page()).saturating_sub(held.evicted);
        let held = self.sequences.get_mut(&id).ok_or(CacheError::Unknown { id })?;
        held.evicted += gone;
        self.version = new_version();
        let dropped: Vec<u32> = held.pages.drain(..gone as usize).collect();
        self.drop_pages(&dropped);
        Ok(())
    }

    /// Forgets a sequence.
    ///
    /// # Errors
    /// An unknown sequence.
    pub fn release(&mut self, id: SequenceId) -> Result<(), CacheError> {
        let held = self.sequences.remove(&id).ok_or(CacheError::Unknown { id })?;
        self.version = new_version();
        self.drop_pages(&held.pages);
        Ok(())
    }

    /// Adds pages.
    ///
    /// # Errors
    /// As [`CacheLayout::new`].
    pub fn grow(&mut self, pages: u32) -> Result<(), PlanError> {
        let before = self.layout.pages();
        self.layout = self.layout.with_pages(before.saturating_add(pages)).map_err(|error| match error {
            PlanError::Invalid { argument, allowed, .. } => {
                PlanError::invalid(argument, format!("{pages} more than {before}"), allowed)
            }
            error => error,
        })?;
        self.holders.resize(self.layout.pages() as usize, 0);
        self.free.splice(0..0, (before..self.layout.pages()).rev());
        Ok(())
    }

    fn held(&self, id: SequenceId) -> Result<&Held, CacheError> {
        self.sequences.get(&id).ok_or(CacheError::Unknown { id })
    }

    fn take(&mut self) -> Option<u32> {
        let page = self.free.pop()?;
        self.holders[page as usize] = 1;
        Some(page)
    }

    fn drop_pages(&mut self, pages: &[u32]) {
        for &page in pages {
            self.holders[page as usize] -= 1;
            if self.holders[page as usize] == 0 {
                self.free.push(page);
            }
        }
    }
}

#[expect(clippy::cast_possible_truncation, reason = "at most the pages of a layout, or its tokens")]
fn count(len: usize) -> u32 {
    len as u32
}
