//! `llm-int8 chat --server` with `llm-int8 serve`.

use crate::chat::{TEMPLATE, template};
use crate::support::served::Served;
use crate::support::{llm_int8_with_input, stderr, stdout};

/// Chats when the model is loaded.
fn chat(served: &Served, more: &[&str], input: &str) -> std::process::Output {
    let arguments = [&["chat", "--server", &served.url][..], more].concat();
    for _ in 0..600 {
        let output = llm_int8_with_input(&arguments, input);
        if !stderr(&output).contains("(status 503)") {
            return output;
        }
        std::thread::sleep(std::time::Duration::from_millis(100));
    }
    panic!("the server does not load its model");
}

#[test]
fn a_chat_with_a_server_is_the_chat_with_the_model() {
    let (_folder, template) = template(TEMPLATE);
    let served = Served::start(&["--chat-template", &template], &[]);
    let options = ["--system", "Be brief.", "-n", "12"];
    let input = "Who art thou?\nAnd whence comest thou?\n/reset\nGo in peace.\n";
    for sampling in [
        &["--greedy"][..],
        &["-t", "0.9", "--top-k", "40", "--seed", "5"],
    ] {
        let here = [
            "chat",
            "tiny-gpt2",
            "--outliers",
            "row",
            "--chat-template",
            &template,
        ];
        let here = [&here[..], &options, sampling].concat();
        let here = stdout(&llm_int8_with_input(&here, input));
        let output = chat(&served, &[&options[..], sampling].concat(), input);
        assert_eq!(stdout(&output), here, "{sampling:?}");
        let told = stderr(&output);
        assert!(
            told.starts_with("chatting with tiny-gpt2 on 127.0.0.1:"),
            "{told}"
        );
        assert_eq!(told.matches(", 12 written, ").count(), 3, "{told}");
    }

    // The context of 512 tokens is full after some turns.
    let long = format!("{}\n", "and the people of the land ".repeat(20)).repeat(5);
    let output = chat(&served, &["-n", "32"], &long);
    assert!(output.status.success(), "{}", stderr(&output));
    assert!(
        stderr(&output).contains("old messages forgotten"),
        "{}",
        stderr(&output)
    );
}

#[test]
fn refusals_of_the_server_are_told() {
    let (folder, template) = template(TEMPLATE);
    let file = |name: &str, text: &str| {
        let path = folder.path().join(name);
        std::fs::write(&path, text).unwrap();
        path.display().to_string()
    };
    let (keys, one, other) = (
        file("keys", "sk-one\n"),
        file("one", "sk-one"),
        file("other", "sk-other"),
    );
    let served = Served::start(
        &["--chat-template", &template, "--api-key-file", &keys],
        &[],
    );

    let output = chat(&served, &["--api-key-file", &one, "-n", "2"], "Hi\n");
    assert!(output.status.success(), "{}", stderr(&output));
    for (more, message) in [
        (&["--model", "m"][..], "wants another API key (status 401)"),
        (
            &["--model", "m", "--api-key-file", &other],
            "wants another API key (status 401)",
        ),
        (
            &["--model", "m", "--api-key-file", &one],
            "does not know this model or address (status 404)",
        ),
    ] {
        let output = chat(&served, more, "Hi\n");
        let told = stderr(&output);
        assert!(
            output.status.code() == Some(1) && told.contains(message),
            "{told}"
        );
        assert!(!told.contains("sk-"), "{told}");
    }
    let long = "and the people of the land ".repeat(100);
    let output = chat(&served, &["--api-key-file", &one], &long);
    let told = stderr(&output);
    assert!(
        told.contains("(status 400): This model's maximum context length is 512"),
        "{told}"
    );
}
