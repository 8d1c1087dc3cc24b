//! The operands of one call of the backward pass of softmax attention, and the checks that they fit the plan.

use wattn_scheduler::shaders::{Access, Storage};
use wattn_scheduler::{BackwardPlan, Causal, Lengths};
use wgpu::Buffer;

use crate::error::EncodeError;
use crate::linear_operands::scratch;
use crate::operands::{Resolved, numbers, present};
use crate::view::View;

/// The operands of one call of [`AttentionBackward`](crate::AttentionBackward). What the plan has no option for stays `None` or empty.
///
/// Gradients have the extents and the storage of what they are gradients of.
#[derive(Debug, Clone, Copy)]
pub struct BackwardOperands<'a> {
    /// Queries, as in the forward pass.
    pub q: View<'a>,
    /// Keys, likewise.
    pub k: View<'a>,
    /// Values, likewise.
    pub v: View<'a>,
    /// The output of the forward pass.
    pub out: View<'a>,
    /// The log-sum-exp that the forward pass gave: [`Attention::lse`](crate::Attention::lse).
    pub lse: View<'a>,
    /// The gradient of the output.
    pub grad_out: View<'a>,
    /// With [`lse_gradient`](crate::AttentionBackward::lse_gradient): the gradient of the log-sum-exp, f32.
    pub grad_lse: Option<View<'a>>,
    /// The gradient of q.
    pub dq: View<'a>,
    /// The gradient of k.
    pub dk: View<'a>,
    /// The gradient of v.
    pub dv: View<'a>,
    /// With [`bias_gradient`](crate::AttentionBackward::bias_gradient): the gradient of the bias, f32; where batch entries or heads
    /// share an entry (see [`View::scores`]), the sum over them.
    pub dbias: Option<View<'a>>,
    /// With [`sinks_gradient`](crate::AttentionBackward::sinks_gradient): one number a query head, f32, of extents [1, heads, 1, 1].
    pub dsinks: Option<View<'a>>,
    /// With [`slopes_gradient`](crate::AttentionBackward::slopes_gradient): one number a query head, likewise.
    pub dslopes: Option<View<'a>>,
    /// Additive bias, as in the forward pass.
    pub bias: Option<View<'a>>,
    /// Mask, likewise.
    pub mask: Option<View<'a>>,
    /// How long the sequences are.
    pub lengths: Lengths<'a>,
    /// Offsets of a top-left causal mask.
    pub causal_offsets: &'a [i32],
    /// ALiBi slopes, one a query head.
    pub alibi_slopes: &'a [f32],
    /// Sinks, one a query head.
    pub sinks: &'a [f32],
    /// Scratch memory of the plan's `workspace_bytes`.
    pub workspace: Option<&'a Buffer>,
}

