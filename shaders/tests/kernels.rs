//! The menu, kernel by kernel: naga accepts it for every back end, workgroup memory is what the table says, bindings are few.

use naga::valid::{Capabilities, ModuleInfo, ValidationFlags, Validator};
use wattn_shaders::{
    Access, BROADCAST_CLASS, BackwardOp, BasedKey, BasedOp, FEATURE_CLASSES, FlashBackwardKey, FlashKey, HEAD_CLASSES,
    Kernel, Key, LaneShape, LinearKey, LinearOp, MATRIX_FEATURES, MatrixSquare, ScoreOptions, Shape, SplitKey,
    SplitMatrices, Storage, bindings, compose, gradient_values, on_matrices, table,
};

/// Every kernel and shape of the menu with the dims it may have, plain and with every option.
fn keys() -> Vec<FlashKey> {
    let lanes = |lanes, keys| Shape::Lanes(LaneShape { lanes, rows: 2, keys });
    let tiles = || table::TILES.map(Shape::Tile);
    let mut designs: Vec<(Kernel, Shape)> = Vec::new();
    designs.extend(tiles().map(|shape| (Kernel::TileUniversal, shape)));
    designs.extend(tiles().map(|shape| (Kernel::TileSubgroup, shape)));
    designs.push((Kernel::TileUniversal, Shape::Lanes(table::ROWS_CPU)));
    designs.extend(table::LANES.map(|n| (Kernel::Broadcast, lanes(n, n))));
    let all = ScoreOptions { softcap: true, alibi: true, bias: true, mask: true, sinks: true, lse: true };
    let mut keys = Vec::new();
    for (kernel, shape) in designs {
        for value_class in table::DIM_CLASSES {
            let shape = match shape {
                Shape::Lanes(shape) if kernel == Kernel::Broadcast => Shape::Lanes(LaneShape {
                    keys: table::backward_keys(shape.lanes, value_class, value_class),
                    ..shape
                }),
                _ => shape,
            };
            for storage in [Storage::F32, Storage::F16] {
                for access in [Access::Vec4, Access::Any] {
                    for options in [ScoreOptions::default(), all] {
                        let head_class = if matches!(shape, Shape::Lanes(_)) { value_class } else { 0 };
                        let padded = access == Access::Any && head_class > 0;
                        keys.push(FlashKey {
                            kernel,
                            shape,
                            q: storage,
                            k: Storage::F32,
                            v: Storage::F32,
                            access,
                            paged: false,
                            head_class,
                            padded,
                            value_class,
                            options,
                        });
                    }
                }
            }
        }
    }
    keys
}

/// The kernel on matrices, for subgroups as devices have them.
fn matrix_keys() -> Vec<FlashKey> {
    let all = ScoreOptions { softcap: true, alibi: true, bias: true, mask: true, sinks: true, lse: true };
    let mut keys = Vec::new();
    for side in table::MATRIX_SIDES {
        for subgroups in [(8, 8), (16, 16), (32, 32), (32, 64), (64, 64)] {
            for (head_class, value_class) in [(16, 16), (32, 64), (64, 64), (64, 128), (128, 128), (0, 128), (0, 16)] {
                for (access, options) in [(Access::Vec4, ScoreOptions::default()), (Access::Any, all)] {
                    keys.push(FlashKey {
                        kernel: Kernel::Matrix,
                        shape: Shape::Matrix(table::matrix_shape(side, subgroups)),
                        q: Storage::F16,
                        k: Storage::F16,
                        v: Storage::F16,
                        access,
                        paged: false,
                        head_class,
                        padded: access == Access::Any,
                        value_class,
                        options,
                    });
                }
            }
        }
    }
    keys
}

