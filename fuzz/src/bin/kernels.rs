//! The int8 kernels on every instruction set of this CPU, bit for bit against the oracle.

#![no_main]

use half::{bf16, f16};
use libfuzzer_sys::fuzz_target;
use llm_int8_fuzz::Choices;
use llm_int8_kernels::{
    Element, Int8WeightRef, Isa, KernelError, Layer, MatMut, MatRef, OutlierRule, OutlierWeights,
    QuantizedActivations, linear, matmul_i32, quantize_weight, quantize_weight_transposed,
    reference,
};

fuzz_target!(|data: &[u8]| run(data));

/// M, K and N: small, at the edges of tiles and panels, or a little more.
fn sizes(from: &mut Choices<'_>) -> [usize; 3] {
    const EDGES: [usize; 16] = [0, 1, 2, 3, 4, 5, 7, 8, 15, 16, 17, 31, 33, 63, 64, 65];
    let mut size = |most: usize| match from.byte() {
        byte @ 0..=127 => EDGES[usize::from(byte) % 16].min(most),
        byte => (usize::from(byte & 127) * 5).min(most),
    };
    [size(40), size(635), size(140)]
}

/// Floats in a pattern: a few bytes are repeated, as inputs are short.
fn floats(from: &mut Choices<'_>, count: usize) -> Vec<f32> {
    let own: Vec<f32> = (0..1 + from.below(40))
        .map(|_| from.float() as f32)
        .collect();
    let stride = 1 + from.below(16);
    let noise = from.byte();
    (0..count)
        .map(|place| {
            let value = own[place / stride % own.len()];
            let shift = (place as u32).wrapping_mul(0x9e37_79b9) >> 24;
            value + f32::from(noise) * shift as f32 / 65_536.0
        })
        .collect()
}

fn run(data: &[u8]) {
    let mut from = Choices::new(data);
    let style = from.byte();
    let [m, k, n] = sizes(&mut from);
    let limit = match from.below(4) {
        0 => 6.0,
        1 => from.float() as f32,
        _ => f32::from(from.byte()) / 16.0,
    };
    let rule = match style & 3 {
        0 => OutlierRule::batch(limit),
        1 => OutlierRule::row(limit),
        _ => OutlierRule::row_rms(limit),
    };
    let kept: Vec<u32> = match style & 4 {
        0 => Vec::new(),
        _ => (0..k as u32)
            .filter(|column| column % 7 == u32::from(style) % 5)
            .collect(),
    };

    let weight = floats(&mut from, n * k);
    let x = floats(&mut from, m * k);
    match style & 0x18 {
        0x08 => {
            let halves =
                |values: &[f32]| values.iter().map(|x| f16::from_f32(*x)).collect::<Vec<_>>();
            compare(&halves(&weight), &halves(&x), [m, k, n], rule, &kept, style);
        }
        0x10 => {
            let halves = |values: &[f32]| {
                values
                    .iter()
                    .map(|x| bf16::from_f32(*x))
                    .collect::<Vec<_>>()
            };
            compare(&halves(&weight), &halves(&x), [m, k, n], rule, &kept, style);
        }
        _ => compare(&weight, &x, [m, k, n], rule, &kept, style),
    }
}

/// Compares each step with the oracle.
fn compare<T: Element>(
    weight: &[T],
    x: &[T],
    [m, k, n]: [usize; 3],
    rule: OutlierRule,
    kept: &[u32],
    style: u8,
) {
    let rows: Vec<(Vec<i8>, f32)> = (0..n)
        .map(|row| {
            let row: Vec<f16> = weight[row * k..][..k]
                .iter()
                .map(|x| Element::to_f16(*x))
                .collect();
            reference::quantize_row(&row)
        })
        .collect();
    let is_finite = rows.iter().all(|(_, absmax)| absmax.is_finite());
    let expected_codes: Vec<i8> = rows.iter().flat_map(|(codes, _)| codes.clone()).collect();
    let absmax: Vec<f32> = rows.iter().map(|(_, absmax)| *absmax).collect();
    let stored: Vec<T> = (0..n * k)
        .map(|place| weight[place % n * k + place / n])
        .collect();

    for isa in Isa::available() {
        for transposed in [false, true] {
            let mut codes = vec![1i8; n * k];
            let mut found = vec![1f32; n];
            let target = MatMut::new(&mut codes, n, k).expect("n × k codes");
            let outcome = match transposed {
                false => quantize_weight(
                    isa,
                    MatRef::new(weight, n, k).expect("n × k"),
                    target,
                    &mut found,
                ),
                true => quantize_weight_transposed(
                    isa,
                    MatRef::new(&stored, k, n).expect("k × n"),
                    target,
                    &mut found,
                ),
            };
            match outcome {
                Ok(()) => {
                    assert!(is_finite, "{isa:?} accepts a weight that is not finite");
                    assert_eq!(
                        (&codes, &found),
                        (&expected_codes, &absmax),
                        "{isa:?} {n} × {k} {transposed}"
                    );
                }
                Err(KernelError::NonFiniteWeight { .. }) if !is_finite => {}
                Err(error) => panic!("{isa:?}: {error}"),
            }
        }
    }

    // Foreign checkpoints may hold any code, and -128 too.
    let mut codes = expected_codes;
    if style & 0x20 != 0 {
        codes
            .iter_mut()
            .step_by(3)
            .for_each(|code| *code = code.wrapping_sub(100));
    }
    let absmax: Vec<f32> = absmax
        .iter()
        .map(|x| if x.is_finite() { *x } else { 1.0 })
        .collect();
    activations(x, [m, k, n], rule, kept, &codes, &absmax, style);
}

