//! The operands of one call of BASED linear attention, and the checks that they fit the plan.

use wattn_scheduler::BasedPlan;
use wattn_scheduler::shaders::{Access, Storage};
use wgpu::Buffer;

use crate::error::EncodeError;
use crate::linear_operands::{scratch, sequences};
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
    /// The output, rows of the value dim in the storage of q.
    pub out: View<'a>,
    /// The states to start from.
    pub state0: Option<View<'a>>,
    /// The states after the last token.
    pub state: Option<View<'a>>,
    /// Where packed sequences begin and end, from 0 to the total: `sequences + 1` numbers.
    pub bounds: &'a [u32],
    /// How many keys each batch entry has, the first ones, where these are fewer than its tokens; at most those count. The others, and
    /// their values, may hold anything. Queries beyond them see all that there are.
    pub key_lengths: &'a [u32],
    /// Scratch memory of the plan's `workspace_bytes`, where these are not 0.
    pub workspace: Option<&'a Buffer>,
}

impl<'a> BasedOperands<'a> {
    /// Queries, keys, values and output, and nothing else.
    #[must_use]
    pub fn new(q: View<'a>, k: View<'a>, v: View<'a>, out: View<'a>) -> Self {
        Self { q, k, v, out, state0: None, state: None, bounds: &[], key_lengths: &[], workspace: None }
    }
}

/// The operands of a call, all checked.
#[derive(Debug)]
pub(crate) struct CheckedBased<'a> {
    pub(crate) q: Resolved<'a>,
    pub(crate) k: Resolved<'a>,
    pub(crate) v: Resolved<'a>,
    pub(crate) out: Resolved<'a>,
    pub(crate) state0: Option<Resolved<'a>>,
    pub(crate) state: Option<Resolved<'a>>,
    pub(crate) workspace: Option<&'a Buffer>,
    /// First token, number of tokens and number of keys of each sequence; batch entries in turn.
    pub(crate) sequences: Vec<(u32, u32, u32)>,
}

impl<'a> CheckedBased<'a> {
    pub(crate) fn new(plan: &BasedPlan, operands: &BasedOperands<'a>) -> Result<Self, EncodeError> {
        let (based, extent) = (&plan.based, plan.extent);
        present("state0", based.has_initial_state(), operands.state0.is_some())?;
        present("state", based.has_final_state(), operands.state.is_some())?;

        let (heads, tokens) = (u64::from(based.heads()), u64::from(extent.tokens));
        let (features, value) = (u64::from(based.dims().qk()), u64::from(based.dims().value()));
        let batch = if extent.packed { 1 } else { u64::from(extent.batch) };
        // All pipelines load alike; v and the output by vec4 at most.
        let access = plan.keys.first().map_or(Access::Any, |key| key.access);
        let narrow = if access == Access::Vec8 { Access::Vec4 } else { access };
        let rows = |name, view: &View<'a>, dim, form| Resolved::new(name, view, [batch, heads, tokens, dim], 1, form);
        let states = |name, view: Option<View<'a>>| {
            let extent = [extent.batch.into(), heads, u64::from(based.state_rows()), value + 1];
            view.map(|view| Resolved::new(name, &view, extent, 1, (Storage::F32, Access::Any))).transpose()
        };
        let checked = Self {
            q: rows("q", &operands.q, features, (based.q_storage(), access))?,
            k: rows("k", &operands.k, features, (based.kv_storage(), access))?,
            v: rows("v", &operands.v, value, (based.kv_storage(), narrow))?,
            out: rows("out", &operands.out, value, (based.q_storage(), narrow))?,
            state0: states("state0", operands.state0)?,
            state: states("state", operands.state)?,
            workspace: scratch(plan.workspace_bytes, operands.workspace)?,
            sequences: keys(plan, operands)?,
        };
        checked.check_written()?;
        Ok(checked)
    }

    /// What is written has a buffer of its own, and its elements do not share memory.
    fn check_written(&self) -> Result<(), EncodeError> {
        let tensors = [Some(self.out), self.state, Some(self.q), Some(self.k), Some(self.v), self.state0];
        tensors[..2].iter().flatten().try_for_each(Resolved::check_written)?;
        let all: Vec<(&'static str, &Buffer)> = self
            .workspace
            .map(|buffer| ("workspace", buffer))
            .into_iter()
            .chain(tensors.iter().flatten().map(|r| (r.name, r.buffer)))
            .collect();
        let written = |name: &str| ["workspace", "out", "state"].contains(&name);
        for (at, &(name, buffer)) in all.iter().enumerate().filter(|(_, (name, _))| written(name)) {
            if let Some(&(other, _)) = all[at + 1..].iter().find(|(_, other)| *other == buffer) {
                return Err(EncodeError::Aliased { written: name, other });
            }
        }
        Ok(())
    }
}

/// The sequences with their keys.
fn keys(plan: &BasedPlan, operands: &BasedOperands<'_>) -> Result<Vec<(u32, u32, u32)>, EncodeError> {
    let sequences = sequences(plan.extent, operands.bounds)?;
    let lengths = operands.key_lengths;
    if lengths.is_empty() {
        return Ok(sequences.into_iter().map(|(start, tokens)| (start, tokens, tokens)).collect());
    }
    if plan.extent.packed {
        return Err(EncodeError::Unused { argument: "key_lengths" });
    }
    if lengths.len() != sequences.len() {
        return Err(EncodeError::Count { argument: "key_lengths", given: lengths.len(), needed: sequences.len() });
    }
    Ok(sequences.into_iter().zip(lengths).map(|((start, tokens), &keys)| (start, tokens, keys.min(tokens))).collect())
}
