//! SmolLM2-135M-Instruct: a decoder of thirty layers that chats.
//!
//! Per layer, pre-norm: x ← x + out(attention(rope(q), rope(k), v)), then x ← x + down(silu(gate) up), q, k, v, gate and up being
//! products of norm(x). The embedding is the output matrix too.

use std::fs;
use std::path::Path;

use anyhow::{Context, Result, ensure};
use ndarray::{Array2, Axis, Slice};

use crate::blocks::{Dense, RmsNorm, Rope, silu};
use crate::bpe::Bpe;
use crate::gguf::Gguf;

/// Numbers a position between layers.
pub const HIDDEN: usize = 576;
/// Query heads a layer.
pub const HEADS: usize = 9;
/// Key and value heads a layer: each serves three query heads.
pub const KV_HEADS: usize = 3;
/// Numbers a head.
pub const HEAD_DIM: usize = 64;
/// Decoder layers.
pub const LAYERS: usize = 30;
/// The longest conversation in tokens.
pub const MAX_TOKENS: usize = 8192;
/// Tokens there are.
pub const VOCABULARY: usize = 49_152;

const INTERMEDIATE: usize = 1536;
const ROPE_BASE: f64 = 1e5;
const NORM_EPSILON: f64 = 1e-5;
const FILE: &str = "SmolLM2-135M-Instruct.Q4_1.gguf";
const END_OF_TEXT: u32 = 0;
const END_OF_TURN: u32 = 2;

/// The model: its tokenizer and its weights.
#[derive(Debug)]
pub struct SmolLm2 {
    tokenizer: Bpe,
    embedding: Dense, // [vocabulary, hidden]
    layers: Vec<Layer>,
    norm: RmsNorm,
    rope: Rope,
}

#[derive(Debug)]
struct Layer {
    attention_norm: RmsNorm,
    query: Dense,
    key: Dense,
    value: Dense,
    out: Dense,
    norm: RmsNorm,
    gate: Dense,
    up: Dense,
    down: Dense,
}

impl SmolLm2 {
    /// Reads the GGUF file in `folder`; weights become f32.
    pub fn load(folder: &Path) -> Result<Self> {
        let path = folder.join(FILE);
        let bytes = fs::read(&path)
            .with_context(|| format!("{} is missing: `cargo xtask model smollm2` fetches it", path.display()))?;
        Self::from_file(&Gguf::parse(&bytes)?).with_context(|| path.display().to_string())
    }

    fn from_file(file: &Gguf<'_>) -> Result<Self> {
        Ok(Self {
            tokenizer: Bpe::new(file)?,
            embedding: Dense::load(file, "token_embd", HIDDEN, VOCABULARY)?,
            layers: (0..LAYERS).map(|layer| Layer::load(file, layer)).collect::<Result<_>>()?,
            norm: RmsNorm::load(file, "output_norm", HIDDEN, NORM_EPSILON)?,
            rope: Rope::new(HEAD_DIM, ROPE_BASE),
        })
    }

    /// The tokens of `text`, names of control tokens such as `<|im_start|>` standing for them. Nothing is added.
    pub fn tokenize(&self, text: &str) -> Result<Vec<u32>> {
        self.tokenizer.encode(text, true)
    }

    /// The tokens of a turn of the conversation; what is said cannot pose as control tokens.
    pub fn turn(&self, role: &str, said: &str) -> Result<Vec<u32>> {
        let parts = [(format!("<|im_start|>{role}\n"), true), (said.to_owned(), false), ("<|im_end|>\n".into(), true)];
        let tokens = parts.iter().map(|(text, control)| self.tokenizer.encode(text, *control));
        Ok(tokens.collect::<Result<Vec<_>>>()?.concat())
    }

    /// The tokens that ask for an answer.
    pub fn answer(&self) -> Result<Vec<u32>> {
        self.tokenize("<|im_start|>assistant\n")
    }

    /// The tokens that end a turn.
    pub fn end_of_turn(&self) -> Result<Vec<u32>> {
        self.tokenize("<|im_end|>\n")
    }

    /// The bytes of a token, which may be a part of a character only.
    pub fn bytes(&self, token: u32) -> Result<Vec<u8>> {
        self.tokenizer.bytes(token)
    }

    /// Whether a token ends an answer.
    pub fn ends(token: u32) -> bool {
        [END_OF_TEXT, END_OF_TURN].contains(&token)
    }

    /// Takes `tokens` after `before` others; the logits of what comes next, [`VOCABULARY`] of them.
    ///
    /// `attention(layer, q, k, v)` is called once a layer, with dense `[tokens, heads, HEAD_DIM]`, positions rotated in already. It
    /// keeps the keys and values, and returns for each query `softmax(q kᵀ / √head_dim) v` over all tokens up to its own.
    pub fn next<A>(&self, tokens: &[u32], before: usize, mut attention: A) -> Result<Vec<f32>>
    where
        A: FnMut(usize, &[f32], &[f32], &[f32]) -> Result<Vec<f32>>,
    {
        ensure!(!tokens.is_empty(), "no tokens to go on from");
        let all = before + tokens.len();
        ensure!(all <= MAX_TOKENS, "a conversation of {all} tokens, the model takes {MAX_TOKENS}");
        let mut x = self.embedding.rows(tokens)?; // [tokens, hidden]
        let turns = self.rope.turns(before, tokens.len());
        for (index, layer) in self.layers.iter().enumerate() {
            let normed = layer.attention_norm.apply(&x);
            let (mut q, mut k, v) =
                (layer.query.forward(&normed), layer.key.forward(&normed), layer.value.forward(&normed));
            turns.rotate(&mut q);
            turns.rotate(&mut k);
            let attended = attention(index, dense(&q)?, dense(&k)?, dense(&v)?)?;
            x += &layer.out.forward(&Array2::from_shape_vec((tokens.len(), HIDDEN), attended)?);
            let normed = layer.norm.apply(&x);
            let mut wide = layer.gate.forward(&normed); // [tokens, intermediate]
            wide.zip_mut_with(&layer.up.forward(&normed), |gate, up| *gate = silu(*gate) * up);
            x += &layer.down.forward(&wide);
        }
        let last = self.norm.apply(&x.slice_axis(Axis(0), Slice::from(-1..)).to_owned());
        Ok(self.embedding.forward(&last).index_axis_move(Axis(0), 0).to_vec())
    }
}

impl Layer {
    fn load(file: &Gguf<'_>, layer: usize) -> Result<Self> {
        let name = |name: &str| format!("blk.{layer}.{name}");
        let dense = |of: &str, inputs, outputs| Dense::load(file, &name(of), inputs, outputs);
        let norm = |of: &str| RmsNorm::load(file, &name(of), HIDDEN, NORM_EPSILON);
        Ok(Self {
            attention_norm: norm("attn_norm")?,
            query: dense("attn_q", HIDDEN, HEADS * HEAD_DIM)?,
            key: dense("attn_k", HIDDEN, KV_HEADS * HEAD_DIM)?,
            value: dense("attn_v", HIDDEN, KV_HEADS * HEAD_DIM)?,
            out: dense("attn_output", HEADS * HEAD_DIM, HIDDEN)?,
            norm: norm("ffn_norm")?,
            gate: dense("ffn_gate", HIDDEN, INTERMEDIATE)?,
            up: dense("ffn_up", HIDDEN, INTERMEDIATE)?,
            down: dense("ffn_down", INTERMEDIATE, HIDDEN)?,
        })
    }
}

fn dense(x: &Array2<f32>) -> Result<&[f32]> {
    x.as_slice().context("products are dense")
}
