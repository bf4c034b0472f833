//! Puts an adapter's updates on the linear layers of a decoder.

use crate::decoder::Decoder;
use crate::error::Result;
use crate::slot::{Part, Slot};
use llm_int8_nn::lora::Adapter;
use std::collections::BTreeMap;

impl Decoder {
    /// Reads the updates of an adapter.
    ///
    /// # Errors
    /// [`NnError::AdapterTensor`](llm_int8_nn::NnError) for a layer that the model does not have,
    /// or for matrices that do not fit it.
    pub(super) fn apply_adapter(&mut self, adapter: &Adapter) -> Result<()> {
        let isa = self.isa();
        let linears: BTreeMap<String, (Slot, [usize; 2])> = self
            .paths()
            .into_iter()
            .filter_map(|(path, slot)| match self.part(slot) {
                Some(Part::Linear(linear)) => {
                    let shape = [linear.out_features(), linear.in_features()];
                    Some((path.to_string(), (slot, shape)))
                }
                _ => None,
            })
            .collect();

        for layer in adapter.layers() {
            let Some((slot, shape)) = linears.get(layer.path()) else {
                return Err(layer.unknown(linears.keys().map(String::as_str)).into());
            };
            self.set_update(*slot, layer.update(*shape, isa)?);
        }
        Ok(())
    }
}
