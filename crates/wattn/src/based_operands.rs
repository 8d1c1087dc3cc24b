//! The operands of one call of BASED linear attention, and the checks that they fit the plan.

use std::collections::BTreeMap;

use wattn_scheduler::shaders::{Access, BasedKey, Storage};
use wattn_scheduler::{BasedPlan, BasedStates, BasedStep, Pass, Tensor};
use wgpu::Buffer;

use crate::error::EncodeError;
use crate::linear_operands::{ALL, is_state, scratch, sequences};
use crate::operands::{Resolved, present};
use crate::view::View;

/// The operands of one call of [`Based`](crate::Based). What the plan has no use for stays `None` or empty.
///
/// Rows are `[batch, heads, tokens, dim]` (packed: one batch entry of all tokens); states are
/// `[sequences, heads, state rows, value dim + 1]` in f32, as [`Based::initial_state`](crate::Based::initial_state) describes them.
#[derive(Debug, Clone, Copy)]
pub struct BasedOperands<'a> {
    /// Queries, rows of the feature dim.
    pub q: View<'a>,
    /// Keys, rows of the feature dim.
    pub k: View<'a>,
    /// Values, rows of the value dim.
    pub v: View<'a>,
    /// Forward and step: the output, rows of the value dim in the storage of q; its buffer has 16 bytes at least, without tokens too.
    pub out: Option<View<'a>>,
    /// The states to start from. Backward: in a buffer of their own.
    pub state0: Option<View<'a>>,
    /// Forward: the states after the last token. Step: the state after it, in place before it too.
    pub state: Option<View<'a>>,
    /// Backward: the gradient of the output, stored like it.
    pub grad_out: Option<View<'a>>,
    /// Backward: the gradient of the states after the last token, in a buffer of its own.
    pub grad_state: Option<View<'a>>,
    /// Backward: the gradient of q, stored like it; its buffer, and those of dk and dv, have 16 bytes at least.
    pub dq: Option<View<'a>>,
    /// Backward: the gradient of k, stored like it; zeros for what is no key.
    pub dk: Option<View<'a>>,
    /// Backward: the gradient of v, stored like it; zeros for what is no key.
    pub dv: Option<View<'a>>,
    /// Backward: the gradient of the states to start from, that of the number of keys too.
    pub dstate: Option<View<'a>>,
    /// Where packed sequences begin and end, from 0 to the total: `sequences + 1` numbers.
    pub bounds: &'a [u32],
    /// How many keys each batch entry has, the first ones, where these are fewer than its tokens; at most those count. The others, and
    /// their values, may hold anything. Queries beyond them see all that there are.
    pub key_lengths: &'a [u32],
    /// Scratch memory of the plan's `workspace_bytes`, where these are not 0.
    pub workspace: Option<&'a Buffer>,
}

impl<'a> BasedOperands<'a> {
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
            grad_out: None,
            grad_state: None,
            dq: None,
            dk: None,
            dv: None,
            dstate: None,
            bounds: &[],
            key_lengths: &[],
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

/// The tokens of a sequence.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Sequence {
    /// Its first one.
    pub(crate) start: u32,
    /// How many there are.
    pub(crate) tokens: u32,
    /// How many of them, the first ones, are keys too.
    pub(crate) keys: u32,
}

/// The operands of a call, all checked.
#[derive(Debug)]
pub(crate) struct CheckedBased<'a> {
    tensors: BTreeMap<Tensor, Resolved<'a>>,
    pub(crate) workspace: Option<&'a Buffer>,
    /// Batch entries in turn.
    pub(crate) sequences: Vec<Sequence>,
}

