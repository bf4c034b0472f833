//! What each endpoint answers.

use crate::client::{get, post};
use crate::start::{CONTEXT, Running, model};
use serde_json::{Value, json};

#[test]
fn the_model_describes_itself() {
    let server = Running::usual();
    let list = get(server.address, "/v1/models").ok();
    let card = &list["data"][0];
    assert_eq!(
        (&list["object"], &card["id"]),
        (&json!("list"), &json!("tiny-gpt2"))
    );
    assert_eq!(card["max_model_len"], CONTEXT);
    assert_eq!(card["llm_int8"]["reproducible"], true);
    assert_eq!(card["llm_int8"]["reason"], Value::Null);
    assert_eq!(card["llm_int8"]["tools"], "hermes");
    assert_eq!(get(server.address, "/models/tiny-gpt2").ok(), *card);

    let fingerprint = card["llm_int8"]["system_fingerprint"]
        .as_str()
        .unwrap()
        .to_owned();
    let again = Running::usual();
    let card = get(again.address, "/models").ok()["data"][0].clone();
    assert_eq!(card["llm_int8"]["system_fingerprint"], fingerprint);
    let batch = Running::loading(crate::start::config(), || {
        let config = llm_int8::LoadConfig::default();
        llm_int8::AutoModelForCausalLM::from_pretrained("tiny-gpt2", &config)
    });
    crate::start::wait_until("it is loaded", || {
        get(batch.address, "/health").status == 200
    });
    let card = get(batch.address, "/models").ok()["data"][0].clone();
    assert_eq!(card["llm_int8"]["reproducible"], false);
    assert!(
        card["llm_int8"]["reason"]
            .as_str()
            .unwrap()
            .contains("whole batch")
    );
    assert_ne!(card["llm_int8"]["system_fingerprint"], fingerprint);
}

#[test]
fn a_chat_is_what_the_template_and_the_model_make_of_it() {
    let server = Running::usual();
    let messages = json!([{ "role": "user", "content": "Who art thou?" }]);
    let body = json!({ "messages": messages, "max_completion_tokens": 12 });
    let answer = post(server.address, "/v1/chat/completions", &body).ok();

    let model = model().unwrap();
    let template = post(
        server.address,
        "/apply-template",
        &json!({ "messages": messages }),
    )
    .ok();
    assert_eq!(template["prompt"], "USER: Who art thou?\nASSISTANT:");
    let ids = model.tokenizer().unwrap();
    let ids = ids
        .encode_templated(template["prompt"].as_str().unwrap())
        .unwrap();
    let alone = model.generation(&ids).max_new_tokens(12).run().unwrap();
    assert_eq!(answer["choices"][0]["message"]["content"], alone.text);
    assert_eq!(answer["choices"][0]["message"]["role"], "assistant");
    assert_eq!(answer["choices"][0]["finish_reason"], "length");
    assert_eq!(answer["object"], "chat.completion");
    assert!(answer["id"].as_str().unwrap().starts_with("chatcmpl-"));
    assert!(
        answer["system_fingerprint"]
            .as_str()
            .unwrap()
            .starts_with("fp_")
    );
    assert_eq!(answer["usage"]["prompt_tokens"], ids.len());
    assert_eq!(answer["usage"]["completion_tokens"], 12);

    let streamed = post(
        server.address,
        "/chat/completions",
        &with(&body, json!({ "stream": true })),
    );
    assert_eq!(
        streamed.header("content-type"),
        Some("text/event-stream; charset=utf-8")
    );
    let chunks = chunks(&streamed.events());
    assert_eq!(
        chunks[0]["choices"][0]["delta"],
        json!({ "role": "assistant", "content": "" })
    );
    assert_eq!(text(&chunks, "/choices/0/delta/content"), alone.text);
}

/// The chunks of a stream, which must end with `[DONE]`.
pub(crate) fn chunks(events: &[String]) -> Vec<Value> {
    let (last, chunks) = events.split_last().unwrap();
    assert_eq!(last, "[DONE]");
    chunks
        .iter()
        .map(|chunk| serde_json::from_str(chunk).unwrap())
        .collect()
}

/// The texts at a place of all chunks.
pub(crate) fn text(chunks: &[Value], pointer: &str) -> String {
    chunks
        .iter()
        .filter_map(|chunk| chunk.pointer(pointer)?.as_str())
        .collect()
}

