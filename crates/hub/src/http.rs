//! Requests for files. Redirects are followed here and not by reqwest, so that the token is sent to
//! the hub only.

use crate::config::HubConfig;
use crate::error::{HubError, Result};
use reqwest::header::{ACCEPT_ENCODING, AUTHORIZATION, HeaderMap, HeaderValue, LOCATION, RANGE};
use reqwest::{Certificate, Client, Method, RequestBuilder, Response, StatusCode, Url};
use std::path::Path;
use std::time::Duration;

/// Redirects followed for one request.
const REDIRECTS: usize = 10;

/// An HTTP client for one endpoint. It holds the token, so it cannot be printed.
pub(crate) struct Http {
    client: Client,
    endpoint: Url,
    token: Option<String>,
    etag_timeout: Duration,
}

/// A failed request.
#[derive(Debug)]
pub(crate) enum Failure {
    /// Worth a retry.
    Transient {
        reason: String,
        /// The delay that the server requests (`Retry-After`).
        after: Option<Duration>,
        /// The host could not be reached, or did not answer in time.
        unreachable: bool,
    },
    /// Not worth a retry.
    Final(HubError),
}

impl From<HubError> for Failure {
    fn from(error: HubError) -> Self {
        Self::Final(error)
    }
}

const USER_AGENT: &str = concat!("llm-int8/", env!("CARGO_PKG_VERSION"));

/// A reqwest client with the time-outs and certificates of the settings. Redirects are followed by
/// [`Http`].
fn client(config: &HubConfig) -> Result<Client> {
    let mut builder = Client::builder()
        .user_agent(USER_AGENT)
        .connect_timeout(config.connect_timeout)
        .read_timeout(config.read_timeout)
        .redirect(reqwest::redirect::Policy::none());
    if let Some(bundle) = &config.ca_bundle {
        builder = builder.tls_certs_only(certificates(bundle)?);
    }

    builder.build().map_err(|cause| {
        malformed(
            &config.shown_endpoint(),
            "the HTTP client",
            cause.to_string(),
        )
    })
}

/// The certificates in a PEM file, or in all files of a folder.
fn certificates(bundle: &Path) -> Result<Vec<Certificate>> {
    let io = |path: &Path| {
        let path = path.to_owned();
        move |source| HubError::Io { path, source }
    };
    let mut files = vec![bundle.to_owned()];
    if bundle.is_dir() {
        let entries = std::fs::read_dir(bundle).map_err(io(bundle))?;
        files = entries
            .flatten()
            .map(|entry| entry.path())
            .filter(|path| path.is_file())
            .collect();
    }

    let mut found = Vec::new();
    for file in files {
        let pem = std::fs::read(&file).map_err(io(&file))?;
        let malformed = |cause: reqwest::Error| HubError::MalformedFile {
            path: file.clone(),
            reason: format!("its certificates cannot be read: {cause}"),
        };
        found.extend(Certificate::from_pem_bundle(&pem).map_err(malformed)?);
    }

    if found.is_empty() {
        let reason =
            "it holds no certificates in PEM form (REQUESTS_CA_BUNDLE or CURL_CA_BUNDLE names it)";
        return Err(HubError::MalformedFile {
            path: bundle.to_owned(),
            reason: reason.into(),
        });
    }

    Ok(found)
}

pub(crate) fn malformed(host: &str, what: &str, reason: String) -> HubError {
    HubError::MalformedAnswer {
        host: host.to_owned(),
        what: what.to_owned(),
        reason,
    }
}

impl Http {
    pub(crate) fn new(config: &HubConfig) -> Result<Self> {
        let endpoint = Url::parse(&config.endpoint).map_err(|cause| {
            malformed(
                &config.shown_endpoint(),
                "HF_ENDPOINT",
                format!("it is not a URL ({cause})"),
            )
        })?;

        let client = client(config)?;
        Ok(Self {
            client,
            endpoint,
            token: config.token.clone(),
            etag_timeout: config.etag_timeout,
        })
    }

    /// The URL of a file.
    pub(crate) fn file_url(&self, repo: &str, commit: &str, file: &str) -> Result<Url> {
        let mut url = self.endpoint.clone();
        let base = url.path().trim_end_matches('/').to_owned();
        // All parts have been checked to be plain names.
        url.set_path(&format!("{base}/{repo}/resolve/{commit}/{file}"));
        Ok(url)
    }

