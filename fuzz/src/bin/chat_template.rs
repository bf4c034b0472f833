//! Chat templates: rendered within two seconds and 256 MiB, twice with the same outcome.

#![no_main]

use libfuzzer_sys::fuzz_target;
use llm_int8::{ChatInputs, ChatTemplate};
use llm_int8_fuzz::{Choices, Limits, bounded, jinja};
use serde_json::{Value, json};
use std::cell::LazyCell;

/// Two seconds of a release, which has no counters on its edges, are about eight here.
const LIMITS: Limits = Limits::new(8, 256);

thread_local! {
    static MESSAGES: LazyCell<Vec<Value>> = LazyCell::new(|| {
        vec![
            json!({ "role": "system", "content": "Be brief." }),
            json!({ "role": "user", "content": " Hi <b> & 'you' \n" }),
            json!({
                "role": "assistant",
                "content": [{ "type": "text", "text": "Héllo 日本 😀" }, { "type": "image" }],
                "tool_calls": [{ "function": { "name": "f", "arguments": { "x": 1, "y": [null, true, 1.5e-7] } } }],
            }),
            json!({ "role": "tool", "content": "12", "name": "f", "n": -3, "x": 1e300 }),
        ]
    });
}

fuzz_target!(|data: &[u8]| run(data));

fn run(data: &[u8]) {
    let mut from = Choices::new(data);
    let style = from.byte();
    let text = match style % 4 {
        0 => String::from_utf8_lossy(from.rest()).into_owned(),
        _ => jinja::template(&mut from),
    };
    let inputs = ChatInputs {
        tools: (style & 4 == 0).then(|| {
            vec![json!({ "type": "function", "function": { "name": "f", "parameters": {} } })]
        }),
        add_generation_prompt: style & 8 == 0,
        ..ChatInputs::default()
    };

    // The date changes while a template is rendered.
    let is_timed = text.contains("strftime_now");
    let first = bounded(LIMITS, || render(&text, &inputs));
    if data.len() < 512 && !is_timed {
        assert_eq!(first, bounded(LIMITS, || render(&text, &inputs)), "{text}");
    }
}

/// The prompt, or the error.
fn render(text: &str, inputs: &ChatInputs) -> Result<String, String> {
    let tokens = json!({ "bos_token": "<s>", "eos_token": "</s>" });
    let template = ChatTemplate::new(text, tokens).map_err(|error| error.to_string())?;
    MESSAGES
        .with(|messages| template.apply_with(messages, inputs))
        .map_err(|error| error.to_string())
}
