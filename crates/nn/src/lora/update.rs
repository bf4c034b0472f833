//! What an adapter adds to one layer, over plain f32 rows as the decoder computes.

use crate::dtype::FloatDtype;
use crate::error::{NnError, Result};
use crate::linear::{FloatLinear, Linear, LinearClass, Projection, for_rows, project};
use candle_core::Tensor;
use llm_int8_kernels::{Isa, QuantizedActivations};

/// An update of low rank: `scale · (x · Aᵀ · Bᵀ)` with `A` `[rank, in]` and `B` `[out, rank]`. Both
/// are stored in f16, bf16 or f32 and multiplied in f32, as PEFT does, which converts them.
#[derive(Debug, Clone)]
pub struct LoraUpdate {
    a: Linear,
    b: Linear,
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
        if rank != columns {
            return Err(misfit(&a, &b));
        }

        Ok(Self {
            a: float(a, [rank, inputs], isa)?,
            b: float(b, [outputs, rank], isa)?,
            scale: scale as f32,
        })
    }

    /// Adds the update of the rows `x` `[rows, in]` to `out` `[rows, out]`. A row's result does not
    /// depend on the others.
    ///
    /// # Errors
    /// [`NnError::Kernel`] for slices of the wrong length.
    pub fn add_to(&self, x: &[f32], rows: usize, out: &mut [f32]) -> Result<()> {
        let low = apply(&self.a, x, rows)?;
        let update = apply(&self.b, &low, rows)?;

        let width = self.b.out_features();
        for_rows(out, width, |row, out| {
            let update = &update[row * width..][..width];
            out.iter_mut()
                .zip(update)
                .for_each(|(y, update)| *y += update * self.scale);
        });
        Ok(())
    }

    /// Bytes of both matrices.
    pub fn bytes(&self) -> usize {
        let bytes = |linear: &Linear| match linear {
            Linear::Float(layer) => {
                layer.in_features()
                    * layer.out_features()
                    * layer.weight().dtype().candle().size_in_bytes()
            }
            Linear::Int8(_) => 0,
        };
        bytes(&self.a) + bytes(&self.b)
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
    NnError::Input {
        layer: "LoraUpdate".into(),
        reason: format!(
            "A is {:?} and B {:?}; [rank, in] and [out, rank] are needed",
            a.dims(),
            b.dims()
        ),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use candle_core::{DType, Device};

    fn random(shape: [usize; 2], dtype: DType) -> Tensor {
        let tensor = Tensor::randn(0f32, 1., &shape[..], &Device::Cpu).unwrap();
        tensor.to_dtype(dtype).unwrap()
    }

    #[test]
    fn it_adds_the_product_in_f32_row_by_row() {
        let (rows, inputs, outputs, rank) = (7, 33, 21, 3);
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
