//! What is planned for BASED linear attention on simulated devices.

use wattn_scheduler::shaders::{BasedKey, BasedOp, Kernel, Key, Storage, table};
use wattn_scheduler::{
    Based, BasedPlan, BasedStates, BasedStep, Capabilities, DeviceKind, Driver, HeadDim, PlanError, Schedule, Tensor,
    Tokens,
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

fn based(heads: u32, value: u32) -> Based {
    Based::new(heads, HeadDim::with_value(16, value).unwrap())
}

fn plan(based: &Based, tokens: u32, device: &Capabilities) -> BasedPlan {
    BasedPlan::new(based, Tokens::new(1, tokens), device).unwrap()
}

/// What its steps do, in order.
fn ops(plan: &BasedPlan) -> Vec<&'static str> {
    let op = |step: &BasedStep| match step.based_key().map(|key| (key.op, key.reversed)) {
        None => "scan",
        Some((BasedOp::Chunk, false)) => "chunk",
        Some((BasedOp::State, false)) => "state",
        Some((BasedOp::Read, false)) => "read",
        Some((BasedOp::Gradient, false)) => "dq",
        Some((BasedOp::ReadGradient, false)) => "read dq",
        Some((BasedOp::Step, _)) => "step",
        Some((BasedOp::Chunk, true)) => "dv",
        Some((BasedOp::State, true)) => "dstate",
        Some((BasedOp::Read, true)) => "read dv",
        Some((BasedOp::Gradient, true)) => "dk",
        Some((BasedOp::ReadGradient, true)) => "read dk",
    };
    plan.steps.iter().map(op).collect()
}

#[test]
fn states_come_first_where_outputs_need_them() {
    let of = |based: &Based, schedule| ops(&plan(&based.clone().schedule(schedule), 4096, &gpu()));
    let (one, cut) = (Schedule::Sequential, Schedule::Segments);
    let causal = based(8, 64).initial_state().final_state();
    assert_eq!(of(&causal, one), ["chunk"]);
    assert_eq!(of(&causal, cut), ["state", "scan", "chunk"]);
    assert_eq!(of(&causal.clone().backward(), one), ["dq", "dk", "dv"]);
    assert_eq!(of(&causal.backward(), cut), ["state", "scan", "dq", "dstate", "scan", "dk", "dv"]);
    let full = based(8, 64).causal(false);
    assert_eq!(of(&full, one), ["state", "read"]);
    assert_eq!(of(&full, cut), ["state", "scan", "read"]);
    assert_eq!(of(&full.clone().backward(), one), ["state", "read dq", "dstate", "read dk", "read dv"]);
    assert_eq!(of(&full.backward(), cut), ["state", "scan", "read dq", "dstate", "scan", "read dk", "read dv"]);
}

#[test]
fn the_last_step_of_a_walk_leaves_its_states() {
    let backward = based(8, 64).initial_state().final_state().backward();
    let sequential = plan(&backward.clone().schedule(Schedule::Sequential), 256, &gpu());
    let dstate = Some(BasedStates::Operand(Tensor::Dstate));
    assert_eq!(sequential.steps.iter().map(|s| s.to).collect::<Vec<_>>(), [None, None, dstate]);
    assert!(sequential.steps[1..].iter().all(|s| s.from == Some(BasedStates::Operand(Tensor::GradState))));
    let segments = plan(&backward.clone().schedule(Schedule::Segments), 256, &gpu());
    assert_eq!(segments.steps[4..].iter().map(|s| s.to).collect::<Vec<_>>(), [None, None, dstate]);
    assert!(segments.steps[5..].iter().all(|s| s.from == Some(BasedStates::Segments)));
    let full = plan(&backward.causal(false).schedule(Schedule::Segments), 256, &gpu());
    assert_eq!(full.steps[4..].iter().map(|s| s.to).collect::<Vec<_>>(), [dstate, None, None]);
    assert!(full.steps[5..].iter().all(|s| s.from == dstate));
}

#[test]
fn wide_values_take_several_passes() {
    let passes = |value| {
        let plan = plan(&based(8, value).backward(), 256, &gpu());
        let blocks = plan.steps.iter().filter(|s| s.out == Some(Tensor::Dq)).map(|s| s.block).collect::<Vec<_>>();
        (blocks, plan.record_size())
    };
    assert_eq!(passes(64), (vec![0], 2));
    assert_eq!(passes(65), (vec![0, 16], 20));
    assert_eq!(passes(256), (vec![0, 16, 32, 48], 20));
}

