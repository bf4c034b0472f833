//! GGUF files: opened as a model with its tokenizer, every tensor read, a text encoded.

#![no_main]

use libfuzzer_sys::fuzz_target;
use llm_int8::Tokenizer;
use llm_int8::decoder::{Decoder, LoadOptions, open_gguf};
use llm_int8::nn::FloatDtype;
use llm_int8::nn::checkpoint::{GgufFile, float_tensor};
use llm_int8_fuzz::{Choices, Folder, Limits, bounded, gguf};
use std::cell::LazyCell;

const LIMITS: Limits = Limits::new(4, 128);

thread_local! {
    static FOLDER: LazyCell<Folder> = LazyCell::new(Folder::default);
}

fuzz_target!(|data: &[u8]| FOLDER.with(|folder| bounded(LIMITS, || run(folder, data))));

fn run(folder: &Folder, data: &[u8]) {
    let mut from = Choices::new(data);
    let bytes = match from.byte() % 8 {
        0 => from.rest().to_vec(),
        _ => gguf::file(&mut from),
    };
    let path = folder.write("model.gguf", &bytes);
    let file = match GgufFile::open(&path) {
        Ok(file) => file,
        Err(error) => return assert!(!error.to_string().is_empty()),
    };

    if let Ok(Some(tokenizer)) = Tokenizer::from_gguf(&file) {
        for text in ["", "a b abc", "ab 123 é日 <s>\u{0}"] {
            if let Ok(ids) = tokenizer.encode(text) {
                let _ = tokenizer.decode(&ids);
                let _ = tokenizer.decode_all(&ids);
            }
        }
    }

    let names: Vec<String> = file.tensors().map(str::to_owned).collect();
    for name in &names {
        let _ = file.values(name);
    }
    let Ok((config, checkpoint)) = open_gguf(file) else {
        return;
    };
    let names: Vec<String> = checkpoint
        .entries()
        .map(|(name, _)| name.to_owned())
        .collect();
    for name in &names {
        if let Ok(view) = checkpoint.tensor(name) {
            let _ = float_tensor(&view, FloatDtype::F16, false);
        }
    }
    let _ = Decoder::plan(&config, &checkpoint, &LoadOptions::default());
}
