//! Chat, in the library and in the program. tiny-gpt2 has no chat template, so these tests supply
//! one.

use crate::support::{golden, llm_int8, llm_int8_with_input};
use llm_int8::decoder::LoadOptions;
use llm_int8::hub::HubConfig;
use llm_int8::nn::linear::{Int8Config, OutlierRule};
use llm_int8::{
    AutoModelForCausalLM, Chat, ChatMessage, FinishReason, GenerationConfig, LlmError, LoadConfig,
};
use std::ops::ControlFlow;
use tempfile::TempDir;

pub(crate) const TEMPLATE: &str = "{% for m in messages %}{{ m.role.upper() }}: {{ m.content }}\n{% endfor %}\
                        {% if add_generation_prompt %}ASSISTANT:{% endif %}";

fn model() -> AutoModelForCausalLM {
    // Outliers per row: a row's result does not depend on the rest of its batch.
    let int8 = Int8Config {
        outliers: OutlierRule::row(6.0),
        ..Int8Config::default()
    };
    let options = LoadOptions {
        int8: Some(int8),
        ..LoadOptions::default()
    };
    let hub = HubConfig {
        offline: true,
        ..HubConfig::from_env()
    };

    let config = LoadConfig {
        options,
        hub,
        ..LoadConfig::default()
    };
    AutoModelForCausalLM::from_pretrained("tiny-gpt2", &config).unwrap()
}

fn chat(model: &AutoModelForCausalLM) -> Chat<'_> {
    Chat::with_template(model, model.chat_template_of(TEMPLATE).unwrap())
}

fn config(max_new_tokens: usize) -> GenerationConfig {
    GenerationConfig {
        max_new_tokens: Some(max_new_tokens),
        ..GenerationConfig::default()
    }
}

fn go_on(_: &str) -> ControlFlow<()> {
    ControlFlow::Continue(())
}

#[test]
fn reusing_the_cache_between_turns_changes_no_reply() {
    let model = model();
    let config = config(12);
    let mut chat = chat(&model);
    let mut reused = Vec::new();
    for text in ["Who art thou?", "And whence comest thou?", "Go in peace."] {
        let before = [chat.messages(), &[ChatMessage::user(text)]].concat();
        let reply = chat.reply(text, &config, &mut go_on).unwrap();
        let whole = model
            .chat_template_of(TEMPLATE)
            .unwrap()
            .apply(&before, true)
            .unwrap();
        let alone = model
            .generation(&whole)
            .config(config.clone())
            .run()
            .unwrap();
        assert_eq!(reply.generated.text, alone.text, "{whole}");

        let timing = reply.generated.timing;
        let all = model
            .tokenizer()
            .unwrap()
            .encode_templated(&whole)
            .unwrap()
            .len();
        assert_eq!(timing.prompt_tokens + timing.reused_tokens, all);

        reused.push(timing.reused_tokens);
    }

    assert!(
        reused[0] == 0 && reused[1] > 10 && reused[2] > reused[1] + 10,
        "{reused:?}"
    );
    assert_eq!(chat.messages().len(), 6);

    chat.reset();
    assert!(chat.messages().is_empty());
}

#[test]
fn a_conversation_continues_after_a_stopped_reply() {
    let model = model();
    let mut chat = chat(&model);
    let mut pieces = 0;
    let reply = chat.reply("Who art thou?", &config(64), &mut |_| {
        pieces += 1;
        if pieces == 3 {
            ControlFlow::Break(())
        } else {
            ControlFlow::Continue(())
        }
    });
    let generated = reply.unwrap().generated;
    assert_eq!(
        (generated.finish_reason, generated.ids.len()),
        (FinishReason::Interrupted, 3)
    );
    assert_eq!(chat.messages()[1], ChatMessage::assistant(generated.text));
    assert!(chat.reply("Go on.", &config(4), &mut go_on).is_ok());
}

#[test]
fn a_full_context_drops_the_oldest_turns_and_reports_it() {
    let model = model();
    let mut chat = chat(&model);
    chat.push(ChatMessage::system("Speak as the king."));
    let long = "and the people of the land ".repeat(20);
    let mut forgotten = 0;
    for _ in 0..6 {
        forgotten += chat
            .reply(&long, &config(32), &mut go_on)
            .unwrap()
            .forgotten;
    }

    assert!(forgotten >= 4, "{forgotten}");
    assert_eq!(chat.messages()[0].role, "system");

    let before = chat.messages().to_vec();
    let error = chat
        .reply(&long.repeat(10), &config(32), &mut go_on)
        .unwrap_err();
    assert!(
        matches!(error, LlmError::TurnTooLong { .. })
            && error.to_string().contains("512 positions"),
        "{error}"
    );
    assert_eq!(
        chat.messages().last(),
        before.last(),
        "a failed turn is not part of the conversation"
    );
}

