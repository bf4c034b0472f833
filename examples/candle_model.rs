//! A candle model of one's own whose linear layers are int8: written as with candle-nn, but for the
//! `use` line.
//!
//! `cargo run --release --example candle_model`

#![allow(clippy::print_stdout, reason = "an example prints what it does")]

use candle_core::{D, DType, Device, Result, Tensor};
use candle_nn::{LayerNorm, VarBuilder, VarMap, layer_norm, ops};
use llm_int8::nn::drop_in::{Linear, linear, with_int8};
use llm_int8::nn::linear::Int8Config;
use llm_int8::nn::module::SkipList;

const WIDTH: usize = 64;
const HEADS: usize = 4;

/// A transformer block with attention over all positions.
struct Block {
    norm: LayerNorm,
    qkv: Linear,
    out: Linear,
    up: Linear,
    down: Linear,
}

impl Block {
    fn new(vb: VarBuilder<'_>) -> Result<Self> {
        Ok(Self {
            norm: layer_norm(WIDTH, 1e-5, vb.pp("norm"))?,
            qkv: linear(WIDTH, 3 * WIDTH, vb.pp("qkv"))?,
            out: linear(WIDTH, WIDTH, vb.pp("out"))?,
            up: linear(WIDTH, 4 * WIDTH, vb.pp("up"))?,
            down: linear(4 * WIDTH, WIDTH, vb.pp("down"))?,
        })
    }

    /// `x` `[batch, positions, WIDTH]`.
    fn forward(&self, x: &Tensor) -> Result<Tensor> {
        let (batch, positions, _) = x.dims3()?;
        let heads = |x: &Tensor| {
            x.reshape((batch, positions, HEADS, WIDTH / HEADS))?
                .transpose(1, 2)?
                .contiguous()
        };

        let qkv = x.apply(&self.norm)?.apply(&self.qkv)?;
        let [q, k, v] = [0, 1, 2].map(|i| qkv.narrow(D::Minus1, i * WIDTH, WIDTH));
        let (q, k, v) = (heads(&q?)?, heads(&k?)?, heads(&v?)?);

        let scale = ((WIDTH / HEADS) as f64).sqrt();
        let scores = (q.matmul(&k.t()?)? / scale)?;
        let mixed = ops::softmax(&scores, D::Minus1)?.matmul(&v)?;
        let mixed = mixed.transpose(1, 2)?.reshape((batch, positions, WIDTH))?;
        let x = (x + mixed.apply(&self.out)?)?;

        let mlp = x.apply(&self.up)?.gelu()?.apply(&self.down)?;
        x + mlp
    }
}

fn main() -> Result<()> {
    // Random weights: those of a trained model come from a VarBuilder over its files.
    let variables = VarMap::new();
    let vb = || VarBuilder::from_varmap(&variables, DType::F32, &Device::Cpu);
    let build = || Block::new(vb());
    let all_float = SkipList::new(["qkv", "out", "up", "down"]);
    let float = with_int8(Int8Config::default(), &all_float, build)?;
    let int8 = build()?;

    let x = Tensor::randn(0f32, 1., (2, 10, WIDTH), &Device::Cpu)?;
    let (expected, found) = (float.forward(&x)?, int8.forward(&x)?);
    let difference = (&found - &expected)?.sqr()?.sum_all()?.to_scalar::<f32>()?;
    let size = expected.sqr()?.sum_all()?.to_scalar::<f32>()?;

    println!(
        "int8: {}",
        [&int8.qkv, &int8.out, &int8.up, &int8.down]
            .iter()
            .all(|layer| layer.is_int8())
    );
    println!("relative error {:.4}", (difference / size).sqrt());
    Ok(())
}
