//! Generation options, named as in transformers' `GenerationConfig`.

use clap::Args;
use llm_int8::GenerationConfig;

/// How the next token is chosen, and when generation ends. Options that are not given have the
/// values of the model's files.
#[derive(Debug, Args)]
pub(crate) struct SamplingArgs {
    /// Always take the most likely token (the default, unless the model's generation_config.json or
    /// an option below turns sampling on)
    #[arg(
        long,
        conflicts_with_all = ["temperature", "top_k", "top_p", "min_p", "typical_p", "epsilon_cutoff", "eta_cutoff"],
        help_heading = "Sampling"
    )]
    pub(crate) greedy: bool,
    /// Sample with this temperature; lower is more predictable, 0 is greedy
    #[arg(long, short = 't', value_name = "T", help_heading = "Sampling")]
    pub(crate) temperature: Option<f64>,
    /// Sample from the K most likely tokens; 0 is off
    #[arg(long, value_name = "K", help_heading = "Sampling")]
    pub(crate) top_k: Option<usize>,
    /// Sample from the most likely tokens whose probabilities add up to P
    #[arg(long, value_name = "P", help_heading = "Sampling")]
    pub(crate) top_p: Option<f64>,
    /// Sample from tokens at least P times as likely as the most likely one
    #[arg(long, value_name = "P", help_heading = "Sampling")]
    pub(crate) min_p: Option<f64>,
    /// Sample from the tokens whose information is nearest to the entropy, until their
    /// probabilities add up to P (locally typical sampling)
    #[arg(long, value_name = "P", help_heading = "Sampling")]
    pub(crate) typical_p: Option<f64>,
    /// Sample from tokens with at least probability P; typical values are 3e-4 to 9e-4
    #[arg(long, value_name = "P", help_heading = "Sampling")]
    pub(crate) epsilon_cutoff: Option<f64>,
    /// Like --epsilon-cutoff, with a lower limit when many tokens are likely; typical values are
    /// 3e-4 to 2e-3
    #[arg(long, value_name = "P", help_heading = "Sampling")]
    pub(crate) eta_cutoff: Option<f64>,
    /// Random seed: the same seed gives the same text [default: 0]
    #[arg(long, value_name = "N", help_heading = "Sampling")]
    pub(crate) seed: Option<u64>,
    /// Make tokens that have occurred less likely; 1 is off
    #[arg(long, value_name = "X", help_heading = "Token constraints")]
    pub(crate) repetition_penalty: Option<f64>,
    /// Make tokens of the prompt more likely; 1 is off
    #[arg(long, value_name = "X", help_heading = "Token constraints")]
    pub(crate) encoder_repetition_penalty: Option<f64>,
    /// Never repeat a sequence of N tokens; 0 is off
    #[arg(long, value_name = "N", help_heading = "Token constraints")]
    pub(crate) no_repeat_ngram_size: Option<usize>,
    /// Never repeat a sequence of N tokens from the prompt; 0 is off
    #[arg(long, value_name = "N", help_heading = "Token constraints")]
    pub(crate) encoder_no_repeat_ngram_size: Option<usize>,
    /// Never generate this sequence of tokens (may be given several times)
    #[arg(long, value_name = "ID,…", value_parser = token_ids, help_heading = "Token constraints")]
    pub(crate) bad_words_ids: Vec<TokenIds>,
    /// Never generate any of these tokens
    #[arg(
        long,
        value_name = "ID,…",
        value_delimiter = ',',
        help_heading = "Token constraints"
    )]
    pub(crate) suppress_tokens: Vec<u32>,
    /// Do not generate any of these tokens first
    #[arg(
        long,
        value_name = "ID,…",
        value_delimiter = ',',
        help_heading = "Token constraints"
    )]
    pub(crate) begin_suppress_tokens: Vec<u32>,
    /// Generate at least N new tokens
    #[arg(long, value_name = "N", help_heading = "Token constraints")]
    pub(crate) min_new_tokens: Option<usize>,
    /// Force one of these as the last token when the maximum length is reached
    #[arg(
        long,
        value_name = "ID,…",
        value_delimiter = ',',
        help_heading = "Token constraints"
    )]
    pub(crate) forced_eos_token_id: Vec<u32>,
    /// After START new tokens, make end tokens more likely with every token, by a FACTOR above 1
    #[arg(long, value_name = "START,FACTOR", value_parser = decay, help_heading = "Token constraints")]
    pub(crate) exponential_decay_length_penalty: Option<(i64, f64)>,
    /// Stop before this text (may be given several times); it may contain special tokens
    #[arg(long, value_name = "TEXT", allow_hyphen_values = true)]
    pub(crate) stop: Vec<String>,
    /// Do not stop at end-of-sequence tokens
    #[arg(long)]
    pub(crate) ignore_eos: bool,
    /// Speculative decoding: draft up to N tokens from earlier text and check them in one pass. The
    /// same text, faster where it repeats itself; needs --outliers row
    #[arg(long, value_name = "N", default_value_t = 0, hide_default_value = true, value_parser = super::limits::drafts)]
    pub(crate) speculate: usize,
}

/// A sequence of token ids.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct TokenIds(Vec<u32>);

impl SamplingArgs {
    /// The model's own settings, overridden by these options.
    pub(crate) fn over(&self, mut config: GenerationConfig) -> GenerationConfig {
        self.set_sampling(&mut config);
        self.set_constraints(&mut config);
        config.seed = self.seed.unwrap_or(0);
        config.speculate = self.speculate;
        set_list(&mut config.stop, &self.stop);
        if self.ignore_eos {
            config.eos_token_ids.clear();
        }

        config
    }

