//! The linear attention of BASED: the operator, and the layers of the published models.

use wattn_shaders::{Access, Kernel, MAX_FEATURE_DIM, MAX_LINEAR_DIM, Storage, feature_rows};

use crate::attention::{Attention, HeadDim, Heads};
use crate::error::PlanError;
use crate::lightning::{Pass, Schedule};

/// The linear attention of BASED (arXiv 2402.18668), whose weight is the Taylor expansion of the exponential:
/// `out_t = sum_s w_ts v_s / (sum_s w_ts + eps)`, `w = 1 + x + x^2 / 2`, `x = scale q_t . k_s`.
///
/// All that queries need of the keys before them is a state of [`state_rows`](Self::state_rows) rows. The models pair it with a
/// small sliding window of softmax attention in other layers: see [`published_layer`](Self::published_layer).
///
/// ```
/// use wattn_scheduler::{Based, HeadDim};
/// # fn main() -> Result<(), wattn_scheduler::PlanError> {
/// let based = Based::new(16, HeadDim::with_value(16, 64)?).final_state();
/// assert_eq!(based.state_rows(), 153);
/// # Ok(()) }
/// ```
#[derive(Debug, Clone, PartialEq)]
pub struct Based {
    pub(crate) heads: u32,
    pub(crate) dims: HeadDim,
    pub(crate) scale: Option<f32>,
    pub(crate) eps: f32,
    pub(crate) causal: bool,
    pub(crate) normalize: bool,
    pub(crate) pass: Pass,
    pub(crate) initial_state: bool,
    pub(crate) final_state: bool,
    pub(crate) q: Storage,
    pub(crate) kv: Storage,
    pub(crate) access: Access,
    pub(crate) kernel: Option<Kernel>,
    pub(crate) schedule: Option<Schedule>,
}

impl Based {
    /// The forward pass, causal and normalised, in f32. `dims` are the feature dim, of queries and keys, from 1 to 32, and the value
    /// dim, at most 256.
    #[must_use]
    pub fn new(heads: u32, dims: HeadDim) -> Self {
        let whole = dims.qk().is_multiple_of(4) && dims.value().is_multiple_of(4);
        Self {
            heads,
            dims,
            scale: None,
            eps: 1e-6,
            causal: true,
            normalize: true,
            pass: Pass::Forward,
            initial_state: false,
            final_state: false,
            q: Storage::F32,
            kv: Storage::F32,
            access: if whole { Access::Vec4 } else { Access::Any },
            kernel: None,
            schedule: None,
        }
    }

    /// The factor of `q . k`; `1 / sqrt(feature dim)` unless set. (The layer of FLA takes 1.)
    #[must_use]
    pub fn scale(mut self, scale: f32) -> Self {
        self.scale = Some(scale);
        self
    }

    /// What is added to the denominator; 1e-6 unless set. No weight is below 1/2, so that it is next to nothing.
    #[must_use]
    pub fn eps(mut self, eps: f32) -> Self {
        self.eps = eps;
        self
    }

    /// Whether a query sees no later key; it does not unless set to `false`.
    #[must_use]
    pub fn causal(mut self, causal: bool) -> Self {
        self.causal = causal;
        self
    }

    /// Whether there is a denominator; there is unless set to `false`.
    #[must_use]
    pub fn normalize(mut self, normalize: bool) -> Self {
        self.normalize = normalize;
        self
    }

    /// Starts from given states, which every query sees; without it, from none. Backward: their gradient comes out too.
    ///
    /// States are [sequences, heads, [`state_rows`](Self::state_rows), value dim + 1] in f32: sums over the keys of `f v` and, in the
    /// last column, of `f`, for the features `f` = 1, then each `k_i`, then each `k_i k_j` with `i <= j` in the order 00 01 .. 11 12
    /// .., without scale and each once. The last number of the first row is how many keys there were.
    #[must_use]
    pub fn initial_state(mut self) -> Self {
        self.initial_state = true;
        self
    }

    /// Writes the states after the last token, in the form of [`initial_state`](Self::initial_state). Backward: their gradient comes in.
    #[must_use]
    pub fn final_state(mut self) -> Self {
        self.final_state = true;
        self
    }

    /// The backward pass: gradients of q, k and v (and of the initial state) from that of the output (and of the final state). It needs
    /// no output of the forward pass. A query that sees no key has none.
    #[must_use]
    pub fn backward(mut self) -> Self {
        self.pass = Pass::Backward;
        self
    }