/// Few rows over many keys on matrices, likewise.
fn split_matrix_keys() -> Vec<SplitKey> {
    let all = ScoreOptions { softcap: true, alibi: true, bias: true, mask: true, ..ScoreOptions::default() };
    let mut keys = Vec::new();
    for side in table::MATRIX_SIDES {
        for subgroups in [(4, 8), (8, 8), (8, 32), (16, 16), (32, 32), (32, 64), (64, 64)] {
            let matrices = SplitMatrices::new(side, subgroups);
            for rows in matrices.rows() {
                for (head_class, value_class) in
                    [(16, 16), (32, 64), (64, 64), (64, 128), (128, 128), (0, 128), (0, 16)]
                {
                    for (access, options) in [(Access::Vec4, ScoreOptions::default()), (Access::Any, all)] {
                        keys.push(SplitKey {
                            kernel: Kernel::Matrix,
                            lanes: 0,
                            matrices: Some(matrices),
                            rows,
                            q: Storage::F16,
                            k: Storage::F16,
                            v: Storage::F16,
                            access,
                            paged: access == Access::Vec4,
                            device: access == Access::Any,
                            head_class,
                            padded: access == Access::Any,
                            value_class,
                            options,
                        });
                    }
                }
            }
        }
    }
    keys.sort_unstable();
    keys.dedup();
    keys
}

/// The linear family on matrices, likewise.
fn linear_matrix_keys() -> Vec<LinearKey> {
    let mut keys = Vec::new();
    for side in table::MATRIX_SIDES {
        for subgroups in [(8, 8), (8, 32), (16, 16), (32, 32), (32, 64), (64, 64)] {
            let square = table::matrix_square(side, subgroups);
            for (head_class, access, gated, state) in [
                (16, Access::Vec4, false, true),
                (64, Access::Vec4, true, false),
                (128, Access::Any, false, true),
                (256, Access::Any, true, true),
            ] {
                let plain = LinearKey {
                    op: LinearOp::Chunk,
                    kernel: Kernel::Matrix,
                    lanes: 0,
                    square: Some(square),
                    q: Storage::F16,
                    kv: Storage::F16,
                    access,
                    head_class,
                    padded: access == Access::Any || head_class < square.edge,
                    gated,
                    state,
                    resumed: false,
                };
                keys.extend([plain, LinearKey { resumed: state, ..plain }]);
                keys.push(LinearKey { op: LinearOp::Segment, state: false, ..plain });
            }
        }
    }
    keys.sort_unstable();
    keys.dedup();
    keys
}

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

/// The linear family, every kernel with every option.
fn linear_keys() -> Vec<LinearKey> {
    let mut keys = Vec::new();
    let walks = [LinearOp::Chunk, LinearOp::Segment, LinearOp::Step];
    let others = [LinearOp::Scan, LinearOp::ScanWithin, LinearOp::Decay, LinearOp::DecaySum];
    for op in walks.into_iter().chain(others) {
        for (kernel, lanes) in Kernel::ALL.into_iter().zip([0, 0, 8]) {
            for head_class in
                HEAD_CLASSES.into_iter().filter(|&class| kernel != Kernel::Broadcast || class <= BROADCAST_CLASS)
            {
                for (q, access) in [(Storage::F32, Access::Vec4), (Storage::F16, Access::Any)] {
                    for (gated, state) in [(false, false), (true, false), (false, true), (true, true)] {
                        let (kv, padded) = (Storage::F32, lanes > 0 && gated);
                        let resumed = false;
                        let square = None;
                        let key = LinearKey {
                            op,
                            kernel,
                            lanes,
                            square,
                            q,
                            kv,
                            access,
                            head_class,
                            padded,
                            gated,
                            state,
                            resumed,
                        };
                        keys.push(key);
                        if state && op == LinearOp::Chunk {
                            keys.push(LinearKey { resumed: true, ..key });
                        }
                    }
                }
            }
        }
    }
    keys
}

