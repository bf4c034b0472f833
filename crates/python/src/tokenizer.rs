//! A model's tokenizer.

use crate::arrays::{ids_of, json_of};
use crate::error::of_llm;
use crate::model::variables_of;
use llm_int8::{AutoModelForCausalLM, ChatInputs};
use pyo3::exceptions::{PyTypeError, PyValueError};
use pyo3::prelude::*;
use pyo3::types::{PyDict, PyString};
use serde_json::{Value, json};
use std::sync::Arc;

/// Text to token ids and back, as the model's tokenizer class of transformers does it.
#[pyclass(frozen, module = "llm_int8")]
pub(crate) struct Tokenizer(pub(crate) Arc<AutoModelForCausalLM>);

/// A conversation as JSON messages; a text is one message of the user.
pub(crate) fn messages_of(messages: &Bound<'_, PyAny>) -> PyResult<Vec<Value>> {
    if let Ok(text) = messages.cast::<PyString>() {
        let text: String = text.extract()?;
        return Ok(vec![json!({ "role": "user", "content": text })]);
    }
    match json_of(messages)? {
        Value::Array(messages) => Ok(messages),
        _ => Err(PyTypeError::new_err(
            "messages are a text or a list of dicts with `role` and `content`",
        )),
    }
}

/// What a template sees besides the messages.
pub(crate) fn inputs_of(
    add_generation_prompt: bool,
    tools: Option<&Bound<'_, PyAny>>,
    variables: Option<&Bound<'_, PyDict>>,
) -> PyResult<ChatInputs> {
    let tools = match tools.map(json_of).transpose()? {
        None | Some(Value::Null) => None,
        Some(Value::Array(tools)) => Some(tools),
        Some(_) => return Err(PyTypeError::new_err("tools are a list of dicts")),
    };
    Ok(ChatInputs {
        tools,
        add_generation_prompt,
        extra: variables_of(variables)?,
        ..ChatInputs::default()
    })
}

impl Tokenizer {
    fn encoded(&self, text: &str, add_special_tokens: bool) -> PyResult<Vec<u32>> {
        let tokenizer = self.0.tokenizer().map_err(of_llm)?;
        let ids = match add_special_tokens {
            true => tokenizer.encode(text),
            false => tokenizer.encode_templated(text),
        };
        ids.map_err(of_llm)
    }
}

#[pymethods]
impl Tokenizer {
    /// `tokenizer("Hello")["input_ids"]`; a list of texts gives lists. Nothing is padded.
    #[pyo3(signature = (text, *, add_special_tokens=true))]
    fn __call__<'py>(
        &self,
        py: Python<'py>,
        text: &Bound<'py, PyAny>,
        add_special_tokens: bool,
    ) -> PyResult<Bound<'py, PyDict>> {
        let dict = PyDict::new(py);
        if let Ok(text) = text.cast::<PyString>() {
            let ids = self.encoded(text.to_str()?, add_special_tokens)?;
            dict.set_item("attention_mask", vec![1u32; ids.len()])?;
            dict.set_item("input_ids", ids)?;
            return Ok(dict);
        }

        let texts: Vec<String> = text.extract()?;
        let ids: Vec<Vec<u32>> = texts
            .iter()
            .map(|text| self.encoded(text, add_special_tokens))
            .collect::<PyResult<_>>()?;
        let masks: Vec<Vec<u32>> = ids.iter().map(|ids| vec![1; ids.len()]).collect();
        dict.set_item("attention_mask", masks)?;
        dict.set_item("input_ids", ids)?;
        Ok(dict)
    }

    /// The ids of a text.
    #[pyo3(signature = (text, *, add_special_tokens=true))]
    fn encode(&self, text: &str, add_special_tokens: bool) -> PyResult<Vec<u32>> {
        self.encoded(text, add_special_tokens)
    }

    /// The text of ids.
    #[pyo3(signature = (ids, *, skip_special_tokens=false))]
    fn decode(&self, ids: &Bound<'_, PyAny>, skip_special_tokens: bool) -> PyResult<String> {
        let (mut rows, _) = ids_of(ids)?;
        if rows.len() > 1 {
            return Err(PyValueError::new_err(
                "decode takes the ids of one sequence",
            ));
        }
        let ids = rows.pop().unwrap_or_default();
        let tokenizer = self.0.tokenizer().map_err(of_llm)?;
        let text = match skip_special_tokens {
            true => tokenizer.decode(&ids),
            false => tokenizer.decode_all(&ids),
        };
        text.map_err(of_llm)
    }

    /// The vocabulary entries of ids (`Ġthe`, `▁the`); None for an id beyond the vocabulary.
    fn convert_ids_to_tokens(&self, ids: Vec<u32>) -> PyResult<Vec<Option<String>>> {
        let tokenizer = self.0.tokenizer().map_err(of_llm)?;
        Ok(ids.iter().map(|id| tokenizer.token(*id)).collect())
    }

    /// The special tokens by name (`bos_token`, `eos_token`, ...).
    #[getter]
    fn special_tokens_map<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyAny>> {
        let tokens = self.0.tokenizer().map_err(of_llm)?.special_tokens().clone();
        let text = Value::Object(tokens).to_string();
        py.import("json")?.call_method1("loads", (text,))
    }

    /// A conversation as a prompt, by the model's chat template: a text, or with `tokenize` its ids.
    #[pyo3(signature = (messages, *, tools=None, add_generation_prompt=false, tokenize=true, **variables))]
    fn apply_chat_template<'py>(
        &self,
        py: Python<'py>,
        messages: &Bound<'py, PyAny>,
        tools: Option<&Bound<'py, PyAny>>,
        add_generation_prompt: bool,
        tokenize: bool,
        variables: Option<&Bound<'py, PyDict>>,
    ) -> PyResult<Bound<'py, PyAny>> {
        let messages = messages_of(messages)?;
        let inputs = inputs_of(add_generation_prompt, tools, variables)?;
        let template = self.0.chat_template().map_err(of_llm)?;
        let text = template.apply_with(&messages, &inputs).map_err(of_llm)?;
        match tokenize {
            true => Ok(self.encoded(&text, false)?.into_pyobject(py)?.into_any()),
            false => Ok(text.into_pyobject(py)?.into_any()),
        }
    }

    /// Size of the vocabulary.
    fn __len__(&self) -> PyResult<usize> {
        Ok(self.0.tokenizer().map_err(of_llm)?.vocabulary_size())
    }

    fn __repr__(&self) -> String {
        format!("Tokenizer(name_or_path='{}')", self.0.name())
    }
}
