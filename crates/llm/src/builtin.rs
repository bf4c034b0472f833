//! The model that is part of the library: `tiny-gpt2`, trained on public-domain English.

/// Its name.
pub const NAME: &str = "tiny-gpt2";

pub(crate) use llm_int8_tiny_gpt2::{
    CONFIG, GENERATION_CONFIG, TOKENIZER, TOKENIZER_CONFIG, WEIGHTS,
};

/// Whether a name means the built-in model. A folder of that name comes first.
pub(crate) fn is_meant(name: &str) -> bool {
    name == NAME && !std::path::Path::new(name).is_dir()
}
