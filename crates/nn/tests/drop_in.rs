//! Candle models with int8 layers: constructors under candle's names, a `VarBuilder` over
//! checkpoints, gradients.

#![allow(
    clippy::unwrap_used,
    clippy::panic,
    reason = "tests stop at the first surprise"
)]

use candle_core::{DType, Device, Tensor, Var};
use candle_nn::{VarBuilder, VarMap};
use llm_int8_nn::checkpoint::{Checkpoint, write_linear_state};
use llm_int8_nn::drop_in::{
    Linear, linear, linear_b, linear_no_bias, linear8bit, with_int8, with_int8_report,
};
use llm_int8_nn::linear::{FloatLinear, Int8Config, Int8Linear, OutlierRule};
use llm_int8_nn::lora::{LoraConfig, LoraLinear};
use llm_int8_nn::module::SkipList;
use llm_int8_nn::var_builder::var_builder;
use std::collections::HashMap;
use std::path::PathBuf;
use std::sync::Arc;
use tempfile::TempDir;

const CPU: Device = Device::Cpu;

fn random(shape: (usize, usize)) -> Tensor {
    Tensor::randn(0f32, 0.5, shape, &CPU).unwrap()
}

fn values(tensor: &Tensor) -> Vec<f32> {
    let tensor = tensor.to_dtype(DType::F32).unwrap();
    tensor.flatten_all().unwrap().to_vec1().unwrap()
}

fn relative_error(found: &Tensor, expected: &Tensor) -> f32 {
    let (found, expected) = (values(found), values(expected));
    assert_eq!(found.len(), expected.len());
    let difference: f32 = found
        .iter()
        .zip(&expected)
        .map(|(x, y)| (x - y).powi(2))
        .sum();
    (difference / expected.iter().map(|y| y * y).sum::<f32>()).sqrt()
}

/// A file of these tensors, and a `VarBuilder` of ours over it.
fn saved(tensors: &[(&str, &Tensor)], dtype: DType) -> (TempDir, VarBuilder<'static>) {
    let folder = TempDir::new().unwrap();
    let file = folder.path().join("model.safetensors");
    let tensors: HashMap<&str, Tensor> = tensors
        .iter()
        .map(|(name, tensor)| (*name, (*tensor).clone()))
        .collect();
    candle_core::safetensors::save(&tensors, &file).unwrap();
    (folder, over(vec![file], dtype))
}

fn over(files: Vec<PathBuf>, dtype: DType) -> VarBuilder<'static> {
    let checkpoint = Checkpoint::open_safetensors(&files, None).unwrap();
    var_builder(Arc::new(checkpoint), dtype, &CPU)
}

#[test]
fn constructors_give_the_layer_of_the_float_weight() {
    let weight = random((24, 13));
    let bias = random((1, 24)).flatten_all().unwrap();
    let (_folder, vb) = saved(
        &[("a.fc.weight", &weight), ("a.fc.bias", &bias)],
        DType::F32,
    );

    let found = linear8bit(13, 24, vb.pp("a.fc")).unwrap();
    let float = FloatLinear::new(weight, Some(bias)).unwrap();
    let expected = Int8Linear::quantize(&float, Int8Config::default()).unwrap();
    assert_eq!(
        found.weight().unwrap().codes(),
        expected.weight().unwrap().codes()
    );
    assert_eq!(found.path().to_string(), "a.fc");

    for shape in [vec![13], vec![5, 13], vec![2, 3, 13], vec![2, 1, 3, 13]] {
        for dtype in [DType::F32, DType::F16, DType::BF16] {
            let x = Tensor::randn(0f32, 1., shape.clone(), &CPU)
                .unwrap()
                .to_dtype(dtype)
                .unwrap();
            let y = x.apply(&found).unwrap();
            assert_eq!(y.dtype(), dtype);
            assert_eq!(y.dims(), [&shape[..shape.len() - 1], &[24]].concat());
            assert_eq!(values(&y), values(&expected.forward(&x).unwrap()));
        }
    }
}

#[test]
fn skipped_names_stay_float_and_unknown_names_are_refused() {
    let variables = VarMap::new();
    let build = || {
        let vb = VarBuilder::from_varmap(&variables, DType::F32, &CPU);
        Ok([
            linear(4, 4, vb.pp("h.1.fc"))?,
            linear_no_bias(4, 4, vb.pp("h.11.fc"))?,
            linear_b(4, 4, false, vb.pp("lm_head"))?,
        ])
    };
    let is_int8 = |layers: &[Linear; 3]| layers.each_ref().map(Linear::is_int8);

    assert_eq!(is_int8(&build().unwrap()), [true, true, false]);
    let skip = SkipList::new(["h.1"]);
    let layers = with_int8(Int8Config::default(), &skip, build).unwrap();
    assert_eq!(is_int8(&layers), [false, true, false]);

    let error = with_int8(Int8Config::default(), &SkipList::new(["h.2"]), build).unwrap_err();
    assert!(
        error.to_string().contains("`h.2` matches no module"),
        "{error}"
    );
    // The scope ended with its error.
    assert_eq!(is_int8(&build().unwrap()), [true, true, false]);
}

