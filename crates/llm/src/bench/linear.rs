//! Benchmark of single int8 linear layers, independent of any model.

use super::fit;
use crate::error::{LlmError, Result};
use crate::memory;
use candle_core::{DType, Device as Host, Tensor};
use half::f16;
use llm_int8_decoder::DecoderError;
use llm_int8_decoder::Placement;
use llm_int8_decoder::cuda::Device;
use llm_int8_decoder::cuda::ops::{
    Int8Matrix, Outliers, Output, QuantizedMemory, Source, gemv, matmul, quantize,
};
use llm_int8_nn::linear::{Int8Config, Int8Linear, Int8Weight};
use std::time::{Duration, Instant};

/// The runs rotate through this many bytes of weights, so that no weight is still in a cache when
/// it is used again.
const ROTATED: usize = 512 << 20;
/// Maximum copies of a layer's weight.
const MOST_COPIES: usize = 64;
/// Maximum copies on the CPU, whose caches are smaller.
const MOST_COPIES_ON_CPU: usize = 4;
/// Minimum duration of a run.
const SHORTEST: Duration = Duration::from_millis(20);

/// What to measure.
#[derive(Debug, Clone)]
pub struct LinearBench {
    /// The layers.
    pub shapes: Vec<LayerShape>,
    /// Numbers of activation rows.
    pub rows: Vec<usize>,
    /// Runs per measurement; the median is reported.
    pub runs: usize,
    /// Where to run: the first device of this placement, or the CPU if it has none.
    pub placement: Placement,
}

/// The size of a linear layer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LayerShape {
    /// Output features.
    pub out_features: usize,
    /// Input features.
    pub in_features: usize,
}

impl LayerShape {
    /// Number of weights; saturates.
    fn weights(self) -> usize {
        self.out_features.saturating_mul(self.in_features)
    }
}

/// Outlier columns in the measured activations: none, and as many as models of a few billion
/// parameters have (LLM.int8(), figure 4: at most 7), the same in every row.
const OUTLIER_COLUMNS: [usize; 2] = [0, 5];

/// How long one layer takes.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct LinearRate {
    /// Output features.
    pub out_features: usize,
    /// Input features.
    pub in_features: usize,
    /// Activation rows.
    pub rows: usize,
    /// Activation columns that have an outlier in every row.
    pub outlier_columns: usize,
    /// Time from f16 activations to f16 outputs: quantisation, matmul, outliers and scaling.
    pub microseconds: f64,
}

impl LinearBench {
    /// Measures every shape with every number of rows, with and without outlier columns. `observe`
    /// gets a description of each measurement before it starts.
    ///
    /// ```
    /// use llm_int8::bench::{LayerShape, LinearBench};
    /// use llm_int8::decoder::Placement;
    /// let shapes = vec![LayerShape { out_features: 64, in_features: 48 }];
    /// let bench = LinearBench { shapes, rows: vec![1, 20], runs: 1, placement: Placement::cpu() };
    /// let found = bench.run(&mut |_| ())?;
    /// assert!(found.len() == 4 && found.iter().all(|rate| rate.microseconds > 0.0));
    /// # Ok::<(), llm_int8::LlmError>(())
    /// ```
    ///
    /// # Errors
    /// [`LlmError::Setting`] if a size is 0 or memory does not suffice; [`DecoderError::Cuda`].
    pub fn run(&self, observe: &mut dyn FnMut(&str)) -> Result<Vec<LinearRate>> {
        let sizes = self
            .shapes
            .iter()
            .flat_map(|shape| [&shape.out_features, &shape.in_features])
            .chain(&self.rows)
            .chain([&self.runs]);
        if sizes.clone().any(|size| *size == 0) {
            let expected = "every size and the number of runs must be 1 or more";
            return Err(LlmError::Setting {
                name: "a size",
                value: "0".into(),
                expected,
            });
        }

        for &shape in &self.shapes {
            for &rows in &self.rows {
                self.check_memory(shape, rows)?;
            }
        }

        let mut rates = Vec::new();
        for &shape in &self.shapes {
            let layers = self.layers(shape)?;
            for &rows in &self.rows {
                observe(&description(shape, rows));
                for outlier_columns in OUTLIER_COLUMNS.map(|count| count.min(shape.in_features)) {
                    let activations = Activations {
                        rows,
                        width: shape.in_features,
                        outlier_columns,
                    };
                    let mut times = layers.measure(activations, self.runs)?;
                    times.sort_by(f64::total_cmp);

                    rates.push(LinearRate {
                        out_features: shape.out_features,
                        in_features: shape.in_features,
                        rows,
                        outlier_columns,
                        microseconds: times[times.len() / 2],
                    });
                }
            }
        }

        Ok(rates)
    }

