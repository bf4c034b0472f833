//! Everything on standard error: progress, errors, warnings; and formatting of numbers.

use indicatif::{HumanBytes, ProgressBar, ProgressDrawTarget, ProgressStyle};
use llm_int8::hub::{HubConfig, Progress, ProgressEvent};
use llm_int8::nn::checkpoint::WriteEvent;
use std::io::{ErrorKind, IsTerminal, Write};
use std::process::ExitCode;
use std::sync::{Mutex, PoisonError};

/// Prints an error with its causes and a hint, on one line.
pub(crate) fn error(error: &anyhow::Error) {
    let mut text = error.to_string();
    for cause in error.chain().skip(1) {
        let cause = cause.to_string();
        // Some libraries repeat the cause in their own message.
        if !text.contains(&cause) {
            text.push_str(": ");
            text.push_str(&cause);
        }
    }

    if let Some(hint) = crate::hints::of_chain(error) {
        text.push_str(": ");
        text.push_str(hint);
    }

    line(&format!("error: {text}"));
}

/// Prints what is no command: help and the version on standard output, mistakes on standard error.
pub(crate) fn usage(error: &clap::Error) -> ExitCode {
    match error.print().and_then(|()| std::io::stdout().flush()) {
        Err(cause) if !error.use_stderr() && cause.kind() != ErrorKind::BrokenPipe => {
            line(&format!("error: {cause}"));
            ExitCode::FAILURE
        }
        _ => ExitCode::from(u8::try_from(error.exit_code()).unwrap_or(1)),
    }
}

/// Prints warnings that our libraries log to standard error.
pub(crate) fn show_warnings() {
    struct Warnings;
    impl log::Log for Warnings {
        fn enabled(&self, metadata: &log::Metadata<'_>) -> bool {
            metadata.level() <= log::Level::Warn && metadata.target().starts_with("llm_int8")
        }

        fn log(&self, record: &log::Record<'_>) {
            if self.enabled(record.metadata()) {
                line(&format!("warning: {}", record.args()));
            }
        }

        fn flush(&self) {}
    }

    // This fails only if there is a logger already, and there is none.
    let _ = log::set_logger(&Warnings);
    log::set_max_level(log::LevelFilter::Warn);
}

/// Prints a line on standard error. If that is closed, there is nobody to tell.
pub(crate) fn line(text: &str) {
    let _ = writeln!(std::io::stderr().lock(), "{text}");
}

/// Whether the reader of our output closed it (`| head`), which is not a failure.
pub(crate) fn is_closed_pipe(error: &anyhow::Error) -> bool {
    error.chain().any(|cause| {
        cause
            .downcast_ref::<std::io::Error>()
            .is_some_and(|io| io.kind() == ErrorKind::BrokenPipe)
    })
}

/// Bytes in human-readable form: 12.34 MiB.
pub(crate) fn bytes(count: u64) -> String {
    HumanBytes(count).to_string()
}

/// A number with thousands separators: 878,020,168.
pub(crate) fn grouped(number: u64) -> String {
    let digits = number.to_string();
    let mut text = String::new();
    for (place, digit) in digits.chars().enumerate() {
        if place > 0 && (digits.len() - place).is_multiple_of(3) {
            text.push(',');
        }

        text.push(digit);
    }

    text
}

/// A name from a file with control characters and marks that change the direction of text escaped,
/// so that it cannot change what a terminal shows.
pub(crate) fn escaped(name: &str) -> String {
    escaped_but(name, &[])
}

/// A text from elsewhere as [`escaped`] makes it, in its lines.
pub(crate) fn visible(text: &str) -> String {
    escaped_but(text, &['\n', '\t'])
}

fn escaped_but(text: &str, kept: &[char]) -> String {
    let is_unsafe = |c: char| {
        c.is_control()
            || matches!(c, '\u{200e}' | '\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2066}'..='\u{2069}')
    };
    let mut shown = String::with_capacity(text.len());
    for c in text.chars() {
        match is_unsafe(c) && !kept.contains(&c) {
            true => shown.extend(c.escape_default()),
            false => shown.push(c),
        }
    }
    shown
}

/// A progress bar for saving, shown only on a terminal.
pub(crate) struct Writing(ProgressBar);

impl Writing {
    pub(crate) fn new() -> Self {
        Self(bar("{msg:28!} {bar:30} {bytes}/{total_bytes} {eta} left"))
    }

    pub(crate) fn show(&self, event: &WriteEvent<'_>) {
        self.0.set_length(event.total);
        self.0.set_position(event.done);
        self.0.set_message(event.tensor.to_owned());
    }

    pub(crate) fn end(&self) {
        self.0.finish_and_clear();
    }
}

