//! Compiles kernels through wgpu as the engine does, and asks the driver what it made of them.
//!
//! wgpu does not pass on `VK_KHR_pipeline_executable_properties`. But it takes a device that somebody else created, with its table of
//! functions: in that table `vkCreateComputePipelines` is ours. It asks for statistics, and reads them once the pipeline is there. So
//! what is looked at is what the engine runs, down to the last flag. Nothing is ever submitted.

use std::ffi::{CStr, c_char};
use std::slice;
use std::sync::{Mutex, OnceLock, PoisonError};

use anyhow::{Context, Result, anyhow, ensure};
use ash::{khr::pipeline_executable_properties as properties, vk};
use wattn::wgpu::{Adapter, DeviceDescriptor, MemoryHints, hal::api::Vulkan};
use wattn::{Engine, matrix_features, wanted_features, wanted_limits};
use wattn_tests::experimental;

use super::row::Program;

/// The driver's functions that [`create_compute_pipelines`] calls.
struct Driver {
    create: vk::PFN_vkCreateComputePipelines,
    properties: properties::Device,
}

static DRIVER: OnceLock<Driver> = OnceLock::new();
static PROGRAMS: Mutex<Vec<Program>> = Mutex::new(Vec::new());

/// Takes the programs of the pipelines that were compiled since the last call.
pub(super) fn take_programs() -> Vec<Program> {
    std::mem::take(&mut PROGRAMS.lock().unwrap_or_else(PoisonError::into_inner))
}

/// An engine whose pipelines leave their programs for [`take_programs`]; one a process.
pub(super) fn engine(adapter: &Adapter) -> Result<Engine> {
    let (features, limits) = (wanted_features(adapter) | matrix_features(adapter), wanted_limits(adapter));
    // SAFETY: the guard destroys nothing; what is taken from it is used while it lives.
    let hal = unsafe { adapter.as_hal::<Vulkan>() }.context("not a Vulkan driver")?;
    let instance = hal.shared_instance().raw_instance();
    // SAFETY: the adapter is of this instance, which it keeps alive.
    let available = unsafe { instance.enumerate_device_extension_properties(hal.raw_physical_device()) }?;
    let available = available.iter().any(|extension| extension.extension_name_as_c_str() == Ok(properties::NAME));
    ensure!(available, "the driver has no VK_KHR_pipeline_executable_properties");

    let mut extensions = hal.required_device_extensions(features);
    extensions.push(properties::NAME);
    let names: Vec<*const c_char> = extensions.iter().map(|name| name.as_ptr()).collect();
    let queues = [vk::DeviceQueueCreateInfo::default().queue_family_index(0).queue_priorities(&[1.0])];
    let mut wanted =
        vk::PhysicalDevicePipelineExecutablePropertiesFeaturesKHR::default().pipeline_executable_info(true);
    let info = vk::DeviceCreateInfo::default().queue_create_infos(&queues).enabled_extension_names(&names);
    let mut enabled = hal.physical_device_features(&extensions, features);
    let info = enabled.add_to_device_create(info.push_next(&mut wanted));
    // SAFETY: extensions and features are those that wgpu would enable, and one that the driver was found to have.
    let device = unsafe { instance.create_device(hal.raw_physical_device(), &info, None) }?;
    let mut functions = device.fp_v1_0().clone();
    let driver =
        Driver { create: functions.create_compute_pipelines, properties: properties::Device::new(instance, &device) };
    DRIVER.set(driver).map_err(|_| anyhow!("a second device in one process"))?;
    functions.create_compute_pipelines = create_compute_pipelines;
    let device = ash::Device::from_parts_1_3(
        device.handle(),
        functions,
        device.fp_v1_1().clone(),
        device.fp_v1_2().clone(),
        device.fp_v1_3().clone(),
    );
    // SAFETY: the device was created from this adapter with these extensions, features and queues; wgpu owns it from here.
    let open =
        unsafe { hal.device_from_raw(device, None, &extensions, features, &limits, &MemoryHints::default(), 0, 0)? };
    let descriptor = DeviceDescriptor {
        label: Some("wattn"),
        required_features: features,
        required_limits: limits,
        experimental_features: experimental(),
        ..DeviceDescriptor::default()
    };
    // SAFETY: `open` is of this adapter, with these features.
    let (device, queue) = unsafe { adapter.create_device_from_hal(open, &descriptor) }?;
    Ok(Engine::builder(&device, &queue).matrix_properties(adapter.cooperative_matrix_properties()).build())
}

