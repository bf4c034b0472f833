//! Parameters, modules and bytes of a tree.

use super::{ModulePath, Node};
use crate::dtype::ParameterDtype;
use std::fmt;

/// A parameter under its full name, as `named_parameters()` of PyTorch gives it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NamedParameter {
    /// The full name: `transformer.h.0.attn.c_attn.weight`.
    pub name: String,
    /// How it is stored.
    pub dtype: ParameterDtype,
    /// Its dimensions.
    pub shape: Vec<usize>,
}

impl fmt::Display for NamedParameter {
    /// `name dtype shape`, the shape as Python prints a tuple.
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

/// Bytes of a model, by transformers' rule and by truth.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Footprint {
    /// Bytes of the parameters.
    pub parameters: u64,
    /// Bytes of buffers that transformers counts (GPT-2's causal masks) and we do not hold.
    pub buffers: u64,
    /// Bytes of the int8 rows' `absmax`, which transformers does not count.
    pub absmax: u64,
}

impl Footprint {
    /// What `model.get_memory_footprint()` returns: parameters and buffers.
    pub fn transformers(&self) -> u64 {
        self.parameters + self.buffers
    }

    /// What is held here: parameters and `absmax`, without the buffers.
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

    /// Every module with its path, in PyTorch's order; the first is the model itself, with an empty
    /// path.
    pub fn named_modules(&self) -> Vec<(ModulePath, &Node)> {
        let mut found = Vec::new();
        self.visit(&mut |path, node| found.push((path.clone(), node)));
        found
    }

    /// Calls `visit` for this module and every one below it, parents first.
    pub fn visit<'a>(&'a self, visit: &mut impl FnMut(&ModulePath, &'a Node)) {
        self.visit_from(&ModulePath::root(), visit);
    }

    fn visit_from<'a>(&'a self, path: &ModulePath, visit: &mut impl FnMut(&ModulePath, &'a Node)) {
        visit(path, self);
        for (name, child) in &self.children {
            child.visit_from(&path.join(name), visit);
        }
    }

    /// Bytes of the whole tree.
    pub fn footprint(&self) -> Footprint {
        let mut total = Footprint::default();
        self.visit(&mut |_, node| {
            total.parameters += node
                .parameters
                .iter()
                .map(super::Parameter::bytes)
                .sum::<u64>();
            total.buffers += node
                .buffers
                .iter()
                .map(super::Parameter::bytes)
                .sum::<u64>();
            total.absmax += node.uncounted_bytes;
        });
        total
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::module::Parameter;

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