impl<'a> BackwardOperands<'a> {
    /// What every call needs: q, k and v; the output, its log-sum-exp and its gradient; dq, dk and dv.
    #[must_use]
    pub fn new(
        [q, k, v]: [View<'a>; 3],
        [out, lse, grad_out]: [View<'a>; 3],
        [dq, dk, dv]: [View<'a>; 3],
        workspace: &'a Buffer,
    ) -> Self {
        Self {
            q,
            k,
            v,
            out,
            lse,
            grad_out,
            grad_lse: None,
            dq,
            dk,
            dv,
            dbias: None,
            dsinks: None,
            dslopes: None,
            bias: None,
            mask: None,
            lengths: Lengths::Full,
            causal_offsets: &[],
            alibi_slopes: &[],
            sinks: &[],
            workspace: Some(workspace),
        }
    }
}

/// The operands of a call, all checked.
#[derive(Debug)]
pub(crate) struct CheckedBackward<'a> {
    pub(crate) q: Resolved<'a>,
    pub(crate) k: Resolved<'a>,
    pub(crate) v: Resolved<'a>,
    pub(crate) out: Resolved<'a>,
    pub(crate) lse: Resolved<'a>,
    pub(crate) grad_out: Resolved<'a>,
    pub(crate) grad_lse: Option<Resolved<'a>>,
    pub(crate) dq: Resolved<'a>,
    pub(crate) dk: Resolved<'a>,
    pub(crate) dv: Resolved<'a>,
    pub(crate) dbias: Option<Resolved<'a>>,
    pub(crate) dsinks: Option<Resolved<'a>>,
    pub(crate) dslopes: Option<Resolved<'a>>,
    pub(crate) bias: Option<Resolved<'a>>,
    pub(crate) mask: Option<Resolved<'a>>,
    /// The records of all queries.
    pub(crate) rows: Option<Resolved<'a>>,
}

impl<'a> CheckedBackward<'a> {
    pub(crate) fn new(plan: &BackwardPlan, operands: &BackwardOperands<'a>) -> Result<Self, EncodeError> {
        let (backward, extent) = (&plan.backward, plan.extent);
        let attention = backward.attention();
        let options = attention.options();
        for (argument, planned, given) in [
            ("bias", options.bias, operands.bias.is_some()),
            ("mask", options.mask, operands.mask.is_some()),
            ("grad_lse", backward.has_lse_gradient(), operands.grad_lse.is_some()),
            ("dbias", backward.has_bias_gradient(), operands.dbias.is_some()),
            ("dsinks", backward.has_sinks_gradient(), operands.dsinks.is_some()),
            ("dslopes", backward.has_slopes_gradient(), operands.dslopes.is_some()),
        ] {
            present(argument, planned, given)?;
        }
        let heads = attention.heads();
        numbers("alibi_slopes", options.alibi, operands.alibi_slopes, heads.query())?;
        numbers("sinks", options.sinks, operands.sinks, heads.query())?;
        if !operands.causal_offsets.is_empty() && attention.causality() != Causal::TopLeft {
            return Err(EncodeError::Unused { argument: "causal_offsets" });
        }

        let batch = if extent.packed { 1 } else { u64::from(extent.batch) };
        let (queries, keys) = (u64::from(extent.queries), u64::from(extent.keys));
        let (query_heads, kv_heads) = (u64::from(heads.query()), u64::from(heads.key_value()));
        let (qk, value) = (u64::from(attention.head_dim().qk()), u64::from(attention.head_dim().value()));
        let group = u64::from(heads.group());
        // What the widest kernel loads; the others count the same memory by narrower units. Outputs are stored by vec4.
        let wide = plan.steps.iter().any(|step| step.key.access == Access::Vec8);
        let narrow = attention.access();
        let access = if wide { Access::Vec8 } else { narrow };
        let (q, kv, word) = (attention.q_storage(), attention.kv_storage(), (Storage::F32, Access::Any));
        let of_q = |name, view: &View<'a>, dim, access| {
            Resolved::new(name, view, [batch, query_heads, queries, dim], group, (q, access))
        };
        let of_kv = |name, view: &View<'a>, dim, access| {
            Resolved::new(name, view, [batch, kv_heads, keys, dim], 1, (kv, access))
        };
        let scores = |name, view: &Option<View<'a>>, columns| {
            let extent = [batch, query_heads, queries, columns];
            view.as_ref().map(|view| Resolved::new(name, view, extent, group, word)).transpose()
        };
        let per_head = |name, view: &Option<View<'a>>| {
            let extent = [1, query_heads, 1, 1];
            view.as_ref().map(|view| Resolved::new(name, view, extent, group, word)).transpose()
        };
        let numbers = u64::from(plan.record) * 4;
        let checked = Self {
            q: of_q("q", &operands.q, qk, access)?,
            k: of_kv("k", &operands.k, qk, access)?,
            v: of_kv("v", &operands.v, value, access)?,
            out: of_q("out", &operands.out, value, narrow)?,
            lse: Resolved::new("lse", &operands.lse, [batch, query_heads, queries, 1], group, word)?,
            grad_out: of_q("grad_out", &operands.grad_out, value, access)?,
            grad_lse: scores("grad_lse", &operands.grad_lse, 1)?,
            dq: of_q("dq", &operands.dq, qk, narrow)?,
            dk: of_kv("dk", &operands.dk, qk, narrow)?,
            dv: of_kv("dv", &operands.dv, value, narrow)?,
            dbias: scores("dbias", &operands.dbias, keys)?,
            dsinks: per_head("dsinks", &operands.dsinks)?,
            dslopes: per_head("dslopes", &operands.dslopes)?,
            bias: scores("bias", &operands.bias, keys)?,
            mask: scores("mask", &operands.mask, keys.div_ceil(32))?,
            rows: scratch(plan.workspace_bytes, operands.workspace)?
                .map(|buffer| Resolved::workspace(buffer, [batch, query_heads, queries, numbers], group)),
        };
        if let Some(mask) = checked.mask {
            mask.check_contiguous()?;
        }
        checked.check_written()?;
        Ok(checked)
    }

    /// What is written has no element twice and a buffer of its own.
    fn check_written(&self) -> Result<(), EncodeError> {
        // Batch entries and heads may share an entry of this one alone, which is written where there are none too.
        let dbias = self.dbias.as_ref().map(Resolved::own_entries);
        dbias.as_ref().map_or(Ok(()), Resolved::check_buffer)?;
        let written = [Some(self.dq), Some(self.dk), Some(self.dv), dbias, self.dsinks, self.dslopes, self.rows];
        let read = [
            Some(self.q),
            Some(self.k),
            Some(self.v),
            Some(self.out),
            Some(self.lse),
            Some(self.grad_out),
            self.grad_lse,
            self.bias,
            self.mask,
        ];
        let all: Vec<Resolved<'a>> = written.into_iter().chain(read).flatten().collect();
        for (at, written) in written.into_iter().flatten().enumerate() {
            written.check_written()?;
            if let Some(other) = all[at + 1..].iter().find(|other| other.buffer == written.buffer) {
                return Err(EncodeError::Aliased { written: written.name, other: other.name });
            }
        }
        Ok(())
    }
}
