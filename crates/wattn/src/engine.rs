//! The engine: a device, its capabilities and the pipelines compiled so far.

use std::collections::HashMap;
use std::fmt;
use std::sync::{Arc, Mutex, PoisonError};

use wattn_scheduler::shaders::{Key, bindings, compose};
use wattn_scheduler::{Capabilities, MIN_LOOP_TURNS, PlanError, Rates};
use wgpu::{
    BindGroupLayout, BindGroupLayoutDescriptor, BindGroupLayoutEntry, BindingType, BufferBindingType, ComputePipeline,
    Device, ErrorFilter, Queue, ShaderStages,
};

use crate::capabilities::capabilities;
use crate::error::EncodeError;
use crate::operator::{Operator, Prepared};
use crate::ring::Ring;
use crate::scope::Scope;
#[cfg(feature = "tune")]
use crate::tune::Tuning;

/// Runs attention on one wgpu device: plans problems, compiles and keeps their pipelines. Cheap to clone; clones share all.
///
/// ```
/// # fn main() -> Result<(), Box<dyn std::error::Error>> {
/// # let engine = match wattn::Engine::headless() { Ok(engine) => engine, Err(_) => return Ok(()) };
/// # let (device, queue) = (engine.device().clone(), engine.queue().clone());
/// use wattn::{Attention, Engine, Extent, HeadDim, Heads};
/// let engine = Engine::builder(&device, &queue).build();
/// let attention = Attention::new(Heads::grouped(9, 3)?, HeadDim::new(64)?).causal();
/// println!("{}", engine.plan(&attention, Extent::new(1, 128, 1024))?);
/// # Ok(()) }
/// ```
#[derive(Clone)]
pub struct Engine {
    pub(crate) inner: Arc<Inner>,
}

pub(crate) struct Inner {
    pub(crate) device: Device,
    pub(crate) queue: Queue,
    pub(crate) capabilities: Capabilities,
    pub(crate) ring: Ring,
    /// The device, its driver, and what else says which pipelines a tuned choice means.
    #[cfg(feature = "tune")]
    pub(crate) name: String,
    #[cfg(feature = "tune")]
    pub(crate) tuning: Mutex<Tuning>,
    rewrite: Option<Rewrite>,
    modules: Modules,
    cache: Option<wgpu::PipelineCache>,
    pipelines: Mutex<HashMap<Key, Arc<Pipeline>>>,
}

/// What changes the source of kernels before they are compiled.
type Rewrite = fn(&Key, String) -> String;

/// How shader modules are made.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Modules {
    /// What is not as usual about them.
    pub(crate) note: &'static str,
    pub(crate) make: fn(&Device, wgpu::ShaderModuleDescriptor<'_>) -> wgpu::ShaderModule,
}

impl Modules {
    /// With all checks of wgpu.
    const CHECKED: Self = Self { note: "", make: Device::create_shader_module };
}

pub(crate) struct Pipeline {
    pub(crate) pipeline: ComputePipeline,
    pub(crate) layout: BindGroupLayout,
}

impl fmt::Debug for Engine {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Engine")
            .field("capabilities", &self.inner.capabilities)
            .field("modules", &self.inner.modules.note)
            .finish_non_exhaustive()
    }
}

/// Builds an [`Engine`] on a device that the application owns.
#[derive(Debug)]
pub struct EngineBuilder {
    device: Device,
    queue: Queue,
    cache: Option<wgpu::PipelineCache>,
    loop_turns: Option<u32>,
    rates: Option<Rates>,
    matrices: Vec<wgpu::CooperativeMatrixProperties>,
    rewrite: Option<Rewrite>,
    pub(crate) modules: Modules,
    #[cfg(feature = "tune")]
    tuning: Tuning,
}

impl EngineBuilder {
    /// Compiles through this cache (feature `PIPELINE_CACHE`), so that the next start is faster.
    #[must_use]
    pub fn pipeline_cache(mut self, cache: wgpu::PipelineCache) -> Self {
        self.cache = Some(cache);
        self
    }

