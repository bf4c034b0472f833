//! Where the hub and the cache are, and how patient to be.

use std::path::{Path, PathBuf};
use std::time::Duration;

/// Settings of a [`Hub`](crate::Hub).
#[derive(Debug, Clone)]
pub struct HubConfig {
    /// The hub or a mirror, without a slash at the end.
    pub endpoint: String,
    /// The cache, `…/huggingface/hub`.
    pub cache_dir: PathBuf,
    /// What `~/` stands for in a folder's name, if anything.
    pub home: Option<PathBuf>,
    /// The access token, sent to the endpoint only.
    pub token: Option<String>,
    /// Use the cache only, send no request.
    pub offline: bool,
    /// How long to wait for a connection.
    pub connect_timeout: Duration,
    /// How long to wait for the next bytes.
    pub read_timeout: Duration,
    /// How long a server may take to say what a file is, before its body is asked for.
    pub etag_timeout: Duration,
    /// Certificates to trust instead of the system's: a PEM file, or a folder of such files.
    pub ca_bundle: Option<PathBuf>,
    /// The user wants no progress shown. The library shows none; this is for whoever does.
    pub hides_progress: bool,
    /// Failed tries in a row before giving up; arriving bytes begin the count anew.
    pub max_retries: u32,
    /// Delay before the first retry; it doubles with each.
    pub base_delay: Duration,
    /// The longest delay, also of a `Retry-After`.
    pub max_delay: Duration,
    /// How long to wait for another process' download; without, as long as it goes on.
    pub lock_timeout: Option<Duration>,
}

/// The hub of Hugging Face.
const DEFAULT_ENDPOINT: &str = "https://huggingface.co";

impl Default for HubConfig {
    /// The public hub and `~/.cache/huggingface`, whatever the environment says: no token, no
    /// mirror.
    fn default() -> Self {
        Self::from_variables(&|name| {
            if name == "HOME" {
                Self::home_variable()
            } else {
                None
            }
        })
    }
}

impl HubConfig {
    /// The usual settings with that cache; reads nothing.
    pub fn new(cache_dir: impl Into<PathBuf>) -> Self {
        Self {
            endpoint: DEFAULT_ENDPOINT.into(),
            cache_dir: cache_dir.into(),
            home: None,
            token: None,
            offline: false,
            connect_timeout: Duration::from_secs(10),
            read_timeout: Duration::from_secs(30),
            etag_timeout: Duration::from_secs(40),
            ca_bundle: None,
            hides_progress: false,
            max_retries: 5,
            base_delay: Duration::from_millis(500),
            max_delay: Duration::from_secs(60),
            lock_timeout: None,
        }
    }

    /// The settings of the environment, by the names and the precedence of huggingface_hub 0.36 and
    /// transformers 4.57 (`constants.py`, `utils/_auth.py`, `transformers/utils/hub.py`):
    ///
    /// - cache: `TRANSFORMERS_CACHE`, `PYTORCH_TRANSFORMERS_CACHE`,
    ///   `PYTORCH_PRETRAINED_BERT_CACHE`, `HF_HUB_CACHE`, `HUGGINGFACE_HUB_CACHE`, else `hub` in
    ///   `HF_HOME`, else `huggingface/hub` in `XDG_CACHE_HOME` or `~/.cache`. `~`, `$NAME` and
    ///   `${NAME}` stand for what they stand for in a shell;
    /// - endpoint: `HF_ENDPOINT`;
    /// - token: `HF_TOKEN`, `HUGGING_FACE_HUB_TOKEN`, the file `HF_TOKEN_PATH`, else `token` in
    ///   `HF_HOME`; none at all where `HF_HUB_DISABLE_IMPLICIT_TOKEN` is true;
    /// - offline: `HF_HUB_OFFLINE`, and `TRANSFORMERS_OFFLINE` where that is not set;
    /// - time-outs in whole seconds: `HF_HUB_DOWNLOAD_TIMEOUT`, `HF_HUB_ETAG_TIMEOUT`;
    /// - certificates: `REQUESTS_CA_BUNDLE`, `CURL_CA_BUNDLE`;
    /// - progress: `HF_HUB_DISABLE_PROGRESS_BARS`.
    ///
    /// True is `1`, `on`, `yes` or `true`. A blank value counts as none.
    pub fn from_env() -> Self {
        Self::from_variables(&|name| match std::env::var(name) {
            Ok(value) => Some(value),
            Err(_) if name == "HOME" => Self::home_variable(),
            Err(_) => None,
        })
    }

    /// The variable `HOME`, or what the system says instead.
    fn home_variable() -> Option<String> {
        std::env::home_dir()?.into_os_string().into_string().ok()
    }

