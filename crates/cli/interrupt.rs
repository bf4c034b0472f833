//! Signals: temporary files are removed before one ends the program, and where work can stop cleanly
//! ctrl-C is a flag.

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

/// Which signals end the program.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Ending {
    /// All that do so by default.
    ByAny,
    /// Those other than SIGINT and SIGTERM, which the command takes itself.
    NotByRequest,
}

/// From now on, signals that end the program remove its temporary files first. If no handler can be
/// installed, the program runs as it would without.
#[cfg(unix)]
pub(crate) fn clean_up_on_signals(ending: Ending) {
    use signal_hook::consts::{SIGHUP, SIGINT, SIGQUIT, SIGTERM, SIGXFSZ};
    use signal_hook::iterator::Signals;

    // With any handler, a write past the limit on the size of files (`ulimit -f`) is an error like
    // that of a full disk.
    let was_raised = std::sync::Arc::new(AtomicBool::new(false));
    drop(signal_hook::flag::register(SIGXFSZ, was_raised));

    let ignored = ignored_signals();
    let all = [SIGHUP, SIGQUIT, SIGINT, SIGTERM];
    let ending = match ending {
        Ending::ByAny => &all[..],
        Ending::NotByRequest => &all[..2],
    };
    let handled = ending.iter().filter(|signal| !ignored.contains(signal));
    // Before anything else, because `Interrupt::watch` replaces the handler of SIGINT.
    let Ok(mut signals) = Signals::new(handled) else {
        return;
    };

    let thread = std::thread::Builder::new().name("signals".to_owned());
    drop(thread.spawn(move || {
        if let Some(signal) = signals.forever().next() {
            let _unfinished = llm_int8_files::remove_unfinished();
            // Ends by the signal itself, so that a shell sees which one it was.
            drop(signal_hook::low_level::emulate_default_handler(signal));
        }
    }));
}

/// Signals that the program was told to ignore, as `nohup` does with SIGHUP: a handler would undo
/// that.
#[cfg(unix)]
fn ignored_signals() -> Vec<i32> {
    use signal_hook::consts::{SIGHUP, SIGINT, SIGQUIT};

    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let mask = status
        .lines()
        .find_map(|line| line.strip_prefix("SigIgn:"))
        .and_then(|mask| u64::from_str_radix(mask.trim(), 16).ok());
    match mask {
        Some(mask) => (1..=64).filter(|n| mask >> (n - 1) & 1 == 1).collect(),
        // Without /proc, those that shells set to be ignored might be.
        None => vec![SIGHUP, SIGINT, SIGQUIT],
    }
}

#[cfg(not(unix))]
pub(crate) fn clean_up_on_signals(_ending: Ending) {}