    /// Plans for a driver that ends an invocation's loops without a word after `turns` turns of all of them together (4,096 at least).
    /// Of Mesa's llvmpipe it is known; for others that are found to do so, and for tests.
    #[must_use]
    pub fn loop_turns(mut self, turns: u32) -> Self {
        self.loop_turns = Some(turns.max(MIN_LOOP_TURNS));
        self
    }

    /// What the device was measured to reach: plans estimate their time from it, instead of from the kind of device alone.
    #[must_use]
    pub fn rates(mut self, rates: Rates) -> Self {
        self.rates = Some(rates);
        self
    }

    /// Plans on cooperative matrices too: those of the device's adapter, as `adapter.cooperative_matrix_properties()` tells them. The
    /// device needs [`matrix_features`](crate::matrix_features).
    #[must_use]
    pub fn matrix_properties(mut self, matrices: Vec<wgpu::CooperativeMatrixProperties>) -> Self {
        self.matrices = matrices;
        self
    }

    /// Plans as was measured on this device before, and remembers what [`Engine::tune`] finds.
    #[cfg(feature = "tune")]
    #[must_use]
    pub fn tuning(mut self, tuning: Tuning) -> Self {
        self.tuning = tuning;
        self
    }

    /// Changes the source of kernels before they are compiled: for tests that a wrong one is found out.
    #[doc(hidden)]
    #[must_use]
    pub fn rewrite(mut self, rewrite: fn(&Key, String) -> String) -> Self {
        self.rewrite = Some(rewrite);
        self
    }

    /// The engine. Nothing is compiled yet.
    #[cfg_attr(
        target_arch = "wasm32",
        expect(clippy::arc_with_non_send_sync, reason = "in browsers alone, devices stay on their thread")
    )]
    #[must_use]
    pub fn build(self) -> Engine {
        let (device, queue) = (self.device, self.queue);
        let info = device.adapter_info();
        let mut capabilities = capabilities(&info, device.features(), &device.limits(), &self.matrices);
        capabilities.loop_turns = self.loop_turns.or(capabilities.loop_turns);
        capabilities.rates = self.rates;
        // Rows in registers are loaded by other pipelines where there are 64-bit integers.
        #[cfg(feature = "tune")]
        let words = if capabilities.int64 { ", 64-bit integers" } else { "" };
        Engine {
            inner: Arc::new(Inner {
                ring: Ring::new(capabilities.binding_alignment),
                device,
                queue,
                capabilities,
                #[cfg(feature = "tune")]
                name: format!(
                    "{} ({:?}, {} {}{words}{})",
                    info.name, info.backend, info.driver, info.driver_info, self.modules.note
                ),
                #[cfg(feature = "tune")]
                tuning: Mutex::new(self.tuning),
                rewrite: self.rewrite,
                modules: if self.rewrite.is_some() { Modules::CHECKED } else { self.modules },
                cache: self.cache,
                pipelines: Mutex::default(),
            }),
        }
    }
}

impl Engine {
    /// An engine on this device and queue, whose handles it clones. See [`wanted_features`](crate::wanted_features) and
    /// [`wanted_limits`](crate::wanted_limits) for what to ask for when creating them.
    #[must_use]
    pub fn builder(device: &Device, queue: &Queue) -> EngineBuilder {
        let (device, queue) = (device.clone(), queue.clone());
        EngineBuilder {
            device,
            queue,
            cache: None,
            loop_turns: None,
            rates: None,
            matrices: Vec::new(),
            rewrite: None,
            modules: Modules::CHECKED,
            #[cfg(feature = "tune")]
            tuning: Tuning::default(),
        }
    }

