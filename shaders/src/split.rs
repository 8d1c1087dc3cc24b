//! The kernels of few rows over many keys, and of their lengths on the device: their keys, and what each is made of.

use std::fmt;

use crate::compose::{Binding, Element, Output, elements, file, matrix_types};
use crate::key::{Access, Kernel, ScoreOptions, Storage};
use crate::score::score_parts;
use crate::table::{STREAM_DIMS, seen_bytes, value_loads};

/// Keys that the tile kernel takes at a time, an invocation for each and four rows.
const KEYS: u32 = 64;
/// Columns of K, in vec4, that it stages at a time.
const K_CHUNKS: u32 = 4;
/// Keys of a block, over which it takes maxima first.
const BLOCK: u32 = 8;

/// The rows that `flash_split` is on the menu for: on CPU drivers, and in tiles of GPUs. Those of matrices are [`SplitMatrices::rows`].
pub const SPLIT_ROWS: [&[u32]; 2] = [&[1, 2, 4, 8], &[4, 8]];

/// What a compiled `flash_split` pipeline depends on; its [`Display`](fmt::Display) is the pipeline's label.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct SplitKey {
    /// The kernel design: `broadcast`, `tile-universal` or `matrix`.
    pub kernel: Kernel,
    /// Lanes of a subgroup, of `broadcast`; else 0.
    pub lanes: u32,
    /// How a workgroup is made of matrices, of `matrix`.
    pub matrices: Option<SplitMatrices>,
    /// Rows of a workgroup: queries times heads of the group.
    pub rows: u32,
    /// Storage of q.
    pub q: Storage,
    /// Storage of k.
    pub k: Storage,
    /// Storage of v.
    pub v: Storage,
    /// How rows are loaded.
    pub access: Access,
    /// Whether keys lie in the pages of a cache.
    pub paged: bool,
    /// Whether the device made the work: see [`LengthsKey`].
    pub device: bool,
    /// Upper bound of the head dim; 0 where the kernel loops over it.
    pub head_class: u32,
    /// Whether what lies past the head dim must be zeroed, since it is below its class (of `broadcast` and `matrix`) or ends within what
    /// is staged at a time.
    pub padded: bool,
    /// Upper bound of the part of the value dim that one workgroup handles.
    pub value_class: u32,
    /// The options that change the code; sinks and the log-sum-exp are for [`MergeKey`].
    pub options: ScoreOptions,
}

/// What is fixed when `flash_split` on cooperative matrices is compiled. Subgroups share out blocks of keys, and of value columns.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct SplitMatrices {
    /// Rows and columns of a matrix.
    pub side: u32,
    /// Invocations a workgroup.
    pub threads: u32,
    /// Subgroups of a workgroup, at least and at most.
    pub subgroups: (u32, u32),
}

impl SplitMatrices {
    /// For matrices of `side` and subgroups of `min` to `max` lanes: four of the smallest.
    #[must_use]
    pub fn new(side: u32, (min, max): (u32, u32)) -> Self {
        let threads = (4 * min).clamp(32, 128);
        Self { side, threads, subgroups: (threads.div_ceil(max), threads.div_ceil(min)) }
    }

    /// The rows on its menu: of one strip of matrices, and of two.
    #[must_use]
    pub fn rows(self) -> [u32; 2] {
        [self.side, 2 * self.side]
    }

    /// Keys a turn.
    fn keys(self) -> u32 {
        (self.threads / 2).max(32)
    }

    /// Columns of scores in workgroup memory: a turn's keys, or a block of the output of each subgroup.
    fn columns(self) -> u32 {
        self.keys().max(self.subgroups.1 * self.side)
    }

    /// Of so many blocks, how many a subgroup has at most; and whether some may have fewer.
    fn own(self, blocks: u32) -> (u32, bool) {
        let (least, most) = self.subgroups;
        (blocks.div_ceil(least), least != most || !blocks.is_multiple_of(most))
    }
}

impl fmt::Display for SplitMatrices {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}-{}in{}to{}", self.side, self.threads, self.subgroups.0, self.subgroups.1)
    }
}

/// What a compiled `flash_merge` pipeline depends on; its [`Display`](fmt::Display) is the pipeline's label.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct MergeKey {
    /// Storage of the output.
    pub out: Storage,
    /// How its rows are stored.
    pub access: Access,
    /// Whether sums and sinks are in natural units, as with a bias; else in those of log2.
    pub natural: bool,
    /// Whether a sink enters.
    pub sinks: bool,
    /// Whether the log-sum-exp is written.
    pub lse: bool,
    /// Whether the device made the work.
    pub device: bool,
}

/// The pipeline of `flash_lengths`, of which there is one: it makes the work of the others from lengths on the device.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct LengthsKey;

