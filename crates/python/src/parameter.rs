//! Parameters of a model.

use crate::view;
use llm_int8::AutoModelForCausalLM;
use llm_int8::decoder::ParameterValues;
use llm_int8::nn::ParameterDtype;
use llm_int8::nn::linear::Int8Weight;
use llm_int8::nn::module::NamedParameter;
use llm_int8::nn::parameter::FloatParameter;
use numpy::PyArray1;
use pyo3::exceptions::{PyRuntimeError, PyTypeError};
use pyo3::prelude::*;
use pyo3::types::PyTuple;
use std::collections::HashMap;

/// A parameter: its dtype and shape, as PyTorch prints them, and its values as a numpy array that
/// shares the model's memory.
#[pyclass(frozen, module = "llm_int8")]
pub(crate) struct Parameter {
    dtype: ParameterDtype,
    shape: Vec<usize>,
    values: Option<Values>,
}

/// Both share their memory with the model.
enum Values {
    Int8(Int8Weight),
    Float {
        values: FloatParameter,
        is_transposed: bool,
    },
}

/// The parameters of a loaded model by name, in PyTorch's order.
pub(crate) fn all(model: &AutoModelForCausalLM) -> Vec<(String, Parameter)> {
    let values = model.decoder().parameter_values();
    let mut values: HashMap<String, ParameterValues<'_>> = values.into_iter().collect();
    let names = model.named_parameters().into_iter();
    names
        .map(|named| {
            let values = values.remove(&named.name).map(|values| match values {
                ParameterValues::Int8(weight) => Values::Int8(weight.clone()),
                ParameterValues::Float {
                    values,
                    is_transposed,
                } => Values::Float {
                    values: values.clone(),
                    is_transposed,
                },
            });
            described(named, values)
        })
        .collect()
}

/// Parameters without values.
pub(crate) fn planned(names: Vec<NamedParameter>) -> Vec<(String, Parameter)> {
    let names = names.into_iter();
    names.map(|named| described(named, None)).collect()
}

fn described(named: NamedParameter, values: Option<Values>) -> (String, Parameter) {
    let parameter = Parameter {
        dtype: named.dtype,
        shape: named.shape,
        values,
    };
    (named.name, parameter)
}

#[pymethods]
impl Parameter {
    /// The dtype as PyTorch prints it: "torch.int8", "torch.float16", ...
    #[getter]
    fn dtype(&self) -> String {
        self.dtype.to_string()
    }

    /// The dimensions.
    #[getter]
    fn shape<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyTuple>> {
        PyTuple::new(py, &self.shape)
    }

    /// Number of dimensions.
    #[getter]
    fn ndim(&self) -> usize {
        self.shape.len()
    }

    /// Number of elements.
    fn numel(&self) -> usize {
        self.shape.iter().product()
    }

    /// Bytes of the elements.
    #[getter]
    fn nbytes(&self) -> usize {
        self.numel() * self.dtype.size_in_bytes()
    }

    /// The values, read-only and without a copy: int8 codes `[out, in]`, or floats in their own dtype.
    /// The memory lives as long as the array.
    fn numpy<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyAny>> {
        match self.values()? {
            Values::Int8(weight) => view::of_codes(py, weight),
            Values::Float {
                values,
                is_transposed,
            } => {
                let array = view::of_floats(py, values)?;
                match is_transposed {
                    true => array.call_method0("transpose"),
                    false => Ok(array),
                }
            }
        }
    }

    /// The largest magnitude of each row of an int8 weight, float32 `[out]` (bitsandbytes' `SCB`);
    /// None for floats.
    #[getter]
    fn absmax<'py>(&self, py: Python<'py>) -> PyResult<Option<Bound<'py, PyArray1<f32>>>> {
        if self.dtype != ParameterDtype::I8 {
            return Ok(None);
        }
        match self.values()? {
            Values::Int8(weight) => Ok(Some(PyArray1::from_slice(py, weight.absmax()))),
            Values::Float { .. } => Ok(None),
        }
    }

    /// The values as floats, in float32: of an int8 weight `codes * absmax / 127`, computed here.
    fn dequantize<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyAny>> {
        let Values::Int8(weight) = self.values()? else {
            let text = "only int8 parameters can be dequantized; use numpy()";
            return Err(PyTypeError::new_err(text));
        };
        crate::linear::dequantized(py, weight)
    }

    /// For `numpy.asarray(parameter)`.
    #[pyo3(signature = (dtype=None, copy=None))]
    fn __array__<'py>(
        &self,
        py: Python<'py>,
        dtype: Option<Bound<'py, PyAny>>,
        copy: Option<bool>,
    ) -> PyResult<Bound<'py, PyAny>> {
        let array = self.numpy(py)?;
        match (dtype, copy) {
            (Some(dtype), _) => array.call_method1("astype", (dtype,)),
            (None, Some(true)) => array.call_method0("copy"),
            (None, _) => Ok(array),
        }
    }

    fn __len__(&self) -> PyResult<usize> {
        let first = self.shape.first().copied();
        first.ok_or_else(|| PyTypeError::new_err("a parameter without dimensions has no length"))
    }

    fn __repr__(&self, py: Python<'_>) -> PyResult<String> {
        let shape = self.shape(py)?.repr()?;
        Ok(format!("Parameter(dtype={}, shape={shape})", self.dtype))
    }
}

impl Parameter {
    fn values(&self) -> PyResult<&Values> {
        let text = "the values are not in the memory of the CPU: the model was only described (inspect), or this part \
                    of it is on a GPU";
        self.values
            .as_ref()
            .ok_or_else(|| PyRuntimeError::new_err(text))
    }
}
