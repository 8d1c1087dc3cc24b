//! The harness: runs a case on a device and judges the result. Tests, `xtask verify`, `replay` and `bench` share it.

mod adapters;
mod backward;
mod based;
mod buffers;
mod decode;
mod linear;
mod on_host;
mod problem;
mod reference;
mod run;
mod variant;

pub use adapters::{adapters, device_label, engine, experimental};
pub use backward::{BackwardRun, attention_backward};
pub use based::{based, based_backward, based_tokens, judge_based, run_based, unpack_states};
pub use decode::{DECODE_KERNELS, decode_kernels, judge_decode, lengths_buffer, plan_decode, run_decode, workspace};
pub use linear::{LinearRun, judge_linear, lightning, lightning_backward, run_linear, tokens};
pub use on_host::{
    based_on_host, host_based, host_linear, host_operands, host_result, linear_on_host, softmax_on_host,
};
pub use problem::{attention, extent};
pub use reference::{Ran, based_expected, judge_expected, judge_file, linear_expected, rows};
pub use run::{Loaded, Outputs, judge, judge_all};
pub use variant::{EVERY, Variant};
