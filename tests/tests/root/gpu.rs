//! A device that the trials share, and what they need of it.

use std::collections::{BTreeMap, HashMap};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

use anyhow::{Context, Result, ensure};
use libtest_mimic::Trial;
use wattn::wgpu::util::{BufferInitDescriptor, DeviceExt, DownloadBuffer};
use wattn::wgpu::{self, Adapter, Buffer, BufferUsages, Limits};
use wattn::{Capabilities, DeviceKind, Engine, Kernel, wanted_features, wanted_limits};
use wattn_cases::{Comparison, SoftmaxCase, Storage};
use wattn_tests::{Variant, adapters, device_label, engine};

/// An adapter with the engine that its trials use.
pub(crate) struct Gpu {
    /// `backend/name`, unique.
    pub(crate) label: String,
    pub(crate) engine: Engine,
    adapter: Adapter,
    compared: AtomicUsize,
    /// Trials that passed, by what they forced.
    ran: Mutex<BTreeMap<String, usize>>,
    /// On drivers that run on a CPU, another device: each compiles kernels on a thread of its own, which is most of what tests wait for.
    beside: Option<Arc<Self>>,
}

impl Gpu {
    /// One for each adapter.
    pub(crate) fn all() -> Result<Vec<Arc<Self>>> {
        let mut seen = HashMap::new();
        adapters(None)
            .into_iter()
            .map(|adapter| {
                let name = device_label(&adapter.get_info());
                let count = seen.entry(name.clone()).and_modify(|n| *n += 1).or_insert(1);
                let label = if *count > 1 { format!("{name}-{count}") } else { name };
                let gpu = Self::new(&label, &adapter)?;
                let on_cpu = gpu.engine.capabilities().kind == DeviceKind::Cpu;
                let beside = if on_cpu { Some(Arc::new(Self::new(&label, &adapter)?)) } else { None };
                Ok(Arc::new(Self { beside, ..gpu }))
            })
            .collect()
    }

    fn new(label: &str, adapter: &Adapter) -> Result<Self> {
        let engine = engine(adapter).with_context(|| label.to_owned())?;
        let (label, adapter) = (label.to_owned(), adapter.clone());
        Ok(Self { label, engine, adapter, compared: AtomicUsize::new(0), ran: Mutex::default(), beside: None })
    }

    /// The device that runs trials of this kernel in this shape: always the same one, so that nothing is compiled twice.
    fn of(self: &Arc<Self>, kernel: Kernel, gpu_shape: bool) -> &Arc<Self> {
        let own = kernel == Kernel::Broadcast || gpu_shape;
        self.beside.as_ref().filter(|_| !own).unwrap_or(self)
    }

    pub(crate) fn variants(&self) -> Vec<Variant> {
        Variant::all(self.engine.capabilities())
    }

    /// The variants that run a case. Of the two shapes that `tile-universal` has on CPU drivers, that for GPUs runs them all. The other
    /// is the code of `broadcast` but for how keys are loaded: it runs what needs no pipelines of its own, and few others.
    pub(crate) fn variants_of(&self, case: &SoftmaxCase) -> Vec<Variant> {
        let mut variants = Variant::of(case, self.engine.capabilities());
        let both = variants.iter().any(|variant| variant.gpu_shape);
        if both && !is_plain(case) && !IN_BOTH_SHAPES.contains(&case.name.as_str()) {
            variants.retain(|variant| variant.kernel != Kernel::TileUniversal || variant.gpu_shape);
        }
        variants
    }

    /// Elements that comparisons looked at so far.
    pub(crate) fn compared(&self) -> usize {
        self.compared.load(Ordering::Relaxed) + self.beside.as_ref().map_or(0, |other| other.compared())
    }

    /// Trials that passed so far with this forced.
    pub(crate) fn ran(&self, how: &str) -> usize {
        let own = self.ran.lock().expect("no count panics").get(how).copied().unwrap_or(0);
        own + self.beside.as_ref().map_or(0, |other| other.ran(how))
    }

    /// Pipelines that were compiled so far.
    pub(crate) fn pipelines(&self) -> usize {
        self.engine.pipelines() + self.beside.as_ref().map_or(0, |other| other.pipelines())
    }

    /// Counts a comparison, and fails if it does.
    pub(crate) fn check(&self, comparison: &Comparison) -> Result<()> {
        self.compared.fetch_add(comparison.elements, Ordering::Relaxed);
        let error = comparison.error.as_deref().unwrap_or_default();
        ensure!(comparison.pass, "{}: {error}", comparison.output);
        Ok(())
    }

    /// A trial on this device; `name` is what follows the device's in its name.
    pub(crate) fn trial(self: &Arc<Self>, name: &str, run: impl FnOnce(&Self) -> Result<()> + Send + 'static) -> Trial {
        let gpu = Arc::clone(self);
        Trial::test(format!("{}/{name}", self.label), move || run(&gpu).map_err(|error| format!("{error:#}").into()))
    }

    /// A trial by `variant`, which its name begins with. Where `refusal` says why the device cannot have it, the trial shows as ignored, and
    /// holds the device to that where ignored trials are asked for.
    pub(crate) fn trial_by(
        self: &Arc<Self>,
        variant: Variant,
        name: &str,
        refusal: impl Fn(Variant, &Capabilities) -> Result<Option<String>> + Send + 'static,
        run: impl FnOnce(&Self, Variant) -> Result<()> + Send + 'static,
    ) -> Trial {
        let refused = move |gpu: &Self| Ok(refusal(variant, gpu.engine.capabilities())?.is_some());
        let gpu = self.of(variant.kernel, variant.gpu_shape);
        gpu.trial_unless(refused, &variant.to_string(), name, move |gpu| run(gpu, variant))
    }

