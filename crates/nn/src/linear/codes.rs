//! Memory for the codes of int8 weights.

use bytes::BytesMut;
use llm_int8_kernels::aligned::{LINE, elements_before_line};
use llm_int8_kernels::pages::prefer_large;

/// One block of large pages for the codes of all of a model's weights, back to back. Decoding a
/// token reads every one of them, and 4 KiB pages would cost an eighth of the bandwidth.
#[derive(Debug, Default)]
pub struct CodeMemory(BytesMut);

impl CodeMemory {
    /// Room for weights with these numbers of codes, each starting on a cache line.
    pub fn for_weights(lengths: impl Iterator<Item = usize>) -> Self {
        let total: usize = lengths.map(|length| length.next_multiple_of(LINE)).sum();
        Self(zeroed(total))
    }

    /// Zeroed room for one weight: part of the block, or a separate allocation if the block has no
    /// room left.
    pub fn take(&mut self, length: usize) -> BytesMut {
        let rounded = length.next_multiple_of(LINE);
        if self.0.len() < rounded {
            return zeroed(length);
        }

        let mut codes = self.0.split_to(rounded);
        codes.truncate(length);
        codes
    }
}

/// Zeroed bytes that begin on a cache line.
fn zeroed(length: usize) -> BytesMut {
    // The system zeroes the pages when they are first touched, so nothing has been written yet and
    // the page size can still change.
    let mut memory = BytesMut::zeroed(length + LINE);
    prefer_large(&mut memory);
    let mut memory = memory.split_off(elements_before_line(&memory));
    memory.truncate(length);
    memory
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn weights_are_contiguous_and_aligned() {
        let mut memory = CodeMemory::for_weights([3usize, 64, 65].into_iter());
        let mut parts = [3usize, 64, 65, 10].map(|length| memory.take(length));
        for (i, part) in parts.iter_mut().enumerate() {
            part.fill(i as u8);
            assert_eq!(part.as_ptr().align_offset(LINE), 0);
        }

        for (i, (part, length)) in parts.iter().zip([3, 64, 65, 10]).enumerate() {
            assert!(part.len() == length && part.iter().all(|x| *x == i as u8));
        }

        assert_eq!(parts[1].as_ptr() as usize - parts[0].as_ptr() as usize, 64);
    }
}
