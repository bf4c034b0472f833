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
    /// A panel for each sixteen outputs: the codes of four columns of each output, then those of the
    /// next four columns.
    Panels(&'a [u8]),
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
    let size = OUTPUTS * w.codes.cols();
    let (whole, rest) = y.as_chunks_mut();
    let at = |sixteen: usize| {
        let panels = panels.get(sixteen * size..).unwrap_or_default();
        (outputs.start + sixteen * OUTPUTS, Codes::Panels(panels))
    };

    // Several registers of outputs at a time, whose sums do not wait for each other.
    let mut done = 0;
    let (four, others) = whole.as_chunks_mut();
    for y in four {
        add::<4>(isa, terms, w, at(done), y);
        done += 4;
    }
    let (two, one) = others.as_chunks_mut();
    for y in two {
        add::<2>(isa, terms, w, at(done), y);
        done += 2;
    }
    for y in one.as_chunks_mut().0 {
        add::<1>(isa, terms, w, at(done), y);
        done += 1;
    }

    terms.add(w, outputs.start + done * OUTPUTS..outputs.end, rest);
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
    for (first, y) in firsts.zip(y.as_chunks_mut().0) {
        add::<1>(
            isa,
            terms,
            w,
            (first, Codes::Rows(w.codes)),
            std::array::from_mut(y),
        );
    }
}

/// Adds a row's outliers to `y`, the outputs from `first` on.
fn add<const R: usize>(
    isa: Isa,
    terms: Terms<'_>,
    w: &Int8WeightRef<'_>,
    (first, codes): (usize, Codes<'_>),
    y: &mut [[f32; OUTPUTS]; R],
) {
    let cols = w.codes.cols();
    let end = first + R * OUTPUTS;
    assert!(isa.width() == Width::V512 && end <= w.codes.rows() && end <= w.absmax.len());
    // Columns ascend, so the last is the largest.
    assert!(terms.columns.last().is_none_or(|&c| (c as usize) < cols));
    if let Codes::Panels(panels) = codes {
        assert!(panels.len() >= R * OUTPUTS * cols && cols.is_multiple_of(DEPTH));
    }

    // SAFETY: the `Isa` proves AVX-512; all columns are less than K, the outputs from `first` on
    // exist, and each panel holds sixteen codes of each column.
    unsafe { add_inner(terms, w, first, codes, y) }
}

/// # Safety
/// The CPU has AVX-512; lengths are as [`add`] checks.
#[target_feature(enable = "avx512f")]
unsafe fn add_inner<const R: usize>(
    terms: Terms<'_>,
    w: &Int8WeightRef<'_>,
    first: usize,
    codes: Codes<'_>,
    y: &mut [[f32; OUTPUTS]; R],
) {
    let mut absmax = [_mm512_setzero_ps(); R];
    let mut sums = [_mm512_setzero_ps(); R];
    for r in 0..R {
        // SAFETY: the outputs exist, and `y` has sixteen values for each register.
        unsafe {
            absmax[r] = _mm512_loadu_ps(w.absmax.as_ptr().add(first + r * OUTPUTS));
            sums[r] = _mm512_loadu_ps(y[r].as_ptr());
        }
    }

    for (&column, &value) in terms.columns.iter().zip(terms.values) {
        let source = terms.sources.of(column);
        for r in 0..R {
            let weight = if source == DEQUANTIZED {
                // SAFETY: the column is less than K, and the outputs exist.
                let codes = unsafe { codes16(codes, w.codes.cols(), (first, r), column as usize) };
                dequantized16(codes, absmax[r])
            } else {
                given16(terms.sources.weights, source, first + r * OUTPUTS)
            };

            // Two roundings, as on every other instruction set.
            sums[r] = _mm512_add_ps(sums[r], _mm512_mul_ps(_mm512_set1_ps(value), weight));
        }
    }

    for r in 0..R {
        // SAFETY: sixteen values.
        unsafe { _mm512_storeu_ps(y[r].as_mut_ptr(), sums[r]) }
    }
}

/// `code · absmax / 127`, rounded twice.
#[inline]
#[target_feature(enable = "avx512f")]
fn dequantized16(codes: __m512i, absmax: __m512) -> __m512 {
    let inverse = _mm512_set1_ps(1.0 / 127.0);
    _mm512_mul_ps(_mm512_mul_ps(_mm512_cvtepi32_ps(codes), absmax), inverse)
}

/// The codes of a column, of the `r`-th sixteen outputs from `first` on.
///
/// # Safety
/// The CPU has AVX-512; the column is less than K, `cols`; lengths are as [`add`] checks.
#[inline]
#[target_feature(enable = "avx512f")]
unsafe fn codes16(
    codes: Codes<'_>,
    cols: usize,
    (first, r): (usize, usize),
    column: usize,
) -> __m512i {
    match codes {
        Codes::Rows(codes) => {
            let start = (first + r * OUTPUTS) * cols + column;
            // SAFETY: the weight has this column of these sixteen outputs.
            unsafe { _mm512_cvtepi8_epi32(column16(codes.data().as_ptr().add(start), cols)) }
        }
        Codes::Panels(panels) => {
            let start = r * OUTPUTS * cols + column / 4 * STEP_BYTES;
            // SAFETY: a panel has ⌈K / 4⌉ steps of 64 bytes.
            let four = unsafe { _mm512_loadu_si512(panels.as_ptr().add(start).cast()) };

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

/// Dequantises the weights of a column for some outputs, a multiple of sixteen, with codes from the
/// panels that [`pack`] wrote, if there are any.
pub(super) fn dequantize_column(
    isa: Isa,
    w: &Int8WeightRef<'_>,
    panels: Option<&[u8]>,
    column: usize,
    outputs: Range<usize>,
    line: &mut [f32],
) {
    let cols = w.codes.cols();
    assert!(isa.width() == Width::V512 && column < cols && line.len() == outputs.len());
    assert!(outputs.end <= w.codes.rows() && outputs.end <= w.absmax.len());
    let codes = match panels {
        Some(panels) => {
            assert!(panels.len() >= outputs.len() * cols && cols.is_multiple_of(DEPTH));
            Codes::Panels(panels)
        }
        None => Codes::Rows(w.codes),
    };

    // SAFETY: the `Isa` proves AVX-512; the column is less than K; the outputs exist, and the panels
    // hold their codes of each column.
    unsafe { dequantize_inner(w, codes, column, outputs.start, line.as_chunks_mut().0) }
}

/// # Safety
/// The CPU has AVX-512; the column is less than K; lengths are as [`dequantize_column`] checks.
#[target_feature(enable = "avx512f")]
unsafe fn dequantize_inner(
    w: &Int8WeightRef<'_>,
    codes: Codes<'_>,
    column: usize,
    first: usize,
    line: &mut [[f32; OUTPUTS]],
) {
    for (r, line) in line.iter_mut().enumerate() {
        // SAFETY: the caller's: the outputs and the column exist; `line` has sixteen values.
        unsafe {
            let absmax = _mm512_loadu_ps(w.absmax.as_ptr().add(first + r * OUTPUTS));
            let codes = codes16(codes, w.codes.cols(), (first, r), column);
            _mm512_storeu_ps(line.as_mut_ptr(), dequantized16(codes, absmax));
        }
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