impl LengthsKey {
    /// Invocations of its workgroup.
    pub const INVOCATIONS: u32 = 64;

    /// Bytes of workgroup memory that the kernel declares: two counts an invocation.
    pub const WORKGROUP_BYTES: u32 = 8 * Self::INVOCATIONS;

    pub(crate) fn bindings() -> Vec<Binding> {
        [(0, "lengths", false), (3, "work", true), (7, "aux", false)]
            .map(|(slot, name, writes)| Binding { slot, name, writes })
            .into()
    }

    pub(crate) fn constants() -> Vec<(&'static str, u32)> {
        vec![("THREADS", Self::INVOCATIONS)]
    }
}

impl fmt::Display for LengthsKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("flash_lengths")
    }
}

/// Parameters, and where the work lies: in `aux`, or in what the device made, bound at `slot`.
pub(crate) fn params(device: Option<u32>) -> Vec<String> {
    let mut parts = vec![file("view").to_owned(), fill(file("params"), device.is_some())];
    parts.extend(device.map(|slot| file("work_device").replace("$b", &slot.to_string())));
    parts
}

fn fill(text: &str, device: bool) -> String {
    let (work, last) = if device { ("work", "work[0]") } else { ("aux.words", "aux.params.last") };
    text.replace("$work", work).replace("$last", last)
}

pub(crate) fn device_suffix(device: bool) -> &'static str {
    if device { "/device" } else { "" }
}

impl SplitKey {
    /// Where work that the device made is bound.
    const WORK: u32 = 4;

    /// Invocations a workgroup.
    #[must_use]
    pub fn invocations(&self) -> u32 {
        match self.matrices {
            Some(matrices) => matrices.threads,
            None if self.kernel == Kernel::Broadcast => self.lanes,
            None => KEYS * self.rows / 4,
        }
    }

    /// Keys of a turn of the kernel's loop.
    #[must_use]
    pub fn keys(&self) -> u32 {
        match self.matrices {
            Some(matrices) => matrices.keys(),
            None if self.kernel == Kernel::Broadcast => self.lanes,
            None => KEYS,
        }
    }

    /// Turns of its loops that these take at most.
    #[must_use]
    pub fn turns(&self, head_dim: u32) -> u32 {
        match self.matrices {
            Some(matrices) => self.matrix_turns(matrices, head_dim),
            None if self.kernel == Kernel::Broadcast => 1,
            None => {
                let slabs = head_dim.div_ceil(4).div_ceil(K_CHUNKS);
                2 + slabs * (4 + 2 * K_CHUNKS) + 2 * KEYS / BLOCK + 4 + self.value_class / 4
            }
        }
    }

    /// Bytes of workgroup memory that the kernel declares.
    #[must_use]
    pub fn workgroup_bytes(&self) -> u32 {
        if let Some(matrices) = self.matrices {
            return self.matrix_bytes(matrices);
        }
        if self.kernel == Kernel::Broadcast {
            return 0;
        }
        let quads = self.rows / 4;
        let seen = if self.options.masks_elements() { 16 } else { 0 };
        16 * KEYS * (K_CHUNKS + 1) + 16 * KEYS * quads + 16 * KEYS / BLOCK * quads + 4 * KEYS + seen
    }

    /// On matrices: where it stages, where it rescales, and one wherever a subgroup looks whether it has a block.
    fn matrix_turns(&self, matrices: SplitMatrices, head_dim: u32) -> u32 {
        let [key_own, value_own] = [matrices.keys(), self.value_class].map(|n| matrices.own(n / matrices.side).0);
        let tx = matrices.threads / self.rows;
        let rescale = value_own * (2 + (matrices.subgroups.1 * matrices.side / 4).div_ceil(tx));
        let slabs = match self.head_class {
            0 => {
                let rows = (self.rows * STREAM_DIMS / 4).div_ceil(matrices.threads);
                head_dim.div_ceil(STREAM_DIMS) * (1 + rows + key_own)
            }
            _ => key_own,
        };
        1 + slabs + key_own + rescale + value_own
    }

    /// Columns of queries and keys that lie in the slab at a time, on matrices.
    fn matrix_head_dims(&self) -> u32 {
        if self.head_class > 0 { self.head_class } else { STREAM_DIMS }
    }

    /// Whether values are staged with their keys: where there is room for both, unless it takes the scores to know which are seen.
    fn matrix_stages_early(&self) -> bool {
        (1..=64).contains(&self.head_class) && self.value_class <= 64 && !self.options.masks_elements()
    }

