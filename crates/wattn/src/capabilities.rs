//! What a wgpu device can do, read once; and what to ask an adapter for.

use wattn_scheduler::shaders::table::MATRIX_SIDES;
use wattn_scheduler::{Capabilities, DeviceKind, Driver};
use wgpu::{AdapterInfo, Backend, CooperativeMatrixProperties, CooperativeScalarType, DeviceType, Features, Limits};

/// The features that kernels make use of and this adapter has: subgroups; on CPU drivers 64-bit integers too, for wider loads. All
/// are optional: ask for them with the device's own. Not among them are those of matrices, which [`matrix_features`] tells, and
/// timestamps, by which `Engine::tune` measures: `TIMESTAMP_QUERY` and `TIMESTAMP_QUERY_INSIDE_ENCODERS`.
#[must_use]
pub fn wanted_features(adapter: &wgpu::Adapter) -> Features {
    let cpu = adapter.get_info().device_type == DeviceType::Cpu;
    let wanted = if cpu { Features::SUBGROUP | Features::SHADER_INT64 } else { Features::SUBGROUP };
    adapter.features() & wanted
}

/// The features that cooperative matrices take, where this adapter has any that wattn can use: f16 factors and f32 sums, all sides 8 or
/// 16. One of them is experimental: ask for them together with `experimental_features`, whose token is the application's to make, and
/// tell the engine by [`EngineBuilder::matrix_properties`](crate::EngineBuilder::matrix_properties).
#[must_use]
pub fn matrix_features(adapter: &wgpu::Adapter) -> Features {
    let usable = adapter.features().contains(MATRIX) && matrix_side(&adapter.cooperative_matrix_properties()).is_some();
    if usable { MATRIX } else { Features::empty() }
}

const MATRIX: Features = Features::SHADER_F16.union(Features::EXPERIMENTAL_COOPERATIVE_MATRIX);

/// The largest side of matrices that wattn can use.
fn matrix_side(properties: &[CooperativeMatrixProperties]) -> Option<u32> {
    let has = |side: &u32| {
        properties.iter().any(|matrix| {
            [matrix.m_size, matrix.n_size, matrix.k_size] == [*side; 3]
                && matrix.ab_type == CooperativeScalarType::F16
                && matrix.cr_type == CooperativeScalarType::F32
        })
    };
    MATRIX_SIDES.into_iter().filter(has).max()
}

/// WebGPU's default limits, with those that wattn gains from raised to what this adapter has: sizes of buffers and bindings,
/// workgroup memory and invocations.
#[must_use]
pub fn wanted_limits(adapter: &wgpu::Adapter) -> Limits {
    let has = adapter.limits();
    Limits {
        max_buffer_size: has.max_buffer_size,
        max_storage_buffer_binding_size: has.max_storage_buffer_binding_size,
        max_storage_buffers_per_shader_stage: has.max_storage_buffers_per_shader_stage,
        max_compute_workgroup_storage_size: has.max_compute_workgroup_storage_size,
        max_compute_invocations_per_workgroup: has.max_compute_invocations_per_workgroup,
        max_compute_workgroup_size_x: has.max_compute_workgroup_size_x,
        max_compute_workgroups_per_dimension: has.max_compute_workgroups_per_dimension,
        min_storage_buffer_offset_alignment: has.min_storage_buffer_offset_alignment,
        ..Limits::default()
    }
    .using_minimum_supported_acceleration_structure_values()
    .or_worse_values_from(&has)
}

/// The capabilities of a device with these features and limits, and of its adapter's matrices.
pub(crate) fn capabilities(
    info: &AdapterInfo,
    features: Features,
    limits: &Limits,
    matrices: &[CooperativeMatrixProperties],
) -> Capabilities {
    let kind = match info.device_type {
        DeviceType::DiscreteGpu => DeviceKind::Discrete,
        DeviceType::IntegratedGpu => DeviceKind::Integrated,
        DeviceType::Cpu => DeviceKind::Cpu,
        DeviceType::VirtualGpu | DeviceType::Other => DeviceKind::Other,
    };
    let subgroups = features.contains(Features::SUBGROUP).then_some(subgroup_sizes(info));
    Capabilities {
        kind,
        driver: driver(info),
        subgroups,
        matrix: matrix_side(matrices).filter(|_| features.contains(MATRIX)),
        int64: features.contains(Features::SHADER_INT64),
        workgroup_bytes: limits.max_compute_workgroup_storage_size,
        workgroup_invocations: limits.max_compute_invocations_per_workgroup.min(limits.max_compute_workgroup_size_x),
        workgroups_per_axis: limits.max_compute_workgroups_per_dimension,
        storage_buffers: limits.max_storage_buffers_per_shader_stage,
        // Kernels index with 32 bits.
        binding_bytes: limits.max_storage_buffer_binding_size.min(u64::from(u32::MAX)),
        binding_alignment: limits.min_storage_buffer_offset_alignment.max(16),
        // LP_MAX_TGSI_LOOP_ITERATIONS of Mesa's gallivm.
        loop_turns: matches!(driver(info), Driver::Llvmpipe { .. }).then_some(65_535),
        rates: None,
    }
}

/// The least and the greatest size of subgroups. wgpu says 4 and 64 of all that Metal runs on (gfx-rs/wgpu#9876); Apple's own GPUs have 32
/// lanes, as browsers take for granted too (gpuweb/gpuweb#6240).
fn subgroup_sizes(info: &AdapterInfo) -> (u32, u32) {
    if info.backend == Backend::Metal && info.name.starts_with("Apple") {
        return (32, 32);
    }
    (info.subgroup_min_size, info.subgroup_max_size)
}

fn driver(info: &AdapterInfo) -> Driver {
    if info.backend == Backend::Vulkan && info.driver.starts_with("AMD ") {
        return Driver::Amd;
    }
    if !info.driver.contains("llvmpipe") && !info.name.contains("llvmpipe") {
        return Driver::Other;
    }
    // "Mesa 22.3.6 (LLVM 15.0.6)"
    let version = info.driver_info.split_whitespace().nth(1).and_then(|v| v.split('.').next());
    Driver::Llvmpipe { mesa: version.and_then(|v| v.parse().ok()).unwrap_or(0) }
}
