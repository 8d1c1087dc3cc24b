//! Which timestamps of a device can be believed. `cargo xtask bench` includes this file.

use std::cell::Cell;

/// Timestamps as they are read, pair by pair.
#[derive(Debug, Default)]
pub(crate) struct Ticks {
    /// Those last believed.
    believed: Cell<Option<[u64; 2]>>,
}

/// The timestamps are those of an earlier measurement: the device did not finish this one, and may have dropped all of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Stale;

impl Ticks {
    /// The seconds between two timestamps, if they tell. Some drivers write zeros, or the end before the beginning; and nothing that was
    /// waited for took longer than the wait.
    pub(crate) fn seconds(&self, ticks: [u64; 2], period: f64, wall: f64) -> Result<Option<f64>, Stale> {
        if self.believed.get() == Some(ticks) {
            return Err(Stale);
        }
        let [begin, end] = ticks;
        #[expect(clippy::cast_precision_loss, reason = "a difference of ticks")]
        let seconds = end.saturating_sub(begin) as f64 * period;
        if begin == 0 || seconds == 0.0 || seconds > wall {
            return Ok(None);
        }
        self.believed.set(Some(ticks));
        Ok(Some(seconds))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn timestamps_that_cannot_be_are_not_believed() {
        let read = Ticks::default();
        assert_eq!(read.seconds([1_024, 3_072], 0.5, 1e9), Ok(Some(1_024.0)));
        for ticks in [[0, 0], [7, 7], [7, 7], [9, 8], [0, 5], [1, 2_000_000_000]] {
            assert_eq!(read.seconds(ticks, 1e-9, 1.0), Ok(None), "{ticks:?}");
        }
    }

    #[test]
    fn timestamps_of_an_earlier_measurement_are_an_error() {
        let read = Ticks::default();
        assert_eq!(read.seconds([1, 3], 1.0, 9.0), Ok(Some(2.0)));
        assert_eq!(read.seconds([1, 3], 1.0, 9.0), Err(Stale));
        assert_eq!(read.seconds([1, 3], 1.0, 0.5), Err(Stale), "a wait that a device cut short");
        assert_eq!(read.seconds([4, 5], 1.0, 9.0), Ok(Some(1.0)));
    }
}
