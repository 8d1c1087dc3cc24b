//! Validates the composed kernels with naga, so that a mistake in a shader fails the build with naga's own message.
#![expect(dead_code, unreachable_pub, reason = "the modules of the library, of which a build script uses a part")]

#[path = "src/append.rs"]
mod append;
#[path = "src/based.rs"]
mod based;
#[path = "src/based_sizes.rs"]
mod based_sizes;
#[path = "src/compose.rs"]
mod compose;
#[path = "src/flash_backward.rs"]
mod flash_backward;
#[path = "src/flash_backward_sizes.rs"]
mod flash_backward_sizes;
#[path = "src/flash_forward.rs"]
mod flash_forward;
#[path = "src/key.rs"]
mod key;
#[path = "src/linear.rs"]
mod linear;
#[path = "src/score.rs"]
mod score;
#[path = "src/split.rs"]
mod split;
#[path = "src/table.rs"]
mod table;
#[path = "src/unroll.rs"]
mod unroll;

use append::AppendKey;
use based::{BasedKey, BasedOp};
use flash_backward::{BackwardOp, FlashBackwardKey};
use key::{Access, FlashKey, Kernel, Key, LaneShape, ScoreOptions, Shape, Storage};
use linear::{LinearKey, LinearOp};
use split::{LengthsKey, MergeKey, SplitKey, SplitMatrices};

fn main() {
    println!("cargo::rerun-if-changed=.");
    println!("cargo::rustc-env=WATTN_SHADERS_FINGERPRINT={:016x}", fingerprint());
    for key in keys() {
        let source = compose::compose(&key);
        if let Err(message) = validate(&source) {
            println!("cargo::error={key}");
            for line in message.lines() {
                println!("cargo::error={line}");
            }
        }
    }
}

/// FNV-1a of all that kernels are made from: their files, and the code that composes them.
fn fingerprint() -> u64 {
    let list = |folder: &str| std::fs::read_dir(folder).expect("the package's own folder");
    let mut paths: Vec<_> = list(".").chain(list("src")).map(|entry| entry.expect("an entry of it").path()).collect();
    paths.retain(|path| path.extension().is_some_and(|end| end == "wgsl" || end == "rs"));
    paths.sort();
    let bytes = paths.into_iter().flat_map(|path| std::fs::read(path).expect("a file of the package"));
    bytes.fold(0xcbf2_9ce4_8422_2325, |hash, byte| (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3))
}

/// Each fragment at least once with each kernel; the full menu is validated by the package's tests.
fn keys() -> Vec<Key> {
    let lanes = Shape::Lanes(LaneShape { lanes: 8, rows: 2, keys: table::backward_keys(8, 32, 32) });
    let designs = [
        (Kernel::TileUniversal, Shape::Tile(table::TILE_GPU)),
        (Kernel::TileUniversal, Shape::Lanes(LaneShape { rows: 2, ..table::ROWS_CPU })),
        (Kernel::TileSubgroup, Shape::Tile(table::TILE_GPU)),
        (Kernel::Broadcast, lanes),
    ];
    let all = ScoreOptions { softcap: true, alibi: true, bias: true, mask: true, sinks: true, lse: true };
    let mut keys = Vec::new();
    for (kernel, shape) in designs {
        let head_class = if matches!(shape, Shape::Lanes(_)) { 32 } else { 0 };
        for (storage, access) in [
            (Storage::F32, Access::Vec4),
            (Storage::F32, Access::Any),
            (Storage::F16, Access::Vec4),
            (Storage::F16, Access::Any),
            (Storage::Bf16, Access::Vec4),
            (Storage::Bf16, Access::Any),
            (Storage::F32, Access::Vec8),
            (Storage::F16, Access::Vec8),
            (Storage::Bf16, Access::Vec8),
        ] {
            if access == Access::Vec8 && matches!(shape, Shape::Tile(_)) {
                continue;
            }
            for options in [ScoreOptions::default(), all] {
                let padded = access == Access::Any && head_class > 0;
                keys.push(Key::Flash(FlashKey {
                    kernel,
                    shape,
                    q: storage,
                    k: storage,
                    v: storage,
                    access,
                    paged: access == Access::Vec8,
                    head_class,
                    padded,
                    value_class: 32,
                    options,
                }));
            }
        }
    }
    keys.extend(matrix_keys().map(Key::Flash));
    keys.extend(split_keys());
    keys.extend(flash_backward_keys().map(Key::FlashBackward));
    keys.extend(linear_keys().chain(linear_matrix_keys()).map(Key::Linear));
    keys.extend(based_keys().chain(based_matrix_keys()).map(Key::Based));
    keys
}

