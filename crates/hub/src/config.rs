//! Settings: endpoint, cache, token, time-outs, retries.

use std::path::{Path, PathBuf};
use std::time::Duration;

/// Settings of a [`Hub`](crate::Hub). Printed for debugging, they show neither the token nor a
/// password in the endpoint.
#[derive(Clone)]
pub struct HubConfig {
    /// URL of the hub or a mirror, without a trailing slash.
    pub endpoint: String,
    /// The cache folder, `…/huggingface/hub`.
    pub cache_dir: PathBuf,
    /// The home directory that `~/` in a folder's name expands to; `None` leaves `~/` alone.
    pub home: Option<PathBuf>,
    /// The access token. It is sent to the endpoint only.
    pub token: Option<String>,
    /// Use only the cache and send no request.
    pub offline: bool,
    /// Time limit for connecting.
    pub connect_timeout: Duration,
    /// Time limit for the next bytes of an answer.
    pub read_timeout: Duration,
    /// Time limit for a file's metadata (HEAD).
    pub etag_timeout: Duration,
    /// Certificates to trust instead of the system's: a PEM file, or a folder of such files.
    pub ca_bundle: Option<PathBuf>,
    /// The user disabled progress bars. The library shows none; this is for the caller.
    pub hides_progress: bool,
    /// Bytes per second below which a body is given up and requested again.
    pub slowest_rate: u64,
    /// The time over which that rate is measured.
    pub rate_window: Duration,
    /// Consecutive retries before giving up. Received bytes reset the count.
    pub max_retries: u32,
    /// Delay before the first retry. It doubles with each further one.
    pub base_delay: Duration,
    /// Upper bound of a delay, including one from `Retry-After`.
    pub max_delay: Duration,
    /// Time limit for another process's download. `None`: as long as it makes progress.
    pub lock_timeout: Option<Duration>,
}

/// The Hugging Face hub.
const DEFAULT_ENDPOINT: &str = "https://huggingface.co";

impl Default for HubConfig {
    /// The public hub, and the cache and token in `~/.cache/huggingface`. Of the environment, only
    /// the home directory is used.
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

impl std::fmt::Debug for HubConfig {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("HubConfig")
            .field("endpoint", &self.shown_endpoint())
            .field("cache_dir", &self.cache_dir)
            .field("token", &self.token.as_ref().map(|_| "(hidden)"))
            .field("offline", &self.offline)
            .field("connect_timeout", &self.connect_timeout)
            .field("read_timeout", &self.read_timeout)
            .field("etag_timeout", &self.etag_timeout)
            .field("ca_bundle", &self.ca_bundle)
            .field("slowest_rate", &self.slowest_rate)
            .field("rate_window", &self.rate_window)
            .field("max_retries", &self.max_retries)
            .field("lock_timeout", &self.lock_timeout)
            .finish_non_exhaustive()
    }
}

impl HubConfig {
    /// The default settings with this cache folder. Does not read the environment.
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
            slowest_rate: 1024,
            rate_window: Duration::from_secs(60),
            max_retries: 5,
            base_delay: Duration::from_millis(500),
            max_delay: Duration::from_secs(60),
            lock_timeout: None,
        }
    }

    /// The settings from environment variables, with the names and the precedence of
    /// huggingface_hub 0.36 and transformers 4.57 (`constants.py`, `utils/_auth.py`,
    /// `transformers/utils/hub.py`):
    ///
    /// - cache: `TRANSFORMERS_CACHE`, `PYTORCH_TRANSFORMERS_CACHE`,
    ///   `PYTORCH_PRETRAINED_BERT_CACHE`, `HF_HUB_CACHE`, `HUGGINGFACE_HUB_CACHE`, else `hub` in
    ///   `HF_HOME`, else `huggingface/hub` in `XDG_CACHE_HOME` or `~/.cache`. `~`, `$NAME` and
    ///   `${NAME}` are expanded as in a shell;
    /// - endpoint: `HF_ENDPOINT`;
    /// - token: `HF_TOKEN`, `HUGGING_FACE_HUB_TOKEN`, the file `HF_TOKEN_PATH`, else `token` in
    ///   `HF_HOME`; none at all if `HF_HUB_DISABLE_IMPLICIT_TOKEN` is true;
    /// - offline: `HF_HUB_OFFLINE`, or `TRANSFORMERS_OFFLINE` if that is not set;
    /// - time-outs in whole seconds: `HF_HUB_DOWNLOAD_TIMEOUT`, `HF_HUB_ETAG_TIMEOUT`;
    /// - certificates: `REQUESTS_CA_BUNDLE`, `CURL_CA_BUNDLE`;
    /// - progress: `HF_HUB_DISABLE_PROGRESS_BARS`.
    ///
    /// `1`, `on`, `yes` and `true` are true. A blank value counts as unset.
    pub fn from_env() -> Self {
        Self::from_variables(&|name| match std::env::var(name) {
            Ok(value) => Some(value),
            Err(_) if name == "HOME" => Self::home_variable(),
            Err(_) => None,
        })
    }

    /// The home directory: the variable `HOME`, or the system's own source.
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

        // As in huggingface_hub: without implicit tokens, only one that the program sets is sent.
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

    /// The endpoint for messages, without a user's name and password.
    pub(crate) fn shown_endpoint(&self) -> String {
        let (scheme, rest) = match self.endpoint.split_once("://") {
            Some((scheme, rest)) => (format!("{scheme}://"), rest),
            None => (String::new(), self.endpoint.as_str()),
        };
        let end = rest.find(['/', '?', '#']).unwrap_or(rest.len());
        let host = rest[..end].rsplit('@').next().unwrap_or_default();
        format!("{scheme}{host}{}", &rest[end..])
    }

    /// Each of Python's two time-outs limits connecting as well as reading.
    fn set_timeouts(&mut self, download: Option<Duration>, etag: Option<Duration>) {
        if let Some(connect) = download.max(etag) {
            self.connect_timeout = connect;
        }
        self.read_timeout = download.unwrap_or(self.read_timeout);
        self.etag_timeout = etag.unwrap_or(self.etag_timeout);
    }
}

