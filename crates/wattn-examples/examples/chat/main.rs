//! Talks: SmolLM2-135M-Instruct, the attention of its thirty layers on the GPU. What so small a model says is fluent, not true.
//!
//! ```sh
//! cargo xtask model smollm2                                  # once: fetches the weights
//! cargo run --release --example chat                         # a conversation; an empty line ends it
//! cargo run --release --example chat -- --prompt "Why is the sky blue?" --tokens 64
//! ```

mod attend;
mod golden;
mod talk;

use std::io::{self, BufRead, Write};
use std::path::{Path, PathBuf};
use std::time::Instant;

use anyhow::{Context, Result};
use clap::Parser;
use wattn::Engine;
use wattn_examples::smollm2::SmolLm2;

use crate::talk::Talk;

/// Talks by SmolLM2-135M-Instruct.
#[derive(Parser)]
struct Options {
    /// Answer this and stop, instead of reading lines.
    #[arg(long, value_name = "TEXT")]
    prompt: Option<String>,
    /// Go on from the prompt as it is, instead of answering it.
    #[arg(long, requires = "prompt")]
    raw: bool,
    /// What the model is told to be.
    #[arg(long, default_value = "You are a helpful AI assistant named SmolLM, trained by Hugging Face")]
    system: String,
    /// Tokens of an answer at most [default: 256].
    #[arg(long)]
    tokens: Option<usize>,
    /// Fail unless the answers to this file's prompts match it.
    #[arg(long, value_name = "FILE", conflicts_with_all = ["prompt", "raw"])]
    check: Option<PathBuf>,
    /// Of the file's prompts only the first ones.
    #[arg(long, value_name = "COUNT", requires = "check")]
    prompts: Option<usize>,
    /// Folder with the weights [default: models/smollm2 of the workspace].
    #[arg(long, value_name = "DIR")]
    model: Option<PathBuf>,
}

fn main() -> Result<()> {
    let options = Options::parse();
    let started = Instant::now();
    let workspace = Path::new(env!("CARGO_MANIFEST_DIR")).ancestors().nth(2).context("the crate lies in crates/")?;
    let model = SmolLm2::load(&options.model.unwrap_or_else(|| workspace.join("models/smollm2")))?;
    let engine = Engine::headless()?;
    let device = engine.device().adapter_info().name;
    println!("attention on {device}, loaded in {:.1} s", started.elapsed().as_secs_f64());

    let most = options.tokens.unwrap_or(256);
    let mut talk = Talk::new(&model, &engine)?;
    match (&options.check, &options.prompt) {
        (Some(file), _) => golden::check(&model, &engine, file, options.prompts, options.tokens)?,
        (None, Some(prompt)) if options.raw => {
            print!("{prompt}");
            talk.answer(&model.tokenize(prompt)?, most)?;
            println!("{}", talk.pace);
        }
        (None, Some(prompt)) => {
            let system = model.turn("system", &options.system)?;
            talk.answer(&[system, model.turn("user", prompt.trim())?, model.answer()?].concat(), most)?;
            println!("{}", talk.pace);
        }
        (None, None) => converse(&model, &mut talk, &options.system, most)?,
    }
    Ok(())
}

/// Answers line after line, until one is empty.
fn converse(model: &SmolLm2, talk: &mut Talk<'_>, system: &str, most: usize) -> Result<()> {
    let mut next = model.turn("system", system)?;
    let mut lines = io::stdin().lock().lines();
    loop {
        print!("> ");
        io::stdout().flush()?;
        let Some(line) = lines.next().transpose()? else { break };
        if line.trim().is_empty() {
            break;
        }
        let said = talk.answer(&[next, model.turn("user", line.trim())?, model.answer()?].concat(), most)?;
        // An answer ends with the token that nobody has heard yet, and with a line's end; one that was cut short ends here.
        next = match said.last() {
            Some(&last) if SmolLm2::ends(last) => model.end_of_turn()?,
            Some(&last) => [vec![last], model.end_of_turn()?].concat(),
            None => model.end_of_turn()?,
        };
    }
    println!("{}", talk.pace);
    Ok(())
}
