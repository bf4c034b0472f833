//! What follows the i32 sums of a matmul: scale and bias, outliers, activation function. Every
//! implementation rounds in the same places, in a fixed order and without fused multiply-adds.

use super::outliers::{Gathered, OutlierMatmul, SharedOutliers, SharedTerms};
use super::{Int8WeightRef, Layer, MAX_BLOCK};
use crate::activation::Activation;
use crate::outlier::QuantizedActivations;
use crate::reference::PRODUCT_STEP;
use crate::simd::for_every_width;
use crate::tasks::Patch;
use crate::{Isa, KernelError, activation};

/// Turns the i32 sums of a matmul into f32 outputs.
pub(super) struct Epilogue<'a> {
    pub(super) isa: Isa,
    absmax_a: &'a [f32],
    pub(super) weight: Int8WeightRef<'a>,
    pub(super) bias: Option<&'a [f32]>,
    pub(super) outliers: OutlierMatmul<'a>,
    activation: Option<Activation>,
}

impl<'a> Epilogue<'a> {
    pub(super) fn new(
        isa: Isa,
        a: &'a QuantizedActivations,
        layer: &Layer<'a>,
    ) -> Result<Self, KernelError> {
        Ok(Self {
            isa,
            absmax_a: a.absmax(),
            weight: layer.weight,
            bias: layer.bias,
            outliers: OutlierMatmul::new(isa, a.outliers(), layer.outlier_weights, &layer.weight)?,
            activation: layer.activation,
        })
    }

    /// Computes the outputs of a patch from their `sums`, row-major; `gathered` are the weights of
    /// outlier columns for these outputs.
    pub(super) fn run(&self, mut patch: Patch<'_, f32>, sums: &[i32], gathered: &Gathered) {
        // No bias means adding zeros, not skipping the addition: `-0.0 + 0.0` is `0.0`, so a layer
        // gives the same bits without a bias and with a bias of zeros.
        const ZEROS: [f32; MAX_BLOCK] = [0.0; MAX_BLOCK];
        let rows = patch.rows.clone();
        let outputs = patch.outputs.clone();
        let block = Block {
            absmax_a: self.absmax_a,
            absmax_w: &self.weight.absmax[outputs.clone()],
            bias: self
                .bias
                .map_or(&ZEROS[..outputs.len()], |bias| &bias[outputs.clone()]),
            outliers: self.outliers.shared(gathered),
        };

        scale_and_add(self.isa, &block, sums, &mut patch);

        if self.outliers.must_be_added() {
            for (i, m) in rows.clone().enumerate() {
                let y = patch.row_mut(i);
                self.outliers
                    .add(m, &self.weight, outputs.clone(), gathered, y);
            }
        }

        if let Some(function) = self.activation {
            for i in 0..rows.len() {
                activation::apply(self.isa, function, patch.row_mut(i));
            }
        }
    }
}

/// What turns sums into outputs, for some outputs of all rows.
struct Block<'a> {
    /// Of all rows.
    absmax_a: &'a [f32],
    absmax_w: &'a [f32],
    bias: &'a [f32],
    outliers: Option<SharedOutliers<'a>>,
}

for_every_width! {
    /// `y = sum · (absmax_a · absmax_w) / 127² + bias`, plus outliers whose weights all rows share.
    fn scale_and_add(block: &Block<'_>, sums: &[i32], patch: &mut Patch<'_, f32>) = rows_of
}

#[inline(always)]
fn rows_of(block: &Block<'_>, sums: &[i32], patch: &mut Patch<'_, f32>) {
    let width = patch.outputs.len();
    let rows = patch.rows.clone();
    for (i, (m, sums)) in rows.zip(sums.chunks_exact(width)).enumerate() {
        let scaled = Scaled {
            sums,
            absmax_a: block.absmax_a[m],
            absmax_w: block.absmax_w,
            bias: block.bias,
        };
        let terms = match &block.outliers {
            Some(outliers) => outliers.row(m, width),
            None => SharedTerms::default(),
        };
        row_of(&scaled, &terms, patch.row_mut(i));
    }
}

#[inline(always)]
fn row_of(scaled: &Scaled<'_>, terms: &SharedTerms<'_>, y: &mut [f32]) {
    let mut first = 0;

    // 64 independent sums hide the latency of an addition; what is left of a block is narrower.
    let (wide, rest) = y.as_chunks_mut::<64>();
    for y in wide {
        *y = terms.added_to(scaled.outputs(first), first);
        first += 64;
    }

    let (narrow, rest) = rest.as_chunks_mut::<16>();
    for y in narrow {
        *y = terms.added_to(scaled.outputs(first), first);
        first += 16;
    }

    for y in rest {
        let [sum] = terms.added_to(scaled.outputs(first), first);
        *y = sum;
        first += 1;
    }
}

/// `sum · (absmax_a · absmax_w) / 127² + bias` for some outputs of one row.
struct Scaled<'a> {
    sums: &'a [i32],
    absmax_a: f32,
    absmax_w: &'a [f32],
    bias: &'a [f32],
}

impl Scaled<'_> {
    /// `N` outputs from `first` on.
    #[inline(always)]
    fn outputs<const N: usize>(&self, first: usize) -> [f32; N] {
        let sums = &self.sums[first..first + N];
        let absmax_w = &self.absmax_w[first..first + N];
        let bias = &self.bias[first..first + N];
        let mut outputs = [0.0; N];
        for n in 0..N {
            let step = self.absmax_a * absmax_w[n];
            outputs[n] = sums[n] as f32 * step * PRODUCT_STEP + bias[n];
        }
        outputs
    }
}
