//! The committed figures of each driver, and what a change must not do to them.

use std::collections::BTreeMap;
use std::fmt;
use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use serde::{Deserialize, Serialize};

use super::row::Row;
use crate::report::root;

/// What is compared of a kernel.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(from = "[u64; 4]", into = "[u64; 4]")]
pub(super) struct Figures {
    pub(super) spills: u64,
    pub(super) instructions: u64,
    /// Instructions of the hot loop.
    pub(super) in_loop: u64,
    /// Those of them that calculate addresses.
    pub(super) address: u64,
}

/// A kernel may grow by a tenth, and by a few instructions more where it has few.
const MARGIN: (u64, u64) = (10, 8);

/// The figures of one driver.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub(super) struct Device {
    /// The driver and its version, by which figures change too.
    pub(super) driver: String,
    pub(super) kernels: BTreeMap<String, Figures>,
}

/// All that is committed, by the name of the device.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub(super) struct Baseline {
    pub(super) devices: BTreeMap<String, Device>,
}

/// How a kernel differs from its baseline.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Difference {
    kernel: String,
    what: String,
    /// Whether it is beyond the margin.
    pub(super) fails: bool,
}

impl From<[u64; 4]> for Figures {
    fn from([spills, instructions, in_loop, address]: [u64; 4]) -> Self {
        Self { spills, instructions, in_loop, address }
    }
}

impl From<Figures> for [u64; 4] {
    fn from(of: Figures) -> Self {
        [of.spills, of.instructions, of.in_loop, of.address]
    }
}

impl From<&Row> for Figures {
    fn from(row: &Row) -> Self {
        // Counts, far below where floats stop being exact.
        let count = |value: Option<f64>| value.map_or(0, |value| value as u64);
        Self {
            spills: count(row.spills),
            instructions: count(row.instructions),
            in_loop: row.hot_loop.map_or(0, |mix| mix.instructions().into()),
            address: row.hot_loop.map_or(0, |mix| mix.address().into()),
        }
    }
}

impl Device {
    pub(super) fn new(driver: String, rows: &[Row]) -> Self {
        Self { driver, kernels: rows.iter().map(|row| (row.kernel.clone(), row.into())).collect() }
    }

    /// What has changed since, better or worse. Kernels that are not among `now` are missing, where that is the `whole`.
    pub(super) fn differences(&self, now: &Self, whole: bool) -> Vec<Difference> {
        let gone = |kernel: &&String| whole && !now.kernels.contains_key(*kernel);
        let missing =
            |kernel: &String| Difference { kernel: kernel.clone(), what: "is not there now".into(), fails: true };
        let mut all: Vec<Difference> = self.kernels.keys().filter(gone).map(missing).collect();
        for (kernel, figures) in &now.kernels {
            let mut push = |what: String, fails| all.push(Difference { kernel: kernel.clone(), what, fails });
            let Some(before) = self.kernels.get(kernel) else {
                push(format!("new, with {} spills", figures.spills), figures.spills > 0);
                continue;
            };
            if before.spills != figures.spills {
                push(format!("spills {} -> {}", before.spills, figures.spills), figures.spills > before.spills);
            }
            let counts = [
                ("instructions", before.instructions, figures.instructions),
                ("hot loop", before.in_loop, figures.in_loop),
                ("addresses in the hot loop", before.address, figures.address),
            ];
            for (what, before, now) in counts.into_iter().filter(|(_, before, now)| before != now) {
                // Nothing at all is what a parser makes of an assembly that it no longer reads.
                push(format!("{what} {before} -> {now}"), now == 0 || now > before + before / MARGIN.0 + MARGIN.1);
            }
        }
        all
    }
}

impl Baseline {
    pub(super) fn path() -> PathBuf {
        root().join("xtask/isa/baseline.json")
    }

    pub(super) fn read(path: &Path) -> Result<Self> {
        if !path.exists() {
            return Ok(Self::default());
        }
        let text = fs::read_to_string(path).with_context(|| format!("reading {}", path.display()))?;
        serde_json::from_str(&text).with_context(|| format!("reading {}", path.display()))
    }

    pub(super) fn write(&self, path: &Path) -> Result<()> {
        fs::write(path, self.to_string()).with_context(|| format!("writing {}", path.display()))
    }
}

