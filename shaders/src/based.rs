//! The kernels of the linear attention of BASED: their keys, and what each is made of.

use std::fmt;

use crate::compose::{Binding, Element, Output, StartState, elements, file, matrix_types};
use crate::key::{Access, Kernel, MatrixSquare, Storage};
use crate::linear::MAX_LINEAR_DIM;

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

/// Tokens a chunk of the tile kernels.
const CHUNK: u32 = 32;
const THREADS: u32 = 64;

/// Invocations a workgroup of a step.
const STEP_THREADS: u32 = 256;

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

    /// Vec4 columns of the value dim that one workgroup owns.
    #[must_use]
    pub fn columns(&self) -> u32 {
        if self.is_gradient() {
            return self.values;
        }
        match (self.kernel, self.class) {
            (Kernel::Broadcast, _) => self.lanes,
            (Kernel::Matrix, _) => self.edge() / 4,
            // As many as leave a block of the state to each invocation, within 16 KiB.
            (_, 8) => 8,
            (_, 16) => 4,
            _ => 1,
        }
    }

    /// Tokens, columns and rows of the state in the squares of `matrix`.
    fn edge(&self) -> u32 {
        self.square.map_or(CHUNK, |square| square.edge)
    }

    /// Squares that the state of `matrix` takes.
    fn slabs(&self) -> u32 {
        let rows = if self.is_gradient() { 4 * self.fours() } else { feature_rows(self.class) };
        rows.div_ceil(self.edge())
    }

    /// Fours of rows in the state of gradients on matrices: of 1, of the features, of each feature times those from its own four on.
    fn fours(&self) -> u32 {
        let (fours, pairs) = self.blocks();
        1 + fours + 4 * pairs
    }

    /// Tokens of a chunk.
    #[must_use]
    pub fn chunk(&self) -> u32 {
        match self.op {
            // As many as 16 KiB hold.
            BasedOp::Gradient | BasedOp::ReadGradient if self.square.is_none() => {
                if self.class == 32 {
                    3
                } else {
                    8
                }
            }
            _ if self.kernel == Kernel::Broadcast => 1,
            _ => self.edge(),
        }
    }

    /// Turns of its loops that a chunk takes at most.
    #[must_use]
    pub fn turns(&self) -> u32 {
        let (fours, _) = self.blocks();
        if let (true, Some(square)) = (self.is_gradient(), self.square) {
            // Units of rows, fours of the state, and matrices; each loop has a last turn, which ends it.
            let units = (MATRIX_FEATURES / 4).div_ceil(self.invocations() / square.edge);
            let products = 3 + 2 * self.slabs();
            return 1 + 2 * (units + 1) + self.slabs() * (square.edge / 4 + 1) + products * (square.own.1 + 1);
        }
        if self.is_gradient() {
            // Rows and values that are staged, tokens that are walked, sums over units, outputs.
            let (chunk, units, threads) = (self.chunk(), self.class + 1, self.invocations());
            let each = |items: u32| items.div_ceil(threads);
            let staged = each(chunk * fours) + each(chunk * self.values);
            return 8 + staged + chunk + (units + 2) * (each(chunk * units) + each(chunk * fours));
        }
        if self.kernel == Kernel::Broadcast {
            return 1;
        }
        if let Some(square) = self.square {
            // Units of rows with the turn that ends their loops, one wherever a subgroup looks whether it has a matrix, and one of each chunk
            // for what stands before the walk.
            let units = (MATRIX_FEATURES / 4).div_ceil(square.threads / square.edge);
            return 2 + 2 * (units + 1) + (self.slabs() + 1) * square.own.1;
        }
        // Scores, the state that is read, keys that are weighed, keys that are added, and their weights.
        let (reads, adds) = (self.out_rows() / self.read_rows(), 4 / self.add_rows());
        8 + fours + reads * fours * (fours + 6) + (2 + adds) * (CHUNK + 1)
    }

    /// Invocations a workgroup.
    #[must_use]
    pub fn invocations(&self) -> u32 {
        match self.op {
            BasedOp::Step => STEP_THREADS,
            BasedOp::Gradient | BasedOp::ReadGradient if self.square.is_none() => {
                feature_rows(self.class).div_ceil(self.rows_each()).next_multiple_of(32)
            }
            _ if self.kernel == Kernel::Broadcast => self.lanes,
            _ => self.square.map_or(THREADS, |square| square.threads * self.teams()),
        }
    }

    /// Rows of the state that an invocation of a gradient owns.
    fn rows_each(&self) -> u32 {
        if self.class == 32 { 3 } else { 1 }
    }

    /// Fours of features, and pairs of them.
    fn blocks(&self) -> (u32, u32) {
        let fours = self.class / 4;
        (fours, fours * (fours + 1) / 2)
    }

    /// Floats between the weights of neighbouring keys. One more than needed, so that neighbours fall into different banks, where
    /// there is room.
    fn weight_stride(&self) -> u32 {
        if self.class == 32 { CHUNK } else { CHUNK + 1 }
    }

    /// Rows of the output that an invocation of a tile kernel owns.
    fn out_rows(&self) -> u32 {
        (CHUNK * self.columns() / THREADS).max(1)
    }

    /// Of these, how many read the state at a time, as registers hold.
    fn read_rows(&self) -> u32 {
        self.out_rows().min(2)
    }

    /// Lines of a block, four numbers a value each, that a tile kernel adds to the state at a time: all where registers hold them.
    fn add_rows(&self) -> u32 {
        let few = self.op == BasedOp::State && self.class < 32;
        let light = !self.weights || few || (self.class == 16 && !self.state && !self.reversed);
        if light { 4 } else { 2 }
    }

    /// Bytes of workgroup memory that the kernel declares.
    #[must_use]
    pub fn workgroup_bytes(&self) -> u32 {
        match self.op {
            BasedOp::Step => return Self::step_bytes(),
            BasedOp::Gradient | BasedOp::ReadGradient => {
                return self.square.map_or_else(|| self.gradient_bytes(), |square| self.matrix_gradient_bytes(square));
            }
            _ if self.kernel == Kernel::Broadcast => return 0,
            _ => {}
        }
        if let Some(square) = self.square {
            return self.matrix_bytes(square);
        }
        let (fours, pairs) = self.blocks();
        let scores = if self.op == BasedOp::Chunk { 4 * CHUNK * self.weight_stride() } else { 0 };
        let counts = if self.weights { 16 * (4 * pairs + fours) } else { 0 };
        scores + 16 * (16 * pairs + 4 * fours + 1) * self.columns() + counts
    }

    fn matrix_bytes(&self, square: MatrixSquare) -> u32 {
        let (factors, sums) = square.bytes();
        // Queries have 1 among their units, keys 1 and 0.
        let query_units = 16 * square.edge * (MATRIX_FEATURES / 8 + 1);
        let key_units = 16 * (MATRIX_FEATURES + 2) * (square.edge / 8 + 1);
        let rows = self.slabs() * square.edge;
        let part = |on: bool, bytes: u32| if on { bytes } else { 0 };
        // Of queries: units, features, the state in two halves, its largest; of keys: units, features in two halves, values, the largest.
        let out = part(self.reads_queries(), query_units + 3 * factors + 16);
        let keys = part(self.adds_keys(), key_units + 3 * factors + 16);
        let scores = part(self.op == BasedOp::Chunk, sums);
        out + keys + scores + sums + 12 * rows + part(self.weights, 4 * rows) + part(self.scaled(), 8 * square.edge)
    }

    fn matrix_gradient_bytes(&self, square: MatrixSquare) -> u32 {
        let (factors, sums) = square.bytes();
        // Queries have 1 among their units, keys a four with 1.
        let query_units = 16 * square.edge * (MATRIX_FEATURES / 8 + 1);
        let key_units = 16 * (MATRIX_FEATURES + 4) * (square.edge / 8 + 1);
        let fours = self.slabs() * square.edge / 4;
        let part = |on: bool, bytes: u32| if on { bytes } else { 0 };
        // What meets the values, the state in two halves, sums, fours of rows and the largest; of keys: units, values, features in two
        // halves, sums and the largest.
        let out = query_units + 3 * factors + sums + 12 * fours + 16;
        let keys = part(self.adds_keys(), key_units + 3 * factors + sums + 16);
        out + keys + part(self.counted(), 16 * fours) + part(self.scaled(), 8 * square.edge)
    }

    /// Teams of subgroups of `matrix`: of gradients two, where twice the invocations still have some of each square.
    fn teams(&self) -> u32 {
        let two = |square: MatrixSquare| self.is_gradient() && 8 * square.threads <= square.edge * square.edge;
        if self.square.is_some_and(two) { 2 } else { 1 }
    }

    /// Whether gradients have sums without values: for the denominator, or since keys look at queries, which weigh something.
    fn counted(&self) -> bool {
        self.weights || self.reversed
    }

    /// Whether what is added has the scales and weights of records: queries do, where keys look at them.
    fn scaled(&self) -> bool {
        self.reversed && self.adds_keys()
    }

    fn gradient_bytes(&self) -> u32 {
        let floats = |n: u32| (4 * n).next_multiple_of(16);
        let (chunk, units) = (self.chunk(), self.class + 1);
        let (features, rows, values) =
            (floats(chunk * units), floats(chunk * feature_rows(self.class)), 16 * chunk * self.values);
        let keys = if self.adds_keys() { features + values + floats(chunk) } else { 0 };
        let weights = if self.weights { rows + features } else { 0 };
        2 * features + values + rows + keys + weights
    }

    fn step_bytes() -> u32 {
        let floats = |n: u32| (4 * n).next_multiple_of(16);
        let (units, rows) = (MAX_FEATURE_DIM + 1, feature_rows(MAX_FEATURE_DIM));
        2 * floats(units) + 2 * floats(rows) + floats(MAX_LINEAR_DIM + 4) + floats(MAX_LINEAR_DIM + 1)
    }

    fn reads_queries(&self) -> bool {
        self.op != BasedOp::State
    }

    fn adds_keys(&self) -> bool {
        !matches!(self.op, BasedOp::Read | BasedOp::ReadGradient)
    }

    fn reads_state(&self) -> bool {
        self.start() == StartState::Given
    }

    fn writes_state(&self) -> bool {
        self.state || matches!(self.op, BasedOp::State | BasedOp::Step)
    }

    /// Whether it leaves records, the gradient of queries, or passes sums on in them.
    fn writes_records(&self) -> bool {
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
        (0..)
            .zip(all)
            .filter_map(|(slot, (used, name, writes))| used.then_some(Binding { slot, name, writes }))
            .collect()
    }

    pub(crate) fn constants(&self) -> Vec<(&'static str, u32)> {
        let flag = u32::from;
        match self.op {
            BasedOp::Step => {
                return vec![
                    ("THREADS", STEP_THREADS),
                    ("UNITS", MAX_FEATURE_DIM + 1),
                    ("FEATURE_ROWS", feature_rows(MAX_FEATURE_DIM)),
                    ("VALUES", MAX_LINEAR_DIM / 4),
                ];
            }
            BasedOp::Gradient | BasedOp::ReadGradient => {
                return self.square.map_or_else(|| self.gradient_constants(), |square| self.matrix_gradient(square));
            }
            _ => {}
        }
        let mut all = vec![
            ("OUT", flag(self.reads_queries())),
            ("KEYS", flag(self.adds_keys())),
            ("STATE", flag(self.writes_state())),
            ("WEIGHTS", flag(self.weights)),
        ];
        if self.kernel == Kernel::Broadcast {
            all.extend([("LANES", self.lanes), ("FEATURES", self.class), ("UNITS", self.class + 1)]);
            return all;
        }
        all.extend([("RAW", flag(!self.weights)), ("SCORES", flag(self.op == BasedOp::Chunk))]);
        if let Some(square) = self.square {
            all.extend(square.constants());
            all.extend([
                ("COUNTED", flag(self.adds_keys() && self.weights)),
                ("SCALED", flag(self.scaled())),
                ("PLAIN", flag(!self.scaled())),
                ("SLABS", self.slabs()),
                ("LAST", self.slabs() - 1),
                ("UNIT_BLOCKS", MATRIX_FEATURES / square.side),
            ]);
            return all;
        }
        let (fours, pairs) = self.blocks();
        let columns = self.columns();
        all.extend([
            ("CHUNK", CHUNK),
            ("THREADS", THREADS),
            ("TX", 8),
            ("ROWS", 4),
            ("KEYS_EACH", 4),
            ("WEIGHT_STRIDE", self.weight_stride()),
            ("FOURS", fours),
            ("PAIRS", pairs),
            ("COLUMNS", columns),
            ("OUT_ROWS", self.out_rows()),
            ("READ_ROWS", self.read_rows()),
            ("ADD_ROWS", self.add_rows()),
            ("COUNT_ROWS", (4 / columns).max(1)),
        ]);
        all
    }

    fn gradient_constants(&self) -> Vec<(&'static str, u32)> {
        let flag = u32::from;
        // Columns whose loads the lanes of a subgroup share.
        let block = self.lanes.clamp(1, self.values);
        vec![
            ("LANES", self.lanes),
            ("ALONE", flag(self.lanes == 0)),
            ("BLOCK", block),
            ("BLOCKS", self.values / block),
            ("KEYS", flag(self.adds_keys())),
            ("WEIGHTS", flag(self.weights)),
            ("REVERSED", flag(self.reversed)),
            ("RECORDS", flag(!self.reversed)),
            ("PASSES", flag(self.passes)),
            ("CHUNK", self.chunk()),
            ("THREADS", self.invocations()),
            ("UNITS", self.class + 1),
            ("FOURS", self.class / 4),
            ("FEATURE_ROWS", feature_rows(self.class)),
            ("ROWS", self.rows_each()),
            ("VALUES", self.values),
        ]
    }

    fn matrix_gradient(&self, square: MatrixSquare) -> Vec<(&'static str, u32)> {
        let flag = u32::from;
        let (fours, _) = self.blocks();
        let mut all = MatrixSquare { threads: self.invocations(), ..square }.constants().to_vec();
        let tx = self.invocations() / square.edge;
        all.extend([
            ("KEYS", flag(self.adds_keys())),
            ("STILL", flag(!self.adds_keys())),
            ("WEIGHTS", flag(self.weights)),
            ("REVERSED", flag(self.reversed)),
            ("FORWARD", flag(!self.reversed)),
            ("SCALED", flag(self.scaled())),
            ("COUNTED", flag(self.counted())),
            ("ADDED_COUNTS", flag(self.counted() && self.adds_keys())),
            ("HAS_RECORDS", flag(self.writes_records())),
            ("RECORDS", flag(!self.reversed)),
            ("PASSES", flag(self.passes)),
            ("PARTIAL_SUMS", flag(self.passes && self.weights)),
            ("TEAMS", self.teams()),
            ("SUMS", 1 + flag(self.adds_keys())),
            ("SLABS", self.slabs()),
            ("UNIT_BLOCKS", MATRIX_FEATURES / square.side),
            ("FEATURE_FOURS", fours),
            ("FOURS_LOG2", fours.ilog2()),
            ("EACH_FOURS", fours.div_ceil(tx)),
            ("SHARERS", tx.div_ceil(fours)),
        ]);
        all
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
