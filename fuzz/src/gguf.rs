//! GGUF files by grammar: metadata under the keys that are read, a tokenizer, tensors.

use crate::Choices;

const ARCHITECTURES: [&str; 9] = [
    "llama",
    "gpt2",
    "qwen2",
    "qwen3",
    "gemma2",
    "phi3",
    "starcoder2",
    "mamba",
    "",
];

/// Keys after the architecture's name.
const SIZES: [&str; 22] = [
    "context_length",
    "embedding_length",
    "block_count",
    "feed_forward_length",
    "attention.head_count",
    "attention.head_count_kv",
    "attention.layer_norm_rms_epsilon",
    "attention.layer_norm_epsilon",
    "attention.key_length",
    "attention.value_length",
    "attention.sliding_window",
    "attn_logit_softcapping",
    "final_logit_softcapping",
    "rope.dimension_count",
    "rope.freq_base",
    "rope.scaling.type",
    "rope.scaling.factor",
    "rope.scaling.original_context_length",
    "rope.scaling.attn_factor",
    "vocab_size",
    "expert_count",
    "attention.scale",
];

const TOKENIZER: [&str; 16] = [
    "tokenizer.ggml.bos_token_id",
    "tokenizer.ggml.eos_token_id",
    "tokenizer.ggml.unknown_token_id",
    "tokenizer.ggml.padding_token_id",
    "tokenizer.ggml.eot_token_id",
    "tokenizer.ggml.add_bos_token",
    "tokenizer.ggml.add_eos_token",
    "tokenizer.ggml.add_space_prefix",
    "tokenizer.ggml.token_type",
    "tokenizer.ggml.scores",
    "tokenizer.ggml.merges",
    "tokenizer.ggml.tokens",
    "tokenizer.chat_template",
    "general.name",
    "split.count",
    "general.alignment",
];

const RULES: [&str; 14] = [
    "default",
    "gpt-2",
    "llama-bpe",
    "qwen2",
    "smollm",
    "falcon",
    "deepseek-coder",
    "deepseek-v3",
    "tekken",
    "gpt-4o",
    "viking",
    "bloom",
    "qwen35",
    "none",
];

const PIECES: [&str; 24] = [
    "<unk>",
    "<s>",
    "</s>",
    "<0x41>",
    "a",
    "b",
    "c",
    "ab",
    "abc",
    "aa",
    "aaaa",
    "▁",
    "▁a",
    "Ġ",
    "Ġa",
    "é",
    "<|im_end|>",
    "<|eot_id|>",
    "",
    " ",
    "1",
    "12",
    "日",
    "aaaaaaaa",
];

const TENSORS: [&str; 14] = [
    "token_embd.weight",
    "output_norm.weight",
    "output.weight",
    "blk.0.attn_q.weight",
    "blk.0.attn_k.weight",
    "blk.0.attn_v.weight",
    "blk.0.attn_output.weight",
    "blk.0.ffn_norm.weight",
    "blk.0.ffn_up.weight",
    "blk.0.ffn_gate.weight",
    "blk.0.ffn_down.weight",
    "blk.0.attn_qkv.weight",
    "blk.99999999999999999999.x",
    "rope_freqs.weight",
];

/// A file.
pub fn file(from: &mut Choices<'_>) -> Vec<u8> {
    let architecture = from.one(&ARCHITECTURES);
    let mut pairs = Vec::new();
    let mut count = 1u64;
    string(&mut pairs, "general.architecture");
    typed_string(&mut pairs, architecture);

    let sizes = from.below(14);
    for number in 0..sizes {
        let key = if from.flag() {
            SIZES[number]
        } else {
            from.one(&SIZES)
        };
        string(&mut pairs, &format!("{architecture}.{key}"));
        value(&mut pairs, from, 0);
        count += 1;
    }
    if from.flag() {
        count += tokenizer(&mut pairs, from);
    }
    for _ in 0..from.below(5) {
        string(&mut pairs, from.one(&TOKENIZER));
        value(&mut pairs, from, 0);
        count += 1;
    }

    let (tensors, tensor_count, data) = tensors(from);
    let version = if from.rarely() {
        u32::from(from.byte())
    } else {
        3
    };
    let mut out = b"GGUF".to_vec();
    out.extend(version.to_le_bytes());
    out.extend(
        if from.rarely() {
            from.number()
        } else {
            tensor_count
        }
        .to_le_bytes(),
    );
    out.extend(if from.rarely() { from.number() } else { count }.to_le_bytes());
    out.extend(pairs);
    out.extend(tensors);
    out.resize(out.len().next_multiple_of(32), 0);
    out.extend(data);
    out
}

fn string(out: &mut Vec<u8>, text: &str) {
    out.extend((text.len() as u64).to_le_bytes());
    out.extend(text.as_bytes());
}

fn typed_string(out: &mut Vec<u8>, text: &str) {
    out.extend(8u32.to_le_bytes());
    string(out, text);
}

