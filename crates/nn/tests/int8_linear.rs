//! One int8 layer in the scenarios of bitsandbytes' and transformers' own tests.

#![allow(
    clippy::unwrap_used,
    clippy::panic,
    reason = "tests stop at the first surprise"
)]

use candle_core::{DType, Device, Tensor};
use llm_int8_nn::NnError;
use llm_int8_nn::checkpoint::{Checkpoint, write_linear_state};
use llm_int8_nn::linear::{
    FloatLinear, Int8Config, Int8Linear, Int8Weight, Linear, OutlierRule, OutlierWeights,
};
use tempfile::TempDir;

/// Normally distributed numbers, the same on every machine.
fn normal(shape: &[usize], deviation: f32, seed: u64) -> Tensor {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let mut uniform = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        ((state >> 11) as f64 / (1u64 << 53) as f64).max(1e-12)
    };

    let count: usize = shape.iter().product();
    let values: Vec<f32> = (0..count)
        .map(|_| {
            ((-2.0 * uniform().ln()).sqrt() * (std::f64::consts::TAU * uniform()).cos()) as f32
                * deviation
        })
        .collect();

    Tensor::from_vec(values, shape, &Device::Cpu).unwrap()
}

fn layer(out_features: usize, in_features: usize, config: Int8Config) -> (FloatLinear, Int8Linear) {
    let weight = normal(&[out_features, in_features], 0.05, 1);
    let float = FloatLinear::new(weight, Some(normal(&[out_features], 0.1, 2))).unwrap();
    let int8 = Int8Linear::quantize(&float, config).unwrap();
    (float, int8)
}

fn values(x: &Tensor) -> Vec<f32> {
    x.to_dtype(DType::F32)
        .unwrap()
        .flatten_all()
        .unwrap()
        .to_vec1()
        .unwrap()
}

/// `‖a - b‖ / ‖b‖`.
fn relative(a: &Tensor, b: &Tensor) -> f64 {
    let a = values(a);
    let b = values(b);
    let norm = |x: Vec<f64>| x.iter().map(|x| x * x).sum::<f64>().sqrt();
    let difference = a.iter().zip(&b).map(|(x, y)| f64::from(x - y)).collect();
    norm(difference) / norm(b.iter().map(|&y| f64::from(y)).collect())
}

fn with(rule: OutlierRule, weights: OutlierWeights) -> Int8Config {
    Int8Config {
        outliers: rule,
        outlier_weights: weights,
    }
}

#[test]
fn inputs_of_any_rank_and_dtype_keep_both() {
    let (float, int8) = layer(24, 13, Int8Config::default());
    for shape in [
        vec![13],
        vec![5, 13],
        vec![2, 3, 13],
        vec![2, 1, 3, 13],
        vec![1, 1, 1, 1, 13],
    ] {
        for dtype in [DType::F32, DType::F16, DType::BF16] {
            let x = normal(&shape, 1.0, 3).to_dtype(dtype).unwrap();
            let y = int8.forward(&x).unwrap();
            let mut expected = shape.clone();
            *expected.last_mut().unwrap() = 24;
            assert_eq!((y.dims(), y.dtype()), (expected.as_slice(), dtype));
            assert!(relative(&y, &float.forward(&x).unwrap()) < 0.03);
        }
    }
}

#[test]
fn empty_inputs_give_empty_outputs() {
    let (float, int8) = layer(24, 13, Int8Config::default());
    for shape in [vec![0, 13], vec![2, 0, 13]] {
        let x = Tensor::zeros(shape.clone(), DType::F16, &Device::Cpu).unwrap();
        for linear in [Linear::Float(float.clone()), Linear::Int8(int8.clone())] {
            let y = linear.forward(&x).unwrap();
            assert_eq!((y.elem_count(), *y.dims().last().unwrap()), (0, 24));
        }
    }
}

#[test]
fn wrong_inputs_are_errors_that_name_layer_and_shape() {
    let (_, mut int8) = layer(24, 13, Int8Config::default());
    let wrong = Tensor::zeros((2, 12), DType::F32, &Device::Cpu).unwrap();
    let error = int8.forward(&wrong).unwrap_err().to_string();
    assert_eq!(
        error,
        "Linear8bitLt: the input's shape is [2, 12]; its last dimension must be 13"
    );
    int8.set_path("transformer.h.3.mlp.c_fc".into());
    let error = int8.forward(&wrong).unwrap_err().to_string();
    assert_eq!(
        error,
        "transformer.h.3.mlp.c_fc: the input's shape is [2, 12]; its last dimension must be 13"
    );

    let ids = Tensor::zeros((2, 13), DType::U32, &Device::Cpu).unwrap();
    assert!(
        int8.forward(&ids)
            .unwrap_err()
            .to_string()
            .contains("f16, bf16 or f32 is needed")
    );
}

