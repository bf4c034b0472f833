//! Matmul of few rows (decode, drafts, small batches): weights stream past in memory order, with
//! prefetching, and each is multiplied with all rows of activations while it is in a register.
//!
//! - AVX2: 16 codes per step, widened to i16, multiplied and added in pairs (`vpmaddwd`). This is
//!   exact: |sum of two products| ≤ 2·128² < 2³¹. `vpmaddubsw` on |a| and w·sign(a) would need no
//!   widening, but it is wrong for a code of -128 and takes as many multiplications.
//! - VNNI multiplies unsigned by signed codes: weights are offset by 128, and `128 · Σ a` is
//!   subtracted at the end. Intermediate overflow wraps and cancels, so this is exact for every
//!   code.
//! - NEON multiplies signed by signed codes, so it needs no offset: `sdot` sums four products, and
//!   where the CPU lacks it, `smull` and `sadalp` sum two. Products are added in 32 bits, because
//!   128² twice overflows 16.

use super::Part;
#[cfg(target_arch = "aarch64")]
use super::neon;
#[cfg(target_arch = "x86_64")]
use super::weight::row_sum;
#[cfg(target_arch = "x86_64")]
use super::{avx2, vnni};
use crate::isa::Kind;
use crate::{Isa, MatRef};
use std::ops::Range;

/// Most rows of activations that a weight is multiplied with while it is in a register.
pub(super) const MAX_ROWS: usize = 8;

/// Rows of activations, prepared for the dot products of an instruction set.
pub(super) struct Rows<'a> {
    codes: MatRef<'a, i8>,
    /// AVX2: the codes widened to i16; otherwise empty.
    #[cfg(target_arch = "x86_64")]
    wide: Vec<i16>,
    /// VNNI: `128 · Σ a` of each row; otherwise empty.
    #[cfg(target_arch = "x86_64")]
    offsets: Vec<i32>,
}

impl<'a> Rows<'a> {
    /// Outside x86, kernels read the codes as they are.
    #[cfg(not(target_arch = "x86_64"))]
    pub(super) fn new(_isa: Isa, codes: MatRef<'a, i8>) -> Self {
        Self { codes }
    }

    #[cfg(target_arch = "x86_64")]
    pub(super) fn new(isa: Isa, codes: MatRef<'a, i8>) -> Self {
        let mut wide = Vec::new();
        let mut offsets = Vec::new();
        match isa.kind() {
            Kind::Scalar => {}
            Kind::Avx2 => wide.extend(codes.data().iter().map(|&code| i16::from(code))),
            Kind::AvxVnni | Kind::Avx512Vnni | Kind::Amx => {
                let offset = |m| row_sum(isa, codes.row(m)).wrapping_mul(128);
                offsets.extend((0..codes.rows()).map(offset));
            }
        }

        Self {
            codes,
            wide,
            offsets,
        }
    }

    /// Writes the sums of some rows and outputs, row-major.
    pub(super) fn multiply(
        &self,
        isa: Isa,
        w: MatRef<'_, i8>,
        Part {
            rows: m,
            outputs: n,
        }: Part<'_>,
        sums: &mut [i32],
    ) {
        match m.len() {
            0 => {}
            1 => self.strip::<1>(isa, w, m.start, n, sums),
            2 => self.strip::<2>(isa, w, m.start, n, sums),
            3 => self.strip::<3>(isa, w, m.start, n, sums),
            4 => self.strip::<4>(isa, w, m.start, n, sums),
            5 => self.strip::<5>(isa, w, m.start, n, sums),
            6 => self.strip::<6>(isa, w, m.start, n, sums),
            7 => self.strip::<7>(isa, w, m.start, n, sums),
            8 => self.strip::<8>(isa, w, m.start, n, sums),
            more => {
                let (first, rest) = sums.split_at_mut(MAX_ROWS * n.len());
                let middle = m.start + MAX_ROWS;
                let before = Part {
                    rows: &(m.start..middle),
                    outputs: n,
                };
                let after = Part {
                    rows: &(middle..m.start + more),
                    outputs: n,
                };
                self.multiply(isa, w, before, first);
                self.multiply(isa, w, after, rest);
            }
        }
    }

    /// The sums of `M` rows from `first` on with outputs `n`.
    fn strip<const M: usize>(
        &self,
        isa: Isa,
        w: MatRef<'_, i8>,
        first: usize,
        n: &Range<usize>,
        sums: &mut [i32],
    ) {
        let columns = w.cols();
        let weights = &w.data()[n.start * columns..n.end * columns];
        let codes: [&[i8]; M] = std::array::from_fn(|i| self.codes.row(first + i));

        match isa.kind() {
            Kind::Scalar => {
                for (j, row) in n.clone().enumerate() {
                    for (i, codes) in codes.iter().enumerate() {
                        let products = codes
                            .iter()
                            .zip(w.row(row))
                            .map(|(&x, &y)| i32::from(x) * i32::from(y));
                        sums[i * n.len() + j] = products.sum();
                    }
                }
            }
            #[cfg(target_arch = "x86_64")]
            Kind::Avx2 => {
                let wide: [&[i16]; M] =
                    std::array::from_fn(|i| &self.wide[(first + i) * columns..][..columns]);
                avx2::dots(isa, wide, weights, sums);
            }
            #[cfg(target_arch = "x86_64")]
            Kind::AvxVnni => vnni::v256::dots(isa, codes, self.offsets(first), weights, sums),
            #[cfg(target_arch = "x86_64")]
            Kind::Avx512Vnni | Kind::Amx => {
                vnni::v512::dots(isa, codes, self.offsets(first), weights, sums)
            }
            #[cfg(target_arch = "aarch64")]
            Kind::Neon | Kind::NeonDot => neon::dots(isa, codes, weights, sums),
        }
    }

    #[cfg(target_arch = "x86_64")]
    fn offsets<const M: usize>(&self, first: usize) -> [i32; M] {
        std::array::from_fn(|i| self.offsets[first + i])
    }
}
