//! What an adapter adds to one layer, over plain f32 rows as the decoder computes.

use crate::dtype::FloatDtype;
use crate::error::{NnError, Result};
use crate::linear::{FloatLinear, Linear, LinearClass, Projection, for_rows, project};
use candle_core::{DType, Tensor};
use llm_int8_kernels::{Isa, QuantizedActivations};
use std::sync::Arc;

/// Outputs whose sums are kept at a time.
const CHUNK: usize = 64;

/// An update of low rank: `scale · (x · Aᵀ · Bᵀ)` with `A` `[rank, in]` and `B` `[out, rank]`,
/// multiplied in f32, as PEFT does, which converts both to it.
#[derive(Debug, Clone)]
pub struct LoraUpdate {
    /// `A`, as it is stored.
    a: Linear,
    /// `Bᵀ` `[rank, out]`: ranks are small, and a row of `B` would be shorter than a register.
    b: Arc<[f32]>,
    outputs: usize,
    scale: f32,
}

impl LoraUpdate {
    /// The update of `a` `[rank, in]` and `b` `[out, rank]`, f16, bf16 or f32.
    ///
    /// ```
    /// use candle_core::{Device, Tensor};
    /// use llm_int8_nn::{Isa, lora::LoraUpdate};
    /// let a = Tensor::new(&[[1f32, 2.]], &Device::Cpu)?;
    /// let b = Tensor::new(&[[1f32], [10.], [0.]], &Device::Cpu)?;
    /// let update = LoraUpdate::new(a, b, 0.5, Isa::detect())?;
    /// let mut y = [1f32, 1., 1.]; // one row
    /// update.add_to(&[2., 1.], 1, &mut y)?;
    /// assert_eq!(y, [3., 21., 1.]);
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    ///
    /// # Errors
    /// [`NnError::Input`] where the shapes do not fit together, or for another dtype.
    pub fn new(a: Tensor, b: Tensor, scale: f64, isa: Isa) -> Result<Self> {
        let (&[rank, inputs], &[outputs, columns]) = (a.dims(), b.dims()) else {
            return Err(misfit(&a, &b));
        };
        if rank != columns || [rank, inputs, outputs].contains(&0) {
            return Err(misfit(&a, &b));
        }

        let transposed = b.to_dtype(DType::F32)?.t()?.flatten_all()?;
        Ok(Self {
            a: float(a, [rank, inputs], isa)?,
            b: transposed.to_vec1()?.into(),
            outputs,
            scale: scale as f32,
        })
    }

    /// Adds the update of the rows `x` `[rows, in]` to `out` `[rows, out]`. A row's result does not
    /// depend on the others.
    ///
    /// # Errors
    /// [`NnError::Kernel`] for an input of the wrong length, [`NnError::Input`] for such an output.
    pub fn add_to(&self, x: &[f32], rows: usize, out: &mut [f32]) -> Result<()> {
        if out.len() != rows * self.outputs {
            let reason = format!(
                "the output has {} values; {rows} rows of {} are needed",
                out.len(),
                self.outputs
            );
            return Err(input_error(reason));
        }

        let rank = self.a.out_features();
        let low = apply(&self.a, x, rows)?;
        for_rows(out, self.outputs, |row, out| {
            let low = &low[row * rank..][..rank];
            let firsts = (0..).step_by(CHUNK);
            for (first, out) in firsts.zip(out.chunks_mut(CHUNK)) {
                self.add_chunk(low, first, out);
            }
        });
        Ok(())
    }

    /// Adds the outputs from `first` on of one row, `low` being `x · Aᵀ`.
    fn add_chunk(&self, low: &[f32], first: usize, out: &mut [f32]) {
        let mut sums = [0f32; CHUNK];
        for (low, row) in low.iter().zip(self.b.chunks_exact(self.outputs)) {
            let row = &row[first..][..out.len()];
            sums.iter_mut()
                .zip(row)
                .for_each(|(sum, weight)| *sum += low * weight);
        }
        out.iter_mut()
            .zip(sums)
            .for_each(|(y, sum)| *y += sum * self.scale);
    }

