//! The kernels of the linear attention of BASED: their keys, and what each is made of.

use std::fmt;

use crate::compose::{Binding, Element, Output, StartState, elements, file, matrix_types, numbered};
use crate::key::{Access, Kernel, MatrixSquare, Storage};

/// What a kernel of BASED does with a segment of tokens.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum BasedOp {
    /// Each token is added to the state and then reads it.
    Chunk,
    /// Tokens are added, nothing is read.
    State,
    /// Tokens read a state that stays as it is.
    Read,
    /// The gradient of queries or keys: each token is added to the state and then meets it.
    Gradient,
    /// The same with a state that stays as it is.
    ReadGradient,
    /// One token: the state is read and written once.
    Step,
}

/// What a compiled pipeline of BASED depends on; its [`Display`](fmt::Display) is the pipeline's label.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct BasedKey {
    /// What it does.
    pub op: BasedOp,
    /// The kernel design.
    pub kernel: Kernel,
    /// Lanes of a subgroup, of `broadcast`; else 0.
    pub lanes: u32,
    /// The layout of `matrix`.
    pub square: Option<MatrixSquare>,
    /// Storage of q and of the output.
    pub q: Storage,
    /// Storage of k and v.
    pub kv: Storage,
    /// How rows of q and k are loaded; those of v and the output by vec4 at most.
    pub access: Access,
    /// Upper bound of the feature dim; 0 where it does not shape the kernel.
    pub class: u32,
    /// Whether the feature dim is below its class, of `matrix` below [`MATRIX_FEATURES`], so that what lies past it must be zeroed.
    pub padded: bool,
    /// Whether the sums of weights are kept: for the denominator, or for the state.
    pub weights: bool,
    /// Whether the states at the end are written, always of `State`; of `Step` whether they replace those before.
    pub state: bool,
    /// Whether it goes on from states that lie with those at the end (of `Chunk`): those of the stretch of tokens before.
    pub resumed: bool,
    /// Whether keys look at queries, for the gradients of keys, values and the state; then queries are in the role of keys.
    pub reversed: bool,
    /// Vec4 columns of the value dim a pass, of gradients; else 0.
    pub values: u32,
    /// Whether the value dim takes several passes, of gradients.
    pub passes: bool,
}

/// The classes that feature dims are rounded up to.
pub const FEATURE_CLASSES: [u32; 3] = [8, 16, 32];

/// The largest feature dim of BASED.
pub const MAX_FEATURE_DIM: u32 = 32;

/// The largest class whose state `broadcast` keeps in registers.
pub const BROADCAST_FEATURES: u32 = 16;

/// The largest class whose state `matrix` keeps in registers. Rows of queries and keys have as many units there, whatever the class.
pub const MATRIX_FEATURES: u32 = 16;

/// Vec4 columns of the value dim that a pass of the gradients may take.
const GRADIENT_VALUES: [u32; 3] = [4, 8, 16];

/// Rows of the packed state of a feature dim: `1, k_i, k_i k_j` for `i <= j`.
#[must_use]
pub fn feature_rows(feature_dim: u32) -> u32 {
    (feature_dim + 1) * (feature_dim + 2) / 2
}

/// Vec4 columns of the value dim a pass of the gradients, as many as their registers hold.
#[must_use]
pub fn gradient_values(class: u32, value_dim: u32) -> u32 {
    let most = if class == 32 { 8 } else { 16 };
    let fits = |&values: &u32| 4 * values >= value_dim || values == most;
    GRADIENT_VALUES.into_iter().find(fits).unwrap_or(most)
}

impl BasedKey {
    /// Whether it calculates gradients of queries or keys.
    #[must_use]
    pub fn is_gradient(&self) -> bool {
        matches!(self.op, BasedOp::Gradient | BasedOp::ReadGradient)
    }

    pub(crate) fn reads_queries(&self) -> bool {
        self.op != BasedOp::State
    }

    pub(crate) fn adds_keys(&self) -> bool {
        !matches!(self.op, BasedOp::Read | BasedOp::ReadGradient)
    }

    pub(crate) fn reads_state(&self) -> bool {
        self.start() == StartState::Given
    }

    pub(crate) fn writes_state(&self) -> bool {
        self.state || matches!(self.op, BasedOp::State | BasedOp::Step)
    }

    /// Whether it leaves records, the gradient of queries, or passes sums on in them.
    pub(crate) fn writes_records(&self) -> bool {
        self.is_gradient() && (!self.reversed || self.passes)
    }

    fn has_records(&self) -> bool {
        self.writes_records() || self.reversed && self.adds_keys()
    }

    /// Whether the records are bound as written: where they are, and where the states that are lie beside them in the workspace.
    fn binds_records_written(&self) -> bool {
        self.writes_records() || self.has_records() && self.op == BasedOp::State
    }

    /// Whether the states to start from are bound as written: in the workspace they lie beside records that are.
    #[must_use]
    pub fn binds_state0_written(&self) -> bool {
        self.writes_records()
    }

    /// The bindings, at most eight.
    pub(crate) fn bindings(&self) -> Vec<Binding> {
        let all = [
            (self.reads_queries(), "q", false),
            (self.adds_keys(), "k", false),
            (self.adds_keys(), "v", false),
            (self.reads_queries(), "out", true),
            (self.reads_state(), "state0", self.binds_state0_written()),
            (
                self.writes_state() || self.is_gradient(),
                if self.is_gradient() { "g" } else { "state" },
                !self.is_gradient(),
            ),
            (self.has_records(), "records", self.binds_records_written()),
            (true, "aux", false),
        ];
        numbered(all)
    }