/// A progress bar on standard error; hidden if that is not a terminal.
pub(crate) fn bar(template: &str) -> ProgressBar {
    let style =
        ProgressStyle::with_template(template).unwrap_or_else(|_| ProgressStyle::default_bar());
    ProgressBar::with_draw_target(None, ProgressDrawTarget::stderr()).with_style(style)
}

/// Shows downloads: a progress bar on a terminal, lines otherwise.
pub(crate) struct Downloads {
    bar: Option<Mutex<ProgressBar>>,
    hides_progress: bool,
}

impl Downloads {
    pub(crate) fn new(hub: &HubConfig) -> Self {
        let is_shown = std::io::stderr().is_terminal() && !hub.hides_progress;
        let bar = is_shown.then(|| Mutex::new(ProgressBar::hidden()));
        Self {
            bar,
            hides_progress: hub.hides_progress,
        }
    }

    fn start(&self, file: &str, total: Option<u64>, resumed_from: u64) {
        if self.hides_progress {
            return;
        }

        let from = if resumed_from > 0 {
            format!(", resuming at {}", bytes(resumed_from))
        } else {
            String::new()
        };

        match &self.bar {
            None => {
                let size = total.map_or("size unknown".into(), bytes);
                line(&format!("downloading {file} ({size}{from})"));
            }
            Some(bar) => {
                let template =
                    "{msg:28!} {bar:30} {bytes}/{total_bytes} {bytes_per_sec} {eta} left";
                let new = self::bar(template);
                if let Some(total) = total {
                    new.set_length(total);
                }

                new.set_message(file.to_owned());
                new.set_position(resumed_from);
                new.reset_eta();
                *bar.lock().unwrap_or_else(PoisonError::into_inner) = new;
            }
        }
    }

    /// Prints `text`, if any, and applies `act` to the progress bar, if any.
    fn update(&self, text: Option<String>, act: impl FnOnce(&ProgressBar)) {
        match (&self.bar, text) {
            (Some(bar), text) => {
                let bar = bar.lock().unwrap_or_else(PoisonError::into_inner);
                if let Some(text) = text {
                    bar.suspend(|| line(&text));
                }

                act(&bar);
            }
            (None, Some(text)) => line(&text),
            (None, None) => {}
        }
    }
}

impl Progress for Downloads {
    fn event(&self, event: &ProgressEvent<'_>) {
        match event {
            ProgressEvent::Start {
                file,
                total,
                resumed_from,
            } => self.start(file, *total, *resumed_from),
            ProgressEvent::Advance { bytes, .. } => self.update(None, |bar| bar.inc(*bytes)),
            ProgressEvent::Retry {
                file,
                attempt,
                delay,
                reason,
            } => {
                let text = format!(
                    "{file}: {reason}; attempt {attempt} in {:.1} s",
                    delay.as_secs_f64()
                );
                self.update(Some(text), |_| ());
            }

            ProgressEvent::Restart { file, reason } => {
                self.update(Some(format!("{file}: starting over ({reason})")), |bar| {
                    bar.set_position(0)
                });
            }
            ProgressEvent::WaitingForLock { file } => {
                self.update(
                    Some(format!(
                        "{file}: another process is downloading it; waiting"
                    )),
                    |_| (),
                );
            }
            ProgressEvent::UsingCache { reason } => {
                self.update(Some(format!("using the cached copy ({reason})")), |_| ());
            }
            ProgressEvent::Done { .. } => self.update(None, ProgressBar::finish),
            _ => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_grouped_by_thousands() {
        for (number, text) in [
            (0, "0"),
            (999, "999"),
            (1000, "1,000"),
            (878_020_168, "878,020,168"),
        ] {
            assert_eq!(grouped(number), text);
        }
    }

    #[test]
    fn names_from_files_cannot_control_the_terminal() {
        assert_eq!(escaped("h.0.größe"), "h.0.größe");
        assert_eq!(
            escaped("a\u{1b}[2Jb\n\u{202e}c"),
            "a\\u{1b}[2Jb\\n\\u{202e}c"
        );
        assert_eq!(visible("a\u{1b}b\n\tc\r"), "a\\u{1b}b\n\tc\\r");
    }

    #[test]
    fn closed_pipes_are_recognised() {
        let io = std::io::Error::other("no such file");
        let error = anyhow::Error::from(io).context("cannot read config.json");
        assert_eq!(error.chain().count(), 2);
        assert!(!is_closed_pipe(&error));
        let closed = anyhow::Error::from(std::io::Error::from(std::io::ErrorKind::BrokenPipe));
        assert!(is_closed_pipe(&closed));
    }
}
