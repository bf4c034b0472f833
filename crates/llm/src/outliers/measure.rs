//! The hook that sees inputs and computes each 8-bit layer twice.

use super::count::Counter;
use super::{InputReport, Int8LayerReport, Ladders, LayerReport, RecurringFeatures};
use candle_core::{Device, Tensor};
use llm_int8_decoder::{Decoder, LinearHook, LinearInput, Result};
use llm_int8_nn::checkpoint::Checkpoint;
use llm_int8_nn::linear::{
    FloatLinear, Int8Linear, Linear, OutlierRule, Projection, QuantizedActivations, project,
};
use llm_int8_nn::module::{Module, ModulePath, Node};
use std::collections::HashMap;

/// An input of 8-bit layers.
struct Input {
    layers: Vec<ModulePath>,
    reads_stream: bool,
    counter: Counter,
    /// Values that the kernels multiplied in float.
    float_values: u64,
}

/// A linear layer and its sums of squares.
struct Layer {
    /// As [`LayerReport`], but for its bytes and its errors.
    report: LayerReport,
    /// Its input among [`Measure::inputs`]; none for a float layer.
    input: Option<usize>,
    weights: Option<Squares>,
    outputs: Squares,
}

/// Sums of squares of exact values and of the differences from them.
#[derive(Debug, Clone, Copy, Default)]
struct Squares {
    exact: f64,
    difference: f64,
}

impl Squares {
    fn add(&mut self, exact: &[f32], found: &[f32]) {
        for (exact, found) in exact.iter().zip(found) {
            let difference = f64::from(*found) - f64::from(*exact);
            self.exact += f64::from(*exact) * f64::from(*exact);
            self.difference += difference * difference;
        }
    }

    /// The relative root mean square of the differences.
    fn error(self) -> Option<f64> {
        (self.exact != 0.0).then(|| (self.difference / self.exact).sqrt())
    }
}

/// Sees every window.
pub(super) struct Measure<'a> {
    decoder: &'a Decoder,
    ladders: Ladders,
    rule: OutlierRule,
    checkpoint: Option<&'a Checkpoint>,
    /// The text's token at which the present window begins.
    position: usize,
    inputs: Vec<Input>,
    layers: Vec<Layer>,
    index: HashMap<ModulePath, usize>,
    quantized: QuantizedActivations,
}

impl<'a> Measure<'a> {
    pub(super) fn new(
        decoder: &'a Decoder,
        ladders: Ladders,
        rule: OutlierRule,
        checkpoint: Option<&'a Checkpoint>,
    ) -> Self {
        Self {
            decoder,
            ladders,
            rule,
            checkpoint,
            position: 0,
            inputs: Vec::new(),
            layers: Vec::new(),
            index: HashMap::new(),
            quantized: QuantizedActivations::default(),
        }
    }

    pub(super) fn begin_window(&mut self, position: usize) {
        self.position = position;
    }

    /// Adds an input and its layers when they are seen for the first time.
    fn add(&mut self, input: &LinearInput<'_>) {
        let int8 = input.layers.iter().filter(|layer| layer.is_int8());
        let paths: Vec<ModulePath> = int8.map(|layer| layer.path().clone()).collect();
        let number = (!paths.is_empty()).then_some(self.inputs.len());

        for layer in &input.layers {
            self.index.insert(layer.path().clone(), self.layers.len());
            self.layers.push(Layer {
                report: described(layer),
                input: number.filter(|_| layer.is_int8()),
                weights: None,
                outputs: Squares::default(),
            });
        }
        if let (Some(_), Some(first)) = (number, input.layers.first()) {
            let features = first.in_features();
            self.inputs.push(Input {
                layers: paths,
                reads_stream: input.reads_stream,
                counter: Counter::new(first.isa(), &self.ladders, self.rule, features),
                float_values: 0,
            });
        }
    }

    /// The layer in float, and whether its weights are the checkpoint's.
    fn in_float(&self, linear: &Linear, layer: &Int8Linear) -> Result<(FloatLinear, bool)> {
        if let Some(checkpoint) = self.checkpoint
            && let Some(float) = self.decoder.float_linear(linear, checkpoint)?
        {
            return Ok((float, true));
        }

        let shape = layer.weight()?.shape();
        let values = layer.weight()?.dequantize(layer.isa())?;
        let weight = Tensor::from_vec(values, (shape[0], shape[1]), &Device::Cpu)?;
        let bias = layer
            .bias()
            .map(|bias| bias.tensor().cloned())
            .transpose()?;
        Ok((FloatLinear::new(weight, bias)?, false))
    }