impl<'a> CheckedBased<'a> {
    pub(crate) fn new(plan: &BasedPlan, operands: &BasedOperands<'a>) -> Result<Self, EncodeError> {
        let (based, extent) = (&plan.based, plan.extent);
        let used = used(plan);
        let written: Vec<Tensor> = plan.steps.iter().flat_map(|step| [step.out, operand(step.to)]).flatten().collect();
        // What is bound as if it were written has a buffer of its own too.
        let bound_written =
            plan.steps.iter().filter(|step| step.based_key().is_some_and(BasedKey::binds_state0_written));
        let own: Vec<Tensor> =
            bound_written.filter_map(|step| operand(step.from)).chain(written.iter().copied()).collect();
        for tensor in ALL {
            present(tensor.name(), used.contains(&tensor), operands.view(tensor).is_some())?;
        }

        let (heads, tokens) = (u64::from(based.heads()), u64::from(extent.tokens));
        let (features, value) = (u64::from(based.dims().qk()), u64::from(based.dims().value()));
        let batch = if extent.packed { 1 } else { u64::from(extent.batch) };
        let mut tensors = BTreeMap::new();
        for tensor in ALL {
            let Some(view) = operands.view(tensor) else { continue };
            let resolved = if is_state(tensor) {
                let states = [extent.batch.into(), heads, u64::from(based.state_rows()), value + 1];
                Resolved::new(tensor.name(), &view, states, 1, (Storage::F32, Access::Any))?
            } else {
                let storage = if tensor.is_stored_like_q() { based.q_storage() } else { based.kv_storage() };
                let dim = if tensor.has_value_dim() { value } else { features };
                Resolved::new(tensor.name(), &view, [batch, heads, tokens, dim], 1, (storage, access(plan, tensor)))?
            };
            if written.contains(&tensor) {
                resolved.check_written()?;
            }
            tensors.insert(tensor, resolved);
        }
        let workspace = scratch(plan.workspace_bytes, operands.workspace)?;
        let checked = Self { tensors, workspace, sequences: keys(plan, operands)? };
        checked.check_aliases(&own)?;
        Ok(checked)
    }

    pub(crate) fn get(&self, tensor: Tensor) -> Option<&Resolved<'a>> {
        self.tensors.get(&tensor)
    }

    /// What is written, or bound as if it were, has a buffer of its own.
    fn check_aliases(&self, written: &[Tensor]) -> Result<(), EncodeError> {
        let workspace = self.workspace.map(|buffer| ("workspace", buffer));
        let all: Vec<_> = self.tensors.values().map(|r| (r.name, r.buffer)).chain(workspace).collect();
        let written = written.iter().filter_map(|t| self.get(*t)).map(|r| (r.name, r.buffer));
        for (name, buffer) in written.chain(workspace) {
            if let Some((other, _)) = all.iter().find(|(other, at)| *at == buffer && *other != name) {
                return Err(EncodeError::Aliased { written: name, other });
            }
        }
        Ok(())
    }
}

/// The operand that states are.
fn operand(states: Option<BasedStates>) -> Option<Tensor> {
    match states {
        Some(BasedStates::Operand(tensor)) => Some(tensor),
        _ => None,
    }
}

/// What a call needs.
pub(crate) fn used(plan: &BasedPlan) -> Vec<Tensor> {
    let uses = |step: &BasedStep| {
        let rows = [step.q, step.g, step.out, operand(step.from), operand(step.to)].into_iter().flatten();
        rows.chain(step.kv.into_iter().flatten()).collect::<Vec<_>>()
    };
    plan.steps.iter().flat_map(uses).collect()
}

/// The widest loads that a tensor's roles take: all steps read it through one view.
fn access(plan: &BasedPlan, tensor: Tensor) -> Access {
    let keys = || plan.steps.iter().filter_map(|step| Some((step, step.based_key()?)));
    let rows = |step: &BasedStep| step.q == Some(tensor) || step.kv.is_some_and(|[k, _]| k == tensor);
    let wide = keys().any(|(step, key)| key.access == Access::Vec8 && rows(step));
    let any = keys().any(|(_, key)| key.access == Access::Any);
    match (wide, any) {
        (true, _) => Access::Vec8,
        (_, true) => Access::Any,
        _ => Access::Vec4,
    }
}

/// The sequences with their keys.
fn keys(plan: &BasedPlan, operands: &BasedOperands<'_>) -> Result<Vec<Sequence>, EncodeError> {
    let sequences = sequences(plan.extent, operands.bounds)?.into_iter();
    let lengths = operands.key_lengths;
    if lengths.is_empty() {
        return Ok(sequences.map(|(start, tokens)| Sequence { start, tokens, keys: tokens }).collect());
    }
    if plan.extent.packed || matches!(plan.based.pass(), Pass::Step { .. }) {
        return Err(EncodeError::Unused { argument: "key_lengths" });
    }
    if lengths.len() != sequences.len() {
        return Err(EncodeError::Count { argument: "key_lengths", given: lengths.len(), needed: sequences.len() });
    }
    let with_keys = |((start, tokens), &keys): ((u32, u32), &u32)| Sequence { start, tokens, keys: keys.min(tokens) };
    Ok(sequences.zip(lengths).map(with_keys).collect())
}
