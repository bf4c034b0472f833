//! An observer of the range of each slice along an axis.

use super::{Observer, ObserverConfig, ObserverKind};
use crate::print::Printed;
use crate::qparams::Grid;
use crate::tensor::min_max;
use crate::{AffineError, QParams, QScheme, QuantizedDtype, Result, TensorRef};
use std::fmt;

/// `PerChannelMinMaxObserver`: the range of all values seen, for each slice along an axis.
///
/// ```
/// use llm_int8_affine::*;
/// let mut observer = PerChannelMinMaxObserver::new(QuantizedDtype::Qint8, QScheme::PerChannelSymmetric, 0)?;
/// observer.observe(TensorRef::new(&[1.0, -2.0, 0.5, 0.25], &[2, 2])?)?;
/// let QParams::PerChannel { scales, zero_points, .. } = observer.qparams()? else { unreachable!() };
/// assert_eq!(scales, [f64::from(2.0f32 / 127.5), f64::from(0.5f32 / 127.5)]);
/// assert_eq!(zero_points, [0, 0]);
/// # Ok::<(), AffineError>(())
/// ```
#[derive(Debug, Clone, PartialEq)]
pub struct PerChannelMinMaxObserver {
    grid: Grid,
    axis: usize,
    /// Smallest and largest value of each channel; empty before the first batch.
    ranges: Vec<(f32, f32)>,
}

impl PerChannelMinMaxObserver {
    /// torch's defaults for everything else.
    ///
    /// # Errors
    /// [`AffineError::UnsupportedScheme`].
    pub fn new(dtype: QuantizedDtype, scheme: QScheme, axis: usize) -> Result<Self> {
        Self::with_config(
            &ObserverConfig::new(ObserverKind::PerChannelMinMax(axis), dtype, scheme),
            axis,
        )
    }

    pub(super) fn with_config(config: &ObserverConfig, axis: usize) -> Result<Self> {
        let grid = config.grid("PerChannelMinMaxObserver", true)?;
        Ok(Self {
            grid,
            axis,
            ranges: Vec::new(),
        })
    }

    /// A tensor of one value per channel, as torch prints it.
    fn text(&self, pick: impl Fn(&(f32, f32)) -> f32) -> String {
        let values: Vec<f32> = self.ranges.iter().map(pick).collect();
        Printed::floats(&values, &[values.len()]).to_string()
    }
}

impl Observer for PerChannelMinMaxObserver {
    fn observe(&mut self, x: TensorRef<'_>) -> Result<()> {
        let channels = x.channels(self.axis)?;
        if x.values().is_empty() {
            return Ok(());
        }
        if self.ranges.is_empty() {
            self.ranges = vec![(f32::INFINITY, f32::NEG_INFINITY); channels.count()];
        } else if self.ranges.len() != channels.count() {
            return Err(AffineError::ChannelsChanged {
                seen: self.ranges.len(),
                now: channels.count(),
            });
        }

        for (channel, range) in self.ranges.iter_mut().enumerate() {
            let values = channels
                .ranges(channel)
                .flat_map(|range| &x.values()[range])
                .copied();
            let (min, max) = min_max(values);
            *range = (range.0.min(min), range.1.max(max));
        }

        Ok(())
    }

    fn qparams(&self) -> Result<QParams> {
        let nothing = [(f32::INFINITY, f32::NEG_INFINITY)];
        let ranges = if self.ranges.is_empty() {
            &nothing[..]
        } else {
            &self.ranges
        };
        let (scales, zero_points) = ranges
            .iter()
            .map(|&(min, max)| self.grid.qparams(min, max))
            .map(|(scale, zero_point)| (f64::from(scale), zero_point))
            .unzip();
        let qparams = QParams::PerChannel {
            scales,
            zero_points,
            axis: self.axis,
        };

        qparams.check(self.grid.dtype)?;

        Ok(qparams)
    }

    fn dtype(&self) -> QuantizedDtype {
        self.grid.dtype
    }
}

impl fmt::Display for PerChannelMinMaxObserver {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (min, max) = (self.text(|range| range.0), self.text(|range| range.1));
        write!(f, "PerChannelMinMaxObserver(min_val={min}, max_val={max})")
    }
}
