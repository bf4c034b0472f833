//! Options for the model, how to load it, and the devices to run it on.

use super::limits::threads;
use super::sizes::memory_limit;
use clap::{Args, ValueEnum};
use llm_int8::nn::{CacheDtype, FloatDtype};
use llm_int8::{Accuracy, DeviceName, MemoryLimit};

/// The model and how to load it.
#[derive(Debug, Args)]
pub(crate) struct ModelArgs {
    /// tiny-gpt2 (built in), a folder, a .gguf file, or a model of the hub: gpt2-large, org/name,
    /// org/name@revision or its URL
    pub(crate) model: String,
    /// How exactly to compute: as bitsandbytes; better, with outliers relative to their row, from the
    /// same files; or best, with a hundredth of the weights kept in f16 as well
    #[arg(long, value_enum, value_name = "HOW", conflicts_with_all = ["threshold", "outliers", "outlier_weights"], help_heading = "8 bit")]
    pub(crate) accuracy: Option<AccuracyName>,
    /// Outlier threshold: activations of at least this magnitude stay in floating point, with `rms`
    /// in units of the root mean square of their row, as in 4rms; 0 quantises everything [default:
    /// 6, or what a saved 8-bit checkpoint says]
    #[arg(long, value_name = "X[rms]", value_parser = threshold, allow_negative_numbers = true, help_heading = "8 bit")]
    pub(crate) threshold: Option<Threshold>,
    /// Where to look for outlier columns: in the whole batch (as bitsandbytes), or in each row by
    /// itself (batch-invariant) [default: batch; row if the threshold is in rms]
    #[arg(long, value_enum, help_heading = "8 bit")]
    pub(crate) outliers: Option<Outliers>,
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
    #[arg(long, conflicts_with_all = ["quantize_head", "outliers", "outlier_weights", "skip_modules", "threshold", "accuracy"], help_heading = "8 bit")]
    pub(crate) no_quantize: bool,
    /// Dtype of what is not int8; float16 is the default of transformers 4.x, auto that of 5.x
    #[arg(long, value_enum, default_value_t = Dtype::Float16)]
    pub(crate) dtype: Dtype,
    /// Dtype of keys and values; int8 has a scale for each head and position, takes about half the
    /// memory of float16, and runs on the CPU [default: that of --dtype]
    #[arg(long, value_enum, value_name = "DTYPE")]
    pub(crate) cache_dtype: Option<CacheDtypeName>,
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
pub(crate) enum AccuracyName {
    Bitsandbytes,
    Better,
    Best,
}

impl From<AccuracyName> for Accuracy {
    fn from(name: AccuracyName) -> Self {
        match name {
            AccuracyName::Bitsandbytes => Self::Bitsandbytes,
            AccuracyName::Better => Self::Better,
            AccuracyName::Best => Self::Best,
        }
    }
}

/// Which activations are outliers.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) enum Threshold {
    Absolute(f32),
    /// In units of the root mean square of the row.
    Rms(f32),
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
pub(crate) enum CacheDtypeName {
    Float16,
    Bfloat16,
    Float32,
    Int8,
}

impl CacheDtypeName {
    /// Whether the model's floats may have another dtype.
    pub(crate) fn may_differ_from(self, floats: Dtype) -> bool {
        let same = match self {
            Self::Float16 => floats == Dtype::Float16,
            Self::Bfloat16 => floats == Dtype::Bfloat16,
            Self::Float32 => floats == Dtype::Float32,
            Self::Int8 => false,
        };
        !same
    }
}

impl From<CacheDtypeName> for CacheDtype {
    fn from(name: CacheDtypeName) -> Self {
        match name {
            CacheDtypeName::Float16 => Self::Float(FloatDtype::F16),
            CacheDtypeName::Bfloat16 => Self::Float(FloatDtype::BF16),
            CacheDtypeName::Float32 => Self::Float(FloatDtype::F32),
            CacheDtypeName::Int8 => Self::Int8,
        }
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum DeviceMapName {
    Auto,
}

fn threshold(text: &str) -> Result<Threshold, String> {
    let (number, rms) = match text.strip_suffix("rms") {
        Some(number) => (number, true),
        None => (text, false),
    };

    match number.trim_end().parse::<f32>() {
        Ok(value) if value >= 0.0 && value.is_finite() => Ok(match rms {
            true => Threshold::Rms(value),
            false => Threshold::Absolute(value),
        }),
        Ok(_) => Err("expected a number from 0 up".into()),
        Err(cause) => Err(format!("{cause}; expected a number, as in 6 or 4rms")),
    }
}
