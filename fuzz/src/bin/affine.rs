//! The numbers on the command line of `affine`, and the affine quantisation of what they say.

#![no_main]

use libfuzzer_sys::fuzz_target;
use llm_int8_affine::print::Printed;
use llm_int8_affine::{
    MinMaxObserver, Observer, ObserverConfig, ObserverKind, QScheme, QuantizedDtype,
    QuantizedTensor, TensorRef, custom,
};
use llm_int8_fuzz::{Choices, Limits, bounded};
use numbers::{Numbers, with_negative_numbers};
use std::ffi::OsString;

/// The program's own parser, which is in no library.
#[path = "../../../crates/cli/args/numbers.rs"]
mod numbers;

/// The parser's error.
pub(crate) struct UsageError(pub(crate) String);

const LIMITS: Limits = Limits::new(2, 64);

/// Words of what Python, numpy and torch print.
const WORDS: [&str; 40] = [
    " ",
    ", ",
    "[",
    "]",
    "(",
    ")",
    "tensor(",
    "np.float32(",
    "array([",
    "])",
    "1",
    "-5.5",
    "3e-05",
    "1e38",
    "-.5",
    "1_000",
    "nan",
    "-inf",
    "1e40",
    "1e-46",
    ",",
    "\n",
    "dtype=torch.float32",
    "size=(2,)",
    "...",
    "=",
    "é",
    "\u{2212}5",
    "+2",
    "0",
    "0.1",
    "255",
    "-128",
    "65504",
    "[[",
    "]]",
    "[1, 2]",
    "[3, 4]",
    "torch.tensor(",
    "_",
];

fuzz_target!(|data: &[u8]| bounded(LIMITS, || run(data)));

fn run(data: &[u8]) {
    let mut from = Choices::new(data);
    let style = from.byte();
    let text = if style & 1 == 0 {
        let mut text = String::new();
        while !from.is_empty() {
            text += from.one(&WORDS);
        }
        text
    } else {
        String::from_utf8_lossy(from.rest()).into_owned()
    };

    let words = ["llm-int8", "affine"].into_iter().chain(text.split('\t'));
    let arguments: Vec<String> = with_negative_numbers(words.map(OsString::from))[2..]
        .iter()
        .filter_map(|word| word.to_str().map(str::to_owned))
        .collect();
    let numbers = match Numbers::read(&arguments) {
        Ok(numbers) => numbers,
        Err(error) => return assert!(!error.0.is_empty()),
    };
    assert_eq!(
        numbers.values.len(),
        numbers.shape.iter().product::<usize>(),
        "{:?}",
        numbers.shape
    );

    let _ = Printed::floats(&numbers.values, &numbers.shape).to_string();
    if let Ok(x) = TensorRef::new(&numbers.values, &numbers.shape) {
        quantise(x, style);
    }
}

/// Every observer and scheme.
fn quantise(x: TensorRef<'_>, style: u8) {
    let axis = usize::from(style >> 1) % 4;
    let kinds = [
        ObserverKind::MinMax,
        ObserverKind::MovingAverageMinMax(0.01),
        ObserverKind::Histogram,
        ObserverKind::PerChannelMinMax(axis),
    ];
    let schemes = [
        QScheme::PerTensorAffine,
        QScheme::PerTensorSymmetric,
        QScheme::PerChannelAffine,
        QScheme::PerChannelSymmetric,
    ];
    for kind in kinds {
        for scheme in schemes {
            for dtype in [QuantizedDtype::Qint8, QuantizedDtype::Quint8] {
                check(x, &ObserverConfig::new(kind, dtype, scheme));
            }
        }
    }

    for qparams in [custom::asymmetric(x), custom::symmetric(x)]
        .into_iter()
        .flatten()
    {
        let _ = QuantizedTensor::quantize(x, QuantizedDtype::Qint8, &qparams);
        let (scale, zero_point) = qparams.channels().next().unwrap_or((1.0, 0));
        let codes = custom::codes(x.values(), scale as f32, zero_point);
        let _ = custom::recovered(&codes, scale as f32, zero_point);
    }
    let _ = MinMaxObserver::new(QuantizedDtype::Qint8, QScheme::PerTensorAffine)
        .map(|observer| observer.to_string());
}

fn check(x: TensorRef<'_>, config: &ObserverConfig) {
    let Ok(mut observer) = config.build() else {
        return;
    };
    for _ in 0..2 {
        if observer.observe(x).is_err() {
            return;
        }
    }
    let _ = observer.to_string();
    let Ok(qparams) = observer.qparams() else {
        return;
    };
    let Ok(tensor) = QuantizedTensor::quantize(x, config.dtype, &qparams) else {
        return;
    };

    let (min, max) = config.dtype.range();
    assert!(
        tensor
            .int_repr()
            .iter()
            .all(|code| (min..=max).contains(code))
    );
    assert_eq!(tensor.dequantize().len(), x.values().len());
    let _ = tensor.errors(x);
    let _ = tensor.to_string();
}
