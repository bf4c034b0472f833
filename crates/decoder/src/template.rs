//! A model's module tree as its family describes it: PyTorch's classes and names, and the parts
//! that have parameters.

use crate::error::{DecoderError, Result};
use crate::slot::{BlockSlot, ModelSlot, Slot};
use llm_int8_nn::ParameterDtype;
use llm_int8_nn::config::ModelConfig;
use llm_int8_nn::layers::{Activation, NormKind, python_float};
use llm_int8_nn::linear::LinearClass;
use llm_int8_nn::module::ModulePath;

/// A module of the tree.
#[derive(Debug, Clone, PartialEq)]
pub enum Template {
    /// A module with children: its class, and its children with their names.
    Container(String, Vec<(&'static str, Template)>),
    /// The `ModuleList` of blocks, which all have this template.
    Blocks(Box<Template>),
    /// A part of the embeddings or the head.
    Part(ModelSlot, PartSpec),
    /// A part of a block; only inside of [`Template::Blocks`].
    BlockPart(BlockSlot, PartSpec),
    /// A module without parameters: its class, and what PyTorch prints between the parentheses.
    Plain(String, String),
    /// A module with buffers.
    WithBuffers(Box<Template>, Vec<BufferSpec>),
}

/// The children of a module, with their names.
pub(super) type Children = Vec<(&'static str, Template)>;

/// The shape of a part with parameters.
#[derive(Debug, Clone, PartialEq)]
pub enum PartSpec {
    /// A token or position table `[rows, width]`.
    Embedding {
        /// PyTorch's class.
        class: String,
        /// Rows of the table.
        rows: usize,
        /// Length of a row.
        width: usize,
        /// `padding_idx`, which PyTorch prints.
        padding: Option<usize>,
    },
    /// A norm.
    Norm {
        /// PyTorch's class.
        class: String,
        /// What it computes.
        kind: NormKind,
        /// Values that are normalised together.
        width: usize,
        /// Added to the variance.
        eps: f64,
    },
    /// A `ModuleList` of norms, one for each head.
    HeadNorms {
        /// The norm of one head.
        norm: Box<PartSpec>,
        /// Number of heads.
        heads: usize,
    },
    /// A linear layer.
    Linear {
        /// PyTorch's class, which says how the weight is stored.
        class: LinearClass,
        /// Number of outputs.
        out_features: usize,
        /// Number of inputs.
        in_features: usize,
        /// Whether it has a bias.
        bias: bool,
    },
}

impl PartSpec {
    /// Number of values of its largest parameter.
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

/// A buffer that transformers registers and counts. This crate computes its values where it needs
/// them.
#[derive(Debug, Clone, PartialEq)]
pub struct BufferSpec {
    /// Its name inside its module.
    pub name: &'static str,
    /// Its shape.
    pub shape: Vec<usize>,
    /// Its dtype; none: that of the float parameters.
    pub dtype: Option<ParameterDtype>,
}

impl Template {
    /// Every part and its path, in PyTorch's order. The parts of blocks occur once, as of block 0.
    pub fn parts(&self) -> Vec<(ModulePath, &PartSpec)> {
        let mut found = Vec::new();
        self.visit(&ModulePath::root(), &mut |path, _, part| {
            found.push((path.clone(), part))
        });
        found
    }

    /// Every slot and its part. The slots of blocks occur once, as of block 0.
    pub fn slots(&self) -> impl Iterator<Item = (Slot, &PartSpec)> {
        let mut found = Vec::new();
        self.visit(&ModulePath::root(), &mut |_, slot, part| {
            found.push((slot, part))
        });
        found.into_iter()
    }

    /// The path of every part of a model with `layers` blocks, in PyTorch's order.
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

    /// Adds buffers to a module.
    pub fn with_buffers(self, buffers: Vec<BufferSpec>) -> Self {
        Self::WithBuffers(Box::new(self), buffers)
    }
}

// The functions below are what the families are written in.

/// A module with children.
pub(super) fn container(class: impl Into<String>, children: Children) -> Template {
    Template::Container(class.into(), children)
}

/// The `ModuleList` of blocks of this class.
pub(super) fn blocks(class: impl Into<String>, children: Children) -> Template {
    Template::Blocks(Box::new(container(class, children)))
}

/// The module of an activation function.
pub(super) fn act(activation: Activation) -> Template {
    Template::Plain(activation.class().into(), activation.arguments().into())
}

/// `Dropout` with the probability in `config.json`.
pub(super) fn dropout(config: &ModelConfig, key: &str) -> Result<Template> {
    let p = probability(config, key)?;
    // PyTorch prints an integer of config.json as an integer.
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

/// `Dropout` with the probability in `config.json`, printed as a float even if it is an integer
/// there: the module converts it.
pub(super) fn float_dropout(config: &ModelConfig, key: &str) -> Result<Template> {
    let p = python_float(probability(config, key)?);
    Ok(Template::Plain(
        "Dropout".into(),
        format!("p={p}, inplace=False"),
    ))
}

fn probability(config: &ModelConfig, key: &str) -> Result<f64> {
    let p = config.number(key)?;
    if (0.0..=1.0).contains(&p) {
        return Ok(p);
    }
    let reason = format!("`{key}` is {p}; a probability from 0 to 1 was expected");
    Err(DecoderError::Config { reason })
}

/// A `Linear` inside a block, with the shape of its weight in PyTorch.
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

/// A `Conv1D` inside a block, whose weight is stored transposed: `[in_features, out_features]`.
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

/// A `ModuleList` of norms inside a block, one for each head.
pub(super) fn head_norms(slot: BlockSlot, norm: NormSpec, heads: usize) -> Template {
    Template::BlockPart(
        slot,
        PartSpec::HeadNorms {
            norm: Box::new(norm.part()),
            heads,
        },
    )
}

/// A norm of the embeddings or the head.
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

/// A norm without its slot.
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

/// A table of the class `Embedding`.
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

/// A `Linear` outside of the blocks, with the shape of its weight in PyTorch.
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

/// A rotary embedding: a module with a buffer of f32 frequencies, one for each rotated pair.
pub(super) fn rotary(class: impl Into<String>, dims: usize) -> Template {
    let frequencies = BufferSpec {
        name: "inv_freq",
        shape: vec![dims / 2],
        dtype: Some(ParameterDtype::F32),
    };
    Template::Plain(class.into(), String::new()).with_buffers(vec![frequencies])
}
