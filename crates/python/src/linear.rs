//! Int8 layers and row-wise quantisation on arrays.

use crate::arrays::{Floats, shape_of};
use crate::error::of_layer;
use crate::options::unknown;
use crate::runtime;
use crate::view;
use candle_core::{DType, Device, Tensor, WithDType};
use half::{bf16, f16};
use llm_int8::nn::linear::{FloatLinear, Int8Config, Int8Weight, OutlierRule, OutlierWeights};
use llm_int8::nn::{Isa, linear};
use numpy::{Element, IntoPyArray, PyArray1, PyArrayMethods, PyReadonlyArrayDyn};
use pyo3::exceptions::{PyRuntimeError, PyValueError};
use pyo3::prelude::*;

/// `y = x · Wᵀ + b` with int8 weights, as bitsandbytes' `Linear8bitLt` computes it.
#[pyclass(frozen, module = "llm_int8._native")]
pub(crate) struct Int8Linear(linear::Int8Linear);

/// An array as a tensor.
fn tensor_of(array: &Floats<'_>) -> PyResult<Tensor> {
    match array {
        Floats::F32(array) => copied(array),
        Floats::F16(array) => copied(array),
        Floats::BF16(array) => copied(array),
    }
}

fn copied<T: Element + WithDType>(array: &PyReadonlyArrayDyn<'_, T>) -> PyResult<Tensor> {
    Tensor::from_slice(array.as_slice()?, shape_of(array), &Device::Cpu).map_err(failed)
}

fn failed(cause: candle_core::Error) -> PyErr {
    PyRuntimeError::new_err(cause.to_string())
}

/// A tensor as an array of the same dtype.
fn array_of<'py>(py: Python<'py>, tensor: &Tensor) -> PyResult<Bound<'py, PyAny>> {
    match tensor.dtype() {
        DType::F16 => moved::<f16>(py, tensor),
        DType::BF16 => {
            view::require_bfloat16(py)?;
            moved::<bf16>(py, tensor)
        }
        _ => moved::<f32>(py, tensor),
    }
}

fn moved<'py, T: Element + WithDType>(
    py: Python<'py>,
    tensor: &Tensor,
) -> PyResult<Bound<'py, PyAny>> {
    let values = tensor.flatten_all().and_then(|flat| flat.to_vec1::<T>());
    let flat = values.map_err(failed)?.into_pyarray(py);
    Ok(flat.reshape(tensor.dims().to_vec())?.into_any())
}

/// Which activations are outliers.
fn rule(threshold: f32, outliers: &str) -> PyResult<OutlierRule> {
    if !(threshold >= 0.0 && threshold.is_finite()) {
        let text = format!("threshold is {threshold}; expected a number from 0 up");
        return Err(PyValueError::new_err(text));
    }
    match outliers {
        "batch" => Ok(OutlierRule::batch(threshold)),
        "row" => Ok(OutlierRule::row(threshold)),
        "rms" => Ok(OutlierRule::row_rms(threshold)),
        other => Err(unknown("outliers", other, "batch, row or rms")),
    }
}

#[pymethods]
impl Int8Linear {
    /// Quantises a weight `[out, in]`; the bias `[out]` stays float.
    #[new]
    #[pyo3(signature = (weight, bias=None, *, threshold=6.0, outliers="batch", original_outlier_weights=false))]
    fn new(
        py: Python<'_>,
        weight: &Bound<'_, PyAny>,
        bias: Option<&Bound<'_, PyAny>>,
        threshold: f32,
        outliers: &str,
        original_outlier_weights: bool,
    ) -> PyResult<Self> {
        runtime::start(py, None)?;
        let config = Int8Config {
            outliers: rule(threshold, outliers)?,
            outlier_weights: match original_outlier_weights {
                true => OutlierWeights::Original,
                false => OutlierWeights::Dequantized,
            },
        };
        let weight = tensor_of(&Floats::of(weight)?)?;
        let bias = bias.map(|bias| tensor_of(&Floats::of(bias)?)).transpose()?;
        py.detach(|| {
            let float = FloatLinear::new(weight, bias).map_err(of_layer)?;
            let layer = linear::Int8Linear::quantize(&float, config).map_err(of_layer)?;
            Ok(Self(layer))
        })
    }

    /// `x` `[..., in]` to `[..., out]`, in the same dtype.
    fn __call__<'py>(&self, py: Python<'py>, x: &Bound<'py, PyAny>) -> PyResult<Bound<'py, PyAny>> {
        runtime::start(py, None)?;
        let x = tensor_of(&Floats::of(x)?)?;
        let y = py.detach(|| self.0.forward(&x).map_err(of_layer))?;
        array_of(py, &y)
    }

    /// The codes, int8 `[out, in]`, read-only and without a copy.
    #[getter]
    fn codes<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyAny>> {
        view::of_codes(py, self.0.weight().map_err(of_layer)?)
    }

    /// The largest magnitude of each row of the weight, float32 `[out]`.
    #[getter]
    fn absmax<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyArray1<f32>>> {
        let weight = self.0.weight().map_err(of_layer)?;
        Ok(PyArray1::from_slice(py, weight.absmax()))
    }

    #[getter]
    fn in_features(&self) -> usize {
        self.0.in_features()
    }

    #[getter]
    fn out_features(&self) -> usize {
        self.0.out_features()
    }

    fn __repr__(&self) -> String {
        use llm_int8::nn::module::Module;
        self.0.describe().to_string()
    }
}

/// Quantises a weight `[out, in]` row by row, as bitsandbytes does: through float16, absmax of each row,
/// codes `round(127 * w / absmax)` with halves to even. Returns the codes, int8 `[out, in]`, and the
/// absmax, float32 `[out]`.
///
/// Raises ValueError for values that float16 cannot hold.
#[pyfunction]
pub(crate) fn quantize_rowwise<'py>(
    py: Python<'py>,
    weight: &Bound<'py, PyAny>,
) -> PyResult<(Bound<'py, PyAny>, Bound<'py, PyArray1<f32>>)> {
    runtime::start(py, None)?;
    let weight = tensor_of(&Floats::of(weight)?)?;
    let quantized = py.detach(|| {
        let float = FloatLinear::new(weight, None).map_err(of_layer)?;
        linear::Int8Linear::quantize(&float, Int8Config::default()).map_err(of_layer)
    })?;
    let weight = quantized.weight().map_err(of_layer)?;
    let codes = view::of_codes(py, weight)?.call_method0("copy")?;
    Ok((codes, PyArray1::from_slice(py, weight.absmax())))
}

/// The values of an int8 weight, float32 `[out, in]`.
pub(crate) fn dequantized<'py>(
    py: Python<'py>,
    weight: &Int8Weight,
) -> PyResult<Bound<'py, PyAny>> {
    runtime::start(py, None)?;
    let values = py.detach(|| weight.dequantize(Isa::detect()).map_err(of_layer))?;
    Ok(PyArray1::from_vec(py, values)
        .reshape(weight.shape())?
        .into_any())
}
