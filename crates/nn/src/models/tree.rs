//! The decoder's module tree: a family's template, filled with the decoder's own parts.

use super::decoder::{Decoder, PartMut, PartRef};
use super::spec::{Slot, Template};
use crate::ParameterDtype;
use crate::error::Result;
use crate::linear::{HasLinears, Linear};
use crate::module::{Module, ModulePath, Node, Parameter, SkipList};

impl Module for Decoder {
    fn describe(&self) -> Node {
        self.node(&self.spec().names.tree, None)
    }
}

impl Decoder {
    /// The node of a template; `layer` inside a block.
    fn node(&self, template: &Template, layer: Option<usize>) -> Node {
        match template {
            Template::Container(class, children) => self.container(class, children, layer),
            Template::Attention(class, children) => {
                let buffers = self.spec().names.buffers.iter().map(|buffer| {
                    let dtype = if buffer.is_bool { ParameterDtype::Bool } else { self.dtype().into() };
                    Parameter::new(buffer.name, dtype, buffer.shape.clone())
                });
                buffers.fold(self.container(class, children, layer), Node::with_buffer)
            }
            Template::Blocks(block) => {
                Node::list((0..self.spec().layers).map(|layer| self.node(block, Some(layer))))
            }
            Template::Part(slot) => self.leaf(*slot),
            Template::BlockPart(slot) => self.leaf(Slot::Block(layer.unwrap_or_default(), *slot)),
            Template::Plain(class, arguments) => Node::leaf(class, arguments),
        }
    }

    fn container(&self, class: &str, children: &[(&str, Template)], layer: Option<usize>) -> Node {
        let add =
            |node: Node, (name, child): &(&str, Template)| node.with_child(*name, self.node(child, layer));
        children.iter().fold(Node::container(class), add)
    }

    fn leaf(&self, slot: Slot) -> Node {
        let mut node = match self.part(slot) {
            PartRef::Embedding(embedding) => embedding.describe(),
            PartRef::Norm(norm) => norm.describe(),
            PartRef::Linear(linear) => linear.describe(),
        };
        if slot == Slot::Head && self.spec().tied_head {
            // named_parameters() of PyTorch gives a shared parameter once, under its first name.
            node.parameters.clear();
        }
        node
    }

    /// Every part with parameters and its path, in PyTorch's order.
    pub(super) fn slots(&self) -> Vec<(ModulePath, Slot)> {
        let mut found = Vec::new();
        slots_of(&self.spec().names.tree, &ModulePath::root(), None, self.spec().layers, &mut found);
        found
    }
}

fn slots_of(
    template: &Template,
    path: &ModulePath,
    layer: Option<usize>,
    layers: usize,
    found: &mut Vec<(ModulePath, Slot)>,
) {
    match template {
        Template::Container(_, children) | Template::Attention(_, children) => {
            for (name, child) in children {
                slots_of(child, &path.join(name), layer, layers, found);
            }
        }
        Template::Blocks(block) => {
            for layer in 0..layers {
                slots_of(block, &path.join(&layer.to_string()), Some(layer), layers, found);
            }
        }
        Template::Part(slot) => found.push((path.clone(), *slot)),
        Template::BlockPart(slot) => {
            found.push((path.clone(), Slot::Block(layer.unwrap_or_default(), *slot)))
        }
        Template::Plain(..) => {}
    }
}

impl HasLinears for Decoder {
    fn for_each_linear(
        &mut self,
        visit: &mut dyn FnMut(&ModulePath, &mut Linear) -> Result<()>,
    ) -> Result<()> {
        for (path, slot) in self.slots() {
            if let PartMut::Linear(linear) = self.part_mut(slot) {
                visit(&path, linear)?;
            }
        }
        Ok(())
    }

    fn default_skip_list(&self) -> SkipList {
        SkipList::new(self.spec().names.never_converted.iter().copied())
    }
}
