//! Operands to try candidates on, and whether their results agree.

use wattn_scheduler::shaders::Storage;
use wattn_scheduler::{Attention, AttentionBackward, Based, Extent, Lengths, Lightning, Pass, Tokens};

use crate::engine::Engine;
use crate::error::{PlanError, RunError};
use crate::host::{
    HostIncoming, HostLinear, HostOperands, HostScores, Loaded, LoadedBackward, LoadedBased, LoadedLinear,
    LoadedSoftmax, Results, Written,
};
use crate::operator::Operator;

/// What is done with operands on the device.
type Then<'a, P> = dyn FnMut(&dyn Loaded<P>) -> Result<(), RunError> + 'a;

/// An operator with operands to try it on.
pub trait Sample: Operator {
    /// A small extent like this one, of some tiles or segments.
    fn small(&self, extent: Self::Extent) -> Result<Self::Extent, PlanError>;

    /// Submissions of a plan.
    fn slices(plan: &Self::Plan) -> u32;

    /// Hands on operands of this extent that any of the plans may be run on.
    fn loaded<'a>(
        &self,
        engine: &Engine,
        extent: Self::Extent,
        plans: impl Iterator<Item = &'a Self::Plan>,
        then: &mut Then<'_, Self::Plan>,
    ) -> Result<(), RunError>
    where
        Self::Plan: 'a;
}

impl Sample for Attention {
    fn small(&self, extent: Extent) -> Result<Extent, PlanError> {
        Ok(small_square(extent))
    }

    fn slices(plan: &Self::Plan) -> u32 {
        plan.slices()
    }

    fn loaded<'a>(
        &self,
        engine: &Engine,
        extent: Extent,
        _plans: impl Iterator<Item = &'a Self::Plan>,
        then: &mut Then<'_, Self::Plan>,
    ) -> Result<(), RunError> {
        let square = Square::new(self, extent);
        then(&LoadedSoftmax::new(engine, self, extent, &square.host())?)
    }
}

impl Sample for AttentionBackward {
    fn small(&self, extent: Extent) -> Result<Extent, PlanError> {
        Ok(small_square(extent))
    }

    fn slices(plan: &Self::Plan) -> u32 {
        plan.slices()
    }

    fn loaded<'a>(
        &self,
        engine: &Engine,
        extent: Extent,
        plans: impl Iterator<Item = &'a Self::Plan>,
        then: &mut Then<'_, Self::Plan>,
    ) -> Result<(), RunError> {
        let workspace = plans.map(|plan| plan.workspace_bytes()).max().unwrap_or(0);
        let attention = self.attention();
        let square = Square::new(attention, extent);
        // All candidates read the same.
        let forward = engine.blocking().run(&attention.lse(), extent, &square.host())?;
        let (heads, batch) = (attention.heads().query(), if extent.packed { 1 } else { extent.batch });
        let grad_lse = if self.has_lse_gradient() { numbers(&[batch, heads, extent.queries], 9) } else { Vec::new() };
        let incoming = HostIncoming {
            grad_out: &numbers(&[batch, heads, extent.queries, attention.head_dim().value()], 8),
            grad_lse: &grad_lse,
            forward: Some(&forward),
        };
        then(&LoadedBackward::new(engine, self, extent, &square.host(), &incoming, workspace)?)
    }
}

impl Sample for Lightning {
    fn small(&self, extent: Tokens) -> Result<Tokens, PlanError> {
        small_tokens(self.pass(), extent)
    }

    fn slices(plan: &Self::Plan) -> u32 {
        plan.slices()
    }

    fn loaded<'a>(
        &self,
        engine: &Engine,
        extent: Tokens,
        plans: impl Iterator<Item = &'a Self::Plan>,
        then: &mut Then<'_, Self::Plan>,
    ) -> Result<(), RunError> {
        let plans: Vec<_> = plans.collect();
        let workspace = plans.iter().map(|plan| plan.workspace_bytes()).max().unwrap_or(0);
        let (heads, dims) = (self.heads(), [self.dims().qk(), self.dims().value()]);
        let rows = Rows::new(self.pass(), extent, heads, dims, self.has_final_state(), dims);
        let state = [extent.batch, heads, dims[0], dims[1]];
        let state = if self.has_initial_state() { numbers(&state, 4) } else { Vec::new() };
        let batch = if extent.packed { 1 } else { extent.batch };
        let gate = if self.is_gated() { numbers(&[batch, heads, extent.tokens], 5) } else { Vec::new() };
        // Log decays are at most 0.
        let gate: Vec<f32> = gate.into_iter().map(|x| (x - 1.0) / 16.0).collect();
        let host = HostLinear { state: &state, gate: &gate, ..rows.host() };
        plans.first().map_or(Ok(()), |plan| then(&LoadedLinear::new(engine, plan, &host, workspace)?))
    }
}

