//! Backoff: how long to wait after a failure, and when to give up.

use crate::config::HubConfig;
use rand::Rng;
use reqwest::header::{HeaderMap, RETRY_AFTER};
use std::time::{Duration, SystemTime};

/// Counts failures: consecutive ones, and in total.
#[derive(Debug, Clone)]
pub(crate) struct Retries {
    max_in_a_row: u32,
    base_delay: Duration,
    max_delay: Duration,
    in_a_row: u32,
    total: u32,
}

/// Limit of failures in total, for servers that send a few bytes each time and so keep resetting
/// the count of consecutive failures.
const MAX_TOTAL: u32 = 40;

impl Retries {
    pub(crate) fn new(config: &HubConfig) -> Self {
        Self {
            max_in_a_row: config.max_retries,
            base_delay: config.base_delay,
            max_delay: config.max_delay,
            in_a_row: 0,
            total: 0,
        }
    }

    /// Bytes have arrived: resets the count of consecutive failures.
    pub(crate) fn progressed(&mut self) {
        self.in_a_row = 0;
    }

    /// Counts a failure. Returns the delay before the next attempt, or `None` to give up.
    /// `requested` is the server's `Retry-After`.
    pub(crate) fn next(&mut self, requested: Option<Duration>) -> Option<Duration> {
        self.in_a_row += 1;
        self.total += 1;
        if self.in_a_row > self.max_in_a_row || self.total > MAX_TOTAL {
            return None;
        }

        let delay = requested.unwrap_or_else(|| {
            let doublings = (self.in_a_row - 1).min(16);
            let delay = self.base_delay.saturating_mul(1 << doublings);
            // Jitter of up to a quarter, so that many clients do not return at the same time.
            delay.mul_f64(1.0 + rand::rng().random::<f64>() / 4.0)
        });

        Some(delay.min(self.max_delay))
    }

    /// Failures so far, also those before the last progress.
    pub(crate) fn attempts(&self) -> u32 {
        self.total
    }

    /// Consecutive failures so far.
    pub(crate) fn in_a_row(&self) -> u32 {
        self.in_a_row
    }
}

/// The `Retry-After` of an answer: a number of seconds, or a date.
pub(crate) fn retry_after(headers: &HeaderMap) -> Option<Duration> {
    let value = headers.get(RETRY_AFTER)?.to_str().ok()?.trim();
    if let Ok(seconds) = value.parse::<u64>() {
        return Some(Duration::from_secs(seconds));
    }

    httpdate::parse_http_date(value)
        .ok()?
        .duration_since(SystemTime::now())
        .ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn retries() -> Retries {
        let mut config = HubConfig::new("/tmp");
        config.max_retries = 3;
        config.base_delay = Duration::from_secs(1);
        config.max_delay = Duration::from_secs(5);
        Retries::new(&config)
    }

    #[test]
    fn delays_double_up_to_a_limit_and_attempts_end() {
        let mut retries = retries();
        for least in [1, 2, 4] {
            let delay = retries.next(None).unwrap().as_secs_f64();
            assert!(delay >= f64::from(least) && delay <= 5.0, "{delay}");
        }
        assert_eq!(retries.next(None), None);
    }

    #[test]
    fn progress_resets_the_count_but_not_forever() {
        let mut retries = retries();
        let mut attempts = 0;
        while retries.next(None).is_some() {
            retries.progressed();
            attempts += 1;
        }

        assert_eq!(attempts, MAX_TOTAL);
    }

    #[test]
    fn retry_after_is_honoured_up_to_the_limit() {
        let headers = |value: &str| {
            let mut headers = HeaderMap::new();
            headers.insert(RETRY_AFTER, value.parse().unwrap());
            headers
        };

        assert_eq!(retry_after(&headers("2")), Some(Duration::from_secs(2)));
        assert_eq!(
            retries().next(Some(Duration::from_secs(3600))),
            Some(Duration::from_secs(5))
        );

        let date = httpdate::fmt_http_date(SystemTime::now() + Duration::from_secs(100));
        assert!(retry_after(&headers(&date)).unwrap() > Duration::from_secs(90));
        assert_eq!(retry_after(&headers("soon")), None);
    }
}
