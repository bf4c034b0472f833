//! Makes a forward pass panic, to test what remains.

use std::cell::Cell;

thread_local! {
    /// Passes of this thread until one panics; none does while this is 0.
    static PASSES: Cell<usize> = const { Cell::new(0) };
}

/// Has the `passes`th next pass of this thread panic.
pub(super) fn panic_in(passes: usize) {
    PASSES.set(passes);
}

pub(super) fn panic_if_due() {
    let left = PASSES.get();
    PASSES.set(left.saturating_sub(1));
    assert!(left != 1, "a panic on purpose");
}
