//! Compiles the benchmark's own shaders: plain WGSL, with the kernels' unrolled loops.

#[path = "../../../shaders/src/unroll.rs"]
mod unroll;

use anyhow::{Context, Result, anyhow};
use wattn::wgpu::{self, BindGroupLayout, ComputePipeline, Device, ShaderModule};

/// A module of `files`, after `constants` that its unrolled loops may use as bounds.
pub(crate) fn module(device: &Device, label: &str, constants: &[(&str, u32)], files: &[&str]) -> Result<ShaderModule> {
    let mut source: String = constants.iter().map(|(name, value)| format!("const {name}: u32 = {value};\n")).collect();
    let lookup = |name: &str| constants.iter().find(|(n, _)| *n == name).map(|(_, value)| *value);
    for file in files {
        source += &unroll::unroll(file, &lookup).map_err(|message| anyhow!("{label}: {message}"))?;
    }
    let scope = device.push_error_scope(wgpu::ErrorFilter::Validation);
    let module = device.create_shader_module(wgpu::ShaderModuleDescriptor {
        label: Some(label),
        source: wgpu::ShaderSource::Wgsl(source.into()),
    });
    match pollster::block_on(scope.pop()) {
        Some(error) => Err(error).with_context(|| format!("{label} does not compile")),
        None => Ok(module),
    }
}

/// The pipeline of an entry point; its layout follows from the shader unless given.
pub(crate) fn pipeline(
    device: &Device,
    module: &ShaderModule,
    entry: &str,
    layout: Option<&BindGroupLayout>,
    constants: &[(&str, f64)],
) -> ComputePipeline {
    let layout = layout.map(|layout| {
        device.create_pipeline_layout(&wgpu::PipelineLayoutDescriptor {
            label: Some(entry),
            bind_group_layouts: &[Some(layout)],
            ..wgpu::PipelineLayoutDescriptor::default()
        })
    });
    device.create_compute_pipeline(&wgpu::ComputePipelineDescriptor {
        label: Some(entry),
        layout: layout.as_ref(),
        module,
        entry_point: Some(entry),
        compilation_options: wgpu::PipelineCompilationOptions { constants, ..Default::default() },
        cache: None,
    })
}
