//! The operands of one call of linear attention, and the checks that they fit the plan.

use std::collections::BTreeMap;

use wattn_scheduler::shaders::{Access, Storage};
use wattn_scheduler::{LinearPlan, PlannedSweep, Tensor, Tokens, check_bounds};
use wgpu::{Buffer, BufferUsages};

use crate::error::EncodeError;
use crate::operands::{Resolved, present};
use crate::view::View;

/// The operands of one call of [`Lightning`](crate::Lightning). What the plan has no use for stays `None` or empty.
///
/// Rows are `[batch, heads, tokens, dim]` (packed: one batch entry of all tokens); states are `[sequences, heads, key dim, value dim]`
/// in f32.
#[derive(Debug, Clone, Copy)]
pub struct LinearOperands<'a> {
    /// Queries, rows of the key dim.
    pub q: View<'a>,
    /// Keys, rows of the key dim.
    pub k: View<'a>,
    /// Values, rows of the value dim.
    pub v: View<'a>,
    /// Forward and step: the output, rows of the value dim in the storage of q; its buffer has 16 bytes at least, without tokens too.
    pub out: Option<View<'a>>,
    /// The states to start from.
    pub state0: Option<View<'a>>,
    /// Forward: the states after the last token. Step: the state after it, in place before it too.
    pub state: Option<View<'a>>,
    /// Log decays [batch, heads, tokens], f32, at most 0.
    pub gate: Option<View<'a>>,
    /// Backward: the gradient of the output, stored like it.
    pub grad_out: Option<View<'a>>,
    /// Backward: the gradient of the states after the last token.
    pub grad_state: Option<View<'a>>,
    /// Backward: the gradient of q, stored like it; its buffer, and those of dk and dv, have 16 bytes at least.
    pub dq: Option<View<'a>>,
    /// Backward: the gradient of k, stored like it.
    pub dk: Option<View<'a>>,
    /// Backward: the gradient of v, stored like it.
    pub dv: Option<View<'a>>,
    /// Backward: the gradient of the states to start from.
    pub dstate: Option<View<'a>>,
    /// Backward, with [`decay_gradient`](crate::Lightning::decay_gradient) of gates: the gradient of `gate`, of its extents, f32.
    pub dg: Option<View<'a>>,
    /// Backward, with [`decay_gradient`](crate::Lightning::decay_gradient) of slopes: their gradient, one number a head, f32.
    pub dslopes: Option<View<'a>>,
    /// Where packed sequences begin and end, from 0 to the total: `sequences + 1` numbers.
    pub bounds: &'a [u32],
    /// Scratch memory of the plan's `workspace_bytes`, where these are not 0.
    pub workspace: Option<&'a Buffer>,
}

impl<'a> LinearOperands<'a> {
    /// Queries, keys and values, and nothing else.
    #[must_use]
    pub fn new(q: View<'a>, k: View<'a>, v: View<'a>) -> Self {
        Self {
            q,
            k,
            v,
            out: None,
            state0: None,
            state: None,
            gate: None,
            grad_out: None,
            grad_state: None,
            dq: None,
            dk: None,
            dv: None,
            dstate: None,
            dg: None,
            dslopes: None,
            bounds: &[],
            workspace: None,
        }
    }

    fn view(&self, tensor: Tensor) -> Option<View<'a>> {
        match tensor {
            Tensor::Q => Some(self.q),
            Tensor::K => Some(self.k),
            Tensor::V => Some(self.v),
            Tensor::Out => self.out,
            Tensor::GradOut => self.grad_out,
            Tensor::Dq => self.dq,
            Tensor::Dk => self.dk,
            Tensor::Dv => self.dv,
            Tensor::State0 => self.state0,
            Tensor::State => self.state,
            Tensor::GradState => self.grad_state,
            Tensor::Dstate => self.dstate,
        }
    }
}

pub(crate) const ALL: [Tensor; 12] = [
    Tensor::Q,
    Tensor::K,
    Tensor::V,
    Tensor::Out,
    Tensor::GradOut,
    Tensor::Dq,
    Tensor::Dk,
    Tensor::Dv,
    Tensor::State0,
    Tensor::State,
    Tensor::GradState,
    Tensor::Dstate,
];

/// The operands of a call, all checked.
#[derive(Debug)]
pub(crate) struct CheckedLinear<'a> {
    tensors: BTreeMap<Tensor, Resolved<'a>>,
    pub(crate) gate: Option<Resolved<'a>>,
    /// The gradient of the gates or of the slopes.
    pub(crate) decay_gradient: Option<Resolved<'a>>,
    pub(crate) workspace: Option<&'a Buffer>,
    /// First token and number of tokens of each sequence; batch entries in turn.
    pub(crate) sequences: Vec<(u32, u32)>,
}

