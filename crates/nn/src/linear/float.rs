//! A linear layer with float weights. Whatever their dtype, the CPU computes in f32.

use super::op::FloatMatmul;
use crate::dtype::FloatDtype;
use crate::error::{NnError, Result};
use crate::module::{Module, ModulePath, Node, Parameter};
use crate::parameter::FloatParameter;
use candle_core::{DType, Tensor};
use llm_int8_kernels::Isa;

/// The PyTorch class of a float layer: it decides how the layer is printed and how its weight lies
/// in checkpoints.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum LinearClass {
    /// `torch.nn.Linear`: weight `[out, in]`.
    #[default]
    Linear,
    /// Falcon's own class, a `torch.nn.Linear` by another name.
    FalconLinear,
    /// transformers' `Conv1D` (GPT-2): weight `[in, out]`, printed as `Conv1D(nf=out, nx=in)`.
    Conv1D,
}

/// `y = x · Wᵀ + b` with W in f16, bf16 or f32. In memory W is `[out, in]`, whatever the class.
#[derive(Debug, Clone)]
pub struct FloatLinear {
    path: ModulePath,
    class: LinearClass,
    weight: FloatParameter,
    bias: Option<FloatParameter>,
    isa: Isa,
}

impl FloatLinear {
    /// A layer without values, to be filled from a checkpoint. The weight's shape is `[out, in]`.
    pub fn declared(
        class: LinearClass,
        [out_features, in_features]: [usize; 2],
        bias: bool,
        dtype: FloatDtype,
        isa: Isa,
    ) -> Self {
        Self {
            path: ModulePath::root(),
            class,
            weight: FloatParameter::declared([out_features, in_features], dtype),
            bias: bias.then(|| FloatParameter::declared([out_features], dtype)),
            isa,
        }
    }

    /// A layer with `weight` `[out, in]` and `bias` `[out]`, both f16, bf16 or f32.
    ///
    /// ```
    /// use candle_core::{Device, Tensor};
    /// use llm_int8_nn::linear::FloatLinear;
    /// let weight = Tensor::new(&[[1f32, 2.], [0., 1.], [3., 0.]], &Device::Cpu)?;
    /// let linear = FloatLinear::new(weight, None)?;
    /// let y = linear.forward(&Tensor::new(&[[1f32, 1.]], &Device::Cpu)?)?;
    /// assert_eq!(y.to_vec2::<f32>()?, [[3., 1., 3.]]);
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    ///
    /// # Errors
    /// [`NnError::Input`] for a wrong shape or dtype.
    pub fn new(weight: Tensor, bias: Option<Tensor>) -> Result<Self> {
        let [out_features, _] = *weight.dims() else {
            return Err(input_error(format!(
                "the weight must be [out, in], it is {:?}",
                weight.dims()
            )));
        };
        if let Some(bias) = &bias
            && bias.dims() != [out_features]
        {
            return Err(input_error(format!(
                "the bias must be [{out_features}], it is {:?}",
                bias.dims()
            )));
        }
        Ok(Self {
            path: ModulePath::root(),
            class: LinearClass::Linear,
            weight: FloatParameter::loaded(weight)?,
            bias: bias.map(FloatParameter::loaded).transpose()?,
            isa: Isa::detect(),
        })
    }

    /// `x · Wᵀ + b`; see [`Linear::forward`](super::Linear::forward).
    ///
    /// Where gradients are tracked (of `x`, or of a weight or bias that is a variable), candle's
    /// own operations compute it, and gradients reach all three.
    ///
    /// # Errors
    /// As there.
    pub fn forward(&self, x: &Tensor) -> Result<Tensor> {
        super::op::check_cpu(&self.label(), x.device())?;
        super::op::check_input(&self.label(), x, self.in_features())?;
        if x.track_op() || self.tracks_gradients() {
            return self.tracked_forward(x);
        }

        let matmul = FloatMatmul {
            weight: self.weight.tensor()?,
            bias: self.bias_values()?,
            isa: self.isa,
        };

        let y = x
            .to_dtype(DType::F32)?
            .contiguous()?
            .apply_op1_no_bwd(&matmul)?;
        Ok(y.to_dtype(x.dtype())?)
    }