#[test]
fn wide_values_take_a_pass_for_every_square_of_matrices() {
    let passes = |value, subgroups| {
        let device = Capabilities { matrix: Some(16), subgroups: Some(subgroups), ..gpu() };
        let plan = plan(&based(8, value).storage(Storage::F16).backward(), 256, &device);
        assert_eq!(plan.kernel, Kernel::Matrix, "{plan}");
        let blocks = plan.steps.iter().filter(|s| s.out == Some(Tensor::Dk)).map(|s| s.block).collect::<Vec<_>>();
        let keys = plan.steps.iter().filter_map(BasedStep::based_key);
        let gradients = keys.filter(|key| key.is_gradient()).map(BasedKey::invocations);
        (blocks, plan.record_size(), gradients.max())
    };
    assert_eq!(passes(32, (32, 32)), (vec![0], 2, Some(256)));
    assert_eq!(passes(64, (32, 64)), (vec![0, 8], 20, Some(256)));
    // Of squares of 32 x 32, more than 256 invocations would have less than a vec4 each.
    assert_eq!(passes(128, (64, 64)), (vec![0, 8, 16, 24], 20, Some(256)));
}

#[test]
fn workspace_is_states_and_two_numbers_a_token() {
    let state = 153 * 65 * 4;
    let long = |based: &Based| plan(based, 1 << 16, &gpu());
    let forward = long(&based(4, 64));
    assert_eq!(forward.schedule, Schedule::Segments, "{forward}");
    let segments = u64::from(forward.segments);
    assert!(segments > 8 && segments <= 64, "{forward}");
    assert_eq!(forward.workspace_bytes, segments * 4 * state);
    assert_eq!(plan(&based(4, 64), 1 << 20, &gpu()).workspace_bytes, forward.workspace_bytes);
    let sequential = based(4, 64).schedule(Schedule::Sequential);
    assert_eq!(long(&sequential).workspace_bytes, 0);
    assert_eq!(long(&sequential.clone().initial_state().backward()).workspace_bytes, 4 * (1 << 16) * 8);
    assert_eq!(long(&sequential.clone().backward()).workspace_bytes, 4 * (1 << 16) * 8 + 4);
    assert_eq!(long(&sequential.clone().causal(false)).workspace_bytes, 4 * state);
    assert_eq!(long(&sequential.causal(false).final_state()).workspace_bytes, 0);
    let backward = long(&based(4, 64).backward());
    let regions = backward.workspace(&backward.parts[0]);
    assert_eq!(regions.records, 0..4 * (1 << 16) * 8);
    assert_eq!(regions.segments.end - regions.segments.start, u64::from(backward.segments) * 4 * state);
    assert!(regions.segments.start.is_multiple_of(256) && regions.sequences.is_empty());
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
        for feature in [1, 8, 13, 16, 24, 32] {
            for value in [1, 7, 16, 64, 256] {
                let new = Based::new(3, HeadDim::with_value(feature, value).unwrap());
                for based in [new.clone(), new.clone().backward(), new.clone().causal(false).backward(), new.step()] {
                    let step = based == based.clone().step();
                    let tokens = Tokens::new(2, if step { 1 } else { 1000 });
                    let plan = BasedPlan::new(&based, tokens, &device).unwrap();
                    assert!(plan.workgroup_bytes <= device.workgroup_bytes, "{plan}");
                    if (feature, value) == (16, 64) || step {
                        let kernel = if step { Kernel::TileUniversal } else { kernel };
                        assert_eq!(plan.kernel, kernel, "{plan}");
                    }
                    assert!(plan.to_string().contains(plan.kernel.name()), "{plan}");
                }
            }
        }
    }
}

#[test]
fn gpus_with_matrices_multiply_on_them_in_f16() {
    for side in table::MATRIX_SIDES {
        let device = Capabilities { matrix: Some(side), ..gpu() };
        for feature in [2, 8, 16] {
            let half = Based::new(8, HeadDim::with_value(feature, 64).unwrap()).storage(Storage::F16);
            let forward = [half.clone(), half.clone().normalize(false).final_state(), half.clone().causal(false)];
            let backward = forward.clone().map(Based::backward);
            for based in forward.into_iter().chain(backward) {
                for schedule in [Schedule::Sequential, Schedule::Segments] {
                    let plan = plan(&based.clone().schedule(schedule), 1000, &device);
                    assert!(plan.workgroup_bytes <= device.workgroup_bytes, "{plan}");
                    assert!(plan.reason.contains(&format!("matrices of {side} x {side}")), "{plan}");
                    assert!(
                        plan.steps.iter().filter_map(BasedStep::based_key).all(|key| key.kernel == Kernel::Matrix),
                        "{plan}"
                    );
                }
            }
            assert_eq!(plan(&half.clone().storage(Storage::F32), 1000, &device).kernel, Kernel::TileSubgroup);
            assert_eq!(plan(&half.step(), 1, &device).kernel, Kernel::TileUniversal);
        }
    }
}

