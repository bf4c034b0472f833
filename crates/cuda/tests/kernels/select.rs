//! Selected tokens against a sorted list; the repetition penalty.

use crate::{devices, noise};
use llm_int8_cuda::Device;
use llm_int8_cuda::ops::{Logits, Selected, penalise, select};

/// The ids of the `k` largest logits, ascending.
fn expected(logits: &[f32], k: usize) -> Vec<u32> {
    let mut ids: Vec<u32> = (0..logits.len() as u32).collect();
    ids.sort_by(|a, b| {
        logits[*b as usize]
            .total_cmp(&logits[*a as usize])
            .then(a.cmp(b))
    });
    ids.truncate(k);
    ids.sort_unstable();
    ids
}

#[test]
fn select_finds_the_largest_and_of_equal_ones_the_first() {
    check_select(&[(1, 1), (2, 100), (3, 1500), (1, 5000)]);
}

#[test]
fn select_finds_the_largest_of_gpt2s_vocabulary() {
    check_select(&[(8, 50257)]);
}

/// For logits with many equal ones, of each shape `(rows, vocabulary)`.
fn check_select(shapes: &[(usize, usize)]) {
    for device in devices() {
        for &(rows, vocabulary) in shapes {
            let mut logits: Vec<f32> = noise(rows * vocabulary, 4)
                .iter()
                .map(|x| (x * 40.0).round() / 4.0)
                .collect();
            if vocabulary > 10 {
                logits[3] = 50.0;
                logits[9] = 50.0;
            }
            let uploaded = device.upload(&logits).unwrap();
            let on_device = Logits {
                values: uploaded.all(),
                rows,
                vocabulary,
            };

            for k in [1, 2, 7, 50, vocabulary.min(5000)]
                .into_iter()
                .filter(|k| *k <= vocabulary)
            {
                let ids = device.allocate::<u32>(rows * k).unwrap();
                let values = device.allocate::<f32>(rows * k).unwrap();
                let is_bad = device.allocate::<u32>(rows).unwrap();
                let into = Selected {
                    ids: ids.all(),
                    values: values.all(),
                    is_bad: is_bad.all(),
                };
                select(&on_device, k, &into).unwrap();
                assert_eq!(is_bad.to_vec().unwrap(), vec![0; rows]);

                let ids = ids.to_vec().unwrap();
                let values = values.to_vec().unwrap();
                for (row, logits) in logits.chunks(vocabulary).enumerate() {
                    let ids = &ids[row * k..][..k];
                    let values = &values[row * k..][..k];
                    let mut sorted = ids.to_vec();
                    sorted.sort_unstable();
                    assert_eq!(
                        sorted,
                        expected(logits, k),
                        "{rows}x{vocabulary}, {k}, {device:?}"
                    );
                    assert!(
                        ids.iter()
                            .zip(values)
                            .all(|(id, value)| logits[*id as usize] == *value)
                    );
                }
            }

            for k in [0, vocabulary + 1] {
                assert!(!is_accepted(&device, &on_device, k));
            }
        }
    }
}

fn is_accepted(device: &Device, logits: &Logits<'_>, k: usize) -> bool {
    let ids = device.zeros(logits.rows * k).unwrap();
    let values = device.zeros(logits.rows * k).unwrap();
    let is_bad = device.zeros(logits.rows).unwrap();
    let into = Selected {
        ids: ids.all(),
        values: values.all(),
        is_bad: is_bad.all(),
    };
    select(logits, k, &into).is_ok()
}

#[test]
fn rows_with_a_logit_that_is_not_finite_are_flagged() {
    for device in devices() {
        for bad in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
            let mut logits = vec![1.0f32; 80];
            logits[60] = bad;
            let uploaded = device.upload(&logits).unwrap();
            let on_device = Logits {
                values: uploaded.all(),
                rows: 2,
                vocabulary: 40,
            };

            for k in [1, 3] {
                let ids = device.zeros(2 * k).unwrap();
                let values = device.zeros(2 * k).unwrap();
                let is_bad = device.zeros::<u32>(2).unwrap();
                let into = Selected {
                    ids: ids.all(),
                    values: values.all(),
                    is_bad: is_bad.all(),
                };
                select(&on_device, k, &into).unwrap();
                assert_eq!(is_bad.to_vec().unwrap(), [0, 1]);
            }
        }
    }
}

#[test]
fn the_penalty_divides_positive_logits_and_multiplies_negative_ones() {
    for device in devices() {
        let logits = device.upload(&[4.0f32, -1.0, 3.0, 2.0]).unwrap();
        let ids = device.upload(&[0u32, 1, 9]).unwrap();
        penalise(logits.all(), ids.all(), 2, 2.0).unwrap();
        assert_eq!(logits.to_vec().unwrap(), [2.0, -2.0, 3.0, 2.0]);
    }
}