    /// Bytes of both matrices in memory.
    pub fn bytes(&self) -> usize {
        let a = match &self.a {
            Linear::Float(layer) => layer.weight().dtype().candle().size_in_bytes(),
            Linear::Int8(_) => 1,
        };
        a * self.a.in_features() * self.a.out_features() + size_of_val(&*self.b)
    }
}

/// A layer without bias of a weight of this shape.
fn float(weight: Tensor, shape: [usize; 2], isa: Isa) -> Result<Linear> {
    let class = LinearClass::Linear;
    let mut layer = FloatLinear::declared(class, shape, false, FloatDtype::F32, isa);
    layer.weight_mut().fill(weight)?;
    Ok(Linear::Float(layer))
}

fn apply(linear: &Linear, x: &[f32], rows: usize) -> Result<Vec<f32>> {
    let mut out = vec![0f32; rows * linear.out_features()];
    let projection = Projection {
        linear,
        activation: None,
        out: &mut out,
    };
    // A float layer does not use the scratch memory for codes.
    let mut unused = QuantizedActivations::default();
    project(x, rows, vec![projection], &mut unused)?;
    Ok(out)
}

fn misfit(a: &Tensor, b: &Tensor) -> NnError {
    input_error(format!(
        "A is {:?} and B {:?}; [rank, in] and [out, rank] are needed",
        a.dims(),
        b.dims()
    ))
}

fn input_error(reason: String) -> NnError {
    NnError::Input {
        layer: "LoraUpdate".into(),
        reason,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use candle_core::Device;

    fn random(shape: [usize; 2], dtype: DType) -> Tensor {
        let tensor = Tensor::randn(0f32, 1., &shape[..], &Device::Cpu).unwrap();
        tensor.to_dtype(dtype).unwrap()
    }

    #[test]
    fn it_adds_the_product_in_f32_row_by_row() {
        let (rows, inputs, outputs, rank) = (7, 33, 150, 3);
        for dtype in [DType::F16, DType::BF16, DType::F32] {
            let (a, b) = (
                random([rank, inputs], dtype),
                random([outputs, rank], dtype),
            );
            let x = random([rows, inputs], DType::F32);
            let product = |x: &Tensor, w: &Tensor| {
                x.matmul(&w.to_dtype(DType::F32).unwrap().t().unwrap())
                    .unwrap()
            };
            let expected = (product(&product(&x, &a), &b) * 0.25).unwrap();
            let expected = expected.flatten_all().unwrap().to_vec1::<f32>().unwrap();

            let x = x.flatten_all().unwrap().to_vec1::<f32>().unwrap();
            let update = LoraUpdate::new(a, b, 0.25, Isa::detect()).unwrap();
            let mut together = vec![1f32; rows * outputs];
            update.add_to(&x, rows, &mut together).unwrap();
            let mut alone = vec![1f32; rows * outputs];
            for (x, y) in x.chunks(inputs).zip(alone.chunks_mut(outputs)) {
                update.add_to(x, 1, y).unwrap();
            }

            assert_eq!(together, alone);
            assert!(update.add_to(&x, rows, &mut alone[1..]).is_err());
            for (found, expected) in together.iter().zip(&expected) {
                assert!((found - 1.0 - expected).abs() < 1e-4, "{found} {expected}");
            }
        }
    }

    #[test]
    fn matrices_that_do_not_fit_are_refused() {
        let (a, b) = (random([2, 4], DType::F32), random([5, 3], DType::F32));
        let error = LoraUpdate::new(a, b, 1., Isa::detect()).unwrap_err();
        assert!(error.to_string().contains("A is [2, 4] and B [5, 3]"));
    }
}
