//! Text to BERT token ids.

use anyhow::{Context, Result};
use kitoken::{Definition, Kitoken};

/// A `WordPiece` tokenizer that frames each text as `[CLS] text [SEP]` and never pads or truncates.
#[derive(Debug)]
pub(crate) struct WordPiece {
    pieces: Kitoken,
    first: u32,
    last: u32,
}

impl WordPiece {
    /// From the bytes of a `tokenizer.json`.
    pub(crate) fn new(json: &[u8]) -> Result<Self> {
        let mut definition: Definition = Kitoken::from_tokenizers_slice(json)?.into();
        // The file pads and truncates every text to 128 ids. Padding is the batch's business, a too long text an error.
        definition.config.processing.clear();
        let special = |name: &str| {
            let token = definition.specials.iter().find(|token| token.bytes.as_slice() == name.as_bytes());
            token.map(|token| token.id).with_context(|| format!("the tokenizer has no {name}"))
        };
        let (first, last) = (special("[CLS]")?, special("[SEP]")?);
        Ok(Self { pieces: Kitoken::from_definition(definition)?, first, last })
    }

    /// The ids of `text`. A "[SEP]" in it is text like any other.
    pub(crate) fn encode(&self, text: &str) -> Result<Vec<u32>> {
        let mut ids = vec![self.first];
        ids.extend(self.pieces.encode(text, false)?);
        ids.push(self.last);
        Ok(ids)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The real file's structure with a vocabulary of ten, and padding and truncation to 4.
    const TINY: &str = r###"{
        "version": "1.0",
        "truncation": {"max_length": 4, "strategy": "LongestFirst", "stride": 0},
        "padding": {
            "strategy": {"Fixed": 4}, "direction": "Right", "pad_to_multiple_of": null,
            "pad_id": 0, "pad_type_id": 0, "pad_token": "[PAD]"
        },
        "added_tokens": [
            {
                "id": 0, "content": "[PAD]", "special": true, "normalized": false,
                "single_word": false, "lstrip": false, "rstrip": false
            },
            {
                "id": 1, "content": "[UNK]", "special": true, "normalized": false,
                "single_word": false, "lstrip": false, "rstrip": false
            },
            {
                "id": 2, "content": "[CLS]", "special": true, "normalized": false,
                "single_word": false, "lstrip": false, "rstrip": false
            },
            {
                "id": 3, "content": "[SEP]", "special": true, "normalized": false,
                "single_word": false, "lstrip": false, "rstrip": false
            }
        ],
        "normalizer": {
            "type": "BertNormalizer", "clean_text": true, "handle_chinese_chars": true,
            "strip_accents": null, "lowercase": true
        },
        "pre_tokenizer": {"type": "BertPreTokenizer"},
        "decoder": {"type": "WordPiece", "prefix": "##", "cleanup": true},
        "model": {
            "type": "WordPiece", "unk_token": "[UNK]", "continuing_subword_prefix": "##",
            "max_input_chars_per_word": 100,
            "vocab": {
                "[PAD]": 0, "[UNK]": 1, "[CLS]": 2, "[SEP]": 3,
                "cafe": 4, "##s": 5, "the": 6, "!": 7, "sun": 8, "##ny": 9
            }
        }
    }"###;

    #[test]
    fn frames_folds_and_splits() -> Result<()> {
        let tokenizer = WordPiece::new(TINY.as_bytes())?;
        assert_eq!(tokenizer.encode("The sunny cafés!")?, [2, 6, 8, 9, 4, 5, 7, 3]);
        assert_eq!(tokenizer.encode("rain")?, [2, 1, 3]);
        Ok(())
    }

    #[test]
    fn neither_pads_nor_truncates() -> Result<()> {
        let tokenizer = WordPiece::new(TINY.as_bytes())?;
        assert_eq!(tokenizer.encode("")?, [2, 3]);
        assert_eq!(tokenizer.encode("the the the the the the")?.len(), 8);
        Ok(())
    }
}
