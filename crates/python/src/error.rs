//! The libraries' errors as Python exceptions, with the libraries' own sentences: `ValueError` for what
//! the caller gave, `OSError` and its kinds for files and the network, `RuntimeError` for the rest.

use llm_int8::LlmError;
use llm_int8::decoder::DecoderError;
use llm_int8::hub::HubError;
use llm_int8::nn::NnError;
use llm_int8_affine::AffineError;
use llm_int8_server::ServerError;
use pyo3::exceptions::{
    PyFileExistsError, PyKeyboardInterrupt, PyOSError, PyRuntimeError, PyValueError,
};
use pyo3::prelude::*;

/// The exception of an error of `llm_int8`.
pub(crate) fn of_llm(error: LlmError) -> PyErr {
    let text = error.to_string();
    match root(&error) {
        LlmError::Hub(error) => of_hub(error, text),
        LlmError::Nn(error) => of_nn(error, text),
        LlmError::Decoder(error) => of_decoder(error, text),
        LlmError::Read { .. } => PyOSError::new_err(text),
        LlmError::Interrupted => PyKeyboardInterrupt::new_err(text),
        LlmError::Candle(_)
        | LlmError::BadLogits
        | LlmError::Constraint { .. }
        | LlmError::PassFailed { .. } => PyRuntimeError::new_err(text),
        _ => PyValueError::new_err(text),
    }
}

/// The error itself, without what says whose it is.
fn root(error: &LlmError) -> &LlmError {
    match error {
        LlmError::Prompt { source, .. } | LlmError::Against { source, .. } => root(source),
        error => error,
    }
}

fn of_hub(error: &HubError, text: String) -> PyErr {
    match error {
        HubError::InvalidName { .. } => PyValueError::new_err(text),
        _ => PyOSError::new_err(text),
    }
}

fn of_nn(error: &NnError, text: String) -> PyErr {
    match error {
        NnError::TargetExists { .. } => PyFileExistsError::new_err(text),
        NnError::Read { .. }
        | NnError::Write { .. }
        | NnError::DiskFull { .. }
        | NnError::MalformedFile { .. }
        | NnError::UnsupportedFile { .. }
        | NnError::MalformedIndex { .. } => PyOSError::new_err(text),
        NnError::Interrupted { .. } => PyKeyboardInterrupt::new_err(text),
        NnError::Candle(_) | NnError::NotLoaded => PyRuntimeError::new_err(text),
        _ => PyValueError::new_err(text),
    }
}

fn of_decoder(error: &DecoderError, text: String) -> PyErr {
    match error {
        DecoderError::Nn(error) => of_nn(error, text),
        DecoderError::NonFiniteLogits
        | DecoderError::Bug { .. }
        | DecoderError::Cuda(_)
        | DecoderError::Candle(_) => PyRuntimeError::new_err(text),
        _ => PyValueError::new_err(text),
    }
}

/// The exception of an error of a layer.
pub(crate) fn of_layer(error: NnError) -> PyErr {
    let text = error.to_string();
    of_nn(&error, text)
}

/// The exception of an error of the decoder.
pub(crate) fn of_model(error: DecoderError) -> PyErr {
    of_llm(error.into())
}

/// The exception of an error of affine quantisation.
pub(crate) fn of_affine(error: AffineError) -> PyErr {
    PyValueError::new_err(error.to_string())
}

/// The exception of an error of the server.
pub(crate) fn of_server(error: ServerError) -> PyErr {
    let text = error.to_string();
    match error {
        ServerError::Bind { .. } | ServerError::System(_) | ServerError::KeyFile { .. } => {
            PyOSError::new_err(text)
        }
        ServerError::Setting { .. } => PyValueError::new_err(text),
        ServerError::Model(error) => of_llm(error),
        _ => PyRuntimeError::new_err(text),
    }
}