impl Sample for Based {
    fn small(&self, extent: Tokens) -> Result<Tokens, PlanError> {
        small_tokens(self.pass(), extent)
    }

    fn slices(plan: &Self::Plan) -> u32 {
        plan.slices()
    }

    fn loaded<'a>(
        &self,
        engine: &Engine,
        extent: Tokens,
        plans: impl Iterator<Item = &'a Self::Plan>,
        then: &mut Then<'_, Self::Plan>,
    ) -> Result<(), RunError> {
        let plans: Vec<_> = plans.collect();
        let workspace = plans.iter().map(|plan| plan.workspace_bytes()).max().unwrap_or(0);
        let (heads, dims) = (self.heads(), [self.dims().qk(), self.dims().value()]);
        let of_state = [self.state_rows(), dims[1] + 1];
        let rows = Rows::new(self.pass(), extent, heads, dims, self.has_final_state(), of_state);
        let items = if self.has_initial_state() { extent.batch * heads } else { 0 };
        let state: Vec<f32> = (0..items).flat_map(|item| moments(dims, item)).collect();
        let host = HostLinear { state: &state, ..rows.host() };
        plans.first().map_or(Ok(()), |plan| then(&LoadedBased::new(engine, plan, &host, workspace)?))
    }
}

/// What softmax attention reads.
struct Square {
    q: Vec<f32>,
    k: Vec<f32>,
    v: Vec<f32>,
    bias: Option<Vec<f32>>,
    mask: Option<Vec<bool>>,
    /// Of packed sequences, queries and keys.
    bounds: Option<[Vec<u32>; 2]>,
    slopes: Vec<f32>,
    sinks: Vec<f32>,
}

impl Square {
    fn new(attention: &Attention, extent: Extent) -> Self {
        let (options, heads, dim) = (attention.options(), attention.heads(), attention.head_dim());
        let batch = if extent.packed { 1 } else { extent.batch };
        let of = |heads: u32, rows: u32, dim: u32, seed| numbers(&[batch, heads, rows, dim], seed);
        let square = [extent.queries, extent.keys];
        let by_head = |on: bool, seed| if on { numbers(&[heads.query()], seed) } else { Vec::new() };
        Self {
            q: of(heads.query(), extent.queries, dim.qk(), 1),
            k: of(heads.key_value(), extent.keys, dim.qk(), 2),
            v: of(heads.key_value(), extent.keys, dim.value(), 3),
            bias: options.bias.then(|| numbers(&square, 4)),
            mask: options.mask.then(|| numbers(&square, 5).into_iter().map(|x| x > -0.5).collect()),
            bounds: extent.packed.then(|| [extent.queries, extent.keys].map(|total| bounds(extent.batch, total))),
            // Slopes are positive.
            slopes: by_head(options.alibi, 6).into_iter().map(|x| (x + 1.0) / 8.0).collect(),
            sinks: by_head(options.sinks, 7),
        }
    }

    fn host(&self) -> HostOperands<'_> {
        let Self { q, k, v, bias, mask, bounds, slopes, sinks } = self;
        HostOperands {
            q,
            k,
            v,
            bias: bias.as_ref().map(|values| HostScores { values, per_batch: false, per_head: false }),
            mask: mask.as_ref().map(|values| HostScores { values, per_batch: false, per_head: false }),
            lengths: bounds.as_ref().map_or(Lengths::Full, |[queries, keys]| Lengths::Packed { queries, keys }),
            alibi_slopes: slopes,
            sinks,
            ..HostOperands::default()
        }
    }
}

fn small_square(extent: Extent) -> Extent {
    let Extent { batch, queries, keys, packed } = extent;
    Extent { batch: batch.min(2), queries: queries.min(67), keys: keys.min(131), packed }
}

