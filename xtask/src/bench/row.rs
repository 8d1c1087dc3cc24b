//! One measured case, as it stands in the JSON file.

use anyhow::Result;
use serde::{Deserialize, Serialize};
use wattn::{Kernel, PlanError};
use wattn_cases::{BasedRecipe, LinearRecipe, Recipe};
use wattn_tests::Variant;

use crate::report::guarded;

use super::contest::Outcome;
use super::stats::Timer;

/// A run: what is written, and what a later run compares itself with.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct Run {
    pub(crate) schema: u32,
    /// Whether kernels were compiled without wgpu's counters of their loops.
    #[serde(default)]
    pub(crate) trusted: bool,
    pub(crate) device: super::device::Device,
    pub(crate) rows: Vec<Row>,
    /// Time against length; not measured by quick or filtered runs.
    #[serde(default)]
    pub(crate) lengths: Vec<super::lengths::Line>,
    /// Tokens a second in decode; as above.
    #[serde(default)]
    pub(crate) generation: Vec<super::generation::Generation>,
}

/// A case and a kernel. A case that failed has no numbers but an error.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(default)]
pub(crate) struct Row {
    pub(crate) case: String,
    pub(crate) op: String,
    pub(crate) kernel: String,
    /// `plan` for the plan's own choice, else what was forced.
    pub(crate) variant: String,
    /// Queries and keys; of linear attention tokens of a chunk, and segments.
    pub(crate) tile: Option<[u32; 2]>,
    /// Of q and the output.
    pub(crate) dtype: String,
    /// Of k and v.
    pub(crate) kv_dtype: String,
    pub(crate) batch: usize,
    pub(crate) heads: usize,
    pub(crate) kv_heads: usize,
    pub(crate) queries: usize,
    pub(crate) keys: usize,
    pub(crate) head_dim: usize,
    pub(crate) value_head_dim: usize,
    pub(crate) causal: bool,
    pub(crate) median_us: Option<f64>,
    pub(crate) mad_us: Option<f64>,
    /// What the plan estimates from the ceilings measured at the start.
    pub(crate) predicted_us: Option<f64>,
    /// The naive three passes, in f32 whatever the case's storage; of linear attention a scan token by token, of few queries the forward
    /// kernel.
    pub(crate) baseline_us: Option<f64>,
    /// Three passes whose products keep blocks in registers, in f32 too.
    pub(crate) tiled_unfused_us: Option<f64>,
    /// What the ceilings around this case allow at best.
    pub(crate) floor_us: Option<f64>,
    pub(crate) fraction_of_ceiling: Option<f64>,
    /// `fma`, of kernels on matrices `f32 fma`, or `bandwidth`.
    pub(crate) ceiling: Option<String>,
    /// Of visible scores only.
    pub(crate) gflops: Option<f64>,
    /// Of every operand once.
    pub(crate) gbps: Option<f64>,
    /// FLOPs and bytes of the problem.
    pub(crate) flops: Option<f64>,
    pub(crate) bytes: Option<f64>,
    pub(crate) workspace_bytes: Option<u64>,
    /// Of the baselines: the scores.
    pub(crate) baseline_workspace_bytes: Option<u64>,
    pub(crate) first_us: Option<f64>,
    pub(crate) clock: Option<Timer>,
    /// The FMA rate beside this row's samples.
    pub(crate) fma_gflops: Option<f64>,
    /// The time again, as what the FMA ceiling does meanwhile: `median_us` and `mad_us` with the load on the device taken out.
    pub(crate) fma_gflop: Option<f64>,
    pub(crate) fma_gflop_mad: Option<f64>,
    pub(crate) error: Option<String>,
    /// Why the pinned kernel was not tried.
    pub(crate) skipped: Option<String>,
    /// Why there is no baseline though there should be one.
    pub(crate) baseline_error: Option<String>,
}

/// What a plan says, and how long its first call took.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Figures {
    pub(crate) kernel: &'static str,
    /// Queries and keys; of linear attention tokens of a chunk, and segments.
    pub(crate) tile: [u32; 2],
    pub(crate) flops: f64,
    pub(crate) bytes: f64,
    pub(crate) workspace_bytes: u64,
    /// By the plan, seconds.
    pub(crate) predicted: f64,
    /// Seconds.
    pub(crate) first: f64,
}

/// What all kernels of one case share.
#[derive(Debug, Clone, Default)]
pub(crate) struct Shared {
    pub(crate) baseline: Option<f64>,
    pub(crate) tiled: Option<f64>,
    pub(crate) baseline_workspace_bytes: Option<u64>,
    pub(crate) baseline_error: Option<String>,
}

impl Row {
    /// A row with the case's extents and no figures yet.
    pub(crate) fn new(recipe: &Recipe, variant: &str) -> Self {
        Self {
            case: recipe.name.into(),
            op: "softmax".into(),
            variant: variant.into(),
            dtype: storage(recipe.q_storage).into(),
            kv_dtype: storage(recipe.kv_storage).into(),
            batch: recipe.batch,
            heads: recipe.heads,
            kv_heads: recipe.kv_heads,
            queries: recipe.queries,
            keys: recipe.keys,
            head_dim: recipe.head_dim,
            value_head_dim: recipe.value_dim,
            causal: recipe.causal.is_some(),
            ..Self::default()
        }
    }

    /// A row of linear attention with the case's extents and no figures yet.
    pub(crate) fn linear(recipe: &LinearRecipe, op: &str, variant: &str) -> Self {
        Self {
            case: recipe.name.into(),
            op: op.into(),
            variant: variant.into(),
            dtype: storage(recipe.q_storage).into(),
            kv_dtype: storage(recipe.kv_storage).into(),
            batch: recipe.batch,
            heads: recipe.heads,
            kv_heads: recipe.heads,
            queries: recipe.tokens,
            keys: recipe.tokens,
            head_dim: recipe.key_dim,
            value_head_dim: recipe.value_dim,
            causal: true,
            ..Self::default()
        }
    }

