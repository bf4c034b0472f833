//! `prepare` and `convert` of a linear layer as in torch's eager mode, with the engine fbgemm.
//!
//! ```
//! use llm_int8_affine::module::{Linear, Model, QConfig};
//! use llm_int8_affine::TensorRef;
//! let linear = Linear::new(vec![3.0, -5.5, 0.0, 4.0, -6.0, 2.5], 6, 1, None)?;
//! let mut prepared = Model::new("M", linear).with_stubs().prepare(&QConfig::fbgemm())?;
//! let x = [0.5, -1.0, 2.0, 0.0, 1.5, -0.5];
//! let batch = TensorRef::new(&x, &[1, 6])?;
//! let expected = prepared.forward(batch)?; // calibrate
//! let quantized = prepared.convert()?;
//! let y = quantized.forward(batch)?;
//! assert!((y[0] - expected[0]).abs() < 0.2);
//! assert!(quantized.to_string().starts_with("M(\n  (quant): Quantize(scale=tensor(["));
//! # Ok::<(), llm_int8_affine::AffineError>(())
//! ```

mod dynamic;
mod model;
mod packed_weight;
mod quantized_linear;

use crate::{
    AffineError, ObserverConfig, ObserverKind, QScheme, QuantizedDtype, Result, TensorRef,
};
pub use dynamic::DynamicQuantizedLinear;
pub use model::{Model, PreparedModel, QuantizedModel};
pub use quantized_linear::QuantizedLinear;
use std::fmt;

/// `torch.nn.Linear`: `y = x · weightᵀ + bias`, f32.
#[derive(Debug, Clone, PartialEq)]
pub struct Linear {
    weight: Vec<f32>,
    in_features: usize,
    out_features: usize,
    bias: Option<Vec<f32>>,
}

impl Linear {
    /// A layer of `weight` `[out_features, in_features]` and `bias` `[out_features]`, row-major.
    ///
    /// # Errors
    /// [`AffineError::WrongShape`], [`AffineError::NotFinite`], [`AffineError::Empty`].
    pub fn new(
        weight: Vec<f32>,
        in_features: usize,
        out_features: usize,
        bias: Option<Vec<f32>>,
    ) -> Result<Self> {
        TensorRef::new(&weight, &[out_features, in_features])?;
        if weight.is_empty() {
            return Err(AffineError::Empty);
        }
        if let Some(bias) = &bias {
            TensorRef::new(bias, &[out_features])?;
        }
        Ok(Self {
            weight,
            in_features,
            out_features,
            bias,
        })
    }

    /// The weight `[out_features, in_features]`, row-major.
    pub fn weight(&self) -> &[f32] {
        &self.weight
    }

    /// The bias `[out_features]`.
    pub fn bias(&self) -> Option<&[f32]> {
        self.bias.as_deref()
    }

    /// `y` `[..., out_features]` of `x` `[..., in_features]`, row-major. Sums run in order, with
    /// fused multiply-adds in f32. Small layers give torch's bits; for larger ones torch's order of
    /// summation varies.
    ///
    /// # Errors
    /// [`AffineError::WrongDimension`].
    pub fn forward(&self, x: TensorRef<'_>) -> Result<Vec<f32>> {
        rows(x.shape(), self.in_features)?;
        let dot = |row: &[f32], w: &[f32]| {
            row.iter()
                .zip(w)
                .fold(0f32, |sum, (&a, &b)| a.mul_add(b, sum))
        };

        let output = |row, (n, w)| dot(row, w) + self.bias.as_ref().map_or(0.0, |bias| bias[n]);
        let weights = || self.weight.chunks(self.in_features).enumerate();
        let outputs = |row| weights().map(move |weight: (usize, &[f32])| output(row, weight));

        Ok(x.values()
            .chunks(self.in_features)
            .flat_map(outputs)
            .collect())
    }

    fn arguments(&self) -> String {
        let bias = if self.bias.is_some() { "True" } else { "False" };
        format!(
            "in_features={}, out_features={}, bias={bias}",
            self.in_features, self.out_features
        )
    }
}

impl fmt::Display for Linear {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Linear({})", self.arguments())
    }
}

/// The number of rows of an input, whose last dimension must be `in_features`.
fn rows(shape: &[usize], in_features: usize) -> Result<usize> {
    let (&found, before) = shape.split_last().ok_or(AffineError::Empty)?;
    if found != in_features {
        return Err(AffineError::WrongDimension {
            what: "last dimension of the input",
            expected: in_features,
            found,
        });
    }

    Ok(before.iter().product())
}

/// The observers of activations and weights (`torch.ao.quantization.QConfig`).
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct QConfig {
    /// The observer of inputs and outputs.
    pub activation: ObserverConfig,
    /// The observer of weights.
    pub weight: ObserverConfig,
}

impl QConfig {
    /// `default_qconfig`: activations quint8 0..=127 by min and max, weights symmetric per tensor.
    pub fn default_qconfig() -> Self {
        use {ObserverKind::MinMax, QuantizedDtype as D};
        let activation = ObserverConfig::new(MinMax, D::Quint8, QScheme::PerTensorAffine);
        Self {
            activation: ObserverConfig {
                quant_range: Some((0, 127)),
                ..activation
            },
            weight: ObserverConfig::new(MinMax, D::Qint8, QScheme::PerTensorSymmetric),
        }
    }

    /// `get_default_qconfig('fbgemm')`, the same as `'x86'`: activations quint8 by histogram in
    /// half of the codes, weights symmetric per output.
    ///
    /// ```
    /// use llm_int8_affine::{ObserverKind, module::QConfig};
    /// assert_eq!(QConfig::fbgemm().activation.kind, ObserverKind::Histogram);
    /// ```
    pub fn fbgemm() -> Self {
        use {ObserverKind as K, QuantizedDtype as D};
        let activation = ObserverConfig::new(K::Histogram, D::Quint8, QScheme::PerTensorAffine);
        Self {
            activation: ObserverConfig {
                reduce_range: true,
                ..activation
            },
            weight: ObserverConfig::new(
                K::PerChannelMinMax(0),
                D::Qint8,
                QScheme::PerChannelSymmetric,
            ),
        }
    }

    /// A common hand-written qconfig: min and max, per tensor, asymmetric.
    pub fn asymmetric() -> Self {
        Self::min_max(QScheme::PerTensorAffine)
    }

    /// A common hand-written qconfig: min and max, per tensor, symmetric.
    pub fn symmetric() -> Self {
        Self::min_max(QScheme::PerTensorSymmetric)
    }

    fn min_max(scheme: QScheme) -> Self {
        Self {
            activation: ObserverConfig::new(ObserverKind::MinMax, QuantizedDtype::Quint8, scheme),
            weight: ObserverConfig::new(ObserverKind::MinMax, QuantizedDtype::Qint8, scheme),
        }
    }
}
