//! The chat page of the server in a browser, with a server that answers as it is told. Without
//! Chromium these tests say that they are skipped.

use crate::support::browser::{Browser, ENTER, ESCAPE, SHIFT};
use crate::support::fake_server::{Fake, FakeServer, Request};
use serde_json::{Value, json};
use sha2::{Digest, Sha256};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

const PAGE: &str = include_str!("../crates/server/src/page/chat.html");
const IS_IDLE: &str = "page.running === null && page.messages.length";

/// A server of the page, and of answers that depend on the request's last message.
fn server(answer: impl Fn(&str, &Request) -> Fake + Send + Sync + 'static) -> FakeServer {
    FakeServer::answering(move |request| match &request.line {
        line if line.starts_with("GET /llm/ ") => {
            Fake::new("200 OK", &["Content-Type: text/html; charset=utf-8"], PAGE)
        }
        line if line.starts_with("GET /llm/v1/models ") => models(request),
        line if line.starts_with("POST /llm/v1/chat/completions ") => {
            let messages = request.body["messages"].as_array().unwrap();
            let last = messages.last().unwrap()["content"].as_str().unwrap();
            answer(last, request)
        }
        line => Fake::new("404 Not Found", &[], &format!("no {line}")),
    })
}

fn models(_: &Request) -> Fake {
    let own = json!({
        "rule": "outliers of magnitude 6 and more, each row by itself",
        "dtype": "float16", "device": "cpu", "reproducible": true, "reason": null,
    });
    let model = json!({"id": "org/tiny<b>", "max_model_len": 8192, "llm_int8": own});
    let list = json!({"object": "list", "data": [model]}).to_string();
    Fake::new("200 OK", &["Content-Type: application/json"], &list)
}

/// A stream of a text, a word at a time.
fn stream(text: &str) -> Fake {
    let mut events = String::new();
    for word in text.split_inclusive(' ') {
        events += &format!(
            "data: {}\n\n",
            json!({"choices": [{"delta": {"content": word}}]})
        );
    }
    let end = json!({"choices": [{"delta": {}, "finish_reason": "stop"}]});
    let usage = json!({"choices": [], "usage": {"prompt_tokens": 1234, "completion_tokens": 7,
        "prompt_tokens_details": {"cached_tokens": 1000}}});
    Fake::stream(&format!(
        "{events}data: {end}\n\ndata: {usage}\n\ndata: [DONE]\n\n"
    ))
}

/// The page in a browser; `None`, with a message, without one.
fn open(server: &FakeServer) -> Option<Browser> {
    let browser = Browser::start(1000)?;
    browser.visit(&format!("{}/llm/", server.url()));
    browser.wait_for("page.models.length");
    Some(browser)
}

fn say(browser: &Browser, text: &str) {
    browser.press("#prompt", &format!("{text}{ENTER}"));
    browser.wait_for(IS_IDLE);
}

/// What the page itself complains of: a browser also lists answers with an error's status.
fn complaints(browser: &Browser) -> Vec<Value> {
    let all = browser.complaints();
    all.into_iter()
        .filter(|one| one["source"] != "network")
        .collect()
}

fn base64(bytes: &[u8]) -> String {
    const LETTERS: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let mut text = String::new();
    for three in bytes.chunks(3) {
        let number = (0..3).fold(0, |sum, at| {
            sum << 8 | usize::from(*three.get(at).unwrap_or(&0))
        });
        for place in 0..4 {
            match place <= three.len() {
                true => text.push(LETTERS[number >> (18 - 6 * place) & 63].into()),
                false => text.push('='),
            }
        }
    }
    text
}

/// The policy names the page's style sheet and script by their hashes; nothing else may run.
#[test]
fn the_policy_has_the_hashes_of_the_style_and_the_script() {
    assert_eq!(base64(b"light"), "bGlnaHQ=");
    for tag in ["style", "script"] {
        let (_, rest) = PAGE.split_once(&format!("<{tag}>")).unwrap();
        let (text, rest) = rest.split_once(&format!("</{tag}>")).unwrap();
        assert!(!rest.contains(&format!("<{tag}")), "there is one {tag}");
        let source = format!("{tag}-src 'sha256-{}'", base64(&Sha256::digest(text)));
        assert!(PAGE.contains(&source), "the policy must have {source}");
    }
    for forbidden in [
        "innerHTML",
        "insertAdjacentHTML",
        "document.write",
        "eval(",
        " style=",
        " onclick=",
    ] {
        assert!(!PAGE.contains(forbidden), "{forbidden}");
    }
}

