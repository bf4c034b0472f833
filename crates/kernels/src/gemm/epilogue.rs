//! What follows the i32 sums of a matmul: scale and bias, outliers, activation function. One
//! implementation for every instruction set, in a fixed order and without fused multiply-adds.

use super::outliers::{Gathered, OutlierMatmul, SharedTerms};
use super::{Int8WeightRef, Layer, MAX_BLOCK};
use crate::activation::Activation;
use crate::outlier::QuantizedActivations;
use crate::reference::PRODUCT_STEP;
use crate::simd::for_every_width;
use crate::{Isa, KernelError, activation};
use std::ops::Range;

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

    /// Computes some outputs `y` of row `m` from their `sums`; `gathered` are the weights of outlier
    /// columns for these outputs.
    pub(super) fn run(
        &self,
        m: usize,
        outputs: Range<usize>,
        sums: &[i32],
        gathered: &Gathered,
        y: &mut [f32],
    ) {
        // No bias means adding zeros, not skipping the addition: `-0.0 + 0.0` is `0.0`, so a layer
        // gives the same bits without a bias and with a bias of zeros.
        const ZEROS: [f32; MAX_BLOCK] = [0.0; MAX_BLOCK];
        let bias = self
            .bias
            .map_or(&ZEROS[..outputs.len()], |bias| &bias[outputs.clone()]);
        let scaled = Scaled {
            sums,
            absmax_a: self.absmax_a[m],
            absmax_w: &self.weight.absmax[outputs.clone()],
            bias,
        };

        scale_and_add(
            self.isa,
            scaled,
            self.outliers.shared_terms(m, outputs.len(), gathered),
            y,
        );
        self.outliers.add(m, &self.weight, outputs, gathered, y);

        if let Some(function) = self.activation {
            activation::apply(self.isa, function, y);
        }
    }
}

/// `sum · (absmax_a · absmax_w) / 127² + bias` for some outputs of one row.
#[derive(Clone, Copy)]
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

for_every_width! {
    /// `y = scaled`, plus outliers whose weights all rows share.
    fn scale_and_add(scaled: Scaled<'_>, terms: SharedTerms<'_>, y: &mut [f32]) = scale_and_add_row
}

#[inline(always)]
fn scale_and_add_row(scaled: Scaled<'_>, terms: SharedTerms<'_>, y: &mut [f32]) {
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
