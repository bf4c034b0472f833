//! Looking into a pass, and taking linear layers over: for statistics of activations, and to compute
//! what another quantisation would.

use crate::error::Result;
use llm_int8_nn::linear::Linear;

/// The input of linear layers that share it.
#[derive(Debug)]
pub struct LinearInput<'a> {
    /// The layers: several if, say, queries, keys and values are three layers.
    pub layers: Vec<&'a Linear>,
    /// f32 `[rows, in_features]`, row-major, after the norm or gate before the layers.
    pub values: &'a [f32],
    /// Number of rows, one for each token.
    pub rows: usize,
    /// Whether the values are those of the residual stream, through the norm before the layers if
    /// there is one: feature j is then the same feature in every block.
    pub reads_stream: bool,
}

/// What is called for the linear layers of a pass on the CPU, in the order in which they run
/// ([`Decoder::forward_hooked`](crate::Decoder::forward_hooked)).
pub trait LinearHook: Send {
    /// Sees an input before the layers run.
    ///
    /// # Errors
    /// Any error ends the pass.
    fn input(&mut self, input: &LinearInput<'_>) -> Result<()> {
        let _ = input;
        Ok(())
    }

    /// Computes a layer, bias included, on `values` `[rows, in_features]`, and writes to `out` `[rows,
    /// out_features]`. Returns false to have it computed as usual.
    ///
    /// # Errors
    /// Any error ends the pass.
    fn compute(
        &mut self,
        layer: &Linear,
        values: &[f32],
        rows: usize,
        out: &mut [f32],
    ) -> Result<bool> {
        let _ = (layer, values, rows, out);
        Ok(false)
    }
}
