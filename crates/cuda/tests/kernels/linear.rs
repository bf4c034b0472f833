//! Quantised activations and int8 matmuls against `llm_int8_kernels::reference`.

use crate::linear_oracle::{Case, FUNCTIONS, outliers, tolerance};
use crate::{assert_near, devices, few_devices, noise};
use half::{bf16, f16};
use llm_int8_cuda::ops::{Float, Int8Matrix, Output, QuantizedMemory, Source, gemv, quantize};
use llm_int8_cuda::plan::{Gemm, Tile};
use llm_int8_cuda::{plan, testing};
use llm_int8_kernels::{Element, Isa, OutlierRule, activation};
use proptest::prelude::*;

fn quantize_matches_the_reference<T: Float + Element>() {
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
            for rule in [
                OutlierRule::batch(6.0),
                OutlierRule::row(6.0),
                OutlierRule::batch(0.0),
                OutlierRule::row(6.004),
                OutlierRule::batch(1.0),
                OutlierRule::row_rms(1.5),
                OutlierRule::row_rms(0.0),
            ] {
                let case = Case::<T>::new([rows, 1, cols], 5);
                let expected = case.reference(rule);
                let x = device.upload(&case.x).unwrap();
                let memory = QuantizedMemory::new(&device, rows, cols).unwrap();
                let source = Source::plain(x.all(), rows, cols);

                // Other rows first: their column flags must not be left in the memory.
                let other: Vec<T> = noise(rows * cols, 3)
                    .iter()
                    .map(|x| T::of(x * 9.0))
                    .collect();
                let other = device.upload(&other).unwrap();
                let other = Source::plain(other.all(), rows, cols);
                quantize(&other, outliers(rule), &memory).unwrap();
                let found = quantize(&source, outliers(rule), &memory).unwrap();

                let mut columns: Vec<u32> = expected
                    .outliers
                    .iter()
                    .flatten()
                    .map(|(column, _)| *column)
                    .collect();
                columns.sort_unstable();
                columns.dedup();
                let what = format!("{rows}x{cols}, {rule:?}, {device:?}");
                assert_eq!(found.codes().unwrap(), expected.codes, "{what}");
                assert_eq!(found.absmax().unwrap(), expected.absmax, "{what}");
                assert_eq!(found.columns().unwrap(), columns, "{what}");
            }
        }
    }
}

#[test]
fn codes_absmax_and_outliers_match_the_reference_in_f32() {
    quantize_matches_the_reference::<f32>();
}

#[test]
fn codes_absmax_and_outliers_match_the_reference_in_f16_and_bf16() {
    quantize_matches_the_reference::<f16>();
    quantize_matches_the_reference::<bf16>();
}