/// BASED, every kernel in every form.
fn based_keys() -> Vec<BasedKey> {
    let plain = BasedKey {
        op: BasedOp::Chunk,
        kernel: Kernel::TileUniversal,
        lanes: 0,
        square: None,
        q: Storage::F32,
        kv: Storage::F32,
        access: Access::Vec4,
        class: 0,
        padded: false,
        weights: false,
        state: false,
        resumed: false,
        reversed: false,
        values: 0,
        passes: false,
    };
    let forms = [(Storage::F32, Access::Vec4), (Storage::F16, Access::Any)];
    let mut keys = Vec::new();
    for op in [BasedOp::Chunk, BasedOp::State, BasedOp::Read] {
        for (kernel, lanes) in Kernel::ALL.into_iter().zip([0, 0, 8]) {
            for class in FEATURE_CLASSES.into_iter().filter(|&class| kernel != Kernel::Broadcast || class <= 16) {
                for (q, access) in forms {
                    for (weights, state) in [(false, false), (true, false), (true, true)] {
                        let possible = match op {
                            BasedOp::State => weights && state,
                            BasedOp::Read => !state,
                            _ => true,
                        };
                        let padded = access == Access::Any;
                        let key = BasedKey { op, kernel, lanes, q, access, class, padded, weights, state, ..plain };
                        if possible {
                            keys.extend([key, BasedKey { reversed: true, ..key }]);
                        }
                        if state && op == BasedOp::Chunk {
                            keys.push(BasedKey { resumed: true, ..key });
                        }
                    }
                }
            }
        }
    }
    for op in [BasedOp::Gradient, BasedOp::ReadGradient] {
        for (class, value_dim) in [(8, 16), (16, 64), (16, 128), (32, 64), (32, 16)] {
            let values = gradient_values(class, value_dim);
            for (q, access) in forms {
                for (weights, reversed) in [(false, false), (true, false), (false, true)] {
                    for (kernel, lanes) in [(Kernel::TileUniversal, 0), (Kernel::Broadcast, 8)] {
                        let passes = 4 * values < value_dim;
                        let key = BasedKey { op, kernel, lanes, q, access, class, weights, reversed, ..plain };
                        keys.push(BasedKey { values, passes, ..key });
                    }
                }
            }
        }
    }
    for (q, access) in forms {
        keys.extend([true, false].map(|state| BasedKey {
            op: BasedOp::Step,
            q,
            access,
            state,
            weights: true,
            ..plain
        }));
    }
    keys
}

/// The backward pass of softmax attention, every kernel with every option.
fn backward_keys() -> Vec<FlashBackwardKey> {
    let lanes = |lanes| Shape::Lanes(LaneShape { lanes, rows: 2, keys: table::backward_keys(lanes, 64, 64) });
    let mut designs: Vec<(Kernel, Shape)> = Vec::new();
    for kernel in [Kernel::TileUniversal, Kernel::TileSubgroup] {
        designs.extend(table::TILES.map(|tile| (kernel, Shape::Tile(tile))));
    }
    designs.push((Kernel::TileUniversal, Shape::Lanes(LaneShape { rows: 2, ..table::ROWS_CPU })));
    designs.extend(table::LANES.map(|n| (Kernel::Broadcast, lanes(n))));
    let all = ScoreOptions { softcap: true, alibi: true, bias: true, mask: true, ..ScoreOptions::default() };
    let biased = ScoreOptions { mask: false, ..all };
    let masked = ScoreOptions { bias: false, ..all };
    let forms = [(Storage::F32, Access::Vec4), (Storage::F16, Access::Any)];
    let mut keys = Vec::new();
    for (kernel, shape) in designs {
        let rows = matches!(shape, Shape::Lanes(_));
        for options in [ScoreOptions::default(), biased, masked, all] {
            for (q, access) in forms {
                for op in [
                    BackwardOp::Dq { slopes: false },
                    BackwardOp::Dq { slopes: true },
                    BackwardOp::DkDv,
                    BackwardOp::Dk,
                    BackwardOp::Dv,
                ] {
                    let both = options.bias && options.mask;
                    let alibi = options.alibi || op != (BackwardOp::Dq { slopes: true });
                    if !alibi || (op == BackwardOp::DkDv && (!rows || both)) {
                        continue;
                    }
                    let (head_class, padded, beside) =
                        (if rows { 64 } else { 0 }, rows && both, options.masks_elements());
                    let (kv, value_class) = (Storage::F32, 64);
                    let key = FlashBackwardKey {
                        op,
                        kernel,
                        shape,
                        q,
                        kv,
                        access,
                        head_class,
                        padded,
                        value_class,
                        beside,
                        options,
                    };
                    keys.push(key);
                }
            }
        }
    }
    let single = FlashBackwardKey {
        kernel: Kernel::TileUniversal,
        shape: Shape::Tile(table::TILE_GPU),
        head_class: 0,
        padded: false,
        value_class: 0,
        options: ScoreOptions::default(),
        beside: false,
        ..keys[0]
    };
    for (q, access) in forms {
        let delta = |incoming, beside| FlashBackwardKey {
            op: BackwardOp::Delta { incoming },
            beside,
            q,
            kv: q,
            access,
            ..single
        };
        keys.extend([delta(false, false), delta(true, false), delta(false, true), delta(true, true)]);
        let dbias = FlashBackwardKey { op: BackwardOp::Dbias, beside: true, q, access, ..single };
        keys.extend([biased, all].map(|options| FlashBackwardKey { options, ..dbias }));
    }
    let natural = ScoreOptions { bias: true, ..ScoreOptions::default() };
    let dsinks = FlashBackwardKey { op: BackwardOp::Dsinks, ..single };
    keys.extend([dsinks, FlashBackwardKey { options: natural, ..dsinks }]);
    keys.push(FlashBackwardKey { op: BackwardOp::Dslopes, ..single });
    keys
}

