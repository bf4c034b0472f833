//! Stored weights beside the float weights that they were made from.

use super::Rows;
use super::floats::{Floats, Layout};
use crate::checkpoint::cast::{int8_weight, rounded};
use crate::checkpoint::view::TensorView;
use crate::dtype::FloatDtype;
use crate::error::Result;
use crate::linear::CodeMemory;
use half::{bf16, f16};
use llm_int8_kernels::Isa;
use rayon::prelude::*;
use safetensors::Dtype;

/// Elements that one task compares.
const CHUNK: usize = 1 << 16;

/// How far from halfway between two codes a value may lie and still be rounded either way. CUDA
/// kernels divide with an error of two units in the last place, 127 · 2⁻²².
const TIE: f64 = 1e-4;

/// How an int8 weight differs from its float source.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct WeightDifference {
    /// Rows with another absmax.
    pub absmax: Rows,
    /// The largest difference of an absmax, relative to the source's; infinite if that is 0.
    pub largest: f32,
    /// Codes that are one off where the source's value lies halfway between two codes: the division
    /// of another processor, not a fault.
    pub at_ties: Rows,
    /// Other codes that are one off.
    pub by_one: Rows,
    /// Codes that are off by more.
    pub by_more: Rows,
}

/// Quantises the weight `source` by bitsandbytes' rule and compares: `codes` `[out, in]` row-major
/// and `absmax` `[out]`. `source` is rounded to `dtype` first, in which the model was loaded before
/// it was quantised; with `transposed`, it is stored as `[in, out]`.
///
/// # Errors
/// [`NnError::Quantise`](crate::NnError::Quantise) if the source holds a value that is not finite
/// in f16; [`NnError::WrongDtype`](crate::NnError::WrongDtype),
/// [`NnError::WrongShape`](crate::NnError::WrongShape) if it is no float matrix;
/// [`NnError::Input`](crate::NnError::Input) if it is F64 and overflows f32.
pub fn compare_weight(
    codes: &[i8],
    absmax: &[f32],
    source: TensorView<'_>,
    dtype: FloatDtype,
    transposed: bool,
) -> Result<WeightDifference> {
    let source = rounded(source, dtype)?;
    let expected = int8_weight(
        &source,
        transposed,
        Isa::detect(),
        &mut CodeMemory::default(),
    )?;
    let values = Floats::of(&source)?;
    let layout = Layout::of(source.shape, transposed);
    let [_, in_features] = expected.shape();

    let mut found = codes
        .par_chunks_exact(in_features.max(1))
        .zip(expected.codes().par_chunks_exact(in_features.max(1)))
        .zip(expected.absmax())
        .enumerate()
        .fold(WeightDifference::default, |mut found, (row, rows)| {
            let ((codes, expected), absmax) = rows;
            if codes != expected {
                let value = |column| values.at(layout.index(row, column));
                compare_row(row, codes, expected, *absmax, value, &mut found);
            }
            found
        })
        .reduce(WeightDifference::default, WeightDifference::merged);

    for (row, (ours, theirs)) in absmax.iter().zip(expected.absmax()).enumerate() {
        if ours != theirs {
            found.absmax.add(row);
            let relative = ((ours - theirs) / theirs).abs();
            // A NaN is as far off as can be.
            let relative = if relative.is_nan() {
                f32::INFINITY
            } else {
                relative
            };
            found.largest = found.largest.max(relative);
        }
    }
    Ok(found)
}

fn compare_row(
    row: usize,
    codes: &[i8],
    expected: &[i8],
    absmax: f32,
    value: impl Fn(usize) -> f64,
    found: &mut WeightDifference,
) {
    for (column, (ours, theirs)) in codes.iter().zip(expected).enumerate() {
        match ours.abs_diff(*theirs) {
            0 => {}
            1 => {
                let value = f16::from_f64(value(column)).to_f64();
                let exact = value / f64::from(absmax) * 127.0;
                let is_tie = (exact - f64::from(*ours)).abs() <= 0.5 + TIE;
                let rows = if is_tie {
                    &mut found.at_ties
                } else {
                    &mut found.by_one
                };
                rows.add(row);
            }
            _ => found.by_more.add(row),
        }
    }
}