    fn from_variables(variable: &dyn Fn(&str) -> Option<String>) -> Self {
        let variables = Variables(variable);
        let home = variables.path(&["HF_HOME"]).unwrap_or_else(|| {
            let cache = variables.path(&["XDG_CACHE_HOME"]);
            cache
                .unwrap_or_else(|| variables.expand("~/.cache"))
                .join("huggingface")
        });

        let mut config = Self::new(variables.path(&CACHES).unwrap_or_else(|| home.join("hub")));
        config.home = variables.first(&["HOME"]).map(PathBuf::from);
        if let Some(endpoint) = variables.first(&["HF_ENDPOINT"]) {
            config.endpoint = endpoint.trim().trim_end_matches('/').to_owned();
        }

        config.offline = variables.is_true(&["HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE"]);
        config.hides_progress = variables.is_true(&["HF_HUB_DISABLE_PROGRESS_BARS"]);
        config.ca_bundle = variables.path(&["REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE"]);
        config.set_timeouts(
            variables.seconds("HF_HUB_DOWNLOAD_TIMEOUT"),
            variables.seconds("HF_HUB_ETAG_TIMEOUT"),
        );

        // As there: without implicit tokens, none is sent unless a program passes one by itself.
        if !variables.is_true(&["HF_HUB_DISABLE_IMPLICIT_TOKEN"]) {
            let file = variables
                .path(&["HF_TOKEN_PATH"])
                .unwrap_or_else(|| home.join("token"));
            let given = variables.first(&["HF_TOKEN", "HUGGING_FACE_HUB_TOKEN"]);
            let token = given.or_else(|| std::fs::read_to_string(file).ok());
            config.token = token.and_then(|token| clean_token(&token));
        }
        config
    }

    /// Python's time-outs cover connecting and reading alike.
    fn set_timeouts(&mut self, download: Option<Duration>, etag: Option<Duration>) {
        if let Some(connect) = download.max(etag) {
            self.connect_timeout = connect;
        }
        self.read_timeout = download.unwrap_or(self.read_timeout);
        self.etag_timeout = etag.unwrap_or(self.etag_timeout);
    }
}

/// Names of the cache, the first that is set counts: transformers looks at its own before the
/// hub's.
const CACHES: [&str; 5] = [
    "TRANSFORMERS_CACHE",
    "PYTORCH_TRANSFORMERS_CACHE",
    "PYTORCH_PRETRAINED_BERT_CACHE",
    "HF_HUB_CACHE",
    "HUGGINGFACE_HUB_CACHE",
];

/// Environment variables.
struct Variables<'a>(&'a dyn Fn(&str) -> Option<String>);

impl Variables<'_> {
    /// The first of these that is set and not blank.
    fn first(&self, names: &[&str]) -> Option<String> {
        names
            .iter()
            .filter_map(|name| (self.0)(name))
            .find(|value| !value.trim().is_empty())
    }

    fn path(&self, names: &[&str]) -> Option<PathBuf> {
        self.first(names).map(|path| self.expand(&path))
    }

    /// Whether the first of these that is set has a value that huggingface_hub takes for true.
    fn is_true(&self, names: &[&str]) -> bool {
        let value = self
            .first(names)
            .unwrap_or_default()
            .trim()
            .to_ascii_lowercase();
        ["1", "true", "yes", "on"].contains(&value.as_str())
    }

    /// A whole number of seconds; 0 and what is no number are the default.
    fn seconds(&self, name: &str) -> Option<Duration> {
        let seconds = self.first(&[name])?.trim().parse().ok()?;
        (seconds > 0).then(|| Duration::from_secs(seconds))
    }

    /// `os.path.expandvars(os.path.expanduser(path))`.
    fn expand(&self, path: &str) -> PathBuf {
        let home = (self.0)("HOME").map(PathBuf::from);
        let path = expand_home(path, home.as_deref());
        match path.to_str() {
            Some(text) => PathBuf::from(self.expand_variables(text)),
            None => path,
        }
    }

    /// `$NAME` and `${NAME}` by their values; unknown names stay as they are.
    fn expand_variables(&self, text: &str) -> String {
        let mut out = String::new();
        let mut rest = text;
        while let Some(place) = rest.find('$') {
            out.push_str(&rest[..place]);
            let after = &rest[place + 1..];
            let braced = after
                .strip_prefix('{')
                .and_then(|inner| Some((inner.find('}')?, 2)));
            let (name, length) = match braced {
                Some((end, braces)) => (&after[1..=end], end + braces),
                None => {
                    let end = after
                        .find(|c: char| !c.is_ascii_alphanumeric() && c != '_')
                        .unwrap_or(after.len());
                    (&after[..end], end)
                }
            };
            match (self.0)(name).filter(|_| !name.is_empty()) {
                Some(value) => out.push_str(&value),
                None => out.push_str(&rest[place..=place + length]),
            }
            rest = &after[length..];
        }
        out.push_str(rest);
        out
    }
}

