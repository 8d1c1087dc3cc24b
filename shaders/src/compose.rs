//! From a key to WGSL: a generated header of constants, then the fragments of the kernel's table entry, unrolled.

use crate::append::AppendKey;
use crate::key::{Access, Kernel, Key, MatrixShape, Storage};
use crate::split::{LengthsKey, MergeKey};
use crate::unroll::unroll;

macro_rules! files {
    ($($name:literal),* $(,)?) => {
        /// The text of one `.wgsl` file of this package.
        ///
        /// # Panics
        /// Where the table names a file that is not in the list: a mistake in this package, found by its build.
        pub(crate) fn file(name: &str) -> &'static str {
            match name {
                $($name => include_str!(concat!(env!("CARGO_MANIFEST_DIR"), "/", $name, ".wgsl")),)*
                _ => panic!("no shader file `{name}`"),
            }
        }
    };
}

files!(
    "view",
    "params",
    "item_tile",
    "item_split",
    "keys_strided",
    "keys_paged",
    "linear_params",
    "load_pair",
    "load_f32_wide",
    "load_f16_wide",
    "load_bf16_wide",
    "load_f32",
    "load_f32_any",
    "load_f16",
    "load_f16_any",
    "load_bf16",
    "load_bf16_any",
    "load_int8",
    "cache_place",
    "cache_append",
    "cache_append_int8",
    "store_f32",
    "store_f32_any",
    "pack_f16",
    "pack_bf16",
    "store_packed",
    "store_packed_any",
    "weight_log2",
    "weight_natural",
    "score_softcap",
    "score_alibi",
    "score_bias",
    "score_mask",
    "finish",
    "finish_sinks",
    "lse",
    "head_whole",
    "head_padded",
    "invocation",
    "invocation_subgroup",
    "rows_workgroup",
    "rows_subgroup",
    "seen_alone",
    "seen_key",
    "seen_key_range",
    "seen_lane",
    "seen_lane_range",
    "seen_tile",
    "seen_tile_range",
    "flash_forward_tile",
    "flash_forward_rows",
    "flash_forward_matrix",
    "matrix_types",
    "matrices",
    "matrix_values",
    "matrix_weights",
    "split_halves",
    "slab_rows",
    "flash_split_lanes",
    "flash_split_tile",
    "flash_split_matrix",
    "flash_merge",
    "flash_lengths",
    "work_device",
    "row_record",
    "rows",
    "rows_written",
    "load_beside",
    "grad_lse",
    "score_softcap_slope",
    "owned_queries",
    "owned_keys",
    "value_whole",
    "value_padded",
    "share_sinks",
    "share_slopes",
    "flash_backward_delta",
    "flash_backward_rows",
    "flash_backward_tile",
    "flash_backward_matrix",
    "flash_backward_dbias",
    "flash_backward_sum",
    "state0",
    "state_load",
    "state",
    "state_store",
    "state_rows_load",
    "state_rows_store",
    "state_total_gates",
    "decay_slopes",
    "decay_chunk_slopes",
    "decay_gate",
    "decay_chunk_gates_lane",
    "decay_chunk_gates_tile",
    "decay_token_slopes",
    "decay_token_gates",
    "decay_gradient_slopes",
    "decay_gradient_gates",
    "scan_first_given",
    "scan_first_within",
    "scan_slopes",
    "scan_gates",
    "lightning_chunk_lanes",
    "lightning_chunk_tile",
    "lightning_chunk_matrix",
    "lightning_scan",
    "lightning_step",
    "lightning_decay_lanes",
    "lightning_decay_tile",
    "lightning_decay_sum",
    "based_finish",
    "features",
    "features_load",
    "features_store",
    "feature_pair",
    "direction_forward",
    "direction_reverse",
    "values_plain",
    "values_scaled",
    "records",
    "records_written",
    "record_at",
    "state0_written",
    "state_number",
    "state_number_store",
    "based_chunk_lanes",
    "based_chunk_tile",
    "based_chunk_matrix",
    "based_gradient",
    "based_gradient_matrix",
    "based_step",
);

/// One storage buffer of a kernel.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Binding {
    /// The binding number, the same in every kernel.
    pub slot: u32,
    /// The operand's name.
    pub name: &'static str,
    /// Whether the kernel writes it.
    pub writes: bool,
}

