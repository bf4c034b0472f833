//! Row-wise quantisation against the reference, and its errors.

use super::{Layer, Noise, halves};
use half::{bf16, f16};
use llm_int8_kernels::{
    Element, Isa, KernelError, MatMut, MatRef, OutlierRule, OutlierWeights, dequantize,
    quantize_activations, quantize_weight, quantize_weight_transposed, reference,
};

/// Compares both layouts with the reference, on every instruction set.
fn check<T: Element>(weight: &[T], outputs: usize, inputs: usize) {
    let expected: Vec<(Vec<i8>, f32)> = (0..outputs)
        .map(|n| {
            let row: Vec<f16> = weight[n * inputs..][..inputs]
                .iter()
                .map(|&x| Element::to_f16(x))
                .collect();
            reference::quantize_row(&row)
        })
        .collect();
    let codes: Vec<i8> = expected
        .iter()
        .flat_map(|(codes, _)| codes.clone())
        .collect();
    let absmax: Vec<f32> = expected.iter().map(|(_, absmax)| *absmax).collect();
    let stored: Vec<T> = (0..inputs * outputs)
        .map(|i| weight[i % outputs * inputs + i / outputs])
        .collect();
    for isa in Isa::available() {
        let mut found = vec![1i8; codes.len()];
        let mut found_absmax = vec![1f32; outputs];
        let source = MatRef::new(weight, outputs, inputs).unwrap();
        let target = MatMut::new(&mut found, outputs, inputs).unwrap();
        quantize_weight(isa, source, target, &mut found_absmax).unwrap();
        assert_eq!(
            (&found, &found_absmax),
            (&codes, &absmax),
            "{isa:?} {outputs} × {inputs}"
        );
        found.fill(1);
        found_absmax.fill(1.0);
        let source = MatRef::new(&stored, inputs, outputs).unwrap();
        let target = MatMut::new(&mut found, outputs, inputs).unwrap();
        quantize_weight_transposed(isa, source, target, &mut found_absmax).unwrap();
        assert_eq!(
            (&found, &found_absmax),
            (&codes, &absmax),
            "{isa:?} {outputs} × {inputs} transposed"
        );
    }
}

#[test]
fn every_shape_and_type_matches_the_reference() {
    let mut noise = Noise(1);
    for inputs in [0, 1, 3, 5, 7, 8, 31, 32, 33, 64, 65, 499] {
        for outputs in [0, 1, 8, 63, 64, 65, 130] {
            let weight = noise.normals(inputs * outputs, 0.02);
            check(&weight, outputs, inputs);
            check(&halves(&weight), outputs, inputs);
            check(
                &weight
                    .iter()
                    .map(|&x| bf16::from_f32(x))
                    .collect::<Vec<_>>(),
                outputs,
                inputs,
            );
        }
    }
}

#[test]
fn ties_round_to_even_and_zero_rows_stay_zero() {
    let ties = [127.0, 0.5, 1.5, 2.5, -0.5, -1.5, -2.5, 63.5f32];
    let long: Vec<f32> = ties.iter().cycle().take(80).copied().collect();
    for isa in Isa::available() {
        for row in [&ties[..], &long] {
            let mut codes = vec![0; row.len()];
            let mut absmax = [0.0];
            let target = MatMut::new(&mut codes, 1, row.len()).unwrap();
            quantize_weight(
                isa,
                MatRef::new(row, 1, row.len()).unwrap(),
                target,
                &mut absmax,
            )
            .unwrap();
            for (i, code) in codes.iter().enumerate() {
                assert_eq!(*code, [127, 0, 2, 2, 0, -2, -2, 64][i % 8], "{isa:?}");
            }
            assert_eq!(absmax, [127.0]);
        }
    }

    check(&[0.0f32; 3 * 70], 3, 70);
    check(&[-0.0f32, 6e-8, 0.0, -6e-8], 2, 2);

    // With this absmax, 127 / absmax and 1 / absmax · 127 round to different sides of a tie.
    check(&[-2.967_297f32, -5.934_38], 1, 2);
    let layer = Layer::new(&[-2.967_297f32, -5.934_38], 2);
    assert_eq!(layer.codes, [-64, -127]);
}

#[test]
fn a_dequantised_weight_is_at_most_half_a_step_off() {
    let weight = halves(&Noise(2).normals(64 * 300, 0.3));
    let layer = Layer::new(&weight, 300);
    for isa in Isa::available() {
        let mut found = vec![0f32; weight.len()];
        let target = MatMut::new(&mut found, 64, 300).unwrap();
        dequantize(isa, layer.codes(), &layer.absmax, target).unwrap();

        for (i, (x, y)) in weight.iter().zip(&found).enumerate() {
            // Half a step and the rounding of a few f32 operations.
            let bound = layer.absmax[i / 300] * (1.0 / 254.0 + 1e-6);
            assert!((x.to_f32() - y).abs() <= bound, "{x} {y}");
            assert_eq!(*y, layer.weight(i / 300, (i % 300) as u32));
        }
    }
}

