//! The pages of a cache under random operations: none is lost, none is held twice unless shared, and nobody writes to a shared one.

use std::collections::BTreeMap;

use proptest::prelude::*;
use wattn_scheduler::{CacheError, CacheLayout, HeadDim, Pages, SequenceId};

const PAGE: u32 = 16;
const PAGES: u32 = 24;

#[derive(Debug, Clone)]
enum Operation {
    Create,
    Extend(usize, u32),
    ExtendTwo(usize, usize, u32),
    ExtendAll(u32),
    Fork(usize),
    Truncate(usize, u32),
    Evict(usize, u32),
    Release(usize),
}

fn operation() -> impl Strategy<Value = Operation> {
    let any = 0..64_usize;
    prop_oneof![
        1 => Just(Operation::Create),
        4 => (any.clone(), 0..40_u32).prop_map(|(id, n)| Operation::Extend(id, n)),
        2 => (any.clone(), any.clone(), 0..40_u32).prop_map(|(a, b, n)| Operation::ExtendTwo(a, b, n)),
        1 => (0..4_u32).prop_map(Operation::ExtendAll),
        1 => any.clone().prop_map(Operation::Fork),
        1 => (any.clone(), 0..101_u32).prop_map(|(id, share)| Operation::Truncate(id, share)),
        1 => (any.clone(), 0..101_u32).prop_map(|(id, share)| Operation::Evict(id, share)),
        1 => any.prop_map(Operation::Release),
    ]
}

/// What each page holds: the tokens written to it, as (their sequence's history, position); copied with the page.
#[derive(Default)]
struct Model {
    /// The tokens of each sequence, each a number of its own.
    sequences: BTreeMap<SequenceId, Vec<u64>>,
    pages: BTreeMap<u32, BTreeMap<u32, u64>>,
    next: u64,
}

impl Model {
    fn id(&self, index: usize) -> Option<SequenceId> {
        self.sequences.keys().nth(index % self.sequences.len().max(1)).copied()
    }

    /// Pages that are held once these are extended: what is written to is held by one alone.
    fn pages_after(&self, pages: &Pages, new: &[(SequenceId, u32)]) -> u32 {
        let added = |id| new.iter().find(|(other, _)| *other == id).map_or(0, |&(_, tokens)| tokens);
        let (mut shared, mut own) = (std::collections::BTreeSet::new(), 0);
        for &id in self.sequences.keys() {
            let (table, kept, added) = (pages.table(id).unwrap(), pages.kept(id).unwrap(), added(id));
            let untouched = if added > 0 { kept / PAGE } else { kept.div_ceil(PAGE) };
            shared.extend(table[..untouched as usize].iter().copied());
            own += (kept + added).div_ceil(PAGE) - untouched;
        }
        u32::try_from(shared.len()).unwrap() + own
    }

    fn extend(&mut self, pages: &mut Pages, new: &[(SequenceId, u32)]) {
        let wanted = self.pages_after(pages, new);
        let before = (pages.free(), new.iter().map(|&(id, _)| pages.tokens(id).unwrap()).collect::<Vec<_>>());
        let step = match pages.extend(new) {
            Ok(step) => step,
            Err(CacheError::Full { needed, available }) => {
                assert!(needed > available);
                assert_eq!(needed, wanted - pages.used(), "as many as it would take");
                assert_eq!(before.0, pages.free(), "a refusal changes nothing");
                assert_eq!(before.1, new.iter().map(|&(id, _)| pages.tokens(id).unwrap()).collect::<Vec<_>>());
                return;
            }
            Err(error) => panic!("{error}"),
        };
        assert_eq!(pages.used(), wanted);
        for copy in &step.copies {
            let held = self.pages.get(&copy.from).cloned().unwrap_or_default();
            self.pages.insert(copy.to, held);
        }
        for s in &step.sequences {
            for at in s.tokens - s.new..s.tokens {
                self.next += 1;
                let page = step.tables[(s.table + at / PAGE - s.evicted / PAGE) as usize];
                self.pages.entry(page).or_default().insert(at % PAGE, self.next);
                self.sequences.get_mut(&s.id).unwrap().push(self.next);
            }
        }
    }

    fn apply(&mut self, pages: &mut Pages, operation: &Operation) {
        match *operation {
            Operation::Create => {
                self.sequences.insert(pages.create(), Vec::new());
            }
            Operation::Extend(index, n) => {
                if let Some(id) = self.id(index) {
                    self.extend(pages, &[(id, n)]);
                }
            }
            Operation::ExtendTwo(a, b, n) => {
                if let (Some(a), Some(b)) = (self.id(a), self.id(b)) {
                    if a == b {
                        assert_eq!(pages.extend(&[(a, n), (b, n)]), Err(CacheError::Twice { id: a }));
                    } else {
                        self.extend(pages, &[(a, n), (b, n / 2)]);
                    }
                }
            }
            Operation::ExtendAll(n) => {
                let all: Vec<_> = self.sequences.keys().map(|&id| (id, n)).collect();
                self.extend(pages, &all);
            }
            Operation::Fork(index) => {
                if let Some(id) = self.id(index) {
                    let fork = pages.fork(id).unwrap();
                    let tokens = self.sequences[&id].clone();
                    self.sequences.insert(fork, tokens);
                }
            }
            Operation::Truncate(index, share) => {
                if let Some(id) = self.id(index) {
                    let all = pages.tokens(id).unwrap();
                    let tokens = all * share / 100;
                    if pages.truncate(id, tokens).is_ok() {
                        self.sequences.get_mut(&id).unwrap().truncate(tokens as usize);
                    } else {
                        assert_eq!(pages.tokens(id).unwrap(), all);
                    }
                }
            }
            Operation::Evict(index, share) => {
                if let Some(id) = self.id(index) {
                    pages.evict(id, pages.tokens(id).unwrap() * share / 100).unwrap();
                }
            }
            Operation::Release(index) => {
                if let Some(id) = self.id(index) {
                    pages.release(id).unwrap();
                    self.sequences.remove(&id);
                }
            }
        }
    }

    /// Every sequence finds its tokens in its pages, and a page is free when nobody holds it.
    fn check(&self, pages: &Pages) {
        let mut held = std::collections::BTreeSet::new();
        for (&id, tokens) in &self.sequences {
            assert_eq!(pages.tokens(id).unwrap() as usize, tokens.len());
            let table = pages.table(id).unwrap();
            held.extend(table.iter().copied());
            let kept = pages.kept(id).unwrap() as usize;
            for (at, token) in tokens.iter().enumerate().skip(tokens.len() - kept) {
                let from_first = at - (tokens.len() - kept);
                let page = table[from_first / PAGE as usize];
                assert_eq!(self.pages[&page].get(&(at as u32 % PAGE)), Some(token), "{id}, token {at}");
            }
        }
        assert_eq!(held.len(), pages.used() as usize, "pages leak");
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 25, ..ProptestConfig::default() })]

    /// 25 runs of 400 operations: ten thousand.
    #[test]
    fn no_page_is_lost(operations in proptest::collection::vec(operation(), 400)) {
        let mut pages = Pages::new(CacheLayout::new(1, HeadDim::new(4).unwrap(), PAGE, PAGES).unwrap());
        let mut model = Model::default();
        for operation in &operations {
            model.apply(&mut pages, operation);
            model.check(&pages);
        }
        for id in model.sequences.keys() {
            pages.release(*id).unwrap();
        }
        prop_assert_eq!(pages.free(), PAGES);
    }
}
