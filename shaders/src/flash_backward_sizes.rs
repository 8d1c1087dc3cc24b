//! How large the kernels of the backward pass of softmax attention are: rows, memory, turns of loops, and the numbers of headers.

use crate::compose::matrix_constants;
use crate::flash_backward::{BackwardOp, FlashBackwardKey};
use crate::key::{Kernel, MatrixShape, ScoreOptions, Shape};
use crate::table::{KEY_STEP, STREAM_DIMS, columns, row_values, seen_bytes, tile_bytes, value_keys};

/// Invocations of the kernels that have one layout.
const THREADS: u32 = 64;

impl FlashBackwardKey {
    /// Queries or keys that a workgroup owns; of other kernels, rows or squares of them.
    #[must_use]
    pub fn tile(&self) -> u32 {
        if self.walks() { self.shape.tile_queries() } else { THREADS }
    }

    /// Turns of its loops that a kernel takes for a step of its walk, at most.
    #[must_use]
    pub fn turns(&self, head_dim: u32, value_dim: u32) -> u32 {
        let tile = match self.shape {
            Shape::Lanes(_) => return 1,
            Shape::Matrix(shape) => return self.matrix_turns(shape, head_dim, value_dim),
            Shape::Tile(tile) => tile,
        };
        let slabs = |dim: u32| dim.div_ceil(4).div_ceil(tile.k_chunks) * (2 + tile.k_chunks);
        let values = value_keys(tile, self.value_class);
        let scores = if self.rolled() { tile.keys } else { 0 };
        2 + slabs(head_dim)
            + slabs(value_dim)
            + scores
            + (tile.tx * tile.keys).div_ceil(values) * (2 + values / KEY_STEP)
    }

    /// Whether a tile kernel turns scores into gradients in a loop: the records of four rows, and what options take beside them, are more
    /// than the registers of many a GPU.
    fn rolled(&self) -> bool {
        let ScoreOptions { softcap, alibi, bias, mask, .. } = self.options;
        self.owns_queries() && (softcap || alibi || bias || mask)
    }

    /// Invocations a workgroup.
    #[must_use]
    pub fn invocations(&self) -> u32 {
        if self.walks() { self.shape.invocations() } else { THREADS }
    }

    /// Bytes of workgroup memory that the kernel declares.
    #[must_use]
    pub fn workgroup_bytes(&self) -> u32 {
        match (self.op, self.shape) {
            (BackwardOp::Dsinks | BackwardOp::Dslopes, _) => 4 * THREADS,
            (_, Shape::Tile(tile)) if self.walks() => {
                let rows = self.slopes() && self.kernel == Kernel::TileUniversal;
                tile_bytes(tile, rows, self.hides_walked())
            }
            (_, Shape::Matrix(shape)) if self.walks() => self.matrix_bytes(shape),
            _ => 0,
        }
    }

    /// Columns that lie in the slab of `matrix` at a time, for products over the head dim and over the value dim.
    fn product_dims(&self) -> [u32; 2] {
        if self.head_class > 0 { [self.head_class, self.value_class] } else { [STREAM_DIMS; 2] }
    }

    /// Upper bound of the part of its result's dim that one workgroup of `matrix` handles.
    fn result_class(&self) -> u32 {
        if self.head_class > 0 && self.gradient() { self.head_class } else { self.value_class }
    }

    /// Size of the slab of `matrix`, in 16 bytes. Rows that stay in matrices pass through it before any that are walked; others are staged
    /// with these. Then it has weights, and columns of what is summed.
    fn matrix_slab(&self, shape: MatrixShape) -> u32 {
        let (owned, walked) = (shape.strips * shape.side, shape.key_blocks * shape.side);
        let [head, value] = self.product_dims().map(|dims| dims / 8 + 1);
        let value = if self.gradient() { value } else { 0 };
        let products = match self.head_class {
            0 => (owned + walked) * head,
            _ => (owned * head.max(value)).max(walked * (head + value)),
        };
        products.max((self.result_class() + owned) * (walked / 8 + 1))
    }

    /// Bytes of the slab, of products in f32, of the flag that a row has taken another power, of the records of queries that are walked,
    /// and of the keys seen.
    fn matrix_bytes(&self, shape: MatrixShape) -> u32 {
        let (owned, walked) = (shape.strips * shape.side, shape.key_blocks * shape.side);
        let risen = if self.gradient() { 16 } else { 0 };
        let records = if self.owns_queries() { 0 } else { 8 * walked };
        let scores = owned * (walked / 4 + 1);
        16 * (self.matrix_slab(shape) + scores) + risen + records + seen_bytes(walked, self.hides_walked())
    }

