//! A module with one Linear, as people try quantisation on: `prepare`, calibrate, `convert`.

use super::{Linear, QConfig, QuantizedLinear};
use crate::print::Printed;
use crate::{
    AffineError, AnyObserver, Observer, QParams, QuantizedDtype, QuantizedTensor, Result, TensorRef,
};
use std::fmt;

/// A module holding `linear`, with or without `QuantStub` and `DeQuantStub` around it.
#[derive(Debug, Clone, PartialEq)]
pub struct Model {
    class: String,
    linear: Linear,
    stubs: bool,
}

impl Model {
    /// A module of this class name with the one child `linear`.
    pub fn new(class: &str, linear: Linear) -> Self {
        Self {
            class: class.into(),
            linear,
            stubs: false,
        }
    }

    /// With `quant` before and `dequant` after: floats in, floats out.
    pub fn with_stubs(mut self) -> Self {
        self.stubs = true;
        self
    }

    /// `torch.ao.quantization.prepare`: observers after the stub and after the Linear.
    ///
    /// # Errors
    /// Settings an observer does not take.
    pub fn prepare(self, qconfig: &QConfig) -> Result<PreparedModel> {
        let input = self.stubs.then(|| qconfig.activation.build()).transpose()?;
        let output = qconfig.activation.build()?;
        Ok(PreparedModel {
            model: self,
            qconfig: *qconfig,
            input,
            output,
        })
    }
}

impl fmt::Display for Model {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let linear = self.linear.to_string();
        write_tree(
            f,
            &self.class,
            self.stubs,
            ["QuantStub()", &linear, "DeQuantStub()"],
        )
    }
}

/// Writes the module and its children; without stubs the middle one alone.
fn write_tree(
    f: &mut fmt::Formatter<'_>,
    class: &str,
    stubs: bool,
    children: [&str; 3],
) -> fmt::Result {
    writeln!(f, "{class}(")?;
    for (name, text) in ["quant", "linear", "dequant"].iter().zip(children) {
        if stubs || *name == "linear" {
            writeln!(f, "  ({name}): {}", text.replace('\n', "\n  "))?;
        }
    }

    f.write_str(")")
}

/// A module with observers.
#[derive(Debug, Clone, PartialEq)]
pub struct PreparedModel {
    model: Model,
    qconfig: QConfig,
    input: Option<AnyObserver>,
    output: AnyObserver,
}

impl PreparedModel {
    /// Computes in f32 and shows the observers what comes in and what goes out.
    ///
    /// # Errors
    /// An input that does not fit.
    pub fn forward(&mut self, x: TensorRef<'_>) -> Result<Vec<f32>> {
        let y = self.model.linear.forward(x)?;
        if let Some(observer) = &mut self.input {
            observer.observe(x)?;
        }
        self.output.observe(TensorRef::new(
            &y,
            &output_shape(x, self.model.linear.out_features),
        )?)?;
        Ok(y)
    }

    /// `torch.ao.quantization.convert`.
    ///
    /// # Errors
    /// What an observer cannot choose parameters for.
    pub fn convert(self) -> Result<QuantizedModel> {
        let input = self
            .input
            .map(|observer| Ok::<_, AffineError>((observer.dtype(), observer.qparams()?)));
        let output = self.output.qparams()?;
        let linear =
            QuantizedLinear::from_float(&self.model.linear, &self.qconfig.weight, &output)?;
        Ok(QuantizedModel {
            class: self.model.class,
            input: input.transpose()?,
            linear,
        })
    }
}

fn output_shape(x: TensorRef<'_>, out_features: usize) -> Vec<usize> {
    let before = x.shape().split_last().map_or(&[][..], |(_, before)| before);
    before.iter().copied().chain([out_features]).collect()
}

impl fmt::Display for PreparedModel {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let stub = self.input.as_ref().map_or(String::new(), |observer| {
            format!("QuantStub(\n  (activation_post_process): {observer}\n)")
        });
        let arguments = self.model.linear.arguments();
        let output = &self.output;
        let linear = format!("Linear(\n  {arguments}\n  (activation_post_process): {output}\n)");
        write_tree(
            f,
            &self.model.class,
            self.model.stubs,
            [&stub, &linear, "DeQuantStub()"],
        )
    }
}

/// A converted module.
#[derive(Debug, Clone, PartialEq)]
pub struct QuantizedModel {
    class: String,
    /// What the stub `quant` became.
    input: Option<(QuantizedDtype, QParams)>,
    linear: QuantizedLinear,
}

impl QuantizedModel {
    /// The converted Linear.
    pub fn linear(&self) -> &QuantizedLinear {
        &self.linear
    }

    /// Scale and zero point of the input, where there is a stub.
    pub fn input_qparams(&self) -> Option<&QParams> {
        self.input.as_ref().map(|(_, qparams)| qparams)
    }

    /// Quantises, multiplies in integers and dequantises: `[..., in_features]` → `[...,
    /// out_features]`.
    ///
    /// # Errors
    /// [`AffineError::Unsupported`] without stubs: the Linear takes quantised input then, as
    /// torch's does.
    pub fn forward(&self, x: TensorRef<'_>) -> Result<Vec<f32>> {
        Ok(self.linear.forward(&self.quantize(x)?)?.dequantize())
    }

    /// What the stub `quant` became: the input as the Linear takes it.
    ///
    /// # Errors
    /// As [`forward`](Self::forward).
    pub fn quantize(&self, x: TensorRef<'_>) -> Result<QuantizedTensor> {
        let Some((dtype, qparams)) = &self.input else {
            let found = "floats, and the model has no QuantStub".into();
            return Err(AffineError::Unsupported {
                what: "the input",
                expected: "quantised",
                found,
            });
        };

        QuantizedTensor::quantize(x, *dtype, qparams)
    }
}

impl fmt::Display for QuantizedModel {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let quant = match &self.input {
            Some((dtype, QParams::PerTensor { scale, zero_point })) => {
                let scale = Printed::floats(&[*scale as f32], &[1]);
                let zero_point = Printed::integers(&[*zero_point], &[1], None);
                format!("Quantize(scale={scale}, zero_point={zero_point}, dtype={dtype})")
            }
            _ => String::new(),
        };

        let linear = self.linear.to_string();
        write_tree(
            f,
            &self.class,
            self.input.is_some(),
            [&quant, &linear, "DeQuantize()"],
        )
    }
}
