//! Int8 layers on candle's CUDA device: this project's kernels on candle's stream and memory.
//!
//! Inputs and outputs are candle's tensors, read and written in place. Weights are buffers of
//! `llm-int8-cuda` in the same primary context. What a call needs besides is allocated and freed in
//! the order of the stream, so threads share no scratch memory: candle's default stream
//! (`CU_STREAM_PER_THREAD`) is another one in each thread.

use super::config::{Int8Config, OutlierRule, OutlierScope, OutlierWeights};
use super::weight::Int8Weight;
use crate::error::{NnError, Result};
use candle_core::backend::{BackendDevice, BackendStorage};
use candle_core::cuda_backend::CudaDType;
use candle_core::cuda_backend::cudarc::driver::{DevicePtr, DevicePtrMut, DeviceRepr};
use candle_core::{CudaDevice, CudaStorage, DType, Layout, Storage, Tensor};
use half::{bf16, f16};
use llm_int8_cuda::ops::{
    Float, Int8Matrix, Outliers, Output, QuantizedMemory, Source, Table, TableRows, embed, gemv,
    matmul, quantize,
};
use llm_int8_cuda::{Buffer, CudaError, Device, View};
use std::sync::Arc;

/// The weight and bias of an int8 layer on candle's CUDA device.
#[derive(Debug)]
pub(super) struct CudaWeight {
    matrix: Arc<Int8Matrix>,
    bias: Option<Buffer<f32>>,
    gpu: Device,
    /// Keeps the stream alive, on which the fields above are freed: it must stay the last field.
    device: CudaDevice,
}

/// How a layer treats outliers, as the kernels take it.
fn outliers_of(layer: &str, config: Int8Config) -> Result<Outliers> {
    let unsupported = |what| {
        Err(NnError::UnsupportedOnGpu {
            layer: layer.to_owned(),
            what,
        })
    };
    match config.outlier_weights {
        OutlierWeights::Dequantized => {}
        OutlierWeights::Original => return unsupported("original outlier weights"),
        OutlierWeights::Kept => return unsupported("kept columns"),
    }

    Ok(match config.outliers {
        OutlierRule::Absolute { threshold, scope } => Outliers::Absolute {
            threshold,
            by_row: scope == OutlierScope::Row,
        },
        OutlierRule::RowRms { factor } => Outliers::RowRms { factor },
    })
}

/// Turns an error of the GPU into that of a layer.
fn of_layer(layer: &str) -> impl Fn(CudaError) -> NnError {
    move |source| NnError::Gpu {
        layer: layer.to_owned(),
        source,
    }
}

impl CudaWeight {
    /// Copies a weight `[out, in]` and a bias `[out]` to a device. Waits until they are there.
    pub(super) fn upload(
        layer: &str,
        device: &CudaDevice,
        weight: &Int8Weight,
        bias: Option<&[f32]>,
        config: Int8Config,
    ) -> Result<Self> {
        outliers_of(layer, config)?;

        let stream = device.cuda_stream();
        #[expect(unsafe_code, reason = "candle's stream")]
        // SAFETY: candle opens the primary context of this ordinal. `Self` keeps candle's device,
        // and with it the stream, until its buffers are freed. candle orders what it does with a
        // tensor against the tensor's stream.
        let gpu = unsafe {
            Device::on_stream(
                stream.context().ordinal(),
                stream.cu_stream().cast::<std::ffi::c_void>(),
            )
        };
        let gpu = gpu.map_err(of_layer(layer))?;

        let [out_features, in_features] = weight.shape();
        let upload = || {
            let matrix = Int8Matrix::new(&gpu, out_features, in_features)?;
            matrix.write_rows(0, weight.codes(), weight.absmax())?;
            let bias = bias.map(|bias| gpu.upload(bias)).transpose()?;
            // Other threads' streams do not wait for this one.
            gpu.synchronize()?;
            Ok((Arc::new(matrix), bias))
        };
        let (matrix, bias) = upload().map_err(of_layer(layer))?;

        Ok(Self {
            matrix,
            bias,
            gpu,
            device: device.clone(),
        })
    }

    /// The same weight with another bias `[out]`. Waits until it is there.
    pub(super) fn with_bias(&self, layer: &str, bias: &[f32]) -> Result<Self> {
        let upload = || {
            let bias = self.gpu.upload(bias)?;
            self.gpu.synchronize()?;
            Ok(bias)
        };
        Ok(Self {
            matrix: Arc::clone(&self.matrix),
            bias: Some(upload().map_err(of_layer(layer))?),
            gpu: self.gpu.clone(),
            device: self.device.clone(),
        })
    }

    /// Copies the weight back to the host.
    pub(super) fn download(&self, layer: &str) -> Result<Int8Weight> {
        let shape = [self.matrix.out_features(), self.matrix.in_features()];
        let [out_features, in_features] = shape;
        let pitch = self.matrix.pitch();

        let mut padded = vec![0i8; out_features * pitch];
        let mut absmax = vec![0f32; out_features];
        let read = self.matrix.codes().read(&mut padded);
        read.and_then(|()| self.matrix.absmax().read(&mut absmax))
            .map_err(of_layer(layer))?;

        let rows = padded.chunks(pitch.max(1));
        let codes: Vec<i8> = rows.flat_map(|row| &row[..in_features]).copied().collect();
        Int8Weight::from_codes(&codes, &absmax, shape)
    }

