//! The address of a server, and the key that goes there.

use super::ClientError;
use reqwest::Url;
use reqwest::header::HeaderValue;

/// The base of a server's URLs, without a slash at its end. An address without a path means `/v1`.
pub(super) fn base(address: &str) -> Result<Url, ClientError> {
    let wrong = |shown: String, reason: &str| ClientError::Address {
        shown,
        reason: reason.to_owned(),
    };
    let Ok(mut url) = Url::parse(address) else {
        // It may be anything, a password included.
        let reason = "it is not a URL, such as http://localhost:8080";
        return Err(wrong("the text after --server".into(), reason));
    };
    let scheme = url.scheme().to_owned();
    if !matches!(scheme.as_str(), "http" | "https") || url.host_str().is_none() {
        let reason = "it must begin with http:// or https://";
        return Err(wrong(format!("{scheme}:…"), reason));
    }

    url.set_query(None);
    url.set_fragment(None);
    let path = match url.path().trim_end_matches('/') {
        "" => "/v1".to_owned(),
        path => path.to_owned(),
    };
    url.set_path(&path);
    Ok(url)
}

/// Whether an address is of the loopback interface.
pub(super) fn is_this_machine(url: &Url) -> bool {
    url.host_str().is_some_and(|host| {
        let host = host.trim_start_matches('[').trim_end_matches(']');
        host == "localhost"
            || host
                .parse::<std::net::IpAddr>()
                .is_ok_and(|address| address.is_loopback())
    })
}

/// A key as a header, which is not printed.
pub(super) fn header(key: &str) -> Result<HeaderValue, ClientError> {
    let mut value =
        HeaderValue::from_str(&format!("Bearer {key}")).map_err(|_| ClientError::Key)?;
    value.set_sensitive(true);
    // The library lets other bytes pass than a key has.
    match key.bytes().all(|byte| byte.is_ascii_graphic()) {
        true => Ok(value),
        false => Err(ClientError::Key),
    }
}

#[cfg(test)]
mod tests {
    use super::super::{CONNECT, Client};
    use super::*;

    #[test]
    fn addresses_are_those_of_openai_clients() {
        for (address, url) in [
            ("http://localhost:8080", "http://localhost:8080/v1/models"),
            ("http://localhost:8080/", "http://localhost:8080/v1/models"),
            (
                "http://localhost:8080/v1/",
                "http://localhost:8080/v1/models",
            ),
            ("https://host/llm/v1", "https://host/llm/v1/models"),
            (
                "https://host/v1beta/openai?x#y",
                "https://host/v1beta/openai/models",
            ),
        ] {
            let client = Client::new(address, None, CONNECT).unwrap();
            assert_eq!(client.url("models").as_str(), url);
        }

        let error = |address| {
            Client::new(address, None, CONNECT)
                .err()
                .unwrap()
                .to_string()
        };
        assert!(error("localhost:8080").contains("must begin with http://"));
        assert!(error("ftp://user:secret@host").starts_with("ftp:… is no address"));
        assert!(error("user:sec ret@host").starts_with("user:… is no address"));
        assert!(error("no server").contains("not a URL, such as"));
    }

    #[test]
    fn only_a_key_that_others_can_read_is_warned_of() {
        let shows = |address: &str, key: Option<&str>| {
            let client = Client::new(address, key.map(str::to_owned), CONNECT);
            client.unwrap().shows_its_key()
        };
        assert!(shows("http://example.org", Some("k")));
        assert!(!shows("http://example.org", None));
        for address in [
            "https://example.org",
            "http://localhost:1",
            "http://127.0.0.1",
            "http://[::1]:9",
        ] {
            assert!(!shows(address, Some("k")), "{address}");
        }
        for key in ["a\nb", "a b", "größe"] {
            let client = Client::new("http://localhost", Some(key.into()), CONNECT);
            assert!(matches!(client, Err(ClientError::Key)), "{key:?}");
        }
    }
}