/// Stands in for the driver's function: compiles with statistics on, and keeps them.
///
/// # Safety
/// As for `vkCreateComputePipelines`, with the device that [`engine`] created.
unsafe extern "system" fn create_compute_pipelines(
    device: vk::Device,
    cache: vk::PipelineCache,
    count: u32,
    infos: *const vk::ComputePipelineCreateInfo<'_>,
    allocator: *const vk::AllocationCallbacks<'_>,
    pipelines: *mut vk::Pipeline,
) -> vk::Result {
    let Some(driver) = DRIVER.get() else { return vk::Result::ERROR_INITIALIZATION_FAILED };
    // SAFETY: the caller passes `count` of them.
    let mut infos = unsafe { slice::from_raw_parts(infos, count as usize) }.to_vec();
    for info in &mut infos {
        info.flags |= vk::PipelineCreateFlags::CAPTURE_STATISTICS_KHR
            | vk::PipelineCreateFlags::CAPTURE_INTERNAL_REPRESENTATIONS_KHR;
    }
    // SAFETY: the caller's arguments, but for two flags that come with an enabled extension.
    let result = unsafe { (driver.create)(device, cache, count, infos.as_ptr(), allocator, pipelines) };
    if result == vk::Result::SUCCESS {
        // SAFETY: on success there are `count` of them, with the flags that asking takes.
        let programs = unsafe { slice::from_raw_parts(pipelines, count as usize) }
            .iter()
            .flat_map(|&pipeline| unsafe { programs(&driver.properties, pipeline) }.unwrap_or_default());
        PROGRAMS.lock().unwrap_or_else(PoisonError::into_inner).extend(programs);
    }
    result
}

/// What a pipeline consists of.
///
/// # Safety
/// The pipeline must be of the device of `properties`, and have been created with both flags.
unsafe fn programs(properties: &properties::Device, pipeline: vk::Pipeline) -> Result<Vec<Program>, vk::Result> {
    // SAFETY: as the caller says.
    let all =
        unsafe { properties.get_pipeline_executable_properties(&vk::PipelineInfoKHR::default().pipeline(pipeline)) }?;
    let one = |(index, of): (u32, &vk::PipelineExecutablePropertiesKHR<'_>)| {
        let info = vk::PipelineExecutableInfoKHR::default().pipeline(pipeline).executable_index(index);
        // SAFETY: the index is of one that the driver listed.
        let statistics = unsafe { properties.get_pipeline_executable_statistics(&info) }?;
        Ok(Program {
            subgroup: of.subgroup_size,
            statistics: statistics.iter().map(|statistic| (text(&statistic.name), number(statistic))).collect(),
            // SAFETY: the same.
            texts: unsafe { texts(properties, &info) }?,
        })
    };
    (0..).zip(&all).map(one).collect()
}

/// The representations of one program.
///
/// # Safety
/// As for [`programs`], and the index must be of one that the driver listed.
unsafe fn texts(
    properties: &properties::Device,
    info: &vk::PipelineExecutableInfoKHR<'_>,
) -> Result<Vec<(String, String)>, vk::Result> {
    // SAFETY: as the caller says.
    let mut all = unsafe { properties.get_pipeline_executable_internal_representations(info) }?;
    let mut bytes: Vec<Vec<u8>> = all.iter().map(|one| vec![0; one.data_size]).collect();
    for (one, bytes) in all.iter_mut().zip(&mut bytes) {
        one.p_data = bytes.as_mut_ptr().cast();
    }
    let mut count = u32::try_from(all.len()).expect("the driver counted them in a u32");
    // SAFETY: each entry points to as many bytes as the driver asked for, and `all` has `count` entries.
    let result = unsafe {
        let read = properties.fp().get_pipeline_executable_internal_representations_khr;
        read(properties.device(), info, &mut count, all.as_mut_ptr())
    };
    result.result()?;
    let decode = |bytes: Vec<u8>| String::from_utf8_lossy(&bytes).trim_end_matches('\0').to_owned();
    Ok(all.iter().map(|one| text(&one.name)).zip(bytes.into_iter().map(decode)).collect())
}

fn number(statistic: &vk::PipelineExecutableStatisticKHR<'_>) -> f64 {
    let value = statistic.value;
    // SAFETY: the format says which of its fields the driver wrote; all bits are valid for each.
    unsafe {
        match statistic.format {
            vk::PipelineExecutableStatisticFormatKHR::BOOL32 => value.b32.into(),
            vk::PipelineExecutableStatisticFormatKHR::INT64 => value.i64 as f64,
            vk::PipelineExecutableStatisticFormatKHR::UINT64 => value.u64 as f64,
            _ => value.f64,
        }
    }
}

fn text(name: &[c_char]) -> String {
    // SAFETY: the same bytes, whichever sign a C character has here.
    let bytes: &[u8] = unsafe { slice::from_raw_parts(name.as_ptr().cast(), name.len()) };
    CStr::from_bytes_until_nul(bytes).unwrap_or_default().to_string_lossy().into_owned()
}
