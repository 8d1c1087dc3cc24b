//! Few queries, on matrices.

use wattn_shaders::{Access, Kernel, Key, ScoreOptions, SplitKey, SplitMatrices, Storage, table};

use super::{declared_memory, declares, labels_differ, parse, written_for_vulkan_and_metal};

/// Few rows over many keys on matrices, likewise.
fn matrix_keys() -> Vec<SplitKey> {
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

#[test]
fn kernels_on_matrices_are_what_their_keys_say() {
    for key in matrix_keys() {
        let (module, info) = parse(&Key::Split(key));
        declares(&Key::Split(key), &module, key.workgroup_bytes(), key.invocations());
        assert!(key.workgroup_bytes() <= 32_768, "{key}: {}", key.workgroup_bytes());
        let shared = declared_memory(&module);
        let (matrices, rest) = shared.split_at(3);
        assert_eq!(matrices.iter().map(|m| m.0).collect::<Vec<_>>(), ["sh_slab", "sh_scores", "sh_weights"], "{key}");
        assert!(matrices.iter().all(|m| m.1.is_multiple_of(16)) && rest.iter().all(|r| r.1 < 16), "{key}: {shared:?}");
        // Keys are staged, and scores taken, by all invocations alike; those of a row lie in one subgroup.
        let (dims, threads) = (if key.head_class > 0 { key.head_class } else { table::STREAM_DIMS }, key.invocations());
        assert!((key.keys() * dims / 4).is_multiple_of(threads) && threads.is_multiple_of(key.rows), "{key}");
        assert!((key.keys() * key.rows / 4).is_multiple_of(threads) && threads.is_multiple_of(key.keys()), "{key}");
        assert!(threads / key.rows <= threads / key.matrices.unwrap().subgroups.1, "{key}");
        written_for_vulkan_and_metal(&key.to_string(), &module, &info);
    }
}

#[test]
fn labels_tell_kernels_apart() {
    labels_differ(&matrix_keys());
}
