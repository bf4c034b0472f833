//! Weights of outlier columns with AVX-512: sixteen outputs in a register.

#![expect(
    unsafe_code,
    reason = "vector loads through pointers, and calls into functions compiled for AVX-512"
)]

use super::{DEQUANTIZED, Terms};
use crate::gemm::panels::STEP_BYTES;
use crate::gemm::{Int8WeightRef, OutlierWeights, vnni};
use crate::isa::Width;
use crate::{Isa, MatRef};
use std::arch::x86_64::*;
use std::ops::Range;

/// Outputs of a register.
pub(super) const OUTPUTS: usize = 16;
/// The number of columns of a packed weight is a multiple of this.
pub(super) const DEPTH: usize = STEP_BYTES;

/// The source of a weight's codes.
#[derive(Clone, Copy)]
enum Codes<'a> {
    /// Row-major, as the weight is.
    Rows(MatRef<'a, i8>),
    /// The panel of the sixteen outputs: the codes of four columns of each output, then those of
    /// the next four columns.
    Panel(&'a [u8]),
}

/// Packs the codes of some outputs into panels of sixteen; outputs beyond the last whole panel are
/// left out.
pub(super) fn pack(isa: Isa, codes: MatRef<'_, i8>, outputs: Range<usize>, panels: &mut Vec<u8>) {
    let cols = codes.cols();
    let size = OUTPUTS * cols;
    let whole = outputs.len() / OUTPUTS;
    panels.resize(whole * size, 0);

    for (i, panel) in panels.chunks_mut(size.max(1)).enumerate() {
        let first = (outputs.start + i * OUTPUTS) * cols;
        vnni::v512::pack(isa, &codes.data()[first..first + size], 0, panel);
    }
}

/// Adds a row's outliers to its outputs `y`, with codes from the panels that [`pack`] wrote.
pub(super) fn add_packed(
    isa: Isa,
    terms: Terms<'_>,
    w: &Int8WeightRef<'_>,
    outputs: Range<usize>,
    panels: &[u8],
    y: &mut [f32],
) {
    let (whole, rest) = y.as_chunks_mut::<OUTPUTS>();
    let size = OUTPUTS * w.codes.cols();
    let mut first = outputs.start;
    for (y, panel) in whole.iter_mut().zip(panels.chunks(size)) {
        add(isa, terms, w, first, Codes::Panel(panel), y);
        first += OUTPUTS;
    }

    terms.add(w, first..outputs.end, rest);
}

/// Adds a row's outliers to its outputs `y`, a multiple of sixteen, with codes from the weight.
pub(super) fn add_strided(
    isa: Isa,
    terms: Terms<'_>,
    w: &Int8WeightRef<'_>,
    outputs: Range<usize>,
    y: &mut [f32],
) {
    let firsts = outputs.step_by(OUTPUTS);
    for (first, y) in firsts.zip(y.as_chunks_mut::<OUTPUTS>().0) {
        add(isa, terms, w, first, Codes::Rows(w.codes), y);
    }
}

/// Adds a row's outliers to the outputs from `first` on.
fn add(
    isa: Isa,
    terms: Terms<'_>,
    w: &Int8WeightRef<'_>,
    first: usize,
    codes: Codes<'_>,
    y: &mut [f32; OUTPUTS],
) {
    let cols = w.codes.cols();
    let end = first + OUTPUTS;
    assert!(isa.width() == Width::V512 && end <= w.codes.rows() && end <= w.absmax.len());
    // Columns ascend, so the last is the largest.
    assert!(terms.columns.last().is_none_or(|&c| (c as usize) < cols));
    if let Codes::Panel(panel) = codes {
        assert!(panel.len() >= OUTPUTS * cols && cols.is_multiple_of(DEPTH));
    }

    // SAFETY: the `Isa` proves AVX-512; all columns are less than K, sixteen outputs from `first` on
    // exist, and a panel holds sixteen codes of each column.
    unsafe { add_inner(terms, w.absmax, first, codes, y) }
}

/// # Safety
/// The CPU has AVX-512; lengths are as [`add`] checks.
#[target_feature(enable = "avx512f")]
unsafe fn add_inner(
    terms: Terms<'_>,
    absmax: &[f32],
    first: usize,
    codes: Codes<'_>,
    y: &mut [f32; OUTPUTS],
) {
    let inverse = _mm512_set1_ps(1.0 / 127.0);
    // SAFETY: sixteen values of `absmax` from `first` on exist.
    let absmax = unsafe { _mm512_loadu_ps(absmax.as_ptr().add(first)) };
    // SAFETY: `y` has sixteen values.
    let mut sums = unsafe { _mm512_loadu_ps(y.as_ptr()) };

    for (i, (&column, &value)) in terms.columns.iter().zip(terms.values).enumerate() {
        let source = terms.source(i);
        let weight = if source == DEQUANTIZED {
            // SAFETY: the column is less than K.
            let found = unsafe { codes16(codes, first, column as usize) };
            _mm512_mul_ps(_mm512_mul_ps(_mm512_cvtepi32_ps(found), absmax), inverse)
        } else {
            given16(terms.weights, source, first)
        };

        // Two roundings, as on every other instruction set.
        sums = _mm512_add_ps(sums, _mm512_mul_ps(_mm512_set1_ps(value), weight));
    }

    // SAFETY: `y` has sixteen values.
    unsafe { _mm512_storeu_ps(y.as_mut_ptr(), sums) }
}

/// The codes of sixteen outputs from `first` on in a column.
///
/// # Safety
/// The CPU has AVX-512; the column is less than K, and lengths are as [`add`] checks.
#[inline]
#[target_feature(enable = "avx512f")]
unsafe fn codes16(codes: Codes<'_>, first: usize, column: usize) -> __m512i {
    match codes {
        Codes::Rows(codes) => {
            let cols = codes.cols();
            // SAFETY: rows `first` to `first + 15` of the weight have this column.
            unsafe {
                _mm512_cvtepi8_epi32(column16(
                    codes.data().as_ptr().add(first * cols + column),
                    cols,
                ))
            }
        }
        Codes::Panel(panel) => {
            let step = column / 4 * STEP_BYTES;
            // SAFETY: the panel has ⌈K / 4⌉ steps of 64 bytes.
            let four = unsafe { _mm512_loadu_si512(panel.as_ptr().add(step).cast()) };

            // The byte of this column to the top, then back with its sign.
            let up = _mm_cvtsi32_si128(24 - 8 * (column % 4) as i32);
            _mm512_srai_epi32::<24>(_mm512_sll_epi32(four, up))
        }
    }
}

/// The given weights of sixteen outputs from `first` on.
#[inline]
#[target_feature(enable = "avx512f")]
fn given16(weights: OutlierWeights<'_>, source: u32, first: usize) -> __m512 {
    match weights {
        OutlierWeights::Dequantized => _mm512_setzero_ps(),
        OutlierWeights::Original { values, .. } => {
            let line = &values.row(source as usize)[first..first + OUTPUTS];
            // SAFETY: `line` has sixteen values.
            unsafe { _mm512_loadu_ps(line.as_ptr()) }
        }
        OutlierWeights::Kept { values, .. } => {
            let line = &values.row(source as usize)[first..first + OUTPUTS];
            // SAFETY: `line` has sixteen values of 16 bits.
            unsafe { _mm512_cvtph_ps(_mm256_loadu_si256(line.as_ptr().cast())) }
        }
    }
}

/// Dequantises the weights of a column for some outputs, a multiple of sixteen.
pub(super) fn dequantize_column(
    isa: Isa,
    w: &Int8WeightRef<'_>,
    column: usize,
    outputs: Range<usize>,
    line: &mut [f32],
) {
    assert!(isa.width() == Width::V512 && column < w.codes.cols());
    assert!(outputs.end <= w.codes.rows() && outputs.end <= w.absmax.len());

    for (first, line) in outputs
        .step_by(OUTPUTS)
        .zip(line.as_chunks_mut::<OUTPUTS>().0)
    {
        // SAFETY: the `Isa` proves AVX-512; the column is less than K, and sixteen outputs from
        // `first` on exist, because their number is a multiple of sixteen.
        unsafe { dequantize_inner(w, first, column, line) }
    }
}

/// # Safety
/// The CPU has AVX-512; the column is less than K; sixteen outputs from `first` on exist.
#[target_feature(enable = "avx512f")]
unsafe fn dequantize_inner(
    w: &Int8WeightRef<'_>,
    first: usize,
    column: usize,
    line: &mut [f32; OUTPUTS],
) {
    let inverse = _mm512_set1_ps(1.0 / 127.0);
    // SAFETY: the caller's: the outputs and the column exist; `line` has sixteen values.
    unsafe {
        let found = _mm512_cvtepi32_ps(codes16(Codes::Rows(w.codes), first, column));
        let absmax = _mm512_loadu_ps(w.absmax.as_ptr().add(first));
        let value = _mm512_mul_ps(_mm512_mul_ps(found, absmax), inverse);
        _mm512_storeu_ps(line.as_mut_ptr(), value);
    }
}

/// Sixteen codes, `stride` apart. A load for each is faster than a gather, which reads 32 bits.
///
/// # Safety
/// The CPU has AVX-512; all sixteen are readable.
#[inline]
#[target_feature(enable = "avx512f")]
unsafe fn column16(from: *const i8, stride: usize) -> __m128i {
    // SAFETY: the caller's.
    let code = |n: usize| unsafe { i32::from(*from.add(n * stride)) };

    // Two halves, so that insertions into one do not wait for those into the other.
    let half = |n: usize| {
        let mut half = _mm_cvtsi32_si128(code(n) & 0xff);
        half = _mm_insert_epi8::<1>(half, code(n + 1));
        half = _mm_insert_epi8::<2>(half, code(n + 2));
        half = _mm_insert_epi8::<3>(half, code(n + 3));
        half = _mm_insert_epi8::<4>(half, code(n + 4));
        half = _mm_insert_epi8::<5>(half, code(n + 5));
        half = _mm_insert_epi8::<6>(half, code(n + 6));
        _mm_insert_epi8::<7>(half, code(n + 7))
    };
    _mm_unpacklo_epi64(half(0), half(8))
}