#[test]
fn a_weight_that_is_no_finite_f16_is_named_by_output_and_input() {
    for value in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY, 65_520.0, -1e20] {
        let mut weight = vec![0.5f32; 70 * 40];
        weight[66 * 40 + 37] = value;
        let stored: Vec<f32> = (0..70 * 40).map(|i| weight[i % 70 * 40 + i / 70]).collect();

        for isa in Isa::available() {
            let mut codes = vec![0; 70 * 40];
            let mut absmax = vec![0.0; 70];
            let target = MatMut::new(&mut codes, 70, 40).unwrap();
            let straight = quantize_weight(
                isa,
                MatRef::new(&weight, 70, 40).unwrap(),
                target,
                &mut absmax,
            )
            .unwrap_err();
            let target = MatMut::new(&mut codes, 70, 40).unwrap();
            let transposed = quantize_weight_transposed(
                isa,
                MatRef::new(&stored, 40, 70).unwrap(),
                target,
                &mut absmax,
            )
            .unwrap_err();
            for error in [straight, transposed] {
                let KernelError::NonFiniteWeight {
                    row,
                    column,
                    value: found,
                } = error
                else {
                    panic!("{error}");
                };
                assert_eq!((row, column, found.to_bits()), (66, 37, value.to_bits()));
            }
        }
    }

    // 65,519.996 still rounds to the largest f16.
    assert_eq!(Layer::new(&[65_519.996_f32], 1).absmax, [65_504.0]);
}

#[test]
fn a_nan_reaches_every_output_of_its_row_and_no_other() {
    let mut noise = Noise(3);
    let layer = Layer::new(&noise.normals(20 * 33, 0.1), 33);
    let mut x = noise.normals(3 * 33, 1.0);
    x[33 + 5] = f32::NAN;

    for isa in Isa::available() {
        for limit in [0.0, 6.0] {
            for rule in [
                OutlierRule::batch(limit),
                OutlierRule::row(limit),
                OutlierRule::row_rms(limit / 2.0),
            ] {
                let y = layer.forward(isa, &x, rule, OutlierWeights::Dequantized, None);
                for (i, y) in y.iter().enumerate() {
                    assert_eq!(y.is_nan(), i / 20 == 1, "{isa:?} {rule:?} {i}");
                }
            }
        }
    }
}

#[test]
fn a_value_that_overflows_f16_is_an_outlier_or_gives_nan() {
    let layer = Layer::new(&[1.0f32, 0.5], 2);
    for isa in Isa::available() {
        let forward = |x: &[f32], threshold| {
            layer.forward(
                isa,
                x,
                OutlierRule::row(threshold),
                OutlierWeights::Dequantized,
                None,
            )[0]
        };

        assert!((forward(&[70_000.0, 2.0], 6.0) - 70_001.0).abs() < 5.0);
        assert!(forward(&[70_000.0, 2.0], 0.0).is_nan());
        assert!(forward(&[f32::INFINITY, 2.0], 0.0).is_nan());
        assert_eq!(forward(&[f32::INFINITY, 2.0], 6.0), f32::INFINITY);
    }
}

#[test]
fn wrong_lengths_are_errors() {
    let isa = Isa::detect();
    let source = MatRef::new(&[0f32; 6], 2, 3).unwrap();
    let wrong = |result: Result<(), KernelError>| {
        assert!(
            matches!(result, Err(KernelError::WrongDimension { .. })),
            "{result:?}"
        );
    };

    let mut codes = [0i8; 6];
    wrong(quantize_weight(
        isa,
        source,
        MatMut::new(&mut codes, 3, 2).unwrap(),
        &mut [0.0; 2],
    ));

    wrong(quantize_weight(
        isa,
        source,
        MatMut::new(&mut codes, 2, 3).unwrap(),
        &mut [0.0; 3],
    ));

    wrong(quantize_weight_transposed(
        isa,
        source,
        MatMut::new(&mut codes, 2, 3).unwrap(),
        &mut [0.0; 2],
    ));

    wrong(quantize_weight_transposed(
        isa,
        source,
        MatMut::new(&mut codes, 3, 2).unwrap(),
        &mut [0.0; 2],
    ));

    let codes = MatRef::new(&codes, 2, 3).unwrap();
    let mut out = [0f32; 6];
    wrong(dequantize(
        isa,
        codes,
        &[1.0],
        MatMut::new(&mut out, 2, 3).unwrap(),
    ));

    wrong(dequantize(
        isa,
        codes,
        &[1.0; 2],
        MatMut::new(&mut out, 6, 1).unwrap(),
    ));

    let overflow = MatRef::new(&[0f32; 0], usize::MAX, 2);
    assert!(matches!(overflow, Err(KernelError::WrongLength { .. })));
}

#[test]
fn exactly_six_is_an_outlier_and_5_996_is_not() {
    for isa in Isa::available() {
        let a = MatRef::new(&[6.0f32, -6.0, 5.996, -5.996, 5.999], 1, 5).unwrap();
        let a = quantize_activations(isa, a, OutlierRule::row(6.0));

        // 5.999 rounds to 6 in f16, and the threshold compares f16 values.
        assert_eq!(
            a.outliers().row(0),
            (&[0, 1, 4][..], &[6.0, -6.0, 5.999][..])
        );
        assert_eq!(a.absmax(), [f16::from_f32(5.996).to_f32()]);
    }
}