/// Both sides of matrices, queries that stay and queries that are staged with their keys.
fn matrix_keys() -> impl Iterator<Item = FlashKey> {
    let all = ScoreOptions { softcap: true, alibi: true, bias: true, mask: true, sinks: true, lse: true };
    let forms = [
        (Access::Vec4, 32, ScoreOptions::default()),
        (Access::Any, 0, ScoreOptions::default()),
        (Access::Any, 32, all),
    ];
    table::MATRIX_SIDES.into_iter().zip([(8, 8), (32, 64)]).flat_map(move |(side, subgroups)| {
        forms.map(|(access, head_class, options)| FlashKey {
            kernel: Kernel::Matrix,
            shape: Shape::Matrix(table::matrix_shape(side, subgroups)),
            q: Storage::F16,
            k: Storage::F16,
            v: Storage::F16,
            access,
            paged: false,
            head_class,
            padded: access == Access::Any,
            value_class: 32,
            options,
        })
    })
}

/// The kernels of few rows over many keys.
fn split_keys() -> impl Iterator<Item = Key> {
    let all = ScoreOptions { softcap: true, alibi: true, bias: true, mask: true, sinks: false, lse: false };
    let forms = [
        (Storage::F32, Access::Vec8),
        (Storage::Int8, Access::Vec8),
        (Storage::F16, Access::Vec4),
        (Storage::Bf16, Access::Any),
    ];
    let splits = [(Kernel::Broadcast, 8, 2), (Kernel::TileUniversal, 0, 8)].into_iter().flat_map(
        move |(kernel, lanes, rows)| {
            forms.into_iter().flat_map(move |(k, access)| {
                [ScoreOptions::default(), all].map(|options| {
                    Key::Split(SplitKey {
                        kernel,
                        lanes,
                        matrices: None,
                        rows,
                        q: Storage::F32,
                        k,
                        v: k,
                        access,
                        paged: access == Access::Vec8,
                        device: options.bias,
                        head_class: if lanes > 0 { 32 } else { 0 },
                        padded: options.bias,
                        value_class: 32,
                        options,
                    })
                })
            })
        },
    );
    let merges = [(Storage::F32, false), (Storage::F16, true)].map(|(out, on)| {
        Key::Merge(MergeKey { out, access: Access::Vec4, natural: on, sinks: on, lse: on, device: on })
    });
    let appends = [(Storage::F16, false), (Storage::Int8, true)]
        .map(|(to, device)| Key::Append(AppendKey { from: Storage::F32, access: Access::Vec4, to, device }));
    splits.chain(split_matrix_keys()).chain(merges).chain(appends).chain([Key::Lengths(LengthsKey)])
}

/// On both sides of matrices, with queries that stay and queries that are staged with their keys.
fn split_matrix_keys() -> impl Iterator<Item = Key> {
    let all = ScoreOptions { softcap: true, alibi: true, bias: true, mask: true, sinks: false, lse: false };
    let forms = [(Access::Vec4, 32, ScoreOptions::default()), (Access::Any, 0, all)];
    table::MATRIX_SIDES.into_iter().zip([(8, 8), (32, 64)]).flat_map(move |(side, subgroups)| {
        let matrices = SplitMatrices::new(side, subgroups);
        forms.map(|(access, head_class, options)| {
            Key::Split(SplitKey {
                kernel: Kernel::Matrix,
                lanes: 0,
                matrices: Some(matrices),
                rows: matrices.rows()[usize::from(head_class == 0)],
                q: Storage::F16,
                k: Storage::F16,
                v: Storage::F16,
                access,
                paged: head_class > 0,
                device: options.bias,
                head_class,
                padded: options.bias,
                value_class: 32,
                options,
            })
        })
    })
}

