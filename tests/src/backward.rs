//! Runs the backward pass of softmax attention on what its forward pass has left on the device.

use std::collections::BTreeMap;

use anyhow::{Context, Result};
use wattn::wgpu::util::{BufferInitDescriptor, DeviceExt};
use wattn::wgpu::{self, Buffer, BufferUsages};
use wattn::{AttentionBackward, BackwardOperands, BackwardPlan, Engine, View};
use wattn_cases::{Comparison, Reference, SoftmaxCase, Storage, Tensor, compare};

use crate::buffers::{GUARD, fenced, poisoned, read};
use crate::problem::{attention, extent};
use crate::run::Loaded;
use crate::variant::Variant;

/// The backward pass of a case, with these outputs.
///
/// # Errors
/// Sizes that the library refuses.
pub fn attention_backward(case: &SoftmaxCase, variant: Option<Variant>, outputs: &[&str]) -> Result<AttentionBackward> {
    let forward = attention(case)?;
    let mut backward = variant.map_or(forward, |variant| variant.force(forward)).backward();
    for (on, option) in [
        (outputs.contains(&"dbias"), AttentionBackward::bias_gradient as fn(AttentionBackward) -> AttentionBackward),
        (outputs.contains(&"dsinks"), AttentionBackward::sinks_gradient),
        (outputs.contains(&"dalibi_slopes"), AttentionBackward::slopes_gradient),
        (case.grad_lse.is_some(), AttentionBackward::lse_gradient),
    ] {
        if on {
            backward = option(backward);
        }
    }
    Ok(backward)
}

/// The backward pass of a loaded case, planned.
#[derive(Debug)]
pub struct BackwardRun<'a> {
    engine: Engine,
    loaded: Loaded<'a>,
    plan: BackwardPlan,
    grad_out: Buffer,
    grad_lse: Option<Buffer>,
    outputs: BTreeMap<&'static str, Buffer>,
    workspace: Option<Buffer>,
}

impl<'a> BackwardRun<'a> {
    /// Plans the gradients that `reference` has, with `variant` forced, and uploads those that come in. The forward pass has run.
    ///
    /// # Errors
    /// A refused problem.
    pub fn new(engine: &Engine, loaded: Loaded<'a>, variant: Option<Variant>, reference: &Reference) -> Result<Self> {
        let case = loaded.case;
        let mut names: Vec<&'static str> = reference.gradients.keys().copied().collect();
        names.extend(["dq", "dk", "dv"].into_iter().filter(|name| !reference.gradients.contains_key(name)));
        let plan = engine.plan(&attention_backward(case, variant, &names)?, extent(case)?)?;
        let zeros = || {
            let shape = case.out_shape();
            Tensor::new(case.q.storage, &shape, vec![0.0; shape.iter().product()])
        };
        let outputs = names.into_iter().map(|name| {
            let (shape, storage) = case.output(name).with_context(|| format!("there is no output {name}"))?;
            Ok((name, poisoned(engine, name, shape.iter().product::<usize>() * storage.size())))
        });
        // Poisoned, so that what nobody wrote shows when it is read.
        let bytes = plan.workspace_bytes();
        let contents = vec![0xff; usize::try_from(bytes)?];
        let workspace = (bytes > 0).then(|| {
            let (label, usage) = (Some("workspace"), BufferUsages::STORAGE);
            engine.device().create_buffer_init(&BufferInitDescriptor { label, contents: &contents, usage })
        });
        Ok(Self {
            engine: engine.clone(),
            loaded,
            plan,
            grad_out: fenced(engine, "grad_out", &case.grad_out.clone().unwrap_or_else(zeros).bytes()),
            grad_lse: case.grad_lse.as_ref().map(|tensor| fenced(engine, "grad_lse", &tensor.bytes())),
            outputs: outputs.collect::<Result<_>>()?,
            workspace,
        })
    }

    /// The plan.
    #[must_use]
    pub fn plan(&self) -> &BackwardPlan {
        &self.plan
    }

    /// The operands of the call.
    #[must_use]
    pub fn operands(&self) -> BackwardOperands<'_> {
        let (case, loaded) = (self.loaded.case, &self.loaded);
        let forward = loaded.operands();
        let (q, kv) = (case.q.storage, case.k.storage);
        let words = |buffer| View::bhsd(buffer).at((GUARD / 4) as u64);
        let shape = case.bias.as_ref().map(|bias| &bias.shape[..]).unwrap_or_default();
        BackwardOperands {
            q: forward.q,
            k: forward.k,
            v: forward.v,
            out: forward.out,
            lse: words(&loaded.lse),
            grad_out: loaded.rows(&self.grad_out, q),
            grad_lse: self.grad_lse.as_ref().map(words),
            dq: loaded.rows(&self.outputs["dq"], q),
            dk: loaded.rows(&self.outputs["dk"], kv),
            dv: loaded.rows(&self.outputs["dv"], kv),
            dbias: self.outputs.get("dbias").map(|buffer| loaded.scores(buffer, shape)),
            dsinks: self.outputs.get("dsinks").map(words),
            dslopes: self.outputs.get("dalibi_slopes").map(words),
            bias: forward.bias,
            mask: forward.mask,
            lengths: forward.lengths,
            causal_offsets: forward.causal_offsets,
            alibi_slopes: forward.alibi_slopes,
            sinks: forward.sinks,
            workspace: self.workspace.as_ref(),
        }
    }

    /// Submits all slices.
    ///
    /// # Errors
    /// A refused call.
    pub fn submit(&self) -> Result<()> {
        for slice in 0..self.plan.slices() {
            let descriptor = wgpu::CommandEncoderDescriptor::default();
            let mut encoder = self.engine.device().create_command_encoder(&descriptor);
            self.plan.encode_slice(&mut encoder, &self.operands(), slice)?;
            self.engine.queue().submit([encoder.finish()]);
        }
        Ok(())
    }

    /// An output.
    ///
    /// # Errors
    /// A device that fails, or a guard word that was overwritten.
    pub fn output(&self, name: &str) -> Result<Vec<f32>> {
        let (shape, storage): (_, Storage) =
            self.loaded.case.output(name).with_context(|| format!("there is no output {name}"))?;
        read(&self.engine, &self.outputs[name], name, storage, &shape)
    }

    /// Compares every gradient that `reference` has.
    ///
    /// # Errors
    /// A device that fails.
    pub fn compare(&self, reference: &Reference) -> Result<Vec<Comparison>> {
        let compared = |(&name, want): (&&'static str, &Vec<(usize, f64)>)| {
            Ok(compare(name, &self.output(name)?, want, &self.loaded.case.rules(name, reference)))
        };
        reference.gradients.iter().map(compared).collect()
    }
}
