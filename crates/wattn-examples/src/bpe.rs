//! Text to tokens and back, by the byte-level BPE that a GGUF file brings.

use anyhow::{Context, Result, bail};
use kitoken::Kitoken;
use serde_json::{Map, json};

use crate::gguf::{Gguf, Value};

/// What a file calls tokens that stand for no text.
const CONTROL: Value = Value::Integer(3);

/// A byte-level BPE tokenizer that isolates digits and adds nothing of its own.
#[derive(Debug)]
pub(crate) struct Bpe(Kitoken);

impl Bpe {
    /// From the vocabulary and the merges of a file. They are those of a `tokenizer.json`, whose other settings follow from the
    /// file's `tokenizer.ggml.pre`, here `smollm`: digits are isolated before words are found.
    pub(crate) fn new(file: &Gguf<'_>) -> Result<Self> {
        let tokens = texts(file, "tokenizer.ggml.tokens")?;
        let kinds = file.list("tokenizer.ggml.token_type")?;
        let vocab: Map<String, serde_json::Value> =
            tokens.iter().zip(0_u32..).map(|(&token, id)| (token.to_owned(), id.into())).collect();
        let special =
            (0_u32..).zip(&tokens).zip(kinds).filter(|(_, kind)| **kind == CONTROL).map(|((id, token), _)| {
                json!({"id": id, "content": token, "special": true, "normalized": false,
                   "single_word": false, "lstrip": false, "rstrip": false})
            });
        let definition = json!({
            "version": "1.0",
            "added_tokens": special.collect::<Vec<_>>(),
            "pre_tokenizer": {"type": "Sequence", "pretokenizers": [
                {"type": "Digits", "individual_digits": true},
                {"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": true},
            ]},
            "decoder": {"type": "ByteLevel", "add_prefix_space": true, "trim_offsets": true, "use_regex": true},
            "model": {"type": "BPE", "vocab": vocab, "merges": texts(file, "tokenizer.ggml.merges")?},
        });
        let definition = serde_json::to_vec(&definition)?;
        Ok(Self(Kitoken::from_tokenizers_slice(&definition).context("the file's vocabulary")?))
    }

    /// The ids of `text`. Names of control tokens in it become them, or are text like any other.
    pub(crate) fn encode(&self, text: &str, control: bool) -> Result<Vec<u32>> {
        Ok(self.0.encode(text, control)?)
    }

    /// The bytes of a token, which may be a part of a character only; none of a control token.
    pub(crate) fn bytes(&self, token: u32) -> Result<Vec<u8>> {
        Ok(self.0.decode([token], false)?)
    }
}

fn texts<'a>(file: &'a Gguf<'_>, key: &str) -> Result<Vec<&'a str>> {
    let text = |value: &'a Value| match value {
        Value::Text(text) => Ok(&**text),
        other => bail!("metadata {key} has {other:?}, expected text"),
    };
    file.list(key)?.iter().map(text).collect()
}
