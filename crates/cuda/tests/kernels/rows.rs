//! Embeddings, norms, sums and products of rows, copies, float linear layers.

use crate::{assert_near, devices, noise};
use half::{bf16, f16};
use llm_int8_cuda::Device;
use llm_int8_cuda::ops::{
    Combined, Float, FloatMatrix, FloatType, Int8Matrix, NormParts, Output, RowShape, Source,
    Strided, Table, TableRows, Through, combine, copy_rows, dense, embed, norm, softcap,
};

/// A matrix on the device, and its values rounded to the dtype.
fn matrix(
    device: &Device,
    dtype: FloatType,
    values: &[f32],
    cols: usize,
) -> (FloatMatrix, Vec<f32>) {
    let matrix = FloatMatrix::new(device, dtype, values.len() / cols, cols).unwrap();
    let (bytes, rounded): (Vec<u8>, Vec<f32>) = match dtype {
        FloatType::F32 => (bytemuck::cast_slice(values).to_vec(), values.to_vec()),
        FloatType::F16 => {
            let stored: Vec<f16> = values.iter().map(|x| f16::from_f32(*x)).collect();
            (
                bytemuck::cast_slice(&stored).to_vec(),
                stored.iter().map(|x| x.to_f32()).collect(),
            )
        }
        FloatType::BF16 => {
            let stored: Vec<bf16> = values.iter().map(|x| bf16::from_f32(*x)).collect();
            (
                bytemuck::cast_slice(&stored).to_vec(),
                stored.iter().map(|x| x.to_f32()).collect(),
            )
        }
    };
    matrix.write_rows(0, &bytes).unwrap();
    (matrix, rounded)
}

const TYPES: [FloatType; 3] = [f32::TYPE, f16::TYPE, bf16::TYPE];

#[test]
fn embeddings_are_looked_up_and_positions_added() {
    let width = 37;
    let ids = [3u32, 0, 4, 3];
    for device in devices() {
        for dtype in TYPES {
            let (tokens, token_values) = matrix(&device, dtype, &noise(5 * width, 1), width);
            let (positions, position_values) = matrix(&device, dtype, &noise(6 * width, 2), width);
            let device_ids = device.upload(&ids).unwrap();
            let numbers = device.upload(&[2u32, 3, 4, 5]).unwrap();
            let out = device.allocate::<f32>(4 * width).unwrap();
            let positions = Some((&positions, numbers.all()));
            let rows = TableRows {
                ids: device_ids.all(),
                positions,
                rows: 4,
                factor: 2.0,
            };
            embed(Table::Float(&tokens), &rows, out.all()).unwrap();

            let value = |(m, id): (usize, &u32), i: usize| {
                2.0 * token_values[*id as usize * width + i] + position_values[(m + 2) * width + i]
            };
            let all = || ids.iter().enumerate();
            let expected: Vec<f32> = all()
                .flat_map(|row| (0..width).map(move |i| value(row, i)))
                .collect();
            assert_near(&out.to_vec().unwrap(), &expected, 1e-6, "embedding");

            let codes: Vec<i8> = (0..5 * width).map(|i| (i % 255) as i8).collect();
            let table = Int8Matrix::new(&device, 5, width).unwrap();
            table
                .write_rows(0, &codes, &[1.0, 2.0, 3.0, 4.0, 5.0])
                .unwrap();
            let rows = TableRows {
                positions: None,
                factor: 1.0,
                ..rows
            };
            embed(Table::Int8(&table), &rows, out.all()).unwrap();

            let code = |id: u32, i: usize| {
                f32::from(codes[id as usize * width + i]) * (id + 1) as f32 / 127.0
            };
            let expected: Vec<f32> = ids
                .iter()
                .flat_map(|id| (0..width).map(|i| code(*id, i)))
                .collect();
            assert_near(&out.to_vec().unwrap(), &expected, 1e-6, "int8 embedding");
        }
    }
}

