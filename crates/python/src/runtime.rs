//! The threads of this process, and signals while they compute.

use pyo3::exceptions::{PyRuntimeError, PyValueError};
use pyo3::prelude::*;
use std::sync::{Mutex, OnceLock};
use std::time::{Duration, Instant};

/// The most threads that can be asked for.
const MOST_THREADS: usize = 1024;
/// How often a computation looks for signals.
pub(crate) const PERIOD: Duration = Duration::from_millis(20);

/// The threads, once they run.
struct Started {
    process: u32,
    threads: usize,
}

static STARTED: OnceLock<Started> = OnceLock::new();

/// Starts the threads, if they do not run yet: `requested` of them, else as many as `OMP_NUM_THREADS`
/// says, which Ray and Slurm set, else one per core.
///
/// # Errors
/// `RuntimeError` in a process that was forked after its parent's threads had started: they do not
/// exist here. `ValueError` for another number of threads than the process has.
pub(crate) fn start(py: Python<'_>, requested: Option<usize>) -> PyResult<()> {
    static STARTING: Mutex<()> = Mutex::new(());

    if STARTED.get().is_none() {
        let threads = match requested {
            Some(threads) => threads,
            None => default_threads(py)?,
        };
        py.detach(|| {
            let _guard = STARTING.lock();
            match STARTED.get() {
                Some(_) => Ok(()),
                None => build(threads),
            }
        })?;
    }

    match (STARTED.get(), requested) {
        (Some(started), _) if started.process != std::process::id() => {
            let text = format!(
                "this process was forked from process {} after llm_int8 had started its threads there, and threads do \
                 not survive a fork; load the model in the child alone, or start it with \
                 multiprocessing.get_context('spawn')",
                started.process
            );
            Err(PyRuntimeError::new_err(text))
        }
        (Some(started), Some(threads)) if started.threads != threads => {
            let text = format!(
                "num_threads is {threads}, but this process computes with {} threads; their number is fixed by the \
                 first model or array, or by llm_int8.set_num_threads before it",
                started.threads
            );
            Err(PyValueError::new_err(text))
        }
        _ => Ok(()),
    }
}

fn build(threads: usize) -> PyResult<()> {
    if !(1..=MOST_THREADS).contains(&threads) {
        let text = format!("num_threads is {threads}; it must be from 1 to {MOST_THREADS}");
        return Err(PyValueError::new_err(text));
    }
    rayon::ThreadPoolBuilder::new()
        .num_threads(threads)
        .build_global()
        .map_err(|cause| PyRuntimeError::new_err(format!("the threads cannot start: {cause}")))?;
    let process = std::process::id();
    STARTED.get_or_init(|| Started { process, threads });
    Ok(())
}

/// `OMP_NUM_THREADS` if it is a number, else the number of cores that this process may use.
fn default_threads(py: Python<'_>) -> PyResult<usize> {
    let environment = py.import("os")?.getattr("environ")?;
    let value: Option<String> = environment
        .call_method1("get", ("OMP_NUM_THREADS",))?
        .extract()?;
    // OpenMP allows a list with a number for each level of nesting.
    let first = value.as_deref().and_then(|text| text.split(',').next());
    let number = first.and_then(|text| text.trim().parse().ok());
    let cores = || std::thread::available_parallelism().map_or(1, usize::from);
    Ok(number.unwrap_or_else(cores).clamp(1, MOST_THREADS))
}

/// Sets the number of CPU threads of this process. It can be set once, before the first model is loaded
/// and before anything is quantised; the same number again is no error.
#[pyfunction]
pub(crate) fn set_num_threads(py: Python<'_>, num_threads: usize) -> PyResult<()> {
    start(py, Some(num_threads))
}

/// The number of CPU threads of this process.
#[pyfunction]
pub(crate) fn get_num_threads(py: Python<'_>) -> PyResult<usize> {
    start(py, None)?;
    Ok(STARTED.get().map_or(1, |started| started.threads))
}

/// Looks for signals now and then in a loop that runs without the interpreter.
pub(crate) struct Signals(Instant);

impl Signals {
    pub(crate) fn new() -> Self {
        Self(Instant::now())
    }

    /// Runs Python's signal handlers if some time has passed since the last call.
    ///
    /// # Errors
    /// What a handler raises, `KeyboardInterrupt` as a rule.
    pub(crate) fn check(&mut self) -> PyResult<()> {
        if self.0.elapsed() < PERIOD {
            return Ok(());
        }
        let outcome = Python::attach(|py| py.check_signals());
        self.0 = Instant::now();
        outcome
    }
}
