//! The backward pass of softmax attention beyond single cases: determinism, slices, parts, views, refusals, plain devices.

use std::fmt::Display;
use std::sync::Arc;

use anyhow::{Context, Result, bail, ensure};
use libtest_mimic::Trial;
use wattn::wgpu::{Buffer, CommandEncoderDescriptor, ComputePassDescriptor, Features, Limits};
use wattn::{Attention, BackwardOperands, BackwardPlan, Capabilities, Engine, Extent, HeadDim, Heads, Kernel, View};
use wattn_cases::{Bias, Recipe, Rows, Spread, catalogue};
use wattn_tests::{BackwardRun, Loaded, Variant, attention, extent, judge_all};

use crate::gpu::{Gpu, download, poisoned, upload};
use crate::linear_calls::submit;

/// Head dim of the calls that are made here.
const DIM: usize = 64;

pub(crate) fn trials(gpu: &Arc<Gpu>) -> Vec<Trial> {
    type Body = fn(&Gpu) -> Result<()>;
    let bodies: [(&str, Body); 6] = [
        ("webgpu_defaults", webgpu_defaults),
        ("small_bindings_add_up", small_bindings_add_up),
        ("slices_are_the_whole", slices_are_the_whole),
        ("views_of_any_strides", views_of_any_strides),
        ("plans_are_refused", plans_are_refused),
        ("operands_are_refused", operands_are_refused),
    ];
    let mut trials: Vec<Trial> =
        bodies.into_iter().map(|(name, body)| gpu.trial(&format!("backward/{name}"), body)).collect();
    for variant in gpu.variants() {
        trials.push(gpu.trial_by(variant, "backward/same_bits_each_time", refusal_of_gradients, same_bits_each_time));
    }
    trials
}

fn named(name: &str) -> Result<Recipe> {
    catalogue().into_iter().find(|recipe| recipe.name == name).with_context(|| format!("no case {name}"))
}

fn bits(values: &[f32]) -> Vec<u32> {
    values.iter().map(|x| x.to_bits()).collect()
}

fn refusal_of_gradients(variant: Variant, device: &Capabilities) -> Result<Option<String>> {
    variant.refusal(device, &named("softmax/backward_every_option")?.build())
}

/// Twenty runs give the same bits in every gradient, also those that are sums over heads and batch entries.
fn same_bits_each_time(gpu: &Gpu, variant: Variant) -> Result<()> {
    let case = named("softmax/backward_every_option")?.build();
    let reference = case.reference(Rows::All);
    let loaded = Loaded::new(&gpu.engine, &case);
    loaded.run(&gpu.engine, &gpu.engine.plan(&attention(&case)?, extent(&case)?)?)?;
    let run = BackwardRun::new(&gpu.engine, loaded, Some(variant), &reference)?;
    let mut first = Vec::new();
    for turn in 0..20 {
        run.submit()?;
        let names = reference.gradients.keys();
        let got = names.map(|name| Ok(bits(&run.output(name)?))).collect::<Result<Vec<_>>>()?;
        if turn == 0 {
            ensure!(got.len() == 6 && got.iter().all(|values| !values.is_empty()), "not all gradients");
            first = got;
        } else {
            ensure!(got == first, "run {turn} has other bits");
        }
    }
    Ok(())
}

/// No optional feature and no limit beyond the defaults: the universal kernel serves.
fn webgpu_defaults(gpu: &Gpu) -> Result<()> {
    let engine = gpu.device(Features::empty(), Limits::default())?;
    let case = named("softmax/backward_every_option")?.build();
    let (_, comparisons) = judge_all(&engine, &case, None, Rows::All)?;
    let plan = engine.plan(&attention(&case)?.backward(), extent(&case)?)?;
    let kernel = plan.details().kernel;
    ensure!(kernel == Kernel::TileUniversal, "{kernel} was chosen");
    ensure!(comparisons.len() == 8, "{} outputs", comparisons.len());
    comparisons.iter().try_for_each(|comparison| gpu.check(comparison))
}

