//! The backward pass of softmax attention, as it is asked for.

use crate::attention::Attention;

/// The gradients of softmax attention: of q, k and v, and on request of what else goes into its scores. Made by
/// [`Attention::backward`].
///
/// Scores are calculated again from q, k and the log-sum-exp of the forward pass (FlashAttention-2, arXiv 2307.08691).
///
/// ```
/// use wattn_scheduler::{Attention, HeadDim, Heads};
/// # fn main() -> Result<(), wattn_scheduler::PlanError> {
/// let attention = Attention::new(Heads::new(8)?, HeadDim::new(64)?).causal().sinks();
/// let backward = attention.backward().sinks_gradient();
/// # let _ = backward; Ok(()) }
/// ```
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct AttentionBackward {
    pub(crate) attention: Attention,
    pub(crate) bias_gradient: bool,
    pub(crate) sinks_gradient: bool,
    pub(crate) slopes_gradient: bool,
    pub(crate) lse_gradient: bool,
}

impl Attention {
    /// The backward pass of this attention. Its kernel, storage and strides are those of the forward pass.
    #[must_use]
    pub fn backward(mut self) -> AttentionBackward {
        // What the forward pass writes, the backward pass reads, whatever was asked for.
        self.options.lse = false;
        AttentionBackward {
            attention: self,
            bias_gradient: false,
            sinks_gradient: false,
            slopes_gradient: false,
            lse_gradient: false,
        }
    }
}

impl AttentionBackward {
    /// Gives the gradient of the bias too.
    #[must_use]
    pub fn bias_gradient(mut self) -> Self {
        self.bias_gradient = true;
        self
    }

    /// Gives the gradients of the sinks too, one a query head.
    #[must_use]
    pub fn sinks_gradient(mut self) -> Self {
        self.sinks_gradient = true;
        self
    }

    /// Gives the gradients of the ALiBi slopes too, one a query head.
    #[must_use]
    pub fn slopes_gradient(mut self) -> Self {
        self.slopes_gradient = true;
        self
    }

    /// Takes a gradient of the log-sum-exp beside that of the output.
    #[must_use]
    pub fn lse_gradient(mut self) -> Self {
        self.lse_gradient = true;
        self
    }

    /// The attention whose gradients these are.
    #[must_use]
    pub fn attention(&self) -> &Attention {
        &self.attention
    }

    /// Whether the gradient of the bias is asked for.
    #[must_use]
    pub fn has_bias_gradient(&self) -> bool {
        self.bias_gradient
    }

    /// Whether the gradients of the sinks are asked for.
    #[must_use]
    pub fn has_sinks_gradient(&self) -> bool {
        self.sinks_gradient
    }

    /// Whether the gradients of the ALiBi slopes are asked for.
    #[must_use]
    pub fn has_slopes_gradient(&self) -> bool {
        self.slopes_gradient
    }

    /// Whether a gradient of the log-sum-exp comes in.
    #[must_use]
    pub fn has_lse_gradient(&self) -> bool {
        self.lse_gradient
    }
}
