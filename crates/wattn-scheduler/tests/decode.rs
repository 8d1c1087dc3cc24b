//! Few queries over many keys: what is planned on simulated devices, and the work of random lengths.

mod common;

use common::devices;
use proptest::prelude::*;
use wattn_scheduler::{
    Attention, Capabilities, DecodePlan, DeviceKind, Extent, HeadDim, Heads, Lengths, PlanError, key_range,
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
    let plan = DecodePlan::new(&fine, Extent::new(1, 1, 1 << 20), &device).unwrap();
    let error = plan.device_work(Lengths::Full, &[]).unwrap_err().to_string();
    assert!(error.contains("turns of the driver's loops"), "{error}");
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
        window in prop::option::of(0..300_u32),
        cpu in any::<bool>(),
    ) {
        let device = Capabilities {
            kind: if cpu { DeviceKind::Cpu } else { DeviceKind::Integrated },
            ..Capabilities::webgpu_defaults()
        };
        let decode = attention(2 * group, 2, 8).window(window, None).decode();
        let decode = split.map_or(decode, |keys| decode.split_keys(keys));
        let batch = u32::try_from(lengths.len()).unwrap();
        let plan = DecodePlan::new(&decode, Extent::new(batch, queries, 900), &device).unwrap();
        let work = plan.work(Lengths::Keys(&lengths), &[]).unwrap();
        prop_assert!(plan.bytes_of(work.partial_rows) <= plan.workspace_bytes);
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
