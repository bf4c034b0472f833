//! API keys.

use crate::error::{Result, ServerError};
use sha2::{Digest, Sha256};
use std::fmt;
use std::path::Path;
use subtle::{Choice, ConstantTimeEq};

/// Keys that a client must send one of, as `Authorization: Bearer KEY`. Only their hashes are kept.
#[derive(Clone, Default)]
pub struct ApiKeys(Vec<[u8; 32]>);

/// Upper bound of a file of keys in bytes.
const LONGEST_FILE: u64 = 1 << 20;

impl ApiKeys {
    /// These keys.
    pub fn new<'a>(keys: impl IntoIterator<Item = &'a str>) -> Self {
        Self(keys.into_iter().map(hash).collect())
    }

    /// The keys of a file, one per line; empty lines and those that begin with `#` do not count.
    ///
    /// # Errors
    /// [`ServerError::KeyFile`] if it cannot be read, is not UTF-8 or has no key.
    pub fn from_file(path: &Path) -> Result<Self> {
        let refused = |reason: String| ServerError::KeyFile {
            path: path.to_owned(),
            reason,
        };
        let bytes =
            llm_int8_files::read(path, LONGEST_FILE).map_err(|cause| refused(cause.to_string()))?;
        let text = String::from_utf8(bytes).map_err(|_| refused("it is not UTF-8 text".into()))?;
        let lines = text.lines().map(str::trim);
        let keys = Self::new(lines.filter(|line| !line.is_empty() && !line.starts_with('#')));
        if keys.0.is_empty() {
            return Err(refused("it has no key; expected one per line".into()));
        }

        Ok(keys)
    }

    /// Whether requests need no key.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Whether the value of an `Authorization` header has one of the keys. Takes the same time for
    /// every wrong one.
    pub(crate) fn admit(&self, authorization: Option<&[u8]>) -> bool {
        let Some(given) = authorization.and_then(bearer) else {
            return false;
        };
        let given: [u8; 32] = Sha256::digest(given).into();
        let any = self
            .0
            .iter()
            .fold(Choice::from(0), |any, key| any | key.ct_eq(&given));
        any.into()
    }
}

impl fmt::Debug for ApiKeys {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "ApiKeys({})", self.0.len())
    }
}

fn hash(key: &str) -> [u8; 32] {
    Sha256::digest(key.as_bytes()).into()
}

/// The token of `Bearer TOKEN`; the scheme's case does not matter (RFC 9110, section 11.1).
fn bearer(value: &[u8]) -> Option<&[u8]> {
    let (scheme, token) = value.split_at_checked(7)?;
    scheme
        .eq_ignore_ascii_case(b"bearer ")
        .then(|| token.trim_ascii())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_of_the_keys_is_needed_whole() {
        let keys = ApiKeys::new(["first", "second"]);
        for right in ["Bearer first", "bearer second", "Bearer  second "] {
            assert!(keys.admit(Some(right.as_bytes())), "{right}");
        }
        for wrong in [
            "Bearer firs",
            "Bearer first1",
            "Bearer ",
            "first",
            "",
            "Basic first",
        ] {
            assert!(!keys.admit(Some(wrong.as_bytes())), "{wrong}");
        }
        assert!(!keys.admit(None));
        assert_eq!(format!("{keys:?}"), "ApiKeys(2)");
    }

    #[test]
    fn a_file_has_one_key_per_line() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("keys");
        std::fs::write(&path, "# of the team\n\nfirst\r\n  second\n").unwrap();
        let keys = ApiKeys::from_file(&path).unwrap();
        assert!(keys.admit(Some(b"Bearer first")) && keys.admit(Some(b"Bearer second")));

        std::fs::write(&path, "# none\n").unwrap();
        let error = ApiKeys::from_file(&path).unwrap_err().to_string();
        assert!(
            error.contains("keys") && error.contains("one per line"),
            "{error}"
        );
        assert!(ApiKeys::from_file(&folder.path().join("missing")).is_err());
    }
}
