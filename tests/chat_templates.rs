//! Chat templates against transformers' renderer, whose output is in tests/golden/chat
//! (scripts/make_chat_golden.py).

use crate::support::golden;
use llm_int8::{ChatInputs, ChatTemplate, Result};
use serde_json::{Value, json};

fn read(name: &str) -> Value {
    serde_json::from_slice(&std::fs::read(golden(name)).unwrap()).unwrap()
}

fn list(value: &Value) -> Option<Vec<Value>> {
    value.as_array().cloned()
}

/// Renders a template with the `messages`, `tools`, `documents` and `extra` of a conversation.
fn render(template: &str, tokens: &Value, conversation: &Value, extra: &Value) -> Result<String> {
    let mut variables = extra.as_object().cloned().unwrap_or_default();
    variables.extend(
        conversation["extra"]
            .as_object()
            .cloned()
            .unwrap_or_default(),
    );
    let inputs = ChatInputs {
        tools: list(&conversation["tools"]),
        documents: list(&conversation["documents"]),
        add_generation_prompt: true,
        extra: variables,
        ..ChatInputs::default()
    };

    ChatTemplate::new(template, tokens.clone())?
        .apply_with(&list(&conversation["messages"]).unwrap(), &inputs)
}

/// Describes a result that differs from transformers': other text, or success where it raises an
/// error and vice versa.
fn difference(name: &str, found: &Result<String>, expected: &Value) -> Option<String> {
    match (found, expected.as_str()) {
        (Ok(found), Some(expected)) if found == expected => None,
        (Err(_), None) => None,
        (found, expected) => Some(format!(
            "{name}\n  expected {expected:?}\n  found    {found:?}"
        )),
    }
}

#[test]
fn every_jinja_feature_renders_as_in_transformers() {
    let golden = read("chat/snippets.json");
    let snippets = golden["snippets"].as_array().unwrap();
    let different: Vec<String> = snippets
        .iter()
        .filter_map(|snippet| {
            let template = snippet["template"].as_str().unwrap();
            difference(
                template,
                &render(template, &json!({}), &golden, &Value::Null),
                &snippet["text"],
            )
        })
        .collect();
    assert!(snippets.len() > 300, "{}", snippets.len());
    assert!(
        different.is_empty(),
        "{} of {}:\n{}",
        different.len(),
        snippets.len(),
        different.join("\n")
    );
}

#[test]
fn templates_of_published_models_render_as_in_transformers() {
    let golden_values = read("chat/conversations.json");
    let mut different = Vec::new();
    let mut rejected = 0;
    let mut count = 0;
    for (name, texts) in golden_values["templates"].as_object().unwrap() {
        let template =
            std::fs::read_to_string(golden(&format!("chat/templates/{name}.jinja"))).unwrap();
        for (conversation, expected) in texts.as_object().unwrap() {
            let inputs = &golden_values["conversations"][conversation];
            let extra = json!({ "date_string": "26 Jul 2024" });
            let found = render(&template, &golden_values["tokens"], inputs, &extra);
            different.extend(difference(
                &format!("{name}, {conversation}"),
                &found,
                expected,
            ));
            rejected += usize::from(expected.is_null());
            count += 1;
        }
    }

    assert!(
        count >= 76 && rejected >= 4 && rejected * 4 < count,
        "{count} {rejected}"
    );
    assert!(
        different.is_empty(),
        "{} of {count}:\n{}",
        different.len(),
        different.join("\n")
    );
}
