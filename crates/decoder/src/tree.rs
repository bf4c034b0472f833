//! The decoder's module tree, as PyTorch prints it: the family's template, filled with the
//! decoder's parts.

use crate::decoder::Decoder;
use crate::slot::{ModelSlot, Part, Slot};
use crate::template::Template;
use llm_int8_nn::NnError;
use llm_int8_nn::linear::{HasLinears, Linear};
use llm_int8_nn::module::{Module, ModulePath, Node, Parameter, SkipList};

impl Module for Decoder {
    fn describe(&self) -> Node {
        self.node(&self.spec().tree, 0)
    }
}

impl Decoder {
    /// The node of a template. Inside of blocks, `layer` is the number of the block.
    fn node(&self, template: &Template, layer: usize) -> Node {
        match template {
            Template::Container(class, children) => {
                let add = |node: Node, (name, child): &(&str, Template)| {
                    node.with_child(*name, self.node(child, layer))
                };
                children.iter().fold(Node::container(class), add)
            }
            Template::WithBuffers(inner, buffers) => {
                let buffers = buffers.iter().map(|buffer| {
                    let dtype = buffer.dtype.unwrap_or_else(|| self.dtype().into());
                    Parameter::new(buffer.name, dtype, buffer.shape.clone())
                });
                buffers.fold(self.node(inner, layer), Node::with_buffer)
            }
            Template::Blocks(block) => {
                Node::list((0..self.spec().layers.len()).map(|layer| self.node(block, layer)))
            }
            Template::Part(slot, _) => self.leaf(Slot::Model(*slot)),
            Template::BlockPart(slot, _) => self.leaf(Slot::Block(layer, *slot)),
            Template::Plain(class, arguments) => Node::leaf(class, arguments),
        }
    }

    fn leaf(&self, slot: Slot) -> Node {
        let mut node = match self.part(slot) {
            Some(Part::Embedding(embedding)) => embedding.describe(),
            Some(Part::Norm(norm)) => norm.describe(),
            Some(Part::HeadNorms(norms)) => norms.describe(),
            Some(Part::Linear(linear)) => linear.describe(),
            None => Node::default(),
        };
        if slot == Slot::Model(ModelSlot::Head) && self.spec().tied_head {
            // PyTorch's named_parameters() yields a shared parameter once, under its first name.
            node.parameters
                .retain(|parameter| parameter.name != "weight");
            node.uncounted_bytes = 0;
        }
        node
    }
}

impl HasLinears for Decoder {
    fn for_each_linear(
        &mut self,
        visit: &mut dyn FnMut(&ModulePath, &mut Linear) -> Result<(), NnError>,
    ) -> Result<(), NnError> {
        for (path, slot) in self.paths() {
            if let Some(Part::Linear(linear)) = self.part_mut(slot) {
                visit(&path, linear)?;
            }
        }
        Ok(())
    }

    fn default_skip_list(&self) -> SkipList {
        SkipList::new(self.spec().never_converted())
    }
}
