//! The typed key of a compiled kernel: from it follow the header, the bindings, the label and the cache entry.

use std::fmt;

use crate::append::AppendKey;
use crate::based::BasedKey;
use crate::flash_backward::FlashBackwardKey;
use crate::linear::LinearKey;
use crate::split::{LengthsKey, MergeKey, SplitKey};

/// A kernel design. The names on the command line and in reports are those of [`Kernel::name`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[non_exhaustive]
pub enum Kernel {
    /// A block of queries x keys an invocation, row reductions through workgroup memory: needs nothing beyond WebGPU's defaults.
    TileUniversal,
    /// The same tile with row reductions by subgroup shuffles.
    TileSubgroup,
    /// Rows in registers, keys broadcast through the subgroup: for drivers that run on a CPU.
    Broadcast,
    /// Cooperative matrices, f16 factors and f32 sums: for GPUs that multiply them in hardware.
    Matrix,
}

impl Kernel {
    /// All kernels, in the order of their names in tables.
    pub const ALL: [Self; 4] = [Self::TileUniversal, Self::TileSubgroup, Self::Broadcast, Self::Matrix];

    /// The fixed name: `tile-universal`, `tile-subgroup`, `broadcast`, `matrix`.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::TileUniversal => "tile-universal",
            Self::TileSubgroup => "tile-subgroup",
            Self::Broadcast => "broadcast",
            Self::Matrix => "matrix",
        }
    }
}

impl fmt::Display for Kernel {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}

/// How the numbers of a tensor are stored. Arithmetic is f32 whatever the storage.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Default)]
pub enum Storage {
    /// 32-bit floats.
    #[default]
    F32,
    /// 16-bit IEEE floats, two to a u32.
    F16,
    /// bfloat16, two to a u32.
    Bf16,
    /// 8-bit integers, four to a u32, each row followed by the f32 that its numbers are multiplied by. Of caches only.
    Int8,
}

impl Storage {
    /// Bytes of one element.
    #[must_use]
    pub fn bytes(self) -> u32 {
        match self {
            Self::F32 => 4,
            Self::F16 | Self::Bf16 => 2,
            Self::Int8 => 1,
        }
    }

    /// Bytes of a row of `dim` numbers.
    #[must_use]
    pub fn row_bytes(self, dim: u32) -> u32 {
        dim * self.bytes() + if self == Self::Int8 { 4 } else { 0 }
    }

    /// `f32`, `f16`, `bf16` or `int8`.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::F32 => "f32",
            Self::F16 => "f16",
            Self::Bf16 => "bf16",
            Self::Int8 => "int8",
        }
    }
}

impl fmt::Display for Storage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}

/// What rows are made of, which decides how a tensor is loaded.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Default)]
pub enum Access {
    /// Dims, strides and offsets are multiples of four elements, the last dim is contiguous: one load a vec4.
    #[default]
    Vec4,
    /// Dims, strides and offsets of q, k and v are multiples of eight elements, the last dim is contiguous: one load two vec4. This
    /// takes 64-bit integers in shaders.
    Vec8,
    /// Any dims and strides (16-bit storage: even ones, last dim contiguous): one load an element or pair.
    Any,
}

impl Access {
    /// How labels tell it.
    pub(crate) fn suffix(self) -> &'static str {
        match self {
            Self::Vec4 => "",
            Self::Vec8 => "/vec8",
            Self::Any => "/any",
        }
    }
}

/// What is fixed when a tile kernel is compiled: how a workgroup's tile is spread over its invocations.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct TileShape {
    /// Invocations that share a row, each with its own keys; a power of two.
    pub tx: u32,
    /// Groups of rows.
    pub ty: u32,
    /// Query rows an invocation; a multiple of four.
    pub rows: u32,
    /// Keys an invocation.
    pub keys: u32,
    /// Head-dim columns, in vec4, of the slab of keys that is staged in workgroup memory at a time. Values take turns in it.
    pub k_chunks: u32,
}

