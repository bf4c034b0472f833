//! Float linear layers against f64, with the error bound of a sum of rounded products.

use super::{Noise, bits, halves};
use half::bf16;
use llm_int8_kernels::{Element, Isa, KernelError, MatMut, MatRef, dense};

fn forward<W: Element>(isa: Isa, x: &[f32], w: &[W], k: usize, bias: Option<&[f32]>) -> Vec<f32> {
    let m = x.len() / k;
    let n = w.len() / k;
    let mut out = vec![f32::NAN; m * n];
    let a = MatRef::new(x, m, k).unwrap();
    let w = MatRef::new(w, n, k).unwrap();
    dense::linear(isa, a, w, bias, MatMut::new(&mut out, m, n).unwrap()).unwrap();
    out
}

fn check<W: Element>(x: &[f32], w: &[W], k: usize, bias: &[f32]) {
    let n = w.len() / k;
    for isa in Isa::available() {
        for bias in [None, Some(bias)] {
            let found = forward(isa, x, w, k, bias);
            for (i, y) in found.iter().enumerate() {
                let row = &x[i / n * k..][..k];
                let weights = &w[i % n * k..][..k];
                let terms = row
                    .iter()
                    .zip(weights)
                    .map(|(x, w)| f64::from(*x) * f64::from(w.to_f32()));
                let bias = bias.map_or(0.0, |bias| f64::from(bias[i % n]));
                let (sum, size) = terms.fold((bias, bias.abs()), |(sum, size), x| {
                    (sum + x, size + x.abs())
                });
                // At most k roundings of partial sums and of products, each of half a unit in the
                // last place.
                let bound = size * (k + 2) as f64 * f64::from(f32::EPSILON);
                assert!((f64::from(*y) - sum).abs() <= bound, "{isa:?} {y} {sum}");
            }
        }

        for bias in [None, Some(bias)] {
            let alone: Vec<f32> = x
                .chunks(k)
                .flat_map(|row| forward(isa, row, w, k, bias))
                .collect();
            assert_eq!(
                bits(&forward(isa, x, w, k, bias)),
                bits(&alone),
                "{isa:?}: a row depends on its batch"
            );
        }
    }
}

#[test]
fn every_shape_and_type_is_within_the_bound_and_independent_of_the_batch() {
    let mut noise = Noise(21);
    for k in [1, 3, 7, 8, 9, 16, 17, 130, 499] {
        for (m, n) in [(1, 1), (1, 6), (2, 4), (3, 5), (4, 9), (7, 3), (67, 10)] {
            let x = noise.normals(m * k, 1.0);
            let w = noise.normals(n * k, 1.0);
            let bias = noise.normals(n, 1.0);
            check(&x, &w, k, &bias);
            check(&x, &halves(&w), k, &bias);
            check(
                &x,
                &w.iter().map(|&w| bf16::from_f32(w)).collect::<Vec<_>>(),
                k,
                &bias,
            );
        }
    }
}

/// With 11,000 columns, 97 rows are split into a group of 96 and a group of one.
#[test]
fn a_group_of_one_row_has_the_bits_of_the_row_alone() {
    let (m, k, n) = (97, 11_000, 3);
    let mut noise = Noise(23);
    let x = noise.normals(m * k, 1.0);
    let w = noise.normals(n * k, 1.0);
    for isa in Isa::available() {
        let all = forward(isa, &x, &w, k, None);
        let last = forward(isa, &x[(m - 1) * k..], &w, k, None);
        assert_eq!(bits(&all[(m - 1) * n..]), bits(&last), "{isa:?}");
    }
}

#[test]
fn empty_arguments_and_wrong_lengths() {
    for isa in Isa::available() {
        for (m, k, n) in [(0, 3, 2), (2, 3, 0), (2, 0, 3), (1, 0, 3), (0, 0, 0)] {
            let x = [0f32; 9];
            let w = [0f32; 9];
            let a = MatRef::new(&x[..m * k], m, k).unwrap();
            let w = MatRef::new(&w[..n * k], n, k).unwrap();
            let mut out = vec![1f32; m * n];
            let target = MatMut::new(&mut out, m, n).unwrap();
            dense::linear(isa, a, w, Some(&vec![2.0; n]), target).unwrap();
            assert_eq!(out, vec![2.0; m * n]);
        }

        let a = MatRef::new(&[0f32; 2], 1, 2).unwrap();
        let mut out = [0f32; 4];
        let mut wrong = |k: usize, n: usize, bias: Option<&[f32]>, columns: usize| {
            let w = vec![0f32; n * k];
            let w = MatRef::new(&w, n, k).unwrap();
            let target = MatMut::new(&mut out[..columns], 1, columns).unwrap();
            let result = dense::linear(isa, a, w, bias, target);
            assert!(matches!(result, Err(KernelError::WrongDimension { .. })));
        };

        wrong(3, 2, None, 2);
        wrong(2, 2, None, 3);
        wrong(2, 2, Some(&[0.0]), 2);
    }
}
