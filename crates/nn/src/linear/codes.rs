//! Where the codes of int8 weights lie.

use bytes::BytesMut;
use llm_int8_kernels::aligned::{LINE, elements_before_line};
use llm_int8_kernels::pages::prefer_large;

/// Memory for the codes of a model's weights, one after the other in large pages: a token reads all
/// of them, and pages of 4 KiB would cost an eighth of the bandwidth.
#[derive(Debug, Default)]
pub struct CodeMemory(BytesMut);

impl CodeMemory {
    /// Room for weights with these numbers of codes.
    pub fn for_weights(lengths: impl Iterator<Item = usize>) -> Self {
        let total: usize = lengths.map(|length| length.next_multiple_of(LINE)).sum();
        Self(zeroed(total))
    }

    /// Room for one weight; of its own where there is no more.
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

fn zeroed(length: usize) -> BytesMut {
    // Zeroed by the system when first touched, and so not yet written to.
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
    fn weights_lie_side_by_side_and_aligned() {
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
