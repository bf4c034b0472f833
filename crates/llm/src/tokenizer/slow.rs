//! Tokenizers from the files that preceded `tokenizer.json`, converted as in
//! `convert_slow_tokenizer.py` of transformers 4.57.

use super::class::SlowFiles;
use super::sentencepiece::{Algorithm, Model};
use super::settings::Settings;
use serde_json::{Value, json};
use std::collections::{HashMap, HashSet};
use tokenizers::models::ModelWrapper;
use tokenizers::models::bpe::{BPE, Merges, Vocab};
use tokenizers::models::unigram::Unigram;
use tokenizers::{AddedToken, Tokenizer};

/// The regular expression that splits a text into words for Qwen2.
pub(super) const QWEN2_SPLIT: &str = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";

/// Why a tokenizer cannot be built.
type Reason = String;

/// A byte-level BPE tokenizer from `vocab.json` and `merges.txt`.
pub(super) fn from_merges(
    kind: SlowFiles,
    vocab: &[u8],
    merges: &[u8],
    settings: &Settings,
) -> Result<Tokenizer, Reason> {
    let vocab: HashMap<String, u32> =
        serde_json::from_slice(vocab).map_err(|cause| format!("vocab.json: {cause}"))?;
    let text = std::str::from_utf8(merges).map_err(|cause| format!("merges.txt: {cause}"))?;
    let merges = match kind {
        SlowFiles::Qwen2 => qwen2_merges(text),
        _ => gpt2_merges(text),
    }?;
    let bpe = BPE::builder().vocab_and_merges(vocab.into_iter().collect::<Vocab>(), merges);
    let mut tokenizer = Tokenizer::new(bpe.build().map_err(|cause| cause.to_string())?);

    let prefix = settings.flag("add_prefix_space", false);
    let parts = match kind {
        SlowFiles::Qwen2 => json!({
            "normalizer": { "type": "NFC" },
            "pre_tokenizer": { "type": "Sequence", "pretokenizers": [
                { "type": "Split", "pattern": { "Regex": QWEN2_SPLIT }, "behavior": "Isolated", "invert": false },
                byte_level(prefix, false),
            ] },
            "decoder": byte_level(true, true),
        }),
        _ => {
            json!({ "pre_tokenizer": byte_level(prefix, true), "decoder": byte_level(true, true) })
        }
    };
    assemble(&mut tokenizer, parts)?;

    Ok(tokenizer)
}

/// The step that maps bytes to the characters of GPT-2's vocabulary.
pub(super) fn byte_level(add_prefix_space: bool, use_regex: bool) -> Value {
    json!({ "type": "ByteLevel", "add_prefix_space": add_prefix_space, "trim_offsets": true, "use_regex": use_regex })
}

/// GPT-2's converter drops the first line (a version) and the last one (empty), whatever they
/// contain.
fn gpt2_merges(text: &str) -> Result<Merges, Reason> {
    let text = text.replace("\r\n", "\n").replace('\r', "\n");
    let lines: Vec<&str> = text.split('\n').collect();
    let last = lines.len().saturating_sub(1).max(1);
    pairs(lines.get(1..last).unwrap_or_default().iter().copied())
}

/// Qwen2's converter drops empty lines, and the first line if it is a version.
fn qwen2_merges(text: &str) -> Result<Merges, Reason> {
    let lines = text
        .lines()
        .enumerate()
        .map(|(number, line)| (number, line.trim()));
    pairs(
        lines
            .filter(|(number, line)| {
                !(line.is_empty() || *number == 0 && line.starts_with("#version:"))
            })
            .map(|(_, line)| line),
    )
}

/// Parses one pair per line and drops repeated ones.
fn pairs<'a>(lines: impl Iterator<Item = &'a str>) -> Result<Merges, Reason> {
    let mut seen = HashSet::new();
    let mut merges = Vec::new();
    for line in lines {
        let mut parts = line.split_whitespace();
        let (Some(left), Some(right), None) = (parts.next(), parts.next(), parts.next()) else {
            return Err(format!("merges.txt: {line:?} is not a pair of pieces"));
        };

        if seen.insert((left, right)) {
            merges.push((left.to_owned(), right.to_owned()));
        }
    }

    Ok(merges)
}

