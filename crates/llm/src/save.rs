//! Saving a model so that transformers and bitsandbytes can load it (`save_pretrained`).

use crate::error::Result;
use crate::model::AutoModelForCausalLM;
use llm_int8_decoder::SavedLayers;
use llm_int8_hub::KEPT_COLUMNS;
use llm_int8_nn::NnError;
use llm_int8_nn::checkpoint::{NewFolder, WriteObserver};
use llm_int8_nn::dtype::ParameterDtype;
use llm_int8_nn::json;
use llm_int8_nn::linear::OutlierRule;
use serde_json::Value;
use std::path::Path;

/// `llm_int8_threshold`'s default in transformers.
const BITSANDBYTES_THRESHOLD: f32 = 6.0;

/// How a model is saved.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SaveOptions {
    /// Maximum size of a weight file, in bytes. A tensor that is larger gets a file of its own.
    pub max_shard_size: u64,
    /// How int8 layers are saved.
    pub layers: SavedLayers,
}

impl Default for SaveOptions {
    /// Int8 layers as bitsandbytes saves them, in files of up to 5 GB, as transformers writes them.
    fn default() -> Self {
        Self {
            max_shard_size: 5_000_000_000,
            layers: SavedLayers::Int8,
        }
    }
}

impl AutoModelForCausalLM {
    /// Saves the model into a new folder: weights, `config.json` and the tokenizer's files, as
    /// transformers' `save_pretrained` does. The folder appears only when it is complete.
    ///
    /// ```
    /// use llm_int8::{AutoModelForCausalLM, LoadConfig, SaveOptions};
    /// use std::ops::ControlFlow;
    /// let model = AutoModelForCausalLM::from_pretrained("tiny-gpt2", &LoadConfig::default())?;
    /// let folder = std::env::temp_dir().join(format!("llm-int8-doc-{}", std::process::id()));
    /// model.save_pretrained(&folder, &SaveOptions::default(), &mut |_| ControlFlow::Continue(()))?;
    /// let path = folder.to_string_lossy();
    /// let again = AutoModelForCausalLM::from_pretrained(&path, &LoadConfig::default())?;
    /// assert_eq!(again.tree(), model.tree());
    /// # std::fs::remove_dir_all(&folder).ok();
    /// # Ok::<(), llm_int8::LlmError>(())
    /// ```
    ///
    /// # Errors
    /// [`LlmError::Nn`](crate::LlmError::Nn) with [`NnError::TargetExists`], [`NnError::DiskFull`],
    /// [`NnError::Write`], [`NnError::Interrupted`] if `observe` stops it, or [`NnError::Config`]
    /// if a model without int8 layers is to be saved in 8 bit or dequantised;
    /// [`LlmError::Read`](crate::LlmError::Read) if a small file is a link out of the model's folder.
    /// [`LlmError::Decoder`](crate::LlmError::Decoder) for a model with an adapter.
    pub fn save_pretrained(
        &self,
        folder: &Path,
        options: &SaveOptions,
        observe: &mut WriteObserver<'_>,
    ) -> Result<()> {
        let has_int8 = self
            .named_parameters()
            .iter()
            .any(|p| p.dtype == ParameterDtype::I8);
        if !has_int8 && options.layers == SavedLayers::Dequantized {
            let reason =
                "no layer of this model is int8, so there is nothing to dequantise".to_owned();
            return Err(NnError::Config { reason }.into());
        }

        for companion in self.companions() {
            companion.check_publishable()?;
        }

        let new = NewFolder::begin(folder)?;
        let tensors = self.decoder().state(options.layers)?;
        new.write_tensors(&tensors, options.max_shard_size, observe)?;

        if options.layers == SavedLayers::Int8 && self.decoder().kept_bytes() > 0 {
            new.write_file(KEPT_COLUMNS, &self.decoder().kept_state())?;
        }

        for companion in self.companions() {
            new.write(&companion.name, &companion.read()?)?;
        }

        // Last: without `config.json` the folder cannot be taken for a model.
        let config = self.saved_config(has_int8 && options.layers == SavedLayers::Int8);
        new.write(
            "config.json",
            format!("{}\n", json::to_text(&config)).as_bytes(),
        )?;

        Ok(new.commit()?)
    }

    /// `config.json` with the dtype of the saved float weights and, for 8 bit, the section that
    /// `BitsAndBytesConfig` writes.
    fn saved_config(&self, is_int8: bool) -> Value {
        let mut config = self.config().values().clone();
        if let Some(keys) = config.as_object_mut() {
            keys.remove("torch_dtype");
            keys.remove("quantization_config");
            keys.insert(
                "dtype".into(),
                ParameterDtype::from(self.decoder().dtype()).name().into(),
            );
            if is_int8 {
                keys.insert("quantization_config".into(), self.quantization_config());
            }
        }

        config
    }

    fn quantization_config(&self) -> Value {
        // In transformers this list replaces the default, which keeps the head. So it must name
        // every layer that was kept.
        let kept: Vec<String> = self
            .load_report()
            .layers
            .kept
            .iter()
            .map(|layer| layer.path.to_string())
            .collect();
        let is_default = !kept.is_empty()
            && kept
                .iter()
                .all(|path| self.decoder().spec().never_converted().contains(path));
        serde_json::json!({
            "_load_in_4bit": false,
            "_load_in_8bit": true,
            "bnb_4bit_compute_dtype": "float32",
            "bnb_4bit_quant_storage": "uint8",
            "bnb_4bit_quant_type": "fp4",
            "bnb_4bit_use_double_quant": false,
            "llm_int8_enable_fp32_cpu_offload": false,
            "llm_int8_has_fp16_weight": false,
            "llm_int8_skip_modules": if is_default { Value::Null } else { kept.into() },
            "llm_int8_threshold": self.threshold(),
            "load_in_4bit": false,
            "load_in_8bit": true,
            "quant_method": "bitsandbytes",
        })
    }

    /// The outlier threshold of the int8 layers; bitsandbytes' own where it has no such rule.
    fn threshold(&self) -> f32 {
        let config = self.decoder().int8_config();
        match config.map(|config| config.outliers) {
            None => 0.0,
            Some(OutlierRule::Absolute { threshold, .. }) => threshold,
            Some(OutlierRule::RowRms { .. }) => BITSANDBYTES_THRESHOLD,
        }
    }
}
