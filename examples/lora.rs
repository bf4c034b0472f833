//! Trains a LoRA adapter over a frozen int8 layer: the loss falls, the base does not change by a
//! byte.
//!
//! `cargo run --release --example lora`

#![allow(clippy::print_stdout, reason = "an example prints what it does")]

use candle_core::{DType, Device, Tensor};
use candle_nn::{AdamW, Optimizer, VarBuilder, VarMap};
use llm_int8::nn::gradients::without_gradient;
use llm_int8::nn::linear::{FloatLinear, Int8Config, Int8Linear, Linear};
use llm_int8::nn::lora::{LoraConfig, LoraLinear};

const INPUTS: usize = 64;
const OUTPUTS: usize = 32;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let device = Device::Cpu;
    let pretrained = Tensor::randn(0f32, 0.2, (OUTPUTS, INPUTS), &device)?;
    let base = Int8Linear::quantize(&FloatLinear::new(pretrained, None)?, Int8Config::default())?;
    let codes = base.weight()?.codes().to_vec();

    let variables = VarMap::new();
    let vb = VarBuilder::from_varmap(&variables, DType::F32, &device);
    let layer = LoraLinear::new(Linear::Int8(base), &LoraConfig::new(8, 16.0), vb.pp("fc"))?;

    // The task: the same layer with an update of rank 2.
    let x = Tensor::randn(0f32, 1., (256, INPUTS), &device)?;
    let shift = Tensor::randn(0f32, 0.3, (INPUTS, 2), &device)?.matmul(&Tensor::randn(
        0f32,
        0.3,
        (2, OUTPUTS),
        &device,
    )?)?;
    let target = (layer.base().forward(&x)? + x.matmul(&shift)?)?;

    let mut optimizer = AdamW::new_lr(variables.all_vars(), 0.02)?;
    for step in 0..=100 {
        let loss = (layer.forward(&x)? - &target)?.sqr()?.mean_all()?;
        let gradients = loss.backward()?;
        if step == 0 {
            println!(
                "without a gradient: {:?}",
                without_gradient(&variables, &gradients)
            );
        }
        if step % 50 == 0 {
            println!("step {step}: loss {:.4}", loss.to_scalar::<f32>()?);
        }
        optimizer.step(&gradients)?;
    }

    let Linear::Int8(base) = layer.base() else {
        return Err("the base became float".into());
    };
    println!("base unchanged: {}", base.weight()?.codes() == codes);
    Ok(())
}