    /// A row of BASED's linear attention with the case's extents and no figures yet.
    pub(crate) fn based(recipe: &BasedRecipe, variant: &str) -> Self {
        Self {
            case: recipe.name.into(),
            op: "based".into(),
            variant: variant.into(),
            dtype: storage(recipe.q_storage).into(),
            kv_dtype: storage(recipe.kv_storage).into(),
            batch: recipe.batch,
            heads: recipe.heads,
            kv_heads: recipe.heads,
            queries: recipe.tokens,
            keys: recipe.tokens,
            head_dim: recipe.feature_dim,
            value_head_dim: recipe.value_dim,
            causal: recipe.causal,
            ..Self::default()
        }
    }

    /// The row with the kernel that is to run: the one that is planned, or of a plan that is refused the pinned one.
    pub(crate) fn by(self, planned: Result<&'static str>, pinned: Option<Variant>) -> Self {
        let pinned = pinned.map_or("none", |variant| variant.kernel.name());
        Self { kernel: planned.unwrap_or(pinned).into(), ..self }
    }

    /// The row with a kernel's figures.
    pub(crate) fn measured(self, figures: Figures, Outcome { time, beside }: Outcome, shared: &Shared) -> Self {
        let Figures { kernel, tile, flops, bytes, workspace_bytes, predicted, first } = figures;
        let (by_fma, by_bandwidth) = (flops / beside.fma_rate, bytes / beside.bandwidth);
        let floor = by_fma.max(by_bandwidth);
        let ceiling = match kernel {
            _ if by_fma < by_bandwidth => "bandwidth",
            // Its matrices have units of their own, of which no probe measures the rate.
            kernel if kernel == Kernel::Matrix.name() => "f32 fma",
            _ => "fma",
        };
        let us = |seconds: f64| Some(seconds * 1e6);
        Self {
            kernel: kernel.into(),
            tile: Some(tile),
            median_us: us(time.median),
            mad_us: us(time.mad),
            predicted_us: us(predicted),
            baseline_us: shared.baseline.and_then(us),
            tiled_unfused_us: shared.tiled.and_then(us),
            floor_us: us(floor),
            fraction_of_ceiling: Some(floor / time.median),
            ceiling: Some(ceiling.into()),
            gflops: Some(flops / time.median / 1e9),
            gbps: Some(bytes / time.median / 1e9),
            flops: Some(flops),
            bytes: Some(bytes),
            workspace_bytes: Some(workspace_bytes),
            baseline_workspace_bytes: shared.baseline_workspace_bytes,
            first_us: us(first),
            clock: Some(time.clock),
            fma_gflops: Some(beside.fma_rate / 1e9),
            fma_gflop: Some(beside.fma_flops / 1e9),
            fma_gflop_mad: Some(beside.fma_flops_mad / 1e9),
            baseline_error: shared.baseline_error.clone(),
            ..self
        }
    }

    /// The row with what was measured, or with why nothing was.
    pub(crate) fn filled(self, measure: impl FnOnce() -> Result<(Figures, Outcome, Shared)>) -> Self {
        match guarded(measure) {
            Ok((figures, outcome, shared)) => self.measured(figures, outcome, &shared),
            Err(error) => self.failed(&error),
        }
    }

    /// The measured time over the predicted one.
    pub(crate) fn over_predicted(&self) -> Option<f64> {
        Some(self.median_us? / self.predicted_us?)
    }

    /// The row of a kernel that was refused or wrong.
    pub(crate) fn failed(self, error: &anyhow::Error) -> Self {
        let (error, skipped) = failure(error);
        Self { error, skipped, ..self }
    }
}

/// What an error is: a failure, or a pinned kernel that cannot serve, which is skipped.
pub(crate) fn failure(error: &anyhow::Error) -> (Option<String>, Option<String>) {
    let text = format!("{error:#}");
    let refused = matches!(error.downcast_ref(), Some(PlanError::Kernel { .. }));
    if refused { (None, Some(text)) } else { (Some(text), None) }
}

/// The name of a storage type in case files.
fn storage(storage: wattn_cases::Storage) -> &'static str {
    match storage {
        wattn_cases::Storage::F32 => "f32",
        wattn_cases::Storage::F16 => "f16",
        wattn_cases::Storage::Bf16 => "bf16",
    }
}

/// The problem's memory in words, for tables.
pub(crate) fn memory(bytes: u64) -> String {
    #[expect(clippy::cast_precision_loss, reason = "printed with three digits")]
    let mib = bytes as f64 / f64::from(1 << 20);
    if bytes == 0 { "0".into() } else { format!("{mib:.1} MiB") }
}

/// Whether two rows measure the same thing.
pub(crate) fn same(a: &Row, b: &Row) -> bool {
    a.case == b.case && a.variant == b.variant
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pinned_kernel_that_cannot_serve_is_no_failure() {
        let row = Row::default().by(Err(anyhow::anyhow!("refused")), Some(Kernel::Matrix.into()));
        assert_eq!(row.kernel, "matrix");
        let refused = PlanError::Kernel { kernel: Kernel::Matrix, reason: "no matrices".into() };
        let row = row.failed(&anyhow::Error::new(refused).context("planning"));
        assert_eq!(
            (row.error, row.skipped.as_deref()),
            (None, Some("planning: kernel matrix cannot serve: no matrices"))
        );
        let row = Row::default().failed(&anyhow::anyhow!("out is wrong"));
        assert_eq!((row.error.as_deref(), row.skipped), (Some("out is wrong"), None));
    }
}
