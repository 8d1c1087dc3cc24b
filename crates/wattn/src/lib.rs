#![doc = include_str!("../README.md")]

mod capabilities;
mod engine;
mod error;
#[cfg(feature = "blocking")]
mod headless;
mod host;
mod operands;
mod plan;
mod ring;
mod view;

pub use capabilities::{wanted_features, wanted_limits};
pub use engine::{Engine, EngineBuilder};
pub use error::{EncodeError, PlanError, RunError};
pub use host::{Blocking, HostLayout, HostOperands, HostOutput, HostScores, mask_words};
pub use operands::Operands;
pub use plan::Plan;
pub use view::View;
pub use wattn_scheduler::shaders::{Access, Kernel, LaneShape, Shape, Storage, TileShape};
pub use wattn_scheduler::{Attention, Capabilities, Causal, DeviceKind, Driver, Extent, HeadDim, Heads, Lengths};
pub use wgpu;
