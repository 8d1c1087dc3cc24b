//! What is planned for linear attention on simulated devices.

use wattn_scheduler::shaders::{Kernel, Storage, table};
use wattn_scheduler::{
    Capabilities, Decay, DeviceKind, Driver, HeadDim, Lightning, LinearPlan, PlanError, Schedule, Tokens,
};

fn gpu() -> Capabilities {
    Capabilities {
        kind: DeviceKind::Discrete,
        subgroups: Some((32, 32)),
        workgroup_bytes: 32 << 10,
        workgroup_invocations: 1024,
        binding_bytes: 2 << 30,
        ..Capabilities::webgpu_defaults()
    }
}

fn lavapipe() -> Capabilities {
    Capabilities {
        kind: DeviceKind::Cpu,
        driver: Driver::Llvmpipe { mesa: 22 },
        subgroups: Some((8, 8)),
        int64: true,
        loop_turns: Some(65_535),
        ..gpu()
    }
}

fn lightning(heads: u32, dim: u32) -> Lightning {
    Lightning::new(heads, HeadDim::new(dim).unwrap())
}

#[test]
fn few_heads_are_cut_into_segments() {
    let plan = |heads, tokens| LinearPlan::new(&lightning(heads, 64), Tokens::new(1, tokens), &gpu()).unwrap();
    let few = plan(4, 65_536);
    assert_eq!(few.schedule, Schedule::Segments, "{few}");
    assert!(few.segments > 8 && few.segments <= 64, "{few}");
    assert!(few.segment_tokens * few.segments >= 65_536, "{few}");
    assert_eq!(plan(512, 65_536).schedule, Schedule::Sequential);
    assert_eq!(plan(4, 256).schedule, Schedule::Sequential, "too short to be worth a scan");
}

#[test]
fn segments_follow_the_tokens_of_one_sequence() {
    let plan = |heads, extent| LinearPlan::new(&lightning(heads, 64), extent, &gpu()).unwrap();
    let batch = plan(8, Tokens::new(8, 2048));
    assert_eq!((batch.schedule, batch.segment_tokens), (Schedule::Segments, 512), "{batch}");
    // Sequences of 1,024 tokens on average.
    let packed = plan(2, Tokens::packed(16, 16_384));
    assert_eq!((packed.schedule, packed.segment_tokens), (Schedule::Segments, 128), "{packed}");
    assert_eq!(plan(2, Tokens::packed(16, 16 * 511)).schedule, Schedule::Sequential, "too short to be worth a scan");
}

#[test]
fn workspace_does_not_grow_with_tokens() {
    let bytes = |tokens| LinearPlan::new(&lightning(4, 64), Tokens::new(1, tokens), &gpu()).unwrap().workspace_bytes;
    assert_eq!(bytes(1 << 16), bytes(1 << 20));
    assert_eq!(bytes(1 << 16), 64 * 4 * 64 * 64 * 4);
    let sequential = lightning(4, 64).schedule(Schedule::Sequential);
    assert_eq!(LinearPlan::new(&sequential, Tokens::new(1, 1 << 20), &gpu()).unwrap().workspace_bytes, 0);
}

#[test]
fn each_device_gets_its_kernel_and_no_plan_exceeds_it() {
    let devices = [
        (Capabilities::webgpu_defaults(), Kernel::TileUniversal),
        (gpu(), Kernel::TileSubgroup),
        (Capabilities { subgroups: Some((4, 16)), ..gpu() }, Kernel::TileUniversal),
        (lavapipe(), Kernel::Broadcast),
        (Capabilities { subgroups: None, ..lavapipe() }, Kernel::TileUniversal),
    ];
    for (device, kernel) in devices {
        for dim in [1, 13, 16, 40, 64, 128, 256] {
            let gradient = lightning(3, dim).decay(Decay::Gates).backward().decay_gradient();
            for lightning in [lightning(3, dim), lightning(3, dim).backward(), gradient, lightning(3, dim).step()] {
                let step = lightning == lightning.clone().step();
                let tokens = Tokens::new(2, if step { 1 } else { 1000 });
                let plan = LinearPlan::new(&lightning, tokens, &device).unwrap();
                assert!(plan.workgroup_bytes <= device.workgroup_bytes, "{plan}");
                if dim == 64 || step {
                    let kernel = if step { Kernel::TileUniversal } else { kernel };
                    assert_eq!(plan.sweeps[0].walk.kernel, kernel, "{plan}");
                }
                assert!(plan.to_string().contains(plan.sweeps[0].walk.kernel.name()), "{plan}");
            }
        }
    }
}

