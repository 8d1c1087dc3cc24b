//! Runs a case of softmax attention on a device.

use anyhow::Result;
use wattn::wgpu::{self, Buffer};
use wattn::{Attention, Engine, Lengths, Operands, Plan, View, mask_words};
use wattn_cases::{Comparison, Layout, Reference, Rows, SoftmaxCase, Tensor, compare};

use crate::backward::BackwardRun;
use crate::buffers::{GUARD, fenced, poisoned, read};
use crate::problem::{attention, extent};
use crate::variant::Variant;

/// A case's tensors on a device.
#[derive(Debug)]
pub struct Loaded<'a> {
    pub(crate) case: &'a SoftmaxCase,
    q: Buffer,
    k: Buffer,
    v: Buffer,
    out: Buffer,
    pub(crate) lse: Buffer,
    bias: Option<Buffer>,
    mask: Option<Buffer>,
}

/// What a device calculated.
#[derive(Debug, Clone)]
pub struct Outputs {
    /// In the case's layout.
    pub out: Vec<f32>,
    /// `[batch, heads, queries]`, packed `[heads, total]`.
    pub lse: Vec<f32>,
}

impl<'a> Loaded<'a> {
    /// Uploads a case.
    #[must_use]
    pub fn new(engine: &Engine, case: &'a SoftmaxCase) -> Self {
        let fenced = |label, bytes: &[u8]| fenced(engine, label, bytes);
        let poisoned = |label, bytes| poisoned(engine, label, bytes);
        let elements = |shape: Vec<usize>| shape.iter().product::<usize>();
        Self {
            case,
            q: fenced("q", &case.q.bytes()),
            k: fenced("k", &case.k.bytes()),
            v: fenced("v", &case.v.bytes()),
            out: poisoned("out", elements(case.out_shape()) * case.q.storage.size()),
            lse: poisoned("lse", elements(case.lse_shape()) * 4),
            bias: case.bias.as_ref().map(|bias| fenced("bias", &bias.bytes())),
            mask: case
                .mask
                .as_ref()
                .map(|mask| fenced("mask", bytemuck::cast_slice(&mask_words(&mask.values, mask.shape[3])))),
        }
    }

    /// The operands of the case.
    #[must_use]
    pub fn operands(&self) -> Operands<'_> {
        let case = self.case;
        let view = |buffer, tensor: &Tensor| self.rows(buffer, tensor.storage);
        let words = (GUARD / 4) as u64;
        let scores = |buffer, shape: &[usize]| self.scores(buffer, shape);
        let lengths = match (&case.kv_lens, &case.cu_seqlens) {
            (Some(keys), _) => Lengths::Keys(keys),
            (None, Some((queries, keys))) => Lengths::Packed { queries, keys },
            (None, None) => Lengths::Full,
        };
        Operands {
            lse: Some(View::bhsd(&self.lse).at(words)),
            bias: self.bias.as_ref().zip(case.bias.as_ref()).map(|(buffer, bias)| scores(buffer, &bias.shape)),
            mask: self.mask.as_ref().zip(case.mask.as_ref()).map(|(buffer, mask)| scores(buffer, &mask.shape)),
            lengths,
            causal_offsets: case.causal_offsets.as_deref().unwrap_or_default(),
            alibi_slopes: case.alibi_slopes.as_deref().unwrap_or_default(),
            sinks: case.sinks.as_deref().unwrap_or_default(),
            ..Operands::new(
                view(&self.q, &case.q),
                view(&self.k, &case.k),
                view(&self.v, &case.v),
                view(&self.out, &case.q),
            )
        }
    }

    /// The view of rows in the case's layout.
    pub(crate) fn rows<'b>(&self, buffer: &'b Buffer, storage: wattn_cases::Storage) -> View<'b> {
        let view = match self.case.layout {
            Layout::Bhsd => View::bhsd(buffer),
            Layout::Bshd | Layout::Packed => View::bshd(buffer),
        };
        view.at((GUARD / storage.size()) as u64)
    }

    /// The view of a bias, a mask or a gradient of these extents.
    pub(crate) fn scores<'b>(&self, buffer: &'b Buffer, shape: &[usize]) -> View<'b> {
        let dims = self.case.dims();
        View::scores(buffer, shape[0] == dims.batch, shape[1] == dims.heads).at((GUARD / 4) as u64)
    }

    /// Reads the outputs back.
    ///
    /// # Errors
    /// A device that fails, or a guard word that was overwritten.
    pub fn read(&self, engine: &Engine) -> Result<Outputs> {
        let tensor = |buffer, label, storage, shape: Vec<usize>| read(engine, buffer, label, storage, &shape);
        Ok(Outputs {
            out: tensor(&self.out, "out", self.case.q.storage, self.case.out_shape())?,
            lse: tensor(&self.lse, "lse", wattn_cases::Storage::F32, self.case.lse_shape())?,
        })
    }

    /// Encodes, submits, and reads back.
    ///
    /// # Errors
    /// A refused call or a device that fails.
    pub fn run(&self, engine: &Engine, plan: &Plan) -> Result<Outputs> {
        for slice in 0..plan.slices() {
            let mut encoder = engine.device().create_command_encoder(&wgpu::CommandEncoderDescriptor::default());
            plan.encode_slice(&mut encoder, &self.operands(), slice)?;
            engine.queue().submit([encoder.finish()]);
        }
        self.read(engine)
    }
}

/// Plans a case with `variant` forced, runs it, and compares with `reference`: one comparison an output, of the backward pass too where
/// the reference has gradients.
///
/// # Errors
/// A refused problem or a device that fails.
pub fn judge(
    engine: &Engine,
    case: &SoftmaxCase,
    variant: Option<Variant>,
    reference: &Reference,
) -> Result<(Plan, Vec<Comparison>)> {
    let operator: Attention = attention(case)?;
    let forced = variant.map_or(operator, |v| v.force(operator));
    let plan = engine.plan(&forced, extent(case)?)?;
    let loaded = Loaded::new(engine, case);
    let mut comparisons = loaded.run(engine, &plan)?.compare(case, reference).to_vec();
    if !reference.gradients.is_empty() {
        let backward = BackwardRun::new(engine, loaded, variant, reference)?;
        backward.submit()?;
        comparisons.extend(backward.compare(reference)?);
    }
    Ok((plan, comparisons))
}

/// As [`judge`], against the oracle on the given rows.
///
/// # Errors
/// As [`judge`].
pub fn judge_all(
    engine: &Engine,
    case: &SoftmaxCase,
    variant: Option<Variant>,
    rows: Rows,
) -> Result<(Plan, Vec<Comparison>)> {
    judge(engine, case, variant, &case.reference(rows))
}

impl Outputs {
    /// Compares both outputs of the forward pass with a reference.
    pub fn compare(&self, case: &SoftmaxCase, reference: &Reference) -> [Comparison; 2] {
        [
            compare("out", &self.out, &reference.out, &case.rules("out", reference)),
            compare("lse", &self.lse, &reference.lse, &case.rules("lse", reference)),
        ]
    }
}