impl<'a> CheckedLinear<'a> {
    pub(crate) fn new(plan: &LinearPlan, operands: &LinearOperands<'a>) -> Result<Self, EncodeError> {
        let lightning = &plan.lightning;
        let used = used(plan);
        let written: Vec<Tensor> =
            plan.sweeps.iter().flat_map(|s| [Some(s.sweep.out), s.sweep.state]).flatten().collect();
        for tensor in ALL {
            present(tensor.name(), used.contains(&tensor), operands.view(tensor).is_some())?;
        }
        let (gated, gradient) = (lightning.is_gated(), lightning.has_decay_gradient());
        present("gate", gated, operands.gate.is_some())?;
        present("dg", gradient && gated, operands.dg.is_some())?;
        present("dslopes", gradient && !gated, operands.dslopes.is_some())?;

        let extent = plan.extent;
        let (heads, tokens) = (u64::from(lightning.heads()), u64::from(extent.tokens));
        let (qk, value) = (u64::from(lightning.dims().qk()), u64::from(lightning.dims().value()));
        let batch = if extent.packed { 1 } else { u64::from(extent.batch) };
        let word = (Storage::F32, Access::Any);
        let mut tensors = BTreeMap::new();
        for tensor in ALL {
            let Some(view) = operands.view(tensor) else { continue };
            let resolved = if is_state(tensor) {
                Resolved::new(tensor.name(), &view, [extent.batch.into(), heads, qk, value], 1, word)?
            } else {
                let storage = if tensor.is_stored_like_q() { lightning.q_storage() } else { lightning.kv_storage() };
                let dim = if tensor.has_value_dim() { value } else { qk };
                Resolved::new(tensor.name(), &view, [batch, heads, tokens, dim], 1, (storage, access(plan, tensor)))?
            };
            if written.contains(&tensor) {
                resolved.check_written()?;
            }
            tensors.insert(tensor, resolved);
        }
        let numbers = |name, view: Option<View<'a>>, extent| {
            view.map(|view| Resolved::new(name, &view, extent, 1, word)).transpose()
        };
        let gate = numbers("gate", operands.gate, [batch, heads, tokens, 1])?;
        let dg = numbers("dg", operands.dg, [batch, heads, tokens, 1])?;
        let decay_gradient = dg.or(numbers("dslopes", operands.dslopes, [1, heads, 1, 1])?);
        decay_gradient.as_ref().map_or(Ok(()), Resolved::check_written)?;
        let checked = Self {
            tensors,
            gate,
            decay_gradient,
            workspace: scratch(plan.workspace_bytes, operands.workspace)?,
            sequences: sequences(plan.extent, operands.bounds)?,
        };
        checked.check_aliases(&written)?;
        Ok(checked)
    }

    pub(crate) fn get(&self, tensor: Tensor) -> Option<&Resolved<'a>> {
        self.tensors.get(&tensor)
    }

    /// What is written has a buffer of its own.
    fn check_aliases(&self, written: &[Tensor]) -> Result<(), EncodeError> {
        let named = self.tensors.values().chain(&self.gate).chain(&self.decay_gradient).map(|r| (r.name, r.buffer));
        let all: Vec<(&'static str, &Buffer)> =
            named.chain(self.workspace.map(|buffer| ("workspace", buffer))).collect();
        let written = written.iter().filter_map(|t| self.get(*t)).chain(&self.decay_gradient);
        let written = written.map(|r| (r.name, r.buffer));
        for (name, buffer) in written.chain(self.workspace.map(|buffer| ("workspace", buffer))) {
            if let Some((other, _)) = all.iter().find(|(other, at)| *at == buffer && *other != name) {
                return Err(EncodeError::Aliased { written: name, other });
            }
        }
        Ok(())
    }
}

/// What a call needs.
pub(crate) fn used(plan: &LinearPlan) -> Vec<Tensor> {
    let uses = |planned: &PlannedSweep| {
        let sweep = planned.sweep;
        let states = [sweep.state0, sweep.state].into_iter().flatten();
        [sweep.q, sweep.k, sweep.v, sweep.out].into_iter().chain(states).collect::<Vec<_>>()
    };
    plan.sweeps.iter().flat_map(uses).collect()
}

pub(crate) fn is_state(tensor: Tensor) -> bool {
    matches!(tensor, Tensor::State0 | Tensor::State | Tensor::GradState | Tensor::Dstate)
}

/// The widest loads that a tensor's roles take: all sweeps read it through one view.
fn access(plan: &LinearPlan, tensor: Tensor) -> Access {
    let wide = plan.sweeps.iter().any(|s| s.walk.access == Access::Vec8 && [s.sweep.q, s.sweep.k].contains(&tensor));
    let any = plan.sweeps.iter().any(|s| s.walk.access == Access::Any);
    match (wide, any) {
        (true, _) => Access::Vec8,
        (_, true) => Access::Any,
        _ => Access::Vec4,
    }
}

/// The caller's scratch memory, where `needed` bytes are not 0.
pub(crate) fn scratch(needed: u64, given: Option<&Buffer>) -> Result<Option<&Buffer>, EncodeError> {
    let argument = "workspace";
    if needed == 0 {
        return Ok(None);
    }
    let buffer = given.ok_or(EncodeError::Missing { argument })?;
    if !buffer.usage().contains(BufferUsages::STORAGE) {
        return Err(EncodeError::Usage { argument, given: buffer.usage() });
    }
    if buffer.size() < needed {
        return Err(EncodeError::TooSmall { argument, needed, available: buffer.size() });
    }
    Ok(Some(buffer))
}

/// First token and number of tokens of each sequence; batch entries in turn.
pub(crate) fn sequences(extent: Tokens, bounds: &[u32]) -> Result<Vec<(u32, u32)>, EncodeError> {
    if !extent.packed {
        return match bounds {
            [] => Ok(vec![(0, extent.tokens); extent.batch as usize]),
            _ => Err(EncodeError::Unused { argument: "bounds" }),
        };
    }
    check_bounds("bounds", bounds, extent.batch as usize, extent.tokens)?;
    Ok(bounds.windows(2).map(|w| (w[0], w[1] - w[0])).collect())
}
