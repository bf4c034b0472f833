//! Safetensors files and the index of their shards: opened, and every tensor read.

#![no_main]

use libfuzzer_sys::fuzz_target;
use llm_int8::hub::{Hub, HubConfig, ModelRef, NoProgress};
use llm_int8::nn::checkpoint::verify::float_faults;
use llm_int8::nn::checkpoint::{
    Checkpoint, check_layout, float_tensor, int8_weight, read_linear_state,
};
use llm_int8::nn::linear::CodeMemory;
use llm_int8::nn::{FloatDtype, Isa};
use llm_int8_fuzz::{Choices, Folder, Limits, bounded, safetensors};
use std::cell::LazyCell;

const LIMITS: Limits = Limits::new(2, 64);
const SHARDS: [&str; 2] = ["model-1.safetensors", "model-2.safetensors"];
const INDEX: &str = "model.safetensors.index.json";

thread_local! {
    static FOLDER: LazyCell<Folder> = LazyCell::new(Folder::default);
}

fuzz_target!(|data: &[u8]| FOLDER.with(|folder| bounded(LIMITS, || run(folder, data))));

fn run(folder: &Folder, data: &[u8]) {
    let mut from = Choices::new(data);
    let style = from.byte();
    folder.write("config.json", b"{}");
    if style & 1 == 0 {
        let bytes = match style & 2 {
            0 => safetensors::file(&mut from),
            _ => from.rest().to_vec(),
        };
        headers(&bytes);
        let path = folder.write("model.safetensors", &bytes);
        if let Ok(checkpoint) = Checkpoint::open_safetensors(&[path], None) {
            read(&checkpoint);
        }
    } else {
        folder.set("model.safetensors", None);
        let paths = SHARDS.map(|name| folder.write(name, &safetensors::file(&mut from)));
        let bytes = match style & 2 {
            0 => safetensors::index(&mut from, &SHARDS),
            _ => from.rest().to_vec(),
        };
        let index = folder.write(INDEX, &bytes);
        if let Ok(checkpoint) = Checkpoint::open_safetensors(&paths, Some(&index)) {
            read(&checkpoint);
        }
    }

    let hub = Hub::new(HubConfig::new(folder.path()));
    let model = ModelRef::Local(folder.path().to_owned());
    let _ = hub.resolve(&model, &NoProgress);
    let _ = hub.resolve_metadata(&model, &NoProgress);
}

/// The header alone, as it comes from the hub.
fn headers(bytes: &[u8]) {
    let Some(length) = bytes.first_chunk().map(|first| u64::from_le_bytes(*first)) else {
        return;
    };
    let end = usize::try_from(length)
        .ok()
        .and_then(|length| length.checked_add(8));
    if let Some(json) = end.and_then(|end| bytes.get(8..end)) {
        let _ = Checkpoint::from_headers([("x", json, bytes.len() as u64)]);
    }
}

fn read(checkpoint: &Checkpoint) {
    let names: Vec<String> = checkpoint
        .entries()
        .map(|(name, _)| name.to_owned())
        .collect();
    for name in &names {
        let view = checkpoint.find(name).expect("a tensor that is listed");
        let bits = view.shape.iter().product::<usize>() * view.dtype.bitsize();
        assert_eq!(view.data.len(), bits / 8, "{name}");

        for transposed in [false, true] {
            for dtype in [FloatDtype::F16, FloatDtype::BF16, FloatDtype::F32] {
                let _ = float_tensor(&view, dtype, transposed);
            }
            let _ = float_faults(&view, true, transposed);
            let _ = int8_weight(&view, transposed, Isa::detect(), &mut CodeMemory::default());
        }
        let prefix = name.strip_suffix(".weight").unwrap_or(name);
        let _ = check_layout(checkpoint, prefix);
        if let [rows, columns] = *view.shape {
            let _ = read_linear_state(
                checkpoint,
                prefix,
                [rows, columns],
                &mut CodeMemory::default(),
            );
        }
    }
    let _ = checkpoint
        .find("missing.weight")
        .is_ok_and(|_| unreachable!("no such tensor"));
    let _ = (
        checkpoint.other_names().count(),
        checkpoint.unlisted_names().count(),
        checkpoint.copies().len(),
    );
}
