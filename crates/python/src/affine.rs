//! PyTorch's INT8 affine quantisation on arrays (`torch.ao.quantization`).

use crate::arrays::{Floats, shape_of};
use crate::error::of_affine;
use crate::options::unknown;
use llm_int8_affine::{
    AnyObserver, Observer as _, ObserverConfig, ObserverKind, QParams, QScheme, QuantizedDtype,
    TensorRef, custom,
};
use numpy::{PyArray1, PyArrayMethods};
use pyo3::exceptions::PyValueError;
use pyo3::prelude::*;
use pyo3::types::{PyDict, PyTuple};
use std::sync::{Mutex, PoisonError};

/// An observer: it takes tensors into account and chooses scale and zero point for them.
#[pyclass(frozen, module = "llm_int8._native")]
pub(crate) struct Observer(Mutex<AnyObserver>);

/// A quantised tensor: codes with their scales and zero points. It prints as in torch.
#[pyclass(frozen, module = "llm_int8.affine")]
pub(crate) struct QuantizedTensor(llm_int8_affine::QuantizedTensor);

fn dtype_of(name: &str) -> PyResult<QuantizedDtype> {
    match name {
        "qint8" | "int8" => Ok(QuantizedDtype::Qint8),
        "quint8" | "uint8" => Ok(QuantizedDtype::Quint8),
        other => Err(unknown("dtype", other, "qint8 or quint8")),
    }
}

fn scheme_of(name: &str) -> PyResult<QScheme> {
    match name {
        "per_tensor_affine" => Ok(QScheme::PerTensorAffine),
        "per_tensor_symmetric" => Ok(QScheme::PerTensorSymmetric),
        "per_channel_affine" => Ok(QScheme::PerChannelAffine),
        "per_channel_symmetric" => Ok(QScheme::PerChannelSymmetric),
        other => {
            let known = "per_tensor_affine, per_tensor_symmetric, per_channel_affine or \
                         per_channel_symmetric";
            Err(unknown("qscheme", other, known))
        }
    }
}

/// Scales and zero points as Python has them: two numbers, or two arrays and the axis.
fn qparams_object<'py>(py: Python<'py>, qparams: &QParams) -> PyResult<Bound<'py, PyTuple>> {
    match qparams {
        QParams::PerTensor { scale, zero_point } => (*scale, *zero_point).into_pyobject(py),
        QParams::PerChannel {
            scales,
            zero_points,
            ..
        } => {
            let scales = PyArray1::from_slice(py, scales);
            let zero_points = PyArray1::from_slice(py, zero_points);
            (scales, zero_points).into_pyobject(py)
        }
    }
}

#[pymethods]
impl Observer {
    #[new]
    #[pyo3(signature = (kind, *, dtype, qscheme, reduce_range, quant_range, eps, averaging_constant, ch_axis))]
    #[expect(
        clippy::too_many_arguments,
        reason = "the settings of torch's observers, all by name"
    )]
    fn new(
        kind: &str,
        dtype: &str,
        qscheme: &str,
        reduce_range: bool,
        quant_range: Option<(i32, i32)>,
        eps: f32,
        averaging_constant: f32,
        ch_axis: usize,
    ) -> PyResult<Self> {
        let kind = match kind {
            "MinMaxObserver" => ObserverKind::MinMax,
            "MovingAverageMinMaxObserver" => ObserverKind::MovingAverageMinMax(averaging_constant),
            "PerChannelMinMaxObserver" => ObserverKind::PerChannelMinMax(ch_axis),
            "HistogramObserver" => ObserverKind::Histogram,
            other => return Err(unknown("the observer", other, "one of the four classes")),
        };
        let config = ObserverConfig {
            reduce_range,
            quant_range,
            eps,
            ..ObserverConfig::new(kind, dtype_of(dtype)?, scheme_of(qscheme)?)
        };
        Ok(Self(Mutex::new(config.build().map_err(of_affine)?)))
    }

    /// Takes a tensor into account.
    fn observe(&self, x: &Bound<'_, PyAny>) -> PyResult<()> {
        let x = Floats::f32_of(x)?;
        let shape = shape_of(&x);
        let x = TensorRef::new(x.as_slice()?, &shape).map_err(of_affine)?;
        let mut observer = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        observer.observe(x).map_err(of_affine)
    }

    /// Scale and zero point for what was seen.
    fn calculate_qparams<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyTuple>> {
        let observer = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let qparams = observer.qparams().map_err(of_affine)?;
        qparams_object(py, &qparams)
    }

    fn __str__(&self) -> String {
        let observer = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        observer.to_string()
    }
}

fn quantized(x: &Bound<'_, PyAny>, dtype: &str, qparams: &QParams) -> PyResult<QuantizedTensor> {
    let x = Floats::f32_of(x)?;
    let shape = shape_of(&x);
    let x = TensorRef::new(x.as_slice()?, &shape).map_err(of_affine)?;
    let tensor = llm_int8_affine::QuantizedTensor::quantize(x, dtype_of(dtype)?, qparams);
    Ok(QuantizedTensor(tensor.map_err(of_affine)?))
}

