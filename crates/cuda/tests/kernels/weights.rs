//! Weights quantised on the device against the reference.

use crate::{devices, few_devices, noise};
use half::{bf16, f16};
use llm_int8_cuda::Device;
use llm_int8_cuda::ops::{Float, Int8Matrix};
use llm_int8_kernels::{Element, reference};

fn quantizes_rows<T: Float + Element>(device: &Device) {
    for (n, k) in [(1, 1), (5, 499), (33, 64), (70, 130)] {
        let weight: Vec<T> = noise(n * k, 7)
            .into_iter()
            .map(|x| T::of(x * 2.5))
            .collect();
        let rows: Vec<_> = weight
            .chunks(k)
            .map(|row| {
                reference::quantize_row(
                    &row.iter()
                        .map(|x| Element::to_f16(*x))
                        .collect::<Vec<f16>>(),
                )
            })
            .collect();
        let mark = Int8Matrix::mark(device).unwrap();
        let transposed: Vec<T> = (0..n * k).map(|i| weight[i % n * k + i / n]).collect();

        // The matrix has other rows too, as if layers with the same input shared it.
        let matrix = Int8Matrix::new(device, n + 4, k).unwrap();
        for is_transposed in [false, true] {
            let uploaded = device
                .upload(if is_transposed { &transposed } else { &weight })
                .unwrap();
            if is_transposed {
                matrix
                    .quantize_transposed(uploaded.all(), 2..n + 2, &mark)
                    .unwrap();
            } else {
                matrix
                    .quantize_rows(uploaded.all(), 2..n + 2, &mark)
                    .unwrap();
            }
            assert_eq!(Int8Matrix::check_finite(&mark).unwrap(), None);

            let pitch = matrix.pitch();
            let mut codes = vec![0i8; (n + 4) * pitch];
            let mut absmax = vec![0f32; n + 4];
            matrix.codes().read(&mut codes).unwrap();
            matrix.absmax().read(&mut absmax).unwrap();

            for (i, row) in codes.chunks(pitch).enumerate() {
                let (expected, expected_absmax) = match i.checked_sub(2).and_then(|i| rows.get(i)) {
                    Some((codes, absmax)) => (codes.clone(), *absmax),
                    None => (vec![0; k], 0.0),
                };
                assert_eq!(
                    row[..k],
                    expected,
                    "{n}x{k} row {i}, transposed {is_transposed}"
                );
                assert!(row[k..].iter().all(|code| *code == 0), "padding is zero");
                assert_eq!(absmax[i], expected_absmax);
            }
        }
    }
}

#[test]
fn weight_codes_match_the_reference() {
    for device in devices() {
        quantizes_rows::<f32>(&device);
        quantizes_rows::<f16>(&device);
        quantizes_rows::<bf16>(&device);
    }
}

#[test]
fn the_first_row_that_is_not_finite_in_f16_is_reported() {
    for device in devices() {
        let mark = Int8Matrix::mark(&device).unwrap();
        let matrix = Int8Matrix::new(&device, 40, 8).unwrap();
        let mut weight = noise(320, 1);
        weight[35 * 8 + 3] = 70_000.0;
        weight[36 * 8] = f32::NAN;
        matrix
            .quantize_rows(device.upload(&weight).unwrap().all(), 0..40, &mark)
            .unwrap();
        assert_eq!(Int8Matrix::check_finite(&mark).unwrap(), Some(35));

        let transposed: Vec<f32> = (0..320).map(|i| weight[i % 40 * 8 + i / 40]).collect();
        matrix
            .quantize_transposed(device.upload(&transposed).unwrap().all(), 0..40, &mark)
            .unwrap();
        assert_eq!(Int8Matrix::check_finite(&mark).unwrap(), Some(35));
        assert_eq!(
            Int8Matrix::check_finite(&mark).unwrap(),
            None,
            "checking resets the mark"
        );
    }
}

#[test]
fn written_codes_are_padded_row_by_row() {
    for device in few_devices() {
        let matrix = Int8Matrix::new(&device, 3, 5).unwrap();
        matrix
            .write_rows(1, &[1, 2, 3, 4, 5, -6, -7, -8, -9, -10], &[0.5, 2.0])
            .unwrap();
        let mut codes = vec![0i8; 48];
        matrix.codes().read(&mut codes).unwrap();
        assert_eq!((codes[15], &codes[16..22]), (0, &[1, 2, 3, 4, 5, 0][..]));
        assert_eq!(
            (codes[31], &codes[32..38]),
            (0, &[-6, -7, -8, -9, -10, 0][..])
        );
        assert!(matrix.write_rows(2, &[0; 10], &[1.0, 1.0]).is_err());
        assert!(matrix.write_rows(0, &[0; 3], &[1.0]).is_err());
    }
}
