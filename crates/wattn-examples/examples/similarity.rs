//! Which sentences mean the same? Embeds them with all-MiniLM-L6-v2 and prints their cosine similarities.
//!
//! ```sh
//! cargo xtask model minilm                                    # once: fetches the weights
//! cargo run --example similarity
//! cargo run --example similarity -- "A cat sat." "A dog ran." "Stocks fell."
//! ```

use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use clap::Parser;
use comfy_table::{CellAlignment, Table, TableComponent, presets};
use serde::Deserialize;
use wattn::{Attention, Engine, Extent, HeadDim, Heads, HostLayout, HostOperands, Lengths};
use wattn_examples::AttentionShape;
use wattn_examples::minilm::MiniLm;

/// Pairs that mean the same in other words, and a few that are hard to tokenize.
const SENTENCES: [&str; 8] = [
    "A cat sat on the mat.",
    "A feline was sitting on the rug.",
    "Attention!",
    "The café's crème brûlée in Zürich was très délicieuse, señor Núñez said; naïve façades aside.",
    "In 2024 the train left at 07:45, covered 1,234.5 km and cost $89.99 (about 12% more than in 2019).",
    "On Monday morning the committee met for almost three hours to discuss the new library: where it should stand, \
     how many books it could hold, whether the reading room ought to face the river or the park, and who would pay \
     for the roof. Nobody agreed about the roof, but everyone liked the river, and in the end the chairwoman proposed \
     to ask the children of the town, since they would be the ones to use the building the longest.",
    "How do I change the password of my account?",
    "What are the steps to reset my login credentials?",
];

/// The largest absolute error of any number that `--check` lets pass.
const TOLERANCE: f64 = 1e-5;

/// How similar sentences are, by all-MiniLM-L6-v2.
#[derive(Parser)]
struct Options {
    /// The sentences to compare [default: eight samples].
    sentences: Vec<String>,
    /// Take the sentences of this file instead, and fail unless tokens, embeddings and cosines match it.
    #[arg(long, value_name = "FILE", conflicts_with = "sentences")]
    check: Option<PathBuf>,
    /// Folder with the weights [default: models/minilm of the workspace].
    #[arg(long, value_name = "DIR")]
    model: Option<PathBuf>,
}

/// Known results: `tests/golden/models/minilm.json`.
#[derive(Deserialize)]
struct Golden {
    sentences: Vec<GoldenSentence>,
    cosine: Vec<Vec<f64>>,
}

#[derive(Deserialize)]
struct GoldenSentence {
    text: String,
    token_ids: Vec<u32>,
    embedding: Vec<f64>,
}

fn main() -> Result<()> {
    let options = Options::parse();
    let golden = options.check.as_deref().map(read_golden).transpose()?;
    let sentences: Vec<String> = match &golden {
        Some(golden) => golden.sentences.iter().map(|sentence| sentence.text.clone()).collect(),
        None if options.sentences.is_empty() => SENTENCES.map(String::from).to_vec(),
        None => options.sentences,
    };

    let started = Instant::now();
    let workspace = Path::new(env!("CARGO_MANIFEST_DIR")).ancestors().nth(2).context("the crate lies in crates/")?;
    let model = MiniLm::load(&options.model.unwrap_or_else(|| workspace.join("models/minilm")))?;
    let engine = Engine::headless()?;
    println!("attention on {}", engine.device().adapter_info().name);
    let loading = started.elapsed();

    let started = Instant::now();
    let tokens = sentences.iter().map(|text| model.tokenize(text)).collect::<Result<Vec<_>>>()?;
    let mut attending = Duration::ZERO;
    let embeddings = model.embed(&tokens, |_layer, q, k, v, shape, lengths| {
        let started = Instant::now();
        let out = gpu_attention(&engine, [q, k, v], shape, lengths)?;
        attending += started.elapsed();
        Ok(out)
    })?;
    let total = started.elapsed();

    let cosine = cosines(&embeddings);
    println!("{}", table(&sentences, &cosine));
    println!(
        "loading {}   attention {}   the rest {}",
        milliseconds(loading),
        milliseconds(attending),
        milliseconds(total - attending)
    );
    golden.map_or(Ok(()), |golden| check(&golden, &tokens, &embeddings, &cosine))
}

