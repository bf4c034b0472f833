use super::*;

fn call_of(name: &str, arguments: &str) -> Found {
    Found::Call(ToolCall {
        name: name.into(),
        arguments: arguments.into(),
    })
}

fn said(text: &str) -> Found {
    Found::Text(text.into())
}

/// Joins texts that only the pieces of the stream divided.
fn joined(all: Vec<Found>) -> Vec<Found> {
    let mut found = Vec::new();
    for one in all {
        match one {
            Found::Text(part) => text(part, &mut found),
            call => found.push(call),
        }
    }
    found
}

/// Parses `text` whole, by characters and in pieces of three bytes or more, which must give the
/// same.
fn parse(format: ToolFormat, whole: &str) -> Vec<Found> {
    let names = || vec!["f".to_owned(), "g".to_owned()];
    let run = |pieces: Vec<String>| {
        let mut parser = ToolParser::new(format, names());
        let mut all: Vec<Found> = pieces.iter().flat_map(|piece| parser.push(piece)).collect();
        all.extend(parser.finish());
        joined(all)
    };

    let once = run(vec![whole.to_owned()]);
    let letters: Vec<String> = whole.chars().map(String::from).collect();
    let threes = letters.chunks(3).map(<[String]>::concat).collect();
    assert_eq!(run(letters.clone()), once, "letter by letter: {whole}");
    assert_eq!(run(threes), once, "by three: {whole}");
    once
}

#[test]
fn hermes_calls_are_taken_out_of_the_text() {
    let two = "Let me see.\n<tool_call>\n{\"name\": \"f\", \"arguments\": {\"x\": \"é\"}}\n</tool_call>\n\
               <tool_call>\n{\"name\": \"g\", \"arguments\": {}}\n</tool_call>\n";
    assert_eq!(
        parse(ToolFormat::Hermes, two),
        [
            said("Let me see."),
            call_of("f", "{\"x\":\"é\"}"),
            call_of("g", "{}")
        ]
    );
}

#[test]
fn text_that_only_looks_like_a_call_is_not_lost() {
    for text in [
        "a < b and <tool",
        "<tool_call>\nnot JSON\n</tool_call> and more",
        "<tool_call>{\"name\": \"f\", \"argu",
        "<tool_call>",
        "  leading and trailing  \n",
        "",
    ] {
        let found = parse(ToolFormat::Hermes, text);
        let expected: Vec<Found> = (!text.is_empty()).then(|| said(text)).into_iter().collect();
        assert_eq!(found, expected, "{text:?}");
    }
}

#[test]
fn a_call_whose_end_mark_is_missing_counts_if_it_is_whole() {
    assert_eq!(
        parse(
            ToolFormat::Hermes,
            "<tool_call>{\"name\": \"f\", \"arguments\": {}}"
        ),
        [call_of("f", "{}")]
    );
}

#[test]
fn llama_calls_are_json_with_the_name_of_a_tool() {
    for text in [
        "{\"name\": \"f\", \"parameters\": {\"x\": 1}}",
        " <|python_tag|>{\"name\": \"f\", \"parameters\": {\"x\": 1}}",
    ] {
        assert_eq!(parse(ToolFormat::Llama, text), [call_of("f", "{\"x\":1}")]);
    }
    assert_eq!(
        parse(
            ToolFormat::Llama,
            "{\"name\":\"f\",\"parameters\":{}}; {\"name\":\"g\",\"parameters\":{}}"
        ),
        [call_of("f", "{}"), call_of("g", "{}")]
    );
    for text in [
        "The answer is {\"name\": \"f\"}",
        "{\"name\": \"unknown\", \"parameters\": {}} is JSON",
        "{nothing}",
        "{\"name\": \"f\", \"para",
    ] {
        assert_eq!(parse(ToolFormat::Llama, text), [said(text)]);
    }
}

#[test]
fn mistral_calls_are_a_list_or_a_name_with_arguments() {
    assert_eq!(
        parse(
            ToolFormat::Mistral,
            "Yes.[TOOL_CALLS] [{\"name\": \"f\", \"arguments\": {\"a\": [1]}}, {\"name\": \"g\", \"arguments\": {}}]"
        ),
        [
            said("Yes."),
            call_of("f", "{\"a\":[1]}"),
            call_of("g", "{}")
        ]
    );
    assert_eq!(
        parse(
            ToolFormat::Mistral,
            "[TOOL_CALLS]f[ARGS]{\"a\": 1}[TOOL_CALLS]g[CALL_ID]abc[ARGS]{}"
        ),
        [call_of("f", "{\"a\":1}"), call_of("g", "{}")]
    );
    for text in [
        "[TOOL_CALLS] {",
        "[TOOL_CALLS] [1]",
        "[TOOL_CALLS]f[ARGS]1 x",
        "[TOO much]",
    ] {
        assert_eq!(parse(ToolFormat::Mistral, text), [said(text)], "{text}");
    }
}

#[test]
fn text_flows_while_no_call_can_begin() {
    let mut parser = ToolParser::new(ToolFormat::Hermes, Vec::new());
    assert_eq!(parser.push("Hello "), [said("Hello")]);
    assert_eq!(parser.push("world <"), [said(" world")]);
    assert_eq!(parser.push("b>"), [said(" <b>")]);
    assert_eq!(parser.finish(), []);
}