    pub(crate) fn parts(&self) -> Vec<String> {
        let lanes = self.kernel == Kernel::Broadcast;
        let gradient = self.is_gradient();
        let v_access = if self.access == Access::Vec8 { Access::Vec4 } else { self.access };
        let key = |name, slot, storage| Element {
            name,
            slot,
            dim: "head_dim",
            storage,
            access: self.access,
            pairs: lanes && !gradient,
        };
        let mut tensors = Vec::new();
        if self.reads_queries() {
            tensors.push(key("q", 0, self.q));
        }
        if self.adds_keys() {
            tensors.push(key("k", 1, self.kv));
            let v = Element { name: "v", slot: 2, dim: "value_dim", storage: self.kv, access: v_access, pairs: false };
            tensors.push(v);
        }
        if gradient {
            tensors.push(Element {
                name: "g",
                slot: 5,
                dim: "value_dim",
                storage: self.q,
                access: v_access,
                pairs: false,
            });
        }
        let dim = if gradient { "head" } else { "value" };
        let out = self.reads_queries().then_some(Output { dim, ..Output::of_values(self.q, v_access) });
        let mut files = vec!["view", "linear_params", "features"];
        files.extend(self.state_files());
        if self.reads_queries() {
            files.push("based_finish");
        }
        if self.op != BasedOp::Step {
            files.push(if self.reversed { "direction_reverse" } else { "direction_forward" });
        }
        if self.has_records() {
            files.extend([if self.binds_records_written() { "records_written" } else { "records" }, "record_at"]);
        }
        if self.adds_keys() && self.op != BasedOp::Step {
            files.push(if self.reversed { "values_scaled" } else { "values_plain" });
        }
        if self.op != BasedOp::Step && (!gradient || self.square.is_some()) {
            files.push(if self.padded { "head_padded" } else { "head_whole" });
        }
        files.extend(match (self.op, self.kernel) {
            (BasedOp::Step, _) => vec!["feature_pair", "based_step"],
            (BasedOp::Gradient | BasedOp::ReadGradient, Kernel::Matrix) => {
                vec!["value_padded", "split_halves", "invocation_subgroup", "rows_subgroup", "based_gradient_matrix"]
            }
            (BasedOp::Gradient | BasedOp::ReadGradient, _) => vec!["feature_pair", "based_gradient"],
            (_, Kernel::Broadcast) => vec!["based_chunk_lanes"],
            (_, Kernel::Matrix) => {
                vec![
                    "feature_pair",
                    "value_padded",
                    "split_halves",
                    "invocation_subgroup",
                    "rows_subgroup",
                    "based_chunk_matrix",
                ]
            }
            (_, Kernel::TileSubgroup) => vec!["invocation_subgroup", "based_chunk_tile"],
            (_, _) => vec!["invocation", "based_chunk_tile"],
        });
        let plain = files.into_iter().map(|name| file(name).to_owned());
        let plain = plain.chain(self.square.map(|square| matrix_types(square.side)));
        plain.chain(self.state_loads()).chain(elements(&tensors, out.as_slice())).collect()
    }

    /// How states are bound and stored.
    fn state_files(&self) -> Vec<&'static str> {
        let given = self.reads_state().then_some(if self.binds_state0_written() { "state0_written" } else { "state0" });
        let stored = match self.op {
            BasedOp::Step => vec!["state", "state_number_store"],
            _ if self.writes_state() && self.square.is_some() => vec!["state", "state_rows_store", "features_store"],
            _ if self.writes_state() => vec!["state", "state_store", "features_store"],
            _ => Vec::new(),
        };
        given.into_iter().chain(stored).collect()
    }

    /// How the states to start from are loaded.
    fn state_loads(&self) -> Vec<String> {
        let features = self.weights || self.is_gradient();
        let files: &[_] = match (self.op, features) {
            (BasedOp::Step, _) => &["state_number"],
            _ if self.square.is_some() && self.is_gradient() => &["state_number"],
            (_, true) if self.square.is_some() => &["state_rows_load", "features_load"],
            (_, false) if self.square.is_some() => &["state_rows_load"],
            (_, true) => &["state_load", "features_load"],
            (_, false) => &["state_load"],
        };
        files.iter().map(|name| self.start().fill(name)).collect()
    }

    fn start(&self) -> StartState {
        match (self.resumed, self.op == BasedOp::Step && self.state) {
            (true, _) => StartState::Resumed,
            (false, true) => StartState::InPlace,
            (false, false) => StartState::Given,
        }
    }
}

impl fmt::Display for BasedKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self.op {
            BasedOp::Chunk => "based_chunk",
            BasedOp::State => "based_state",
            BasedOp::Read => "based_read",
            BasedOp::Gradient => "based_gradient",
            BasedOp::ReadGradient => "based_read_gradient",
            BasedOp::Step => "based_step",
        })?;
        write!(f, "/{}", self.kernel)?;
        if self.lanes > 0 {
            write!(f, "/{}", self.lanes)?;
        }
        if let Some(square) = self.square {
            write!(f, "/{square}")?;
        }
        write!(f, "/{}", self.q)?;
        if self.kv != self.q {
            write!(f, "-{}", self.kv)?;
        }
        if self.class > 0 {
            write!(f, "/d{}{}", self.class, if self.padded { "-padded" } else { "" })?;
        }
        if self.values > 0 {
            write!(f, "/v{}", 4 * self.values)?;
        }
        f.write_str(self.access.suffix())?;
        for (on, name) in [
            (self.weights, "weights"),
            (self.state, "state"),
            (self.resumed, "resumed"),
            (self.reversed, "reversed"),
            (self.passes, "passes"),
        ] {
            if on {
                write!(f, "+{name}")?;
            }
        }
        Ok(())
    }
}
