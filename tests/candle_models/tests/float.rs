//! Each model with int8 layers beside candle-transformers' float model of the same checkpoint.

use crate::models::{own, with_int8_layers, Run};
use crate::random::Random;
use crate::support::{distance, values};
use llm_int8_nn::drop_in::{with_int8, with_int8_report};
use llm_int8_nn::linear::{Int8Config, OutlierRule};
use llm_int8_nn::module::SkipList;

/// A model, how many of its linear layers become int8, and which stay float.
struct Case {
    name: &'static str,
    own: Run,
    ours: Run,
    int8: usize,
    float: &'static [&'static str],
}

macro_rules! case {
    ($name:ident, $int8:literal, $float:expr) => {
        Case {
            name: stringify!($name),
            own: own::$name,
            ours: with_int8_layers::$name,
            int8: $int8,
            float: $float,
        }
    };
}

/// Layers: q, k, v, o and two or three of the MLP for each block; again four where a block attends
/// to an encoder, too.
const CASES: &[Case] = &[
    case!(llama, 14, &["lm_head"]),
    case!(bert, 12, &[]),
    case!(whisper, 22, &[]),
    case!(clip, 20, &[]),
    case!(t5, 22, &["lm_head"]),
];

fn with_threshold(threshold: f32) -> Int8Config {
    Int8Config {
        outliers: OutlierRule::batch(threshold),
        ..Int8Config::default()
    }
}

#[test]
fn every_linear_layer_becomes_int8_but_the_head() {
    for case in CASES {
        let random = Random::of(case.own);
        let build = || (case.ours)(random.float());
        let none = SkipList::default();
        let (_, layers) = with_int8_report(Int8Config::default(), &none, build).unwrap();

        let float = layers.iter().filter(|layer| !layer.is_int8);
        let float: Vec<String> = float.map(|layer| layer.path.to_string()).collect();
        assert_eq!(float, case.float, "{}", case.name);
        assert_eq!(layers.len() - float.len(), case.int8, "{}", case.name);
        for layer in layers.iter().filter(|layer| layer.is_int8) {
            let [rows, columns] = layer.shape;
            let without_bias = rows * (columns + 4);
            let sizes = [without_bias, without_bias + 4 * rows];
            assert!(sizes.contains(&layer.bytes), "{layer:?}");
        }
    }
}

/// Measured: 0.2 to 6 % for all of 8 bit, half to four fifths of that for the activations alone, and
/// twice to four times as much for activations without outlier columns.
#[test]
fn int8_is_as_far_from_float_as_rounding_takes_it() {
    for case in CASES {
        let random = Random::of(case.own);
        let none = SkipList::default();
        let exact = (case.own)(random.float()).unwrap();
        let build = || (case.ours)(random.float());
        let (int8, layers) = with_int8_report(Int8Config::default(), &none, build).unwrap();
        let weights_only = (case.own)(random.int8(&layers)).unwrap();

        let whole = distance(&int8, &exact);
        let activations = distance(&int8, &weights_only);
        assert!((1e-3..0.08).contains(&whole), "{}: {whole}", case.name);
        assert!(activations < whole, "{}: {activations}", case.name);

        let without = with_int8(with_threshold(0.0), &none, build).unwrap();
        let without = distance(&without, &weights_only);
        assert!(without > 1.5 * activations, "{}: {without}", case.name);
    }
}

#[test]
fn skipped_layers_compute_what_candle_computes() {
    for case in CASES {
        let random = Random::of(case.own);
        let build = || (case.ours)(random.float());
        let none = SkipList::default();
        let (_, layers) = with_int8_report(Int8Config::default(), &none, build).unwrap();

        let all = SkipList::new(layers.iter().map(|layer| layer.path.to_string()));
        let (float, layers) = with_int8_report(Int8Config::default(), &all, build).unwrap();
        assert!(layers.iter().all(|layer| !layer.is_int8), "{}", case.name);
        let exact = (case.own)(random.float()).unwrap();
        assert!(distance(&float, &exact) < 1e-6, "{}", case.name);
    }
}

/// A checkpoint that holds codes: candle's own models get floats, the copies the codes as they are.
#[test]
fn every_model_loads_a_checkpoint_in_8_bit() {
    for case in CASES {
        let random = Random::of(case.own);
        let none = SkipList::default();
        let build = || (case.ours)(random.float());
        let (quantised_here, layers) =
            with_int8_report(Int8Config::default(), &none, build).unwrap();

        let checkpoint = random.int8(&layers);
        let from_codes = (case.ours)(checkpoint.clone()).unwrap();
        assert_eq!(
            values(&from_codes),
            values(&quantised_here),
            "{}",
            case.name
        );

        // Where every column is an outlier no activation is rounded, so the float model is the
        // truth.
        let dequantised = (case.own)(checkpoint.clone()).unwrap();
        let build = || (case.ours)(checkpoint.clone());
        let outliers = with_int8(with_threshold(1e-6), &none, build).unwrap();
        let difference = distance(&outliers, &dequantised);
        assert!(difference < 1e-5, "{}: {difference}", case.name);
    }
}
