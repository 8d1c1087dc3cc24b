//! The operands of one call, and the checks that they fit the plan.

use wattn_scheduler::shaders::{self, Access, ScoreView, Storage};
use wattn_scheduler::{Attention, CacheLayout, Causal, Extent, Lengths, Part};
use wgpu::{Buffer, BufferUsages};

use crate::error::EncodeError;
use crate::view::View;

/// The operands of one call of softmax attention. What the plan has no option for stays `None` or empty.
#[derive(Debug, Clone, Copy)]
pub struct Operands<'a> {
    /// Queries `[batch, heads, queries, head_dim]`.
    pub q: View<'a>,
    /// Keys `[batch, kv heads, keys, head_dim]`.
    pub k: View<'a>,
    /// Values `[batch, kv heads, keys, value_head_dim]`.
    pub v: View<'a>,
    /// The output `[batch, heads, queries, value_head_dim]`, in the storage of q.
    pub out: View<'a>,
    /// Log-sum-exp of each row [batch, heads, queries], f32, natural logarithm.
    pub lse: Option<View<'a>>,
    /// Additive bias [batch or 1, heads or 1, queries, keys], f32; -inf masks.
    pub bias: Option<View<'a>>,
    /// Mask [batch or 1, heads or 1, queries, keys], one bit a score, least bit first, rows padded to whole u32; set may attend.
    pub mask: Option<View<'a>>,
    /// How long the sequences are.
    pub lengths: Lengths<'a>,
    /// Offsets of a top-left causal mask: none (0), one for all, or one a batch entry.
    pub causal_offsets: &'a [i32],
    /// ALiBi slopes, one a query head.
    pub alibi_slopes: &'a [f32],
    /// Sinks, one a query head.
    pub sinks: &'a [f32],
}

impl<'a> Operands<'a> {
    /// Operands without options.
    #[must_use]
    pub fn new(q: View<'a>, k: View<'a>, v: View<'a>, out: View<'a>) -> Self {
        Self {
            q,
            k,
            v,
            out,
            lse: None,
            bias: None,
            mask: None,
            lengths: Lengths::Full,
            causal_offsets: &[],
            alibi_slopes: &[],
            sinks: &[],
        }
    }
}

/// A view resolved against the plan: checked, in elements, with its strides.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Resolved<'a> {
    pub(crate) name: &'static str,
    pub(crate) buffer: &'a Buffer,
    offset: u64,
    extent: [u64; 4],
    strides: [u64; 4],
    /// Heads of this tensor per key/value head.
    heads_per_kv: u64,
    element_bytes: u64,
    /// Elements that follow a row: the scale of 8-bit numbers.
    tail: u64,
    /// Elements that the kernel loads at once; what strides count in the kernel.
    unit: u64,
}

/// A binding of one part: the bytes that the part spans, and where its tensor lies in them.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Span {
    pub(crate) offset: u64,
    pub(crate) size: u64,
    pub(crate) view: shaders::View,
}

/// Elements that a kernel loads at once.
fn unit(access: Access, element_bytes: u64) -> u64 {
    match access {
        // 8-bit numbers: a word of four.
        _ if element_bytes == 1 => 4,
        Access::Vec4 => 4,
        Access::Vec8 => 8,
        // Pairs of 16 bits, else single elements.
        Access::Any => 4 / element_bytes,
    }
}

const AXES: [&str; 4] = ["batch", "head", "sequence", "dim"];

impl<'a> Resolved<'a> {
    pub(crate) fn new(
        name: &'static str,
        view: &View<'a>,
        extent: [u64; 4],
        heads_per_kv: u64,
        (storage, access): (Storage, Access),
    ) -> Result<Self, EncodeError> {
        let element_bytes = u64::from(storage.bytes());
        let strides = view.strides(extent);
        let tail = u64::from(storage.row_bytes(0)) / element_bytes;
        let found = Self {
            name,
            buffer: view.buffer,
            offset: view.offset,
            extent,
            strides,
            heads_per_kv,
            element_bytes,
            tail,
            unit: unit(access, element_bytes),
        };
        found.check_alignment()?;
        found.check_buffer()?;
        Ok(found)
    }