/// Each form of the backward pass of softmax attention with each kernel.
fn flash_backward_keys() -> impl Iterator<Item = FlashBackwardKey> {
    let lanes = Shape::Lanes(LaneShape { lanes: 8, rows: 2, keys: table::backward_keys(8, 32, 32) });
    let alone = Shape::Lanes(LaneShape { rows: 2, ..table::ROWS_CPU });
    let tile = Shape::Tile(table::TILE_GPU);
    let designs = [
        (Kernel::TileUniversal, tile),
        (Kernel::TileUniversal, alone),
        (Kernel::TileSubgroup, tile),
        (Kernel::Broadcast, lanes),
        (Kernel::Matrix, Shape::Matrix(table::matrix_shape(16, (32, 64)))),
    ];
    let all = ScoreOptions { softcap: true, alibi: true, bias: true, mask: true, ..ScoreOptions::default() };
    let forms = [
        (Storage::F32, Access::Vec4, ScoreOptions::default()),
        (Storage::F16, Access::Vec4, all),
        (Storage::Bf16, Access::Any, ScoreOptions { mask: false, ..all }),
        (Storage::F32, Access::Vec8, ScoreOptions { bias: false, ..all }),
    ];
    designs.into_iter().flat_map(move |(kernel, shape)| {
        forms.into_iter().flat_map(move |(q, access, options)| {
            let on = options != ScoreOptions::default();
            let rows = matches!(shape, Shape::Lanes(_));
            // Rows that stay in matrices, and such that are staged with what is walked.
            let held = rows || (kernel == Kernel::Matrix && access == Access::Vec4);
            let ops = [
                BackwardOp::Delta { incoming: on },
                BackwardOp::Dq { slopes: on },
                BackwardOp::DkDv,
                BackwardOp::Dk,
                BackwardOp::Dv,
                BackwardOp::Dbias,
                BackwardOp::Dsinks,
                BackwardOp::Dslopes,
            ];
            let beside = options.masks_elements();
            ops.map(|op| FlashBackwardKey {
                op,
                kernel,
                shape,
                q,
                kv: Storage::F32,
                access: if rows || access == Access::Any { access } else { Access::Vec4 },
                head_class: if held { 32 } else { 0 },
                padded: on && (rows || kernel == Kernel::Matrix),
                value_class: 32,
                beside,
                options,
            })
            .into_iter()
            .filter(move |key| match key.op {
                BackwardOp::DkDv => rows && !(options.bias && options.mask),
                BackwardOp::Dbias => options.bias,
                _ => true,
            })
        })
    })
}

/// Each fragment of the linear family at least once.
fn linear_keys() -> impl Iterator<Item = LinearKey> {
    let walks = [LinearOp::Chunk, LinearOp::Segment, LinearOp::Step];
    let ops = [LinearOp::Scan, LinearOp::ScanWithin, LinearOp::Decay, LinearOp::DecaySum].into_iter().chain(walks);
    let kernels = [Kernel::TileUniversal, Kernel::TileSubgroup, Kernel::Broadcast];
    let forms = [(Storage::F32, Access::Vec4), (Storage::F32, Access::Vec8), (Storage::Bf16, Access::Any)];
    ops.flat_map(move |op| {
        kernels.into_iter().flat_map(move |kernel| {
            forms.into_iter().flat_map(move |(q, access)| {
                let forms = [(false, false), (true, false), (false, true), (true, true)];
                forms.map(|(gated, state)| LinearKey {
                    op,
                    kernel,
                    lanes: if kernel == Kernel::Broadcast { 8 } else { 0 },
                    square: None,
                    q,
                    kv: Storage::F32,
                    access,
                    head_class: 16,
                    padded: gated,
                    gated,
                    state,
                    resumed: gated && state && op == LinearOp::Chunk,
                })
            })
        })
    })
}

