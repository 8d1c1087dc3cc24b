//! What is worth a measurement on simulated devices.

mod common;

use common::devices;
use wattn_scheduler::shaders::{Access, Kernel, Shape, Storage};
use wattn_scheduler::{
    Attention, BackwardPlan, Based, CacheLayout, Capabilities, Choice, Decode, DecodePlan, DeviceKind, Driver, Extent,
    HeadDim, Heads, Lightning, LinearPlan, Plan, Schedule, Tokens, Tunable,
};

fn attention(dim: u32) -> Attention {
    Attention::new(Heads::new(4).unwrap(), HeadDim::new(dim).unwrap())
}

/// The planner's choice comes first, all candidates serve, none twice, and the menu, which a file is read by, has them.
fn candidates<O: Tunable>(name: &str, operator: &O, extent: O::Size, device: &Capabilities) -> Vec<Choice> {
    let candidates = operator.candidates(extent, device).unwrap();
    assert_eq!(candidates[0], operator.planned(extent, device).unwrap().0, "{name}");
    assert!((1..=6).contains(&candidates.len()), "{name}: {candidates:?}");
    let menu = operator.menu(extent, device);
    for (at, &choice) in candidates.iter().enumerate() {
        let pinned = operator.with(choice);
        assert!(pinned.is_pinned() && pinned.planned(extent, device).unwrap().0 == choice, "{name}: {choice}");
        assert!(!candidates[..at].contains(&choice), "{name}: {choice} twice");
        assert!(menu.contains(&choice), "{name}: {choice}");
    }
    candidates
}

#[test]
fn the_planners_choice_comes_first_and_all_candidates_serve() {
    for (name, device, _) in devices() {
        for dim in [16, 64, 128, 576] {
            for attention in [attention(dim), attention(dim).causal().bias(), attention(dim).storage(Storage::F16)] {
                let extent = Extent::new(1, 512, 512);
                let forward = candidates(name, &attention, extent, &device);
                let backward = candidates(name, &attention.backward(), extent, &device);
                for choice in forward.iter().chain(&backward) {
                    let lanes = matches!(choice.shape, Some(Shape::Lanes(_)));
                    assert!(device.kind == DeviceKind::Cpu || !lanes, "{name}: {choice}");
                }
            }
        }
    }
}

#[test]
fn few_queries_are_tried_in_more_and_fewer_stretches() {
    let layout = |storage| CacheLayout::new(2, HeadDim::new(64).unwrap(), 16, 1000).unwrap().storage(storage, storage);
    let of = |heads| Attention::new(Heads::grouped(heads, 2).unwrap(), HeadDim::new(64).unwrap()).causal();
    for (name, device, _) in devices() {
        for attention in [of(4), of(64), of(4).storage(Storage::F16), of(64).storage(Storage::F16)] {
            let decode = attention.decode();
            for (decode, extent) in [
                (decode, Extent::new(1, 1, 100_000)),
                (decode, Extent::new(3, 2, 1000)),
                (decode, Extent::new(2, 100, 1000)),
                (decode, Extent::packed(3, 100, 1000)),
                (decode.cached(layout(Storage::F16)), Extent::packed(4, 500, 10_000)),
                (decode.cached(layout(Storage::Int8)).cascade(), Extent::packed(4, 4, 40_000)),
                (decode.cached(layout(Storage::F32)), Extent::packed(0, 0, 0)),
            ] {
                let candidates = candidates(name, &decode, extent, &device);
                let plan = |decode: Decode| DecodePlan::new(&decode, extent, &device).unwrap();
                let (own, pinned) = (plan(decode), plan(decode.with(candidates[0])));
                assert_eq!((own.split, own.tiles), (pinned.split, pinned.tiles), "{name}");
                assert_eq!(own.workspace_bytes, pinned.workspace_bytes, "{name}");
            }
        }
    }
    let device = devices().into_iter().find(|d| d.0 == "NVIDIA").unwrap().1;
    let names = |decode: Decode, keys| {
        let choices = decode.candidates(Extent::new(1, 1, keys), &device).unwrap();
        choices.iter().map(ToString::to_string).collect::<Vec<_>>()
    };
    let of_counts = |counts: &[u32]| counts.iter().map(|n| format!("tile-universal/{n}-stretches")).collect::<Vec<_>>();
    assert_eq!(names(of(4).decode(), 1 << 20), of_counts(&[512, 1024, 256, 2048, 128]));
    assert_eq!(names(of(4).decode(), 2000), of_counts(&[512]), "stretches get no shorter");
    let half = names(of(32).storage(Storage::F16).decode(), 1 << 20);
    assert_eq!(half[..2], ["matrix/512-stretches", "matrix/1024-stretches"]);
    assert!(half.contains(&"tile-universal/512-stretches".to_owned()), "{half:?}");
}

