//! Linear attention with decay.

use wattn_shaders::{Access, BROADCAST_CLASS, HEAD_CLASSES, Kernel, Key, LinearKey, LinearOp, Storage, table};

use super::{code, declares, parse, squares_are_sound, written_for_vulkan_and_metal};

/// The linear family, every kernel with every option.
fn keys() -> Vec<LinearKey> {
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

/// The linear family on matrices, likewise.
fn matrix_keys() -> Vec<LinearKey> {
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

#[test]
fn kernels_are_what_their_keys_say() {
    for key in keys() {
        let (module, _) = parse(&Key::Linear(key));
        declares(&Key::Linear(key), &module, key.workgroup_bytes(), key.invocations());
        assert!(key.workgroup_bytes() <= 16_384, "{key}");
        let chunks = matches!(key.op, LinearOp::Chunk | LinearOp::Segment);
        let lanes = key.op == LinearOp::Decay && key.kernel == Kernel::Broadcast;
        let subgroups = lanes || (chunks && key.kernel != Kernel::TileUniversal);
        let uses = code(&Key::Linear(key)).contains("subgroup");
        assert_eq!(uses, subgroups, "{key}");
    }
}

#[test]
fn kernels_on_matrices_are_what_their_keys_say() {
    for key in matrix_keys() {
        let (module, info) = parse(&Key::Linear(key));
        squares_are_sound(&Key::Linear(key), &module, key.square, key.workgroup_bytes(), key.invocations());
        written_for_vulkan_and_metal(&key.to_string(), &module, &info);
    }
}
