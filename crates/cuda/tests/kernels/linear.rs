//! Quantised activations and their products against `llm_int8_kernels::reference`.

use crate::linear_oracle::{Case, FUNCTIONS, activations, scope, tolerance};
use crate::{assert_near, devices, few_devices, noise};
use half::{bf16, f16};
use llm_int8_cuda::ops::{
    Activation, Float, Int8Matrix, NormParts, Output, QuantizedMemory, Residual, Source, Through,
    gemv, matmul, quantize,
};
use llm_int8_cuda::plan::{Gemm, Tile};
use llm_int8_cuda::{plan, testing};
use llm_int8_kernels::{Element, Isa, OutlierScope, activation};
use proptest::prelude::*;

fn quantizes_like_the_oracle<T: Float + Element>() {
    for device in devices() {
        for (rows, cols) in [
            (1, 1),
            (1, 15),
            (1, 499),
            (2, 16),
            (3, 1280),
            (17, 129),
            (5, 2100),
            (70, 130),
            (2, 8300),
            (6, 9001),
        ] {
            for (threshold, by_row) in [
                (6.0, false),
                (6.0, true),
                (0.0, false),
                (6.004, true),
                (1.0, false),
            ] {
                let case = Case::<T>::new([rows, 1, cols], 5);
                let expected = case.reference(threshold, scope(by_row));
                let x = device.upload(&case.x).unwrap();
                let memory = QuantizedMemory::new(&device, rows, cols).unwrap();
                let source = Source::plain(x.all(), rows, cols);
                // The marks of the first time are gone at the second.
                let before = device
                    .upload(
                        &noise(rows * cols, 3)
                            .iter()
                            .map(|x| T::of(x * 9.0))
                            .collect::<Vec<_>>(),
                    )
                    .unwrap();
                quantize(
                    &Source::plain(before.all(), rows, cols),
                    threshold,
                    by_row,
                    &memory,
                )
                .unwrap();
                let found = quantize(&source, threshold, by_row, &memory).unwrap();
                let mut columns: Vec<u32> = expected
                    .outliers
                    .iter()
                    .flatten()
                    .map(|(column, _)| *column)
                    .collect();
                columns.sort_unstable();
                columns.dedup();
                let what = format!("{rows}x{cols}, {threshold}, {by_row}, {device:?}");
                assert_eq!(found.codes().unwrap(), expected.codes, "{what}");
                assert_eq!(found.absmax().unwrap(), expected.absmax, "{what}");
                assert_eq!(found.columns().unwrap(), columns, "{what}");
            }
        }
    }
}

#[test]
fn codes_absmax_and_outliers_are_the_oracles_for_f32() {
    quantizes_like_the_oracle::<f32>();
}

#[test]
fn codes_absmax_and_outliers_are_the_oracles_for_f16_and_bf16() {
    quantizes_like_the_oracle::<f16>();
    quantizes_like_the_oracle::<bf16>();
}

fn multiplies_like_the_oracle<T: Float + Element>() {
    for device in devices() {
        for shape in [
            [1, 1, 1],
            [1, 37, 499],
            [2, 65, 16],
            [8, 33, 640],
            [9, 70, 100],
            [16, 17, 1280],
            [17, 65, 129],
            [70, 130, 200],
        ] {
            for (threshold, by_row) in [(6.0, false), (6.0, true), (0.0, false), (2.9, false)] {
                let case = Case::<T>::new(shape, 11);
                let expected = case.expected(threshold, scope(by_row));
                let what = format!("{shape:?}, {threshold}, by row {by_row}, {device:?}");
                assert_near(
                    &case.by_product(&device, threshold, by_row),
                    &expected,
                    tolerance::<T>(),
                    &what,
                );
                if shape[0] == 1 {
                    assert_near(
                        &case.by_gemv(&device, threshold),
                        &expected,
                        tolerance::<T>(),
                        &what,
                    );
                }
            }
        }
    }
}