/// A value of any type.
fn value(out: &mut Vec<u8>, from: &mut Choices<'_>, depth: usize) {
    let kind: u32 = match from.below(16) {
        0..=5 => 4,
        6 | 7 => 6,
        8 => 8,
        9 => 7,
        other => other as u32 % 13,
    };
    out.extend(kind.to_le_bytes());
    payload(out, from, kind, depth);
}

fn payload(out: &mut Vec<u8>, from: &mut Choices<'_>, kind: u32, depth: usize) {
    match kind {
        0 | 1 => out.push(from.byte()),
        7 => out.push(from.byte() & 1),
        2 | 3 => out.extend(from.short().to_le_bytes()),
        4 | 5 => out.extend((from.number() as u32).to_le_bytes()),
        6 => out.extend((from.float() as f32).to_le_bytes()),
        8 => string(out, &from.text()),
        9 => {
            let inner = if depth > 3 { 0 } else { from.below(13) as u32 };
            let count = from.below(6) as u64;
            out.extend(inner.to_le_bytes());
            out.extend(if from.rarely() { from.number() } else { count }.to_le_bytes());
            for _ in 0..count {
                payload(out, from, inner, depth + 1);
            }
        }
        12 => out.extend(from.float().to_le_bytes()),
        _ => out.extend(from.number().to_le_bytes()),
    }
}

/// Writes a tokenizer and returns the number of its keys.
fn tokenizer(out: &mut Vec<u8>, from: &mut Choices<'_>) -> u64 {
    let is_bpe = from.flag();
    string(out, "tokenizer.ggml.model");
    typed_string(out, if is_bpe { "gpt2" } else { "llama" });
    string(out, "tokenizer.ggml.pre");
    typed_string(out, from.one(&RULES));

    let count = from.below(40);
    let pieces: Vec<String> = (0..count)
        .map(|number| match from.byte() {
            255 => from.text(),
            byte if byte < 128 => PIECES[number % PIECES.len()].to_owned(),
            byte => PIECES[usize::from(byte) % PIECES.len()].repeat(1 + usize::from(byte) % 3),
        })
        .collect();
    list(out, "tokenizer.ggml.tokens", 8, count, |out, number| {
        string(out, &pieces[number])
    });
    list(out, "tokenizer.ggml.scores", 6, count, |out, _| {
        out.extend((from.float() as f32).to_le_bytes());
    });
    list(out, "tokenizer.ggml.token_type", 5, count, |out, _| {
        out.extend(u32::from(from.byte() % 7).to_le_bytes());
    });
    let merges = if count == 0 { 0 } else { from.below(12) };
    list(out, "tokenizer.ggml.merges", 8, merges, |out, _| {
        let [left, right] = [from.below(count), from.below(count)].map(|number| &pieces[number]);
        string(out, &format!("{left} {right}"));
    });

    6
}

fn list(
    out: &mut Vec<u8>,
    key: &str,
    kind: u32,
    count: usize,
    mut item: impl FnMut(&mut Vec<u8>, usize),
) {
    string(out, key);
    out.extend(9u32.to_le_bytes());
    out.extend(kind.to_le_bytes());
    out.extend((count as u64).to_le_bytes());
    for number in 0..count {
        item(out, number);
    }
}

/// Descriptions of tensors, their number, and their data.
fn tensors(from: &mut Choices<'_>) -> (Vec<u8>, u64, Vec<u8>) {
    // Type, elements of a block, bytes of a block.
    const TYPES: [(u32, u64, u64); 14] = [
        (0, 1, 4),
        (1, 1, 2),
        (8, 32, 34),
        (2, 32, 18),
        (3, 32, 20),
        (6, 32, 22),
        (7, 32, 24),
        (10, 256, 84),
        (11, 256, 110),
        (12, 256, 144),
        (13, 256, 176),
        (14, 256, 210),
        (30, 1, 2),
        (20, 32, 18),
    ];
    let mut out = Vec::new();
    let mut data = Vec::new();
    let count = from.below(6) as u64;
    for _ in 0..count {
        let (kind, block, bytes) = from.pick(&TYPES);
        string(&mut out, from.one(&TENSORS));
        let dims: Vec<u64> = match from.below(4) {
            0 => vec![block * from.below(4) as u64],
            1 | 2 => vec![block * from.below(4) as u64, from.below(5) as u64],
            _ => (0..from.below(6)).map(|_| from.number()).collect(),
        };
        out.extend((dims.len() as u32).to_le_bytes());
        dims.iter().for_each(|dim| out.extend(dim.to_le_bytes()));
        out.extend(kind.to_le_bytes());
        let offset = if from.rarely() {
            from.number()
        } else {
            data.len() as u64
        };
        out.extend(offset.to_le_bytes());

        let elements = dims
            .iter()
            .fold(1u64, |count, dim| count.wrapping_mul(*dim));
        let size = (elements / block).wrapping_mul(bytes).min(4096) as usize;
        let fill = from.byte();
        data.extend((0..size).map(|place| fill.wrapping_mul(place as u8)));
        data.resize(data.len().next_multiple_of(32), 0);
    }
    if from.rarely() {
        data.truncate(usize::from(from.byte()));
    }

    (out, count, data)
}
