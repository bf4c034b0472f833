//! The int8 layer: quantise, multiply.

use super::{Check, Float, Int8Matrix, Output, Source, Through, kernels};
use crate::args::{ClearArgs, GemvArgs, Int8Weight, MatmulArgs, QuantizeArgs};
use crate::buffer::{Buffer, View};
use crate::device::Device;
use crate::error::Result;
use crate::plan::{self, Gemm, THIN_MOST, Tile};

/// Memory for quantised rows, reused from product to product.
#[derive(Debug)]
pub struct QuantizedMemory {
    codes: Buffer<i8>,
    absmax: Buffer<f32>,
    values: Buffer<f32>,
    /// Marks of outlier columns and the number of blocks that are done; all zeros between launches.
    flags: Buffer<u32>,
    blocks: Buffer<u32>,
    columns: Buffer<u32>,
    count: Buffer<u32>,
    /// Of tiles whose K several blocks share; all zeros between launches.
    sums: Buffer<i32>,
    counters: Buffer<u32>,
}

impl QuantizedMemory {
    /// Memory for `rows` rows of up to `cols` values.
    ///
    /// # Errors
    /// [`CudaError::OutOfMemory`](crate::CudaError::OutOfMemory).
    pub fn new(device: &Device, rows: usize, cols: usize) -> Result<Self> {
        let units = device.multiprocessors();
        Ok(Self {
            codes: device.allocate(rows * plan::pitch(cols))?,
            absmax: device.allocate(rows)?,
            values: device.allocate(rows * cols)?,
            flags: device.zeros(cols.div_ceil(32))?,
            blocks: device.zeros(1)?,
            columns: device.allocate(cols)?,
            count: device.zeros(1)?,
            sums: device.zeros(plan::gemm_sums(rows, units))?,
            counters: device.zeros(plan::gemm_counters(rows, units))?,
        })
    }

    /// Bytes it takes for `rows` rows of up to `cols` values on a device with `multiprocessors`
    /// multiprocessors.
    pub fn bytes(rows: usize, cols: usize, multiprocessors: usize) -> u64 {
        let of_rows =
            rows * (plan::pitch(cols) + 4 + 4 * cols) + cols.div_ceil(32) * 4 + 4 * cols + 8;
        let shared =
            plan::gemm_sums(rows, multiprocessors) + plan::gemm_counters(rows, multiprocessors);
        (of_rows + 4 * shared) as u64
    }
}

/// Rows that are quantised: codes, absmax, the columns of outliers and the values those are taken
/// from.
#[derive(Debug, Clone, Copy)]
pub struct Quantized<'a, T> {
    memory: &'a QuantizedMemory,
    values: Values<'a, T>,
    rows: usize,
    cols: usize,
    limit: u32,
    by_row: bool,
}

#[derive(Debug, Clone, Copy)]
enum Values<'a, T> {
    AsTheyLie(View<'a, T>, usize),
    Made(View<'a, f32>),
}

impl<T: Float> Quantized<'_, T> {
    /// Codes `[rows, cols]` on the host.
    ///
    /// # Errors
    /// [`CudaError::Driver`](crate::CudaError::Driver).
    pub fn codes(&self) -> Result<Vec<i8>> {
        let pitch = plan::pitch(self.cols);
        let mut codes = vec![0i8; self.rows * pitch];
        self.memory.codes.all().read(&mut codes)?;
        Ok(codes
            .chunks(pitch.max(1))
            .flat_map(|row| &row[..self.cols])
            .copied()
            .collect())
    }

    /// The largest magnitudes below the threshold, on the host.
    ///
    /// # Errors
    /// As [`Quantized::codes`].
    pub fn absmax(&self) -> Result<Vec<f32>> {
        let mut absmax = vec![0f32; self.rows];
        self.memory.absmax.all().read(&mut absmax)?;
        Ok(absmax)
    }

    /// The columns that are outliers in some row, ascending, on the host.
    ///
    /// # Errors
    /// As [`Quantized::codes`].
    pub fn columns(&self) -> Result<Vec<u32>> {
        let count = self.memory.count.to_vec()?[0] as usize;
        let mut columns = vec![0u32; count];
        self.memory.columns.all().read(&mut columns)?;
        Ok(columns)
    }
}

