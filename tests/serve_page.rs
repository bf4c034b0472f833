//! The chat page with the server that it belongs to: `llm-int8 serve`. Without Chromium these tests
//! say that they are skipped; `chat_page.rs` tests what a server cannot be made to do.

use crate::chat::{TEMPLATE, template};
use crate::support::browser::{Browser, ENTER, ESCAPE};
use crate::support::served::Served;
use serde_json::{Value, json};

const IS_IDLE: &str = "page.running === null && page.messages.length";

fn open(served: &Served, width: usize) -> Option<Browser> {
    let browser = Browser::start(width)?;
    browser.visit(&format!("{}/", served.url));
    // The page waits for the model if it has to.
    browser.wait_for("page.models.length");
    Some(browser)
}

fn say(browser: &Browser, text: &str) {
    browser.press("#prompt", &format!("{text}{ENTER}"));
    browser.wait_for(IS_IDLE);
}

/// The console, but for answers that were 503 while the model was loading.
fn complaints(browser: &Browser) -> Vec<Value> {
    let is_loading = |text: &Value| text.as_str().is_some_and(|text| text.contains(" 503 "));
    let mut all = browser.complaints();
    all.retain(|one| !(one["source"] == "network" && is_loading(&one["message"])));
    all
}

#[test]
fn a_conversation_is_held_stopped_edited_and_kept() {
    let (_folder, template) = template(TEMPLATE);
    // The slowest kernels leave time to stop an answer.
    let slow = [("LLM_INT8_ISA", "scalar")];
    let served = Served::start(&["--chat-template", &template, "--threads", "1"], &slow);
    let Some(browser) = open(&served, 1000) else {
        return;
    };
    let facts = browser.text("facts");
    for part in [
        "8 bit",
        "512 tokens",
        "the CPU",
        "the same text, at any load",
    ] {
        assert!(facts.contains(part), "{facts}");
    }
    browser.click("#settings-open");
    browser.press("#max_tokens", "12");
    browser.press("#temperature", "1.5");
    browser.click("#settings-close");

    // A message of markup is echoed as text.
    let hostile = "<script>document.title = 'no'</script><b>Who art thou?</b>";
    say(&browser, hostile);
    assert_eq!(browser.text("log").matches(hostile).count(), 1);
    let page = "return [document.title, document.scripts.length, document.querySelectorAll('#log b, #log script').length]";
    let stats = browser.run("return document.querySelector('.stats').textContent");
    for part in [
        "tokens/s",
        "first token ",
        " read",
        "12 written",
        "seed ",
        "cut off at the maximum",
    ] {
        assert!(stats.as_str().unwrap().contains(part), "{stats}");
    }
    // The figures are the only bold text.
    assert_eq!(browser.run(page), json!(["tiny-gpt2", 1, 3]), "{stats}");

    // The same request gives the same text, streamed or not.
    let again = "return (async () => {
        const { system, ...asked } = page.messages[1].asked;
        const body = JSON.stringify({ ...asked, messages: messagesOf(1, system) });
        const headers = { 'Content-Type': 'application/json' };
        const answer = await fetch('v1/chat/completions', { method: 'POST', headers, body });
        return (await answer.json()).choices[0].message.content === page.messages[1].content;
    })();";
    assert_eq!(browser.run(again), true);

    // A long answer, stopped. Greedy, this model does not end by itself.
    for (field, value) in [("max_tokens", 400), ("temperature", 0)] {
        browser.run(&format!(
            "$('{field}').value = {value}; $('{field}').dispatchEvent(new Event('input'))"
        ));
    }
    browser.press("#prompt", &format!("Go on.{ENTER}"));
    browser.wait_for("page.running?.message.content.length > 20");
    browser.press("#prompt", ESCAPE);
    browser.wait_for(IS_IDLE);
    let messages = "return page.messages.map(m => [m.role, m.end ?? ''].join(' '))";
    let expected = ["user ", "assistant length", "user ", "assistant stopped"];
    assert_eq!(browser.run(messages), json!(expected));
    let running = "return (async () => /num_requests_running(\\{.*\\})? 0\\n/.test(await (await fetch('metrics')).text()))()";
    let ends = (0..100).any(|_| browser.run(running) == true);
    assert!(ends, "the server goes on with an answer that was stopped");

    browser.reload();
    browser.wait_for("page.models.length");
    assert_eq!(browser.run(messages), json!(expected));
    assert_eq!(
        browser.run("return document.querySelectorAll('.turn').length"),
        4
    );

    browser.run("$('max_tokens').value = 5; $('max_tokens').dispatchEvent(new Event('input'))");
    browser.click(".user .tools button");
    browser.press(".user textarea", &format!(" Speak.{ENTER}"));
    browser.wait_for(IS_IDLE);
    assert_eq!(browser.run(messages), json!(["user ", "assistant length"]));
    assert_eq!(
        browser.run("return page.messages[0].content"),
        format!("{hostile} Speak.")
    );

    browser.click(".regenerate:not([hidden])");
    browser.wait_for("page.running === null && page.messages.length === 2");
    browser.is_telephone(360, 640);
    let widths =
        "return [document.documentElement, $('scroll')].map(e => e.scrollWidth - e.clientWidth)";
    assert_eq!(browser.run(widths), json!([0, 0]));
    assert_eq!(complaints(&browser), [] as [Value; 0]);
}

#[test]
fn a_key_is_asked_for_and_the_servers_errors_are_shown() {
    let (folder, template) = template(TEMPLATE);
    let keys = folder.path().join("keys");
    std::fs::write(&keys, "sk-one\nsk-two\n").unwrap();
    let keys = keys.display().to_string();
    let served = Served::start(
        &["--chat-template", &template, "--api-key-file", &keys],
        &[],
    );
    let Some(browser) = Browser::start(700) else {
        return;
    };
    browser.visit(&format!("{}/", served.url));
    browser.wait_for("document.querySelector('.note input')");
    browser.press(".note input", &format!("sk-two{ENTER}"));
    browser.wait_for("page.models.length");

    browser.press(
        "#prompt",
        &format!("{}{ENTER}", "and the people of the land ".repeat(100)),
    );
    browser.wait_for("document.querySelector('.note.bad')");
    let told = browser.text("notice");
    assert!(
        told.contains("maximum context length is 512 tokens"),
        "{told}"
    );
    assert!(told.contains("New chat"), "{told}");
}
