//! The command line: commands, options and their help texts.

mod affine;
mod limits;
mod model;
mod numbers;
mod outliers;
mod sampling;
mod serve;
mod server;
mod sizes;

pub(crate) use affine::{AffineArgs, AffineDtype, Scheme};
pub(crate) use model::{
    AdapterArgs, DeviceMapName, Dtype, ModelArgs, Outliers, Threshold, Weights,
};
pub(crate) use numbers::{Numbers, with_negative_numbers};
pub(crate) use outliers::OutlierArgs;
pub(crate) use sampling::SamplingArgs;
pub(crate) use serve::ServeArgs;
pub(crate) use server::ServerArgs;

use limits::{at_once, bench_runs, bench_tokens, drafts, positions, rows, shape};
use sizes::size;

use clap::{Args, Parser, Subcommand};
use llm_int8::bench::LayerShape;
use std::path::PathBuf;

/// Load any Hugging Face causal language model in 8 bit, the LLM.int8() way.
#[derive(Debug, Parser)]
#[command(name = "llm-int8", version, about, long_about = LONG_ABOUT, after_help = AFTER_HELP)]
#[command(propagate_version = true, arg_required_else_help = true)]
pub(crate) struct Arguments {
    #[command(subcommand)]
    pub(crate) command: Command,
}

const LONG_ABOUT: &str = "Load any Hugging Face causal language model in 8 bit, the LLM.int8() way: \
the same module tree, dtypes and numbers as transformers with bitsandbytes, from one program.";

const AFTER_HELP: &str = "MODEL is tiny-gpt2 (built in, needs no network), a folder, a .gguf file, or a model of the \
Hugging Face hub: gpt2-large, org/name, org/name@revision.\n\nExamples:\n  llm-int8 inspect tiny-gpt2 --params\n  \
llm-int8 run tiny-gpt2 --prompt 'In the beginning'\n  llm-int8 run gpt2-large --prompt 'Hello' --temperature 0.8";

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Generate text after a prompt.
    Run(RunArgs),
    /// Chat with a model.
    Chat(ChatArgs),
    /// Serve a model over HTTP, for OpenAI's clients and a chat page.
    Serve(ServeArgs),
    /// Print a model's module tree, parameters and memory footprint.
    Inspect(InspectArgs),
    /// Split a text into tokens with a model's tokenizer, or decode token ids.
    Tokenize(TokenizeArgs),
    /// Download a model into the cache.
    Pull(PullArgs),
    /// Write a model's logits to a safetensors file, to compare with another implementation.
    Logits(LogitsArgs),
    /// Save a model in 8 bit, in the format of bitsandbytes, which transformers loads.
    Quantize(QuantizeArgs),
    /// Convert an 8-bit model back to float weights.
    Dequantize(DequantizeArgs),
    /// Check whether the weights of a model are sound; exit code 1 if they are not.
    Verify(VerifyArgs),
    /// Measure a model's perplexity on a text.
    Eval(EvalArgs),
    /// Show which activations are outliers, layer by layer, and what 8 bit costs each layer.
    Outliers(OutlierArgs),
    /// Measure how fast a model runs, compared with the limits of the machine.
    Bench(BenchArgs),
    /// Show what INT8 affine quantisation does to numbers, as in PyTorch.
    Affine(AffineArgs),
    /// Print shell completions.
    Completions {
        /// The shell.
        shell: clap_complete::Shell,
    },
    /// Write the manual pages to a folder.
    Man {
        /// The folder; it must exist.
        folder: PathBuf,
    },
    /// Print every command and option as Markdown: docs/cli.md.
    #[command(hide = true)]
    Reference,
}

#[derive(Debug, Args)]
#[command(mut_args(server::beside_a_server))]
pub(crate) struct ChatArgs {
    #[command(flatten)]
    pub(crate) model: ModelArgs,
    #[command(flatten)]
    pub(crate) adapter: AdapterArgs,
    #[command(flatten)]
    pub(crate) server: ServerArgs,
    /// System message: how the model should behave
    #[arg(long, value_name = "TEXT", allow_hyphen_values = true)]
    pub(crate) system: Option<String>,
    /// Chat template (a Jinja file) to use instead of the model's own
    #[arg(long, value_name = "FILE")]
    pub(crate) chat_template: Option<PathBuf>,
    /// Tools that the model may call: a JSON file with a list of tool descriptions
    #[arg(long, value_name = "FILE")]
    pub(crate) tools: Option<PathBuf>,
    /// Documents to answer from: a JSON file with a list of objects that have `title` and `text`
    #[arg(long, value_name = "FILE")]
    pub(crate) documents: Option<PathBuf>,
    /// Maximum number of new tokens per reply [default: from the model's files, else 512]
    #[arg(long, short = 'n', value_name = "N")]
    pub(crate) max_new_tokens: Option<usize>,
    #[command(flatten)]
    pub(crate) sampling: SamplingArgs,
    /// Do not print timings on standard error
    #[arg(long, short)]
    pub(crate) quiet: bool,
}

