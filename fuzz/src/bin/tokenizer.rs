//! A tokenizer's files: loaded as those of a model, texts encoded and ids decoded.

#![no_main]

use libfuzzer_sys::fuzz_target;
use llm_int8::Tokenizer;
use llm_int8::hub::{HubConfig, NoProgress};
use llm_int8_fuzz::{Choices, Folder, Limits, bounded, tokenizer};
use std::cell::LazyCell;

const LIMITS: Limits = Limits::new(8, 256);

thread_local! {
    static FOLDER: LazyCell<Folder> = LazyCell::new(Folder::default);
}

fuzz_target!(|data: &[u8]| FOLDER.with(|folder| bounded(LIMITS, || run(folder, data))));

fn run(folder: &Folder, data: &[u8]) {
    let mut from = Choices::new(data);
    if from.byte() % 16 == 0 {
        for name in tokenizer::NAMES {
            folder.set(name, None);
        }
        folder.write("tokenizer.json", from.rest());
    } else {
        for (name, content) in tokenizer::files(&mut from) {
            folder.set(name, content);
        }
    }

    let hub = HubConfig {
        offline: true,
        ..HubConfig::new(folder.path())
    };
    let tokenizer = match Tokenizer::from_pretrained(folder.name(), &hub, &NoProgress) {
        Ok(tokenizer) => tokenizer,
        Err(error) => return assert!(!error.to_string().is_empty()),
    };
    for text in [
        "",
        "a",
        " ab aba  x<s>é",
        "日本 aaaa A\u{0}\n12 <unk>▁a",
        "##a a##b [UNK] İ e\u{301}",
    ] {
        for ids in [tokenizer.encode(text), tokenizer.encode_templated(text)]
            .into_iter()
            .flatten()
        {
            let _ = tokenizer.decode(&ids);
            let _ = tokenizer.decode_all(&ids);
        }
    }
    let all: Vec<u32> = (0..40).chain([255, 65_535, u32::MAX]).collect();
    let _ = tokenizer.decode(&all);
    for id in &all {
        let _ = (
            tokenizer.token(*id),
            tokenizer.is_special(*id),
            tokenizer.decode_all(&[*id]),
        );
    }
    let _ = tokenizer.special_tokens();
}
