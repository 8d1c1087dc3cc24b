//! Naive f64 reference of every wattn operator.
//!
//! Each function evaluates its formula as it is written, one output row at a time, in f64, with its index arithmetic
//! spelled out in place. Nothing here is tiled, fused or shared with the code that it judges, and the crate has no
//! dependencies.
//!
//! | operator | reference |
//! |---|---|
//! | softmax attention, forward | [`SoftmaxProblem::flash_forward`] |
//! | softmax attention, backward | [`SoftmaxProblem::flash_backward`] |
//! | decayed linear attention, forward | [`LinearProblem::recurrent`], [`LinearProblem::parallel`] |
//! | decayed linear attention, backward | [`LinearProblem::backward`] |
//! | BASED linear attention, forward | [`BasedProblem::recurrent`], [`BasedProblem::parallel`] |
//! | BASED linear attention, backward | [`BasedProblem::backward`] |

#![forbid(unsafe_code)]

mod based;
mod flash_backward;
mod flash_forward;
mod linear;
mod rows;
mod softmax;

pub use based::{BasedGradients, BasedMoments, BasedOutput, BasedProblem, BasedState};
pub use flash_backward::SoftmaxGradients;
pub use flash_forward::{Output, Row};
pub use linear::{LinearDecay, LinearGradients, LinearOutput, LinearProblem};
pub use softmax::{Broadcast, Causal, PackedLengths, SoftmaxProblem};
