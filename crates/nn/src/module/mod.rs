//! A model's module tree as data.
//!
//! [`Module::describe`] returns a model as a tree of [`Node`]s. PyTorch's `repr`
//! ([`print`](mod@print)), the parameter list and the memory footprint ([`inspect`]) are functions
//! over that tree. So they work the same for a loaded model and for one that is only described by
//! `config.json` and safetensors headers.
//!
//! ```
//! use llm_int8_nn::module::{Node, Parameter};
//! use llm_int8_nn::ParameterDtype;
//!
//! let norm = Node::leaf("LayerNorm", "(8,), eps=1e-05, elementwise_affine=True")
//!     .with_parameter(Parameter::new("weight", ParameterDtype::F16, [8]));
//! let model = Node::container("Toy").with_child("ln", norm);
//! assert_eq!(
//!     model.to_string(),
//!     "Toy(\n  (ln): LayerNorm((8,), eps=1e-05, elementwise_affine=True)\n)"
//! );
//! assert_eq!(model.named_parameters()[0].to_string(), "ln.weight torch.float16 (8,)");
//! ```

pub mod inspect;
pub mod path;
pub mod print;
pub mod skip_list;

pub use inspect::{Footprint, NamedParameter};
pub use path::ModulePath;
pub use skip_list::SkipList;

use crate::dtype::ParameterDtype;

/// A layer or model that can be described as a tree.
pub trait Module {
    /// This module and everything below it.
    fn describe(&self) -> Node;
}

/// A parameter or buffer of a module, without its values.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Parameter {
    /// The name inside its module (`weight`, `bias`, …).
    pub name: String,
    /// Its dtype.
    pub dtype: ParameterDtype,
    /// Its dimensions.
    pub shape: Vec<usize>,
}

impl Parameter {
    /// A parameter with this name, dtype and shape.
    pub fn new(
        name: impl Into<String>,
        dtype: ParameterDtype,
        shape: impl Into<Vec<usize>>,
    ) -> Self {
        Self {
            name: name.into(),
            dtype,
            shape: shape.into(),
        }
    }

    /// Number of elements.
    pub fn elements(&self) -> usize {
        self.shape.iter().product()
    }

    /// Size of the elements in bytes.
    pub fn bytes(&self) -> u64 {
        self.elements() as u64 * self.dtype.size_in_bytes() as u64
    }
}

/// One module: what PyTorch would print for it, and what it holds.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Node {
    /// The class PyTorch prints (`GPT2Block`, `Linear8bitLt`, …).
    pub class: String,
    /// PyTorch's `extra_repr` of a leaf: `in_features=4, out_features=8, bias=True`.
    pub arguments: String,
    /// Whether runs of equal children are printed once with their count, as in PyTorch's
    /// `ModuleList`.
    pub collapses: bool,
    /// The parameters of this module, without its children's.
    pub parameters: Vec<Parameter>,
    /// Buffers that transformers counts in its footprint. They are not allocated here.
    pub buffers: Vec<Parameter>,
    /// Bytes that transformers does not count: the `absmax` of int8 rows.
    pub uncounted_bytes: u64,
    /// Child modules by name, in PyTorch's order.
    pub children: Vec<(String, Node)>,
}

impl Node {
    /// A module without children.
    pub fn leaf(class: impl Into<String>, arguments: impl Into<String>) -> Self {
        Self {
            class: class.into(),
            arguments: arguments.into(),
            ..Self::default()
        }
    }

    /// A module to which children will be added.
    pub fn container(class: impl Into<String>) -> Self {
        Self {
            class: class.into(),
            ..Self::default()
        }
    }

    /// PyTorch's `ModuleList`: children named `0`, `1`, …, with runs of equal ones printed once.
    pub fn list(items: impl IntoIterator<Item = Node>) -> Self {
        let children = items
            .into_iter()
            .enumerate()
            .map(|(i, node)| (i.to_string(), node))
            .collect();
        Self {
            class: "ModuleList".into(),
            collapses: true,
            children,
            ..Self::default()
        }
    }

    /// Adds a child.
    pub fn with_child(mut self, name: impl Into<String>, child: Node) -> Self {
        self.children.push((name.into(), child));
        self
    }

    /// Adds a parameter.
    pub fn with_parameter(mut self, parameter: Parameter) -> Self {
        self.parameters.push(parameter);
        self
    }

    /// Adds a buffer.
    pub fn with_buffer(mut self, buffer: Parameter) -> Self {
        self.buffers.push(buffer);
        self
    }
}
