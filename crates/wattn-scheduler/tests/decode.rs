//! Few queries over many keys: what is planned on simulated devices, and the work of random lengths.

mod common;

use common::devices;
use proptest::prelude::*;
use wattn_scheduler::shaders::{Kernel, Storage};
use wattn_scheduler::{
    Attention, CacheLayout, Capabilities, Decode, DecodePlan, DeviceKind, Driver, Extent, HeadDim, Heads, Lengths,
    Pages, PlanError, Rates, key_range,
};

fn attention(heads: u32, kv_heads: u32, dim: u32) -> Attention {
    Attention::new(Heads::grouped(heads, kv_heads).unwrap(), HeadDim::new(dim).unwrap()).causal()
}

#[test]
fn no_plan_exceeds_its_device() {
    for (name, device, _) in devices() {
        for dim in [16, 64, 128, 256] {
            for extent in [Extent::new(1, 1, 8192), Extent::new(32, 4, 1024), Extent::packed(8, 600, 4096)] {
                let plan = DecodePlan::new(&attention(32, 8, dim).decode(), extent, &device).unwrap();
                assert!(plan.workgroup_bytes <= device.workgroup_bytes, "{name}: {plan}");
                assert!(plan.split.invocations() <= device.workgroup_invocations, "{name}: {plan}");
                assert!(plan.workspace_bytes <= device.binding_bytes, "{name}: {plan}");
                assert_eq!(plan.tiles.is_some(), extent.packed, "{name}: {plan}");
            }
        }
    }
}

fn half(heads: u32, kv_heads: u32) -> Attention {
    attention(heads, kv_heads, 64).storage(Storage::F16)
}

fn device(name: &str) -> Capabilities {
    devices().into_iter().find(|d| d.0 == name).unwrap().1
}

#[test]
fn gpus_with_matrices_multiply_on_them_what_takes_tiles_longer_than_to_read() {
    for (name, device, _) in devices() {
        for (group, queries) in [(1, 1), (4, 1), (4, 2), (8, 1), (3, 3), (8, 2), (16, 1), (8, 4), (4, 40)] {
            let every = half(2 * group, 2).alibi().bias().mask().sinks().softcap(30.0).lse();
            for attention in [half(2 * group, 2), every] {
                let plan = DecodePlan::new(&attention.decode(), Extent::new(2, queries, 5000), &device).unwrap();
                let rows = group * queries;
                let wanted = device.matrix.is_some() && device.kind != DeviceKind::Cpu && rows > 6;
                assert_eq!(plan.split.kernel == Kernel::Matrix, wanted, "{name}: {plan}");
                assert!(plan.workgroup_bytes <= device.workgroup_bytes, "{name}: {plan}");
                assert!(plan.split.invocations() <= device.workgroup_invocations, "{name}: {plan}");
                assert!(plan.to_string().contains(plan.split.kernel.name()), "{name}: {plan}");
                if wanted {
                    let side = device.matrix.unwrap();
                    let strips = if rows > side { 2 } else { 1 };
                    assert_eq!(plan.split.rows, strips * side, "{name}: {plan}");
                    assert!(plan.reason.contains(&format!("matrices of {side} x {side} for {rows} rows")), "{plan}");
                } else if device.matrix.is_some() && device.kind != DeviceKind::Cpu {
                    assert!(plan.reason.contains("not matrix: "), "{name}: {plan}");
                }
            }
        }
    }
    // Where multiplying is known to be slower beside reading, fewer rows are enough.
    let rates = Some(Rates { flops: 4_000_000_000_000, bandwidth: 400_000_000_000, dispatch_ns: 5_000 });
    let slow = Capabilities { rates, ..device("NVIDIA") };
    let kernel =
        |group| DecodePlan::new(&half(group, 1).decode(), Extent::new(1, 1, 5000), &slow).unwrap().split.kernel;
    assert_eq!(
        [1, 2, 3, 4].map(kernel),
        [Kernel::TileUniversal, Kernel::TileUniversal, Kernel::Matrix, Kernel::Matrix]
    );
}

