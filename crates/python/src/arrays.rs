//! Arrays and token ids from Python.

use half::{bf16, f16};
use llm_int8::Prompt;
use numpy::ndarray::Dimension;
use numpy::{PyArrayDyn, PyArrayMethods, PyReadonlyArrayDyn};
use pyo3::exceptions::{PyTypeError, PyValueError};
use pyo3::prelude::*;
use pyo3::types::PyString;

/// A contiguous float array of numpy.
pub(crate) enum Floats<'py> {
    F32(PyReadonlyArrayDyn<'py, f32>),
    F16(PyReadonlyArrayDyn<'py, f16>),
    BF16(PyReadonlyArrayDyn<'py, bf16>),
}

impl<'py> Floats<'py> {
    /// A numpy array, a torch tensor on the CPU, or a list of numbers, which become float32 as with
    /// `torch.tensor`. Arrays that are not contiguous are copied.
    pub(crate) fn of(value: &Bound<'py, PyAny>) -> PyResult<Self> {
        let py = value.py();
        let array = py
            .import("llm_int8._arrays")?
            .call_method1("to_numpy", (value,))?;
        if let Ok(array) = array.cast::<PyArrayDyn<f32>>() {
            return Ok(Self::F32(array.readonly()));
        }
        if let Ok(array) = array.cast::<PyArrayDyn<f16>>() {
            return Ok(Self::F16(array.readonly()));
        }

        let name: String = array.getattr("dtype")?.getattr("name")?.extract()?;
        match &*name {
            "bfloat16" => Ok(Self::BF16(array.cast::<PyArrayDyn<bf16>>()?.readonly())),
            _ => Err(PyTypeError::new_err(format!(
                "the array is {name}; float32, float16 or bfloat16 is needed: convert it with .astype(numpy.float32)"
            ))),
        }
    }

    /// A float32 array, for what computes in that dtype alone.
    pub(crate) fn f32_of(value: &Bound<'py, PyAny>) -> PyResult<PyReadonlyArrayDyn<'py, f32>> {
        match Self::of(value)? {
            Self::F32(array) => Ok(array),
            _ => Err(PyTypeError::new_err(
                "the array must be float32; convert it with .astype(numpy.float32)",
            )),
        }
    }
}

/// The shape of an array.
pub(crate) fn shape_of<T: numpy::Element>(array: &PyReadonlyArrayDyn<'_, T>) -> Vec<usize> {
    array.dims().slice().to_vec()
}

/// A prompt: a text, or the token ids of one sequence.
pub(crate) fn prompt_of(value: &Bound<'_, PyAny>) -> PyResult<Prompt> {
    if let Ok(text) = value.cast::<PyString>() {
        return Ok(Prompt::Text(text.extract()?));
    }
    let (mut rows, _) = ids_of(value)?;
    match (rows.len(), rows.pop()) {
        (0, _) => Ok(Prompt::Ids(Vec::new())),
        (1, Some(ids)) => Ok(Prompt::Ids(ids)),
        (count, _) => Err(PyValueError::new_err(format!(
            "the token ids are {count} sequences; one is needed here, generate_batch takes several"
        ))),
    }
}

/// Token ids `[T]` or `[B, T]` as rows, and whether there was a dimension for the batch.
pub(crate) fn ids_of(value: &Bound<'_, PyAny>) -> PyResult<(Vec<Vec<u32>>, bool)> {
    let numpy = value.py().import("numpy")?;
    let array = numpy.call_method1("asarray", (value,))?;
    let kind: String = array.getattr("dtype")?.getattr("kind")?.extract()?;
    let size: usize = array.getattr("size")?.extract()?;
    if size == 0 {
        return Ok((Vec::new(), false));
    }
    if kind != "i" && kind != "u" {
        let what = array.getattr("dtype")?.to_string();
        return Err(PyTypeError::new_err(format!(
            "a prompt is a text or token ids, which are whole numbers; this is an array of {what}"
        )));
    }

    let array = numpy.call_method1("ascontiguousarray", (array, "int64"))?;
    let array = array.cast::<PyArrayDyn<i64>>()?.readonly();
    let shape = shape_of(&array);
    let tokens = match shape[..] {
        [tokens] | [_, tokens] => tokens,
        _ => {
            return Err(PyValueError::new_err(format!(
                "the token ids have shape {shape:?}; [tokens] or [batch, tokens] is needed"
            )));
        }
    };

    let id = |id: &i64| {
        u32::try_from(*id)
            .map_err(|_| PyValueError::new_err(format!("{id} is no token id; they are from 0 up")))
    };
    let rows = array.as_slice()?.chunks(tokens.max(1));
    let rows = rows.map(|row| row.iter().map(id).collect::<PyResult<_>>());
    Ok((rows.collect::<PyResult<_>>()?, shape.len() == 2))
}

/// A Python object as JSON, by way of Python's own `json`.
pub(crate) fn json_of(value: &Bound<'_, PyAny>) -> PyResult<serde_json::Value> {
    let text: String = value
        .py()
        .import("json")?
        .call_method1("dumps", (value,))?
        .extract()?;
    serde_json::from_str(&text).map_err(|cause| PyValueError::new_err(cause.to_string()))
}
