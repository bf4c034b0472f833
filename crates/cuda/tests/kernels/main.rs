//! Every kernel against the oracle of `llm-int8-kernels` or a formula in f64, on odd shapes and on
//! those of gpt2-large: on the emulated device in the order of threads and in shuffled ones, and on
//! a GPU without and with early starts. Which of them is said by `LLM_INT8_TEST_DEVICE` (see
//! [`llm_int8_cuda::testing`]).

#![allow(clippy::unwrap_used, clippy::panic, clippy::print_stderr, missing_docs)]

mod attention;
mod attention_cached;
mod attention_oracle;
mod device;
mod divisions;
mod golden;
mod linear;
mod linear_oracle;
mod rows;
mod select;
mod weights;

use llm_int8_cuda::{Device, testing};
use std::path::PathBuf;

/// The devices to test on.
fn devices() -> Vec<Device> {
    testing::devices(&[0, 1, 2])
}

/// The same with the emulated device in one order of threads, for tests that take long there.
fn few_devices() -> Vec<Device> {
    testing::devices(&[0])
}

/// A file of `tests/golden`, in the checkout or where `LLM_INT8_TEST_ROOT` has a copy of it.
fn golden(name: &str) -> PathBuf {
    let root = std::env::var_os("LLM_INT8_TEST_ROOT").map(PathBuf::from);
    root.unwrap_or_else(|| concat!(env!("CARGO_MANIFEST_DIR"), "/../..").into())
        .join("tests/golden")
        .join(name)
}

/// Values between -1 and 1 without a pattern.
fn noise(count: usize, seed: u64) -> Vec<f32> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) ^ 0x5bf0_3635;
    let mut next = || {
        state = state
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1_442_695_040_888_963_407);
        (state >> 40) as f32 / (1u32 << 23) as f32 - 1.0
    };
    (0..count).map(|_| next()).collect()
}

/// Each value within `relative` of the expected one, measured by the largest expected.
fn assert_near(found: &[f32], expected: &[f32], relative: f32, what: &str) {
    assert_eq!(found.len(), expected.len(), "{what}");
    let largest = expected.iter().fold(1e-20f32, |a, b| a.max(b.abs()));
    for (i, (a, b)) in found.iter().zip(expected).enumerate() {
        assert!(
            (a - b).abs() <= relative * largest,
            "{what}: [{i}] is {a}, expected {b} (largest {largest})"
        );
    }
}
