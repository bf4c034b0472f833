//! Observers collect the range of tensors and choose scales and zero points
//! (`torch.ao.quantization.observer`).

mod histogram;
mod min_max;
mod per_channel;

use crate::qparams::Grid;
use crate::{AffineError, QParams, QScheme, QuantizedDtype, Result, TensorRef};
pub use histogram::HistogramObserver;
pub use min_max::{MinMaxObserver, MovingAverageMinMaxObserver};
pub use per_channel::PerChannelMinMaxObserver;
use std::fmt;

/// An observer. It prints as in torch: `MinMaxObserver(min_val=-6.0, max_val=4.0)`.
pub trait Observer: fmt::Display {
    /// Takes a batch into account. An empty one changes nothing.
    ///
    /// # Errors
    /// [`AffineError::AxisOutOfRange`] and [`AffineError::ChannelsChanged`], for per-channel
    /// observers.
    fn observe(&mut self, x: TensorRef<'_>) -> Result<()>;

    /// Scale and zero point for the values seen. If there were none: scale 1 and zero point 0, as
    /// in torch (which warns).
    ///
    /// # Errors
    /// [`AffineError::WrongQParams`] if the width of the range overflows f32.
    fn qparams(&self) -> Result<QParams>;

    /// The dtype of the codes.
    fn dtype(&self) -> QuantizedDtype;
}

/// The kind of an observer.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum ObserverKind {
    /// [`MinMaxObserver`].
    MinMax,
    /// [`MovingAverageMinMaxObserver`] with its averaging constant (torch: 0.01).
    MovingAverageMinMax(f32),
    /// [`PerChannelMinMaxObserver`] along an axis.
    PerChannelMinMax(usize),
    /// [`HistogramObserver`] (2048 bins).
    Histogram,
}

/// The configuration of an observer (`Observer.with_args` in torch).
///
/// ```
/// use llm_int8_affine::*;
/// let config = ObserverConfig { reduce_range: true, ..ObserverConfig::new(
///     ObserverKind::MinMax, QuantizedDtype::Quint8, QScheme::PerTensorAffine) };
/// let mut observer = config.build()?;
/// observer.observe(TensorRef::new(&[-1.0, -0.3, 0.0, 0.7, 2.0], &[5])?)?;
/// let QParams::PerTensor { scale, zero_point } = observer.qparams()? else { unreachable!() };
/// assert_eq!((scale as f32, zero_point), (3.0 / 127.0, 42));
/// # Ok::<(), AffineError>(())
/// ```
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct ObserverConfig {
    /// The kind of observer.
    pub kind: ObserverKind,
    /// The dtype of the codes.
    pub dtype: QuantizedDtype,
    /// The scheme of scale and zero point.
    pub scheme: QScheme,
    /// Use half of the codes only.
    pub reduce_range: bool,
    /// The smallest and largest code to use instead of all of the dtype; `reduce_range` halves
    /// both, as in torch.
    pub quant_range: Option<(i32, i32)>,
    /// The smallest scale (torch: f32's epsilon, 1.1920929e-7).
    pub eps: f32,
}

impl ObserverConfig {
    /// torch's defaults for everything else.
    pub fn new(kind: ObserverKind, dtype: QuantizedDtype, scheme: QScheme) -> Self {
        Self {
            kind,
            dtype,
            scheme,
            reduce_range: false,
            quant_range: None,
            eps: f32::EPSILON,
        }
    }

    /// A new observer.
    ///
    /// # Errors
    /// [`AffineError::UnsupportedScheme`], [`AffineError::SymmetricReducedQuint8`],
    /// [`AffineError::WrongRange`], [`AffineError::WrongSetting`].
    pub fn build(&self) -> Result<AnyObserver> {
        Ok(match self.kind {
            ObserverKind::MinMax => AnyObserver::MinMax(MinMaxObserver::with_config(self)?),
            ObserverKind::MovingAverageMinMax(constant) => AnyObserver::MovingAverage(
                MovingAverageMinMaxObserver::with_config(self, constant)?,
            ),
            ObserverKind::PerChannelMinMax(axis) => {
                AnyObserver::PerChannel(PerChannelMinMaxObserver::with_config(self, axis)?)
            }
            ObserverKind::Histogram => {
                AnyObserver::Histogram(Box::new(HistogramObserver::with_config(self)?))
            }
        })
    }

