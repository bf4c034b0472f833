//! Ctrl-C, checked where work can end in good order.

use anyhow::Context;
use std::sync::atomic::{AtomicBool, Ordering};

static CAME: AtomicBool = AtomicBool::new(false);

/// From its creation on, ctrl-C no longer ends the program but is noted.
pub(crate) struct Interrupt(());

impl Interrupt {
    /// Begins to watch; once a program.
    pub(crate) fn watch() -> anyhow::Result<Self> {
        ctrlc::set_handler(|| CAME.store(true, Ordering::Relaxed))
            .context("ctrl-C cannot be watched for")?;
        Ok(Self(()))
    }

    /// Whether it came since this was last forgotten.
    pub(crate) fn came(&self) -> bool {
        CAME.load(Ordering::Relaxed)
    }

    /// Forgets it.
    pub(crate) fn forget(&self) {
        CAME.store(false, Ordering::Relaxed);
    }
}
