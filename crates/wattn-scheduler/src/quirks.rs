//! What drivers are kept from: kernels that they compile for minutes, have no hardware for, or crash on.

use std::fmt;

use wattn_shaders::Kernel;

use crate::capabilities::{Capabilities, Driver};
use crate::cost::Task;

/// A kernel, as far as drivers have trouble with it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Design {
    pub(crate) task: Task,
    pub(crate) kernel: Kernel,
    /// What a lane keeps in registers: of softmax attention, rows times the class of their dim; of Lightning, rows of the state; of
    /// BASED, the feature dim. 0 where nothing is kept.
    pub(crate) registers: u32,
    /// Rows a lane, of softmax attention in registers; else 0.
    pub(crate) rows: u32,
}

/// What a driver does with a kernel that it is kept from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Harm {
    /// Slower than others, or late: who pins it, gets it.
    Slow,
    /// Ends the process: nobody gets it.
    Crash,
}

/// A driver, what it is kept from, and why.
pub(crate) struct Quirk {
    driver: fn(&Capabilities) -> bool,
    design: fn(&Design) -> bool,
    harm: Harm,
    reason: &'static str,
    /// Where it was seen.
    seen: &'static str,
}

/// All that is known. An entry is for what was seen, by us or in a public thread, and says where.
const QUIRKS: [Quirk; 6] = [
    Quirk {
        driver: |device| llvmpipe(device, 23..=25),
        design: |design| softmax(design) && design.kernel == Kernel::Broadcast && design.registers > 256,
        harm: Harm::Slow,
        reason: "Mesa 23 to 25 takes up to 12 seconds to compile so many rows",
        seen: MEASURED,
    },
    Quirk {
        driver: |device| llvmpipe(device, 23..=25),
        design: |design| softmax(design) && design.kernel == Kernel::TileUniversal && design.registers > 128,
        harm: Harm::Slow,
        reason: "Mesa 23 to 25 takes more than 4 seconds to compile so many rows",
        seen: MEASURED,
    },
    Quirk {
        driver: |device| llvmpipe(device, 23..=25),
        design: |design| !softmax(design) && design.kernel == Kernel::Broadcast && design.registers > 64,
        harm: Harm::Slow,
        reason: "Mesa 23 to 25 takes more than 5 seconds to compile so large a state in registers",
        seen: MEASURED,
    },
    Quirk {
        driver: |device| llvmpipe(device, 23..=u32::MAX) && device.subgroups.is_some_and(|(_, max)| max > 8),
        design: |design| design.kernel == Kernel::Broadcast && (!softmax(design) || design.rows > 1),
        harm: Harm::Slow,
        reason: "Mesa from 23 on takes minutes to compile rows of 16 lanes, and runs them slower than those of 8",
        seen: MEASURED,
    },
    Quirk {
        driver: |device| llvmpipe(device, 0..=u32::MAX) && device.subgroups != Some((8, 8)),
        design: |design| design.kernel == Kernel::Matrix,
        harm: Harm::Crash,
        reason: "this driver's matrices crash with subgroups of other than 8 lanes",
        seen: MEASURED,
    },
    Quirk {
        driver: |device| device.driver == Driver::Amd,
        design: |design| design.kernel == Kernel::Matrix,
        harm: Harm::Slow,
        reason: "AMD's own driver reports matrices on GPUs that have none",
        seen: "https://github.com/ggml-org/llama.cpp/pull/11074",
    },
];

/// Where what we measured ourselves is written down.
const MEASURED: &str = "shaders/TUNING.md, \"What drivers are kept from\"";

/// Whether a driver may have a design: with what is known against it, where it is pinned all the same; or why not.
pub(crate) fn judge(design: Design, pinned: bool, device: &Capabilities) -> Result<String, String> {
    match known(design, device) {
        None => Ok(String::new()),
        Some(quirk) if pinned && quirk.harm != Harm::Crash => Ok(format!("; pinned although {quirk}")),
        Some(quirk) => Err(quirk.to_string()),
    }
}

/// What is known against a design on this driver.
pub(crate) fn known(design: Design, device: &Capabilities) -> Option<&'static Quirk> {
    QUIRKS.iter().find(|quirk| (quirk.driver)(device) && (quirk.design)(&design))
}

impl fmt::Display for Quirk {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} (see {})", self.reason, self.seen)
    }
}

fn llvmpipe(device: &Capabilities, versions: std::ops::RangeInclusive<u32>) -> bool {
    matches!(device.driver, Driver::Llvmpipe { mesa } if versions.contains(&mesa))
}

fn softmax(design: &Design) -> bool {
    matches!(design.task, Task::Forward | Task::Backward)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_entry_keeps_some_driver_from_something_and_no_driver_from_all() {
        let base = Capabilities { subgroups: Some((8, 8)), ..Capabilities::webgpu_defaults() };
        let wide = Capabilities { subgroups: Some((16, 16)), ..base };
        let drivers = [20, 22, 23, 25, 26].map(|mesa| Driver::Llvmpipe { mesa });
        let mut hit = [false; QUIRKS.len()];
        for driver in drivers.into_iter().chain([Driver::Amd, Driver::Other]) {
            for device in [base, wide].map(|device| Capabilities { driver, ..device }) {
                for task in [Task::Forward, Task::Linear, Task::Based] {
                    let designs = || {
                        Kernel::ALL.into_iter().flat_map(move |kernel| {
                            [0, 1, 2, 4, 8].map(|rows| Design { task, kernel, registers: 64 * rows, rows })
                        })
                    };
                    assert!(designs().any(|design| known(design, &device).is_none()), "{device:?} is left without any");
                    for (hit, quirk) in hit.iter_mut().zip(&QUIRKS) {
                        *hit |= (quirk.driver)(&device) && designs().any(|design| (quirk.design)(&design));
                    }
                }
            }
        }
        assert!(hit.iter().all(|&hit| hit), "{hit:?}");
        for quirk in &QUIRKS {
            assert!(quirk.seen == MEASURED || quirk.seen.starts_with("https://"), "{quirk}");
        }
    }

    #[test]
    fn what_crashes_is_refused_even_where_it_is_pinned() {
        let device = Capabilities { subgroups: Some((8, 8)), ..Capabilities::webgpu_defaults() };
        let matrix = Design { task: Task::Forward, kernel: Kernel::Matrix, registers: 0, rows: 0 };
        let amd = Capabilities { driver: Driver::Amd, ..device };
        assert!(judge(matrix, true, &amd).unwrap().contains("pinned although AMD's own driver"));
        assert!(judge(matrix, false, &amd).unwrap_err().contains("llama.cpp/pull/11074"));
        let wide = Capabilities { driver: Driver::Llvmpipe { mesa: 26 }, subgroups: Some((16, 16)), ..device };
        assert!(judge(matrix, true, &wide).unwrap_err().contains("crash"));
        assert_eq!(judge(matrix, true, &device).as_deref(), Ok(""));
    }
}
