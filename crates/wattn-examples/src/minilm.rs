//! all-MiniLM-L6-v2: a BERT encoder of six layers whose pooled output is a sentence embedding.
//!
//! Per layer, post-norm: x ← norm(x + out(attention(q, k, v))), then x ← norm(x + down(gelu(up(x)))). The rows of a
//! batch are padded on the right to the longest; the padding is computed and never looked at, because attention gets
//! the key lengths and pooling stops at them.

use std::fs;
use std::path::Path;

use anyhow::{Context, Result, bail, ensure};
use ndarray::{Array1, Array2, Axis, Slice};
use safetensors::SafeTensors;

use crate::AttentionShape;
use crate::layers::{LayerNorm, Linear, gelu, matrix};
use crate::wordpiece::WordPiece;

/// Numbers per sentence embedding, and per position between layers.
pub const HIDDEN: usize = 384;
/// Attention heads per layer.
pub const HEADS: usize = 12;
/// Numbers per head.
pub const HEAD_DIM: usize = HIDDEN / HEADS;
/// Encoder layers.
pub const LAYERS: usize = 6;
/// The longest sentence in tokens, `[CLS]` and `[SEP]` included.
pub const MAX_TOKENS: usize = 512;

const INTERMEDIATE: usize = 1536;
const VOCABULARY: usize = 30_522;
const NORM_EPSILON: f64 = 1e-12;
const PADDING: u32 = 0;

/// The model: its tokenizer and its weights.
#[derive(Debug)]
pub struct MiniLm {
    tokenizer: WordPiece,
    words: Array2<f32>,     // [vocabulary, hidden]
    positions: Array2<f32>, // [max tokens, hidden], with the embedding of token type 0 added
    norm: LayerNorm,
    layers: Vec<Layer>,
}

#[derive(Debug)]
struct Layer {
    query: Linear,
    key: Linear,
    value: Linear,
    out: Linear,
    attention_norm: LayerNorm,
    up: Linear,
    down: Linear,
    output_norm: LayerNorm,
}

impl MiniLm {
    /// Reads `model.safetensors` and `tokenizer.json` from `folder`.
    pub fn load(folder: &Path) -> Result<Self> {
        let read = |name: &str| {
            let path = folder.join(name);
            fs::read(&path)
                .with_context(|| format!("{} is missing: `cargo xtask model minilm` fetches it", path.display()))
        };
        let tokenizer = WordPiece::new(&read("tokenizer.json")?).context("tokenizer.json")?;
        Self::from_parts(tokenizer, &read("model.safetensors")?).context("model.safetensors")
    }

    fn from_parts(tokenizer: WordPiece, weights: &[u8]) -> Result<Self> {
        let file = SafeTensors::deserialize(weights)?;
        let types = matrix(&file, "embeddings.token_type_embeddings.weight", [2, HIDDEN])?;
        let mut positions = matrix(&file, "embeddings.position_embeddings.weight", [MAX_TOKENS, HIDDEN])?;
        positions += &types.row(0);
        Ok(Self {
            tokenizer,
            words: matrix(&file, "embeddings.word_embeddings.weight", [VOCABULARY, HIDDEN])?,
            positions,
            norm: LayerNorm::load(&file, "embeddings.LayerNorm", HIDDEN, NORM_EPSILON)?,
            layers: (0..LAYERS).map(|layer| Layer::load(&file, layer)).collect::<Result<_>>()?,
        })
    }

    /// The token ids of one sentence, `[CLS]` and `[SEP]` included.
    pub fn tokenize(&self, sentence: &str) -> Result<Vec<u32>> {
        let ids = self.tokenizer.encode(sentence)?;
        ensure!(ids.len() <= MAX_TOKENS, "a sentence has {} tokens, the model takes {MAX_TOKENS}", ids.len());
        Ok(ids)
    }

