//! Operands to try candidates on.

use wattn_scheduler::shaders::Storage;
use wattn_scheduler::{
    Attention, AttentionBackward, Based, CacheLayout, CacheStep, Causal, Decode, Extent, Lengths, Lightning, Pass,
    SequenceId, Tokens,
};

use crate::cache::KvCache;
use crate::engine::Engine;
use crate::error::{PlanError, RunError};
use crate::host::{
    HostIncoming, HostLinear, HostOperands, HostScores, Loaded, LoadedBackward, LoadedBased, LoadedDecode,
    LoadedLinear, LoadedSoftmax, upload,
};
use crate::operator::Operator;
use crate::view::View;

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

impl Sample for Decode {
    fn small(&self, extent: Extent) -> Result<Extent, PlanError> {
        let Extent { batch, queries, keys, packed } = extent;
        let few = batch.min(2);
        // Of packed sequences the extent says what all have. Keys are for some stretches.
        let all = |total: u32, most: u32| if packed { (total / batch.max(1)).min(most) * few } else { total.min(most) };
        Ok(Extent { batch: few, queries: all(queries, 67).max(queries.min(few)), keys: all(keys, 700), packed })
    }

    fn slices(_plan: &Self::Plan) -> u32 {
        1
    }

    fn loaded<'a>(
        &self,
        engine: &Engine,
        extent: Extent,
        plans: impl Iterator<Item = &'a Self::Plan>,
        then: &mut Then<'_, Self::Plan>,
    ) -> Result<(), RunError> {
        let plans: Vec<_> = plans.collect();
        let workspace = plans.iter().map(|plan| plan.workspace_bytes()).max().unwrap_or(0);
        let attention = self.attention();
        if let Some(&layout) = self.cache() {
            let (cache, step) = filled(engine, self, layout, extent)?;
            let works = plans.iter().map(|plan| plan.work_of(&step)).collect::<Result<_, _>>()?;
            // No keys but those of the cache.
            let extent = Extent { queries: step.new_tokens(), keys: 0, ..extent };
            let square = Square::new(attention, extent);
            let host = square.host();
            return then(&LoadedDecode::new(engine, attention, extent, &host, Some(&cache), works, workspace)?);
        }
        let square = Square::new(attention, extent);
        let host = square.host();
        let [_, queries, keys] = self.typical(extent);
        // The last query is the last token, as with the other diagonal.
        let offset = i32::try_from(i64::from(keys) - i64::from(queries)).unwrap_or(i32::MAX);
        let offsets = if attention.causality() == Causal::TopLeft { vec![offset] } else { Vec::new() };
        let works = plans.iter().map(|plan| plan.work(host.lengths, &offsets)).collect::<Result<_, _>>()?;
        then(&LoadedDecode::new(engine, attention, extent, &host, None, works, workspace)?)
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
        let host = HostLinear { state0: &state, gate: &gate, ..rows.host() };
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
        let host = HostLinear { state0: &state, ..rows.host() };
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

/// Tokens that a cache is filled with at a time: no whole pages, so that neighbouring sequences have numbers of their own.
const FILLED: u32 = 1021;

/// A cache with the sequences of a typical call, and the step of it that makes room for their last tokens. In a cascade half of what the
/// first one has is shared by all.
fn filled(
    engine: &Engine,
    decode: &Decode,
    layout: CacheLayout,
    extent: Extent,
) -> Result<(KvCache, CacheStep), RunError> {
    let [sequences, new, tokens] = decode.typical(extent);
    let mut cache = KvCache::new(engine, layout.layers(1))?;
    // What is appended begins within the first ones, and is the last tokens of all sequences at once too.
    let count = FILLED + FILLED.max(sequences * new);
    let rows = [(layout.dims().qk(), 2), (layout.dims().value(), 3)].map(|(dim, seed)| {
        let values = numbers(&[count, layout.kv_heads(), dim], seed);
        (u64::from(layout.kv_heads() * dim), upload(engine, "rows", bytemuck::cast_slice(&values)))
    });
    let [(k_row, k), (v_row, v)] = rows;
    let (k, v) = (k?, v?);
    let mut begins = (0..FILLED).cycle().step_by(97);
    // Each piece is a submission, since drivers end those that take long.
    let mut extend = |cache: &mut KvCache, new: &[(SequenceId, u32)]| -> Result<CacheStep, RunError> {
        let mut encoder = engine.device().create_command_encoder(&wgpu::CommandEncoderDescriptor::default());
        let step = cache.extend(&mut encoder, new)?;
        let begin = u64::from(begins.next().unwrap_or(0));
        let (k, v) = (View::bshd(&k).at(begin * k_row), View::bshd(&v).at(begin * v_row));
        cache.append(&mut encoder, &step, 0, k, v, Storage::F32)?;
        engine.queue().submit([encoder.finish()]);
        Ok(step)
    };
    let shared = if decode.is_cascade() { tokens / 2 / layout.page() * layout.page() } else { 0 };
    let mut ids: Vec<SequenceId> = Vec::new();
    for _ in 0..sequences {
        let id = match ids.first() {
            Some(&first) if shared > 0 => {
                let id = cache.fork(first)?;
                cache.truncate(id, shared)?;
                id
            }
            _ => cache.create(),
        };
        while let left @ 1.. = tokens - new - cache.pages().tokens(id)? {
            extend(&mut cache, &[(id, left.min(FILLED))])?;
        }
        ids.push(id);
    }
    let last: Vec<_> = ids.into_iter().map(|id| (id, new)).collect();
    let step = extend(&mut cache, &last)?;
    Ok((cache, step))
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
pub(super) fn numbers(shape: &[u32], seed: u32) -> Vec<f32> {
    let count: usize = shape.iter().map(|&n| n as usize).product();
    let scattered = |n: u32| {
        let x = (n ^ seed.wrapping_mul(0x9e37_79b1)).wrapping_mul(0x85eb_ca6b);
        (x ^ (x >> 13)).wrapping_mul(0xc2b2_ae35) >> 25
    };
    #[expect(clippy::cast_precision_loss, reason = "seven bits")]
    (0..).take(count).map(|n: u32| scattered(n) as f32 / 64.0 - 1.0).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_state_has_the_rows_of_its_features_and_a_column_for_the_sum_of_weights() {
        let state = moments([2, 1], 0);
        assert_eq!(state.len(), 6 * 2);
        let keys = [numbers(&[2], 16), numbers(&[2], 17)];
        assert_eq!(state[1], 2.0, "two keys of weight 1");
        assert_eq!(state[2 * 4 + 1], keys.iter().map(|key| key[0] * key[1]).sum::<f32>());
    }
}
