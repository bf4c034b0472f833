//! Grammars for JSON schemas and tool calls, as constraints on tokens. They are Lark grammars of
//! llguidance, which works on the bytes of tokens, so a grammar may begin or end inside a token.

use crate::tools::{Tool, ToolFormat};
use llguidance::api::TopLevelGrammar;
use llguidance::toktrie::{TokEnv, TokRxInfo, TokTrie, TokenId, TokenizerEnv};
use llguidance::{Matcher, ParserFactory};
use llm_int8::generate::{TokenConstraint, TokenMask};
use llm_int8::{GenerationConfig, Tokenizer};
use serde_json::{Value, json};
use std::collections::HashMap;
use std::sync::Arc;

/// White space between the parts of JSON, as in llama.cpp's grammars. Without a bound, a model that
/// finds no next word may write nothing else.
const WHITE_SPACE: &str = r" |\n{1,2}[ \t]{0,20}";
/// White space in a tool call.
const SPACE: &str = " ";

/// What a text must look like.
#[derive(Debug)]
pub(crate) enum Shape<'a> {
    /// JSON that follows a schema.
    Json(&'a Value),
    /// One or more calls of these tools, and nothing else.
    Calls {
        format: ToolFormat,
        tools: Vec<&'a Tool>,
        /// Whether there may be several.
        many: bool,
    },
    /// Any text; calls in it follow the schemas of strict tools.
    StrictCalls {
        format: ToolFormat,
        tools: &'a [Tool],
    },
}

/// Compiles grammars for one tokenizer.
pub(crate) struct Grammars {
    factory: ParserFactory,
    /// Marks of tool calls that are special tokens.
    marks: HashMap<&'static str, u32>,
}

/// The vocabulary as bytes.
struct Vocabulary(TokTrie);

impl TokenizerEnv for Vocabulary {
    fn tok_trie(&self) -> &TokTrie {
        &self.0
    }

    fn tokenize_bytes(&self, bytes: &[u8]) -> Vec<TokenId> {
        self.0.greedy_tokenize(bytes)
    }

    /// The model chooses how a text is divided into tokens.
    fn tokenize_is_canonical(&self) -> bool {
        false
    }
}

impl Grammars {
    /// Prepares a vocabulary. `marks` are special tokens that grammars may ask for.
    ///
    /// # Errors
    /// What llguidance says about the vocabulary.
    pub(crate) fn new(
        tokenizer: &Tokenizer,
        config: &GenerationConfig,
        marks: HashMap<&'static str, u32>,
    ) -> Result<Self, String> {
        let size = tokenizer.vocabulary_size();
        let ends: Vec<u32> = config.eos_token_ids.clone();
        let ends: Vec<u32> = ends
            .into_iter()
            .filter(|id| (*id as usize) < size)
            .collect();
        let mut words: Vec<Vec<u8>> = (0..size)
            .map(|id| word(tokenizer, &ends, u32::try_from(id).unwrap_or(u32::MAX)))
            .collect();
        // The library needs an end token: a model without one gets an id that it does not have.
        let ends = if ends.is_empty() {
            words.push(special(b"<end>"));
            vec![u32::try_from(size).map_err(|cause| cause.to_string())?]
        } else {
            ends
        };

        let count = u32::try_from(words.len()).map_err(|cause| cause.to_string())?;
        let first = ends.first().copied().unwrap_or_default();
        let trie = TokTrie::from(&TokRxInfo::new(count, first), &words).with_eos_tokens(&ends);
        let env: TokEnv = Arc::new(Vocabulary(trie));
        let mut factory = ParserFactory::new_simple(&env).map_err(|cause| cause.to_string())?;
        factory.quiet();

        Ok(Self { factory, marks })
    }

    /// A constraint for one sequence.
    ///
    /// # Errors
    /// What is wrong with a schema.
    pub(crate) fn constraint(&self, shape: &Shape<'_>) -> Result<Box<dyn TokenConstraint>, String> {
        let grammar = match shape {
            Shape::Json(schema) => TopLevelGrammar::from_json_schema(bounded(schema, WHITE_SPACE)),
            Shape::Calls {
                format,
                tools,
                many,
            } => TopLevelGrammar::from_lark(self.calls(*format, tools, *many)),
            Shape::StrictCalls { format, tools } => {
                TopLevelGrammar::from_lark(self.strict_calls(*format, tools))
            }
        };
        let parser = self.factory.create_parser(grammar);
        let matcher = Matcher::new(parser);
        match matcher.get_error() {
            Some(error) => Err(error),
            None => Ok(Box::new(Follow { matcher })),
        }
    }

    /// A mark, as a special token if it is one.
    fn mark(&self, mark: &'static str) -> String {
        match self.marks.get(mark) {
            Some(id) => format!("<[{id}]>"),
            None => json!(mark).to_string(),
        }
    }

