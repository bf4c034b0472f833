//! Memory in large pages. Weights are read from one end to the other for every token, and with
//! pages of 4 KiB looking these up and starting over at each boundary costs an eighth of the
//! bandwidth and 3 % of a token (gpt2-large on 2 cores of an Intel Xeon: 35 and 40 GB/s, 33.4 and
//! 34.5 tokens/s).

#![expect(unsafe_code, reason = "a system call")]

/// Asks the system to back this memory with large pages, where it knows how to; it should not have
/// been written to yet. A hint: nothing is known to change but the speed.
///
/// ```
/// let mut weights = vec![0u8; 4 << 20];
/// llm_int8_kernels::pages::prefer_large(&mut weights);
/// assert!(weights.iter().all(|x| *x == 0));
/// ```
pub fn prefer_large<T>(memory: &mut [T]) {
    #[cfg(target_os = "linux")]
    {
        /// Large pages of x86-64 and of most others.
        const LARGE: usize = 2 << 20;
        let start = memory.as_mut_ptr() as usize;
        let (first, last) = (
            start.next_multiple_of(LARGE),
            (start + size_of_val(memory)) / LARGE * LARGE,
        );
        if first < last {
            // SAFETY: the range lies in memory that we hold exclusively; the advice changes how it
            // is backed, not what it holds. Where it is refused, nothing happens.
            unsafe {
                libc::madvise(
                    first as *mut libc::c_void,
                    last - first,
                    libc::MADV_HUGEPAGE,
                )
            };
        }
    }
    #[cfg(not(target_os = "linux"))]
    let _ = memory;
}
