//! Observers of the smallest and largest value, or of their moving averages.

use super::{Observer, ObserverConfig, ObserverKind, per_tensor};
use crate::print::python_float;
use crate::qparams::Grid;
use crate::{AffineError, QParams, QScheme, QuantizedDtype, Result, TensorRef};
use std::fmt;

/// `MinMaxObserver`: the range of all values seen.
///
/// ```
/// use llm_int8_affine::*;
/// let mut observer = MinMaxObserver::new(QuantizedDtype::Quint8, QScheme::PerTensorSymmetric)?;
/// observer.observe(TensorRef::new(&[-1.0, 2.0], &[2])?)?;
/// observer.observe(TensorRef::new(&[-4.0, 1.0], &[2])?)?;
/// assert_eq!(observer.to_string(), "MinMaxObserver(min_val=-4.0, max_val=2.0)");
/// assert_eq!(observer.qparams()?, QParams::PerTensor { scale: f64::from(4.0f32 / 127.5), zero_point: 128 });
/// # Ok::<(), AffineError>(())
/// ```
#[derive(Debug, Clone, PartialEq)]
pub struct MinMaxObserver {
    grid: Grid,
    min: f32,
    max: f32,
}

impl MinMaxObserver {
    /// torch's defaults for everything else.
    ///
    /// # Errors
    /// [`AffineError::UnsupportedScheme`].
    pub fn new(dtype: QuantizedDtype, scheme: QScheme) -> Result<Self> {
        Self::with_config(&ObserverConfig::new(ObserverKind::MinMax, dtype, scheme))
    }

    pub(super) fn with_config(config: &ObserverConfig) -> Result<Self> {
        let grid = config.grid("MinMaxObserver", false)?;
        Ok(Self {
            grid,
            min: f32::INFINITY,
            max: f32::NEG_INFINITY,
        })
    }

    /// The smallest and the largest value so far; (∞, -∞) before the first.
    pub fn range(&self) -> (f32, f32) {
        (self.min, self.max)
    }
}

impl Observer for MinMaxObserver {
    fn observe(&mut self, x: TensorRef<'_>) -> Result<()> {
        if let Ok((min, max)) = x.min_max() {
            (self.min, self.max) = (self.min.min(min), self.max.max(max));
        }
        Ok(())
    }

    fn qparams(&self) -> Result<QParams> {
        per_tensor(&self.grid, self.min, self.max)
    }

    fn dtype(&self) -> QuantizedDtype {
        self.grid.dtype
    }
}

impl fmt::Display for MinMaxObserver {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "MinMaxObserver({})", range_text(self.min, self.max))
    }
}

/// `min_val=…, max_val=…`.
pub(super) fn range_text(min: f32, max: f32) -> String {
    format!(
        "min_val={}, max_val={}",
        python_float(min.into()),
        python_float(max.into())
    )
}

/// `MovingAverageMinMaxObserver`: after the first batch, the range moves part of the way to that of
/// each batch, `min += averaging_constant · (min_of_batch - min)`.
///
/// ```
/// use llm_int8_affine::*;
/// let mut observer = MovingAverageMinMaxObserver::new(QuantizedDtype::Quint8, QScheme::PerTensorAffine, 0.5)?;
/// observer.observe(TensorRef::new(&[0.0, 2.0], &[2])?)?;
/// observer.observe(TensorRef::new(&[-1.0, 4.0], &[2])?)?;
/// assert_eq!(observer.to_string(), "MovingAverageMinMaxObserver(min_val=-0.5, max_val=3.0)");
/// # Ok::<(), AffineError>(())
/// ```
#[derive(Debug, Clone, PartialEq)]
pub struct MovingAverageMinMaxObserver {
    inner: MinMaxObserver,
    averaging_constant: f32,
}

impl MovingAverageMinMaxObserver {
    /// torch's defaults for everything else.
    ///
    /// # Errors
    /// [`AffineError::UnsupportedScheme`], [`AffineError::WrongSetting`].
    pub fn new(dtype: QuantizedDtype, scheme: QScheme, averaging_constant: f32) -> Result<Self> {
        let kind = ObserverKind::MovingAverageMinMax(averaging_constant);
        Self::with_config(
            &ObserverConfig::new(kind, dtype, scheme),
            averaging_constant,
        )
    }

    pub(super) fn with_config(config: &ObserverConfig, averaging_constant: f32) -> Result<Self> {
        if !(0.0..=1.0).contains(&averaging_constant) {
            return Err(AffineError::WrongSetting {
                setting: "averaging_constant",
                value: f64::from(averaging_constant),
                expected: "between 0 and 1",
            });
        }

        let grid = config.grid("MovingAverageMinMaxObserver", false)?;
        let inner = MinMaxObserver {
            grid,
            min: f32::INFINITY,
            max: f32::NEG_INFINITY,
        };

        Ok(Self {
            inner,
            averaging_constant,
        })
    }
}

impl Observer for MovingAverageMinMaxObserver {
    fn observe(&mut self, x: TensorRef<'_>) -> Result<()> {
        let Ok((min, max)) = x.min_max() else {
            return Ok(());
        };
        if self.inner.min > self.inner.max {
            (self.inner.min, self.inner.max) = (min, max);
        } else {
            self.inner.min += self.averaging_constant * (min - self.inner.min);
            self.inner.max += self.averaging_constant * (max - self.inner.max);
        }

        Ok(())
    }

    fn qparams(&self) -> Result<QParams> {
        self.inner.qparams()
    }

    fn dtype(&self) -> QuantizedDtype {
        self.inner.dtype()
    }
}

impl fmt::Display for MovingAverageMinMaxObserver {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "MovingAverageMinMaxObserver({})",
            range_text(self.inner.min, self.inner.max)
        )
    }
}