#[test]
fn norms_of_rows_and_of_heads() {
    let (rows, heads, cols) = (3, 4, 24);
    let x = noise(rows * heads * cols, 3);
    let weight = noise(heads * cols, 4);
    let rms = |x: &[f32], weight: &[f32]| -> Vec<f32> {
        let mean = x.iter().map(|x| f64::from(*x).powi(2)).sum::<f64>() / x.len() as f64;
        x.iter()
            .zip(weight)
            .map(|(x, w)| (f64::from(*x) / (mean + 1e-6).sqrt()) as f32 * w)
            .collect()
    };

    for device in devices() {
        let uploaded = device.upload(&x).unwrap();
        let device_weight = device.upload(&weight).unwrap();
        let parts = NormParts {
            weight: device_weight.all(),
            bias: None,
            eps: 1e-6,
        };
        for own in [false, true] {
            let source = Source {
                through: Through::RmsNorm(parts),
                stride: heads * cols,
                ..Source::plain(uploaded.all(), rows, cols)
            };
            let out = device.allocate::<f32>(x.len()).unwrap();
            norm(&source, heads, own, out.all(), heads * cols).unwrap();
            let part = |(i, x): (usize, &[f32])| {
                let head = if own { i % heads } else { 0 };
                rms(x, &weight[head * cols..][..cols])
            };
            let expected: Vec<f32> = x.chunks(cols).enumerate().flat_map(part).collect();
            assert_near(&out.to_vec().unwrap(), &expected, 1e-6, "heads");
        }

        // Whole rows, in place.
        let source = Source {
            through: Through::RmsNorm(parts),
            ..Source::plain(uploaded.all(), rows, heads * cols)
        };
        norm(&source, 1, false, uploaded.all(), heads * cols).unwrap();
        let expected: Vec<f32> = x
            .chunks(heads * cols)
            .flat_map(|x| rms(x, &weight))
            .collect();
        assert_near(&uploaded.to_vec().unwrap(), &expected, 1e-6, "rows");
    }
}

#[test]
fn strided_rows_are_multiplied_and_added() {
    let shape = RowShape { rows: 2, width: 2 };
    for device in devices() {
        let both = device
            .upload(&[1.0f32, 2.0, 10.0, 20.0, 3.0, 4.0, 30.0, 40.0])
            .unwrap();
        let out = device.allocate::<f32>(4).unwrap();
        let left = Strided {
            values: both.all(),
            stride: 4,
        };
        let right = Strided {
            values: both.part(2..).unwrap(),
            stride: 4,
        };

        combine(Combined::Product, left, right, out.all(), shape).unwrap();
        assert_eq!(out.to_vec().unwrap(), [10.0, 40.0, 90.0, 160.0]);

        let products = Strided {
            values: out.all(),
            stride: 2,
        };
        combine(Combined::Sum(0.5), products, right, out.all(), shape).unwrap();
        assert_eq!(out.to_vec().unwrap(), [15.0, 50.0, 105.0, 180.0]);

        softcap(out.all(), 0.1, None).unwrap();
        softcap(out.all(), 1.0, Some(3.0)).unwrap();
        let expected = [1.5f32, 5.0, 10.5, 18.0].map(|x| 3.0 * (x / 3.0).tanh());
        assert_near(&out.to_vec().unwrap(), &expected, 1e-6, "soft cap");
    }
}

