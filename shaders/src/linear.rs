//! The kernels of linear attention with decay: their keys, and what each is made of.

use std::fmt;

use crate::compose::{Binding, Element, Output, StartState, elements, file, matrix_types, numbered};
use crate::key::{Access, Kernel, MatrixSquare, Storage};

/// What a linear-attention kernel does.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum LinearOp {
    /// Walks segments of tokens and writes their outputs.
    Chunk,
    /// Walks segments of tokens, each from a state of zero, for the states that they end in.
    Segment,
    /// Turns the states that segments end in into those that they start from.
    Scan,
    /// The same, of segments that are parts of longer ones, whose states lie beside their own.
    ScanWithin,
    /// One token: the state is read and written once.
    Step,
    /// The gradient of the decay, from the states before chunks and the gradients of those after them.
    Decay,
    /// The sum of what the chunks of a head gave, for its slope.
    DecaySum,
}

/// What a compiled pipeline of the linear family depends on; its [`Display`](fmt::Display) is the pipeline's label.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct LinearKey {
    /// What it does.
    pub op: LinearOp,
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
    /// Upper bound of the key dim; 0 where it does not shape the kernel.
    pub head_class: u32,
    /// Whether the key dim is below its class, of `matrix` below its squares, so that what lies past it must be zeroed (of `broadcast` and
    /// `matrix`).
    pub padded: bool,
    /// Whether each token brings its own log decay; else each head has a slope.
    pub gated: bool,
    /// Whether the states at the end are written (of `Chunk` and `Scan`), or replaced in place (of `Step`).
    pub state: bool,
    /// Whether it goes on from states that lie with those at the end (of `Chunk`): those of the stretch of tokens before.
    pub resumed: bool,
}

/// The classes that key dims are rounded up to.
pub const HEAD_CLASSES: [u32; 5] = [16, 32, 64, 128, 256];

/// The largest key dim and value dim of the linear family.
pub const MAX_LINEAR_DIM: u32 = 256;

/// The largest class whose state `broadcast` keeps in registers.
pub const BROADCAST_CLASS: u32 = 128;

/// State rows that a lane of `broadcast` keeps in registers; neighbouring lanes share a column with more.
const LANE_STATE_ROWS: u32 = 64;

/// Tokens that a workgroup of [`LinearOp::Decay`] has at most.
pub const DECAY_CHUNK: u32 = 64;

/// Tokens along a side of its squares of pairs.
const DECAY_BLOCK: u32 = 32;

/// Tokens a chunk of the tile kernels.
const CHUNK: u32 = 32;
const THREADS: u32 = 64;
const K_CHUNKS: u32 = 4;

impl LinearKey {
    /// Vec4 columns of the value dim that one workgroup owns; of the scan, numbers of a state.
    #[must_use]
    pub fn columns(&self) -> u32 {
        match (self.op, self.kernel) {
            (LinearOp::Scan | LinearOp::ScanWithin, _) => THREADS,
            (LinearOp::Step, _) => 8,
            (_, Kernel::Broadcast) => self.lanes / self.shares(),
            (_, Kernel::Matrix) => self.edge() / 4,
            // As much of the state as registers and 8 KiB hold, four rows an invocation at least.
            _ if self.head_class == 16 => 16,
            _ => (512 / self.head_class).min(8),
        }
    }

    /// Tokens, columns and rows of the state in the squares of `matrix`.
    fn edge(&self) -> u32 {
        self.square.map_or(CHUNK, |square| square.edge)
    }

    /// Squares that the state of `matrix` takes.
    fn slabs(&self) -> u32 {
        self.head_class.div_ceil(self.edge())
    }

    /// Lanes of `broadcast` that share a column.
    fn shares(&self) -> u32 {
        self.head_class.div_ceil(LANE_STATE_ROWS).max(1)
    }

    /// Tokens of a chunk.
    #[must_use]
    pub fn chunk(&self) -> u32 {
        if self.kernel == Kernel::Broadcast { self.lanes } else { self.edge() }
    }

