//! New keys and values on their way to the pages of a cache.

use std::time::Duration;

use anyhow::Result;
use wattn::wgpu::util::{BufferInitDescriptor, DeviceExt};
use wattn::wgpu::{Buffer, BufferUsages};
use wattn::{CacheLayout, CacheStep, Engine, HeadDim, KvCache, Storage, View};
use wattn_cases::Recipe;

/// Tokens of a page.
const PAGE: u32 = 16;

/// A step of a cache whose keys and values are on the device, its pipelines compiled.
#[derive(Debug)]
pub struct ReadyAppend<'a> {
    engine: &'a Engine,
    cache: KvCache,
    step: CacheStep,
    k: Buffer,
    v: Buffer,
}

impl<'a> ReadyAppend<'a> {
    /// A cache of the heads and dims of a case, in f16, and a step of this many tokens of each of its sequences, which come in f32.
    ///
    /// # Errors
    /// A cache that is refused, a device that fails.
    pub fn new(engine: &'a Engine, recipe: &Recipe, tokens: u32) -> Result<Self> {
        let (sequences, kv_heads) = (u32::try_from(recipe.batch)?, u32::try_from(recipe.kv_heads)?);
        let [head_dim, value_dim] = [u32::try_from(recipe.head_dim)?, u32::try_from(recipe.value_dim)?];
        let pages = sequences * tokens.div_ceil(PAGE);
        let layout = CacheLayout::new(kv_heads, HeadDim::with_value(head_dim, value_dim)?, PAGE, pages)?;
        let mut cache = KvCache::new(engine, layout.storage(Storage::F16, Storage::F16))?;
        let new: Vec<_> = (0..sequences).map(|_| (cache.create(), tokens)).collect();
        let mut encoder = super::encoder(engine);
        let step = cache.extend(&mut encoder, &new)?;
        super::submit(engine, encoder)?;
        let rows = |dim: u32| {
            let contents = vec![0x3f; (sequences * tokens * kv_heads * dim * 4) as usize];
            let descriptor =
                BufferInitDescriptor { label: Some("rows"), contents: &contents, usage: BufferUsages::STORAGE };
            engine.device().create_buffer_init(&descriptor)
        };
        let ready = Self { engine, cache, step, k: rows(head_dim), v: rows(value_dim) };
        ready.time(1)?;
        Ok(ready)
    }

    /// The time of `calls` calls, each submitted on its own and to the same places.
    ///
    /// # Errors
    /// A device that fails.
    pub fn time(&self, calls: u64) -> Result<Duration> {
        let [k, v] = [&self.k, &self.v].map(View::bshd);
        super::time(self.engine, calls, 1, |encoder, _| {
            Ok(self.cache.append(encoder, &self.step, 0, k, v, Storage::F32)?)
        })
    }
}
