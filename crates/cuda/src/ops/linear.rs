//! The int8 linear layer: quantise, then matmul.

use super::{Check, Float, Int8Matrix, Outliers, Output, Source, Through, kernels, span};
use crate::args::{ClearArgs, GemvArgs, Int8Weight, MatmulArgs, QuantizeArgs};
use crate::buffer::{Buffer, View};
use crate::device::Device;
use crate::error::Result;
use crate::plan::{self, Gemm, MatmulShape, THIN_MAX_ROWS, Tile};

/// Memory for quantised rows, reused from layer to layer.
#[derive(Debug)]
pub struct QuantizedMemory {
    codes: Buffer<i8>,
    absmax: Buffer<f32>,
    values: Buffer<f32>,
    /// A bit for each outlier column. All zeros between launches.
    flags: Buffer<u32>,
    /// The number of blocks of `quantize` that are done. Zero between launches.
    blocks: Buffer<u32>,
    columns: Buffer<u32>,
    count: Buffer<u32>,
    /// The f16 bits of each row's smallest outlier.
    limits: Buffer<u32>,
    /// Sums of tiles whose K several blocks share (split-K). All zeros between launches.
    sums: Buffer<i32>,
    /// For each such tile, the number of blocks that are done. All zeros between launches.
    counters: Buffer<u32>,
}

impl QuantizedMemory {
    /// Memory for `rows` rows of up to `cols` values.
    ///
    /// # Errors
    /// [`CudaError::OutOfMemory`](crate::CudaError::OutOfMemory).
    pub fn new(device: &Device, rows: usize, cols: usize) -> Result<Self> {
        let multiprocessors = device.multiprocessors();
        Ok(Self {
            codes: device.allocate(rows * plan::pitch(cols))?,
            absmax: device.allocate(rows)?,
            values: device.allocate(rows * cols)?,
            flags: device.zeros(cols.div_ceil(32))?,
            blocks: device.zeros(1)?,
            columns: device.allocate(cols)?,
            count: device.zeros(1)?,
            limits: device.allocate(rows)?,
            sums: device.zeros(plan::gemm_sums(rows, multiprocessors))?,
            counters: device.zeros(plan::gemm_counters(rows, multiprocessors))?,
        })
    }

    /// Memory for one matmul of `rows` rows, quantised as they are ([`Through::Plain`]), with
    /// `matrix`: without what [`QuantizedMemory::new`] has for norms, gates and other matmuls.
    ///
    /// # Errors
    /// [`CudaError::OutOfMemory`](crate::CudaError::OutOfMemory).
    pub fn for_matmul(matrix: &Int8Matrix, rows: usize) -> Result<Self> {
        let device = matrix.device();
        let cols = matrix.in_features();
        let (tiles, outputs) = shared_tiles(gemm_for(matrix, rows), rows, matrix.out_features());
        Ok(Self {
            codes: device.allocate(rows * matrix.pitch())?,
            absmax: device.allocate(rows)?,
            values: device.allocate(0)?,
            flags: device.zeros(cols.div_ceil(32))?,
            blocks: device.zeros(1)?,
            columns: device.allocate(cols)?,
            count: device.zeros(1)?,
            limits: device.allocate(rows)?,
            sums: device.zeros(outputs)?,
            counters: device.zeros(tiles)?,
        })
    }

    /// The bytes that [`QuantizedMemory::new`] allocates on a device with `multiprocessors`
    /// multiprocessors.
    pub fn bytes(rows: usize, cols: usize, multiprocessors: usize) -> u64 {
        let for_rows = rows * (plan::pitch(cols) + 8 + 4 * cols);
        let for_columns = cols.div_ceil(32) * 4 + 4 * cols + 8;
        let for_split_k =
            plan::gemm_sums(rows, multiprocessors) + plan::gemm_counters(rows, multiprocessors);
        (for_rows + for_columns + 4 * for_split_k) as u64
    }
}

/// Quantised rows: int8 codes, absmax, the outlier columns, and the float values of those.
#[derive(Debug, Clone, Copy)]
pub struct Quantized<'a, T> {
    memory: &'a QuantizedMemory,
    values: Values<'a, T>,
    rows: usize,
    cols: usize,
    by_row: bool,
}

