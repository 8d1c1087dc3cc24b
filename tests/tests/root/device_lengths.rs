//! Lengths that only the device knows: the work that it makes of them, steps of a cache in between of which nothing is read back, and
//! what is refused.

use std::sync::Arc;

use anyhow::{Context, Result, ensure};
use libtest_mimic::Trial;
use wattn::wgpu::CommandEncoderDescriptor;
use wattn::{
    Attention, DecodePlan, Extent, HeadDim, Heads, Kernel, Lengths, Operands, SequenceId, Storage, View, Work,
};
use wattn_tests::{DECODE_KERNELS, lengths_buffer, workspace};

use crate::cache::model::{
    DIM, HEADS, Host, KV_HEADS, MOST, Model, Source, Stepped, attention, layout, stored_for, trial,
};
use crate::gpu::{Gpu, download, poisoned, upload};

pub(crate) fn trials(gpu: &Arc<Gpu>) -> Vec<Trial> {
    let mut trials = Vec::new();
    for kernel in DECODE_KERNELS {
        trials.push(trial(gpu, kernel, "device_lengths/steps_without_reading", steps_without_reading));
    }
    trials.push(gpu.trial("device_lengths/work_as_the_host_makes_it", work_as_the_host_makes_it));
    trials.push(gpu.trial("device_lengths/refusals", refusals));
    trials
}

/// Random problems with random lengths, some beyond what the host allows: word for word the same work, but for the order of stretches.
fn work_as_the_host_makes_it(gpu: &Gpu) -> Result<()> {
    let mut source = Source(5);
    let mut several = 0;
    for n in 0..120 {
        let (group, queries) = (1 + source.below(5), 1 + source.below(3));
        let mut attention = Attention::new(Heads::grouped(2 * group, 2)?, HeadDim::new(8)?);
        let offsets = match source.below(3) {
            0 => vec![],
            1 => {
                attention = attention.causal();
                vec![]
            }
            _ => {
                attention = attention.causal_top_left();
                vec![i32::try_from(source.below(300))? - 100]
            }
        };
        if source.below(2) == 0 {
            let mut side = |most| Some(source.below(most)).filter(|side| side % 4 > 0);
            attention = attention.window(side(200), side(60));
        }
        let decode = match source.below(2) {
            0 => attention.decode(),
            _ => attention.decode().split_keys(1 + source.below(90)),
        };
        let most = source.below(900);
        // Some calls have more row tiles than `flash_lengths` has invocations.
        let batch = 1 + source.below(if n % 8 == 0 { 150 } else { 6 });
        let plan = gpu.engine.plan(&decode, Extent::new(batch, queries, most))?;
        let lengths: Vec<u32> = (0..batch).map(|_| source.below(most + 1 + most / 8)).collect();
        let host = plan.work(Lengths::Keys(&lengths), &offsets)?;
        let made = made(gpu, &plan, &lengths, &offsets)?;
        several += usize::from(host.stretches.len() > lengths.len());
        made.is(&host).with_context(|| format!("problem {n}: {plan}, lengths {lengths:?}"))?;
    }
    ensure!(several > 20, "only {several} problems had keys to split");
    Ok(())
}

/// Work read back.
struct Made {
    words: Vec<u32>,
    records: usize,
    stretches: usize,
    rows: usize,
    row_count: usize,
}

fn made(gpu: &Gpu, plan: &DecodePlan, lengths: &[u32], offsets: &[i32]) -> Result<Made> {
    let work = plan.device_work(Lengths::Full, offsets)?;
    let mut encoder = gpu.engine.device().create_command_encoder(&CommandEncoderDescriptor::default());
    // The lengths begin where no binding may.
    let placed = lengths_buffer(&gpu.engine, &[&[7, 8, 9], lengths].concat());
    work.update(&mut encoder, &placed, 3)?;
    gpu.engine.queue().submit([encoder.finish()]);
    let words = download(&gpu.engine, work.buffer())?.into_iter().map(f32::to_bits).collect();
    let details = work.details();
    let at = |offset: u32| offset as usize;
    Ok(Made {
        words,
        records: at(details.records_at()),
        stretches: at(details.stretches_at()),
        rows: at(details.rows_at()),
        row_count: at(details.rows),
    })
}

