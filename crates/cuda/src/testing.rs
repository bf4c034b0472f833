//! Devices for tests, selected by the environment variable `LLM_INT8_TEST_DEVICE`:
//!
//! | value | tests run on |
//! |---|---|
//! | not set | the emulated device, and the first GPU if there is one |
//! | `emulated` | the emulated device alone; without a C++ compiler they fail |
//! | `cuda` | the first GPU alone; without one they fail |
//! | `both` | both; without a GPU they fail |

use crate::{CudaError, Device};
use std::sync::OnceLock;

const VARIABLE: &str = "LLM_INT8_TEST_DEVICE";

/// Bytes of memory of an emulated device.
const MEMORY: u64 = 1 << 30;

#[derive(Clone, Copy, PartialEq, Eq)]
enum Kind {
    Emulated,
    Cuda,
}

/// The kinds of devices to test.
///
/// # Panics
/// If the variable has an unknown value or the driver does not work.
#[expect(
    clippy::panic,
    reason = "a test must fail rather than silently test nothing"
)]
fn kinds() -> &'static [Kind] {
    match std::env::var(VARIABLE).as_deref() {
        Err(_) | Ok("") => match Device::cuda_count() {
            Ok(0) => &[Kind::Emulated],
            Ok(_) => &[Kind::Emulated, Kind::Cuda],
            Err(error) => panic!("{error}"),
        },
        Ok("emulated") => &[Kind::Emulated],
        Ok("cuda") => &[Kind::Cuda],
        Ok("both") => &[Kind::Emulated, Kind::Cuda],
        Ok(other) => panic!("{VARIABLE} is {other:?}; use emulated, cuda or both"),
    }
}

/// An emulated device for each thread order in `orders` (see [`Device::emulated`]), then the GPU
/// without and with [`Device::set_overlap`]. Kinds that are not to be tested are left out.
///
/// # Panics
/// If a GPU is required and none can be opened.
pub fn devices(orders: &[u64]) -> Vec<Device> {
    orders
        .iter()
        .filter_map(|order| emulated(0, MEMORY, *order))
        .chain(gpus())
        .collect()
}

/// An emulated device; `None` if it is not to be tested, or if there was no C++ compiler and the
/// variable is unset.
///
/// # Panics
/// If it cannot be created for another reason.
#[expect(
    clippy::panic,
    clippy::print_stderr,
    reason = "tests report what they skip and fail on anything unexpected"
)]
pub fn emulated(ordinal: usize, memory: u64, order: u64) -> Option<Device> {
    if !kinds().contains(&Kind::Emulated) {
        return None;
    }

    match Device::emulated(ordinal, memory, order) {
        Ok(device) => Some(device),
        Err(CudaError::NoEmulation) if std::env::var_os(VARIABLE).is_none() => {
            eprintln!("skipped: no C++ compiler, so no emulated device");
            None
        }
        Err(error) => panic!("{error}"),
    }
}

/// The first GPU, once without and once with [`Device::set_overlap`]; empty if GPUs are not tested.
///
/// # Panics
/// If it cannot be opened.
#[expect(
    clippy::panic,
    reason = "a test must fail rather than silently test nothing"
)]
pub fn gpus() -> Vec<Device> {
    // Dropping the last device destroys the driver's context; keeping one open saves every test
    // the time to create a new one.
    static KEPT: OnceLock<Device> = OnceLock::new();

    if !kinds().contains(&Kind::Cuda) {
        return Vec::new();
    }

    let open = || Device::cuda(0).unwrap_or_else(|error| panic!("{VARIABLE}: {error}"));
    KEPT.get_or_init(open);

    let plain = open();
    let overlapping = open();
    overlapping.set_overlap(true);
    vec![plain, overlapping]
}

/// One device name of each kind to test, as the program's `--device` takes it.
///
/// # Panics
/// Like [`devices`].
pub fn names() -> Vec<&'static str> {
    let name = |kind: &Kind| match kind {
        Kind::Emulated => emulated(0, MEMORY, 0).map(|_| "emulated:0"),
        Kind::Cuda => gpus().first().map(|_| "cuda:0"),
    };
    kinds().iter().filter_map(name).collect()
}