/// JSON with a line a kernel, so that a change of the file reads like a table.
impl fmt::Display for Baseline {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let text = |value: &str| serde_json::to_string(value).map_err(|_| fmt::Error);
        let comma = |last: bool| if last { "" } else { "," };
        writeln!(f, "{{\n  \"schema\": 1,")?;
        writeln!(f, "  \"figures\": [\"spills\", \"instructions\", \"in the hot loop\", \"of these addresses\"],")?;
        writeln!(f, "  \"devices\": {{")?;
        for (index, (name, device)) in self.devices.iter().enumerate() {
            writeln!(f, "    {}: {{\n      \"driver\": {},", text(name)?, text(&device.driver)?)?;
            writeln!(f, "      \"kernels\": {{")?;
            for (index, (kernel, figures)) in device.kernels.iter().enumerate() {
                let [spills, instructions, in_loop, address] = (*figures).into();
                let end = comma(index + 1 == device.kernels.len());
                writeln!(f, "        {}: [{spills}, {instructions}, {in_loop}, {address}]{end}", text(kernel)?)?;
            }
            writeln!(f, "      }}\n    }}{}", comma(index + 1 == self.devices.len()))?;
        }
        writeln!(f, "  }}\n}}")
    }
}

impl fmt::Display for Difference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}{}: {}", if self.fails { "FAILED " } else { "" }, self.kernel, self.what)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn device(kernels: &[(&str, [u64; 4])]) -> Device {
        let kernels = kernels.iter().map(|&(name, figures)| (name.to_owned(), figures.into())).collect();
        Device { driver: "radv".to_owned(), kernels }
    }

    fn failures(before: [u64; 4], now: [u64; 4]) -> Vec<String> {
        let all = device(&[("k", before)]).differences(&device(&[("k", now)]), true);
        all.iter().filter(|one| one.fails).map(ToString::to_string).collect()
    }

    #[test]
    fn spills_and_growth_fail() {
        let before = [0, 1000, 200, 60];
        assert!(failures(before, before).is_empty());
        assert_eq!(failures(before, [1, 1000, 200, 60]), ["FAILED k: spills 0 -> 1"]);
        assert_eq!(failures(before, [0, 1200, 200, 60]), ["FAILED k: instructions 1000 -> 1200"]);
        assert_eq!(failures(before, [0, 1000, 229, 60]), ["FAILED k: hot loop 200 -> 229"]);
        assert_eq!(failures(before, [0, 1000, 200, 120]), ["FAILED k: addresses in the hot loop 60 -> 120"]);
    }

    #[test]
    fn what_stays_within_the_margin_or_shrinks_is_told_alone() {
        let before = [4, 1000, 200, 60];
        assert!(failures(before, [3, 1108, 228, 74]).is_empty());
        assert_eq!(device(&[("k", before)]).differences(&device(&[("k", [3, 1108, 228, 74])]), true).len(), 4);
        assert!(failures(before, [0, 10, 10, 10]).is_empty());
    }

    #[test]
    fn what_cannot_be_read_any_more_fails() {
        let before = [4, 1000, 200, 60];
        assert_eq!(failures(before, [0, 0, 200, 60]), ["FAILED k: instructions 1000 -> 0"]);
        assert_eq!(failures(before, [4, 1000, 0, 0]).len(), 2);
        assert!(failures([0, 1000, 0, 0], [0, 1000, 0, 0]).is_empty(), "a driver that gives no assembly");
    }

    #[test]
    fn a_kernel_that_is_gone_fails_a_whole_run() {
        let (two, one) = (device(&[("a", [0, 1, 1, 1]), ("b", [0, 1, 1, 1])]), device(&[("a", [0, 1, 1, 1])]));
        let told: Vec<String> = two.differences(&one, true).iter().map(ToString::to_string).collect();
        assert_eq!(told, ["FAILED b: is not there now"]);
        // A run with a filter looks at a part of them.
        assert!(two.differences(&one, false).is_empty());
    }

    #[test]
    fn a_new_kernel_may_not_spill() {
        let differences = device(&[]).differences(&device(&[("fits", [0, 1, 1, 1]), ("spills", [2, 1, 1, 1])]), true);
        assert_eq!(differences.iter().map(|one| one.fails).collect::<Vec<_>>(), [false, true]);
    }

    #[test]
    fn what_is_written_is_what_is_read() {
        let two = device(&[("a", [0, 1, 2, 3]), ("b", [4, 5, 6, 7])]);
        let baseline = Baseline { devices: [("one \"x\"".to_owned(), two.clone()), ("two".to_owned(), two)].into() };
        assert_eq!(serde_json::from_str::<Baseline>(&baseline.to_string()).unwrap(), baseline);
        let empty = Baseline::default();
        assert_eq!(serde_json::from_str::<Baseline>(&empty.to_string()).unwrap(), empty);
    }

    #[test]
    fn the_committed_one_is_read() {
        assert!(!Baseline::read(&Baseline::path()).unwrap().devices.is_empty());
    }
}