#[test]
fn backward_kernels_are_what_their_keys_say() {
    for key in backward_keys() {
        let (module, _) = parse(&Key::FlashBackward(key));
        assert_eq!(declared_bytes(&module), key.workgroup_bytes(), "{key}");
        // The wide tile of `tile-universal` is a little over with a mask; the other one serves then.
        let wide = key.shape == Shape::Tile(table::TILE_GPU_WIDE) && key.options.masks_elements();
        assert!(key.workgroup_bytes() <= 16_384 || wide, "{key}: {}", key.workgroup_bytes());
        assert_eq!(module.entry_points[0].workgroup_size, [key.invocations(), 1, 1], "{key}");
        let listed: Vec<_> =
            bindings(&Key::FlashBackward(key)).iter().map(|b| (b.slot, b.name.to_owned(), b.writes)).collect();
        assert_eq!(declared_bindings(&module), listed, "{key}");
        assert!(listed.len() <= 8, "{key}");
        let source = compose(&Key::FlashBackward(key));
        let code: String = source.lines().map(|line| line.split("//").next().unwrap_or_default()).collect();
        assert!(!code.contains("subgroup") || key.kernel != Kernel::TileUniversal, "{key}");
        assert_eq!(code.contains("softcapped"), key.options.softcap, "{key}");
    }
}

/// The walks of the backward pass on matrices, for subgroups as devices have them, with rows that stay in them and such that do not.
fn backward_matrix_keys() -> Vec<FlashBackwardKey> {
    let all = ScoreOptions { softcap: true, alibi: true, bias: true, mask: true, ..ScoreOptions::default() };
    let mut keys = Vec::new();
    for side in table::MATRIX_SIDES {
        for subgroups in [(8, 8), (8, 32), (16, 16), (32, 32), (32, 64), (64, 64)] {
            for (head_dim, value_dim) in [(16, 16), (32, 64), (64, 128), (128, 128), (576, 128), (256, 16)] {
                let shape = Shape::Matrix(table::matrix_backward_shape(side, subgroups, head_dim, value_dim));
                for (access, options) in [(Access::Vec4, ScoreOptions::default()), (Access::Any, all)] {
                    for op in [BackwardOp::Dq { slopes: options.alibi }, BackwardOp::Dk, BackwardOp::Dv] {
                        keys.push(FlashBackwardKey {
                            op,
                            kernel: Kernel::Matrix,
                            shape,
                            q: Storage::F16,
                            kv: Storage::F16,
                            access,
                            head_class: table::dim_class(head_dim).unwrap_or(0),
                            padded: access == Access::Any,
                            value_class: value_dim,
                            beside: options.masks_elements(),
                            options,
                        });
                    }
                }
            }
        }
    }
    keys
}

#[test]
fn backward_matrix_kernels_are_what_their_keys_say() {
    for key in backward_matrix_keys() {
        let (module, info) = parse(&Key::FlashBackward(key));
        assert_eq!(declared_bytes(&module), key.workgroup_bytes(), "{key}");
        assert!(key.workgroup_bytes() <= 32_768, "{key}: {}", key.workgroup_bytes());
        // As in the forward pass: what matrices are made of comes first, in whole 16 bytes.
        let shared = declared_memory(&module);
        assert_eq!([shared[0].0, shared[1].0], ["sh_slab", "sh_scores"], "{key}");
        assert!(shared[..2].iter().all(|m| m.1.is_multiple_of(16)), "{key}: {shared:?}");
        assert_eq!(module.entry_points[0].workgroup_size, [key.invocations(), 1, 1], "{key}");
        let listed: Vec<_> =
            bindings(&Key::FlashBackward(key)).iter().map(|b| (b.slot, b.name.to_owned(), b.writes)).collect();
        assert_eq!(declared_bindings(&module), listed, "{key}");
        assert!(listed.len() <= 8, "{key}");
        let (owned, walked) = (key.shape.tile_queries(), key.shape.tile_keys());
        let threads = key.invocations();
        assert!(owned.is_multiple_of(walked) && threads.is_multiple_of(owned) && threads >= walked, "{key}");
        written_for_matrices(&key.to_string(), &module, &info);
    }
}

