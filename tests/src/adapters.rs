//! Which adapters there are, and engines on them.

use anyhow::{Context, Result};
use wattn::{Engine, wgpu};

/// All adapters that wgpu reaches, software ones included, each once by name and backend; `filter` keeps names that contain it.
#[must_use]
pub fn adapters(filter: Option<&str>) -> Vec<wgpu::Adapter> {
    let descriptor = wgpu::InstanceDescriptor::new_without_display_handle_from_env();
    let backends = descriptor.backends;
    let instance = wgpu::Instance::new(descriptor);
    let mut all = pollster::block_on(instance.enumerate_adapters(backends));
    all.retain(|adapter| {
        let label = device_label(&adapter.get_info()).to_lowercase();
        let wanted = filter.is_none_or(|f| label.contains(&f.to_lowercase()));
        wanted && adapter.get_downlevel_capabilities().is_webgpu_compliant()
    });
    all
}

/// `backend/name`, as in the names of tests.
#[must_use]
pub fn device_label(info: &wgpu::AdapterInfo) -> String {
    // "llvmpipe (LLVM 15.0.6, 256 bits)" names its compiler too, which is printed elsewhere.
    let name = info.name.split(" (").next().unwrap_or(&info.name).replace(['/', ' '], "-");
    format!("{:?}/{name}", info.backend).to_lowercase()
}

/// What lets a device have experimental features.
#[must_use]
pub fn experimental() -> wgpu::ExperimentalFeatures {
    #[expect(unsafe_code, reason = "what is experimental is tested and measured too")]
    // SAFETY: nothing to uphold; it acknowledges that experimental features of wgpu may have bugs that lead to undefined behaviour.
    unsafe {
        wgpu::ExperimentalFeatures::enabled()
    }
}

/// An engine with all that wattn can make use of, experimental features included.
///
/// # Errors
/// An adapter that gives no device.
pub fn engine(adapter: &wgpu::Adapter) -> Result<Engine> {
    Engine::on_adapter_with(adapter, experimental()).with_context(|| device_label(&adapter.get_info()))
}
