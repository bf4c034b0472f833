//! The house's order: who may depend on whom, how long a file may be, what must not be left behind.
//! See CONTRIBUTING.md for the reasons. Each check is a function over text, tested on text of its
//! own.

use std::path::{Path, PathBuf};

const LONGEST_FILE: usize = 500;
const LONGEST_MAIN: usize = 40;
const LONGEST_FUNCTION: usize = 80;
const LONGEST_README: usize = 110;
const LONGEST_ARCHITECTURE: usize = 150;
const LARGEST_FILE: u64 = 12 * 1024 * 1024;

/// Package → packages of this workspace it may depend on. Test dependencies are free.
const EDGES: &[(&str, &[&str])] = &[
    ("crates/kernels", &[]),
    ("crates/affine", &["llm-int8-kernels"]),
    ("crates/hub", &[]),
    ("crates/cuda", &[]),
    ("crates/nn", &["llm-int8-kernels"]),
    (
        "crates/decoder",
        &["llm-int8-nn", "llm-int8-kernels", "llm-int8-cuda"],
    ),
    (
        "crates/llm",
        &[
            "llm-int8-decoder",
            "llm-int8-nn",
            "llm-int8-hub",
            "llm-int8-tiny-gpt2",
        ],
    ),
    ("models/tiny-gpt2", &[]),
    (".", &["llm-int8", "llm-int8-affine"]),
];

/// Folder → modules of its crate that it may not name.
const LAYERS: &[(&str, &[&str])] = &[
    ("crates/nn/src/module/", &["linear", "layers", "checkpoint"]),
    ("crates/nn/src/linear/", &["layers", "checkpoint"]),
    ("crates/nn/src/layers/", &["checkpoint"]),
    ("crates/nn/src/checkpoint/", &["layers"]),
    // A family is data, and so is a plan; executors know the plan and nothing of families.
    (
        "crates/decoder/src/families/",
        &["plan", "decoder", "load", "pass", "execute", "placement"],
    ),
    (
        "crates/decoder/src/plan/",
        &[
            "families",
            "decoder",
            "load",
            "pass",
            "execute",
            "placement",
        ],
    ),
    (
        "crates/decoder/src/execute/",
        &["families", "template", "load", "spec"],
    ),
];

/// Where unsafe code may be.
const UNSAFE: &[&str] = &[
    "crates/kernels/",
    "crates/cuda/",
    "crates/nn/src/checkpoint/mmap.rs",
];
/// Where the environment may be read and where lines may be printed.
const ENVIRONMENT: &[&str] = &[
    "crates/cli/",
    "tests/",
    "crates/hub/src/config.rs",
    "crates/cuda/src/testing.rs",
    "examples/",
    "benches/",
    "build.rs",
];
const PRINTING: &[&str] = &[
    "crates/cli/",
    "tests/",
    "crates/cuda/src/testing.rs",
    "examples/",
    "benches/",
    "build.rs",
];

fn root() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR"))
}

/// Every file below the root with one of these endings, by its path from there.
fn files(endings: &[&str]) -> Vec<(String, PathBuf)> {
    let mut found = Vec::new();
    let mut folders = vec![root()];
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(&folder).unwrap().flatten() {
            let (path, name) = (entry.path(), entry.file_name().into_string().unwrap());
            if path.is_dir() {
                if !["target", ".git", "scratch"].contains(&name.as_str()) {
                    folders.push(path);
                }
            } else if endings.iter().any(|ending| name.ends_with(ending)) {
                let relative = path.strip_prefix(root()).unwrap().display().to_string();
                found.push((relative, path));
            }
        }
    }
    found.sort();
    found
}

/// Runs a check over every source file and fails with all it found.
fn check(endings: &[&str], find: impl Fn(&str, &str) -> Vec<(usize, String)>) {
    let mut findings = Vec::new();
    for (name, path) in files(endings) {
        for (line, text) in find(&name, &std::fs::read_to_string(path).unwrap()) {
            findings.push(format!("{name}:{line}: {text}"));
        }
    }
    assert!(findings.is_empty(), "\n{}", findings.join("\n"));
}