/// What worked untuned works tuned: a kernel of fewer rows would refuse some sequences where lengths lie on the device.
#[test]
fn no_candidate_counts_fewer_queries_as_few_than_the_planner() {
    let device = devices().into_iter().find(|d| d.0 == "NVIDIA").unwrap().1;
    let half = Attention::new(Heads::grouped(32, 2).unwrap(), HeadDim::new(64).unwrap()).storage(Storage::F16);
    let layout =
        CacheLayout::new(2, HeadDim::new(64).unwrap(), 16, 1 << 16).unwrap().storage(Storage::F16, Storage::F16);
    let decode = half.causal().decode();
    let kernels = |decode: Decode, extent| {
        assert_eq!(DecodePlan::new(&decode, extent, &device).unwrap().split.kernel, Kernel::Matrix);
        let tiles = |choice: &Choice| choice.kernel == Kernel::TileUniversal;
        let menu = decode.menu(extent, &device);
        let candidates = decode.candidates(extent, &device).unwrap();
        assert!(candidates.len() > 1, "{candidates:?}");
        [menu.iter().any(tiles), candidates.iter().any(tiles)]
    };
    assert_eq!(kernels(decode.cached(layout), Extent::packed(4, 16, 1 << 20)), [false; 2], "4 new tokens, not 2");
    assert_eq!(kernels(decode.cached(layout), Extent::packed(4, 4, 1 << 20)), [false; 2], "of one sequence");
    assert_eq!(kernels(decode.cached(layout), Extent::packed(2, 2, 1 << 20)), [true; 2]);
    assert_eq!(kernels(decode, Extent::new(4, 1, 1 << 20)), [true; 2], "none has more");
    assert_eq!(kernels(decode, Extent::new(4, 3, 1 << 20)), [false; 2]);
}

#[test]
fn nothing_is_measured_of_which_no_call_can_be_made() {
    let device = Capabilities { loop_turns: Some(65_535), ..Capabilities::webgpu_defaults() };
    let (decode, extent) = (attention(16).decode(), Extent::new(1, 200, 1 << 20));
    DecodePlan::new(&decode, extent, &device).unwrap();
    let error = decode.candidates(extent, &device).unwrap_err().to_string();
    assert!(error.contains("keys in one loop"), "{error}");
}

/// What worked untuned works tuned: wider loads would refuse strides that are multiples of four.
#[test]
fn no_kernel_of_a_gpu_takes_wider_strides_than_the_planners() {
    let device = Capabilities {
        kind: DeviceKind::Integrated,
        subgroups: Some((8, 8)),
        int64: true,
        workgroup_bytes: 32 << 10,
        ..Capabilities::webgpu_defaults()
    };
    let (softmax, linear) = (attention(64), Lightning::new(4, HeadDim::new(64).unwrap()));
    let (extent, tokens) = (Extent::new(1, 512, 512), Tokens::new(1, 4096));
    let pinned = |choices: Vec<Choice>| {
        assert!(choices.iter().any(|choice| choice.kernel == Kernel::Broadcast), "{choices:?}");
        choices.into_iter().filter(|choice| choice.kernel != Kernel::Matrix)
    };
    for choice in pinned(softmax.menu(extent, &device)) {
        let plan = Plan::new(&softmax.with(choice), extent, &device).unwrap();
        assert_eq!(plan.key.access, Access::Vec4, "{choice}");
        let plan = BackwardPlan::new(&softmax.with(choice).backward(), extent, &device).unwrap();
        assert!(plan.steps.iter().all(|step| step.key.access == Access::Vec4), "{choice}");
    }
    for choice in pinned(linear.menu(tokens, &device)) {
        let plan = LinearPlan::new(&linear.with(choice), tokens, &device).unwrap();
        assert!(plan.sweeps.iter().all(|sweep| sweep.walk.access == Access::Vec4), "{choice}");
    }
}

#[test]
fn what_is_pinned_of_a_backward_pass_is_what_was_planned() {
    for (name, device, _) in devices() {
        for dims in [[64, 64], [64, 128], [96, 64], [32, 16], [192, 128]] {
            let dims = HeadDim::with_value(dims[0], dims[1]).unwrap();
            let backward = Attention::new(Heads::new(4).unwrap(), dims).bias().mask().backward();
            let extent = Extent::new(1, 512, 512);
            let own = candidates(name, &backward, extent, &device)[0];
            let plan = |backward| BackwardPlan::new(backward, extent, &device).unwrap().steps;
            assert_eq!(plan(&backward.with(own)), plan(&backward), "{name}: {own}");
        }
    }
}

#[test]
fn several_kernels_and_schedules_are_tried() {
    let device = |name: &str| devices().into_iter().find(|d| d.0 == name).unwrap().1;
    let names = |choices: Vec<Choice>| choices.iter().map(ToString::to_string).collect::<Vec<_>>();
    let extent = Extent::new(1, 512, 512);
    let half = names(attention(128).storage(Storage::F16).candidates(extent, &device("NVIDIA")).unwrap());
    assert!(half[0].starts_with("matrix/"), "{half:?}");
    for other in ["tile-subgroup/8x16of4x4", "tile-subgroup/16x8of4x4", "tile-universal/8x16of4x4"] {
        assert!(half.iter().any(|name| name == other), "{half:?}");
    }
    let linear = names(
        Lightning::new(2, HeadDim::new(64).unwrap()).candidates(Tokens::new(1, 4096), &device("NVIDIA")).unwrap(),
    );
    // Of results of unlike dims, tiles of their own, or one for all.
    let dims = HeadDim::with_value(64, 128).unwrap();
    let backward = Attention::new(Heads::new(4).unwrap(), dims).backward();
    let backward = names(backward.candidates(extent, &device("RDNA")).unwrap());
    assert_eq!(backward[0], "tile-subgroup");
    for other in ["tile-subgroup/8x16of4x4", "tile-subgroup/16x8of4x4", "tile-universal"] {
        assert!(backward.iter().any(|name| name == other), "{backward:?}");
    }
    assert_eq!(linear[0], "tile-subgroup/segments");
    assert!(linear.iter().any(|name| name == "tile-universal/sequential"), "{linear:?}");
}

