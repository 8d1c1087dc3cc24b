//! What a case is judged against: the oracle, or what its file expects.

use anyhow::Result;
use wattn::{Engine, Plan};
use wattn_cases::{Comparison, Reference, Rows, SoftmaxCase};

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
    let oracle = case.reference(if few { Rows::All } else { SAMPLE });
    Reference {
        out: case.expected("out").unwrap_or(oracle.out),
        lse: case.expected("lse").unwrap_or(oracle.lse),
        largest_logit: oracle.largest_logit,
    }
}
