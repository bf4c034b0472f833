//! Fine-tunes the built-in GPT-2 on another text: LoRA over frozen int8 layers, QLoRA's recipe in 8
//! bit. The model is written in candle; the loss falls, the base does not change by a byte.
//!
//! `cargo run --release --example lora`

#![allow(clippy::print_stdout, reason = "an example prints what it does")]

use candle_core::{D, DType, Device, Result, Tensor};
use candle_nn::{AdamW, Module, Optimizer, VarBuilder, VarMap, loss, ops};
use llm_int8::nn::checkpoint::Checkpoint;
use llm_int8::nn::gradients::without_gradient;
use llm_int8::nn::linear::{FloatLinear, Int8Config, Int8Linear, Linear};
use llm_int8::nn::lora::{LoraConfig, LoraLinear};
use llm_int8::nn::var_builder::var_builder;
use llm_int8::{Tokenizer, hub::HubConfig, hub::NoProgress};
use std::path::PathBuf;

const WIDTH: usize = 256;
const HEADS: usize = 4;
const LAYERS: usize = 4;
const VOCABULARY: usize = 4096;
const STEPS: usize = 30;

const TEXT: &str = "'Twas brillig, and the slithy toves did gyre and gimble in the wabe: all mimsy \
    were the borogoves, and the mome raths outgrabe.";

/// A layer of GPT-2 in 8 bit, frozen. GPT-2 stores its weights `[in, out]`.
fn int8(inputs: usize, outputs: usize, vb: VarBuilder<'_>) -> Result<Int8Linear> {
    let weight = vb.get((inputs, outputs), "weight")?.t()?.contiguous()?;
    let float = FloatLinear::new(weight, Some(vb.get(outputs, "bias")?))?;
    Ok(Int8Linear::quantize(&float, Int8Config::default())?)
}

/// A norm that gradients pass through: candle-nn's own `LayerNorm` stops them.
struct Norm(Tensor, Tensor);

impl Norm {
    fn new(vb: VarBuilder<'_>) -> Result<Self> {
        Ok(Self(vb.get(WIDTH, "weight")?, vb.get(WIDTH, "bias")?))
    }
}

impl Module for Norm {
    fn forward(&self, x: &Tensor) -> Result<Tensor> {
        ops::layer_norm_slow(x, &self.0, &self.1, 1e-5)
    }
}

struct Block {
    ln_1: Norm,
    qkv: LoraLinear,
    out: Int8Linear,
    ln_2: Norm,
    up: Int8Linear,
    down: Int8Linear,
}

impl Block {
    fn new(vb: VarBuilder<'_>, adapter: VarBuilder<'_>) -> Result<Self> {
        let qkv = Linear::Int8(int8(WIDTH, 3 * WIDTH, vb.pp("attn.c_attn"))?);
        Ok(Self {
            ln_1: Norm::new(vb.pp("ln_1"))?,
            qkv: LoraLinear::new(qkv, &LoraConfig::new(8, 16.0), adapter.pp("attn.c_attn"))?,
            out: int8(WIDTH, WIDTH, vb.pp("attn.c_proj"))?,
            ln_2: Norm::new(vb.pp("ln_2"))?,
            up: int8(WIDTH, 4 * WIDTH, vb.pp("mlp.c_fc"))?,
            down: int8(4 * WIDTH, WIDTH, vb.pp("mlp.c_proj"))?,
        })
    }

    /// `x` `[tokens, WIDTH]`, `mask` `[tokens, tokens]`: 0 or -∞.
    fn forward(&self, x: &Tensor, mask: &Tensor) -> Result<Tensor> {
        let tokens = x.dim(0)?;
        let qkv = x.apply(&self.ln_1)?.apply(&self.qkv)?;
        let qkv = qkv.reshape((tokens, 3, HEADS, WIDTH / HEADS))?;
        let part = |i| {
            qkv.narrow(1, i, 1)?
                .squeeze(1)?
                .transpose(0, 1)?
                .contiguous()
        };
        let (q, k, v): (Tensor, Tensor, Tensor) = (part(0)?, part(1)?, part(2)?);

        let scores = (q.matmul(&k.t()?)? / ((WIDTH / HEADS) as f64).sqrt())?;
        let weights = ops::softmax(&scores.broadcast_add(mask)?, D::Minus1)?;
        let mixed = weights.matmul(&v)?.transpose(0, 1)?;
        let x = (x + mixed.reshape((tokens, WIDTH))?.apply(&self.out)?)?;

        let mlp = x.apply(&self.ln_2)?.apply(&self.up)?.gelu()?;
        x + mlp.apply(&self.down)?
    }
}

/// The codes of the layers with adapters.
fn codes(blocks: &[Block]) -> Result<Vec<Vec<i8>>> {
    let codes = |block: &Block| match block.qkv.base() {
        Linear::Int8(base) => Ok(base.weight()?.codes().to_vec()),
        Linear::Float(_) => candle_core::bail!("the base became float"),
    };
    blocks.iter().map(codes).collect()
}

fn main() -> std::result::Result<(), Box<dyn std::error::Error>> {
    let device = Device::Cpu;
    let folder = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("models/tiny-gpt2");
    let checkpoint = Checkpoint::open_safetensors(&[folder.join("model.safetensors")], None)?;
    let vb = var_builder(checkpoint.into(), DType::F32, &device);

    // PEFT's names, so that `adapter` can be saved as its adapter_model.safetensors.
    let adapter = VarMap::new();
    let variables = VarBuilder::from_varmap(&adapter, DType::F32, &device);
    let variables = variables.pp("base_model.model.transformer.h");
    let block = |i| Block::new(vb.pp("h").pp(i), variables.pp(i));
    let blocks = (0..LAYERS).map(block).collect::<Result<Vec<_>>>()?;
    let before = codes(&blocks)?;

    let tokenizer = Tokenizer::from_pretrained("tiny-gpt2", &HubConfig::from_env(), &NoProgress)?;
    let ids = tokenizer.encode(TEXT)?;
    let tokens = ids.len() - 1;
    let (inputs, targets) = (&ids[..tokens], Tensor::new(&ids[1..], &device)?);
    let table = vb.get((VOCABULARY, WIDTH), "wte.weight")?;
    let positions = vb.get((512, WIDTH), "wpe.weight")?;
    let embedded = table.embedding(&Tensor::new(inputs, &device)?)?;
    let embedded = (embedded + positions.narrow(0, 0, tokens)?)?;
    let ln_f = Norm::new(vb.pp("ln_f"))?;
    let causal = |i| (0..tokens).map(move |j| if j > i { f32::NEG_INFINITY } else { 0. });
    let mask = Tensor::from_iter((0..tokens).flat_map(causal), &device)?;
    let mask = mask.reshape((tokens, tokens))?;

    let mut optimizer = AdamW::new_lr(adapter.all_vars(), 1e-2)?;
    for step in 0..=STEPS {
        let run = |x: Tensor, block: &Block| block.forward(&x, &mask);
        let x = blocks.iter().try_fold(embedded.clone(), run)?;
        let logits = x.apply(&ln_f)?.matmul(&table.t()?)?;
        let loss = loss::cross_entropy(&logits, &targets)?;
        let gradients = loss.backward()?;
        if step == 0 {
            let missing = without_gradient(&adapter, &gradients);
            println!("without a gradient: {missing:?}");
        }
        if step % 10 == 0 {
            println!("step {step}: loss {:.3}", loss.to_scalar::<f32>()?);
        }
        optimizer.step(&gradients)?;
    }

    println!("base unchanged: {}", codes(&blocks)? == before);
    Ok(())
}
