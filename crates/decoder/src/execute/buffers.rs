//! Memory of passes on the CPU. It is kept from one pass to the next, because the system clears
//! every page that it hands out anew: with 32 sequences the logits alone are 1,500 pages a token.

use crate::plan::Rows;
use llm_int8_kernels::QuantizedActivations;
use std::sync::{Mutex, PoisonError};

/// Most values that are kept, 32 MiB each for the buffers of layers and for the logits. Long prompts
/// need more; what they need is freed.
const MOST_VALUES: usize = 8 << 20;

/// The buffers of a pass.
#[derive(Debug, Default)]
pub(crate) struct Buffers {
    /// For each kind of [`Rows`], one buffer for each layer that writes it. Queries, keys and
    /// values of three layers are three buffers, those of a fused layer one.
    pub(crate) rows: [Vec<Vec<f32>>; Rows::COUNT],
    /// The input of linear layers after their norm or gate.
    pub(crate) layer_input: Vec<f32>,
    /// Output of a linear layer before it is added to other rows.
    pub(crate) added: Vec<f32>,
    pub(crate) quantized: QuantizedActivations,
}

/// The buffers that no pass uses at present. A second pass at the same time gets new ones.
#[derive(Debug, Default)]
pub(crate) struct Spare(Mutex<Option<Buffers>>);

impl Clone for Spare {
    fn clone(&self) -> Self {
        Self::default()
    }
}

impl Spare {
    pub(crate) fn take(&self) -> Buffers {
        let mut spare = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        spare.take().unwrap_or_default()
    }

    pub(crate) fn give(&self, buffers: Buffers) {
        let rows = buffers.rows.iter().flatten();
        let all = rows.chain([&buffers.layer_input, &buffers.added]);
        if all.map(Vec::capacity).sum::<usize>() <= MOST_VALUES {
            let mut spare = self.0.lock().unwrap_or_else(PoisonError::into_inner);
            *spare = Some(buffers);
        }
    }

    /// Takes logits back, which left their pass.
    pub(crate) fn give_logits(&self, logits: Vec<f32>) {
        if logits.capacity() > MOST_VALUES {
            return;
        }

        let mut spare = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(buffers) = &mut *spare {
            buffers.rows[Rows::Logits as usize] = vec![logits];
        }
    }
}
