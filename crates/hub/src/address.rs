//! Parses the URL of a model on the hub, as copied from a browser.

use crate::error::{HubError, Result};
use crate::model_ref::{ModelRef, is_plain_name, is_plain_revision};

const HOSTS: [&str; 3] = ["huggingface.co", "www.huggingface.co", "hf.co"];

/// Pages of a repository that show files at a revision.
const VIEWS: [&str; 5] = ["tree", "blob", "resolve", "raw", "commit"];

/// First path segments of pages that are not models.
const OTHER_PAGES: [&str; 7] = [
    "datasets",
    "spaces",
    "collections",
    "papers",
    "docs",
    "blog",
    "api",
];

/// The path of a URL on the hub, without query and fragment; `None` if `name` is no such URL.
pub(crate) fn on_the_hub(name: &str) -> Option<&str> {
    let scheme = ["https://", "http://"]
        .iter()
        .find_map(|scheme| name.strip_prefix(scheme));
    let (host, path) = scheme.unwrap_or(name).split_once('/')?;
    let is_host = HOSTS.iter().any(|known| known.eq_ignore_ascii_case(host));

    is_host.then(|| {
        path.split(['?', '#'])
            .next()
            .unwrap_or_default()
            .trim_matches('/')
    })
}

/// Parses the path of a URL: `org/name`, or `org/name/tree/REVISION` and the other views; `org/`
/// may be missing. `name` is the whole URL, for error messages.
pub(crate) fn model(name: &str, path: &str) -> Result<ModelRef> {
    let refuse = |reason: String| HubError::InvalidName {
        name: name.to_owned(),
        reason,
    };
    let parts: Vec<&str> = path.split('/').collect();
    if OTHER_PAGES.contains(&parts[0]) {
        return Err(refuse(format!("{} on the hub are not models", parts[0])));
    }

    let has_owner = parts.len() > 1 && !VIEWS.contains(&parts[1]);
    let (repo, rest) = parts.split_at(if has_owner { 2 } else { 1 });
    if !repo.iter().all(|part| is_plain_name(part)) {
        return Err(refuse("it is not the address of a model".into()));
    }

    let repo = repo.join("/");
    let Some((view, rest)) = rest.split_first() else {
        return Ok(ModelRef::Hub {
            repo,
            revision: None,
        });
    };

    if !VIEWS.contains(view) || rest.is_empty() {
        return Err(refuse(format!("give {repo}")));
    }

    // A browser shows the slashes of a branch's name as %2F.
    let revision = rest[0].replace("%2F", "/").replace("%2f", "/");
    if !is_plain_revision(&revision) {
        return Err(refuse(format!(
            "`{revision}` is not a branch, tag or commit"
        )));
    }

    let Some(file) = rest[1..].last() else {
        return Ok(ModelRef::Hub {
            repo,
            revision: Some(revision),
        });
    };

    // The URL leads to a file or folder within the repository.
    Err(refuse(if file.to_ascii_lowercase().ends_with(".gguf") {
        "download the GGUF file first and give its path".into()
    } else if *view == "tree" {
        "a model in a folder of its repository cannot be loaded; download it and give its path"
            .into()
    } else {
        format!("it is the address of a file; give {repo}@{revision}")
    }))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn urls_of_models_are_parsed() {
        for (address, name) in [
            ("https://huggingface.co/org/name", "org/name"),
            ("https://huggingface.co/org/name/", "org/name"),
            ("http://hf.co/gpt2", "gpt2"),
            ("huggingface.co/org/name", "org/name"),
            (
                "https://HuggingFace.co/org/name?library=transformers#usage",
                "org/name",
            ),
            ("https://huggingface.co/org/name/tree/main", "org/name@main"),
            ("https://huggingface.co/gpt2/tree/v1.0/", "gpt2@v1.0"),
            (
                "https://huggingface.co/org/name/tree/refs%2Fpr%2F1",
                "org/name@refs/pr/1",
            ),
            (
                "https://huggingface.co/org/name/commit/0123456789abcdef0123456789abcdef01234567",
                "org/name@0123456789abcdef0123456789abcdef01234567",
            ),
        ] {
            assert_eq!(
                address.parse::<ModelRef>().unwrap().to_string(),
                name,
                "{address}"
            );
        }
    }

    #[test]
    fn errors_for_other_urls_say_what_to_pass() {
        for (address, expected) in [
            (
                "https://huggingface.co/org/name/blob/main/model.safetensors",
                "give org/name@main",
            ),
            (
                "https://huggingface.co/org/name/resolve/v1/model-q8.gguf?download=true",
                "download the GGUF file",
            ),
            (
                "https://huggingface.co/org/name/tree/main/sub",
                "download it and give its path",
            ),
            (
                "https://huggingface.co/org/name/discussions/3",
                "give org/name ",
            ),
            (
                "https://huggingface.co/datasets/org/name",
                "datasets on the hub are not models",
            ),
            ("https://huggingface.co/", "not the address of a model"),
            ("https://huggingface.co/../x", "not the address of a model"),
            (
                "https://huggingface.co/org/name/tree/..%2F..",
                "is not a branch",
            ),
            ("https://hf-mirror.com/org/name", "HF_ENDPOINT"),
            ("s3://bucket/model", "HF_ENDPOINT"),
        ] {
            let error = address.parse::<ModelRef>().unwrap_err().to_string();
            assert!(error.contains(expected), "{address}: {error}");
        }
    }
}
