//! What is planned on simulated devices.

mod common;

use common::devices;
use wattn_scheduler::shaders::{self, BackwardOp, Kernel, Key, Shape, Storage, table};
use wattn_scheduler::{
    Attention, BackwardPlan, Capabilities, DeviceKind, Driver, Extent, HeadDim, Heads, Lightning, LinearPlan, Plan,
    PlanError, Tokens,
};

fn attention(heads: u32, dim: u32) -> Attention {
    Attention::new(Heads::new(heads).unwrap(), HeadDim::new(dim).unwrap())
}

#[test]
fn each_device_gets_its_kernel_with_a_reason() {
    for (name, device, kernel) in devices() {
        let plan = Plan::new(&attention(8, 64), Extent::new(1, 1024, 1024), &device).unwrap();
        assert_eq!(plan.key.kernel, kernel, "{name}: {plan}");
        assert!(!plan.reason.is_empty(), "{name}");
        assert!(plan.to_string().contains(kernel.name()), "{name}: {plan}");
    }
}

#[test]
fn gpus_with_matrices_attend_in_f16_on_them() {
    for (name, device, other) in devices() {
        for (dim, value) in [(13 * 2, 10), (64, 64), (128, 128), (576, 512)] {
            let heads = Attention::new(Heads::grouped(8, 2).unwrap(), HeadDim::with_value(dim, value).unwrap());
            let every = heads.causal().bias().mask().sinks().alibi().softcap(30.0).lse();
            for attention in [heads, every].map(|a| a.storage(Storage::F16)) {
                let plan = Plan::new(&attention, Extent::new(2, 100, 300), &device).unwrap();
                let expected = device.matrix.is_some() && device.kind != DeviceKind::Cpu;
                assert_eq!(plan.key.kernel == Kernel::Matrix, expected, "{name}: {plan}");
                assert!(plan.workgroup_bytes <= device.workgroup_bytes, "{name}: {plan}");
                let Shape::Matrix(shape) = plan.key.shape else { continue };
                assert_eq!(Some(shape.side), device.matrix, "{name}: {plan}");
                assert!(plan.reason.contains(&format!("matrices of {0} x {0}", shape.side)), "{name}: {plan}");
                // However large its subgroups are, they share out all strips.
                let (min, max) = device.subgroups.unwrap();
                for size in [min, max] {
                    let subgroups = shape.threads / size;
                    assert!(subgroups * shape.own.1 >= shape.strips, "{name}: {plan}");
                    assert!(shape.strips.div_ceil(subgroups) >= shape.own.0, "{name}: {plan}");
                }
                // What is not f16 goes to the tile.
                for storage in [Storage::F32, Storage::Bf16] {
                    let plan = Plan::new(&attention.storage(storage), Extent::new(1, 64, 64), &device).unwrap();
                    assert_ne!(plan.key.kernel, Kernel::Matrix, "{name}: {plan}");
                }
            }
        }
        let plain = attention(8, 64);
        assert_eq!(Plan::new(&plain, Extent::new(1, 64, 64), &device).unwrap().key.kernel, other, "{name}");
    }
}

