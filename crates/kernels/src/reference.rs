//! The oracle: LLM.int8() as one would write it on a blackboard. Never optimised; every kernel is
//! tested against it.

use crate::outlier::RMS_CHUNK;
use crate::{Element, MatRef, OutlierRule, OutlierScope};
use half::f16;

/// `1 / 127²`: `Σ code_a · code_w · absmax_a · absmax_w · PRODUCT_STEP` is the product of the
/// dequantised rows.
pub const PRODUCT_STEP: f32 = 1.0 / (127.0 * 127.0);

/// Codes and absmax of one row of f16 values (bitsandbytes' `int8_vectorwise_quant`).
///
/// ```
/// use llm_int8_kernels::reference::quantize_row;
/// let row = [127.0, 0.5, 1.5, 2.5].map(half::f16::from_f32);
/// assert_eq!(quantize_row(&row), (vec![127, 0, 2, 2], 127.0)); // halves go to even
/// ```
pub fn quantize_row(row: &[f16]) -> (Vec<i8>, f32) {
    let has_nan = row.iter().any(|x| x.is_nan());
    let absmax = if has_nan {
        f32::NAN
    } else {
        row.iter().map(|x| x.to_f32().abs()).fold(0.0, f32::max)
    };
    if absmax == 0.0 || !absmax.is_finite() {
        return (vec![0; row.len()], absmax);
    }

    // PyTorch computes `127.0 / absmax` as a reciprocal and a multiplication; the goldens show it
    // at ties.
    let inv_step = (1.0 / absmax) * 127.0;
    (
        row.iter()
            .map(|x| (x.to_f32() * inv_step).round_ties_even() as i8)
            .collect(),
        absmax,
    )
}

/// Codes and scale of the key or the value of one head at one position, in an int8 cache. The scale is
/// NaN if a component is not finite, and 0 if `absmax / 127` is not a normal number; the codes are
/// zeros then.
///
/// ```
/// use llm_int8_kernels::reference::quantize_vector;
/// assert_eq!(quantize_vector(&[-254.0, 3.0, 5.0]), (vec![-127, 2, 2], 2.0)); // halves go to even
/// ```
pub fn quantize_vector(vector: &[f32]) -> (Vec<i8>, f32) {
    let zeros = vec![0; vector.len()];
    if !vector.iter().all(|x| x.is_finite()) {
        return (zeros, f32::NAN);
    }

    let scale = vector.iter().map(|x| x.abs()).fold(0.0, f32::max) / 127.0;
    if !scale.is_normal() {
        return (zeros, 0.0);
    }

    let code = |x: &f32| (x * (1.0 / scale)).round_ties_even() as i8;
    (vector.iter().map(code).collect(), scale)
}

/// The root mean square of one row of f16 values, f32; NaN for a row without values.
///
/// The order of the additions is part of the definition, because it decides who is an outlier. Squares
/// are added in chunks of 128 values (the last one padded with zeros), each chunk as a tree: value
/// i + 64 to value i, then i + 32, and so on. Then the sums of the chunks are added in order.
///
/// ```
/// use llm_int8_kernels::reference::row_rms;
/// assert_eq!(row_rms(&[3.0, -4.0, 0.0, 0.0].map(half::f16::from_f32)), 2.5);
/// ```
pub fn row_rms(row: &[f16]) -> f32 {
    let mut sum = 0f32;
    for chunk in row.chunks(RMS_CHUNK) {
        let mut squares: Vec<f32> = chunk.iter().map(|x| x.to_f32() * x.to_f32()).collect();
        squares.resize(RMS_CHUNK, 0.0);
        while squares.len() > 1 {
            let (low, high) = squares.split_at(squares.len() / 2);
            squares = low.iter().zip(high).map(|(x, y)| x + y).collect();
        }
        sum += squares[0];
    }

    (sum / row.len() as f32).sqrt()
}