#[test]
fn markup_is_text_and_markdown_is_nodes() {
    let hostile = "<script>document.title='x'</script> <img src=x onerror=\"document.title='x'\"> \
        [a](javascript:alert(1)) [b](data:text/html,x) [c](https://example.org/c_(d)) see https://example.org.";
    let markdown = "## Head\n\n1. **bold** and *it*\n   - `a*b*`\n2. two\n\n```html\n<b>&amp;</b>\n```\n\n\
        | a | b |\n|---|--:|\n| 1 | <i>2</i> |\n\n> quote\n\n---\n\nsnake_case_word 2 * 3 * 4\n<think>no";
    let server = server(move |last, _| {
        stream(if last.contains("img") {
            hostile
        } else {
            markdown
        })
    });
    let Some(browser) = open(&server) else { return };
    say(&browser, "<img src=y onerror=\"document.title='y'\">");
    let said = "return [...document.querySelectorAll('.said')].map(e => e.textContent)";
    assert_eq!(
        browser.run(said)[0],
        "<img src=y onerror=\"document.title='y'\">"
    );
    let shown = hostile.replace("[c](https://example.org/c_(d))", "c");
    assert_eq!(browser.run(said)[1], shown.as_str());
    let links =
        "return [...document.querySelectorAll('#log a')].map(e => [e.href, e.rel, e.target])";
    let link = |to: &str| json!([to, "noopener noreferrer", "_blank"]);
    let expected = [
        link("https://example.org/c_(d)"),
        link("https://example.org/"),
    ];
    assert_eq!(browser.run(links), json!(expected));

    say(&browser, "markdown");
    let tags = "return [...document.querySelectorAll('.turn:last-child .said *')]
        .map(e => e.localName + (e.children.length ? '' : ' ' + e.textContent))";
    let expected = [
        "h4 Head",
        "ol",
        "li",
        "strong bold",
        "em it",
        "ul",
        "li",
        "code a*b*",
        "li two",
        "div",
        "div",
        "span html",
        "button Copy",
        "pre",
        "code <b>&amp;</b>",
        "div",
        "table",
        "thead",
        "tr",
        "th a",
        "th b",
        "tbody",
        "tr",
        "td 1",
        "td <i>2</i>",
        "blockquote",
        "p quote",
        "hr ",
        "p",
        "br ",
    ];
    assert_eq!(browser.run(tags), json!(expected));
    let page = "return [document.title, document.images.length, document.scripts.length, $('name').textContent]";
    assert_eq!(browser.run(page), json!(["tiny<b>", 0, 1, "tiny<b>"]));
    assert_eq!(complaints(&browser), [] as [Value; 0]);
}

