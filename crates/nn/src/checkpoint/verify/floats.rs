//! Faults of float tensors.

use super::{Fault, Faults, note_sizes};
use crate::checkpoint::TensorView;
use crate::checkpoint::view::FLOATS;
use crate::error::Result;
use half::{bf16, f16};
use rayon::prelude::*;
use safetensors::Dtype;
use std::borrow::Cow;

/// Elements that one task looks at.
const CHUNK: usize = 1 << 16;

/// Magnitudes from here on are infinite in f16: halfway between its largest value and the next.
const F16_OVERFLOW: f64 = 65520.0;

/// The elements of a float tensor.
pub(super) enum Floats<'a> {
    F16(Cow<'a, [f16]>),
    Bf16(Cow<'a, [bf16]>),
    F32(Cow<'a, [f32]>),
    F64(Cow<'a, [f64]>),
}

impl<'a> Floats<'a> {
    pub(super) fn of(view: &'a TensorView<'_>) -> Result<Self> {
        Ok(match view.dtype {
            Dtype::F16 => Self::F16(view.elements()?),
            Dtype::BF16 => Self::Bf16(view.elements()?),
            Dtype::F32 => Self::F32(view.elements()?),
            Dtype::F64 => Self::F64(view.elements()?),
            _ => return Err(view.wrong_dtype(FLOATS)),
        })
    }

    pub(super) fn len(&self) -> usize {
        match self {
            Self::F16(values) => values.len(),
            Self::Bf16(values) => values.len(),
            Self::F32(values) => values.len(),
            Self::F64(values) => values.len(),
        }
    }

    /// An element; exact.
    pub(super) fn at(&self, index: usize) -> f64 {
        match self {
            Self::F16(values) => values[index].to_f32().into(),
            Self::Bf16(values) => values[index].to_f32().into(),
            Self::F32(values) => values[index].into(),
            Self::F64(values) => values[index],
        }
    }
}

/// The rows of a stored tensor: those of `[out, in]`, even if it is stored as `[in, out]`. A vector
/// has one element in each row.
#[derive(Debug, Clone, Copy)]
pub(super) struct Layout {
    pub(super) rows: usize,
    width: usize,
    transposed: bool,
}

impl Layout {
    pub(super) fn of(shape: &[usize], transposed: bool) -> Self {
        let count: usize = shape.iter().product();
        let rows = match (shape, transposed) {
            ([_, columns], true) => *columns,
            ([first, ..], _) => *first,
            ([], _) => 1,
        };
        Self {
            rows,
            width: count.checked_div(rows).unwrap_or(0),
            transposed,
        }
    }

    /// The row of an element by its index in the file.
    pub(super) fn row(self, index: usize) -> usize {
        match self.transposed {
            true => index % self.rows,
            false => index / self.width,
        }
    }

    /// The index in the file of an element of `[out, in]`.
    pub(super) fn index(self, row: usize, column: usize) -> usize {
        match self.transposed {
            true => column * self.rows + row,
            false => row * self.width + column,
        }
    }
}

/// Looks for NaN and infinity in a float tensor. With `is_weight`, it is the weight of a layer that
/// is to be quantised, stored as `[in, out]` if `transposed`: then also for values beyond f16, rows
/// that are 0 in f16, and rows of remarkable size. Rows are output features.
///
/// # Errors
/// [`NnError::WrongDtype`](crate::NnError::WrongDtype) if it is not stored as a float;
/// [`NnError::MalformedFile`](crate::NnError::MalformedFile).
pub fn float_faults(view: &TensorView<'_>, is_weight: bool, transposed: bool) -> Result<Faults> {
    let values = Floats::of(view)?;
    let layout = Layout::of(view.shape, transposed);
    let mut faults = scan(&values, layout, is_weight);

    if is_weight {
        let absmax: Vec<f32> = row_maxima(&values, layout)
            .into_iter()
            .map(|largest| f16::from_f64(largest).to_f32())
            .collect();
        for (row, value) in absmax.iter().enumerate() {
            if *value == 0.0 && layout.width > 0 {
                faults.add(Fault::ZeroRow, row);
            }
        }
        note_sizes(&absmax, &mut faults);
    }

    Ok(faults)
}

fn scan(values: &Floats<'_>, layout: Layout, is_weight: bool) -> Faults {
    let look = |start: usize| {
        let mut faults = Faults::default();
        for index in start..values.len().min(start + CHUNK) {
            let x = values.at(index);
            let fault = if x.is_nan() {
                Fault::Nan
            } else if x.is_infinite() {
                Fault::Infinite
            } else if is_weight && x.abs() >= F16_OVERFLOW {
                Fault::BeyondF16
            } else {
                continue;
            };
            faults.add(fault, layout.row(index));
        }
        faults
    };

    let starts: Vec<usize> = (0..values.len()).step_by(CHUNK).collect();
    starts
        .into_par_iter()
        .map(look)
        .reduce(Faults::default, Faults::merged)
}

/// The largest magnitude of each row; infinite if one is NaN.
fn row_maxima(values: &Floats<'_>, layout: Layout) -> Vec<f64> {
    let magnitude = |index| {
        let x = values.at(index).abs();
        if x.is_nan() { f64::INFINITY } else { x }
    };
    if !layout.transposed {
        let of_row = |row: usize| {
            let indices = row * layout.width..(row + 1) * layout.width;
            indices.map(magnitude).fold(0.0, f64::max)
        };
        return (0..layout.rows).into_par_iter().map(of_row).collect();
    }

    let new = || vec![0f64; layout.rows];
    (0..layout.width)
        .into_par_iter()
        .fold(new, |mut maxima, column| {
            let start = column * layout.rows;
            for (row, largest) in maxima.iter_mut().enumerate() {
                *largest = largest.max(magnitude(start + row));
            }
            maxima
        })
        .reduce(new, |mut a, b| {
            a.iter_mut().zip(b).for_each(|(a, b)| *a = a.max(b));
            a
        })
}

#[cfg(test)]
mod tests {
    use super::*;

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

    #[test]
    fn nan_and_infinity_are_found_beside_larger_values() {
        let mut values = vec![1.0f32; 3 * 40_000];
        values[40_000] = f32::NAN;
        values[40_001] = 1e30;
        values[80_000] = f32::NEG_INFINITY;
        values[119_999] = f32::INFINITY;
        let faults = float_faults(&view(Dtype::F32, &values, &[3, 40_000]), false, false).unwrap();
        let nan = faults.get(Fault::Nan).unwrap();
        let infinite = faults.get(Fault::Infinite).unwrap();
        assert_eq!((nan.count, nan.first.as_slice()), (1, &[1][..]));
        assert_eq!((infinite.count, infinite.first.as_slice()), (2, &[2][..]));
        assert!(
            faults.get(Fault::BeyondF16).is_none(),
            "it is not quantised"
        );
    }

    #[test]
    fn every_float_dtype_is_read() {
        let nan = |dtype, bytes: &[u8]| {
            let found = float_faults(&view(dtype, bytes, &[2]), false, false).unwrap();
            found.get(Fault::Nan).map(|rows| rows.first.clone())
        };
        let half = [f16::ONE, f16::NAN].map(f16::to_le_bytes).concat();
        let brain = [bf16::ONE, bf16::NAN].map(bf16::to_le_bytes).concat();
        let double = [1.0, f64::NAN].map(f64::to_le_bytes).concat();
        for (dtype, bytes) in [
            (Dtype::F16, half),
            (Dtype::BF16, brain),
            (Dtype::F64, double),
        ] {
            assert_eq!(nan(dtype, &bytes), Some(vec![1]), "{dtype:?}");
        }
        let codes = [1i8, 2];
        assert!(float_faults(&view(Dtype::I8, &codes, &[2]), false, false).is_err());
    }

    #[test]
    fn weights_beyond_f16_are_counted_by_output_in_both_layouts() {
        // out 2 × in 3: row 1 holds the largest f16 and what rounds past it.
        let rows = [1.0f32, 2.0, 3.0, 65504.0, 65519.0, 65520.0];
        let stored = [1.0f32, 65504.0, 2.0, 65519.0, 3.0, 65520.0];
        for (values, shape, transposed) in [(rows, [2, 3], false), (stored, [3, 2], true)] {
            let faults =
                float_faults(&view(Dtype::F32, &values, &shape), true, transposed).unwrap();
            let beyond = faults.get(Fault::BeyondF16).unwrap();
            assert_eq!((beyond.count, beyond.first.as_slice()), (1, &[1][..]));
        }
    }

    #[test]
    fn rows_that_vanish_in_f16_are_zero_rows() {
        let values = [1.0f32, 0.5, 0.0, 0.0, 1e-9, -1e-9, 0.0, f32::NAN];
        let faults = float_faults(&view(Dtype::F32, &values, &[4, 2]), true, false).unwrap();
        assert_eq!(faults.get(Fault::ZeroRow).unwrap().first, [1, 2]);

        let empty: [f32; 0] = [];
        assert!(
            float_faults(&view(Dtype::F32, &empty, &[0, 4]), true, false)
                .unwrap()
                .is_empty()
        );
        assert!(
            float_faults(&view(Dtype::F32, &empty, &[4, 0]), true, true)
                .unwrap()
                .is_empty()
        );
        let scalar = [f32::NAN];
        let faults = float_faults(&view(Dtype::F32, &scalar, &[]), false, false).unwrap();
        assert_eq!(faults.get(Fault::Nan).unwrap().first, [0]);
    }
}