#[test]
fn matrices_serve_few_queries_where_they_are_pinned_or_say_why_not() {
    let pinned = half(2, 2).kernel(Kernel::Matrix);
    let nvidia = device("NVIDIA");
    let every = pinned.alibi().bias().mask().sinks().softcap(30.0).lse();
    for (name, device, _) in devices().into_iter().filter(|d| d.1.matrix.is_some()) {
        for attention in [pinned, every] {
            let plan = DecodePlan::new(&attention.decode(), Extent::new(1, 1, 100), &device).unwrap();
            assert_eq!(plan.split.kernel, Kernel::Matrix, "{name}: {plan}");
        }
    }
    let layout = CacheLayout::new(2, HeadDim::new(64).unwrap(), 16, 100).unwrap();
    let extent = Extent::new(1, 1, 100);
    let plain = |attention: Attention| (attention.decode(), extent);
    let cached = |k, v| (pinned.decode().cached(layout.storage(k, v)), Extent::packed(4, 4, 100));
    for ((decode, extent), device, needle) in [
        (plain(attention(2, 2, 64).kernel(Kernel::Matrix)), nvidia, "q would be f32"),
        (plain(pinned.storage(Storage::Bf16)), nvidia, "q would be bf16"),
        (plain(pinned.mixed_storage(Storage::F16, Storage::F32)), nvidia, "k and v would be f32"),
        (cached(Storage::Int8, Storage::F16), nvidia, "k and v would be int8"),
        (cached(Storage::F16, Storage::Int8), nvidia, "k and v would be int8"),
        (plain(pinned), device("RDNA"), "no square matrices"),
        (plain(pinned), Capabilities { subgroups: None, ..nvidia }, "no subgroups"),
        (plain(pinned), Capabilities { workgroup_bytes: 16_384, ..nvidia }, "16384 available"),
        (plain(pinned), Capabilities { subgroups: Some((16, 16)), ..device("lavapipe 26") }, "crash"),
        (plain(pinned.kernel(Kernel::TileSubgroup)), nvidia, "not on the menu of few queries"),
    ] {
        let error = DecodePlan::new(&decode, extent, &device).unwrap_err();
        assert!(matches!(error, PlanError::Kernel { .. }), "{error}");
        assert!(error.to_string().contains(needle), "{error}");
    }
    let (decode, extent) = cached(Storage::F16, Storage::F16);
    let plan = DecodePlan::new(&decode, extent, &nvidia).unwrap();
    assert!(plan.split.paged && plan.split.kernel == Kernel::Matrix, "{plan}");
    let amd = Capabilities { driver: Driver::Amd, ..nvidia };
    let plan = DecodePlan::new(&pinned.decode(), Extent::new(1, 1, 100), &amd).unwrap();
    assert!(plan.to_string().contains("pinned although AMD's own driver"), "{plan}");
    let plan = DecodePlan::new(&half(32, 2).decode(), Extent::new(1, 1, 100), &amd).unwrap();
    assert!(plan.to_string().contains("not matrix: AMD's own driver"), "{plan}");
}

#[test]
fn keys_are_split_into_about_as_many_stretches_as_are_asked_for() {
    let split = |stretches, keys| {
        let decode = attention(8, 2, 64).decode().split_into(stretches);
        let plan = DecodePlan::new(&decode, Extent::new(1, 1, keys), &device("NVIDIA")).unwrap();
        assert!(plan.to_string().contains(&format!("about {} a key/value head", stretches.max(1))), "{plan}");
        plan.work(Lengths::Full, &[]).unwrap().stretches.len()
    };
    assert_eq!([0, 1, 4, 64].map(|stretches| split(stretches, 8192)), [1, 1, 4, 64]);
    assert_eq!([4, 64, 20_000, u32::MAX].map(|stretches| split(stretches, 300)), [3; 4], "of 128 keys at least");
}