#[test]
fn inputs_need_not_be_contiguous() {
    let (_, int8) = layer(24, 13, Int8Config::default());
    let transposed = normal(&[13, 4], 1.0, 5).t().unwrap();
    let y = int8.forward(&transposed).unwrap();
    assert_eq!(
        values(&y),
        values(&int8.forward(&transposed.contiguous().unwrap()).unwrap())
    );
}

/// bitsandbytes tests/test_autograd.py::test_matmullt: columns at exactly the threshold.
#[test]
fn boundary_columns_stay_within_the_tolerances_of_bitsandbytes() {
    for rule in [OutlierRule::batch(6.0), OutlierRule::row(6.0)] {
        let config = with(rule, OutlierWeights::Dequantized);
        let float = FloatLinear::new(normal(&[48, 32], 0.1, 7), None).unwrap();
        let int8 = Int8Linear::quantize(&float, config).unwrap();
        let mut x = normal(&[64, 32], 1.0, 8).to_vec2::<f32>().unwrap();
        x.iter_mut()
            .for_each(|row| [3, 9, 17, 30].iter().for_each(|&column| row[column] = 6.0));
        let x = Tensor::new(x, &Device::Cpu).unwrap();
        let ours = values(&int8.forward(&x).unwrap());
        let exact = values(&float.forward(&x).unwrap());
        let misses = |atol: f32, rtol: f32| {
            let off = ours
                .iter()
                .zip(&exact)
                .filter(|(a, b)| (*a - *b).abs() > atol + rtol * b.abs());
            off.count() as f64 / ours.len() as f64
        };

        assert!(
            misses(0.01, 0.1) <= 0.0175,
            "{rule:?}: {}",
            misses(0.01, 0.1)
        );
        assert!(
            misses(0.035, 0.2) <= 0.001,
            "{rule:?}: {}",
            misses(0.035, 0.2)
        );
    }
}

#[test]
fn row_scope_is_independent_of_the_batch_and_batch_scope_is_not() {
    let mut rows = normal(&[9, 64], 1.0, 11).to_vec2::<f32>().unwrap();
    rows[4][10] = 20.0;
    rows[6][11] = -7.0;
    let x = Tensor::new(rows, &Device::Cpu).unwrap();

    for weights in [OutlierWeights::Dequantized, OutlierWeights::Original] {
        let mut depends = false;
        for rule in [
            OutlierRule::row(6.0),
            OutlierRule::row_rms(3.0),
            OutlierRule::batch(6.0),
        ] {
            let (_, int8) = layer(40, 64, with(rule, weights));
            let whole = int8.forward(&x).unwrap();
            for row in 0..9 {
                let alone = values(&int8.forward(&x.narrow(0, row, 1).unwrap()).unwrap());
                let inside = values(&whole.narrow(0, row, 1).unwrap());
                let same = alone
                    .iter()
                    .zip(&inside)
                    .all(|(a, b)| a.to_bits() == b.to_bits());

                match rule.is_by_row() {
                    true => assert!(same, "row {row} {weights:?}"),
                    false => depends |= !same,
                }
            }
        }

        assert!(
            depends,
            "batch scope must make a difference, or the test proves nothing"
        );
    }
}

#[test]
fn original_outlier_weights_are_more_accurate() {
    let mut rows = normal(&[8, 64], 1.0, 13).to_vec2::<f32>().unwrap();
    rows.iter_mut().for_each(|row| row[5] = 300.0);
    let x = Tensor::new(rows, &Device::Cpu).unwrap();
    let distance = |weights| {
        let (float, int8) = layer(40, 64, with(OutlierRule::row(6.0), weights));
        relative(&int8.forward(&x).unwrap(), &float.forward(&x).unwrap())
    };
    let dequantized = distance(OutlierWeights::Dequantized);
    let original = distance(OutlierWeights::Original);

    assert!(original < 0.2 * dequantized, "{original} and {dequantized}");
}

#[test]
fn original_weights_without_a_source_are_an_error() {
    let config = with(OutlierRule::row(6.0), OutlierWeights::Original);
    let weight = Int8Weight::from_codes(&[1; 6], &[1.0; 2], [2, 3]).unwrap();
    let int8 = Int8Linear::new(weight, None, config).unwrap();
    let quiet = Tensor::new(&[[1f32, 2., 3.]], &Device::Cpu).unwrap();
    assert!(
        int8.forward(&quiet).is_ok(),
        "without outliers no original weights are needed"
    );

    let loud = Tensor::new(&[[1f32, 20., 3.]], &Device::Cpu).unwrap();
    let error = int8.forward(&loud).unwrap_err().to_string();

    assert!(
        error.contains("no full-precision weights") && error.contains("`dequantized`"),
        "{error}"
    );
}

