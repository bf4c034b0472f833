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
            max_retries: 5,
            base_delay: Duration::from_millis(500),
            max_delay: Duration::from_secs(60),
            lock_timeout: None,
        }
    }

    /// The settings huggingface_hub reads from the environment: `HF_HOME`, `HF_HUB_CACHE`,
    /// `HUGGINGFACE_HUB_CACHE`, `XDG_CACHE_HOME`, `HF_ENDPOINT`, `HF_HUB_OFFLINE`, `HF_TOKEN`,
    /// `HF_TOKEN_PATH` or the token file, `HF_HUB_DISABLE_IMPLICIT_TOKEN`.
    pub fn from_env() -> Self {
        Self::from_variables(&|name| std::env::var(name).ok().filter(|value| !value.trim().is_empty()))
    }

    fn from_variables(variable: &dyn Fn(&str) -> Option<String>) -> Self {
        let user = variable("HOME").map(PathBuf::from);
        let expand = |path: String| expand_home(&path, user.as_deref());
        let home = variable("HF_HOME").map(expand).unwrap_or_else(|| {
            let cache = variable("XDG_CACHE_HOME").map(expand);
            cache.unwrap_or_else(|| expand("~/.cache".into())).join("huggingface")
        });
        let cache = variable("HF_HUB_CACHE").or_else(|| variable("HUGGINGFACE_HUB_CACHE"));
        let mut config = Self::new(cache.map_or_else(|| home.join("hub"), expand));
        config.home.clone_from(&user);
        if let Some(endpoint) = variable("HF_ENDPOINT") {
            config.endpoint = endpoint.trim().trim_end_matches('/').to_owned();
        }
        config.offline = variable("HF_HUB_OFFLINE").is_some_and(|value| is_true(&value));
        let implicit = !variable("HF_HUB_DISABLE_IMPLICIT_TOKEN").is_some_and(|value| is_true(&value));
        let file = variable("HF_TOKEN_PATH").map_or_else(|| home.join("token"), expand);
        let token = variable("HF_TOKEN").or_else(|| implicit.then(|| read_token(&file)).flatten());
        config.token = token.map(|token| token.trim().to_owned());
        config
    }
}

fn read_token(file: &Path) -> Option<String> {
    std::fs::read_to_string(file).ok().filter(|token| !token.trim().is_empty())
}

/// The values huggingface_hub takes for true.
fn is_true(value: &str) -> bool {
    ["1", "true", "yes", "on"].contains(&value.trim().to_ascii_lowercase().as_str())
}

/// `~/x` under the home directory.
pub(crate) fn expand_home(path: &str, home: Option<&Path>) -> PathBuf {
    match (path.strip_prefix("~/"), home) {
        (Some(rest), Some(home)) => home.join(rest),
        _ => PathBuf::from(path),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config(variables: &[(&str, &str)]) -> HubConfig {
        HubConfig::from_variables(&|name| {
            variables.iter().find(|(key, _)| *key == name).map(|(_, value)| (*value).to_owned())
        })
    }

    #[test]
    fn the_cache_is_where_huggingface_hub_has_it() {
        let cache = |variables| config(variables).cache_dir.display().to_string();
        assert_eq!(cache(&[("HOME", "/h")]), "/h/.cache/huggingface/hub");
        assert_eq!(cache(&[("HOME", "/h"), ("XDG_CACHE_HOME", "/x")]), "/x/huggingface/hub");
        assert_eq!(cache(&[("HF_HOME", "/hf"), ("XDG_CACHE_HOME", "/x")]), "/hf/hub");
        assert_eq!(cache(&[("HF_HOME", "/hf"), ("HF_HUB_CACHE", "~/c"), ("HOME", "/h")]), "/h/c");
        assert_eq!(cache(&[("HUGGINGFACE_HUB_CACHE", "/old")]), "/old");
    }

    #[test]
    fn endpoint_offline_and_token_are_read() {
        let read = config(&[
            ("HF_ENDPOINT", "https://hf-mirror.com/"),
            ("HF_HUB_OFFLINE", "YES"),
            ("HF_TOKEN", "hf_x\n"),
        ]);
        assert_eq!((read.endpoint.as_str(), read.offline), ("https://hf-mirror.com", true));
        assert_eq!(read.token.as_deref(), Some("hf_x"));
        assert!(!config(&[("HF_HUB_OFFLINE", "0")]).offline);
    }

    #[test]
    fn the_token_file_is_read_unless_that_is_switched_off() {
        let folder = tempfile::tempdir().unwrap();
        std::fs::write(folder.path().join("token"), "hf_file\n").unwrap();
        let home = folder.path().to_str().unwrap();
        assert_eq!(config(&[("HF_HOME", home)]).token.as_deref(), Some("hf_file"));
        assert_eq!(config(&[("HF_HOME", home), ("HF_HUB_DISABLE_IMPLICIT_TOKEN", "1")]).token, None);
    }
}
