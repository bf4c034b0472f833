//! LLM.int8() on the CPU (Dettmers et al. 2022): weights and activations quantised row by row by
//! their absmax, exact int8 matmuls, and outlier columns multiplied in floating point.
//!
//! ```
//! use llm_int8_kernels::{
//!     Int8WeightRef, Isa, Layer, MatMut, MatRef, OutlierRule, linear, quantize_activations, quantize_weight,
//! };
//! let isa = Isa::detect();
//!
//! // W [2, 3]: each row becomes int8 codes and its absmax.
//! let weight = [1.0f32, -0.5, 0.25, 0.0, 2.0, 1.0];
//! let (mut codes, mut absmax) = ([0i8; 6], [0f32; 2]);
//! quantize_weight(isa, MatRef::new(&weight, 2, 3)?, MatMut::new(&mut codes, 2, 3)?, &mut absmax)?;
//! assert_eq!((codes, absmax), ([127, -64, 32, 0, 127, 64], [1.0, 2.0]));
//!
//! // x [1, 3]: 8.0 is an outlier at threshold 6, so it is multiplied in floating point.
//! let x = quantize_activations(isa, MatRef::new(&[1.0f32, 8.0, 0.0], 1, 3)?, OutlierRule::batch(6.0));
//! assert_eq!(x.outliers().row(0), (&[1u32][..], &[8.0f32][..]));
//!
//! // y = x · Wᵀ [1, 2].
//! let mut y = [0f32; 2];
//! let w = Int8WeightRef::new(MatRef::new(&codes, 2, 3)?, &absmax)?;
//! linear(isa, &x, &Layer::new(w), MatMut::new(&mut y, 1, 2)?)?;
//! assert!((y[0] - (1.0 - 4.0)).abs() < 0.04 && (y[1] - 16.0).abs() < 0.01);
//! # Ok::<(), llm_int8_kernels::KernelError>(())
//! ```
//!
//! Dimensions: M rows of activations, K `in_features`, N `out_features`. Every matrix is row-major
//! and contiguous. [`mod@reference`] is the oracle: short, scalar and slow. The crate depends on no
//! tensor library, does no I/O and reads no environment variables.

pub mod activation;
pub mod aligned;
pub mod attention;
pub mod dense;
pub mod element;
pub mod error;
pub mod gemm;
pub mod isa;
pub mod limits;
pub mod matrix;
pub mod norm;
pub mod outlier;
pub mod pages;
pub mod reference;
pub mod rowwise;
mod simd;
mod sync;
mod tasks;
pub mod team;

pub use activation::Activation;
pub use aligned::AlignedVec;
pub use element::Element;
pub use error::KernelError;
pub use gemm::{
    Int8WeightRef, Layer, OutlierWeights, linear, linears, matmul_i32, row_sums, uses_row_sums,
};
pub use isa::Isa;
pub use matrix::{MatMut, MatRef};
pub use outlier::{
    OutlierRule, OutlierScope, Outliers, QuantizedActivations, quantize_activations,
};
pub use rowwise::{check_codes, dequantize, quantize_weight, quantize_weight_transposed};
