//! The scheduler of [wattn](https://docs.rs/wattn): attention problems and device capabilities in, plans out.
//!
//! Pure data without any GPU. An [`Attention`] says what, an [`Extent`] how much, [`Capabilities`] on what; [`Plan::new`] decides
//! the kernel, its tile, the dispatches and what they cost, or refuses with both numbers. [`sequences`] and [`work_list`] turn the
//! lengths of a call into what the kernels read.

#![forbid(unsafe_code)]

mod attention;
mod backward;
mod backward_plan;
mod based;
mod based_plan;
mod based_steps;
mod cache;
mod capabilities;
mod choose;
mod cost;
mod decay;
mod decay_plan;
mod decode;
mod decode_calls;
mod decode_plan;
mod decode_work;
mod device_work;
mod error;
mod lightning;
mod linear_plan;
mod order;
mod pages;
mod plan;
mod quirks;
mod segments;
mod sweep;
mod tune;
mod work;

pub use attention::{Attention, Causal, Extent, HeadDim, Heads};
pub use backward::AttentionBackward;
pub use backward_plan::{BackwardPlan, BackwardStep};
pub use based::{Based, BasedLayer};
pub use based_plan::{BasedPlan, BasedWorkspace};
pub use based_steps::{BasedStates, BasedStep};
pub use cache::CacheLayout;
pub use capabilities::{Capabilities, DeviceKind, Driver, MIN_LOOP_TURNS};
pub use cost::{Estimate, Rates};
pub use decay::{Decay, DecayModel};
pub use decay_plan::PlannedDecay;
pub use decode::{Decode, Split};
pub use decode_plan::DecodePlan;
pub use decode_work::Work;
pub use device_work::DeviceWork;
pub use error::PlanError;
pub use lightning::{Lightning, Pass, Schedule, Tokens};
pub use linear_plan::{LinearPlan, PlannedSweep};
pub use order::Order;
pub use pages::{CacheError, CacheStep, PageCopy, Pages, SequenceId, StepSequence};
pub use plan::{Part, Plan, grid};
pub use sweep::{Sweep, Tensor};
pub use tune::{Choice, Tunable};
pub use wattn_shaders as shaders;
pub use work::{
    Lengths, check_bounds, key_range, key_work_list, query_range, sequences, tile_keys, tile_queries, visited_scores,
    work_list,
};
