//! The float and the int8 matmul as candle operations, so that a layer's input may be any candle
//! tensor.

use super::int8::Int8Linear;
use crate::error::{NnError, Result};
use candle_core::{
    CpuStorage, CudaStorage, CustomOp1, DType, Device, Layout, Shape, Storage, Tensor, WithDType,
};
use half::{bf16, f16};
use llm_int8_kernels::{Element, Isa, MatMut, MatRef, QuantizedActivations, dense};

/// Rejects inputs that are not a float tensor `[…, in_features]`.
pub(super) fn check_input(layer: &str, x: &Tensor, in_features: usize) -> Result<()> {
    let error = |reason| {
        Err(NnError::Input {
            layer: layer.into(),
            reason,
        })
    };

    if !matches!(x.dtype(), DType::F16 | DType::BF16 | DType::F32) {
        return error(format!(
            "the input is {:?}; f16, bf16 or f32 is needed",
            x.dtype()
        ));
    }

    match x.dims().last() {
        Some(&last) if last == in_features => Ok(()),
        _ => error(format!(
            "the input's shape is {:?}; its last dimension must be {in_features}",
            x.dims()
        )),
    }
}

/// Rejects inputs that are not on the CPU.
pub(super) fn check_cpu(layer: &str, device: &Device) -> Result<()> {
    match device {
        Device::Cpu => Ok(()),
        other => Err(NnError::UnsupportedDevice {
            layer: layer.into(),
            device: format!("{:?}", other.location()),
        }),
    }
}

/// Number of rows of an input `[…, in_features]`, and the shape of the output `[…, out_features]`.
fn rows_and_shape(layout: &Layout, out_features: usize) -> (usize, Shape) {
    let mut dims = layout.dims().to_vec();
    let in_features = dims.pop().unwrap_or(0);
    let rows = dims.iter().product();
    debug_assert!(in_features == 0 || rows == layout.shape().elem_count() / in_features);
    dims.push(out_features);
    (rows, Shape::from(dims))
}

/// The values of a contiguous tensor.
fn values<'a, T: WithDType>(
    storage: &'a CpuStorage,
    layout: &Layout,
) -> candle_core::Result<&'a [T]> {
    let all = storage.as_slice::<T>()?;
    match layout.contiguous_offsets() {
        Some((start, end)) => Ok(&all[start..end]),
        None => candle_core::bail!("the input of a linear layer must be contiguous"),
    }
}

/// `x [M, K] f32 · W [N, K]ᵀ + bias [N]`, W in any float dtype.
pub(super) struct FloatMatmul<'a> {
    pub(super) weight: &'a Tensor,
    pub(super) bias: Option<&'a [f32]>,
    pub(super) isa: Isa,
}

impl FloatMatmul<'_> {
    /// The matmul on plain rows, without candle: `x` `[M, K]`, `out` `[M, N]`.
    pub(super) fn rows(&self, x: MatRef<'_, f32>, out: MatMut<'_, f32>) -> Result<()> {
        match self.weight.dtype() {
            DType::F16 => self.run::<f16>(x, out),
            DType::BF16 => self.run::<bf16>(x, out),
            _ => self.run::<f32>(x, out),
        }
    }

    fn run<W>(&self, x: MatRef<'_, f32>, out: MatMut<'_, f32>) -> Result<()>
    where
        W: Element + WithDType,
    {
        let (storage, layout) = self.weight.storage_and_layout();
        let Storage::Cpu(storage) = &*storage else {
            return Err(NnError::Input {
                layer: "Linear".into(),
                reason: "the weight is not on the CPU".into(),
            });
        };

        let (out_features, in_features) = self.weight.dims2()?;
        let weight = MatRef::new(values::<W>(storage, layout)?, out_features, in_features)?;
        dense::linear(self.isa, x, weight, self.bias, out)?;

        Ok(())
    }
}

impl CustomOp1 for FloatMatmul<'_> {
    fn name(&self) -> &'static str {
        "float-matmul"
    }

    fn cpu_fwd(
        &self,
        storage: &CpuStorage,
        layout: &Layout,
    ) -> candle_core::Result<(CpuStorage, Shape)> {
        let (out_features, in_features) = self.weight.dims2()?;
        let (rows, shape) = rows_and_shape(layout, out_features);
        let compute = || -> Result<Vec<f32>> {
            let mut out = vec![0f32; rows * out_features];
            let x = MatRef::new(values::<f32>(storage, layout)?, rows, in_features)?;
            self.rows(x, MatMut::new(&mut out, rows, out_features)?)?;
            Ok(out)
        };

        let out = compute().map_err(NnError::into_candle)?;
        Ok((CpuStorage::F32(out), shape))
    }
}

