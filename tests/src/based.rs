//! Runs a case of BASED linear attention on a device, forward and, where gradients come in, backward.

use std::collections::BTreeMap;

use anyhow::{Context, Result, ensure};
use wattn::wgpu::{self, Buffer, BufferUsages};
use wattn::{Based, BasedOperands, BasedPlan, Engine, HeadDim, Tokens, View};
use wattn_cases::{BasedCase, Comparison, Layout, References, Storage, Tensor, compare};

use crate::buffers::{GUARD, fenced, poisoned, read};
use crate::problem::storage;
use crate::variant::Variant;

/// The forward pass of a case, its states asked for.
///
/// # Errors
/// Sizes that the library refuses.
pub fn based(case: &BasedCase) -> Result<Based> {
    let based = plain(case)?.final_state();
    Ok(if case.state.is_some() { based.initial_state() } else { based })
}

/// A case without states.
fn plain(case: &BasedCase) -> Result<Based> {
    let dims = case.dims();
    let size = |n: usize| u32::try_from(n).context("a size beyond 32 bits");
    let head_dim = HeadDim::with_value(size(dims.key_dim)?, size(dims.value_dim)?)?;
    let mut based = Based::new(size(dims.heads)?, head_dim)
        .causal(case.causal)
        .normalize(case.normalize)
        .mixed_storage(storage(case.q.storage), storage(case.k.storage));
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

/// The backward pass of a case: the gradient of the states that there are to start from asked for, that of the final ones given if the
/// case has one.
///
/// # Errors
/// As [`based`].
pub fn based_backward(case: &BasedCase) -> Result<Based> {
    let based = plain(case)?.backward();
    let based = if case.state.is_some() { based.initial_state() } else { based };
    Ok(if case.grad_state.is_some() { based.final_state() } else { based })
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

/// The moments that packed states hold, under their names in case files, and the numbers of keys.
#[must_use]
pub fn unpack_states(case: &BasedCase, packed: &[f32]) -> BTreeMap<&'static str, Vec<f32>> {
    let (dims, [_, _, rows, columns]) = (case.dims(), case.state_shape());
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
#[derive(Debug)]
struct Loaded<'a> {
    case: &'a BasedCase,
    inputs: BTreeMap<&'static str, Buffer>,
    outputs: BTreeMap<&'static str, Buffer>,
}

/// The extents of an output, of the packed states too, and how it is stored.
fn output(case: &BasedCase, name: &str) -> (Vec<usize>, Storage) {
    let packed = (case.state_shape().to_vec(), Storage::F32);
    if name == "state" { packed } else { case.output(name).unwrap_or(packed) }
}

impl<'a> Loaded<'a> {
    fn new(engine: &Engine, case: &'a BasedCase) -> Self {
        let zeros = || {
            let (shape, storage) = output(case, "out");
            Tensor::new(storage, &shape, vec![0.0; shape.iter().product()])
        };
        let mut inputs = vec![
            ("q", case.q.clone()),
            ("k", case.k.clone()),
            ("v", case.v.clone()),
            ("grad_out", case.grad_out.clone().unwrap_or_else(zeros)),
        ];
        for (name, tensor) in [("state0", &case.state), ("grad_state", &case.grad_state)] {
            inputs.extend(tensor.clone().map(|tensor| (name, tensor)));
        }
        let outputs = ["out", "state", "dq", "dk", "dv", "dstate"].map(|name| {
            let (shape, storage) = output(case, name);
            (name, poisoned(engine, name, shape.iter().product::<usize>() * storage.size()))
        });
        let inputs = inputs.into_iter().map(|(name, tensor)| (name, fenced(engine, name, &tensor.bytes()))).collect();
        Self { case, inputs, outputs: outputs.into() }
    }

    fn rows(&self, buffer: &'a Buffer, element: usize) -> View<'a> {
        let view = match self.case.layout {
            Layout::Bhsd => View::bhsd(buffer),
            Layout::Bshd | Layout::Packed => View::bshd(buffer),
        };
        view.at((GUARD / element) as u64)
    }

    /// What both passes read.
    fn operands(&'a self) -> BasedOperands<'a> {
        let (case, q, kv) = (self.case, self.case.q.storage.size(), self.case.k.storage.size());
        let [q, k, v] = [("q", q), ("k", kv), ("v", kv)].map(|(name, size)| self.rows(&self.inputs[name], size));
        BasedOperands {
            state0: self.inputs.get("state0").map(words),
            bounds: case.cu_seqlens.as_deref().unwrap_or_default(),
            key_lengths: case.kv_lens.as_deref().unwrap_or_default(),
            ..BasedOperands::new(q, k, v)
        }
    }

    fn forward(&'a self) -> BasedOperands<'a> {
        BasedOperands {
            out: Some(self.rows(&self.outputs["out"], self.case.q.storage.size())),
            state: Some(words(&self.outputs["state"])),
            ..self.operands()
        }
    }

    fn backward(&'a self) -> BasedOperands<'a> {
        let (q, kv) = (self.case.q.storage.size(), self.case.k.storage.size());
        BasedOperands {
            grad_out: Some(self.rows(&self.inputs["grad_out"], q)),
            grad_state: self.inputs.get("grad_state").map(words),
            dq: Some(self.rows(&self.outputs["dq"], q)),
            dk: Some(self.rows(&self.outputs["dk"], kv)),
            dv: Some(self.rows(&self.outputs["dv"], kv)),
            dstate: self.case.state.is_some().then(|| words(&self.outputs["dstate"])),
            ..self.operands()
        }
    }

    fn read(&self, engine: &Engine, name: &str) -> Result<Vec<f32>> {
        let (shape, storage) = output(self.case, name);
        read(engine, &self.outputs[name], name, storage, &shape)
    }
}

fn words(buffer: &Buffer) -> View<'_> {
    View::bhsd(buffer).at((GUARD / 4) as u64)
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

/// Runs a case with `variant` forced: the forward pass's plan, and all outputs, with `n` for the numbers of keys.
///
/// # Errors
/// A refused problem or a device that fails.
pub fn run_based(
    engine: &Engine,
    case: &BasedCase,
    variant: Option<Variant>,
    backward: bool,
) -> Result<(BasedPlan, BTreeMap<&'static str, Vec<f32>>)> {
    let force = |based: Based| match variant {
        Some(variant) => variant.force_based(based),
        None => based,
    };
    let (loaded, extent) = (Loaded::new(engine, case), based_tokens(case)?);
    let plan = engine.plan(&force(based(case)?), extent)?;
    run(engine, &plan, loaded.forward())?;
    let mut got = unpack_states(case, &loaded.read(engine, "state")?);
    got.insert("out", loaded.read(engine, "out")?);
    if backward {
        let backward = engine.plan(&force(based_backward(case)?), extent)?;
        run(engine, &backward, loaded.backward())?;
        for name in ["dq", "dk", "dv"].into_iter().chain(case.state.is_some().then_some("dstate")) {
            got.insert(name, loaded.read(engine, name)?);
        }
    }
    Ok((plan, got))
}

/// Plans a case with `variant` forced, runs it, and compares every output that `reference` has: the forward pass's plan, and one
/// comparison an output.
///
/// # Errors
/// A refused problem or a device that fails.
pub fn judge_based(
    engine: &Engine,
    case: &BasedCase,
    variant: Option<Variant>,
    reference: &References,
) -> Result<(BasedPlan, Vec<Comparison>)> {
    let backward = reference.keys().any(|name| name.starts_with('d'));
    let (plan, got) = run_based(engine, case, variant, backward)?;
    let compared = reference.iter().map(|(&name, want)| {
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
    // The first number after a state's values.
    let before = |state: usize| {
        let [_, _, rows, columns] = case.state_shape();
        case.state.as_ref().map_or(0.0, |before| before.values[state * rows * columns + dims.value_dim])
    };
    let keys = |sequence: usize| match (&case.cu_seqlens, &case.kv_lens) {
        (Some(totals), _) => totals[sequence + 1] - totals[sequence],
        (None, Some(lens)) => lens[sequence].min(u32::try_from(dims.tokens).unwrap_or(u32::MAX)),
        (None, None) => u32::try_from(dims.tokens).unwrap_or(u32::MAX),
    };
    for (state, got) in got.iter().enumerate() {
        #[expect(clippy::cast_precision_loss, reason = "cases have few keys")]
        let want = before(state) + keys(state / dims.heads) as f32;
        ensure!(*got == want, "{got} keys counted instead of {want}");
    }
    Ok(())
}
