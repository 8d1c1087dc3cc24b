//! Linear attention with decay: the operator and its extent.

use std::fmt;

use wattn_shaders::{Access, Kernel, MAX_LINEAR_DIM, Storage};

use crate::attention::HeadDim;
use crate::decay::Decay;
use crate::error::PlanError;

/// What a call of a linear operator does.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Pass {
    /// All tokens at once.
    Forward,
    /// The gradients of all tokens.
    Backward,
    /// One token a batch entry, from one state to the next.
    Step {
        /// Whether the new state replaces the old one.
        in_place: bool,
    },
}

impl Pass {
    /// Refuses what one token leaves no choice of.
    pub(crate) fn check(self, schedule: Option<Schedule>, initial_state: bool) -> Result<(), PlanError> {
        let Self::Step { in_place } = self else { return Ok(()) };
        if let Some(schedule) = schedule {
            return Err(PlanError::invalid("schedule", schedule, "none for a step, which takes one token"));
        }
        if in_place && initial_state {
            let allowed = "a state that the step replaces, or a step out of place";
            return Err(PlanError::invalid(
                "initial_state",
                "a state to start from beside the one that is replaced",
                allowed,
            ));
        }
        Ok(())
    }
}

/// How the tokens of a sequence are shared out.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Schedule {
    /// One workgroup a head and part of the value dim walks a whole sequence, the state on chip. (Where the driver ends long loops:
    /// stretch after stretch, a dispatch each.)
    Sequential,
    /// Sequences are cut into segments that are walked side by side: once for their states, which a scan joins, once for the outputs.
    Segments,
}

impl fmt::Display for Schedule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Sequential => "sequential",
            Self::Segments => "segments",
        })
    }
}

/// Causal linear attention with decay: `S_t = exp(g_t) S_{t-1} + k_t v_t^T`, `out_t = scale q_t S_t`.
///
/// With one slope a head (`g = -slope`) this is Lightning attention (arXiv 2405.17381); with a log decay a token it is the scalar
/// gate of `RetNet`, Mamba-2's SSD and simple GLA. There is no softmax and no denominator; models normalise what comes out.
///
/// ```
/// use wattn_scheduler::{Decay, HeadDim, Lightning};
/// # fn main() -> Result<(), wattn_scheduler::PlanError> {
/// let lightning = Lightning::new(8, HeadDim::new(64)?).decay(Decay::transnormer(3, 12)).final_state();
/// # let _ = lightning; Ok(()) }
/// ```
#[derive(Debug, Clone, PartialEq)]
pub struct Lightning {
    pub(crate) heads: u32,
    pub(crate) dims: HeadDim,
    pub(crate) decay: Decay,
    pub(crate) scale: f32,
    pub(crate) pass: Pass,
    pub(crate) initial_state: bool,
    pub(crate) final_state: bool,
    pub(crate) decay_gradient: bool,
    pub(crate) q: Storage,
    pub(crate) kv: Storage,
    pub(crate) access: Access,
    pub(crate) kernel: Option<Kernel>,
    pub(crate) schedule: Option<Schedule>,
}

impl Lightning {
    /// The forward pass in f32 that never forgets ([`Decay::None`]), scale 1. Key and value dims are at most 256.
    #[must_use]
    pub fn new(heads: u32, dims: HeadDim) -> Self {
        let whole = dims.qk().is_multiple_of(4) && dims.value().is_multiple_of(4);
        Self {
            heads,
            dims,
            decay: Decay::None,
            scale: 1.0,
            pass: Pass::Forward,
            initial_state: false,
            final_state: false,
            decay_gradient: false,
            q: Storage::F32,
            kv: Storage::F32,
            access: if whole { Access::Vec4 } else { Access::Any },
            kernel: None,
            schedule: None,
        }
    }

    /// How fast it forgets.
    #[must_use]
    pub fn decay(mut self, decay: Decay) -> Self {
        self.decay = decay;
        self
    }

    /// What outputs are multiplied by; 1 unless set. (FLA and `RetNet` take `1 / sqrt(head_dim)`.)
    #[must_use]
    pub fn scale(mut self, scale: f32) -> Self {
        self.scale = scale;
        self
    }

    /// Starts from given states [sequences, heads, key dim, value dim], f32; without it, from zero. A state decays once before each
    /// token is added. Backward: their gradient comes out too.
    #[must_use]
    pub fn initial_state(mut self) -> Self {
        self.initial_state = true;
        self
    }

    /// Writes the states after the last token. Backward: their gradient comes in.
    #[must_use]
    pub fn final_state(mut self) -> Self {
        self.final_state = true;
        self
    }