/// Where the matmul reads outlier values from.
#[derive(Debug, Clone, Copy)]
enum Values<'a, T> {
    /// From the source itself, which was quantised as it is.
    Source { x: View<'a, T>, stride: usize },
    /// From [`QuantizedMemory::values`], contiguous: the source went through a norm or gate first.
    Computed(View<'a, f32>),
}

impl<T: Float> Quantized<'_, T> {
    /// The codes `[rows, cols]`, copied to the host. Waits for the device, like the others.
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

    /// The absmax of each row without its outliers, copied to the host.
    ///
    /// # Errors
    /// Like [`Quantized::codes`].
    pub fn absmax(&self) -> Result<Vec<f32>> {
        let mut absmax = vec![0f32; self.rows];
        self.memory.absmax.all().read(&mut absmax)?;
        Ok(absmax)
    }

    /// The columns with an outlier in any row, ascending, copied to the host.
    ///
    /// # Errors
    /// Like [`Quantized::codes`].
    pub fn columns(&self) -> Result<Vec<u32>> {
        let count = self.memory.count.to_vec()?[0] as usize;
        let mut columns = vec![0u32; count];
        self.memory.columns.all().read(&mut columns)?;
        Ok(columns)
    }
}

/// Quantises rows to int8.
///
/// Outliers get code 0 and do not count for the row's absmax. Where they are not by row, their whole
/// column gets code 0. Source: bitsandbytes' `int8_vectorwise_quant`; the rounding is described in
/// `quantize.cu`.
///
/// # Errors
/// [`CudaError::TooShort`](crate::CudaError::TooShort),
/// [`CudaError::WrongDevice`](crate::CudaError::WrongDevice);
/// [`CudaError::Shape`](crate::CudaError::Shape) for rows of more than 262,144 values.
pub fn quantize<'a, T: Float>(
    source: &Source<'a, T>,
    outliers: Outliers,
    memory: &'a QuantizedMemory,
) -> Result<Quantized<'a, T>> {
    let device = memory.codes.device();
    let check = Check {
        kernel: T::TYPE.pick(kernels!("quantize")),
        device,
    };
    let (rows, cols) = (source.rows, source.cols);
    if cols > plan::MAX_COLUMNS {
        let most = plan::MAX_COLUMNS;
        return Err(check.shape(format!(
            "rows of {cols} values; at most {most} are possible"
        )));
    }
    let values = match source.through {
        Through::Plain => Values::Source {
            x: source.x,
            stride: source.stride,
        },
        _ => Values::Computed(memory.values.part(..rows * cols)?),
    };

    let args = quantize_args(&check, source, outliers, &values, memory)?;
    let multiprocessors = device.multiprocessors();
    let blocks = plan::quantize_blocks(rows, cols, multiprocessors);
    let threads = plan::quantize_threads(rows, cols, multiprocessors);
    check.launch(&args, [blocks, 1, 1], threads, 0)?;

    // A single row has no other codes in its outlier columns.
    let by_row = outliers.is_by_row();
    if rows > 1 && args.rule != Outliers::NONE && !by_row {
        clear_columns(device, &args)?;
    }

    Ok(Quantized {
        memory,
        values,
        rows,
        cols,
        by_row,
    })
}

fn quantize_args<T: Float>(
    check: &Check<'_>,
    source: &Source<'_, T>,
    outliers: Outliers,
    values: &Values<'_, T>,
    memory: &QuantizedMemory,
) -> Result<QuantizeArgs> {
    let (rows, cols) = (source.rows, source.cols);
    let pitch = plan::pitch(cols);
    Ok(QuantizeArgs {
        source: source.args(check)?,
        codes: check.view("the codes", memory.codes.all(), rows * pitch)?,
        absmax: check.view("absmax", memory.absmax.all(), rows)?,
        values: match values {
            Values::Computed(values) => values.address(),
            Values::Source { .. } => 0,
        },
        flags: check.view("the column flags", memory.flags.all(), cols.div_ceil(32))?,
        blocks: memory.blocks.address(),
        columns: check.view("the columns", memory.columns.all(), cols)?,
        count: memory.count.address(),
        limits: check.view("the limits", memory.limits.all(), rows)?,
        rule: outliers.args(),
        rows: check.size("the rows", rows)?,
        pitch: check.size("the row", pitch)?,
    })
}

/// Sets the codes of the outlier columns to 0 in every row.
fn clear_columns(device: &Device, quantized: &QuantizeArgs) -> Result<()> {
    let check = Check {
        kernel: "clear_columns",
        device,
    };
    let args = ClearArgs {
        codes: quantized.codes,
        columns: quantized.columns,
        count: quantized.count,
        pitch: quantized.pitch,
        padding: 0,
    };
    check.launch(&args, [quantized.rows as usize, 1, 1], 128, 0)
}