    /// One token a batch entry (decode), each state replaced by the next.
    #[must_use]
    pub fn step(mut self) -> Self {
        self.pass = Pass::Step { in_place: true };
        (self.initial_state, self.final_state) = (false, true);
        self
    }

    /// One token a batch entry (decode), from one state to another.
    #[must_use]
    pub fn step_out_of_place(mut self) -> Self {
        self.pass = Pass::Step { in_place: false };
        (self.initial_state, self.final_state) = (true, true);
        self
    }

    /// The storage of q, k, v and the output. States are f32.
    #[must_use]
    pub fn storage(self, storage: Storage) -> Self {
        self.mixed_storage(storage, storage)
    }

    /// The storage of q and the output, and that of k and v.
    #[must_use]
    pub fn mixed_storage(mut self, q: Storage, kv: Storage) -> Self {
        (self.q, self.kv) = (q, kv);
        self
    }

    /// Accepts views whose strides and offsets are no multiples of four elements (eight on CPU drivers), at the price of narrower
    /// loads. Dims that are no multiples of four imply it.
    #[must_use]
    pub fn any_strides(mut self) -> Self {
        self.access = Access::Any;
        self
    }

    /// Pins the kernel: it runs, or planning fails. Where the driver is kept from it for being slow, it runs all the same, and the plan
    /// says so.
    #[must_use]
    pub fn kernel(mut self, kernel: Kernel) -> Self {
        self.kernel = Some(kernel);
        self
    }

    /// Pins how tokens are shared out.
    #[must_use]
    pub fn schedule(mut self, schedule: Schedule) -> Self {
        self.schedule = Some(schedule);
        self
    }

    /// What a call does.
    #[must_use]
    pub fn pass(&self) -> Pass {
        self.pass
    }

    /// The heads.
    #[must_use]
    pub fn heads(&self) -> u32 {
        self.heads
    }

    /// The feature dim, of queries and keys, and the value dim.
    #[must_use]
    pub fn dims(&self) -> HeadDim {
        self.dims
    }

    /// Rows of a state.
    #[must_use]
    pub fn state_rows(&self) -> u32 {
        feature_rows(self.dims.qk())
    }

    /// The factor of `q . k`.
    #[must_use]
    #[expect(clippy::cast_possible_truncation, reason = "f32 on devices")]
    pub fn effective_scale(&self) -> f32 {
        self.scale.unwrap_or_else(|| f64::from(self.dims.qk()).sqrt().recip() as f32)
    }

    /// What is added to the denominator.
    #[must_use]
    pub fn effective_eps(&self) -> f32 {
        self.eps
    }

    /// Whether a query sees no later key.
    #[must_use]
    pub fn is_causal(&self) -> bool {
        self.causal
    }

    /// Whether there is a denominator.
    #[must_use]
    pub fn is_normalized(&self) -> bool {
        self.normalize
    }

    /// Whether it starts from given states.
    #[must_use]
    pub fn has_initial_state(&self) -> bool {
        self.initial_state
    }

    /// Whether the states at the end are written, or in the backward pass their gradient is read.
    #[must_use]
    pub fn has_final_state(&self) -> bool {
        self.final_state
    }

    /// The storage of q and the output.
    #[must_use]
    pub fn q_storage(&self) -> Storage {
        self.q
    }

    /// The storage of k and v.
    #[must_use]
    pub fn kv_storage(&self) -> Storage {
        self.kv
    }

    /// The other half of BASED: softmax attention over a sliding window, of heads with rotary positions already in queries and keys.
    ///
    /// `window` is the parameter of the published models, half of which are the keys to the left of a query's own. The released ones have
    /// 256, so that a query sees 129 keys with its own.
    ///
    /// # Errors
    /// No heads, or a window of no keys.
    ///
    /// ```
    /// use wattn_scheduler::{Attention, Based, HeadDim, Heads};
    /// # fn main() -> Result<(), wattn_scheduler::PlanError> {
    /// let window = Based::window(16, HeadDim::new(64)?, 256)?;
    /// assert_eq!(window, Attention::new(Heads::new(16)?, HeadDim::new(64)?).window(128, 0));
    /// # Ok(()) }
    /// ```
    pub fn window(heads: u32, head_dim: HeadDim, window: u32) -> Result<Attention, PlanError> {
        if window == 0 {
            return Err(PlanError::invalid("window", window, "at least 1"));
        }
        Ok(Attention::new(Heads::new(heads)?, head_dim).window(window / 2, 0))
    }

