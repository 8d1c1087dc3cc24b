//! What the device can do at best: the rate of multiply-adds and the bandwidth. Measured, since data sheets know neither the
//! driver nor who else is using the machine; and measured again beside each case.

use std::collections::BTreeMap;

use anyhow::{Context, Result, ensure};
use wattn::wgpu::util::{BufferInitDescriptor, DeviceExt};
use wattn::wgpu::{self, BindGroup, Buffer, BufferUsages, ComputePipeline, DeviceType};
use wattn::{Engine, wgpu::BindGroupEntry};

use super::clock::{Clock, Sample};
use super::row::Figures;
use super::shader::{module, pipeline};
use super::stats::{Series, median_and_mad};

/// Measurements of each probe when the best ones are chosen.
const SAMPLES: usize = 9;
/// What one sample of the multiply-adds takes at least, seconds.
const LONG_ENOUGH: f64 = 0.030;
const FACTOR: f32 = 0.999;
const ADDEND: f32 = 0.5;
/// Steps that a loop of `fma.wgsl` unrolls.
const UNROLLED: u32 = 8;

/// The probes that came out best.
pub(crate) struct Ceilings {
    fma: FmaProbe,
    copy: CopyProbe,
    /// FLOP/s, of the best probe.
    pub(crate) fma_rate: f64,
    /// FLOP/s of the other probes, by name.
    pub(crate) other_fma_rates: BTreeMap<String, f64>,
    /// Bytes read plus bytes written, per second; the better of both below.
    pub(crate) bandwidth: f64,
    /// Of `copy_buffer_to_buffer`.
    pub(crate) buffer_bandwidth: f64,
    /// Of a kernel that copies.
    pub(crate) kernel_bandwidth: f64,
}

/// Samples of both probes, multiply-adds and copies, taken between those of a case.
#[derive(Default)]
pub(crate) struct Around(pub(crate) Vec<[Sample; 2]>);

/// The ceilings beside a series.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Beside {
    /// FLOP/s.
    pub(crate) fma_rate: f64,
    /// Bytes/s.
    pub(crate) bandwidth: f64,
    /// FLOPs that the probe would have done in the time of a sample, by the probes right before and after it: a measure of time
    /// that other load on the device hardly moves.
    pub(crate) fma_flops: f64,
    pub(crate) fma_flops_mad: f64,
}

impl Ceilings {
    /// Tries all probes.
    pub(crate) fn measure(engine: &Engine, clock: &Clock) -> Result<Self> {
        let mut fma: Option<(f64, FmaProbe)> = None;
        let mut rates = BTreeMap::new();
        for (name, entry, chains) in
            [("vec4_x8", "vec4s", 32), ("vec4_x4", "vec4s", 16), ("f32_x16", "f32s", 16), ("f32_x12", "f32s", 12)]
        {
            let probe = FmaProbe::new(engine, clock, [name, entry], chains)?;
            let rate = probe.flops() / median_of(SAMPLES, || probe.sample(clock))?;
            rates.insert(name.to_owned(), rate);
            if fma.as_ref().is_none_or(|(best, _)| rate > *best) {
                fma = Some((rate, probe));
            }
        }
        let (fma_rate, fma) = fma.context("no probe")?;
        rates.remove(fma.name);

        let mut copy = CopyProbe::new(engine)?;
        let mut bandwidth = |by_kernel| -> Result<f64> {
            copy.by_kernel = by_kernel;
            copy.sample(clock)?;
            Ok(copy.bytes() / median_of(SAMPLES, || copy.sample(clock))?)
        };
        let (buffer_bandwidth, kernel_bandwidth) = (bandwidth(false)?, bandwidth(true)?);
        copy.by_kernel = kernel_bandwidth > buffer_bandwidth;
        let bandwidth = buffer_bandwidth.max(kernel_bandwidth);
        Ok(Self { fma, copy, fma_rate, other_fma_rates: rates, bandwidth, buffer_bandwidth, kernel_bandwidth })
    }