    /// Size of the slab, in 16 bytes, and where values begin in it, on matrices. Queries that stay in matrices pass through it before any
    /// key; others are staged with their keys.
    fn matrix_slab(&self, matrices: SplitMatrices) -> (u32, u32) {
        let keys = matrices.keys();
        let head = self.matrix_head_dims() / 8 + 1;
        let values = self.value_class * (keys / 8 + 1);
        let rows = if self.head_class > 0 { self.rows.max(keys) } else { self.rows + keys };
        let values_at = if self.matrix_stages_early() { keys * head } else { 0 };
        ((rows * head).max(values_at + values), values_at)
    }

    /// Bytes of the slab, of scores in f32 and weights in f16, of the flag that the reference of a row has risen, and of the keys seen.
    fn matrix_bytes(&self, matrices: SplitMatrices) -> u32 {
        let keys = matrices.keys();
        let scores = self.rows * (matrices.columns() / 4 + 1);
        let weights = self.rows * (keys / 8 + 1);
        16 * (self.matrix_slab(matrices).0 + scores + weights + 1) + seen_bytes(keys, self.options.masks_elements())
    }

    pub(crate) fn bindings(&self) -> Vec<Binding> {
        let all = [
            (true, 0, "q", false),
            (true, 1, "k", false),
            (true, 2, "v", false),
            (true, 3, "partials", true),
            (self.device, Self::WORK, "work", false),
            (self.options.bias, 5, "bias", false),
            (self.options.mask, 6, "mask", false),
            (true, 7, "aux", false),
        ];
        all.into_iter().filter(|b| b.0).map(|(_, slot, name, writes)| Binding { slot, name, writes }).collect()
    }

    pub(crate) fn constants(&self) -> Vec<(&'static str, u32)> {
        let value_chunks = self.value_class / 4;
        let mut all = vec![("VALUE_CHUNKS", value_chunks)];
        if let Some(matrices) = self.matrices {
            all.extend(self.matrix_constants(matrices));
        } else if self.kernel == Kernel::Broadcast {
            let chunks = self.head_class / 4;
            all.extend([
                ("ROWS", self.rows),
                ("LANES", self.lanes),
                ("LANES_LOG2", self.lanes.ilog2()),
                ("Q_LOADS", chunks.div_ceil(self.lanes)),
                ("Q_LANES", chunks.min(self.lanes)),
                ("PAIRS", value_chunks.div_ceil(2 * self.lanes)),
            ]);
        } else {
            all.extend([("KEYS", KEYS), ("QUADS", self.rows / 4), ("K_CHUNKS", K_CHUNKS)]);
        }
        all
    }

    fn matrix_constants(&self, matrices: SplitMatrices) -> [(&'static str, u32); 23] {
        let SplitMatrices { side, threads, .. } = matrices;
        let (keys, dims, tx) = (matrices.keys(), self.matrix_head_dims(), threads / self.rows);
        let ((key_own, key_guarded), (value_own, value_guarded)) =
            (matrices.own(keys / side), matrices.own(self.value_class / side));
        let (slab, values_at) = self.matrix_slab(matrices);
        let (held, early) = (self.head_class > 0, self.matrix_stages_early());
        [
            ("SIDE", side),
            ("STRIPS", self.rows / side),
            ("THREADS", threads),
            ("TX", tx),
            ("TX_LOG2", tx.ilog2()),
            ("KEY_BLOCKS", keys / side),
            ("KEY_CHUNKS", keys / tx / 4),
            ("KEY_OWN", key_own),
            ("KEY_GUARDED", key_guarded.into()),
            ("HEAD_BLOCKS", dims / side),
            ("VALUE_BLOCKS", self.value_class / side),
            ("VALUE_OWN", value_own),
            ("VALUE_GUARDED", value_guarded.into()),
            ("SCORE_COLUMNS", matrices.columns()),
            ("SLAB", slab),
            ("VALUES_AT", values_at),
            ("K_LOADS", keys * dims / 4 / threads),
            ("V_LOADS", value_loads(keys, self.value_class, threads)),
            ("V_EVEN", (keys * self.value_class / 16).is_multiple_of(threads).into()),
            ("HELD", held.into()),
            ("STREAMED", (!held).into()),
            ("EARLY", early.into()),
            ("LATE", (!early).into()),
        ]
    }

    pub(crate) fn parts(&self) -> Vec<String> {
        let lanes = self.kernel == Kernel::Broadcast;
        let mut parts = params(self.device.then_some(Self::WORK));
        parts.push(fill(file("item_split"), self.device));
        let element =
            |name, slot, dim, storage| Element { name, slot, dim, storage, access: self.access, pairs: lanes };
        let tensors = [
            element("q", 0, "head_dim", self.q),
            element("k", 1, "head_dim", self.k),
            element("v", 2, "value_dim", self.v),
        ];
        parts.extend(elements(&tensors, &[]));
        parts.extend(key_places(self.paged));
        parts.extend(score_parts(self.options, false));
        if lanes || self.matrices.is_some() {
            parts.push(file(if self.padded { "head_padded" } else { "head_whole" }).to_owned());
        }
        parts.extend(self.matrices.map(|matrices| matrix_types(matrices.side)));
        parts.extend(self.files().into_iter().map(|name| file(name).to_owned()));
        parts
    }

    /// The files that make the kernel, after the ones that every kernel of few rows shares.
    fn files(&self) -> Vec<&'static str> {
        let seen = match (self.kernel, self.options.masks_elements()) {
            (Kernel::Broadcast, true) => "seen_key",
            (Kernel::Broadcast, false) => "seen_key_range",
            (_, true) => "seen_tile",
            (_, false) => "seen_tile_range",
        };
        match self.kernel {
            Kernel::Broadcast => vec![seen, "flash_split_lanes"],
            Kernel::Matrix => {
                vec![
                    "matrices",
                    "invocation_subgroup",
                    "rows_subgroup",
                    "flash_split_matrix",
                    "matrix_values",
                    "matrix_weights",
                    seen,
                ]
            }
            _ => vec![seen, "flash_split_tile"],
        }
    }
}

