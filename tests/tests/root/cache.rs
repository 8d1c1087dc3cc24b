//! The cache of keys and values: what is attended to through its pages, against the oracle and against itself.

use std::sync::Arc;

use anyhow::{Context, Result, ensure};
use libtest_mimic::Trial;
use wattn::{
    Attention, CacheError, CacheLayout, Extent, HeadDim, Heads, Kernel, KvCache, Operands, RunError, SequenceId,
    Storage, View,
};
use wattn_tests::{DECODE_KERNELS, workspace};

use crate::gpu::{Gpu, download, poisoned};

pub(crate) mod model;

use model::{DIM, HEADS, KV_HEADS, MOST, Model, Source, Stepped, attention, layout, stored_for, trial};

pub(crate) fn trials(gpu: &Arc<Gpu>) -> Vec<Trial> {
    let mut trials = Vec::new();
    for kernel in DECODE_KERNELS {
        let mut add = |name: &str, run: fn(&Gpu, Kernel) -> Result<()>| {
            trials.push(trial(gpu, kernel, &format!("cache/{name}"), run));
        };
        add("paged_is_contiguous", paged_is_contiguous);
        add("batch_invariant", batch_invariant);
        add("random_operations", random_operations);
        add("storages", storages);
        add("window_is_a_ring", window_is_a_ring);
        add("cascade", cascade);
    }
    trials.push(gpu.trial("cache/export_after_growth", export_after_growth));
    trials.push(gpu.trial("cache/refusals", refusals));
    trials
}

fn bits(values: &[f32]) -> Vec<u32> {
    values.iter().map(|x| x.to_bits()).collect()
}

/// A prefill and decode steps over small pages, and over one page a sequence.
fn paged_is_contiguous(gpu: &Gpu, kernel: Kernel) -> Result<()> {
    let contiguous = CacheLayout::contiguous(2, HeadDim::new(32)?, 200, 2)?;
    let mut outs = Vec::new();
    for layout in [layout(16, 40)?, contiguous] {
        let mut model = Model::new(&gpu.engine, attention(kernel)?, stored_for(kernel, layout), 48)?;
        let (mut source, mut all) = (Source(7), Vec::new());
        let (one, other) = (model.create(), model.create());
        for new in [&[(one, 70), (other, 3)][..], &[(other, 1), (one, 1)], &[(one, 2)], &[(one, 1), (other, 60)]] {
            let stepped = model.step(&mut source, new)?;
            stepped.check(gpu)?;
            all.extend(bits(&stepped.out));
        }
        outs.push(all);
    }
    ensure!(outs[0] == outs[1], "pages change the bits");
    Ok(())
}

/// The same sequence alone, among 7 and among 32: the same bits.
fn batch_invariant(gpu: &Gpu, kernel: Kernel) -> Result<()> {
    let mut first: Option<Vec<u32>> = None;
    for others in [0_u32, 6, 31] {
        let mut model = Model::new(&gpu.engine, attention(kernel)?, stored_for(kernel, layout(16, 900)?), 64)?;
        let mut source = Source(11);
        let mut rows = |n: usize| {
            [source.numbers(n * HEADS * DIM), source.numbers(n * KV_HEADS * DIM), source.numbers(n * KV_HEADS * DIM)]
        };
        let (prefill, decode) = (rows(150), rows(1));
        let watched = model.create();
        let company: Vec<(SequenceId, u32)> = (0..others).map(|n| (model.create(), 1 + 37 * n % 331)).collect();
        let mut source = Source(u64::from(others) + 1);
        model.step_with(&[(watched, 150)], &[prefill])?;
        for chunk in company.chunks(2) {
            model.step(&mut source, chunk)?;
        }
        let mut new: Vec<(SequenceId, u32)> = company.iter().map(|&(id, _)| (id, 1)).collect();
        let place = new.len() / 2;
        new.insert(place, (watched, 1));
        let rows: Vec<_> = (0..new.len())
            .map(|n| {
                let kv = KV_HEADS * DIM;
                if n == place {
                    decode.clone()
                } else {
                    [source.numbers(HEADS * DIM), source.numbers(kv), source.numbers(kv)]
                }
            })
            .collect();
        let stepped = model.step_with(&new, &rows)?;
        stepped.check(gpu)?;
        let row = bits(&stepped.out[place * HEADS * DIM..(place + 1) * HEADS * DIM]);
        ensure!(first.get_or_insert_with(|| row.clone()) == &row, "{others} others change the bits");
    }
    Ok(())
}

