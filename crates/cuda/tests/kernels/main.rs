//! Every kernel against the reference of `llm-int8-kernels` or a formula in f64, for odd shapes and
//! those of gpt2-large: on the emulated device, with threads in order and shuffled, and on a GPU,
//! without and with overlapping kernels. `LLM_INT8_TEST_DEVICE` selects the devices (see
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
mod prologues;
mod rows;
mod select;
mod weights;

use llm_int8_cuda::{Device, testing};
use std::path::PathBuf;

/// The devices to test on.
fn devices() -> Vec<Device> {
    testing::devices(&[0, 1, 2])
}

/// The same with one thread order of the emulated device, for tests that take long on it.
fn few_devices() -> Vec<Device> {
    testing::devices(&[0])
}

/// A file of `tests/golden`, in the checkout or in its copy in `LLM_INT8_TEST_ROOT`.
fn golden(name: &str) -> PathBuf {
    let root = std::env::var_os("LLM_INT8_TEST_ROOT").map(PathBuf::from);
    root.unwrap_or_else(|| concat!(env!("CARGO_MANIFEST_DIR"), "/../..").into())
        .join("tests/golden")
        .join(name)
}

/// Pseudorandom values between -1 and 1.
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

/// Asserts that no value differs from the expected one by more than `relative` times the largest
/// expected magnitude.
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