#[test]
fn gpus_with_matrices_multiply_on_them_in_f16() {
    for side in table::MATRIX_SIDES {
        let device = Capabilities { matrix: Some(side), ..gpu() };
        for dim in [16, 26, 64, 128, 256] {
            let half = lightning(8, dim).storage(Storage::F16);
            for lightning in [half.clone(), half.clone().backward(), half.clone().decay(Decay::Gates)] {
                for schedule in [Schedule::Sequential, Schedule::Segments] {
                    let lightning = lightning.clone().schedule(schedule);
                    let plan = LinearPlan::new(&lightning, Tokens::new(2, 1000), &device).unwrap();
                    assert!(plan.workgroup_bytes <= device.workgroup_bytes, "{plan}");
                    assert!(plan.reason.contains(&format!("matrices of {side} x {side}")), "{plan}");
                    for sweep in &plan.sweeps {
                        assert_eq!(sweep.walk.kernel, Kernel::Matrix, "{plan}");
                        assert_eq!(sweep.states.map(|[states, _]| states.kernel), sweep.states.map(|_| Kernel::Matrix));
                    }
                }
            }
            // The gradient of the decay takes no part in it, and what is not f16, or one token, is no matter of matrices.
            let gradient = half.clone().decay(Decay::Gates).backward().decay_gradient();
            let plan = LinearPlan::new(&gradient, Tokens::new(2, 1000), &device).unwrap();
            assert_eq!(plan.decay.unwrap().chunk.kernel, Kernel::TileUniversal);
            for (lightning, tokens, kernel) in
                [(lightning(8, dim), 1000, Kernel::TileSubgroup), (half.step(), 1, Kernel::TileUniversal)]
            {
                let plan = LinearPlan::new(&lightning, Tokens::new(2, tokens), &device).unwrap();
                assert_eq!(plan.sweeps[0].walk.kernel, kernel, "{plan}");
            }
        }
    }
    let lavapipe = Capabilities { driver: Driver::Llvmpipe { mesa: 26 }, matrix: Some(8), ..lavapipe() };
    let half = lightning(8, 64).storage(Storage::F16);
    let kernel =
        |half: &Lightning| LinearPlan::new(half, Tokens::new(2, 100), &lavapipe).unwrap().sweeps[0].walk.kernel;
    assert_eq!(kernel(&half), Kernel::Broadcast);
    assert_eq!(kernel(&half.kernel(Kernel::Matrix)), Kernel::Matrix);
}

#[test]
fn matrices_that_cannot_serve_are_refused_with_the_reason() {
    let device = Capabilities { matrix: Some(16), ..gpu() };
    let pinned = lightning(8, 64).kernel(Kernel::Matrix);
    let half = pinned.clone().storage(Storage::F16);
    for (lightning, device, needle) in [
        (pinned.clone(), device, "q would be f32"),
        (pinned.mixed_storage(Storage::F16, Storage::Bf16), device, "k and v would be bf16"),
        (half.clone(), gpu(), "no square matrices"),
        (half.clone(), Capabilities { workgroup_bytes: 16_384, ..device }, "16384 available"),
        (half.clone(), Capabilities { workgroup_invocations: 64, ..device }, "64 available"),
        (half.clone(), Capabilities { subgroups: None, ..device }, "no subgroups"),
        (half.step(), device, "a step"),
    ] {
        let tokens = if needle == "a step" { 1 } else { 100 };
        let error = LinearPlan::new(&lightning, Tokens::new(1, tokens), &device).unwrap_err();
        assert!(matches!(error, PlanError::Kernel { kernel: Kernel::Matrix, .. }), "{error}");
        assert!(error.to_string().contains(needle), "{error}");
    }
}

#[test]
fn a_step_prints_no_chunks() {
    let plan = |lightning: &Lightning| LinearPlan::new(lightning, Tokens::new(3, 1), &gpu()).unwrap().to_string();
    let step = plan(&lightning(4, 64).step());
    assert!(
        step.contains("schedule    one token of each sequence, 1 dispatches\n") && !step.contains("chunks"),
        "{step}"
    );
    assert!(plan(&lightning(4, 64)).contains("chunks of 32"));
}

#[test]
fn backward_is_three_sweeps_of_the_same() {
    let plan = LinearPlan::new(&lightning(8, 64).backward(), Tokens::new(1, 512), &lavapipe()).unwrap();
    assert_eq!(plan.sweeps.len(), 3);
    assert_eq!(plan.flops, 3 * 4 * 64 * 64 * 8 * 512);
    assert!(plan.sweeps.windows(2).all(|s| s[0].walk == s[1].walk), "one pipeline serves all where dims are equal");
}