#[test]
fn nothing_is_tried_that_the_driver_is_kept_from() {
    let lavapipe = devices().into_iter().find(|d| d.0 == "lavapipe").unwrap().1;
    let device = Capabilities { driver: Driver::Llvmpipe { mesa: 25 }, ..lavapipe };
    for choice in attention(64).candidates(Extent::new(1, 512, 512), &device).unwrap() {
        let Some(Shape::Lanes(shape)) = choice.shape else { continue };
        assert!(shape.rows <= if choice.kernel == Kernel::Broadcast { 4 } else { 2 }, "{choice}");
    }
    let lightning = Lightning::new(2, HeadDim::new(128).unwrap());
    let choices = lightning.candidates(Tokens::new(1, 512), &device).unwrap();
    assert!(choices.iter().all(|choice| choice.kernel != Kernel::Broadcast), "{choices:?}");
}

#[test]
fn like_problems_have_one_name_and_unlike_ones_have_not() {
    let extent = |queries, keys| Extent::new(1, queries, keys);
    let of = |attention: Attention| attention.problem(extent(1000, 1000));
    let plain = attention(64);
    assert_eq!(plain.problem(extent(513, 1024)), plain.problem(extent(1024, 700)));
    assert_eq!(of(plain.scale(0.5).kernel(Kernel::Broadcast)), of(plain), "neither changes what there is to choose");
    let all = [
        of(plain),
        plain.problem(extent(1000, 1025)),
        plain.problem(extent(0, 1000)),
        plain.problem(extent(1, 1000)),
        plain.problem(Extent::packed(1, 1000, 1000)),
        of(attention(32)),
        of(plain.causal()),
        of(plain.causal_top_left()),
        of(plain.sliding(128)),
        of(plain.bias()),
        of(plain.lse()),
        of(plain.storage(Storage::F16)),
        of(plain.any_strides()),
        plain.backward().problem(extent(1000, 1000)),
        plain.backward().lse_gradient().problem(extent(1000, 1000)),
        plain.sinks().backward().problem(extent(1000, 1000)),
        plain.sinks().backward().sinks_gradient().problem(extent(1000, 1000)),
    ];
    let layout = CacheLayout::new(4, HeadDim::new(64).unwrap(), 16, 100).unwrap();
    let packed = |decode: Decode| decode.problem(Extent::packed(2, 1000, 1000));
    let decode = [
        plain.decode().problem(extent(1000, 1000)),
        packed(plain.decode()),
        packed(plain.decode().cached(layout)),
        packed(plain.decode().cached(layout.storage(Storage::F16, Storage::Int8))),
        packed(plain.decode().cached(CacheLayout::new(4, HeadDim::new(64).unwrap(), 32, 100).unwrap())),
        packed(plain.decode().cached(layout).cascade()),
    ];
    assert_eq!(packed(plain.decode().cached(layout.layers(3))), decode[2]);
    let lightning = Lightning::new(4, HeadDim::new(64).unwrap());
    let based = Based::new(4, HeadDim::with_value(16, 64).unwrap());
    let tokens = Tokens::new(1, 1000);
    let linear = [
        lightning.problem(tokens),
        lightning.clone().backward().problem(tokens),
        lightning.clone().final_state().problem(tokens),
        lightning.clone().decay(wattn_scheduler::Decay::Gates).problem(tokens),
        based.problem(tokens),
        based.clone().causal(false).problem(tokens),
        based.clone().normalize(false).problem(tokens),
        based.clone().backward().problem(Tokens::packed(2, 1000)),
    ];
    let names: Vec<&String> = all.iter().chain(&decode).chain(&linear).collect();
    for (at, name) in names.iter().enumerate() {
        assert!(!names[..at].contains(name), "{name} twice");
    }
    assert_eq!(lightning.clone().schedule(Schedule::Segments).problem(tokens), lightning.problem(tokens));
    let free = plain.decode();
    let pinned =
        [plain.kernel(Kernel::Matrix).decode(), free.kernel(Kernel::Matrix), free.split_keys(64), free.split_into(8)];
    assert!(pinned.iter().all(Tunable::is_pinned) && !free.cached(layout).cascade().is_pinned());
    assert!(plain.kernel(Kernel::Matrix).backward().is_pinned() && !plain.backward().is_pinned());
    assert!(lightning.schedule(Schedule::Segments).is_pinned() && !based.is_pinned());
}
