use super::*;
use crate::reference;

/// Compares with the reference for each rule, without and with a kept column.
fn check<T: Element>(values: &[T], rows: usize, limit: f32) {
    let a = MatRef::new(values, rows, values.len() / rows.max(1)).unwrap();
    let rules = [
        OutlierRule::batch(limit),
        OutlierRule::row(limit),
        OutlierRule::row_rms(limit / 3.0),
    ];
    let last = a.cols().saturating_sub(1) as u32;
    let kept: &[&[u32]] = if a.cols() > 0 {
        &[&[], &[last]]
    } else {
        &[&[]]
    };
    for (rule, kept) in rules
        .into_iter()
        .flat_map(|rule| kept.iter().map(move |kept| (rule, kept)))
    {
        let expected = reference::quantize_activations_keeping(a, rule, kept);
        for isa in Isa::available() {
            let mut found = QuantizedActivations::default();
            found.refill(isa, a, rule, kept);
            assert_eq!(found.codes().data(), expected.codes, "{isa:?} {rule:?}");
            for (x, y) in found.absmax().iter().zip(&expected.absmax) {
                assert!(x == y || (x.is_nan() && y.is_nan()), "{isa:?} {x} {y}");
            }
            for (row, expected) in expected.outliers.iter().enumerate() {
                let (columns, values) = found.outliers().row(row);
                let pairs: Vec<_> = columns
                    .iter()
                    .copied()
                    .zip(values.iter().copied())
                    .collect();
                assert_eq!(&pairs, expected);
            }
        }
    }
}

#[test]
fn a_value_at_the_threshold_is_an_outlier() {
    check(&[6.0f32, 5.996, -6.0, -5.996, 1.0], 1, 6.0);
    let a = MatRef::new(&[6.0f32, 5.996], 1, 2).unwrap();
    let a = quantize_activations(Isa::detect(), a, OutlierRule::row(6.0));
    assert_eq!(a.outliers().distinct_columns(), [0]);
}

#[test]
fn a_row_of_outliers_only_has_absmax_zero() {
    check(&[8.0f32, -9.0, 7.0], 1, 6.0);
    let a = MatRef::new(&[8.0f32, -9.0], 1, 2).unwrap();
    let a = quantize_activations(Isa::detect(), a, OutlierRule::batch(6.0));
    assert_eq!(
        (a.absmax(), a.codes().data()),
        (&[0.0f32][..], &[0i8, 0][..])
    );
}

#[test]
fn nan_shows_in_absmax_and_infinity_is_an_outlier() {
    let a = MatRef::new(&[1.0f32, f32::NAN, 8.0], 1, 3).unwrap();
    let a = quantize_activations(Isa::detect(), a, OutlierRule::batch(6.0));
    assert!(a.absmax()[0].is_nan());

    // 70,000 is infinite in f16: an outlier, with its original value.
    let b = MatRef::new(&[1.0f32, 70_000.0], 1, 2).unwrap();
    let apart = quantize_activations(Isa::detect(), b, OutlierRule::batch(6.0));
    assert_eq!(
        (apart.absmax(), apart.outliers().row(0).1),
        (&[1.0f32][..], &[70_000.0f32][..])
    );
    let not_apart = quantize_activations(Isa::detect(), b, OutlierRule::batch(0.0));
    assert!(not_apart.absmax()[0].is_infinite());
}

#[test]
fn the_scale_of_a_row_does_not_decide_who_is_an_outlier() {
    let row: Vec<f32> = (0..300)
        .map(|i| ((i * 37 % 101) as f32 - 50.0) / 16.0)
        .collect();
    let columns = |scale: f32| {
        let row: Vec<f32> = row.iter().map(|x| x * scale).collect();
        let a = MatRef::new(&row, 1, row.len()).unwrap();
        let a = quantize_activations(Isa::detect(), a, OutlierRule::row_rms(1.6));
        assert!(a.absmax()[0] > 0.0);
        (a.outliers().distinct_columns(), a.codes().data().to_vec())
    };

    let (outliers, codes) = columns(1.0);
    assert!(!outliers.is_empty() && outliers.len() < 40);
    for scale in [0.0625, 0.5, 4.0, 1024.0] {
        assert_eq!(columns(scale), (outliers.clone(), codes.clone()));
    }
}

#[test]
fn rows_that_are_not_finite_or_zero_have_an_rms_too() {
    for (row, outliers) in [
        (vec![0f32; 5], vec![]),
        (vec![1.0, f32::NAN, 8.0], vec![]),
        (vec![1.0, f32::INFINITY, 8.0], vec![1]),
        (vec![1.0, 70_000.0, 8.0], vec![1]),
    ] {
        check(&row, 1, 3.0);
        let a = MatRef::new(&row, 1, row.len()).unwrap();
        let a = quantize_activations(Isa::detect(), a, OutlierRule::row_rms(1.5));
        assert_eq!(a.outliers().distinct_columns(), outliers, "{row:?}");
    }
}

#[test]
fn empty_matrices_are_fine() {
    for (rows, cols) in [(0, 0), (0, 3), (2, 0)] {
        let a = MatRef::new(&[0f32; 0][..], rows, cols).unwrap();
        let found = quantize_activations(Isa::detect(), a, OutlierRule::batch(6.0));
        assert_eq!((found.rows(), found.cols()), (rows, cols));
    }
}

proptest::proptest! {
    #[test]
    fn every_path_matches_the_reference(
        values in proptest::collection::vec(-9.0f32..9.0, 0..400),
        rows in 1usize..20,
        threshold in proptest::sample::select(vec![0.0f32, 3.0, 6.0]),
    ) {
        let kept = values.len() / rows * rows;
        check(&values[..kept], rows, threshold);
        let halves: Vec<f16> = values[..kept].iter().map(|&x| f16::from_f32(x)).collect();
        check(&halves, rows, threshold);
        let bfloats: Vec<half::bf16> = values[..kept].iter().map(|&x| half::bf16::from_f32(x)).collect();
        check(&bfloats, rows, threshold);
    }
}
