//! The device under test: opened with timestamps where it has them, and described.

use std::collections::BTreeMap;
use std::process::Command;

use anyhow::{Context, Result};
use serde::{Deserialize, Serialize};
use wattn::wgpu::{self, Adapter, Buffer, BufferUsages, DeviceType, Features};
use wattn::{Engine, Rates, matrix_features, wanted_features, wanted_limits};
use wattn_tests::experimental;

use super::ceilings::Ceilings;
use super::host::{self, HostCosts};

/// All that is known of the device of a run.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct Device {
    pub(crate) name: String,
    pub(crate) backend: String,
    pub(crate) driver: String,
    pub(crate) driver_info: String,
    pub(crate) kind: String,
    /// Whether it is a CPU driver, whose figures say nothing about GPUs.
    pub(crate) software: bool,
    pub(crate) subgroup_min_size: u32,
    pub(crate) subgroup_max_size: u32,
    pub(crate) fma_gflops: f64,
    /// The probe that reached it.
    pub(crate) fma_probe: String,
    /// What the other probes reached, GFLOP/s.
    #[serde(default)]
    pub(crate) fma_other_gflops: BTreeMap<String, f64>,
    /// Of a CPU driver: what a library that knows the CPU multiplies matrices with, on the same cores.
    #[serde(default)]
    pub(crate) sgemm_gflops: Option<f64>,
    /// Bytes read plus bytes written; the better of the next two.
    pub(crate) copy_gbps: f64,
    pub(crate) copy_buffer_gbps: f64,
    pub(crate) copy_kernel_gbps: f64,
    #[serde(flatten)]
    pub(crate) host: HostCosts,
    pub(crate) commit: Option<String>,
}

impl Device {
    /// The description of an engine's device.
    pub(crate) fn describe(engine: &Engine, ceilings: &Ceilings, host: HostCosts) -> Self {
        let info = engine.device().adapter_info();
        Self {
            software: info.device_type == DeviceType::Cpu,
            kind: format!("{:?}", engine.capabilities().kind).to_lowercase(),
            backend: format!("{:?}", info.backend).to_lowercase(),
            subgroup_min_size: info.subgroup_min_size,
            subgroup_max_size: info.subgroup_max_size,
            name: info.name,
            driver: info.driver,
            driver_info: info.driver_info,
            fma_gflops: ceilings.fma_rate / 1e9,
            fma_probe: ceilings.fma_probe().into(),
            fma_other_gflops: ceilings.other_fma_rates.iter().map(|(name, rate)| (name.clone(), rate / 1e9)).collect(),
            sgemm_gflops: (info.device_type == DeviceType::Cpu).then(host::sgemm_rate).flatten().map(|rate| rate / 1e9),
            copy_gbps: ceilings.bandwidth / 1e9,
            copy_buffer_gbps: ceilings.buffer_bandwidth / 1e9,
            copy_kernel_gbps: ceilings.kernel_bandwidth / 1e9,
            host,
            commit: commit(),
        }
    }

    /// What plans estimate their time from.
    #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "rates and a time, for estimates")]
    pub(crate) fn rates(&self) -> Rates {
        Rates {
            flops: (self.fma_gflops * 1e9) as u64,
            bandwidth: (self.copy_gbps * 1e9) as u64,
            dispatch_ns: (self.host.next_dispatch_us * 1e3) as u32,
        }
    }

    /// One that tests make do with.
    #[cfg(test)]
    pub(crate) fn sample() -> Self {
        let device = serde_json::json!({
            "name": "a <name>", "backend": "vulkan", "driver": "d", "driver_info": "1", "kind": "cpu", "software": true,
            "subgroup_min_size": 8, "subgroup_max_size": 8, "fma_gflops": 50.0, "fma_probe": "p", "copy_gbps": 10.0,
            "copy_buffer_gbps": 10.0, "copy_kernel_gbps": 5.0, "plan_us": 1.0, "encode_us": 1.0, "empty_submit_us": 1.0,
            "dispatch_us": 1.0, "next_dispatch_us": 1.0, "commit": null,
        });
        serde_json::from_value(device).expect("all fields")
    }

    /// What makes runs comparable.
    pub(crate) fn identity(&self) -> String {
        format!("{}/{}, {} {}", self.backend, self.name, self.driver, self.driver_info)
    }
}

/// As [`Device::identity`], before anything is measured.
pub(crate) fn identity(info: &wgpu::AdapterInfo) -> String {
    let backend = format!("{:?}", info.backend).to_lowercase();
    format!("{backend}/{}, {} {}", info.name, info.driver, info.driver_info)
}

/// An engine on this adapter, its device with timestamps if there are any.
pub(crate) fn open(adapter: &Adapter) -> Result<Engine> {
    let timestamps = Features::TIMESTAMP_QUERY | Features::TIMESTAMP_QUERY_INSIDE_ENCODERS;
    let descriptor = wgpu::DeviceDescriptor {
        label: Some("bench"),
        required_features: wanted_features(adapter) | matrix_features(adapter) | (adapter.features() & timestamps),
        required_limits: wanted_limits(adapter),
        experimental_features: experimental(),
        ..wgpu::DeviceDescriptor::default()
    };
    let (device, queue) = pollster::block_on(adapter.request_device(&descriptor)).context("opening the device")?;
    Ok(Engine::builder(&device, &queue).matrix_properties(adapter.cooperative_matrix_properties()).build())
}

/// A buffer of f32, read back.
pub(crate) fn read_f32(engine: &Engine, buffer: &Buffer) -> Result<Vec<f32>> {
    let device = engine.device();
    let readable = device.create_buffer(&wgpu::BufferDescriptor {
        label: Some("read back"),
        size: buffer.size(),
        usage: BufferUsages::MAP_READ | BufferUsages::COPY_DST,
        mapped_at_creation: false,
    });
    let mut encoder = device.create_command_encoder(&wgpu::CommandEncoderDescriptor::default());
    encoder.copy_buffer_to_buffer(buffer, 0, &readable, 0, buffer.size());
    engine.queue().submit([encoder.finish()]);
    readable.slice(..).map_async(wgpu::MapMode::Read, |_| ());
    device.poll(wgpu::PollType::wait_indefinitely()).context("waiting for the device")?;
    let bytes = readable.slice(..).get_mapped_range().context("the buffer was not mapped")?.to_vec();
    Ok(bytemuck::pod_collect_to_vec(&bytes))
}

/// The commit that is measured, where git knows it.
fn commit() -> Option<String> {
    let output = Command::new("git").args(["describe", "--always", "--dirty", "--exclude=*"]).output().ok()?;
    let text = String::from_utf8(output.stdout).ok()?;
    (output.status.success() && !text.trim().is_empty()).then(|| text.trim().to_owned())
}
