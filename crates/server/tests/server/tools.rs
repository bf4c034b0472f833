//! Tool calls and JSON.

use crate::client::{get, post};
use crate::endpoints::{chunks, with};
use crate::start::{Running, config};
use llm_int8_server::ServerConfig;
use serde_json::{Value, json};

const CHAT: &str = "/v1/chat/completions";

fn ask(tool_choice: Value) -> Value {
    json!({
        "messages": [{ "role": "user", "content": "How warm is it in Paris?" }],
        "tools": [{ "type": "function", "function": {
            "name": "weather",
            "parameters": {
                "type": "object",
                "properties": { "city": { "enum": ["Paris", "Rome"] }, "days": { "type": "integer", "minimum": 1, "maximum": 9 } },
                "required": ["city", "days"],
                "additionalProperties": false,
            },
        }}],
        "tool_choice": tool_choice,
        "max_tokens": 200,
    })
}

fn check_call(call: &Value) {
    assert_eq!(call["function"]["name"], "weather");
    assert!(call["id"].as_str().unwrap().starts_with("call_"));
    let arguments: Value =
        serde_json::from_str(call["function"]["arguments"].as_str().unwrap()).unwrap();
    assert!(["Paris", "Rome"].contains(&arguments["city"].as_str().unwrap()));
    assert!((1..=9).contains(&arguments["days"].as_i64().unwrap()));
}

#[test]
fn required_tools_are_called_whole_and_in_a_stream() {
    let server = Running::usual();
    let named = json!({ "type": "function", "function": { "name": "weather" } });
    for choice in [json!("required"), named] {
        let body = with(&ask(choice), json!({ "parallel_tool_calls": false }));
        let answer = post(server.address, CHAT, &body).ok();
        let found = &answer["choices"][0];
        assert_eq!(found["finish_reason"], "tool_calls", "{answer}");
        assert_eq!(found["message"]["content"], Value::Null);
        let calls = found["message"]["tool_calls"].as_array().unwrap();
        assert_eq!(calls.len(), 1);
        check_call(&calls[0]);

        let streamed = post(
            server.address,
            CHAT,
            &with(&body, json!({ "stream": true })),
        );
        let chunks = chunks(&streamed.events());
        let mut deltas = chunks
            .iter()
            .filter_map(|c| c.pointer("/choices/0/delta/tool_calls/0"));
        let call = deltas.next().unwrap();
        assert_eq!(call["index"], 0);
        check_call(call);
        assert_eq!(
            call["function"], calls[0]["function"],
            "the same text in a stream"
        );
        assert!(deltas.next().is_none());
        assert_eq!(
            chunks.last().unwrap()["choices"][0]["finish_reason"],
            "tool_calls"
        );
    }
}

#[test]
fn a_call_and_its_result_go_back_to_the_template() {
    let server = Running::usual();
    let call = json!({ "id": "c1", "type": "function",
                       "function": { "name": "weather", "arguments": "{\"city\": \"Rome\"}" } });
    let body = with(
        &ask(json!("auto")),
        json!({ "messages": [
            { "role": "user", "content": "Rome?" },
            { "role": "assistant", "content": null, "tool_calls": [call] },
            { "role": "tool", "tool_call_id": "c1", "content": "21" },
        ]}),
    );
    let prompt = post(server.address, "/apply-template", &body).ok();
    let prompt = prompt["prompt"].as_str().unwrap();
    assert!(
        prompt.starts_with("TOOLS: [{\"type\": \"function\""),
        "{prompt}"
    );
    assert!(
        prompt.contains("{\"name\": \"weather\", \"arguments\": {\"city\": \"Rome\"}}"),
        "{prompt}"
    );
    assert!(prompt.ends_with("TOOL: 21\nASSISTANT:"), "{prompt}");
    let none = with(&body, json!({ "tool_choice": "none" }));
    let prompt = post(server.address, "/apply-template", &none).ok();
    assert!(!prompt["prompt"].as_str().unwrap().contains("TOOLS"));
    post(
        server.address,
        CHAT,
        &with(&body, json!({ "max_tokens": 3 })),
    )
    .ok();
}

#[test]
fn tools_need_a_template_that_shows_them() {
    let plain = "{% for m in messages %}{{ m.content }}{% endfor %}";
    let server = Running::start(ServerConfig {
        chat_template: Some(plain.into()),
        ..config()
    });
    assert!(get(server.address, "/v1/models").ok()["data"][0]["llm_int8"]["tools"].is_null());
    assert_eq!(
        post(server.address, CHAT, &ask(json!("auto"))).error(400).1,
        "tools"
    );
    post(
        server.address,
        CHAT,
        &with(&ask(json!("none")), json!({ "max_tokens": 2 })),
    )
    .ok();

    let server = Running::start(ServerConfig {
        chat_template: None,
        ..config()
    });
    let answer = post(
        server.address,
        CHAT,
        &with(&ask(json!("none")), json!({ "max_tokens": 2 })),
    );
    assert_eq!(answer.error(400).1, "messages");
    assert!(answer.body.contains("no chat template"), "{}", answer.body);
}

#[test]
fn json_follows_its_schema_at_any_temperature() {
    let server = Running::usual();
    let schema = json!({
        "type": "object",
        "properties": {
            "name": { "type": "string", "maxLength": 12 },
            "kind": { "enum": ["a", "b"] },
            "tags": { "type": "array", "items": { "type": "integer", "minimum": 0, "maximum": 99 }, "maxItems": 3 },
        },
        "required": ["name", "kind", "tags"],
        "additionalProperties": false,
    });
    for seed in 0..4 {
        let body = json!({
            "messages": [{ "role": "user", "content": "Describe it." }],
            "response_format": { "type": "json_schema", "json_schema": { "name": "x", "schema": schema, "strict": true } },
            "temperature": 1, "seed": seed, "max_tokens": 480,
        });
        let answer = post(server.address, CHAT, &body).ok();
        let choice = &answer["choices"][0];
        assert_eq!(choice["finish_reason"], "stop", "{answer}");
        let value: Value =
            serde_json::from_str(choice["message"]["content"].as_str().unwrap()).unwrap();
        assert!(value["name"].as_str().unwrap().chars().count() <= 12);
        assert!(["a", "b"].contains(&value["kind"].as_str().unwrap()));
        assert!(value["tags"].as_array().unwrap().len() <= 3);
    }

    let object =
        json!({ "prompt": "x", "response_format": { "type": "json_object" }, "max_tokens": 100 });
    let answer = post(server.address, "/v1/completions", &object).ok();
    assert!(
        answer["choices"][0]["text"]
            .as_str()
            .unwrap()
            .starts_with('{')
    );
}

#[test]
fn schemas_that_cannot_be_used_are_400() {
    let server = Running::usual();
    let with_schema = |schema: Value| {
        json!({ "messages": [{ "role": "user", "content": "x" }],
                "response_format": { "type": "json_schema", "json_schema": { "schema": schema } } })
    };
    for schema in [
        json!({ "type": "nonsense" }),
        json!({ "$ref": "#/nowhere" }),
    ] {
        let answer = post(server.address, CHAT, &with_schema(schema));
        assert_eq!(answer.error(400).1, "response_format");
    }
    let mut strict = ask(json!("auto"));
    strict["tools"][0]["function"]["strict"] = json!(true);
    strict["tools"][0]["function"]["parameters"] = json!({ "type": "nonsense" });
    assert_eq!(post(server.address, CHAT, &strict).error(400).1, "tools");
    post(
        server.address,
        CHAT,
        &with(&ask(json!("auto")), json!({ "max_tokens": 2 })),
    )
    .ok();
}