fn matmul_matches_the_reference<T: Float + Element>() {
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
            for rule in [
                OutlierRule::batch(6.0),
                OutlierRule::row(6.0),
                OutlierRule::batch(0.0),
                OutlierRule::batch(2.9),
                OutlierRule::row_rms(1.6),
            ] {
                let case = Case::<T>::new(shape, 11);
                let expected = case.expected(rule);
                let what = format!("{shape:?}, {rule:?}, {device:?}");
                assert_near(
                    &case.by_matmul(&device, rule),
                    &expected,
                    tolerance::<T>(),
                    &what,
                );
                if shape[0] == 1 {
                    assert_near(
                        &case.by_gemv(&device, rule),
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
fn matmuls_match_the_reference_in_f32() {
    matmul_matches_the_reference::<f32>();
}

#[test]
fn matmuls_match_the_reference_in_f16_and_bf16() {
    matmul_matches_the_reference::<f16>();
    matmul_matches_the_reference::<bf16>();
}

#[test]
fn large_tiles_match_the_reference() {
    // Several tiles, and more steps along K than there are stages in shared memory.
    for device in devices() {
        let case = Case::<f32>::new([300, 200, 700], 3);
        for tile in [Tile::Large].into_iter().chain(Tile::HOPPER) {
            if tile != Tile::Large && !device.has_wgmma() {
                continue;
            }
            let expected = case.expected(OutlierRule::row(6.0));
            let found = case.by_gemm(
                &device,
                OutlierRule::row(6.0),
                Gemm { tile, splits: 1 },
                None,
            );
            assert_near(&found, &expected, 2e-6, &format!("{tile:?}"));
        }
    }

    // On a GPU, enough tiles to give every multiprocessor one.
    for device in testing::gpus() {
        let case = Case::<f32>::new([1500, 1500, 210], 3);
        let expected = case.expected(OutlierRule::row(6.0));
        assert_near(
            &case.by_matmul(&device, OutlierRule::row(6.0)),
            &expected,
            2e-6,
            "1500 rows",
        );
    }
}

#[test]
fn a_gpt2_large_layer_with_600_rows_matches_the_reference() {
    for device in testing::gpus() {
        let case = Case::<f32>::new([600, 3840, 1280], 3);
        let expected = case.expected(OutlierRule::row(6.0));
        assert_near(
            &case.by_matmul(&device, OutlierRule::row(6.0)),
            &expected,
            2e-6,
            "600 rows",
        );
    }
}

/// `[out_features, in_features]` of gpt2-large's linear layers.
const GPT2_LARGE: [[usize; 2]; 4] = [[3840, 1280], [1280, 1280], [5120, 1280], [1280, 5120]];

#[test]
fn gpt2_large_layers_match_the_reference() {
    for device in few_devices() {
        for [n, cols] in GPT2_LARGE {
            for rows in [1, 8, 16] {
                let case = Case::<f32>::new([rows, n, cols], 17);
                let expected = case.expected(OutlierRule::batch(6.0));
                let what = format!("{rows} rows, {n} x {cols}, {device:?}");
                assert_near(
                    &case.by_matmul(&device, OutlierRule::batch(6.0)),
                    &expected,
                    2e-6,
                    &what,
                );
                if rows == 1 {
                    assert_near(
                        &case.by_gemv(&device, OutlierRule::row(6.0)),
                        &expected,
                        2e-6,
                        &what,
                    );
                }
            }
        }
    }
}

#[test]
fn one_row_may_have_any_number_of_outliers() {
    for device in devices() {
        // The weights of a block all in shared memory, or streamed through it (3000 outputs);
        // activations loaded four at a time, or one by one (799 columns).
        for (n, cols) in [(33, 800), (33, 799), (3000, 800)] {
            for count in [0, 1, 7, 255, 256, 257, 600] {
                let mut case = Case::<f32>::new([1, n, cols], 1);
                case.x.iter_mut().for_each(|x| *x = x.clamp(-5.0, 5.0));
                // From the last column on, so that they are not found in ascending order.
                (0..count).for_each(|i| {
                    case.x[cols - 1 - i * (cols / count.max(1))] = 6.0 + i as f32 / 64.0
                });
                let expected = case.expected(OutlierRule::row(6.0));
                let what = format!("{count} outliers, {n} x {cols}, {device:?}");
                assert_near(
                    &case.by_gemv(&device, OutlierRule::row(6.0)),
                    &expected,
                    5e-6,
                    &what,
                );
            }
        }
    }
}

#[test]
fn gemv_declines_rows_that_fit_in_shared_memory_only_without_its_static_part() {
    for device in few_devices() {
        // The longest row whose dynamic shared memory alone is within a block's limit.
        let needed = |cols: usize| {
            plan::gemv(2, plan::pitch(cols), device.multiprocessors()).shared_bytes(cols)
        };
        let fits = |cols: &usize| needed(*cols) <= device.shared_bytes();
        let cols = (1..).map(|i| 16 * i).take_while(fits).last().unwrap();
        assert!(needed(cols) > device.shared_bytes() - 512);

        let case = Case::<f32>::new([1, 2, cols], 5);
        let x = device.upload(&case.x).unwrap();
        let matrix = case.matrix(&device);
        let out = device.allocate::<f32>(2).unwrap();
        let source = Source::plain(x.all(), 1, cols);
        let is_done = gemv(
            &source,
            outliers(OutlierRule::row(6.0)),
            &matrix,
            &Output::plain(out.all(), 2),
        )
        .unwrap();
        device.synchronize().unwrap();
        assert!(!is_done, "{cols}");

        let expected = case.expected(OutlierRule::row(6.0));
        assert_near(
            &case.by_matmul(&device, OutlierRule::row(6.0)),
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
            let found = case.by_matmul(&device, OutlierRule::batch(0.0));
            assert_near(
                &[found[0], found[n - 1]],
                &[(expected - 127) as f32, expected as f32],
                1e-7,
                "sums",
            );
            if rows == 1 {
                assert_eq!(case.by_gemv(&device, OutlierRule::row(0.0)), found);
            }
        }
    }
}

#[test]
fn nan_stays_in_its_row_and_outliers_may_exceed_f16() {
    for device in few_devices() {
        for rows in [1, 3, 20] {
            let mut case = Case::<f32>::new([rows, 5, 40], 1);
            case.x[39] = f32::NAN;
            for rule in [OutlierRule::row(6.0), OutlierRule::row_rms(2.0)] {
                let found = case.by_matmul(&device, rule);
                let (row, others) = found.split_at(5);
                assert!(row.iter().all(|x| x.is_nan()) && others.iter().all(|x| x.is_finite()));
            }

            // Infinite in f16, but an outlier, whose value is read from the f32 activations.
            case.x[39] = 1e6;
            let expected = case.expected(OutlierRule::row(6.0));
            assert_near(
                &case.by_matmul(&device, OutlierRule::row(6.0)),
                &expected,
                2e-6,
                "an outlier beyond f16",
            );
        }
    }
}

#[test]
fn activation_functions_match_the_cpu() {
    let x: Vec<f32> = noise(200, 8).iter().map(|x| x * 24.0).collect();
    for device in few_devices() {
        for (function, host) in FUNCTIONS {
            // A layer with zero weights outputs its bias.
            let matrix = Int8Matrix::new(&device, x.len(), 4).unwrap();
            let zeros = device.zeros::<f32>(4).unwrap();
            let bias = device.upload(&x).unwrap();
            let out = device.allocate::<f32>(x.len()).unwrap();
            let output = Output {
                bias: Some(bias.all()),
                activation: Some((function, x.len())),
                ..Output::plain(out.all(), x.len())
            };
            assert!(
                gemv(
                    &Source::plain(zeros.all(), 1, 4),
                    outliers(OutlierRule::row(6.0)),
                    &matrix,
                    &output
                )
                .unwrap()
            );
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
    fn matmuls_of_any_shape_match_the_reference(
        rows in 1usize..40, n in 1usize..90, cols in 1usize..300, seed in 1u64..1000,
        rule in prop::sample::select(vec![OutlierRule::batch(2.5), OutlierRule::row(2.5), OutlierRule::row_rms(1.5)]),
    ) {
        for device in testing::devices(&[1]) {
            let case = Case::<f32>::new([rows, n, cols], seed);
            let expected = case.expected(rule);
            assert_near(&case.by_matmul(&device, rule), &expected, 2e-6, "matmul");
        }
    }
}
