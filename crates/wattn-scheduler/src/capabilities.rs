//! What a device can do, as far as it decides a plan.

use crate::cost::Rates;

/// What kind of processor runs the kernels.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum DeviceKind {
    /// A graphics card with memory of its own.
    Discrete,
    /// A GPU that shares the host's memory.
    Integrated,
    /// A software driver: lanes are vector lanes of a CPU.
    Cpu,
    /// Not known.
    Other,
}

/// Drivers whose compilers need care.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Driver {
    /// Mesa's llvmpipe (lavapipe), with Mesa's major version.
    Llvmpipe {
        /// Mesa's major version; 0 where it is not known.
        mesa: u32,
    },
    /// AMD's own Vulkan driver, of Windows and AMDVLK; Mesa's RADV is another.
    Amd,
    /// Any other.
    Other,
}

/// The fewest turns of loops that plans can do with.
pub const MIN_LOOP_TURNS: u32 = 4096;

/// A device's capabilities and limits, read once from it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Capabilities {
    /// What kind of processor.
    pub kind: DeviceKind,
    /// Which driver.
    pub driver: Driver,
    /// The least and the greatest subgroup size, where shaders may use subgroups.
    pub subgroups: Option<(u32, u32)>,
    /// Rows and columns of the square cooperative matrices, f16 factors and f32 sums, that shaders may use.
    pub matrix: Option<u32>,
    /// Whether shaders may use 64-bit integers.
    pub int64: bool,
    /// Bytes of workgroup memory a workgroup may declare.
    pub workgroup_bytes: u32,
    /// Invocations a workgroup may have.
    pub workgroup_invocations: u32,
    /// Workgroups of a dispatch along one axis.
    pub workgroups_per_axis: u32,
    /// Storage buffers a kernel may bind.
    pub storage_buffers: u32,
    /// Bytes of one storage binding.
    pub binding_bytes: u64,
    /// What the byte offset of a storage binding must be a multiple of.
    pub binding_alignment: u32,
    /// Turns of all its loops together after which the driver ends an invocation's loops without a word, where it does so; at least
    /// [`MIN_LOOP_TURNS`].
    pub loop_turns: Option<u32>,
    /// What it reaches, where that was measured: for estimates only.
    pub rates: Option<Rates>,
}

impl Capabilities {
    /// WebGPU's default limits and no optional feature: what every device has.
    #[must_use]
    pub fn webgpu_defaults() -> Self {
        Self {
            kind: DeviceKind::Other,
            driver: Driver::Other,
            subgroups: None,
            matrix: None,
            int64: false,
            workgroup_bytes: 16_384,
            workgroup_invocations: 256,
            workgroups_per_axis: 65_535,
            storage_buffers: 8,
            binding_bytes: 128 << 20,
            binding_alignment: 256,
            loop_turns: None,
            rates: None,
        }
    }

    /// Whether rows may be loaded by 64-bit words: not on GPUs, which load vec4 at once, and whose plans take strides of such whatever is
    /// tuned. Sixteen of them fit no register of a CPU: drivers build such a vector in memory, word by word.
    pub(crate) fn loads_wide(&self) -> bool {
        self.kind == DeviceKind::Cpu && self.int64 && self.subgroups.is_none_or(|(lanes, _)| lanes < 16)
    }

    /// A guess of the cache that workgroups share, bytes: of one core on a CPU.
    #[must_use]
    pub fn cache_bytes(&self) -> u64 {
        match self.kind {
            DeviceKind::Discrete => 8 << 20,
            DeviceKind::Integrated | DeviceKind::Other => 2 << 20,
            DeviceKind::Cpu => 512 << 10,
        }
    }

    /// A guess of how many workgroups of a linear-attention kernel keep the device busy.
    #[must_use]
    pub fn width(&self) -> u32 {
        match self.kind {
            DeviceKind::Discrete => 512,
            DeviceKind::Integrated | DeviceKind::Other => 64,
            DeviceKind::Cpu => 16,
        }
    }
}