/// What is fixed when a kernel with rows in registers is compiled.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct LaneShape {
    /// Invocations a workgroup; of `broadcast` the subgroup size.
    pub lanes: u32,
    /// Query rows a lane.
    pub rows: u32,
    /// Keys a step; of `broadcast` a divisor of the lanes, which load `lanes / keys` times eight dims of each at once.
    pub keys: u32,
}

/// What is fixed when a kernel on cooperative matrices is compiled: how a workgroup's tile is made of them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct MatrixShape {
    /// Rows and columns of a matrix.
    pub side: u32,
    /// Strips of `side` queries a workgroup.
    pub strips: u32,
    /// Strips of which one subgroup has the output, at least and at most.
    pub own: (u32, u32),
    /// Keys a step, in matrices.
    pub key_blocks: u32,
    /// Invocations a workgroup.
    pub threads: u32,
}

/// What is fixed when a kernel of linear attention on cooperative matrices is compiled: it multiplies squares of as many tokens, columns
/// of the value dim and rows of the state.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct MatrixSquare {
    /// Rows and columns of a matrix.
    pub side: u32,
    /// Rows and columns of a square.
    pub edge: u32,
    /// Matrices of a square that one subgroup has, at least and at most, all in one column.
    pub own: (u32, u32),
    /// Invocations a workgroup.
    pub threads: u32,
}

impl MatrixSquare {
    /// The constants that shape it.
    pub(crate) fn constants(self) -> [(&'static str, u32); 10] {
        let Self { side, edge, own, threads } = self;
        let tx = threads / edge;
        [
            ("SIDE", side),
            ("EDGE", edge),
            ("CHUNK", edge),
            ("GRID", edge / side),
            ("OWN", own.1),
            ("GUARDED", (own.0 != own.1).into()),
            ("THREADS", threads),
            ("TX", tx),
            ("TX_LOG2", tx.ilog2()),
            ("EACH", edge / tx / 4),
        ]
    }

    /// Bytes of a square of factors in f16, and of one of sums in f32; rows of either are 16 longer than needed.
    pub(crate) fn bytes(self) -> (u32, u32) {
        (16 * self.edge * (self.edge / 8 + 1), 16 * self.edge * (self.edge / 4 + 1))
    }
}

impl fmt::Display for MatrixSquare {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}of{}-{}own{}to{}", self.edge / self.side, self.side, self.threads, self.own.0, self.own.1)
    }
}

/// The register and workgroup layout of a kernel.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Shape {
    /// Of `tile-universal` and `tile-subgroup`.
    Tile(TileShape),
    /// Of `broadcast`.
    Lanes(LaneShape),
    /// Of `matrix`.
    Matrix(MatrixShape),
}

impl Shape {
    /// Queries a workgroup handles.
    #[must_use]
    pub fn tile_queries(self) -> u32 {
        match self {
            Self::Tile(t) => t.ty * t.rows,
            Self::Lanes(l) => l.lanes * l.rows,
            Self::Matrix(m) => m.strips * m.side,
        }
    }

    /// Keys a step of the main loop handles.
    #[must_use]
    pub fn tile_keys(self) -> u32 {
        match self {
            Self::Tile(t) => t.tx * t.keys,
            Self::Lanes(l) => l.keys,
            Self::Matrix(m) => m.key_blocks * m.side,
        }
    }

    /// Invocations a workgroup.
    #[must_use]
    pub fn invocations(self) -> u32 {
        match self {
            Self::Tile(t) => t.tx * t.ty,
            Self::Lanes(l) => l.lanes,
            Self::Matrix(m) => m.threads,
        }
    }
}

impl fmt::Display for Shape {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Tile(t) => {
                write!(f, "{}x{}of{}x{}", t.ty, t.tx, t.rows, t.keys)
            }
            Self::Lanes(l) => write!(f, "{}of{}x{}", l.lanes, l.rows, l.keys),
            Self::Matrix(m) => {
                write!(f, "{}of{}x{}-{}own{}to{}", m.strips, m.side, m.key_blocks, m.threads, m.own.0, m.own.1)
            }
        }
    }
}

