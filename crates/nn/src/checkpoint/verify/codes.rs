//! Faults of int8 weights: codes and absmax of their rows.

use super::{Fault, Faults, note_sizes};
use half::f16;
use rayon::prelude::*;

/// A row is saturated if more than this many of its codes, and more than a
/// [`SATURATED_SHARE`]th of them, have magnitude 127. Rows of normally distributed weights have one
/// or two.
const SATURATED_CODES: usize = 8;
const SATURATED_SHARE: usize = 16;

/// Looks for rows that bitsandbytes cannot have written: `codes` `[out, in]` row-major and the
/// `absmax` `[out]` of each row. A sound row has at least one code of magnitude 127, as its absmax
/// is its own largest magnitude (`int8_vectorwise_quant`).
///
/// Returns the faults of the codes and those of the absmax. Rows that `absmax` or `codes` is too
/// short for are left out.
pub fn code_faults(codes: &[i8], absmax: &[f32], in_features: usize) -> (Faults, Faults) {
    let rows = codes
        .par_chunks_exact(in_features.max(1))
        .zip(absmax)
        .enumerate();
    let (codes, mut of_absmax) = rows
        .fold(Default::default, |mut faults, (row, (codes, absmax))| {
            check_row(row, codes, *absmax, &mut faults);
            faults
        })
        .reduce(Default::default, |a: (Faults, Faults), b| {
            (a.0.merged(b.0), a.1.merged(b.1))
        });

    note_sizes(absmax, &mut of_absmax);
    (codes, of_absmax)
}

fn check_row(row: usize, codes: &[i8], absmax: f32, faults: &mut (Faults, Faults)) {
    let mut largest = 0;
    let mut at_most = 0;
    for code in codes {
        let magnitude = code.unsigned_abs();
        largest = largest.max(magnitude);
        at_most += usize::from(magnitude >= 127);
    }

    let (of_codes, of_absmax) = faults;
    if largest > 127 {
        let count = codes.iter().filter(|code| **code == i8::MIN).count();
        (0..count).for_each(|_| of_codes.add(Fault::Minus128, row));
    }
    let fault = match largest {
        0 if absmax == 0.0 => Some(Fault::ZeroRow),
        0 => Some(Fault::DeadRow),
        1..127 => Some(Fault::UnscaledRow),
        _ if at_most > SATURATED_CODES && at_most * SATURATED_SHARE > codes.len() => {
            Some(Fault::SaturatedRow)
        }
        _ => None,
    };
    if let Some(fault) = fault {
        of_codes.add(fault, row);
    }
    if let Some(fault) = absmax_fault(absmax, largest) {
        of_absmax.add(fault, row);
    }
}

fn absmax_fault(absmax: f32, largest_code: u8) -> Option<Fault> {
    if absmax.is_nan() {
        Some(Fault::Nan)
    } else if absmax.is_infinite() {
        Some(Fault::Infinite)
    } else if absmax < 0.0 {
        Some(Fault::AbsmaxNegative)
    } else if absmax == 0.0 {
        (largest_code > 0).then_some(Fault::AbsmaxZero)
    } else if absmax.is_subnormal() {
        Some(Fault::AbsmaxDenormal)
    } else {
        (f16::from_f32(absmax).to_f32() != absmax).then_some(Fault::AbsmaxNotF16)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The faults of one row.
    fn of_row(codes: &[i8], absmax: f32) -> Vec<Fault> {
        let (of_codes, of_absmax) = code_faults(codes, &[absmax], codes.len());
        let all = of_codes.into_iter().chain(of_absmax);
        all.map(|(fault, _)| fault).collect()
    }

    #[test]
    fn every_fault_of_a_row_is_found_and_only_that() {
        let sound = [127i8, -3, 0, 50];
        assert_eq!(of_row(&sound, 0.5), []);
        assert_eq!(of_row(&[-127, 1, 1, 1], 0.5), []);

        assert_eq!(of_row(&[-128, 127, 0, 0], 0.5), [Fault::Minus128]);
        assert_eq!(of_row(&[0; 4], 0.5), [Fault::DeadRow]);
        assert_eq!(of_row(&[0; 4], 0.0), [Fault::ZeroRow]);
        assert_eq!(of_row(&[126, -126, 0, 0], 0.5), [Fault::UnscaledRow]);
        assert_eq!(of_row(&sound, 0.0), [Fault::AbsmaxZero]);
        assert_eq!(of_row(&sound, -0.5), [Fault::AbsmaxNegative]);
        assert_eq!(of_row(&sound, 1e-40), [Fault::AbsmaxDenormal]);
        assert_eq!(of_row(&sound, 0.1), [Fault::AbsmaxNotF16]);
        assert_eq!(of_row(&sound, f32::NAN), [Fault::Nan]);
        assert_eq!(of_row(&sound, f32::NEG_INFINITY), [Fault::Infinite]);
        let subnormal = f16::from_bits(1).to_f32();
        assert_eq!(of_row(&sound, subnormal), [Fault::SmallAbsmax]);
    }

    #[test]
    fn saturation_needs_a_share_and_a_number() {
        let row = |saturated: usize, length: usize| -> Vec<i8> {
            (0..length)
                .map(|i| if i < saturated { -127 } else { 5 })
                .collect()
        };
        assert_eq!(of_row(&row(9, 143), 0.5), [Fault::SaturatedRow]);
        assert_eq!(of_row(&row(9, 144), 0.5), [], "one in sixteen");
        assert_eq!(of_row(&row(8, 8), 0.5), [], "short rows may be all alike");
    }

    #[test]
    fn elements_and_rows_are_counted_over_many_rows() {
        let mut codes = vec![1i8; 100 * 8];
        codes.chunks_exact_mut(8).for_each(|row| row[0] = 127);
        codes[8 * 70..][..3].fill(-128);
        codes[8 * 20] = -128;
        codes[8 * 33..][..8].fill(0);
        let mut absmax = vec![1.0f32; 100];
        absmax[50] = f32::NAN;
        absmax[51] = 100.0;

        let (of_codes, of_absmax) = code_faults(&codes, &absmax, 8);
        let minus = of_codes.get(Fault::Minus128).unwrap();
        assert_eq!((minus.count, minus.first.as_slice()), (4, &[20, 70][..]));
        assert_eq!(of_codes.get(Fault::DeadRow).unwrap().first, [33]);
        assert_eq!(of_absmax.get(Fault::Nan).unwrap().first, [50]);
        assert_eq!(of_absmax.get(Fault::UnusualAbsmax).unwrap().first, [51]);
        let (codes, absmax) = code_faults(&[], &[], 0);
        assert!(codes.is_empty() && absmax.is_empty());
    }
}
