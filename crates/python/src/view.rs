//! numpy arrays over the memory of a model: no copy, read-only, and alive as long as the array is.

#![expect(
    unsafe_code,
    reason = "numpy arrays that borrow memory which their base object keeps alive"
)]

use crate::error::of_layer;
use candle_core::{CpuStorage, Storage, Tensor, WithDType};
use half::{bf16, f16};
use llm_int8::nn::FloatDtype;
use llm_int8::nn::linear::Int8Weight;
use llm_int8::nn::parameter::FloatParameter;
use numpy::ndarray::{ArrayViewD, IxDyn};
use numpy::{Element, PyArrayDyn, PyArrayMethods};
use pyo3::exceptions::{PyImportError, PyRuntimeError};
use pyo3::prelude::*;

/// What keeps the memory of an array alive. Both share it with the model and are never written to.
#[pyclass(frozen, module = "llm_int8")]
struct Owner {
    _memory: Memory,
}

enum Memory {
    Codes { _weight: Int8Weight },
    Floats { _tensor: Tensor },
}

/// The codes of a weight, int8 `[out, in]`.
pub(crate) fn of_codes<'py>(py: Python<'py>, weight: &Int8Weight) -> PyResult<Bound<'py, PyAny>> {
    let memory = Memory::Codes {
        _weight: weight.clone(),
    };
    let owner = Bound::new(py, Owner { _memory: memory })?.into_any();
    borrowed(weight.codes(), &weight.shape(), owner)
}

/// The values of a parameter, in their own dtype and shape.
///
/// # Errors
/// `ImportError` for bfloat16 without the package `ml_dtypes`, which gives numpy that dtype.
pub(crate) fn of_floats<'py>(
    py: Python<'py>,
    values: &FloatParameter,
) -> PyResult<Bound<'py, PyAny>> {
    let tensor = values.tensor().map_err(of_layer)?;
    match values.dtype() {
        FloatDtype::F32 => of_tensor::<f32>(py, tensor),
        FloatDtype::F16 => of_tensor::<f16>(py, tensor),
        FloatDtype::BF16 => {
            require_bfloat16(py)?;
            of_tensor::<bf16>(py, tensor)
        }
    }
}

/// Checks that numpy knows bfloat16.
pub(crate) fn require_bfloat16(py: Python<'_>) -> PyResult<()> {
    py.import("ml_dtypes").map(|_| ()).map_err(|_| {
        PyImportError::new_err(
            "these values are bfloat16, which numpy knows with the package ml_dtypes only: pip install ml_dtypes, \
             or load the model in float16",
        )
    })
}

fn of_tensor<'py, T: Element + WithDType>(
    py: Python<'py>,
    tensor: &Tensor,
) -> PyResult<Bound<'py, PyAny>> {
    let memory = Memory::Floats {
        _tensor: tensor.clone(),
    };
    let owner = Bound::new(py, Owner { _memory: memory })?.into_any();

    let (storage, layout) = tensor.storage_and_layout();
    let (Storage::Cpu(storage), Some((start, end))) = (&*storage, layout.contiguous_offsets())
    else {
        let text = "the values are not in the memory of the CPU";
        return Err(PyRuntimeError::new_err(text));
    };
    let values = CpuStorage::as_slice::<T>(storage)
        .map_err(|cause| PyRuntimeError::new_err(cause.to_string()))?;
    borrowed(&values[start..end], tensor.dims(), owner)
}

/// A read-only array over `values`, which `owner` keeps alive.
fn borrowed<'py, T: Element>(
    values: &[T],
    shape: &[usize],
    owner: Bound<'py, PyAny>,
) -> PyResult<Bound<'py, PyAny>> {
    let view = ArrayViewD::from_shape(IxDyn(shape), values)
        .map_err(|cause| PyRuntimeError::new_err(cause.to_string()))?;
    // SAFETY: `owner` becomes the array's base. It holds a reference to the memory of `values` (both
    // callers put it there), and that memory neither moves nor changes: an `Int8Weight` is immutable,
    // and no tensor of a loaded model is written in place. The array is made read-only before
    // anyone else sees it, and numpy does not let its flag be set again, as the base has no
    // writable buffer.
    let array = unsafe { PyArrayDyn::borrow_from_array(&view, owner) };
    array.try_readwrite()?.make_nonwriteable();
    Ok(array.into_any())
}
