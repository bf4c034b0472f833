//! Devices for tests, chosen by `LLM_INT8_TEST_DEVICE`:
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

/// Memory of an emulated device in bytes.
const MEMORY: u64 = 1 << 30;

#[derive(Clone, Copy, PartialEq, Eq)]
enum Kind {
    Emulated,
    Cuda,
}

/// The kinds of devices that are tested.
///
/// # Panics
/// Where the variable has another value, or the driver does not work.
#[expect(clippy::panic, reason = "a test that tests nothing must fail")]
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
        Ok(other) => panic!("{VARIABLE} is {other:?}; emulated, cuda or both was expected"),
    }
}

/// Emulated devices with these orders of threads (see [`Device::emulated`]), then the GPU without
/// and with [`Device::set_overlap`], as far as each kind is tested.
///
/// # Panics
/// Where a GPU is required and none can be opened.
pub fn devices(orders: &[u64]) -> Vec<Device> {
    orders
        .iter()
        .filter_map(|order| emulated(0, MEMORY, *order))
        .chain(gpus())
        .collect()
}

/// An emulated device, if those are tested and there is a C++ compiler.
///
/// # Panics
/// Where it cannot be made for another reason, or was asked for by name.
#[expect(
    clippy::panic,
    clippy::print_stderr,
    reason = "tests say what they skip and stop at the first surprise"
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

/// The first GPU without and with [`Device::set_overlap`]; nothing where GPUs are not tested.
///
/// # Panics
/// Where none can be opened.
#[expect(clippy::panic, reason = "a test that tests nothing must fail")]
pub fn gpus() -> Vec<Device> {
    // The last device that is dropped takes the driver's context with it, and the next test would
    // pay for a new one.
    static KEPT: OnceLock<Device> = OnceLock::new();

    let open = || Device::cuda(0).unwrap_or_else(|error| panic!("{VARIABLE}: {error}"));
    if !kinds().contains(&Kind::Cuda) {
        return Vec::new();
    }
    KEPT.get_or_init(open);
    let (plain, overlapping) = (open(), open());
    overlapping.set_overlap(true);
    vec![plain, overlapping]
}

/// The names by which the program finds the devices that are tested, one of each kind.
///
/// # Panics
/// As [`devices`].
pub fn names() -> Vec<&'static str> {
    let name = |kind: &Kind| match kind {
        Kind::Emulated => emulated(0, MEMORY, 0).map(|_| "emulated:0"),
        Kind::Cuda => gpus().first().map(|_| "cuda:0"),
    };
    kinds().iter().filter_map(name).collect()
}