    /// Scratch memory as a tensor of f32, contiguous, counted in vec4.
    pub(crate) fn workspace(buffer: &'a Buffer, extent: [u64; 4], heads_per_kv: u64) -> Self {
        let [_, heads, rows, numbers] = extent;
        let strides = [heads * rows * numbers, rows * numbers, numbers, 1];
        Self { name: "workspace", buffer, offset: 0, extent, strides, heads_per_kv, element_bytes: 4, tail: 0, unit: 4 }
    }

    /// Whether its entries serve all batch entries or all heads, by a stride of 0; they are there where there are none of these too.
    pub(crate) fn is_shared(&self, axis: usize) -> bool {
        self.extent[axis] != 1 && self.strides[axis] == 0
    }

    /// The same without the batch entries and heads that share an entry: what is written once.
    pub(crate) fn own_entries(&self) -> Self {
        let own = |axis| if self.is_shared(axis) { 1 } else { self.extent[axis] };
        Self { extent: [own(0), own(1), self.extent[2], self.extent[3]], ..*self }
    }

    /// The same tensor for a kernel that loads it by narrower units.
    pub(crate) fn counted_by(&self, access: Access) -> Self {
        Self { unit: unit(access, self.element_bytes), ..*self }
    }

    fn check_alignment(&self) -> Result<(), EncodeError> {
        let refuse = |what, given, allowed| Err(EncodeError::Misaligned { argument: self.name, what, given, allowed });
        let multiple = match self.unit {
            4 => "a multiple of 4 is needed (plans with any_strides take any)",
            8 => "a multiple of 8 is needed (plans with any_strides take any)",
            _ => "an even number is needed in 16-bit storage",
        };
        if !self.offset.is_multiple_of(self.unit) {
            return refuse("its offset", self.offset, multiple);
        }
        for (axis, what) in ["the batch stride", "the head stride", "the sequence stride"].into_iter().enumerate() {
            if self.extent[axis] > 1 && !self.strides[axis].is_multiple_of(self.unit) {
                return refuse(what, self.strides[axis], multiple);
            }
        }
        if self.unit > 1 && self.strides[3] != 1 && self.extent[3] > 1 {
            let allowed = if self.unit >= 4 {
                "a contiguous dim is needed (plans with any_strides take any)"
            } else {
                "a contiguous dim is needed in 16-bit storage"
            };
            return refuse("the dim stride", self.strides[3], allowed);
        }
        Ok(())
    }

    pub(crate) fn check_buffer(&self) -> Result<(), EncodeError> {
        if !self.buffer.usage().contains(BufferUsages::STORAGE) {
            return Err(EncodeError::Usage { argument: self.name, given: self.buffer.usage() });
        }
        // Saturating: an offset near the end of 64 bits is too far, not an overflow.
        let end = if self.is_empty() { 0 } else { self.offset.saturating_add(self.last()).saturating_add(1) };
        let needed = end.saturating_mul(self.element_bytes);
        if needed > self.buffer.size() {
            return Err(EncodeError::TooSmall { argument: self.name, needed, available: self.buffer.size() });
        }
        Ok(())
    }

    /// Elements of a written view must not share memory: each stride must step over all that lies inside it.
    pub(crate) fn check_written(&self) -> Result<(), EncodeError> {
        if self.is_empty() {
            return Ok(());
        }
        let mut axes: Vec<usize> = (0..4).filter(|&axis| self.extent[axis] > 1).collect();
        axes.sort_by_key(|&axis| self.strides[axis]);
        let mut needed = 1;
        for axis in axes {
            let stride = self.strides[axis];
            if stride < needed {
                return Err(EncodeError::Overlapping { argument: self.name, axis: AXES[axis], stride, needed });
            }
            needed += stride * (self.extent[axis] - 1);
        }
        Ok(())
    }

