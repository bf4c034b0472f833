//! `pytorch_model.bin`: opened, and every tensor read.

#![no_main]

use libfuzzer_sys::fuzz_target;
use llm_int8::nn::FloatDtype;
use llm_int8::nn::checkpoint::{Checkpoint, float_tensor};
use llm_int8_fuzz::{Choices, Folder, Limits, bounded, pickle};
use std::cell::LazyCell;

/// An expanded tensor may have 64 MiB, whatever its file has. Two copies of it are made.
const LIMITS: Limits = Limits::new(4, 256);

thread_local! {
    static FOLDER: LazyCell<Folder> = LazyCell::new(Folder::default);
}

fuzz_target!(|data: &[u8]| FOLDER.with(|folder| bounded(LIMITS, || run(folder, data))));

fn run(folder: &Folder, data: &[u8]) {
    let mut from = Choices::new(data);
    let bytes = match from.byte() % 8 {
        0 => from.rest().to_vec(),
        1 => pickle::legacy(&mut from),
        _ => pickle::file(&mut from),
    };
    let path = folder.write("pytorch_model.bin", &bytes);
    let checkpoint = match Checkpoint::open_pickle(&[path], None) {
        Ok(checkpoint) => checkpoint,
        Err(error) => return assert!(!error.to_string().is_empty()),
    };

    let mut left = 8;
    let names: Vec<String> = checkpoint
        .entries()
        .map(|(name, _)| name.to_owned())
        .collect();
    for name in &names {
        let entry = checkpoint.entry(name).expect("a tensor that is listed");
        let size = entry.bytes();
        // Many large tensors would only take time.
        if size > 1 << 20 {
            left -= 1;
        }
        if left == 0 {
            return;
        }
        let view = checkpoint.tensor(name).expect("a tensor that is listed");
        assert_eq!(view.data.len() as u64, size, "{name}");
        let _ = float_tensor(&view, FloatDtype::F16, false);
    }
    let _ = checkpoint.other_names().count();
}