#[test]
fn an_answer_shows_its_figures_and_can_be_stopped_edited_and_asked_for_again() {
    let server = server(|last, _| match last {
        "slow" => stream(&"word ".repeat(500)).slowly(Duration::from_millis(10)),
        // A reply that arrives within a tick of the browser's clock has no rate.
        last => stream(&format!("You said: {last}")).slowly(Duration::from_millis(2)),
    });
    let Some(browser) = open(&server) else { return };
    let line = format!("one{SHIFT}{ENTER}{SHIFT}two");
    say(&browser, &line);
    let messages = "return page.messages.map(m => m.content)";
    assert_eq!(
        browser.run(messages),
        json!(["one\ntwo", "You said: one\ntwo"])
    );
    let stats = browser.run("return document.querySelector('.answer .stats').textContent");
    let stats = stats.as_str().unwrap();
    for part in [
        "tokens/s",
        "first token ",
        "1,234 read (1,000 from cache)",
        "7 written",
        "seed ",
    ] {
        assert!(stats.contains(part), "{stats}");
    }

    browser.press("#prompt", &format!("slow{ENTER}"));
    browser.wait_for("page.running?.message.content.length > 20");
    let live = "return [$('stop').hidden, $('send').hidden, document.querySelector('[aria-busy]').textContent.includes('word word')]";
    assert_eq!(browser.run(live), json!([false, true, true]));
    browser.press("#prompt", ESCAPE);
    browser.wait_for(IS_IDLE);
    let stopped = browser.run("return [page.messages[3].end, page.messages[3].content.length]");
    assert!(
        stopped[0] == "stopped" && stopped[1].as_u64().unwrap() < 2500,
        "{stopped}"
    );

    // The conversation outlives the page.
    browser.reload();
    browser.wait_for("page.models.length");
    assert_eq!(
        browser.run("return [page.messages.length, document.querySelectorAll('.turn').length]"),
        json!([4, 4])
    );

    browser.click(".regenerate:not([hidden])");
    browser.wait_for("page.running?.message.content.length > 20");
    browser.click("#stop");
    browser.wait_for(IS_IDLE);
    assert_eq!(browser.run(messages).as_array().unwrap().len(), 4);

    // What followed an edited message is gone.
    browser.click(".user .tools button");
    browser.press(".user textarea", &format!(" three{ENTER}"));
    browser.wait_for(IS_IDLE);
    let expected = json!(["one\ntwo three", "You said: one\ntwo three"]);
    assert_eq!(browser.run(messages), expected);
    let sent = server.requests().last().unwrap().body.clone();
    assert_eq!(
        sent["messages"],
        json!([{"role": "user", "content": "one\ntwo three"}])
    );
    assert_eq!(sent["model"], "org/tiny<b>");

    browser.click(".regenerate:not([hidden])");
    browser.wait_for("page.running === null && page.messages[1].isSame");
    assert!(browser.text("log").contains("the same text as before"));

    // Settings are sent, and a given seed is every answer's.
    browser.click("#settings-open");
    for (field, text) in [
        ("#system", "Be brief."),
        ("#temperature", "0.5"),
        ("#max_tokens", "9"),
        ("#seed", "3"),
    ] {
        browser.press(field, text);
    }
    browser.click("#settings-close");
    say(&browser, "four");
    let sent = server.requests().last().unwrap().body.clone();
    let asked = json!([
        sent["temperature"],
        sent["max_tokens"],
        sent["seed"],
        sent["messages"][0]
    ]);
    let system = json!({"role": "system", "content": "Be brief."});
    assert_eq!(asked, json!([0.5, 9, 3, system]));

    browser.click("#new");
    assert_eq!(
        browser.run("return [page.messages.length, $('welcome').hidden]"),
        json!([0, false])
    );
    assert_eq!(complaints(&browser), [] as [Value; 0]);
}

#[test]
fn errors_are_shown_and_a_key_is_asked_for() {
    let attempts = AtomicUsize::new(0);
    let server = server(move |last, request| {
        let has_key = request
            .headers
            .contains(&"authorization: bearer sk-1".to_owned());
        match last.rsplit('\n').next().unwrap() {
            "key" if !has_key => Fake::error(
                "401 Unauthorized",
                &[],
                "Incorrect API key provided.",
                "invalid_api_key",
            ),
            "busy" => Fake::error(
                "429 Too Many Requests",
                &["Retry-After: 7"],
                "The queue is full.",
                "queue_full",
            ),
            "later" if attempts.fetch_add(1, Ordering::Relaxed) == 0 => Fake::error(
                "503 Service Unavailable",
                &["Retry-After: 1"],
                "The model is loading.",
                "x",
            ),
            "gone" => Fake::stream("data: {\"choices\":[{\"delta\":{\"content\":\"Thou\"}}]}\n\n"),
            "failed" => Fake::stream("data: {\"error\":{\"message\":\"no memory\"}}\n\n"),
            "proxy" => Fake::new(
                "502 Bad Gateway",
                &["Content-Type: text/html"],
                "<h1>Bad</h1>",
            ),
            _ => stream("Ay."),
        }
    });
    let Some(browser) = open(&server) else { return };
    say(&browser, "key");
    let note = "return document.querySelector('.note')?.innerText.replaceAll('\\n\\n', '\\n')";
    let told = browser.run(note);
    assert!(
        told.as_str()
            .unwrap()
            .contains("wants an API key.\nIncorrect API key provided."),
        "{told}"
    );
    browser.press(".note input", &format!("sk-1{ENTER}"));
    browser.wait_for("page.messages.length === 2 && page.running === null");
    let stored = "return [JSON.stringify(localStorage).includes('sk-1'), JSON.stringify(sessionStorage).includes('sk-1')]";
    assert_eq!(browser.run(stored), json!([false, true]));

    say(&browser, "later");
    assert_eq!(browser.run("return page.messages.at(-1).content"), "Ay.");
    for (text, message) in [
        (
            "busy",
            "The server is busy.\nThe queue is full. Try again in 7 s.",
        ),
        ("gone", "The connection ended before the answer did."),
        ("failed", "The server failed.\nno memory"),
        ("proxy", "The server failed.\nIt answered with status 502."),
    ] {
        say(&browser, text);
        let told = browser.run(note);
        assert!(told.as_str().unwrap().contains(message), "{text}: {told}");
    }
    // What came stays; turns alternate all the same.
    let roles = "return page.messages.map(m => m.role[0] + (m.end ?? '')).join(' ')";
    assert_eq!(browser.run(roles), "u astop u astop u u alost u u");
    say(&browser, "end");
    let sent = server.requests().last().unwrap().body["messages"].clone();
    assert_eq!(sent[4], json!({"role": "user", "content": "busy\n\ngone"}));
    assert_eq!(
        sent[6],
        json!({"role": "user", "content": "failed\n\nproxy\n\nend"})
    );
    assert_eq!(complaints(&browser), [] as [Value; 0]);
}

