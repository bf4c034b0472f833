//! How tokens are chosen and when a text ends.

use crate::fields::{Fields, token_id};
use crate::reply::ApiResult;
use llm_int8::GenerationConfig;
use serde_json::Value;
use std::collections::BTreeMap;

/// The fields that both endpoints share. `None`: what the model's files say.
#[derive(Debug, Clone, Default, PartialEq)]
pub(crate) struct Sampling {
    pub(crate) temperature: Option<f64>,
    pub(crate) top_p: Option<f64>,
    pub(crate) top_k: Option<usize>,
    pub(crate) min_p: Option<f64>,
    pub(crate) repetition_penalty: Option<f64>,
    pub(crate) presence_penalty: Option<f64>,
    pub(crate) frequency_penalty: Option<f64>,
    pub(crate) logit_bias: BTreeMap<u32, f32>,
    pub(crate) seed: Option<i64>,
    pub(crate) stop: Vec<String>,
    pub(crate) ignores_eos: bool,
    pub(crate) min_tokens: Option<usize>,
}

/// Upper bound of the number of stop strings. OpenAI allows four.
const MOST_STOPS: usize = 64;
/// Upper bound of a stop string in bytes.
const LONGEST_STOP: usize = 4096;
/// Upper bound of the number of biased tokens, that of vLLM.
const MOST_BIASES: usize = 1024;

impl Sampling {
    pub(super) fn read(fields: &Fields<'_>) -> ApiResult<Self> {
        // vLLM turns top-k off with -1.
        let top_k = fields.integer("top_k", -1..=i64::from(u32::MAX))?;
        Ok(Self {
            temperature: fields.number("temperature", 0.0..=2.0)?,
            top_p: fields.number("top_p", 0.0..=1.0)?,
            top_k: top_k.map(|k| usize::try_from(k).unwrap_or(0)),
            min_p: fields.number("min_p", 0.0..=1.0)?,
            repetition_penalty: fields.number("repetition_penalty", f64::MIN_POSITIVE..=100.0)?,
            presence_penalty: fields.number("presence_penalty", -2.0..=2.0)?,
            frequency_penalty: fields.number("frequency_penalty", -2.0..=2.0)?,
            logit_bias: logit_bias(fields)?,
            seed: fields.integer("seed", i64::MIN..=i64::MAX)?,
            stop: stop(fields)?,
            ignores_eos: fields.flag("ignore_eos")?.unwrap_or(false),
            min_tokens: fields.count("min_tokens", 0..=usize::MAX)?,
        })
    }

    /// The model's settings, overridden by these, as the options of the program do it: any filter
    /// turns sampling on, and temperature 0 turns it off.
    pub(crate) fn over(&self, mut config: GenerationConfig, seed: u64) -> GenerationConfig {
        let filters = [self.temperature, self.top_p, self.min_p];
        let asks = filters.iter().any(Option::is_some) || self.top_k.is_some();
        config.do_sample = (config.do_sample || asks) && self.temperature != Some(0.0);
        if let Some(temperature) = self.temperature.filter(|temperature| *temperature > 0.0) {
            config.temperature = temperature;
        }
        config.top_p = self.top_p.unwrap_or(config.top_p);
        config.top_k = self.top_k.unwrap_or(config.top_k);
        config.min_p = self.min_p.unwrap_or(config.min_p);
        config.repetition_penalty = self.repetition_penalty.unwrap_or(config.repetition_penalty);
        config.presence_penalty = self.presence_penalty.map_or(0.0, |x| x as f32);
        config.frequency_penalty = self.frequency_penalty.map_or(0.0, |x| x as f32);
        config.logit_bias.clone_from(&self.logit_bias);
        config.min_new_tokens = self.min_tokens.or(config.min_new_tokens);
        config.seed = seed;
        if !self.stop.is_empty() {
            config.stop.clone_from(&self.stop);
        }
        if self.ignores_eos {
            config.eos_token_ids.clear();
        }

        config
    }

    /// The seed of a choice. That of the first is the request's, so that it is the text of a request
    /// for one; `drawn` takes its place if the request has none.
    pub(crate) fn seed(&self, drawn: u64, choice: usize) -> u64 {
        let seed = self.seed.map_or(drawn, i64::cast_unsigned);
        if choice == 0 {
            return seed;
        }

        // SplitMix64 (Steele, Lea, Flood: Fast splittable pseudorandom number generators, 2014).
        let mut mixed = seed.wrapping_add((choice as u64).wrapping_mul(0x9e37_79b9_7f4a_7c15));
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }
}

