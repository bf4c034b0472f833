//! The tolerances of bitsandbytes' own tests, at sizes that run in a second.

use super::{Layer, Noise, bits, halves, relative_error};
use half::f16;
use llm_int8_kernels::{
    Isa, MatMut, MatRef, OutlierRule, OutlierWeights, dense, matmul_i32, quantize_activations,
};

/// The same linear layer in floating point, `[M, N]`.
fn float(x: &[f16], w: &[f16], k: usize) -> Vec<f32> {
    let m = x.len() / k;
    let n = w.len() / k;
    let x: Vec<f32> = x.iter().map(|x| x.to_f32()).collect();
    let mut out = vec![0.0; m * n];
    let target = MatMut::new(&mut out, m, n).unwrap();
    let x = MatRef::new(&x, m, k).unwrap();
    let w = MatRef::new(w, n, k).unwrap();
    dense::linear(Isa::scalar(), x, w, None, target).unwrap();
    out
}

/// The fraction of values whose error exceeds `absolute + relative · |expected|`.
fn misses(found: &[f32], expected: &[f32], absolute: f32, relative: f32) -> f32 {
    let far = |(x, y): &(&f32, &f32)| (*x - *y).abs() > absolute + relative * y.abs();
    found.iter().zip(expected).filter(far).count() as f32 / found.len() as f32
}

/// test_functional.py: int8_linear_matmul.
#[test]
fn the_int8_matmul_equals_the_float_matmul() {
    let mut noise = Noise(31);
    for k in [499, 512] {
        let a = noise.codes(128 * k);
        let w = noise.codes(64 * k);
        let floats = |codes: &[i8]| codes.iter().map(|&x| f32::from(x)).collect::<Vec<_>>();
        let x = floats(&a);
        let y = floats(&w);
        let mut expected = vec![0f32; 128 * 64];
        let target = MatMut::new(&mut expected, 128, 64).unwrap();
        let x = MatRef::new(&x, 128, k).unwrap();
        let y = MatRef::new(&y, 64, k).unwrap();
        dense::linear(Isa::scalar(), x, y, None, target).unwrap();

        for isa in Isa::available() {
            let mut out = vec![0i32; 128 * 64];
            let target = MatMut::new(&mut out, 128, 64).unwrap();
            let a = MatRef::new(&a, 128, k).unwrap();
            let w = MatRef::new(&w, 64, k).unwrap();
            matmul_i32(isa, a, w, target).unwrap();
            assert!(
                out.iter().zip(&expected).all(|(&x, &y)| x as f32 == y),
                "{isa:?}"
            );
        }
    }
}

/// test_functional.py: dequant_mm, with and without a bias.
#[test]
fn the_layer_is_near_the_float_layer() {
    let mut noise = Noise(32);
    for (m, n) in [(64, 64), (64, 256)] {
        let x = halves(&noise.normals(m * 128, 1.0));
        let w = halves(&noise.normals(n * 128, 1.0));
        let layer = Layer::new(&w, 128);
        let bias = noise.normals(n, 1.0);
        let expected = float(&x, &w, 128);
        let deviation = 128f32.sqrt();

        for isa in Isa::available() {
            for bias in [None, Some(&bias[..])] {
                let mut found = layer.forward(
                    isa,
                    &x,
                    OutlierRule::batch(0.0),
                    OutlierWeights::Dequantized,
                    bias,
                );

                for (i, y) in found.iter_mut().enumerate() {
                    *y = (*y - bias.map_or(0.0, |bias| bias[i % n])) / deviation;
                }
                let expected: Vec<f32> = expected.iter().map(|y| y / deviation).collect();
                assert!(misses(&found, &expected, 0.015, 0.1) <= 0.01, "{isa:?}");
            }
        }
    }
}

/// test_functional.py: coo_double_quant (threshold 2) and coo_int8_vectorwise_quant (threshold 3).
#[test]
fn activations_survive_a_round_trip() {
    let mut noise = Noise(33);
    for threshold in [2.0, 3.0] {
        let m = 64;
        let k = 512;
        let x = halves(&noise.normals(m * k, 1.0));
        let a = quantize_activations(
            Isa::detect(),
            MatRef::new(&x, m, k).unwrap(),
            OutlierRule::batch(threshold),
        );

        let outliers = a.outliers().distinct_columns();

        for (i, (&code, x)) in a.codes().data().iter().zip(&x).enumerate() {
            let back = f32::from(code) * a.absmax()[i / k] / 127.0;
            let kept = if outliers.contains(&((i % k) as u32)) {
                0.0
            } else {
                x.to_f32()
            };
            assert!(
                (back - kept).abs() <= 1.5e-2 + 0.05 * kept.abs(),
                "{back} {kept}"
            );
        }
    }
}

/// test_linear8bitlt.py: linear_no_igemmlt.
#[test]
fn a_layer_with_outliers_is_near_its_float_layer() {
    let mut noise = Noise(34);
    let k = 1024;
    let n = 512;

    // torch.nn.Linear initialises weights uniformly in ±1/√K.
    let bound = 1.0 / (k as f32).sqrt();
    let w = halves(
        &(0..n * k)
            .map(|_| noise.uniform() * bound)
            .collect::<Vec<_>>(),
    );
    let x = halves(&noise.normals(3 * k, 1.0));
    let layer = Layer::new(&w, k);
    let expected = float(&x, &w, k);

    for isa in Isa::available() {
        let found = layer.forward(
            isa,
            &x,
            OutlierRule::batch(6.0),
            OutlierWeights::Dequantized,
            None,
        );

        assert!(misses(&found, &expected, 0.02, 1e-5) <= 0.003, "{isa:?}");
        assert_eq!(misses(&found, &expected, 0.03, 0.0), 0.0, "{isa:?}");
    }
}

/// test_autograd.py: matmullt, an eighth of the columns exactly at the threshold.
#[test]
fn columns_at_the_threshold_are_computed_in_floating_point() {
    let mut noise = Noise(35);
    let m = 64;
    let k = 32;
    let n = 48;
    let mut x = noise.normals(m * k, 1.0);
    x.chunks_mut(k)
        .for_each(|row| row.iter_mut().step_by(8).for_each(|x| *x = 6.0));
    let x = halves(&x);
    let w = halves(&noise.normals(n * k, 0.1));
    let layer = Layer::new(&w, k);
    let expected = float(&x, &w, k);
    let forward = |rule, weights| layer.forward(Isa::detect(), &x, rule, weights, None);
    let found = forward(OutlierRule::batch(6.0), OutlierWeights::Dequantized);
    assert!(misses(&found, &expected, 0.01, 0.1) <= 0.0175);
    assert!(misses(&found, &expected, 0.035, 0.2) <= 0.001);

    // Every row has the same outliers, so pooling changes nothing.
    assert_eq!(
        bits(&found),
        bits(&forward(OutlierRule::row(6.0), OutlierWeights::Dequantized))
    );

    // Original weights (the paper) are closer to the float layer than dequantised ones.
    let columns: Vec<u32> = (0..k as u32).step_by(8).collect();
    let values: Vec<f32> = columns
        .iter()
        .flat_map(|&c| (0..n).map(move |n| n * k + c as usize))
        .map(|i| w[i].to_f32())
        .collect();
    let values = MatRef::new(&values, columns.len(), n).unwrap();
    let original = forward(
        OutlierRule::batch(6.0),
        OutlierWeights::Original {
            columns: &columns,
            values,
        },
    );

    assert!(relative_error(&original, &expected) < relative_error(&found, &expected));
}
