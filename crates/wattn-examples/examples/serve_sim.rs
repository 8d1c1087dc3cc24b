//! Serves: replays a seeded trace of requests, of unequal prompts and answers, through the cache and the scheduler as a server would
//! (continuous batching), one attention layer at a time. Prompts come in pieces beside what others generate; most requests begin with
//! the same system prompt, whose pages they share.
//!
//! ```sh
//! cargo run --release --example serve_sim
//! cargo run --release --example serve_sim -- --requests 200 --layers 8 --storage int8
//! ```
//!
//! What is attended to is noise: only time, memory and the accounts of pages are of interest here.

use std::collections::VecDeque;
use std::time::Instant;

use anyhow::{Context, Result, ensure};
use clap::{Parser, ValueEnum};
use rand::{Rng, SeedableRng};
use rand_pcg::Pcg32;
use wattn::wgpu::{self, Buffer, BufferUsages, CommandEncoderDescriptor, PollType};
use wattn::{
    Attention, CacheLayout, DecodePlan, Engine, Extent, HeadDim, Heads, KvCache, Operands, SequenceId, Storage, View,
};

/// Replays a trace of requests.
#[derive(Parser)]
struct Options {
    /// Requests of the trace.
    #[arg(long, default_value_t = 64)]
    requests: usize,
    /// Attention layers.
    #[arg(long, default_value_t = 2)]
    layers: u32,
    /// Pages of 16 tokens in the cache.
    #[arg(long, default_value_t = 512)]
    pages: u32,
    /// Tokens of a step at most: what prompts may take beside those that generate.
    #[arg(long, default_value_t = 128)]
    step_tokens: u32,
    /// How keys and values are stored.
    #[arg(long, value_enum, default_value_t = Stored::F16)]
    storage: Stored,
    /// Seed of the trace.
    #[arg(long, default_value_t = 1)]
    seed: u64,
}

#[derive(Clone, Copy, ValueEnum)]
enum Stored {
    F32,
    F16,
    Int8,
}

/// Heads and head dim of the layers.
const HEADS: [u32; 2] = [9, 3];
const DIM: u32 = 64;
const PAGE: u32 = 16;
/// Tokens of the prompt that most requests begin with.
const SYSTEM: u32 = 96;

/// What a client asks for.
struct Request {
    /// The step at which it arrives.
    arrives: usize,
    shares_system: bool,
    prompt: u32,
    answer: u32,
}

/// A request that is being served.
struct Running {
    request: Request,
    sequence: SequenceId,
    /// Tokens of the prompt that are not in the cache yet.
    prompt_left: u32,
    generated: u32,
    /// Pages that it may still need.
    reserved: u32,
    arrived: Instant,
    last: Instant,
}

fn trace(options: &Options) -> VecDeque<Request> {
    let mut random = Pcg32::seed_from_u64(options.seed);
    let mut arrives = 0;
    (0..options.requests)
        .map(|_| {
            arrives += random.random_range(0..4_usize);
            // Most prompts are short, a few long.
            let prompt = if random.random_range(0..8) == 0 { 600 } else { 80 };
            Request {
                arrives,
                shares_system: random.random_range(0..4) != 0,
                prompt: random.random_range(4..prompt),
                answer: random.random_range(4..48),
            }
        })
        .collect()
}

/// The device's side: one cache, one plan, rows of noise for the tokens of a step.
struct Server {
    engine: Engine,
    plan: DecodePlan,
    cache: KvCache,
    q: Buffer,
    kv: Buffer,
    out: Buffer,
    workspace: Buffer,
    layers: u32,
}

