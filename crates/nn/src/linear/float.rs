//! A linear layer with float weights; f32 arithmetic on the CPU whatever the storage.

use super::op::FloatMatmul;
use crate::dtype::FloatDtype;
use crate::error::{NnError, Result};
use crate::module::{Module, ModulePath, Node, Parameter};
use crate::parameter::FloatParameter;
use candle_core::{DType, Tensor};
use llm_int8_kernels::Isa;

/// The PyTorch class a float layer had, which decides how it is printed and stored in checkpoints.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum LinearClass {
    /// `torch.nn.Linear`: weight `[out, in]`.
    #[default]
    Linear,
    /// Falcon's own class, a `torch.nn.Linear` under another name.
    FalconLinear,
    /// transformers' `Conv1D` (GPT-2): weight `[in, out]`, printed `Conv1D(nf=out, nx=in)`.
    Conv1D,
}

/// `y = x · Wᵀ + b` with W in f16, bf16 or f32. Held as `[out, in]`, whatever the class.
#[derive(Debug, Clone)]
pub struct FloatLinear {
    path: ModulePath,
    class: LinearClass,
    weight: FloatParameter,
    bias: Option<FloatParameter>,
    isa: Isa,
}

impl FloatLinear {
    /// A layer without values.
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

    /// A layer of those values: `weight` `[out, in]`, `bias` `[out]`.
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
    /// [`NnError::Input`] where shapes or dtypes do not fit.
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
    /// # Errors
    /// As there.
    pub fn forward(&self, x: &Tensor) -> Result<Tensor> {
        super::op::check_input(&self.label(), x, self.in_features())?;
        let weight = self.weight.tensor()?;
        let bias = self
            .bias
            .as_ref()
            .map(FloatParameter::f32_values)
            .transpose()?;
        let product = FloatMatmul {
            weight,
            bias,
            isa: self.isa,
        };
        let y = x
            .to_dtype(DType::F32)?
            .contiguous()?
            .apply_op1_no_bwd(&product)?;
        Ok(y.to_dtype(x.dtype())?)
    }

    /// Where the layer stands in its model; the empty path for one that stands alone.
    pub fn path(&self) -> &ModulePath {
        &self.path
    }

    /// Says where the layer stands in its model. Its errors name that path.
    pub fn set_path(&mut self, path: ModulePath) {
        self.path = path;
    }

    /// What errors call the layer: its path, or its class where it has none.
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

    /// The class printed.
    pub fn class(&self) -> LinearClass {
        self.class
    }

    /// The weight, `[out, in]`.
    pub fn weight(&self) -> &FloatParameter {
        &self.weight
    }

    /// The weight, to be filled.
    pub fn weight_mut(&mut self) -> &mut FloatParameter {
        &mut self.weight
    }

    /// The bias, `[out]`.
    pub fn bias(&self) -> Option<&FloatParameter> {
        self.bias.as_ref()
    }

    /// The bias, to be filled.
    pub fn bias_mut(&mut self) -> Option<&mut FloatParameter> {
        self.bias.as_mut()
    }

    /// The instruction set its product runs on.
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
        let (out_features, in_features) = (self.out_features(), self.in_features());
        let arguments = features(in_features, out_features, self.bias.is_some());
        let (node, shape) = match self.class {
            LinearClass::Linear => (Node::leaf("Linear", arguments), [out_features, in_features]),
            LinearClass::FalconLinear => (
                Node::leaf("FalconLinear", arguments),
                [out_features, in_features],
            ),
            LinearClass::Conv1D => (
                Node::leaf("Conv1D", format!("nf={out_features}, nx={in_features}")),
                [in_features, out_features],
            ),
        };
        let node = node.with_parameter(Parameter::new("weight", self.weight.dtype().into(), shape));
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
