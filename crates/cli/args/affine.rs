//! Arguments of `llm-int8 affine`.

use clap::{Args, ValueEnum};
use std::path::PathBuf;

#[derive(Debug, Args)]
#[command(group(clap::ArgGroup::new("source").required(true).args(["values", "file", "model", "notebook"])))]
#[command(after_help = AFFINE_HELP)]
pub(crate) struct AffineArgs {
    /// Numbers to quantise, as Python prints them: 3 -5.5 3e-05, a list, or a printed torch or
    /// numpy tensor
    #[arg(value_name = "NUMBER")]
    pub(crate) values: Vec<String>,
    /// Take a tensor from this safetensors file (or pytorch_model.bin)
    #[arg(long, value_name = "FILE", requires = "tensor")]
    pub(crate) file: Option<PathBuf>,
    /// Take a tensor from this model: tiny-gpt2, a folder, or a model of the hub
    #[arg(long, requires = "tensor")]
    pub(crate) model: Option<String>,
    /// Name of the tensor, for example transformer.h.0.attn.c_attn.weight
    #[arg(long, value_name = "NAME", conflicts_with = "values")]
    pub(crate) tensor: Option<String>,
    /// How scale and zero point are chosen
    #[arg(long, value_enum, default_value_t = Scheme::All)]
    pub(crate) scheme: Scheme,
    /// Also quantise per channel: with a scale of its own for each slice along this axis, counted
    /// from 0
    #[arg(long, value_name = "AXIS")]
    pub(crate) per_channel: Option<usize>,
    /// Dtype of the codes
    #[arg(long, value_enum, default_value_t = AffineDtype::Qint8)]
    pub(crate) dtype: AffineDtype,
    /// Print one JSON object instead of text
    #[arg(long)]
    pub(crate) json: bool,
    /// Run the example notebook: three tensors quantised by PyTorch, by hand, and with qconfigs
    #[arg(long, conflicts_with_all = ["json", "plot", "scheme", "per_channel", "dtype"])]
    pub(crate) notebook: bool,
    /// Draw the numbers, the grids of codes and the errors to this file (.svg or .png)
    #[arg(long, value_name = "FILE", value_parser = picture)]
    pub(crate) plot: Option<PathBuf>,
    /// Do not use the network, only the cache (also HF_HUB_OFFLINE=1)
    #[arg(long)]
    pub(crate) offline: bool,
}

const AFFINE_HELP: &str = "Examples:\n  llm-int8 affine 3 -5.5 0 4 -6 2.5\n  \
llm-int8 affine '[[3e-05, -2e-05], [1e-05, 0.0]]' --per-channel 0\n  \
llm-int8 affine 'tensor([ 3.0000e-05, -2.0000e-05])'\n  \
llm-int8 affine --model tiny-gpt2 --tensor transformer.h.0.attn.c_attn.weight --per-channel 1 --plot weight.svg\n  \
llm-int8 affine --notebook";

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
#[value(rename_all = "snake_case")]
pub(crate) enum Scheme {
    PerTensorAffine,
    PerTensorSymmetric,
    All,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum AffineDtype {
    Qint8,
    Quint8,
}

fn picture(text: &str) -> Result<PathBuf, String> {
    let path = PathBuf::from(text);
    match path.extension().and_then(|extension| extension.to_str()) {
        Some("svg" | "png") => Ok(path),
        _ => Err("expected a file name that ends in .svg or .png".into()),
    }
}
