//! Numbers of the command line and how large they may be: beyond any use, they are refused before a
//! model is loaded.

use std::ops::RangeInclusive;

/// Threads of a pool.
const MOST_THREADS: i64 = 1024;
/// Positions of a text: more than any model has.
const MOST_POSITIONS: usize = 1 << 24;
/// Texts computed together.
const MOST_AT_ONCE: usize = 1 << 16;
/// Rows of activations.
const MOST_ROWS: usize = 1 << 20;
/// Runs of a measurement.
const MOST_RUNS: usize = 10_000;
/// Drafts at once.
const MOST_DRAFTS: usize = 1024;

/// Features of a layer, and its weights.
const MOST_FEATURES: usize = 1 << 20;
const MOST_WEIGHTS: usize = 1 << 32;

pub(super) fn threads() -> clap::builder::RangedI64ValueParser<u16> {
    clap::value_parser!(u16).range(1..=MOST_THREADS)
}

pub(super) fn at_once(text: &str) -> Result<usize, String> {
    number(text, 1..=MOST_AT_ONCE)
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

/// A whole number within a range, which the message names.
fn number(text: &str, range: RangeInclusive<usize>) -> Result<usize, String> {
    let number = text.parse().ok().filter(|number| range.contains(number));
    number.ok_or_else(|| {
        format!(
            "a whole number from {} to {} was expected",
            range.start(),
            range.end()
        )
    })
}

/// `4096x11008`: outputs and inputs.
pub(super) fn shape(text: &str) -> Result<[usize; 2], String> {
    let sizes = text
        .split_once('x')
        .map(|(out, inputs)| (out.parse::<usize>(), inputs.parse::<usize>()));
    let Some((Ok(out), Ok(inputs))) = sizes else {
        return Err("two sizes were expected, outputs and inputs, as 4096x11008".into());
    };

    if ![out, inputs]
        .iter()
        .all(|size| (1..=MOST_FEATURES).contains(size))
    {
        return Err(format!("sizes from 1 to {MOST_FEATURES} were expected"));
    }
    match out.saturating_mul(inputs) <= MOST_WEIGHTS {
        true => Ok([out, inputs]),
        false => Err(format!(
            "a layer of at most {MOST_WEIGHTS} weights was expected"
        )),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shapes_are_read() {
        assert_eq!(shape("4096x11008"), Ok([4096, 11008]));
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
    fn numbers_beyond_use_are_refused_with_the_limit() {
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
                Err("a whole number from 1 to 65536 was expected".into()),
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
