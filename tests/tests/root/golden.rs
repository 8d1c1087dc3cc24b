//! Case files with outputs from elsewhere, by every variant.

use std::path::Path;
use std::sync::Arc;

use anyhow::{Result, ensure};
use libtest_mimic::Trial;
use wattn::{Capabilities, Kernel};
use wattn_cases::{CaseFile, SoftmaxCase};
use wattn_tests::{Variant, judge_all, judge_expected, rows};

use crate::gpu::Gpu;

/// The files of `tests/golden/softmax`.
pub(crate) fn files() -> Vec<Arc<CaseFile>> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("golden/softmax");
    let entries = folder.read_dir().unwrap_or_else(|error| panic!("{}: {error}", folder.display()));
    let mut paths: Vec<_> = entries.map(|entry| entry.expect("an entry of the folder").path()).collect();
    paths.retain(|path| path.extension().is_some_and(|extension| extension == "safetensors"));
    paths.sort();
    assert!(!paths.is_empty(), "{} holds no case file", folder.display());
    paths.iter().map(|path| Arc::new(CaseFile::read(path))).collect()
}

pub(crate) fn trials(gpu: &Arc<Gpu>, files: &[Arc<CaseFile>]) -> Vec<Trial> {
    let mut trials = Vec::new();
    for file in files {
        let name = format!("golden/{}", file.case);
        let case = match file.softmax() {
            Ok(case) => case,
            Err(error) => {
                trials.push(gpu.trial(&name, move |_| anyhow::bail!("{error}")));
                continue;
            }
        };
        if let Some(half) = case.in_f16() {
            trials.push(in_f16(gpu, &name, half));
        }
        for variant in gpu.variants_of(case) {
            let (tried, file) = (case.clone(), Arc::clone(file));
            let refusal = move |variant: Variant, device: &Capabilities| variant.refusal(device, &tried);
            trials.push(gpu.trial_by(variant, &name, refusal, move |gpu, variant| {
                check(gpu, file.softmax().map_err(anyhow::Error::msg)?, variant)
            }));
        }
    }
    trials
}

/// The problem of a file rounded to f16, by the kernel that takes nothing else: against the oracle, which the file itself is held to.
fn in_f16(gpu: &Arc<Gpu>, name: &str, half: SoftmaxCase) -> Trial {
    let tried = half.clone();
    let refusal = move |variant: Variant, device: &Capabilities| variant.refusal(device, &tried);
    gpu.trial_by(Kernel::Matrix.into(), name, refusal, move |gpu, variant| {
        let (_, comparisons) = judge_all(&gpu.engine, &half, Some(variant), rows(&half))?;
        comparisons.iter().try_for_each(|comparison| gpu.check(comparison))
    })
}

fn check(gpu: &Gpu, case: &SoftmaxCase, variant: Variant) -> Result<()> {
    let (_, comparisons) = judge_expected(&gpu.engine, case, Some(variant))?;
    ensure!(!comparisons.is_empty(), "the file expects no output that can be calculated");
    comparisons.iter().try_for_each(|comparison| gpu.check(comparison))
}