#[test]
fn float_layers_match_a_matmul_in_f64() {
    for device in devices() {
        for dtype in TYPES {
            for [rows, n, cols] in [
                [1, 1, 1],
                [1, 35, 77],
                [3, 16, 300],
                [9, 33, 64],
                [16, 5, 31],
                [70, 66, 50],
                // On tensor cores if weights have 16 bits: up to 32 rows, up to 64, and more.
                [17, 35, 64],
                [32, 130, 40],
                [33, 16, 104],
                [64, 9, 8],
                [131, 20, 96],
            ] {
                let x = noise(rows * cols, 1);
                let bias = noise(n, 2);
                let (weight, values) = matrix(&device, dtype, &noise(n * cols, 3), cols);
                let uploaded = device.upload(&x).unwrap();
                let device_bias = device.upload(&bias).unwrap();
                let out = device.allocate::<f32>(rows * n).unwrap();
                let output = Output {
                    bias: Some(device_bias.all()),
                    ..Output::plain(out.all(), n)
                };
                dense(&Source::plain(uploaded.all(), rows, cols), &weight, &output).unwrap();

                let dot = |m: usize, n: usize| -> f32 {
                    let pairs = x[m * cols..][..cols].iter().zip(&values[n * cols..]);
                    pairs
                        .map(|(x, w)| f64::from(*x) * f64::from(*w))
                        .sum::<f64>() as f32
                        + bias[n]
                };
                let expected: Vec<f32> = (0..rows)
                    .flat_map(|m| (0..n).map(move |n| (m, n)))
                    .map(|(m, n)| dot(m, n))
                    .collect();
                let what = format!("{dtype:?} {rows}x{n}x{cols}");
                assert_near(&out.to_vec().unwrap(), &expected, 1e-5, &what);
            }
        }
    }
}

#[test]
fn f32_activations_keep_their_precision_with_16_bit_weights() {
    for device in devices() {
        for dtype in [FloatType::F16, FloatType::BF16] {
            // Sums that cancel but for the low bits of the activations.
            let (rows, cols) = (20, 32);
            let x: Vec<f32> = (0..rows * cols)
                .map(|i| {
                    if i % 2 == 0 {
                        1.0 + (i / 2 % 7) as f32 * 2e-6
                    } else {
                        -1.0
                    }
                })
                .collect();
            let (weight, _) = matrix(&device, dtype, &[1.0; 32], cols);
            let uploaded = device.upload(&x).unwrap();
            let out = device.allocate::<f32>(rows).unwrap();
            dense(
                &Source::plain(uploaded.all(), rows, cols),
                &weight,
                &Output::plain(out.all(), 1),
            )
            .unwrap();
            let exact: Vec<f32> = x
                .chunks(cols)
                .map(|row| row.iter().map(|x| f64::from(*x)).sum::<f64>() as f32)
                .collect();
            assert_near(
                &out.to_vec().unwrap(),
                &exact,
                2e-2,
                &format!("{dtype:?} on {device:?}"),
            );

            // Activations beyond the range of f16.
            let x: Vec<f32> = (0..rows * cols)
                .map(|i| if i % cols == 3 { 1e5 } else { 0.0 })
                .collect();
            uploaded.all().write(&x).unwrap();
            dense(
                &Source::plain(uploaded.all(), rows, cols),
                &weight,
                &Output::plain(out.all(), 1),
            )
            .unwrap();
            assert_near(
                &out.to_vec().unwrap(),
                &[1e5; 20],
                1e-5,
                &format!("{dtype:?} on {device:?}"),
            );
        }
    }
}

#[test]
fn rows_are_copied_between_strides() {
    for device in devices() {
        let values: Vec<u32> = (0..60).collect();
        let from = device
            .upload(bytemuck::cast_slice::<u32, u8>(&values))
            .unwrap();
        let to = device.zeros::<u8>(3 * 128).unwrap();
        let source = Strided {
            values: from.all(),
            stride: 80,
        };
        let target = Strided {
            values: to.all(),
            stride: 128,
        };
        copy_rows(source, target, RowShape { rows: 3, width: 64 }).unwrap();

        let mut copied = [1u32; 96];
        to.all().cast::<u32>().unwrap().read(&mut copied).unwrap();
        for (row, copied) in copied.chunks(32).enumerate() {
            assert_eq!(copied[..16], values[row * 20..row * 20 + 16]);
            assert!(copied[16..].iter().all(|x| *x == 0));
        }

        assert!(copy_rows(source, target, RowShape { rows: 3, width: 65 }).is_err());
        assert!(to.part(2..18).unwrap().cast::<u32>().is_err());
    }
}