fn weight_args(matrix: &Int8Matrix, check: &Check<'_>) -> Result<Int8Weight> {
    let rows = matrix.out_features();
    let pitch = matrix.pitch();
    Ok(Int8Weight {
        codes: check.view("the weight", matrix.codes(), rows * pitch)?,
        absmax: check.view("the weight's absmax", matrix.absmax(), rows)?,
        out_features: check.size("the outputs", rows)?,
        pitch: check.size("the inputs", pitch)?,
    })
}

fn check_width(check: &Check<'_>, matrix: &Int8Matrix, cols: usize) -> Result<()> {
    if matrix.in_features() == cols {
        return Ok(());
    }
    Err(check.shape(format!(
        "rows have {cols} values; the layer takes {}",
        matrix.in_features()
    )))
}

/// LLM.int8() on quantised rows, `y = x · Wᵀ + b`: the int8 matmul, and the outlier columns in
/// floats. For any number of rows.
///
/// # Errors
/// [`CudaError::Shape`](crate::CudaError::Shape) if `in_features` differ; otherwise like
/// [`quantize`].
pub fn matmul<T: Float>(
    x: &Quantized<'_, T>,
    matrix: &Int8Matrix,
    output: &Output<'_, T>,
) -> Result<()> {
    matmul_by(gemm_for(matrix, x.rows), x, matrix, output)
}

/// How [`matmul`] divides its work; `None` for `thin.cu`.
fn gemm_for(matrix: &Int8Matrix, rows: usize) -> Option<Gemm> {
    let device = matrix.device();
    let shape = MatmulShape {
        rows,
        out_features: matrix.out_features(),
        pitch: matrix.pitch(),
    };
    (rows > THIN_MAX_ROWS).then(|| plan::gemm(shape, device.multiprocessors(), device.has_wgmma()))
}

/// The number of tiles whose K several blocks share (split-K), and of their outputs.
fn shared_tiles(gemm: Option<Gemm>, rows: usize, out_features: usize) -> (usize, usize) {
    match gemm {
        Some(Gemm { tile, splits: 2.. }) => {
            let tiles = tile.count(rows, out_features);
            (tiles, tiles * tile.outputs())
        }
        _ => (0, 0),
    }
}

/// [`matmul`] with the kernel chosen by the caller, for tests and benchmarks: `gemm.cu` or
/// `wgmma.cu`, for any number of rows, or with `None` `thin.cu`, which takes up to 16.
///
/// # Errors
/// Like [`matmul`]; [`CudaError::TooShort`](crate::CudaError::TooShort) also if there is not enough
/// memory for the sums of a split K.
pub fn matmul_by<T: Float>(
    gemm: Option<Gemm>,
    x: &Quantized<'_, T>,
    matrix: &Int8Matrix,
    output: &Output<'_, T>,
) -> Result<()> {
    let device = matrix.device();
    let check = Check {
        kernel: T::TYPE.pick(matmul_kernels(gemm, x.rows)),
        device,
    };
    let thin = plan::thin(
        matrix.out_features(),
        matrix.pitch(),
        device.multiprocessors(),
    );
    let args = matmul_args(&check, gemm, thin.warps_k, x, matrix, output)?;

    let Some(Gemm { tile, .. }) = gemm else {
        let blocks = if x.rows == 0 { 0 } else { thin.blocks as usize };
        return check.launch(&args, [blocks, 1, 1], 256, thin.shared_bytes as usize);
    };
    let [blocks_m, blocks_n] = tile.grid(x.rows, matrix.out_features());
    check.launch(
        &args,
        [blocks_m, blocks_n, args.splits as usize],
        tile.threads(),
        tile.shared_bytes() as usize,
    )
}

fn matmul_kernels(gemm: Option<Gemm>, rows: usize) -> [&'static str; 3] {
    match gemm.map(|gemm| gemm.tile) {
        None if rows <= 8 => kernels!("thin8"),
        None => kernels!("thin16"),
        Some(Tile::HopperTall) => kernels!("wgmma256"),
        Some(Tile::Hopper) => kernels!("wgmma128"),
        Some(Tile::HopperDeep) => kernels!("wgmma128_deep"),
        Some(Tile::HopperFlat) => kernels!("wgmma64"),
        Some(Tile::Large) => kernels!("gemm128"),
        Some(Tile::Small) => kernels!("gemm64"),
    }
}