    fn set_sampling(&self, config: &mut GenerationConfig) {
        let fractions = [
            self.top_p,
            self.min_p,
            self.typical_p,
            self.epsilon_cutoff,
            self.eta_cutoff,
        ];
        let is_requested = self.temperature.is_some()
            || self.top_k.is_some()
            || fractions.iter().any(Option::is_some);
        config.do_sample =
            (config.do_sample || is_requested) && !self.greedy && self.temperature != Some(0.0);
        set(&mut config.temperature, self.temperature);
        set(&mut config.top_k, self.top_k);
        set(&mut config.top_p, self.top_p);
        set(&mut config.min_p, self.min_p);
        set(&mut config.typical_p, self.typical_p);
        set(&mut config.epsilon_cutoff, self.epsilon_cutoff);
        set(&mut config.eta_cutoff, self.eta_cutoff);
    }

    fn set_constraints(&self, config: &mut GenerationConfig) {
        set(&mut config.repetition_penalty, self.repetition_penalty);
        set(
            &mut config.encoder_repetition_penalty,
            self.encoder_repetition_penalty,
        );
        set(&mut config.no_repeat_ngram_size, self.no_repeat_ngram_size);
        set(
            &mut config.encoder_no_repeat_ngram_size,
            self.encoder_no_repeat_ngram_size,
        );
        let bad_words: Vec<Vec<u32>> = self.bad_words_ids.iter().map(|ids| ids.0.clone()).collect();
        set_list(&mut config.bad_words_ids, &bad_words);
        set_list(&mut config.suppress_tokens, &self.suppress_tokens);
        set_list(
            &mut config.begin_suppress_tokens,
            &self.begin_suppress_tokens,
        );
        config.min_new_tokens = self.min_new_tokens.or(config.min_new_tokens);
        set_list(&mut config.forced_eos_token_ids, &self.forced_eos_token_id);
        let decay = self.exponential_decay_length_penalty;
        config.exponential_decay_length_penalty = decay.or(config.exponential_decay_length_penalty);
    }
}

fn set<T>(into: &mut T, given: Option<T>) {
    if let Some(value) = given {
        *into = value;
    }
}

fn set_list<T: Clone>(into: &mut Vec<T>, given: &[T]) {
    if !given.is_empty() {
        *into = given.to_vec();
    }
}

fn token_ids(text: &str) -> Result<TokenIds, String> {
    let ids: Result<Vec<u32>, _> = text.split(',').map(|id| id.trim().parse()).collect();
    ids.map(TokenIds)
        .map_err(|_| "expected token ids, as in 5 or 5,17".into())
}

/// Parses `15,1.5`: a number of tokens and a factor.
fn decay(text: &str) -> Result<(i64, f64), String> {
    let pair = text.split_once(',').and_then(|(start, factor)| {
        Some((
            start.trim().parse().ok()?,
            factor
                .trim()
                .parse()
                .ok()
                .filter(|factor: &f64| *factor > 0.0)?,
        ))
    });
    pair.ok_or_else(|| {
        "expected a number of tokens and a factor greater than 0, as in 15,1.5".into()
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::Parser;

    #[derive(Parser)]
    struct Line {
        #[command(flatten)]
        sampling: SamplingArgs,
    }

    fn given(arguments: &[&str], config: GenerationConfig) -> GenerationConfig {
        let line = ["x"].iter().chain(arguments);
        Line::try_parse_from(line)
            .unwrap_or_else(|error| panic!("{error}"))
            .sampling
            .over(config)
    }

    #[test]
    fn options_override_the_files_and_the_rest_stays() {
        let files = GenerationConfig {
            top_p: 0.0,
            stop: vec!["a".into()],
            suppress_tokens: vec![1],
            bad_words_ids: vec![vec![2]],
            min_new_tokens: Some(3),
            eos_token_ids: vec![4],
            ..GenerationConfig::default()
        };
        assert_eq!(given(&[], files.clone()), files);
        let arguments = [
            "--stop",
            "b",
            "--suppress-tokens",
            "7,8",
            "--min-new-tokens",
            "5",
            "--ignore-eos",
        ];
        let expected = GenerationConfig {
            stop: vec!["b".into()],
            suppress_tokens: vec![7, 8],
            min_new_tokens: Some(5),
            eos_token_ids: Vec::new(),
            ..files.clone()
        };
        assert_eq!(given(&arguments, files.clone()), expected);
        let bad = given(&["--bad-words-ids", "5", "--bad-words-ids", "6,7"], files);
        assert_eq!(bad.bad_words_ids, [vec![5], vec![6, 7]]);
    }

    #[test]
    fn every_filter_turns_sampling_on() {
        for filter in [
            "--temperature",
            "--top-p",
            "--min-p",
            "--typical-p",
            "--epsilon-cutoff",
            "--eta-cutoff",
        ] {
            assert!(
                given(&[filter, "0.5"], GenerationConfig::default()).do_sample,
                "{filter}"
            );
        }

        assert!(given(&["--top-k", "5"], GenerationConfig::default()).do_sample);
        assert!(!given(&["--temperature", "0"], GenerationConfig::default()).do_sample);
        let files = GenerationConfig {
            do_sample: true,
            ..GenerationConfig::default()
        };
        assert!(!given(&["--greedy"], files).do_sample);
    }

    #[test]
    fn sequences_and_decays_are_parsed() {
        assert_eq!(token_ids("5, 17"), Ok(TokenIds(vec![5, 17])));
        assert_eq!(decay("15,1.5"), Ok((15, 1.5)));
        for wrong in ["", "5,", "-1", "a"] {
            assert!(token_ids(wrong).is_err(), "{wrong}");
        }

        for wrong in ["", "15", "1.5,2", "15,-1", "15,x", "15,1.5,2"] {
            assert!(decay(wrong).is_err(), "{wrong}");
        }
    }
}
