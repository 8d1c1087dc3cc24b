//! Linear attention: its kernels, and the token-by-token scan that they are measured against.

use std::time::Instant;

use anyhow::{Context, Result, bail, ensure};
use wattn::wgpu::util::{BufferInitDescriptor, DeviceExt};
use wattn::wgpu::{self, BindGroup, Buffer, BufferUsages, ComputePipeline};
use wattn::{Engine, LinearPlan};
use wattn_cases::{Decay, LinearCase, LinearRecipe, References, Storage, compare};
use wattn_tests::{LinearRun, Variant, lightning, lightning_backward, tokens};

use super::clock::{Clock, Sample};
use super::contest::REDUCED;
use super::device::read_f32;
use super::row::Figures;
use super::shader::{module, pipeline};

/// Turns of its loops that a dispatch of the scan takes at most: Mesa's llvmpipe ends them after 65,535.
const TURNS: u32 = 60_000;
/// A case with what must come out of it, in full and reduced.
pub(crate) struct Subject {
    full: LinearCase,
    full_reference: References,
    reduced: LinearCase,
    reduced_reference: References,
    backward: bool,
}

impl Subject {
    /// The forward pass of a recipe, or where a gradient comes in the backward pass.
    pub(crate) fn new(recipe: &LinearRecipe) -> Self {
        let (full, reduced) = (recipe.build(), LinearRecipe { tokens: recipe.tokens.min(REDUCED), ..*recipe }.build());
        let (full_reference, reduced_reference) = (full.reference(), reduced.reference());
        let backward = full.has_backward();
        Self { full, full_reference, reduced, reduced_reference, backward }
    }
}

impl Subject {
    /// The operator's name in case files.
    pub(crate) fn op(&self) -> &'static str {
        self.full.op()
    }
}

/// A pass whose results were right, ready to run.
pub(crate) struct Contestant<'a> {
    pub(crate) plan: LinearPlan,
    run: LinearRun<'a>,
    backward: bool,
    /// The first call of the checks, seconds: includes compiling what this run has not compiled before.
    first: f64,
}

impl<'a> Contestant<'a> {
    /// Plans the case and checks what comes out, on the reduced problem and on the full one.
    pub(crate) fn new(engine: &Engine, subject: &'a Subject, variant: Option<Variant>) -> Result<Self> {
        let checked = |case: &'a LinearCase, reference: &References| -> Result<(LinearRun<'a>, f64)> {
            let run = LinearRun::new(engine, case, variant, subject.backward)?;
            let started = Instant::now();
            run.forward()?;
            if subject.backward {
                run.backward()?;
            }
            let comparisons = run.compare(reference)?;
            let seconds = started.elapsed().as_secs_f64();
            ensure!(!comparisons.is_empty(), "nothing was compared");
            if let Some(wrong) = comparisons.into_iter().find(|c| !c.pass) {
                bail!("{} is wrong: {}", wrong.output, wrong.error.unwrap_or_default());
            }
            Ok((run, seconds))
        };
        let (_, first) = checked(&subject.reduced, &subject.reduced_reference)?;
        let (run, _) = checked(&subject.full, &subject.full_reference)?;
        let plan = run.plan(subject.backward).context("no such pass")?.clone();
        Ok(Self { plan, run, backward: subject.backward, first })
    }

    pub(crate) fn sample(&self, clock: &Clock, count: u32) -> Result<Sample> {
        let slices = self.plan.slices();
        if slices > 1 {
            return clock.slices(slices, |encoder, slice| self.run.encode_slice(encoder, self.backward, slice));
        }
        let sample = clock.pass(|pass| {
            for _ in 0..count {
                self.run.encode_in_pass(pass, self.backward)?;
            }
            Ok(())
        });
        Ok(sample?.of(count))
    }

    #[expect(clippy::cast_precision_loss, reason = "counts of operations, for rates")]
    pub(crate) fn figures(&self) -> Figures {
        let plan = self.plan.details();
        let walk = plan.sweeps.first().map(|sweep| sweep.walk);
        Figures {
            kernel: walked(&self.plan),
            tile: [walk.map_or(0, |walk| walk.chunk()), plan.segments],
            flops: plan.flops as f64,
            bytes: plan.bytes as f64,
            workspace_bytes: plan.workspace_bytes,
            predicted: plan.estimate.seconds,
            first: self.first,
        }
    }
}

/// The kernel that a case is planned with.
pub(crate) fn kernel(engine: &Engine, subject: &Subject, variant: Option<Variant>) -> Result<&'static str> {
    let case = &subject.full;
    let lightning = if subject.backward { lightning_backward(case)? } else { lightning(case)? };
    let forced = variant.map_or(lightning.clone(), |variant| variant.force_linear(lightning));
    Ok(walked(&engine.plan(&forced, tokens(case)?)?))
}

fn walked(plan: &LinearPlan) -> &'static str {
    plan.details().sweeps.first().map_or("none", |sweep| sweep.walk.kernel.name())
}