#[test]
fn nan_and_infinity_propagate_to_the_output() {
    let (_, int8) = layer(8, 16, Int8Config::default());
    let mut rows = normal(&[3, 16], 1.0, 17).to_vec2::<f32>().unwrap();
    rows[0][2] = f32::NAN;
    rows[1][3] = f32::INFINITY;
    let forward = |rows: &[Vec<f32>]| {
        int8.forward(&Tensor::new(rows.to_vec(), &Device::Cpu).unwrap())
            .unwrap()
            .to_vec2::<f32>()
            .unwrap()
    };

    let y = forward(&rows);
    assert!(y[0].iter().all(|y| y.is_nan()));
    assert!(y[1].iter().all(|y| !y.is_finite()));

    // Column 3 is an outlier column for the whole batch, but row 2 is finite there.
    assert!(y[2].iter().all(|y| y.is_finite()));

    // Beyond f16 but finite in f32: an outlier, computed from the f32 input.
    rows[1][3] = 1e6;
    assert!(forward(&rows)[1].iter().all(|y| y.is_finite()));
}

#[test]
fn zero_rows_and_zero_weights_give_the_bias() {
    let weight = Tensor::new(&[[0f32, 0., 0.], [1., 2., 3.]], &Device::Cpu).unwrap();
    let bias = Tensor::new(&[0.5f32, -0.5], &Device::Cpu).unwrap();
    let float = FloatLinear::new(weight, Some(bias)).unwrap();
    let int8 = Int8Linear::quantize(&float, Int8Config::default()).unwrap();
    assert_eq!(int8.weight().unwrap().absmax(), [0.0, 3.0]);
    let x = Tensor::new(&[[0f32, 0., 0.], [1., 1., 1.]], &Device::Cpu).unwrap();
    let y = int8.forward(&x).unwrap().to_vec2::<f32>().unwrap();
    assert_eq!((y[0].as_slice(), y[1][0]), (&[0.5f32, -0.5][..], 0.5));
}

/// X9: sums beyond 2²⁴, where an f32 accumulator (bitsandbytes on a CPU without AVX-512) cannot
/// represent every integer.
#[test]
fn sums_are_exact_at_five_thousand_columns_of_127() {
    let k = 5120;
    let mut codes = vec![127i8; k];
    codes[0] = 126;
    let weight = Int8Weight::from_codes(&codes, &[127.0], [1, k]).unwrap();
    let config = Int8Config {
        outliers: OutlierRule::batch(0.0),
        ..Int8Config::default()
    };
    let int8 = Int8Linear::new(weight, None, config).unwrap();
    let x = Tensor::full(127f32, (1, k), &Device::Cpu).unwrap();
    let y = int8.forward(&x).unwrap().to_vec2::<f32>().unwrap()[0][0];
    let exact = (127 * 127 * (k - 1) + 127 * 126) as f32;

    assert!((y - exact).abs() / exact < 2e-7, "{y} and {exact}");
}

/// X3: a dequantised weight is within half a step of the original.
#[test]
fn dequantised_weights_are_within_half_a_step() {
    let (float, int8) = layer(17, 33, Int8Config::default());
    let weight = int8.weight().unwrap();
    let back = weight.dequantize(int8.isa()).unwrap();
    let original = values(float.weight().tensor().unwrap());

    for (i, (x, y)) in original.iter().zip(&back).enumerate() {
        let absmax = weight.absmax()[i / 33];
        // Half a step, plus the rounding of the original to f16.
        assert!(
            (x - y).abs() <= absmax / 254.0 * 1.0001 + x.abs() / 2048.0,
            "{x} {y}"
        );
    }
}

/// X2: f32 weights that f16 cannot hold.
#[test]
fn weights_beyond_f16_are_an_error_that_names_the_value() {
    let weight = Tensor::new(&[[1f32, 2.], [3., 70_000.]], &Device::Cpu).unwrap();
    let float = FloatLinear::new(weight, None).unwrap();
    let error = Int8Linear::quantize(&float, Int8Config::default())
        .unwrap_err()
        .to_string();

    assert!(
        error.contains("70000") && error.contains("65504"),
        "{error}"
    );
}

