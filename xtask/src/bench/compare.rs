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
    /// Relative, after over before, corrected for the load where that is possible.
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
    // A CPU driver shares its cores: the ceiling around a case tells how much of them it had.
    let load = match (software, before.fma_gflops, after.fma_gflops) {
        (true, Some(before), Some(after)) => after / before,
        _ => 1.0,
    };
    let spread = |row: &Row, median: f64| {
        let ceiling = if software { row.fma_spread.unwrap_or_default() } else { 0.0 };
        (row.mad_us.unwrap_or_default() / median).hypot(ceiling)
    };
    let noise = (DEVIATIONS * spread(before, b).hypot(spread(after, a))).max(LEAST);
    let ratio = a / b * load;
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

    fn row(median: f64, mad: f64, fma: f64) -> Row {
        Row { median_us: Some(median), mad_us: Some(mad), fma_gflops: Some(fma), ..Row::default() }
    }

    #[track_caller]
    fn verdict(before: &Row, after: &Row, software: bool) -> Verdict {
        change(before, after, software).expect("both have medians").verdict
    }

    #[test]
    fn noise_scales_with_both_spreads() {
        let quiet = row(100.0, 0.5, 10.0);
        assert_eq!(verdict(&quiet, &row(104.0, 0.5, 10.0), false), Verdict::Same);
        assert_eq!(verdict(&quiet, &row(110.0, 0.5, 10.0), false), Verdict::Slower);
        assert_eq!(verdict(&quiet, &row(90.0, 0.5, 10.0), false), Verdict::Faster);
        assert_eq!(verdict(&quiet, &row(110.0, 5.0, 10.0), false), Verdict::Same);
        assert_eq!(verdict(&row(100.0, 5.0, 10.0), &row(110.0, 0.5, 10.0), false), Verdict::Same);
    }

    #[test]
    fn load_is_taken_out_on_cpu_drivers() {
        let (quiet, loaded) = (row(100.0, 0.5, 10.0), row(200.0, 0.5, 5.0));
        assert_eq!(verdict(&quiet, &loaded, true), Verdict::Same);
        assert_eq!(verdict(&quiet, &loaded, false), Verdict::Slower);
    }

    #[test]
    fn failed_rows_are_not_compared() {
        assert!(change(&Row::default(), &row(1.0, 0.0, 1.0), false).is_none());
    }
}