    /// The name of the probe with the highest rate.
    pub(crate) fn fma_probe(&self) -> &'static str {
        self.fma.name
    }

    /// Whether moving a problem's operands takes longer than its multiply-adds.
    pub(crate) fn memory_bounds(&self, problem: &Figures) -> bool {
        problem.bytes / self.bandwidth > problem.flops / self.fma_rate
    }

    /// Adds one sample of each probe: the copies last, which leave nothing else in caches.
    pub(crate) fn sample(&self, clock: &Clock, around: &mut Around) -> Result<()> {
        around.0.push([self.fma.sample(clock)?, self.copy.sample(clock)?]);
        Ok(())
    }

    /// The ceilings beside a series whose sample `n` was taken between the probes `at[n]` and `at[n] + 1`.
    pub(crate) fn beside(&self, around: &Around, series: &Series, at: &[usize]) -> Option<Beside> {
        let pairs: Vec<[[Sample; 2]; 2]> =
            at.iter().filter_map(|&n| Some([*around.0.get(n)?, *around.0.get(n + 1)?])).collect();
        let probe = |which: usize| Series(pairs.iter().flatten().map(|samples| samples[which]).collect()).summary();
        let clock = series.clock();
        let flops = |(sample, [before, after]): (&Sample, &[[Sample; 2]; 2])| {
            Some(sample.by(clock)? * self.fma.flops() / f64::midpoint(before[0].seconds(), after[0].seconds()))
        };
        let shared: Vec<f64> = series.0.iter().zip(&pairs).filter_map(flops).collect();
        let (median, mad) = median_and_mad(&shared)?;
        Some(Beside {
            fma_rate: self.fma.flops() / probe(0)?.median,
            bandwidth: self.copy.bytes() / probe(1)?.median,
            fma_flops: median,
            fma_flops_mad: mad,
        })
    }
}

fn median_of(count: usize, mut sample: impl FnMut() -> Result<Sample>) -> Result<f64> {
    let series = Series((0..count).map(|_| sample()).collect::<Result<_>>()?);
    Ok(series.summary().context("no samples")?.median)
}

struct FmaProbe {
    name: &'static str,
    /// Independent chains of multiply-adds an invocation.
    chains: u32,
    steps: u32,
    groups: u32,
    pipeline: ComputePipeline,
    bindings: BindGroup,
    work: Buffer,
}

