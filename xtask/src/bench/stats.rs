//! Medians of samples, and how far samples lie from them.

use serde::{Deserialize, Serialize};

use super::clock::Sample;

/// Samples of one thing.
#[derive(Debug, Clone, Default)]
pub(crate) struct Series(pub(crate) Vec<Sample>);

/// What tells the time.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Timer {
    /// The device's timestamps.
    Gpu,
    Wall,
}

impl Timer {
    /// As in JSON.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Gpu => "gpu",
            Self::Wall => "wall",
        }
    }
}

/// The middle of a series and its spread, seconds.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct Summary {
    pub(crate) median: f64,
    /// Median absolute deviation.
    pub(crate) mad: f64,
    pub(crate) clock: Timer,
}

impl Series {
    /// `None` if there are no samples.
    pub(crate) fn summary(&self) -> Option<Summary> {
        let clock = self.clock();
        let seconds: Vec<f64> = self.0.iter().filter_map(|sample| sample.by(clock)).collect();
        let (median, mad) = median_and_mad(&seconds)?;
        Some(Summary { median, mad, clock })
    }

    /// The device's clock if most samples have good timestamps: the others are dropped.
    pub(crate) fn clock(&self) -> Timer {
        let good = self.0.iter().filter(|sample| sample.gpu.is_some()).count();
        if good * 2 > self.0.len() { Timer::Gpu } else { Timer::Wall }
    }
}

/// The median, and the median distance from it.
pub(crate) fn median_and_mad(values: &[f64]) -> Option<(f64, f64)> {
    let middle = median(values)?;
    let deviations: Vec<f64> = values.iter().map(|x| (x - middle).abs()).collect();
    Some((middle, median(&deviations)?))
}

/// The middle one, or the mean of the middle two.
pub(crate) fn median(values: &[f64]) -> Option<f64> {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    let n = sorted.len();
    (n > 0).then(|| f64::midpoint(sorted[(n - 1) / 2], sorted[n / 2]))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn median_and_spread() {
        let series = |values: &[(Option<f64>, f64)]| {
            Series(values.iter().map(|&(gpu, wall)| Sample { gpu, wall }).collect()).summary()
        };
        assert_eq!(series(&[]), None);
        let gpu = series(&[(Some(1.0), 9.0), (Some(2.0), 9.0), (Some(9.0), 9.0)]);
        assert_eq!(gpu, Some(Summary { median: 2.0, mad: 1.0, clock: Timer::Gpu }));
        let dropped = series(&[(Some(1.0), 9.0), (None, 50.0), (Some(3.0), 9.0)]);
        assert_eq!(dropped, Some(Summary { median: 2.0, mad: 1.0, clock: Timer::Gpu }));
        let mixed = series(&[(Some(1.0), 3.0), (None, 5.0)]);
        assert_eq!(mixed, Some(Summary { median: 4.0, mad: 1.0, clock: Timer::Wall }));
    }
}