/// The baseline: token by token, the state in memory.
pub(crate) struct Scan<'a> {
    engine: &'a Engine,
    pipeline: ComputePipeline,
    dispatches: u32,
    /// One a dispatch.
    bindings: Vec<BindGroup>,
    out: Buffer,
    planes: u32,
}

impl<'a> Scan<'a> {
    /// A scan whose results were right; `None` for what it does not do: gates, gradients, other layouts, 16 bits, or by the reduced
    /// problem would take `longest` seconds to do.
    pub(crate) fn new(engine: &'a Engine, clock: &Clock, subject: &Subject, longest: f64) -> Result<Option<Self>> {
        let small = match Self::prepared(engine, &subject.reduced)? {
            Some(small) if !subject.backward => small,
            _ => return Ok(None),
        };
        small.sample(clock, 1)?;
        small.verify(&subject.reduced, &subject.reduced_reference)?;
        #[expect(clippy::cast_precision_loss, reason = "a prediction")]
        let growth = subject.full.dims().tokens as f64 / subject.reduced.dims().tokens as f64;
        if small.sample(clock, 1)?.seconds() * growth > longest {
            return Ok(None);
        }
        let Some(full) = Self::prepared(engine, &subject.full)? else { return Ok(None) };
        full.sample(clock, 1)?;
        full.verify(&subject.full, &subject.full_reference)?;
        Ok(Some(full))
    }

    fn prepared(engine: &'a Engine, case: &LinearCase) -> Result<Option<Self>> {
        let Decay::Slopes(slopes) = &case.decay else { return Ok(None) };
        let plain = case.layout == wattn_cases::Layout::Bhsd && case.state.is_none();
        if !plain || case.q.storage != Storage::F32 || case.k.storage != Storage::F32 {
            return Ok(None);
        }
        let device = engine.device();
        let dims = case.dims();
        let planes = u32::try_from(dims.batch * dims.heads)?;
        let size = |n: usize| u32::try_from(n);
        #[expect(clippy::cast_possible_truncation, reason = "options are f64 in files, f32 on devices")]
        let scale = case.scale.unwrap_or(1.0) as f32;
        let extents = [size(dims.heads)?, size(dims.tokens)?, size(dims.key_dim)?, size(dims.value_dim)?];
        let [_, tokens, key_dim, value_dim] = extents;
        let count = (TURNS / ((key_dim + 2) * value_dim.div_ceil(64))).max(1);
        let problem = |first: u32| -> Vec<u32> {
            let more = [first, count.min(tokens - first), scale.to_bits()];
            extents.into_iter().chain(more).chain(slopes.iter().map(|slope| slope.to_bits())).collect()
        };
        let filled = |contents: &[u8]| {
            let usage = BufferUsages::STORAGE;
            device.create_buffer_init(&BufferInitDescriptor { label: Some("scan"), contents, usage })
        };
        let empty = |floats: usize| {
            let usage = BufferUsages::STORAGE | BufferUsages::COPY_SRC;
            let (label, size) = (Some("scan"), floats as u64 * 4);
            device.create_buffer(&wgpu::BufferDescriptor { label, size, usage, mapped_at_creation: false })
        };
        let out = empty(planes as usize * dims.tokens * dims.value_dim);
        let buffers = [
            filled(bytemuck::cast_slice(&case.q.values)),
            filled(bytemuck::cast_slice(&case.k.values)),
            filled(bytemuck::cast_slice(&case.v.values)),
            empty(planes as usize * dims.key_dim * dims.value_dim),
            out.clone(),
        ];
        let module = module(device, "scan", &[], &[include_str!("../../../shaders/bench/linear_scan.wgsl")])?;
        let pipeline = pipeline(device, &module, "scan", None, &[]);
        let layout = &pipeline.get_bind_group_layout(0);
        let group = |first: u32| {
            let problem = filled(bytemuck::cast_slice(&problem(first)));
            let entries: Vec<wgpu::BindGroupEntry<'_>> = (0..)
                .zip([&problem].into_iter().chain(&buffers))
                .map(|(binding, buffer)| wgpu::BindGroupEntry { binding, resource: buffer.as_entire_binding() })
                .collect();
            device.create_bind_group(&wgpu::BindGroupDescriptor { label: Some("scan"), layout, entries: &entries })
        };
        let bindings: Vec<_> = (0..tokens).step_by(count as usize).map(group).collect();
        Ok(Some(Self { engine, pipeline, dispatches: size(bindings.len())?, bindings, out, planes }))
    }

    /// Scans `count` times.
    pub(crate) fn sample(&self, clock: &Clock, count: u32) -> Result<Sample> {
        clock.dispatches(count, self.dispatches, |pass, n| {
            pass.set_pipeline(&self.pipeline);
            pass.set_bind_group(0, &self.bindings[n as usize], &[]);
            pass.dispatch_workgroups(self.planes, 1, 1);
        })
    }

    fn verify(&self, case: &LinearCase, reference: &References) -> Result<()> {
        let got = read_f32(self.engine, &self.out)?;
        let comparison = compare("out", &got, &reference["out"], &case.rules("out"));
        ensure!(comparison.pass, "the scan is wrong: {}", comparison.error.unwrap_or_default());
        Ok(())
    }
}
