//! The built-in model `tiny-gpt2`, trained on public-domain English.

/// The name it is loaded by.
pub const NAME: &str = "tiny-gpt2";

pub(crate) use llm_int8_tiny_gpt2::{
    CONFIG, GENERATION_CONFIG, TOKENIZER, TOKENIZER_CONFIG, WEIGHTS,
};

/// Whether a name means the built-in model. A local folder of that name takes precedence.
pub(crate) fn is_name(name: &str) -> bool {
    name == NAME && !std::path::Path::new(name).is_dir()
}