#[test]
fn gpus_with_matrices_take_gradients_in_f16_on_them() {
    for (name, device, _) in devices() {
        for (dim, value) in [(13 * 2, 10), (64, 64), (64, 128), (128, 128), (576, 512)] {
            let heads = Attention::new(Heads::grouped(8, 2).unwrap(), HeadDim::with_value(dim, value).unwrap());
            let every = heads.causal().bias().mask().sinks().alibi().softcap(30.0).storage(Storage::F16).backward();
            let every = every.bias_gradient().sinks_gradient().slopes_gradient().lse_gradient();
            for backward in [heads.storage(Storage::F16).backward(), every] {
                let plan = BackwardPlan::new(&backward, Extent::new(2, 100, 300), &device).unwrap();
                let expected = device.matrix.is_some() && device.kind != DeviceKind::Cpu;
                assert_eq!(plan.kernel == Kernel::Matrix, expected, "{name}: {plan}");
                assert!(plan.workgroup_bytes <= device.workgroup_bytes, "{name}: {plan}");
                let Shape::Matrix(shape) = plan.shape() else { continue };
                let walks: Vec<_> = plan.steps.iter().filter(|step| step.key.kernel == Kernel::Matrix).collect();
                assert_eq!(walks.len(), 3, "{name}: {plan}");
                for step in walks {
                    assert_eq!(step.key.shape, Shape::Matrix(shape), "{name}: {plan}");
                    let result = if step.key.op == BackwardOp::Dv { value } else { dim };
                    assert!(step.splits * step.key.value_class.max(step.key.head_class) >= result, "{name}: {plan}");
                }
                // However large its subgroups are, they share out all strips.
                let (min, max) = device.subgroups.unwrap();
                for size in [min, max] {
                    let subgroups = shape.threads / size;
                    assert!(subgroups * shape.own.1 >= shape.strips, "{name}: {plan}");
                    assert!(shape.strips / subgroups >= shape.own.0, "{name}: {plan}");
                }
            }
            let single = BackwardPlan::new(&heads.backward(), Extent::new(1, 64, 64), &device).unwrap();
            assert_ne!(single.kernel, Kernel::Matrix, "{name}");
        }
    }
}

#[test]
fn matrices_that_cannot_serve_are_refused_with_the_reason() {
    let pinned = attention(8, 64).kernel(Kernel::Matrix);
    let half = pinned.storage(Storage::F16);
    let device = |name: &str| devices().into_iter().find(|d| d.0 == name).unwrap().1;
    let (nvidia, tile) = (device("NVIDIA"), Shape::Tile(table::TILES[0]));
    for (attention, device, needle) in [
        (pinned, nvidia, "q would be f32"),
        (pinned.storage(Storage::Bf16), nvidia, "q would be bf16"),
        (pinned.mixed_storage(Storage::F16, Storage::F32), nvidia, "k and v would be f32"),
        (half.shape(tile), nvidia, &format!("shape {tile} is not on its menu, ")),
        (half, device("RDNA"), "no square matrices"),
        (half, Capabilities { matrix: Some(32), ..nvidia }, "[8, 16]"),
        (half, Capabilities { subgroups: None, ..nvidia }, "no subgroups"),
        (half, Capabilities { workgroup_bytes: 16_384, ..nvidia }, "16384 available"),
        (half, Capabilities { subgroups: Some((16, 16)), ..device("lavapipe 26") }, "crash"),
    ] {
        let error = Plan::new(&attention, Extent::new(1, 64, 64), &device).unwrap_err();
        assert!(matches!(error, PlanError::Kernel { kernel: Kernel::Matrix, .. }), "{error}");
        assert!(error.to_string().contains(needle), "{error}");
        let error = BackwardPlan::new(&attention.backward(), Extent::new(1, 64, 64), &device).unwrap_err();
        assert!(matches!(error, PlanError::Kernel { kernel: Kernel::Matrix, .. }), "{error}");
        assert!(error.to_string().contains(needle), "{error}");
    }
    Plan::new(&half, Extent::new(1, 64, 64), &device("lavapipe 26")).unwrap();
    BackwardPlan::new(&half.backward(), Extent::new(1, 64, 64), &device("lavapipe 26")).unwrap();
}

#[test]
fn wide_values_get_a_tile_that_their_registers_hold() {
    for (name, device, kernel) in devices().into_iter().filter(|d| d.1.kind != DeviceKind::Cpu) {
        let plan = Plan::new(&attention(8, 128), Extent::new(1, 1024, 1024), &device).unwrap();
        assert_eq!(plan.key.shape, Shape::Tile(table::TILE_GPU_WIDE), "{name}: {plan}");
        let small = device.subgroups.is_some_and(|(min, _)| min < table::TILE_GPU_WIDE.tx);
        assert_eq!(plan.key.kernel, if small { Kernel::TileUniversal } else { kernel }, "{name}: {plan}");
    }
}

