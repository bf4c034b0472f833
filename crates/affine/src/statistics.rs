//! Statistics of the quantisation error.

/// The error of dequantised values.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct ErrorStatistics {
    /// Largest absolute error.
    pub max: f64,
    /// Mean absolute error.
    pub mean: f64,
    /// Root mean square error.
    pub rms: f64,
    /// Signal-to-noise ratio in decibels, `10 · log10(Σ value² / Σ error²)`; infinite without
    /// error.
    pub signal_to_noise: f64,
}

impl ErrorStatistics {
    /// The statistics of `recovered[i] - values[i]`.
    ///
    /// ```
    /// use llm_int8_affine::ErrorStatistics;
    /// let e = ErrorStatistics::of(&[1.0, -1.0], &[1.1, -1.0]);
    /// assert!((e.max - 0.1).abs() < 1e-6 && (e.mean - 0.05).abs() < 1e-6);
    /// assert!((e.signal_to_noise - 23.01).abs() < 0.01);
    /// ```
    pub fn of(values: &[f32], recovered: &[f32]) -> Self {
        let mut max = 0f64;
        let mut sum = 0f64;
        let mut squares = 0f64;
        let mut signal = 0f64;
        for (&x, &y) in values.iter().zip(recovered) {
            let error = (f64::from(x) - f64::from(y)).abs();
            max = max.max(error);
            sum += error;
            squares += error * error;
            signal += f64::from(x) * f64::from(x);
        }

        let count = values.len().max(1) as f64;
        let signal_to_noise = if squares == 0.0 {
            f64::INFINITY
        } else {
            10.0 * (signal / squares).log10()
        };
        Self {
            max,
            mean: sum / count,
            rms: (squares / count).sqrt(),
            signal_to_noise,
        }
    }
}