impl Made {
    fn is(&self, host: &Work) -> Result<()> {
        let words = &self.words;
        for (n, s) in host.sequences.iter().enumerate() {
            let record: &[u32] = &words[self.records + 9 * n..][..8];
            let known: &[u32] = bytemuck::cast_slice(std::slice::from_ref(s));
            ensure!(record == &known[..8], "sequence {n}: {record:?} for {known:?}");
        }
        // Two key/value heads take a stretch.
        ensure!(
            words[0] as usize == 2 * host.stretches.len(),
            "{} workgroups, {} stretches",
            words[0],
            host.stretches.len()
        );
        ensure!(words[1] * words[2] >= words[0] && words[3] == 1, "a grid of {:?}", &words[1..4]);
        let listed = words[self.stretches..].chunks_exact(5).take(host.stretches.len());
        let mut stretches: Vec<[u32; 5]> = listed.map(<[u32; 5]>::try_from).collect::<Result<_, _>>()?;
        stretches.sort_unstable();
        let mut known = host.stretches.clone();
        known.sort_unstable();
        ensure!(stretches == known, "{stretches:?} for {known:?}");
        ensure!(self.row_count == host.rows.len(), "{} rows for {}", self.row_count, host.rows.len());
        let list = &words[self.rows..];
        for (n, &[record, row, first, count]) in host.rows.iter().enumerate() {
            let given = &list[4 * n..][..4];
            ensure!(given[..2] == [record, row] && given[3] == count, "row {n}: {given:?}");
            let parts = &list[given[2] as usize..][..count as usize];
            let known = &host.parts[first as usize..][..count as usize];
            ensure!(parts == known, "row {n}: parts {parts:?} for {known:?}");
        }
        Ok(())
    }
}

/// New tokens a step, of which some are kept, as in speculative decoding: each step is recorded before any has run.
fn steps_without_reading(gpu: &Gpu, kernel: Kernel) -> Result<()> {
    const NEW: u32 = 4;
    let kept = [[1, 4], [3, 0], [4, 2], [0, 1]];
    let engine = &gpu.engine;
    let mut model = Model::new(engine, attention(kernel)?, stored_for(kernel, layout(16, 12)?), 32)?;
    let mut source = Source(23);
    let ids = [model.create(), model.create()];
    model.step(&mut source, &[(ids[0], 37), (ids[1], 13)])?.check(gpu)?;

    // What a kernel of the application would write.
    let mut tokens = [37, 13];
    let mut after = Vec::new();
    for kept in kept {
        after.extend(tokens.map(|n| n + NEW));
        tokens = [tokens[0] + kept[0], tokens[1] + kept[1]];
    }
    let planned = lengths_buffer(engine, &after);
    let lengths = lengths_buffer(engine, &[0, 0]);
    let scratch = workspace(engine, model.plan.workspace_bytes());
    let mut encoder = engine.device().create_command_encoder(&CommandEncoderDescriptor::default());
    let mut steps = Vec::new();
    for (n, kept) in (0..).zip(kept) {
        encoder.copy_buffer_to_buffer(&planned, 8 * n, &lengths, 0, 8);
        let new: Vec<(SequenceId, u32)> = ids.iter().map(|&id| (id, NEW)).collect();
        let step = model.cache.extend(&mut encoder, &new)?;
        let work = model.plan.device_work_of(&step)?;
        work.update(&mut encoder, &lengths, 0)?;
        let rows = 2 * NEW as usize;
        let q = model.stored(&source.numbers(rows * HEADS * DIM));
        let kv = [0, 1].map(|_| model.stored(&source.numbers(rows * KV_HEADS * DIM)));
        let out = poisoned(engine, q.len());
        let q_rows = model.upload(&q);
        let [k_rows, v_rows] = [0, 1].map(|n| upload(engine, &kv[n]));
        let [k_view, v_view] = [View::bshd(&k_rows), View::bshd(&v_rows)];
        model.cache.append_at(&mut encoder, &step, &work, 0, k_view, v_view, Storage::F32)?;
        let operands = Operands::new(View::bshd(&q_rows), model.cache.k(0)?, model.cache.v(0)?, View::bshd(&out));
        model.plan.encode(&mut encoder, &work, &operands, &scratch)?;

        let mut all = Host::default();
        let mut bounds = (vec![0], vec![0]);
        for (place, id) in ids.iter().enumerate() {
            let row = KV_HEADS * DIM;
            let host = model.hosts.get_mut(id).context("a sequence of the model")?;
            let before = host.k.len();
            for (own, new) in [(&mut host.k, &kv[0]), (&mut host.v, &kv[1])] {
                own.extend_from_slice(&new[place * NEW as usize * row..][..NEW as usize * row]);
            }
            all.k.extend_from_slice(&host.k);
            all.v.extend_from_slice(&host.v);
            bounds.0.push(bounds.0[place] + NEW);
            bounds.1.push(u32::try_from(all.k.len() / row)?);
            for own in [&mut host.k, &mut host.v] {
                own.truncate(before + kept[place] as usize * row);
            }
        }
        steps.push((model.case(q, all, bounds)?, out));
    }
    engine.queue().submit([encoder.finish()]);
    for (case, out) in steps {
        let count = case.q.values.len();
        Stepped { case, out: model.download(&out, count)? }.check(gpu)?;
    }
    // The host hears of it, and goes on with what it knows.
    for (id, tokens) in ids.into_iter().zip(tokens) {
        model.cache.truncate(id, tokens)?;
    }
    model.step(&mut source, &[(ids[1], 2), (ids[0], 1)])?.check(gpu)
}

