//! Arguments of `llm-int8 outliers`.

use super::ModelArgs;
use clap::Args;
use std::path::PathBuf;

#[derive(Debug, Args)]
#[command(after_help = OUTLIERS_HELP)]
pub(crate) struct OutlierArgs {
    #[command(flatten)]
    pub(crate) model: ModelArgs,
    /// The text file, in UTF-8
    #[arg(long, value_name = "FILE")]
    pub(crate) text: PathBuf,
    /// Tokens per window: the model sees one window at a time
    #[arg(long, value_name = "N", default_value_t = 512)]
    pub(crate) window: usize,
    /// Use only the first N tokens of the text
    #[arg(long, value_name = "N")]
    pub(crate) max_tokens: Option<usize>,
    /// Write a page with heat maps, errors, memory and a slider for the threshold: one file, which needs
    /// no network
    #[arg(long, value_name = "FILE")]
    pub(crate) html: Option<PathBuf>,
    /// Draw the largest magnitude of each feature in each layer to this file (.svg)
    #[arg(long, value_name = "FILE", value_parser = svg)]
    pub(crate) plot: Option<PathBuf>,
    /// Print one JSON object instead of text
    #[arg(long)]
    pub(crate) json: bool,
}

const OUTLIERS_HELP: &str = "Examples:\n  llm-int8 outliers tiny-gpt2 --text book.txt --max-tokens 2048\n  \
llm-int8 outliers gpt2-large --text book.txt --threshold 4rms --html outliers.html";

fn svg(text: &str) -> Result<PathBuf, String> {
    let path = PathBuf::from(text);
    match path.extension().and_then(|extension| extension.to_str()) {
        Some("svg") => Ok(path),
        _ => Err("expected a file name that ends in .svg".into()),
    }
}
