//! The one place with `unsafe`: shader modules whose loops wgpu does not count.

use wgpu::{Device, ShaderModule, ShaderModuleDescriptor, ShaderRuntimeChecks};

use crate::engine::{EngineBuilder, Modules};

impl EngineBuilder {
    /// Compiles kernels without the counters by which wgpu ends loops that might never end. Wattn's always do, and drivers make more of
    /// loops that they understand; some take longer over them, and Mesa's llvmpipe gains nothing. Indices stay checked: what a kernel reads
    /// from a buffer, such as the numbers of pages, leads nowhere else. `cargo xtask bench` times the choice for 1,024 tokens both ways.
    #[must_use]
    pub fn trusted(mut self) -> Self {
        self.modules = Modules { note: ", loops not counted", make: module };
        self
    }
}

/// A module of one of our kernels.
fn module(device: &Device, kernel: ShaderModuleDescriptor<'_>) -> ShaderModule {
    let checks = ShaderRuntimeChecks { force_loop_bounding: false, ..ShaderRuntimeChecks::checked() };
    // SAFETY: each loop of a kernel counts by a constant to a bound that lies further from the end of u32 than that, whatever the buffers
    // hold, ends after one turn, or is one of those of which tests/loops.rs of the shaders says why it ends; that test looks at each. All
    // other checks stay.
    #[expect(unsafe_code, reason = "wgpu asks for a promise that loops end")]
    unsafe {
        device.create_shader_module_trusted(kernel, checks)
    }
}
