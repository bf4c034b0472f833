//! Which trainable variables got no gradient.
//!
//! In candle an operation without a backward pass may stop gradients silently: everything before it
//! is frozen, the loss falls a little and nothing says why. In candle-nn 0.11 these do:
//! `ops::softmax_last_dim`, `LayerNorm` and `RmsNorm` on contiguous input, `rotary_emb::rope` and
//! its kin. `ops::softmax`, `RmsNorm::forward_diff`, `ops::layer_norm_slow` and
//! `rotary_emb::rope_slow` do not.

use candle_core::backprop::GradStore;
use candle_nn::VarMap;

/// The names of the variables that a loss does not depend on, in alphabetical order: frozen by
/// mistake, or not used.
///
/// ```
/// use candle_core::{DType, Device, Tensor, D};
/// use candle_nn::{VarBuilder, VarMap, ops};
/// use llm_int8_nn::gradients::without_gradient;
///
/// let variables = VarMap::new();
/// let vb = VarBuilder::from_varmap(&variables, DType::F32, &Device::Cpu);
/// let (w, v) = (vb.get((2, 3), "w")?, vb.get((2, 3), "v")?);
///
/// let loss = (ops::softmax(&w, D::Minus1)? + ops::softmax_last_dim(&v)?)?.sqr()?.sum_all()?;
/// assert_eq!(without_gradient(&variables, &loss.backward()?), ["v"]);
/// # Ok::<(), candle_core::Error>(())
/// ```
pub fn without_gradient(variables: &VarMap, gradients: &GradStore) -> Vec<String> {
    let variables = variables
        .data()
        .lock()
        .unwrap_or_else(std::sync::PoisonError::into_inner);
    let mut names: Vec<String> = variables
        .iter()
        .filter(|(_, variable)| gradients.get(variable.as_tensor()).is_none())
        .map(|(name, _)| name.clone())
        .collect();
    names.sort();
    names
}
