//! Softmax attention, forward.

use wattn_shaders::{Access, FlashKey, Kernel, Key, LaneShape, ScoreOptions, Shape, Storage, table};

use super::{code, declared_memory, declares, labels_differ, parse, written_for_vulkan_and_metal};

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

#[test]
fn kernels_are_what_their_keys_say() {
    for key in keys() {
        let (module, _) = parse(&Key::Flash(key));
        declares(&Key::Flash(key), &module, table::workgroup_bytes(&key), key.shape.invocations());
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
fn unused_options_leave_no_token() {
    // What the files of the options declare. The parameter struct names all operands; what counts is that no code does.
    let scores = ["softcapped", "begin_alibi", "begin_bias", "begin_mask"];
    let tokens = ["aux.params.sinks", "@binding(4)", "@binding(5)", "@binding(6)"].into_iter().chain(scores);
    for key in keys() {
        let code = code(&Key::Flash(key));
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
        let uses = code(&Key::Flash(key)).contains("subgroup");
        assert_eq!(uses, key.kernel != Kernel::TileUniversal, "{key}");
    }
}

#[test]
fn labels_tell_kernels_apart() {
    labels_differ(&[keys(), matrix_keys()].concat());
}

#[test]
fn every_back_end_takes_the_gpu_kernels() {
    for key in keys().into_iter().filter(|key| matches!(key.shape, Shape::Tile(_)) && key.value_class == 64) {
        let (module, info) = parse(&Key::Flash(key));
        written_for_vulkan_and_metal(&key.to_string(), &module, &info);
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

#[test]
fn kernels_on_matrices_are_what_their_keys_say() {
    for key in matrix_keys() {
        let (module, info) = parse(&Key::Flash(key));
        declares(&Key::Flash(key), &module, table::workgroup_bytes(&key), key.shape.invocations());
        assert!(table::workgroup_bytes(&key) <= 32_768, "{key}: {}", table::workgroup_bytes(&key));
        // What matrices are made of comes first, in whole 16 bytes, so that drivers load it by as much.
        let shared = declared_memory(&module);
        let (matrices, rest) = shared.split_at(3);
        assert_eq!(matrices.iter().map(|m| m.0).collect::<Vec<_>>(), ["sh_slab", "sh_scores", "sh_weights"], "{key}");
        assert!(matrices.iter().all(|m| m.1.is_multiple_of(16)) && rest.iter().all(|r| r.1 < 16), "{key}: {shared:?}");
        written_for_vulkan_and_metal(&key.to_string(), &module, &info);
    }
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
