//! Memory aligned to a cache line. A vector load that straddles two lines touches both: with panels
//! that did not start on a line, a prompt of 512 tokens took a seventh longer.

use crate::pages::prefer_large;
use bytemuck::Zeroable;
use std::ops::{Deref, DerefMut};

/// The size of a cache line in bytes.
pub const LINE: usize = 64;

/// How many elements to skip so that the first one kept starts a cache line. At most [`LINE`] bytes
/// are skipped.
///
/// ```
/// use llm_int8_kernels::aligned::{LINE, elements_before_line};
/// let memory = [0u16; 100];
/// let first = elements_before_line(&memory);
/// assert!(first < LINE / size_of::<u16>());
/// assert_eq!(memory[first..].as_ptr().align_offset(LINE), 0);
/// ```
pub fn elements_before_line<T>(memory: &[T]) -> usize {
    // `align_offset` may return `usize::MAX`, "impossible": then nothing is skipped.
    match memory.as_ptr().align_offset(LINE) {
        offset if offset <= LINE => offset,
        _ => 0,
    }
}

/// A vector whose first value starts a cache line.
///
/// ```
/// use llm_int8_kernels::AlignedVec;
/// let values = AlignedVec::filled(3, 1.5f32);
/// assert_eq!(values[..], [1.5; 3]);
/// assert_eq!(values.as_ptr().align_offset(64), 0);
/// ```
#[derive(Debug)]
pub struct AlignedVec<T> {
    memory: Vec<T>,
    first: usize,
    len: usize,
}

impl<T: Clone> AlignedVec<T> {
    /// `len` copies of `value`.
    ///
    /// ```
    /// assert!(llm_int8_kernels::AlignedVec::filled(0, 0u8).is_empty());
    /// ```
    pub fn filled(len: usize, value: T) -> Self {
        Self::placed(vec![value; len + Self::SPARE], len)
    }

    /// `len` zeros from the allocator: pages that are new to the process are cleared by the system
    /// when a thread first touches them. Large memory gets huge pages where the system allows it.
    ///
    /// ```
    /// assert_eq!(llm_int8_kernels::AlignedVec::<half::f16>::zeroed(2)[..], [half::f16::ZERO; 2]);
    /// ```
    pub fn zeroed(len: usize) -> Self
    where
        T: Zeroable,
    {
        let mut zeros = Self::placed(bytemuck::zeroed_vec(len + Self::SPARE), len);
        prefer_large(&mut zeros.memory);
        zeros
    }

    /// Elements that may be skipped before the first.
    const SPARE: usize = match size_of::<T>() {
        0 => LINE,
        size if size > LINE => 1,
        size => LINE / size,
    };

    /// `memory` from its first line on.
    fn placed(memory: Vec<T>, len: usize) -> Self {
        let first = elements_before_line(&memory).min(Self::SPARE);
        Self { memory, first, len }
    }

    /// All of its memory, and the index of the first value: a vector can be given away without a
    /// copy.
    ///
    /// ```
    /// let (memory, first) = llm_int8_kernels::AlignedVec::filled(3, 7u8).into_memory();
    /// assert_eq!(memory[first..first + 3], [7; 3]);
    /// ```
    pub fn into_memory(self) -> (Vec<T>, usize) {
        (self.memory, self.first)
    }

    /// Changes the length, reusing the allocation if it is large enough. The values are unspecified
    /// afterwards.
    ///
    /// ```
    /// let mut values = llm_int8_kernels::AlignedVec::filled(2, 0u8);
    /// values.reset(5, 0);
    /// assert_eq!(values.len(), 5);
    /// ```
    pub fn reset(&mut self, len: usize, value: T) {
        if self.first + len <= self.memory.len() {
            self.len = len;
        } else {
            *self = Self::filled(len, value);
        }
    }
}

impl<T: Clone + Default> Default for AlignedVec<T> {
    fn default() -> Self {
        Self::filled(0, T::default())
    }
}

impl<T: Clone> Clone for AlignedVec<T> {
    fn clone(&self) -> Self {
        let Some(value) = self.first().cloned() else {
            return Self {
                memory: Vec::new(),
                first: 0,
                len: 0,
            };
        };

        let mut copy = Self::filled(self.len, value);
        copy.clone_from_slice(self);
        copy
    }
}

impl<T: PartialEq> PartialEq for AlignedVec<T> {
    fn eq(&self, other: &Self) -> bool {
        self[..] == other[..]
    }
}

impl<T> Deref for AlignedVec<T> {
    type Target = [T];

    fn deref(&self) -> &[T] {
        &self.memory[self.first..][..self.len]
    }
}

impl<T> DerefMut for AlignedVec<T> {
    fn deref_mut(&mut self) -> &mut [T] {
        &mut self.memory[self.first..][..self.len]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn clones_and_resized_vectors_are_aligned() {
        for len in [0usize, 1, 63, 64, 1000] {
            let mut values = AlignedVec::filled(len, 7u16);
            let copy = values.clone();
            assert!(copy == values && copy.iter().all(|x| *x == 7));

            values.reset(len * 3 + 1, 0);
            assert_eq!(values.len(), len * 3 + 1);

            values.reset(1, 0);

            for ptr in [copy.as_ptr(), values.as_ptr()] {
                assert!(ptr.align_offset(LINE) == 0 || len == 0);
            }
        }
    }

    #[test]
    fn zeros_are_aligned_whatever_their_number() {
        for len in [0usize, 1, 33, 3 << 20] {
            let zeros = AlignedVec::<u16>::zeroed(len);
            assert!(zeros.len() == len && zeros.iter().all(|x| *x == 0));
            assert!(zeros.as_ptr().align_offset(LINE) == 0 || len == 0);
        }
    }
}