/// Sequences are created, extended, forked, truncated and released; what they attend to is right all along, and no page is lost.
fn random_operations(gpu: &Gpu, kernel: Kernel) -> Result<()> {
    let mut model = Model::new(&gpu.engine, attention(kernel)?, stored_for(kernel, layout(16, 30)?), 32)?;
    let mut source = Source(3);
    let mut full = 0;
    for _ in 0..120 {
        let ids: Vec<SequenceId> = model.hosts.keys().copied().collect();
        let any =
            |source: &mut Source| ids.get(source.below(u32::try_from(ids.len().max(1)).unwrap_or(1)) as usize).copied();
        match source.below(8) {
            0 => {
                model.create();
            }
            1 => {
                if let Some(id) = any(&mut source) {
                    let fork = model.cache.fork(id)?;
                    let host = model.hosts[&id].clone();
                    model.hosts.insert(fork, host);
                }
            }
            2 => {
                if let Some(id) = any(&mut source) {
                    let tokens = source.below(model.cache.pages().tokens(id)? + 1);
                    model.cache.truncate(id, tokens)?;
                    let host = model.hosts.get_mut(&id).context("a sequence of the model")?;
                    host.k.truncate(tokens as usize * KV_HEADS * DIM);
                    host.v.truncate(tokens as usize * KV_HEADS * DIM);
                }
            }
            3 => {
                if let Some(id) = any(&mut source) {
                    model.cache.release(id)?;
                    model.hosts.remove(&id);
                }
            }
            _ => {
                let mut new: Vec<(SequenceId, u32)> = Vec::new();
                for _ in 0..=source.below(4) {
                    if let Some(id) = any(&mut source).filter(|id| new.iter().all(|(other, _)| other != id)) {
                        let most = if source.below(4) == 0 { 60 } else { 4 };
                        new.push((id, source.below(most)));
                    }
                }
                let free = model.cache.pages().free();
                match model.step(&mut source, &new) {
                    Ok(stepped) if stepped.out.is_empty() => {}
                    Ok(stepped) => stepped.check(gpu)?,
                    Err(error) if matches!(error.downcast_ref(), Some(CacheError::Full { .. })) => {
                        ensure!(model.cache.pages().free() == free, "a refusal has changed the cache");
                        full += 1;
                    }
                    Err(error) => return Err(error),
                }
            }
        }
    }
    ensure!(full > 0, "the test is meant to fill the cache");
    for id in model.hosts.keys() {
        model.cache.release(*id)?;
    }
    ensure!(model.cache.pages().free() == 30, "{} pages leaked", model.cache.pages().used());
    Ok(())
}

/// Other storage than f32, keys and values chosen apart: as the oracle has it with the numbers rounded so. The cache is full in the end.
fn storages(gpu: &Gpu, kernel: Kernel) -> Result<()> {
    for (k, v) in [(Storage::F16, Storage::F16), (Storage::Int8, Storage::Bf16), (Storage::Bf16, Storage::Int8)] {
        let model = Model::new(&gpu.engine, attention(kernel)?, layout(16, 4)?.storage(k, v), 32);
        if kernel == Kernel::Matrix && (k, v) != (Storage::F16, Storage::F16) {
            let error = model.map(drop).expect_err("matrices took what is not in f16").to_string();
            ensure!(error.contains("matrices take f16, k and v would be"), "{error}");
            continue;
        }
        let mut model = model?;
        let mut source = Source(5);
        let id = model.create();
        for new in [50, 1, 2, 11] {
            let stepped = model.step(&mut source, &[(id, new)])?;
            let mut case = stepped.case.clone();
            case.k.values = rounded(&case.k.values, k);
            case.v.values = rounded(&case.v.values, v);
            Stepped { case, out: stepped.out }.check(gpu).with_context(|| format!("k {k}, v {v}"))?;
        }
    }
    Ok(())
}

/// Numbers as a cache stores them, row by row.
fn rounded(values: &[f32], storage: Storage) -> Vec<f32> {
    let each = |to: wattn_cases::Storage| values.iter().map(|&x| to.round(x)).collect();
    match storage {
        Storage::F32 => values.to_vec(),
        Storage::F16 => each(wattn_cases::Storage::F16),
        Storage::Bf16 => each(wattn_cases::Storage::Bf16),
        Storage::Int8 => values
            .chunks(DIM)
            .flat_map(|row| {
                let top = row.iter().fold(0.0_f32, |top, x| top.max(x.abs()));
                let inverse = if top > 0.0 { 127.0 / top } else { 0.0 };
                row.iter().map(move |x| (x * inverse).round_ties_even() * (top / 127.0))
            })
            .collect(),
    }
}