/// Where bindings hold two heads of one batch entry, what all share is summed over four parts.
fn small_bindings_add_up(gpu: &Gpu) -> Result<()> {
    let engine = gpu.limited(|limits| limits.max_storage_buffer_binding_size = 16 << 10)?;
    let recipe = Recipe {
        name: "softmax/backward_parts",
        batch: 2,
        heads: 4,
        kv_heads: 4,
        queries: 40,
        keys: 33,
        head_dim: 32,
        value_dim: 32,
        bias: Some((Bias::Normal, Spread::Shared)),
        alibi: true,
        sinks: true,
        backward: true,
        ..Recipe::default()
    };
    let case = recipe.build();
    let (_, comparisons) = judge_all(&engine, &case, None, Rows::All)?;
    let plan = engine.plan(&attention(&case)?.backward(), extent(&case)?)?;
    ensure!(plan.details().parts.len() == 4, "{} parts", plan.details().parts.len());
    comparisons.iter().try_for_each(|comparison| gpu.check(comparison))
}

/// A call with numbers that need not be those of a forward pass: what comes out is compared with what else comes out.
struct Call {
    inputs: [Buffer; 6],
    results: [Buffer; 3],
    workspace: Buffer,
}

impl Call {
    /// Of `heads` heads of 64, one batch entry.
    fn new(engine: &Engine, plan: &BackwardPlan, [heads, queries, keys]: [usize; 3]) -> Result<Self> {
        #[expect(clippy::cast_precision_loss, reason = "an argument of a sine")]
        let wave = |tokens: usize, step: f32| -> Vec<f32> {
            (0..heads * tokens * DIM).map(|n| (n as f32 * step).sin()).collect()
        };
        let [q, out, grad] = [0.37, 0.11, 0.73].map(|step| upload(engine, &wave(queries, step)));
        let [k, v] = [0.53, 0.29].map(|step| upload(engine, &wave(keys, step)));
        let lse = upload(engine, &vec![8.0; heads * queries]);
        let workspace = poisoned(engine, usize::try_from(plan.workspace_bytes() / 4)?);
        let call = Self { inputs: [q, k, v, out, lse, grad], results: [&workspace; 3].map(Buffer::clone), workspace };
        Ok(call.with_results(engine, [queries, keys, keys].map(|tokens| heads * tokens * DIM)))
    }

    /// The same with other buffers to write.
    fn with_results(&self, engine: &Engine, sizes: [usize; 3]) -> Self {
        let results = sizes.map(|size| poisoned(engine, size));
        Self { inputs: self.inputs.clone(), results, workspace: self.workspace.clone() }
    }

    fn operands(&self) -> BackwardOperands<'_> {
        let [q, k, v, out, lse, grad] = &self.inputs;
        let [dq, dk, dv] = &self.results;
        BackwardOperands::new(
            [q, k, v].map(View::bhsd),
            [out, lse, grad].map(View::bhsd),
            [dq, dk, dv].map(View::bhsd),
            &self.workspace,
        )
    }

    fn read(&self, engine: &Engine) -> Result<Vec<Vec<u32>>> {
        let read = |buffer| {
            let values = download(engine, buffer)?;
            ensure!(values.iter().all(|x| x.is_finite()), "an element was not written");
            Ok(bits(&values))
        };
        self.results.iter().map(read).collect()
    }
}

/// A long call in slices gives the bits of one call in a pass of the caller's.
fn slices_are_the_whole(gpu: &Gpu) -> Result<()> {
    let engine = &gpu.engine;
    let [heads, queries, keys] = [8, 1500, 2500];
    let backward = Attention::new(Heads::new(heads)?, HeadDim::new(64)?).backward();
    let plan = engine.plan(&backward, Extent::new(1, queries, keys))?;
    if plan.details().slices == 1 {
        // A device that is not expected to take half a second.
        ensure!(plan.slices() == 1, "{} slices of a short call", plan.slices());
        return Ok(());
    }
    ensure!(plan.slices() >= 4, "{} slices", plan.slices());
    let sizes = [heads, queries, keys].map(|n| n as usize);
    let whole = Call::new(engine, &plan, sizes)?;
    submit(engine, |encoder| {
        let mut pass = encoder.begin_compute_pass(&ComputePassDescriptor::default());
        Ok(plan.encode_in_pass(&mut pass, &whole.operands())?)
    })?;
    let [heads, queries, keys] = sizes;
    let sliced = whole.with_results(engine, [queries, keys, keys].map(|tokens| heads * tokens * DIM));
    for slice in 0..plan.slices() {
        submit(engine, |encoder| Ok(plan.encode_slice(encoder, &sliced.operands(), slice)?))?;
    }
    ensure!(whole.read(engine)? == sliced.read(engine)?, "other bits");
    Ok(())
}

