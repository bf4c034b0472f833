//! Parameters, modules and memory footprint of a tree.

use super::{ModulePath, Node, Parameter};
use crate::dtype::ParameterDtype;
use std::fmt;

/// A parameter with its full name, as PyTorch's `named_parameters()` lists it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NamedParameter {
    /// The full name: `transformer.h.0.attn.c_attn.weight`.
    pub name: String,
    /// Its dtype.
    pub dtype: ParameterDtype,
    /// Its dimensions.
    pub shape: Vec<usize>,
}

impl fmt::Display for NamedParameter {
    /// `name dtype shape`, with the shape as a Python tuple.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {} ", self.name, self.dtype)?;
        match self.shape.as_slice() {
            [one] => write!(f, "({one},)"),
            dims => {
                let dims: Vec<String> = dims.iter().map(usize::to_string).collect();
                write!(f, "({})", dims.join(", "))
            }
        }
    }
}

/// Memory of a model in bytes: as transformers counts it, and what is really held.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Footprint {
    /// Parameters.
    pub parameters: u64,
    /// Buffers that transformers counts but that are not allocated here (GPT-2's causal masks).
    pub buffers: u64,
    /// The `absmax` of int8 rows, which transformers does not count.
    pub absmax: u64,
}

impl Footprint {
    /// What `model.get_memory_footprint()` returns: parameters and buffers.
    pub fn transformers(&self) -> u64 {
        self.parameters + self.buffers
    }

    /// What this library holds: parameters and `absmax`, without the buffers.
    pub fn actual(&self) -> u64 {
        self.parameters + self.absmax
    }
}

impl Node {
    /// Every parameter with its full name, in PyTorch's order.
    pub fn named_parameters(&self) -> Vec<NamedParameter> {
        let mut found = Vec::new();
        self.visit(&mut |path, node| {
            found.extend(node.parameters.iter().map(|parameter| NamedParameter {
                name: path.join(&parameter.name).to_string(),
                dtype: parameter.dtype,
                shape: parameter.shape.clone(),
            }));
        });

        found
    }

    /// Every module with its path, in PyTorch's order. The first is the model itself, with an empty
    /// path.
    pub fn named_modules(&self) -> Vec<(ModulePath, &Node)> {
        let mut found = Vec::new();
        self.visit(&mut |path, node| found.push((path.clone(), node)));
        found
    }

    /// Calls `visit` for this module and all its descendants, parents first.
    pub fn visit<'a>(&'a self, visit: &mut impl FnMut(&ModulePath, &'a Node)) {
        self.visit_from(&ModulePath::root(), visit);
    }

    fn visit_from<'a>(&'a self, path: &ModulePath, visit: &mut impl FnMut(&ModulePath, &'a Node)) {
        visit(path, self);
        for (name, child) in &self.children {
            child.visit_from(&path.join(name), visit);
        }
    }

    /// Memory of the whole tree.
    pub fn footprint(&self) -> Footprint {
        let bytes = |tensors: &[Parameter]| tensors.iter().map(Parameter::bytes).sum::<u64>();
        let mut total = Footprint::default();
        self.visit(&mut |_, node| {
            total.parameters += bytes(&node.parameters);
            total.buffers += bytes(&node.buffers);
            total.absmax += node.uncounted_bytes;
        });

        total
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shapes_are_printed_as_python_tuples() {
        let named = |shape: &[usize]| NamedParameter {
            name: "w".into(),
            dtype: ParameterDtype::I8,
            shape: shape.to_vec(),
        };

        assert_eq!(named(&[3]).to_string(), "w torch.int8 (3,)");
        assert_eq!(named(&[3, 4]).to_string(), "w torch.int8 (3, 4)");
        assert_eq!(named(&[]).to_string(), "w torch.int8 ()");
    }

    #[test]
    fn transformers_counts_buffers_and_not_absmax() {
        let mut leaf = Node::leaf("Linear8bitLt", "")
            .with_parameter(Parameter::new("weight", ParameterDtype::I8, [4, 2]))
            .with_buffer(Parameter::new("mask", ParameterDtype::Bool, [1, 1, 3, 3]));
        leaf.uncounted_bytes = 16;
        let footprint = Node::container("Model").with_child("fc", leaf).footprint();
        assert_eq!(footprint.transformers(), 8 + 9);
        assert_eq!(footprint.actual(), 8 + 16);
    }
}
