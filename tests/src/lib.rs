//! The harness: runs a case on a device and judges the result. Tests, `xtask verify`, `replay` and `bench` share it.

mod adapters;
mod problem;
mod run;
mod variant;

pub use adapters::{adapters, device_label};
pub use problem::{attention, extent};
pub use run::{Loaded, Outputs, judge, judge_all};
pub use variant::Variant;