/// Variables that name the cache, in order of precedence: transformers' own come before the hub's.
const CACHES: [&str; 5] = [
    "TRANSFORMERS_CACHE",
    "PYTORCH_TRANSFORMERS_CACHE",
    "PYTORCH_PRETRAINED_BERT_CACHE",
    "HF_HUB_CACHE",
    "HUGGINGFACE_HUB_CACHE",
];

/// Looks up environment variables.
struct Variables<'a>(&'a dyn Fn(&str) -> Option<String>);

impl Variables<'_> {
    /// The value of the first of these that is set and not blank.
    fn first(&self, names: &[&str]) -> Option<String> {
        names
            .iter()
            .filter_map(|name| (self.0)(name))
            .find(|value| !value.trim().is_empty())
    }

    fn path(&self, names: &[&str]) -> Option<PathBuf> {
        self.first(names).map(|path| self.expand(&path))
    }

    /// Whether the first of these that is set has one of huggingface_hub's true values.
    fn is_true(&self, names: &[&str]) -> bool {
        let value = self
            .first(names)
            .unwrap_or_default()
            .trim()
            .to_ascii_lowercase();
        ["1", "true", "yes", "on"].contains(&value.as_str())
    }

    /// A positive whole number of seconds. Anything else counts as unset.
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

    /// Replaces `$NAME` and `${NAME}` by their values. Unset names stay as they are.
    fn expand_variables(&self, text: &str) -> String {
        let mut out = String::new();
        let mut rest = text;
        while let Some(dollar) = rest.find('$') {
            out.push_str(&rest[..dollar]);
            let after = &rest[dollar + 1..];
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
                None => out.push_str(&rest[dollar..=dollar + length]),
            }

            rest = &after[length..];
        }

        out.push_str(rest);
        out
    }
}

/// Cleans a token as huggingface_hub does: removes line breaks and surrounding blanks.
fn clean_token(token: &str) -> Option<String> {
    let token = token.replace(['\r', '\n'], "").trim().to_owned();
    (!token.is_empty()).then_some(token)
}

/// Replaces a leading `~` or `~/` by the home directory.
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

    /// The expected values are from huggingface_hub 0.36.2 and transformers 4.57.1
    /// (`scripts/make_hub_golden.py`).
    #[test]
    fn environment_variables_are_read_as_in_transformers() {
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
                // Our defaults are longer than Python's 10 seconds and count as those here.
                "download_timeout": seconds(read.read_timeout, 30),
                "etag_timeout": seconds(read.etag_timeout, 40),
            });

            assert_eq!(found, case["expected"], "{variables:?}");
        }
    }

    #[test]
    fn the_token_file_is_read_unless_disabled() {
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
    fn neither_the_token_nor_a_password_is_shown() {
        let mut config = HubConfig::new("/tmp/cache");
        config.token = Some("hf_secret".into());
        for (endpoint, shown) in [
            (
                "https://me:pass@mirror.example/hf",
                "https://mirror.example/hf",
            ),
            ("https://me:p@ss@mirror.example", "https://mirror.example"),
            ("me:pass@mirror.example", "mirror.example"),
            ("https://huggingface.co/a@b", "https://huggingface.co/a@b"),
        ] {
            config.endpoint = endpoint.into();
            assert_eq!(config.shown_endpoint(), shown);
            let printed = format!("{config:?}");
            assert!(
                !printed.contains("secret") && !printed.contains("pass"),
                "{printed}"
            );
        }
    }

    #[test]
    fn blank_variables_and_invalid_timeouts_count_as_unset() {
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
            "the longer time-out also limits connecting"
        );
    }
}