fn activations<T: Element>(
    x: &[T],
    [m, k, n]: [usize; 3],
    rule: OutlierRule,
    kept: &[u32],
    codes: &[i8],
    absmax: &[f32],
    style: u8,
) {
    let x = MatRef::new(x, m, k).expect("m × k");
    let w = MatRef::new(codes, n, k).expect("n × k");
    let expected = reference::quantize_activations_keeping(x, rule, kept);
    let bias: Vec<f32> = (0..n).map(|place| place as f32 / 8.0 - 2.0).collect();
    let bias = (style & 0x40 != 0).then_some(&bias[..]);
    let columns: Vec<u32> = (0..k as u32).collect();
    let originals: Vec<f32> = (0..k * n)
        .map(|place| (place % 23) as f32 / 11.0 - 1.0)
        .collect();
    let is_original = style & 0x80 != 0;
    let weight_of = |output: usize, column: u32| match is_original {
        true => originals[column as usize * n + output],
        false => f32::from(codes[output * k + column as usize]) * absmax[output] * (1.0 / 127.0),
    };
    let y = reference::linear(&expected, w, absmax, bias, weight_of);
    let products = reference::matmul_i32(MatRef::new(&expected.codes, m, k).expect("m × k"), w);

    let mut a = QuantizedActivations::default();
    for isa in Isa::available() {
        // Filled again and again: what an earlier one leaves must not show.
        a.refill(isa, x, rule, kept);
        same(isa, &a, &expected, rule);

        let mut sums = vec![7i32; m * n];
        matmul_i32(
            isa,
            a.codes(),
            w,
            MatMut::new(&mut sums, m, n).expect("m × n"),
        )
        .expect("matching sizes");
        assert_eq!(sums, products, "{isa:?} {m} × {k} × {n}");

        let layer = Layer {
            outlier_weights: match is_original {
                true => OutlierWeights::Original {
                    columns: &columns,
                    values: MatRef::new(&originals, k, n).expect("k × n"),
                },
                false => OutlierWeights::Dequantized,
            },
            bias,
            ..Layer::new(Int8WeightRef::new(w, absmax).expect("n absmax"))
        };
        let mut out = vec![f32::NAN; m * n];
        linear(isa, &a, &layer, MatMut::new(&mut out, m, n).expect("m × n"))
            .expect("matching sizes");
        assert_eq!(bits(&out), bits(&y), "{isa:?} {m} × {k} × {n} {rule:?}");
    }
}

/// Compares codes, absmax and outliers of activations.
fn same(
    isa: Isa,
    a: &QuantizedActivations,
    expected: &reference::ReferenceActivations,
    rule: OutlierRule,
) {
    for (row, codes) in expected.codes.chunks(a.cols().max(1)).enumerate() {
        assert_eq!(a.codes().row(row), codes, "{isa:?} row {row} {rule:?}");
    }
    assert_eq!(bits(a.absmax()), bits(&expected.absmax), "{isa:?} {rule:?}");
    for (row, outliers) in expected.outliers.iter().enumerate() {
        let (columns, values) = a.outliers().row(row);
        let (own_columns, own_values): (Vec<u32>, Vec<f32>) = outliers.iter().copied().unzip();
        assert_eq!(
            (columns, bits(values)),
            (&own_columns[..], bits(&own_values)),
            "{isa:?} row {row} {rule:?}"
        );
    }
}

/// The bits of floats, and one value for every NaN: which one an operation gives is not defined.
fn bits(values: &[f32]) -> Vec<u32> {
    values
        .iter()
        .map(|x| if x.is_nan() { u32::MAX } else { x.to_bits() })
        .collect()
}
