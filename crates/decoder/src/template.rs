//! A model's tree as a family writes it down: PyTorch's classes and names, and in their places the
//! parts that have parameters.

use crate::error::{DecoderError, Result};
use crate::slot::{BlockSlot, ModelSlot, Slot};
use llm_int8_nn::ParameterDtype;
use llm_int8_nn::config::ModelConfig;
use llm_int8_nn::layers::{Activation, NormKind, python_float};
use llm_int8_nn::linear::LinearClass;
use llm_int8_nn::module::ModulePath;

/// The module tree as a family writes it down.
#[derive(Debug, Clone, PartialEq)]
pub enum Template {
    /// A module of modules: class and named children.
    Container(String, Vec<(&'static str, Template)>),
    /// The blocks: `ModuleList`, every block of the same template.
    Blocks(Box<Template>),
    /// A part with parameters, outside of the blocks.
    Part(ModelSlot, PartSpec),
    /// A part of the block this template stands in.
    BlockPart(BlockSlot, PartSpec),
    /// A module without parameters: class and what is printed between its brackets.
    Plain(String, String),
    /// A module with buffers.
    WithBuffers(Box<Template>, Vec<BufferSpec>),
}

/// Children of a module, with their names.
pub(super) type Children = Vec<(&'static str, Template)>;

/// A part with parameters, before it has values.
#[derive(Debug, Clone, PartialEq)]
pub enum PartSpec {
    /// A table: class, rows, width, and the row that stands for padding, which PyTorch prints.
    Embedding {
        /// The class printed.
        class: String,
        /// Rows of the table.
        rows: usize,
        /// Length of a row.
        width: usize,
        /// The row of padding.
        padding: Option<usize>,
    },
    /// A norm: class, kind, width and epsilon.
    Norm {
        /// The class printed.
        class: String,
        /// Which.
        kind: NormKind,
        /// Length of a row.
        width: usize,
        /// Added to the variance.
        eps: f64,
    },
    /// A list of norms, one a head.
    HeadNorms {
        /// The norm of a head.
        norm: Box<PartSpec>,
        /// How many there are.
        heads: usize,
    },
    /// A product.
    Linear {
        /// How it is stored and printed.
        class: LinearClass,
        /// Length of an output row.
        out_features: usize,
        /// Length of an input row.
        in_features: usize,
        /// Whether there is a bias.
        bias: bool,
    },
}

impl PartSpec {
    /// Values of its largest parameter.
    pub fn elements(&self) -> usize {
        match *self {
            Self::Embedding { rows, width, .. } => rows.saturating_mul(width),
            Self::Norm { width, .. } => width,
            Self::HeadNorms { ref norm, .. } => norm.elements(),
            Self::Linear {
                out_features,
                in_features,
                ..
            } => out_features.saturating_mul(in_features),
        }
    }
}

/// A buffer transformers registers and counts, and we do not hold.
#[derive(Debug, Clone, PartialEq)]
pub struct BufferSpec {
    /// Its name inside its module.
    pub name: &'static str,
    /// Its shape.
    pub shape: Vec<usize>,
    /// Its dtype; none: that of the unquantised weights.
    pub dtype: Option<ParameterDtype>,
}

impl Template {
    /// Every part and its place, in PyTorch's order, the parts of a block once.
    pub fn parts(&self) -> Vec<(ModulePath, &PartSpec)> {
        let mut found = Vec::new();
        self.visit(&ModulePath::root(), &mut |path, _, part| {
            found.push((path.clone(), part))
        });
        found
    }

    /// Every slot and its part, the slots of a block once, as of block 0.
    pub fn slots(&self) -> impl Iterator<Item = (Slot, &PartSpec)> {
        let mut found = Vec::new();
        self.visit(&ModulePath::root(), &mut |_, slot, part| {
            found.push((slot, part))
        });
        found.into_iter()
    }

    /// The path of every part, in PyTorch's order, for so many blocks.
    pub fn paths(&self, layers: usize) -> Vec<(ModulePath, Slot)> {
        let mut found = Vec::new();
        self.paths_from(&ModulePath::root(), None, layers, &mut found);
        found
    }

    fn visit<'a>(
        &'a self,
        path: &ModulePath,
        visit: &mut impl FnMut(&ModulePath, Slot, &'a PartSpec),
    ) {
        match self {
            Self::Container(_, children) => {
                children
                    .iter()
                    .for_each(|(name, child)| child.visit(&path.join(name), visit));
            }
            Self::Blocks(block) => block.visit(&path.join("0"), visit),
            Self::Part(slot, part) => visit(path, Slot::Model(*slot), part),
            Self::BlockPart(slot, part) => visit(path, Slot::Block(0, *slot), part),
            Self::WithBuffers(inner, _) => inner.visit(path, visit),
            Self::Plain(..) => {}
        }
    }

    fn paths_from(
        &self,
        path: &ModulePath,
        layer: Option<usize>,
        layers: usize,
        found: &mut Vec<(ModulePath, Slot)>,
    ) {
        match self {
            Self::Container(_, children) => {
                for (name, child) in children {
                    child.paths_from(&path.join(name), layer, layers, found);
                }
            }
            Self::Blocks(block) => {
                for layer in 0..layers {
                    block.paths_from(&path.join(&layer.to_string()), Some(layer), layers, found);
                }
            }
            Self::Part(slot, _) => found.push((path.clone(), Slot::Model(*slot))),
            Self::BlockPart(slot, _) => {
                found.push((path.clone(), Slot::Block(layer.unwrap_or_default(), *slot)));
            }
            Self::WithBuffers(inner, _) => inner.paths_from(path, layer, layers, found),
            Self::Plain(..) => {}
        }
    }

    /// This module with buffers.
    pub fn with_buffers(self, buffers: Vec<BufferSpec>) -> Self {
        Self::WithBuffers(Box::new(self), buffers)
    }
}

// The words families are written in.

/// A module of modules.
pub(super) fn container(class: impl Into<String>, children: Children) -> Template {
    Template::Container(class.into(), children)
}

/// `ModuleList` of blocks.
pub(super) fn blocks(class: impl Into<String>, children: Children) -> Template {
    Template::Blocks(Box::new(container(class, children)))
}

/// The module of an activation function.
pub(super) fn act(activation: Activation) -> Template {
    Template::Plain(activation.class().into(), activation.arguments().into())
}

/// `Dropout`, with the probability `config.json` gives.
pub(super) fn dropout(config: &ModelConfig, key: &str) -> Result<Template> {
    let p = probability(config, key)?;
    // A whole number in config.json is printed as one.
    let p = if config.is_integer(key) {
        format!("{p:.0}")
    } else {
        python_float(p)
    };
    Ok(Template::Plain(
        "Dropout".into(),
        format!("p={p}, inplace=False"),
    ))
}

/// `Dropout`, with the probability `config.json` gives made a float.
pub(super) fn float_dropout(config: &ModelConfig, key: &str) -> Result<Template> {
    let p = python_float(probability(config, key)?);
    Ok(Template::Plain(
        "Dropout".into(),
        format!("p={p}, inplace=False"),
    ))
}

fn probability(config: &ModelConfig, key: &str) -> Result<f64> {
    let p = config.number(key)?;
    match (0.0..=1.0).contains(&p) {
        true => Ok(p),
        false => {
            let reason = format!("`{key}` is {p}; a probability from 0 to 1 was expected");
            Err(DecoderError::Config { reason })
        }
    }
}

/// A product inside a block.
pub(super) fn linear(
    slot: BlockSlot,
    [out_features, in_features]: [usize; 2],
    bias: bool,
) -> Template {
    Template::BlockPart(
        slot,
        PartSpec::Linear {
            class: LinearClass::Linear,
            out_features,
            in_features,
            bias,
        },
    )
}

/// A `Conv1D` inside a block: stored `[in, out]`.
pub(super) fn conv1d(slot: BlockSlot, [out_features, in_features]: [usize; 2]) -> Template {
    Template::BlockPart(
        slot,
        PartSpec::Linear {
            class: LinearClass::Conv1D,
            out_features,
            in_features,
            bias: true,
        },
    )
}

/// A norm inside a block.
pub(super) fn norm(slot: BlockSlot, norm: NormSpec) -> Template {
    Template::BlockPart(slot, norm.part())
}

/// A list of norms inside a block, one a head.
pub(super) fn head_norms(slot: BlockSlot, norm: NormSpec, heads: usize) -> Template {
    Template::BlockPart(
        slot,
        PartSpec::HeadNorms {
            norm: Box::new(norm.part()),
            heads,
        },
    )
}

/// A norm outside of the blocks.
pub(super) fn model_norm(slot: ModelSlot, norm: NormSpec) -> Template {
    Template::Part(slot, norm.part())
}

/// `LayerNorm`.
pub(super) fn layer_norm(width: usize, eps: f64) -> NormSpec {
    NormSpec {
        class: "LayerNorm".into(),
        kind: NormKind::Layer,
        width,
        eps,
    }
}

/// A norm a family writes down.
#[derive(Debug, Clone)]
pub(super) struct NormSpec {
    pub(super) class: String,
    pub(super) kind: NormKind,
    pub(super) width: usize,
    pub(super) eps: f64,
}

impl NormSpec {
    fn part(self) -> PartSpec {
        PartSpec::Norm {
            class: self.class,
            kind: self.kind,
            width: self.width,
            eps: self.eps,
        }
    }
}

/// `Embedding`.
pub(super) fn table(
    slot: ModelSlot,
    [rows, width]: [usize; 2],
    padding: Option<usize>,
) -> Template {
    Template::Part(
        slot,
        PartSpec::Embedding {
            class: "Embedding".into(),
            rows,
            width,
            padding,
        },
    )
}

/// A product outside of the blocks.
pub(super) fn model_linear(
    slot: ModelSlot,
    [out_features, in_features]: [usize; 2],
    bias: bool,
) -> Template {
    Template::Part(
        slot,
        PartSpec::Linear {
            class: LinearClass::Linear,
            out_features,
            in_features,
            bias,
        },
    )
}

/// A rotary embedding with its buffer of f32 frequencies, one a pair of values.
pub(super) fn rotary(class: impl Into<String>, dims: usize) -> Template {
    let frequencies = BufferSpec {
        name: "inv_freq",
        shape: vec![dims / 2],
        dtype: Some(ParameterDtype::F32),
    };
    Template::Plain(class.into(), String::new()).with_buffers(vec![frequencies])
}