    /// Number of copies of a layer's weight.
    fn copies(&self, shape: LayerShape) -> usize {
        let copies = ROTATED.div_ceil(shape.weights()).clamp(2, MOST_COPIES);
        if self.placement.devices.is_empty() {
            copies.min(MOST_COPIES_ON_CPU)
        } else {
            copies
        }
    }

    /// Rejects what does not fit into memory: the original weight, its copies, and the activations
    /// as floats.
    fn check_memory(&self, shape: LayerShape, rows: usize) -> Result<()> {
        let codes = shape.weights().saturating_mul(1 + self.copies(shape));
        let activations = shape
            .out_features
            .saturating_add(shape.in_features)
            .saturating_mul(rows)
            .saturating_mul(8);

        let free = match self.placement.devices.first() {
            Some(budget) => Some(budget.device.memory().map_err(DecoderError::from)?.free),
            None => memory::available(),
        };

        let bytes = codes.saturating_add(activations) as u64;
        fit::check_memory(&description(shape, rows), bytes, free)
    }

    /// Copies of a layer with random weights.
    fn layers(&self, shape: LayerShape) -> Result<Layers> {
        let copies = self.copies(shape);
        let LayerShape {
            out_features,
            in_features,
        } = shape;
        let codes: Vec<i8> = noise(out_features * in_features)
            .map(|bits| (bits % 255) as i8 - 127)
            .collect();
        let absmax = vec![0.1f32; out_features];

        let Some(budget) = self.placement.devices.first() else {
            let layer = || -> Result<Int8Linear> {
                let weight = Int8Weight::from_codes(&codes, &absmax, [out_features, in_features])?;
                Ok(Int8Linear::new(weight, None, Int8Config::default())?)
            };
            return Ok(Layers::Host(
                (0..copies).map(|_| layer()).collect::<Result<_>>()?,
            ));
        };

        let device = budget.device.clone();
        device.set_overlap(self.placement.overlaps_kernels);
        let matrix = || -> llm_int8_decoder::cuda::Result<Int8Matrix> {
            let matrix = Int8Matrix::new(&device, out_features, in_features)?;
            matrix.write_rows(0, &codes, &absmax)?;
            Ok(matrix)
        };
        let matrices = (0..copies)
            .map(|_| matrix())
            .collect::<std::result::Result<_, _>>();
        Ok(Layers::Device(
            device,
            matrices.map_err(DecoderError::from)?,
        ))
    }
}

/// Names one measurement.
fn description(shape: LayerShape, rows: usize) -> String {
    format!(
        "{rows} rows through {} to {} features",
        shape.in_features, shape.out_features
    )
}

/// Copies of one layer.
enum Layers {
    Host(Vec<Int8Linear>),
    Device(Device, Vec<Int8Matrix>),
}

impl Layers {
    /// Microseconds per layer, one value per run.
    fn measure(&self, activations: Activations, runs: usize) -> Result<Vec<f64>> {
        let x = activations.values();
        match self {
            Self::Host(layers) => {
                let shape = (activations.rows, activations.width);
                let x = Tensor::from_vec(x, shape, &Host::Cpu)?;
                let x = x.to_dtype(DType::F16)?;
                let each = || {
                    layers
                        .iter()
                        .try_for_each(|layer| layer.forward(&x).map(drop))
                        .map_err(LlmError::from)
                };
                timed(runs, layers.len(), each, || Ok(()))
            }
            Self::Device(device, matrices) => measure_on(device, matrices, &x, runs),
        }
    }
}

