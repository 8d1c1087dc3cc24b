//! Runs a case of BASED linear attention on a device.

use std::collections::BTreeMap;

use anyhow::{Context, Result, bail};
use wattn::wgpu::{self, Buffer, BufferUsages};
use wattn::{Based, BasedOperands, BasedPlan, Engine, HeadDim, Tokens, View};
use wattn_cases::{BasedCase, Comparison, Layout, References, Storage, compare};

use crate::buffers::{GUARD, fenced, poisoned, read};
use crate::problem::storage;
use crate::variant::Variant;

/// The forward pass of a case, its states asked for.
///
/// # Errors
/// Sizes that the library refuses.
pub fn based(case: &BasedCase) -> Result<Based> {
    let dims = case.dims();
    let size = |n: usize| u32::try_from(n).context("a size beyond 32 bits");
    let head_dim = HeadDim::with_value(size(dims.key_dim)?, size(dims.value_dim)?)?;
    let mut based = Based::new(size(dims.heads)?, head_dim)
        .causal(case.causal)
        .normalize(case.normalize)
        .mixed_storage(storage(case.q.storage), storage(case.k.storage))
        .final_state();
    #[expect(clippy::cast_possible_truncation, reason = "options are f64 in files, f32 on devices")]
    if let Some(scale) = case.scale {
        based = based.scale(scale as f32);
    }
    #[expect(clippy::cast_possible_truncation, reason = "options are f64 in files, f32 on devices")]
    if let Some(eps) = case.eps {
        based = based.eps(eps as f32);
    }
    Ok(based)
}

/// The extent of a case.
///
/// # Errors
/// Sizes beyond 32 bits.
pub fn based_tokens(case: &BasedCase) -> Result<Tokens> {
    let dims = case.dims();
    let size = |n: usize| u32::try_from(n).context("a size beyond 32 bits");
    Ok(match case.layout {
        Layout::Packed => Tokens::packed(size(case.sequences())?, size(dims.tokens)?),
        Layout::Bhsd | Layout::Bshd => Tokens::new(size(dims.batch)?, size(dims.tokens)?),
    })
}

/// The packed states of a case, [sequences, heads, rows, value dim + 1].
fn state_shape(case: &BasedCase) -> [usize; 4] {
    let dims = case.dims();
    [case.sequences(), dims.heads, (dims.key_dim + 1) * (dims.key_dim + 2) / 2, dims.value_dim + 1]
}

/// The moments that packed states hold, under their names in case files, and the numbers of keys.
fn unpack(case: &BasedCase, packed: &[f32]) -> BTreeMap<&'static str, Vec<f32>> {
    let (dims, [_, _, rows, columns]) = (case.dims(), state_shape(case));
    let mut moments: BTreeMap<_, Vec<f32>> = ["s0", "s1", "s2", "z1", "z2", "n"].map(|name| (name, Vec::new())).into();
    let mut push = |[values, count]: [&'static str; 2], row: &[f32]| {
        let (last, rest) = row.split_last().expect("a column of counts");
        moments.entry(values).or_default().extend(rest);
        moments.entry(count).or_default().push(*last);
    };
    for state in packed.chunks_exact(rows * columns) {
        let row = |r: usize| &state[r * columns..(r + 1) * columns];
        push(["s0", "n"], row(0));
        (0..dims.key_dim).for_each(|i| push(["s1", "z1"], row(1 + i)));
        // Of the symmetric moments the state has one half, row by row.
        let mut second = BTreeMap::new();
        let mut next = 1 + dims.key_dim;
        for i in 0..dims.key_dim {
            for j in i..dims.key_dim {
                second.insert((i, j), next);
                next += 1;
            }
        }
        for i in 0..dims.key_dim {
            for j in 0..dims.key_dim {
                push(["s2", "z2"], row(second[&(i.min(j), i.max(j))]));
            }
        }
    }
    moments
}

/// A case's tensors on a device.
struct Loaded<'a> {
    case: &'a BasedCase,
    inputs: [Buffer; 3],
    out: Buffer,
    state: Buffer,
}

impl<'a> Loaded<'a> {
    fn new(engine: &Engine, case: &'a BasedCase) -> Self {
        let (shape, storage) = case.output("out").expect("an output of BASED");
        let inputs = [("q", &case.q), ("k", &case.k), ("v", &case.v)];
        Self {
            case,
            inputs: inputs.map(|(name, tensor)| fenced(engine, name, &tensor.bytes())),
            out: poisoned(engine, "out", shape.iter().product::<usize>() * storage.size()),
            state: poisoned(engine, "state", state_shape(case).iter().product::<usize>() * 4),
        }
    }