#[test]
fn no_plan_exceeds_its_device() {
    for (name, device, _) in devices() {
        for dim in [1, 13, 16, 40, 64, 80, 128, 192, 256, 576] {
            for kernel in [None, Some(Kernel::TileUniversal), Some(Kernel::TileSubgroup), Some(Kernel::Broadcast)] {
                let options = attention(4, dim).causal().bias().mask().sinks().lse();
                let options = kernel.map_or(options, |k| options.kernel(k));
                let Ok(plan) = Plan::new(&options, Extent::new(2, 100, 300), &device) else {
                    assert!(kernel.is_some(), "{name}: some kernel serves dim {dim}");
                    continue;
                };
                assert!(plan.workgroup_bytes <= device.workgroup_bytes, "{name}: {plan}");
                assert!(plan.key.shape.invocations() <= device.workgroup_invocations, "{name}: {plan}");
                assert_eq!(plan.workspace_bytes, 0, "{name}");
                assert_eq!(
                    kernel.unwrap_or(plan.key.kernel),
                    plan.key.kernel,
                    "{name}: a pinned kernel runs or is an error"
                );
            }
        }
    }
}

#[test]
fn no_backward_plan_exceeds_its_device() {
    for (name, device, _) in devices() {
        for dim in [1, 13, 16, 40, 64, 80, 128, 192, 256, 576] {
            for kernel in [None, Some(Kernel::TileUniversal), Some(Kernel::TileSubgroup), Some(Kernel::Broadcast)] {
                let plain = kernel.map_or(attention(4, dim), |k| attention(4, dim).kernel(k));
                let options = plain.causal().bias().mask().sinks().alibi().backward();
                let all = options.bias_gradient().sinks_gradient().slopes_gradient().lse_gradient();
                for (backward, record) in [(all, 1 + dim.div_ceil(4)), (plain.backward(), 1)] {
                    let Ok(plan) = BackwardPlan::new(&backward, Extent::new(2, 100, 300), &device) else {
                        assert!(kernel.is_some(), "{name}: some kernel serves dim {dim}");
                        continue;
                    };
                    assert!(plan.workgroup_bytes <= device.workgroup_bytes, "{name}: {plan}");
                    assert_eq!(plan.workspace_bytes, 2 * 4 * 100 * 16 * u64::from(record), "{name}: {plan}");
                    assert_eq!(kernel.unwrap_or(plan.kernel), plan.kernel, "{name}");
                    for step in &plan.steps {
                        let bindings = shaders::bindings(&Key::FlashBackward(step.key)).len();
                        assert!(bindings <= 8, "{name}: {bindings} bindings of {}", step.key);
                        assert!(step.key.invocations() <= device.workgroup_invocations, "{name}: {}", step.key);
                    }
                }
            }
        }
    }
}

#[test]
fn small_limits_are_refused_with_both_numbers() {
    let tiny = Capabilities { workgroup_bytes: 4096, ..Capabilities::webgpu_defaults() };
    let error = Plan::new(&attention(1, 64), Extent::new(1, 8, 8), &tiny).unwrap_err();
    assert!(error.to_string().contains("4096"), "{error}");

    let narrow = Capabilities { storage_buffers: 4, ..Capabilities::webgpu_defaults() };
    let error = Plan::new(&attention(1, 64), Extent::new(1, 8, 8), &narrow).unwrap_err();
    assert!(matches!(error, PlanError::Limit { needed: 5, available: 4, .. }), "{error}");

    let small = Capabilities { binding_bytes: 1 << 20, ..Capabilities::webgpu_defaults() };
    let error = Plan::new(&attention(1, 64), Extent::new(1, 8, 1 << 20), &small).unwrap_err();
    assert!(error.to_string().contains(&(64 * 4 * (1_u64 << 20)).to_string()), "{error}");
}

#[test]
fn bindings_beyond_the_limit_are_served_head_by_head() {
    let device = Capabilities { binding_bytes: 1 << 20, ..Capabilities::webgpu_defaults() };
    // One key/value head of keys has 512 KiB: one at a time fits 1 MiB less the alignment.
    let heads = Attention::new(Heads::grouped(8, 4).unwrap(), HeadDim::new(64).unwrap());
    let plan = Plan::new(&heads, Extent::new(2, 16, 2048), &device).unwrap();
    assert_eq!(plan.parts.len(), 2 * 4);
    let covered: u32 =
        plan.parts.iter().map(|p| (p.batch.end - p.batch.start) * (p.kv_heads.end - p.kv_heads.start)).sum();
    assert_eq!(covered, 2 * 4);

    // Whole batch entries go together where they fit.
    let plan = Plan::new(&heads, Extent::new(9, 16, 64), &device).unwrap();
    assert_eq!(plan.parts.iter().map(|p| p.batch.end - p.batch.start).sum::<u32>(), 9);
    assert!(plan.parts.len() < 9, "{:?}", plan.parts);
}