/// What Lightning and BASED read alike.
struct Rows {
    q: Vec<f32>,
    k: Vec<f32>,
    v: Vec<f32>,
    grad_out: Vec<f32>,
    grad_state: Vec<f32>,
    bounds: Vec<u32>,
}

impl Rows {
    fn new(
        pass: Pass,
        extent: Tokens,
        heads: u32,
        [qk, value]: [u32; 2],
        final_state: bool,
        [rows, columns]: [u32; 2],
    ) -> Self {
        let batch = if extent.packed { 1 } else { extent.batch };
        let of = |dim, seed| numbers(&[batch, heads, extent.tokens, dim], seed);
        let backward = pass == Pass::Backward;
        let state = [extent.batch, heads, rows, columns];
        Self {
            q: of(qk, 1),
            k: of(qk, 2),
            v: of(value, 3),
            grad_out: if backward { of(value, 6) } else { Vec::new() },
            grad_state: if backward && final_state { numbers(&state, 7) } else { Vec::new() },
            bounds: if extent.packed { bounds(extent.batch, extent.tokens) } else { Vec::new() },
        }
    }

    fn host(&self) -> HostLinear<'_> {
        let Self { q, k, v, grad_out, grad_state, bounds } = self;
        HostLinear { q, k, v, grad_out, grad_state, bounds, ..HostLinear::default() }
    }
}

/// The state that two keys leave: in its rows the features 1, each key's numbers and their products, times the values and 1.
fn moments([features, value]: [u32; 2], seed: u32) -> Vec<f32> {
    let rows = |key: &[f32]| -> Vec<f32> {
        let products = (0..key.len()).flat_map(|i| (i..key.len()).map(move |j| (i, j)));
        [1.0].into_iter().chain(key.iter().copied()).chain(products.map(|(i, j)| key[i] * key[j])).collect()
    };
    let token = |n| {
        let values = numbers(&[value], 18 + 4 * seed + n);
        (rows(&numbers(&[features], 16 + 4 * seed + n)), [values, vec![1.0]].concat())
    };
    let [first, second] = [token(0), token(1)];
    let row =
        |(a, b): (&f32, &f32)| -> Vec<f32> { first.1.iter().zip(&second.1).map(|(v, w)| a * v + b * w).collect() };
    first.0.iter().zip(&second.0).flat_map(row).collect()
}

fn small_tokens(pass: Pass, extent: Tokens) -> Result<Tokens, PlanError> {
    if matches!(pass, Pass::Step { .. }) {
        let (argument, given) = ("pass", "one step".to_owned());
        return Err(PlanError::Invalid { argument, given, allowed: "forward or backward, to be tuned".to_owned() });
    }
    Ok(Tokens { batch: extent.batch.min(2), tokens: extent.tokens.min(300), ..extent })
}

/// Where equal shares of a total begin and end.
fn bounds(sequences: u32, total: u32) -> Vec<u32> {
    let bound = |n: u32| u64::from(total) * u64::from(n) / u64::from(sequences.max(1));
    #[expect(clippy::cast_possible_truncation, reason = "at most the total")]
    (0..=sequences).map(|n| if n == sequences { total } else { bound(n) as u32 }).collect()
}

/// Scattered numbers from -1 to 1, in sixty-fourths, which every storage holds.
fn numbers(shape: &[u32], seed: u32) -> Vec<f32> {
    let count: usize = shape.iter().map(|&n| n as usize).product();
    let scattered = |n: u32| {
        let x = (n ^ seed.wrapping_mul(0x9e37_79b1)).wrapping_mul(0x85eb_ca6b);
        (x ^ (x >> 13)).wrapping_mul(0xc2b2_ae35) >> 25
    };
    #[expect(clippy::cast_precision_loss, reason = "seven bits")]
    (0..).take(count).map(|n: u32| scattered(n) as f32 / 64.0 - 1.0).collect()
}

/// An element may be off by this many times the tolerance times the largest: as far as tests allow, which is not twice that.
const ELEMENT_FACTOR: f64 = 32.0;

/// For the norm of a result that must be zero.
const ZERO: f64 = 1e-6;

/// Whether results are those that are expected, as far as two right kernels agree; or the first that is not.
pub(super) fn agree(got: &Results, expected: &Results, written: &[&Written]) -> Result<(), String> {
    written.iter().try_for_each(|output| {
        let name = output.argument();
        compare(output.storage(), got.get(name), expected.get(name)).map_err(|why| format!("{name}: {why}"))
    })
}