#[test]
fn matrices_that_cannot_serve_are_refused_with_the_reason() {
    let device = Capabilities { matrix: Some(16), ..gpu() };
    let pinned = based(8, 64).kernel(Kernel::Matrix);
    let half = pinned.clone().storage(Storage::F16);
    let wide = Based::new(8, HeadDim::with_value(24, 64).unwrap()).storage(Storage::F16).kernel(Kernel::Matrix);
    for (based, device, needle) in [
        (pinned, device, "q would be f32"),
        (half.clone(), gpu(), "no square matrices"),
        (half.clone(), Capabilities { workgroup_bytes: 16_384, ..device }, "16384 available"),
        (half.clone().backward(), Capabilities { workgroup_invocations: 128, ..device }, "256 invocations needed"),
        (half.clone().backward(), Capabilities { workgroup_bytes: 28 << 10, ..device }, "28672 available"),
        (half.clone().backward(), Capabilities { subgroups: Some((4, 64)), ..device }, "4 lanes, 8 are needed"),
        (wide.clone().backward(), device, "feature dim of 24"),
        (half.step(), device, "a step"),
        (wide, device, "feature dim of 24"),
    ] {
        let tokens = if needle == "a step" { 1 } else { 100 };
        let error = BasedPlan::new(&based, Tokens::new(1, tokens), &device).unwrap_err();
        assert!(matches!(error, PlanError::Kernel { kernel: Kernel::Matrix, .. }), "{error}");
        assert!(error.to_string().contains(needle), "{error}");
    }
}

#[test]
fn backward_costs_three_times_as_much() {
    let (forward, backward) = (plan(&based(8, 64), 512, &gpu()), plan(&based(8, 64).backward(), 512, &gpu()));
    assert_eq!(backward.flops, 3 * forward.flops);
    assert_eq!(backward.bytes, 8 * 512 * 4 * (4 * 16 + 3 * 64));
}

#[test]
fn walks_that_a_driver_would_end_come_in_stretches() {
    let state = 153 * 65 * 4;
    let of = |based: &Based, tokens| plan(based, tokens, &lavapipe());
    for tokens in [1 << 16, 1 << 18] {
        let one = of(&based(16, 64), tokens);
        let stretches = one.stretches();
        assert_eq!((one.schedule, stretches), (Schedule::Sequential, tokens.div_ceil(one.segment_tokens)), "{one}");
        assert!(stretches > 1 && one.segment_tokens < 65_535, "{one}");
        assert_eq!(ops(&one), vec!["chunk"; stretches as usize]);
        assert_eq!(one.keys().count(), 2, "{one}");
        assert_eq!(one.workspace_bytes, 2 * 16 * state, "{one}");
        let stateful = of(&based(16, 64).initial_state().final_state(), tokens);
        assert_eq!(ops(&stateful).last(), Some(&"scan"));
        assert_eq!(stateful.steps[0].from, Some(BasedStates::Operand(Tensor::State0)));
        assert_eq!(stateful.steps.last().unwrap().to, Some(BasedStates::Operand(Tensor::State)));
    }
    assert_eq!(of(&based(16, 64), 1 << 15).stretches(), 1);
}

#[test]
fn walks_that_leave_no_states_are_cut() {
    for based in [based(64, 64).backward(), based(64, 64).causal(false)] {
        for tokens in [1 << 16, 1 << 17, 1 << 20] {
            let plan = plan(&based, tokens, &lavapipe());
            assert_eq!(plan.schedule, Schedule::Segments, "{plan}");
            assert!(plan.segment_tokens < 65_535, "{plan}");
        }
        let pinned = based.schedule(Schedule::Sequential);
        let error = BasedPlan::new(&pinned, Tokens::new(1, 1 << 20), &lavapipe()).unwrap_err();
        assert!(error.to_string().contains("1048576"), "{error}");
    }
    assert_eq!(plan(&based(512, 64), 1 << 20, &gpu()).schedule, Schedule::Sequential);
}

#[test]
fn a_step_has_one_dispatch() {
    for (step, in_place) in [(based(8, 64).step(), true), (based(8, 64).step_out_of_place(), false)] {
        let plan = plan(&step, 1, &gpu());
        assert_eq!((ops(&plan), plan.workspace_bytes), (vec!["step"], 0));
        assert!(matches!(plan.steps[0].key, Key::Based(key) if key.state == in_place));
    }
}

#[test]
fn extents_beyond_all_limits_are_refused_without_overflow() {
    for device in [gpu(), lavapipe(), Capabilities::webgpu_defaults()] {
        for heads in [1, 1 << 16, u32::MAX] {
            for batch in [1, u32::MAX] {
                for tokens in [1, 1 << 18, 1 << 29] {
                    for extent in [Tokens::new(batch, tokens), Tokens::packed(batch, tokens)] {
                        for based in [based(heads, 64), based(heads, 64).backward(), based(heads, 64).causal(false)] {
                            if let Ok(plan) = BasedPlan::new(&based, extent, &device) {
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
    let refused = |operator: Based| BasedPlan::new(&operator, Tokens::new(3, 1), &gpu()).unwrap_err().to_string();
    for schedule in [Schedule::Sequential, Schedule::Segments] {
        let error = refused(based(2, 64).step().schedule(schedule));
        assert!(error.contains(&format!("schedule: {schedule}")), "{error}");
    }
    let error = refused(based(2, 64).step().initial_state());
    assert!(error.contains("initial_state") && error.contains("out of place"), "{error}");
    assert!(BasedPlan::new(&based(2, 64).step_out_of_place().initial_state(), Tokens::new(3, 1), &gpu()).is_ok());
}
