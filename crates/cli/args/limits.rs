//! Numbers on the command line and their limits. Absurd values are rejected before a model is
//! loaded.

use llm_int8::bench::LayerShape;
use std::ops::RangeInclusive;

/// Threads in the pool.
const MOST_THREADS: i64 = 1024;
/// Positions: more than any model has.
const MOST_POSITIONS: usize = 1 << 24;
/// Sequences in a batch.
const MOST_AT_ONCE: usize = 1 << 16;
/// Rows of activations.
const MOST_ROWS: usize = 1 << 20;
/// Runs of a measurement.
const MOST_RUNS: usize = 10_000;
/// Drafts per step.
const MOST_DRAFTS: usize = 1024;

/// Features of a layer, in or out, and its weights.
const MOST_FEATURES: usize = 1 << 20;
const MOST_WEIGHTS: usize = 1 << 32;

pub(super) fn threads() -> clap::builder::RangedI64ValueParser<u16> {
    clap::value_parser!(u16).range(1..=MOST_THREADS)
}

pub(super) fn at_once(text: &str) -> Result<usize, String> {
    number(text, 1..=MOST_AT_ONCE)
}

pub(super) fn queue(text: &str) -> Result<usize, String> {
    number(text, 0..=MOST_AT_ONCE)
}

pub(super) fn rows(text: &str) -> Result<usize, String> {
    number(text, 1..=MOST_ROWS)
}

pub(super) fn positions(text: &str) -> Result<usize, String> {
    number(text, 1..=MOST_POSITIONS)
}

pub(super) fn bench_tokens(text: &str) -> Result<usize, String> {
    number(text, 2..=MOST_POSITIONS)
}

pub(super) fn bench_runs(text: &str) -> Result<usize, String> {
    number(text, 1..=MOST_RUNS)
}

pub(super) fn drafts(text: &str) -> Result<usize, String> {
    number(text, 0..=MOST_DRAFTS)
}

/// A whole number in a range, which the error message states.
fn number(text: &str, range: RangeInclusive<usize>) -> Result<usize, String> {
    let number = text.parse().ok().filter(|number| range.contains(number));
    number.ok_or_else(|| {
        format!(
            "expected a whole number from {} to {}",
            range.start(),
            range.end()
        )
    })
}

/// Parses `4096x11008`: output and input features.
pub(super) fn shape(text: &str) -> Result<LayerShape, String> {
    let sizes = text
        .split_once('x')
        .map(|(out, inputs)| (out.parse::<usize>(), inputs.parse::<usize>()));
    let Some((Ok(out), Ok(inputs))) = sizes else {
        return Err("expected two sizes, output and input features, as in 4096x11008".into());
    };

    if ![out, inputs]
        .iter()
        .all(|size| (1..=MOST_FEATURES).contains(size))
    {
        return Err(format!("expected sizes from 1 to {MOST_FEATURES}"));
    }
    match out.saturating_mul(inputs) <= MOST_WEIGHTS {
        true => Ok(LayerShape {
            out_features: out,
            in_features: inputs,
        }),
        false => Err(format!(
            "expected a layer of at most {MOST_WEIGHTS} weights"
        )),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shapes_are_parsed() {
        assert_eq!(
            shape("4096x11008"),
            Ok(LayerShape {
                out_features: 4096,
                in_features: 11008
            })
        );
        for wrong in [
            "",
            "4096",
            "0x5",
            "5x",
            "axb",
            "9999999x1",
            "-1x4",
            "1048576x1048576",
        ] {
            assert!(shape(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn absurd_numbers_are_refused_with_the_limit() {
        assert_eq!(
            (at_once("65536"), positions("1"), drafts("0")),
            (Ok(65536), Ok(1), Ok(0))
        );
        for wrong in [
            "0",
            "-1",
            "1.5",
            "",
            "x",
            "65537",
            "18446744073709551615",
            "99999999999999999999999",
        ] {
            assert_eq!(
                at_once(wrong),
                Err("expected a whole number from 1 to 65536".into()),
                "{wrong}"
            );
        }

        assert!(
            bench_tokens("1")
                .unwrap_err()
                .contains("from 2 to 16777216")
        );
    }
}