    /// Turns of its loops that a chunk takes at most.
    #[must_use]
    pub fn turns(&self, key_dim: u32) -> u32 {
        let chunks = key_dim.div_ceil(4);
        match (self.op, self.kernel) {
            (LinearOp::Chunk, Kernel::Broadcast) => 2 + self.lanes,
            (LinearOp::Chunk, Kernel::Matrix) => self.matrix_turns(),
            (LinearOp::Chunk, _) => {
                let scores = chunks.div_ceil(K_CHUNKS) * (3 + K_CHUNKS);
                8 + scores + chunks + CHUNK + if self.gated { CHUNK } else { 0 }
            }
            (LinearOp::Segment, Kernel::Broadcast) => 1,
            (LinearOp::Segment, Kernel::Matrix) => self.matrix_turns(),
            (LinearOp::Segment, _) => 4 + CHUNK + if self.gated { CHUNK } else { 0 },
            _ => 1,
        }
    }

    /// Those of `matrix`: one wherever a subgroup looks whether it has a matrix.
    fn matrix_turns(&self) -> u32 {
        let own = self.square.map_or(1, |square| square.own.1);
        // Of each chunk one for the walk and one for what stands before it; a loop over tokens has a last turn, which ends it.
        2 + (self.slabs() + 1) * own + if self.gated { self.edge() + 1 } else { 0 }
    }

    /// Invocations a workgroup.
    #[must_use]
    pub fn invocations(&self) -> u32 {
        match (self.op, self.kernel) {
            (LinearOp::Chunk | LinearOp::Segment, Kernel::Matrix) => self.square.map_or(THREADS, |s| s.threads),
            (LinearOp::Chunk | LinearOp::Segment | LinearOp::Decay, Kernel::Broadcast) => self.lanes,
            _ => THREADS,
        }
    }

    /// Bytes of workgroup memory that the kernel declares.
    #[must_use]
    pub fn workgroup_bytes(&self) -> u32 {
        let tile = self.kernel != Kernel::Broadcast;
        let chunk = self.chunk();
        let gates = if self.gated && tile { 8 * chunk + (8 * (chunk + 1)).next_multiple_of(16) } else { 0 };
        match self.op {
            LinearOp::Chunk | LinearOp::Segment if self.kernel == Kernel::Matrix => {
                let (factors, sums) = self.square.map_or((0, 0), MatrixSquare::bytes);
                // Keys by row and values with their decay; queries, keys, values, scores and the state, which has two halves.
                let out = if self.op == LinearOp::Chunk { 5 * factors + sums + 16 } else { 0 };
                3 * factors + sums + 16 + out + gates
            }
            LinearOp::Chunk if tile => {
                let slab = 16 * CHUNK * (K_CHUNKS + 1);
                let weights = 4 * CHUNK * (CHUNK + 1);
                slab + weights + 16 * self.head_class * self.columns() + gates
            }
            LinearOp::Segment if tile => gates,
            LinearOp::Step => 16 * THREADS,
            LinearOp::Decay if !tile => 4 * DECAY_CHUNK * if self.gated { 8 } else { 3 },
            LinearOp::Decay => {
                let slab = 16 * DECAY_BLOCK * (K_CHUNKS + 1);
                let pairs = 4 * DECAY_BLOCK * (DECAY_BLOCK + 1);
                slab + pairs + 4 * THREADS + 4 * DECAY_CHUNK * if self.gated { 9 } else { 4 }
            }
            LinearOp::DecaySum => 4 * THREADS,
            _ => 0,
        }
    }

    /// The bindings, at most eight.
    pub(crate) fn bindings(&self) -> Vec<Binding> {
        let op = self.op;
        let walks = matches!(op, LinearOp::Chunk | LinearOp::Segment | LinearOp::Step | LinearOp::Decay);
        let scans = matches!(op, LinearOp::Scan | LinearOp::ScanWithin);
        let rows = !matches!(op, LinearOp::Segment | LinearOp::DecaySum);
        let gradient = matches!(op, LinearOp::Decay | LinearOp::DecaySum);
        let states = matches!(op, LinearOp::Segment | LinearOp::Step) || gradient;
        let fourth = match op {
            LinearOp::ScanWithin => (false, "state0", false),
            LinearOp::Decay => (self.gated, "dg", true),
            LinearOp::DecaySum => (true, "dslopes", true),
            _ => (!(self.resumed || op == LinearOp::Step && self.state), "state0", false),
        };
        let all = [
            (walks && op != LinearOp::Segment, "q", false),
            (walks, "k", false),
            (walks, "v", false),
            (rows, if scans { "segment_states" } else { "out" }, op != LinearOp::Decay),
            fourth,
            (self.state || states, "state", op != LinearOp::DecaySum),
            (walks && self.gated, "gate", false),
            (true, "aux", false),
        ];
        numbered(all)
    }

