//! Weights on a device.

use super::{Check, Float, FloatType, kernels};
use crate::args::WeightArgs;
use crate::buffer::{Buffer, View};
use crate::device::Device;
use crate::error::{CudaError, Result};
use crate::plan::{self, ALIGNMENT};
use std::ops::Range;

/// Int8 weights: rows of codes, padded with zeros to a multiple of 16, and an absmax for each row.
/// One matrix may hold several layers with the same input, one below the other.
#[derive(Debug)]
pub struct Int8Matrix {
    codes: Buffer<i8>,
    absmax: Buffer<f32>,
    out_features: usize,
    in_features: usize,
}

impl Int8Matrix {
    /// A matrix of zeros.
    ///
    /// # Errors
    /// [`CudaError::OutOfMemory`].
    pub fn new(device: &Device, out_features: usize, in_features: usize) -> Result<Self> {
        Ok(Self {
            codes: device.zeros(out_features * plan::pitch(in_features))?,
            absmax: device.zeros(out_features)?,
            out_features,
            in_features,
        })
    }

    /// Number of rows, N.
    pub fn out_features(&self) -> usize {
        self.out_features
    }

    /// Length of a row, K.
    pub fn in_features(&self) -> usize {
        self.in_features
    }

    /// Bytes from the start of one row to the start of the next.
    pub fn pitch(&self) -> usize {
        plan::pitch(self.in_features)
    }

    /// The device that holds it.
    pub fn device(&self) -> &Device {
        self.codes.device()
    }

    /// Its size in bytes, padding included.
    pub fn bytes(&self) -> u64 {
        self.codes.bytes() + self.absmax.bytes()
    }

    /// The codes `[N, pitch]`.
    pub fn codes(&self) -> View<'_, i8> {
        self.codes.all()
    }

    /// The absmax of each row `[N]`.
    pub fn absmax(&self) -> View<'_, f32> {
        self.absmax.all()
    }

    /// Copies codes `[absmax.len(), K]` and their absmax from the host to the rows from `first` on.
    ///
    /// # Errors
    /// [`CudaError::TooShort`], [`CudaError::Driver`].
    pub fn write_rows(&self, first: usize, codes: &[i8], absmax: &[f32]) -> Result<()> {
        let rows = first..first + absmax.len();
        if codes.len() != absmax.len() * self.in_features {
            return Err(CudaError::TooShort {
                kernel: "writing codes",
                what: "the codes",
                found: codes.len(),
                needed: absmax.len() * self.in_features,
            });
        }
        self.absmax.part(rows.clone())?.write(absmax)?;

        let pitch = self.pitch();
        let target = self.codes.part(rows.start * pitch..rows.end * pitch)?;
        if pitch == self.in_features {
            return target.write(codes);
        }
        target.write(&pad_rows(codes, self.in_features, pitch))
    }

    /// Quantises the float weight `[rows.len(), K]` into the given rows.
    ///
    /// A row that is not finite in f16 is recorded in `bad_row` (see [`Int8Matrix::mark`]), which
    /// [`Int8Matrix::check_finite`] reads.
    ///
    /// # Errors
    /// [`CudaError::TooShort`], [`CudaError::WrongDevice`], [`CudaError::Driver`].
    pub fn quantize_rows<T: Float>(
        &self,
        weight: View<'_, T>,
        rows: Range<usize>,
        bad_row: &Buffer<u32>,
    ) -> Result<()> {
        let kernel = T::TYPE.pick(kernels!("quantize_weight"));
        let threads = plan::row_threads(self.in_features);
        self.quantize(kernel, weight, &rows, bad_row, rows.len(), threads)
    }

    /// [`Int8Matrix::quantize_rows`] of a weight stored transposed, `[K, rows.len()]` (GPT-2's
    /// `Conv1D`).
    ///
    /// # Errors
    /// Like [`Int8Matrix::quantize_rows`].
    pub fn quantize_transposed<T: Float>(
        &self,
        weight: View<'_, T>,
        rows: Range<usize>,
        bad_row: &Buffer<u32>,
    ) -> Result<()> {
        let kernel = T::TYPE.pick(kernels!("quantize_transposed"));
        let blocks = rows.len().div_ceil(plan::WARP);
        self.quantize(kernel, weight, &rows, bad_row, blocks, 256)
    }

    fn quantize<T: Float>(
        &self,
        kernel: &'static str,
        weight: View<'_, T>,
        rows: &Range<usize>,
        bad_row: &Buffer<u32>,
        blocks: usize,
        threads: u32,
    ) -> Result<()> {
        let check = Check {
            kernel,
            device: self.device(),
        };

        let pitch = self.pitch();
        let args = WeightArgs {
            weight: check.view("the weight", weight, rows.len() * self.in_features)?,
            codes: self
                .codes
                .part(rows.start * pitch..rows.end * pitch)?
                .address(),
            absmax: self.absmax.part(rows.clone())?.address(),
            bad_row: check.view("the mark", bad_row.all(), 1)?,
            out_features: check.size("the outputs", rows.len())?,
            in_features: check.size("the inputs", self.in_features)?,
            pitch: check.size("the inputs", pitch)?,
            padding: 0,
        };
        check.launch(&args, [blocks, 1, 1], threads, 0)
    }

    /// Memory for the number of a row that cannot be quantised; holds none.
    ///
    /// # Errors
    /// [`CudaError::OutOfMemory`], [`CudaError::Driver`].
    pub fn mark(device: &Device) -> Result<Buffer<u32>> {
        device.upload(&[u32::MAX])
    }

    /// Of the rows quantised since the last check, the first that was not finite in f16, numbered
    /// within its call of [`Int8Matrix::quantize_rows`]. Resets the mark. Waits for the device.
    ///
    /// # Errors
    /// [`CudaError::Driver`].
    pub fn check_finite(mark: &Buffer<u32>) -> Result<Option<usize>> {
        let mut row = [0];
        mark.all().read(&mut row)?;
        if row[0] == u32::MAX {
            return Ok(None);
        }

        mark.all().write(&[u32::MAX])?;
        Ok(Some(row[0] as usize))
    }
}