/// Both sides of matrices, with one slab and with several.
fn linear_matrix_keys() -> impl Iterator<Item = LinearKey> {
    let forms = [(Access::Vec4, false, false), (Access::Any, true, true)];
    table::MATRIX_SIDES.into_iter().zip([(8, 8), (32, 64)]).flat_map(move |(side, subgroups)| {
        forms.into_iter().flat_map(move |(access, gated, state)| {
            [LinearOp::Chunk, LinearOp::Segment].map(|op| LinearKey {
                op,
                kernel: Kernel::Matrix,
                lanes: 0,
                square: Some(table::matrix_square(side, subgroups)),
                q: Storage::F16,
                kv: Storage::F16,
                access,
                head_class: if gated { 16 } else { 64 },
                padded: gated,
                gated,
                state,
                resumed: state && op == LinearOp::Chunk,
            })
        })
    })
}

/// Each form of BASED with each kernel.
fn based_keys() -> impl Iterator<Item = BasedKey> {
    let kernels = [Kernel::TileUniversal, Kernel::TileSubgroup, Kernel::Broadcast];
    let walks = [BasedOp::Chunk, BasedOp::State, BasedOp::Read].into_iter().flat_map(move |op| {
        kernels
            .into_iter()
            .flat_map(move |kernel| [(true, false), (false, false), (true, true)].map(|f| (op, kernel, f)))
    });
    let others = [BasedOp::Gradient, BasedOp::ReadGradient, BasedOp::Step].into_iter().flat_map(|op| {
        let lanes = if op == BasedOp::Step { Kernel::TileUniversal } else { Kernel::Broadcast };
        let tile = Kernel::TileUniversal;
        [(lanes, (true, false)), (lanes, (true, true)), (tile, (false, false)), (tile, (false, true))]
            .map(|(kernel, form)| (op, kernel, form))
    });
    walks.chain(others).map(|(op, kernel, (all, reversed))| {
        let gradient = matches!(op, BasedOp::Gradient | BasedOp::ReadGradient);
        BasedKey {
            op,
            kernel,
            lanes: if kernel == Kernel::Broadcast { 8 } else { 0 },
            square: None,
            q: Storage::F32,
            kv: Storage::F32,
            access: if all { Access::Any } else { Access::Vec4 },
            class: if op == BasedOp::Step { 0 } else { 8 },
            padded: all && !gradient,
            weights: (all && !(gradient && reversed)) || op == BasedOp::State,
            state: all && matches!(op, BasedOp::Chunk | BasedOp::Step),
            resumed: all && !reversed && op == BasedOp::Chunk,
            reversed: reversed && op != BasedOp::Step,
            values: if gradient { 4 } else { 0 },
            passes: all && gradient,
        }
    })
}

/// The same on matrices of both sides.
fn based_matrix_keys() -> impl Iterator<Item = BasedKey> {
    let forms = [
        (BasedOp::Chunk, true, true, false),
        (BasedOp::Chunk, false, false, false),
        (BasedOp::Chunk, true, true, true),
        (BasedOp::State, true, true, false),
        (BasedOp::State, true, true, true),
        (BasedOp::Read, true, false, false),
        (BasedOp::Read, false, false, false),
        (BasedOp::Gradient, true, false, false),
        (BasedOp::Gradient, false, false, true),
        (BasedOp::ReadGradient, true, false, false),
        (BasedOp::ReadGradient, false, false, true),
    ];
    table::MATRIX_SIDES.into_iter().zip([(8, 8), (32, 64)]).flat_map(move |(side, subgroups)| {
        forms.map(|(op, weights, state, reversed)| {
            let square = table::matrix_square(side, subgroups);
            let gradient = matches!(op, BasedOp::Gradient | BasedOp::ReadGradient);
            BasedKey {
                op,
                kernel: Kernel::Matrix,
                lanes: 0,
                square: Some(square),
                q: Storage::F16,
                kv: Storage::F16,
                access: if weights { Access::Any } else { Access::Vec4 },
                class: 8,
                padded: true,
                weights,
                state,
                resumed: state && op == BasedOp::Chunk && !reversed,
                reversed,
                values: if gradient { square.edge / 4 } else { 0 },
                passes: gradient,
            }
        })
    })
}

fn validate(source: &str) -> Result<(), String> {
    let module = naga::front::wgsl::parse_str(source).map_err(|e| e.emit_to_string(source))?;
    naga::valid::Validator::new(naga::valid::ValidationFlags::all(), naga::valid::Capabilities::all())
        .validate(&module)
        .map_err(|e| e.emit_to_string(source))?;
    Ok(())
}