/// The bindings of a kernel, at most eight. Operands that the key does not use are left out.
#[must_use]
pub fn bindings(key: &Key) -> Vec<Binding> {
    match key {
        Key::Flash(key) => key.bindings(),
        Key::Split(key) => key.bindings(),
        Key::Merge(key) => key.bindings(),
        Key::Append(key) => key.bindings(),
        Key::Lengths(_) => LengthsKey::bindings(),
        Key::FlashBackward(key) => key.bindings(),
        Key::Linear(key) => key.bindings(),
        Key::Based(key) => key.bindings(),
    }
}

/// The bindings that are used, of those in all slots: whether, the operand's name, and whether it is written.
pub(crate) fn numbered(all: [(bool, &'static str, bool); 8]) -> Vec<Binding> {
    (0..).zip(all).filter_map(|(slot, (used, name, writes))| used.then_some(Binding { slot, name, writes })).collect()
}

/// The WGSL of a key's kernel, entry point `main`.
///
/// # Panics
/// On a malformed directive in a shader file, which this package's build would have refused.
#[must_use]
pub fn compose(key: &Key) -> String {
    let (constants, parts) = match key {
        Key::Flash(key) => (key.constants(), key.parts()),
        Key::Split(key) => (key.constants(), key.parts()),
        Key::Merge(key) => (MergeKey::constants(), key.parts()),
        Key::Append(key) => (AppendKey::constants(), key.parts()),
        Key::Lengths(_) => (LengthsKey::constants(), vec![file("flash_lengths").to_owned()]),
        Key::FlashBackward(key) => (key.constants(), key.parts()),
        Key::Linear(key) => (key.constants(), key.parts()),
        Key::Based(key) => (key.constants(), key.parts()),
    };
    let lookup = |name: &str| constants.iter().find(|(n, _)| *n == name).map(|(_, v)| *v);
    let mut wgsl = format!("// {key}\n\n");
    if on_matrices(key) {
        wgsl += "enable f16;\nenable wgpu_cooperative_matrix;\n\n";
    }
    for (name, value) in &constants {
        wgsl += &format!("const {name}: u32 = {value}u;\n");
    }
    wgsl.push('\n');
    let [builtins, invocation] = invocation(parts.iter().any(|part| part == file("invocation_subgroup")));
    for part in parts {
        let part = part.replace("INVOCATION_BUILTINS", builtins).replace("INVOCATION", invocation);
        let text = unroll(&part, &lookup).unwrap_or_else(|message| panic!("{key}: {message}"));
        wgsl += &text;
        wgsl.push('\n');
    }
    wgsl
}

/// How an entry point learns which invocation runs. Not by a structure of builtins: naga's HLSL gives those of subgroups no value there.
fn invocation(by_subgroup: bool) -> [&'static str; 2] {
    if by_subgroup {
        return [
            "@builtin(subgroup_id) own_subgroup: u32,\n    @builtin(subgroup_size) subgroup_lanes: u32,\n    @builtin(subgroup_invocation_id) \
             own_lane: u32,",
            "Invocation(own_subgroup, subgroup_lanes, own_lane)",
        ];
    }
    ["@builtin(local_invocation_index) own_index: u32,", "Invocation(own_index)"]
}

/// Whether a key's kernel multiplies cooperative matrices.
#[must_use]
pub fn on_matrices(key: &Key) -> bool {
    match key {
        Key::Flash(key) => key.kernel == Kernel::Matrix,
        Key::Split(key) => key.kernel == Kernel::Matrix,
        Key::FlashBackward(key) => key.kernel == Kernel::Matrix,
        Key::Linear(key) => key.kernel == Kernel::Matrix,
        Key::Based(key) => key.kernel == Kernel::Matrix,
        _ => false,
    }
}

/// The types of matrices of `side` rows and columns.
pub(crate) fn matrix_types(side: u32) -> String {
    file("matrix_types").replace("SIDExSIDE", &format!("{side}x{side}"))
}

/// The text of `params`, sequences lying in `aux` too.
pub(crate) fn params() -> String {
    file("params").replace("$work", "aux.words")
}

/// Where a kernel finds the state that it starts from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum StartState {
    /// Among those to start from.
    Given,
    /// Among those that are written, where the stretch before left it.
    Resumed,
    /// It is the one that is written: each number is read by the invocation that replaces it.
    InPlace,
}

impl StartState {
    /// The file `name`, reading from there.
    pub(crate) fn fill(self, name: &str) -> String {
        let (states, number) = match self {
            Self::Given => ("state0", "state0"),
            Self::Resumed => ("state", "state0"),
            Self::InPlace => ("state", "state"),
        };
        file(name).replace("$t", states).replace("$n", number)
    }
}

/// A tensor that a kernel loads by rows.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Element {
    pub(crate) name: &'static str,
    pub(crate) slot: u32,
    /// The parameter that holds its dim.
    pub(crate) dim: &'static str,
    pub(crate) storage: Storage,
    pub(crate) access: Access,
    /// Whether the kernel loads two vec4 at a time.
    pub(crate) pairs: bool,
}

