//! Weights on a device.

use super::{Check, Float, FloatType, kernels};
use crate::args::WeightArgs;
use crate::buffer::{Buffer, View};
use crate::device::Device;
use crate::error::{CudaError, Result};
use crate::plan::{self, ALIGNMENT};
use std::ops::Range;

/// Int8 weights: rows of codes, filled up to a multiple of 16 with zeros, and the largest magnitude
/// of each row. Several layers with the same input may lie in one matrix, one after the other.
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

    /// From row to row.
    pub fn pitch(&self) -> usize {
        plan::pitch(self.in_features)
    }

    /// The device.
    pub fn device(&self) -> &Device {
        self.codes.device()
    }

    /// Bytes on the device.
    pub fn bytes(&self) -> u64 {
        self.codes.bytes() + self.absmax.bytes()
    }

    /// The codes `[N, pitch]`.
    pub fn codes(&self) -> View<'_, i8> {
        self.codes.all()
    }

    /// The largest magnitudes `[N]`.
    pub fn absmax(&self) -> View<'_, f32> {
        self.absmax.all()
    }

    /// Rows from `first` on become these codes `[absmax.len(), K]`.
    ///
    /// # Errors
    /// [`CudaError::TooShort`], [`CudaError::Driver`].
    pub fn write_rows(&self, first: usize, codes: &[i8], absmax: &[f32]) -> Result<()> {
        let rows = first..first + absmax.len();
        if codes.len() != absmax.len() * self.in_features {
            let (found, needed) = (codes.len(), absmax.len() * self.in_features);
            return Err(CudaError::TooShort {
                kernel: "writing codes",
                what: "the codes",
                found,
                needed,
            });
        }
        self.absmax.part(rows.clone())?.write(absmax)?;
        let pitch = self.pitch();
        let target = self.codes.part(rows.start * pitch..rows.end * pitch)?;
        if pitch == self.in_features {
            return target.write(codes);
        }
        let filled = fill_up(codes, self.in_features, pitch);
        target.write(&filled)
    }

    /// Rows from `first` on are quantised from float rows `[rows, K]`.
    ///
    /// # Errors
    /// [`CudaError::TooShort`], [`CudaError::Driver`]; whether all were finite,
    /// [`Int8Matrix::check_finite`] says.
    pub fn quantize_rows<T: Float>(
        &self,
        weight: View<'_, T>,
        rows: Range<usize>,
        bad_row: &Buffer<u32>,
    ) -> Result<()> {
        let threads = plan::row_threads(self.in_features);
        self.quantize(
            T::TYPE.of(kernels!("quantize_weight")),
            weight,
            &rows,
            bad_row,
            rows.len(),
            threads,
        )
    }

    /// [`Int8Matrix::quantize_rows`] from a weight stored `[K, rows]` (GPT-2's `Conv1D`).
    ///
    /// # Errors
    /// As there.
    pub fn quantize_transposed<T: Float>(
        &self,
        weight: View<'_, T>,
        rows: Range<usize>,
        bad_row: &Buffer<u32>,
    ) -> Result<()> {
        let blocks = rows.len().div_ceil(plan::WARP);
        self.quantize(
            T::TYPE.of(kernels!("quantize_transposed")),
            weight,
            &rows,
            bad_row,
            blocks,
            256,
        )
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

    /// A mark for the rows that cannot be quantised.
    ///
    /// # Errors
    /// [`CudaError::Driver`].
    pub fn mark(device: &Device) -> Result<Buffer<u32>> {
        device.upload(&[u32::MAX])
    }

    /// The first of the rows quantised since the last call that was not finite in f16, counted from
    /// the first row of its call; the mark is made new. Waits for the device.
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

/// Rows of `width` bytes, each filled up with zeros to `pitch`.
fn fill_up<T: bytemuck::Pod>(values: &[T], width: usize, pitch: usize) -> Vec<T> {
    let mut filled = vec![T::zeroed(); values.len() / width.max(1) * pitch];
    for (to, from) in filled.chunks_mut(pitch).zip(values.chunks(width.max(1))) {
        to[..width].copy_from_slice(from);
    }
    filled
}

/// Float weights or a table: rows as stored, filled up to a multiple of 16 bytes with zeros.
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

    /// Rows from `first` on become these values, as bytes.
    ///
    /// # Errors
    /// [`CudaError::TooShort`], [`CudaError::Driver`].
    pub fn write_rows(&self, first: usize, values: &[u8]) -> Result<()> {
        let (width, pitch) = (
            self.cols * self.dtype.bytes(),
            self.pitch() * self.dtype.bytes(),
        );
        let rows = values.len() / width.max(1);
        let target = self.values.part(first * pitch..(first + rows) * pitch)?;
        if width == pitch {
            target.write(values)
        } else {
            target.write(&fill_up(values, width, pitch))
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

    /// Values from row to row.
    pub fn pitch(&self) -> usize {
        (self.cols * self.dtype.bytes()).next_multiple_of(ALIGNMENT) / self.dtype.bytes()
    }

    /// The device.
    pub fn device(&self) -> &Device {
        self.values.device()
    }

    /// Bytes on the device.
    pub fn bytes(&self) -> u64 {
        self.values.bytes()
    }

    pub(super) fn address(&self) -> u64 {
        self.values.address()
    }
}
