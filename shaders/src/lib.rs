//! The WGSL kernels of [wattn](https://docs.rs/wattn), and how they are composed.
//!
//! Kernels are plain WGSL files beside this crate's manifest, one idea each. [`compose`] turns a typed [`Key`] into the source of
//! one pipeline: a header of constants, then the files that the [`table`] lists for it, with counted loops unrolled as text. An
//! option that a key does not use leaves no token in the source. The package's build script validates the composed kernels with
//! naga and fails with naga's message.

#![forbid(unsafe_code)]

mod append;
mod based;
mod based_sizes;
mod compose;
mod flash_backward;
mod flash_backward_sizes;
mod flash_forward;
mod key;
mod linear;
mod params;
mod score;
mod split;
pub mod table;
mod unroll;

pub use append::AppendKey;
pub use based::{
    BROADCAST_FEATURES, BasedKey, BasedOp, FEATURE_CLASSES, MATRIX_FEATURES, MAX_FEATURE_DIM, feature_rows,
    gradient_values,
};
pub use compose::{Binding, bindings, compose, on_matrices};
pub use flash_backward::{BackwardOp, DBIAS_TILE, FlashBackwardKey};
pub use key::{
    Access, FlashKey, Kernel, Key, LaneShape, MatrixShape, MatrixSquare, ScoreOptions, Shape, Storage, TileShape,
};
pub use linear::{BROADCAST_CLASS, DECAY_CHUNK, HEAD_CLASSES, LinearKey, LinearOp, MAX_LINEAR_DIM};
pub use params::{LengthsParams, LinearParams, Params, ScoreView, Segment, Sequence, StateView, View, Walk};
pub use split::{LengthsKey, MergeKey, SPLIT_ROWS, SplitKey, SplitMatrices};

/// Changes with anything that kernels are made from: what was measured of other kernels says nothing of these.
pub const FINGERPRINT: &str = env!("WATTN_SHADERS_FINGERPRINT");
