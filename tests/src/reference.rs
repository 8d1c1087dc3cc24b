//! What a case is judged against: the oracle, or what its file expects.

use anyhow::Result;
use wattn::{Engine, Plan};
use wattn_cases::{BasedCase, Case, Comparison, LinearCase, Reference, References, Rows, SoftmaxCase};

use crate::based::judge_based;
use crate::linear::judge_linear;
use crate::run::judge;
use crate::variant::Variant;

/// Beyond so many queries a head the oracle looks at a sample of them.
const MANY_QUERIES: usize = 256;
const SAMPLE: Rows = Rows::Sampled { per_head: 64, seed: 0 };

/// The rows of a case that the oracle calculates: all of short heads, a sample of long ones.
#[must_use]
pub fn rows(case: &SoftmaxCase) -> Rows {
    if case.dims().queries > MANY_QUERIES { SAMPLE } else { Rows::All }
}

/// As [`judge`], against the outputs that the case's file expects; only these are compared.
///
/// # Errors
/// As [`judge`].
pub fn judge_expected(
    engine: &Engine,
    case: &SoftmaxCase,
    variant: Option<Variant>,
) -> Result<(Plan, Vec<Comparison>)> {
    let (plan, comparisons) = judge(engine, case, variant, &expected(case))?;
    Ok((plan, comparisons.into_iter().filter(|c| case.expect.contains_key(&c.output)).collect()))
}

/// The file's outputs. The oracle adds what a file does not say: the size of the logits, on which tolerances depend.
fn expected(case: &SoftmaxCase) -> Reference {
    /// Scores that the oracle calculates in a few seconds.
    const SCORES: usize = 1 << 25;
    let dims = case.dims();
    let few = dims.batch * dims.heads * dims.queries * dims.keys <= SCORES;
    let forward = SoftmaxCase { grad_out: None, grad_lse: None, ..case.clone() };
    let oracle = forward.reference(if few { Rows::All } else { SAMPLE });
    let gradients = SoftmaxCase::OUTPUTS.into_iter().filter(|name| name.starts_with('d'));
    Reference {
        out: case.expected("out").unwrap_or(oracle.out),
        lse: case.expected("lse").unwrap_or(oracle.lse),
        gradients: gradients.filter_map(|name| Some((name, case.expected(name)?))).collect(),
        largest_logit: oracle.largest_logit,
    }
}

/// What a device made of a case.
#[derive(Debug)]
pub struct Ran {
    /// The kernel that ran.
    pub kernel: &'static str,
    /// How it was laid out, which its name leaves open.
    pub shape: String,
    /// One an output.
    pub comparisons: Vec<Comparison>,
}

impl Ran {
    /// Softmax attention.
    #[must_use]
    pub fn softmax(plan: &Plan, comparisons: Vec<Comparison>) -> Self {
        let key = &plan.details().key;
        Self { kernel: key.kernel.name(), shape: key.shape.to_string(), comparisons }
    }

    /// Softmax attention of few queries.
    #[must_use]
    pub fn decode(plan: &wattn::DecodePlan, comparisons: Vec<Comparison>) -> Self {
        let key = &plan.details().split;
        Self { kernel: key.kernel.name(), shape: format!("{} rows", key.rows), comparisons }
    }

    /// Linear attention.
    #[must_use]
    pub fn linear(plan: &wattn::LinearPlan, comparisons: Vec<Comparison>) -> Self {
        let details = plan.details();
        let kernel = details.sweeps.first().map_or("none", |sweep| sweep.walk.kernel.name());
        Self { kernel, shape: details.schedule.to_string(), comparisons }
    }

    /// BASED linear attention.
    #[must_use]
    pub fn based(plan: &wattn::BasedPlan, comparisons: Vec<Comparison>) -> Self {
        let details = plan.details();
        Self { kernel: details.kernel.name(), shape: details.schedule.to_string(), comparisons }
    }
}

/// Runs a case from a file against what the file expects.
///
/// # Errors
/// A refused problem, an operator that is not supported yet, or a device that fails.
pub fn judge_file(engine: &Engine, case: &Case, variant: Option<Variant>) -> Result<Ran> {
    match case {
        Case::Softmax(case) => {
            let (plan, comparisons) = judge_expected(engine, case, variant)?;
            Ok(Ran::softmax(&plan, comparisons))
        }
        Case::Linear(case) => {
            let (plan, comparisons) = judge_linear(engine, case, variant, &linear_expected(case))?;
            Ok(Ran::linear(&plan, comparisons))
        }
        Case::Based(case) => {
            let (plan, comparisons) = judge_based(engine, case, variant, &based_expected(case))?;
            Ok(Ran::based(&plan, comparisons))
        }
    }
}

/// What the file of a case of linear attention expects.
#[must_use]
pub fn linear_expected(case: &LinearCase) -> References {
    case.outputs().into_iter().filter_map(|name| Some((name, case.expected(name)?))).collect()
}

/// What the file of a case of BASED linear attention expects.
#[must_use]
pub fn based_expected(case: &BasedCase) -> References {
    BasedCase::OUTPUTS.into_iter().filter_map(|name| Some((name, case.expected(name)?))).collect()
}
