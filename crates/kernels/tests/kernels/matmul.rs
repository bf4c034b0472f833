//! The int8 matmul: bit for bit the reference, alone and in any batch.

use super::{Layer, Noise, bits};
use half::f16;
use llm_int8_kernels::{
    Activation, Int8WeightRef, Isa, KernelError, Layer as Linear, MatMut, MatRef, OutlierRule,
    OutlierWeights, QuantizedActivations, linear, linears, matmul_i32, quantize_activations,
    reference, row_sums,
};

fn matmul(isa: Isa, a: &[i8], w: &[i8], k: usize) -> Vec<i32> {
    let m = a.len() / k;
    let n = w.len() / k;
    let mut out = vec![7; m * n];
    let a = MatRef::new(a, m, k).unwrap();
    let w = MatRef::new(w, n, k).unwrap();
    matmul_i32(isa, a, w, MatMut::new(&mut out, m, n).unwrap()).unwrap();
    out
}

/// The sums by the reference, for `a` `[M, K]` and `w` `[N, K]`.
fn exact_sums(a: &[i8], w: &[i8], k: usize) -> Vec<i32> {
    let [a, w] = [a, w].map(|codes| MatRef::new(codes, codes.len() / k, k).unwrap());
    reference::matmul_i32(a, w)
}

#[test]
fn sums_are_exact_for_every_code_at_every_edge() {
    let mut noise = Noise(11);
    for k in [
        1, 2, 3, 5, 15, 16, 17, 31, 33, 63, 64, 65, 127, 129, 499, 2047, 2049,
    ] {
        let shapes = [
            (1, 1),
            (1, 5),
            (1, 64),
            (2, 3),
            (3, 65),
            (4, 2),
            (5, 7),
            (6, 33),
            (7, 1),
            (8, 16),
            (9, 32),
        ];
        for (m, n) in shapes
            .into_iter()
            .chain([(16, 31), (37, 66), (48, 40), (70, 3), (100, 97)])
        {
            let a = noise.codes(m * k);
            let w = noise.codes(n * k);
            let expected = exact_sums(&a, &w, k);
            for isa in Isa::available() {
                assert_eq!(matmul(isa, &a, &w, k), expected, "{isa:?} {m} × {k} × {n}");
            }
        }
    }
}

#[test]
fn extreme_codes_do_not_saturate() {
    for (x, y) in [
        (127i8, 127i8),
        (-127, 127),
        (-128, -128),
        (-128, 127),
        (127, -128),
        (-128, -1),
    ] {
        for k in [5120, 131_071] {
            for m in [1, 4, 8, 17] {
                let a = vec![x; m * k];
                let w = vec![y; 2 * k];
                let expected = vec![i32::from(x) * i32::from(y) * k as i32; 2 * m];

                for isa in Isa::available() {
                    assert_eq!(
                        matmul(isa, &a, &w, k),
                        expected,
                        "{isa:?} {x} · {y}, {k} columns"
                    );
                }
            }
        }
    }
}

/// Activations with scattered outliers, some of them in one row only.
fn activations(noise: &mut Noise, rows: usize, columns: usize) -> Vec<f32> {
    let mut x = noise.normals(rows * columns, 1.0);
    for (i, x) in x.iter_mut().enumerate() {
        if i % columns % 29 == 3 && noise.next().is_multiple_of(2) {
            *x = 7.0 + noise.uniform();
        }
    }

    x
}

#[test]
fn outputs_match_the_reference_bit_for_bit() {
    let mut noise = Noise(12);
    for (m, k, n) in [
        (1, 1, 1),
        (1, 3, 5),
        (1, 499, 130),
        (1, 5000, 70),
        (2, 64, 33),
        (3, 65, 64),
        (33, 499, 40),
        (20, 192, 70),
        (70, 96, 100),
    ] {
        let layer = Layer::new(&noise.normals(n * k, 0.05), k);
        let x = activations(&mut noise, m, k);
        let bias = noise.normals(n, 1.0);
        let columns: Vec<u32> = (0..k as u32).collect();
        let originals = noise.normals(k * n, 0.05);
        let original = OutlierWeights::Original {
            columns: &columns,
            values: MatRef::new(&originals, k, n).unwrap(),
        };
        for rule in [
            OutlierRule::batch(6.0),
            OutlierRule::row(6.0),
            OutlierRule::row_rms(3.0),
        ] {
            let a = reference::quantize_activations(MatRef::new(&x, m, k).unwrap(), rule);
            for bias in [None, Some(&bias[..])] {
                let with_dequantized =
                    reference::linear(&a, layer.codes(), &layer.absmax, bias, |n, c| {
                        layer.weight(n, c)
                    });
                let with_original =
                    reference::linear(&a, layer.codes(), &layer.absmax, bias, |output, c| {
                        originals[c as usize * n + output]
                    });
                for isa in Isa::available() {
                    let found = layer.forward(isa, &x, rule, OutlierWeights::Dequantized, bias);
                    assert_eq!(
                        bits(&found),
                        bits(&with_dequantized),
                        "{isa:?} {rule:?} {m} × {k} × {n}"
                    );
                    let found = layer.forward(isa, &x, rule, original, bias);
                    assert_eq!(
                        bits(&found),
                        bits(&with_original),
                        "{isa:?} {rule:?} original {m} × {k} × {n}"
                    );
                }
            }
        }
    }
}

