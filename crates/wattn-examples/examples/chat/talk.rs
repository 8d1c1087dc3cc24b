//! A conversation: tokens in, an answer token by token out, both timed.

use std::io::{self, Write};
use std::time::{Duration, Instant};

use anyhow::Result;
use wattn::Engine;
use wattn_examples::smollm2::SmolLm2;

use crate::attend::Cache;

/// What has been said so far, in the cache.
pub(crate) struct Talk<'a> {
    model: &'a SmolLm2,
    cache: Cache,
    tokens: usize,
    pub(crate) pace: Pace,
}

/// How long tokens took, those that are read at once and those that follow one by one.
#[derive(Default)]
pub(crate) struct Pace {
    prefill: (usize, Duration),
    decode: (usize, Duration),
    attending: Duration,
}

impl<'a> Talk<'a> {
    pub(crate) fn new(model: &'a SmolLm2, engine: &Engine) -> Result<Self> {
        Ok(Self { model, cache: Cache::new(engine)?, tokens: 0, pace: Pace::default() })
    }

    /// Takes `tokens`; the logits of what comes next.
    pub(crate) fn hear(&mut self, tokens: &[u32]) -> Result<Vec<f32>> {
        let started = Instant::now();
        let (cache, attending) = (&mut self.cache, &mut self.pace.attending);
        let logits = self.model.next(tokens, self.tokens, |layer, q, k, v| {
            let started = Instant::now();
            let out = cache.attend(layer, q, k, v);
            *attending += started.elapsed();
            out
        })?;
        self.tokens += tokens.len();
        let (count, time) = if tokens.len() > 1 { &mut self.pace.prefill } else { &mut self.pace.decode };
        *count += tokens.len();
        *time += started.elapsed();
        Ok(logits)
    }

    /// Takes `tokens`, then says the likeliest ones, at most `most`, each as soon as it is known. The last one has not been heard.
    pub(crate) fn answer(&mut self, tokens: &[u32], most: usize) -> Result<Vec<u32>> {
        let (mut said, mut pending) = (Vec::new(), Vec::new());
        let mut logits = self.hear(tokens)?;
        while said.len() < most {
            let token = likeliest(&logits);
            said.push(token);
            if SmolLm2::ends(token) {
                break;
            }
            pending.extend(self.model.bytes(token)?);
            print_whole(&mut pending)?;
            if said.len() < most {
                logits = self.hear(&[token])?;
            }
        }
        println!("{}", String::from_utf8_lossy(&pending));
        Ok(said)
    }
}

/// Prints the whole characters, and keeps the beginning of the next.
fn print_whole(pending: &mut Vec<u8>) -> Result<()> {
    let whole = match std::str::from_utf8(pending) {
        Err(error) if error.error_len().is_none() => error.valid_up_to(),
        _ => pending.len(),
    };
    let rest = pending.split_off(whole);
    print!("{}", String::from_utf8_lossy(pending));
    *pending = rest;
    Ok(io::stdout().flush()?)
}

/// Where the largest number is; the first of equals.
pub(crate) fn likeliest(logits: &[f32]) -> u32 {
    let best = (0..).zip(logits).reduce(|best, next| if next.1 > best.1 { next } else { best });
    best.map_or(0, |(token, _)| token)
}

impl std::fmt::Display for Pace {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let rate = |(count, time): (usize, Duration)| count as f64 / time.as_secs_f64().max(1e-9);
        let total = self.prefill.1 + self.decode.1;
        write!(
            f,
            "prefill {} tokens, {:.1} tokens/s   decode {} tokens, {:.1} tokens/s   attention {:.0}% of the time",
            self.prefill.0,
            rate(self.prefill),
            self.decode.0,
            rate(self.decode),
            100.0 * self.attending.as_secs_f64() / total.as_secs_f64().max(1e-9),
        )
    }
}