/// Which values of a row are outliers. A NaN is none, so that it shows up in the row's absmax.
///
/// ```
/// use llm_int8_kernels::{OutlierRule, reference::outliers};
/// let row = [1.0, -1.0, 6.0, 0.0].map(half::f16::from_f32);
/// assert_eq!(outliers(&row, OutlierRule::row(6.0)), [false, false, true, false]);
/// assert_eq!(outliers(&row, OutlierRule::row_rms(1.9)), [false, false, true, false]); // rms 3.08
/// ```
pub fn outliers(row: &[f16], rule: OutlierRule) -> Vec<bool> {
    let limit = match rule {
        OutlierRule::Absolute { threshold, .. } => threshold,
        OutlierRule::RowRms { factor } => factor * row_rms(row),
    };

    row.iter()
        .map(|x| {
            let magnitude = x.to_f32().abs();
            !rule.finds_none() && magnitude > 0.0 && magnitude >= limit
        })
        .collect()
}

/// What [`quantize_activations`](crate::quantize_activations) computes, as plain vectors.
#[derive(Debug, Clone, PartialEq)]
pub struct ReferenceActivations {
    /// Codes `[M, K]`; 0 at outliers.
    pub codes: Vec<i8>,
    /// Largest magnitude below the threshold, for each of the M rows.
    pub absmax: Vec<f32>,
    /// Column and original value of each outlier, row by row, columns ascending.
    pub outliers: Vec<Vec<(u32, f32)>>,
}

/// Quantises activations `[M, K]` by bitsandbytes' rule (its `MatMul8bitLt`).
///
/// ```
/// use llm_int8_kernels::{MatRef, OutlierRule, reference::quantize_activations};
/// let a = quantize_activations(MatRef::new(&[1.0f32, 7.0], 1, 2)?, OutlierRule::row(6.0));
/// assert_eq!((a.codes, a.absmax, a.outliers), (vec![127, 0], vec![1.0], vec![vec![(1, 7.0)]]));
/// # Ok::<(), llm_int8_kernels::KernelError>(())
/// ```
pub fn quantize_activations<T: Element>(
    a: MatRef<'_, T>,
    rule: OutlierRule,
) -> ReferenceActivations {
    quantize_activations_keeping(a, rule, &[])
}

/// [`quantize_activations`] with columns that are outlier columns in every row, ascending
/// ([`QuantizedActivations::refill`](crate::QuantizedActivations::refill)).
///
/// ```
/// use llm_int8_kernels::{MatRef, OutlierRule, reference::quantize_activations_keeping};
/// let a = quantize_activations_keeping(MatRef::new(&[4.0f32, 1.0], 1, 2)?, OutlierRule::row(6.0), &[0]);
/// assert_eq!((a.codes, a.absmax, a.outliers), (vec![0, 127], vec![1.0], vec![vec![(0, 4.0)]]));
/// # Ok::<(), llm_int8_kernels::KernelError>(())
/// ```
pub fn quantize_activations_keeping<T: Element>(
    a: MatRef<'_, T>,
    rule: OutlierRule,
    kept: &[u32],
) -> ReferenceActivations {
    let is_kept = |column: usize| kept.contains(&(column as u32));
    let value = |row: usize, column: usize| match is_kept(column) {
        true => f16::ZERO,
        false => Element::to_f16(a.row(row)[column]),
    };
    let rows16: Vec<Vec<f16>> = (0..a.rows())
        .map(|row| (0..a.cols()).map(|column| value(row, column)).collect())
        .collect();
    let own: Vec<Vec<bool>> = rows16.iter().map(|row| outliers(row, rule)).collect();
    let mut found = ReferenceActivations {
        codes: Vec::new(),
        absmax: Vec::new(),
        outliers: Vec::new(),
    };

    for (m, row16) in rows16.iter().enumerate() {
        let rest: Vec<f16> = (row16.iter().zip(&own[m]))
            .map(|(&x, &is_outlier)| if is_outlier { f16::ZERO } else { x })
            .collect();
        let (mut codes, absmax) = quantize_row(&rest);

        let mut outliers = Vec::new();
        for (column, code) in codes.iter_mut().enumerate() {
            let is_listed = match rule.scope() {
                OutlierScope::Batch => own.iter().any(|row| row[column]),
                OutlierScope::Row => own[m][column],
            };

            if is_listed || is_kept(column) {
                *code = 0;
                outliers.push((column as u32, a.row(m)[column].to_f32()));
            }
        }

        found.codes.extend(codes);
        found.absmax.push(absmax);
        found.outliers.push(outliers);
    }

    found
}