/// The page's reader of events, at every place where a stream may be cut.
#[test]
fn the_page_reads_streams_that_are_cut_anywhere() {
    let server = server(|_, _| stream("Ay."));
    let Some(browser) = open(&server) else { return };
    let script = r#"
        const bytes = new TextEncoder().encode("data: a\r\n\r\n: ping\n\ndata:größe\rdata: 🙂\r\revent: x\ndata: [DONE]\n\n");
        const wanted = JSON.stringify(["a", "größe\n🙂", "[DONE]"]);
        return (async () => {
            for (let cut = 0; cut <= bytes.length; cut++) {
                const found = [];
                const body = new ReadableStream({ start(control) {
                    for (const piece of [bytes.slice(0, cut), bytes.slice(cut)]) if (piece.length) control.enqueue(piece);
                    control.close();
                } });
                for await (const data of events(new Response(body))) found.push(data);
                if (JSON.stringify(found) !== wanted) return [cut, found];
            }
            return "all";
        })();"#;
    assert_eq!(browser.run(script), "all");
}

/// Texts that would take the square of their length.
#[test]
fn hostile_markdown_is_drawn_in_time() {
    let server = server(|_, _| stream("Ay."));
    let Some(browser) = open(&server) else { return };
    let script = r##"
        const texts = ["*a ", "[", "[a](", "`a``b", "_a*b", "> ", "- ", "# " + " ".repeat(50), "|", "http://a.", "\\", "**", ")("];
        const slow = [];
        for (const text of texts) {
            const start = performance.now();
            showMarkdown(document.createElement("div"), text.repeat(100000 / text.length));
            const time = performance.now() - start;
            if (time > 2000) slow.push([text, time]);
        }
        return slow;"##;
    assert_eq!(browser.run(script), json!([]));
}

#[test]
fn the_page_fits_a_telephone_and_has_labels() {
    let code = format!(
        "```\n{}\n```\n\n| {} |\n|{}\n\n{}",
        "x".repeat(300),
        "column | ".repeat(12),
        "---|".repeat(13),
        "y".repeat(300)
    );
    let server = server(move |last, _| match last {
        "busy" => Fake::error("429 Too Many Requests", &[], &"z".repeat(300), "queue_full"),
        _ => stream(&code),
    });
    let Some(browser) = open(&server) else { return };
    browser.is_telephone(360, 640);
    let widths = "return [document.documentElement, $('scroll'), $('settings')].map(e => e.scrollWidth - e.clientWidth)";
    assert_eq!(browser.run(widths), json!([0, 0, 0]));
    say(&browser, &"w".repeat(300));
    say(&browser, "busy");
    browser.click("#settings-open");
    assert_eq!(browser.run(widths), json!([0, 0, 0]));
    let visible = "const box = $('settings').getBoundingClientRect(); return [box.left >= 0, box.right <= innerWidth]";
    assert_eq!(browser.run(visible), json!([true, true]));
    browser.click("#settings-close");
    let composer = "const box = $('send').getBoundingClientRect(); return [box.right <= innerWidth, box.bottom <= innerHeight]";
    assert_eq!(browser.run(composer), json!([true, true]));

    let unlabelled = "return [...document.querySelectorAll('input, textarea, select, [role=region], button')]
        .filter(e => !e.getAttribute('aria-label') && !e.labels?.length && !e.textContent.trim()).length";
    assert_eq!(browser.run(unlabelled), 0);

    // Colours follow the system until one chooses.
    let paper = "return getComputedStyle(document.body).backgroundColor";
    let before = browser.run(paper);
    browser.click("#theme");
    let light = browser.run(paper);
    browser.click("#theme");
    let dark = browser.run(paper);
    assert_ne!(light, dark);
    assert!(before == light || before == dark);
    browser.reload();
    browser.wait_for("page.models.length");
    assert_eq!(browser.run(paper), dark);
    assert_eq!(complaints(&browser), [] as [Value; 0]);
}
