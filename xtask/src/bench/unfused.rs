//! The baselines: attention as three kernels, whose scores go through memory. See `shaders/bench/unfused.wgsl`.

use anyhow::{Result, ensure};
use wattn::wgpu::util::{BufferInitDescriptor, DeviceExt};
use wattn::wgpu::{self, BindGroup, BindGroupLayout, Buffer, BufferUsages, ComputePipeline, ShaderStages};
use wattn::{DeviceKind, Engine};
use wattn_cases::{Causal, Layout, Reference, Rules, SoftmaxCase, Storage, compare};

use super::clock::{Clock, Sample};
use super::device::read_f32;
use super::shader::{module, pipeline};

/// How the products are calculated.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) enum Form {
    /// An invocation a score, an invocation a vec4 of the output.
    Naive,
    /// Blocks in registers.
    Tiled,
}

/// More scores than this are not tried, bytes.
const MOST: u64 = 512 << 20;
/// Rows and columns of scores are padded to whole tiles of this.
const TILE: u32 = 64;
/// A distance that no sequence reaches.
const UNBOUNDED: i32 = 1 << 29;

/// The registers of a tile; see `unfused_tiled.wgsl`.
const CPU_TILE: [(&str, u32); 4] = [("TX", 8), ("TY", 4), ("ROWS", 16), ("GROUPS", 2)];
const GPU_TILE: [(&str, u32); 4] = [("TX", 16), ("TY", 16), ("ROWS", 4), ("GROUPS", 1)];

/// As `Problem` in the shader, before its slopes.
#[derive(Debug, Clone, Copy, bytemuck::Pod, bytemuck::Zeroable)]
#[repr(C)]
struct Problem {
    heads: u32,
    group: u32,
    queries: u32,
    keys: u32,
    head_chunks: u32,
    value_chunks: u32,
    score_rows: u32,
    score_columns: u32,
    left: i32,
    right: i32,
    scale: f32,
    softcap: f32,
    bias_batch: u32,
    bias_head: u32,
}

/// A case's tensors in f32, whatever its storage.
pub(crate) struct Unfused<'a> {
    engine: &'a Engine,
    case: &'a SoftmaxCase,
    problem: Problem,
    planes: u32,
    layout: BindGroupLayout,
    bindings: BindGroup,
    out: Buffer,
    /// Of the scores.
    pub(crate) workspace_bytes: u64,
}

/// The three passes of one form.
pub(crate) struct Passes<'a> {
    unfused: &'a Unfused<'a>,
    steps: [(ComputePipeline, [u32; 3]); 3],
}

impl<'a> Unfused<'a> {
    /// Uploads a case; `None` for what the baselines do not do, or where the scores take too much memory.
    pub(crate) fn new(engine: &'a Engine, case: &'a SoftmaxCase) -> Option<Self> {
        let dims = case.dims();
        let plain = case.layout == Layout::Bhsd && case.mask.is_none() && case.sinks.is_none();
        // A workgroup's share of the value dim.
        let values = if dims.value_dim > 64 { 64 } else { 8 };
        let whole = dims.head_dim.is_multiple_of(4) && dims.value_dim.is_multiple_of(values);
        if !plain || !whole || case.kv_lens.is_some() || case.causal == Some(Causal::TopLeft) {
            return None;
        }
        let problem = problem(case)?;
        let planes = u32::try_from(dims.batch * dims.heads).ok()?;
        let rows = u64::from(planes) * u64::from(problem.score_rows);
        let workspace_bytes = rows * u64::from(problem.score_columns) * 4;
        if workspace_bytes > MOST.min(engine.capabilities().binding_bytes) {
            return None;
        }

        let device = engine.device();
        let filled = |contents: &[u8]| {
            let usage = BufferUsages::STORAGE;
            device.create_buffer_init(&BufferInitDescriptor { label: Some("unfused"), contents, usage })
        };
        let empty = |size| {
            let usage = BufferUsages::STORAGE | BufferUsages::COPY_SRC;
            let label = Some("unfused");
            device.create_buffer(&wgpu::BufferDescriptor { label, size, usage, mapped_at_creation: false })
        };
        let slopes = case.alibi_slopes.clone().unwrap_or_else(|| vec![0.0]);
        let problem_bytes = [bytemuck::bytes_of(&problem), bytemuck::cast_slice(&slopes)].concat();
        let out = empty(rows * dims.value_dim as u64 * 4);
        let bias = case.bias.as_ref().map_or(&[0.0][..], |bias| &bias.values);
        let buffers = [
            filled(&problem_bytes),
            filled(bytemuck::cast_slice(&case.q.values)),
            filled(bytemuck::cast_slice(&case.k.values)),
            filled(bytemuck::cast_slice(&case.v.values)),
            empty(workspace_bytes),
            out.clone(),
            filled(bytemuck::cast_slice(bias)),
        ];
        let layout = layout(device);
        let entries: Vec<wgpu::BindGroupEntry<'_>> = (0..)
            .zip(&buffers)
            .map(|(binding, buffer)| wgpu::BindGroupEntry { binding, resource: buffer.as_entire_binding() })
            .collect();
        let descriptor = wgpu::BindGroupDescriptor { label: Some("unfused"), layout: &layout, entries: &entries };
        let bindings = device.create_bind_group(&descriptor);
        Some(Self { engine, case, problem, planes, layout, bindings, out, workspace_bytes })
    }