/// Microseconds per layer on a GPU, one value per run. A CUDA graph runs all copies, so that launch
/// overhead does not count.
fn measure_on(
    device: &Device,
    matrices: &[Int8Matrix],
    x: &[f32],
    runs: usize,
) -> Result<Vec<f64>> {
    let n = matrices[0].out_features();
    let k = matrices[0].in_features();
    let rows = x.len() / k;

    let prepared = || -> llm_int8_decoder::cuda::Result<_> {
        let x: Vec<f16> = x.iter().copied().map(f16::from_f32).collect();
        Ok((
            device.upload(&x)?,
            device.allocate::<f16>(rows * n)?,
            QuantizedMemory::new(device, rows, k)?,
        ))
    };
    let (x, out, memory) = prepared().map_err(DecoderError::from)?;
    let source = Source::plain(x.all(), rows, k);
    let output = Output::plain(out.all(), n);
    let outliers = Outliers::Absolute {
        threshold: 6.0,
        by_row: false,
    };

    let all = || -> std::result::Result<(), DecoderError> {
        for matrix in matrices {
            if rows > 1 || !gemv(&source, outliers, matrix, &output)? {
                matmul(&quantize(&source, outliers, &memory)?, matrix, &output)?;
            }
        }

        Ok(())
    };

    // Once without a graph, so that nothing is set up for the first time while recording.
    all()?;
    let graph = device.record(all)?;
    let launch = || {
        graph
            .launch()
            .map_err(|error| DecoderError::from(error).into())
    };
    timed(runs, matrices.len(), launch, || {
        device
            .synchronize()
            .map_err(|error| DecoderError::from(error).into())
    })
}

/// Microseconds per layer, one value per run. `each` runs `layers` layers, `wait` waits until they
/// are done.
fn timed(
    runs: usize,
    layers: usize,
    each: impl Fn() -> Result<()>,
    wait: impl Fn() -> Result<()>,
) -> Result<Vec<f64>> {
    let run = |times: usize| -> Result<Duration> {
        wait()?;
        let started = Instant::now();
        (0..times).try_for_each(|_| each())?;
        wait()?;
        Ok(started.elapsed())
    };

    // Warm up, then choose how often `each` runs so that a run takes at least `SHORTEST`.
    run(1)?;
    let once = run(1)?.max(Duration::from_nanos(100));
    let times = (SHORTEST.as_nanos() / once.as_nanos()).clamp(1, 10_000) as usize;
    (0..runs)
        .map(|_| Ok(run(times)?.as_secs_f64() * 1e6 / (times * layers) as f64))
        .collect()
}

/// Pseudo-random 24-bit numbers (an LCG), always the same.
fn noise(count: usize) -> impl Iterator<Item = u32> {
    let mut state = 7u64;
    (0..count).map(move |_| {
        state = state
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1_442_695_040_888_963_407);
        (state >> 40) as u32
    })
}

/// The activations of one measurement.
#[derive(Debug, Clone, Copy)]
struct Activations {
    rows: usize,
    width: usize,
    outlier_columns: usize,
}

impl Activations {
    /// Activations `[rows, width]` between -2 and 2, with 8 in the outlier columns. The columns are
    /// the same in every row, because in models outliers belong to a few features (LLM.int8(),
    /// section 4).
    fn values(self) -> Vec<f32> {
        let Self {
            rows,
            width,
            outlier_columns: outliers,
        } = self;
        let mut x: Vec<f32> = noise(rows * width)
            .map(|bits| bits as f32 / (1u32 << 22) as f32 - 2.0)
            .collect();
        for row in x.chunks_mut(width) {
            for outlier in 0..outliers {
                row[(2 * outlier + 1) * width / (2 * outliers)] = 8.0;
            }
        }

        x
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn outliers_are_in_the_same_few_columns_of_every_row() {
        let activations = |width, outlier_columns| {
            let rows = 40;
            Activations {
                rows,
                width,
                outlier_columns,
            }
            .values()
        };
        for width in [5, 48, 4096] {
            let x = activations(width, 5);
            let is_outlier = |column: usize| x[column] >= 6.0;
            assert_eq!(
                (0..width).filter(|column| is_outlier(*column)).count(),
                5,
                "{width}"
            );

            for row in x.chunks(width) {
                assert!(
                    row.iter()
                        .enumerate()
                        .all(|(i, x)| (x.abs() >= 6.0) == is_outlier(i))
                );
            }

            assert!(activations(width, 0).iter().all(|x| x.abs() <= 2.0));
        }
    }
}