#[test]
fn products_are_the_oracles_for_f32() {
    multiplies_like_the_oracle::<f32>();
}

#[test]
fn products_are_the_oracles_for_f16_and_bf16() {
    multiplies_like_the_oracle::<f16>();
    multiplies_like_the_oracle::<bf16>();
}

#[test]
fn large_tiles_are_the_oracles() {
    // Several tiles, and more steps along K than are in shared memory together.
    for device in devices() {
        let case = Case::<f32>::new([300, 200, 700], 3);
        for tile in [Tile::Large].into_iter().chain(Tile::HOPPER) {
            if tile != Tile::Large && !device.has_wgmma() {
                continue;
            }
            let expected = case.expected(6.0, OutlierScope::Row);
            let found = case.by_division(&device, true, Gemm { tile, splits: 1 }, None);
            assert_near(&found, &expected, 2e-6, &format!("{tile:?}"));
        }
    }
    // Enough tiles for each of the multiprocessors that a GPU has.
    for device in testing::gpus() {
        let case = Case::<f32>::new([1500, 1500, 210], 3);
        let expected = case.expected(6.0, OutlierScope::Row);
        assert_near(
            &case.by_product(&device, 6.0, true),
            &expected,
            2e-6,
            "1500 rows",
        );
    }
}

#[test]
fn a_prompt_through_gpt2_larges_first_layer_is_the_oracles() {
    for device in testing::gpus() {
        let case = Case::<f32>::new([600, 3840, 1280], 3);
        let expected = case.expected(6.0, OutlierScope::Row);
        assert_near(
            &case.by_product(&device, 6.0, true),
            &expected,
            2e-6,
            "600 rows",
        );
    }
}

/// Outputs and inputs of gpt2-large's four linear layers.
const GPT2_LARGE: [[usize; 2]; 4] = [[3840, 1280], [1280, 1280], [5120, 1280], [1280, 5120]];

#[test]
fn layers_of_gpt2_large_are_the_oracles() {
    for device in few_devices() {
        for [n, cols] in GPT2_LARGE {
            for rows in [1, 8, 16] {
                let case = Case::<f32>::new([rows, n, cols], 17);
                let expected = case.expected(6.0, OutlierScope::Batch);
                let what = format!("{rows} rows, {n} x {cols}, {device:?}");
                assert_near(
                    &case.by_product(&device, 6.0, false),
                    &expected,
                    2e-6,
                    &what,
                );
                if rows == 1 {
                    assert_near(&case.by_gemv(&device, 6.0), &expected, 2e-6, &what);
                }
            }
        }
    }
}

#[test]
fn one_row_may_have_any_number_of_outliers() {
    for device in devices() {
        // All weights of a block in shared memory, or streamed through it; rows that four values
        // are loaded of, or one.
        for (n, cols) in [(33, 800), (33, 799), (3000, 800)] {
            for count in [0, 1, 7, 255, 256, 257, 600] {
                let mut case = Case::<f32>::new([1, n, cols], 1);
                case.x.iter_mut().for_each(|x| *x = x.clamp(-5.0, 5.0));
                // From the end, so that they are not found in the order of columns.
                (0..count).for_each(|i| {
                    case.x[cols - 1 - i * (cols / count.max(1))] = 6.0 + i as f32 / 64.0
                });
                let expected = case.expected(6.0, OutlierScope::Row);
                let what = format!("{count} outliers, {n} x {cols}, {device:?}");
                assert_near(&case.by_gemv(&device, 6.0), &expected, 5e-6, &what);
            }
        }
    }
}

