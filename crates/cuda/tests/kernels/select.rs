//! The tokens chosen against a sorted list.

use crate::{devices, noise};
use llm_int8_cuda::ops::{Selected, penalise, select};

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
fn the_largest_are_chosen_and_of_equal_ones_the_first() {
    chosen_are_the_largest(&[(1, 1), (2, 100), (3, 1500), (1, 5000)]);
}

#[test]
fn the_largest_of_gpt2s_vocabulary_are_chosen() {
    chosen_are_the_largest(&[(8, 50257)]);
}

/// Of logits with many equal ones, `(rows, vocabulary)`.
fn chosen_are_the_largest(shapes: &[(usize, usize)]) {
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
            let there = device.upload(&logits).unwrap();
            for k in [1, 2, 7, 50, vocabulary.min(5000)]
                .into_iter()
                .filter(|k| *k <= vocabulary)
            {
                let (ids, values) = (
                    device.allocate::<u32>(rows * k).unwrap(),
                    device.allocate::<f32>(rows * k).unwrap(),
                );
                let is_bad = device.allocate::<u32>(rows).unwrap();
                let into = Selected {
                    ids: ids.all(),
                    values: values.all(),
                    is_bad: is_bad.all(),
                };
                select(there.all(), [rows, vocabulary], k, &into).unwrap();
                assert_eq!(is_bad.to_vec().unwrap(), vec![0; rows]);
                let (ids, values) = (ids.to_vec().unwrap(), values.to_vec().unwrap());
                for (row, logits) in logits.chunks(vocabulary).enumerate() {
                    let (ids, values) = (&ids[row * k..][..k], &values[row * k..][..k]);
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
                let (ids, values) = (device.zeros(k).unwrap(), device.zeros(k).unwrap());
                let is_bad = device.zeros(rows).unwrap();
                let into = Selected {
                    ids: ids.all(),
                    values: values.all(),
                    is_bad: is_bad.all(),
                };
                assert!(select(there.all(), [rows, vocabulary], k, &into).is_err());
            }
        }
    }
}

#[test]
fn a_row_with_a_bad_logit_is_marked() {
    for device in devices() {
        for bad in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
            let mut logits = vec![1.0f32; 80];
            logits[60] = bad;
            let there = device.upload(&logits).unwrap();
            for k in [1, 3] {
                let (ids, values) = (device.zeros(2 * k).unwrap(), device.zeros(2 * k).unwrap());
                let is_bad = device.zeros::<u32>(2).unwrap();
                let into = Selected {
                    ids: ids.all(),
                    values: values.all(),
                    is_bad: is_bad.all(),
                };
                select(there.all(), [2, 40], k, &into).unwrap();
                assert_eq!(is_bad.to_vec().unwrap(), [0, 1]);
            }
        }
    }
}

#[test]
fn tokens_that_were_there_are_made_less_likely() {
    for device in devices() {
        let logits = device.upload(&[4.0f32, -1.0, 3.0, 2.0]).unwrap();
        let ids = device.upload(&[0u32, 1, 9]).unwrap();
        penalise(logits.all(), ids.all(), 2, 2.0).unwrap();
        assert_eq!(logits.to_vec().unwrap(), [2.0, -2.0, 3.0, 2.0]);
    }
}
