//! The cache of keys and values: what is attended to through its pages, against the oracle and against itself.

use std::collections::BTreeMap;
use std::sync::Arc;

use anyhow::{Context, Result, ensure};
use libtest_mimic::Trial;
use wattn::wgpu::Buffer;
use wattn::{
    Attention, CacheError, CacheLayout, DecodePlan, Engine, Extent, HeadDim, Heads, Kernel, KvCache, Operands,
    PlanError, RunError, SequenceId, Storage, View,
};
use wattn_cases::{Causal, Layout, Rows, SoftmaxCase, Tensor, compare};
use wattn_tests::{DECODE_KERNELS, workspace};

use crate::gpu::{Gpu, download, poisoned, upload};

pub(crate) const HEADS: usize = 4;
pub(crate) const KV_HEADS: usize = 2;
pub(crate) const DIM: usize = 32;
/// What a plan of these tests may hold.
pub(crate) const MOST: Extent = Extent { batch: 40, queries: 700, keys: 40_000, packed: true };

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

/// Numbers that look random and are the same each time.
pub(crate) struct Source(pub(crate) u64);

impl Source {
    fn bits(&mut self) -> u64 {
        // xorshift64*
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d)
    }

    pub(crate) fn below(&mut self, n: u32) -> u32 {
        u32::try_from(self.bits() >> 33).unwrap_or(0) % n
    }

    #[expect(clippy::cast_precision_loss, reason = "24 bits")]
    pub(crate) fn numbers(&mut self, count: usize) -> Vec<f32> {
        (0..count).map(|_| (self.bits() >> 40) as f32 / f32::from(1_u16 << 12) / 1024.0 - 2.0).collect()
    }
}

/// Keys and values of a sequence on the host, rows `[tokens, kv heads, dim]`.
#[derive(Debug, Clone, Default)]
pub(crate) struct Host {
    pub(crate) k: Vec<f32>,
    pub(crate) v: Vec<f32>,
}

/// A cache with the same tokens on the host, which the oracle attends to.
pub(crate) struct Model<'a> {
    engine: &'a Engine,
    attention: Attention,
    /// How q and the output are stored; all numbers are rounded to it.
    storage: wattn_cases::Storage,
    window: [Option<u32>; 2],
    pub(crate) plan: DecodePlan,
    pub(crate) cache: KvCache,
    pub(crate) hosts: BTreeMap<SequenceId, Host>,
}

/// What came out of a step: rows `[tokens, heads, dim]`.
pub(crate) struct Stepped {
    pub(crate) case: SoftmaxCase,
    pub(crate) out: Vec<f32>,
}

impl<'a> Model<'a> {
    pub(crate) fn new(engine: &'a Engine, attention: Attention, layout: CacheLayout, split: u32) -> Result<Self> {
        let plan = engine.plan(&attention.decode().split_keys(split).cached(layout), MOST)?;
        let cache = KvCache::new(engine, layout)?;
        let storage = match attention.q_storage() {
            Storage::F16 => wattn_cases::Storage::F16,
            _ => wattn_cases::Storage::F32,
        };
        Ok(Self { engine, attention, storage, window: [None; 2], plan, cache, hosts: BTreeMap::new() })
    }

    /// These numbers as they are stored.
    pub(crate) fn stored(&self, values: &[f32]) -> Vec<f32> {
        values.iter().map(|&x| self.storage.round(x)).collect()
    }

    /// Rows of q on the device.
    pub(crate) fn upload(&self, q: &[f32]) -> Buffer {
        let mut bytes = Tensor::new(self.storage, &[q.len()], q.to_vec()).bytes();
        bytes.resize(bytes.len().next_multiple_of(4).max(16), 0);
        upload(self.engine, &bytemuck::pod_collect_to_vec::<u8, f32>(&bytes))
    }

    /// So many numbers of the output.
    pub(crate) fn download(&self, out: &Buffer, count: usize) -> Result<Vec<f32>> {
        let words = download(self.engine, out)?;
        let bytes = &bytemuck::cast_slice::<f32, u8>(&words)[..count * self.storage.size()];
        Ok(Tensor::from_bytes(self.storage, &[count], bytes).values)
    }

    pub(crate) fn create(&mut self) -> SequenceId {
        let id = self.cache.create();
        self.hosts.insert(id, Host::default());
        id
    }

    /// New tokens for each sequence, from `source` in the order given.
    pub(crate) fn step(&mut self, source: &mut Source, new: &[(SequenceId, u32)]) -> Result<Stepped> {
        let rows: Vec<_> = new
            .iter()
            .map(|&(_, n)| {
                let kv = n as usize * KV_HEADS * DIM;
                [source.numbers(n as usize * HEADS * DIM), source.numbers(kv), source.numbers(kv)]
            })
            .collect();
        self.step_with(new, &rows)
    }

