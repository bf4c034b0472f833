//! Hints for error messages: what to do about a path or repository that is not a loadable model.

use crate::files::LONGEST_JSON;
use std::collections::BTreeSet;
use std::path::Path;

/// Upper bound of folders named in a hint.
const MOST_FOLDERS: usize = 3;

/// What to pass instead of a file.
pub(crate) fn of_file(file: &Path) -> String {
    let extension = file
        .extension()
        .and_then(|ending| ending.to_str())
        .unwrap_or_default();
    match extension.to_ascii_lowercase().as_str() {
        "safetensors" | "bin" | "json" | "model" | "txt" | "jinja" => {
            let folder = match file.parent() {
                Some(parent) if !parent.as_os_str().is_empty() => parent,
                _ => Path::new("."),
            };
            format!("give its folder, {}", folder.display())
        }
        "pt" | "pth" | "ckpt" | "h5" | "msgpack" | "onnx" | "ggml" | "pkl" | "npz" => {
            format!(
                "weights are read from .safetensors, pytorch_model.bin and .gguf files, not from .{extension}"
            )
        }
        "zip" | "gz" | "tgz" | "tar" | "7z" | "zst" => "unpack it and give the folder".into(),
        _ => "a model is a folder, a .gguf file, or a name on the hub".into(),
    }
}

/// What to pass instead of a folder that is not a model; begins with `;`, empty if unknown.
pub(crate) fn of_folder(folder: &Path, names: &BTreeSet<String>) -> String {
    let here = folder.display();
    if let Some(link) = dangling_link(folder) {
        return format!(
            "; its {link} is a link to a file that is gone (copy a cached model with cp -rL)"
        );
    }

    if let Some(adapter) = adapter(&folder.join("adapter_config.json")) {
        return adapter;
    }

    if let Some(name) = first_gguf(names) {
        return format!("; for a GGUF model, give the file: {here}/{name}");
    }

    let inner = models_within(folder);
    if !inner.is_empty() {
        return format!("; did you mean {}?", inner.join(" or "));
    }

    of_names(names)
}

/// What to do about a repository with these files; begins with `;`, empty if unknown.
pub(crate) fn of_repository(names: &BTreeSet<String>) -> String {
    if names.contains("adapter_config.json") {
        return "; it is an adapter: load its base model, with this as the adapter".into();
    }

    match first_gguf(names) {
        Some(name) => {
            format!("; download one of its GGUF files, such as {name}, and give the file's path")
        }
        None => of_names(names),
    }
}

fn of_names(names: &BTreeSet<String>) -> String {
    let has = |name: &str| names.contains(name);
    if has("params.json") || names.iter().any(|name| name.starts_with("consolidated.")) {
        return "; these are a model's original weights: convert them for transformers first"
            .into();
    }

    let foreign = [
        ("tf_model.h5", "TensorFlow"),
        ("flax_model.msgpack", "Flax"),
        ("model.onnx", "ONNX"),
    ];
    let found = foreign.iter().find(|(name, _)| has(name));

    found.map_or(String::new(), |(name, what)| {
        format!("; {name} is for {what}: let transformers save it as safetensors first")
    })
}

fn first_gguf(names: &BTreeSet<String>) -> Option<&String> {
    names
        .iter()
        .find(|name| name.to_ascii_lowercase().ends_with(".gguf"))
}

/// The hint for a LoRA adapter, whose configuration names its base model.
fn adapter(config: &Path) -> Option<String> {
    let bytes = llm_int8_files::read(config, LONGEST_JSON).ok()?;
    let config: serde_json::Value = serde_json::from_slice(&bytes).ok()?;
    let base = config["base_model_name_or_path"]
        .as_str()
        .unwrap_or("its base model");
    Some(format!(
        "; it is an adapter for {base}: load that, with this as the adapter"
    ))
}

/// The name of a dangling link, as in an incomplete copy of a cache.
fn dangling_link(folder: &Path) -> Option<String> {
    let entries = std::fs::read_dir(folder).ok()?.flatten();
    let mut links: Vec<String> = entries
        .filter(|entry| entry.path().is_symlink() && !entry.path().exists())
        .filter_map(|entry| entry.file_name().into_string().ok())
        .collect();
    links.sort();
    links.into_iter().next()
}