    /// Turns of the loops of `matrix` for a step, at most: where it stages, where it rescales, and one wherever a subgroup looks whether it
    /// has a strip.
    fn matrix_turns(&self, shape: MatrixShape, head_dim: u32, value_dim: u32) -> u32 {
        let (owned, walked) = (shape.strips * shape.side, shape.key_blocks * shape.side);
        let strips = shape.own.1;
        let slabs = |dim: u32| match self.head_class {
            0 => dim.div_ceil(STREAM_DIMS) * (1 + owned / walked + strips),
            _ => strips,
        };
        let columns = (walked * self.result_class() / 16).div_ceil(shape.threads);
        let rescale = (self.result_class() / 4).div_ceil(shape.threads / owned);
        let groups = self.result_class().div_ceil(walked);
        1 + slabs(head_dim) + slabs(value_dim) + columns + rescale + strips * (3 + 2 * groups)
    }

    pub(crate) fn constants(&self) -> Vec<(&'static str, u32)> {
        let flag = u32::from;
        let mut all = match self.op {
            BackwardOp::Delta { incoming } => {
                vec![("THREADS", THREADS), ("BESIDE", flag(self.beside)), ("INCOMING", flag(incoming))]
            }
            BackwardOp::Dsinks | BackwardOp::Dslopes | BackwardOp::Dbias => vec![("THREADS", THREADS)],
            _ => vec![
                ("OWNS_QUERIES", flag(self.owns_queries())),
                ("OWNS_KEYS", flag(!self.owns_queries())),
                ("GRADIENT", flag(self.gradient())),
                ("VALUES", flag(self.values())),
                ("SLOPES", flag(self.slopes())),
            ],
        };
        if !self.walks() {
            return all;
        }
        let value_chunks = self.value_class / 4;
        match self.shape {
            Shape::Lanes(shape) => {
                let alone = self.kernel != Kernel::Broadcast;
                all.extend([
                    ("LANES", shape.lanes),
                    ("LANES_LOG2", shape.lanes.ilog2()),
                    ("ROWS", shape.rows),
                    ("KEYS", shape.keys),
                    ("KEY_ROWS", if alone { shape.keys } else { 1 }),
                    ("GROUP", if alone { 2 } else { 2 * shape.lanes / shape.keys }),
                    ("HEAD_CHUNKS", self.head_class / 4),
                    ("VALUE_CHUNKS", value_chunks),
                ]);
            }
            Shape::Tile(shape) => {
                let (columns, keys) = (columns(shape, self.value_class), value_keys(shape, self.value_class));
                all.extend([
                    ("ROLLED", flag(self.rolled())),
                    ("STRAIGHT", flag(!self.rolled())),
                    ("STRAIGHT_KEYS", if self.rolled() { 1 } else { shape.keys }),
                    ("LAST_KEY", shape.keys - 1),
                    ("TX", shape.tx),
                    ("TY", shape.ty),
                    ("TX_LOG2", shape.tx.ilog2()),
                    ("THREADS", shape.tx * shape.ty),
                    ("ROWS", shape.rows),
                    ("KEYS", shape.keys),
                    ("KEY_STEP", KEY_STEP),
                    ("VALUE_CHUNKS", value_chunks),
                    ("COLUMNS", columns),
                    ("K_CHUNKS", shape.k_chunks),
                    ("BLOCK_KEYS", row_values(shape, self.value_class)),
                    ("K_LOADS", shape.keys * shape.k_chunks / shape.ty),
                    ("V_KEYS", keys),
                    ("V_LOADS", keys * columns / shape.ty),
                ]);
            }
            Shape::Matrix(shape) => {
                let [head_blocks, pair_blocks] = self.product_dims().map(|dims| dims / shape.side);
                let value_blocks = self.result_class() / shape.side;
                let loads = |blocks: u32| shape.key_blocks * shape.side * blocks * shape.side / 4 / shape.threads;
                let (held, late) = (self.head_class > 0, self.hides_walked());
                all.extend(matrix_constants(shape));
                all.extend([
                    ("HEAD_BLOCKS", head_blocks),
                    ("HEAD_LOADS", loads(head_blocks)),
                    ("PAIR_BLOCKS", pair_blocks),
                    ("PAIR_LOADS", loads(pair_blocks)),
                    ("VALUE_BLOCKS", value_blocks),
                    ("VALUE_CHUNKS", self.result_class() / 4),
                    ("GROUP", shape.key_blocks.min(value_blocks)),
                    ("SLAB", self.matrix_slab(shape)),
                    ("HELD", flag(held)),
                    ("STREAMED", flag(!held)),
                    ("EARLY", flag(!late)),
                    ("LATE", flag(late)),
                ]);
            }
        }
        all
    }
}
