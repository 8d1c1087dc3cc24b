//! The menu, kernel by kernel: naga accepts it for every back end, workgroup memory is what the table says, bindings are few.

mod backward;
mod based;
mod linear;
mod softmax;
mod split;

use std::collections::HashSet;

use naga::valid::{Capabilities, ModuleInfo, ValidationFlags, Validator};
use wattn_shaders::{Key, MatrixSquare, bindings, compose, on_matrices};

fn parse(key: &Key) -> (naga::Module, ModuleInfo) {
    let source = compose(key);
    let module =
        naga::front::wgsl::parse_str(&source).unwrap_or_else(|e| panic!("{key}: {}", e.emit_to_string(&source)));
    // naga makes a branch of each, where `&` and `|` are one instruction; in loops SwiftShader walks all ways through a chain of those.
    assert!(!source.contains("&&") && !source.contains("||"), "{key}");
    // In structures naga's HLSL gives builtins of subgroups no value, which DXC refuses.
    assert!(module.entry_points[0].function.arguments.iter().all(|argument| argument.binding.is_some()), "{key}");
    let plain = Capabilities::SUBGROUP | Capabilities::SHADER_FLOAT16_IN_FLOAT32;
    let matrices = Capabilities::SHADER_FLOAT16 | Capabilities::COOPERATIVE_MATRIX;
    let capabilities = if on_matrices(key) { plain | matrices } else { plain };
    let mut validator = Validator::new(ValidationFlags::all(), capabilities);
    let info = validator.validate(&module).unwrap_or_else(|e| panic!("{key}: {}", e.emit_to_string(&source)));
    (module, info)
}

/// The workgroup memory that a module declares: names and bytes.
fn declared_memory(module: &naga::Module) -> Vec<(&str, u32)> {
    let mut layouter = naga::proc::Layouter::default();
    layouter.update(module.to_ctx()).unwrap();
    let shared = module.global_variables.iter().filter(|(_, v)| v.space == naga::AddressSpace::WorkGroup);
    shared.map(|(_, v)| (v.name.as_deref().unwrap_or_default(), layouter[v.ty].size)).collect()
}

/// Bytes of workgroup memory that a module declares, each variable rounded up to 16.
fn declared_bytes(module: &naga::Module) -> u32 {
    declared_memory(module).into_iter().map(|(_, bytes)| bytes.next_multiple_of(16)).sum()
}

/// The storage bindings that a module declares.
fn declared_bindings(module: &naga::Module) -> Vec<(u32, String, bool)> {
    let mut declared: Vec<_> = module
        .global_variables
        .iter()
        .filter_map(|(_, v)| {
            let naga::AddressSpace::Storage { access } = v.space else { return None };
            let writes = access.contains(naga::StorageAccess::STORE);
            Some((v.binding.as_ref()?.binding, v.name.clone()?, writes))
        })
        .collect();
    declared.sort();
    declared
}

/// A module has the workgroup memory, the workgroup and the bindings that its kernel's host side takes it to have.
fn declares(key: &Key, module: &naga::Module, bytes: u32, invocations: u32) {
    assert_eq!(declared_bytes(module), bytes, "{key}");
    assert_eq!(module.entry_points[0].workgroup_size, [invocations, 1, 1], "{key}");
    let listed: Vec<_> = bindings(key).into_iter().map(|b| (b.slot, b.name.to_owned(), b.writes)).collect();
    assert_eq!(declared_bindings(module), listed, "{key}");
    assert!(listed.len() <= 8, "{key}");
}

/// The code of a kernel without its comments.
fn code(key: &Key) -> String {
    compose(key).lines().map(|line| line.split("//").next().unwrap_or_default()).collect()
}

/// No two keys have one label.
fn labels_differ(keys: &[impl ToString]) {
    let labels: HashSet<String> = keys.iter().map(ToString::to_string).collect();
    assert_eq!(labels.len(), keys.len());
}

/// The back ends of devices that may have matrices take a module.
fn written_for_vulkan_and_metal(key: &str, module: &naga::Module, info: &ModuleInfo) {
    let spv = naga::back::spv::Options { lang_version: (1, 3), ..Default::default() };
    naga::back::spv::write_vec(module, info, &spv, None).unwrap_or_else(|e| panic!("{key}: SPIR-V: {e}"));
    let msl = naga::back::msl::Options { lang_version: (2, 4), fake_missing_bindings: true, ..Default::default() };
    naga::back::msl::write_string(module, info, &msl, &naga::back::msl::PipelineOptions::default())
        .unwrap_or_else(|e| panic!("{key}: MSL: {e}"));
}

/// Workgroup memory, which begins with what matrices are made of, bindings, and that all squares are staged and shared out evenly.
fn squares_are_sound(key: &Key, module: &naga::Module, square: Option<MatrixSquare>, bytes: u32, invocations: u32) {
    declares(key, module, bytes, invocations);
    assert!(bytes <= 32_768, "{key}: {bytes}");
    let shared = declared_memory(module);
    let rest = shared.iter().skip_while(|m| m.1.is_multiple_of(16)).map(|m| m.0);
    let single = ["sh_top_value", "sh_top_key", "sh_top_state", "sh_gate", "sh_decay"];
    assert!(rest.into_iter().all(|name| single.contains(&name)), "{key}");
    let MatrixSquare { side, edge, own, threads } = square.unwrap();
    assert!((edge * edge / 4).is_multiple_of(threads) && edge * edge / 16 <= threads && threads > edge, "{key}");
    assert!(own.1 >= 1 && own.1 <= edge / side, "{key}");
}
