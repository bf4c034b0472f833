//! Options for the model, how to load it, and the devices to run it on.

use super::limits::threads;
use super::sizes::memory_limit;
use clap::{Args, ValueEnum};
use llm_int8::{DeviceName, MemoryLimit};

/// The model and how to load it.
#[derive(Debug, Args)]
pub(crate) struct ModelArgs {
    /// tiny-gpt2 (built in), a folder, a .gguf file, or a model of the hub: gpt2-large, org/name,
    /// org/name@revision or its URL
    pub(crate) model: String,
    /// Outlier threshold: activations of at least this magnitude stay in floating point; 0
    /// quantises everything [default: 6, or what a saved 8-bit checkpoint says]
    #[arg(long, value_name = "X", value_parser = threshold, allow_negative_numbers = true, help_heading = "8 bit")]
    pub(crate) threshold: Option<f32>,
    /// Where to look for outlier columns: in the whole batch (as bitsandbytes), or in each row by
    /// itself (batch-invariant)
    #[arg(long, value_enum, default_value_t = Outliers::Batch, help_heading = "8 bit")]
    pub(crate) outliers: Outliers,
    /// Weights for outlier columns: dequantised from int8 (as bitsandbytes), or the original ones
    /// from the file (as in the paper)
    #[arg(long, value_enum, default_value_t = Weights::Dequantized, help_heading = "8 bit")]
    pub(crate) outlier_weights: Weights,
    /// Additional modules to leave unquantised, by name or path; lm_head always is
    #[arg(
        long,
        value_name = "NAME,…",
        value_delimiter = ',',
        help_heading = "8 bit"
    )]
    pub(crate) skip_modules: Vec<String>,
    /// Also quantise the head and the token embeddings: smaller and faster, but bitsandbytes has no
    /// such format, so the model cannot be saved
    #[arg(long, help_heading = "8 bit")]
    pub(crate) quantize_head: bool,
    /// Do not quantise any layer
    #[arg(long, conflicts_with_all = ["quantize_head", "outliers", "outlier_weights", "skip_modules", "threshold"], help_heading = "8 bit")]
    pub(crate) no_quantize: bool,
    /// Dtype of what is not int8; float16 is the default of transformers 4.x, auto that of 5.x
    #[arg(long, value_enum, default_value_t = Dtype::Float16)]
    pub(crate) dtype: Dtype,
    /// Reject checkpoints with tensors that the model does not use, instead of warning
    #[arg(long)]
    pub(crate) strict: bool,
    /// Device to run on: auto (the first usable GPU, with as much of the model as fits, else the
    /// CPU), cpu, cuda, cuda:N; several for --device-map
    #[arg(
        long,
        value_name = "DEVICE,…",
        value_delimiter = ',',
        default_value = "auto",
        help_heading = "Devices"
    )]
    pub(crate) device: Vec<DeviceName>,
    /// Spread whole blocks over these GPUs (all GPUs with --device auto), as many as fit; the rest
    /// runs on the CPU, also in 8 bit
    #[arg(long, value_enum, value_name = "HOW", help_heading = "Devices")]
    pub(crate) device_map: Option<DeviceMapName>,
    /// Memory that the model may use on each GPU, by its index among those in use, and on the CPU,
    /// as in 0=20GiB,1=10GiB,cpu=64GiB
    #[arg(
        long,
        value_name = "N=SIZE,…",
        value_delimiter = ',',
        value_parser = memory_limit,
        requires = "device_map",
        help_heading = "Devices"
    )]
    pub(crate) max_memory: Vec<MemoryLimit>,
    /// Decode on GPUs without CUDA graphs, launching each kernel: the same text, slower
    #[arg(long, help_heading = "Devices")]
    pub(crate) no_cuda_graph: bool,
    /// Start each kernel only after the previous one has ended: the same text, slower. By default,
    /// GPUs of compute capability 9.0 and later start it earlier, to load weights (programmatic
    /// dependent launch)
    #[arg(long, help_heading = "Devices")]
    pub(crate) no_cuda_overlap: bool,
    /// Number of CPU threads [default: one per core]
    #[arg(long, value_name = "N", value_parser = threads())]
    pub(crate) threads: Option<u16>,
    /// Do not use the network, only the cache (also HF_HUB_OFFLINE=1)
    #[arg(long)]
    pub(crate) offline: bool,
}

/// An adapter for the model.
#[derive(Debug, Args)]
pub(crate) struct AdapterArgs {
    /// LoRA adapter to apply, as PEFT saves it: a folder or a repository of the hub; computes on
    /// the CPU
    #[arg(long)]
    pub(crate) adapter: Option<String>,
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
        Ok(_) => Err("expected a number from 0 up".into()),
        Err(cause) => Err(cause.to_string()),
    }
}
