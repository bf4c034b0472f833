//! A module with one linear layer, the usual toy model: `prepare`, calibrate, `convert`.

use super::{Linear, QConfig, QuantizedLinear};
use crate::print::Printed;
use crate::{
    AffineError, AnyObserver, Observer, QParams, QuantizedDtype, QuantizedTensor, Result, TensorRef,
};
use std::fmt;

/// A module with the child `linear`, and optionally a `QuantStub` and a `DeQuantStub` around it.
#[derive(Debug, Clone, PartialEq)]
pub struct Model {
    class: String,
    linear: Linear,
    stubs: bool,
}

impl Model {
    /// A module of this class name without stubs.
    pub fn new(class: &str, linear: Linear) -> Self {
        Self {
            class: class.into(),
            linear,
            stubs: false,
        }
    }

    /// Adds the stubs `quant` and `dequant`, so that the converted module takes and gives floats.
    pub fn with_stubs(mut self) -> Self {
        self.stubs = true;
        self
    }

    /// `torch.ao.quantization.prepare`: observers after the stub and after the Linear.
    ///
    /// # Errors
    /// Those of [`ObserverConfig::build`](crate::ObserverConfig::build).
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

/// Writes the module and its children `quant`, `linear` and `dequant`; without stubs `linear`
/// alone.
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
    /// Computes in f32, and has the observers observe the input (with stubs) and the output.
    ///
    /// # Errors
    /// [`AffineError::WrongDimension`]; [`AffineError::NotFinite`] if an output overflows.
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
    /// A range that an observer cannot choose parameters for; those of
    /// [`QuantizedLinear::from_float`].
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
    /// The dtype and parameters that the stub `quant` quantises with.
    input: Option<(QuantizedDtype, QParams)>,
    linear: QuantizedLinear,
}

impl QuantizedModel {
    /// The converted linear layer.
    pub fn linear(&self) -> &QuantizedLinear {
        &self.linear
    }

    /// Scale and zero point of the input, if there are stubs.
    pub fn input_qparams(&self) -> Option<&QParams> {
        self.input.as_ref().map(|(_, qparams)| qparams)
    }

    /// Quantises, multiplies in integers and dequantises: `[..., in_features]` → `[...,
    /// out_features]`.
    ///
    /// # Errors
    /// [`AffineError::Unsupported`] without stubs: the layer then takes quantised input only, as in
    /// torch; [`AffineError::WrongDimension`].
    pub fn forward(&self, x: TensorRef<'_>) -> Result<Vec<f32>> {
        Ok(self.linear.forward(&self.quantize(x)?)?.dequantize())
    }

    /// Quantises an input as the stub `quant` does.
    ///
    /// # Errors
    /// [`AffineError::Unsupported`] without stubs.
    pub fn quantize(&self, x: TensorRef<'_>) -> Result<QuantizedTensor> {
        let Some((dtype, qparams)) = &self.input else {
            return Err(AffineError::Unsupported {
                what: "the input",
                expected: "quantised",
                found: "floats, and the model has no QuantStub".into(),
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
