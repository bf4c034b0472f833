//! How launches divide their work into blocks: pure functions of sizes, tested without a device.
//! Their constants come from the hardware (warps of 32, blocks that fill a multiprocessor) and
//! repeat those of `kernels/`.

mod attention;
mod gemm;
mod rows;

pub use attention::*;
pub use gemm::*;
pub use rows::*;

/// Threads of a warp.
pub const WARP: usize = 32;
/// Rows of codes are aligned to this many bytes, for 16-byte loads.
pub const ALIGNMENT: usize = 16;

/// Bytes from one row of codes to the next.
///
/// ```
/// assert_eq!(llm_int8_cuda::plan::pitch(499), 512);
/// ```
pub fn pitch(in_features: usize) -> usize {
    in_features.next_multiple_of(ALIGNMENT)
}

/// Threads of a block that works on one row of `cols` values. Each thread keeps about eight values
/// in registers; with more than 512 threads there would be too few registers for that.
///
/// ```
/// use llm_int8_cuda::plan::row_threads;
/// assert_eq!([1, 1280, 5120, 53248].map(row_threads), [128, 256, 512, 512]);
/// ```
pub fn row_threads(cols: usize) -> u32 {
    (cols / 8).next_power_of_two().clamp(128, 512) as u32
}

/// The most values of a row that is quantised: sums of squares of its chunks lie in shared memory, and
/// sums of products of codes in an i32.
pub const MAX_COLUMNS: usize = 1 << 18;

/// The bits of the smallest f16 that is an outlier: values are outliers if the bits of their
/// magnitude are no less. Without outliers, `threshold` 0, it is above all bit patterns.
///
/// ```
/// use llm_int8_cuda::plan::outlier_limit;
/// assert_eq!(outlier_limit(6.0), half::f16::from_f32(6.0).to_bits().into());
/// assert_eq!(outlier_limit(0.0), 0xffff);
/// ```
pub fn outlier_limit(threshold: f32) -> u32 {
    if threshold <= 0.0 {
        return 0xffff;
    }
    let nearest = half::f16::from_f32(threshold);
    u32::from(nearest.to_bits()) + u32::from(nearest.to_f32() < threshold)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_outlier_limit_is_the_smallest_f16_not_below_the_threshold() {
        let limit = |x: f32| half::f16::from_bits(outlier_limit(x) as u16).to_f32();
        assert_eq!(limit(6.0), 6.0);
        assert!(limit(6.001) >= 6.001 && limit(6.001) < 6.01);
        // Only infinity reaches a threshold above the largest finite f16.
        assert_eq!(limit(1e6), f32::INFINITY);
    }
}
