//! A cache beside a model of it on the host, and steps that are checked against the oracle.

use std::collections::BTreeMap;
use std::sync::Arc;

use anyhow::{Context, Result};
use libtest_mimic::Trial;
use wattn::wgpu::Buffer;
use wattn::{
    Attention, CacheLayout, DecodePlan, Engine, Extent, HeadDim, Heads, Kernel, KvCache, Operands, PlanError,
    SequenceId, Storage, View,
};
use wattn_cases::{Causal, Layout, Rows, SoftmaxCase, Tensor, compare};
use wattn_tests::workspace;

use crate::gpu::{Gpu, download, poisoned, upload};

pub(crate) const HEADS: usize = 4;
pub(crate) const KV_HEADS: usize = 2;
pub(crate) const DIM: usize = 32;
/// What a plan of these tests may hold.
pub(crate) const MOST: Extent = Extent { batch: 40, queries: 700, keys: 40_000, packed: true };

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
    pub(super) attention: Attention,
    /// How q and the output are stored; all numbers are rounded to it.
    storage: wattn_cases::Storage,
    pub(super) window: [Option<u32>; 2],
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

    pub(super) fn step_with(&mut self, new: &[(SequenceId, u32)], rows: &[[Vec<f32>; 3]]) -> Result<Stepped> {
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