    /// Plans an operator over `extent`: which kernel, which tile, what it costs. Compiles nothing.
    ///
    /// # Errors
    /// An impossible shape or option, a device limit, or a pinned kernel that cannot serve.
    pub fn plan<O: Operator>(&self, operator: &O, extent: O::Extent) -> Result<O::Plan, PlanError> {
        operator.plan_on(self, extent)
    }

    /// Compiles the pipelines of these plans ahead of their first use. (Some drivers compile at the first dispatch all the same.)
    ///
    /// # Errors
    /// A kernel that the device refuses. Browsers tell that later, to the device's `on_uncaptured_error`.
    pub fn prepare<'a, P: Prepared + 'a>(&self, plans: impl IntoIterator<Item = &'a P>) -> Result<(), EncodeError> {
        plans.into_iter().flat_map(Prepared::keys).try_for_each(|key| self.pipeline(&key).map(drop))
    }

    /// The device.
    #[must_use]
    pub fn device(&self) -> &Device {
        &self.inner.device
    }

    /// The queue.
    #[must_use]
    pub fn queue(&self) -> &Queue {
        &self.inner.queue
    }

    /// What the device can do, as the scheduler sees it.
    #[must_use]
    pub fn capabilities(&self) -> &Capabilities {
        &self.inner.capabilities
    }

    /// How many pipelines have been compiled.
    #[must_use]
    pub fn pipelines(&self) -> usize {
        self.inner.pipelines.lock().unwrap_or_else(PoisonError::into_inner).len()
    }

    pub(crate) fn pipeline(&self, key: &Key) -> Result<Arc<Pipeline>, EncodeError> {
        let mut pipelines = self.inner.pipelines.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(found) = pipelines.get(key) {
            return Ok(Arc::clone(found));
        }
        let made = Arc::new(self.compile(key)?);
        pipelines.insert(*key, Arc::clone(&made));
        Ok(made)
    }

    fn compile(&self, key: &Key) -> Result<Pipeline, EncodeError> {
        let device = &self.inner.device;
        let label = key.to_string();
        log::debug!("compiling {label}");
        let source = self.inner.rewrite.map_or_else(|| compose(key), |rewrite| rewrite(key, compose(key)));
        let scope = Scope::open(device, &[ErrorFilter::Internal, ErrorFilter::Validation]);
        let module = (self.inner.modules.make)(
            device,
            wgpu::ShaderModuleDescriptor { label: Some(&label), source: wgpu::ShaderSource::Wgsl(source.into()) },
        );
        let entries: Vec<BindGroupLayoutEntry> = bindings(key)
            .into_iter()
            .map(|binding| BindGroupLayoutEntry {
                binding: binding.slot,
                visibility: ShaderStages::COMPUTE,
                ty: BindingType::Buffer {
                    ty: BufferBindingType::Storage { read_only: !binding.writes },
                    has_dynamic_offset: false,
                    min_binding_size: None,
                },
                count: None,
            })
            .collect();
        let layout =
            device.create_bind_group_layout(&BindGroupLayoutDescriptor { label: Some(&label), entries: &entries });
        let pipeline_layout = device.create_pipeline_layout(&wgpu::PipelineLayoutDescriptor {
            label: Some(&label),
            bind_group_layouts: &[Some(&layout)],
            ..wgpu::PipelineLayoutDescriptor::default()
        });
        let pipeline = device.create_compute_pipeline(&wgpu::ComputePipelineDescriptor {
            label: Some(&label),
            layout: Some(&pipeline_layout),
            module: &module,
            entry_point: Some("main"),
            compilation_options: wgpu::PipelineCompilationOptions {
                // Kernels write all workgroup memory that they read.
                zero_initialize_workgroup_memory: false,
                ..wgpu::PipelineCompilationOptions::default()
            },
            cache: self.inner.cache.as_ref(),
        });
        match scope.close() {
            Some(error) => Err(EncodeError::Pipeline { label, message: error.to_string() }),
            None => Ok(Pipeline { pipeline, layout }),
        }
    }
}