#[test]
fn stretches_take_memory_as_far_as_there_can_be_any() {
    let plan = |stretches, keys| {
        let decode = attention(8, 2, 64).decode().split_into(stretches);
        DecodePlan::new(&decode, Extent::new(1, 1, keys), &device("NVIDIA")).unwrap()
    };
    // Two of 128 keys, and one more at either end.
    let few = plan(4096, 300);
    assert_eq!(few.workspace_bytes, few.bytes_of(4 * few.split.rows));
    assert_eq!(few.workspace_bytes, plan(u32::MAX, 300).workspace_bytes);
    let as_asked = plan(4, 8192);
    assert_eq!(as_asked.workspace_bytes, as_asked.bytes_of(6 * as_asked.split.rows));
    for plan in [few, as_asked, plan(u32::MAX, 300)] {
        let work = plan.device_work(Lengths::Full, &[]).unwrap();
        assert_eq!(plan.bytes_of(work.partial_rows), plan.workspace_bytes);
    }
}

#[test]
fn work_is_for_plans_that_see_the_same_keys() {
    let extent = Extent::new(1, 1, 4096);
    let plan = |attention: Attention, extent| DecodePlan::new(&attention.decode(), extent, &device("NVIDIA")).unwrap();
    let all = plan(attention(8, 2, 64), extent);
    let work = all.work(Lengths::Full, &[]).unwrap();
    let on_device = all.device_work(Lengths::Full, &[]).unwrap();
    let made = |plan: DecodePlan| [plan.made(&work), plan.made_on_device(&on_device)];
    // What is done to scores is each layer's own.
    assert_eq!(made(plan(attention(8, 2, 64).softcap(20.0), extent)), [true; 2]);
    let plain = Attention::new(Heads::grouped(8, 2).unwrap(), HeadDim::new(64).unwrap());
    for (other, extent) in [
        (attention(8, 2, 64).sliding(128), extent),
        (plain, extent),
        (attention(8, 2, 64), Extent::new(1, 1, 1024)),
        (attention(8, 2, 64), Extent::packed(1, 1, 4096)),
    ] {
        assert_eq!(made(plan(other, extent)), [false; 2], "{extent}");
    }
}

#[test]
fn steps_are_of_the_cache_that_is_planned() {
    let layout = |page, pages| CacheLayout::new(2, HeadDim::new(64).unwrap(), page, pages).unwrap();
    let plan = |layout, extent| {
        DecodePlan::new(&attention(8, 2, 64).sliding(40).decode().cached(layout), extent, &device("NVIDIA")).unwrap()
    };
    let planned = plan(layout(16, 5), Extent::packed(1, 16, 80));
    for other in [layout(32, 5), layout(16, 6), layout(16, 5).storage(Storage::F16, Storage::F32)] {
        let mut pages = Pages::new(other);
        let id = pages.create();
        let error = planned.work_of(&pages.extend(&[(id, 1)]).unwrap()).unwrap_err().to_string();
        assert!(error.contains(&other.to_string()) && error.contains(&layout(16, 5).to_string()), "{error}");
    }
    // Under a window a sequence goes round in as many keys as there are pages for.
    let mut pages = Pages::new(layout(16, 5).layers(3));
    let id = pages.create();
    for _ in 0..40 {
        let work = planned.work_of(&pages.extend(&[(id, 16)]).unwrap()).unwrap();
        assert!(planned.bytes_of(work.partial_rows) <= planned.workspace_bytes, "{work}");
        pages.evict(id, (pages.tokens(id).unwrap() + 1).saturating_sub(40)).unwrap();
    }
}

#[test]
fn what_a_window_hides_takes_neither_memory_nor_time() {
    let plan = |attention: Attention| {
        let decode = attention.decode().split_keys(128);
        DecodePlan::new(&decode, Extent::new(4, 1, 1 << 16), &device("NVIDIA")).unwrap()
    };
    let [open, causal, sliding] =
        [attention(8, 2, 64), attention(8, 2, 64).window(1023, None), attention(8, 2, 64).sliding(1024)].map(plan);
    assert_eq!(causal.workspace_bytes, sliding.workspace_bytes);
    // A row tile of 1,024 keys, and of what its queries are apart: eight stretches, and one more at either end.
    assert_eq!(sliding.workspace_bytes, sliding.bytes_of(4 * (8 + 2) * sliding.split.rows));
    let moved = |plan: &DecodePlan| {
        let work = plan.work(Lengths::Full, &[]).unwrap();
        let on_device = plan.device_work(Lengths::Full, &[]).unwrap();
        assert_eq!(plan.bytes_of(on_device.partial_rows), plan.workspace_bytes);
        plan.moved_bytes(&work)
    };
    let hidden = 4 * ((1 << 16) - 1024);
    assert_eq!(moved(&open) - moved(&sliding), hidden * 2 * (64 + 64) * 4);
    assert_eq!(moved(&causal), moved(&sliding));
}