impl WeightDifference {
    fn merged(self, other: Self) -> Self {
        Self {
            absmax: self.absmax.merged(other.absmax),
            largest: self.largest.max(other.largest),
            at_ties: self.at_ties.merged(other.at_ties),
            by_one: self.by_one.merged(other.by_one),
            by_more: self.by_more.merged(other.by_more),
        }
    }
}

/// The elements of a float tensor that are not those of `source` cast to its dtype. NaN equals NaN.
/// Both have the same shape.
///
/// # Errors
/// [`NnError::WrongDtype`](crate::NnError::WrongDtype) if one is not stored as a float;
/// [`NnError::WrongShape`](crate::NnError::WrongShape) if the shapes differ.
pub fn compare_floats(view: &TensorView<'_>, source: &TensorView<'_>) -> Result<Rows> {
    source.check_shape(view.shape)?;
    let ours = Floats::of(view)?;
    let theirs = Floats::of(source)?;
    let layout = Layout::of(view.shape, false);
    let look = |start: usize| {
        let mut rows = Rows::default();
        for index in start..ours.len().min(start + CHUNK) {
            let x = ours.at(index);
            let y = cast(theirs.at(index), view.dtype);
            if x != y && !(x.is_nan() && y.is_nan()) {
                rows.add(layout.row(index));
            }
        }
        rows
    };

    let starts: Vec<usize> = (0..ours.len()).step_by(CHUNK).collect();
    Ok(starts
        .into_par_iter()
        .map(look)
        .reduce(Rows::default, Rows::merged))
}

