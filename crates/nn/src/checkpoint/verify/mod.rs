//! What can be wrong with a stored tensor, found without building a model: values that are not
//! numbers, int8 rows that no quantiser writes, differences from the float weights.

mod codes;
mod compare;
mod floats;

pub use codes::code_faults;
pub use compare::{WeightDifference, compare_floats, compare_weight};
pub use floats::float_faults;

use std::collections::BTreeMap;

/// How many rows a [`Rows`] lists.
const LISTED: usize = 5;

/// A row's absmax is unusual if it is this many times larger or smaller than the median of its
/// layer.
pub const UNUSUAL: f32 = 16.0;

/// What is wrong with a tensor.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[non_exhaustive]
pub enum Fault {
    /// The model needs the tensor, and it is not there.
    Missing,
    /// Another shape than the model needs.
    Shape,
    /// A dtype that the model cannot use there.
    Dtype,
    /// The parts of an int8 layer do not belong together, or its codes are not row-major.
    State,
    /// Values that are NaN.
    Nan,
    /// Values that are infinite.
    Infinite,
    /// Finite weights that become infinite in f16, through which bitsandbytes quantises.
    BeyondF16,
    /// An absmax below 0.
    AbsmaxNegative,
    /// An absmax of 0 for a row whose codes are not all 0.
    AbsmaxZero,
    /// An absmax that is a denormal f32.
    AbsmaxDenormal,
    /// An absmax that is no f16 value. bitsandbytes' are, as it is a maximum of f16 values.
    AbsmaxNotF16,
    /// Codes of -128, which row-wise quantisation never writes.
    Minus128,
    /// A row of codes that are all 0, with an absmax that is not 0.
    DeadRow,
    /// A row without a code of magnitude 127: it was not divided by its own absmax.
    UnscaledRow,
    /// A row with too many codes of magnitude 127, as clipping leaves them.
    SaturatedRow,
    /// The absmax is not that of the float source.
    AbsmaxDiffers,
    /// The codes are not those of the float source.
    CodesDiffer,
    /// Float values are not those of the float source.
    ValuesDiffer,
    /// The float source cannot be quantised, so there is nothing to compare with.
    Source,
    /// Not a fault: rows of zeros, whose absmax is 0 too.
    ZeroRow,
    /// Not a fault: an absmax below the normal numbers of f16, where its precision ends.
    SmallAbsmax,
    /// Not a fault: an absmax [`UNUSUAL`] times above or below the layer's median.
    UnusualAbsmax,
}

impl Fault {
    /// A short name in snake case.
    pub fn name(self) -> &'static str {
        match self {
            Self::Missing => "missing",
            Self::Shape => "shape",
            Self::Dtype => "dtype",
            Self::State => "state",
            Self::Nan => "nan",
            Self::Infinite => "infinite",
            Self::BeyondF16 => "beyond_f16",
            Self::AbsmaxNegative => "absmax_negative",
            Self::AbsmaxZero => "absmax_zero",
            Self::AbsmaxDenormal => "absmax_denormal",
            Self::AbsmaxNotF16 => "absmax_not_f16",
            Self::Minus128 => "code_minus_128",
            Self::DeadRow => "dead_row",
            Self::UnscaledRow => "unscaled_row",
            Self::SaturatedRow => "saturated_row",
            Self::AbsmaxDiffers => "absmax_differs",
            Self::CodesDiffer => "codes_differ",
            Self::ValuesDiffer => "values_differ",
            Self::Source => "source",
            Self::ZeroRow => "zero_row",
            Self::SmallAbsmax => "small_absmax",
            Self::UnusualAbsmax => "unusual_absmax",
        }
    }

    /// Whether a sound file may have it.
    pub fn is_harmless(self) -> bool {
        matches!(
            self,
            Self::ZeroRow | Self::SmallAbsmax | Self::UnusualAbsmax
        )
    }
}

/// How many elements or rows have a fault, and the first few rows.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Rows {
    /// Number of elements for a fault of elements, of rows for one of rows.
    pub count: u64,
    /// The lowest rows, at most five, ascending.
    pub first: Vec<usize>,
}

impl Rows {
    /// Counts one more element or row.
    fn add(&mut self, row: usize) {
        self.count += 1;
        self.list(row);
    }

    fn list(&mut self, row: usize) {
        if let Err(place) = self.first.binary_search(&row)
            && place < LISTED
        {
            self.first.insert(place, row);
            self.first.truncate(LISTED);
        }
    }

