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
    /// Measured by different clocks: nothing is known.
    Apart,
}

/// After over before, and how far from 1 that may be by chance.
#[derive(Debug, Clone, Copy, PartialEq)]
struct Ratio {
    ratio: f64,
    noise: f64,
}

/// One case of both runs.
#[derive(Debug, Clone)]
pub(crate) struct Change {
    case: String,
    variant: String,
    /// Medians before and after, microseconds.
    times: [f64; 2],
    plain: Ratio,
    /// With what else the device did taken out.
    corrected: Ratio,
    pub(crate) verdict: Verdict,
}

/// An earlier run from its file.
pub(crate) fn load(path: &Path) -> Result<Run> {
    let text = std::fs::read_to_string(path).with_context(|| format!("reading {}", path.display()))?;
    let run: Run = serde_json::from_str(&text).with_context(|| format!("{} is no bench result", path.display()))?;
    ensure!(run.schema == 1, "{} has schema {}, not 1", path.display(), run.schema);
    Ok(run)
}

/// Fails unless the earlier run is of this device, its kernels compiled in the same way.
pub(crate) fn comparable(before: &Run, identity: &str, trusted: bool) -> Result<()> {
    let earlier = before.device.identity();
    ensure!(earlier == identity, "the baseline is of another device or driver ({earlier}) than this ({identity})");
    let with = |trusted: bool| if trusted { "with" } else { "without" };
    ensure!(
        before.trusted == trusted,
        "the baseline was measured {} --trusted, this would be {} it",
        with(before.trusted),
        with(trusted)
    );
    Ok(())
}

/// Compares all rows that both runs have.
pub(crate) fn compare(before: &Run, after: &Run) -> Vec<Change> {
    let pairs = after.rows.iter().filter_map(|row| Some((before.rows.iter().find(|r| same(r, row))?, row)));
    pairs.filter_map(|(before, row)| change(before, row, after.device.software)).collect()
}

fn change(before: &Row, after: &Row, software: bool) -> Option<Change> {
    let times = |row: &Row| row.median_us.zip(row.mad_us);
    let plain = Ratio::of(times(before)?, times(after)?);
    // A CPU driver shares its cores with whatever else runs, a GPU changes its clocks. What the ceiling did meanwhile tells of both, where
    // it bounds the row: a CPU's bounds all. A change is one only if it shows either way.
    let bounds = |row: &Row| software || row.ceiling.as_deref().is_some_and(|ceiling| ceiling.ends_with("fma"));
    let loads = |row: &Row| row.fma_gflop.zip(row.fma_gflop_mad).filter(|_| bounds(row));
    let corrected = loads(before).zip(loads(after)).map_or(plain, |(before, after)| Ratio::of(before, after));
    let verdict = match plain.verdict() {
        _ if before.clock != after.clock => Verdict::Apart,
        verdict if verdict == corrected.verdict() => verdict,
        _ => Verdict::Same,
    };
    Some(Change {
        case: after.case.clone(),
        variant: after.variant.clone(),
        times: [before.median_us?, after.median_us?],
        plain,
        corrected,
        verdict,
    })
}

impl Ratio {
    fn of((before, before_mad): (f64, f64), (after, after_mad): (f64, f64)) -> Self {
        let noise = (DEVIATIONS * (before_mad / before).hypot(after_mad / after)).max(LEAST);
        Self { ratio: after / before, noise }
    }

    fn verdict(self) -> Verdict {
        match self.ratio {
            ratio if ratio > 1.0 + self.noise => Verdict::Slower,
            // As far below as the other is above, in factors.
            ratio if ratio < 1.0 / (1.0 + self.noise) => Verdict::Faster,
            _ => Verdict::Same,
        }
    }
}

impl fmt::Display for Ratio {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "x{:.2} (noise {:.0}%)", self.ratio, self.noise * 100.0)
    }
}

impl fmt::Display for Change {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let verdict = match self.verdict {
            Verdict::Faster => "faster",
            Verdict::Same => "same",
            Verdict::Slower => "SLOWER",
            Verdict::Apart => "apart",
        };
        let [before, after] = self.times.map(microseconds);
        write!(f, "{verdict:6} {} ({}): {before} -> {after}, ", self.case, self.variant)?;
        if self.verdict == Verdict::Apart {
            return write!(f, "by different clocks, not compared");
        }
        write!(f, "{}", self.plain)?;
        if self.corrected == self.plain { Ok(()) } else { write!(f, ", without load {}", self.corrected) }
    }
}

#[cfg(test)]
mod tests {
    use super::super::device::Device;
    use super::super::stats::Timer;
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
        // Nor is it a change if only the probe moved.
        assert_eq!(verdict(&quiet, &with(row(100.0, 0.5), 2.0), true), Verdict::Same);
        assert_eq!(verdict(&quiet, &with(row(200.0, 0.5), 2.0), true), Verdict::Slower);
    }

    #[test]
    fn load_is_taken_out_elsewhere_where_multiply_adds_bound() {
        let with = |us, gflop, ceiling: &str| Row {
            fma_gflop: Some(gflop),
            fma_gflop_mad: Some(0.01),
            ceiling: Some(ceiling.into()),
            ..row(us, 0.5)
        };
        for (ceiling, expected) in [("fma", Verdict::Same), ("f32 fma", Verdict::Same), ("bandwidth", Verdict::Slower)]
        {
            assert_eq!(verdict(&with(100.0, 1.0, ceiling), &with(120.0, 1.02, ceiling), false), expected, "{ceiling}");
        }
    }

    #[test]
    fn different_clocks_are_not_compared() {
        let by = |us, clock| Row { clock: Some(clock), ..row(us, 0.5) };
        let change = change(&by(100.0, Timer::Gpu), &by(900.0, Timer::Wall), false).expect("both have medians");
        assert_eq!(change.verdict, Verdict::Apart);
        assert!(change.to_string().ends_with("different clocks, not compared"), "{change}");
        assert_eq!(verdict(&by(100.0, Timer::Wall), &by(900.0, Timer::Wall), false), Verdict::Slower);
    }

    #[test]
    fn failed_rows_are_not_compared() {
        assert!(change(&Row::default(), &row(1.0, 0.0), false).is_none());
    }

    #[test]
    fn runs_with_and_without_counters_are_not_compared() {
        let device = Device::sample();
        // As files were before they said.
        let run = serde_json::json!({ "schema": 1, "device": device, "rows": [] });
        let run: Run = serde_json::from_value(run).expect("a run");
        comparable(&run, &device.identity(), false).expect("the same");
        let error = comparable(&run, &device.identity(), true).expect_err("another").to_string();
        assert!(error.contains("without --trusted, this would be with it"), "{error}");
        assert!(comparable(&run, "vulkan/other, d 1", false).is_err());
    }
}