/// A tokenizer from SentencePiece's `tokenizer.model`.
pub(super) fn from_sentencepiece(
    kind: SlowFiles,
    bytes: &[u8],
    settings: &Settings,
) -> Result<Tokenizer, Reason> {
    let model = Model::parse(bytes)
        .map_err(|cause| format!("tokenizer.model is not SentencePiece's: {cause}"))?;
    let vocab = match kind {
        SlowFiles::Gemma => gemma_vocab(&model, settings)?,
        _ => llama_vocab(&model, settings),
    };
    let mut tokenizer = Tokenizer::new(pieces_model(kind, &model, &vocab)?);

    let tokens = model
        .pieces
        .iter()
        .filter(|piece| piece.is_control() || piece.is_user_defined());
    let tokens = tokens.map(|piece| {
        let is_turn = kind == SlowFiles::Gemma
            && ["<start_of_turn>", "<end_of_turn>"].contains(&piece.text());
        AddedToken::from(piece.text().to_owned(), piece.is_control() || is_turn).normalized(false)
    });
    tokenizer
        .add_tokens(tokens.collect::<Vec<_>>())
        .map_err(|cause| cause.to_string())?;

    let parts = match kind {
        SlowFiles::Gemma => json!({
            "normalizer": { "type": "Replace", "pattern": { "String": " " }, "content": "▁" },
            "pre_tokenizer": {
                "type": "Split", "pattern": { "String": " " }, "behavior": "MergedWithPrevious", "invert": false,
            },
            "decoder": sentencepiece_decoder(false),
        }),
        _ => llama_parts(settings),
    };
    assemble(&mut tokenizer, parts)?;

    Ok(tokenizer)
}

fn sentencepiece_decoder(strips_prefix: bool) -> Value {
    let mut steps = vec![
        json!({ "type": "Replace", "pattern": { "String": "▁" }, "content": " " }),
        json!({ "type": "ByteFallback" }),
        json!({ "type": "Fuse" }),
    ];
    if strips_prefix {
        steps.push(json!({ "type": "Strip", "content": " ", "start": 1, "stop": 0 }));
    }

    json!({ "type": "Sequence", "decoders": steps })
}

/// `LlamaConverter`: which step adds the prefix space depends on `legacy` and `add_prefix_space`.
fn llama_parts(settings: &Settings) -> Value {
    let prefix = settings.flag("add_prefix_space", true);
    // Code Llama does not have `legacy`.
    let is_legacy =
        settings.class.name != "LlamaTokenizer" || settings.optional_flag("legacy").unwrap_or(true);
    let decoder = sentencepiece_decoder(prefix);

    if !is_legacy {
        let scheme = if prefix { "first" } else { "never" };
        let metaspace = json!({ "type": "Metaspace", "replacement": "▁", "prepend_scheme": scheme, "split": false });
        return json!({ "pre_tokenizer": metaspace, "decoder": decoder });
    }

    let mut steps = Vec::new();
    if prefix {
        steps.push(json!({ "type": "Prepend", "prepend": "▁" }));
    }

    steps.push(json!({ "type": "Replace", "pattern": { "String": " " }, "content": "▁" }));
    json!({ "normalizer": { "type": "Sequence", "normalizers": steps }, "decoder": decoder })
}

/// Pieces and scores. The first three are named by the added tokens.
fn llama_vocab(model: &Model, settings: &Settings) -> Vec<(String, f64)> {
    let name = |id: usize, text: &str| {
        settings
            .added
            .get(&(id as u64))
            .map_or_else(|| text.to_owned(), |token| token.content.clone())
    };

    let pieces = model.pieces.iter().enumerate();
    pieces
        .map(|(id, piece)| {
            if id < 3 {
                (name(id, piece.text()), 0.0)
            } else {
                (piece.text().to_owned(), f64::from(piece.score()))
            }
        })
        .collect()
}

/// Pieces and scores. The first three are padding, end and begin token; a tab replaces its byte
/// piece if an old file lacks it.
fn gemma_vocab(model: &Model, settings: &Settings) -> Result<Vec<(String, f64)>, Reason> {
    let mut vocab: Vec<(String, f64)> = model
        .pieces
        .iter()
        .map(|piece| (piece.text().to_owned(), f64::from(piece.score())))
        .collect();
    for (slot, attribute) in vocab
        .iter_mut()
        .zip(["pad_token", "eos_token", "bos_token"])
    {
        let token = settings.special_token(attribute);
        *slot = (
            token
                .ok_or_else(|| format!("it has no `{attribute}`"))?
                .to_owned(),
            0.0,
        );
    }

    if !vocab.iter().any(|(piece, _)| piece == "\t")
        && let Some(byte) = vocab.iter_mut().find(|(piece, _)| piece == "<0x09>")
    {
        *byte = ("\t".to_owned(), 0.0);
    }

    Ok(vocab)
}

