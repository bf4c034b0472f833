//! What README.md and docs/ show is what happens: every console block runs, lists are those of the
//! code.

use llm_int8::decoder::FAMILIES;
use std::path::Path;
use std::process::{Command, Stdio};

/// Lines of a console block that stand for any number of lines.
const ANYTHING: &str = "…";

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

fn read(name: &str) -> String {
    std::fs::read_to_string(root().join(name)).unwrap()
}

/// README.md and the pages of docs/, by their paths from the root.
fn pages() -> Vec<String> {
    let mut pages = vec!["README.md".to_owned()];
    for entry in std::fs::read_dir(root().join("docs")).unwrap() {
        let name = entry.unwrap().file_name().into_string().unwrap();
        if name.ends_with(".md") {
            pages.push(format!("docs/{name}"));
        }
    }
    pages.sort();
    pages
}

/// The fenced blocks of a page in a language.
fn blocks(page: &str, language: &str) -> Vec<String> {
    let mut found = Vec::new();
    let mut inside: Option<String> = None;
    for line in page.lines() {
        match &mut inside {
            Some(block) if line.trim_start().starts_with("```") => {
                found.push(std::mem::take(block));
                inside = None;
            }
            Some(block) => {
                block.push_str(line);
                block.push('\n');
            }
            None if line.trim() == format!("```{language}") => inside = Some(String::new()),
            None => {}
        }
    }
    found
}

/// A command of a console block, what is typed into it, and what it prints.
struct Session {
    command: String,
    input: String,
    expected: Vec<String>,
}

fn sessions(block: &str) -> Vec<Session> {
    let mut sessions: Vec<Session> = Vec::new();
    for line in block.lines() {
        if let Some(command) = line.strip_prefix("$ ") {
            sessions.push(Session {
                command: command.to_owned(),
                input: String::new(),
                expected: Vec::new(),
            });
        } else if let Some(session) = sessions.last_mut() {
            match line.strip_prefix("> ") {
                Some(typed) => session.input.push_str(&format!("{typed}\n")),
                None => session.expected.push(line.to_owned()),
            }
        }
    }
    sessions
}

/// Whether lines are those expected, where `…` stands for any number of them.
fn fits(expected: &[String], found: &[&str]) -> bool {
    match expected.split_first() {
        None => found.is_empty(),
        Some((line, rest)) if line == ANYTHING => {
            (0..=found.len()).any(|skipped| fits(rest, &found[skipped..]))
        }
        Some((line, rest)) => {
            found.first().is_some_and(|first| first == line) && fits(rest, &found[1..])
        }
    }
}

/// Runs a command in a folder that has `scripts/` and `tests/`, with this build's program on PATH.
fn run(session: &Session, folder: &Path) -> String {
    let program = Path::new(env!("CARGO_BIN_EXE_llm-int8"));
    let path = format!(
        "{}:{}",
        program.parent().unwrap().display(),
        std::env::var("PATH").unwrap()
    );
    let mut child = Command::new("bash")
        .args(["-c", &session.command])
        .current_dir(folder)
        .env("PATH", path)
        .env("HF_HUB_OFFLINE", "1")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    std::io::Write::write_all(child.stdin.as_mut().unwrap(), session.input.as_bytes()).unwrap();
    let done = child.wait_with_output().unwrap();
    let errors = String::from_utf8_lossy(&done.stderr);
    assert!(done.status.success(), "{}: {errors}", session.command);
    let text = String::from_utf8(done.stdout).unwrap();
    if text.is_empty() {
        // A command that writes files tells so on standard error.
        return errors.into_owned();
    }
    text
}

#[test]
#[cfg(unix)]
fn every_console_block_prints_what_it_shows() {
    let weights = root().join("target/models/SmolLM2-135M-Instruct.Q4_1.gguf");
    let folder = tempfile::tempdir().unwrap();
    for name in ["scripts", "target"] {
        std::os::unix::fs::symlink(root().join(name), folder.path().join(name)).unwrap();
    }
    let mut count = 0;
    for page in pages() {
        for session in blocks(&read(&page), "console")
            .iter()
            .flat_map(|block| sessions(block))
        {
            if session.command.contains("fetch_smollm2") && !weights.exists() {
                eprintln!("skipped, as SmolLM2 is not there: {}", session.command);
                continue;
            }
            let found = run(&session, folder.path());
            let lines: Vec<&str> = found.trim_end().lines().map(str::trim_end).collect();
            assert!(
                fits(&session.expected, &lines),
                "{page}: `{}` prints\n{found}\nand not\n{}",
                session.command,
                session.expected.join("\n")
            );
            count += 1;
        }
    }
    assert!(count >= 5, "{count} blocks were found");
}