    /// Both together.
    pub fn merged(mut self, other: Self) -> Self {
        self.count += other.count;
        other.first.into_iter().for_each(|row| self.list(row));
        self
    }
}

/// The faults of a tensor.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Faults(BTreeMap<Fault, Rows>);

impl Faults {
    fn add(&mut self, fault: Fault, row: usize) {
        self.0.entry(fault).or_default().add(row);
    }

    fn merged(mut self, other: Self) -> Self {
        for (fault, rows) in other.0 {
            let own = self.0.remove(&fault).unwrap_or_default();
            self.0.insert(fault, own.merged(rows));
        }
        self
    }

    /// Where the tensor has a fault; `None` if it has not.
    pub fn get(&self, fault: Fault) -> Option<&Rows> {
        self.0.get(&fault)
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

impl IntoIterator for Faults {
    type Item = (Fault, Rows);
    type IntoIter = std::collections::btree_map::IntoIter<Fault, Rows>;

    fn into_iter(self) -> Self::IntoIter {
        self.0.into_iter()
    }
}

/// The middle one of the absmax values that are finite and positive.
fn median(absmax: &[f32]) -> Option<f32> {
    let mut usual: Vec<f32> = absmax
        .iter()
        .copied()
        .filter(|x| x.is_finite() && *x > 0.0)
        .collect();
    if usual.is_empty() {
        return None;
    }

    let middle = usual.len() / 2;
    Some(*usual.select_nth_unstable_by(middle, f32::total_cmp).1)
}

/// Adds what is remarkable about the absmax of rows and harmless.
fn note_sizes(absmax: &[f32], faults: &mut Faults) {
    let Some(median) = median(absmax) else {
        return;
    };
    for (row, value) in absmax.iter().enumerate() {
        if !value.is_finite() || *value <= 0.0 || value.is_subnormal() {
            continue;
        }
        if *value < half::f16::MIN_POSITIVE.to_f32() {
            faults.add(Fault::SmallAbsmax, row);
        }
        if *value > UNUSUAL * median || *value * UNUSUAL < median {
            faults.add(Fault::UnusualAbsmax, row);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_keep_the_lowest_and_count_all() {
        let mut rows = Rows::default();
        for row in [9, 3, 3, 7, 1, 8, 2, 0] {
            rows.add(row);
        }
        assert_eq!(
            (rows.count, rows.first.as_slice()),
            (8, &[0, 1, 2, 3, 7][..])
        );

        let mut other = Rows::default();
        other.add(4);
        let merged = other.merged(rows);
        assert_eq!(
            (merged.count, merged.first.as_slice()),
            (9, &[0, 1, 2, 3, 4][..])
        );
    }

    #[test]
    fn remarkable_sizes_are_found_around_the_median() {
        let mut faults = Faults::default();
        note_sizes(
            &[1.0, 1.0, 1.0, 17.0, 0.05, 15.0, f32::NAN, 0.0],
            &mut faults,
        );
        assert_eq!(faults.get(Fault::UnusualAbsmax).unwrap().first, [3, 4]);
        assert!(faults.get(Fault::SmallAbsmax).is_none());

        let mut faults = Faults::default();
        note_sizes(&[3e-5, 7e-5], &mut faults);
        assert_eq!(faults.get(Fault::SmallAbsmax).unwrap().first, [0]);
        assert!(median(&[0.0, f32::INFINITY]).is_none());
    }

    #[test]
    fn names_are_unique() {
        let all = [
            Fault::Missing,
            Fault::Shape,
            Fault::Dtype,
            Fault::State,
            Fault::Nan,
            Fault::Infinite,
            Fault::BeyondF16,
            Fault::AbsmaxNegative,
            Fault::AbsmaxZero,
            Fault::AbsmaxDenormal,
            Fault::AbsmaxNotF16,
            Fault::Minus128,
            Fault::DeadRow,
            Fault::UnscaledRow,
            Fault::SaturatedRow,
            Fault::AbsmaxDiffers,
            Fault::CodesDiffer,
            Fault::ValuesDiffer,
            Fault::Source,
            Fault::ZeroRow,
            Fault::SmallAbsmax,
            Fault::UnusualAbsmax,
        ];
        let names: std::collections::BTreeSet<_> = all.iter().map(|fault| fault.name()).collect();
        assert_eq!(names.len(), all.len());
    }
}
