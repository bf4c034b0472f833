//! Properties of every tensor in every scheme.

#![allow(clippy::unwrap_used, reason = "tests panic on the first surprise")]

use llm_int8_affine::*;
use proptest::prelude::*;

const SCHEMES: [(QuantizedDtype, QScheme); 4] = [
    (QuantizedDtype::Qint8, QScheme::PerTensorAffine),
    (QuantizedDtype::Qint8, QScheme::PerTensorSymmetric),
    (QuantizedDtype::Quint8, QScheme::PerTensorAffine),
    (QuantizedDtype::Quint8, QScheme::PerTensorSymmetric),
];

fn quantize(
    values: &[f32],
    (dtype, scheme): (QuantizedDtype, QScheme),
) -> (QuantizedTensor, f32, i32) {
    let shape = [values.len()];
    let x = TensorRef::new(values, &shape).unwrap();
    let mut observer = MinMaxObserver::new(dtype, scheme).unwrap();
    observer.observe(x).unwrap();
    let qparams = observer.qparams().unwrap();
    let (scale, zero_point) = qparams.channels().next().unwrap();
    (
        QuantizedTensor::quantize(x, dtype, &qparams).unwrap(),
        scale as f32,
        zero_point,
    )
}

/// Values of very different magnitudes, one-sided or not.
fn values() -> impl Strategy<Value = Vec<f32>> {
    let spread = prop::sample::select(vec![1e-4f32, 1.0, 300.0, 1e6]);
    (
        prop::collection::vec(-1.0f32..1.0, 1..60),
        spread,
        -1.5f32..1.5,
    )
        .prop_map(|(values, spread, shift)| {
            values.into_iter().map(|x| (x + shift) * spread).collect()
        })
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn the_error_is_at_most_half_a_step(values in values()) {
        for scheme in SCHEMES {
            let (q, scale, zero_point) = quantize(&values, scheme);
            let (min, max) = scheme.0.range();
            let (lowest, highest) = ((min - zero_point) as f32 * scale, (max - zero_point) as f32 * scale);

            for (&x, y) in values.iter().zip(q.dequantize()) {
                // Rounding the zero point shifts the range by up to half a step.
                let nearest = x.clamp(lowest, highest);
                prop_assert!((nearest - y).abs() <= scale * 0.5001, "{x} -> {y}, step {scale}");
                prop_assert!((x - nearest).abs() <= scale * 0.5001, "{x} is clamped to {nearest}, step {scale}");
            }
        }
    }

    #[test]
    fn codes_increase_with_values(mut values in values()) {
        values.sort_by(f32::total_cmp);
        for scheme in SCHEMES {
            let (q, ..) = quantize(&values, scheme);
            prop_assert!(q.int_repr().is_sorted());
        }
    }

    #[test]
    fn zero_is_exact_in_every_scheme(mut values in values()) {
        values.push(0.0);
        for scheme in SCHEMES {
            let (q, _, zero_point) = quantize(&values, scheme);
            prop_assert_eq!(q.dequantize().last().copied(), Some(0.0));
            if scheme.1.is_symmetric() {
                prop_assert_eq!(zero_point, if scheme.0 == QuantizedDtype::Qint8 { 0 } else { 128 });
            }
        }
    }

    #[test]
    fn a_channel_is_quantised_like_a_tensor_of_its_own(values in prop::collection::vec(-9.0f32..9.0, 12), axis in 0usize..2) {
        let shape = [3, 4];
        let x = TensorRef::new(&values, &shape).unwrap();
        let mut observer =
            PerChannelMinMaxObserver::new(QuantizedDtype::Qint8, QScheme::PerChannelAffine, axis).unwrap();
        observer.observe(x).unwrap();
        let q = QuantizedTensor::quantize(x, QuantizedDtype::Qint8, &observer.qparams().unwrap()).unwrap();
        let channels = x.channels(axis).unwrap();

        for channel in 0..channels.count() {
            let pick = |all: &[f32]| channels.ranges(channel).flat_map(|r| all[r].to_vec()).collect::<Vec<f32>>();
            let (alone, ..) = quantize(&pick(&values), SCHEMES[0]);
            prop_assert_eq!(pick(&q.dequantize()), alone.dequantize());
        }
    }

    #[test]
    fn observers_accept_any_batch(batches in prop::collection::vec(prop::collection::vec(-1e30f32..1e30, 0..40), 0..4)) {
        for kind in [ObserverKind::MinMax, ObserverKind::MovingAverageMinMax(0.01), ObserverKind::Histogram] {
            let mut observer =
                ObserverConfig::new(kind, QuantizedDtype::Quint8, QScheme::PerTensorAffine).build().unwrap();
            for batch in &batches {
                observer.observe(TensorRef::new(batch, &[batch.len()]).unwrap()).unwrap();
            }
            prop_assert!(observer.qparams().is_ok());
        }
    }
}

#[test]
fn a_range_beyond_f32_is_an_error() {
    let mut observer =
        MinMaxObserver::new(QuantizedDtype::Qint8, QScheme::PerTensorAffine).unwrap();
    observer
        .observe(TensorRef::new(&[f32::MIN, f32::MAX], &[2]).unwrap())
        .unwrap();
    assert!(
        observer
            .qparams()
            .unwrap_err()
            .to_string()
            .contains("scale inf")
    );
}

#[test]
fn wrong_settings_are_named() {
    let config = ObserverConfig::new(
        ObserverKind::MinMax,
        QuantizedDtype::Quint8,
        QScheme::PerTensorSymmetric,
    );
    let error = |config: ObserverConfig| config.build().unwrap_err().to_string();
    assert!(
        error(ObserverConfig {
            reduce_range: true,
            ..config
        })
        .contains("reduce_range")
    );
    assert!(
        error(ObserverConfig {
            scheme: QScheme::PerChannelAffine,
            ..config
        })
        .contains("MinMaxObserver")
    );
    assert!(
        error(ObserverConfig {
            quant_range: Some((-1, 127)),
            ..config
        })
        .contains("-1..=127")
    );
    assert!(error(ObserverConfig { eps: 0.0, ..config }).contains("eps"));

    let average = ObserverConfig {
        kind: ObserverKind::MovingAverageMinMax(2.0),
        ..config
    };

    assert!(error(average).contains("averaging_constant"));
}

#[test]
fn channels_must_not_change_between_batches() {
    let mut observer =
        PerChannelMinMaxObserver::new(QuantizedDtype::Qint8, QScheme::PerChannelAffine, 0).unwrap();
    observer
        .observe(TensorRef::new(&[1.0, 2.0], &[2, 1]).unwrap())
        .unwrap();
    let error = observer
        .observe(TensorRef::new(&[1.0, 2.0, 3.0], &[3, 1]).unwrap())
        .unwrap_err();
    assert_eq!(error, AffineError::ChannelsChanged { seen: 2, now: 3 });
}