#[test]
fn a_row_is_the_same_alone_in_any_batch_and_on_any_number_of_threads() {
    let mut noise = Noise(13);
    let k = 200;
    let n = 150;
    let layer = Layer::new(&noise.normals(n * k, 0.05), k);
    let x = activations(&mut noise, 90, k);
    let forward = |isa, x: &[f32]| {
        layer.forward(
            isa,
            x,
            OutlierRule::row(6.0),
            OutlierWeights::Dequantized,
            None,
        )
    };

    for isa in Isa::available() {
        let alone: Vec<u32> = x
            .chunks(k)
            .flat_map(|row| bits(&forward(isa, row)))
            .collect();
        for threads in [1, 2, 5] {
            let pool = rayon::ThreadPoolBuilder::new()
                .num_threads(threads)
                .build()
                .unwrap();
            for rows in [1, 2, 3, 17, 90] {
                let found = pool.install(|| forward(isa, &x[..rows * k]));
                assert_eq!(
                    bits(&found),
                    alone[..rows * n],
                    "{isa:?} {threads} threads, {rows} rows"
                );
            }
        }
    }
}

/// With 12,001 columns, 200 rows are split into groups whose activations fit L2.
#[test]
fn many_rows_on_several_threads_are_exact() {
    let mut noise = Noise(15);
    for (m, k, n) in [(300, 130, 70), (200, 12_001, 37)] {
        let a = noise.codes(m * k);
        let w = noise.codes(n * k);
        let expected = exact_sums(&a, &w, k);
        for isa in Isa::available() {
            for threads in [1, 2, 3] {
                let pool = rayon::ThreadPoolBuilder::new()
                    .num_threads(threads)
                    .build()
                    .unwrap();
                assert_eq!(
                    pool.install(|| matmul(isa, &a, &w, k)),
                    expected,
                    "{isa:?} {threads} threads, {m} × {k} × {n}"
                );
            }
        }
    }
}

#[test]
fn row_sums_and_packed_inputs_change_nothing() {
    let mut noise = Noise(73);
    for (m, k, n) in [(9, 64, 33), (33, 65, 70), (100, 192, 131)] {
        let codes = noise.codes(n * k);
        let codes = MatRef::new(&codes, n, k).unwrap();
        let absmax = vec![0.5f32; n];
        let x = activations(&mut noise, m, k);
        let x = MatRef::new(&x, m, k).unwrap();
        // One input for all instruction sets, each of which packs it in its own way, and twice.
        let a = quantize_activations(Isa::detect(), x, OutlierRule::row(6.0));

        let mut outputs = Vec::new();
        for isa in Isa::available() {
            let sums = row_sums(isa, codes);
            assert_eq!(sums, row_sums(Isa::scalar(), codes), "{isa:?}");
            let weight = Int8WeightRef::new(codes, &absmax).unwrap();
            assert!(weight.with_row_sums(&sums[1..]).is_err());
            for weight in [weight, weight.with_row_sums(&sums).unwrap()] {
                let mut y = vec![0f32; m * n];
                let out = MatMut::new(&mut y, m, n).unwrap();
                linear(isa, &a, &Linear::new(weight), out).unwrap();
                outputs.push(bits(&y));
            }
        }
        assert!(outputs.iter().all(|y| *y == outputs[0]), "{m} × {k} × {n}");
    }
}

