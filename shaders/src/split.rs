//! The kernels of few rows over many keys: their keys, and what each is made of.

use std::fmt;

use crate::compose::{Binding, Element, Output, elements, file, score_parts};
use crate::key::{Access, Kernel, ScoreOptions, Storage};

/// Keys that the tile kernel takes at a time, an invocation for each and four rows.
const KEYS: u32 = 64;
/// Columns of K, in vec4, that it stages at a time.
const K_CHUNKS: u32 = 4;
/// Keys of a block, over which it takes maxima first.
const BLOCK: u32 = 8;

/// The rows that `flash_split` is on the menu for: on CPU drivers, and on GPUs.
pub const SPLIT_ROWS: [&[u32]; 2] = [&[1, 2, 4, 8], &[4, 8]];

/// What a compiled `flash_split` pipeline depends on; its [`Display`](fmt::Display) is the pipeline's label.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct SplitKey {
    /// The kernel design: `broadcast` or `tile-universal`.
    pub kernel: Kernel,
    /// Lanes of a subgroup, of `broadcast`; else 0.
    pub lanes: u32,
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
    /// Whether the head dim is below its class, so that what lies past it must be zeroed (of `broadcast`).
    pub padded: bool,
    /// Upper bound of the part of the value dim that one workgroup handles.
    pub value_class: u32,
    /// The options that change the code; sinks and the log-sum-exp are for [`MergeKey`].
    pub options: ScoreOptions,
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

/// What a compiled `cache_append` pipeline depends on; its [`Display`](fmt::Display) is the pipeline's label.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct AppendKey {
    /// Storage of the new rows.
    pub from: Storage,
    /// How they are loaded: not by [`Access::Vec8`].
    pub access: Access,
    /// Storage of the cache.
    pub to: Storage,
    /// Whether the device knows how long the sequences are.
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
fn params(device: Option<u32>) -> Vec<String> {
    let mut parts = vec![file("view").to_owned(), fill(file("params"), device.is_some())];
    parts.extend(device.map(|slot| file("work_device").replace("$b", &slot.to_string())));
    parts
}

fn fill(text: &str, device: bool) -> String {
    let (work, last) = if device { ("work", "work[0]") } else { ("aux.words", "aux.params.last") };
    text.replace("$work", work).replace("$last", last)
}

impl AppendKey {
    /// Invocations a workgroup: one a vec4, or one a row of [`Storage::Int8`].
    pub const INVOCATIONS: u32 = 64;

    /// Where work that the device made is bound.
    const WORK: u32 = 2;

    pub(crate) fn bindings(&self) -> Vec<Binding> {
        let all = [
            (true, 1, "k", false),
            (self.device, Self::WORK, "work", false),
            (true, 3, "out", true),
            (true, 7, "aux", false),
        ];
        all.into_iter().filter(|b| b.0).map(|(_, slot, name, writes)| Binding { slot, name, writes }).collect()
    }

    pub(crate) fn constants() -> Vec<(&'static str, u32)> {
        vec![("THREADS", Self::INVOCATIONS)]
    }

    pub(crate) fn parts(&self) -> Vec<String> {
        let source =
            Element { name: "k", slot: 1, dim: "head_dim", storage: self.from, access: self.access, pairs: false };
        let int8 = self.to == Storage::Int8;
        let out = Output { name: "out", slot: 3, storage: self.to, access: Access::Vec4, dim: "head" };
        let outputs = [out];
        let mut parts = params(self.device.then_some(Self::WORK));
        parts.extend(elements(&[source], if int8 { &[] } else { &outputs }));
        let files = ["cache_place", if int8 { "cache_append_int8" } else { "cache_append" }];
        parts.extend(files.map(|name| file(name).to_owned()));
        parts
    }
}

impl fmt::Display for AppendKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "cache_append/{}-{}{}", self.from, self.to, self.access.suffix())?;
        f.write_str(device_suffix(self.device))
    }
}

fn device_suffix(device: bool) -> &'static str {
    if device { "/device" } else { "" }
}

impl SplitKey {
    /// Where work that the device made is bound.
    const WORK: u32 = 4;

    /// Invocations a workgroup.
    #[must_use]
    pub fn invocations(&self) -> u32 {
        if self.kernel == Kernel::Broadcast { self.lanes } else { KEYS * self.rows / 4 }
    }

    /// Keys of a turn of the kernel's loop.
    #[must_use]
    pub fn keys(&self) -> u32 {
        if self.kernel == Kernel::Broadcast { self.lanes } else { KEYS }
    }

    /// Turns of its loops that these take at most.
    #[must_use]
    pub fn turns(&self, head_dim: u32) -> u32 {
        match self.kernel {
            Kernel::Broadcast => 1,
            _ => {
                let slabs = head_dim.div_ceil(4).div_ceil(K_CHUNKS);
                2 + slabs * (4 + 2 * K_CHUNKS) + 2 * KEYS / BLOCK + 4 + self.value_class / 4
            }
        }
    }

    /// Bytes of workgroup memory that the kernel declares.
    #[must_use]
    pub fn workgroup_bytes(&self) -> u32 {
        if self.kernel == Kernel::Broadcast {
            return 0;
        }
        let quads = self.rows / 4;
        let seen = if self.options.masks_elements() { 16 } else { 0 };
        16 * KEYS * (K_CHUNKS + 1) + 16 * KEYS * quads + 16 * KEYS / BLOCK * quads + 4 * KEYS + seen
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
        if self.kernel == Kernel::Broadcast {
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
        let masks = self.options.masks_elements();
        let files: &[_] = match (lanes, masks) {
            (true, true) => &["seen_key", "flash_split_lanes"],
            (true, false) => &["seen_key_range", "flash_split_lanes"],
            (false, true) => &["seen_tile", "flash_split_tile"],
            (false, false) => &["seen_tile_range", "flash_split_tile"],
        };
        if lanes {
            parts.push(file(if self.padded { "head_padded" } else { "head_whole" }).to_owned());
        }
        parts.extend(files.iter().map(|name| file(name).to_owned()));
        parts
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
