//! Which model, how to load it, and where to compute.

use super::limits::threads;
use super::sizes::memory_limit;
use clap::{Args, ValueEnum};
use llm_int8::{DeviceName, MemoryLimit};

/// The model and how to load it.
#[derive(Debug, Args)]
pub(crate) struct ModelArgs {
    /// tiny-gpt2 (built in), a folder, a .gguf file, or a model of the hub: gpt2-large, org/name,
    /// org/name@revision or its address
    pub(crate) model: String,
    /// Activations of at least this magnitude are outliers and stay in floating point; 0 turns that
    /// off [default: 6, or what a saved 8-bit checkpoint says]
    #[arg(long, value_name = "X", value_parser = threshold, allow_negative_numbers = true, help_heading = "8 bit")]
    pub(crate) threshold: Option<f32>,
    /// Look for outliers in the whole batch (as bitsandbytes) or in each row by itself
    /// (batch-invariant)
    #[arg(long, value_enum, default_value_t = Outliers::Batch, help_heading = "8 bit")]
    pub(crate) outliers: Outliers,
    /// Weights of outlier columns: from int8 (as bitsandbytes), or from the file in full precision
    /// (as the paper)
    #[arg(long, value_enum, default_value_t = Weights::Dequantized, help_heading = "8 bit")]
    pub(crate) outlier_weights: Weights,
    /// More modules to leave unquantised, by name or path; lm_head always is
    #[arg(
        long,
        value_name = "NAME,…",
        value_delimiter = ',',
        help_heading = "8 bit"
    )]
    pub(crate) skip_modules: Vec<String>,
    /// Also make the output head and the token table int8: smaller and faster, but nothing that
    /// bitsandbytes knows, so it cannot be saved
    #[arg(long, help_heading = "8 bit")]
    pub(crate) quantize_head: bool,
    /// Load every layer as it is
    #[arg(long, conflicts_with_all = ["quantize_head", "outliers", "outlier_weights", "skip_modules", "threshold"], help_heading = "8 bit")]
    pub(crate) no_quantize: bool,
    /// What is not int8 is stored as this; float16 matches transformers 4.x, auto matches 5.x
    #[arg(long, value_enum, default_value_t = Dtype::Float16)]
    pub(crate) dtype: Dtype,
    /// Refuse weights with tensors that the model has no place for, instead of ignoring them with a
    /// warning
    #[arg(long)]
    pub(crate) strict: bool,
    /// Where to compute: auto (a GPU where this program can use one and the model or a part of it
    /// fits, else the CPU), cpu, cuda, cuda:N; several for --device-map
    #[arg(
        long,
        value_name = "DEVICE,…",
        value_delimiter = ',',
        default_value = "auto",
        help_heading = "Devices"
    )]
    pub(crate) device: Vec<DeviceName>,
    /// Whole blocks on these GPUs (all, with --device auto), as many as fit, the rest on the CPU,
    /// all in 8 bit
    #[arg(long, value_enum, value_name = "HOW", help_heading = "Devices")]
    pub(crate) device_map: Option<DeviceMapName>,
    /// What the model may take of each device's memory, by its number in the map, as
    /// 0=20GiB,1=10GiB,cpu=64GiB
    #[arg(
        long,
        value_name = "N=SIZE,…",
        value_delimiter = ',',
        value_parser = memory_limit,
        requires = "device_map",
        help_heading = "Devices"
    )]
    pub(crate) max_memory: Vec<MemoryLimit>,
    /// Decode on GPUs by single launches, and not by graphs recorded once: the same text, slower
    #[arg(long, help_heading = "Devices")]
    pub(crate) no_cuda_graph: bool,
    /// Start each kernel after the one before has ended: the same text, slower. Without this, GPUs
    /// of capability 9.0 and later start it earlier, to load weights (programmatic dependent
    /// launch)
    #[arg(long, help_heading = "Devices")]
    pub(crate) no_cuda_overlap: bool,
    /// Threads to compute with [default: one per core]
    #[arg(long, value_name = "N", value_parser = threads())]
    pub(crate) threads: Option<u16>,
    /// Use only what is in the cache (also HF_HUB_OFFLINE=1)
    #[arg(long)]
    pub(crate) offline: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Outliers {
    Batch,
    Row,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Weights {
    Dequantized,
    Original,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Dtype {
    Float16,
    Bfloat16,
    Float32,
    Auto,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum DeviceMapName {
    Auto,
}

fn threshold(text: &str) -> Result<f32, String> {
    match text.parse::<f32>() {
        Ok(value) if value >= 0.0 && value.is_finite() => Ok(value),
        Ok(_) => Err("a number from 0 up was expected".into()),
        Err(cause) => Err(cause.to_string()),
    }
}