    /// A row's words of a mask lie side by side.
    pub(crate) fn check_contiguous(&self) -> Result<(), EncodeError> {
        if self.strides[3] != 1 && self.extent[3] > 1 {
            let (given, allowed) = (self.strides[3], "1 is needed: a row's words are contiguous");
            return Err(EncodeError::Misaligned { argument: self.name, what: "the key stride", given, allowed });
        }
        Ok(())
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.extent.contains(&0)
    }

    /// The last element, from the offset; that of its row's scale where it has one.
    fn last(&self) -> u64 {
        self.extent.iter().zip(self.strides).map(|(n, stride)| (n - 1) * stride).sum::<u64>() + self.tail
    }

    /// The binding of all of it.
    pub(crate) fn whole_span(&self, alignment: u64, limit: u64) -> Result<Span, EncodeError> {
        let [batch, heads, ..] = self.extent;
        #[expect(clippy::cast_possible_truncation, reason = "extents are 32-bit numbers")]
        let part = Part { batch: 0..batch as u32, kv_heads: 0..(heads / self.heads_per_kv) as u32 };
        self.span(&part, alignment, limit)
    }

    /// The binding of one part.
    pub(crate) fn span(&self, part: &Part, alignment: u64, limit: u64) -> Result<Span, EncodeError> {
        let heads =
            u64::from(part.kv_heads.start) * self.heads_per_kv..u64::from(part.kv_heads.end) * self.heads_per_kv;
        let batch = u64::from(part.batch.start)..u64::from(part.batch.end);
        let skipped = batch.start * self.strides[0] + heads.start * self.strides[1];
        let within = Self {
            extent: [batch.end - batch.start, heads.end - heads.start, self.extent[2], self.extent[3]],
            ..*self
        };
        let start = (self.offset + skipped) * self.element_bytes;
        let end = start + (within.last() + 1) * self.element_bytes;
        let aligned = start / alignment * alignment;
        let size = (end - aligned).next_multiple_of(4);
        if size > limit {
            return Err(EncodeError::Binding { argument: self.name, needed: size, available: limit });
        }
        let unit_bytes = self.unit * self.element_bytes;
        // Kernels index from batch 0 and head 0, which may lie before the binding: offsets wrap.
        let offset = ((start - aligned) / unit_bytes).wrapping_sub(skipped / self.unit);
        let view = shaders::View {
            offset: low_word(offset),
            batch: low_word(self.strides[0] / self.unit),
            head: low_word(self.strides[1] / self.unit),
            seq: low_word(self.strides[2] / self.unit),
            dim: low_word(self.strides[3]),
        };
        Ok(Span { offset: aligned, size, view })
    }
}

impl Span {
    /// The first bytes of a buffer.
    pub(crate) fn whole(size: u64) -> Self {
        Self { offset: 0, size, view: shaders::View::default() }
    }

    /// The view of a bias or mask.
    pub(crate) fn scores(&self) -> ScoreView {
        let shaders::View { offset, batch, head, seq, dim } = self.view;
        ScoreView { offset, batch, head, query: seq, key: dim }
    }
}

#[expect(clippy::cast_possible_truncation, reason = "index arithmetic in kernels wraps at 32 bits; what is bound fits")]
fn low_word(x: u64) -> u32 {
    x as u32
}

/// The operands of a call, all checked.
#[derive(Debug)]
pub(crate) struct Checked<'a> {
    pub(crate) q: Resolved<'a>,
    pub(crate) k: Resolved<'a>,
    pub(crate) v: Resolved<'a>,
    pub(crate) out: Resolved<'a>,
    pub(crate) lse: Option<Resolved<'a>>,
    pub(crate) bias: Option<Resolved<'a>>,
    pub(crate) mask: Option<Resolved<'a>>,
}