    fn rows(&self, buffer: &'a Buffer, element: usize) -> View<'a> {
        let view = match self.case.layout {
            Layout::Bhsd => View::bhsd(buffer),
            Layout::Bshd | Layout::Packed => View::bshd(buffer),
        };
        view.at((GUARD / element) as u64)
    }

    fn operands(&'a self) -> BasedOperands<'a> {
        let (case, [q, k, v]) = (self.case, &self.inputs);
        let (q_size, kv_size) = (case.q.storage.size(), case.k.storage.size());
        BasedOperands {
            state: Some(View::bhsd(&self.state).at((GUARD / 4) as u64)),
            bounds: case.cu_seqlens.as_deref().unwrap_or_default(),
            key_lengths: case.kv_lens.as_deref().unwrap_or_default(),
            ..BasedOperands::new(
                self.rows(q, q_size),
                self.rows(k, kv_size),
                self.rows(v, kv_size),
                self.rows(&self.out, q_size),
            )
        }
    }
}

fn run(engine: &Engine, plan: &BasedPlan, operands: BasedOperands<'_>) -> Result<()> {
    // Poisoned, so that what nobody wrote shows when it is read.
    let bytes = usize::try_from(plan.workspace_bytes())?;
    let workspace = (bytes > 0).then(|| {
        wgpu::util::DeviceExt::create_buffer_init(
            engine.device(),
            &wgpu::util::BufferInitDescriptor {
                label: Some("workspace"),
                contents: &vec![0xff; bytes],
                usage: BufferUsages::STORAGE,
            },
        )
    });
    let operands = BasedOperands { workspace: workspace.as_ref(), ..operands };
    for slice in 0..plan.slices() {
        let mut encoder = engine.device().create_command_encoder(&wgpu::CommandEncoderDescriptor::default());
        plan.encode_slice(&mut encoder, &operands, slice)?;
        engine.queue().submit([encoder.finish()]);
    }
    Ok(())
}

/// Outputs of BASED that no kernel calculates yet: its gradients.
pub const BASED_UNSUPPORTED: [&str; 3] = ["dq", "dk", "dv"];

/// Plans a case with `variant` forced, runs it, and compares every output that `reference` has: the plan, and one comparison an output.
///
/// # Errors
/// A refused problem or a device that fails.
pub fn judge_based(
    engine: &Engine,
    case: &BasedCase,
    variant: Option<Variant>,
    reference: &References,
) -> Result<(BasedPlan, Vec<Comparison>)> {
    let operator = based(case)?;
    let operator = variant.map_or(operator.clone(), |variant| operator.kernel(variant.kernel));
    let loaded = Loaded::new(engine, case);
    let plan = engine.plan(&operator, based_tokens(case)?)?;
    run(engine, &plan, loaded.operands())?;
    let mut got = unpack(case, &read(engine, &loaded.state, "state", Storage::F32, &state_shape(case))?);
    let (shape, storage) = case.output("out").context("an output of BASED")?;
    got.insert("out", read(engine, &loaded.out, "out", storage, &shape)?);
    let supported = reference.iter().filter(|(name, _)| !BASED_UNSUPPORTED.contains(name));
    let compared = supported.map(|(&name, want)| {
        let got = got.get(name).with_context(|| format!("there is no output {name}"))?;
        Ok(compare(name, got, want, &case.rules(name)))
    });
    let comparisons = compared.collect::<Result<_>>()?;
    check_counts(case, &got["n"])?;
    Ok((plan, comparisons))
}

/// Counts are exact.
fn check_counts(case: &BasedCase, got: &[f32]) -> Result<()> {
    let dims = case.dims();
    let keys = |sequence: usize| match (&case.cu_seqlens, &case.kv_lens) {
        (Some(totals), _) => totals[sequence + 1] - totals[sequence],
        (None, Some(lens)) => lens[sequence].min(u32::try_from(dims.tokens).unwrap_or(u32::MAX)),
        (None, None) => u32::try_from(dims.tokens).unwrap_or(u32::MAX),
    };
    let want = (0..case.sequences()).flat_map(|sequence| vec![keys(sequence); dims.heads]);
    #[expect(clippy::cast_precision_loss, reason = "cases have few keys")]
    match got.iter().zip(want).find(|(got, want)| **got != *want as f32) {
        Some((got, want)) => bail!("{got} keys counted instead of {want}"),
        None => Ok(()),
    }
}