/// Rows far apart and dims that are not contiguous: the same numbers at other places.
fn views_of_any_strides(gpu: &Gpu) -> Result<()> {
    let engine = &gpu.engine;
    let [queries, keys] = [20_u32, 33];
    let backward = Attention::new(Heads::new(1)?, HeadDim::new(64)?).causal().any_strides().backward();
    let plan = engine.plan(&backward, Extent::new(1, queries, keys))?;
    let sizes = [1, queries as usize, keys as usize];
    let near = Call::new(engine, &plan, sizes)?;
    submit(engine, |encoder| Ok(plan.encode(encoder, &near.operands())?))?;
    let (queries, keys) = (sizes[1], sizes[2]);
    let far = near.with_results(engine, [3 + queries * 70, 5 + DIM * keys, 1 + keys * 65]);
    // dq with a gap after each row, dk transposed, dv with an odd stride.
    let [dq, dk, dv] = &far.results;
    let operands = BackwardOperands {
        dq: View::strided(dq, [0, 0, 70, 1]).at(3),
        dk: View::strided(dk, [0, 0, 1, u32::try_from(keys)?]).at(5),
        dv: View::strided(dv, [0, 0, 65, 1]).at(1),
        ..far.operands()
    };
    submit(engine, |encoder| Ok(plan.encode(encoder, &operands)?))?;
    let near = near.read(engine)?;
    let far = far.results.iter().map(|buffer| download(engine, buffer)).collect::<Result<Vec<_>>>()?;
    type Place = fn(usize, usize, usize) -> usize;
    let places: [(usize, Place); 3] =
        [(queries, |n, d, _| 3 + n * 70 + d), (keys, |n, d, keys| 5 + n + d * keys), (keys, |n, d, _| 1 + n * 65 + d)];
    for (index, (rows, place)) in places.into_iter().enumerate() {
        for n in 0..rows {
            for d in 0..DIM {
                let (want, got) = (near[index][n * DIM + d], far[index][place(n, d, keys)].to_bits());
                ensure!(want == got, "result {index}, row {n}, element {d}");
            }
        }
    }
    Ok(())
}

fn refused<T>(result: Result<T, impl Display>, needed: &[&str]) -> Result<()> {
    let message = match result {
        Ok(_) => bail!("accepted, {needed:?} was expected"),
        Err(error) => error.to_string(),
    };
    for part in needed {
        ensure!(message.contains(part), "{message:?} does not contain {part:?}");
    }
    Ok(())
}

fn plans_are_refused(gpu: &Gpu) -> Result<()> {
    let engine = &gpu.engine;
    let plain = Attention::new(Heads::new(2)?, HeadDim::new(64)?);
    let extent = Extent::new(1, 8, 8);
    refused(engine.plan(&plain.backward().bias_gradient(), extent), &["bias_gradient", "a bias"])?;
    refused(engine.plan(&plain.backward().sinks_gradient(), extent), &["sinks_gradient", "sinks"])?;
    refused(engine.plan(&plain.backward().slopes_gradient(), extent), &["slopes_gradient", "alibi"])?;
    refused(engine.plan(&plain.scale(f32::NAN).backward(), extent), &["scale", "NaN"])?;
    let packed = Extent::packed(2, 8, 8);
    refused(engine.plan(&plain.bias().backward().bias_gradient(), packed), &["packed sequences", "bias"])?;
    let wide = Attention::new(Heads::new(2)?, HeadDim::with_value(64, 160)?).kernel(Kernel::Broadcast);
    if engine.plan(&plain.kernel(Kernel::Broadcast), extent).is_ok() {
        refused(engine.plan(&wide.backward(), extent), &["broadcast", "value dim 160", "128"])?;
    }
    // Rows in registers bind 8, tiles 7.
    let few = gpu.limited(|limits| limits.max_storage_buffers_per_shader_stage = 6)?;
    refused(few.plan(&plain.backward(), extent), &["storage buffers", "6", "max_storage_buffers_per_shader_stage"])
}