pub(crate) fn with(body: &Value, more: Value) -> Value {
    let mut body = body.clone();
    body.as_object_mut()
        .unwrap()
        .extend(more.as_object().unwrap().clone());
    body
}

#[test]
fn choices_are_numbered_and_the_first_is_that_of_a_single_one() {
    let server = Running::usual();
    let body = json!({ "prompt": "ROMEO:", "max_tokens": 8, "temperature": 1, "seed": 3 });
    let one = post(server.address, "/v1/completions", &body).ok();
    let three = post(
        server.address,
        "/v1/completions",
        &with(&body, json!({ "n": 3 })),
    )
    .ok();
    let texts: Vec<&Value> = (0..3).map(|i| &three["choices"][i]["text"]).collect();
    assert_eq!(*texts[0], one["choices"][0]["text"]);
    assert!(texts[0] != texts[1] && texts[1] != texts[2]);
    assert_eq!(
        three["usage"]["prompt_tokens"],
        one["usage"]["prompt_tokens"]
    );
    assert_eq!(three["usage"]["completion_tokens"], 24);

    let streamed = with(&body, json!({ "n": 3, "stream": true }));
    let chunks = chunks(&post(server.address, "/v1/completions", &streamed).events());
    for (index, text) in texts.iter().enumerate() {
        let own = chunks
            .iter()
            .filter(|chunk| chunk["choices"][0]["index"] == index);
        let found: String = own
            .filter_map(|c| c["choices"][0]["text"].as_str())
            .collect();
        assert_eq!(found, text.as_str().unwrap());
    }
}

#[test]
fn prompts_are_texts_or_ids_and_may_be_several() {
    let server = Running::usual();
    let ids = post(
        server.address,
        "/tokenize",
        &json!({ "prompt": "And it came" }),
    )
    .ok();
    let ask = |prompt: Value| {
        let body = json!({ "prompt": prompt, "max_tokens": 6 });
        post(server.address, "/v1/completions", &body).ok()
    };
    let by_text = ask(json!("And it came"));
    let by_ids = ask(ids["tokens"].clone());
    assert_eq!(by_text["choices"][0]["text"], by_ids["choices"][0]["text"]);
    let both = ask(json!(["And it came", "ROMEO:"]));
    assert_eq!(both["choices"][0]["text"], by_text["choices"][0]["text"]);
    assert_eq!(
        both["choices"][1]["text"],
        ask(json!("ROMEO:"))["choices"][0]["text"]
    );
    assert_eq!(both["choices"][1]["index"], 1);
}

#[test]
fn an_echo_has_the_prompt_with_its_log_probabilities() {
    let server = Running::usual();
    let body =
        json!({ "prompt": "And it came to pass", "max_tokens": 0, "echo": true, "logprobs": 2 });
    let answer = post(server.address, "/v1/completions", &body).ok();
    let choice = &answer["choices"][0];
    assert_eq!(
        (&choice["text"], &choice["finish_reason"]),
        (&json!("And it came to pass"), &json!("length"))
    );
    let logprobs = &choice["logprobs"];
    let tokens: String = logprobs["tokens"]
        .as_array()
        .unwrap()
        .iter()
        .filter_map(Value::as_str)
        .collect();
    assert_eq!(tokens, "And it came to pass");
    assert!(logprobs["token_logprobs"][0].is_null());

    let model = model().unwrap();
    let ids = model
        .tokenizer()
        .unwrap()
        .encode("And it came to pass")
        .unwrap();
    let logits = model.logits(&ids).unwrap().squeeze(0).unwrap();
    let rows: Vec<Vec<f32>> = logits.to_vec2().unwrap();
    for (place, row) in rows.iter().enumerate().take(ids.len() - 1) {
        let total = row.iter().map(|x| f64::from(*x).exp()).sum::<f64>().ln();
        let expected = f64::from(row[ids[place + 1] as usize]) - total;
        let found = logprobs["token_logprobs"][place + 1].as_f64().unwrap();
        assert!(
            (found - expected).abs() < 1e-3,
            "{place}: {found} {expected}"
        );
    }
    assert_eq!(logprobs["text_offset"][1], "And".len());
    assert!(logprobs["top_logprobs"][1].as_object().unwrap().len() >= 2);
}