    /// Whether weight or bias is a variable, or was computed from one.
    fn tracks_gradients(&self) -> bool {
        let parameters = std::iter::once(&self.weight).chain(&self.bias);
        parameters
            .filter_map(|parameter| parameter.tensor().ok())
            .any(Tensor::track_op)
    }

    /// The layer by candle's operations, in f32.
    fn tracked_forward(&self, x: &Tensor) -> Result<Tensor> {
        let mut shape = x.dims().to_vec();
        if let Some(last) = shape.last_mut() {
            *last = self.out_features();
        }
        let rows = x.elem_count() / self.in_features().max(1);

        let weight = self.weight.tensor()?.to_dtype(DType::F32)?;
        let x32 = x
            .to_dtype(DType::F32)?
            .reshape((rows, self.in_features()))?;
        let mut y = x32.matmul(&weight.t()?)?;
        if let Some(bias) = &self.bias {
            y = y.broadcast_add(&bias.tensor()?.to_dtype(DType::F32)?)?;
        }

        Ok(y.reshape(shape)?.to_dtype(x.dtype())?)
    }

    /// The layer's path in its model; empty for a standalone layer.
    pub fn path(&self) -> &ModulePath {
        &self.path
    }

    /// Sets the layer's path in its model, which its errors name.
    pub fn set_path(&mut self, path: ModulePath) {
        self.path = path;
    }

    /// The layer's name in errors: its path, or its class if it has none.
    fn label(&self) -> String {
        self.path.or("Linear")
    }

    /// Length of an input row.
    pub fn in_features(&self) -> usize {
        self.weight.shape()[1]
    }

    /// Length of an output row.
    pub fn out_features(&self) -> usize {
        self.weight.shape()[0]
    }

    /// The PyTorch class that it is printed as.
    pub fn class(&self) -> LinearClass {
        self.class
    }

    /// The weight, `[out, in]`.
    pub fn weight(&self) -> &FloatParameter {
        &self.weight
    }

    /// The weight, for filling it.
    pub fn weight_mut(&mut self) -> &mut FloatParameter {
        &mut self.weight
    }

    /// The bias, `[out]`.
    pub fn bias(&self) -> Option<&FloatParameter> {
        self.bias.as_ref()
    }

    /// The bias, for filling it.
    pub fn bias_mut(&mut self) -> Option<&mut FloatParameter> {
        self.bias.as_mut()
    }

    /// The bias in f32.
    pub(super) fn bias_values(&self) -> Result<Option<&[f32]>> {
        self.bias
            .as_ref()
            .map(FloatParameter::f32_values)
            .transpose()
    }

    /// The instruction set its matmul uses.
    pub fn isa(&self) -> Isa {
        self.isa
    }
}

fn input_error(reason: String) -> NnError {
    NnError::Input {
        layer: "Linear".into(),
        reason,
    }
}

impl Module for FloatLinear {
    fn describe(&self) -> Node {
        let out_features = self.out_features();
        let in_features = self.in_features();
        let arguments = features(in_features, out_features, self.bias.is_some());
        let out_in = [out_features, in_features];
        let in_out = [in_features, out_features];
        let (class, arguments, shape) = match self.class {
            LinearClass::Linear => ("Linear", arguments, out_in),
            LinearClass::FalconLinear => ("FalconLinear", arguments, out_in),
            LinearClass::Conv1D => {
                let arguments = format!("nf={out_features}, nx={in_features}");
                ("Conv1D", arguments, in_out)
            }
        };

        let weight = Parameter::new("weight", self.weight.dtype().into(), shape);
        let node = Node::leaf(class, arguments).with_parameter(weight);

        self.bias.iter().fold(node, |node, bias| {
            node.with_parameter(bias.describe("bias"))
        })
    }
}

/// The arguments PyTorch prints for a linear layer.
pub(super) fn features(in_features: usize, out_features: usize, bias: bool) -> String {
    let bias = if bias { "True" } else { "False" };
    format!("in_features={in_features}, out_features={out_features}, bias={bias}")
}