#[test]
fn scopes_nest_and_configure() {
    let variables = VarMap::new();
    let vb = VarBuilder::from_varmap(&variables, DType::F32, &CPU);
    let row = Int8Config {
        outliers: OutlierRule::row(6.0),
        ..Int8Config::default()
    };
    let none = SkipList::default();
    let (inner, outer) = with_int8(row, &none, || {
        let inner = with_int8(Int8Config::default(), &none, || {
            linear8bit(4, 4, vb.pp("a"))
        })?;
        Ok((inner, linear8bit(4, 4, vb.pp("b"))?))
    })
    .unwrap();
    assert_eq!(inner.config(), Int8Config::default());
    assert_eq!(outer.config(), row);
}

#[test]
fn a_report_has_the_layers_that_were_built() {
    let variables = VarMap::new();
    let vb = VarBuilder::from_varmap(&variables, DType::F32, &CPU);
    let none = SkipList::default();
    let build = || {
        linear(4, 6, vb.pp("a"))?;
        with_int8(Int8Config::default(), &none, || {
            linear(4, 6, vb.pp("inner"))
        })?;
        assert!(
            linear_no_bias(5, 6, vb.pp("a")).is_err(),
            "`a` has 4 inputs"
        );
        linear_no_bias(4, 6, vb.pp("b"))?;
        linear8bit(4, 6, vb.pp("b.c"))
    };
    let skip = SkipList::new(["b"]);
    let (_, layers) = with_int8_report(Int8Config::default(), &skip, build).unwrap();

    let found: Vec<_> = layers
        .iter()
        .map(|layer| (layer.path.as_str(), layer.is_int8, layer.bytes))
        .collect();
    // Codes, absmax and bias; floats; and what is int8 whatever the skip list says.
    let int8 = 6 * (4 + 4) + 6 * 4;
    assert_eq!(
        found,
        [
            ("a", true, int8),
            ("b", false, 6 * 4 * 4),
            ("b.c", true, int8)
        ]
    );
    assert!(layers.iter().all(|layer| layer.shape == [6, 4]));
}

#[test]
fn eight_bit_files_give_codes_to_int8_layers_and_floats_to_others() {
    let float = FloatLinear::new(random((6, 9)), None).unwrap();
    let int8 = Int8Linear::quantize(&float, Int8Config::default()).unwrap();
    let folder = TempDir::new().unwrap();
    let file = folder.path().join("model.safetensors");
    write_linear_state(&int8, "fc", &file).unwrap();
    let vb = over(vec![file], DType::F16);

    let layer = with_int8(Int8Config::default(), &SkipList::default(), || {
        linear_no_bias(9, 6, vb.pp("fc"))
    });
    let Linear::Int8(layer) = layer.unwrap() else {
        panic!("a float layer");
    };
    let expected = int8.weight().unwrap();
    assert_eq!(layer.weight().unwrap().codes(), expected.codes());
    assert_eq!(layer.weight().unwrap().absmax(), expected.absmax());

    let weight = vb.pp("fc").get((6, 9), "weight").unwrap();
    assert_eq!(weight.dtype(), DType::F16);
    let dequantized = Tensor::from_vec(expected.dequantize(layer.isa()).unwrap(), (6, 9), &CPU);
    assert!(relative_error(&weight, &dequantized.unwrap()) < 1e-3);

    let error = vb.pp("fc").get((9, 6), "weight").unwrap_err().to_string();
    assert!(error.contains("shape mismatch for fc.weight"), "{error}");
    let error = linear_no_bias(9, 7, vb.pp("fc")).unwrap_err().to_string();
    assert!(error.contains("`fc`"), "{error}");
    let error = linear_no_bias(9, 6, vb.pp("absent"))
        .unwrap_err()
        .to_string();
    assert!(error.contains("absent.weight"), "{error}");
}

#[test]
fn tensors_that_are_not_floats_are_read_too() {
    let ids = Tensor::arange(0i64, 5, &CPU).unwrap();
    let (_folder, vb) = saved(&[("position_ids", &ids)], DType::F32);
    let found = vb.get_unchecked_dtype("position_ids", DType::I64).unwrap();
    assert_eq!(found.to_vec1::<i64>().unwrap(), [0, 1, 2, 3, 4]);
    assert_eq!(
        values(&vb.get(5, "position_ids").unwrap()),
        [0., 1., 2., 3., 4.]
    );
}

#[test]
fn a_weight_that_cannot_be_quantised_is_named() {
    let weight = Tensor::full(1e6f32, (2, 2), &CPU).unwrap();
    let (_folder, vb) = saved(&[("h.3.fc.weight", &weight)], DType::F32);
    let error = linear_no_bias(2, 2, vb.pp("h.3.fc"))
        .unwrap_err()
        .to_string();
    assert!(
        error.contains("h.3.fc.weight") && error.contains("65504"),
        "{error}"
    );
}

