//! An engine of its own, for tools and tests that have no device yet.

use crate::capabilities::{matrix_features, wanted_features, wanted_limits};
use crate::engine::Engine;
use crate::error::RunError;

impl Engine {
    /// An engine on an adapter that wgpu prefers (`WGPU_BACKEND` and `WGPU_ADAPTER_NAME` choose another), with all that wattn wants
    /// but cooperative matrices (see [`on_adapter_with`](Self::on_adapter_with)) and timestamps, by which `Engine::tune` measures.
    ///
    /// # Errors
    /// No adapter, or one that gives no device.
    pub fn headless() -> Result<Self, RunError> {
        let instance = wgpu::Instance::new(wgpu::InstanceDescriptor::new_without_display_handle_from_env());
        let no_device = |error: &dyn std::fmt::Display| RunError::NoDevice(error.to_string());
        let adapter = pollster::block_on(wgpu::util::initialize_adapter_from_env_or_default(&instance, None))
            .map_err(|error| no_device(&error))?;
        Self::on_adapter(&adapter)
    }

    /// An engine on a device of this adapter, with all that wattn wants of it but cooperative matrices and timestamps.
    ///
    /// # Errors
    /// An adapter that gives no device.
    pub fn on_adapter(adapter: &wgpu::Adapter) -> Result<Self, RunError> {
        Self::on_adapter_with(adapter, wgpu::ExperimentalFeatures::disabled())
    }

    /// As [`on_adapter`](Self::on_adapter), with cooperative matrices too where the adapter has them and `experimental` is enabled: wgpu
    /// has applications acknowledge that what is experimental may have bugs that break Rust's promises.
    ///
    /// # Errors
    /// An adapter that gives no device.
    pub fn on_adapter_with(
        adapter: &wgpu::Adapter,
        experimental: wgpu::ExperimentalFeatures,
    ) -> Result<Self, RunError> {
        let matrices = if experimental.is_enabled() { matrix_features(adapter) } else { wgpu::Features::empty() };
        let descriptor = wgpu::DeviceDescriptor {
            label: Some("wattn"),
            required_features: wanted_features(adapter) | matrices,
            experimental_features: experimental,
            required_limits: wanted_limits(adapter),
            ..wgpu::DeviceDescriptor::default()
        };
        let (device, queue) = pollster::block_on(adapter.request_device(&descriptor))
            .map_err(|error| RunError::NoDevice(error.to_string()))?;
        Ok(Self::builder(&device, &queue).matrix_properties(adapter.cooperative_matrix_properties()).build())
    }
}