/// `a · wᵀ` over codes: i32 `[M, N]`.
///
/// ```
/// use llm_int8_kernels::{MatRef, reference::matmul_i32};
/// let a = MatRef::new(&[1i8, 2], 1, 2)?;
/// assert_eq!(matmul_i32(a, MatRef::new(&[3, 4, -128, 0], 2, 2)?), [11, -128]);
/// # Ok::<(), llm_int8_kernels::KernelError>(())
/// ```
pub fn matmul_i32(a: MatRef<'_, i8>, w: MatRef<'_, i8>) -> Vec<i32> {
    let dot = |x: &[i8], y: &[i8]| {
        x.iter()
            .zip(y)
            .map(|(&x, &y)| i32::from(x) * i32::from(y))
            .sum()
    };

    (0..a.rows())
        .flat_map(|m| (0..w.rows()).map(move |n| dot(a.row(m), w.row(n))))
        .collect()
}

/// One output value: the int8 part, the bias, then the outliers in ascending order of columns.
///
/// `weight_of(column)` is the float weight of an outlier column for this output.
///
/// ```
/// use llm_int8_kernels::reference::output;
/// let y = output(127 * 127, 2.0, 3.0, 0.5, &[(0, 8.0)], |_| 0.25);
/// assert!((y - 8.5).abs() < 1e-6); // 6 + 0.5 + 8 · 0.25
/// ```
pub fn output(
    acc: i32,
    absmax_a: f32,
    absmax_w: f32,
    bias: f32,
    outliers: &[(u32, f32)],
    weight_of: impl Fn(u32) -> f32,
) -> f32 {
    let y = acc as f32 * (absmax_a * absmax_w) * PRODUCT_STEP + bias;
    outliers
        .iter()
        .fold(y, |y, &(column, value)| y + value * weight_of(column))
}

/// The whole layer, f32 `[M, N]`: [`output`] for every row and output feature.
///
/// `weight_of(output, column)` is the float weight of an outlier column.
///
/// ```
/// use llm_int8_kernels::{MatRef, OutlierRule, reference};
/// let a = reference::quantize_activations(MatRef::new(&[2.0f32, 8.0], 1, 2)?, OutlierRule::row(6.0));
/// let y = reference::linear(&a, MatRef::new(&[127i8, 127], 1, 2)?, &[1.0], None, |_, _| 1.0);
/// assert!((y[0] - 10.0).abs() < 1e-6); // 2 · 1 + 8 · 1
/// # Ok::<(), llm_int8_kernels::KernelError>(())
/// ```
pub fn linear(
    a: &ReferenceActivations,
    codes: MatRef<'_, i8>,
    absmax: &[f32],
    bias: Option<&[f32]>,
    weight_of: impl Fn(usize, u32) -> f32,
) -> Vec<f32> {
    let mut out = Vec::new();
    for (m, outliers) in a.outliers.iter().enumerate() {
        let row = &a.codes[m * codes.cols()..][..codes.cols()];
        for (n, &absmax_w) in absmax.iter().enumerate() {
            let acc = row
                .iter()
                .zip(codes.row(n))
                .map(|(&x, &y)| i32::from(x) * i32::from(y))
                .sum();
            let bias = bias.map_or(0.0, |bias| bias[n]);
            out.push(output(
                acc,
                a.absmax[m],
                absmax_w,
                bias,
                outliers,
                |column| weight_of(n, column),
            ));
        }
    }

    out
}
