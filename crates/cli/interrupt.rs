//! Ctrl-C as a flag, checked where work can stop cleanly.

use anyhow::Context;
use std::sync::atomic::{AtomicBool, Ordering};

static PRESSED: AtomicBool = AtomicBool::new(false);

/// While this exists, ctrl-C sets a flag instead of ending the program.
pub(crate) struct Interrupt(());

impl Interrupt {
    /// Installs the handler. Can be called only once in a program.
    pub(crate) fn watch() -> anyhow::Result<Self> {
        ctrlc::set_handler(|| PRESSED.store(true, Ordering::Relaxed))
            .context("the handler for ctrl-C cannot be installed")?;
        Ok(Self(()))
    }

    /// Whether ctrl-C was pressed since the last [`forget`](Self::forget).
    pub(crate) fn was_pressed(&self) -> bool {
        PRESSED.load(Ordering::Relaxed)
    }

    /// Clears the flag.
    pub(crate) fn forget(&self) {
        PRESSED.store(false, Ordering::Relaxed);
    }
}