/// Under a sliding window, a long sequence keeps to a few pages.
fn window_is_a_ring(gpu: &Gpu, kernel: Kernel) -> Result<()> {
    let keys = 40;
    let mut model = Model::new(&gpu.engine, attention(kernel)?.sliding(keys), stored_for(kernel, layout(16, 5)?), 32)?;
    let mut source = Source(13);
    model.window = [Some(keys - 1), Some(0)];
    let id = model.create();
    for n in 0..40 {
        let stepped = model.step(&mut source, &[(id, if n % 5 == 0 { 9 } else { 3 })])?;
        stepped.check(gpu)?;
        let tokens = model.cache.pages().tokens(id)?;
        // The next query sees itself and the keys before it.
        model.cache.evict(id, (tokens + 1).saturating_sub(keys))?;
    }
    ensure!(model.cache.pages().tokens(id)? > 2 * 5 * 16, "the test is meant to go round");
    // What is gone cannot be seen.
    model.cache.evict(id, model.cache.pages().tokens(id)?)?;
    let error = model.step(&mut source, &[(id, 1)]).map(drop).expect_err("evicted keys were attended to");
    ensure!(error.to_string().contains("were evicted"), "{error}");
    Ok(())
}

/// Sequences forked from one attend to what they share together: the same bits as one by one.
fn cascade(gpu: &Gpu, kernel: Kernel) -> Result<()> {
    let mut outs = Vec::new();
    for together in [false, true] {
        let layout = stored_for(kernel, layout(16, 60)?);
        let mut model = Model::new(&gpu.engine, attention(kernel)?, layout, 32)?;
        if together {
            let decode = model.attention.decode().split_keys(32).cached(layout).cascade();
            model.plan = gpu.engine.plan(&decode, MOST)?;
        }
        let (mut source, mut all) = (Source(19), Vec::new());
        let (parent, alone) = (model.create(), model.create());
        model.step(&mut source, &[(parent, 100), (alone, 50)])?;
        let mut ids = vec![alone];
        for _ in 0..5 {
            let fork = model.cache.fork(parent)?;
            let host = model.hosts[&parent].clone();
            model.hosts.insert(fork, host);
            ids.push(fork);
        }
        for new in [&[1, 3, 1, 2, 20, 1][..], &[1; 6], &[1, 2, 1, 1, 1, 0]] {
            let new: Vec<_> = ids.iter().copied().zip(new.iter().copied()).collect();
            let stepped = model.step(&mut source, &new)?;
            stepped.check(gpu)?;
            all.extend(bits(&stepped.out));
        }
        let mut encoder = gpu.engine.device().create_command_encoder(&wattn::wgpu::CommandEncoderDescriptor::default());
        let new: Vec<_> = ids.iter().map(|&id| (id, 1)).collect();
        let work = model.plan.work_of(&model.cache.extend(&mut encoder, &new)?)?;
        ensure!(work.prefixes == usize::from(together), "{work}");
        outs.push(all);
    }
    ensure!(outs[0] == outs[1], "sharing changes the bits");
    Ok(())
}

fn export_after_growth(gpu: &Gpu) -> Result<()> {
    let mut model = Model::new(&gpu.engine, attention(Kernel::TileUniversal)?, layout(16, 3)?, 32)?;
    let mut source = Source(17);
    let id = model.create();
    model.step(&mut source, &[(id, 45)])?.check(gpu)?;
    let error = model.step(&mut source, &[(id, 4)]).map(drop).expect_err("the test is meant to fill the cache");
    ensure!(matches!(error.downcast_ref(), Some(CacheError::Full { .. })), "{error}");
    let mut encoder = gpu.engine.device().create_command_encoder(&wattn::wgpu::CommandEncoderDescriptor::default());
    model.cache.grow(&mut encoder, 2)?;
    gpu.engine.queue().submit([encoder.finish()]);
    let error = model.step(&mut source, &[(id, 0)]).map(drop).expect_err("a plan of fewer pages reads the cache");
    ensure!(error.to_string().contains("as planned"), "{error}");
    let decode = model.attention.decode().split_keys(32).cached(*model.cache.layout());
    model.plan = gpu.engine.plan(&decode, MOST)?;
    model.step(&mut source, &[(id, 4)])?.check(gpu)?;

    let mut encoder = gpu.engine.device().create_command_encoder(&wattn::wgpu::CommandEncoderDescriptor::default());
    let [k, v] = [0, 1].map(|_| poisoned(&gpu.engine, 49 * KV_HEADS * DIM));
    let tokens = model.cache.export(&mut encoder, id, 0, &k, &v)?;
    gpu.engine.queue().submit([encoder.finish()]);
    ensure!(tokens == 49, "{tokens} tokens exported");
    let host = &model.hosts[&id];
    for (buffer, rows) in [(&k, &host.k), (&v, &host.v)] {
        let given = download(&gpu.engine, buffer)?;
        for head in 0..KV_HEADS {
            for token in 0..49 {
                let row = &rows[(token * KV_HEADS + head) * DIM..][..DIM];
                ensure!(&given[(head * 49 + token) * DIM..][..DIM] == row, "token {token} of head {head} differs");
            }
        }
    }
    Ok(())
}

