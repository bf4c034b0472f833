//! How a model is loaded: the dict that `llm_int8/_options.py` makes of a caller's words.

use crate::error::of_llm;
use llm_int8::decoder::{LoadOptions, Placement, WeightDtype};
use llm_int8::device::{DeviceConfig, DeviceName, MemoryLimit};
use llm_int8::hub::HubConfig;
use llm_int8::nn::linear::{Int8Config, OutlierRule, OutlierWeights};
use llm_int8::nn::module::SkipList;
use llm_int8::nn::{CacheDtype, FloatDtype};
use llm_int8::{Accuracy, LoadConfig};
use pyo3::exceptions::PyValueError;
use pyo3::prelude::*;
use std::path::PathBuf;

/// The options, as plain values.
#[derive(FromPyObject)]
#[pyo3(from_item_all)]
pub(crate) struct Options {
    /// Whether layers become int8 at all.
    int8: bool,
    threshold: Option<f32>,
    /// A threshold in units of the root mean square of a row; excludes `threshold`.
    rms: Option<f32>,
    /// `batch` or `row`.
    outliers: Option<String>,
    /// `dequantized` or `original`.
    outlier_weights: String,
    accuracy: Option<String>,
    skip_modules: Vec<String>,
    quantize_head: bool,
    dtype: String,
    /// Of keys and values; `None`: as `dtype`.
    cache_dtype: Option<String>,
    strict: bool,
    devices: Vec<String>,
    device_map: bool,
    /// Bytes for a GPU by its index, and for the CPU (`None`).
    max_memory: Vec<(Option<usize>, u64)>,
    adapter: Option<String>,
    /// `Some(None)` (in Python: `(None,)`) sends no token, `None` the environment's.
    token: Option<(Option<String>,)>,
    cache_dir: Option<PathBuf>,
    offline: bool,
    pub(crate) num_threads: Option<usize>,
}

impl Options {
    /// The library's settings.
    ///
    /// # Errors
    /// `ValueError` for a word that is none of the known ones, or for settings that contradict each
    /// other.
    pub(crate) fn config(&self) -> PyResult<LoadConfig> {
        let int8 = self.int8_config()?;
        let options = LoadOptions {
            dtype: self.weight_dtype()?,
            int8: self.int8.then_some(int8),
            threshold: self.threshold,
            skip_modules: SkipList::new(self.skip_modules.iter().cloned()),
            quantize_head: self.quantize_head,
            strict: self.strict,
            cache_dtype: self.cache_dtype()?,
            placement: self.placement(int8)?,
            ..LoadOptions::default()
        };

        let mut hub = HubConfig::from_env();
        hub.offline |= self.offline;
        if let Some(folder) = &self.cache_dir {
            hub.cache_dir.clone_from(folder);
        }
        if let Some((token,)) = &self.token {
            hub.token.clone_from(token);
        }

        Ok(LoadConfig {
            options,
            hub,
            adapter: self.adapter.clone(),
        })
    }

    fn int8_config(&self) -> PyResult<Int8Config> {
        if let Some(name) = &self.accuracy {
            let preset = Accuracy::ALL.iter().find(|preset| preset.name() == name);
            let known = "bitsandbytes, better or best";
            return match preset {
                Some(preset) => Ok(preset.int8_config()),
                None => Err(unknown("accuracy", name, known)),
            };
        }

        let outliers = match (self.rms, self.outliers.as_deref()) {
            (Some(factor), None | Some("row")) => OutlierRule::row_rms(factor),
            (Some(_), Some("batch")) => {
                let text =
                    "a threshold in rms judges each row by itself; leave out outliers='batch'";
                return Err(PyValueError::new_err(text));
            }
            (None, None | Some("batch")) => OutlierRule::batch(self.threshold.unwrap_or(6.0)),
            (None, Some("row")) => OutlierRule::row(self.threshold.unwrap_or(6.0)),
            (_, Some(other)) => return Err(unknown("outliers", other, "batch or row")),
        };
        let outlier_weights = match &*self.outlier_weights {
            "dequantized" => OutlierWeights::Dequantized,
            "original" => OutlierWeights::Original,
            other => {
                return Err(unknown("outlier_weights", other, "dequantized or original"));
            }
        };
        Ok(Int8Config {
            outliers,
            outlier_weights,
        })
    }

    fn weight_dtype(&self) -> PyResult<WeightDtype> {
        match &*self.dtype {
            "float16" | "half" => Ok(WeightDtype::Float16),
            "bfloat16" => Ok(WeightDtype::BFloat16),
            "float32" | "float" => Ok(WeightDtype::Float32),
            "auto" => Ok(WeightDtype::Auto),
            other => {
                let known = "float16, bfloat16, float32 or auto";
                Err(unknown("dtype", other, known))
            }
        }
    }

    fn cache_dtype(&self) -> PyResult<Option<CacheDtype>> {
        let floats = [FloatDtype::F16, FloatDtype::BF16, FloatDtype::F32];
        let mut dtypes = floats
            .map(CacheDtype::Float)
            .into_iter()
            .chain([CacheDtype::Int8]);
        let Some(name) = self.cache_dtype.as_deref() else {
            return Ok(None);
        };
        match dtypes.find(|dtype| dtype.name() == name) {
            Some(dtype) => Ok(Some(dtype)),
            None => {
                let known = "float16, bfloat16, float32 or int8";
                Err(unknown("cache_dtype", name, known))
            }
        }
    }

    fn placement(&self, int8: Int8Config) -> PyResult<Placement> {
        let devices: Vec<DeviceName> = self
            .devices
            .iter()
            .map(|name| {
                name.parse()
                    .map_err(|expected: String| unknown("device", name, &expected))
            })
            .collect::<PyResult<_>>()?;

        // Only the CPU computes with float weights beside the codes, applies adapters, and keeps keys
        // and values in another dtype, so `auto` means the CPU.
        let has_floats = int8.outlier_weights != OutlierWeights::Dequantized;
        let cache_dtype = self.cache_dtype.as_deref();
        let has_cache = cache_dtype.is_some_and(|name| name != self.dtype);
        if devices == [DeviceName::Auto] && (has_floats || has_cache || self.adapter.is_some()) {
            return Ok(Placement::cpu());
        }

        let limits = self.max_memory.iter();
        let config = DeviceConfig {
            devices,
            map: self.device_map,
            limits: limits
                .map(|(device, bytes)| MemoryLimit {
                    device: *device,
                    bytes: *bytes,
                })
                .collect(),
            ..DeviceConfig::default()
        };
        config.placement().map_err(of_llm)
    }
}

/// The exception for a word that is not one of the known ones.
pub(crate) fn unknown(what: &str, found: &str, known: &str) -> PyErr {
    PyValueError::new_err(format!("{what} is {found}; expected {known}"))
}