#[test]
fn rows_whose_codes_do_not_fit_beside_static_shared_memory_are_left_to_product() {
    for device in few_devices() {
        // Without static shared memory it would fit into what a block may have.
        let needed = |cols: usize| {
            plan::gemv(2, plan::pitch(cols), device.multiprocessors()).shared_bytes(cols)
        };
        let fits = |cols: &usize| needed(*cols) <= device.shared_bytes();
        let cols = (1..).map(|i| 16 * i).take_while(fits).last().unwrap();
        assert!(needed(cols) > device.shared_bytes() - 512);
        let case = Case::<f32>::new([1, 2, cols], 5);
        let (x, matrix) = (device.upload(&case.x).unwrap(), case.matrix(&device));
        let out = device.allocate::<f32>(2).unwrap();
        let source = Source::plain(x.all(), 1, cols);
        let is_done = gemv(&source, 6.0, &matrix, &Output::plain(out.all(), 2)).unwrap();
        device.synchronize().unwrap();
        assert!(!is_done, "{cols}");
        let expected = case.expected(6.0, OutlierScope::Row);
        assert_near(
            &case.by_product(&device, 6.0, true),
            &expected,
            2e-6,
            &format!("{cols} columns"),
        );
    }
}

#[test]
fn sums_beyond_2_to_the_24_are_exact() {
    for device in devices() {
        for rows in [1, 5, 20] {
            let (cols, n) = (5120, 3);
            let mut case = Case::<f32>::new([rows, n, cols], 1);
            case.x.fill(127.0);
            case.codes.fill(127);
            case.codes[0] = 126;
            case.absmax.fill(127.0);
            case.bias.fill(0.0);
            let expected = 127 * 127 * cols as i64;
            let found = case.by_product(&device, 0.0, false);
            assert_near(
                &[found[0], found[n - 1]],
                &[(expected - 127) as f32, expected as f32],
                1e-7,
                "sums",
            );
            if rows == 1 {
                assert_eq!(case.by_gemv(&device, 0.0), found);
            }
        }
    }
}

#[test]
fn values_that_are_not_finite_show() {
    for device in few_devices() {
        for rows in [1, 3, 20] {
            let mut case = Case::<f32>::new([rows, 5, 40], 1);
            case.x[39] = f32::NAN;
            let found = case.by_product(&device, 6.0, true);
            assert!(
                found[..5].iter().all(|x| x.is_nan()) && found[5..].iter().all(|x| x.is_finite())
            );
            // Beyond f16, but an outlier: taken from the activation itself.
            case.x[39] = 1e6;
            let expected = case.expected(6.0, OutlierScope::Row);
            assert_near(
                &case.by_product(&device, 6.0, true),
                &expected,
                2e-6,
                "an outlier beyond f16",
            );
        }
    }
}

/// The source's values made on the host.
fn made(
    through: &str,
    x: &[f32],
    up: &[f32],
    weight: &[f32],
    bias: &[f32],
    cols: usize,
) -> Vec<f32> {
    let row = |(x, up): (&[f32], &[f32])| -> Vec<f32> {
        let n = cols as f64;
        let x: Vec<f64> = x.iter().map(|x| f64::from(*x)).collect();
        let mean = if through == "layer" {
            x.iter().sum::<f64>() / n
        } else {
            0.0
        };
        let inverse = 1.0 / (x.iter().map(|x| (x - mean).powi(2)).sum::<f64>() / n + 1e-5).sqrt();
        let value = |k: usize| match through {
            "gated" => x[k] * f64::from(up[k]),
            "layer" => (x[k] - mean) * inverse * f64::from(weight[k]) + f64::from(bias[k]),
            _ => x[k] * inverse * f64::from(weight[k]),
        };
        (0..cols).map(|k| value(k) as f32).collect()
    };
    x.chunks(cols).zip(up.chunks(cols)).flat_map(row).collect()
}

