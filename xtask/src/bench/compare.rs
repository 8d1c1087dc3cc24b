//! A run against an earlier one: what became faster, what slower, beyond noise.

use std::fmt;
use std::path::Path;

use anyhow::{Context, Result, ensure};

use super::row::{Row, Run, same};
use super::table::microseconds;

/// Median absolute deviations within which two medians count as equal; 1.4826 of them make a standard deviation.
const DEVIATIONS: f64 = 3.0 * 1.4826;
/// Differences below this share are never called one.
const LEAST: f64 = 0.05;

/// What became of a case.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Verdict {
    Faster,
    Same,
    Slower,
}

/// One case of both runs.
#[derive(Debug, Clone)]
pub(crate) struct Change {
    case: String,
    variant: String,
    before: f64,
    after: f64,
    /// After over before; on CPU drivers with the load taken out.
    ratio: f64,
    noise: f64,
    pub(crate) verdict: Verdict,
}

/// An earlier run from its file.
pub(crate) fn load(path: &Path) -> Result<Run> {
    let text = std::fs::read_to_string(path).with_context(|| format!("reading {}", path.display()))?;
    let run: Run = serde_json::from_str(&text).with_context(|| format!("{} is no bench result", path.display()))?;
    ensure!(run.schema == 1, "{} has schema {}, not 1", path.display(), run.schema);
    Ok(run)
}

/// Fails unless the earlier run is of this device.
pub(crate) fn comparable(before: &Run, identity: &str) -> Result<()> {
    let earlier = before.device.identity();
    ensure!(earlier == identity, "the baseline is of another device or driver ({earlier}) than this ({identity})");
    Ok(())
}

/// Compares all rows that both runs have.
pub(crate) fn compare(before: &Run, after: &Run) -> Vec<Change> {
    let pairs = after.rows.iter().filter_map(|row| Some((before.rows.iter().find(|r| same(r, row))?, row)));
    pairs.filter_map(|(before, row)| change(before, row, after.device.software)).collect()
}

fn change(before: &Row, after: &Row, software: bool) -> Option<Change> {
    let (b, a) = (before.median_us?, after.median_us?);
    // A CPU driver shares its cores with whatever else runs; what its ceiling does meanwhile tells how much it had of them.
    let measure = |row: &Row| {
        let plain = (row.median_us?, row.mad_us?);
        Some(if software { row.fma_gflop.zip(row.fma_gflop_mad).unwrap_or(plain) } else { plain })
    };
    let ((before_median, before_mad), (after_median, after_mad)) = (measure(before)?, measure(after)?);
    let noise = (DEVIATIONS * (before_mad / before_median).hypot(after_mad / after_median)).max(LEAST);
    let ratio = after_median / before_median;
    let verdict = match ratio {
        r if r > 1.0 + noise => Verdict::Slower,
        // As far below as the other is above, in factors.
        r if r < 1.0 / (1.0 + noise) => Verdict::Faster,
        _ => Verdict::Same,
    };
    let (case, variant) = (after.case.clone(), after.variant.clone());
    Some(Change { case, variant, before: b, after: a, ratio, noise, verdict })
}

impl fmt::Display for Change {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let verdict = match self.verdict {
            Verdict::Faster => "faster",
            Verdict::Same => "same",
            Verdict::Slower => "SLOWER",
        };
        let (before, after) = (microseconds(self.before), microseconds(self.after));
        write!(
            f,
            "{verdict:6} {} ({}): {before} -> {after}, x{:.2} (noise {:.0}%)",
            self.case,
            self.variant,
            self.ratio,
            self.noise * 100.0
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn row(median: f64, mad: f64) -> Row {
        Row { median_us: Some(median), mad_us: Some(mad), ..Row::default() }
    }

    #[track_caller]
    fn verdict(before: &Row, after: &Row, software: bool) -> Verdict {
        change(before, after, software).expect("both have medians").verdict
    }

    #[test]
    fn noise_scales_with_both_spreads() {
        let quiet = row(100.0, 0.5);
        assert_eq!(verdict(&quiet, &row(104.0, 0.5), false), Verdict::Same);
        assert_eq!(verdict(&quiet, &row(110.0, 0.5), false), Verdict::Slower);
        assert_eq!(verdict(&quiet, &row(90.0, 0.5), false), Verdict::Faster);
        assert_eq!(verdict(&quiet, &row(110.0, 5.0), false), Verdict::Same);
        assert_eq!(verdict(&row(100.0, 5.0), &row(110.0, 0.5), false), Verdict::Same);
    }

    #[test]
    fn load_is_taken_out_on_cpu_drivers() {
        let with = |row: Row, gflop| Row { fma_gflop: Some(gflop), fma_gflop_mad: Some(0.01), ..row };
        let (quiet, loaded) = (with(row(100.0, 0.5), 1.0), with(row(200.0, 0.5), 1.02));
        assert_eq!(verdict(&quiet, &loaded, true), Verdict::Same);
        assert_eq!(verdict(&quiet, &loaded, false), Verdict::Slower);
    }

    #[test]
    fn failed_rows_are_not_compared() {
        assert!(change(&Row::default(), &row(1.0, 0.0), false).is_none());
    }
}