impl FmaProbe {
    /// Compiles a probe, checks what it calculates, and makes it long enough.
    fn new(engine: &Engine, clock: &Clock, [name, entry]: [&'static str; 2], chains: u32) -> Result<Self> {
        let device = engine.device();
        let groups = if device.adapter_info().device_type == DeviceType::Cpu { 256 } else { 8192 };
        let module =
            module(device, name, &[("FOURS", chains / 4)], &[include_str!("../../../shaders/bench/fma.wgsl")])?;
        let pipeline = pipeline(device, &module, entry, None, &[]);
        let buffer = |usage, size| {
            let descriptor = wgpu::BufferDescriptor { label: Some(name), size, usage, mapped_at_creation: false };
            device.create_buffer(&descriptor)
        };
        let work = buffer(BufferUsages::STORAGE | BufferUsages::COPY_DST, 12);
        let sums = buffer(BufferUsages::STORAGE | BufferUsages::COPY_SRC, u64::from(groups) * 64 * 4);
        let bindings = bind(engine, &pipeline, &[&work, &sums]);
        let mut probe = Self { name, chains, steps: 64, groups, pipeline, bindings, work };

        // The first run compiles; later ones tell.
        probe.resized(engine, 64).sample(clock)?;
        probe.verify(&super::device::read_f32(engine, &sums)?)?;
        loop {
            let sample = probe.sample(clock)?;
            let seconds = sample.seconds();
            if seconds >= LONG_ENOUGH || probe.steps > 1 << 24 {
                return Ok(probe);
            }
            let missing = (1.2 * LONG_ENOUGH / seconds.max(1e-6)).clamp(1.3, 8.0);
            #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "at most 2^27")]
            let steps = (f64::from(probe.steps) * missing) as u32;
            probe.resized(engine, steps);
        }
    }

    fn resized(&mut self, engine: &Engine, steps: u32) -> &Self {
        self.steps = steps;
        let words = [steps, FACTOR.to_bits(), ADDEND.to_bits()];
        engine.queue().write_buffer(&self.work, 0, bytemuck::cast_slice(&words));
        self
    }

    /// Two operations a multiply-add.
    fn flops(&self) -> f64 {
        2.0 * f64::from(self.groups * 64) * f64::from(self.chains) * f64::from(self.steps) * f64::from(UNROLLED)
    }

    fn sample(&self, clock: &Clock) -> Result<Sample> {
        clock.pass(|pass| {
            pass.set_pipeline(&self.pipeline);
            pass.set_bind_group(0, &self.bindings, &[]);
            pass.dispatch_workgroups(self.groups, 1, 1);
            Ok(())
        })
    }

    fn verify(&self, sums: &[f32]) -> Result<()> {
        let (m, c) = (f64::from(FACTOR), f64::from(ADDEND));
        for (id, &got) in sums.iter().enumerate().step_by(61) {
            let mut want = 0.0;
            for chain in 0..self.chains {
                let mut a = (id & 7) as f64 + f64::from(chain / 4) + f64::from(chain % 4) * 0.25;
                for _ in 0..self.steps * UNROLLED {
                    a = a * m + c;
                }
                want += a;
            }
            let error = (f64::from(got) - want).abs() / want;
            ensure!(error < 1e-4, "{}: invocation {id} has {got} instead of {want}", self.name);
        }
        Ok(())
    }
}

struct CopyProbe {
    from: Buffer,
    to: Buffer,
    pipeline: ComputePipeline,
    bindings: BindGroup,
    by_kernel: bool,
}

impl CopyProbe {
    fn new(engine: &Engine) -> Result<Self> {
        let device = engine.device();
        // A GPU's last cache may hold 64 MiB.
        let discrete = device.adapter_info().device_type == DeviceType::DiscreteGpu;
        let size = if discrete { 256 << 20 } else { 64 << 20 }.min(engine.capabilities().binding_bytes / 65536 * 65536);
        let contents: Vec<u8> = (0..size).map(|n| (n % 251) as u8).collect();
        let usage = BufferUsages::STORAGE | BufferUsages::COPY_SRC | BufferUsages::COPY_DST;
        let from =
            device.create_buffer_init(&BufferInitDescriptor { label: Some("copied"), contents: &contents, usage });
        let to = device.create_buffer(&wgpu::BufferDescriptor {
            label: Some("copy"),
            size,
            usage,
            mapped_at_creation: false,
        });
        let module = module(device, "copy", &[], &[include_str!("../../../shaders/bench/copy.wgsl")])?;
        let pipeline = pipeline(device, &module, "copy", None, &[]);
        let bindings = bind(engine, &pipeline, &[&from, &to]);
        Ok(Self { from, to, pipeline, bindings, by_kernel: false })
    }

    /// Read and written.
    fn bytes(&self) -> f64 {
        2.0 * self.from.size() as f64
    }

    fn sample(&self, clock: &Clock) -> Result<Sample> {
        if self.by_kernel {
            clock.pass(|pass| {
                pass.set_pipeline(&self.pipeline);
                pass.set_bind_group(0, &self.bindings, &[]);
                // 256 invocations copy 4 vec4 each.
                pass.dispatch_workgroups(u32::try_from(self.from.size() / (256 * 4 * 16))?, 1, 1);
                Ok(())
            })
        } else {
            clock.slices(1, |encoder, _| {
                encoder.copy_buffer_to_buffer(&self.from, 0, &self.to, 0, self.from.size());
                Ok(())
            })
        }
    }
}

fn bind(engine: &Engine, pipeline: &ComputePipeline, buffers: &[&Buffer]) -> BindGroup {
    let entries: Vec<BindGroupEntry<'_>> = (0..)
        .zip(buffers)
        .map(|(binding, buffer)| BindGroupEntry { binding, resource: buffer.as_entire_binding() })
        .collect();
    engine.device().create_bind_group(&wgpu::BindGroupDescriptor {
        label: None,
        layout: &pipeline.get_bind_group_layout(0),
        entries: &entries,
    })
}
