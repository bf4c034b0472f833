//! The checks of tests/tidy.rs as functions over text: each gives lines and what is wrong with
//! them.

/// The line without its comment, which may mention anything.
fn code(line: &str) -> &str {
    line.split("//").next().unwrap_or_default()
}

fn lines_with(text: &str, what: impl Fn(&str) -> Option<String>) -> Vec<(usize, String)> {
    text.lines()
        .enumerate()
        .filter_map(|(i, line)| Some((i + 1, what(line)?)))
        .collect()
}

pub(crate) fn too_long(text: &str, limit: usize) -> Vec<(usize, String)> {
    let count = text.lines().count();
    if count > limit {
        vec![(count, format!("{count} lines; at most {limit}"))]
    } else {
        Vec::new()
    }
}

/// Functions with more lines than `limit`, from the line of `fn` to the closing brace, as rustfmt
/// indents them.
pub(crate) fn long_functions(text: &str, limit: usize) -> Vec<(usize, String)> {
    let lines: Vec<&str> = text.lines().collect();
    let mut found = Vec::new();
    for (first, line) in lines.iter().enumerate() {
        let Some(name) = function_name(line) else {
            continue;
        };
        let indent = &line[..line.len() - line.trim_start().len()];
        let end = format!("{indent}}}");
        let length = lines[first..]
            .iter()
            .position(|line| {
                *line == end
                    || (line.starts_with(indent)
                        && line.ends_with(';')
                        && !line.starts_with(&format!("{indent} ")))
            })
            .map_or(1, |last| last + 1);
        if length > limit {
            found.push((
                first + 1,
                format!("`{name}` has {length} lines; at most {limit}"),
            ));
        }
    }
    found
}

/// The name of the function whose definition begins in this line.
fn function_name(line: &str) -> Option<&str> {
    let mut rest = line.trim_start();
    if let Some(after) = rest.strip_prefix("pub") {
        rest = after.trim_start_matches(|c: char| c != ' ').trim_start();
        // `pub(in crate::gemm)`
        rest = rest
            .split_once(") ")
            .map_or(rest, |(inside, after)| match inside.contains("fn ") {
                true => rest,
                false => after,
            });
    }
    for word in ["const ", "unsafe ", "extern \"C\" "] {
        rest = rest.strip_prefix(word).unwrap_or(rest);
    }
    rest.strip_prefix("fn ")?
        .split(|c: char| !c.is_alphanumeric() && c != '_')
        .next()
}

pub(crate) fn leftovers(text: &str) -> Vec<(usize, String)> {
    // In pieces, so that this file does not find itself.
    let words = [
        ["TO", "DO"],
        ["FIX", "ME"],
        ["XX", "X"],
        ["to", "do!("],
        ["unimple", "mented!("],
        ["db", "g!("],
    ];
    lines_with(text, |line| {
        let word = words
            .iter()
            .map(|parts| parts.concat())
            .find(|word| line.contains(word.as_str()));
        let ignored = line.contains("#[ignore") && !line.contains('"');
        word.map(|word| format!("{word} is left over"))
            .or(ignored.then(|| "ignored without a reason".into()))
    })
}

/// Options such as `--device` in string literals of code; comments and tests may name them.
pub(crate) fn options_in_texts(text: &str) -> Vec<(usize, String)> {
    let code = text.split("#[cfg(test)]").next().unwrap_or_default();
    lines_with(code, |line| {
        let line = line.trim_start();
        if line.starts_with("//") {
            return None;
        }
        let quoted = line.split('"').skip(1).step_by(2);
        let mut words = quoted.flat_map(|text| text.split([' ', '`', '(']));
        let option = words.find(|word| {
            word.strip_prefix("--")
                .is_some_and(|name| name.starts_with(|first: char| first.is_ascii_lowercase()))
        })?;
        Some(format!("`{option}` is an option of the program"))
    })
}

pub(crate) fn forbidden(text: &str, words: &[&str], reason: &str) -> Vec<(usize, String)> {
    lines_with(text, |line| {
        let word = words.iter().find(|word| code(line).contains(**word))?;
        Some(format!("`{word}`: {reason}"))
    })
}

