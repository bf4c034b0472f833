//! One linear layer on candle tensors: quantised, run, and compared with the float layer.
//!
//! `cargo run --release --example int8_linear`

#![allow(clippy::print_stdout, reason = "an example shows what it does")]

use candle_core::{Device, Tensor};
use llm_int8::nn::linear::{FloatLinear, Int8Config, Int8Linear};

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let weight = Tensor::randn(0f32, 0.02, (256, 512), &Device::Cpu)?; // [out, in]
    let bias = Tensor::zeros(256, candle_core::DType::F32, &Device::Cpu)?;
    let float = FloatLinear::new(weight, Some(bias))?;
    let int8 = Int8Linear::quantize(&float, Int8Config::default())?;

    let x = Tensor::randn(0f32, 1.0, (2, 10, 512), &Device::Cpu)?; // any number of leading dimensions
    let expected = float.forward(&x)?;
    let found = int8.forward(&x)?;

    let difference = (&found - &expected)?
        .sqr()?
        .mean_all()?
        .to_scalar::<f32>()?;
    let scale = expected.sqr()?.mean_all()?.to_scalar::<f32>()?;
    println!(
        "{:?}, relative error {:.4}",
        found.dims(),
        (difference / scale).sqrt()
    );
    Ok(())
}