#[test]
fn grids_hold_all_workgroups_within_the_axis_limit() {
    let device = Capabilities::webgpu_defaults();
    let plan = Plan::new(&attention(512, 16), Extent::new(4096, 1, 1), &device).unwrap();
    assert_eq!(plan.workgroups, 512 * 4096);
    for workgroups in [1, 65_535, 65_536, 131_071, 512 * 4096, u32::MAX / 65_537] {
        let [x, y] = plan.grid(workgroups);
        assert!(x <= 65_535 && y <= 65_535);
        assert!(u64::from(x) * u64::from(y) >= u64::from(workgroups), "{workgroups}");
        assert!(u64::from(x) * u64::from(y) < u64::from(workgroups) + u64::from(y), "{workgroups}");
    }
    let error = Plan::new(&attention(1 << 16, 16), Extent::new(1 << 16, 1, 1), &device).unwrap_err();
    assert!(error.to_string().contains("workgroups") || error.to_string().contains("bytes"), "{error}");
}

#[test]
fn long_problems_come_in_slices() {
    let cpu = devices().into_iter().find(|d| d.0 == "lavapipe").unwrap().1;
    let short = Plan::new(&attention(8, 64), Extent::new(1, 1024, 1024), &cpu).unwrap();
    let long = Plan::new(&attention(8, 64), Extent::new(1, 16384, 16384), &cpu).unwrap();
    assert_eq!(short.slices, 1);
    assert!(long.slices > 4, "{long}");
}

#[test]
fn loops_that_a_driver_would_end_are_refused() {
    let cpu = devices().into_iter().find(|d| d.0 == "lavapipe").unwrap().1;
    let long = Extent::new(1, 1, 1 << 20);
    let error = Plan::new(&attention(1, 16), long, &cpu).unwrap_err();
    assert!(error.to_string().contains("keys: 1048576"), "{error}");
    for bounded in [attention(1, 16).sliding(1000), attention(1, 16).causal().window(999, None)] {
        Plan::new(&bounded, long, &cpu).unwrap();
        BackwardPlan::new(&bounded.backward(), long, &cpu).unwrap();
    }
    // A top-left diagonal may lie anywhere, and without a left side nothing is too far.
    for open in [attention(1, 16).causal_top_left().window(999, None), attention(1, 16).causal()] {
        Plan::new(&open, long, &cpu).unwrap_err();
        BackwardPlan::new(&open.backward(), long, &cpu).unwrap_err();
    }
    let other = Capabilities { loop_turns: None, ..cpu };
    Plan::new(&attention(1, 16), long, &other).unwrap();
}

#[test]
fn packed_sequences_share_the_limits_of_one_batch_entry() {
    let cpu = devices().into_iter().find(|d| d.0 == "lavapipe").unwrap().1;
    let backward = attention(1, 4).sinks().alibi().backward();
    let gradients = backward.sinks_gradient().slopes_gradient();
    BackwardPlan::new(&gradients, Extent::packed(256, 16_384, 16_384), &cpu).unwrap();
    // As a batch, a kernel would add up the parts of four million queries.
    let error = BackwardPlan::new(&gradients, Extent::new(256, 16_384, 16_384), &cpu).unwrap_err();
    assert!(error.to_string().contains("65536 turns"), "{error}");
    // A tile is a workgroup, and so is what each sequence leaves of one: 2^28 and not 2^43.
    let most = 1 << 14;
    let short = attention(1 << 14, 4).backward();
    let gpu = Capabilities { binding_bytes: 1 << 50, ..Capabilities::webgpu_defaults() };
    BackwardPlan::new(&short, Extent::packed(most, most, most), &gpu).unwrap();
    let error = BackwardPlan::new(&short, Extent::packed(1 << 18, most, most), &gpu).unwrap_err();
    assert!(error.to_string().contains("workgroups"), "{error}");
}

