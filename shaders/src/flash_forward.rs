//! Softmax attention forward: what a kernel binds, the numbers of its header, and its files.

use crate::compose::{
    Binding, Element, NO_LSE, Output, elements, file, key_sharing, matrix_constants, matrix_types, numbered, params,
};
use crate::key::{FlashKey, Kernel, Shape};
use crate::score::score_parts;
use crate::split::key_places;
use crate::table::{
    KEY_STEP, columns, kernel_files, matrix_head_dims, matrix_slab, matrix_stages_early, row_values, value_keys,
    value_loads,
};

/// Columns that a loop over rows stores, at most. Each store is a branch, and SwiftShader walks all ways through a loop's branches to compile
/// it: for 16 in a row that is nothing yet, for 32 it takes more than 12 GB.
const LOOP_STORES: u32 = 16;

impl FlashKey {
    pub(crate) fn bindings(&self) -> Vec<Binding> {
        let options = self.options;
        let all = [
            (true, "q", false),
            (true, "k", false),
            (true, "v", false),
            (true, "out", true),
            (options.lse, "lse", true),
            (options.bias, "bias", false),
            (options.mask, "mask", false),
            (true, "aux", false),
        ];
        numbered(all)
    }

    /// The numbers of the header: those that shape registers, and the tile.
    pub(crate) fn constants(&self) -> Vec<(&'static str, u32)> {
        let value_chunks = self.value_class / 4;
        match self.shape {
            Shape::Lanes(shape) => vec![
                ("LANES", shape.lanes),
                ("LANES_LOG2", shape.lanes.ilog2()),
                ("ROWS", shape.rows),
                ("LAST_ROW", shape.rows - 1),
                ("KEYS", shape.keys),
                ("BLOCK", shape.keys.min(4)),
                ("BLENDS_BITS", u32::from(shape.lanes > 8)),
                ("KEY_ROWS", if self.kernel == Kernel::Broadcast { 1 } else { shape.keys }),
                ("GROUP", if self.kernel == Kernel::Broadcast { 2 * shape.lanes / shape.keys } else { 2 }),
                ("HEAD_CHUNKS", self.head_class / 4),
                ("VALUE_CHUNKS", value_chunks),
                ("STORED", value_chunks.min(LOOP_STORES)),
            ],
            Shape::Tile(shape) => {
                vec![
                    ("TX", shape.tx),
                    ("TY", shape.ty),
                    ("TX_LOG2", shape.tx.ilog2()),
                    ("THREADS", shape.tx * shape.ty),
                    ("ROWS", shape.rows),
                    ("KEYS", shape.keys),
                    ("KEY_STEP", KEY_STEP),
                    ("VALUE_CHUNKS", value_chunks),
                    ("COLUMNS", columns(shape, self.value_class)),
                    ("K_CHUNKS", shape.k_chunks),
                    ("BLOCK_KEYS", row_values(shape, self.value_class)),
                    ("K_LOADS", shape.keys * shape.k_chunks / shape.ty),
                    ("V_KEYS", value_keys(shape, self.value_class)),
                    ("V_LOADS", value_keys(shape, self.value_class) * columns(shape, self.value_class) / shape.ty),
                ]
            }
            Shape::Matrix(shape) => {
                let value_blocks = self.value_class / shape.side;
                let (slab, values_at) = matrix_slab(shape, self);
                let (held, early) = (self.head_class > 0, matrix_stages_early(self));
                let mut all = matrix_constants(shape);
                all.extend([
                    ("HEAD_BLOCKS", matrix_head_dims(self) / shape.side),
                    ("VALUE_BLOCKS", value_blocks),
                    ("VALUE_CHUNKS", value_chunks),
                    ("GROUP", shape.key_blocks.min(value_blocks)),
                    ("SLAB", slab),
                    ("VALUES_AT", values_at),
                    ("K_LOADS", self.shape.tile_keys() * matrix_head_dims(self) / 4 / shape.threads),
                    ("V_LOADS", value_loads(self.shape.tile_keys(), self.value_class, shape.threads)),
                    ("V_EVEN", (self.shape.tile_keys() * self.value_class / 16).is_multiple_of(shape.threads).into()),
                    ("HELD", held.into()),
                    ("STREAMED", (!held).into()),
                    ("EARLY", early.into()),
                    ("LATE", (!early).into()),
                ]);
                all
            }
        }
    }

    pub(crate) fn parts(&self) -> Vec<String> {
        let options = self.options;
        let mut parts = vec![file("view").to_owned(), params(), file("item_tile").to_owned()];
        let lanes = matches!(self.shape, Shape::Lanes(_));
        let element =
            |name, slot, dim, storage| Element { name, slot, dim, storage, access: self.access, pairs: lanes };
        let tensors = [
            element("q", 0, "head_dim", self.q),
            element("k", 1, "head_dim", self.k),
            element("v", 2, "value_dim", self.v),
        ];
        parts.extend(elements(&tensors, &[Output::of_values(self.q, self.access)]));
        parts.extend(key_places(self.paged));
        parts.extend(score_parts(options, false));
        parts.push(file(if options.sinks { "finish_sinks" } else { "finish" }).to_owned());
        parts.push(if options.lse { file("lse").to_owned() } else { NO_LSE.to_owned() });
        if lanes || self.kernel == Kernel::Matrix {
            parts.push(file(if self.padded { "head_padded" } else { "head_whole" }).to_owned());
        }
        if let Shape::Matrix(shape) = self.shape {
            parts.push(matrix_types(shape.side));
        }
        parts
            .extend(kernel_files(self).into_iter().map(|name| key_sharing(self.kernel, &["k_$h", "v_$h"], file(name))));
        parts
    }
}