    /// Nothing but calls.
    fn calls(&self, format: ToolFormat, tools: &[&Tool], many: bool) -> String {
        let key = format.arguments_key();
        let one: Vec<String> = tools
            .iter()
            .map(|tool| json_of(&tool.call_schema(key)))
            .collect();
        let one = one.join(" | ");
        let more = |between: &str| match many {
            true => format!(" ({between} call)*"),
            false => String::new(),
        };

        let start = match format {
            ToolFormat::Hermes => format!("call{}", more("\"\\n\"")),
            ToolFormat::Llama => format!("call{}", more("\"; \"")),
            ToolFormat::Mistral => {
                format!(
                    "{} \"[\" call{} \"]\"",
                    self.mark("[TOOL_CALLS]"),
                    more("\", \"")
                )
            }
        };
        match format {
            ToolFormat::Hermes => {
                let (open, close) = (self.mark("<tool_call>"), self.mark("</tool_call>"));
                format!(
                    "start: {start}\ncall: {open} \"\\n\" inside \"\\n\" {close}\ninside: {one}\n"
                )
            }
            ToolFormat::Llama | ToolFormat::Mistral => format!("start: {start}\ncall: {one}\n"),
        }
    }

    /// Text, in which a mark begins a call that must follow a schema.
    fn strict_calls(&self, format: ToolFormat, tools: &[Tool]) -> String {
        let key = format.arguments_key();
        let any = json!({ "type": "object" });
        let schema = |tool: &Tool| match tool.is_strict {
            true => tool.call_schema(key),
            false => Tool {
                parameters: any.clone(),
                ..tool.clone()
            }
            .call_schema(key),
        };
        let one: Vec<String> = tools.iter().map(|tool| json_of(&schema(tool))).collect();
        let one = one.join(" | ");

        let text = "TEXT: /(.|\\n)*/\nSPACE: /[ \\n]{1,8}/\n";
        match format {
            ToolFormat::Hermes => {
                let (begin, close) = match self.marks.get("<tool_call>") {
                    Some(id) => (format!("TEXT <[{id}]>"), self.mark("</tool_call>")),
                    None => ("begin".to_owned(), "\"</tool_call>\"".to_owned()),
                };
                let lazy = match self.marks.contains_key("<tool_call>") {
                    true => "",
                    false => "begin[lazy]: /(.|\\n)*<tool_call>/\n",
                };
                format!(
                    "start: (part)* TEXT\npart: {begin} SPACE? inside SPACE? {close}\n\
                     inside: {one}\n{lazy}{text}"
                )
            }
            // Its calls begin like any JSON, so a text either is one or has none.
            ToolFormat::Llama => {
                format!(
                    "start: call (\"; \" call)* | WORDS\ncall: {one}\nWORDS: /[^{{\\s](.|\\n)*/\n"
                )
            }
            ToolFormat::Mistral => {
                let begin = match self.marks.get("[TOOL_CALLS]") {
                    Some(id) => format!("TEXT <[{id}]>"),
                    None => "begin".to_owned(),
                };
                let lazy = match self.marks.contains_key("[TOOL_CALLS]") {
                    true => "",
                    false => "begin[lazy]: /(.|\\n)*\\[TOOL_CALLS\\]/\n",
                };
                format!(
                    "start: TEXT | {begin} SPACE? \"[\" call (\", \" call)* \"]\"\ncall: {one}\n{lazy}{text}"
                )
            }
        }
    }
}

impl std::fmt::Debug for Grammars {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Grammars({:?})", self.marks)
    }
}

/// A token's bytes, as llguidance wants them: special ones are marked, and those that are in no
/// text are empty.
fn word(tokenizer: &Tokenizer, ends: &[u32], id: u32) -> Vec<u8> {
    let bytes = tokenizer.token_bytes(id).unwrap_or_default();
    if tokenizer.is_special(id) || ends.contains(&id) {
        special(&bytes)
    } else if bytes.contains(&TokTrie::SPECIAL_TOKEN_MARKER) {
        // 0xff is in no UTF-8.
        Vec::new()
    } else {
        bytes
    }
}

fn special(name: &[u8]) -> Vec<u8> {
    [&[TokTrie::SPECIAL_TOKEN_MARKER], name].concat()
}

/// A schema with bounded white space.
fn bounded(schema: &Value, white_space: &str) -> Value {
    let mut schema = match schema {
        Value::Object(_) => schema.clone(),
        // `true` allows anything.
        _ => json!({}),
    };
    schema["x-guidance"] = json!({ "whitespace_pattern": white_space });
    schema
}

fn json_of(schema: &Value) -> String {
    format!("%json {}", bounded(schema, SPACE))
}

/// A sequence that follows a grammar.
struct Follow {
    matcher: Matcher,
}

impl TokenConstraint for Follow {
    fn allowed(&mut self) -> Result<Option<TokenMask>, String> {
        let mask = self.matcher.compute_mask_or_eos();
        let mask = mask.map_err(|cause| cause.to_string())?;
        Ok(Some(TokenMask::from_words(mask.as_slice().to_vec())))
    }

    fn accept(&mut self, id: u32) -> Result<bool, String> {
        if self.matcher.is_stopped() {
            return Ok(true);
        }
        let taken = self.matcher.consume_token(id);
        taken.map_err(|cause| cause.to_string())?;
        Ok(self.matcher.is_stopped())
    }
}

#[cfg(test)]
#[path = "grammar_tests.rs"]
mod tests;