/// LLM.int8(): quantise the rows of `x [M, K]`, multiply the codes, add the outliers' part in
/// float.
pub(super) struct Int8Matmul {
    pub(super) layer: Int8Linear,
}

/// Rows of the weight that are dequantised at a time for a gradient.
const GRADIENT_ROWS: usize = 256;

impl Int8Matmul {
    /// `∂y [M, N] · W [N, K]`, f32. On the CPU the weights are dequantised a panel of rows at a time.
    fn gradient(&self, grad: &Tensor) -> Result<Tensor> {
        if let Some(weight) = self.layer.dequantized_on_cuda()? {
            return Ok(grad.contiguous()?.matmul(&weight)?);
        }

        let weight = self.layer.weight()?;
        let [out_features, in_features] = weight.shape();
        let mut sum = Tensor::zeros((grad.dim(0)?, in_features), DType::F32, grad.device())?;

        for first in (0..out_features).step_by(GRADIENT_ROWS) {
            let count = GRADIENT_ROWS.min(out_features - first);
            let mut panel = vec![0f32; count * in_features];
            for (i, row) in panel.chunks_exact_mut(in_features).enumerate() {
                weight.row(self.layer.isa(), first + i, row)?;
            }

            let panel = Tensor::from_vec(panel, (count, in_features), grad.device())?;
            sum = (sum + grad.narrow(1, first, count)?.contiguous()?.matmul(&panel)?)?;
        }

        Ok(sum)
    }

    fn run<T: Element>(&self, x: &[T], rows: usize) -> Result<Vec<f32>> {
        let layer = &self.layer;
        let config = layer.config();
        let isa = layer.isa();
        let x = MatRef::new(x, rows, layer.in_features())?;
        let mut activations = QuantizedActivations::default();
        activations.refill(isa, x, config.outliers, layer.kept_indices());
        let columns = layer.outlier_columns(activations.outliers())?;

        let mut out = vec![0f32; rows * layer.out_features()];
        let target = MatMut::new(&mut out, rows, layer.out_features())?;
        llm_int8_kernels::linear(
            isa,
            &activations,
            &layer.kernel_form(rows, columns.as_deref(), None)?,
            target,
        )?;

        Ok(out)
    }
}

impl CustomOp1 for Int8Matmul {
    fn name(&self) -> &'static str {
        "int8-matmul"
    }

    fn cpu_fwd(
        &self,
        storage: &CpuStorage,
        layout: &Layout,
    ) -> candle_core::Result<(CpuStorage, Shape)> {
        let (rows, shape) = rows_and_shape(layout, self.layer.out_features());
        let out = match storage {
            CpuStorage::F32(_) => self
                .run(values::<f32>(storage, layout)?, rows)
                .map(CpuStorage::F32),
            CpuStorage::F16(_) => self
                .run(values::<f16>(storage, layout)?, rows)
                .map(|out| CpuStorage::F16(out.into_iter().map(f16::from_f32).collect())),
            _ => self
                .run(values::<bf16>(storage, layout)?, rows)
                .map(|out| CpuStorage::BF16(out.into_iter().map(bf16::from_f32).collect())),
        };

        Ok((out.map_err(NnError::into_candle)?, shape))
    }

    fn cuda_fwd(
        &self,
        storage: &CudaStorage,
        layout: &Layout,
    ) -> candle_core::Result<(CudaStorage, Shape)> {
        let (_, shape) = rows_and_shape(layout, self.layer.out_features());
        let out = self.layer.forward_on_cuda(storage, layout);
        Ok((out.map_err(NnError::into_candle)?, shape))
    }

    /// The gradient of `x`: `∂y · W`. The rounding of activations and the outliers' part do not
    /// enter (bitsandbytes, `MatMul8bitLt.backward`).
    fn bwd(&self, x: &Tensor, _y: &Tensor, grad: &Tensor) -> candle_core::Result<Option<Tensor>> {
        let rows = x.elem_count() / self.layer.in_features().max(1);
        let grad = grad
            .to_dtype(DType::F32)?
            .reshape((rows, self.layer.out_features()))?;
        let found = self.gradient(&grad).map_err(NnError::into_candle)?;
        Ok(Some(found.reshape(x.shape())?.to_dtype(x.dtype())?))
    }
}
