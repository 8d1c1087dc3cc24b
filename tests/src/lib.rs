//! The harness: runs a case on a device and judges the result. Tests, `xtask verify`, `replay` and `bench` share it.

mod adapters;
mod problem;
mod reference;
mod run;
mod variant;

pub use adapters::{adapters, device_label};
pub use problem::{attention, extent};
pub use reference::{judge_expected, rows};
pub use run::{Loaded, Outputs, judge, judge_all};
pub use variant::Variant;