#[test]
fn gradients_that_sum_over_entries_come_in_parts_that_a_driver_does_not_end() {
    let cpu = devices().into_iter().find(|d| d.0 == "lavapipe").unwrap().1;
    let extent = Extent::new(64, 16, 16);
    let parts = |backward| BackwardPlan::new(&backward, extent, &cpu).unwrap().parts;
    let bias = attention(32, 64).bias().backward();
    assert_eq!(parts(bias).len(), 1);
    // Of 36 turns a head, 64,511 are 1,791 heads.
    let entries: Vec<u32> = parts(bias.bias_gradient()).iter().map(|p| p.batch.end - p.batch.start).collect();
    assert_eq!(entries, [55, 9]);
    // Each part goes through its own queries alone: those of 256 batch entries would be too many.
    let sinks = attention(1, 64).sinks().backward().sinks_gradient();
    BackwardPlan::new(&sinks, Extent::new(256, 16_384, 16), &cpu).unwrap();
    let group = Attention::new(Heads::grouped(2048, 1).unwrap(), HeadDim::new(64).unwrap()).bias().backward();
    let error = BackwardPlan::new(&group.bias_gradient(), Extent::new(1, 16, 16), &cpu).unwrap_err();
    assert!(error.to_string().contains("73728 turns"), "{error}");
}

#[test]
fn work_is_counted_from_visible_scores() {
    let device = Capabilities::webgpu_defaults();
    let plan = |a: Attention| Plan::new(&a, Extent::new(1, 100, 100), &device).unwrap();
    assert_eq!(plan(attention(2, 64)).scores, 2 * 100 * 100);
    assert_eq!(plan(attention(2, 64).causal()).scores, 2 * 5050);
    assert_eq!(plan(attention(2, 64).sliding(10)).scores, 2 * (45 + 91 * 10));
    assert_eq!(plan(attention(1, 64)).flops, 4 * 64 * 10_000);
    // q, k, v, out: 100 x 64 numbers each.
    assert_eq!(plan(attention(1, 64)).bytes, 4 * 100 * 64 * 4);
    assert_eq!(plan(attention(1, 64).storage(Storage::F16)).bytes, 4 * 100 * 64 * 2);
}

#[test]
fn wide_values_are_split_over_workgroups() {
    let device = Capabilities::webgpu_defaults();
    let heads = Attention::new(Heads::new(1).unwrap(), HeadDim::with_value(576, 512).unwrap());
    let plan = Plan::new(&heads, Extent::new(1, 10, 10), &device).unwrap();
    assert_eq!(plan.splits, 4);
    assert_eq!(plan.key.value_class, table::VALUE_SPLIT);
    assert!(matches!(plan.key.shape, Shape::Tile(_)));
}

#[test]
fn extents_beyond_all_limits_are_refused_without_overflow() {
    let most = 1 << 29;
    for (name, device, _) in devices() {
        for heads in [1, 1 << 16, u32::MAX] {
            for batch in [1, u32::MAX] {
                for (queries, keys) in [(1, most), (most, 1), (most, most), (1, 1), (1, 1 << 18)] {
                    for extent in [Extent::new(batch, queries, keys), Extent::packed(batch, queries, keys)] {
                        let plain = attention(heads, 64).lse();
                        for operator in [plain, plain.bias().mask()] {
                            // Served or refused, but never a panic, and never an endless list of dispatches.
                            if let Ok(plan) = Plan::new(&operator, extent, &device) {
                                assert!(plan.parts.len() <= 1 << 16, "{name}: {plan}");
                            }
                        }
                    }
                }
            }
        }
    }
    let error = Plan::new(&attention(1, 64), Extent::new(1, most + 1, 1), &devices()[0].1).unwrap_err();
    assert!(error.to_string().contains("536870912"), "{error}");
}