    pub(crate) fn constants(&self) -> Vec<(&'static str, u32)> {
        let flag = u32::from;
        let mut all = vec![("STATE", flag(self.state || self.op == LinearOp::Segment))];
        match (self.op, self.kernel) {
            (LinearOp::Scan | LinearOp::ScanWithin | LinearOp::DecaySum, _) => all.push(("THREADS", THREADS)),
            (LinearOp::Decay, kernel) => {
                all.extend([
                    ("GATED", flag(self.gated)),
                    ("SUM", flag(!self.gated)),
                    ("CHUNK", DECAY_CHUNK),
                    ("BLOCK", DECAY_BLOCK),
                    ("THREADS", self.invocations()),
                ]);
                if kernel == Kernel::Broadcast {
                    all.extend([("LANES", self.lanes), ("LANES_LOG2", self.lanes.ilog2()), ("ROWS", 4)]);
                } else {
                    all.extend([
                        ("TX", 8),
                        ("ROWS", DECAY_CHUNK / (THREADS / 8)),
                        ("K_CHUNKS", K_CHUNKS),
                        ("K_LOADS", DECAY_BLOCK * K_CHUNKS / THREADS),
                    ]);
                }
            }
            (LinearOp::Step, _) => all.extend([("THREADS", THREADS), ("COLUMNS", self.columns())]),
            (op, kernel) => {
                let columns = self.columns();
                all.extend([
                    ("OUT", flag(op == LinearOp::Chunk)),
                    ("TOTAL", flag(op == LinearOp::Segment && self.gated)),
                    ("HEAD_DIM", self.head_class),
                ]);
                if let (Kernel::Matrix, Some(square)) = (kernel, self.square) {
                    all.extend(square.constants());
                    all.extend([("SLABS", self.slabs()), ("LAST", self.slabs() - 1)]);
                } else if kernel == Kernel::Broadcast {
                    let shares = self.shares();
                    all.extend([
                        ("LANES", self.lanes),
                        ("SHARES", shares),
                        ("SHARED", flag(shares > 1)),
                        ("STATE_ROWS", self.head_class / shares),
                    ]);
                } else {
                    all.extend([
                        ("CHUNK", CHUNK),
                        ("THREADS", THREADS),
                        ("TX", 8),
                        ("ROWS", 4),
                        ("KEYS", 4),
                        ("K_CHUNKS", K_CHUNKS),
                        ("K_LOADS", CHUNK * K_CHUNKS / THREADS),
                        ("COLUMNS", columns),
                        ("OUT_ROWS", CHUNK * columns / THREADS),
                        ("STATE_ROWS", self.head_class * columns / THREADS),
                    ]);
                }
            }
        }
        all
    }