#[test]
fn the_gradient_is_that_of_the_dequantised_layer() {
    // More rows than a panel, and a number that does not divide.
    let (inputs, outputs) = (19, 300);
    let float = FloatLinear::new(random((outputs, inputs)), None).unwrap();
    let int8 = Int8Linear::quantize(&float, Int8Config::default()).unwrap();
    let weight = int8.weight().unwrap().dequantize(int8.isa()).unwrap();
    let weight = Tensor::from_vec(weight, (outputs, inputs), &CPU).unwrap();

    let x = Var::from_tensor(&Tensor::randn(0f32, 1., (2, 5, inputs), &CPU).unwrap()).unwrap();
    let upstream = Tensor::randn(0f32, 1., (2, 5, outputs), &CPU).unwrap();
    let gradient = |y: Tensor| {
        let loss = (y * &upstream).unwrap().sum_all().unwrap();
        loss.backward().unwrap().get(&x).unwrap().clone()
    };
    let expected = gradient(x.broadcast_matmul(&weight.t().unwrap()).unwrap());
    let found = gradient(int8.forward(&x).unwrap());
    assert_eq!(found.dims(), [2, 5, inputs]);
    assert!(relative_error(&found, &expected) < 1e-5);

    // Through the layer to what is before it, in half precision too.
    let scale = Var::ones(inputs, DType::F16, &CPU).unwrap();
    let half = x.to_dtype(DType::F16).unwrap();
    let y = int8.forward(&half.broadcast_mul(&scale).unwrap()).unwrap();
    let gradients = y.sum_all().unwrap().backward().unwrap();
    assert!(gradients.get(&scale).is_some() && gradients.get(&x).is_some());
}

#[test]
fn a_float_layer_passes_gradients_to_input_weight_and_bias() {
    let weight = Var::from_tensor(&random((3, 4))).unwrap();
    let bias = Var::zeros(3, DType::F32, &CPU).unwrap();
    let layer = FloatLinear::new(weight.as_tensor().clone(), Some(bias.as_tensor().clone()));
    let layer = layer.unwrap();
    let x = Var::from_tensor(&random((2, 4))).unwrap();
    let y = layer.forward(&x).unwrap();
    let gradients = y.sqr().unwrap().sum_all().unwrap().backward().unwrap();
    for variable in [&weight, &bias, &x] {
        assert!(gradients.get(variable).is_some());
    }

    // The same values as without gradients.
    let plain = FloatLinear::new(weight.as_tensor().detach(), Some(bias.as_tensor().detach()));
    let plain = plain.unwrap().forward(&x.as_tensor().detach()).unwrap();
    assert!(relative_error(&y, &plain) < 1e-6);
}

#[test]
fn an_adapter_learns_and_its_base_does_not_change() {
    let float = FloatLinear::new(random((8, 16)), None).unwrap();
    let base = Int8Linear::quantize(&float, Int8Config::default()).unwrap();
    let codes = base.weight().unwrap().codes().to_vec();
    let variables = VarMap::new();
    let vb = VarBuilder::from_varmap(&variables, DType::F32, &CPU);
    let config = LoraConfig::new(4, 8.0);
    let layer = LoraLinear::new(
        llm_int8_nn::linear::Linear::Int8(base.clone()),
        &config,
        vb.pp("fc"),
    )
    .unwrap();

    let x = random((32, 16));
    assert_eq!(
        values(&layer.forward(&x).unwrap()),
        values(&base.forward(&x).unwrap())
    );

    let target = x.matmul(&random((16, 8))).unwrap();
    let loss = || {
        (layer.forward(&x).unwrap() - &target)
            .unwrap()
            .sqr()
            .unwrap()
            .mean_all()
            .unwrap()
    };
    let before = loss().to_scalar::<f32>().unwrap();
    let mut optimizer = candle_nn::AdamW::new_lr(variables.all_vars(), 0.05).unwrap();
    for _ in 0..200 {
        candle_nn::Optimizer::backward_step(&mut optimizer, &loss()).unwrap();
    }
    let after = loss().to_scalar::<f32>().unwrap();
    assert!(after < 0.6 * before, "{before} and then {after}");
    assert_eq!(base.weight().unwrap().codes(), codes);

    // Merged, it is a float layer with B · A · scale added.
    let dequantized = base.weight().unwrap().dequantize(base.isa()).unwrap();
    let merged =
        (Tensor::from_vec(dequantized, (8, 16), &CPU).unwrap() + layer.delta().unwrap()).unwrap();
    let y = x.matmul(&merged.t().unwrap()).unwrap();
    assert!(relative_error(&layer.forward(&x).unwrap(), &y) < 0.02);
}
