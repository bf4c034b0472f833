//! Single int8 layers by themselves: from activations to outputs, whatever model they would be of.

use super::fit;
use crate::error::{LlmError, Result};
use crate::memory;
use candle_core::{DType, Device as Host, Tensor};
use half::f16;
use llm_int8_decoder::DecoderError;
use llm_int8_decoder::Placement;
use llm_int8_decoder::cuda::Device;
use llm_int8_decoder::cuda::ops::{
    Int8Matrix, Output, QuantizedMemory, Source, gemv, matmul, quantize,
};
use llm_int8_nn::linear::{Int8Config, Int8Linear, Int8Weight};
use std::time::{Duration, Instant};

/// Bytes of weights that are gone through in turn, so that none is left in a cache.
const ROTATED: usize = 512 << 20;
/// Copies of a layer's weight at most.
const MOST_COPIES: usize = 64;
/// The same on the CPU, whose caches are smaller.
const MOST_COPIES_ON_CPU: usize = 4;
/// How long a run takes at least.
const SHORTEST: Duration = Duration::from_millis(20);

/// What is measured.
#[derive(Debug, Clone)]
pub struct LinearBench {
    /// `[out_features, in_features]` of each layer.
    pub shapes: Vec<[usize; 2]>,
    /// Rows of activations.
    pub rows: Vec<usize>,
    /// Runs, of which the median counts.
    pub runs: usize,
    /// Where: the first device, or the CPU.
    pub placement: Placement,
}

/// Outlier columns of the activations that are measured: none, and as many as models of some
/// billion parameters have (LLM.int8(), figure 4: at most 7), the same in every row.
const OUTLIER_COLUMNS: [usize; 2] = [0, 5];

/// How long a layer takes.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct LinearRate {
    /// Outputs.
    pub out_features: usize,
    /// Inputs.
    pub in_features: usize,
    /// Rows of activations.
    pub rows: usize,
    /// Columns of the activations that hold an outlier in every row.
    pub outlier_columns: usize,
    /// From f16 activations to f16 outputs: quantising, matmul, outliers, scaling.
    pub microseconds: f64,
}

impl LinearBench {
    /// Measures every shape with every number of rows, without outliers and with a few columns of
    /// them. `observe` is told what comes next.
    ///
    /// ```
    /// use llm_int8::bench::LinearBench;
    /// use llm_int8::decoder::Placement;
    /// let bench = LinearBench { shapes: vec![[64, 48]], rows: vec![1, 20], runs: 1, placement: Placement::cpu() };
    /// let found = bench.run(&mut |_| ())?;
    /// assert!(found.len() == 4 && found.iter().all(|rate| rate.microseconds > 0.0));
    /// # Ok::<(), llm_int8::LlmError>(())
    /// ```
    ///
    /// # Errors
    /// [`LlmError::Setting`] where nothing can be measured, or memory has no room for it;
    /// [`DecoderError::Cuda`].
    pub fn run(&self, observe: &mut dyn FnMut(&str)) -> Result<Vec<LinearRate>> {
        let sizes = self
            .shapes
            .iter()
            .flatten()
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
        for &[out_features, in_features] in &self.shapes {
            let copies = self.copies([out_features, in_features]);
            let layers = self.layers([out_features, in_features], copies)?;
            for &rows in &self.rows {
                observe(&format!(
                    "{rows} rows through {in_features} to {out_features} features"
                ));
                for outlier_columns in OUTLIER_COLUMNS.map(|count| count.min(in_features)) {
                    let mut found =
                        layers.measure([rows, in_features, outlier_columns], self.runs)?;
                    found.sort_by(f64::total_cmp);
                    let microseconds = found[found.len() / 2];
                    rates.push(LinearRate {
                        out_features,
                        in_features,
                        rows,
                        outlier_columns,
                        microseconds,
                    });
                }
            }
        }

        Ok(rates)
    }

    /// Copies of a layer's weight.
    fn copies(&self, [out_features, in_features]: [usize; 2]) -> usize {
        let copies = ROTATED
            .div_ceil(out_features.saturating_mul(in_features))
            .clamp(2, MOST_COPIES);
        if self.placement.devices.is_empty() {
            copies.min(MOST_COPIES_ON_CPU)
        } else {
            copies
        }
    }

    /// Refuses what memory has no room for: the codes once more than their copies, and float
    /// activations.
    fn check_memory(&self, shape: [usize; 2], rows: usize) -> Result<()> {
        let [out_features, in_features] = shape;
        let codes = out_features
            .saturating_mul(in_features)
            .saturating_mul(1 + self.copies(shape));
        let activations = out_features
            .saturating_add(in_features)
            .saturating_mul(rows)
            .saturating_mul(8);
        let what = format!("{rows} rows through {in_features} to {out_features} features");
        let free = match self.placement.devices.first() {
            Some(budget) => Some(budget.device.memory().map_err(DecoderError::from)?.free),
            None => memory::available(),
        };
        fit::check_memory(&what, codes.saturating_add(activations) as u64, free)
    }

    fn layers(&self, [out_features, in_features]: [usize; 2], copies: usize) -> Result<Layers> {
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

/// Copies of a layer.
enum Layers {
    Host(Vec<Int8Linear>),
    Device(Device, Vec<Int8Matrix>),
}

impl Layers {
    /// Microseconds of a layer, of each run.
    fn measure(&self, [rows, width, outliers]: [usize; 3], runs: usize) -> Result<Vec<f64>> {
        let x = activations([rows, width, outliers]);
        match self {
            Self::Host(layers) => {
                let x = Tensor::from_vec(x, (rows, width), &Host::Cpu)?;
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

/// One recorded graph goes through all copies, so that launching costs the host next to nothing.
fn measure_on(
    device: &Device,
    matrices: &[Int8Matrix],
    x: &[f32],
    runs: usize,
) -> Result<Vec<f64>> {
    let (n, k) = (matrices[0].out_features(), matrices[0].in_features());
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
    let (source, output) = (Source::plain(x.all(), rows, k), Output::plain(out.all(), n));
    let threshold = Int8Config::default().threshold;
    let all = || -> std::result::Result<(), DecoderError> {
        for matrix in matrices {
            if rows > 1 || !gemv(&source, threshold, matrix, &output)? {
                matmul(
                    &quantize(&source, threshold, false, &memory)?,
                    matrix,
                    &output,
                )?;
            }
        }

        Ok(())
    };
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

/// Microseconds of one of `each`'s layers, of each run, which `wait` ends.
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
    run(1)?;
    let once = run(1)?.max(Duration::from_nanos(100));
    let times = (SHORTEST.as_nanos() / once.as_nanos()).clamp(1, 10_000) as usize;
    (0..runs)
        .map(|_| Ok(run(times)?.as_secs_f64() * 1e6 / (times * layers) as f64))
        .collect()
}

fn noise(count: usize) -> impl Iterator<Item = u32> {
    let mut state = 7u64;
    (0..count).map(move |_| {
        state = state
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1_442_695_040_888_963_407);
        (state >> 40) as u32
    })
}

/// Activations `[rows, width]` between -2 and 2, and 8 in `outliers` columns, the same in every
/// row: in models outliers are a property of a few features (LLM.int8(), section 4).
fn activations([rows, width, outliers]: [usize; 3]) -> Vec<f32> {
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn outliers_lie_in_a_few_columns_and_are_the_same_in_every_row() {
        for width in [5, 48, 4096] {
            let x = activations([40, width, 5]);
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

            assert!(activations([40, width, 0]).iter().all(|x| x.abs() <= 2.0));
        }
    }
}