#[test]
fn layers_that_share_an_input_match_each_layer_alone() {
    let mut noise = Noise(16);
    let k = 96;
    let layers = [40, 0, 1, 150].map(|n| Layer::new(&noise.normals(n * k, 0.05), k));
    let biases = layers
        .each_ref()
        .map(|layer| noise.normals(layer.absmax.len(), 1.0));
    for m in [1, 3, 20] {
        let x = activations(&mut noise, m, k);
        for isa in Isa::available() {
            let a =
                quantize_activations(isa, MatRef::new(&x, m, k).unwrap(), OutlierRule::row(6.0));
            let settings = layers.iter().zip(&biases).map(|(layer, bias)| Linear {
                bias: Some(bias),
                activation: Some(Activation::Silu),
                ..Linear::new(Int8WeightRef::new(layer.codes(), &layer.absmax).unwrap())
            });

            let settings: Vec<Linear<'_>> = settings.collect();
            let mut outs: Vec<Vec<f32>> = layers
                .iter()
                .map(|layer| vec![0.0; m * layer.absmax.len()])
                .collect();
            let jobs = settings.iter().zip(&mut outs).map(|(layer, out)| {
                let n = out.len() / m;
                (*layer, MatMut::new(out, m, n).unwrap())
            });

            linears(isa, &a, jobs.collect()).unwrap();

            for ((layer, bias), out) in layers.iter().zip(&biases).zip(&outs) {
                let mut alone = layer.forward(
                    isa,
                    &x,
                    OutlierRule::row(6.0),
                    OutlierWeights::Dequantized,
                    Some(bias),
                );

                llm_int8_kernels::activation::apply(isa, Activation::Silu, &mut alone);
                assert_eq!(bits(out), bits(&alone), "{isa:?} {m} rows");
            }
        }
    }
}

#[test]
fn only_pooled_columns_make_a_row_depend_on_its_batch() {
    let mut noise = Noise(14);
    let layer = Layer::new(&noise.normals(64 * 256, 0.05), 256);
    let mut x = noise.normals(2 * 256, 1.0);
    x[256 + 9] = 20.0; // Only the second row has an outlier.
    let forward = |x: &[f32], rule| {
        layer.forward(Isa::detect(), x, rule, OutlierWeights::Dequantized, None)[..64].to_vec()
    };

    let change = |rule| {
        let alone = forward(&x[..256], rule);
        let batch = forward(&x, rule);
        alone
            .iter()
            .zip(&batch)
            .map(|(x, y)| (x - y).abs())
            .fold(0.0, f32::max)
    };

    assert!(change(OutlierRule::batch(6.0)) > 1e-5);
    assert_eq!(change(OutlierRule::row(6.0)), 0.0);
    assert_eq!(change(OutlierRule::row_rms(4.0)), 0.0);
}

#[test]
fn empty_arguments_are_fine() {
    for (m, k, n) in [(0, 3, 2), (2, 3, 0), (2, 0, 3), (1, 0, 3), (0, 0, 0)] {
        for isa in Isa::available() {
            let a = MatRef::new(&[0f32; 9][..m * k], m, k).unwrap();
            let a = quantize_activations(isa, a, OutlierRule::row(6.0));
            let codes = vec![0i8; n * k];
            let absmax = vec![0f32; n];
            let bias = vec![2f32; n];
            let w = Int8WeightRef::new(MatRef::new(&codes, n, k).unwrap(), &absmax).unwrap();
            let mut out = vec![1f32; m * n];
            let target = MatMut::new(&mut out, m, n).unwrap();
            let layer = Linear {
                bias: Some(&bias),
                ..Linear::new(w)
            };

            linear(isa, &a, &layer, target).unwrap();
            assert_eq!(out, vec![2.0; m * n]);
        }
    }
}

/// Runs a layer on one row `[1, 2]` with an outlier in column 0, into `columns` outputs.
fn run_layer(
    w: &Int8WeightRef<'_>,
    outlier_weights: OutlierWeights<'_>,
    bias: Option<&[f32]>,
    columns: usize,
) -> Result<(), KernelError> {
    let isa = Isa::detect();
    let x = MatRef::new(&[7.0f32, 1.0], 1, 2).unwrap();
    let a = quantize_activations(isa, x, OutlierRule::row(6.0));

    let layer = Linear {
        weight: *w,
        outlier_weights,
        bias,
        activation: None,
    };
    let mut out = [0f32; 4];
    let out = MatMut::new(&mut out[..columns], 1, columns).unwrap();
    linear(isa, &a, &layer, out)
}

#[test]
fn mismatched_dimensions_are_errors() {
    let codes = [1i8; 4];
    let w = Int8WeightRef::new(MatRef::new(&codes, 2, 2).unwrap(), &[1.0; 2]).unwrap();
    let wide = Int8WeightRef::new(MatRef::new(&codes, 1, 4).unwrap(), &[1.0]).unwrap();
    let wrong = |result| {
        assert!(
            matches!(result, Err(KernelError::WrongDimension { .. })),
            "{result:?}"
        )
    };

    wrong(run_layer(&wide, OutlierWeights::Dequantized, None, 1));
    wrong(run_layer(&w, OutlierWeights::Dequantized, None, 3));
    wrong(run_layer(&w, OutlierWeights::Dequantized, Some(&[1.0]), 2));

    let two_columns_one_row = OutlierWeights::Original {
        columns: &[0, 1],
        values: MatRef::new(&[1f32; 2], 1, 2).unwrap(),
    };
    wrong(run_layer(&w, two_columns_one_row, None, 2));
}