/// Pads rows of `width` values with zeros to `pitch` values.
fn pad_rows<T: bytemuck::Pod>(values: &[T], width: usize, pitch: usize) -> Vec<T> {
    let mut padded = vec![T::zeroed(); values.len() / width.max(1) * pitch];
    for (to, from) in padded.chunks_mut(pitch).zip(values.chunks(width.max(1))) {
        to[..width].copy_from_slice(from);
    }
    padded
}

/// Float weights or an embedding table: rows in the stored dtype, padded with zeros to a multiple
/// of 16 bytes.
#[derive(Debug)]
pub struct FloatMatrix {
    values: Buffer<u8>,
    dtype: FloatType,
    rows: usize,
    cols: usize,
}

impl FloatMatrix {
    /// A matrix of zeros.
    ///
    /// # Errors
    /// [`CudaError::OutOfMemory`].
    pub fn new(device: &Device, dtype: FloatType, rows: usize, cols: usize) -> Result<Self> {
        let pitch = (cols * dtype.bytes()).next_multiple_of(ALIGNMENT);
        Ok(Self {
            values: device.zeros(rows * pitch)?,
            dtype,
            rows,
            cols,
        })
    }

    /// Copies whole rows from the host, given as bytes, to the rows from `first` on.
    ///
    /// # Errors
    /// [`CudaError::TooShort`], [`CudaError::Driver`].
    pub fn write_rows(&self, first: usize, values: &[u8]) -> Result<()> {
        let width = self.cols * self.dtype.bytes();
        let pitch = self.pitch() * self.dtype.bytes();
        let rows = values.len() / width.max(1);

        let target = self.values.part(first * pitch..(first + rows) * pitch)?;
        if width == pitch {
            target.write(values)
        } else {
            target.write(&pad_rows(values, width, pitch))
        }
    }

    /// The dtype.
    pub fn dtype(&self) -> FloatType {
        self.dtype
    }

    /// Number of rows.
    pub fn rows(&self) -> usize {
        self.rows
    }

    /// Values of a row.
    pub fn cols(&self) -> usize {
        self.cols
    }

    /// Values from the start of one row to the start of the next.
    pub fn pitch(&self) -> usize {
        (self.cols * self.dtype.bytes()).next_multiple_of(ALIGNMENT) / self.dtype.bytes()
    }

    /// The device that holds it.
    pub fn device(&self) -> &Device {
        self.values.device()
    }

    /// Its size in bytes, padding included.
    pub fn bytes(&self) -> u64 {
        self.values.bytes()
    }

    pub(super) fn address(&self) -> u64 {
        self.values.address()
    }
}
