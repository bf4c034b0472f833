//! What was generated.

use crate::generation::reason_name;
use pyo3::prelude::*;

/// The result of a generation. `str()` gives its text.
#[pyclass(frozen, get_all, module = "llm_int8")]
pub(crate) struct Generated {
    /// The new text, without the prompt.
    text: String,
    /// The new token ids, with the end token.
    ids: Vec<u32>,
    /// Why it ended: "eos", "stop", "length", "time" or "interrupted".
    finish_reason: &'static str,
    /// Tokens of the prompt.
    prompt_tokens: usize,
    /// Seconds until the first new token.
    prefill_seconds: f64,
    /// Seconds for all further tokens.
    decode_seconds: f64,
}

impl From<llm_int8::Generated> for Generated {
    fn from(generated: llm_int8::Generated) -> Self {
        let timing = generated.timing;
        Self {
            text: generated.text,
            ids: generated.ids,
            finish_reason: reason_name(generated.finish_reason),
            prompt_tokens: timing.prompt_tokens + timing.reused_tokens,
            prefill_seconds: timing.prefill.as_secs_f64(),
            decode_seconds: timing.decode.as_secs_f64(),
        }
    }
}

#[pymethods]
impl Generated {
    fn __str__(&self) -> &str {
        &self.text
    }

    fn __repr__(&self, py: Python<'_>) -> PyResult<String> {
        let text = self.text.as_str().into_pyobject(py)?.repr()?;
        let tokens = self.ids.len();
        let reason = self.finish_reason;
        Ok(format!(
            "Generated(text={text}, tokens={tokens}, finish_reason='{reason}')"
        ))
    }
}