#[test]
fn the_main_command_of_the_readme_runs() {
    let readme = read("README.md");
    let commands = blocks(&readme, "sh");
    let main = commands
        .iter()
        .find(|block| block.contains("-- inspect"))
        .expect("README.md has a block that runs the main job");
    let session = Session {
        command: main.replace("cargo run --release --", "llm-int8"),
        input: String::new(),
        expected: Vec::new(),
    };
    let text = run(&session, root());
    for piece in [
        "GPT2LMHeadModel(",
        "transformer.h.0.attn.c_attn.weight torch.int8 (768, 256)",
        ", that the king of",
    ] {
        assert!(text.contains(piece), "`{piece}` is missing:\n{text}");
    }
}

#[test]
fn the_reference_of_the_program_is_current() {
    let done = Command::new(env!("CARGO_BIN_EXE_llm-int8"))
        .arg("reference")
        .output()
        .unwrap();
    let current = String::from_utf8(done.stdout).unwrap();
    assert!(current.contains("`llm-int8 run`") && !current.contains("llm-int8 reference"));
    assert_eq!(
        read("docs/cli.md"),
        current,
        "`cargo run --release -- reference > docs/cli.md` writes it anew"
    );
}

#[test]
fn the_library_of_the_readme_is_an_example_that_runs() {
    let block = blocks(&read("README.md"), "rust").remove(0);
    let example = read("examples/library.rs");
    let mut lines = example.lines().map(str::trim);
    for line in block.lines().map(str::trim).filter(|line| !line.is_empty()) {
        assert!(
            lines.any(|found| found == line),
            "examples/library.rs lacks, or has elsewhere: {line}"
        );
    }
}

#[test]
fn the_families_are_listed_once_and_whole() {
    let fidelity = read("docs/fidelity.md");
    let section = fidelity.split("\n## Families\n").nth(1).unwrap();
    let section = section.split("\n## ").next().unwrap();
    let mut listed: Vec<&str> = section.split('`').skip(1).step_by(2).collect();
    listed.sort_unstable();
    let mut families: Vec<&str> = FAMILIES.iter().map(|family| family.model_type).collect();
    families.sort_unstable();
    assert_eq!(listed, families);

    let readme = read("README.md");
    let count = format!("{} [families]", families.len());
    assert!(readme.contains(&count), "README.md does not say `{count}`");
    // Another page that names more than half of them holds another list, which nobody keeps.
    for page in pages().iter().filter(|page| *page != "docs/fidelity.md") {
        let text = read(page);
        let named = families
            .iter()
            .filter(|name| text.contains(&format!("`{name}`")))
            .count();
        assert!(2 * named <= families.len(), "{page} lists families");
    }
}

#[test]
fn links_of_the_documentation_lead_somewhere() {
    let mut pages = pages();
    pages.extend(
        [
            "ARCHITECTURE.md",
            "BENCHMARKS.md",
            "CONTRIBUTING.md",
            "SECURITY.md",
            "CHANGELOG.md",
        ]
        .map(str::to_owned),
    );
    for page in pages {
        let text = read(&page);
        let folder = Path::new(&page).parent().unwrap().to_owned();
        for link in text.split("](").skip(1) {
            let target = link.split(')').next().unwrap_or_default();
            if target.contains("://") {
                continue;
            }
            let (path, anchor) = target.split_once('#').unwrap_or((target, ""));
            let file = match path {
                "" => root().join(&page),
                path => root().join(&folder).join(path),
            };
            assert!(
                file.exists(),
                "{page} links to {target}, which is not there"
            );
            if !anchor.is_empty() {
                let text = std::fs::read_to_string(&file).unwrap();
                assert!(
                    anchors(&text).any(|found| found == anchor),
                    "{page} links to {target}, a heading that is not there"
                );
            }
        }
    }
}

/// The anchors that GitHub gives headings.
fn anchors(text: &str) -> impl Iterator<Item = String> + '_ {
    let headings = text.lines().filter(|line| line.starts_with('#'));
    headings.map(|line| {
        line.trim_start_matches('#')
            .trim()
            .to_lowercase()
            .chars()
            .filter(|c| c.is_alphanumeric() || matches!(c, ' ' | '-' | '_'))
            .map(|c| if c == ' ' { '-' } else { c })
            .collect()
    })
}

#[test]
fn console_blocks_are_compared_line_by_line() {
    let lines = |text: &str| text.lines().map(str::to_owned).collect::<Vec<_>>();
    assert!(fits(&lines("a\n…\nd"), &["a", "b", "c", "d"]));
    assert!(fits(&lines("…"), &[]));
    assert!(!fits(&lines("a\n…\nd"), &["a", "b"]));
    assert!(!fits(&lines("a"), &["a", "b"]));
    let found = sessions("$ chat x\n> Hi\nHello\n$ other");
    assert_eq!(found.len(), 2);
    assert_eq!(
        (found[0].input.as_str(), found[0].expected.as_slice()),
        ("Hi\n", &["Hello".to_owned()][..])
    );
    assert_eq!(
        blocks("x\n```sh\na\n```\n```console\nb\n```", "console"),
        ["b\n"]
    );
    assert_eq!(
        anchors("## What ran, and `where`?").next().unwrap(),
        "what-ran-and-where"
    );
}