    /// As [`trial_by`](Self::trial_by), where a kernel is all that varies; `how` it runs begins the name.
    pub(crate) fn trial_of(
        self: &Arc<Self>,
        (kernel, how): (Kernel, &str),
        name: &str,
        refused: impl Fn(&Self) -> Result<bool> + Send + 'static,
        run: impl FnOnce(&Self) -> Result<()> + Send + 'static,
    ) -> Trial {
        self.of(kernel, false).trial_unless(refused, how, name, run)
    }

    fn trial_unless(
        self: &Arc<Self>,
        refused: impl Fn(&Self) -> Result<bool> + Send + 'static,
        how: &str,
        name: &str,
        run: impl FnOnce(&Self) -> Result<()> + Send + 'static,
    ) -> Trial {
        let (how, name) = (how.to_owned(), format!("{how}/{name}"));
        if matches!(refused(self), Ok(true)) {
            let stands = move |gpu: &Self| {
                ensure!(refused(gpu)?, "{how} serves after all");
                Ok(())
            };
            return self.trial(&name, stands).with_kind("cannot serve").with_ignored_flag(true);
        }
        self.trial(&name, move |gpu| {
            run(gpu)?;
            *gpu.ran.lock().expect("no count panics").entry(how).or_default() += 1;
            Ok(())
        })
    }

    /// An engine on another device of this adapter, with what wattn wants but for these limits.
    pub(crate) fn limited(&self, change: impl FnOnce(&mut Limits)) -> Result<Engine> {
        let mut limits = wanted_limits(&self.adapter);
        change(&mut limits);
        self.device(wanted_features(&self.adapter), limits)
    }

    /// An engine on another device of this adapter, with timestamps where it has any.
    pub(crate) fn timing(&self) -> Result<Engine> {
        let timestamps = wgpu::Features::TIMESTAMP_QUERY | wgpu::Features::TIMESTAMP_QUERY_INSIDE_ENCODERS;
        let features = wanted_features(&self.adapter) | (self.adapter.features() & timestamps);
        self.device(features, wanted_limits(&self.adapter))
    }

    /// An engine that plans as if the driver ended loops as early as plans can do with.
    pub(crate) fn ending_loops(&self) -> Result<Engine> {
        let engine = self.limited(|_| {})?;
        Ok(Engine::builder(engine.device(), engine.queue()).loop_turns(0).build())
    }

    /// An engine on another device of this adapter.
    pub(crate) fn device(&self, required_features: wgpu::Features, required_limits: Limits) -> Result<Engine> {
        let descriptor = wgpu::DeviceDescriptor { required_features, required_limits, ..Default::default() };
        let (device, queue) = pollster::block_on(self.adapter.request_device(&descriptor))?;
        Ok(Engine::builder(&device, &queue).build())
    }
}

/// Cases with pipelines of their own that run in both shapes of `tile-universal`: all options, dims of any size, 16 bits.
const IN_BOTH_SHAPES: [&str; 7] = [
    "softmax/every_option",
    "softmax/d13_v7_causal",
    "softmax/f16_every_option",
    "softmax/bf16_d72_v48",
    "softmax/backward_every_option",
    "softmax/backward_d13_v7_causal",
    "softmax/backward_f16_causal",
];

/// Whether a case shares its pipelines with the plain one.
fn is_plain(case: &SoftmaxCase) -> bool {
    let dims = case.dims();
    let scores = case.softcap.is_some() || case.alibi_slopes.is_some() || case.sinks.is_some();
    let entries = case.bias.is_some() || case.mask.is_some();
    let stored = [&case.q, &case.k, &case.v].map(|tensor| tensor.storage);
    !scores && !entries && [dims.head_dim, dims.value_dim] == [64; 2] && stored == [Storage::F32; 3]
}

/// Numbers in a buffer that shaders may use.
pub(crate) fn upload(engine: &Engine, values: &[f32]) -> Buffer {
    let contents = bytemuck::cast_slice(values);
    let usage = BufferUsages::STORAGE | BufferUsages::COPY_SRC | BufferUsages::COPY_DST;
    engine.device().create_buffer_init(&BufferInitDescriptor { label: Some("upload"), contents, usage })
}

/// A buffer of NaN, so that what nobody writes shows.
pub(crate) fn poisoned(engine: &Engine, elements: usize) -> Buffer {
    upload(engine, &vec![f32::NAN; elements])
}

/// The numbers of a buffer, once all that was submitted is done.
pub(crate) fn download(engine: &Engine, buffer: &Buffer) -> Result<Vec<f32>> {
    let (sender, receiver) = std::sync::mpsc::channel();
    DownloadBuffer::read_buffer(engine.device(), engine.queue(), &buffer.slice(..), move |result| {
        // The receiver is gone only if the wait below failed, which reports itself.
        let _ = sender.send(result.map(|bytes| bytemuck::pod_collect_to_vec(&bytes)));
    });
    engine.device().poll(wgpu::PollType::wait_indefinitely()).context("waiting for the device")?;
    receiver.recv().context("the buffer was not mapped")?.context("mapping the buffer")
}