/// Quantises rows: what reaches `threshold` in f16 is an outlier and has code 0; with `by_row`
/// false its whole column has. Source: bitsandbytes' `int8_vectorwise_quant`; the rounding is
/// described in `quantize.cu`.
///
/// # Errors
/// [`CudaError::TooShort`](crate::CudaError::TooShort),
/// [`CudaError::WrongDevice`](crate::CudaError::WrongDevice).
pub fn quantize<'a, T: Float>(
    source: &Source<'a, T>,
    threshold: f32,
    by_row: bool,
    memory: &'a QuantizedMemory,
) -> Result<Quantized<'a, T>> {
    let check = Check {
        kernel: T::TYPE.of(kernels!("quantize")),
        device: memory.codes.device(),
    };
    let (rows, cols, pitch) = (source.rows, source.cols, plan::pitch(source.cols));
    let limit = plan::outlier_limit(threshold);
    let is_made = !matches!(source.through, Through::Plain);
    let values = memory
        .values
        .part(..if is_made { rows * cols } else { 0 })?;
    let args = QuantizeArgs {
        source: source.args(&check)?,
        codes: check.view("the codes", memory.codes.all(), rows * pitch)?,
        absmax: check.view("the largest magnitudes", memory.absmax.all(), rows)?,
        values: if is_made { values.address() } else { 0 },
        flags: check.view(
            "the marks of columns",
            memory.flags.all(),
            cols.div_ceil(32),
        )?,
        blocks: memory.blocks.address(),
        columns: check.view("the columns", memory.columns.all(), cols)?,
        count: memory.count.address(),
        rows: check.size("the rows", rows)?,
        pitch: check.size("the row", pitch)?,
        limit,
        padding: 0,
    };
    let units = memory.codes.device().multiprocessors();
    let blocks = plan::quantize_blocks(rows, cols, units);
    check.launch(
        &args,
        [blocks, 1, 1],
        plan::quantize_threads(rows, cols, units),
        0,
    )?;
    if rows > 1 && threshold > 0.0 && !by_row {
        let check = Check {
            kernel: "clear_columns",
            device: memory.codes.device(),
        };
        let args = ClearArgs {
            codes: args.codes,
            columns: args.columns,
            count: args.count,
            pitch: args.pitch,
            padding: 0,
        };
        check.launch(&args, [rows, 1, 1], 128, 0)?;
    }
    let values = if is_made {
        Values::Made(values)
    } else {
        Values::AsTheyLie(source.x, source.stride)
    };
    Ok(Quantized {
        memory,
        values,
        rows,
        cols,
        limit,
        by_row,
    })
}

fn weight(matrix: &Int8Matrix, check: &Check<'_>) -> Result<Int8Weight> {
    let (rows, pitch) = (matrix.out_features(), matrix.pitch());
    Ok(Int8Weight {
        codes: check.view("the weight", matrix.codes(), rows * pitch)?,
        absmax: check.view("the weight's largest magnitudes", matrix.absmax(), rows)?,
        out_features: check.size("the outputs", rows)?,
        pitch: check.size("the inputs", pitch)?,
    })
}

fn check_width(check: &Check<'_>, matrix: &Int8Matrix, cols: usize) -> Result<()> {
    if matrix.in_features() == cols {
        return Ok(());
    }
    Err(check.shape(format!(
        "rows of {cols} values; the layer takes {}",
        matrix.in_features()
    )))
}

/// The product of quantised rows, outliers included: LLM.int8(), `y = x · Wᵀ + b`, for any number
/// of rows.
///
/// # Errors
/// [`CudaError::Shape`](crate::CudaError::Shape) where `in_features` differ; as [`quantize`].
pub fn matmul<T: Float>(
    x: &Quantized<'_, T>,
    matrix: &Int8Matrix,
    output: &Output<'_, T>,
) -> Result<()> {
    let (device, shape) = (
        matrix.device(),
        [x.rows, matrix.out_features(), matrix.pitch()],
    );
    let division = || plan::gemm(shape, device.multiprocessors(), device.has_wgmma());
    matmul_by((x.rows > THIN_MOST).then(division), x, matrix, output)
}

