//! The integer matmul of activations (quint8) and weights (qint8), on the int8 kernels.

use super::rows;
use crate::{AffineError, QParams, QuantizedDtype, QuantizedTensor, Result, TensorRef};
use llm_int8_kernels::{Isa, MatMut, MatRef, matmul_i32};

/// A quantised weight `[out_features, in_features]`, prepared for the kernels.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct PackedWeight {
    pub(super) tensor: QuantizedTensor,
    /// The codes as i8.
    codes: Vec<i8>,
    /// The sum of each output's codes, which corrects for the zero point of the activations.
    sums: Vec<i32>,
    pub(super) in_features: usize,
    pub(super) out_features: usize,
}

impl PackedWeight {
    /// Quantises a weight, which must be qint8, per tensor or per output.
    pub(super) fn new(
        weight: TensorRef<'_>,
        dtype: QuantizedDtype,
        qparams: &QParams,
    ) -> Result<Self> {
        if dtype != QuantizedDtype::Qint8 {
            return Err(AffineError::Unsupported {
                what: "the weight's dtype",
                expected: "torch.qint8",
                found: dtype.to_string(),
            });
        }

        if let QParams::PerChannel { axis, .. } = qparams
            && *axis != 0
        {
            return Err(AffineError::Unsupported {
                what: "the weight's channel axis",
                expected: "0",
                found: axis.to_string(),
            });
        }

        let &[out_features, in_features] = weight.shape() else {
            return Err(AffineError::WrongDimension {
                what: "dimensions of the weight",
                expected: 2,
                found: weight.shape().len(),
            });
        };

        let tensor = QuantizedTensor::quantize(weight, dtype, qparams)?;
        let codes: Vec<i8> = tensor.int_repr().iter().map(|&code| code as i8).collect();
        let sums = codes
            .chunks(in_features)
            .map(|row| row.iter().copied().map(i32::from).sum())
            .collect();
        Ok(Self {
            tensor,
            codes,
            sums,
            in_features,
            out_features,
        })
    }

    /// `Σ (a - zero_point_a) · (w - zero_point_w)` `[rows, out_features]`, exact.
    ///
    /// The kernels multiply signed bytes, so 128 is subtracted from the activations and from their
    /// zero point.
    pub(super) fn matmul(&self, x: &QuantizedTensor) -> Result<Vec<i32>> {
        let QParams::PerTensor { zero_point, .. } = *x.qparams() else {
            return Err(unsupported_activation(x));
        };
        if x.dtype() != QuantizedDtype::Quint8 {
            return Err(unsupported_activation(x));
        }

        let rows = rows(x.shape(), self.in_features)?;
        let zero_point = zero_point - 128;
        let codes: Vec<i8> = x
            .int_repr()
            .iter()
            .map(|&code| (code - 128) as i8)
            .collect();
        let mut out = vec![0i32; rows * self.out_features];
        let a = MatRef::new(&codes, rows, self.in_features)?;
        let w = MatRef::new(&self.codes, self.out_features, self.in_features)?;
        matmul_i32(
            Isa::detect(),
            a,
            w,
            MatMut::new(&mut out, rows, self.out_features)?,
        )?;

        let zeros: Vec<i32> = self
            .channels()
            .map(|(_, zero_point_w)| zero_point_w)
            .collect();
        for (row, out) in codes
            .chunks(self.in_features)
            .zip(out.chunks_mut(self.out_features))
        {
            let sum: i32 = row.iter().copied().map(i32::from).sum();

            // Σ over K of (a - za)(w - zw) = Σ a·w - za·Σ w - zw·(Σ a - K·za)
            let shifted = sum - self.in_features as i32 * zero_point;

            for ((y, sum_w), zero_w) in out.iter_mut().zip(&self.sums).zip(&zeros) {
                *y -= zero_point * sum_w + zero_w * shifted;
            }
        }

        Ok(out)
    }

    /// How far fbgemm's sums differ from the exact ones on a machine without VNNI, where pairs of
    /// products along K (`u8 · i8`, `vpmaddubsw`) are added in 16 bits and saturate.
    pub(super) fn saturation(&self, x: &QuantizedTensor) -> Vec<i32> {
        let excess = |a: &[i32], w: &[i8]| {
            let sum: i32 = a.iter().zip(w).map(|(a, w)| a * i32::from(*w)).sum();
            sum.clamp(i16::MIN.into(), i16::MAX.into()) - sum
        };

        let row = |a: &[i32], w: &[i8]| {
            a.chunks(2)
                .zip(w.chunks(2))
                .map(|(a, w)| excess(a, w))
                .sum()
        };

        let outputs = |a| self.codes.chunks(self.in_features).map(move |w| row(a, w));
        x.int_repr()
            .chunks(self.in_features)
            .flat_map(outputs)
            .collect()
    }

    /// Scale and zero point of each output.
    pub(super) fn channels(&self) -> impl Iterator<Item = (f32, i32)> + '_ {
        let shared = matches!(self.tensor.qparams(), QParams::PerTensor { .. });
        let repeats = if shared { self.out_features } else { 1 };
        self.tensor
            .qparams()
            .channels()
            .flat_map(move |(scale, zero_point)| {
                std::iter::repeat_n((scale as f32, zero_point), repeats)
            })
    }
}

fn unsupported_activation(x: &QuantizedTensor) -> AffineError {
    AffineError::Unsupported {
        what: "the input",
        expected: "torch.quint8 per tensor",
        found: format!("{} {}", x.dtype(), x.qparams().scheme()),
    }
}
