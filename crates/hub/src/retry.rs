//! How long to wait after a failure, and when to give up.

use crate::config::HubConfig;
use rand::Rng;
use reqwest::header::{HeaderMap, RETRY_AFTER};
use std::time::{Duration, SystemTime};

/// Failures in a row, and altogether.
#[derive(Debug, Clone)]
pub(crate) struct Retries {
    max: u32,
    base: Duration,
    longest: Duration,
    in_a_row: u32,
    altogether: u32,
}

/// A server that lets a little through each time must not keep us forever.
const ALTOGETHER: u32 = 40;

impl Retries {
    pub(crate) fn new(config: &HubConfig) -> Self {
        Self {
            max: config.max_retries,
            base: config.base_delay,
            longest: config.max_delay,
            in_a_row: 0,
            altogether: 0,
        }
    }

    /// Bytes have arrived: the line works.
    pub(crate) fn progressed(&mut self) {
        self.in_a_row = 0;
    }

    /// The delay before the next try, or none when it is time to give up. `asked` is a
    /// `Retry-After`.
    pub(crate) fn next(&mut self, asked: Option<Duration>) -> Option<Duration> {
        self.in_a_row += 1;
        self.altogether += 1;
        if self.in_a_row > self.max || self.altogether > ALTOGETHER {
            return None;
        }
        let doubled = self.base.saturating_mul(1 << (self.in_a_row - 1).min(16));
        // Up to a quarter more, so that many clients do not come back at once.
        let delay =
            asked.unwrap_or_else(|| doubled.mul_f64(1.0 + rand::rng().random::<f64>() / 4.0));
        Some(delay.min(self.longest))
    }

    /// Failures in a row so far.
    pub(crate) fn in_a_row(&self) -> u32 {
        self.in_a_row
    }
}

/// The `Retry-After` of an answer: seconds, or a date.
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
        (config.max_retries, config.base_delay) = (3, Duration::from_secs(1));
        config.max_delay = Duration::from_secs(5);
        Retries::new(&config)
    }

    #[test]
    fn delays_double_to_a_limit_and_tries_end() {
        let mut retries = retries();
        for least in [1, 2, 4] {
            let delay = retries.next(None).unwrap().as_secs_f64();
            assert!(delay >= f64::from(least) && delay <= 5.0, "{delay}");
        }
        assert_eq!(retries.next(None), None);
    }

    #[test]
    fn progress_begins_the_count_anew_but_not_forever() {
        let mut retries = retries();
        let mut tries = 0;
        while retries.next(None).is_some() {
            retries.progressed();
            tries += 1;
        }
        assert_eq!(tries, ALTOGETHER);
    }

    #[test]
    fn what_the_server_asks_for_is_honoured_up_to_the_limit() {
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