    /// The URL of the listing of a repository's files.
    pub(crate) fn listing_url(&self, repo: &str, revision: Option<&str>) -> Result<Url> {
        let mut url = self.endpoint.clone();
        let segments = ["api", "models"].into_iter().chain(repo.split('/'));
        // A revision is one segment, also with a slash in it.
        let revision = revision.iter().flat_map(|revision| ["revision", revision]);
        url.path_segments_mut()
            .map_err(|()| {
                let reason = "it is not a URL with a path".into();
                malformed(&self.host(), "HF_ENDPOINT", reason)
            })?
            .pop_if_empty()
            .extend(segments.chain(revision));
        Ok(url)
    }

    /// Sends a request and follows redirects, up to one whose headers are already `enough`.
    pub(crate) async fn send(
        &self,
        method: Method,
        mut url: Url,
        range: Option<String>,
        enough: impl Fn(&HeaderMap) -> bool,
    ) -> std::result::Result<Response, Failure> {
        for _ in 0..REDIRECTS {
            let response = self
                .request(&method, &url, range.as_deref())
                .send()
                .await
                .map_err(|cause| transient(&cause))?;
            if !response.status().is_redirection() || enough(response.headers()) {
                return Ok(response);
            }

            let target = response
                .headers()
                .get(LOCATION)
                .and_then(|value| value.to_str().ok())
                .and_then(|location| url.join(location).ok());
            url = target.ok_or_else(|| {
                let reason = "it has no usable Location".into();
                malformed(&self.host(), "a redirect", reason)
            })?;
        }

        let reason = format!("more than {REDIRECTS} redirects");
        Err(malformed(&self.host(), "a file", reason).into())
    }

    fn request(&self, method: &Method, url: &Url, range: Option<&str>) -> RequestBuilder {
        let mut request = self.client.request(method.clone(), url.clone());
        // Lengths and ranges must be those of the file, not of a compressed form.
        request = request.header(ACCEPT_ENCODING, HeaderValue::from_static("identity"));
        if let Some(token) = &self.token
            && self.is_endpoint(url)
        {
            request = request.header(AUTHORIZATION, format!("Bearer {token}"));
        }
        if *method == Method::HEAD {
            request = request.timeout(self.etag_timeout);
        }
        if let Some(range) = range {
            request = request.header(RANGE, range);
        }
        request
    }

    /// Whether a URL has the scheme, host and port of the endpoint.
    pub(crate) fn is_endpoint(&self, url: &Url) -> bool {
        url.scheme() == self.endpoint.scheme()
            && url.host_str() == self.endpoint.host_str()
            && url.port_or_known_default() == self.endpoint.port_or_known_default()
    }

    /// The endpoint's host, for error messages.
    pub(crate) fn host(&self) -> String {
        self.endpoint.host_str().unwrap_or("the hub").to_owned()
    }

    pub(crate) fn has_token(&self) -> bool {
        self.token.is_some()
    }
}

/// A failed request as a transient failure, whose reason is the innermost cause; a final one if no
/// request could be made of its URL.
pub(crate) fn transient(error: &reqwest::Error) -> Failure {
    if error.is_builder() {
        let host = error.url().and_then(Url::host_str).unwrap_or("the hub");
        let reason = format!(
            "its address cannot be requested ({})",
            innermost_cause(error)
        );
        return malformed(host, "a request", reason).into();
    }

    let reason = if error.is_timeout() {
        "no answer in time".to_owned()
    } else {
        innermost_cause(error)
    };

    Failure::Transient {
        reason,
        after: None,
        unreachable: error.is_connect() || error.is_timeout(),
    }
}

fn innermost_cause(error: &reqwest::Error) -> String {
    let mut cause: &dyn std::error::Error = error;
    while let Some(inner) = cause.source() {
        cause = inner;
    }

    let mut text = cause.to_string();
    if text.contains("certificate") {
        text += "; if a proxy has its own certificate, set REQUESTS_CA_BUNDLE to it";
    }

    text
}

/// Whether a retry may help.
pub(crate) fn is_transient(status: StatusCode) -> bool {
    status.is_server_error()
        || matches!(
            status,
            StatusCode::TOO_MANY_REQUESTS | StatusCode::REQUEST_TIMEOUT
        )
}