    /// What mixes tokens in layer `layer` of a published model of `layers` layers: of 27 (360M) or of 36 (1.3B).
    ///
    /// # Errors
    /// A number of layers that no published model has, or a layer beyond them.
    ///
    /// ```
    /// use wattn_scheduler::{Based, BasedLayer};
    /// assert_eq!(Based::published_layer(6, 27), Ok(BasedLayer::Linear));
    /// assert_eq!(Based::published_layer(34, 36), Ok(BasedLayer::Window));
    /// assert_eq!(Based::published_layer(0, 27), Ok(BasedLayer::Convolution));
    /// ```
    pub fn published_layer(layer: u32, layers: u32) -> Result<BasedLayer, PlanError> {
        let linear: &[u32] = match layers {
            27 => &[1, 6, 11, 16, 21],
            36 => &[1, 6, 11, 16, 21, 27, 33],
            _ => return Err(PlanError::invalid("layers", layers, "27 (360M) or 36 (1.3B)")),
        };
        if layer >= layers {
            return Err(PlanError::invalid("layer", layer, format!("a layer below {layers}")));
        }
        // A window follows each linear layer.
        Ok(if linear.contains(&layer) {
            BasedLayer::Linear
        } else if layer > 0 && linear.contains(&(layer - 1)) {
            BasedLayer::Window
        } else {
            BasedLayer::Convolution
        })
    }

    pub(crate) fn check(&self) -> Result<(), PlanError> {
        if self.heads == 0 {
            return Err(PlanError::invalid("heads", 0, "at least 1"));
        }
        for (argument, dim, most) in
            [("feature_dim", self.dims.qk(), MAX_FEATURE_DIM), ("value_head_dim", self.dims.value(), MAX_LINEAR_DIM)]
        {
            if dim > most {
                return Err(PlanError::invalid(argument, dim, format!("1 to {most}")));
            }
            if (self.q.bytes() == 2 || self.kv.bytes() == 2) && !dim.is_multiple_of(2) {
                return Err(PlanError::invalid(argument, dim, "even dims in 16-bit storage (pad with a zero)"));
            }
        }
        self.pass.check(self.schedule, self.initial_state)?;
        if !self.effective_scale().is_finite() {
            return Err(PlanError::invalid("scale", self.effective_scale(), "a finite number"));
        }
        if !(self.eps.is_finite() && self.eps >= 0.0) {
            return Err(PlanError::invalid("eps", self.eps, "a finite number of at least 0"));
        }
        Ok(())
    }
}

/// What mixes tokens in a layer of the published models.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum BasedLayer {
    /// Linear attention: [`Based`].
    Linear,
    /// Softmax attention over a sliding window, with rotary positions: [`Based::window`].
    Window,
    /// A short gated convolution, which is none of this library's.
    Convolution,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn published_layers() {
        let layers = |kind, layers| -> Vec<u32> {
            (0..layers).filter(|&layer| Based::published_layer(layer, layers) == Ok(kind)).collect()
        };
        assert_eq!(layers(BasedLayer::Window, 27), [2, 7, 12, 17, 22]);
        assert_eq!(layers(BasedLayer::Linear, 36), [1, 6, 11, 16, 21, 27, 33]);
        assert_eq!(layers(BasedLayer::Window, 36), [2, 7, 12, 17, 22, 28, 34]);
        assert_eq!(layers(BasedLayer::Convolution, 27).len(), 17);
        let error = |layer, layers| Based::published_layer(layer, layers).unwrap_err().to_string();
        assert_eq!(error(27, 27), "layer: 27 given, allowed is a layer below 27");
        assert_eq!(error(0, 12), "layers: 12 given, allowed is 27 (360M) or 36 (1.3B)");
    }

    #[test]
    fn mistakes_are_named() {
        let based = |features, value| Based::new(2, HeadDim::with_value(features, value).unwrap());
        let error = |based: Based| based.check().unwrap_err().to_string();
        assert_eq!(error(based(33, 64)), "feature_dim: 33 given, allowed is 1 to 32");
        assert_eq!(error(based(16, 257)), "value_head_dim: 257 given, allowed is 1 to 256");
        assert_eq!(error(based(16, 64).eps(-1.0)), "eps: -1 given, allowed is a finite number of at least 0");
        assert_eq!(error(based(16, 64).scale(f32::NAN)), "scale: NaN given, allowed is a finite number");
        assert!(error(based(13, 64).storage(Storage::F16)).contains("even dims"));
        assert_eq!(based(16, 64).effective_scale(), 0.25);
        assert_eq!(based(16, 64).check(), Ok(()));
    }
}
