//! Copies models of candle-transformers into `OUT_DIR` and changes the lines that take linear
//! layers from candle.

use std::error::Error;
use std::path::{Path, PathBuf};
use std::process::Command;

/// A text of a source file, what takes its place, and how often it must be there.
type Change = (&'static str, &'static str, usize);

/// A file in `src/models`, and its changes.
type Source = (&'static str, &'static [Change]);

/// `use candle_nn::Linear` would be ambiguous where a model writes the path of the crate at each
/// use.
const BY_PATH: [(&str, &str); 2] = [
    ("candle_nn::Linear", "llm_int8_nn::drop_in::Linear"),
    ("candle_nn::linear", "llm_int8_nn::drop_in::linear"),
];

const SOURCES: &[Source] = &[
    (
        "llama.rs",
        &[(
            "use super::with_tracing::{linear_no_bias as linear, Linear, RmsNorm};",
            "use llm_int8_nn::drop_in::with_tracing::{linear_no_bias as linear, Linear, RmsNorm};",
            1,
        )],
    ),
    (
        "bert.rs",
        &[(
            "use super::with_tracing::{layer_norm, linear, LayerNorm, Linear};",
            "use llm_int8_nn::drop_in::with_tracing::{layer_norm, linear, LayerNorm, Linear};",
            1,
        )],
    ),
    // The other two modules read audio and GGUF.
    (
        "whisper/mod.rs",
        &[
            ("pub mod audio;\n", "", 1),
            ("pub mod quantized_model;\n", "", 1),
        ],
    ),
    (
        "whisper/model.rs",
        &[(
            "use crate::models::with_tracing::{linear, linear_no_bias, Linear};",
            "use llm_int8_nn::drop_in::with_tracing::{linear, linear_no_bias, Linear};",
            1,
        )],
    ),
    (
        "clip/mod.rs",
        &[
            (BY_PATH[0].0, BY_PATH[0].1, 2),
            (BY_PATH[1].0, BY_PATH[1].1, 2),
        ],
    ),
    (
        "clip/text_model.rs",
        &[
            (BY_PATH[0].0, BY_PATH[0].1, 6),
            (BY_PATH[1].0, BY_PATH[1].1, 6),
        ],
    ),
    ("clip/vision_model.rs", &[]),
    // T5 has a linear layer of its own, which goes.
    (
        "t5.rs",
        &[
            (
                "use crate::models::with_tracing::Embedding;",
                "use llm_int8_nn::drop_in::with_tracing::{linear_no_bias, Embedding, Linear};",
                1,
            ),
            (T5_LINEAR, "", 1),
        ],
    ),
];

const T5_LINEAR: &str = r#"#[derive(Debug, Clone)]
pub struct Linear {
    weight: Tensor,
    span: tracing::Span,
}

pub fn linear_no_bias(d1: usize, d2: usize, vb: VarBuilder) -> Result<Linear> {
    let init_ws = candle_nn::init::DEFAULT_KAIMING_NORMAL;
    let weight = vb.get_with_hints((d2, d1), "weight", init_ws)?;
    let span = tracing::span!(tracing::Level::TRACE, "linear");
    Ok(Linear { weight, span })
}

impl Module for Linear {
    fn forward(&self, xs: &Tensor) -> Result<Tensor> {
        let _enter = self.span.enter();
        let weight = self.weight.to_dtype(xs.dtype())?;
        let w = match *xs.dims() {
            [b1, b2, _, _] => weight.broadcast_left((b1, b2))?.t()?,
            [bsize, _, _] => weight.broadcast_left(bsize)?.t()?,
            _ => weight.t()?,
        };
        xs.matmul(&w)
    }
}
"#;

/// Modules of this crate, and the copies that they are.
const MODULES: &[(&str, &str)] = &[
    ("bert", "bert.rs"),
    ("clip", "clip/mod.rs"),
    ("llama", "llama.rs"),
    ("t5", "t5.rs"),
    ("whisper", "whisper/mod.rs"),
];

/// Lints are for code that is ours.
const ALLOWED: &str =
    "missing_docs, unused, unreachable_pub, unexpected_cfgs, clippy::all, clippy::expect_used, \
                       clippy::panic, clippy::todo, clippy::unimplemented, clippy::unwrap_used";

fn main() -> Result<(), Box<dyn Error>> {
    println!("cargo::rerun-if-changed=build.rs");
    println!("cargo::rerun-if-changed=../../Cargo.lock");

    let models = candle_transformers()?.join("src/models");
    let out = PathBuf::from(std::env::var("OUT_DIR")?);
    for (file, changes) in SOURCES {
        let text = std::fs::read_to_string(models.join(file))
            .map_err(|error| format!("{}: {error}", models.join(file).display()))?;
        let copy = out.join(file);
        std::fs::create_dir_all(copy.parent().unwrap_or(&out))?;
        std::fs::write(copy, changed(file, text, changes)?)?;
    }

    let modules = MODULES.iter().map(|(name, file)| {
        let path = out.join(file);
        format!("#[allow({ALLOWED})]\n#[path = {path:?}]\npub mod {name};\n")
    });
    std::fs::write(out.join("models.rs"), modules.collect::<String>())?;
    Ok(())
}

/// The text with its changes; an error if one of them is not as often there as it must be.
fn changed(file: &str, text: String, changes: &[Change]) -> Result<String, String> {
    changes.iter().try_fold(text, |text, (from, to, expected)| {
        let found = text.matches(from).count();
        if found != *expected {
            return Err(format!(
                "candle-transformers' src/models/{file} has this text {found} times, and {expected} were expected; \
                 what its release changed has to change in build.rs, docs/candle.md and perhaps nn::drop_in:\n{from}"
            ));
        }
        Ok(text.replace(from, to))
    })
}

/// The folder of candle-transformers' source, in cargo's registry or vendored.
fn candle_transformers() -> Result<PathBuf, Box<dyn Error>> {
    // Without the network if cargo has all packages of the workspace; a build of some of them may
    // have fetched fewer.
    let metadata = metadata(&["--offline"]).or_else(|_| metadata(&[]))?;
    let packages = metadata["packages"].as_array().into_iter().flatten();
    let manifests: Vec<&str> = packages
        .filter(|package| package["name"] == "candle-transformers")
        .filter_map(|package| package["manifest_path"].as_str())
        .collect();
    match manifests[..] {
        [manifest] => Ok(Path::new(manifest).parent().unwrap_or(Path::new("")).into()),
        _ => Err(format!("one candle-transformers is needed, cargo has: {manifests:?}").into()),
    }
}

fn metadata(more: &[&str]) -> Result<serde_json::Value, Box<dyn Error>> {
    let output = Command::new(std::env::var("CARGO")?)
        .args(["metadata", "--format-version", "1", "--filter-platform"])
        .arg(std::env::var("TARGET")?)
        .args(more)
        .output()?;
    if !output.status.success() {
        let reason = String::from_utf8_lossy(&output.stderr);
        return Err(format!("cargo metadata: {reason}").into());
    }
    Ok(serde_json::from_slice(&output.stdout)?)
}
