//! Which adapter: private stand-in.
use anyhow::{Context, Result};
use wattn::wgpu::{Adapter, DeviceType};
pub(crate) fn choose(filter: Option<&str>) -> Result<Adapter> {
    let rank = |a: &Adapter| match a.get_info().device_type {
        DeviceType::DiscreteGpu => 0,
        DeviceType::IntegratedGpu => 1,
        DeviceType::Cpu => 3,
        _ => 2,
    };
    wattn_tests::adapters(filter).into_iter().min_by_key(rank).context("no adapter")
}