impl<'a> Checked<'a> {
    /// Checks operands whose rows are loaded by `access`; keys and values lie in the pages of a cache where there is one.
    pub(crate) fn new(
        attention: &Attention,
        extent: Extent,
        access: Access,
        cache: Option<&CacheLayout>,
        operands: &Operands<'a>,
    ) -> Result<Self, EncodeError> {
        let options = attention.options();
        present("lse", options.lse, operands.lse.is_some())?;
        present("bias", options.bias, operands.bias.is_some())?;
        present("mask", options.mask, operands.mask.is_some())?;
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
        let q_form = (attention.q_storage(), access);
        let (k_storage, v_storage) =
            cache.map_or((attention.kv_storage(), attention.kv_storage()), |c| (c.k_storage(), c.v_storage()));
        let (places, key_rows) = cache.map_or((batch, keys), |c| (u64::from(c.pages()), u64::from(c.page())));
        // Outputs are stored by vec4.
        let out_form = (attention.q_storage(), if access == Access::Vec8 { Access::Vec4 } else { access });
        let word = (Storage::F32, Access::Any);
        let scores = |name, view: &View<'a>, columns| {
            Resolved::new(name, view, [batch, query_heads, queries, columns], group, word)
        };
        let checked = Self {
            q: Resolved::new("q", &operands.q, [batch, query_heads, queries, qk], group, q_form)?,
            k: Resolved::new("k", &operands.k, [places, kv_heads, key_rows, qk], 1, (k_storage, access))?,
            v: Resolved::new("v", &operands.v, [places, kv_heads, key_rows, value], 1, (v_storage, access))?,
            out: Resolved::new("out", &operands.out, [batch, query_heads, queries, value], group, out_form)?,
            lse: operands.lse.as_ref().map(|view| scores("lse", view, 1)).transpose()?,
            bias: operands.bias.as_ref().map(|view| scores("bias", view, keys)).transpose()?,
            mask: operands.mask.as_ref().map(|view| scores("mask", view, keys.div_ceil(32))).transpose()?,
        };
        if let Some(mask) = checked.mask {
            mask.check_contiguous()?;
        }
        checked.check_written()?;
        Ok(checked)
    }

    /// A buffer that is written beside the operands is none of theirs.
    pub(crate) fn check_apart(&self, written: &'static str, buffer: &Buffer) -> Result<(), EncodeError> {
        let all = [Some(self.out), self.lse, Some(self.q), Some(self.k), Some(self.v), self.bias, self.mask];
        match all.iter().flatten().find(|other| other.buffer == buffer) {
            Some(other) => Err(EncodeError::Aliased { written, other: other.name }),
            None => Ok(()),
        }
    }

    fn check_written(&self) -> Result<(), EncodeError> {
        let all = [Some(self.out), self.lse, Some(self.q), Some(self.k), Some(self.v), self.bias, self.mask];
        for (at, written) in all[..2].iter().enumerate() {
            let Some(written) = written else { continue };
            written.check_written()?;
            if let Some(other) = all[at + 1..].iter().flatten().find(|other| other.buffer == written.buffer) {
                return Err(EncodeError::Aliased { written: written.name, other: other.name });
            }
        }
        Ok(())
    }
}

pub(crate) fn present(argument: &'static str, planned: bool, given: bool) -> Result<(), EncodeError> {
    match (planned, given) {
        (true, false) => Err(EncodeError::Missing { argument }),
        (false, true) => Err(EncodeError::Unused { argument }),
        _ => Ok(()),
    }
}

pub(crate) fn numbers(argument: &'static str, planned: bool, given: &[f32], heads: u32) -> Result<(), EncodeError> {
    present(argument, planned, !given.is_empty())?;
    if planned && given.len() != heads as usize {
        return Err(EncodeError::Count { argument, given: given.len(), needed: heads as usize });
    }
    match given.iter().position(|x| !x.is_finite()) {
        Some(index) => Err(EncodeError::NotFinite { argument, index, value: given[index].to_string() }),
        None => Ok(()),
    }
}
