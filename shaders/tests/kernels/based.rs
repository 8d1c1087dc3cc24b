//! BASED.

use wattn_shaders::{
    Access, BasedKey, BasedOp, FEATURE_CLASSES, Kernel, Key, MATRIX_FEATURES, Storage, gradient_values, table,
};

use super::{code, declares, labels_differ, parse, squares_are_sound, written_for_vulkan_and_metal};

/// BASED, every kernel in every form.
fn keys() -> Vec<BasedKey> {
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

/// BASED on matrices, every form that they serve.
fn matrix_keys() -> Vec<BasedKey> {
    let mut keys = Vec::new();
    for side in table::MATRIX_SIDES {
        for subgroups in [(8, 8), (8, 32), (16, 16), (32, 32), (32, 64), (64, 64)] {
            let square = table::matrix_square(side, subgroups);
            for class in [8, MATRIX_FEATURES] {
                let plain = |op, weights| BasedKey {
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
                    reversed: false,
                    values: 0,
                    passes: false,
                };
                for (op, weights, state) in [
                    (BasedOp::Chunk, false, false),
                    (BasedOp::Chunk, true, false),
                    (BasedOp::Chunk, true, true),
                    (BasedOp::State, true, true),
                    (BasedOp::Read, false, false),
                    (BasedOp::Read, true, false),
                ] {
                    let key = BasedKey { state, resumed: state && op == BasedOp::Chunk, ..plain(op, weights) };
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
                    let passes = value_dim > 4 * values;
                    keys.push(BasedKey { reversed, values, passes, ..plain(op, weights) });
                }
            }
        }
    }
    keys
}

#[test]
fn kernels_are_what_their_keys_say() {
    for key in keys() {
        let (module, _) = parse(&Key::Based(key));
        declares(&Key::Based(key), &module, key.workgroup_bytes(), key.invocations());
        assert!(key.workgroup_bytes() <= 16_384, "{key}");
        let uses = code(&Key::Based(key)).contains("subgroup");
        assert_eq!(uses, key.kernel != Kernel::TileUniversal, "{key}");
    }
}

#[test]
fn kernels_on_matrices_are_what_their_keys_say() {
    for key in matrix_keys() {
        let (module, info) = parse(&Key::Based(key));
        squares_are_sound(&Key::Based(key), &module, key.square, key.workgroup_bytes(), key.invocations());
        written_for_vulkan_and_metal(&key.to_string(), &module, &info);
    }
}

#[test]
fn labels_tell_kernels_apart() {
    labels_differ(&[keys(), matrix_keys()].concat());
}
