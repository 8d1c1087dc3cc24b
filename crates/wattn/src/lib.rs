#![doc = include_str!("../README.md")]
#![cfg_attr(not(feature = "trusted"), forbid(unsafe_code))]

mod backward_operands;
mod backward_plan;
mod based_operands;
mod based_plan;
mod bound;
mod cache;
mod capabilities;
mod decay_jobs;
mod decode_call;
mod decode_plan;
mod device_work;
mod dispatch;
mod engine;
mod error;
#[cfg(feature = "blocking")]
mod headless;
mod host;
mod linear_operands;
mod linear_plan;
mod operands;
mod operator;
mod plan;
mod ring;
mod scope;
mod state;
#[cfg(feature = "trusted")]
mod trusted;
#[cfg(feature = "tune")]
mod tune;
mod view;

pub use backward_operands::BackwardOperands;
pub use backward_plan::BackwardPlan;
pub use based_operands::BasedOperands;
pub use based_plan::BasedPlan;
pub use cache::KvCache;
pub use capabilities::{matrix_features, wanted_features, wanted_limits};
pub use decode_plan::{AnyWork, DecodePlan};
pub use device_work::DeviceWork;
pub use engine::{Engine, EngineBuilder};
#[cfg(feature = "tune")]
pub use error::TuneError;
pub use error::{CacheError, EncodeError, PlanError, RunError};
pub use host::{
    Blocking, HostGradients, HostIncoming, HostLayout, HostLinear, HostLinearOutput, HostOperands, HostOutput,
    HostScores, OnHost, mask_words,
};
pub use linear_operands::LinearOperands;
pub use linear_plan::LinearPlan;
pub use operands::Operands;
pub use operator::{Operator, Prepared};
pub use plan::Plan;
pub use state::{BasedState, LightningState, Recurrent, State};
#[cfg(feature = "tune")]
pub use tune::{Candidate, Tune, Tuned, Tuning};
pub use view::View;
/// What plans are made of, as plain data: the types of their `details`.
pub use wattn_scheduler as scheduler;
pub use wattn_scheduler::shaders::{Access, Kernel, LaneShape, MatrixShape, Shape, Storage, TileShape};
pub use wattn_scheduler::{
    Attention, AttentionBackward, Based, BasedLayer, CacheLayout, CacheStep, Capabilities, Causal, Choice, Decay,
    DecayModel, Decode, DeviceKind, Driver, Estimate, Extent, HeadDim, Heads, Lengths, Lightning, Pages, Pass, Rates,
    Schedule, SequenceId, Split, Tokens, Tunable, Work,
};
pub use wgpu;