/// Subfolders with a `config.json`; if `folder` is a repository in a cache, its snapshots.
fn models_within(folder: &Path) -> Vec<String> {
    let inside = |folder: &Path| -> Vec<String> {
        let entries = std::fs::read_dir(folder).into_iter().flatten().flatten();
        entries
            .filter(|entry| !entry.file_name().to_string_lossy().starts_with('.'))
            .map(|entry| entry.path())
            .filter(|path| path.join("config.json").exists())
            .map(|path| path.display().to_string())
            .collect()
    };

    let mut found = inside(folder);
    found.extend(inside(&folder.join("snapshots")));
    found.sort();
    found.truncate(MOST_FOLDERS);

    found
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::files::local;

    /// The error for a folder with these files, and the folder's path.
    fn error(files: &[(&str, &str)]) -> (String, String) {
        let folder = tempfile::tempdir().unwrap();
        for (name, text) in files {
            let path = folder.path().join(name);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(path, text).unwrap();
        }

        let text = local(folder.path()).unwrap_err().to_string();
        (text, folder.path().display().to_string())
    }

    #[test]
    fn a_folder_of_models_suggests_them() {
        let (text, folder) = error(&[
            ("a/config.json", "{}"),
            ("b/config.json", "{}"),
            ("c/notes", ""),
        ]);
        assert!(
            text.contains(&format!("did you mean {folder}/a or {folder}/b?")),
            "{text}"
        );

        let (text, folder) = error(&[("snapshots/0123/config.json", "{}"), ("refs/main", "0123")]);
        assert!(
            text.contains(&format!("did you mean {folder}/snapshots/0123?")),
            "{text}"
        );
    }

    #[test]
    fn other_kinds_of_models_have_their_own_hints() {
        let adapter = r#"{"base_model_name_or_path": "gpt2"}"#;
        let (text, _) = error(&[
            ("adapter_config.json", adapter),
            ("adapter_model.safetensors", ""),
        ]);
        assert!(text.contains("an adapter for gpt2"), "{text}");

        let (text, folder) = error(&[("Model-Q8_0.GGUF", ""), ("README.md", "")]);
        assert!(
            text.contains(&format!("give the file: {folder}/Model-Q8_0.GGUF")),
            "{text}"
        );

        let (text, _) = error(&[("consolidated.00.pth", ""), ("params.json", "{}")]);
        assert!(text.contains("original weights"), "{text}");

        let (text, _) = error(&[("config.json", "{}"), ("tf_model.h5", "")]);
        assert!(text.contains("tf_model.h5 is for TensorFlow"), "{text}");
    }

    #[test]
    fn errors_for_files_and_missing_folders_say_what_to_pass() {
        let folder = tempfile::tempdir().unwrap();
        let here = folder.path().display().to_string();
        let text = |name: &str| local(&folder.path().join(name)).unwrap_err().to_string();

        for (name, expected) in [
            (
                "model.safetensors",
                format!("is a file, not a model's folder: give its folder, {here}"),
            ),
            ("config.json", format!("give its folder, {here}")),
            ("model.pth", "not from .pth".into()),
            ("model.zip", "unpack it".into()),
            (
                "model",
                "a model is a folder, a .gguf file, or a name on the hub".into(),
            ),
        ] {
            std::fs::write(folder.path().join(name), "").unwrap();
            assert!(text(name).contains(&expected), "{}", text(name));
        }

        assert_eq!(
            text("nowhere"),
            format!("there is no folder {here}/nowhere")
        );
        assert_eq!(of_file(Path::new("config.json")), "give its folder, .");
    }

    #[cfg(unix)]
    #[test]
    fn dangling_links_are_named() {
        let folder = tempfile::tempdir().unwrap();
        std::fs::write(folder.path().join("config.json"), "{}").unwrap();
        std::os::unix::fs::symlink("../../blobs/abc", folder.path().join("model.safetensors"))
            .unwrap();
        let text = local(folder.path()).unwrap_err().to_string();

        assert!(
            text.contains("has no model.safetensors")
                && text.contains("link to a file that is gone"),
            "{text}"
        );
    }
}
