//! Known answers: `tests/golden/models/smollm2.json`, from another implementation.

use std::fs;
use std::path::Path;

use anyhow::{Context, Result, ensure};
use serde::Deserialize;
use wattn::Engine;
use wattn_examples::smollm2::SmolLm2;

use crate::talk::{Talk, likeliest};

/// The largest absolute error of a logit that passes.
const TOLERANCE: f64 = 1e-3;

#[derive(Deserialize)]
struct Golden {
    prompts: Vec<Prompt>,
    /// Of the first prompt's first answers.
    first_logits: Vec<Logits>,
}

#[derive(Deserialize)]
struct Prompt {
    text: String,
    token_ids: Vec<u32>,
    greedy_token_ids: Vec<u32>,
}

#[derive(Deserialize)]
struct Logits {
    position: usize,
    top5: Vec<Logit>,
}

#[derive(Deserialize)]
struct Logit {
    id: u32,
    logit: f64,
}

/// Answers the first `prompts` prompts in `tokens` tokens each (all, where not given), which must be the known ones.
pub(crate) fn check(
    model: &SmolLm2,
    engine: &Engine,
    path: &Path,
    prompts: Option<usize>,
    tokens: Option<usize>,
) -> Result<()> {
    let text = fs::read_to_string(path).with_context(|| path.display().to_string())?;
    let golden: Golden = serde_json::from_str(&text).with_context(|| path.display().to_string())?;
    let digits = model.tokenize("x =  3")?;
    ensure!(digits == [104, 446, 256, 35], "digits are not isolated before words are found: {digits:?}");
    let (mut checked, mut error) = (0, 0.0_f64);
    for (number, prompt) in golden.prompts.iter().enumerate().take(prompts.unwrap_or(usize::MAX)) {
        let ids = model.tokenize(&prompt.text)?;
        ensure!(ids == prompt.token_ids, "tokens of {:?}: {ids:?}, expected {:?}", prompt.text, prompt.token_ids);
        let mut talk = Talk::new(model, engine)?;
        let mut logits = talk.hear(&ids)?;
        for (position, &expected) in prompt.greedy_token_ids.iter().enumerate().take(tokens.unwrap_or(usize::MAX)) {
            let first = golden.first_logits.iter().filter(|first| number == 0 && first.position == position);
            for known in first.flat_map(|first| &first.top5) {
                error = error.max(difference(logits[known.id as usize], known.logit));
            }
            let token = likeliest(&logits);
            ensure!(token == expected, "prompt {number}, token {position}: {token}, expected {expected}");
            checked += 1;
            logits = talk.hear(&[token])?;
        }
        println!("prompt {number}: {}", talk.pace);
    }
    println!("{checked} tokens as expected; largest error of a logit {error:.1e}, allowed {TOLERANCE:.0e}");
    ensure!(checked > 0 && error <= TOLERANCE, "the answers differ from the known ones");
    Ok(())
}

/// The absolute difference; NaN counts as infinitely far off.
fn difference(actual: f32, expected: f64) -> f64 {
    let error = (f64::from(actual) - expected).abs();
    if error.is_nan() { f64::INFINITY } else { error }
}
