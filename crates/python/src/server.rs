//! The server on a thread of this process.

use crate::error::{of_llm, of_server};
use crate::options::Options;
use crate::runtime::{self, PERIOD};
use llm_int8::AutoModelForCausalLM;
use llm_int8_server::{ApiKeys, RunError, ServerConfig, Shutdown};
use pyo3::exceptions::{PyRuntimeError, PyValueError};
use pyo3::prelude::*;
use std::net::{IpAddr, SocketAddr};
use std::sync::{Mutex, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::Duration;

/// A server that listens and answers until `stop()`.
#[pyclass(frozen, module = "llm_int8")]
pub(crate) struct Server {
    address: SocketAddr,
    shutdown: Shutdown,
    /// None once it was waited for.
    thread: Mutex<Option<JoinHandle<PyResult<()>>>>,
}

/// The settings of the server that Python's `serve` passes on.
#[derive(FromPyObject)]
#[pyo3(from_item_all)]
pub(crate) struct Settings {
    host: String,
    port: u16,
    parallel: usize,
    max_queue: usize,
    api_keys: Vec<String>,
    cache_bytes: Option<u64>,
    prefix_cache_bytes: u64,
    grace: f64,
    allowed_origins: Vec<String>,
    model_name: Option<String>,
    chat_template: Option<String>,
}

impl Settings {
    fn config(self) -> PyResult<ServerConfig> {
        let host: IpAddr = match &*self.host {
            "localhost" => IpAddr::from([127, 0, 0, 1]),
            host => host.parse().map_err(|_| {
                let text = format!("host is {host}; an IP address or localhost is needed");
                PyValueError::new_err(text)
            })?,
        };
        let grace = Duration::try_from_secs_f64(self.grace)
            .map_err(|cause| PyValueError::new_err(format!("grace is {}: {cause}", self.grace)))?;
        Ok(ServerConfig {
            address: SocketAddr::new(host, self.port),
            parallel: self.parallel,
            max_queue: self.max_queue,
            api_keys: ApiKeys::new(self.api_keys.iter().map(String::as_str)),
            cache_bytes: self.cache_bytes,
            prefix_cache_bytes: self.prefix_cache_bytes,
            grace,
            allowed_origins: self.allowed_origins,
            model_name: self.model_name,
            chat_template: self.chat_template,
            ..ServerConfig::default()
        })
    }
}

/// Listens and loads a model; see `llm_int8.serve`.
#[pyfunction]
pub(crate) fn serve(
    py: Python<'_>,
    name: String,
    options: Options,
    settings: Settings,
) -> PyResult<Server> {
    runtime::start(py, options.num_threads)?;
    let loading = options.config()?;
    let server = llm_int8_server::Server::bind(settings.config()?).map_err(of_server)?;
    let address = server.address();
    let shutdown = server.shutdown();

    let load = move || AutoModelForCausalLM::from_pretrained(&name, &loading);
    let work = move || {
        server.run(load).map_err(|error| match error {
            RunError::Load(error) => of_llm(error),
            RunError::Server(error) => of_server(error),
        })
    };
    let thread = thread::Builder::new().name("llm-int8 server".into());
    let thread = thread
        .spawn(work)
        .map_err(|cause| PyRuntimeError::new_err(format!("no thread can start: {cause}")))?;

    Ok(Server {
        address,
        shutdown,
        thread: Mutex::new(Some(thread)),
    })
}

impl Server {
    fn is_finished(&self) -> bool {
        let thread = self.thread.lock().unwrap_or_else(PoisonError::into_inner);
        thread.as_ref().is_none_or(JoinHandle::is_finished)
    }

    /// The outcome of the thread, once it has ended.
    fn join(&self) -> PyResult<()> {
        let mut thread = self.thread.lock().unwrap_or_else(PoisonError::into_inner);
        match thread.take().map(JoinHandle::join) {
            None => Ok(()),
            Some(Ok(outcome)) => outcome,
            Some(Err(_)) => Err(PyRuntimeError::new_err("the server has crashed")),
        }
    }
}

#[pymethods]
impl Server {
    /// `http://127.0.0.1:8080`, with the port that the system chose for port 0.
    #[getter]
    fn url(&self) -> String {
        format!("http://{}", self.address)
    }

    /// Whether it still runs.
    #[getter]
    fn is_running(&self) -> bool {
        !self.is_finished()
    }

    /// Waits until the server has ended. Raises what ended it; ctrl-C stops it.
    fn wait(&self, py: Python<'_>) -> PyResult<()> {
        while !py.detach(|| {
            thread::sleep(PERIOD);
            self.is_finished()
        }) {
            if let Err(error) = py.check_signals() {
                self.stop(py)?;
                return Err(error);
            }
        }
        self.join()
    }

    /// Ends the server: running requests may go on for the grace. A second ctrl-C ends them at once.
    fn stop(&self, py: Python<'_>) -> PyResult<()> {
        self.shutdown.begin();
        while !py.detach(|| {
            thread::sleep(PERIOD);
            self.is_finished()
        }) {
            if let Err(error) = py.check_signals() {
                self.shutdown.begin();
                return Err(error);
            }
        }
        self.join()
    }

    fn __enter__(this: Py<Self>) -> Py<Self> {
        this
    }

    #[pyo3(signature = (*_exception))]
    fn __exit__(&self, py: Python<'_>, _exception: &Bound<'_, PyAny>) -> PyResult<()> {
        self.stop(py)
    }

    fn __repr__(&self) -> String {
        let state = match self.is_finished() {
            true => "ended",
            false => "running",
        };
        format!("Server(url='{}', {state})", self.url())
    }
}

impl Drop for Server {
    /// A server that nobody holds any more ends, but is not waited for.
    fn drop(&mut self) {
        self.shutdown.begin();
    }
}
