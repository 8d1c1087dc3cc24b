//! How large the kernels of BASED's linear attention are: tokens, columns and rows, memory, turns of loops, and the numbers of headers.

use crate::based::{BasedKey, BasedOp, MATRIX_FEATURES, MAX_FEATURE_DIM, feature_rows};
use crate::key::{Kernel, MatrixSquare};
use crate::linear::MAX_LINEAR_DIM;

/// Tokens a chunk of the tile kernels.
const CHUNK: u32 = 32;
const THREADS: u32 = 64;

/// Invocations a workgroup of a step.
const STEP_THREADS: u32 = 256;

impl BasedKey {
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
}