#[test]
fn states_for_the_gradient_of_the_decay_do_not_grow_with_tokens() {
    let backward = lightning(4, 64).decay(Decay::transnormer(0, 2)).backward();
    let slopes = || backward.clone().decay_gradient().schedule(Schedule::Sequential);
    let plan = |tokens| LinearPlan::new(&slopes(), Tokens::new(2, tokens), &gpu()).unwrap();
    let state = 2 * 4 * (64 * 64 + 1) * 4;
    assert_eq!(plan(100).workspace_bytes, 2 * 2 * state);
    assert_eq!(plan(4096).workspace_bytes, 2 * 64 * state);
    assert_eq!(plan(1 << 18).workspace_bytes, 4 * 64 * state);
    // Rows are so long that each of the eight heads is a part.
    assert_eq!(plan(1 << 22).workspace_bytes, 2 * (16 + 64 + 64) * state / 8);
    assert_eq!(plan(1 << 12).flops, 5 * 4 * 64 * 64 * 4 * 2 * 4096);
    // Three sweeps; states, gradients, chunks and sums of the 4,096 tokens and of the rest.
    assert_eq!(plan(5000).dispatches(), 3 + 4 + 2 * 6);
    let packed = LinearPlan::new(&slopes(), Tokens::packed(300, 4096), &gpu()).unwrap();
    assert_eq!(packed.workspace_bytes, 2 * (64 + 300) * (state / 2));
}

#[test]
fn gradients_of_slopes_are_written_without_any_tokens() {
    let backward = lightning(4, 64).decay(Decay::transnormer(0, 2)).backward();
    for extent in [Tokens::new(0, 100), Tokens::new(3, 0), Tokens::packed(0, 0)] {
        let plan = LinearPlan::new(&backward.clone().decay_gradient(), extent, &gpu()).unwrap();
        let [part] = &plan.parts[..] else { panic!("{plan}") };
        assert_eq!((part.kv_heads.clone(), plan.workspace_bytes), (0..4, 0), "{plan}");
    }
    assert!(LinearPlan::new(&backward, Tokens::new(0, 100), &gpu()).unwrap().parts.is_empty(), "nothing to write");
}

#[test]
fn walks_that_a_driver_would_end_come_in_stretches() {
    let plan = |lightning: &Lightning, tokens| LinearPlan::new(lightning, Tokens::new(2, tokens), &lavapipe()).unwrap();
    let (forward, backward) = (lightning(8, 64), lightning(8, 64).final_state().backward());
    let state = 2 * 8 * 64 * 64 * 4;
    for tokens in [1 << 16, 1 << 18] {
        let (one, three) = (plan(&forward, tokens), plan(&backward, tokens));
        assert_eq!((one.schedule, three.schedule), (Schedule::Sequential, Schedule::Sequential), "{one}");
        let stretches = tokens.div_ceil(one.segment_tokens);
        assert!(stretches > 1 && one.segment_tokens < 65_535, "{one}");
        assert_eq!((one.stretches(), one.dispatches()), (stretches, u64::from(stretches)));
        assert_eq!(three.dispatches(), 3 * u64::from(three.stretches()), "{three}");
        // The states that go from one to the next, where they are not the caller's.
        assert_eq!(one.workspace_bytes, state, "{one}");
        assert_eq!(plan(&forward.clone().final_state(), tokens).workspace_bytes, 0);
    }
    let short = plan(&forward, 1 << 15);
    assert_eq!((short.stretches(), short.workspace_bytes, short.sweeps[0].resumed), (1, 0, None));
    let gpu = LinearPlan::new(&lightning(512, 64), Tokens::new(1, 1 << 20), &gpu()).unwrap();
    assert_eq!((gpu.schedule, gpu.stretches()), (Schedule::Sequential, 1));
}

#[test]
fn extents_beyond_all_limits_are_refused_without_overflow() {
    for device in [gpu(), lavapipe(), Capabilities::webgpu_defaults()] {
        for heads in [1, 1 << 16, u32::MAX] {
            for batch in [1, u32::MAX] {
                for tokens in [1, 1 << 18, 1 << 29] {
                    for extent in [Tokens::new(batch, tokens), Tokens::packed(batch, tokens)] {
                        let forward = Lightning::new(heads, HeadDim::new(64).unwrap());
                        let gradient = forward.clone().decay(Decay::Gates).backward().decay_gradient();
                        for lightning in [forward, gradient] {
                            if let Ok(plan) = LinearPlan::new(&lightning, extent, &device) {
                                assert!(plan.parts.len() <= 1 << 16, "{plan}");
                            }
                        }
                    }
                }
            }
        }
    }
}

#[test]
fn a_step_takes_no_schedule_and_in_place_no_other_state() {
    let refused = |operator: Lightning| LinearPlan::new(&operator, Tokens::new(3, 1), &gpu()).unwrap_err().to_string();
    for schedule in [Schedule::Sequential, Schedule::Segments] {
        let error = refused(lightning(2, 64).step().schedule(schedule));
        assert!(error.contains(&format!("schedule: {schedule}")), "{error}");
    }
    let error = refused(lightning(2, 64).step().initial_state());
    assert!(error.contains("initial_state") && error.contains("out of place"), "{error}");
    assert!(LinearPlan::new(&lightning(2, 64).step_out_of_place().initial_state(), Tokens::new(3, 1), &gpu()).is_ok());
}
