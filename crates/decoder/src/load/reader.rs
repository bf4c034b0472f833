//! Reads a decoder's tensors from a checkpoint, one at a time.

use super::tensors::Keys;
use crate::error::{DecoderError, Result};
use crate::execute::gpu::{Scratch, Target};
use crate::slot::Part;
use llm_int8_kernels::Isa;
use llm_int8_nn::checkpoint::{
    Checkpoint, CheckpointColumns, float_tensor, int8_weight, read_linear_state, rounded,
};
use llm_int8_nn::dtype::FloatDtype;
use llm_int8_nn::linear::{
    CodeMemory, FloatLinear, Int8Linear, Linear, LinearClass, OriginalWeights, OutlierWeights,
};
use llm_int8_nn::module::ModulePath;
use llm_int8_nn::parameter::FloatParameter;
use std::sync::Arc;

const NO_TARGET: DecoderError = DecoderError::Bug {
    what: "a place on the device",
};

/// Reads tensors into the parts of a decoder.
pub(super) struct Reader<'a> {
    pub(super) keys: Keys<'a>,
    pub(super) checkpoint: &'a Arc<Checkpoint>,
    /// The dtype that the model is loaded as. Weights are rounded to it before they are quantised,
    /// as in transformers.
    pub(super) dtype: FloatDtype,
    pub(super) isa: Isa,
    /// Memory for the codes of weights on the CPU.
    pub(super) memory: CodeMemory,
    /// Device memory for weights before they are quantised.
    pub(super) scratch: Scratch,
}

impl Reader<'_> {
    /// Reads all tensors of a part. A weight on a device goes to `target`; norms and biases, which
    /// are small, are read into the CPU's part and uploaded later.
    pub(super) fn fill(
        &mut self,
        path: &ModulePath,
        part: &mut Part,
        target: Option<&Target>,
    ) -> Result<()> {
        match part {
            Part::Embedding(embedding) if target.is_some() => {
                let dtype = (!embedding.is_int8()).then(|| embedding.weight().dtype());
                self.send(path, dtype, false, target)
            }
            Part::Linear(linear) if target.is_some() => {
                self.send_linear(path, linear, target)?;
                self.bias(path, linear)
            }
            Part::Embedding(embedding) if embedding.is_int8() => {
                let view = rounded(
                    self.checkpoint.tensor(&self.keys.key(path, "weight"))?,
                    self.dtype,
                )?;
                embedding.fill_int8(int8_weight(&view, false, self.isa, &mut self.memory)?);
                Ok(())
            }
            Part::Embedding(embedding) => self.float(path, "weight", embedding.weight_mut(), false),
            Part::Norm(norm) => {
                for (name, parameter) in norm.parameters_mut() {
                    self.float(path, name, parameter, false)?;
                }
                Ok(())
            }
            Part::HeadNorms(norms) => {
                for (name, parameter) in norms.parameters_mut() {
                    self.float(path, &name, parameter, false)?;
                }
                Ok(())
            }
            Part::Linear(Linear::Float(linear)) => self.float_linear(path, linear),
            Part::Linear(Linear::Int8(linear)) => self.int8_linear(path, linear),
        }
    }

    fn float(
        &self,
        path: &ModulePath,
        name: &str,
        into: &mut FloatParameter,
        transposed: bool,
    ) -> Result<()> {
        let view = self.checkpoint.tensor(&self.keys.key(path, name))?;
        Ok(into.fill(float_tensor(&view, into.dtype(), transposed)?)?)
    }

    /// Sends a weight to a device: as a float of `dtype`, or to be quantised there if that is none.
    fn send(
        &mut self,
        path: &ModulePath,
        dtype: Option<FloatDtype>,
        transposed: bool,
        target: Option<&Target>,
    ) -> Result<()> {
        let mut view = self.checkpoint.tensor(&self.keys.key(path, "weight"))?;
        if dtype.is_none() {
            view = rounded(view, self.dtype)?;
        }
        let dtype = dtype.unwrap_or(self.dtype);
        target
            .ok_or(NO_TARGET)?
            .fill(&view, dtype, transposed, &mut self.scratch)
    }

    fn send_linear(
        &mut self,
        path: &ModulePath,
        linear: &Linear,
        target: Option<&Target>,
    ) -> Result<()> {
        if linear.is_int8() && self.keys.is_quantised(path) {
            let shape = [linear.out_features(), linear.in_features()];
            let module = self.keys.module(path);
            // Not from `self.memory`: these codes are dropped as soon as they are on the device.
            let codes =
                read_linear_state(self.checkpoint, &module, shape, &mut CodeMemory::default())?;
            return target.ok_or(NO_TARGET)?.fill_codes(&codes);
        }

        let transposed = linear.class() == LinearClass::Conv1D;
        let dtype = match linear {
            Linear::Float(linear) => Some(linear.weight().dtype()),
            Linear::Int8(_) => None,
        };
        self.send(path, dtype, transposed, target)
    }

    fn float_linear(&self, path: &ModulePath, linear: &mut FloatLinear) -> Result<()> {
        let transposed = linear.class() == LinearClass::Conv1D;
        self.float(path, "weight", linear.weight_mut(), transposed)?;
        match linear.bias_mut() {
            Some(bias) => self.float(path, "bias", bias, false),
            None => Ok(()),
        }
    }

    pub(super) fn bias(&self, path: &ModulePath, linear: &mut Linear) -> Result<()> {
        let bias = match linear {
            Linear::Float(linear) => linear.bias_mut(),
            Linear::Int8(linear) => linear.bias_mut(),
        };
        match bias {
            Some(bias) => self.float(path, "bias", bias, false),
            None => Ok(()),
        }
    }

    fn int8_linear(&mut self, path: &ModulePath, linear: &mut Int8Linear) -> Result<()> {
        if self.keys.is_quantised(path) {
            let shape = [linear.out_features(), linear.in_features()];
            let module = self.keys.module(path);
            let weight = read_linear_state(self.checkpoint, &module, shape, &mut self.memory)?;
            linear.fill(weight, None)?;
        } else {
            let transposed = linear.class() == LinearClass::Conv1D;
            let key = self.keys.key(path, "weight");
            let view = rounded(self.checkpoint.tensor(&key)?, self.dtype)?;
            let weight = int8_weight(&view, transposed, self.isa, &mut self.memory)?;

            let original =
                (linear.config().outlier_weights != OutlierWeights::Dequantized).then(|| {
                    Arc::new(CheckpointColumns::new(
                        Arc::clone(self.checkpoint),
                        key,
                        transposed,
                    )) as Arc<dyn OriginalWeights>
                });
            linear.fill(weight, original)?;
        }

        match linear.bias_mut() {
            Some(bias) => self.float(path, "bias", bias, false),
            None => Ok(()),
        }
    }
}
