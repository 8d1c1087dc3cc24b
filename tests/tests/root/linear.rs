//! Linear attention: every problem of its catalogue and every case file, by every kernel in both schedules.

use std::path::Path;
use std::sync::{Arc, OnceLock};

use anyhow::{Result, bail, ensure};
use libtest_mimic::Trial;
use wattn::{Capabilities, Kernel};
use wattn_cases::{Case, CaseFile, LinearCase, References, linear_catalogue};
use wattn_tests::{Variant, judge_linear, linear_expected};

use crate::gpu::Gpu;

/// A case whose reference is calculated once, for all variants and devices.
pub(crate) struct Linear {
    name: String,
    case: LinearCase,
    /// The only kernel that runs it, where it is the catalogue's rounded to what that kernel takes.
    only: Option<Kernel>,
    reference: OnceLock<References>,
}

impl Linear {
    fn new(name: String, case: LinearCase) -> Arc<Self> {
        Arc::new(Self { name, case, only: None, reference: OnceLock::new() })
    }

    /// A problem of the catalogue, and where it has that form, the same in f16.
    fn both(name: &str, case: LinearCase) -> impl Iterator<Item = Arc<Self>> {
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
            if self.case.expect.is_empty() { self.case.reference() } else { linear_expected(&self.case) }
        })
    }
}

/// The catalogue, and the files of `tests/golden`.
pub(crate) fn cases() -> Vec<Arc<Linear>> {
    let catalogue = linear_catalogue().into_iter().flat_map(|recipe| Linear::both(recipe.name, recipe.build()));
    catalogue.chain(["lightning", "gated_linear"].into_iter().flat_map(files)).collect()
}

fn files(op: &str) -> Vec<Arc<Linear>> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("golden").join(op);
    let entries = folder.read_dir().unwrap_or_else(|error| panic!("{}: {error}", folder.display()));
    let mut paths: Vec<_> = entries.map(|entry| entry.expect("an entry of the folder").path()).collect();
    paths.sort();
    let read = |path: &Path| match CaseFile::read(path).content {
        Ok(Case::Linear(case)) => Some(Linear::new(format!("golden/{op}/{}", case.name), case)),
        Ok(other) => panic!("{} is of op {}", path.display(), other.op()),
        Err(error) if error.contains("not supported yet") => None,
        Err(error) => panic!("{}: {error}", path.display()),
    };
    let files: Vec<_> = paths.iter().filter_map(|path| read(path)).collect();
    assert!(!files.is_empty(), "{} holds no case file", folder.display());
    files
}

pub(crate) fn trials(gpu: &Arc<Gpu>, cases: &[Arc<Linear>]) -> Vec<Trial> {
    let mut trials = Vec::new();
    for case in cases {
        for variant in case.variants() {
            let (tried, shared) = (Arc::clone(case), Arc::clone(case));
            let refusal = move |variant: Variant, device: &Capabilities| variant.linear_refusal(device, &tried.case);
            trials.push(gpu.trial_by(variant, &case.name, refusal, move |gpu, variant| check(gpu, &shared, variant)));
        }
    }
    trials
}

fn check(gpu: &Gpu, case: &Linear, variant: Variant) -> Result<()> {
    let (_, comparisons) = judge_linear(&gpu.engine, &case.case, Some(variant), case.reference())?;
    ensure!(!comparisons.is_empty(), "nothing was compared");
    let failed: Vec<String> = comparisons.iter().filter_map(|c| gpu.check(c).err()).map(|e| e.to_string()).collect();
    if failed.is_empty() { Ok(()) } else { bail!("{}", failed.join("; ")) }
}