    pub(crate) fn parts(&self) -> Vec<String> {
        let lanes = self.kernel == Kernel::Broadcast;
        let mut files = vec!["view", "linear_params"];
        let mut parts = Vec::new();
        let v_access = if self.access == Access::Vec8 { Access::Vec4 } else { self.access };
        let tensors = [
            Element { name: "q", slot: 0, dim: "head_dim", storage: self.q, access: self.access, pairs: lanes },
            Element { name: "k", slot: 1, dim: "head_dim", storage: self.kv, access: self.access, pairs: lanes },
            Element { name: "v", slot: 2, dim: "value_dim", storage: self.kv, access: v_access, pairs: false },
        ];
        match self.op {
            LinearOp::Scan | LinearOp::ScanWithin => {
                files.extend(match self.op {
                    LinearOp::Scan => vec!["state0", "scan_first_given"],
                    _ => vec!["scan_first_within"],
                });
                files.extend(self.state.then_some("state"));
                files.extend(if self.gated { vec!["scan_gates"] } else { vec!["decay_slopes", "scan_slopes"] });
                files.push("lightning_scan");
            }
            LinearOp::Step => {
                parts.extend(elements(&tensors, &[Output::of_values(self.q, v_access)]));
                files.push("state");
                let start = if self.state { StartState::InPlace } else { StartState::Given };
                files.extend((start == StartState::Given).then_some("state0"));
                parts.push(start.fill("state_load"));
                files.extend(["state_store", if self.gated { "decay_token_gates" } else { "decay_token_slopes" }]);
                files.push("lightning_step");
            }
            LinearOp::Decay => {
                // The gradient of the output, in the place of what comes out.
                let (name, slot, dim) = ("out", 3, "value_dim");
                let out = Element { name, slot, dim, storage: self.q, access: v_access, pairs: false };
                parts.extend(elements(&tensors.map(|t| Element { pairs: false, ..t }), &[]));
                parts.extend(elements(&[out], &[]));
                files.push("state");
                parts.push(StartState::InPlace.fill("state_load"));
                files.extend(match self.gated {
                    false => vec!["decay_slopes", "decay_gradient_slopes"],
                    true => vec!["decay_gate", "decay_gradient_gates"],
                });
                files.push(if lanes { "lightning_decay_lanes" } else { "lightning_decay_tile" });
            }
            LinearOp::DecaySum => files.push("lightning_decay_sum"),
            LinearOp::Chunk | LinearOp::Segment => {
                let out = self.op == LinearOp::Chunk;
                parts.extend(elements(
                    if out { &tensors } else { &tensors[1..] },
                    out.then_some(Output::of_values(self.q, v_access)).as_slice(),
                ));
                let start = if self.resumed { StartState::Resumed } else { StartState::Given };
                files.extend((start == StartState::Given).then_some("state0"));
                let matrix = self.kernel == Kernel::Matrix;
                parts.push(start.fill(if matrix { "state_rows_load" } else { "state_load" }));
                if self.state || !out {
                    files.extend(["state", if matrix { "state_rows_store" } else { "state_store" }]);
                }
                if self.gated && !out {
                    files.push("state_total_gates");
                }
                files.extend(match (self.gated, lanes) {
                    (false, _) => vec!["decay_slopes", "decay_chunk_slopes"],
                    (true, true) => vec!["decay_gate", "decay_chunk_gates_lane"],
                    (true, false) => vec!["decay_gate", "decay_chunk_gates_tile"],
                });
                if lanes || matrix {
                    files.push(if self.padded { "head_padded" } else { "head_whole" });
                }
                if lanes {
                    files.push("lightning_chunk_lanes");
                } else if let Some(square) = self.square {
                    // What matrices are loaded from comes before the workgroup memory of gates.
                    files.insert(0, "lightning_chunk_matrix");
                    files.extend(["value_padded", "split_halves", "invocation_subgroup", "rows_subgroup"]);
                    parts.push(matrix_types(square.side));
                } else {
                    files.push(if self.kernel == Kernel::TileSubgroup { "invocation_subgroup" } else { "invocation" });
                    files.push("lightning_chunk_tile");
                }
            }
        }
        files.into_iter().map(|name| file(name).to_owned()).chain(parts).collect()
    }
}

impl fmt::Display for LinearKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self.op {
            LinearOp::Chunk => "lightning_chunk",
            LinearOp::Segment => "lightning_segment",
            LinearOp::Scan => "lightning_scan",
            LinearOp::ScanWithin => "lightning_scan_within",
            LinearOp::Step => "lightning_step",
            LinearOp::Decay => "lightning_decay",
            LinearOp::DecaySum => "lightning_decay_sum",
        })?;
        if !matches!(self.op, LinearOp::Scan | LinearOp::ScanWithin | LinearOp::DecaySum) {
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
            if self.head_class > 0 {
                write!(f, "/d{}", self.head_class)?;
            }
            f.write_str(if self.padded { "-padded" } else { "" })?;
            f.write_str(self.access.suffix())?;
        }
        for (on, name) in [(self.gated, "gates"), (self.state, "state"), (self.resumed, "resumed")] {
            if on {
                write!(f, "+{name}")?;
            }
        }
        Ok(())
    }
}
