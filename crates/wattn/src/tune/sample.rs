//! Operands to try candidates on, and whether their results agree.

use wattn_scheduler::shaders::Storage;
use wattn_scheduler::{Attention, Based, Extent, Lengths, Lightning, Pass, Tokens};

use crate::engine::Engine;
use crate::error::{PlanError, RunError};
use crate::host::{
    HostLinear, HostOperands, HostScores, Loaded, LoadedBased, LoadedLinear, LoadedSoftmax, Results, Written,
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
        let Extent { batch, queries, keys, packed } = extent;
        Ok(Extent { batch: batch.min(2), queries: queries.min(67), keys: keys.min(131), packed })
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
        let (options, heads, dim) = (self.options(), self.heads(), self.head_dim());
        let batch = if extent.packed { 1 } else { extent.batch };
        let of = |heads: u32, rows: u32, dim: u32, seed| numbers(&[batch, heads, rows, dim], seed);
        let q = of(heads.query(), extent.queries, dim.qk(), 1);
        let k = of(heads.key_value(), extent.keys, dim.qk(), 2);
        let v = of(heads.key_value(), extent.keys, dim.value(), 3);
        let square = [extent.queries, extent.keys];
        let bias = if options.bias { numbers(&square, 4) } else { Vec::new() };
        let mask: Vec<bool> =
            if options.mask { numbers(&square, 5).into_iter().map(|x| x > -0.5).collect() } else { Vec::new() };
        let (queries, keys) = (bounds(extent.batch, extent.queries), bounds(extent.batch, extent.keys));
        let by_head = |on: bool, seed| if on { numbers(&[heads.query()], seed) } else { Vec::new() };
        // Slopes are positive.
        let slopes: Vec<f32> = by_head(options.alibi, 6).into_iter().map(|x| (x + 1.0) / 8.0).collect();
        let host = HostOperands {
            q: &q,
            k: &k,
            v: &v,
            bias: options.bias.then_some(HostScores { values: &bias, per_batch: false, per_head: false }),
            mask: options.mask.then_some(HostScores { values: &mask, per_batch: false, per_head: false }),
            lengths: if extent.packed { Lengths::Packed { queries: &queries, keys: &keys } } else { Lengths::Full },
            alibi_slopes: &slopes,
            sinks: &by_head(options.sinks, 7),
            ..HostOperands::default()
        };
        then(&LoadedSoftmax::new(engine, self, extent, &host)?)
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
    let tokens: Vec<[Vec<f32>; 2]> =
        (0..2).map(|n| [numbers(&[features], 16 + 4 * seed + n), numbers(&[value], 18 + 4 * seed + n)]).collect();
    let rows = |key: &[f32]| -> Vec<f32> {
        let products = (0..key.len()).flat_map(|i| (i..key.len()).map(move |j| (i, j)));
        [1.0].into_iter().chain(key.iter().copied()).chain(products.map(|(i, j)| key[i] * key[j])).collect()
    };
    let mut state = Vec::new();
    for row in 0..rows(&tokens[0][0]).len() {
        for column in 0..=value as usize {
            let entry = |[key, v]: &[Vec<f32>; 2]| rows(key)[row] * v.get(column).copied().unwrap_or(1.0);
            state.push(tokens.iter().map(entry).sum());
        }
    }
    state
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

/// Whether results are those that are expected, as far as two right kernels agree; or the first that is not.
pub(super) fn agree(got: &Results, expected: &Results, written: &[&Written]) -> Result<(), String> {
    for output in written {
        let name = output.argument();
        let (got, expected) = (got.get(name), expected.get(name));
        let (mut difference, mut norm) = (0.0, 0.0);
        for (ix, (&x, &want)) in got.iter().zip(expected).enumerate() {
            // Rows that see no key have a log-sum-exp of -inf.
            if x != want || x.is_nan() {
                if !x.is_finite() || !want.is_finite() {
                    return Err(format!("{name}: element {ix} is {x} instead of {want}"));
                }
                difference += (f64::from(x) - f64::from(want)).powi(2);
            }
            norm += if want.is_finite() { f64::from(want).powi(2) } else { 0.0 };
        }
        // Twice what tests allow a kernel, since both may be off.
        let tolerance = match output.storage() {
            Storage::F32 | Storage::Int8 => 1e-5,
            Storage::F16 => 2e-3,
            Storage::Bf16 => 1.6e-2,
        };
        let ratio = (difference / norm.max(f64::MIN_POSITIVE)).sqrt();
        if got.len() != expected.len() || ratio > tolerance {
            return Err(format!("{name}: off by {ratio:.1e} of its norm, more than {tolerance:.1e}"));
        }
    }
    Ok(())
}