/// `torch.quantize_per_tensor`: `clamp(round(x * (1 / scale)) + zero_point)`, halves to even.
#[pyfunction]
pub(crate) fn quantize_per_tensor(
    x: &Bound<'_, PyAny>,
    scale: f64,
    zero_point: i32,
    dtype: &str,
) -> PyResult<QuantizedTensor> {
    quantized(x, dtype, &QParams::PerTensor { scale, zero_point })
}

/// `torch.quantize_per_channel`: a scale and a zero point for each slice along `axis`.
#[pyfunction]
pub(crate) fn quantize_per_channel(
    x: &Bound<'_, PyAny>,
    scales: Vec<f64>,
    zero_points: Vec<i32>,
    axis: usize,
    dtype: &str,
) -> PyResult<QuantizedTensor> {
    let qparams = QParams::PerChannel {
        scales,
        zero_points,
        axis,
    };
    quantized(x, dtype, &qparams)
}

/// Scale and zero point by the textbook formulae, for codes from -128 to 127.
#[pyfunction]
pub(crate) fn textbook<'py>(
    x: &Bound<'py, PyAny>,
    symmetric: bool,
) -> PyResult<Bound<'py, PyTuple>> {
    let py = x.py();
    let x = Floats::f32_of(x)?;
    let shape = shape_of(&x);
    let x = TensorRef::new(x.as_slice()?, &shape).map_err(of_affine)?;
    let qparams = match symmetric {
        true => custom::symmetric(x),
        false => custom::asymmetric(x),
    };
    qparams_object(py, &qparams.map_err(of_affine)?)
}

#[pymethods]
impl QuantizedTensor {
    /// The codes, int8 or uint8.
    fn int_repr<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyAny>> {
        let codes = PyArray1::from_slice(py, self.0.int_repr());
        let name = match self.0.dtype() {
            QuantizedDtype::Qint8 => "int8",
            QuantizedDtype::Quint8 => "uint8",
        };
        let shaped = codes.reshape(self.0.shape().to_vec())?;
        shaped.call_method1("astype", (name,))
    }

    /// The values, float32: `(code - zero_point) * scale`.
    fn dequantize<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyAny>> {
        let values = PyArray1::from_vec(py, self.0.dequantize());
        Ok(values.reshape(self.0.shape().to_vec())?.into_any())
    }

    /// The dimensions.
    #[getter]
    fn shape<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyTuple>> {
        PyTuple::new(py, self.0.shape())
    }

    /// "torch.qint8" or "torch.quint8".
    #[getter]
    fn dtype(&self) -> String {
        self.0.dtype().to_string()
    }

    /// "torch.per_tensor_affine" or "torch.per_channel_affine".
    fn qscheme(&self) -> String {
        self.0.qparams().scheme().to_string()
    }

    /// The scale of a tensor that has one.
    fn q_scale(&self) -> PyResult<f64> {
        match self.0.qparams() {
            QParams::PerTensor { scale, .. } => Ok(*scale),
            QParams::PerChannel { .. } => Err(PyValueError::new_err(
                "each channel has its own scale; use q_per_channel_scales()",
            )),
        }
    }

    /// The zero point of a tensor that has one.
    fn q_zero_point(&self) -> PyResult<i32> {
        match self.0.qparams() {
            QParams::PerTensor { zero_point, .. } => Ok(*zero_point),
            QParams::PerChannel { .. } => Err(PyValueError::new_err(
                "each channel has its own zero point; use q_per_channel_zero_points()",
            )),
        }
    }

    /// The scale of each channel, float64.
    fn q_per_channel_scales<'py>(&self, py: Python<'py>) -> Bound<'py, PyArray1<f64>> {
        let channels = self.0.qparams().channels();
        PyArray1::from_vec(py, channels.map(|(scale, _)| scale).collect())
    }

    /// The zero point of each channel.
    fn q_per_channel_zero_points<'py>(&self, py: Python<'py>) -> Bound<'py, PyArray1<i32>> {
        let channels = self.0.qparams().channels();
        PyArray1::from_vec(py, channels.map(|(_, zero_point)| zero_point).collect())
    }

    /// The error against `x`, the values that were quantised: a dict of `max`, `mean`, `rms` and
    /// `signal_to_noise` in decibels.
    fn errors<'py>(&self, x: &Bound<'py, PyAny>) -> PyResult<Bound<'py, PyDict>> {
        let py = x.py();
        let x = Floats::f32_of(x)?;
        let shape = shape_of(&x);
        if shape != self.0.shape() {
            let own = self.0.shape();
            let text = format!("the values have shape {shape:?}, the quantised tensor {own:?}");
            return Err(PyValueError::new_err(text));
        }
        let x = TensorRef::new(x.as_slice()?, &shape).map_err(of_affine)?;
        let errors = self.0.errors(x);
        let dict = PyDict::new(py);
        dict.set_item("max", errors.max)?;
        dict.set_item("mean", errors.mean)?;
        dict.set_item("rms", errors.rms)?;
        dict.set_item("signal_to_noise", errors.signal_to_noise)?;
        Ok(dict)
    }

    fn __str__(&self) -> String {
        self.0.to_string()
    }

    fn __repr__(&self) -> String {
        self.0.to_string()
    }
}
