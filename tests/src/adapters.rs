//! Which adapters there are.

/// All adapters that wgpu reaches, software ones included, each once by name and backend; `filter` keeps names that contain it.
#[must_use]
pub fn adapters(filter: Option<&str>) -> Vec<wattn::wgpu::Adapter> {
    use wattn::wgpu;
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
pub fn device_label(info: &wattn::wgpu::AdapterInfo) -> String {
    // "llvmpipe (LLVM 15.0.6, 256 bits)" names its compiler too, which is printed elsewhere.
    let name = info.name.split(" (").next().unwrap_or(&info.name).replace(['/', ' '], "-");
    format!("{:?}/{name}", info.backend).to_lowercase()
}
