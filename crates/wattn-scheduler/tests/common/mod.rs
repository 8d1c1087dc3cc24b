//! Simulated devices.

use wattn_scheduler::shaders::Kernel;
use wattn_scheduler::{Capabilities, DeviceKind, Driver};

/// Capabilities like those of real devices.
pub(crate) fn devices() -> Vec<(&'static str, Capabilities, Kernel)> {
    let base = Capabilities::webgpu_defaults();
    let gpu = Capabilities { workgroup_bytes: 32 << 10, workgroup_invocations: 1024, binding_bytes: 2 << 30, ..base };
    let matrices = Capabilities { kind: DeviceKind::Discrete, matrix: Some(16), ..gpu };
    let lavapipe = Capabilities {
        loop_turns: Some(65_535),
        kind: DeviceKind::Cpu,
        driver: Driver::Llvmpipe { mesa: 22 },
        subgroups: Some((8, 8)),
        int64: true,
        binding_alignment: 32,
        binding_bytes: 128 << 20,
        ..gpu
    };
    vec![
        ("WebGPU defaults", base, Kernel::TileUniversal),
        (
            "Apple",
            Capabilities { kind: DeviceKind::Integrated, subgroups: Some((32, 32)), matrix: Some(8), ..gpu },
            Kernel::TileSubgroup,
        ),
        ("Intel", Capabilities { kind: DeviceKind::Integrated, subgroups: Some((8, 32)), ..gpu }, Kernel::TileSubgroup),
        ("RDNA", Capabilities { kind: DeviceKind::Discrete, subgroups: Some((32, 64)), ..gpu }, Kernel::TileSubgroup),
        ("RDNA3", Capabilities { subgroups: Some((32, 64)), ..matrices }, Kernel::TileSubgroup),
        ("Adreno, no subgroups", Capabilities { kind: DeviceKind::Integrated, ..gpu }, Kernel::TileUniversal),
        ("Mali", Capabilities { kind: DeviceKind::Integrated, subgroups: Some((4, 16)), ..gpu }, Kernel::TileUniversal),
        ("NVIDIA", Capabilities { subgroups: Some((32, 32)), ..matrices }, Kernel::TileSubgroup),
        ("lavapipe", lavapipe, Kernel::Broadcast),
        (
            "lavapipe 26",
            Capabilities { driver: Driver::Llvmpipe { mesa: 26 }, matrix: Some(8), ..lavapipe },
            Kernel::Broadcast,
        ),
        ("lavapipe, 512 bit", Capabilities { subgroups: Some((16, 16)), ..lavapipe }, Kernel::Broadcast),
        ("lavapipe, no subgroups", Capabilities { subgroups: None, ..lavapipe }, Kernel::TileUniversal),
    ]
}
