//! The model built into llm-int8: a GPT-2 with 4 layers of width 256 and a vocabulary of 4,096,
//! trained on public-domain English. The folder of this crate is a checkpoint as transformers
//! writes it; see README.md for how it was made.
//!
//! ```
//! assert!(llm_int8_tiny_gpt2::CONFIG.starts_with(b"{"));
//! assert_eq!(llm_int8_tiny_gpt2::WEIGHTS.len(), 8_682_840);
//! ```

#![no_std]

/// `config.json`.
pub const CONFIG: &[u8] = include_bytes!("config.json");
/// `generation_config.json`.
pub const GENERATION_CONFIG: &[u8] = include_bytes!("generation_config.json");
/// `tokenizer.json`.
pub const TOKENIZER: &[u8] = include_bytes!("tokenizer.json");
/// `tokenizer_config.json`.
pub const TOKENIZER_CONFIG: &[u8] = include_bytes!("tokenizer_config.json");
/// `model.safetensors`.
pub const WEIGHTS: &[u8] = include_bytes!("model.safetensors");