    fn step_with(&mut self, new: &[(SequenceId, u32)], rows: &[[Vec<f32>; 3]]) -> Result<Stepped> {
        let mut encoder =
            self.engine.device().create_command_encoder(&wattn::wgpu::CommandEncoderDescriptor::default());
        let step = self.cache.extend(&mut encoder, new)?;
        let rows: Vec<_> = rows.iter().map(|rows| rows.each_ref().map(|numbers| self.stored(numbers))).collect();
        let [q, k, v] = [0, 1, 2].map(|n| rows.iter().flat_map(|rows| &rows[n]).copied().collect::<Vec<f32>>());
        let work = self.plan.work_of(&step)?;
        let new_rows = [&k, &v].map(|x| upload(self.engine, if x.is_empty() { &[0.0; 4] } else { x }));
        let q_rows = self.upload(&q);
        let out = poisoned(self.engine, q.len().max(4));
        let scratch = workspace(self.engine, self.plan.workspace_bytes());
        let [k_view, v_view] = [0, 1].map(|n| View::bshd(&new_rows[n]));
        self.cache.append(&mut encoder, &step, 0, k_view, v_view, Storage::F32)?;
        let operands = Operands::new(View::bshd(&q_rows), self.cache.k(0)?, self.cache.v(0)?, View::bshd(&out));
        self.plan.encode(&mut encoder, &work, &operands, &scratch)?;
        self.engine.queue().submit([encoder.finish()]);

        let mut all = Host::default();
        let mut bounds = (vec![0], vec![0]);
        for (&(id, n), rows) in new.iter().zip(&rows) {
            let host = self.hosts.get_mut(&id).context("a sequence of the model")?;
            host.k.extend_from_slice(&rows[1]);
            host.v.extend_from_slice(&rows[2]);
            all.k.extend_from_slice(&host.k);
            all.v.extend_from_slice(&host.v);
            bounds.0.push(bounds.0[bounds.0.len() - 1] + n);
            bounds.1.push(u32::try_from(all.k.len() / (KV_HEADS * DIM))?);
        }
        let values = self.download(&out, q.len())?;
        Ok(Stepped { case: self.case(q, all, bounds)?, out: values })
    }

    /// The step as a packed problem.
    pub(crate) fn case(&self, q: Vec<f32>, kv: Host, bounds: (Vec<u32>, Vec<u32>)) -> Result<SoftmaxCase> {
        let storage = self.storage;
        let (queries, keys) = (q.len() / (HEADS * DIM), kv.k.len() / (KV_HEADS * DIM));
        let case = SoftmaxCase {
            name: "cache".to_owned(),
            source: None,
            layout: Layout::Packed,
            scale: None,
            causal: Some(Causal::BottomRight),
            causal_offsets: None,
            window: self.window,
            softcap: None,
            q: Tensor::new(storage, &[queries, HEADS, DIM], q),
            k: Tensor::new(storage, &[keys, KV_HEADS, DIM], kv.k),
            v: Tensor::new(storage, &[keys, KV_HEADS, DIM], kv.v),
            alibi_slopes: None,
            sinks: None,
            bias: None,
            mask: None,
            kv_lens: None,
            cu_seqlens: Some(bounds),
            grad_out: None,
            grad_lse: None,
            rms_tolerance: None,
            expect: BTreeMap::new(),
        };
        case.check().map_err(anyhow::Error::msg)?;
        Ok(case)
    }
}

impl Stepped {
    pub(crate) fn check(&self, gpu: &Gpu) -> Result<()> {
        let reference = self.case.reference(Rows::All);
        gpu.check(&compare("out", &self.out, &reference.out, &self.case.rules("out", &reference)))
    }
}

pub(crate) fn attention(kernel: Kernel) -> Result<Attention> {
    let heads = Heads::grouped(u32::try_from(HEADS)?, u32::try_from(KV_HEADS)?)?;
    let attention = Attention::new(heads, HeadDim::new(u32::try_from(DIM)?)?).causal().kernel(kernel);
    Ok(if kernel == Kernel::Matrix { attention.storage(Storage::F16) } else { attention })
}

/// The layout with what a kernel takes: f16 of `matrix`.
pub(crate) fn stored_for(kernel: Kernel, layout: CacheLayout) -> CacheLayout {
    if kernel == Kernel::Matrix { layout.storage(Storage::F16, Storage::F16) } else { layout }
}

/// A trial of a kernel, which shows as ignored where the device cannot run it.
pub(crate) fn trial(gpu: &Arc<Gpu>, kernel: Kernel, name: &str, run: fn(&Gpu, Kernel) -> Result<()>) -> Trial {
    let refused = move |gpu: &Gpu| {
        let plan = gpu.engine.plan(&attention(kernel)?.decode().cached(stored_for(kernel, layout(16, 1)?)), MOST);
        Ok(matches!(plan, Err(PlanError::Kernel { .. })))
    };
    gpu.trial_of((kernel, kernel.name()), name, refused, move |gpu| run(gpu, kernel))
}

pub(crate) fn layout(page: u32, pages: u32) -> Result<CacheLayout> {
    Ok(CacheLayout::new(u32::try_from(KV_HEADS)?, HeadDim::new(u32::try_from(DIM)?)?, page, pages)?)
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