/// [`matmul`] divided as the caller says, for tests and measurements: by `gemm.cu` and `wgmma.cu`,
/// for any number of rows, or with `None` by `thin.cu`, which takes up to 16.
///
/// # Errors
/// As [`matmul`], which knows how much memory there is for sums of tiles whose K is shared.
pub fn matmul_by<T: Float>(
    division: Option<Gemm>,
    x: &Quantized<'_, T>,
    matrix: &Int8Matrix,
    output: &Output<'_, T>,
) -> Result<()> {
    let device = matrix.device();
    let (rows, out_features) = (x.rows, matrix.out_features());
    let kernel = match division.map(|division| division.tile) {
        None if rows <= 8 => kernels!("thin8"),
        None => kernels!("thin16"),
        Some(Tile::HopperTall) => kernels!("wgmma256"),
        Some(Tile::Hopper) => kernels!("wgmma128"),
        Some(Tile::HopperDeep) => kernels!("wgmma128_deep"),
        Some(Tile::HopperFlat) => kernels!("wgmma64"),
        Some(Tile::Large) => kernels!("gemm128"),
        Some(Tile::Small) => kernels!("gemm64"),
    };
    // Values that were made are f32: kernels for f16 and bf16 take theirs from where they lie.
    let (kernel, values, value_stride) = match x.values {
        Values::AsTheyLie(values, stride) => {
            let check = Check {
                kernel: T::TYPE.of(kernel),
                device,
            };
            (
                check.kernel,
                check.view("the activations", values, super::span(rows, stride, x.cols))?,
                stride,
            )
        }
        Values::Made(values) => {
            let check = Check {
                kernel: T::TYPE.of(kernel),
                device,
            };
            if size_of::<T>() != size_of::<f32>() {
                return Err(check.shape("norms and gates are for rows of f32".into()));
            }
            (
                check.kernel,
                check.view("the activations", values, rows * x.cols)?,
                x.cols,
            )
        }
    };
    let check = Check { kernel, device };
    check_width(&check, matrix, x.cols)?;
    if division.is_none() && rows > THIN_MOST {
        return Err(check.shape(format!("{rows} rows; it takes {THIN_MOST}")));
    }
    if division.is_some_and(|division| Tile::HOPPER.contains(&division.tile)) && !device.has_wgmma()
    {
        return Err(check.shape(format!("{} has no wgmma", device.name())));
    }
    let cut = plan::thin(out_features, matrix.pitch(), device.multiprocessors());
    let splits = division.map_or(1, |division| division.splits.max(1));
    let shared_tiles = match division {
        Some(Gemm { tile, splits: 2.. }) => tile.count(rows, out_features),
        _ => 0,
    };
    let outputs = division.map_or(0, |division| division.tile.outputs());
    let args = MatmulArgs {
        codes: check.view("the codes", x.memory.codes.all(), rows * matrix.pitch())?,
        absmax: check.view("the largest magnitudes", x.memory.absmax.all(), rows)?,
        values,
        columns: x.memory.columns.address(),
        count: x.memory.count.address(),
        weight: weight(matrix, &check)?,
        epilogue: output.args(&check, rows, out_features)?,
        sums: check.view(
            "the sums of tiles",
            x.memory.sums.all(),
            shared_tiles * outputs,
        )?,
        counters: check.view(
            "the counters of tiles",
            x.memory.counters.all(),
            shared_tiles,
        )?,
        rows: check.size("the rows", rows)?,
        value_stride: check.size("the stride", value_stride)?,
        limit: x.limit,
        by_row: x.by_row.into(),
        warps_k: cut.warps_k,
        splits,
    };
    let Some(Gemm { tile, .. }) = division else {
        let grid = [if rows == 0 { 0 } else { cut.blocks as usize }, 1, 1];
        return check.launch(&args, grid, 256, cut.shared_bytes as usize);
    };
    let [blocks_m, blocks_n] = tile.grid(rows, out_features);
    check.launch(
        &args,
        [blocks_m, blocks_n, splits as usize],
        tile.threads(),
        tile.shared_bytes() as usize,
    )
}

/// One row from activations to outputs in one launch; false where the row is too long for it and
/// [`quantize`] and [`matmul`] must do.
///
/// # Errors
/// As [`matmul`].
pub fn gemv<T: Float>(
    source: &Source<'_, T>,
    threshold: f32,
    matrix: &Int8Matrix,
    output: &Output<'_, T>,
) -> Result<bool> {
    let device = matrix.device();
    let check = Check {
        kernel: T::TYPE.of(kernels!("gemv")),
        device,
    };
    check_width(&check, matrix, source.cols)?;
    if source.rows != 1 {
        return Err(check.shape(format!("{} rows; it takes one", source.rows)));
    }
    if matrix.pitch() > plan::GEMV_MOST_PITCH {
        return Ok(false);
    }
    // Where shared memory is small (64 KB on Turing), more blocks of fewer rows.
    let room = device
        .shared_bytes()
        .saturating_sub(plan::GEMV_STATIC_BYTES);
    let found = [1, 2, 4].into_iter().find_map(|blocks| {
        let cut = plan::gemv(
            matrix.out_features(),
            matrix.pitch(),
            blocks * device.multiprocessors(),
        );
        let shared = cut.shared_bytes(source.cols);
        (shared <= room).then_some((cut, shared))
    });
    let Some((cut, shared)) = found else {
        return Ok(false);
    };
    let args = GemvArgs {
        source: source.args(&check)?,
        weight: weight(matrix, &check)?,
        epilogue: output.args(&check, 1, matrix.out_features())?,
        limit: plan::outlier_limit(threshold),
        lanes: cut.lanes,
        rows: cut.rows,
        padding: 0,
    };
    check.launch(&args, [cut.blocks as usize, 1, 1], 512, shared)?;
    Ok(true)
}
