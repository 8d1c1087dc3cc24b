//! BASED linear attention: every problem of its catalogue and every case file, by every kernel in both schedules.

use std::path::Path;
use std::sync::{Arc, OnceLock};

use anyhow::{Result, bail, ensure};
use libtest_mimic::Trial;
use wattn::{Capabilities, Kernel};
use wattn_cases::{BasedCase, Case, CaseFile, References, based_catalogue};
use wattn_tests::{Variant, based_expected, judge_based};

use crate::gpu::Gpu;

/// A case whose reference is calculated once, for all variants and devices.
pub(crate) struct Based {
    name: String,
    case: BasedCase,
    /// The only kernel that runs it, where it is the catalogue's rounded to what that kernel takes.
    only: Option<Kernel>,
    reference: OnceLock<References>,
}

impl Based {
    fn new(name: String, case: BasedCase) -> Arc<Self> {
        Arc::new(Self { name, case, only: None, reference: OnceLock::new() })
    }

    /// A problem of the catalogue, and where it has that form, the same in f16.
    fn both(name: &str, case: BasedCase) -> impl Iterator<Item = Arc<Self>> {
        let half = case.in_f16().map(|case| {
            let (only, reference) = (Some(Kernel::Matrix), OnceLock::new());
            Arc::new(Self { name: name.to_owned(), case, only, reference })
        });
        [Self::new(name.to_owned(), case)].into_iter().chain(half)
    }

    fn variants(&self) -> Vec<Variant> {
        match self.only {
            Some(kernel) => Variant::schedules(kernel).to_vec(),
            None => Variant::linear_of([self.case.q.storage, self.case.k.storage]),
        }
    }

    /// What its file expects, else what the oracle calculates.
    fn reference(&self) -> &References {
        self.reference.get_or_init(|| {
            if self.case.expect.is_empty() { self.case.reference() } else { based_expected(&self.case) }
        })
    }
}

/// The catalogue, and the files of `tests/golden`.
pub(crate) fn cases() -> Vec<Arc<Based>> {
    let catalogue = based_catalogue().into_iter().flat_map(|recipe| Based::both(recipe.name, recipe.build()));
    catalogue.chain(files()).collect()
}

fn files() -> Vec<Arc<Based>> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("golden/based");
    let entries = folder.read_dir().unwrap_or_else(|error| panic!("{}: {error}", folder.display()));
    let mut paths: Vec<_> = entries.map(|entry| entry.expect("an entry of the folder").path()).collect();
    paths.sort();
    let read = |path: &Path| match CaseFile::read(path).content {
        Ok(Case::Based(case)) => Based::new(format!("golden/based/{}", case.name), case),
        Ok(other) => panic!("{} is of op {}", path.display(), other.op()),
        Err(error) => panic!("{}: {error}", path.display()),
    };
    let files: Vec<_> = paths.iter().map(|path| read(path)).collect();
    assert!(!files.is_empty(), "{} holds no case file", folder.display());
    files
}

pub(crate) fn trials(gpu: &Arc<Gpu>, cases: &[Arc<Based>]) -> Vec<Trial> {
    let mut trials = Vec::new();
    for case in cases {
        for variant in case.variants() {
            let (tried, shared) = (Arc::clone(case), Arc::clone(case));
            let refusal = move |variant: Variant, device: &Capabilities| variant.based_refusal(device, &tried.case);
            trials.push(gpu.trial_by(variant, &case.name, refusal, move |gpu, variant| check(gpu, &shared, variant)));
        }
    }
    trials
}

fn check(gpu: &Gpu, case: &Based, variant: Variant) -> Result<()> {
    let (_, comparisons) = judge_based(&gpu.engine, &case.case, Some(variant), case.reference())?;
    ensure!(!comparisons.is_empty(), "nothing was compared");
    let failed: Vec<String> = comparisons.iter().filter_map(|c| gpu.check(c).err()).map(|e| e.to_string()).collect();
    if failed.is_empty() { Ok(()) } else { bail!("{}", failed.join("; ")) }
}
