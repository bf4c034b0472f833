use super::*;
use llm_int8::hub::{HubConfig, NoProgress};

fn tokenizer() -> Tokenizer {
    Tokenizer::from_pretrained("tiny-gpt2", &HubConfig::default(), &NoProgress).unwrap()
}

fn grammars(tokenizer: &Tokenizer) -> Grammars {
    let config = GenerationConfig {
        eos_token_ids: vec![0],
        ..GenerationConfig::default()
    };
    Grammars::new(tokenizer, &config, HashMap::new()).unwrap()
}

/// Whether `text` is a beginning of what the shape allows, and whether it may end there.
fn follows(shape: &Shape<'_>, text: &str) -> (bool, bool) {
    let tokenizer = tokenizer();
    let mut constraint = grammars(&tokenizer).constraint(shape).unwrap();
    for id in tokenizer.encode(text).unwrap() {
        let mask = constraint.allowed().unwrap().unwrap();
        if !mask.allows(id) {
            return (false, false);
        }
        if constraint.accept(id).unwrap() {
            return (true, true);
        }
    }
    (true, constraint.allowed().unwrap().unwrap().allows(0))
}

fn tool(name: &str, is_strict: bool) -> Tool {
    Tool {
        name: name.into(),
        parameters: json!({
            "type": "object",
            "properties": { "x": { "type": "integer" } },
            "required": ["x"],
            "additionalProperties": false,
        }),
        is_strict,
        whole: Value::Null,
    }
}

#[test]
fn json_follows_its_schema() {
    let schema = json!({
        "type": "object",
        "properties": { "name": { "type": "string" }, "age": { "$ref": "#/$defs/age" } },
        "required": ["name", "age"],
        "additionalProperties": false,
        "$defs": { "age": { "type": "integer" } },
    });
    let shape = Shape::Json(&schema);
    assert_eq!(
        follows(&shape, "{\"name\": \"Ruth\", \"age\": 7}"),
        (true, true)
    );
    assert_eq!(follows(&shape, "{\"name\": \"Ruth\""), (true, false));
    assert_eq!(
        follows(&shape, "{\"name\": \"Ruth\", \"age\": \"7"),
        (false, false)
    );
    assert_eq!(follows(&shape, "Ruth"), (false, false));
    let spaces = format!("{{{}", " ".repeat(60));
    assert_eq!(
        follows(&shape, &spaces),
        (false, false),
        "endless white space"
    );
}

#[test]
fn bad_schemas_are_errors() {
    let tokenizer = tokenizer();
    let grammars = grammars(&tokenizer);
    for schema in [
        json!({ "type": "nonsense" }),
        json!({ "$ref": "#/$defs/missing" }),
        json!({ "type": "string", "pattern": "(" }),
    ] {
        assert!(
            grammars.constraint(&Shape::Json(&schema)).is_err(),
            "{schema}"
        );
    }
}

#[test]
fn forced_calls_name_a_tool_and_follow_its_schema() {
    let (f, g) = (tool("f", false), tool("g", false));
    let call = |name: &str| format!("{{\"name\": \"{name}\", \"arguments\": {{\"x\": 1}}}}");
    let many = Shape::Calls {
        format: ToolFormat::Hermes,
        tools: vec![&f, &g],
        many: true,
    };
    let one = format!("<tool_call>\n{}\n</tool_call>", call("g"));
    assert_eq!(follows(&many, &one), (true, true));
    assert_eq!(follows(&many, &format!("{one}\n{one}")), (true, true));
    assert_eq!(follows(&many, "Hello"), (false, false));
    let unknown = format!("<tool_call>\n{}", call("h"));
    assert_eq!(follows(&many, &unknown), (false, false));

    let single = Shape::Calls {
        format: ToolFormat::Mistral,
        tools: vec![&f],
        many: false,
    };
    let list = format!("[TOOL_CALLS][{}]", call("f"));
    assert_eq!(follows(&single, &list), (true, true));

    let llama = Shape::Calls {
        format: ToolFormat::Llama,
        tools: vec![&f],
        many: false,
    };
    let call = "{\"name\": \"f\", \"parameters\": {\"x\": 1}}";
    assert_eq!(follows(&llama, call), (true, true));
}

#[test]
fn text_is_free_until_a_strict_call_begins() {
    let tools = [tool("f", true), tool("g", false)];
    let shape = Shape::StrictCalls {
        format: ToolFormat::Hermes,
        tools: &tools,
    };
    let call = |arguments: &str| {
        format!("Well.\n<tool_call>\n{{\"name\": \"f\", \"arguments\": {arguments}}}\n</tool_call>")
    };
    assert_eq!(follows(&shape, "No call <b>at all"), (true, true));
    assert_eq!(follows(&shape, &call("{\"x\": 1}")), (true, true));
    assert_eq!(follows(&shape, &call("{\"y\": 1}")), (false, false));
    let loose = "<tool_call>{\"name\": \"g\", \"arguments\": {\"y\": 1}}</tool_call> and text";
    assert_eq!(follows(&shape, loose), (true, true));

    let shape = Shape::StrictCalls {
        format: ToolFormat::Llama,
        tools: &tools,
    };
    assert_eq!(follows(&shape, "Words {"), (true, true));
    let call = "{\"name\": \"f\", \"parameters\": {\"x\": 1}}";
    assert_eq!(follows(&shape, call), (true, true));
    assert_eq!(
        follows(&shape, "{\"name\": \"f\", \"parameters\": {\"y"),
        (false, false)
    );
}
