//! Metrics in the text format of Prometheus, by vLLM's names under `llm_int8:`.

use llm_int8::generate::ServiceState;
use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

/// Upper bounds in seconds, those of vLLM.
const FIRST_TOKEN: &[f64] = &[
    0.001, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.25, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5, 10.0,
    20.0, 40.0, 80.0, 160.0,
];
const BETWEEN_TOKENS: &[f64] = &[
    0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.75, 1.0, 2.5,
    5.0, 7.5, 10.0,
];
const WHOLE_REQUEST: &[f64] = &[
    0.1, 0.3, 0.5, 0.8, 1.0, 1.5, 2.0, 2.5, 5.0, 10.0, 15.0, 20.0, 30.0, 40.0, 50.0, 60.0, 120.0,
    240.0, 480.0, 960.0,
];

/// What is counted beside the engine.
#[derive(Debug)]
pub(crate) struct Metrics(Mutex<Counts>);

#[derive(Debug)]
struct Counts {
    first_token: Histogram,
    between_tokens: Histogram,
    whole_request: Histogram,
    /// Sequences by why they ended.
    finished: BTreeMap<&'static str, u64>,
    /// Answers by status.
    answers: BTreeMap<u16, u64>,
}

#[derive(Debug)]
struct Histogram {
    bounds: &'static [f64],
    /// Observations up to each bound, and one more count for those beyond.
    counts: Vec<u64>,
    sum: f64,
}

impl Histogram {
    fn new(bounds: &'static [f64]) -> Self {
        Self {
            bounds,
            counts: vec![0; bounds.len() + 1],
            sum: 0.0,
        }
    }

    fn observe(&mut self, seconds: f64) {
        let place = self.bounds.partition_point(|bound| *bound < seconds);
        if let Some(count) = self.counts.get_mut(place) {
            *count += 1;
        }
        self.sum += seconds;
    }

    fn write(&self, out: &mut String, name: &str, help: &str) {
        head(out, name, help, "histogram");
        let mut total = 0;
        let bounds = self.bounds.iter().map(f64::to_string);
        for (bound, count) in bounds.chain(["+Inf".to_owned()]).zip(&self.counts) {
            total += count;
            // Writing to a string cannot fail.
            let _ = writeln!(out, "llm_int8:{name}_bucket{{le=\"{bound}\"}} {total}");
        }
        let _ = writeln!(out, "llm_int8:{name}_sum {}", self.sum);
        let _ = writeln!(out, "llm_int8:{name}_count {total}");
    }
}

impl Metrics {
    pub(crate) fn new() -> Self {
        Self(Mutex::new(Counts {
            first_token: Histogram::new(FIRST_TOKEN),
            between_tokens: Histogram::new(BETWEEN_TOKENS),
            whole_request: Histogram::new(WHOLE_REQUEST),
            finished: BTreeMap::new(),
            answers: BTreeMap::new(),
        }))
    }

    fn counts(&self) -> MutexGuard<'_, Counts> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn first_token(&self, after: Duration) {
        self.counts().first_token.observe(after.as_secs_f64());
    }

    pub(crate) fn next_token(&self, after: Duration) {
        self.counts().between_tokens.observe(after.as_secs_f64());
    }

    pub(crate) fn finished(&self, reason: &'static str, after: Duration) {
        let mut counts = self.counts();
        *counts.finished.entry(reason).or_default() += 1;
        counts.whole_request.observe(after.as_secs_f64());
    }

    pub(crate) fn answered(&self, status: u16) {
        *self.counts().answers.entry(status).or_default() += 1;
    }

    /// All series. `state` is that of the engine, once there is one.
    pub(crate) fn text(&self, state: Option<&ServiceState>) -> String {
        let mut out = String::new();
        if let Some(state) = state {
            engine(&mut out, state);
        }

        let counts = self.counts();
        counts.first_token.write(
            &mut out,
            "time_to_first_token_seconds",
            "Time from a request to its first token.",
        );
        counts.between_tokens.write(
            &mut out,
            "inter_token_latency_seconds",
            "Time from a token to the next one of the same sequence.",
        );
        counts.whole_request.write(
            &mut out,
            "e2e_request_latency_seconds",
            "Time from a request to the end of a sequence.",
        );
        labelled(
            &mut out,
            "request_success_total",
            "Sequences that ended, by the reason.",
            "finished_reason",
            counts.finished.iter(),
        );
        labelled(
            &mut out,
            "http_responses_total",
            "Answers by HTTP status.",
            "status",
            counts.answers.iter(),
        );

        out
    }
}

