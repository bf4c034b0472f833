//! A safe function for each kernel: it checks lengths and devices, and chooses the shape of the
//! launch.

mod attention;
mod dense;
mod linear;
mod rows;
mod select;
mod weights;

pub use attention::{Attention, AttentionRule, Cut, HeadLayout, Parts, Products, Rotation, attend};
pub use dense::dense;
pub use linear::{Quantized, QuantizedMemory, gemv, matmul, matmul_by, quantize};
pub use rows::{Combined, NormParts, Table, TableRows, combine, copy_rows, embed, norm, softcap};
pub use select::{Selected, penalise, select};
pub use weights::{FloatMatrix, Int8Matrix};

use crate::args;
use crate::buffer::View;
use crate::device::Device;
use crate::driver::Launch;
use crate::error::{CudaError, Result};
use bytemuck::Pod;
use half::{bf16, f16};

/// How floats are stored on a device.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum FloatType {
    /// f32.
    F32,
    /// f16.
    F16,
    /// bf16.
    BF16,
}

impl FloatType {
    /// Bytes of a value.
    pub fn bytes(self) -> usize {
        match self {
            Self::F32 => 4,
            Self::F16 | Self::BF16 => 2,
        }
    }

    /// The kernel of a family for this type.
    fn of(self, kernels: [&'static str; 3]) -> &'static str {
        kernels[self as usize]
    }
}

mod sealed {
    pub trait Sealed {}
    impl Sealed for f32 {}
    impl Sealed for half::f16 {}
    impl Sealed for half::bf16 {}
}

/// f32, f16 and bf16.
pub trait Float: Pod + sealed::Sealed {
    /// The type as a value.
    const TYPE: FloatType;
}

impl Float for f32 {
    const TYPE: FloatType = FloatType::F32;
}
impl Float for f16 {
    const TYPE: FloatType = FloatType::F16;
}
impl Float for bf16 {
    const TYPE: FloatType = FloatType::BF16;
}

/// The names of a kernel for the three types.
macro_rules! kernels {
    ($name:literal) => {
        [
            concat!($name, "_f32"),
            concat!($name, "_f16"),
            concat!($name, "_bf16"),
        ]
    };
}
use kernels;

/// The function of an MLP; numbers as in `epilogue.cuh`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u32)]
#[allow(missing_docs)]
pub enum Activation {
    Gelu = 1,
    GeluTanh = 2,
    QuickGelu = 3,
    Relu = 4,
    ReluSquared = 5,
    Silu = 6,
    Tanh = 7,
    GeluClipped = 8,
    Laplace = 9,
    LeakyRelu = 10,
    Mish = 11,
    Relu6 = 12,
    Sigmoid = 13,
}

/// How the values of a source come about.
#[derive(Debug, Clone, Copy)]
pub enum Through<'a, T> {
    /// As they lie.
    Plain,
    /// Through a layer norm.
    LayerNorm(NormParts<'a>),
    /// Through a root-mean-square norm.
    RmsNorm(NormParts<'a>),
    /// Each multiplied with its partner, which lies with the same stride.
    Gated(View<'a, T>),
}

/// Rows of activations, `[rows, cols]` with `stride` values from row to row.
#[derive(Debug, Clone, Copy)]
pub struct Source<'a, T> {
    /// The values.
    pub x: View<'a, T>,
    /// Number of rows, M.
    pub rows: usize,
    /// Values of a row, K.
    pub cols: usize,
    /// From row to row.
    pub stride: usize,
    /// How they come about.
    pub through: Through<'a, T>,
}

impl<'a, T: Float> Source<'a, T> {
    /// Rows that lie one after the other.
    pub fn plain(x: View<'a, T>, rows: usize, cols: usize) -> Self {
        Self {
            x,
            rows,
            cols,
            stride: cols,
            through: Through::Plain,
        }
    }

    fn args(&self, check: &Check<'_>) -> Result<args::Source> {
        let length = span(self.rows, self.stride, self.cols);
        let norm = |parts: &NormParts<'a>| -> Result<(u64, u64)> {
            let bias = match parts.bias {
                Some(bias) => check.view("the norm's bias", bias, self.cols)?,
                None => 0,
            };
            Ok((
                check.view("the norm's weight", parts.weight, self.cols)?,
                bias,
            ))
        };
        let (kind, up, (weight, bias), eps) = match &self.through {
            Through::Plain => (0, 0, (0, 0), 0.0),
            Through::LayerNorm(parts) => (1, 0, norm(parts)?, parts.eps),
            Through::RmsNorm(parts) => (2, 0, norm(parts)?, parts.eps),
            Through::Gated(up) => (
                3,
                check.view("the gate's partner", *up, length)?,
                (0, 0),
                0.0,
            ),
        };
        Ok(args::Source {
            x: check.view("the activations", self.x, length)?,
            up,
            weight,
            bias,
            stride: check.size("the stride", self.stride)?,
            cols: check.size("the row", self.cols)?,
            kind,
            eps,
        })
    }
}

/// What follows a product and where it goes: `[M, N]` with `stride` values from row to row.
#[derive(Debug, Clone, Copy)]
pub struct Output<'a, T> {
    /// Where it goes.
    pub out: View<'a, T>,
    /// From row to row.
    pub stride: usize,
    /// Added to each row, `[N]`.
    pub bias: Option<View<'a, f32>>,
    /// The function of so many outputs from the first on.
    pub activation: Option<(Activation, usize)>,
    /// `out = residual + scale · y`; may be where `out` is, if that is f32.
    pub residual: Option<Residual<'a>>,
}

/// What a product is added to.
#[derive(Debug, Clone, Copy)]
pub struct Residual<'a> {
    /// The stream `[M, N]`.
    pub stream: View<'a, f32>,
    /// From row to row.
    pub stride: usize,
    /// What the product is multiplied with.
    pub scale: f32,
}

