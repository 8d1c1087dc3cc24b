//! Softmax attention, backward.

use wattn_shaders::{
    Access, BackwardOp, FlashBackwardKey, Kernel, Key, LaneShape, ScoreOptions, Shape, Storage, table,
};

use super::{code, declared_memory, declares, labels_differ, parse, written_for_vulkan_and_metal};

/// The backward pass of softmax attention, every kernel with every option.
fn keys() -> Vec<FlashBackwardKey> {
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

/// The walks of the backward pass on matrices, for subgroups as devices have them, with rows that stay in them and such that do not.
fn matrix_keys() -> Vec<FlashBackwardKey> {
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
fn kernels_are_what_their_keys_say() {
    for key in keys() {
        let (module, _) = parse(&Key::FlashBackward(key));
        declares(&Key::FlashBackward(key), &module, key.workgroup_bytes(), key.invocations());
        // The wide tile of `tile-universal` is a little over with a mask; the other one serves then.
        let wide = key.shape == Shape::Tile(table::TILE_GPU_WIDE) && key.options.masks_elements();
        assert!(key.workgroup_bytes() <= 16_384 || wide, "{key}: {}", key.workgroup_bytes());
        let code = code(&Key::FlashBackward(key));
        assert!(!code.contains("subgroup") || key.kernel != Kernel::TileUniversal, "{key}");
        assert_eq!(code.contains("softcapped"), key.options.softcap, "{key}");
    }
}

#[test]
fn kernels_on_matrices_are_what_their_keys_say() {
    for key in matrix_keys() {
        let (module, info) = parse(&Key::FlashBackward(key));
        declares(&Key::FlashBackward(key), &module, key.workgroup_bytes(), key.invocations());
        assert!(key.workgroup_bytes() <= 32_768, "{key}: {}", key.workgroup_bytes());
        // As in the forward pass: what matrices are made of comes first, in whole 16 bytes.
        let shared = declared_memory(&module);
        assert_eq!([shared[0].0, shared[1].0], ["sh_slab", "sh_scores"], "{key}");
        assert!(shared[..2].iter().all(|m| m.1.is_multiple_of(16)), "{key}: {shared:?}");
        let (owned, walked) = (key.shape.tile_queries(), key.shape.tile_keys());
        let threads = key.invocations();
        assert!(owned.is_multiple_of(walked) && threads.is_multiple_of(owned) && threads >= walked, "{key}");
        written_for_vulkan_and_metal(&key.to_string(), &module, &info);
    }
}

#[test]
fn labels_tell_kernels_apart() {
    labels_differ(&[keys(), matrix_keys()].concat());
}