#[derive(Debug, Args)]
pub(crate) struct RunArgs {
    #[command(flatten)]
    pub(crate) model: ModelArgs,
    #[command(flatten)]
    pub(crate) adapter: AdapterArgs,
    /// The prompt; - reads it from standard input
    #[arg(long, short, allow_hyphen_values = true, required_unless_present_any = ["token_ids", "prompts_file"])]
    pub(crate) prompt: Option<String>,
    /// Generate for every line of this file, in batches; prints one JSON object per line
    #[arg(long, value_name = "FILE", conflicts_with_all = ["prompt", "token_ids", "print_ids"])]
    pub(crate) prompts_file: Option<PathBuf>,
    /// Number of prompts from the file to run at once
    #[arg(long, value_name = "N", default_value_t = 8, requires = "prompts_file", value_parser = at_once)]
    pub(crate) batch_size: usize,
    /// The prompt as token ids, instead of text
    #[arg(
        long,
        value_name = "ID,…",
        value_delimiter = ',',
        conflicts_with = "prompt"
    )]
    pub(crate) token_ids: Option<Vec<u32>>,
    /// Print the new token ids, comma-separated, instead of text
    #[arg(long)]
    pub(crate) print_ids: bool,
    /// Maximum number of new tokens [default: from the model's files, else 64]
    #[arg(long, short = 'n', value_name = "N")]
    pub(crate) max_new_tokens: Option<usize>,
    #[command(flatten)]
    pub(crate) sampling: SamplingArgs,
    /// Cut off the beginning of a prompt that is too long for the model
    #[arg(long)]
    pub(crate) truncate: bool,
    /// Do not print timings and memory use on standard error
    #[arg(long, short)]
    pub(crate) quiet: bool,
}

#[derive(Debug, Args)]
pub(crate) struct InspectArgs {
    #[command(flatten)]
    pub(crate) model: ModelArgs,
    /// Print every parameter: name, dtype, shape
    #[arg(long)]
    pub(crate) params: bool,
    /// Print one JSON object instead of text
    #[arg(long)]
    pub(crate) json: bool,
    /// Read only config.json and the headers of the weight files; nothing else is downloaded
    #[arg(long)]
    pub(crate) headers_only: bool,
    /// Print the steps of a forward pass instead, one per line; identical blocks are printed once
    #[arg(long, conflicts_with_all = ["params", "json"])]
    pub(crate) plan: bool,
}

#[derive(Debug, Args)]
pub(crate) struct TokenizeArgs {
    /// tiny-gpt2 (built in), a folder, a .gguf file, or a model of the hub; its weights are not
    /// read
    pub(crate) model: String,
    /// The text, or with --decode the token ids, as in 1,2,3 or [1, 2, 3]; - reads standard input
    #[arg(allow_hyphen_values = true)]
    pub(crate) text: String,
    /// Print only the ids, as in [1, 2, 3]
    #[arg(long, conflicts_with = "json")]
    pub(crate) ids: bool,
    /// Print one JSON object with the ids and the token of each
    #[arg(long)]
    pub(crate) json: bool,
    /// Do not add special tokens before and after the text
    #[arg(long, conflicts_with = "decode")]
    pub(crate) no_special_tokens: bool,
    /// Decode token ids to text
    #[arg(long, conflicts_with_all = ["ids", "json"])]
    pub(crate) decode: bool,
    /// Leave special tokens out of the decoded text
    #[arg(long, requires = "decode")]
    pub(crate) skip_special_tokens: bool,
    /// Do not use the network, only the cache (also HF_HUB_OFFLINE=1)
    #[arg(long)]
    pub(crate) offline: bool,
}

#[derive(Debug, Args)]
pub(crate) struct PullArgs {
    /// A model of the hub: gpt2-large, org/name, org/name@revision
    pub(crate) model: String,
    /// Do not use the network, only the cache (also HF_HUB_OFFLINE=1)
    #[arg(long)]
    pub(crate) offline: bool,
}

#[derive(Debug, Args)]
pub(crate) struct LogitsArgs {
    #[command(flatten)]
    pub(crate) model: ModelArgs,
    #[command(flatten)]
    pub(crate) adapter: AdapterArgs,
    /// The token ids to compute logits for
    #[arg(long, value_name = "ID,…", value_delimiter = ',', required = true)]
    pub(crate) token_ids: Vec<u32>,
    /// The file to write, with `logits` F32 [1, tokens, vocabulary] and `token_ids` I64 [1, tokens]
    #[arg(long, value_name = "FILE")]
    pub(crate) out: PathBuf,
}