impl Server {
    fn new(options: &Options) -> Result<Self> {
        let engine = Engine::headless()?;
        let storage = match options.storage {
            Stored::F32 => Storage::F32,
            Stored::F16 => Storage::F16,
            Stored::Int8 => Storage::Int8,
        };
        let dims = HeadDim::new(DIM)?;
        let layout =
            CacheLayout::new(HEADS[1], dims, PAGE, options.pages)?.layers(options.layers).storage(storage, storage);
        let decode =
            Attention::new(Heads::grouped(HEADS[0], HEADS[1])?, dims).causal().decode().cached(layout).cascade();
        let sequences = u32::try_from(options.requests)? + 1;
        let tokens = options.step_tokens + sequences;
        let plan = engine.plan(&decode, Extent::packed(sequences, tokens, sequences * 2048))?;
        println!("{plan}\n");
        engine.prepare([&plan])?;
        let noise = |heads: u32| {
            let mut random = Pcg32::seed_from_u64(heads.into());
            let values: Vec<f32> = (0..tokens * heads * DIM).map(|_| random.random_range(-1.0..1.0)).collect();
            let usage = BufferUsages::STORAGE | BufferUsages::COPY_DST;
            let made = buffer(&engine, size_of_val(&values[..]) as u64, usage);
            engine.queue().write_buffer(&made, 0, bytemuck::cast_slice(&values));
            made
        };
        Ok(Self {
            cache: KvCache::new(&engine, layout)?,
            q: noise(HEADS[0]),
            kv: noise(HEADS[1]),
            out: buffer(&engine, u64::from(tokens * HEADS[0] * DIM) * 4, BufferUsages::STORAGE),
            workspace: buffer(&engine, plan.workspace_bytes(), BufferUsages::STORAGE),
            layers: options.layers,
            engine,
            plan,
        })
    }

    /// One step of all layers; how even its work was.
    fn step(&mut self, new: &[(SequenceId, u32)]) -> Result<f64> {
        let mut encoder = self.engine.device().create_command_encoder(&CommandEncoderDescriptor::default());
        let step = self.cache.extend(&mut encoder, new)?;
        let work = self.plan.work_of(&step)?;
        for layer in 0..self.layers {
            let rows = View::bshd(&self.kv);
            self.cache.append(&mut encoder, &step, layer, rows, rows, Storage::F32)?;
            let (k, v) = (self.cache.k(layer)?, self.cache.v(layer)?);
            let operands = Operands::new(View::bshd(&self.q), k, v, View::bshd(&self.out));
            self.plan.encode(&mut encoder, &work, &operands, &self.workspace)?;
        }
        self.engine.queue().submit([encoder.finish()]);
        self.engine.device().poll(PollType::wait_indefinitely()).context("waiting for the device")?;
        Ok(work.balance())
    }
}

fn buffer(engine: &Engine, size: u64, usage: BufferUsages) -> Buffer {
    let label = Some("serve_sim");
    engine.device().create_buffer(&wgpu::BufferDescriptor { label, size, usage, mapped_at_creation: false })
}

/// Seconds, of which percentiles are told.
#[derive(Default)]
struct Times(Vec<f64>);

impl Times {
    fn print(mut self, what: &str) {
        self.0.sort_by(f64::total_cmp);
        let at = |percent: usize| self.0.get((self.0.len() * percent / 100).min(self.0.len().max(1) - 1));
        let ms = |percent| at(percent).map_or("-".into(), |s| format!("{:.1} ms", s * 1e3));
        println!("{what:<28} median {:>10}   90% {:>10}   99% {:>10}", ms(50), ms(90), ms(99));
    }
}