/// How an output is stored.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Output {
    pub(crate) name: &'static str,
    pub(crate) slot: u32,
    pub(crate) storage: Storage,
    pub(crate) access: Access,
    /// Whose dim its rows have: `head` or `value`.
    pub(crate) dim: &'static str,
}

impl Output {
    pub(crate) fn of_values(storage: Storage, access: Access) -> Self {
        Self { name: "out", slot: 3, storage, access, dim: "value" }
    }
}

/// How tensors are loaded, and how outputs, all of one storage, are stored.
pub(crate) fn elements(tensors: &[Element], outputs: &[Output]) -> Vec<String> {
    let mut parts = Vec::new();
    for tensor in tensors {
        let words = tensor.storage == Storage::Int8;
        let suffix = match tensor.access {
            Access::Vec4 => "",
            _ if words => "",
            Access::Vec8 => "_wide",
            Access::Any => "_any",
        };
        let slot = tensor.slot.to_string();
        let fill = |text: &str| text.replace("$t", tensor.name).replace("$b", &slot).replace("$n", tensor.dim);
        parts.push(fill(file(&format!("load_{}{suffix}", tensor.storage))));
        if tensor.pairs && (words || tensor.access != Access::Vec8) {
            parts.push(fill(file("load_pair")));
        }
    }
    if let Some(storage) = outputs.iter().map(|out| out.storage).find(|&storage| storage != Storage::F32) {
        parts.push(file(&format!("pack_{storage}")).to_owned());
    }
    for out in outputs {
        let store = match (out.storage, out.access) {
            (Storage::F32, Access::Vec4 | Access::Vec8) => "store_f32",
            (Storage::F32, Access::Any) => "store_f32_any",
            (_, Access::Any) => "store_packed_any",
            (_, Access::Vec4 | Access::Vec8) => "store_packed",
        };
        let slot = out.slot.to_string();
        parts.push(file(store).replace("$t", out.name).replace("$b", &slot).replace("$n", out.dim));
    }
    parts
}

/// The numbers of the header that a shape of matrices tells.
pub(crate) fn matrix_constants(shape: MatrixShape) -> Vec<(&'static str, u32)> {
    let tx = shape.threads / (shape.strips * shape.side);
    vec![
        ("SIDE", shape.side),
        ("STRIPS", shape.strips),
        ("LEAST", shape.own.0.max(1)),
        ("OWN", shape.own.1),
        ("GUARDED", (shape.own.0 != shape.own.1).into()),
        ("THREADS", shape.threads),
        ("TX", tx),
        ("TX_LOG2", tx.ilog2()),
        ("KEY_BLOCKS", shape.key_blocks),
        ("KEY_CHUNKS", shape.key_blocks * shape.side / tx / 4),
    ]
}

pub(crate) const NO_LSE: &str = "fn store_lse(s: Sequence, head: u32, i: u32, f: Finish) {}\n";

/// How what is walked reaches all invocations of a rows kernel: through the subgroup, or each loads it all. `names` are the variables
/// that hold what was loaded.
pub(crate) fn key_sharing(kernel: Kernel, names: &[&str], text: &str) -> String {
    let (builtin, loaded, chunk) = match kernel {
        Kernel::Broadcast => ("subgroup_invocation_id", "lane % KEYS", "lane / KEYS * 2u"),
        _ => ("local_invocation_index", "$nu", "0u"),
    };
    let text = text.replace("LANE_BUILTIN", builtin).replace("LOADED_KEY", loaded).replace("LOADED_CHUNK", chunk);
    names.iter().fold(text, |text, name| {
        let shared = match kernel {
            Kernel::Broadcast => format!("subgroupBroadcast({name}_0, ($cu - $gu) / 2u * KEYS + $nu)"),
            _ => format!("{name}_$n"),
        };
        text.replace(&format!("SHARED({name})"), &shared)
    })
}