/// A value in another dtype. As in torch, f64 goes through f32.
fn cast(x: f64, dtype: Dtype) -> f64 {
    match dtype {
        Dtype::F16 => f16::from_f32(x as f32).to_f64(),
        Dtype::BF16 => bf16::from_f32(x as f32).to_f64(),
        Dtype::F32 => f64::from(x as f32),
        _ => x,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use llm_int8_kernels::MatRef;

    fn view<'a, T: bytemuck::Pod>(
        dtype: Dtype,
        values: &'a [T],
        shape: &'a [usize],
    ) -> TensorView<'a> {
        TensorView {
            name: "w".into(),
            file: "memory",
            dtype,
            shape,
            data: bytemuck::cast_slice(values).into(),
        }
    }

    /// A weight `[out, in]` of 3 × 50 values, its codes and absmax.
    fn example() -> (Vec<f32>, Vec<i8>, Vec<f32>) {
        let values: Vec<f32> = (0..150)
            .map(|i| ((i * 37 % 101) as f32 - 50.0) / 64.0)
            .collect();
        let weight = MatRef::new(&values, 3, 50).unwrap();
        let weight = crate::linear::Int8Weight::quantize(Isa::detect(), weight).unwrap();
        (values, weight.codes().to_vec(), weight.absmax().to_vec())
    }

    fn difference(
        codes: &[i8],
        absmax: &[f32],
        values: &[f32],
        transposed: bool,
    ) -> WeightDifference {
        let shape = if transposed { [50, 3] } else { [3, 50] };
        let source = view(Dtype::F32, values, &shape);
        compare_weight(codes, absmax, source, FloatDtype::F16, transposed).unwrap()
    }

    #[test]
    fn the_codes_of_the_source_are_equal_in_both_layouts() {
        let (values, codes, absmax) = example();
        assert_eq!(
            difference(&codes, &absmax, &values, false),
            WeightDifference::default()
        );

        let stored: Vec<f32> = (0..150).map(|i| values[i % 3 * 50 + i / 3]).collect();
        assert_eq!(
            difference(&codes, &absmax, &stored, true),
            WeightDifference::default()
        );
        let mut codes = codes;
        codes[50] = codes[50].wrapping_add(9);
        let found = difference(&codes, &absmax, &stored, true);
        assert_eq!(
            (found.by_more.count, found.by_more.first.as_slice()),
            (1, &[1][..])
        );
    }

    #[test]
    fn changed_codes_and_absmax_are_counted_by_size() {
        let (values, mut codes, mut absmax) = example();
        let off = |code: i8, by: i8| if code > 0 { code - by } else { code + by };
        codes[3] = off(codes[3], 1);
        codes[60] = off(codes[60], 1);
        codes[149] = off(codes[149], 2);
        absmax[1] *= 1.5;
        let found = difference(&codes, &absmax, &values, false);
        assert_eq!(
            (found.by_one.count, found.by_one.first.as_slice()),
            (2, &[0, 1][..])
        );
        assert_eq!(found.by_more.first, [2]);
        assert_eq!(
            (found.absmax.first.as_slice(), found.largest),
            (&[1][..], 0.5)
        );
        assert_eq!(found.at_ties.count, 0);

        absmax[1] = f32::NAN;
        assert_eq!(
            difference(&codes, &absmax, &values, false).largest,
            f32::INFINITY
        );
    }

    #[test]
    fn a_tie_rounded_the_other_way_is_no_fault() {
        // 0.5, 1.5 and 2.5 steps lie halfway; 3 does not.
        let values = [127.0f32, 0.5, 1.5, 2.5, 3.0];
        let source = || view(Dtype::F32, &values, &[1, 5]);
        let of = |codes: &[i8]| {
            compare_weight(codes, &[127.0], source(), FloatDtype::F16, false).unwrap()
        };
        let other = of(&[127, 1, 1, 3, 3]);
        assert_eq!((other.at_ties.count, other.by_one.count), (3, 0));
        let wrong = of(&[127, -1, 2, 2, 4]);
        assert_eq!((wrong.at_ties.count, wrong.by_one.count), (0, 2));
    }

    #[test]
    fn the_source_is_rounded_to_the_dtype_of_the_model_first() {
        let values = [1.0f32, 0.5085, 0.7517, -0.3331];
        let shape = [1, 4];
        let brain: Vec<f32> = values.iter().map(|x| bf16::from_f32(*x).to_f32()).collect();
        let weight = |values: &[f32]| {
            let weight = MatRef::new(values, 1, 4).unwrap();
            crate::linear::Int8Weight::quantize(Isa::detect(), weight).unwrap()
        };
        let (direct, through) = (weight(&values), weight(&brain));
        assert_ne!(direct.codes(), through.codes());
        for (made, dtype) in [(direct, FloatDtype::F16), (through, FloatDtype::BF16)] {
            let source = view(Dtype::F32, &values, &shape);
            let found = compare_weight(made.codes(), made.absmax(), source, dtype, false).unwrap();
            assert_eq!(found, WeightDifference::default());
        }
    }

    #[test]
    fn a_source_that_is_not_finite_is_an_error() {
        let values = [1.0f32, 70_000.0];
        let source = view(Dtype::F32, &values, &[1, 2]);
        let error = compare_weight(&[0, 127], &[1.0], source, FloatDtype::F16, false);
        assert!(error.unwrap_err().to_string().contains("70000"));
    }

    #[test]
    fn floats_are_equal_after_the_cast_and_nan_equals_nan() {
        let source = [0.1f64, 2.0, f64::NAN, 1e-9];
        let half: Vec<f16> = source.iter().map(|x| f16::from_f32(*x as f32)).collect();
        let theirs = view(Dtype::F64, &source, &[2, 2]);
        let ours = view(Dtype::F16, &half, &[2, 2]);
        assert_eq!(compare_floats(&ours, &theirs).unwrap(), Rows::default());

        let mut changed = half.clone();
        changed[2] = f16::ONE;
        let ours = view(Dtype::F16, &changed, &[2, 2]);
        let rows = compare_floats(&ours, &theirs).unwrap();
        assert_eq!((rows.count, rows.first.as_slice()), (1, &[1][..]));

        let ours = view(Dtype::F16, &half, &[4]);
        assert!(compare_floats(&ours, &theirs).is_err());
    }
}
