//! Naive f64 reference of every wattn operator.
//!
//! Each function evaluates its formula as it is written, one output row at a time, in f64, with its index arithmetic
//! spelled out in place. Nothing here is tiled, fused or shared with the code that it judges, and the crate has no
//! dependencies.
//!
//! | operator | reference |
//! |---|---|
//! | softmax attention, forward | [`SoftmaxProblem::flash_forward`] |

mod flash_forward;
mod softmax;

pub use flash_forward::{Output, Row};
pub use softmax::{Broadcast, Causal, PackedLengths, SoftmaxProblem};