/// tiny-gpt2 has 512 positions: the requested 512 new tokens do not fit beside the prompt.
#[test]
fn a_reply_fills_the_remaining_context() {
    let model = model();
    let mut chat = chat(&model);
    let config = GenerationConfig {
        eos_token_ids: Vec::new(),
        ..config(512)
    };
    let generated = chat
        .reply("Who art thou?", &config, &mut go_on)
        .unwrap()
        .generated;
    assert_eq!(
        (
            generated.timing.prompt_tokens + generated.ids.len(),
            generated.finish_reason
        ),
        (512, FinishReason::Length)
    );

    let next = chat.reply("Go on.", &config, &mut go_on).unwrap();
    assert_eq!(
        next.forgotten, 2,
        "the two messages of the turn that filled the context"
    );
}

/// A file that holds a chat template, and its path.
pub(crate) fn template(text: &str) -> (TempDir, String) {
    let folder = TempDir::new().unwrap();
    let path = write_file(&folder, "template.jinja", text);
    (folder, path)
}

#[test]
fn the_program_reads_one_message_per_line() {
    let (_folder, template) = template(TEMPLATE);
    let arguments = [
        "chat",
        "tiny-gpt2",
        "--chat-template",
        &template,
        "-n",
        "8",
        "--system",
        "Be brief.",
    ];
    let output = llm_int8_with_input(
        &arguments,
        "Who art thou?\n\n/help\nGo in peace.\n/exit\nnot read\n",
    );
    let text = String::from_utf8(output.stdout).unwrap();
    let report = String::from_utf8(output.stderr).unwrap();
    assert!(output.status.success(), "{report}");

    let turns: Vec<&str> = report
        .lines()
        .filter(|line| line.contains("kept from before"))
        .collect();
    assert_eq!(turns.len(), 2, "{report}");
    assert!(
        turns[0].contains(", 0 kept from before, 8 written") && !turns[1].contains(", 0 kept"),
        "{report}"
    );
    assert!(
        !text.trim().is_empty() && report.contains("/reset forgets"),
        "{text}{report}"
    );
}

/// Writes a file and returns its path.
fn write_file(folder: &TempDir, name: &str, text: &str) -> String {
    let path = folder.path().join(name);
    std::fs::write(&path, text).unwrap();
    path.display().to_string()
}

/// Exit code and standard error of a chat with one message.
fn say_hi(template: &str, more: &[&str]) -> (i32, String) {
    let arguments = ["chat", "tiny-gpt2", "-n", "2", "--chat-template", template];
    let output = llm_int8_with_input(&[&arguments[..], more].concat(), "Hi\n");
    (
        output.status.code().unwrap(),
        String::from_utf8(output.stderr).unwrap(),
    )
}

#[test]
fn tools_and_documents_reach_the_template() {
    let folder = TempDir::new().unwrap();
    let template = write_file(
        &folder,
        "t.jinja",
        "{% if not (tools and documents) %}{{ raise_exception('given: ' ~ tools ~ documents) }}{% endif %}\
         {{ tools[0].function.name }}{{ documents | map(attribute='text') | join }}",
    );
    let tools = r#"[{"type": "function", "function": {"name": "thou"}}]"#;
    let tools = write_file(&folder, "tools.json", tools);
    let documents = r#"[{"text": " art"}, {"text": " king"}]"#;
    let documents = write_file(&folder, "documents.json", documents);

    let (code, text) = say_hi(&template, &["--tools", &tools, "--documents", &documents]);
    let read = model()
        .tokenizer()
        .unwrap()
        .encode_templated("thou art king")
        .unwrap()
        .len();
    assert!(
        code == 0 && text.contains(&format!("[{read} tokens read")),
        "{text}"
    );

    let (code, text) = say_hi(&template, &["--tools", &tools]);
    assert!(
        code == 1 && text.contains("given: [{'type': 'function'") && text.contains("}}]None"),
        "{text}"
    );
}