    /// The report's inputs, layers and recurring features. `tree` is the model's.
    pub(super) fn finish(
        self,
        tree: &Node,
    ) -> (Vec<InputReport>, Vec<LayerReport>, RecurringFeatures) {
        let stream: Vec<&Counter> = (self.inputs.iter())
            .filter(|input| input.reads_stream)
            .map(|input| &input.counter)
            .collect();
        let recurring = RecurringFeatures::of(&stream);

        let bytes: HashMap<ModulePath, u64> = tree
            .named_modules()
            .into_iter()
            .map(|(path, node)| (path, node.footprint().actual()))
            .collect();
        let layers = self.layers.into_iter().map(|layer| {
            let int8 = layer.input.map(|input| Int8LayerReport {
                input,
                weight_error: layer.weights.and_then(Squares::error),
                output_error: layer.outputs.error(),
            });
            LayerReport {
                bytes: bytes.get(&layer.report.path).copied().unwrap_or(0),
                int8,
                ..layer.report
            }
        });
        let layers = layers.collect();
        (
            self.inputs.into_iter().map(Input::report).collect(),
            layers,
            recurring,
        )
    }
}

impl Input {
    fn report(self) -> InputReport {
        let counter = self.counter;
        let features = counter.maxima.len();
        let values = (features * counter.rows).max(1) as f64;
        InputReport {
            layers: self.layers,
            features,
            rows: counter.rows,
            reads_stream: self.reads_stream,
            outlier_values: counter.outlier_values(),
            outlier_columns: counter.outlier_columns(),
            float_share: self.float_values as f64 / values,
            largest: counter.largest,
            absolute: counter.absolute(),
            rms: counter.rms(),
            maxima: counter.maxima,
        }
    }
}

/// What a layer's description says of it.
fn described(layer: &Linear) -> LayerReport {
    let node = layer.describe();
    let weight = node.parameters.first().map(|parameter| parameter.dtype);
    LayerReport {
        path: layer.path().clone(),
        class: node.class,
        dtype: weight.unwrap_or(llm_int8_nn::ParameterDtype::F32),
        in_features: layer.in_features(),
        out_features: layer.out_features(),
        bytes: 0,
        int8: None,
    }
}

/// The squares of a float weight `[out, in]` and of what 8 bit makes of it.
fn weight_squares(float: &FloatLinear, layer: &Int8Linear) -> Result<Squares> {
    let mut squares = Squares::default();
    let mut row = vec![0f32; layer.in_features()];
    let weight = float.weight().tensor()?;
    for out in 0..layer.out_features() {
        layer.weight()?.row(layer.isa(), out, &mut row)?;
        squares.add(&weight.get(out)?.to_vec1::<f32>()?, &row);
    }
    Ok(squares)
}

impl LinearHook for Measure<'_> {
    fn input(&mut self, input: &LinearInput<'_>) -> Result<()> {
        let Some(first) = input.layers.first() else {
            return Ok(());
        };
        if !self.index.contains_key(first.path()) {
            self.add(input);
        }

        let numbers = input.layers.iter().filter_map(|layer| {
            let index = *self.index.get(layer.path())?;
            self.layers[index].input
        });
        if let Some(number) = { numbers }.next() {
            self.inputs[number]
                .counter
                .window(input.values, self.position);
        }
        Ok(())
    }

    fn compute(
        &mut self,
        linear: &Linear,
        values: &[f32],
        rows: usize,
        out: &mut [f32],
    ) -> Result<bool> {
        let (Linear::Int8(layer), Some(&index)) = (linear, self.index.get(linear.path())) else {
            return Ok(false);
        };
        let int8 = Projection {
            linear,
            activation: None,
            out,
        };
        project(values, rows, vec![int8], &mut self.quantized)?;
        if let Some(number) = self.layers[index].input {
            let input = &mut self.inputs[number];
            // Layers that share an input have the same outliers.
            if input.layers.first() == Some(linear.path()) {
                input.float_values += self.quantized.outliers().count() as u64;
            }
        }

        let (float, is_original) = self.in_float(linear, layer)?;
        if is_original && self.layers[index].weights.is_none() {
            self.layers[index].weights = Some(weight_squares(&float, layer)?);
        }
        let mut exact = vec![0f32; out.len()];
        let float = Linear::Float(float);
        let projection = Projection {
            linear: &float,
            activation: None,
            out: &mut exact,
        };
        project(values, rows, vec![projection], &mut self.quantized)?;
        self.layers[index].outputs.add(&exact, out);
        Ok(true)
    }
}