/// The options of softmax attention that change a kernel's code. Everything else is a run-time value.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Default)]
pub struct ScoreOptions {
    /// Scores pass through `cap * tanh(x / cap)`.
    pub softcap: bool,
    /// Scores are lowered by slope times distance.
    pub alibi: bool,
    /// An additive bias is read for each score.
    pub bias: bool,
    /// A mask bit is read for each score.
    pub mask: bool,
    /// One more logit a head enters the denominator.
    pub sinks: bool,
    /// The log-sum-exp of each row is written.
    pub lse: bool,
}

impl ScoreOptions {
    /// The names of the options that are on, in the order they are applied.
    pub fn names(self) -> impl Iterator<Item = &'static str> {
        let all = [
            (self.softcap, "softcap"),
            (self.alibi, "alibi"),
            (self.bias, "bias"),
            (self.mask, "mask"),
            (self.sinks, "sinks"),
            (self.lse, "lse"),
        ];
        all.into_iter().filter_map(|(on, name)| on.then_some(name))
    }

    /// Whether single scores may be masked, so that no tile can skip its mask.
    #[must_use]
    pub fn masks_elements(self) -> bool {
        self.bias || self.mask
    }
}

/// What a compiled `flash_forward` pipeline depends on; its [`Display`](fmt::Display) is the pipeline's label.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct FlashKey {
    /// The kernel design.
    pub kernel: Kernel,
    /// Its layout.
    pub shape: Shape,
    /// Storage of q and of the output.
    pub q: Storage,
    /// Storage of k.
    pub k: Storage,
    /// Storage of v.
    pub v: Storage,
    /// How rows are loaded and stored.
    pub access: Access,
    /// Whether keys lie in the pages of a cache.
    pub paged: bool,
    /// Upper bound of the head dim; 0 where the kernel loops over it.
    pub head_class: u32,
    /// Whether the head dim is below its class, so that what lies past it must be zeroed. (Kernels that loop over it stop there.)
    pub padded: bool,
    /// Upper bound of the part of the value dim that one workgroup handles.
    pub value_class: u32,
    /// The options that change the code.
    pub options: ScoreOptions,
}

impl fmt::Display for FlashKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "flash_forward/{}/{}/{}", self.kernel, self.shape, self.q)?;
        if self.k != self.q || self.v != self.q {
            write!(f, "-{}", self.k)?;
        }
        if self.v != self.k {
            write!(f, "-{}", self.v)?;
        }
        match self.head_class {
            0 => {}
            class => write!(f, "/d{class}")?,
        }
        if self.padded {
            f.write_str("-padded")?;
        }
        write!(f, "/v{}", self.value_class)?;
        f.write_str(self.access.suffix())?;
        f.write_str(if self.paged { "/paged" } else { "" })?;
        for name in self.options.names() {
            write!(f, "+{name}")?;
        }
        Ok(())
    }
}

/// What a compiled pipeline depends on, of any operator; its [`Display`](fmt::Display) is the pipeline's label.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Key {
    /// Of softmax attention.
    Flash(FlashKey),
    /// Of its form for few queries, over a stretch of the keys.
    Split(SplitKey),
    /// And what makes its partial results one.
    Merge(MergeKey),
    /// Of new keys or values of a cache.
    Append(AppendKey),
    /// Of what makes work from lengths on the device.
    Lengths(LengthsKey),
    /// Of the backward pass of softmax attention.
    FlashBackward(FlashBackwardKey),
    /// Of linear attention with decay.
    Linear(LinearKey),
    /// Of the linear attention of BASED.
    Based(BasedKey),
}

impl fmt::Display for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Flash(key) => key.fmt(f),
            Self::Split(key) => key.fmt(f),
            Self::Merge(key) => key.fmt(f),
            Self::Append(key) => key.fmt(f),
            Self::Lengths(key) => key.fmt(f),
            Self::FlashBackward(key) => key.fmt(f),
            Self::Linear(key) => key.fmt(f),
            Self::Based(key) => key.fmt(f),
        }
    }
}