/// L2, L5: a saved layer takes less than half the bytes of f32 and gives the same outputs when
/// loaded.
#[test]
fn a_saved_layer_loads_with_the_same_outputs() {
    let folder = TempDir::new().unwrap();
    let path = folder.path().join("layer.safetensors");
    for threshold in [0.0, 6.0] {
        let config = Int8Config {
            outliers: OutlierRule::batch(threshold),
            ..Int8Config::default()
        };
        let (_, int8) = layer(96, 32, config);
        write_linear_state(&int8, "fc", &path).unwrap();
        let f32_bytes = 4 * (96 * 32 + 96);
        assert!(std::fs::metadata(&path).unwrap().len() < f32_bytes / 2);
        let checkpoint = Checkpoint::open_safetensors(std::slice::from_ref(&path), None).unwrap();
        let names: Vec<&str> = checkpoint.entries().map(|(name, _)| name).collect();
        assert_eq!(
            names,
            ["fc.SCB", "fc.bias", "fc.weight", "fc.weight_format"]
        );
        let loaded = Int8Linear::from_checkpoint(&checkpoint, "fc", config).unwrap();
        assert_eq!(
            loaded.weight().unwrap().codes(),
            int8.weight().unwrap().codes()
        );
        assert_eq!(
            loaded.weight().unwrap().absmax(),
            int8.weight().unwrap().absmax()
        );
        let x = normal(&[4, 32], 3.0, 19);
        let before = values(&int8.forward(&x).unwrap());
        let after = values(&loaded.forward(&x).unwrap());

        // Only the bias went through f16.
        assert!(before.iter().zip(&after).all(|(a, b)| (a - b).abs() < 5e-4));
    }

    assert_eq!(
        std::fs::read_dir(folder.path()).unwrap().count(),
        1,
        "no partial file is left"
    );

    let (_, int8) = layer(4, 4, Int8Config::default());
    let nowhere = folder.path().join("no/such/folder/x.safetensors");

    assert!(
        write_linear_state(&int8, "fc", &nowhere)
            .unwrap_err()
            .to_string()
            .contains("cannot write")
    );
}

/// L3: clones share storage.
#[test]
fn a_clone_shares_its_codes() {
    let (_, int8) = layer(8, 8, Int8Config::default());
    let copy = int8.clone();
    assert!(std::ptr::eq(
        int8.weight().unwrap().codes(),
        copy.weight().unwrap().codes()
    ));
}

type Stored = (&'static str, safetensors::Dtype, Vec<usize>, Vec<u8>);

/// Loads layer `fc` from these tensors. Returns "loaded", or the error's text.
fn load(tensors: &[Stored]) -> String {
    let folder = TempDir::new().unwrap();
    let path = folder.path().join("x.safetensors");
    let views = tensors.iter().map(|(name, dtype, shape, bytes)| {
        (
            *name,
            safetensors::tensor::TensorView::new(*dtype, shape.clone(), bytes).unwrap(),
        )
    });

    std::fs::write(&path, safetensors::serialize(views, None).unwrap()).unwrap();
    let checkpoint = Checkpoint::open_safetensors(&[path], None).unwrap();
    match Int8Linear::from_checkpoint(&checkpoint, "fc", Int8Config::default()) {
        Ok(_) => "loaded".to_owned(),
        Err(error @ NnError::QuantisationState { .. }) => error.to_string(),
        Err(other) => panic!("another error: {other}"),
    }
}

/// L7, X6: incomplete or inconsistent states.
#[test]
fn unusable_states_are_errors_that_name_the_fault() {
    use safetensors::Dtype::{F32, I8, U8};
    let f32s = |values: &[f32]| {
        values
            .iter()
            .flat_map(|v| v.to_le_bytes())
            .collect::<Vec<u8>>()
    };

    let weight = || -> Stored { ("fc.weight", I8, vec![2, 3], vec![1; 6]) };
    let scb = |values: &[f32]| -> Stored { ("fc.SCB", F32, vec![values.len()], f32s(values)) };
    let format = |code| -> Stored { ("fc.weight_format", U8, vec![], vec![code]) };
    let good = scb(&[1.0, 2.0]);
    assert_eq!(load(&[weight(), good.clone()]), "loaded");
    assert_eq!(load(&[weight(), good.clone(), format(0)]), "loaded");

    for (code, name) in [(1, "col32"), (2, "col_turing"), (3, "col_ampere")] {
        let text = load(&[weight(), good.clone(), format(code)]);
        assert!(
            text.contains("`fc`") && text.contains(&format!("got {name}")),
            "{text}"
        );
    }

    let cases = [
        (vec![weight()], "missing quantisation component `SCB`"),
        (vec![weight(), scb(&[1.0])], "SCB holds 1 values for 2 rows"),
        (vec![weight(), scb(&[1.0, f32::NAN])], "SCB[1] is NaN"),
        (vec![weight(), scb(&[-1.0, 1.0])], "SCB[0] is -1"),
        (
            vec![("fc.weight", I8, vec![2, 3], vec![128; 6]), good.clone()],
            "code 0 is -128",
        ),
        (
            vec![("fc.weight", F32, vec![2, 3], f32s(&[0.0; 6])), good],
            "a layer that is not quantised",
        ),
    ];

    for (tensors, expected) in cases {
        let text = load(&tensors);
        assert!(text.contains(expected), "{text}");
    }
}