#[test]
fn menus_keep_drivers_from_what_they_compile_for_long() {
    let device = |mesa, lanes| {
        let lavapipe = devices().into_iter().find(|d| d.0 == "lavapipe").unwrap().1;
        Capabilities { driver: Driver::Llvmpipe { mesa }, subgroups: Some((lanes, lanes)), ..lavapipe }
    };
    let extent = Extent::new(1, 64, 64);
    let rows = |attention: Attention, device| match Plan::new(&attention, extent, &device).unwrap().key.shape {
        Shape::Lanes(shape) => shape.rows,
        other => panic!("{other}"),
    };
    // Dims, with the rows that compile quickly on Mesa 22, 25 and 26; of 25, with 8 and with 16 lanes: each below 5 seconds on 25.0.7.
    for (dim, by_driver) in [(32, [6, 6, 6, 1]), (64, [8, 4, 8, 1]), (128, [4, 2, 4, 1])] {
        let found =
            [(22, 8), (25, 8), (26, 8), (25, 16)].map(|(mesa, lanes)| rows(attention(2, dim), device(mesa, lanes)));
        assert_eq!(found, by_driver, "head dim {dim}");
        let alone = Capabilities { subgroups: None, ..device(25, 8) };
        assert!(rows(attention(2, dim), alone) * dim <= 128);
    }
    // With a bias the rows are fewer, as its loads take long too; keys a step by how much code the rows are.
    let shape = |attention| Plan::new(&attention, extent, &device(22, 8)).unwrap().key.shape.to_string();
    let shapes = [16, 32, 64, 128].map(|dim| [attention(2, dim), attention(2, dim).bias()].map(shape));
    assert_eq!(shapes, [["8of6x4", "8of4x4"], ["8of6x2", "8of4x2"], ["8of8x4", "8of4x4"], ["8of4x4", "8of2x4"]]);

    let plan = Plan::new(&attention(2, 64), extent, &device(25, 8)).unwrap();
    assert!(plan.to_string().contains("4 rows a lane, not 8: Mesa 23 to 25 takes"), "{plan}");

    // Linear attention has no fewer rows to go to, but another kernel; who pins it all the same, is told.
    let lightning = Lightning::new(2, HeadDim::new(128).unwrap());
    let linear =
        |lightning: &Lightning, mesa| LinearPlan::new(lightning, Tokens::new(1, 64), &device(mesa, 8)).unwrap();
    assert_eq!(linear(&lightning, 22).sweeps[0].walk.kernel, Kernel::Broadcast);
    let plan = linear(&lightning, 25);
    assert_eq!(plan.sweeps[0].walk.kernel, Kernel::TileUniversal);
    assert!(plan.to_string().contains("not broadcast: Mesa 23 to 25 takes"), "{plan}");
    let plan = linear(&lightning.kernel(Kernel::Broadcast), 25);
    assert_eq!(plan.sweeps[0].walk.kernel, Kernel::Broadcast);
    assert!(plan.to_string().contains("pinned although Mesa 23 to 25"), "{plan}");
}

#[test]
fn matrices_that_a_driver_may_only_pretend_to_have_are_for_who_pins_them() {
    let nvidia = devices().into_iter().find(|d| d.0 == "NVIDIA").unwrap().1;
    let amd = Capabilities { driver: Driver::Amd, ..nvidia };
    let half = attention(8, 64).storage(Storage::F16);
    let plan = Plan::new(&half, Extent::new(1, 64, 64), &amd).unwrap();
    assert_eq!(plan.key.kernel, Kernel::TileSubgroup);
    assert!(plan.to_string().contains("not matrix: AMD's own driver"), "{plan}");
    let plan = Plan::new(&half.kernel(Kernel::Matrix), Extent::new(1, 64, 64), &amd).unwrap();
    assert!(plan.to_string().contains("pinned although AMD's own driver"), "{plan}");
}

#[test]
fn the_readme_shows_a_plan_as_it_is_printed() {
    let lavapipe = devices().into_iter().find(|d| d.0 == "lavapipe").unwrap().1;
    let plan = Plan::new(&attention(8, 64), Extent::new(1, 1024, 1024), &lavapipe).unwrap();
    let shown = include_str!("../../../README.md").split("## Reading a plan\n\n```text\n").nth(1).unwrap();
    assert_eq!(shown.split("```").next().unwrap().trim_end(), plan.to_string());
}