#[test]
fn stretches_are_printed_as_they_are_cut() {
    let plan = |keys| {
        let decode = attention(8, 2, 16).decode().split_keys(keys);
        DecodePlan::new(&decode, Extent::new(1, 1, 1 << 20), &device("lavapipe")).unwrap()
    };
    assert!(plan(256).to_string().contains("stretches   of 256 keys, whatever else is in the batch\n"));
    let cut = plan(u32::MAX);
    let longest = cut.work(Lengths::Full, &[]).unwrap().longest;
    let line = format!(
        "stretches   of {longest} keys, whatever else is in the batch, not 4294967295: this driver ends longer"
    );
    assert!(longest < 1 << 20 && cut.to_string().contains(&line), "{cut}");
}

#[test]
fn balance_is_that_of_the_busiest_worker() {
    // Four workers: two heads of a stretch each leave two of them idle, of two stretches none.
    let balance = |keys| {
        let decode = attention(8, 2, 64).decode().split_keys(128);
        let plan = DecodePlan::new(&decode, Extent::new(1, 1, keys), &device("lavapipe")).unwrap();
        let work = plan.work(Lengths::Full, &[]).unwrap();
        assert!(work.to_string().contains(&format!("balance {:.2}", work.balance())), "{work}");
        work.balance()
    };
    assert_eq!([0, 128, 256].map(balance), [1.0, 2.0, 1.0]);
}

#[test]
fn work_on_the_device_without_keys_takes_no_memory() {
    let decode = attention(8, 2, 64).decode();
    for keys in [0, 8192] {
        let plan = DecodePlan::new(&decode, Extent::new(1, 1, keys), &device("NVIDIA")).unwrap();
        let work = plan.device_work(Lengths::Keys(&[0]), &[]).unwrap();
        assert_eq!((work.rows, work.stretches, work.partial_rows), (4, 0, 0));
    }
}

#[test]
fn the_kernel_of_few_queries_may_be_another_one() {
    let extent = Extent::packed(4, 400, 4000);
    let plan = |decode: Decode| DecodePlan::new(&decode, extent, &device("NVIDIA")).unwrap();
    let own = plan(half(32, 2).decode());
    let tiles = plan(half(32, 2).decode().kernel(Kernel::TileUniversal));
    assert_eq!((own.split.kernel, tiles.split.kernel), (Kernel::Matrix, Kernel::TileUniversal));
    assert_eq!(tiles.tiles, own.tiles);
    assert!(tiles.reason.starts_with("pinned; "), "{tiles}");
    let both = plan(half(32, 2).kernel(Kernel::TileUniversal).decode());
    assert_eq!(both.tiles.unwrap().kernel, Kernel::TileUniversal);
    let pinned = plan(half(2, 2).kernel(Kernel::TileUniversal).decode().kernel(Kernel::Matrix));
    assert_eq!(pinned.split.kernel, Kernel::Matrix, "although that many rows do not pay");
}

#[test]
fn prefill_over_a_cache_takes_matrices_by_what_the_cache_stores() {
    let layout = CacheLayout::new(2, HeadDim::new(64).unwrap(), 16, 400).unwrap();
    let extent = Extent::packed(4, 400, 4000);
    for (k, v, kernel) in [
        (Storage::F16, Storage::F16, Kernel::Matrix),
        (Storage::F16, Storage::Int8, Kernel::TileSubgroup),
        (Storage::Bf16, Storage::F16, Kernel::TileSubgroup),
    ] {
        for q in [half(8, 2), half(8, 2).mixed_storage(Storage::F16, Storage::F32)] {
            let plan = DecodePlan::new(&q.decode().cached(layout.storage(k, v)), extent, &device("NVIDIA")).unwrap();
            let tiles = plan.tiles.unwrap();
            assert_eq!((tiles.kernel, tiles.k, tiles.v), (kernel, k, v), "{plan}");
        }
    }
}