#[test]
fn tools_and_documents_that_cannot_be_read_are_rejected() {
    let folder = TempDir::new().unwrap();
    let template = write_file(&folder, "t.jinja", TEMPLATE);
    let broken = write_file(&folder, "broken.json", "{}");
    let texts = write_file(&folder, "texts.json", r#"["text"]"#);
    for (arguments, message) in [
        (["--tools", &broken], "broken.json is not a JSON list"),
        (
            ["--documents", &texts],
            "something that is not a JSON object",
        ),
        (["--tools", "nowhere.json"], "cannot read nowhere.json"),
    ] {
        let (code, text) = say_hi(&template, &arguments);
        assert!(code == 1 && text.contains(message), "{text}");
    }
}

#[test]
fn missing_broken_and_endless_templates_are_reported() {
    let error = |arguments: &[&str]| {
        let output = llm_int8_with_input(arguments, "Hi\nAgain\n");
        (
            output.status.code().unwrap(),
            String::from_utf8(output.stderr).unwrap(),
        )
    };

    let (code, text) = error(&["chat", "tiny-gpt2"]);
    assert!(
        code == 1 && text.contains("no chat template") && text.contains("--chat-template FILE"),
        "{text}"
    );

    let (_folder, endless) =
        template("{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}");
    let (code, text) = error(&["chat", "tiny-gpt2", "--chat-template", &endless]);
    assert_eq!(
        (code, text.matches("does not come to an end").count()),
        (1, 2),
        "{text}"
    );
    assert!(text.contains("no turn got a reply"), "{text}");

    let (_folder, picky) =
        template("{% if messages[-1].content == 'Hi' %}{{ raise_exception('no Hi') }}{% endif %}x");
    let (code, text) = error(&["chat", "tiny-gpt2", "-n", "2", "--chat-template", &picky]);
    assert!(
        code == 0 && text.contains("no Hi, line 1"),
        "one of two turns got a reply: {text}"
    );

    let (_folder, broken) = template("{% if %}");
    let (code, text) = error(&["chat", "tiny-gpt2", "--chat-template", &broken]);
    assert!(code == 1 && text.contains("the chat template: "), "{text}");

    let (code, text) = error(&["chat", "tiny-gpt2", "--chat-template", "nowhere.jinja"]);
    assert!(
        code == 1 && text.contains("cannot read nowhere.jinja"),
        "{text}"
    );
}

#[test]
fn perplexity_is_printed_as_text_and_as_json() {
    let text = golden("smollm2/text.txt").display().to_string();
    let arguments = [
        "eval",
        "tiny-gpt2",
        "--text",
        &text,
        "--max-tokens",
        "300",
        "--window",
        "128",
    ];
    let output = llm_int8(&[&arguments[..], &["--json"]].concat());
    let json: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(
        json["tokens"],
        300 - 3,
        "the first token of each window is not scored"
    );

    let nll = json["mean_nll"].as_f64().unwrap();
    let perplexity = json["perplexity"].as_f64().unwrap();
    assert!((nll.exp() / perplexity - 1.0).abs() < 1e-9 && perplexity > 2.0 && perplexity < 4096.0);

    let plain = String::from_utf8(llm_int8(&arguments).stdout).unwrap();
    assert!(
        plain.starts_with(&format!("perplexity {perplexity:.4} ")),
        "{plain}"
    );

    let strided = llm_int8(&[&arguments[..], &["--json", "--stride", "32"]].concat());
    let strided: serde_json::Value = serde_json::from_slice(&strided.stdout).unwrap();
    assert_eq!(strided["tokens"], 299);
    assert!(
        strided["perplexity"].as_f64().unwrap() < perplexity,
        "more context predicts better"
    );

    for (more, message) in [
        (["--window", "1"], "window is 1"),
        (["--window", "600"], "window is 600"),
        (["--stride", "0"], "stride is 0"),
        (["--stride", "129"], "stride is 129"),
        (["--max-tokens", "1"], "two or more"),
        (["--text", "nowhere.txt"], "cannot read nowhere.txt"),
    ] {
        let mut arguments: Vec<&str> = arguments.to_vec();
        match arguments.iter().position(|argument| *argument == more[0]) {
            Some(index) => arguments[index + 1] = more[1],
            None => arguments.extend(more),
        }

        let output = llm_int8(&arguments);
        let error = String::from_utf8(output.stderr).unwrap();
        assert!(
            !output.status.success() && error.contains(message),
            "{error}"
        );
    }
}
