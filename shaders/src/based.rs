//! The kernels of the linear attention of BASED: their keys, and what each is made of.

use std::fmt;

use crate::compose::{Binding, Element, elements, file};
use crate::key::{Access, Kernel, Storage};

/// What a kernel of BASED does with a segment of tokens.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum BasedOp {
    /// Each token is added to the state and then reads it.
    Chunk,
    /// Tokens are added, nothing is read.
    State,
    /// Tokens read a state that stays as it is.
    Read,
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
    /// Storage of q and of the output.
    pub q: Storage,
    /// Storage of k and v.
    pub kv: Storage,
    /// How rows of q and k are loaded; those of v and the output by vec4 at most.
    pub access: Access,
    /// Upper bound of the feature dim.
    pub class: u32,
    /// Whether the feature dim is below its class, so that what lies past it must be zeroed.
    pub padded: bool,
    /// Whether the sums of weights are kept: for the denominator, or for the state.
    pub weights: bool,
    /// Whether the states at the end are written; always, of `State`.
    pub state: bool,
}

/// The classes that feature dims are rounded up to.
pub const FEATURE_CLASSES: [u32; 3] = [8, 16, 32];

/// The largest feature dim of BASED.
pub const MAX_FEATURE_DIM: u32 = 32;

/// The largest class whose state `broadcast` keeps in registers.
pub const BROADCAST_FEATURES: u32 = 16;

/// Tokens a chunk of the tile kernels.
const CHUNK: u32 = 32;
const THREADS: u32 = 64;

/// Rows of the packed state of a feature dim: `1, k_i, k_i k_j` for `i <= j`.
#[must_use]
pub fn feature_rows(feature_dim: u32) -> u32 {
    (feature_dim + 1) * (feature_dim + 2) / 2
}

impl BasedKey {
    /// Vec4 columns of the value dim that one workgroup owns.
    #[must_use]
    pub fn columns(&self) -> u32 {
        match (self.kernel, self.class) {
            (Kernel::Broadcast, _) => self.lanes,
            // As many as leave a block of the state to each invocation, within 16 KiB.
            (_, 8) => 8,
            (_, 16) => 4,
            _ => 1,
        }
    }

    /// Tokens of a chunk.
    #[must_use]
    pub fn chunk(&self) -> u32 {
        if self.kernel == Kernel::Broadcast { self.lanes } else { CHUNK }
    }

    /// Turns of its loops that a chunk takes at most.
    #[must_use]
    pub fn turns(&self) -> u32 {
        let (fours, _) = self.blocks();
        if self.kernel == Kernel::Broadcast {
            return 2 + self.lanes;
        }
        // Scores, the state that is read, keys that are weighed, keys that are added.
        8 + fours + fours * (fours + 6) + 2 * (CHUNK + 1)
    }

    /// Invocations a workgroup.
    #[must_use]
    pub fn invocations(&self) -> u32 {
        if self.kernel == Kernel::Broadcast { self.lanes } else { THREADS }
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

    /// Bytes of workgroup memory that the kernel declares.
    #[must_use]
    pub fn workgroup_bytes(&self) -> u32 {
        if self.kernel == Kernel::Broadcast {
            return 0;
        }
        let (fours, pairs) = self.blocks();
        let scores = if self.op == BasedOp::Chunk { 4 * CHUNK * self.weight_stride() } else { 0 };
        let counts = if self.weights { 16 * (4 * pairs + fours) } else { 0 };
        scores + 16 * (16 * pairs + 4 * fours + 1) * self.columns() + counts
    }

    fn reads_queries(&self) -> bool {
        self.op != BasedOp::State
    }

    fn adds_keys(&self) -> bool {
        self.op != BasedOp::Read
    }

    fn writes_state(&self) -> bool {
        self.state || self.op == BasedOp::State
    }

    /// The bindings, at most eight.
    pub(crate) fn bindings(&self) -> Vec<Binding> {
        let all = [
            (self.reads_queries(), "q", false),
            (self.adds_keys(), "k", false),
            (self.adds_keys(), "v", false),
            (self.reads_queries(), "out", true),
            (true, "state0", false),
            (self.writes_state(), "state", true),
            (false, "gate", false),
            (true, "aux", false),
        ];
        (0..)
            .zip(all)
            .filter_map(|(slot, (used, name, writes))| used.then_some(Binding { slot, name, writes }))
            .collect()
    }

    pub(crate) fn constants(&self) -> Vec<(&'static str, u32)> {
        let flag = u32::from;
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
        let (fours, pairs) = self.blocks();
        let columns = self.columns();
        all.extend([
            ("RAW", flag(!self.weights)),
            ("SCORES", flag(self.op == BasedOp::Chunk)),
            ("CHUNK", CHUNK),
            ("THREADS", THREADS),
            ("TX", 8),
            ("ROWS", 4),
            ("KEYS_EACH", 4),
            ("WEIGHT_STRIDE", self.weight_stride()),
            ("FOURS", fours),
            ("PAIRS", pairs),
            ("COLUMNS", columns),
            ("OUT_ROWS", (CHUNK * columns / THREADS).max(1)),
            ("COUNT_ROWS", (4 / columns).max(1)),
        ]);
        all
    }

    pub(crate) fn parts(&self) -> Vec<String> {
        let lanes = self.kernel == Kernel::Broadcast;
        let v_access = if self.access == Access::Vec8 { Access::Vec4 } else { self.access };
        let key =
            |name, slot, storage| Element { name, slot, dim: "head_dim", storage, access: self.access, pairs: lanes };
        let mut tensors = Vec::new();
        if self.reads_queries() {
            tensors.push(key("q", 0, self.q));
        }
        if self.adds_keys() {
            tensors.push(key("k", 1, self.kv));
            let v = Element { name: "v", slot: 2, dim: "value_dim", storage: self.kv, access: v_access, pairs: false };
            tensors.push(v);
        }
        let out = self.reads_queries().then_some((self.q, v_access));
        let mut files = vec!["view", "linear_params", "state0", "state_load", "features"];
        if self.weights {
            files.push("features_load");
        }
        if self.writes_state() {
            files.extend(["state", "state_store", "features_store"]);
        }
        if self.reads_queries() {
            files.push("based_finish");
        }
        files.push(if self.padded { "head_padded" } else { "head_whole" });
        files.extend(match self.kernel {
            Kernel::Broadcast => vec!["based_chunk_lanes"],
            Kernel::TileSubgroup => vec!["invocation_subgroup", "based_chunk_tile"],
            Kernel::TileUniversal => vec!["invocation", "based_chunk_tile"],
        });
        files.into_iter().map(|name| file(name).to_owned()).chain(elements(&tensors, out)).collect()
    }
}

impl fmt::Display for BasedKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self.op {
            BasedOp::Chunk => "based_chunk",
            BasedOp::State => "based_state",
            BasedOp::Read => "based_read",
        })?;
        write!(f, "/{}", self.kernel)?;
        if self.lanes > 0 {
            write!(f, "/{}", self.lanes)?;
        }
        write!(f, "/{}", self.q)?;
        if self.kv != self.q {
            write!(f, "-{}", self.kv)?;
        }
        write!(f, "/d{}{}", self.class, if self.padded { "-padded" } else { "" })?;
        f.write_str(match self.access {
            Access::Vec4 => "",
            Access::Vec8 => "/vec8",
            Access::Any => "/any",
        })?;
        for (on, name) in [(self.weights, "weights"), (self.state, "state")] {
            if on {
                write!(f, "+{name}")?;
            }
        }
        Ok(())
    }
}
