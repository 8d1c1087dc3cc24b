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
        let gpu: Option<Vec<f64>> = self.0.iter().map(|sample| sample.gpu).collect();
        let (seconds, clock) = match gpu {
            Some(seconds) => (seconds, Timer::Gpu),
            None => (self.0.iter().map(|sample| sample.wall).collect(), Timer::Wall),
        };
        let (median, mad) = median_and_mad(&seconds)?;
        Some(Summary { median, mad, clock })
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
        let mixed = series(&[(Some(1.0), 3.0), (None, 5.0)]);
        assert_eq!(mixed, Some(Summary { median: 4.0, mad: 1.0, clock: Timer::Wall }));
    }
}