fn matmul_args<T: Float>(
    check: &Check<'_>,
    gemm: Option<Gemm>,
    warps_k: u32,
    x: &Quantized<'_, T>,
    matrix: &Int8Matrix,
    output: &Output<'_, T>,
) -> Result<MatmulArgs> {
    let (rows, out_features) = (x.rows, matrix.out_features());
    let (values, value_stride) = outlier_values(check, x)?;

    check_width(check, matrix, x.cols)?;
    if gemm.is_none() && rows > THIN_MAX_ROWS {
        return Err(check.shape(format!("{rows} rows; it takes up to {THIN_MAX_ROWS}")));
    }
    if gemm.is_some_and(|gemm| Tile::HOPPER.contains(&gemm.tile)) && !check.device.has_wgmma() {
        return Err(check.shape(format!("{} has no wgmma", check.device.name())));
    }

    let (shared_tiles, shared_outputs) = shared_tiles(gemm, rows, out_features);
    let memory = x.memory;
    Ok(MatmulArgs {
        codes: check.view("the codes", memory.codes.all(), rows * matrix.pitch())?,
        absmax: check.view("absmax", memory.absmax.all(), rows)?,
        values,
        columns: memory.columns.address(),
        count: memory.count.address(),
        limits: match x.by_row {
            true => memory.limits.address(),
            false => 0,
        },
        weight: weight_args(matrix, check)?,
        epilogue: output.args(check, rows, out_features)?,
        sums: check.view("the sums of tiles", memory.sums.all(), shared_outputs)?,
        counters: check.view("the counters of tiles", memory.counters.all(), shared_tiles)?,
        rows: check.size("the rows", rows)?,
        value_stride: check.size("the stride", value_stride)?,
        warps_k,
        splits: gemm.map_or(1, |gemm| gemm.splits.max(1)),
    })
}

/// The address and stride of the values that outliers are read from.
fn outlier_values<T: Float>(check: &Check<'_>, x: &Quantized<'_, T>) -> Result<(u64, usize)> {
    match x.values {
        Values::Source { x: values, stride } => {
            let needed = span(x.rows, stride, x.cols);
            Ok((check.view("the activations", values, needed)?, stride))
        }
        // Computed values are f32, but the kernels for f16 and bf16 read theirs in that type.
        Values::Computed(_) if size_of::<T>() != size_of::<f32>() => {
            Err(check.shape("norms and gates need rows in f32".into()))
        }
        Values::Computed(values) => {
            let needed = x.rows * x.cols;
            Ok((check.view("the activations", values, needed)?, x.cols))
        }
    }
}

/// LLM.int8() on one row, from activations to outputs in one launch.
///
/// Returns false, and launches nothing, if the row is too long for it; then [`quantize`] and
/// [`matmul`] must do.
///
/// # Errors
/// Like [`matmul`]; [`CudaError::Shape`](crate::CudaError::Shape) also for more than one row.
pub fn gemv<T: Float>(
    source: &Source<'_, T>,
    outliers: Outliers,
    matrix: &Int8Matrix,
    output: &Output<'_, T>,
) -> Result<bool> {
    let device = matrix.device();
    let check = Check {
        kernel: T::TYPE.pick(kernels!("gemv")),
        device,
    };
    check_width(&check, matrix, source.cols)?;
    if source.rows != 1 {
        return Err(check.shape(format!("{} rows; it takes one", source.rows)));
    }
    if matrix.pitch() > plan::GEMV_MAX_PITCH {
        return Ok(false);
    }

    // Where shared memory is small (64 KB on Turing), use more blocks, each with fewer weight rows.
    let available = device
        .shared_bytes()
        .saturating_sub(plan::GEMV_STATIC_BYTES);
    let fitting = [1, 2, 4].into_iter().find_map(|blocks| {
        let gemv = plan::gemv(
            matrix.out_features(),
            matrix.pitch(),
            blocks * device.multiprocessors(),
        );
        let shared_bytes = gemv.shared_bytes(source.cols);
        (shared_bytes <= available).then_some((gemv, shared_bytes))
    });
    let Some((gemv, shared_bytes)) = fitting else {
        return Ok(false);
    };

    let args = GemvArgs {
        source: source.args(&check)?,
        weight: weight_args(matrix, &check)?,
        epilogue: output.args(&check, 1, matrix.out_features())?,
        rule: outliers.args(),
        lanes: gemv.lanes,
        rows: gemv.rows,
    };
    check.launch(&args, [gemv.blocks as usize, 1, 1], 512, shared_bytes)?;
    Ok(true)
}