    /// Compiles a form's kernels.
    pub(crate) fn passes(&'a self, form: Form) -> Result<Passes<'a>> {
        let device = self.engine.device();
        let shared = include_str!("../../../shaders/bench/unfused.wgsl");
        let (file, tile) = match (form, self.engine.capabilities().kind) {
            (Form::Naive, _) => (include_str!("../../../shaders/bench/unfused_naive.wgsl"), &[][..]),
            (Form::Tiled, DeviceKind::Cpu) => {
                (include_str!("../../../shaders/bench/unfused_tiled.wgsl"), &CPU_TILE[..])
            }
            (Form::Tiled, _) => (include_str!("../../../shaders/bench/unfused_tiled.wgsl"), &GPU_TILE[..]),
        };
        let products = module(device, "unfused products", tile, &[shared, file])?;
        let softmax_file = include_str!("../../../shaders/bench/unfused_softmax.wgsl");
        let softmax = module(device, "unfused softmax", &[], &[shared, softmax_file])?;

        let Problem { queries, keys, value_chunks, .. } = self.problem;
        // Where a head is narrow, fewer invocations share a row.
        let value_tx = (value_chunks / 2).min(8);
        let flag = |name, on| (name, if on { 1.0 } else { 0.0 });
        let scores = [
            flag("SOFTCAP", self.case.softcap.is_some()),
            flag("ALIBI", self.case.alibi_slopes.is_some()),
            flag("BIAS", self.case.bias.is_some()),
        ];
        // On CPU drivers a row's invocations are one vector.
        let threads = if self.engine.capabilities().kind == DeviceKind::Cpu { 8.0 } else { 64.0 };
        let (read_tile, values, grids) = match form {
            Form::Naive => {
                let grids = [[keys.div_ceil(64), queries], [(queries * value_chunks).div_ceil(64), 1]];
                ([("THREADS", threads), ("ROW_TILE", 1.0), ("KEY_TILE", 1.0)], vec![], grids)
            }
            Form::Tiled => {
                let tiles = queries.div_ceil(TILE);
                let grids = [[keys.div_ceil(TILE), tiles], [value_chunks.div_ceil(value_tx * 2), tiles]];
                let read_tile = [("THREADS", threads), ("ROW_TILE", f64::from(TILE)), ("KEY_TILE", 4.0)];
                (read_tile, vec![("VALUE_TX", f64::from(value_tx))], grids)
            }
        };
        let made = |module, entry, constants: &[_]| pipeline(device, module, entry, Some(&self.layout), constants);
        let [[x0, y0], [x2, y2]] = grids;
        let steps = [
            (made(&products, "multiply_keys", &scores), [x0, y0, self.planes]),
            (made(&softmax, "softmax", &read_tile), [1, queries, self.planes]),
            (made(&products, "multiply_values", &values), [x2, y2, self.planes]),
        ];
        Ok(Passes { unfused: self, steps })
    }
}

impl Passes<'_> {
    /// Runs the passes `count` times.
    pub(crate) fn sample(&self, clock: &Clock, count: u32) -> Result<Sample> {
        clock.dispatches(count, 3, |pass, step| {
            let (pipeline, [x, y, z]) = &self.steps[step as usize];
            pass.set_pipeline(pipeline);
            pass.set_bind_group(0, &self.unfused.bindings, &[]);
            pass.dispatch_workgroups(*x, *y, *z);
        })
    }