    /// Checks the configuration for an observer that is `per_channel` or not.
    fn grid(&self, observer: &'static str, per_channel: bool) -> Result<Grid> {
        let Self {
            dtype,
            scheme,
            reduce_range,
            eps,
            ..
        } = *self;

        if scheme.is_per_channel() != per_channel {
            return Err(AffineError::UnsupportedScheme {
                observer,
                scheme,
                takes: if per_channel {
                    "per_channel_affine or per_channel_symmetric"
                } else {
                    "per_tensor_affine or per_tensor_symmetric"
                },
            });
        }
        if scheme.is_symmetric() && reduce_range && dtype == QuantizedDtype::Quint8 {
            return Err(AffineError::SymmetricReducedQuint8);
        }
        if !(eps > 0.0 && eps.is_finite()) {
            return Err(AffineError::WrongSetting {
                setting: "eps",
                value: f64::from(eps),
                expected: "a positive number",
            });
        }

        let (quant_min, quant_max) = self.code_range()?;
        Ok(Grid {
            dtype,
            symmetric: scheme.is_symmetric(),
            quant_min,
            quant_max,
            customized: self.quant_range.is_some(),
            eps,
        })
    }

    /// The smallest and largest code to use (`calculate_qmin_qmax` in torch).
    fn code_range(&self) -> Result<(i32, i32)> {
        let dtype = self.dtype;
        let Some((min, max)) = self.quant_range else {
            return Ok(if self.reduce_range {
                dtype.reduced_range()
            } else {
                dtype.range()
            });
        };

        let (lowest, highest) = dtype.range();
        if min < lowest || min >= max || max > highest {
            return Err(AffineError::WrongRange { min, max, dtype });
        }

        Ok(if self.reduce_range {
            (min.div_euclid(2), max.div_euclid(2))
        } else {
            (min, max)
        })
    }
}

/// An observer of any kind.
#[derive(Debug, Clone, PartialEq)]
pub enum AnyObserver {
    /// [`MinMaxObserver`].
    MinMax(MinMaxObserver),
    /// [`MovingAverageMinMaxObserver`].
    MovingAverage(MovingAverageMinMaxObserver),
    /// [`PerChannelMinMaxObserver`].
    PerChannel(PerChannelMinMaxObserver),
    /// [`HistogramObserver`].
    Histogram(Box<HistogramObserver>),
}

impl AnyObserver {
    fn as_dyn(&self) -> &dyn Observer {
        match self {
            Self::MinMax(observer) => observer,
            Self::MovingAverage(observer) => observer,
            Self::PerChannel(observer) => observer,
            Self::Histogram(observer) => observer.as_ref(),
        }
    }
}

impl Observer for AnyObserver {
    fn observe(&mut self, x: TensorRef<'_>) -> Result<()> {
        match self {
            Self::MinMax(observer) => observer.observe(x),
            Self::MovingAverage(observer) => observer.observe(x),
            Self::PerChannel(observer) => observer.observe(x),
            Self::Histogram(observer) => observer.observe(x),
        }
    }

    fn qparams(&self) -> Result<QParams> {
        self.as_dyn().qparams()
    }

    fn dtype(&self) -> QuantizedDtype {
        self.as_dyn().dtype()
    }
}

impl fmt::Display for AnyObserver {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.as_dyn().fmt(f)
    }
}

/// Per-tensor parameters of a range; an error if its width overflows f32.
fn per_tensor(grid: &Grid, min: f32, max: f32) -> Result<QParams> {
    let (scale, zero_point) = grid.qparams(min, max);
    let qparams = QParams::PerTensor {
        scale: f64::from(scale),
        zero_point,
    };

    qparams.check(grid.dtype)?;

    Ok(qparams)
}