/// The line without its comment (which may speak of anything).
fn code(line: &str) -> &str {
    line.split("//").next().unwrap_or_default()
}

fn lines_with(text: &str, what: impl Fn(&str) -> Option<String>) -> Vec<(usize, String)> {
    text.lines()
        .enumerate()
        .filter_map(|(i, line)| Some((i + 1, what(line)?)))
        .collect()
}

fn too_long(text: &str, limit: usize) -> Vec<(usize, String)> {
    let count = text.lines().count();
    if count > limit {
        vec![(count, format!("{count} lines; at most {limit}"))]
    } else {
        Vec::new()
    }
}

/// Functions with more lines than `limit`, from the line of `fn` to the closing brace, as rustfmt indents them.
fn long_functions(text: &str, limit: usize) -> Vec<(usize, String)> {
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

fn leftovers(text: &str) -> Vec<(usize, String)> {
    // Put together here, so that this file does not find itself.
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
fn options_in_texts(text: &str) -> Vec<(usize, String)> {
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

fn forbidden(text: &str, words: &[&str], reason: &str) -> Vec<(usize, String)> {
    lines_with(text, |line| {
        let word = words.iter().find(|word| code(line).contains(**word))?;
        Some(format!("`{word}`: {reason}"))
    })
}

fn unsafe_code(text: &str) -> Vec<(usize, String)> {
    lines_with(text, |line| {
        let code = code(line)
            .replace("unsafe_code", "")
            .replace("unsafe_block", "");
        let word = code
            .split(|c: char| !c.is_alphanumeric() && c != '_')
            .any(|word| word == "unsafe");
        let quoted = code.contains('"');
        (word && !quoted).then(|| "unsafe code outside of its fence".to_owned())
    })
}

/// Packages of this workspace in the `[dependencies]` of a manifest.
fn own_dependencies(manifest: &str) -> Vec<String> {
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

/// The `[dependencies]` of a manifest, for every platform, by the names that code calls them by.
fn dependencies(manifest: &str) -> Vec<String> {
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

/// The first line of a fenced block after a line that holds `before`.
fn command_after<'a>(readme: &'a str, before: &str) -> Option<&'a str> {
    let mut lines = readme.lines().skip_while(|line| !line.contains(before));
    lines.find(|line| line.starts_with("```"))?;
    lines.next()
}

#[test]
fn dependencies_point_one_way() {
    for (folder, allowed) in EDGES {
        let Ok(manifest) = std::fs::read_to_string(root().join(folder).join("Cargo.toml")) else {
            continue;
        };
        for dependency in own_dependencies(&manifest) {
            assert!(
                allowed.contains(&dependency.as_str()),
                "{folder}/Cargo.toml may not depend on {dependency}"
            );
        }
    }
    for (folder, others) in LAYERS {
        assert!(root().join(folder).is_dir(), "{folder} is gone");
        let words: Vec<String> = others
            .iter()
            .map(|other| format!("crate::{other}"))
            .collect();
        let words: Vec<&str> = words.iter().map(String::as_str).collect();
        check(&[".rs"], |name, text| match name.starts_with(folder) {
            true => forbidden(text, &words, "this module must not know that one"),
            false => Vec::new(),
        });
    }
}

#[test]
fn every_dependency_is_used() {
    let sources = files(&[".rs"]);
    for (folder, _) in EDGES {
        let manifest = std::fs::read_to_string(root().join(folder).join("Cargo.toml")).unwrap();
        let own = if *folder == "." {
            "crates/cli/"
        } else {
            folder
        };
        let text: String = sources
            .iter()
            .filter(|(name, _)| name.starts_with(own) && !name.contains("/tests/"))
            .map(|(_, path)| std::fs::read_to_string(path).unwrap())
            .collect();
        for name in dependencies(&manifest) {
            assert!(
                text.contains(&format!("{name}::")) || text.contains(&format!("use {name};")),
                "{folder}/Cargo.toml: nothing uses {name}"
            );
        }
    }
}

#[test]
fn files_are_short() {
    check(&[".rs", ".cu"], |_, text| too_long(text, LONGEST_FILE));
    check(&["main.rs"], |name, text| match name {
        "crates/cli/main.rs" => too_long(text, LONGEST_MAIN),
        _ => Vec::new(),
    });
}

#[test]
fn functions_are_short() {
    // Tables of cases in tests may be long.
    check(&[".rs"], |name, text| {
        match name.starts_with("tests/") || name.contains("/tests/") {
            true => Vec::new(),
            false => long_functions(text, LONGEST_FUNCTION),
        }
    });
}

#[test]
fn front_pages_are_short() {
    check(&["README.md"], |name, text| match name {
        "README.md" => too_long(text, LONGEST_README),
        _ => Vec::new(),
    });
    check(&["ARCHITECTURE.md"], |_, text| {
        too_long(text, LONGEST_ARCHITECTURE)
    });
}

#[test]
fn libraries_do_not_name_options_of_the_program() {
    check(&[".rs"], |name, text| {
        let is_library = name.starts_with("crates/") && name.contains("/src/");
        match is_library {
            true => options_in_texts(text),
            false => Vec::new(),
        }
    });
}

#[test]
fn every_package_holds_its_licences() {
    for (folder, _) in EDGES {
        for name in ["LICENSE-APACHE", "LICENSE-MIT"] {
            let [own, copy] = [root().join(name), root().join(folder).join(name)]
                .map(|path| std::fs::read_to_string(path).unwrap_or_default());
            assert!(
                !own.is_empty() && own == copy,
                "{folder}/{name} is not a copy of {name}"
            );
        }
    }
}

#[test]
fn nothing_is_left_over() {
    check(&[".rs", ".cu", ".py", ".sh"], |_, text| leftovers(text));
}

#[test]
fn libraries_neither_print_nor_read_the_environment() {
    check(&[".rs"], |name, text| {
        match ENVIRONMENT.iter().any(|place| name.contains(place)) {
            true => Vec::new(),
            false => forbidden(text, &["env::var"], "a library reads no environment"),
        }
    });
    let print = ["println!", "eprintln!", " print!", " eprint!", "(print!"];
    check(&[".rs"], |name, text| {
        match PRINTING.iter().any(|place| name.contains(place)) {
            true => Vec::new(),
            false => forbidden(text, &print, "a library prints nothing"),
        }
    });
}

#[test]
fn unsafe_code_is_fenced() {
    check(&[".rs"], |name, text| {
        match UNSAFE.iter().any(|place| name.starts_with(place)) {
            true => Vec::new(),
            false => unsafe_code(text),
        }
    });
}

#[test]
fn every_library_says_what_it_is() {
    check(&["lib.rs"], |_, text| match text.starts_with("//!") {
        true => Vec::new(),
        false => vec![(
            1,
            "the file must open with //! and what the crate is".into(),
        )],
    });
}

#[test]
fn ci_runs_the_test_command_of_the_readme() {
    let readme = std::fs::read_to_string(root().join("README.md")).unwrap();
    let command = command_after(&readme, "passes the tests")
        .expect("README.md: a block after `passes the tests`");
    let ci = std::fs::read_to_string(root().join(".ci/run")).unwrap();
    assert!(
        ci.lines().any(|line| line == command),
        "`{command}` is not a line of .ci/run"
    );
}

#[test]
fn no_file_is_large() {
    for (name, path) in files(&[""]) {
        let size = std::fs::metadata(&path).map_or(0, |metadata| metadata.len());
        assert!(
            size <= LARGEST_FILE,
            "{name} has {size} bytes; at most {LARGEST_FILE}"
        );
    }
}

#[test]
fn the_checks_find_what_they_look_for() {
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
    assert!(
        Path::new(env!("CARGO_MANIFEST_DIR"))
            .join("tests/tidy.rs")
            .exists()
    );
}