/// The series of the engine.
fn engine(out: &mut String, state: &ServiceState) {
    let usage = match state.cache_budget {
        Some(budget) if budget > 0 => state.cache_bytes as f64 / budget as f64,
        _ => 0.0,
    };
    let gauges = [
        (
            "num_requests_running",
            "Sequences that run.",
            state.running as f64,
        ),
        (
            "num_requests_waiting",
            "Sequences that wait.",
            state.waiting as f64,
        ),
        (
            "kv_cache_usage_perc",
            "Fraction of the memory for keys and values in use, 1 being all; 0 without a limit.",
            usage,
        ),
        (
            "kv_cache_bytes",
            "Bytes of keys and values of running sequences and kept prefixes.",
            state.cache_bytes as f64,
        ),
        (
            "prefix_cache_bytes",
            "Bytes of keys and values of kept prefixes.",
            state.kept_bytes as f64,
        ),
    ];
    for (name, help, value) in gauges {
        head(out, name, help, "gauge");
        let _ = writeln!(out, "llm_int8:{name} {value}");
    }

    let counters = [
        (
            "prefix_cache_queries_total",
            "Prompt tokens looked up among the kept prefixes.",
            state.prefix_queries,
        ),
        (
            "prefix_cache_hits_total",
            "Prompt tokens found among the kept prefixes.",
            state.prefix_hits,
        ),
        (
            "prompt_tokens_total",
            "Prompt tokens that were computed.",
            state.prompt_tokens,
        ),
        (
            "generation_tokens_total",
            "Tokens that were generated.",
            state.generated_tokens,
        ),
        ("passes_total", "Forward passes.", state.passes),
        (
            "failed_passes_total",
            "Forward passes that failed.",
            state.failed_passes,
        ),
    ];
    for (name, help, value) in counters {
        head(out, name, help, "counter");
        let _ = writeln!(out, "llm_int8:{name} {value}");
    }
}

fn head(out: &mut String, name: &str, help: &str, kind: &str) {
    let _ = writeln!(out, "# HELP llm_int8:{name} {help}");
    let _ = writeln!(out, "# TYPE llm_int8:{name} {kind}");
}

fn labelled<'a, L: std::fmt::Display + 'a>(
    out: &mut String,
    name: &str,
    help: &str,
    label: &str,
    counts: impl Iterator<Item = (&'a L, &'a u64)>,
) {
    head(out, name, help, "counter");
    for (value, count) in counts {
        let _ = writeln!(out, "llm_int8:{name}{{{label}=\"{value}\"}} {count}");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn buckets_are_cumulative_and_bounds_belong_to_them() {
        let metrics = Metrics::new();
        for seconds in [0.0005, 0.001, 0.002, 1000.0] {
            metrics.first_token(Duration::from_secs_f64(seconds));
        }
        let text = metrics.text(None);
        for line in [
            "llm_int8:time_to_first_token_seconds_bucket{le=\"0.001\"} 2",
            "llm_int8:time_to_first_token_seconds_bucket{le=\"0.005\"} 3",
            "llm_int8:time_to_first_token_seconds_bucket{le=\"160\"} 3",
            "llm_int8:time_to_first_token_seconds_bucket{le=\"+Inf\"} 4",
            "llm_int8:time_to_first_token_seconds_count 4",
        ] {
            assert!(text.lines().any(|found| found == line), "{line}\n{text}");
        }
    }

    #[test]
    fn reasons_and_statuses_are_labels() {
        let metrics = Metrics::new();
        metrics.finished("stop", Duration::from_secs(1));
        metrics.answered(200);
        metrics.answered(200);
        let text = metrics.text(None);
        assert!(text.contains("request_success_total{finished_reason=\"stop\"} 1"));
        assert!(text.contains("http_responses_total{status=\"200\"} 2"));
    }
}