#[test]
fn log_probabilities_of_a_chat_are_those_of_its_tokens() {
    let server = Running::usual();
    let body = json!({ "messages": [{ "role": "user", "content": "Hi" }], "max_tokens": 5,
                       "logprobs": true, "top_logprobs": 3 });
    let answer = post(server.address, "/v1/chat/completions", &body).ok();
    let choice = &answer["choices"][0];
    let content = choice["logprobs"]["content"].as_array().unwrap();
    let tokens: String = content
        .iter()
        .filter_map(|one| one["token"].as_str())
        .collect();
    assert_eq!(tokens, choice["message"]["content"].as_str().unwrap());
    for one in content {
        let top = one["top_logprobs"].as_array().unwrap();
        assert_eq!(top.len(), 3);
        assert_eq!(
            one["logprob"], top[0]["logprob"],
            "greedy decoding takes the most likely"
        );
    }

    let chunks = chunks(
        &post(
            server.address,
            "/v1/chat/completions",
            &with(&body, json!({ "stream": true })),
        )
        .events(),
    );
    let streamed: Vec<&Value> = chunks
        .iter()
        .filter_map(|chunk| chunk["choices"][0]["logprobs"]["content"].as_array())
        .flatten()
        .collect();
    assert_eq!(streamed, content.iter().collect::<Vec<_>>());
}

#[test]
fn stop_strings_biases_and_penalties_take_part() {
    let server = Running::usual();
    let ask = |more: Value| {
        let body = json!({ "prompt": "In the beginning", "max_tokens": 24 });
        let answer = post(server.address, "/v1/completions", &with(&body, more)).ok();
        answer["choices"][0].clone()
    };
    let plain = ask(json!({}));
    let text = plain["text"].as_str().unwrap();
    let word = text.split_whitespace().nth(2).unwrap();
    let stopped = ask(json!({ "stop": [word] }));
    assert_eq!(stopped["finish_reason"], "stop");
    assert_eq!(stopped["text"], text.split_once(word).unwrap().0);

    let first =
        post(server.address, "/tokenize", &json!({ "content": text })).ok()["tokens"][0].clone();
    let without = ask(json!({ "logit_bias": { first.to_string(): -100 } }));
    assert_ne!(without["text"], plain["text"]);
    let penalised = ask(json!({ "presence_penalty": 2, "frequency_penalty": 2 }));
    assert_ne!(penalised["text"], plain["text"]);
}

#[test]
fn texts_become_tokens_and_texts_again() {
    let server = Running::usual();
    let text = "Straße, 字 and 🙂";
    let tokens = post(server.address, "/tokenize", &json!({ "content": text })).ok();
    assert_eq!(tokens["count"], tokens["tokens"].as_array().unwrap().len());
    let body = json!({ "tokens": tokens["tokens"] });
    let back = post(server.address, "/detokenize", &body).ok();
    assert_eq!(
        (&back["content"], &back["prompt"]),
        (&json!(text), &json!(text))
    );
    let chat = json!({ "messages": [{ "role": "user", "content": "Hi" }] });
    let tokens = post(server.address, "/v1/tokenize", &chat).ok();
    let body = json!({ "tokens": tokens["tokens"] });
    let back = post(server.address, "/detokenize", &body).ok();
    assert_eq!(back["content"], "USER: Hi\nASSISTANT:");
}

#[test]
fn the_page_and_the_metrics_are_served() {
    let server = Running::usual();
    let page = get(server.address, "/");
    assert!(page.body.starts_with("<!DOCTYPE html>") || page.body.starts_with("<!doctype html>"));
    assert_eq!(page.header("x-content-type-options"), Some("nosniff"));
    let body = json!({ "prompt": "a", "max_tokens": 5 });
    post(server.address, "/v1/completions", &body).ok();
    server.wait_until_idle();
    assert_eq!(server.metric("generation_tokens_total"), 5.0);
    assert_eq!(server.metric("time_to_first_token_seconds_count"), 1.0);
    assert_eq!(server.metric("inter_token_latency_seconds_count"), 4.0);
    assert_eq!(
        server.metric("request_success_total{finished_reason=\"length\"}"),
        1.0
    );
}

#[test]
fn a_chat_without_a_length_may_fill_the_context() {
    let server = Running::usual();
    let body = json!({ "messages": [{ "role": "user", "content": "Hi" }], "ignore_eos": true });
    let answer = post(server.address, "/v1/chat/completions", &body).ok();
    assert_eq!(answer["usage"]["total_tokens"], CONTEXT);
}
