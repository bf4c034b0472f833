//! Rules of the source tree: which crate may depend on which, how long a file may be, what must not
//! be left behind. CONTRIBUTING.md gives the reasons. The checks themselves are in
//! `support/source_rules.rs`.

use crate::support::source_rules::{
    command_after, dependencies, forbidden, leftovers, long_functions, options_in_texts,
    own_dependencies, too_long, unsafe_code,
};
use std::path::PathBuf;

const LONGEST_FILE: usize = 500;
const LONGEST_MAIN: usize = 40;
const LONGEST_FUNCTION: usize = 75;
const LONGEST_README: usize = 110;
const LONGEST_ARCHITECTURE: usize = 150;
const LARGEST_FILE: u64 = 12 * 1024 * 1024;

/// Crate → workspace crates it may depend on. Dev-dependencies are not restricted.
const ALLOWED_DEPENDENCIES: &[(&str, &[&str])] = &[
    ("crates/kernels", &[]),
    ("crates/affine", &["llm-int8-kernels"]),
    ("crates/files", &[]),
    ("crates/hub", &["llm-int8-files"]),
    ("crates/cuda", &[]),
    // llm-int8-cuda only with the feature `candle-cuda`.
    (
        "crates/nn",
        &["llm-int8-files", "llm-int8-kernels", "llm-int8-cuda"],
    ),
    (
        "crates/decoder",
        &["llm-int8-nn", "llm-int8-kernels", "llm-int8-cuda"],
    ),
    (
        "crates/llm",
        &[
            "llm-int8-decoder",
            "llm-int8-nn",
            "llm-int8-files",
            "llm-int8-hub",
            "llm-int8-kernels",
            "llm-int8-tiny-gpt2",
        ],
    ),
    ("models/tiny-gpt2", &[]),
    ("crates/server", &["llm-int8", "llm-int8-files"]),
    (
        "crates/python",
        &["llm-int8", "llm-int8-affine", "llm-int8-server"],
    ),
    (
        ".",
        &[
            "llm-int8",
            "llm-int8-affine",
            "llm-int8-files",
            "llm-int8-server",
        ],
    ),
];

/// Folder → modules of its crate that it may not use.
const FORBIDDEN_MODULES: &[(&str, &[&str])] = &[
    ("crates/nn/src/module/", &["linear", "layers", "checkpoint"]),
    ("crates/nn/src/linear/", &["layers", "checkpoint"]),
    ("crates/nn/src/layers/", &["checkpoint"]),
    ("crates/nn/src/checkpoint/", &["layers"]),
    // Families and plans are data. Executors know plans, but not families.
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

/// Where unsafe code is allowed.
const UNSAFE_ALLOWED: &[&str] = &[
    "crates/kernels/",
    "crates/cuda/",
    "crates/nn/src/checkpoint/mmap.rs",
    "crates/nn/src/linear/cuda.rs",
    "crates/python/src/view.rs",
];

/// Where the environment may be read.
const ENVIRONMENT_ALLOWED: &[&str] = &[
    "crates/cli/",
    "tests/",
    "crates/hub/src/config.rs",
    "crates/cuda/src/testing.rs",
    "examples/",
    "benches/",
    "build.rs",
];

/// Where code may print.
const PRINTING_ALLOWED: &[&str] = &[
    "crates/cli/",
    "tests/",
    "crates/cuda/src/testing.rs",
    "crates/kernels/loom/",
    "examples/",
    "benches/",
    "build.rs",
];

fn root() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR"))
}

/// Every file of the tree with one of these endings: its path relative to the root, and its full
/// path.
fn files(endings: &[&str]) -> Vec<(String, PathBuf)> {
    let mut found = Vec::new();
    let mut folders = vec![root()];
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(&folder).unwrap().flatten() {
            let path = entry.path();
            let name = entry.file_name().into_string().unwrap();
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

/// Runs a check over every file with one of these endings, and fails with all findings.
fn check(endings: &[&str], find: impl Fn(&str, &str) -> Vec<(usize, String)>) {
    let mut findings = Vec::new();
    for (name, path) in files(endings) {
        for (line, text) in find(&name, &std::fs::read_to_string(path).unwrap()) {
            findings.push(format!("{name}:{line}: {text}"));
        }
    }

    assert!(findings.is_empty(), "\n{}", findings.join("\n"));
}

#[test]
fn dependencies_point_one_way() {
    for (folder, allowed) in ALLOWED_DEPENDENCIES {
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

    for (folder, others) in FORBIDDEN_MODULES {
        assert!(root().join(folder).is_dir(), "{folder} is gone");

        let words: Vec<String> = others
            .iter()
            .map(|other| format!("crate::{other}"))
            .collect();
        let words: Vec<&str> = words.iter().map(String::as_str).collect();
        check(&[".rs"], |name, text| match name.starts_with(folder) {
            true => forbidden(text, &words, "this module must not use that one"),
            false => Vec::new(),
        });
    }
}

#[test]
fn every_dependency_is_used() {
    let sources = files(&[".rs"]);
    for (folder, _) in ALLOWED_DEPENDENCIES {
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
    for (folder, _) in ALLOWED_DEPENDENCIES {
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
fn no_unfinished_or_debugging_code_is_left() {
    check(&[".rs", ".cu", ".py", ".sh"], |_, text| leftovers(text));
}

#[test]
fn libraries_neither_print_nor_read_the_environment() {
    check(&[".rs"], |name, text| {
        match ENVIRONMENT_ALLOWED
            .iter()
            .any(|allowed| name.contains(allowed))
        {
            true => Vec::new(),
            false => forbidden(text, &["env::var"], "libraries do not read the environment"),
        }
    });
    let print = ["println!", "eprintln!", " print!", " eprint!", "(print!"];
    check(&[".rs"], |name, text| {
        match PRINTING_ALLOWED
            .iter()
            .any(|allowed| name.contains(allowed))
        {
            true => Vec::new(),
            false => forbidden(text, &print, "libraries do not print"),
        }
    });
}

#[test]
fn unsafe_code_stays_where_it_is_allowed() {
    check(&[".rs"], |name, text| {
        match UNSAFE_ALLOWED
            .iter()
            .any(|allowed| name.starts_with(allowed))
        {
            true => Vec::new(),
            false => unsafe_code(text),
        }
    });
}

#[test]
fn every_library_opens_with_its_documentation() {
    check(&["lib.rs"], |_, text| match text.starts_with("//!") {
        true => Vec::new(),
        false => vec![(
            1,
            "the file must open with //! that says what the crate is".into(),
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