    /// The backward pass: gradients of q, k and v (and of the initial state) from that of the output (and of the final state).
    #[must_use]
    pub fn backward(mut self) -> Self {
        self.pass = Pass::Backward;
        self
    }

    /// Backward: the gradient of the decay too, in f32: of each head's slope, or of each token's log decay. The call takes half as long
    /// again or more (on CPU drivers several times as long), and workspace of up to 128 states a head and sequence: from 4,096 tokens
    /// on up to 256, and so on by the logarithm of the length.
    #[must_use]
    pub fn decay_gradient(mut self) -> Self {
        self.decay_gradient = true;
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

    /// The storage of q, k, v and the output. States, gates and their gradients are f32.
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

    /// The heads.
    #[must_use]
    pub fn heads(&self) -> u32 {
        self.heads
    }

    /// The dims of keys and values.
    #[must_use]
    pub fn dims(&self) -> HeadDim {
        self.dims
    }

    /// What a call does.
    #[must_use]
    pub fn pass(&self) -> Pass {
        self.pass
    }

    /// Whether each token brings its own decay.
    #[must_use]
    pub fn is_gated(&self) -> bool {
        self.decay == Decay::Gates
    }

    /// The slopes, one a head; none where tokens bring their own decay.
    #[must_use]
    pub fn slopes(&self) -> Vec<f32> {
        self.decay.for_heads(self.heads)
    }

    /// What outputs are multiplied by.
    #[must_use]
    pub fn effective_scale(&self) -> f32 {
        self.scale
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

    /// Whether the gradient of the decay is calculated.
    #[must_use]
    pub fn has_decay_gradient(&self) -> bool {
        self.decay_gradient
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

    pub(crate) fn check(&self) -> Result<(), PlanError> {
        if self.heads == 0 {
            return Err(PlanError::invalid("heads", 0, "at least 1"));
        }
        for (argument, dim) in [("head_dim", self.dims.qk()), ("value_head_dim", self.dims.value())] {
            if dim > MAX_LINEAR_DIM {
                return Err(PlanError::invalid(argument, dim, format!("1 to {MAX_LINEAR_DIM}")));
            }
            if (self.q.bytes() == 2 || self.kv.bytes() == 2) && !dim.is_multiple_of(2) {
                return Err(PlanError::invalid(argument, dim, "even dims in 16-bit storage (pad with a zero)"));
            }
        }
        if !self.scale.is_finite() {
            return Err(PlanError::invalid("scale", self.scale, "a finite number"));
        }
        self.pass.check(self.schedule, self.initial_state)?;
        if self.decay_gradient && self.pass != Pass::Backward {
            let pass = if self.pass == Pass::Forward { "the forward pass" } else { "a step" };
            return Err(PlanError::invalid("decay_gradient", pass, "the backward pass"));
        }
        if self.decay_gradient && self.decay == Decay::None {
            return Err(PlanError::invalid("decay_gradient", "no decay", "slopes or gates"));
        }
        if let Decay::Layer { layer, layers, .. } = self.decay {
            if layer >= layers {
                return Err(PlanError::invalid("decay", format!("layer {layer} of {layers}"), "a layer below layers"));
            }
        }
        if let Decay::Slopes(slopes) = &self.decay {
            if slopes.len() != self.heads as usize {
                let given = format!("{} slopes", slopes.len());
                return Err(PlanError::invalid("slopes", given, format!("{}, one a head", self.heads)));
            }
            if let Some(slope) = slopes.iter().find(|s| !(s.is_finite() && **s >= 0.0)) {
                return Err(PlanError::invalid("slopes", slope, "finite numbers of at least 0"));
            }
        }
        Ok(())
    }
}

/// How many tokens there are, for one batch of equal sequences or for packed ones.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Tokens {
    /// Batch entries, or packed sequences.
    pub batch: u32,
    /// Tokens of each batch entry, or of all packed sequences together.
    pub tokens: u32,
    /// Whether sequences of unequal lengths are packed one after the other, their bounds given at each call.
    pub packed: bool,
}

impl Tokens {
    /// A batch of equal sequences.
    #[must_use]
    pub fn new(batch: u32, tokens: u32) -> Self {
        Self { batch, tokens, packed: false }
    }

    /// `sequences` of unequal lengths, one after the other; each starts from a state of its own.
    #[must_use]
    pub fn packed(sequences: u32, total: u32) -> Self {
        Self { batch: sequences, tokens: total, packed: true }
    }
}

impl fmt::Display for Tokens {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let what = if self.packed { "packed sequences of together" } else { "x" };
        write!(f, "{} {what} {} tokens", self.batch, self.tokens)
    }
}
