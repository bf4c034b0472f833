//! Calls into libraries that may panic on hostile input.

use std::any::Any;
use std::cell::Cell;
use std::panic::{AssertUnwindSafe, catch_unwind, set_hook, take_hook};
use std::sync::Once;

thread_local! {
    /// Whether this thread reports a panic as an error, so that it need not be printed.
    static IS_GUARDED: Cell<bool> = const { Cell::new(false) };
}

static HOOK: Once = Once::new();

/// Runs `call`. A panic is returned as its message and not printed.
///
/// `call` must not leave broken what is used afterwards. Panics on other threads are not caught.
pub(crate) fn guarded<T>(call: impl FnOnce() -> T) -> Result<T, String> {
    // A panicking thread may not change the hook.
    if !std::thread::panicking() {
        HOOK.call_once(|| {
            let others = take_hook();
            set_hook(Box::new(move |info| {
                if !IS_GUARDED.get() {
                    others(info);
                }
            }));
        });
    }

    let was_guarded = IS_GUARDED.replace(true);
    let outcome = catch_unwind(AssertUnwindSafe(call));
    IS_GUARDED.set(was_guarded);

    outcome.map_err(|panic| message(panic.as_ref()))
}

/// Runs `call`. A panic is printed, as the hook of the program does, and returned as its message.
///
/// `call` must not leave broken what is used afterwards.
pub(crate) fn caught<T>(call: impl FnOnce() -> T) -> Result<T, String> {
    let outcome = catch_unwind(AssertUnwindSafe(call));
    outcome.map_err(|panic| format!("panicked: {}", message(panic.as_ref())))
}

fn message(panic: &(dyn Any + Send)) -> String {
    let text = panic
        .downcast_ref::<String>()
        .map(String::as_str)
        .or_else(|| panic.downcast_ref::<&str>().copied());
    text.unwrap_or("it panicked").to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_panic_becomes_its_message_and_the_thread_goes_on() {
        let empty: &[u8] = &[];
        let index = std::hint::black_box(3);
        let error = guarded(|| empty[index]).unwrap_err();
        assert!(error.contains("out of bounds"), "{error}");
        assert_eq!(guarded(|| 7), Ok(7));
        assert!(!IS_GUARDED.get());
    }
}
