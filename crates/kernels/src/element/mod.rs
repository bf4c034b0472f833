//! The float types weights and activations come in.

use half::slice::HalfFloatSliceExt;
use half::{bf16, f16};

/// f32, f16 or bf16.
pub trait Element: Copy + Send + Sync + 'static {
    /// The value in f32, exactly.
    ///
    /// ```
    /// use llm_int8_kernels::Element;
    /// assert_eq!(half::f16::from_f32(1.5).to_f32(), 1.5);
    /// ```
    fn to_f32(self) -> f32;

    /// The nearest f16, ties to even; beyond 65,504 an infinity.
    ///
    /// ```
    /// use llm_int8_kernels::Element;
    /// assert_eq!(Element::to_f16(2049.0f32).to_f32(), 2048.0); // a tie: 2048 is even
    /// assert!(Element::to_f16(70000.0f32).is_infinite());
    /// ```
    fn to_f16(self) -> f16;

    /// A slice of [`Element::to_f32`]; both slices have the same length.
    ///
    /// ```
    /// use llm_int8_kernels::Element;
    /// let mut out = [0f32; 2];
    /// Element::to_f32_slice(&[half::bf16::ONE, half::bf16::ZERO], &mut out);
    /// assert_eq!(out, [1.0, 0.0]);
    /// ```
    fn to_f32_slice(source: &[Self], out: &mut [f32]);

    /// A slice of [`Element::to_f16`]; both slices have the same length.
    ///
    /// ```
    /// use llm_int8_kernels::Element;
    /// let mut out = [half::f16::ZERO; 1];
    /// Element::to_f16_slice(&[1.0f32], &mut out);
    /// assert_eq!(out, [half::f16::ONE]);
    /// ```
    fn to_f16_slice(source: &[Self], out: &mut [f16]);
}

impl Element for f32 {
    fn to_f32(self) -> f32 {
        self
    }

    fn to_f16(self) -> f16 {
        f16::from_f32(self)
    }

    fn to_f32_slice(source: &[Self], out: &mut [f32]) {
        out.copy_from_slice(source);
    }

    fn to_f16_slice(source: &[Self], out: &mut [f16]) {
        out.convert_from_f32_slice(source);
    }
}

impl Element for f16 {
    fn to_f32(self) -> f32 {
        f16::to_f32(self)
    }

    fn to_f16(self) -> f16 {
        self
    }

    fn to_f32_slice(source: &[Self], out: &mut [f32]) {
        source.convert_to_f32_slice(out);
    }

    fn to_f16_slice(source: &[Self], out: &mut [f16]) {
        out.copy_from_slice(source);
    }
}

impl Element for bf16 {
    fn to_f32(self) -> f32 {
        bf16::to_f32(self)
    }

    fn to_f16(self) -> f16 {
        f16::from_f32(bf16::to_f32(self))
    }

    fn to_f32_slice(source: &[Self], out: &mut [f32]) {
        source.convert_to_f32_slice(out);
    }

    fn to_f16_slice(source: &[Self], out: &mut [f16]) {
        for (y, x) in out.iter_mut().zip(source) {
            *y = Element::to_f16(*x);
        }
    }
}