#[test]
fn keys_beyond_a_binding_are_attended_to_by_parts() {
    let device = Capabilities { binding_bytes: 1 << 20, ..Capabilities::webgpu_defaults() };
    let plan = DecodePlan::new(&attention(8, 4, 64).decode(), Extent::new(3, 1, 3000), &device).unwrap();
    assert_eq!(plan.parts.len(), 3 * 4, "{plan}");
    let error = plan.device_work(Lengths::Full, &[]).unwrap_err();
    assert!(matches!(error, PlanError::Limit { argument: "extent", .. }), "{error}");
    let error = DecodePlan::new(&attention(8, 4, 64).decode(), Extent::new(1, 1, 5000), &device).unwrap_err();
    assert!(matches!(error, PlanError::Limit { argument: "v", .. }), "{error}");
}

#[test]
fn lengths_on_the_device_are_bounded() {
    let device = Capabilities { binding_bytes: 1 << 50, ..Capabilities::webgpu_defaults() };
    let plan = DecodePlan::new(&attention(8, 4, 64).decode(), Extent::new(40, 1, 1 << 25), &device).unwrap();
    let error = plan.device_work(Lengths::Full, &[]).unwrap_err().to_string();
    assert!(error.contains("keys of all row tiles"), "{error}");
    let device = Capabilities { loop_turns: Some(65_535), ..device };
    let fine = attention(8, 4, 64).decode().split_keys(1);
    let plan = DecodePlan::new(&fine, Extent::new(100, 1, 10_000), &device).unwrap();
    let error = plan.device_work(Lengths::Full, &[]).unwrap_err().to_string();
    assert!(error.contains("turns of the driver's loops"), "{error}");
}

#[test]
fn a_row_has_no_more_stretches_than_loops_can_merge() {
    let device = Capabilities { binding_bytes: 1 << 50, loop_turns: Some(65_535), ..Capabilities::webgpu_defaults() };
    let plan = |keys| {
        let fine = attention(1, 1, 64).decode().split_keys(1);
        DecodePlan::new(&fine, Extent::new(1, 1, keys), &device).unwrap()
    };
    // Three loops over the parts, a last turn of each, and one of the columns'.
    let fits = plan(21_842);
    assert_eq!(fits.work(Lengths::Full, &[]).unwrap().rows[0][3], 21_842);
    for refused in [plan(21_844).work(Lengths::Full, &[]).map(drop), fits.device_work(Lengths::Full, &[]).map(drop)] {
        let error = refused.unwrap_err().to_string();
        assert!(error.contains("merge a row's stretches") && error.contains("longer stretches"), "{error}");
    }
}

