//! Few queries over many keys: every problem of their catalogue, by every kernel, split for the device and at fixed keys.

use std::sync::{Arc, OnceLock};

use anyhow::{Context, Result, ensure};
use libtest_mimic::Trial;
use wattn::{Kernel, Lengths, PlanError, Split};
use wattn_cases::{Recipe, Reference, Rows, SoftmaxCase, decode_catalogue};
use wattn_tests::{decode_kernels, judge_decode, plan_decode, run_decode};

use crate::gpu::Gpu;

/// How keys are split: by the device, and so short that small cases have several stretches.
const SPLITS: [(Split, &str); 2] = [(Split::Device, "split-device"), (Split::Keys(80), "split-80")];

struct Case {
    case: SoftmaxCase,
    kernels: Vec<Kernel>,
    reference: OnceLock<Reference>,
}

pub(crate) fn trials(gpu: &Arc<Gpu>) -> Vec<Trial> {
    let with_kernels = |case, kernels| Arc::new(Case { case, kernels, reference: OnceLock::new() });
    let cases: Vec<_> = decode_catalogue()
        .into_iter()
        .map(|recipe| recipe.build())
        .flat_map(|case| {
            // Rounded for the kernel that takes nothing else.
            let half = case.in_f16().map(|half| with_kernels(half, vec![Kernel::Matrix]));
            let kernels = decode_kernels(&case).collect();
            [Some(with_kernels(case, kernels)), half].into_iter().flatten()
        })
        .collect();
    let mut trials = Vec::new();
    for case in &cases {
        for &kernel in &case.kernels {
            for (split, split_name) in SPLITS {
                let (how, name) = (format!("{kernel}-{split_name}"), &case.case.name);
                let (tried, case) = (Arc::clone(case), Arc::clone(case));
                let refused = move |gpu: &Gpu| {
                    let plan = plan_decode(&gpu.engine, &tried.case, Some(kernel), split)?;
                    Ok(matches!(plan, Err(PlanError::Kernel { .. })))
                };
                trials.push(gpu.trial_of((kernel, &how), name, refused, move |gpu| check(gpu, &case, kernel, split)));
            }
        }
    }
    trials.push(gpu.trial("decode/keys_beyond_a_binding", keys_beyond_a_binding));
    trials
}

/// Keys and values of which a binding holds one head: eight calls of the kernels, each of one head of one batch entry.
fn keys_beyond_a_binding(gpu: &Gpu) -> Result<()> {
    let engine = gpu.limited(|limits| limits.max_storage_buffer_binding_size = 64 << 10)?;
    let named = |name| decode_catalogue().into_iter().find(move |recipe| recipe.name == name);
    let recipe = named("decode/kv_lens").context("a case of the catalogue")?;
    let case = Recipe { batch: 2, heads: 8, kv_heads: 4, kv_lens: &[200, 37], ..recipe }.build();
    let plan = plan_decode(&engine, &case, None, Split::Keys(80))??;
    ensure!(plan.details().parts.len() == 8, "{} parts", plan.details().parts.len());
    let error = plan.device_work(Lengths::Full, &[]).map(drop).unwrap_err().to_string();
    ensure!(error.contains("bindings of keys and values"), "{error}");
    let outputs = run_decode(&engine, &case, &plan, None)?;
    outputs.compare(&case, &case.reference(Rows::All)).iter().try_for_each(|comparison| gpu.check(comparison))
}

fn check(gpu: &Gpu, case: &Case, kernel: Kernel, split: Split) -> Result<()> {
    let reference = case.reference.get_or_init(|| case.case.reference(Rows::All));
    let (_, comparisons) = judge_decode(&gpu.engine, &case.case, Some(kernel), split, reference)?;
    comparisons.iter().try_for_each(|comparison| gpu.check(comparison))
}
