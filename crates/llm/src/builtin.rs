//! The built-in model `tiny-gpt2`, trained on public-domain English.

/// The name it is loaded by.
pub const NAME: &str = "tiny-gpt2";

/// `config.json`.
pub(crate) const CONFIG: &[u8] = include_bytes!("../../../models/tiny-gpt2/config.json");
/// `generation_config.json`.
pub(crate) const GENERATION_CONFIG: &[u8] =
    include_bytes!("../../../models/tiny-gpt2/generation_config.json");
/// `tokenizer.json`.
pub(crate) const TOKENIZER: &[u8] = include_bytes!("../../../models/tiny-gpt2/tokenizer.json");
/// `tokenizer_config.json`.
pub(crate) const TOKENIZER_CONFIG: &[u8] =
    include_bytes!("../../../models/tiny-gpt2/tokenizer_config.json");
/// `model.safetensors`.
pub(crate) const WEIGHTS: &[u8] = include_bytes!("../../../models/tiny-gpt2/model.safetensors");

/// Whether a name means the built-in model. A local folder of that name takes precedence.
pub(crate) fn is_name(name: &str) -> bool {
    name == NAME && !std::path::Path::new(name).is_dir()
}