#[test]
fn backward_labels_tell_kernels_apart() {
    let keys = [backward_keys(), backward_matrix_keys()].concat();
    let labels: std::collections::HashSet<String> = keys.iter().map(ToString::to_string).collect();
    assert_eq!(labels.len(), keys.len());
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

#[test]
fn linear_kernels_are_what_their_keys_say() {
    for key in linear_keys() {
        let (module, _) = parse(&Key::Linear(key));
        assert_eq!(declared_bytes(&module), key.workgroup_bytes(), "{key}");
        assert!(key.workgroup_bytes() <= 16_384, "{key}");
        assert_eq!(module.entry_points[0].workgroup_size, [key.invocations(), 1, 1], "{key}");
        let listed: Vec<_> =
            bindings(&Key::Linear(key)).iter().map(|b| (b.slot, b.name.to_owned(), b.writes)).collect();
        assert_eq!(declared_bindings(&module), listed, "{key}");
        assert!(listed.len() <= 8, "{key}");
        let chunks = matches!(key.op, LinearOp::Chunk | LinearOp::Segment);
        let lanes = key.op == LinearOp::Decay && key.kernel == Kernel::Broadcast;
        let subgroups = lanes || (chunks && key.kernel != Kernel::TileUniversal);
        let uses = compose(&Key::Linear(key))
            .lines()
            .any(|line| line.split("//").next().unwrap_or_default().contains("subgroup"));
        assert_eq!(uses, subgroups, "{key}");
    }
}

#[test]
fn based_kernels_are_what_their_keys_say() {
    for key in based_keys() {
        let (module, _) = parse(&Key::Based(key));
        assert_eq!(declared_bytes(&module), key.workgroup_bytes(), "{key}");
        assert!(key.workgroup_bytes() <= 16_384, "{key}");
        assert_eq!(module.entry_points[0].workgroup_size, [key.invocations(), 1, 1], "{key}");
        let listed: Vec<_> = bindings(&Key::Based(key)).iter().map(|b| (b.slot, b.name.to_owned(), b.writes)).collect();
        assert_eq!(declared_bindings(&module), listed, "{key}");
        assert!(listed.len() <= 8, "{key}");
        let uses = compose(&Key::Based(key))
            .lines()
            .any(|line| line.split("//").next().unwrap_or_default().contains("subgroup"));
        assert_eq!(uses, key.kernel != Kernel::TileUniversal, "{key}");
    }
}

#[test]
fn based_labels_tell_kernels_apart() {
    let keys = [based_keys(), based_matrix_keys()].concat();
    let labels: std::collections::HashSet<String> = keys.iter().map(ToString::to_string).collect();
    assert_eq!(labels.len(), keys.len());
}

#[test]
fn matrix_kernels_are_what_their_keys_say() {
    for key in matrix_keys() {
        let (module, info) = parse(&Key::Flash(key));
        assert_eq!(declared_bytes(&module), table::workgroup_bytes(&key), "{key}");
        assert!(table::workgroup_bytes(&key) <= 32_768, "{key}: {}", table::workgroup_bytes(&key));
        // What matrices are made of comes first, in whole 16 bytes, so that drivers load it by as much.
        let shared = declared_memory(&module);
        let (matrices, rest) = shared.split_at(3);
        assert_eq!(matrices.iter().map(|m| m.0).collect::<Vec<_>>(), ["sh_slab", "sh_scores", "sh_weights"], "{key}");
        assert!(matrices.iter().all(|m| m.1.is_multiple_of(16)) && rest.iter().all(|r| r.1 < 16), "{key}: {shared:?}");
        assert_eq!(module.entry_points[0].workgroup_size, [key.shape.invocations(), 1, 1], "{key}");
        let listed: Vec<_> =
            bindings(&Key::Flash(key)).into_iter().map(|b| (b.slot, b.name.to_owned(), b.writes)).collect();
        assert_eq!(declared_bindings(&module), listed, "{key}");
        written_for_matrices(&key.to_string(), &module, &info);
    }
}

#[test]
fn split_kernels_on_matrices_are_what_their_keys_say() {
    for key in split_matrix_keys() {
        let (module, info) = parse(&Key::Split(key));
        assert_eq!(declared_bytes(&module), key.workgroup_bytes(), "{key}");
        assert!(key.workgroup_bytes() <= 32_768, "{key}: {}", key.workgroup_bytes());
        let shared = declared_memory(&module);
        let (matrices, rest) = shared.split_at(3);
        assert_eq!(matrices.iter().map(|m| m.0).collect::<Vec<_>>(), ["sh_slab", "sh_scores", "sh_weights"], "{key}");
        assert!(matrices.iter().all(|m| m.1.is_multiple_of(16)) && rest.iter().all(|r| r.1 < 16), "{key}: {shared:?}");
        assert_eq!(module.entry_points[0].workgroup_size, [key.invocations(), 1, 1], "{key}");
        let listed: Vec<_> =
            bindings(&Key::Split(key)).into_iter().map(|b| (b.slot, b.name.to_owned(), b.writes)).collect();
        assert_eq!(declared_bindings(&module), listed, "{key}");
        assert!(listed.len() <= 8, "{key}");
        // Keys are staged, and scores taken, by all invocations alike; those of a row lie in one subgroup.
        let (dims, threads) = (if key.head_class > 0 { key.head_class } else { table::STREAM_DIMS }, key.invocations());
        assert!((key.keys() * dims / 4).is_multiple_of(threads) && threads.is_multiple_of(key.rows), "{key}");
        assert!((key.keys() * key.rows / 4).is_multiple_of(threads) && threads.is_multiple_of(key.keys()), "{key}");
        assert!(threads / key.rows <= threads / key.matrices.unwrap().subgroups.1, "{key}");
        written_for_matrices(&key.to_string(), &module, &info);
    }
}

#[test]
fn split_labels_tell_kernels_apart() {
    let keys = split_matrix_keys();
    let labels: std::collections::HashSet<String> = keys.iter().map(ToString::to_string).collect();
    assert_eq!(labels.len(), keys.len());
}

/// The back ends of devices with matrices take a module.
fn written_for_matrices(key: &str, module: &naga::Module, info: &ModuleInfo) {
    let spv = naga::back::spv::Options { lang_version: (1, 3), ..Default::default() };
    naga::back::spv::write_vec(module, info, &spv, None).unwrap_or_else(|e| panic!("{key}: SPIR-V: {e}"));
    let msl = naga::back::msl::Options { lang_version: (2, 4), fake_missing_bindings: true, ..Default::default() };
    naga::back::msl::write_string(module, info, &msl, &naga::back::msl::PipelineOptions::default())
        .unwrap_or_else(|e| panic!("{key}: MSL: {e}"));
}

#[test]
fn linear_kernels_on_matrices_are_what_their_keys_say() {
    for key in linear_matrix_keys() {
        let (module, info) = parse(&Key::Linear(key));
        squares_are_sound(&Key::Linear(key), &module, key.square, key.workgroup_bytes(), key.invocations());
        written_for_matrices(&key.to_string(), &module, &info);
    }
}

/// BASED on matrices, every form that they serve.
fn based_matrix_keys() -> Vec<BasedKey> {
    let mut keys = Vec::new();
    for side in table::MATRIX_SIDES {
        for subgroups in [(8, 8), (8, 32), (16, 16), (32, 32), (32, 64), (64, 64)] {
            let square = table::matrix_square(side, subgroups);
            for class in [8, MATRIX_FEATURES] {
                for (op, weights, state) in [
                    (BasedOp::Chunk, false, false),
                    (BasedOp::Chunk, true, false),
                    (BasedOp::Chunk, true, true),
                    (BasedOp::State, true, true),
                    (BasedOp::Read, false, false),
                    (BasedOp::Read, true, false),
                ] {
                    let key = BasedKey {
                        op,
                        kernel: Kernel::Matrix,
                        lanes: 0,
                        square: Some(square),
                        q: Storage::F16,
                        kv: Storage::F16,
                        access: if weights { Access::Any } else { Access::Vec4 },
                        class,
                        padded: class < MATRIX_FEATURES,
                        weights,
                        state,
                        resumed: state && op == BasedOp::Chunk,
                        reversed: false,
                        values: 0,
                        passes: false,
                    };
                    keys.extend([key, BasedKey { reversed: true, resumed: false, ..key }]);
                }
                for (op, weights, reversed, value_dim) in [
                    (BasedOp::Gradient, false, false, 64),
                    (BasedOp::Gradient, true, false, 64),
                    (BasedOp::Gradient, true, false, 16),
                    (BasedOp::Gradient, false, true, 128),
                    (BasedOp::ReadGradient, false, false, 64),
                    (BasedOp::ReadGradient, true, false, 128),
                    (BasedOp::ReadGradient, false, true, 64),
                ] {
                    let values = square.edge / 4;
                    keys.push(BasedKey {
                        op,
                        kernel: Kernel::Matrix,
                        lanes: 0,
                        square: Some(square),
                        q: Storage::F16,
                        kv: Storage::F16,
                        access: if weights { Access::Any } else { Access::Vec4 },
                        class,
                        padded: class < MATRIX_FEATURES,
                        weights,
                        state: false,
                        resumed: false,
                        reversed,
                        values,
                        passes: value_dim > 4 * values,
                    });
                }
            }
        }
    }
    keys
}

#[test]
fn based_kernels_on_matrices_are_what_their_keys_say() {
    for key in based_matrix_keys() {
        let (module, info) = parse(&Key::Based(key));
        squares_are_sound(&Key::Based(key), &module, key.square, key.workgroup_bytes(), key.invocations());
        written_for_matrices(&key.to_string(), &module, &info);
    }
}

/// Workgroup memory, which begins with what matrices are made of, bindings, and that all squares are staged and shared out evenly.
fn squares_are_sound(key: &Key, module: &naga::Module, square: Option<MatrixSquare>, bytes: u32, invocations: u32) {
    assert_eq!(declared_bytes(module), bytes, "{key}");
    assert!(bytes <= 32_768, "{key}: {bytes}");
    let shared = declared_memory(module);
    let rest = shared.iter().skip_while(|m| m.1.is_multiple_of(16)).map(|m| m.0);
    let single = ["sh_top_value", "sh_top_key", "sh_top_state", "sh_gate", "sh_decay"];
    assert!(rest.into_iter().all(|name| single.contains(&name)), "{key}");
    assert_eq!(module.entry_points[0].workgroup_size, [invocations, 1, 1], "{key}");
    let listed: Vec<_> = bindings(key).into_iter().map(|b| (b.slot, b.name.to_owned(), b.writes)).collect();
    assert_eq!(declared_bindings(module), listed, "{key}");
    assert!(listed.len() <= 8, "{key}");
    let MatrixSquare { side, edge, own, threads } = square.unwrap();
    assert!((edge * edge / 4).is_multiple_of(threads) && edge * edge / 16 <= threads && threads > edge, "{key}");
    assert!(own.1 >= 1 && own.1 <= edge / side, "{key}");
}

#[test]
fn matrices_are_staged_evenly() {
    for key in matrix_keys() {
        let dims = if key.head_class > 0 { key.head_class } else { table::STREAM_DIMS };
        let (keys, threads) = (key.shape.tile_keys(), key.shape.invocations());
        assert!((keys * dims / 4).is_multiple_of(threads), "{key}");
        assert!(threads.is_multiple_of(key.shape.tile_queries()) && threads.is_multiple_of(keys), "{key}");
    }
}

#[test]
fn workgroup_memory_is_what_the_table_says() {
    for key in keys() {
        let (module, _) = parse(&Key::Flash(key));
        assert_eq!(declared_bytes(&module), table::workgroup_bytes(&key), "{key}");
        assert_eq!(module.entry_points[0].workgroup_size, [key.shape.invocations(), 1, 1], "{key}");
    }
}

#[test]
fn gpu_shapes_fit_the_defaults_of_webgpu() {
    for key in keys() {
        // The wide tile of `tile-universal` is a few bytes over with a mask; the other one serves then.
        if matches!(key.shape, Shape::Tile(tile) if tile == table::TILE_GPU || !key.options.masks_elements()) {
            assert!(table::workgroup_bytes(&key) <= 16_384, "{key}: {}", table::workgroup_bytes(&key));
            assert!(key.shape.invocations() <= 256, "{key}");
        }
    }
}

#[test]
fn staging_divides_evenly() {
    for tile in table::TILES {
        let threads = tile.tx * tile.ty;
        assert!(threads.is_multiple_of(tile.k_chunks) && (tile.tx * tile.keys * tile.k_chunks).is_multiple_of(threads));
        for class in table::DIM_CLASSES {
            let (keys, row) = (table::value_keys(tile, class), tile.tx * table::columns(tile, class));
            assert!(threads.is_multiple_of(row) && (keys * row).is_multiple_of(threads), "{tile:?} {class}");
            assert!(keys >= table::KEY_STEP && keys * row <= table::slab(tile), "{tile:?} {class}");
        }
    }
}

#[test]
fn bindings_match_the_source_and_are_at_most_eight() {
    for key in keys() {
        let (module, _) = parse(&Key::Flash(key));
        let listed: Vec<_> =
            bindings(&Key::Flash(key)).into_iter().map(|b| (b.slot, b.name.to_owned(), b.writes)).collect();
        assert_eq!(declared_bindings(&module), listed, "{key}");
        assert!(listed.len() <= 8, "{key}");
    }
}

#[test]
fn unused_options_leave_no_token() {
    // What the files of the options declare. The parameter struct names all operands; what counts is that no code does.
    let scores = ["softcapped", "begin_alibi", "begin_bias", "begin_mask"];
    let tokens = ["aux.params.sinks", "@binding(4)", "@binding(5)", "@binding(6)"].into_iter().chain(scores);
    for key in keys() {
        let source = compose(&Key::Flash(key));
        let code: String = source.lines().map(|line| line.split("//").next().unwrap_or_default()).collect();
        let used = key.options != ScoreOptions::default();
        for token in tokens.clone() {
            assert_eq!(code.contains(token), used, "{key}: {token}");
        }
        let atomics = used && matches!(key.shape, Shape::Tile(_));
        assert_eq!(code.contains("atomic"), atomics, "{key}");
    }
}

#[test]
fn subgroups_are_used_only_by_kernels_that_say_so() {
    for key in keys() {
        let uses = compose(&Key::Flash(key))
            .lines()
            .any(|line| line.split("//").next().unwrap_or_default().contains("subgroup"));
        assert_eq!(uses, key.kernel != Kernel::TileUniversal, "{key}");
    }
}

#[test]
fn labels_tell_kernels_apart() {
    let keys = [keys(), matrix_keys()].concat();
    let labels: std::collections::HashSet<String> = keys.iter().map(ToString::to_string).collect();
    assert_eq!(labels.len(), keys.len());
}

#[test]
fn every_back_end_takes_the_gpu_kernels() {
    for key in keys().into_iter().filter(|key| matches!(key.shape, Shape::Tile(_)) && key.value_class == 64) {
        let (module, info) = parse(&Key::Flash(key));
        let spv = naga::back::spv::Options { lang_version: (1, 3), ..Default::default() };
        naga::back::spv::write_vec(&module, &info, &spv, None).unwrap_or_else(|e| panic!("{key}: SPIR-V: {e}"));
        let msl = naga::back::msl::Options { lang_version: (2, 4), fake_missing_bindings: true, ..Default::default() };
        naga::back::msl::write_string(&module, &info, &msl, &naga::back::msl::PipelineOptions::default())
            .unwrap_or_else(|e| panic!("{key}: MSL: {e}"));
        let hlsl = naga::back::hlsl::Options {
            shader_model: naga::back::hlsl::ShaderModel::V6_0,
            fake_missing_bindings: true,
            ..Default::default()
        };
        let mut text = String::new();
        let options = naga::back::hlsl::PipelineOptions::default();
        naga::back::hlsl::Writer::new(&mut text, &hlsl, &options)
            .write(&module, &info, None)
            .unwrap_or_else(|e| panic!("{key}: HLSL: {e}"));
    }
}