proptest! {
    /// Each key that some row of a tile sees is in one stretch of that tile; each row's parts are its tile's stretches, in their order;
    /// all lies within what the plan said.
    #[test]
    fn stretches_hold_each_key_once(
        group in 1..6_u32,
        queries in 1..5_u32,
        lengths in prop::collection::vec(0..900_u32, 1..9),
        split in prop::option::of(1..200_u32),
        stretches in prop::option::of(prop_oneof![1..100_u32, Just(u32::MAX)]),
        window in (prop::option::of(0..300_u32), prop::option::of(0..300_u32), any::<bool>()),
        cpu in any::<bool>(),
        loop_turns in prop::option::of(1500..4096_u32),
    ) {
        let device = Capabilities {
            loop_turns,
            kind: if cpu { DeviceKind::Cpu } else { DeviceKind::Integrated },
            ..Capabilities::webgpu_defaults()
        };
        let (left, right, causal) = window;
        let plain = Attention::new(Heads::grouped(2 * group, 2).unwrap(), HeadDim::new(8).unwrap());
        let decode = if causal { plain.causal() } else { plain }.window(left, right).decode();
        let decode = stretches.map_or(decode, |stretches| decode.split_into(stretches));
        let decode = split.map_or(decode, |keys| decode.split_keys(keys));
        let batch = u32::try_from(lengths.len()).unwrap();
        let plan = DecodePlan::new(&decode, Extent::new(batch, queries, 900), &device).unwrap();
        let work = plan.work(Lengths::Keys(&lengths), &[]).unwrap();
        prop_assert!(plan.bytes_of(work.partial_rows) <= plan.workspace_bytes);
        if split.is_none() {
            let on_device = plan.device_work(Lengths::Keys(&lengths), &[]).unwrap();
            prop_assert!(work.stretches.len() <= on_device.stretches as usize);
            prop_assert!(plan.bytes_of(on_device.partial_rows) <= plan.workspace_bytes);
        }
        let sums = |lengths: &[u32]| -> Vec<u32> {
            let mut sum = 0;
            [0].into_iter().chain(lengths.iter().map(|n| { sum += n; sum })).collect()
        };
        let (q, k) = (sums(&vec![queries; lengths.len()]), sums(&lengths));
        let packed = Extent::packed(batch, batch * queries, k[lengths.len()]);
        let packed = DecodePlan::new(&decode, packed, &device).unwrap();
        let packed_work = packed.work(Lengths::Packed { queries: &q, keys: &k }, &[]).unwrap();
        prop_assert!(packed.bytes_of(packed_work.partial_rows) <= packed.workspace_bytes);
        prop_assert!(work.tiles.is_empty() && work.prefixes == 0);
        let rows = plan.split.rows;
        let mut next_part = std::collections::BTreeMap::new();
        for &[record, row, first, count] in &work.rows {
            let s = &work.sequences[record as usize];
            let tile = row / rows;
            let mut own: Vec<_> = work.stretches.iter().filter(|s| s[..2] == [record, tile]).collect();
            own.sort_by_key(|stretch| stretch[2]);
            let last = ((tile + 1) * rows).min(queries * group) - 1;
            let (lo, hi) = (key_range(s, tile * rows / group).0, key_range(s, last / group).1);
            let mut at = lo.min(hi);
            prop_assert_eq!(own.len(), count as usize);
            for (stretch, part) in own.into_iter().zip(&work.parts[first as usize..]) {
                prop_assert_eq!(stretch[2], at);
                prop_assert!(split.is_none_or(|keys| stretch[3] % keys == 0 || stretch[3] == hi));
                at = stretch[3];
                prop_assert_eq!(*part, stretch[4] + row % rows);
                prop_assert!(next_part.insert(*part, ()).is_none(), "two rows share a partial row");
            }
            prop_assert_eq!(at, hi);
        }
        prop_assert_eq!(work.rows.len() as u32, batch * queries * group);
        prop_assert!(next_part.len() as u32 <= work.partial_rows);
    }
}

#[test]
fn who_shares_little_does_not_shorten_what_others_share() {
    let layout = CacheLayout::new(2, HeadDim::new(64).unwrap(), 16, 3000).unwrap();
    let decode = attention(8, 2, 64).decode().cached(layout).cascade();
    let plan = DecodePlan::new(&decode, Extent::packed(4, 4, 40_000), &device("NVIDIA")).unwrap();
    // Three that share 8,000 tokens at most, the last of them as many as given.
    let prefixes = |last: u32| {
        let mut pages = Pages::new(layout);
        let a = pages.create();
        pages.extend(&[(a, last)]).unwrap();
        let c = pages.fork(a).unwrap();
        pages.extend(&[(a, 8000 - last)]).unwrap();
        let b = pages.fork(a).unwrap();
        let step = pages.extend(&[(a, 1), (b, 1), (c, 1)]).unwrap();
        let work = plan.work_of(&step).unwrap();
        work.sequences[3..].iter().map(|s| (s.queries, s.keys)).collect::<Vec<_>>()
    };
    assert_eq!(prefixes(512), [(2, 8000)]);
    assert_eq!(prefixes(3984), [(2, 8000)]);
    assert_eq!(prefixes(4000), [(3, 4000)], "as much read as without it");
    assert_eq!(prefixes(6400), [(3, 6400)]);
}
