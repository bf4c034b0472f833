//! A floor under the rate of a body, so that a server that sends a byte now and then does not hold
//! a download for ever.

use crate::config::HubConfig;
use crate::http::Failure;
use std::time::{Duration, Instant};

/// Counts the bytes of one body.
#[derive(Debug)]
pub(crate) struct Floor {
    window: Duration,
    slowest: u64,
    since: Instant,
    bytes: u64,
}

impl Floor {
    pub(crate) fn new(config: &HubConfig) -> Self {
        Self {
            window: config.rate_window,
            slowest: config.slowest_rate,
            since: Instant::now(),
            bytes: 0,
        }
    }

    /// Counts bytes that have arrived. A failure if they were too few in the last window; a
    /// connection on which nothing arrives at all is left to the read time-out.
    pub(crate) fn count(&mut self, bytes: usize) -> Result<(), Failure> {
        self.bytes += bytes as u64;
        let elapsed = self.since.elapsed();
        if elapsed < self.window {
            return Ok(());
        }

        if (self.bytes as f64) < self.slowest as f64 * elapsed.as_secs_f64() {
            return Err(Failure::Transient {
                reason: format!("only {} bytes arrived in {elapsed:.0?}", self.bytes),
                after: None,
                unreachable: false,
            });
        }

        self.since = Instant::now();
        self.bytes = 0;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_body_must_keep_its_rate_in_every_window() {
        let mut config = HubConfig::new("/tmp");
        config.rate_window = Duration::from_millis(50);
        config.slowest_rate = 1000;
        let mut floor = Floor::new(&config);
        assert!(floor.count(1).is_ok(), "the window is not over");

        std::thread::sleep(Duration::from_millis(60));
        assert!(floor.count(100_000).is_ok(), "fast");
        std::thread::sleep(Duration::from_millis(60));
        let failure = floor.count(1).unwrap_err();
        assert!(
            matches!(&failure, Failure::Transient { reason, .. } if reason.starts_with("only 1 bytes arrived")),
            "{failure:?}"
        );
    }
}
