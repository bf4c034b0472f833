//! INT8 affine quantisation as PyTorch does it (`torch.ao.quantization`, eager mode, engine
//! fbgemm): `value ≈ (code - zero_point) · scale`.
//!
//! ```
//! use llm_int8_affine::{MinMaxObserver, Observer, QScheme, QuantizedDtype, QuantizedTensor, TensorRef};
//! let values = [3.0f32, -5.5, 0.0, 4.0, -6.0, 2.5];
//! let x = TensorRef::new(&values, &[6])?;
//! let mut observer = MinMaxObserver::new(QuantizedDtype::Qint8, QScheme::PerTensorAffine)?;
//! observer.observe(x)?;
//! let q = QuantizedTensor::quantize(x, QuantizedDtype::Qint8, &observer.qparams()?)?;
//! assert_eq!(q.int_repr(), [101, -115, 25, 127, -128, 89]);
//! assert_eq!(q.dequantize()[3], 4.0);
//! # Ok::<(), llm_int8_affine::AffineError>(())
//! ```
//!
//! - [`observer`]: observers, which turn the values they see into [`QParams`].
//! - [`tensor`]: quantised tensors; [`statistics`]: the quantisation error.
//! - [`custom`]: the textbook formulae, as notebooks write them by hand.
//! - [`module`]: [`Linear`](module::Linear), `prepare`, `convert`, the integer forward pass.
//!
//! Everything prints as in torch ([`mod@print`]).

pub mod custom;
pub mod dtype;
pub mod error;
pub mod module;
pub mod observer;
pub mod print;
pub mod qparams;
pub mod statistics;
pub mod tensor;

pub use dtype::{QScheme, QuantizedDtype};
pub use error::{AffineError, Result};
pub use observer::{
    AnyObserver, HistogramObserver, MinMaxObserver, MovingAverageMinMaxObserver, Observer,
    ObserverConfig, ObserverKind, PerChannelMinMaxObserver,
};
pub use qparams::QParams;
pub use statistics::ErrorStatistics;
pub use tensor::{QuantizedTensor, TensorRef};