#[test]
fn a_missing_outlier_column_is_an_error() {
    let codes = [1i8; 4];
    let w = Int8WeightRef::new(MatRef::new(&codes, 2, 2).unwrap(), &[1.0; 2]).unwrap();
    let run = |columns| {
        let values = MatRef::new(&[1f32; 2], 1, 2).unwrap();
        run_layer(&w, OutlierWeights::Original { columns, values }, None, 2)
    };

    let missing = run(&[1]).unwrap_err();
    assert_eq!(
        missing,
        KernelError::MissingOutlierColumn {
            column: 0,
            given: 1
        }
    );
    assert!(
        missing
            .to_string()
            .starts_with("outlier column 0 is not among the 1")
    );
    assert!(run(&[0]).is_ok());
}

#[test]
fn too_many_columns_are_an_error() {
    let isa = Isa::detect();
    let columns = 131_072;
    let long = vec![0i8; columns];
    let long = MatRef::new(&long, 1, columns).unwrap();
    let result = matmul_i32(isa, long, long, MatMut::new(&mut [0], 1, 1).unwrap());
    assert_eq!(
        result,
        Err(KernelError::TooManyColumns {
            columns,
            limit: 131_071
        })
    );
}

proptest::proptest! {
    #[test]
    fn any_shape_matches_the_reference(m in 1usize..40, k in 1usize..80, n in 1usize..70, seed in 1u32..u32::MAX) {
        let mut noise = Noise(seed);
        let layer = Layer::new(&noise.normals(n * k, 0.1), k);
        let x = activations(&mut noise, m, k);

        for rule in [
            OutlierRule::batch(6.0),
            OutlierRule::row(6.0),
            OutlierRule::row_rms(3.0),
        ] {
            let a = reference::quantize_activations(MatRef::new(&x, m, k).unwrap(), rule);
            let expected =
                reference::linear(&a, layer.codes(), &layer.absmax, None, |n, c| layer.weight(n, c));
            for isa in Isa::available() {
                let found = layer.forward(isa, &x, rule, OutlierWeights::Dequantized, None);
                assert_eq!(bits(&found), bits(&expected), "{isa:?}");
            }
        }
    }
}

#[test]
fn kept_columns_are_multiplied_in_floating_point_in_every_row() {
    let mut noise = Noise(21);
    for (m, k, n) in [
        (1, 33, 5),
        (3, 70, 64),
        (9, 128, 118),
        (24, 2240, 50),
        (150, 60, 33),
    ] {
        let layer = Layer::new(&noise.normals(n * k, 0.05), k);
        let x = activations(&mut noise, m, k);
        let x = MatRef::new(&x, m, k).unwrap();
        let kept = [0, 7, k as u32 - 1];
        let values: Vec<f16> = (noise.normals(kept.len() * n, 0.05).into_iter())
            .map(f16::from_f32)
            .collect();

        for rule in [OutlierRule::batch(6.0), OutlierRule::row_rms(1.0)] {
            let a = reference::quantize_activations_keeping(x, rule, &kept);
            let weight_of = |output: usize, column: u32| match kept.binary_search(&column) {
                Ok(row) => values[row * n + output].to_f32(),
                Err(_) => layer.weight(output, column),
            };
            let expected = reference::linear(&a, layer.codes(), &layer.absmax, None, weight_of);

            for isa in Isa::available() {
                let mut a = QuantizedActivations::default();
                a.refill(isa, x, rule, &kept);
                let mut found = vec![0f32; m * n];
                let linear_layer = Linear {
                    outlier_weights: OutlierWeights::Kept {
                        columns: &kept,
                        values: MatRef::new(&values, kept.len(), n).unwrap(),
                    },
                    ..Linear::new(Int8WeightRef::new(layer.codes(), &layer.absmax).unwrap())
                };
                let target = MatMut::new(&mut found, m, n).unwrap();
                linear(isa, &a, &linear_layer, target).unwrap();
                assert_eq!(
                    bits(&found),
                    bits(&expected),
                    "{isa:?} {rule:?} {m} × {k} × {n}"
                );
            }
        }
    }
}