    /// Compares the output of the last run with a reference.
    pub(crate) fn verify(&self, reference: &Reference) -> Result<()> {
        let case = self.unfused.case;
        let dims = case.dims();
        let padded = read_f32(self.unfused.engine, &self.unfused.out)?;
        let plane = self.unfused.problem.score_rows as usize * dims.value_dim;
        let got: Vec<f32> =
            padded.chunks(plane).flat_map(|plane| &plane[..dims.queries * dims.value_dim]).copied().collect();
        let rules = Rules { storage: Storage::F32, ..case.rules("out", reference) };
        let comparison = compare("out", &got, &reference.out, &rules);
        ensure!(comparison.pass, "an unfused baseline is wrong: {}", comparison.error.unwrap_or_default());
        Ok(())
    }
}

#[expect(clippy::cast_possible_truncation, reason = "options are f64 in files, f32 on devices")]
fn problem(case: &SoftmaxCase) -> Option<Problem> {
    let dims = case.dims();
    let size = |n: usize| u32::try_from(n).ok();
    let bound = |side: Option<u32>| side.and_then(|n| i32::try_from(n).ok()).unwrap_or(UNBOUNDED).min(UNBOUNDED);
    let right = bound(case.window[1]);
    let [bias_batch, bias_head] = match case.bias.as_ref().map(|bias| &bias.shape[..]) {
        Some(&[batch, heads, queries, keys]) => {
            let plane = queries * keys;
            [if batch > 1 { heads * plane } else { 0 }, if heads > 1 { plane } else { 0 }]
        }
        _ => [0, 0],
    };
    Some(Problem {
        heads: size(dims.heads)?,
        group: size(dims.heads / dims.kv_heads)?,
        queries: size(dims.queries)?,
        keys: size(dims.keys)?,
        head_chunks: size(dims.head_dim / 4)?,
        value_chunks: size(dims.value_dim / 4)?,
        score_rows: size(dims.queries)?.next_multiple_of(TILE),
        score_columns: size(dims.keys)?.next_multiple_of(TILE),
        left: bound(case.window[0]),
        right: if case.causal.is_some() { right.min(0) } else { right },
        scale: case.scale.unwrap_or_else(|| 1.0 / (dims.head_dim as f64).sqrt()) as f32,
        softcap: case.softcap.unwrap_or_default() as f32,
        bias_batch: size(bias_batch)?,
        bias_head: size(bias_head)?,
    })
}

/// problem, q, k, v, scores, out, bias.
fn layout(device: &wgpu::Device) -> BindGroupLayout {
    let entries: Vec<wgpu::BindGroupLayoutEntry> = (0..7)
        .map(|binding| wgpu::BindGroupLayoutEntry {
            binding,
            visibility: ShaderStages::COMPUTE,
            ty: wgpu::BindingType::Buffer {
                ty: wgpu::BufferBindingType::Storage { read_only: binding != 4 && binding != 5 },
                has_dynamic_offset: false,
                min_binding_size: None,
            },
            count: None,
        })
        .collect();
    let label = Some("unfused");
    device.create_bind_group_layout(&wgpu::BindGroupLayoutDescriptor { label, entries: &entries })
}