#[derive(Debug, Args)]
pub(crate) struct EvalArgs {
    #[command(flatten)]
    pub(crate) model: ModelArgs,
    #[command(flatten)]
    pub(crate) adapter: AdapterArgs,
    /// The text file, in UTF-8
    #[arg(long, value_name = "FILE")]
    pub(crate) text: PathBuf,
    /// Tokens per window: the model sees one window at a time
    #[arg(long, value_name = "N", default_value_t = 512)]
    pub(crate) window: usize,
    /// Tokens from the start of one window to the start of the next [default: the window, so no
    /// overlap]
    #[arg(long, value_name = "N")]
    pub(crate) stride: Option<usize>,
    /// Use only the first N tokens of the text
    #[arg(long, value_name = "N")]
    pub(crate) max_tokens: Option<usize>,
    /// Compare 8-bit rules with the unquantised model: those of --accuracy, and those of the
    /// LLM.int8() paper's Table 1; on the CPU
    #[arg(long, conflicts_with_all = ["accuracy", "threshold", "outliers", "outlier_weights", "no_quantize", "adapter"])]
    pub(crate) compare: bool,
    /// Print one JSON object instead of text
    #[arg(long)]
    pub(crate) json: bool,
}

#[derive(Debug, Args)]
pub(crate) struct BenchArgs {
    #[command(flatten)]
    pub(crate) model: ModelArgs,
    #[command(flatten)]
    pub(crate) adapter: AdapterArgs,
    /// Measure single int8 linear layers of these sizes instead of a model (give - as MODEL)
    #[arg(long, value_name = "OUTxIN,…", value_delimiter = ',', value_parser = shape, conflicts_with_all = ["adapter", "contexts", "prompts", "batch_sizes", "max_new_tokens", "speculate"])]
    pub(crate) linear: Vec<LayerShape>,
    /// Activation rows (tokens) for --linear
    #[arg(long, value_name = "N,…", value_delimiter = ',', default_value = "1,8,64,512", requires = "linear", value_parser = rows)]
    pub(crate) rows: Vec<usize>,
    /// Batch sizes: sequences decoded together
    #[arg(long, value_name = "N,…", value_delimiter = ',', default_value = "1", value_parser = at_once)]
    pub(crate) batch_sizes: Vec<usize>,
    /// Context lengths at which decoding is measured [default: those of 32,128,256 that fit the
    /// model]
    #[arg(long, value_name = "N,…", value_delimiter = ',', value_parser = positions)]
    pub(crate) contexts: Option<Vec<usize>>,
    /// Prompt lengths at which prefill is measured [default: those of 16,128,512 that fit the
    /// model]
    #[arg(long, value_name = "N,…", value_delimiter = ',', value_parser = positions)]
    pub(crate) prompts: Option<Vec<usize>>,
    /// New tokens per run
    #[arg(long, short = 'n', value_name = "N", default_value_t = 32, value_parser = bench_tokens)]
    pub(crate) max_new_tokens: usize,
    /// Runs per measurement; the median is reported
    #[arg(long, value_name = "N", default_value_t = 3, value_parser = bench_runs)]
    pub(crate) runs: usize,
    /// Also measure speculative decoding of a repetitive text with up to N drafts; needs --outliers
    /// row
    #[arg(long, value_name = "N", default_value_t = 0, hide_default_value = true, value_parser = drafts)]
    pub(crate) speculate: usize,
    /// Print one JSON object instead of text
    #[arg(long)]
    pub(crate) json: bool,
}

#[derive(Debug, Args)]
pub(crate) struct QuantizeArgs {
    #[command(flatten)]
    pub(crate) model: ModelArgs,
    #[command(flatten)]
    pub(crate) output: OutputArgs,
}

#[derive(Debug, Args)]
pub(crate) struct DequantizeArgs {
    /// A folder with an 8-bit checkpoint, or a model of the hub
    pub(crate) model: String,
    #[command(flatten)]
    pub(crate) output: OutputArgs,
    /// Dtype of the saved weights
    #[arg(long, value_enum, default_value_t = Dtype::Float16)]
    pub(crate) dtype: Dtype,
    /// Do not use the network, only the cache (also HF_HUB_OFFLINE=1)
    #[arg(long)]
    pub(crate) offline: bool,
}

#[derive(Debug, Args)]
pub(crate) struct VerifyArgs {
    /// tiny-gpt2 (built in), a folder, a .gguf file, or a model of the hub
    pub(crate) model: String,
    /// The model with float weights that an 8-bit model was made from: quantise it again and
    /// compare
    #[arg(long, value_name = "MODEL")]
    pub(crate) against: Option<String>,
    /// Print one JSON object instead of text
    #[arg(long)]
    pub(crate) json: bool,
    /// Do not use the network, only the cache (also HF_HUB_OFFLINE=1)
    #[arg(long)]
    pub(crate) offline: bool,
}

/// Where a model is saved.
#[derive(Debug, Args)]
pub(crate) struct OutputArgs {
    /// The folder to write; it must not exist yet, or be empty
    #[arg(long = "output", short = 'o', value_name = "FOLDER")]
    pub(crate) folder: PathBuf,
    /// Maximum size of a weight file, such as 5GB, 500MB or 2GiB
    #[arg(long, value_name = "SIZE", default_value = "5GB", value_parser = size)]
    pub(crate) max_shard_size: u64,
}

/// A usage error: exit code 2.
#[derive(Debug)]
pub(crate) struct UsageError(pub(crate) String);

impl std::fmt::Display for UsageError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for UsageError {}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory;

    #[test]
    fn the_command_line_is_consistent() {
        Arguments::command().debug_assert();
    }
}