    /// The embeddings of tokenized sentences as one padded batch: `[sentences][HIDDEN]`, each of length 1.
    ///
    /// `attention(layer, q, k, v, shape, lengths)` is called once per layer and returns `softmax(q kᵀ / √head_dim) v`.
    /// Row b of the batch attends to its first `lengths[b]` keys, in both directions. What comes back for padded
    /// queries is ignored.
    pub fn embed<A>(&self, sentences: &[Vec<u32>], mut attention: A) -> Result<Vec<Vec<f32>>>
    where
        A: FnMut(usize, &[f32], &[f32], &[f32], AttentionShape, &[u32]) -> Result<Vec<f32>>,
    {
        let batch = sentences.len();
        let seq = sentences.iter().map(Vec::len).max().unwrap_or(0);
        if sentences.iter().any(Vec::is_empty) || seq > MAX_TOKENS {
            bail!("a sentence has 1 to {MAX_TOKENS} tokens");
        }
        let shape = AttentionShape { batch, seq, heads: HEADS, head_dim: HEAD_DIM };
        let lengths: Vec<u32> = sentences.iter().map(|ids| ids.len() as u32).collect();

        let mut x = self.embed_tokens(sentences, seq)?; // [batch * seq, hidden]
        for (index, layer) in self.layers.iter().enumerate() {
            // A position's numbers are its heads one after another: [batch, seq, heads, head_dim] as it comes.
            let [q, k, v] =
                [&layer.query, &layer.key, &layer.value].map(|linear| linear.forward(&x).into_raw_vec_and_offset().0);
            let attended =
                attention(index, &q, &k, &v, shape, &lengths).with_context(|| format!("attention of layer {index}"))?;
            ensure!(
                attended.len() == shape.elements(),
                "attention returned {} numbers, expected {}",
                attended.len(),
                shape.elements()
            );
            x = layer.finish(x, &Array2::from_shape_vec((batch * seq, HIDDEN), attended)?);
        }
        Ok(sentences.iter().enumerate().map(|(row, ids)| pool(&x, row * seq, ids.len())).collect())
    }

    /// Word + position (which has token type 0 in it), normalised: `[batch * seq, hidden]`.
    fn embed_tokens(&self, sentences: &[Vec<u32>], seq: usize) -> Result<Array2<f32>> {
        let mut x = Array2::zeros((sentences.len() * seq, HIDDEN));
        for (mut row, index) in x.axis_iter_mut(Axis(0)).zip(0..) {
            let (sentence, position) = (index / seq, index % seq);
            let id = sentences[sentence].get(position).copied().unwrap_or(PADDING) as usize;
            ensure!(id < VOCABULARY, "token {id} is outside the vocabulary of {VOCABULARY}");
            row += &self.words.row(id);
            row += &self.positions.row(position);
        }
        self.norm.apply(&mut x);
        Ok(x)
    }
}

impl Layer {
    fn load(file: &SafeTensors<'_>, layer: usize) -> Result<Self> {
        let square =
            |name: &str| Linear::load(file, &format!("encoder.layer.{layer}.attention.{name}"), HIDDEN, HIDDEN);
        let norm = |name: &str| {
            LayerNorm::load(file, &format!("encoder.layer.{layer}.{name}.LayerNorm"), HIDDEN, NORM_EPSILON)
        };
        Ok(Self {
            query: square("self.query")?,
            key: square("self.key")?,
            value: square("self.value")?,
            out: square("output.dense")?,
            attention_norm: norm("attention.output")?,
            up: Linear::load(file, &format!("encoder.layer.{layer}.intermediate.dense"), HIDDEN, INTERMEDIATE)?,
            down: Linear::load(file, &format!("encoder.layer.{layer}.output.dense"), INTERMEDIATE, HIDDEN)?,
            output_norm: norm("output")?,
        })
    }

    /// Everything after attention: x is the layer's input, `attended` what attention returned, both `[rows, hidden]`.
    fn finish(&self, mut x: Array2<f32>, attended: &Array2<f32>) -> Array2<f32> {
        x += &self.out.forward(attended);
        self.attention_norm.apply(&mut x);
        let mut wide = self.up.forward(&x); // [rows, intermediate]
        wide.mapv_inplace(gelu);
        x += &self.down.forward(&wide);
        self.output_norm.apply(&mut x);
        x
    }
}

/// The mean over `length` real positions from row `start`, divided by its L2 norm.
fn pool(x: &Array2<f32>, start: usize, length: usize) -> Vec<f32> {
    let real = x.slice_axis(Axis(0), Slice::from(start..start + length)); // [length, hidden]
    let sum: Array1<f32> = real.sum_axis(Axis(0));
    let norm = sum.dot(&sum).sqrt(); // dividing by the norm cancels the mean's 1 / length
    sum.iter().map(|number| number / norm).collect()
}

#[cfg(test)]
mod tests {
    use ndarray::array;

    use super::*;

    #[test]
    fn pooling_stops_at_the_length() {
        let x = array![[9.0, 9.0], [1.0, 4.0], [5.0, 4.0], [f32::NAN, f32::NAN]];
        assert_eq!(pool(&x, 1, 2), [0.6, 0.8]);
    }
}
