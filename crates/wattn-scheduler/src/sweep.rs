//! Linear attention as sweeps over tokens. The backward pass is three more of the same: each gradient is the recurrence again, with
//! other tensors in the roles of queries, keys and values, and for two of them from the last token to the first.

use crate::lightning::{Lightning, Pass};

/// A tensor of a call.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[expect(missing_docs, reason = "the names say it")]
pub enum Tensor {
    Q,
    K,
    V,
    Out,
    GradOut,
    Dq,
    Dk,
    Dv,
    State0,
    State,
    GradState,
    Dstate,
}

impl Tensor {
    /// The name of the argument.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Q => "q",
            Self::K => "k",
            Self::V => "v",
            Self::Out => "out",
            Self::GradOut => "grad_out",
            Self::Dq => "dq",
            Self::Dk => "dk",
            Self::Dv => "dv",
            Self::State0 => "state0",
            Self::State => "state",
            Self::GradState => "grad_state",
            Self::Dstate => "dstate",
        }
    }

    /// Whether rows are as long as values; else as long as keys.
    #[must_use]
    pub fn has_value_dim(self) -> bool {
        matches!(self, Self::V | Self::Out | Self::GradOut | Self::Dv)
    }

    /// Whether it is stored like q; else like k and v.
    #[must_use]
    pub fn is_stored_like_q(self) -> bool {
        matches!(self, Self::Q | Self::Out | Self::GradOut | Self::Dq)
    }
}

/// One application of the recurrence: which tensor plays which role.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Sweep {
    /// In the role of queries.
    pub q: Tensor,
    /// In the role of keys.
    pub k: Tensor,
    /// In the role of values.
    pub v: Tensor,
    /// What comes out.
    pub out: Tensor,
    /// The state it starts from.
    pub state0: Option<Tensor>,
    /// The state it ends in.
    pub state: Option<Tensor>,
    /// Whether states are [value dim, key dim] in this sweep's terms, since keys and values have changed roles.
    pub transposed: bool,
    /// Whether tokens go from the last to the first; a token's decay then comes after it.
    pub reversed: bool,
}

impl Lightning {
    /// The sweeps of a call, in order.
    #[must_use]
    pub fn sweeps(&self) -> Vec<Sweep> {
        let given = |on: bool, tensor| on.then_some(tensor);
        let forward = Sweep {
            q: Tensor::Q,
            k: Tensor::K,
            v: Tensor::V,
            out: Tensor::Out,
            state0: given(self.initial_state, Tensor::State0),
            state: given(self.final_state, Tensor::State),
            transposed: false,
            reversed: false,
        };
        match self.pass {
            Pass::Forward | Pass::Step { .. } => vec![forward],
            Pass::Backward => vec![
                // dq_t = scale sum_s decay (dout_t . v_s) k_s
                Sweep {
                    q: Tensor::GradOut,
                    k: Tensor::V,
                    v: Tensor::K,
                    out: Tensor::Dq,
                    state: None,
                    transposed: true,
                    ..forward
                },
                // dk_s = scale sum_t decay (v_s . dout_t) q_t
                Sweep {
                    q: Tensor::V,
                    k: Tensor::GradOut,
                    v: Tensor::Q,
                    out: Tensor::Dk,
                    state0: given(self.final_state, Tensor::GradState),
                    state: None,
                    transposed: true,
                    reversed: true,
                },
                // dv_s = scale sum_t decay (k_s . q_t) dout_t
                Sweep {
                    q: Tensor::K,
                    k: Tensor::Q,
                    v: Tensor::GradOut,
                    out: Tensor::Dv,
                    state0: given(self.final_state, Tensor::GradState),
                    state: given(self.initial_state, Tensor::Dstate),
                    transposed: false,
                    reversed: true,
                },
            ],
        }
    }
}