/// A token as huggingface_hub cleans it: no line breaks, no blanks around it.
fn clean_token(token: &str) -> Option<String> {
    let token = token.replace(['\r', '\n'], "").trim().to_owned();
    (!token.is_empty()).then_some(token)
}

/// `~` and `~/x` by the home directory.
pub(crate) fn expand_home(path: &str, home: Option<&Path>) -> PathBuf {
    match (path.strip_prefix('~'), home) {
        (Some(""), Some(home)) => home.to_owned(),
        (Some(rest), Some(home)) if rest.starts_with('/') => {
            home.join(rest.trim_start_matches('/'))
        }
        _ => PathBuf::from(path),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::Value;

    fn config(variables: &[(&str, &str)]) -> HubConfig {
        HubConfig::from_variables(&|name| {
            variables
                .iter()
                .find(|(key, _)| *key == name)
                .map(|(_, value)| (*value).to_owned())
        })
    }

    /// `scripts/make_hub_golden.py` asked huggingface_hub 0.36.2 and transformers 4.57.1.
    #[test]
    fn the_environment_means_what_it_means_to_transformers() {
        let cases: Value =
            serde_json::from_str(include_str!("../tests/golden/environment.json")).unwrap();
        let cases = cases.as_array().unwrap();
        assert!(cases.len() > 40);
        for case in cases {
            let variables = case["environment"].as_object().unwrap();
            let pairs: Vec<(&str, &str)> = variables
                .iter()
                .map(|(name, value)| (name.as_str(), value.as_str().unwrap()))
                .collect();
            let read = config(&pairs);
            let seconds = |duration: Duration, default: u64| {
                Value::from(if duration.as_secs() == default {
                    10
                } else {
                    duration.as_secs()
                })
            };
            let found = serde_json::json!({
                "cache": read.cache_dir,
                "endpoint": read.endpoint,
                "token": read.token,
                "offline": read.offline,
                "hides_progress": read.hides_progress,
                "ca_bundle": read.ca_bundle,
                // Our defaults are longer than Python's 10 seconds.
                "download_timeout": seconds(read.read_timeout, 30),
                "etag_timeout": seconds(read.etag_timeout, 40),
            });
            assert_eq!(found, case["expected"], "{variables:?}");
        }
    }

    #[test]
    fn the_token_file_is_read_unless_that_is_switched_off() {
        let folder = tempfile::tempdir().unwrap();
        std::fs::write(folder.path().join("token"), "hf_file\n").unwrap();
        std::fs::write(folder.path().join("other"), " hf_other\r\n").unwrap();
        let home = folder.path().to_str().unwrap();
        assert_eq!(
            config(&[("HF_HOME", home)]).token.as_deref(),
            Some("hf_file")
        );
        assert_eq!(
            config(&[("HF_HOME", home), ("HF_HUB_DISABLE_IMPLICIT_TOKEN", "1")]).token,
            None
        );
        let path = [
            ("HF_TOKEN_PATH", "$WHERE/other"),
            ("WHERE", home),
            ("HF_HOME", home),
        ];
        assert_eq!(config(&path).token.as_deref(), Some("hf_other"));
        let given = [("HF_HOME", home), ("HUGGING_FACE_HUB_TOKEN", "hf_old")];
        assert_eq!(config(&given).token.as_deref(), Some("hf_old"));
    }

    #[test]
    fn blank_variables_and_timeouts_that_are_no_numbers_count_as_unset() {
        let blank = config(&[
            ("HF_HOME", ""),
            ("HF_ENDPOINT", " "),
            ("HOME", "/h"),
            ("HF_HUB_CACHE", ""),
        ]);
        assert_eq!(blank.cache_dir, Path::new("/h/.cache/huggingface/hub"));
        assert_eq!(blank.endpoint, DEFAULT_ENDPOINT);
        for wrong in ["soon", "0", "-3", "1.5"] {
            assert_eq!(
                config(&[("HF_HUB_DOWNLOAD_TIMEOUT", wrong)]).read_timeout,
                Duration::from_secs(30)
            );
        }
        let slow = config(&[
            ("HF_HUB_DOWNLOAD_TIMEOUT", "5"),
            ("HF_HUB_ETAG_TIMEOUT", "60"),
        ]);
        assert_eq!(
            slow.connect_timeout,
            Duration::from_secs(60),
            "a slow line connects slowly, too"
        );
    }
}
