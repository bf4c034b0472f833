//! Any Hugging Face causal language model in 8 bit: load it, print it, list its parameters and
//! generate text.
//!
//! ```
//! use llm_int8::{AutoModelForCausalLM, LoadConfig};
//!
//! let model = AutoModelForCausalLM::from_pretrained("tiny-gpt2", &LoadConfig::from_env())?; // 8 bit
//! println!("{model}"); // as PyTorch prints it
//! for parameter in model.named_parameters() {
//!     println!("{parameter}"); // transformer.h.0.attn.c_attn.weight torch.int8 (768, 256)
//! }
//! println!("{}", model.generation("In the beginning").run()?.text);
//! for piece in model.generation("ROMEO:").max_new_tokens(32).temperature(0.8) {
//!     print!("{}", piece?.text); // token by token
//! }
//! # Ok::<(), llm_int8::LlmError>(())
//! ```
//!
//! `"tiny-gpt2"` is built in and needs no network. A model of the Hugging Face hub (`"gpt2-large"`,
//! `"org/name@revision"`), a local folder or a `.gguf` file works the same way.

pub mod accuracy;
pub mod bench;
pub mod builtin;
pub mod chat;
mod companion;
pub mod compare;
pub mod device;
pub mod error;
pub mod generate;
mod guard;
pub mod load;
pub mod memory;
pub mod model;
pub mod outliers;
pub mod perplexity;
pub mod save;
pub mod tokenizer;
pub mod verify;
pub mod warning;

pub use accuracy::Accuracy;
pub use chat::{Chat, ChatInputs, ChatMessage, ChatTemplate, Reply};
pub use compare::{AccuracyComparison, ComparedRule, Comparison, RuleResult};
pub use device::{DeviceConfig, DeviceName, MemoryLimit};
pub use error::{LlmError, Result};
pub use generate::{
    Batch, Engine, EngineConfig, FinishReason, Generated, Generation, GenerationConfig, Logprob,
    Piece, Pieces, Prompt, Request, SequenceHandle, Service, ServiceState, SubmitError, Timing,
    TokenConstraint, TokenMask, Update,
};
pub use load::LoadConfig;
pub use memory::MemoryUse;
pub use model::{AutoModelForCausalLM, LoadReport, ModelPlan};
pub use outliers::{OutlierOptions, OutlierReport};
pub use perplexity::{Perplexity, PerplexityOptions};
pub use save::SaveOptions;
pub use tokenizer::Tokenizer;
pub use warning::Warning;

pub use llm_int8_decoder as decoder;
pub use llm_int8_hub as hub;
pub use llm_int8_nn as nn;
