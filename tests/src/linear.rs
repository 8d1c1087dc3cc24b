//! Runs a case of linear attention on a device, forward and, where gradients come in, backward.

use std::collections::BTreeMap;

use anyhow::{Context, Result};
use wattn::wgpu::util::{BufferInitDescriptor, DeviceExt};
use wattn::wgpu::{self, Buffer, BufferUsages};
use wattn::{Decay, Engine, HeadDim, Lightning, LinearOperands, LinearPlan, Tokens, View};
use wattn_cases::{Comparison, Layout, LinearCase, References, Tensor, compare};

use crate::buffers::{GUARD, fenced, poisoned, read};
use crate::problem::storage;
use crate::variant::Variant;

/// The forward pass of a case, its states asked for.
///
/// # Errors
/// Sizes that the library refuses.
pub fn lightning(case: &LinearCase) -> Result<Lightning> {
    let dims = case.dims();
    let size = |n: usize| u32::try_from(n).context("a size beyond 32 bits");
    let head_dim = HeadDim::with_value(size(dims.key_dim)?, size(dims.value_dim)?)?;
    let decay = match &case.decay {
        wattn_cases::Decay::Slopes(slopes) => Decay::slopes(slopes),
        wattn_cases::Decay::Gates(_) => Decay::Gates,
    };
    let mut lightning = Lightning::new(size(dims.heads)?, head_dim)
        .decay(decay)
        .mixed_storage(storage(case.q.storage), storage(case.k.storage))
        .final_state();
    #[expect(clippy::cast_possible_truncation, reason = "options are f64 in files, f32 on devices")]
    if let Some(scale) = case.scale {
        lightning = lightning.scale(scale as f32);
    }
    Ok(if case.state.is_some() { lightning.initial_state() } else { lightning })
}

/// The backward pass of a case, the gradients that it has asked for.
///
/// # Errors
/// As [`lightning`].
pub fn lightning_backward(case: &LinearCase) -> Result<Lightning> {
    // The gradient of the state to start from exists without such a state too.
    let backward = lightning(case)?.initial_state().backward();
    Ok(if case.grad_decay { backward.decay_gradient() } else { backward })
}

/// The extent of a case.
///
/// # Errors
/// Sizes beyond 32 bits.
pub fn tokens(case: &LinearCase) -> Result<Tokens> {
    let dims = case.dims();
    let size = |n: usize| u32::try_from(n).context("a size beyond 32 bits");
    Ok(match case.layout {
        Layout::Packed => Tokens::packed(size(case.sequences())?, size(dims.tokens)?),
        Layout::Bhsd | Layout::Bshd => Tokens::new(size(dims.batch)?, size(dims.tokens)?),
    })
}

/// A case's tensors on a device.
#[derive(Debug)]
struct Loaded<'a> {
    case: &'a LinearCase,
    inputs: BTreeMap<&'static str, Buffer>,
    outputs: BTreeMap<&'static str, Buffer>,
}