pub(crate) fn unsafe_code(text: &str) -> Vec<(usize, String)> {
    lines_with(text, |line| {
        let code = code(line)
            .replace("unsafe_code", "")
            .replace("unsafe_block", "");
        let word = code
            .split(|c: char| !c.is_alphanumeric() && c != '_')
            .any(|word| word == "unsafe");
        let quoted = code.contains('"');
        (word && !quoted).then(|| "unsafe code is not allowed here".to_owned())
    })
}

/// Workspace crates in the `[dependencies]` of a manifest.
pub(crate) fn own_dependencies(manifest: &str) -> Vec<String> {
    let mut section = String::new();
    let mut found = Vec::new();
    for line in manifest.lines() {
        if line.starts_with('[') {
            section = line.to_owned();
        } else if section == "[dependencies]" && line.starts_with("llm-int8") {
            found.push(
                line.split(['.', ' ', '='])
                    .next()
                    .unwrap_or_default()
                    .to_owned(),
            );
        }
    }

    found
}

/// The `[dependencies]` of a manifest, for every platform, as names in Rust code.
pub(crate) fn dependencies(manifest: &str) -> Vec<String> {
    let mut is_inside = false;
    let mut found = Vec::new();
    for line in manifest.lines() {
        if line.starts_with('[') {
            is_inside = line.ends_with("dependencies]") && !line.contains("-dependencies]");
            is_inside &= !line.starts_with("[workspace");
        } else if is_inside && line.starts_with(|first: char| first.is_ascii_lowercase()) {
            let name = line.split(['.', ' ', '=']).next().unwrap_or_default();
            found.push(name.replace('-', "_"));
        }
    }

    found
}

/// The first line of the code block that follows a line containing `before`.
pub(crate) fn command_after<'a>(readme: &'a str, before: &str) -> Option<&'a str> {
    let mut lines = readme.lines().skip_while(|line| !line.contains(before));
    lines.find(|line| line.starts_with("```"))?;
    lines.next()
}

#[test]
fn every_check_finds_what_it_looks_for() {
    assert_eq!(too_long("a\nb\nc", 2).len(), 1);
    assert!(too_long("a\nb", 2).is_empty());
    let function = "impl X {\n    pub(crate) fn f(\n        a: u8,\n    ) {\n        a;\n    }\n}";
    assert_eq!(long_functions(function, 5), []);
    assert_eq!(
        long_functions(function, 4),
        [(2, "`f` has 5 lines; at most 4".to_owned())]
    );
    assert_eq!(
        long_functions("    fn f(&self);\n\n\n    fn g() {\n    }", 2),
        []
    );
    assert_eq!(function_name("pub unsafe fn f<T>("), Some("f"));
    assert_eq!(function_name("pub(in crate::gemm) fn f("), Some("f"));
    assert_eq!(function_name("let fn_name = 1;"), None);
    assert_eq!(options_in_texts("x(\"use --device cpu\")").len(), 1);
    assert!(options_in_texts("// \"--device\"\nx(\"a -- b --\")").is_empty());
    assert_eq!(
        leftovers(&["x", &["// TO", "DO: y"].concat()].join("\n")),
        [(2, ["TO", "DO is left over"].concat())]
    );
    assert_eq!(leftovers("#[ignore]").len(), 1);
    assert!(leftovers("#[ignore = \"needs the network\"]").is_empty());
    assert_eq!(
        forbidden("use crate::models::X;", &["crate::models"], "no").len(),
        1
    );
    assert!(forbidden("// crate::models", &["crate::models"], "no").is_empty());
    assert_eq!(unsafe_code("    unsafe { f() }").len(), 1);
    assert!(unsafe_code("#![expect(unsafe_code)] // unsafe").is_empty());

    let manifest =
        "[dependencies]\nllm-int8-nn.workspace = true\n[dev-dependencies]\nllm-int8-hub = \"1\"\n";
    assert_eq!(own_dependencies(manifest), ["llm-int8-nn"]);
    assert_eq!(dependencies(manifest), ["llm_int8_nn"]);

    let for_linux =
        "[target.'cfg(unix)'.dependencies]\nlibc = \"1\"\n[build-dependencies]\ncc = \"1\"\n";
    assert_eq!(dependencies(for_linux), ["libc"]);
    assert_eq!(
        command_after(
            "a\nthis passes the tests:\n```sh\ncargo x\n```",
            "passes the tests"
        ),
        Some("cargo x")
    );
}