fn refusals(gpu: &Gpu) -> Result<()> {
    let layout = layout(16, 4)?;
    let mut cache = KvCache::new(&gpu.engine, layout)?;
    let id = cache.create();
    let mut encoder = gpu.engine.device().create_command_encoder(&wattn::wgpu::CommandEncoderDescriptor::default());
    let says = |error: String, text: &str| {
        ensure!(error.contains(text), "{error:?} does not say {text:?}");
        Ok(())
    };
    let refused = |result: Result<_, CacheError>, text: &str| match result {
        Ok(()) => Err(anyhow::anyhow!("accepted: {text}")),
        Err(error) => says(error.to_string(), text),
    };
    refused(cache.extend(&mut encoder, &[(id, 65)]).map(drop), "5 needed, 4 free")?;
    refused(cache.extend(&mut encoder, &[(id, 1), (id, 1)]).map(drop), "twice")?;
    refused(cache.truncate(id, 1), "allowed are 0 to 0")?;
    refused(cache.evict(id, 1), "at most 0")?;
    let gone = cache.create();
    cache.release(gone)?;
    refused(cache.release(gone), "does not have it")?;
    says(cache.k(1).map(drop).unwrap_err().to_string(), "below 1")?;
    let huge = CacheLayout::new(64, HeadDim::new(512)?, 16, 1 << 24)?;
    match KvCache::new(&gpu.engine, huge) {
        Err(RunError::Plan(error)) => says(error.to_string(), "bytes of pages in one layer")?,
        other => ensure!(false, "{:?} for a cache beyond a binding", other.map(drop)),
    }
    says(CacheLayout::new(2, HeadDim::new(32)?, 24, 1).map(drop).unwrap_err().to_string(), "power of two from 16")?;
    says(CacheLayout::new(2, HeadDim::new(30)?, 16, 1).map(drop).unwrap_err().to_string(), "multiple of 4")?;
    let attention = attention(Kernel::TileUniversal)?;
    let other = Attention::new(Heads::grouped(4, 2)?, HeadDim::new(64)?).decode().cached(layout);
    says(gpu.engine.plan(&other, MOST).map(drop).unwrap_err().to_string(), "32, as of the cache")?;
    says(
        gpu.engine.plan(&attention.decode().cached(layout), Extent::new(1, 1, 64)).map(drop).unwrap_err().to_string(),
        "packed sequences",
    )?;
    let views = gpu.engine.plan(&attention.decode(), Extent::new(1, 1, 64))?;
    let step = cache.extend(&mut encoder, &[(id, 3)])?;
    let work = gpu.engine.plan(&attention.decode().cached(layout), MOST)?.work_of(&step)?;
    let other = KvCache::new(&gpu.engine, layout)?;
    let row = poisoned(&gpu.engine, 3 * KV_HEADS * DIM);
    let [k, v] = [View::bshd(&row), View::bshd(&row)];
    let error = cache.append(&mut encoder, &step, 0, k, v, Storage::Int8).unwrap_err().to_string();
    says(error, "the cache makes 8-bit numbers itself")?;
    cache.append(&mut encoder, &step, 0, k, v, Storage::F32)?;
    says(other.append(&mut encoder, &step, 0, k, v, Storage::F32).unwrap_err().to_string(), "of another cache")?;
    cache.truncate(id, 2)?;
    says(cache.append(&mut encoder, &step, 0, k, v, Storage::F32).unwrap_err().to_string(), "from before this one")?;
    let rows = poisoned(&gpu.engine, 64 * HEADS * DIM);
    let rows = View::bshd(&rows);
    let scratch = workspace(&gpu.engine, views.workspace_bytes());
    let encoded = views.encode(&mut encoder, &work, &Operands::new(rows, rows, rows, rows), &scratch);
    says(encoded.unwrap_err().to_string(), "made by another plan")?;
    says(views.work_of(&step).map(drop).unwrap_err().to_string(), "since the plan reads no cache")?;
    let shape = attention.shape(wattn::Shape::Tile(wattn_shaders::table::TILE_GPU)).decode();
    says(
        gpu.engine.plan(&shape, Extent::new(1, 1, 64)).map(drop).unwrap_err().to_string(),
        "rows follow from the group",
    )?;
    let int8 = attention.storage(Storage::Int8);
    says(gpu.engine.plan(&int8, Extent::new(1, 1, 64)).map(drop).unwrap_err().to_string(), "outside of a cache")?;
    Ok(())
}
