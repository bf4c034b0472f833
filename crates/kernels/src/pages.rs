//! Huge pages. Decoding reads every weight once per token; with pages of 4 KiB, TLB misses and
//! prefetchers that stop at each page boundary cost an eighth of the bandwidth and 3 % of a token
//! (gpt2-large on 2 cores of an Intel Xeon: 35 and 40 GB/s, 33.4 and 34.5 tokens/s).

#![expect(unsafe_code, reason = "a system call")]

/// Asks the system to back `memory` with huge pages, on Linux. Call it before the memory is first
/// written. It is a hint: only speed changes.
///
/// ```
/// let mut weights = vec![0u8; 4 << 20];
/// llm_int8_kernels::pages::prefer_large(&mut weights);
/// assert!(weights.iter().all(|x| *x == 0));
/// ```
pub fn prefer_large<T>(memory: &mut [T]) {
    #[cfg(target_os = "linux")]
    {
        /// Bytes of a huge page on x86-64 and most other CPUs.
        const LARGE: usize = 2 << 20;
        let start = memory.as_mut_ptr() as usize;
        let (first, last) = (
            start.next_multiple_of(LARGE),
            (start + size_of_val(memory)) / LARGE * LARGE,
        );
        if first < last {
            // SAFETY: `first..last` lies inside `memory`, which is borrowed mutably. MADV_HUGEPAGE
            // changes how pages are backed, not their contents; a refusal has no effect.
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