fn refusals(gpu: &Gpu) -> Result<()> {
    let engine = &gpu.engine;
    let says = |error: String, text: &str| {
        ensure!(error.contains(text), "{error:?} does not say {text:?}");
        Ok(())
    };
    let decode = attention(Kernel::TileUniversal)?.decode();
    let plan = engine.plan(&decode, Extent::new(3, 1, 64))?;
    let work = plan.device_work(Lengths::Full, &[])?;
    let mut encoder = engine.device().create_command_encoder(&CommandEncoderDescriptor::default());
    let update = |encoder: &mut _, buffer: &_, first| work.update(encoder, buffer, first).unwrap_err().to_string();
    says(update(&mut encoder, &lengths_buffer(engine, &[1, 2, 3]), 1), "ends at byte 16, the buffer has 12")?;
    let unusable = engine.device().create_buffer(&wattn::wgpu::BufferDescriptor {
        label: None,
        size: 12,
        usage: wattn::wgpu::BufferUsages::COPY_SRC,
        mapped_at_creation: false,
    });
    says(update(&mut encoder, &unusable, 0), "STORAGE is needed")?;
    says(update(&mut encoder, work.buffer(), 0), "work and lengths are in the same buffer")?;

    let many = engine.plan(&decode, Extent::new(1, 100, 200))?;
    let error = many.device_work(Lengths::Full, &[]).map(drop).unwrap_err();
    says(error.to_string(), "queries: 100 given, allowed is at most 16 with lengths on the device")?;

    let layout = layout(16, 8)?;
    let mut cache = wattn::KvCache::new(engine, layout)?;
    let id = cache.create();
    let cached = engine.plan(&decode.cached(layout), MOST)?;
    let step = cache.extend(&mut encoder, &[(id, 3)])?;
    says(cached.device_work(Lengths::Full, &[]).map(drop).unwrap_err().to_string(), "a step of the cache")?;
    says(plan.device_work_of(&step).map(drop).unwrap_err().to_string(), "since the plan reads no cache")?;
    let cascade = engine.plan(&decode.cached(layout).cascade(), MOST)?;
    says(cascade.device_work_of(&step).map(drop).unwrap_err().to_string(), "of which the host knows them")?;
    let of_step = cached.device_work_of(&step)?;
    let rows = poisoned(engine, 64 * HEADS * DIM);
    let rows = View::bshd(&rows);
    let early = cache.append_at(&mut encoder, &step, &of_step, 0, rows, rows, Storage::F32);
    says(early.unwrap_err().to_string(), "work: not made yet")?;
    let next = cache.extend(&mut encoder, &[(id, 20)])?;
    let appended = cache.append_at(&mut encoder, &next, &of_step, 0, rows, rows, Storage::F32);
    says(appended.unwrap_err().to_string(), "work: made by another plan")?;
    let scratch = workspace(engine, cached.workspace_bytes());
    let encoded = plan.encode(&mut encoder, &work, &Operands::new(rows, rows, rows, rows), &scratch);
    says(encoded.unwrap_err().to_string(), "work: not made yet")?;
    work.update(&mut encoder, &lengths_buffer(engine, &[1, 2, 3]), 0)?;
    let encoded = plan.encode(&mut encoder, &work, &Operands::new(rows, rows, rows, rows), work.buffer());
    says(encoded.unwrap_err().to_string(), "workspace and work are in the same buffer")?;
    let encoded = plan.encode(&mut encoder, &of_step, &Operands::new(rows, rows, rows, rows), &scratch);
    says(encoded.unwrap_err().to_string(), "work: made by another plan")?;
    cache.evict(id, 16)?;
    let evicted = cache.extend(&mut encoder, &[(id, 1)])?;
    let ring = attention(Kernel::TileUniversal)?.sliding(4).decode().cached(layout);
    let ring = engine.plan(&ring, MOST)?;
    says(ring.device_work_of(&evicted).map(drop).unwrap_err().to_string(), "16 tokens were evicted")?;
    Ok(())
}
