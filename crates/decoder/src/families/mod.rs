//! The families of models. Each is a description without tensor code;
//! `docs/adding-a-family.md` explains how to add one.

mod bloom;
mod falcon;
mod gemma2;
mod gemma3;
mod glm;
mod gpt2;
mod gpt2_style;
mod gpt_bigcode;
mod gpt_neo;
mod gpt_neox;
mod gptj;
mod granite;
mod llama;
mod llama_style;
mod mistral;
mod mpt;
mod olmo2;
mod opt;
mod phi;
mod phi3;
mod qwen2;
mod qwen3;
mod smollm3;
mod stablelm;
mod starcoder2;

use crate::spec::Family;

/// Every family, sorted by `model_type`.
pub const FAMILIES: &[Family] = &[
    bloom::FAMILY,
    falcon::FAMILY,
    gemma2::FAMILY,
    gemma3::FAMILY,
    glm::FAMILY,
    gpt2::FAMILY,
    gpt_bigcode::FAMILY,
    gpt_neo::FAMILY,
    gpt_neox::FAMILY,
    gptj::FAMILY,
    granite::FAMILY,
    llama::FAMILY,
    mistral::FAMILY,
    mpt::FAMILY,
    olmo2::FAMILY,
    opt::FAMILY,
    phi::FAMILY,
    phi3::FAMILY,
    qwen2::FAMILY,
    qwen3::FAMILY,
    smollm3::FAMILY,
    stablelm::FAMILY,
    starcoder2::FAMILY,
];