fn main() -> Result<()> {
    let options = Options::parse();
    let mut server = Server::new(&options)?;
    let mut waiting = trace(&options);
    let mut running: Vec<Running> = Vec::new();
    let system = server.cache.create();
    server.step(&[(system, SYSTEM)])?; // compiles, too

    let started = Instant::now();
    let (mut first_token, mut between, mut whole) = (Times::default(), Times::default(), Times::default());
    let (mut steps, mut generated, mut prefilled, mut most_used, mut most_running) = (0, 0_u32, 0_u32, 0, 0);
    let (mut balance, mut queued) = (0.0, VecDeque::new());
    while !(waiting.is_empty() && queued.is_empty() && running.is_empty()) {
        while waiting.front().is_some_and(|request| request.arrives <= steps) {
            queued.extend(waiting.pop_front().map(|request| (request, Instant::now())));
        }
        // A request comes in when the pages for all of it are there, so that none is ever thrown out.
        while let Some((request, arrived)) = queued.pop_front() {
            let own = server.cache.layout().pages_for(request.prompt + request.answer) + 1;
            let reserved: u32 = running.iter().map(|r| r.reserved).sum();
            if own + reserved > server.cache.pages().free() {
                ensure!(!running.is_empty(), "a request of {own} pages does not fit the cache");
                queued.push_front((request, arrived));
                break;
            }
            let sequence = if request.shares_system { server.cache.fork(system)? } else { server.cache.create() };
            let prompt_left = request.prompt;
            running.push(Running {
                request,
                sequence,
                prompt_left,
                generated: 0,
                reserved: own,
                arrived,
                last: arrived,
            });
        }
        // Those that share a prefix stand beside each other.
        running.sort_by_key(|r| (!r.request.shares_system, r.sequence));
        let mut room = options.step_tokens;
        let mut new = Vec::with_capacity(running.len());
        for r in &running {
            let tokens = if r.prompt_left > 0 { r.prompt_left.min(room) } else { 1 };
            room -= if r.prompt_left > 0 { tokens } else { 0 };
            if tokens > 0 {
                new.push((r.sequence, tokens));
            }
        }
        most_running = most_running.max(running.len());
        steps += 1;
        if new.is_empty() {
            continue;
        }
        let free = server.cache.pages().free();
        balance += server.step(&new)?;
        most_used = most_used.max(server.cache.pages().used());
        ensure!(server.cache.pages().free() <= free, "a step cannot free pages");

        let now = Instant::now();
        for (sequence, tokens) in new {
            let r = running.iter_mut().find(|r| r.sequence == sequence).context("a request of the step")?;
            let length = server.cache.pages().tokens(sequence)? - if r.request.shares_system { SYSTEM } else { 0 };
            r.reserved = server.cache.layout().pages_for(r.request.prompt + r.request.answer - length) + 1;
            if r.prompt_left > 0 {
                r.prompt_left -= tokens;
                prefilled += tokens;
                if r.prompt_left > 0 {
                    continue;
                }
                first_token.0.push((now - r.arrived).as_secs_f64());
            } else {
                between.0.push((now - r.last).as_secs_f64());
            }
            // The last token of the prompt gives the first of the answer.
            r.generated += 1;
            generated += 1;
            r.last = now;
        }
        let (done, left): (Vec<_>, Vec<_>) = running.into_iter().partition(|r| r.generated >= r.request.answer);
        running = left;
        for r in done {
            whole.0.push((now - r.arrived).as_secs_f64());
            server.cache.release(r.sequence)?;
        }
    }
    let seconds = started.elapsed().as_secs_f64();
    server.cache.release(system)?;

    let layers = options.layers;
    #[expect(clippy::cast_precision_loss, reason = "printed with three digits")]
    let mean_balance = balance / steps as f64;
    println!(
        "{} requests, {layers} layers: {steps} steps in {seconds:.1} s, at most {most_running} requests at once",
        options.requests
    );
    println!(
        "throughput                   {:.0} tokens/s generated, {:.0} tokens/s of prompts",
        f64::from(generated) / seconds,
        f64::from(prefilled) / seconds
    );
    first_token.print("time to the first token");
    between.print("time between tokens");
    whole.print("time of a request");
    let (pages, bytes) = (server.cache.layout().pages(), server.cache.layout().bytes());
    #[expect(clippy::cast_precision_loss, reason = "printed with few digits")]
    let mib = bytes as f64 / f64::from(1 << 20);
    println!("cache                        {most_used} of {pages} pages at most, {mib:.1} MiB in all");
    println!("balance                      {mean_balance:.2} (busiest worker over the mean, mean of the steps)");
    let leaked = server.cache.pages().used();
    println!("leaked pages                 {leaked}");
    ensure!(leaked == 0, "{leaked} pages leaked");
    Ok(())
}