fn operands_are_refused(gpu: &Gpu) -> Result<()> {
    let engine = &gpu.engine;
    let backward = Attention::new(Heads::new(2)?, HeadDim::new(64)?).sinks().bias().backward();
    let extent = Extent::new(1, 20, 33);
    let plan = engine.plan(&backward.sinks_gradient().bias_gradient().lse_gradient(), extent)?;
    let call = Call::new(engine, &plan, [2, 20, 33])?;
    let [bias, dbias, dsinks, dlse] = [2 * 20 * 33, 2 * 20 * 33, 2, 40].map(|n| poisoned(engine, n));
    let whole = BackwardOperands {
        bias: Some(View::bhsd(&bias)),
        dbias: Some(View::bhsd(&dbias)),
        dsinks: Some(View::bhsd(&dsinks)),
        grad_lse: Some(View::bhsd(&dlse)),
        sinks: &[0.0, 1.0],
        ..call.operands()
    };
    let encode = |change: &dyn Fn(&mut BackwardOperands<'_>)| {
        let mut operands = whole;
        change(&mut operands);
        let mut encoder = engine.device().create_command_encoder(&CommandEncoderDescriptor::default());
        plan.encode(&mut encoder, &operands)
    };
    ensure!(encode(&|_| ()).is_ok(), "the whole is refused");
    let short = poisoned(engine, 10);
    refused(encode(&|o| o.dbias = None), &["dbias", "missing"])?;
    refused(encode(&|o| o.dsinks = None), &["dsinks", "missing"])?;
    refused(encode(&|o| o.grad_lse = None), &["grad_lse", "missing"])?;
    refused(encode(&|o| o.dslopes = o.dsinks), &["dslopes", "does not have this option"])?;
    refused(encode(&|o| o.workspace = None), &["workspace", "missing"])?;
    refused(encode(&|o| o.sinks = &[1.0]), &["sinks", "1 given, 2 needed"])?;
    refused(encode(&|o| o.dq = o.q), &["dq and q are in the same buffer"])?;
    refused(encode(&|o| o.dk = o.dv), &["dk and dv are in the same buffer"])?;
    refused(encode(&|o| o.dv = o.dv.at(4)), &["dv", "ends at byte"])?;
    refused(encode(&|o| o.lse = o.lse.at(1)), &["lse", "ends at byte"])?;
    let mut operands = whole;
    operands.workspace = Some(&short);
    let mut encoder = engine.device().create_command_encoder(&CommandEncoderDescriptor::default());
    refused(plan.encode(&mut encoder, &operands), &["workspace", "the buffer has 40"])?;
    operands = whole;
    operands.dq = View::strided(&call.results[0], [0, 64, 64, 1]);
    refused(plan.encode(&mut encoder, &operands), &["dq", "writes would overlap"])?;
    // Heads may share an entry of dbias, and of nothing else.
    operands.dq = View::strided(&call.results[0], [0, 0, 64, 1]);
    refused(plan.encode(&mut encoder, &operands), &["dq", "writes would overlap"])?;
    operands = whole;
    operands.dsinks = Some(View::strided(&dsinks, [0; 4]));
    refused(plan.encode(&mut encoder, &operands), &["dsinks", "writes would overlap"])?;
    operands = whole;
    // A gradient that repeats along its queries has no meaning here: entries are shared by batch entries or heads alone.
    operands.dbias = Some(View::strided(&dbias, [0, 0, 0, 1]));
    refused(plan.encode(&mut encoder, &operands), &["dbias", "writes would overlap"])
}