impl<'a, T: Float> Output<'a, T> {
    /// Nothing but the product.
    pub fn plain(out: View<'a, T>, stride: usize) -> Self {
        Self {
            out,
            stride,
            bias: None,
            activation: None,
            residual: None,
        }
    }

    fn args(&self, check: &Check<'_>, rows: usize, out_features: usize) -> Result<args::Epilogue> {
        let (activation, activated) = self
            .activation
            .map_or((0, 0), |(f, count)| (f as u32, count));
        let (residual, residual_stride, residual_scale) = match self.residual {
            Some(Residual {
                stream,
                stride,
                scale,
            }) => (
                check.view("the residual", stream, span(rows, stride, out_features))?,
                stride,
                scale,
            ),
            None => (0, 0, 1.0),
        };
        Ok(args::Epilogue {
            bias: self
                .bias
                .map_or(Ok(0), |bias| check.view("the bias", bias, out_features))?,
            residual,
            out: check.view(
                "the output",
                self.out,
                span(rows, self.stride, out_features),
            )?,
            out_stride: check.size("the output's stride", self.stride)?,
            residual_stride: check.size("the residual's stride", residual_stride)?,
            activation,
            activated: check.size("the activated outputs", activated)?,
            residual_scale,
            padding: 0,
        })
    }
}

/// Values from the first of the first row to the last of the last.
fn span(rows: usize, stride: usize, cols: usize) -> usize {
    if rows == 0 {
        0
    } else {
        (rows - 1) * stride + cols
    }
}

/// Checks of one launch.
struct Check<'a> {
    kernel: &'static str,
    device: &'a Device,
}

impl Check<'_> {
    /// The address of a view that holds at least so many values on the device.
    fn view<T>(&self, what: &'static str, view: View<'_, T>, needed: usize) -> Result<u64> {
        if !view.device().is(self.device) {
            let device = self.device.name().to_owned();
            return Err(CudaError::WrongDevice {
                kernel: self.kernel,
                what,
                device,
            });
        }
        if view.len() < needed {
            return Err(CudaError::TooShort {
                kernel: self.kernel,
                what,
                found: view.len(),
                needed,
            });
        }
        Ok(view.address())
    }

    /// A size as kernels take it.
    fn size(&self, what: &'static str, size: usize) -> Result<u32> {
        u32::try_from(size)
            .map_err(|_| self.shape(format!("{what} has {size} values; 2^32 are too many")))
    }

    fn shape(&self, reason: String) -> CudaError {
        CudaError::Shape {
            kernel: self.kernel,
            reason,
        }
    }

    fn launch<A: Pod>(
        &self,
        args: &A,
        grid: [usize; 3],
        threads: u32,
        shared_bytes: usize,
    ) -> Result<()> {
        if shared_bytes > self.device.shared_bytes() {
            let most = self.device.shared_bytes();
            return Err(self.shape(format!(
                "{shared_bytes} bytes of shared memory; {} has {most}",
                self.device.name()
            )));
        }
        // The second and third dimension of a grid have 16 bits.
        if grid[0] > i32::MAX as usize || grid[1] > 65535 || grid[2] > 65535 {
            return Err(self.shape(format!("a grid of {grid:?} blocks is too large")));
        }
        self.device.launch(Launch {
            kernel: self.kernel,
            args: bytemuck::bytes_of(args),
            grid: grid.map(|size| size as u32),
            threads,
            shared_bytes: shared_bytes as u32,
            overlaps: self.device.overlaps_kernels(),
        })
    }
}
