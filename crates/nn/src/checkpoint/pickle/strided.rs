//! Tensors that are not contiguous: transposed, sliced or expanded views.

use super::archive::Range;
use rayon::prelude::*;

/// torch's own limit.
const MOST_DIMENSIONS: usize = 64;

/// An expanded tensor may be larger than the file it is in, up to this size in bytes.
const LARGEST_EXPANDED: usize = 1 << 26;

/// Rows that one task gathers.
const BAND: usize = 32;

/// A strided view of a storage.
#[derive(Debug)]
pub(super) struct Strided {
    /// Start of the storage in the file, in bytes.
    pub(super) start: usize,
    /// Bytes of an element.
    pub(super) size: usize,
    /// Offset of the first element in the storage, in elements.
    pub(super) offset: usize,
    pub(super) shape: Vec<usize>,
    /// Elements from one item of a dimension to the next; 0 in an expanded dimension.
    pub(super) strides: Vec<usize>,
}

impl Strided {
    /// Checks that the view is within its storage of `available` bytes and not larger than a tensor
    /// of a file of `file_len` bytes may be; `None` if it is not. Returns the tensor's place in the
    /// file if it is contiguous, else `Some(None)`.
    pub(super) fn check(&self, available: usize, file_len: usize) -> Option<Option<Range>> {
        let dimensions = self.shape.len();
        if dimensions != self.strides.len() || dimensions > MOST_DIMENSIONS {
            return None;
        }

        let count = self
            .shape
            .iter()
            .try_fold(1usize, |count, size| count.checked_mul(*size))?;
        let bytes = count.checked_mul(self.size)?;
        if count == 0 {
            return Some(Some((self.start, self.start)));
        }

        let last = self
            .shape
            .iter()
            .zip(&self.strides)
            .try_fold(self.offset, |place, (size, stride)| {
                place.checked_add((size - 1).checked_mul(*stride)?)
            })?;

        let reached = last.checked_add(1)?.checked_mul(self.size)?;
        if reached > available || bytes > file_len.max(LARGEST_EXPANDED) {
            return None;
        }

        let first = self.start + self.offset * self.size;
        Some(self.is_contiguous().then_some((first, first + bytes)))
    }

    /// Whether the elements are contiguous in row-major order. The strides of dimensions of length
    /// 1 do not matter.
    fn is_contiguous(&self) -> bool {
        let mut expected = 1;
        self.shape
            .iter()
            .zip(&self.strides)
            .rev()
            .all(|(size, stride)| {
                let fits = *size == 1 || *stride == expected;
                expected *= size;
                fits
            })
    }

    /// The elements in row-major order. The view must have passed [`Strided::check`].
    pub(super) fn gather(&self, file: &[u8]) -> Vec<u8> {
        let storage = &file[self.start..];
        match self.size {
            1 => self.elements::<1>(storage),
            2 => self.elements::<2>(storage),
            4 => self.elements::<4>(storage),
            _ => self.elements::<8>(storage),
        }
    }

    /// Gathers elements of `SIZE` bytes. A row is the last dimension. A band of rows is filled
    /// column by column: if the tensor is transposed, the elements of a column are neighbours in
    /// the storage.
    fn elements<const SIZE: usize>(&self, storage: &[u8]) -> Vec<u8> {
        let (storage, _) = storage.as_chunks::<SIZE>();
        let (outer, width, stride) = match (self.shape.split_last(), self.strides.last()) {
            (Some((width, outer)), Some(stride)) => (outer, *width, *stride),
            _ => (&[][..], 1, 1),
        };
        let rows: usize = outer.iter().product();
        let mut bytes = vec![0; rows * width * SIZE];
        bytes
            .par_chunks_mut(width * SIZE * BAND)
            .enumerate()
            .for_each(|(band, bytes)| {
                let (out, _) = bytes.as_chunks_mut::<SIZE>();
                let first = band * BAND;
                let places: Vec<usize> = (first..first + out.len() / width)
                    .map(|row| self.row(row, outer))
                    .collect();

                if stride == 1 {
                    let rows = out.chunks_mut(width).zip(&places);
                    rows.for_each(|(out, place)| out.copy_from_slice(&storage[*place..][..width]));
                    return;
                }

                for column in 0..width {
                    for (row, place) in places.iter().enumerate() {
                        out[row * width + column] = storage[place + column * stride];
                    }
                }
            });

        bytes
    }

    /// Offset of a row in the storage, in elements. Rows are numbered over `outer`, the dimensions
    /// before the last.
    fn row(&self, mut row: usize, outer: &[usize]) -> usize {
        let mut place = self.offset;
        for (size, stride) in outer.iter().zip(&self.strides).rev() {
            place += row % size * stride;
            row /= size;
        }
        place
    }
}