    /// Whether it is on this device, which for candle is this very handle or a clone of it.
    pub(super) fn is_on(&self, device: &CudaDevice) -> bool {
        self.device.same_device(device)
    }

    /// The device's name in errors.
    pub(super) fn location(&self) -> String {
        format!("{:?}", self.device.location())
    }

    /// `x · Wᵀ + b`: `x` `[…, in]` in f32, f16 or bf16, contiguous from any offset on; the result in
    /// the same dtype.
    pub(super) fn forward(
        &self,
        layer: &str,
        x: &CudaStorage,
        layout: &Layout,
        config: Int8Config,
    ) -> Result<CudaStorage> {
        let outliers = outliers_of(layer, config)?;
        match x.dtype() {
            DType::F32 => self.run::<f32>(layer, x, layout, outliers),
            DType::F16 => self.run::<f16>(layer, x, layout, outliers),
            DType::BF16 => self.run::<bf16>(layer, x, layout, outliers),
            other => Err(NnError::Input {
                layer: layer.to_owned(),
                reason: format!("the input is {other:?}; f16, bf16 or f32 is needed"),
            }),
        }
    }

    fn run<T: Float + CudaDType + DeviceRepr>(
        &self,
        layer: &str,
        x: &CudaStorage,
        layout: &Layout,
        outliers: Outliers,
    ) -> Result<CudaStorage> {
        let Some((start, end)) = layout.contiguous_offsets() else {
            return Err(NnError::Input {
                layer: layer.to_owned(),
                reason: "the input must be contiguous".into(),
            });
        };
        let (cols, out_features) = (self.matrix.in_features(), self.matrix.out_features());
        let rows = (end - start) / cols.max(1);
        let values = x.as_cuda_slice::<T>()?;

        self.write(rows * out_features, |out| {
            let stream = self.device.cuda_stream();
            let (address, _reading) = values.device_ptr(&stream);
            let address = address + (start * size_of::<T>()) as u64;
            #[expect(unsafe_code, reason = "candle's memory")]
            // SAFETY: a layout of candle's lies within its storage, which `x` borrows; `_reading`
            // makes later writers on other streams wait, and candle frees in the order of a stream.
            let x = unsafe { self.gpu.view::<T>(address, end - start) };
            self.launch(&Source::plain(x, rows, cols), outliers, out)
                .map_err(of_layer(layer))
        })
    }

    /// A new tensor's memory for `length` values, which `launch` is given to write.
    fn write<T: Float + CudaDType + DeviceRepr>(
        &self,
        length: usize,
        launch: impl FnOnce(View<'_, T>) -> Result<()>,
    ) -> Result<CudaStorage> {
        #[expect(unsafe_code, reason = "candle's memory")]
        // SAFETY: the memory is uninitialised until `launch` has written it; any bytes are valid
        // floats.
        let mut out = unsafe { self.device.alloc::<T>(length.max(1)) }?;

        if length > 0 {
            let stream = self.device.cuda_stream();
            let (address, _writing) = out.device_ptr_mut(&stream);
            #[expect(unsafe_code, reason = "candle's memory")]
            // SAFETY: `out` has `length` values and is freed in the order of the stream that
            // `launch` launches on.
            let view = unsafe { self.gpu.view::<T>(address, length) };
            launch(view)?;
        }
        Ok(CudaStorage::wrap_cuda_slice(out, self.device.clone()))
    }

    fn launch<T: Float>(
        &self,
        source: &Source<'_, T>,
        outliers: Outliers,
        out: View<'_, T>,
    ) -> llm_int8_cuda::Result<()> {
        let output = Output {
            bias: self.bias.as_ref().map(Buffer::all),
            ..Output::plain(out, self.matrix.out_features())
        };
        if source.rows == 1 && gemv(source, outliers, &self.matrix, &output)? {
            return Ok(());
        }

        let memory = QuantizedMemory::for_matmul(&self.matrix, source.rows)?;
        let quantized = quantize(source, outliers, &memory)?;
        matmul(&quantized, &self.matrix, &output)
    }

    /// `codes · absmax / 127`, f32 `[out, in]`, on the device.
    pub(super) fn dequantize(&self, layer: &str) -> Result<Tensor> {
        let shape = (self.matrix.out_features(), self.matrix.in_features());
        let storage = self.write(shape.0 * shape.1, |out| {
            let ids: Vec<u32> = (0..shape.0 as u32).collect();
            let look_up = || {
                let ids = self.gpu.upload(&ids)?;
                let rows = TableRows {
                    ids: ids.all(),
                    positions: None,
                    rows: shape.0,
                    factor: 1.0,
                };
                embed(Table::Int8(&self.matrix), &rows, out)
            };
            look_up().map_err(of_layer(layer))
        })?;
        Ok(Tensor::from((Storage::Cuda(storage), shape)))
    }
}

impl Drop for CudaWeight {
    fn drop(&mut self) {
        // The memory is freed in the order of this thread's stream, and what other threads launched
        // may still read it. A drop cannot return an error; a broken context fails the next call.
        let _ = self.gpu.synchronize_all();
    }
}

#[cfg(test)]
#[path = "cuda_tests.rs"]
mod tests;
