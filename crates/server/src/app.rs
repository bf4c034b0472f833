//! What all requests share, and which phase the server is in.

use crate::config::ServerConfig;
use crate::metrics::Metrics;
use crate::model::Loaded;
use crate::reply::{ApiError, ApiResult};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock};

/// A server's state: loading until there is a model, then serving, then draining.
#[derive(Debug)]
pub(crate) struct App {
    pub(crate) config: ServerConfig,
    pub(crate) metrics: Arc<Metrics>,
    loaded: OnceLock<Arc<Loaded>>,
    is_draining: AtomicBool,
}

impl App {
    pub(crate) fn new(config: ServerConfig) -> Self {
        Self {
            config,
            metrics: Arc::new(Metrics::new()),
            loaded: OnceLock::new(),
            is_draining: AtomicBool::new(false),
        }
    }

    /// The model, whether or not it may still be asked.
    pub(crate) fn model(&self) -> Option<&Arc<Loaded>> {
        self.loaded.get()
    }

    /// Begins to serve.
    pub(crate) fn serve(&self, loaded: Loaded) {
        // There is one model, so it is set once.
        let _ = self.loaded.set(Arc::new(loaded));
    }

    /// Stops taking requests.
    pub(crate) fn drain(&self) {
        self.is_draining.store(true, Ordering::Relaxed);
    }

    /// The model that a request may ask.
    ///
    /// # Errors
    /// 503 while it is loaded and while the server is being shut down.
    pub(crate) fn ready(&self) -> ApiResult<Arc<Loaded>> {
        if self.is_draining.load(Ordering::Relaxed) {
            return Err(ApiError::draining());
        }
        self.loaded.get().cloned().ok_or_else(ApiError::loading)
    }

    /// Refuses a request early, before its prompt is encoded, if the queue is full.
    pub(crate) fn check_queue(&self, loaded: &Loaded) -> ApiResult<()> {
        let state = loaded.service.state();
        let most = self.config.parallel.saturating_add(self.config.max_queue);
        if state.running + state.waiting >= most {
            return Err(ApiError::queue_full(state.waiting));
        }
        Ok(())
    }
}