/// Where the keys of a sequence lie in k and in v.
pub(crate) fn key_places(paged: bool) -> impl Iterator<Item = String> {
    let text = file(if paged { "keys_paged" } else { "keys_strided" });
    ["k", "v"].into_iter().map(|name| text.replace("$t", name))
}

impl MergeKey {
    /// Invocations a workgroup, each with a value column.
    pub const INVOCATIONS: u32 = 32;

    /// Where work that the device made is bound.
    const WORK: u32 = 1;

    /// Turns of its loops for a row of so many parts.
    #[must_use]
    pub fn turns(parts: u64, value_dim: u32) -> u64 {
        let columns = u64::from(value_dim.div_ceil(4).div_ceil(Self::INVOCATIONS));
        // The maximum, the sum, and each column; every loop has a last turn, which ends it.
        (2 + columns) * (parts + 1) + columns + 1
    }

    pub(crate) fn bindings(&self) -> Vec<Binding> {
        let all = [
            (true, 0, "partials", false),
            (self.device, Self::WORK, "work", false),
            (true, 3, "out", true),
            (self.lse, 4, "lse", true),
            (true, 7, "aux", false),
        ];
        all.into_iter().filter(|b| b.0).map(|(_, slot, name, writes)| Binding { slot, name, writes }).collect()
    }

    pub(crate) fn constants() -> Vec<(&'static str, u32)> {
        vec![("THREADS", Self::INVOCATIONS)]
    }

    pub(crate) fn parts(&self) -> Vec<String> {
        let mut parts = params(self.device.then_some(Self::WORK));
        parts.extend(elements(&[], &[Output::of_values(self.out, self.access)]));
        parts.push(file(if self.natural { "weight_natural" } else { "weight_log2" }).to_owned());
        parts.push(file(if self.sinks { "finish_sinks" } else { "finish" }).to_owned());
        parts.push(if self.lse { file("lse").to_owned() } else { crate::compose::NO_LSE.to_owned() });
        parts.push(fill(file("flash_merge"), self.device));
        parts
    }
}

impl fmt::Display for SplitKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "flash_split/{}", self.kernel)?;
        if self.lanes > 0 {
            write!(f, "/{}", self.lanes)?;
        }
        if let Some(matrices) = self.matrices {
            write!(f, "/{matrices}")?;
        }
        write!(f, "/{}rows/{}", self.rows, self.q)?;
        if self.k != self.q || self.v != self.q {
            write!(f, "-{}", self.k)?;
        }
        if self.v != self.k {
            write!(f, "-{}", self.v)?;
        }
        if self.head_class > 0 {
            write!(f, "/d{}", self.head_class)?;
        }
        f.write_str(if self.padded { "-padded" } else { "" })?;
        write!(f, "/v{}", self.value_class)?;
        f.write_str(self.access.suffix())?;
        f.write_str(if self.paged { "/paged" } else { "" })?;
        f.write_str(device_suffix(self.device))?;
        for name in self.options.names() {
            write!(f, "+{name}")?;
        }
        Ok(())
    }
}

impl fmt::Display for MergeKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "flash_merge/{}{}{}", self.out, self.access.suffix(), device_suffix(self.device))?;
        for (on, name) in [(self.natural, "natural"), (self.sinks, "sinks"), (self.lse, "lse")] {
            if on {
                write!(f, "+{name}")?;
            }
        }
        Ok(())
    }
}