/// Attention of one layer on the GPU, the padding given as key lengths. All four are `[batch, seq, heads, head_dim]`.
fn gpu_attention(engine: &Engine, [q, k, v]: [&[f32]; 3], shape: AttentionShape, lengths: &[u32]) -> Result<Vec<f32>> {
    let size = |n: usize| u32::try_from(n).context("a size beyond 32 bits");
    let attention = Attention::new(Heads::new(size(shape.heads)?)?, HeadDim::new(size(shape.head_dim)?)?);
    let extent = Extent::new(size(shape.batch)?, size(shape.seq)?, size(shape.seq)?);
    let lengths = Lengths::Keys(lengths);
    let operands = HostOperands { layout: HostLayout::Bshd, q, k, v, lengths, ..HostOperands::default() };
    Ok(engine.blocking().run(&attention, extent, &operands)?.out)
}

/// The embeddings have length 1, so that their dot product is the cosine.
fn cosines(embeddings: &[Vec<f32>]) -> Vec<Vec<f32>> {
    let cosine = |a: &[f32], b: &[f32]| a.iter().zip(b).map(|(&a, &b)| f64::from(a) * f64::from(b)).sum::<f64>() as f32;
    embeddings.iter().map(|a| embeddings.iter().map(|b| cosine(a, b)).collect()).collect()
}

fn table(sentences: &[String], cosine: &[Vec<f32>]) -> Table {
    let mut table = Table::new();
    table.load_preset(presets::UTF8_HORIZONTAL_ONLY);
    table.remove_style(TableComponent::HorizontalLines).remove_style(TableComponent::MiddleIntersections);
    let numbers = (1..=sentences.len()).map(|number| number.to_string());
    table.set_header([String::new(), String::new()].into_iter().chain(numbers));
    for (number, (sentence, row)) in (1..).zip(sentences.iter().zip(cosine)) {
        let cells = row.iter().map(|cosine| format!("{cosine:.2}"));
        table.add_row([number.to_string(), label(sentence)].into_iter().chain(cells));
    }
    for column in table.column_iter_mut().filter(|column| column.index != 1) {
        column.set_cell_alignment(CellAlignment::Right);
    }
    table
}

/// The sentence's beginning, in at most 32 characters.
fn label(sentence: &str) -> String {
    const WIDTH: usize = 32;
    if sentence.chars().count() <= WIDTH {
        return sentence.to_owned();
    }
    let start: String = sentence.chars().take(WIDTH - 1).collect();
    format!("{}…", start.trim_end())
}

fn milliseconds(duration: Duration) -> String {
    format!("{:.1} ms", 1e3 * duration.as_secs_f64())
}

fn read_golden(path: &Path) -> Result<Golden> {
    let text = fs::read_to_string(path).with_context(|| path.display().to_string())?;
    serde_json::from_str(&text).with_context(|| path.display().to_string())
}

fn check(golden: &Golden, tokens: &[Vec<u32>], embeddings: &[Vec<f32>], cosine: &[Vec<f32>]) -> Result<()> {
    for (sentence, ids) in golden.sentences.iter().zip(tokens) {
        ensure!(
            *ids == sentence.token_ids,
            "tokens of {:?}: {ids:?}, expected {:?}",
            sentence.text,
            sentence.token_ids
        );
    }
    let expected: Vec<&[f64]> = golden.sentences.iter().map(|sentence| &*sentence.embedding).collect();
    let embedding_error = largest_error(embeddings, &expected)?;
    let expected: Vec<&[f64]> = golden.cosine.iter().map(Vec::as_slice).collect();
    let cosine_error = largest_error(cosine, &expected)?;
    println!("largest error: embeddings {embedding_error:.1e}, cosines {cosine_error:.1e}, allowed {TOLERANCE:.0e}");
    ensure!(embedding_error <= TOLERANCE && cosine_error <= TOLERANCE, "the results differ from the known ones");
    Ok(())
}

/// The largest absolute difference; NaN counts as infinitely far off.
fn largest_error(actual: &[Vec<f32>], expected: &[&[f64]]) -> Result<f64> {
    ensure!(actual.len() == expected.len(), "{} rows, expected {}", actual.len(), expected.len());
    let mut largest = 0.0_f64;
    for (actual, expected) in actual.iter().zip(expected) {
        ensure!(actual.len() == expected.len(), "{} numbers, expected {}", actual.len(), expected.len());
        for (actual, expected) in actual.iter().zip(*expected) {
            let error = (f64::from(*actual) - expected).abs();
            largest = largest.max(if error.is_nan() { f64::INFINITY } else { error });
        }
    }
    Ok(largest)
}