fn compare(storage: Storage, got: &[f32], expected: &[f32]) -> Result<(), String> {
    if got.len() != expected.len() {
        return Err(format!("{} elements instead of {}", got.len(), expected.len()));
    }
    let (mut difference, mut norm) = (0.0, 0.0);
    let (mut worst, mut largest) = ((0, 0.0), 0.0_f64);
    for (ix, (&x, &want)) in got.iter().zip(expected).enumerate() {
        // Rows that see no key have a log-sum-exp of -inf.
        if [x, want] == [f32::NEG_INFINITY; 2] {
            continue;
        }
        if !x.is_finite() || !want.is_finite() {
            return Err(format!("element {ix} is {x} instead of {want}"));
        }
        let (off, want) = ((f64::from(x) - f64::from(want)).abs(), f64::from(want));
        difference += off.powi(2);
        norm += want.powi(2);
        largest = largest.max(want.abs());
        if off > worst.1 {
            worst = (ix, off);
        }
    }
    if norm == 0.0 {
        let norm = difference.sqrt();
        return if norm > ZERO { Err(format!("off by {norm:.1e}, more than {ZERO:.1e}, from zero")) } else { Ok(()) };
    }
    // Twice what tests allow a kernel, since both may be off.
    let tolerance = match storage {
        Storage::F32 | Storage::Int8 => 1e-5,
        Storage::F16 => 2e-3,
        Storage::Bf16 => 1.6e-2,
    };
    let ratio = (difference / norm).sqrt();
    if ratio > tolerance {
        return Err(format!("off by {ratio:.1e} of its norm, more than {tolerance:.1e}"));
    }
    let ((ix, worst), allowed) = (worst, ELEMENT_FACTOR * tolerance * largest);
    if worst > allowed {
        return Err(format!("element {ix} is off by {worst:.1e}, more than {allowed:.1e}"));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn assert_wrong(storage: Storage, got: &[f32], expected: &[f32], needle: &str) {
        let why = compare(storage, got, expected).unwrap_err();
        assert!(why.contains(needle), "{why}");
    }

    #[test]
    fn norms_and_elements_are_compared() {
        let want = numbers(&[1_000_000], 1);
        let off = |by: f32| want.iter().map(|x| x * (1.0 + by)).collect::<Vec<_>>();
        compare(Storage::F32, &off(8e-6), &want).unwrap();
        assert_wrong(Storage::F32, &off(2e-5), &want, "of its norm");
        assert_wrong(Storage::F32, &want[1..], &want, "999999 elements");
        // Among so many that the norm does not notice.
        let mut got = want.clone();
        got[640..704].fill(0.0);
        assert_wrong(Storage::Bf16, &got, &want, "is off by");
    }

    #[test]
    fn only_negative_infinity_is_expected_beside_numbers() {
        compare(Storage::F32, &[1.0, f32::NEG_INFINITY], &[1.0, f32::NEG_INFINITY]).unwrap();
        for x in [f32::INFINITY, f32::NAN] {
            assert_wrong(Storage::F32, &[1.0, x], &[1.0, x], "element 1 is");
        }
        assert_wrong(Storage::F32, &[f32::MIN], &[f32::NEG_INFINITY], "instead of -inf");
        assert_wrong(Storage::F32, &[f32::NEG_INFINITY], &[1.0], "element 0 is -inf");
    }

    #[test]
    fn zeros_have_an_absolute_tolerance() {
        compare(Storage::F32, &[1e-7; 4], &[0.0; 4]).unwrap();
        assert_wrong(Storage::Bf16, &[0.0, 1e-5], &[0.0; 2], "from zero");
        compare(Storage::F32, &[], &[]).unwrap();
    }

    #[test]
    fn a_state_has_the_rows_of_its_features_and_a_column_for_the_sum_of_weights() {
        let state = moments([2, 1], 0);
        assert_eq!(state.len(), 6 * 2);
        let keys = [numbers(&[2], 16), numbers(&[2], 17)];
        assert_eq!(state[1], 2.0, "two keys of weight 1");
        assert_eq!(state[2 * 4 + 1], keys.iter().map(|key| key[0] * key[1]).sum::<f32>());
    }
}