impl<'a> Loaded<'a> {
    fn new(engine: &Engine, case: &'a LinearCase) -> Self {
        let zeros = |name| {
            let (shape, storage) = case.output(name).expect("an output of linear attention");
            Tensor::new(storage, &shape, vec![0.0; shape.iter().product()])
        };
        let or_zeros = |tensor: &Option<Tensor>, name| tensor.clone().unwrap_or_else(|| zeros(name));
        let mut inputs = vec![
            ("q", case.q.clone()),
            ("k", case.k.clone()),
            ("v", case.v.clone()),
            ("state0", or_zeros(&case.state, "state")),
            ("grad_out", or_zeros(&case.grad_out, "out")),
            ("grad_state", or_zeros(&case.grad_state, "state")),
        ];
        if let wattn_cases::Decay::Gates(gates) = &case.decay {
            inputs.push(("gate", gates.clone()));
        }
        let outputs = case.outputs().map(|name| {
            let (shape, storage) = case.output(name).expect("an output of linear attention");
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
    fn operands(&'a self) -> LinearOperands<'a> {
        let (q, kv) = (self.case.q.storage.size(), self.case.k.storage.size());
        let [q, k, v] = [("q", q), ("k", kv), ("v", kv)].map(|(name, size)| self.rows(&self.inputs[name], size));
        LinearOperands {
            gate: self.inputs.get("gate").map(words),
            bounds: self.case.cu_seqlens.as_deref().unwrap_or_default(),
            ..LinearOperands::new(q, k, v)
        }
    }

    fn forward(&'a self) -> LinearOperands<'a> {
        LinearOperands {
            out: Some(self.rows(&self.outputs["out"], self.case.q.storage.size())),
            state0: self.case.state.is_some().then(|| words(&self.inputs["state0"])),
            state: Some(words(&self.outputs["state"])),
            ..self.operands()
        }
    }

    /// The gradient of the decay, where the case has this one.
    fn gradient(&'a self, name: &str) -> Option<View<'a>> {
        self.outputs.get(name).filter(|_| self.case.grad_decay).map(words)
    }

    fn backward(&'a self) -> LinearOperands<'a> {
        let (q, kv) = (self.case.q.storage.size(), self.case.k.storage.size());
        LinearOperands {
            grad_out: Some(self.rows(&self.inputs["grad_out"], q)),
            grad_state: Some(words(&self.inputs["grad_state"])),
            state0: Some(words(&self.inputs["state0"])),
            dq: Some(self.rows(&self.outputs["dq"], q)),
            dk: Some(self.rows(&self.outputs["dk"], kv)),
            dv: Some(self.rows(&self.outputs["dv"], kv)),
            dstate: Some(words(&self.outputs["dstate"])),
            dg: self.gradient("dg"),
            dslopes: self.gradient("dslopes"),
            ..self.operands()
        }
    }
}

fn words(buffer: &Buffer) -> View<'_> {
    View::bhsd(buffer).at((GUARD / 4) as u64)
}

/// A case on a device with its plans: the forward pass, and where asked for the backward pass.
#[derive(Debug)]
pub struct LinearRun<'a> {
    engine: Engine,
    loaded: Loaded<'a>,
    plans: [Option<LinearPlan>; 2],
    workspace: Option<Buffer>,
}

impl<'a> LinearRun<'a> {
    /// Plans a case with `variant` forced, and uploads it.
    ///
    /// # Errors
    /// A refused problem.
    pub fn new(engine: &Engine, case: &'a LinearCase, variant: Option<Variant>, backward: bool) -> Result<Self> {
        let force = |lightning: Lightning| match variant {
            Some(variant) => variant.force_linear(lightning),
            None => lightning,
        };
        let extent = tokens(case)?;
        let forward = engine.plan(&force(lightning(case)?), extent)?;
        let backward = if backward { Some(engine.plan(&force(lightning_backward(case)?), extent)?) } else { None };
        let plans = [Some(forward), backward];
        // Poisoned, so that what nobody wrote shows when it is read.
        let bytes = plans.iter().flatten().map(LinearPlan::workspace_bytes).max().unwrap_or(0);
        let contents = vec![0xff; usize::try_from(bytes)?];
        let workspace = (bytes > 0).then(|| {
            let (label, usage) = (Some("workspace"), BufferUsages::STORAGE);
            engine.device().create_buffer_init(&BufferInitDescriptor { label, contents: &contents, usage })
        });
        Ok(Self { engine: engine.clone(), loaded: Loaded::new(engine, case), plans, workspace })
    }

    /// The plan of a pass, if it was asked for.
    #[must_use]
    pub fn plan(&self, backward: bool) -> Option<&LinearPlan> {
        self.plans[usize::from(backward)].as_ref()
    }

    fn operands(&self, backward: bool) -> LinearOperands<'_> {
        let operands = if backward { self.loaded.backward() } else { self.loaded.forward() };
        LinearOperands { workspace: self.workspace.as_ref(), ..operands }
    }

    fn submit(&self, backward: bool) -> Result<()> {
        let plan = self.plan(backward).context("this pass was not planned")?;
        for slice in 0..plan.slices() {
            let descriptor = wgpu::CommandEncoderDescriptor::default();
            let mut encoder = self.engine.device().create_command_encoder(&descriptor);
            self.encode_slice(&mut encoder, backward, slice)?;
            self.engine.queue().submit([encoder.finish()]);
        }
        Ok(())
    }

    /// Submits the forward pass.
    ///
    /// # Errors
    /// A refused call.
    pub fn forward(&self) -> Result<()> {
        self.submit(false)
    }

    /// Submits the backward pass.
    ///
    /// # Errors
    /// A refused call, or a pass that was not planned.
    pub fn backward(&self) -> Result<()> {
        self.submit(true)
    }

    /// Records a pass.
    ///
    /// # Errors
    /// As [`backward`](Self::backward).
    pub fn encode_in_pass(&self, pass: &mut wgpu::ComputePass<'_>, backward: bool) -> Result<()> {
        let plan = self.plan(backward).context("this pass was not planned")?;
        Ok(plan.encode_in_pass(pass, &self.operands(backward))?)
    }

    /// Records a slice of a pass.
    ///
    /// # Errors
    /// As [`backward`](Self::backward), or a slice that is not there.
    pub fn encode_slice(&self, encoder: &mut wgpu::CommandEncoder, backward: bool, slice: u32) -> Result<()> {
        let plan = self.plan(backward).context("this pass was not planned")?;
        Ok(plan.encode_slice(encoder, &self.operands(backward), slice)?)
    }

    fn output(&self, name: &str) -> Result<Vec<f32>> {
        let case = self.loaded.case;
        let (shape, storage) = case.output(name).with_context(|| format!("there is no output {name}"))?;
        read(&self.engine, &self.loaded.outputs[name], name, storage, &shape)
    }

    /// Compares every output that `reference` has.
    ///
    /// # Errors
    /// A device that fails.
    pub fn compare(&self, reference: &References) -> Result<Vec<Comparison>> {
        let compared = |(&name, want): (&&'static str, &Vec<(usize, f64)>)| {
            Ok(compare(name, &self.output(name)?, want, &self.loaded.case.rules(name)))
        };
        reference.iter().map(compared).collect()
    }
}

/// Runs a case with `variant` forced and returns all outputs.
///
/// # Errors
/// A refused problem or a device that fails.
pub fn run_linear(
    engine: &Engine,
    case: &LinearCase,
    variant: Option<Variant>,
) -> Result<BTreeMap<&'static str, Vec<f32>>> {
    let backward = case.has_backward();
    let run = LinearRun::new(engine, case, variant, backward)?;
    run.forward()?;
    if backward {
        run.backward()?;
    }
    let written = |name: &&str| match *name {
        "dslopes" | "dg" => backward && case.grad_decay,
        name => backward || !name.starts_with('d'),
    };
    case.outputs().into_iter().filter(written).map(|name| Ok((name, run.output(name)?))).collect()
}

/// Plans a case with `variant` forced, runs it, and compares every output that `reference` has: the forward pass's plan, and one
/// comparison an output.
///
/// # Errors
/// A refused problem or a device that fails.
pub fn judge_linear(
    engine: &Engine,
    case: &LinearCase,
    variant: Option<Variant>,
    reference: &References,
) -> Result<(LinearPlan, Vec<Comparison>)> {
    let backward = reference.keys().any(|name| name.starts_with('d'));
    let run = LinearRun::new(engine, case, variant, backward)?;
    run.forward()?;
    if backward {
        run.backward()?;
    }
    let plan = run.plan(false).context("the forward pass was not planned")?.clone();
    Ok((plan, run.compare(reference)?))
}
