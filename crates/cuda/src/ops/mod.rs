//! A safe function for each kernel: it checks lengths and devices, chooses the launch's grid and
//! launches. None of them waits for the device.

mod attention;
mod dense;
mod linear;
mod outliers;
mod rows;
mod select;
mod weights;

pub use attention::{
    AttendScratch, Attention, AttentionRule, HeadLayout, Partition, Qkv, Rotation, attend,
};
pub use dense::dense;
pub use linear::{Quantized, QuantizedMemory, gemv, matmul, matmul_by, quantize};
pub use outliers::Outliers;
pub use rows::{
    Combined, NormParts, RowShape, Strided, Table, TableRows, combine, copy_rows, embed, norm,
    softcap,
};
pub use select::{Logits, Selected, penalise, select};
pub use weights::{FloatMatrix, Int8Matrix};

use crate::args;
use crate::buffer::View;
use crate::device::Device;
use crate::driver::Launch;
use crate::error::{CudaError, Result};
use bytemuck::Pod;
use half::{bf16, f16};

/// The dtype of floats on a device.
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

    /// The kernel for this type, of those that [`kernels!`] lists.
    fn pick(self, kernels: [&'static str; 3]) -> &'static str {
        kernels[self as usize]
    }
}

mod sealed {
    pub trait Sealed {}
    impl Sealed for f32 {}
    impl Sealed for half::f16 {}
    impl Sealed for half::bf16 {}
}

/// Float types that kernels read and write: f32, f16 and bf16.
pub trait Float: Pod + sealed::Sealed {
    /// The dtype.
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

/// The names of a kernel's instances for f32, f16 and bf16, in the order of [`FloatType`].
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

/// An activation function; numbers as in `epilogue.cuh`.
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

/// What a kernel applies to the rows it reads, before it uses them.
#[derive(Debug, Clone, Copy)]
pub enum Through<'a, T> {
    /// Nothing.
    Plain,
    /// Layer norm.
    LayerNorm(NormParts<'a>),
    /// RMS norm.
    RmsNorm(NormParts<'a>),
    /// Multiplication by the other half of a gated MLP, `[rows, cols]` with the same stride.
    Gated(View<'a, T>),
}

/// Rows of activations `[rows, cols]`, that start `stride` values apart.
#[derive(Debug, Clone, Copy)]
pub struct Source<'a, T> {
    /// The values.
    pub x: View<'a, T>,
    /// Number of rows, M.
    pub rows: usize,
    /// Values of a row, K.
    pub cols: usize,
    /// Values from the start of one row to the start of the next.
    pub stride: usize,
    /// What is applied to them.
    pub through: Through<'a, T>,
}

/// The fields of [`args::Source`] that depend on [`Through`].
#[derive(Default)]
struct ThroughArgs {
    kind: u32,
    up: u64,
    weight: u64,
    bias: u64,
    eps: f32,
}

impl<'a, T: Float> Source<'a, T> {
    /// Contiguous rows.
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
        let through = self.through_args(check, length)?;

        Ok(args::Source {
            x: check.view("the activations", self.x, length)?,
            up: through.up,
            weight: through.weight,
            bias: through.bias,
            stride: check.size("the stride", self.stride)?,
            cols: check.size("the row", self.cols)?,
            kind: through.kind,
            eps: through.eps,
        })
    }

    /// `kind` as in `source.cuh`.
    fn through_args(&self, check: &Check<'_>, length: usize) -> Result<ThroughArgs> {
        let norm = |kind: u32, parts: &NormParts<'a>| -> Result<ThroughArgs> {
            let bias = match parts.bias {
                Some(bias) => check.view("the norm's bias", bias, self.cols)?,
                None => 0,
            };
            Ok(ThroughArgs {
                kind,
                weight: check.view("the norm's weight", parts.weight, self.cols)?,
                bias,
                eps: parts.eps,
                ..ThroughArgs::default()
            })
        };

        match &self.through {
            Through::Plain => Ok(ThroughArgs::default()),
            Through::LayerNorm(parts) => norm(1, parts),
            Through::RmsNorm(parts) => norm(2, parts),
            Through::Gated(up) => Ok(ThroughArgs {
                kind: 3,
                up: check.view("the gated values", *up, length)?,
                ..ThroughArgs::default()
            }),
        }
    }
}

/// Where the outputs `[M, N]` of a matmul go, and what is done with them first:
/// `out = residual + scale · activation(y + bias)`.
#[derive(Debug, Clone, Copy)]
pub struct Output<'a, T> {
    /// The outputs.
    pub out: View<'a, T>,
    /// Values from the start of one row to the start of the next.
    pub stride: usize,
    /// Added to each row, `[N]`.
    pub bias: Option<View<'a, f32>>,
    /// The activation function, and the number of outputs of a row, from the first on, that it is
    /// applied to.
    pub activation: Option<(Activation, usize)>,
    /// What the outputs are added to; may be `out` itself, if that is f32.
    pub residual: Option<Residual<'a>>,
}

/// The residual stream that outputs of a matmul are added to.
#[derive(Debug, Clone, Copy)]
pub struct Residual<'a> {
    /// The stream `[M, N]`.
    pub stream: View<'a, f32>,
    /// Values from the start of one row to the start of the next.
    pub stride: usize,
    /// The outputs are multiplied by it before they are added.
    pub scale: f32,
}

impl<'a, T: Float> Output<'a, T> {
    /// The bare outputs of the matmul.
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
        let bias = self
            .bias
            .map_or(Ok(0), |bias| check.view("the bias", bias, out_features))?;

        Ok(args::Epilogue {
            bias,
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

/// Values from the first one of the first row to the last one of the last row.
fn span(rows: usize, stride: usize, cols: usize) -> usize {
    if rows == 0 {
        0
    } else {
        (rows - 1) * stride + cols
    }
}

/// Checks the arguments of one launch.
struct Check<'a> {
    kernel: &'static str,
    device: &'a Device,
}

impl Check<'_> {
    /// The address of a view, which must be on the launch's device and have at least `needed`
    /// values.
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

    /// A size as kernels take it, in 32 bits.
    fn size(&self, what: &'static str, size: usize) -> Result<u32> {
        u32::try_from(size)
            .map_err(|_| self.shape(format!("{what}: {size} does not fit into 32 bits")))
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
            let available = self.device.shared_bytes();
            return Err(self.shape(format!(
                "a block needs {shared_bytes} bytes of shared memory; {} has {available}",
                self.device.name()
            )));
        }
        // CUDA's limits: 2^31 - 1 blocks in the first dimension, 65535 in the others.
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