fn pieces_model(
    kind: SlowFiles,
    model: &Model,
    vocab: &[(String, f64)],
) -> Result<ModelWrapper, Reason> {
    let unknown_id = if kind == SlowFiles::Gemma { 3 } else { 0 };
    match model.algorithm() {
        Algorithm::Unigram => {
            let unigram = Unigram::from(vocab.to_vec(), Some(unknown_id), true);
            Ok(unigram.map_err(|cause| cause.to_string())?.into())
        }
        Algorithm::Bpe => {
            let ids: Vocab = (vocab.iter().zip(0u32..))
                .map(|((piece, _), id)| (piece.clone(), id))
                .collect();
            let mut stored: HashMap<&str, usize> = model
                .pieces
                .iter()
                .enumerate()
                .map(|(id, piece)| (piece.text(), id))
                .collect();
            if let (SlowFiles::Gemma, Some(byte)) = (kind, stored.get("<0x09>").copied()) {
                stored.entry("\t").or_insert(byte);
            }

            let builder = BPE::builder()
                .vocab_and_merges(ids, merges(&stored, vocab))
                .unk_token(model.unknown_piece().to_owned())
                .fuse_unk(true)
                .byte_fallback(true);
            Ok(builder.build().map_err(|cause| cause.to_string())?.into())
        }
        Algorithm::Other(number) => Err(format!(
            "tokenizer.model was trained with algorithm {number}; BPE and unigram are supported"
        )),
    }
}

/// Every split of a piece into two others (`generate_merges`): pieces with the highest score first,
/// then by the longer left part, the longer right part, and the order of the file.
fn merges(stored: &HashMap<&str, usize>, vocab: &[(String, f64)]) -> Merges {
    let mut found: Vec<(f64, [usize; 2], &str, &str)> = Vec::new();
    for (piece, score) in vocab {
        let length = piece.chars().count();
        let mut splits: Vec<_> = piece
            .char_indices()
            .enumerate()
            .skip(1)
            .filter_map(|(count, (place, _))| {
                let (left, right) = piece.split_at(place);
                let order = (*stored.get(left)?, *stored.get(right)?);
                Some((order, (*score, [count, length - count], left, right)))
            })
            .collect();
        splits.sort_by_key(|(order, _)| *order);
        found.extend(splits.into_iter().map(|(_, split)| split));
    }

    found.sort_by(|a, b| b.0.total_cmp(&a.0).then(b.1.cmp(&a.1)));
    found
        .into_iter()
        .map(|(_, _, left, right)| (left.to_owned(), right.to_owned()))
        .collect()
}

/// Adds the pipeline's steps around the model. `parts` has the form of `tokenizer.json`.
pub(super) fn assemble(tokenizer: &mut Tokenizer, mut parts: Value) -> Result<(), Reason> {
    fn part<T: serde::de::DeserializeOwned>(value: Value) -> Result<Option<T>, Reason> {
        serde_json::from_value(value).map_err(|cause| cause.to_string())
    }
    let normalizer: Option<tokenizers::NormalizerWrapper> = part(parts["normalizer"].take())?;
    let pre_tokenizer: Option<tokenizers::PreTokenizerWrapper> =
        part(parts["pre_tokenizer"].take())?;
    let decoder: Option<tokenizers::DecoderWrapper> = part(parts["decoder"].take())?;

    tokenizer
        .with_normalizer(normalizer)
        .map_err(|cause| cause.to_string())?;
    tokenizer.with_pre_tokenizer(pre_tokenizer);
    tokenizer.with_decoder(decoder);

    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn gpt2_drops_the_first_and_the_last_line_whatever_they_contain() {
        let merges = |text| gpt2_merges(text).unwrap().len();
        assert_eq!(merges("#version: 0.2\na b\nab c\n"), 2);
        assert_eq!(merges("a b\nab c\n"), 1);
        assert_eq!(
            merges("#version: 0.2\r\na b\r\nab c"),
            1,
            "without a final line break the last merge is lost"
        );

        assert_eq!(merges(""), 0);
        assert!(gpt2_merges("x\na b c\n").is_err());
    }

    #[test]
    fn qwen2_drops_a_version_and_empty_lines() {
        assert_eq!(qwen2_merges("#version: 0.2\na b\n\nab c").unwrap().len(), 2);
        assert_eq!(
            qwen2_merges("a b\na b\n").unwrap().len(),
            1,
            "a merge counts once"
        );
    }

    #[test]
    fn higher_scores_and_longer_left_parts_merge_first() {
        let vocab: Vec<(String, f64)> = [
            ("a", -3.0),
            ("b", -4.0),
            ("ab", -1.0),
            ("ba", -1.0),
            ("aba", -2.0),
        ]
        .map(|(p, s)| (p.to_owned(), s))
        .into();
        let stored = vocab
            .iter()
            .enumerate()
            .map(|(id, (piece, _))| (piece.as_str(), id))
            .collect();
        let merges = merges(&stored, &vocab);
        let merges: Vec<(&str, &str)> = merges
            .iter()
            .map(|(l, r)| (l.as_str(), r.as_str()))
            .collect();
        assert_eq!(merges, [("a", "b"), ("b", "a"), ("ab", "a"), ("a", "ba")]);
    }
}