fn logit_bias(fields: &Fields<'_>) -> ApiResult<BTreeMap<u32, f32>> {
    let Some(object) = fields.object("logit_bias")? else {
        return Ok(BTreeMap::new());
    };
    if object.len() > MOST_BIASES {
        let message = format!(
            "{} tokens; at most {MOST_BIASES} may be biased",
            object.len()
        );
        return Err(fields.error("logit_bias", message));
    }

    let pair = |(id, bias): (&String, &Value)| {
        let bias = bias
            .as_f64()
            .filter(|bias| (-100.0..=100.0).contains(bias))?;
        Some((id.trim().parse::<u32>().ok()?, bias as f32))
    };
    let biases = object.iter().map(pair).collect::<Option<_>>();
    biases.ok_or_else(|| {
        let message =
            "expected token ids with numbers between -100 and 100, as in {\"50256\": -100}";
        fields.error("logit_bias", message)
    })
}

fn stop(fields: &Fields<'_>) -> ApiResult<Vec<String>> {
    let given = match fields.get("stop") {
        None => return Ok(Vec::new()),
        Some(Value::String(text)) => vec![text.clone()],
        Some(Value::Array(list)) => {
            let texts = list.iter().map(|one| one.as_str().map(str::to_owned));
            texts
                .collect::<Option<_>>()
                .ok_or_else(|| fields.error("stop", "expected a string or a list of strings"))?
        }
        Some(_) => return Err(fields.error("stop", "expected a string or a list of strings")),
    };
    if given.len() > MOST_STOPS || given.iter().any(|text| text.len() > LONGEST_STOP) {
        let message = format!("at most {MOST_STOPS} strings of up to {LONGEST_STOP} bytes");
        return Err(fields.error("stop", message));
    }

    Ok(given.into_iter().filter(|text| !text.is_empty()).collect())
}

/// Token ids in a list.
pub(super) fn token_ids(list: &[Value]) -> Option<Vec<u32>> {
    list.iter().map(token_id).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn read(value: Value) -> ApiResult<Sampling> {
        Sampling::read(&Fields::of(value.as_object().unwrap()))
    }

    fn config(value: Value, files: GenerationConfig) -> GenerationConfig {
        read(value).unwrap().over(files, 7)
    }

    #[test]
    fn the_request_overrides_the_files_and_the_rest_stays() {
        let files = GenerationConfig {
            stop: vec!["a".into()],
            eos_token_ids: vec![4],
            top_k: 20,
            ..GenerationConfig::default()
        };
        let same = GenerationConfig {
            seed: 7,
            ..files.clone()
        };
        assert_eq!(config(json!({}), files.clone()), same);

        let set = config(
            json!({ "temperature": 0.5, "stop": "b", "ignore_eos": true, "top_k": -1,
                    "presence_penalty": 1, "logit_bias": { "3": -100 } }),
            files.clone(),
        );
        assert!(set.do_sample && set.temperature == 0.5 && set.top_k == 0);
        assert_eq!(
            (set.stop, set.presence_penalty),
            (vec!["b".to_owned()], 1.0)
        );
        assert_eq!(set.logit_bias, BTreeMap::from([(3, -100.0)]));
        assert!(set.eos_token_ids.is_empty());

        let sampling = GenerationConfig {
            do_sample: true,
            ..files
        };
        assert!(!config(json!({ "temperature": 0 }), sampling).do_sample);
    }

    #[test]
    fn values_out_of_range_name_their_field() {
        for (value, param) in [
            (json!({ "temperature": 2.5 }), "temperature"),
            (json!({ "top_p": -0.1 }), "top_p"),
            (json!({ "top_k": -2 }), "top_k"),
            (json!({ "seed": 0.5 }), "seed"),
            (json!({ "seed": "1" }), "seed"),
            (json!({ "stop": 1 }), "stop"),
            (json!({ "stop": [1] }), "stop"),
            (json!({ "stop": vec!["x"; 65] }), "stop"),
            (json!({ "logit_bias": { "x": 1 } }), "logit_bias"),
            (json!({ "logit_bias": { "1": 101 } }), "logit_bias"),
            (json!({ "repetition_penalty": 0 }), "repetition_penalty"),
            (json!({ "frequency_penalty": 3 }), "frequency_penalty"),
        ] {
            let error = read(value.clone()).unwrap_err();
            assert_eq!(error.param.as_deref(), Some(param), "{value}");
        }
    }

    #[test]
    fn choices_have_seeds_of_their_own_and_the_first_has_the_requests() {
        let sampling = read(json!({ "seed": -1 })).unwrap();
        assert_eq!(sampling.seed(5, 0), u64::MAX);
        assert_ne!(sampling.seed(5, 1), sampling.seed(5, 2));
        assert_eq!(read(json!({})).unwrap().seed(5, 0), 5);
    }
}
