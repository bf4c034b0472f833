//! Several prompts at once.

use crate::error::of_llm;
use crate::runtime::Signals;
use llm_int8::generate::SequenceId;
use llm_int8::{AutoModelForCausalLM, Generated, LlmError, Request, Update};
use pyo3::prelude::*;
use std::collections::BTreeMap;

/// Runs `requests`, at most `at_once` of them together. The results have the order of the requests; one
/// that fails does not stop the others.
///
/// # Errors
/// `ValueError` if `at_once` is 0; what a signal handler raises.
pub(crate) fn run(
    model: &AutoModelForCausalLM,
    requests: Vec<Request>,
    at_once: usize,
) -> PyResult<Vec<Result<Generated, LlmError>>> {
    let mut engine = model.engine(at_once).map_err(of_llm)?;
    let mut numbers: BTreeMap<SequenceId, usize> = BTreeMap::new();
    let mut results: BTreeMap<usize, Result<Generated, LlmError>> = BTreeMap::new();
    for (number, request) in requests.into_iter().enumerate() {
        match engine.add(request) {
            Ok(id) => {
                numbers.insert(id, number);
            }
            Err(error) => {
                results.insert(number, Err(error));
            }
        }
    }

    let mut signals = Signals::new();
    while !engine.is_idle() {
        for event in engine.step() {
            let result = match event.update {
                Update::Started { .. } | Update::Piece(_) => continue,
                Update::Finished(generated) => Ok(generated),
                Update::Failed(error) => Err(error),
            };
            if let Some(number) = numbers.remove(&event.id) {
                results.insert(number, result);
            }
        }
        signals.check()?;
    }
    Ok(results.into_values().collect())
}
