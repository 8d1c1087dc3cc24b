//! Why a plan was refused.

use std::fmt::Display;

use wattn_shaders::{Kernel, Storage};

/// Why a problem cannot be planned. Every message names the argument, what was given and what is allowed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum PlanError {
    /// An argument that no device could serve.
    #[error("{argument}: {given} given, allowed is {allowed}")]
    Invalid {
        /// The argument.
        argument: &'static str,
        /// What was given.
        given: String,
        /// What is allowed.
        allowed: String,
    },
    /// A limit of this device.
    #[error("{argument}: {needed} {unit} needed, this device allows {available}{advice}")]
    Limit {
        /// What meets the limit.
        argument: &'static str,
        /// How much is needed.
        needed: u64,
        /// How much the device has.
        available: u64,
        /// What is counted.
        unit: &'static str,
        /// What would help, or nothing.
        advice: &'static str,
    },
    /// The pinned kernel cannot serve this problem on this device.
    #[error("kernel {kernel} cannot serve: {reason}")]
    Kernel {
        /// The pinned kernel.
        kernel: Kernel,
        /// Why not.
        reason: String,
    },
    /// No kernel can serve this problem on this device.
    #[error("no kernel can serve: {reasons}")]
    NoKernel {
        /// Each kernel with its reason.
        reasons: String,
    },
}

impl PlanError {
    pub(crate) fn invalid(argument: &'static str, given: impl Display, allowed: impl Into<String>) -> Self {
        Self::Invalid { argument, given: given.to_string(), allowed: allowed.into() }
    }
}

/// 8-bit numbers need scales, which only the pages of a cache have room for.
pub(crate) fn refuse_int8(storages: [Storage; 2]) -> Result<(), PlanError> {
    match storages.contains(&Storage::Int8) {
        true => Err(PlanError::invalid("storage", Storage::Int8, "f32, f16 or bf16 outside of a cache")),
        false => Ok(()),
    }
}