#[test]
fn norms_and_gates_go_before_and_functions_and_residuals_after() {
    for device in devices() {
        for (rows, cols, n) in [(1, 100, 37), (3, 100, 37), (20, 64, 70)] {
            let (x, up) = (activations(rows, cols, 1), activations(rows, cols, 2));
            let (weight, bias) = (noise(cols, 3), noise(cols, 4));
            let stream = noise(rows * n, 5);
            let [x_there, up_there, stream_there] =
                [&x, &up, &stream].map(|values| device.upload(values).unwrap());
            let [weight_there, bias_there] =
                [&weight, &bias].map(|values| device.upload(values).unwrap());
            let parts = NormParts {
                weight: weight_there.all(),
                bias: Some(bias_there.all()),
                eps: 1e-5,
            };
            for (name, through) in [
                ("layer", Through::LayerNorm(parts)),
                (
                    "rms",
                    Through::RmsNorm(NormParts {
                        bias: None,
                        ..parts
                    }),
                ),
                ("gated", Through::Gated(up_there.all())),
            ] {
                let values = made(name, &x, &up, &weight, &bias, cols);
                let mut case = Case::<f32>::new([rows, n, cols], 9);
                case.x = values;
                let mut expected = case.expected(1.5, OutlierScope::Row);
                for (i, y) in expected.iter_mut().enumerate() {
                    // The first ten outputs go through ReLU.
                    if i % n < 10 {
                        *y = y.max(0.0);
                    }
                    *y = stream[i] + 0.5 * *y;
                }
                let (matrix, out) = (
                    case.matrix(&device),
                    device.allocate::<f32>(rows * n).unwrap(),
                );
                let layer_bias = device.upload(&case.bias).unwrap();
                let output = Output {
                    bias: Some(layer_bias.all()),
                    activation: Some((Activation::Relu, 10)),
                    residual: Some(Residual {
                        stream: stream_there.all(),
                        stride: n,
                        scale: 0.5,
                    }),
                    ..Output::plain(out.all(), n)
                };
                let source = Source {
                    through,
                    ..Source::plain(x_there.all(), rows, cols)
                };
                let memory = QuantizedMemory::new(&device, rows, cols).unwrap();
                matmul(
                    &quantize(&source, 1.5, true, &memory).unwrap(),
                    &matrix,
                    &output,
                )
                .unwrap();
                // A value made in f32 may round to the neighbouring f16, and its code be one
                // beside.
                let what = format!("{name}, {rows} rows, {device:?}");
                assert_near(&out.to_vec().unwrap(), &expected, 5e-3, &what);
                if rows == 1 {
                    let by_product = out.to_vec().unwrap();
                    assert!(gemv(&source, 1.5, &matrix, &output).unwrap());
                    assert_near(&out.to_vec().unwrap(), &by_product, 2e-6, &what);
                }
            }
        }
    }
}

#[test]
fn activation_functions_are_those_of_the_cpu() {
    let x: Vec<f32> = noise(200, 8).iter().map(|x| x * 24.0).collect();
    for device in few_devices() {
        for (function, host) in FUNCTIONS {
            // A layer whose weights are 0 gives its bias.
            let matrix = Int8Matrix::new(&device, x.len(), 4).unwrap();
            let (zeros, bias) = (device.zeros::<f32>(4).unwrap(), device.upload(&x).unwrap());
            let out = device.allocate::<f32>(x.len()).unwrap();
            let output = Output {
                bias: Some(bias.all()),
                activation: Some((function, x.len())),
                ..Output::plain(out.all(), x.len())
            };
            assert!(gemv(&Source::plain(zeros.all(), 1, 4), 6.0, &matrix, &output).unwrap());
            let mut expected = x.clone();
            activation::apply(Isa::scalar(), host, &mut expected);
            assert_near(
                &out.to_vec().unwrap(),
                &expected,
                1e-6,
                &format!("{function:?}"),
            );
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 24, ..ProptestConfig::default() })]

    #[test]
    fn any_shape_gives_what_the_oracle_gives(
        rows in 1usize..40, n in 1usize..90, cols in 1usize..300, seed in 1u64..1000, by_row: bool,
    ) {
        for device in testing::devices(&[1]) {
            let case = Case::<f32>::new([rows, n, cols], seed);
            let expected = case.expected(2.5, scope(by_row));
            assert_near(&case.by_product(&device, 2.5, by_row), &expected, 2e-6, "product");
        }
    }
}
