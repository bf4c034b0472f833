//! Tensors whose elements do not lie one after the other: transposed, cut out, expanded.

use super::archive::Range;

/// torch allows no more dimensions.
const MOST_DIMENSIONS: usize = 64;

/// An expanded tensor may be larger than its file, but not by more than this.
const MOST_BYTES_BESIDE_FILE: usize = 1 << 26;

/// A view of a storage, in elements.
#[derive(Debug)]
pub(super) struct Strided {
    /// Where the storage begins in the file, in bytes.
    pub(super) start: usize,
    /// Bytes of an element.
    pub(super) size: usize,
    /// The place of the first element.
    pub(super) offset: usize,
    pub(super) shape: Vec<usize>,
    /// Elements from one item of a dimension to the next; 0 repeats it.
    pub(super) strides: Vec<usize>,
}

impl Strided {
    /// Where the bytes of a contiguous tensor lie in the file, an empty `Some` for others: none where the view
    /// reaches beyond its storage of `available` bytes, or is larger than any tensor in a file of `file_len`.
    pub(super) fn check(&self, available: usize, file_len: usize) -> Option<Option<Range>> {
        let dimensions = self.shape.len();
        if dimensions != self.strides.len() || dimensions > MOST_DIMENSIONS {
            return None;
        }
        let count = self.shape.iter().try_fold(1usize, |count, size| count.checked_mul(*size))?;
        let bytes = count.checked_mul(self.size)?;
        if count == 0 {
            return Some(Some((self.start, self.start)));
        }
        let last = self.shape.iter().zip(&self.strides).try_fold(self.offset, |place, (size, stride)| {
            place.checked_add((size - 1).checked_mul(*stride)?)
        })?;
        let reached = last.checked_add(1)?.checked_mul(self.size)?;
        if reached > available || bytes > file_len.max(MOST_BYTES_BESIDE_FILE) {
            return None;
        }
        let first = self.start + self.offset * self.size;
        Some(self.is_contiguous().then_some((first, first + bytes)))
    }

    /// Strides of dimensions of one item say nothing.
    fn is_contiguous(&self) -> bool {
        let mut expected = 1;
        self.shape.iter().zip(&self.strides).rev().all(|(size, stride)| {
            let fits = *size == 1 || *stride == expected;
            expected *= size;
            fits
        })
    }

    /// The elements in row-major order. The view must have passed [`Strided::check`].
    pub(super) fn gather(&self, file: &[u8]) -> Vec<u8> {
        let (inner, inner_stride) = match (self.shape.last(), self.strides.last()) {
            (Some(size), Some(stride)) => (*size, *stride),
            _ => (1, 1),
        };
        let outer = self.shape.len().saturating_sub(1);
        let rows: usize = self.shape[..outer].iter().product();
        let mut out = Vec::with_capacity(rows * inner * self.size);
        let mut indices = vec![0; outer];
        let mut place = self.offset;
        for _ in 0..rows {
            let row = &file[self.start + place * self.size..];
            if inner_stride == 1 {
                out.extend_from_slice(&row[..inner * self.size]);
            } else {
                (0..inner)
                    .for_each(|i| out.extend_from_slice(&row[i * inner_stride * self.size..][..self.size]));
            }
            // The next row, as an odometer counts.
            for dimension in (0..outer).rev() {
                indices[dimension] += 1;
                place += self.strides[dimension];
                if indices[dimension] < self.shape[dimension] {
                    break;
                }
                place -= self.shape[dimension] * self.strides[dimension];
                indices[dimension] = 0;
            }
        }
        out
    }
}
