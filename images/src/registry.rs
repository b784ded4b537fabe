//! Talks to one repository of one registry: manifests and blobs, with a log-in when it is asked for.
//!
//! HTTP only on loopback and where the operator said so. Every answer is bounded in size and time, every failure that
//! may pass is retried a bounded number of times. Nothing here is trusted: `pull` checks digests.
//!
//! # Source
//! OCI distribution-spec 1.1, "Pull"; RFC 9110 (ranges, `Retry-After`).

pub(crate) mod blob;
mod upload;

use std::hash::{BuildHasher, Hasher, RandomState};
use std::path::Path;
use std::sync::{Arc, Mutex, Once, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use reqwest::header::{
    ACCEPT, AUTHORIZATION, CONTENT_LENGTH, CONTENT_TYPE, HeaderMap, HeaderName, RANGE, RETRY_AFTER, WWW_AUTHENTICATE,
};
use reqwest::{Certificate, Client, Method, RequestBuilder, Response, StatusCode, Url};
use serde::Deserialize;
use tokio::sync::Semaphore;

use self::blob::{Broken, Pace};
use crate::auth::{self, Challenge, Credentials};
use crate::digest::Digest;
use crate::dns::Resolver;
use crate::error::{ImageError, Result, at};
use crate::manifest::{DOCKER_LIST, DOCKER_MANIFEST, MANIFEST_MAX, OCI_INDEX, OCI_MANIFEST};
use crate::reference;
use crate::registries::Endpoint;

const CONNECT_TIME_MAX: Duration = Duration::from_secs(10);

/// Without a single byte.
const SILENCE_MAX: Duration = Duration::from_secs(30);

/// Without progress, though something comes.
const PATIENCE: Duration = Duration::from_secs(60);

/// Tries of one request, or of one blob without progress.
const ATTEMPTS: u32 = 4;

/// First pause; doubles, and up to half is added so that many nodes do not come at once.
const PAUSE: Duration = Duration::from_millis(200);

/// A registry that wants us to wait longer gets no wait, but the caller an error.
const PAUSE_MAX: Duration = Duration::from_secs(30);

/// Error texts and tokens.
const SMALL_MAX: u64 = 1 << 20;

/// As browsers have it; registries need one or two.
const REDIRECTS_MAX: usize = 5;

/// One repository of one registry.
pub(crate) struct Registry {
    client: Client,
    /// Host, and port if given.
    name: String,
    repository: String,
    /// `https://host/v2/repository`.
    base: Url,
    plain: bool,
    credentials: Option<Credentials>,
    /// The `Authorization` header that last worked.
    authorization: Mutex<Option<String>>,
    patience: Duration,
    /// Held by the layer that comes in ranges.
    ranged: Semaphore,
}

/// A manifest or index as it came.
pub(crate) struct Fetched {
    pub(crate) content_type: Option<String>,
    pub(crate) bytes: Vec<u8>,
}

impl Registry {
    /// For messages.
    pub(crate) fn name(&self) -> &str {
        &self.name
    }

    /// Prepare; nothing is sent yet.
    pub(crate) fn new(endpoint: Endpoint, credentials: Option<Credentials>) -> Result<Self> {
        let Endpoint { name, base, repository, ca } = endpoint;
        let (plain, loopback) = (base.scheme() == "http", reference::is_loopback(&name));
        let trusted = ca.as_deref().map(certificates).transpose()?.unwrap_or_default();
        let client = client(plain, loopback, &trusted).map_err(|source| ImageError::Network {
            registry: name.clone(),
            request: "the first connection".into(),
            source,
        })?;
        let (authorization, ranged) = (Mutex::new(None), Semaphore::new(1));
        let patience = PATIENCE;
        Ok(Self { client, name, repository, base, plain, credentials, authorization, patience, ranged })
    }

    /// How long a connection may go on without progress, if that is not the usual time.
    pub(crate) fn with_patience(self, patience: Option<Duration>) -> Self {
        Self { patience: patience.unwrap_or(self.patience), ..self }
    }

    /// The digest of a tag, without its content; `None` if the registry does not tell.
    pub(crate) async fn resolve(&self, tag: &str) -> Result<Option<Digest>> {
        let path = format!("manifests/{tag}");
        let response = self.send(Method::HEAD, &path, &manifest_types(), None).await?;
        match response.status() {
            StatusCode::OK => {
                self.check_not_html(&path, response.headers())?;
                let digest = response.headers().get("docker-content-digest").and_then(|value| value.to_str().ok());
                Ok(digest.and_then(|digest| digest.parse().ok()))
            }
            // Some answer 400 or 405 to HEAD: GET will tell.
            StatusCode::BAD_REQUEST | StatusCode::METHOD_NOT_ALLOWED => Ok(None),
            _ => Err(self.refused(Method::HEAD, &path, response).await),
        }
    }

    /// A manifest by tag or digest, not verified.
    pub(crate) async fn manifest(&self, what: &str) -> Result<Fetched> {
        let path = format!("manifests/{what}");
        let response = self.send(Method::GET, &path, &manifest_types(), None).await?;
        if response.status() != StatusCode::OK {
            return Err(self.refused(Method::GET, &path, response).await);
        }
        self.check_not_html(&path, response.headers())?;
        let content_type = content_type(response.headers());
        let bytes = self.body(&path, response, MANIFEST_MAX).await?;
        Ok(Fetched { content_type, bytes })
    }

    /// A small blob of known size, not verified.
    pub(crate) async fn small_blob(&self, what: &str, digest: Digest, size: u64) -> Result<Vec<u8>> {
        let path = format!("blobs/{digest}");
        let response = self.send(Method::GET, &path, "*/*", None).await?;
        if response.status() != StatusCode::OK {
            return Err(self.refused(Method::GET, &path, response).await);
        }
        self.check_length(what, response.headers(), size, &path)?;
        let bytes = self.body(&path, response, size).await.map_err(|error| match error {
            ImageError::TooBig { .. } => ImageError::WrongSize { what: what.to_owned(), wanted: size, got: size + 1 },
            other => other,
        })?;
        let got = bytes.len() as u64;
        if got == size { Ok(bytes) } else { Err(ImageError::Truncated { what: what.to_owned(), wanted: size, got }) }
    }

    fn url(&self, path: &str) -> Url {
        let mut url = self.base.clone();
        url.set_path(&format!("{}/{path}", self.base.path()));
        url
    }

    /// Send a request for something of the repository; log in if that is asked for.
    async fn send(&self, method: Method, path: &str, accept: &str, range: Option<&str>) -> Result<Response> {
        let ask = Ask::new(method, self.url(path)).header(ACCEPT, accept);
        self.ask(&match range {
            Some(range) => ask.header(RANGE, range),
            None => ask,
        })
        .await
    }

    /// Send a request, again if that may help; log in if that is asked for.
    async fn ask(&self, ask: &Ask) -> Result<Response> {
        let what = ask.title();
        let response = self.attempts(&what, || self.request(ask)).await?;
        if response.status() != StatusCode::UNAUTHORIZED {
            return Ok(response);
        }
        self.log_in(&ask.method, ask.url.path(), response).await?;
        self.attempts(&what, || self.request(ask)).await
    }

    /// As `ask`, but broken off is broken off.
    async fn once(&self, ask: &Ask) -> Result<Response> {
        let send = || async { self.request(ask).send().await.map_err(|source| self.network(ask.title(), source)) };
        let response = send().await?;
        if response.status() != StatusCode::UNAUTHORIZED {
            return Ok(response);
        }
        self.log_in(&ask.method, ask.url.path(), response).await?;
        send().await
    }

    fn request(&self, ask: &Ask) -> RequestBuilder {
        let mut request = self.client.request(ask.method.clone(), ask.url.clone());
        for (name, value) in &ask.headers {
            request = request.header(name, value);
        }
        if let Some(body) = &ask.body {
            request = request.body(body.clone());
        }
        // Uploads may go to another host, which is told nothing.
        match self.authorization() {
            Some(value) if ask.url.origin() == self.base.origin() => request.header(AUTHORIZATION, value),
            _ => request,
        }
    }

    /// Send a request until it is answered with something other than "later".
    async fn attempts(&self, what: &str, request: impl Fn() -> RequestBuilder) -> Result<Response> {
        let mut failures = 0;
        loop {
            // Headers that come a byte at a time would be waited for without end.
            let done = tokio::time::timeout(self.patience, request().send()).await;
            failures += 1;
            let wait = match &done {
                Ok(Ok(response)) if may_pass(response.status()) => {
                    retry_after(response.headers()).unwrap_or_else(|| pause(failures))
                }
                Ok(Err(error)) if !error.is_builder() && !error.is_redirect() => pause(failures),
                Err(_) => pause(failures),
                _ => Duration::MAX,
            };
            if failures >= ATTEMPTS || wait > PAUSE_MAX {
                let answered = done.map_err(|_| self.slow(what.to_owned()))?;
                return answered.map_err(|source| self.network(what.to_owned(), source));
            }
            tracing::debug!(registry = self.name, what, failures, "trying again");
            tokio::time::sleep(wait).await;
        }
    }

    fn authorization(&self) -> Option<String> {
        self.authorization.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Answer a challenge: get a token, or send name and password.
    async fn log_in(&self, method: &Method, path: &str, response: Response) -> Result<()> {
        let headers = response.headers().get_all(WWW_AUTHENTICATE).iter();
        let challenges: Vec<Challenge> =
            headers.filter_map(|value| value.to_str().ok()).flat_map(auth::parse_challenges).collect();
        let offered = |scheme: &str| challenges.iter().find(|challenge| challenge.scheme == scheme);
        let value = match (offered("bearer"), offered("basic"), &self.credentials) {
            (Some(bearer), _, _) => format!("Bearer {}", self.token(bearer).await?),
            (None, Some(_), Some(credentials)) => credentials.basic(),
            _ => return Err(self.refused(method.clone(), path, response).await),
        };
        *self.authorization.lock().unwrap_or_else(PoisonError::into_inner) = Some(value);
        Ok(())
    }

    async fn token(&self, challenge: &Challenge) -> Result<String> {
        #[derive(Deserialize)]
        struct Token {
            token: Option<String>,
            access_token: Option<String>,
        }
        let url = self.token_url(challenge)?;
        let request = || match self.credentials.as_ref().map(|credentials| (credentials, credentials.identity_token()))
        {
            // OAuth 2.0, section 6 of RFC 6749: the same parameters, in a body.
            Some((_, Some(token))) => {
                let mut form = url.clone();
                let pairs = [("grant_type", "refresh_token"), ("client_id", "gantry"), ("refresh_token", token)];
                form.query_pairs_mut().extend_pairs(pairs);
                let body = form.query().unwrap_or_default().to_owned();
                form.set_query(None);
                self.client.post(form).header(CONTENT_TYPE, "application/x-www-form-urlencoded").body(body)
            }
            Some((credentials, None)) => self.client.get(url.clone()).header(AUTHORIZATION, credentials.basic()),
            None => self.client.get(url.clone()),
        };
        let response = self.attempts("a token", request).await?;
        let status = response.status();
        let bytes = self.body("a token request", response, SMALL_MAX).await?;
        match status.as_u16() {
            200..300 => {}
            400..=403 => return Err(self.unauthorized(detail(&bytes))),
            status => {
                return Err(ImageError::Registry {
                    registry: self.name.clone(),
                    status,
                    request: "a token request".into(),
                    detail: detail(&bytes),
                });
            }
        }
        let token = serde_json::from_slice::<Token>(&bytes).ok();
        token
            .and_then(|token| token.token.or(token.access_token))
            .filter(|token| !token.is_empty() && token.is_ascii())
            .ok_or_else(|| self.unauthorized("its token service sends no token".into()))
    }

    fn token_url(&self, challenge: &Challenge) -> Result<Url> {
        let parameter = |key: &str| challenge.parameters.get(key);
        let realm = parameter("realm").map_or("", String::as_str);
        // Name and password go over TLS, or to a registry that is itself allowed to be without.
        let allowed = |url: &Url| url.scheme() == "https" || self.plain && url.scheme() == "http";
        let url = Url::parse(realm).ok().filter(allowed);
        let unusable = || self.unauthorized(format!("its token service `{realm}` cannot be used"));
        let mut url = url.ok_or_else(unusable)?;
        let own_scope = format!("repository:{}:pull", self.repository);
        if let Some(service) = parameter("service") {
            url.query_pairs_mut().append_pair("service", service);
        }
        let scope = parameter("scope").unwrap_or(&own_scope);
        url.query_pairs_mut().append_pair("scope", scope);
        Ok(url)
    }

    fn unauthorized(&self, detail: String) -> ImageError {
        ImageError::Unauthorized { registry: self.name.clone(), repository: self.repository.clone(), detail }
    }

    fn slow(&self, what: String) -> ImageError {
        ImageError::TooSlow { registry: self.name.clone(), what, seconds: self.patience.as_secs() }
    }

    fn network(&self, request: String, source: reqwest::Error) -> ImageError {
        ImageError::Network { registry: self.name.clone(), request, source: source.without_url() }
    }

    /// The error that an answer other than success means.
    async fn refused(&self, method: Method, path: &str, response: Response) -> ImageError {
        let status = response.status();
        let html = content_type(response.headers()).filter(|kind| kind.starts_with("text/html"));
        let text = self.body(path, response, SMALL_MAX).await.unwrap_or_default();
        match status {
            StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN => self.unauthorized(detail(&text)),
            StatusCode::NOT_FOUND if html.is_some() => self.not_a_registry(path, html),
            StatusCode::NOT_FOUND => {
                let object = path.split_once('/').map_or(path, |(_, object)| object);
                let joint = if object.contains(':') { '@' } else { ':' };
                ImageError::NotInRegistry {
                    registry: self.name.clone(),
                    reference: format!("{}{joint}{object}", self.repository),
                    part_of: None,
                }
            }
            _ => ImageError::Registry {
                registry: self.name.clone(),
                status: status.as_u16(),
                request: format!("{method} {path}"),
                detail: detail(&text),
            },
        }
    }

    fn not_a_registry(&self, path: &str, kind: Option<String>) -> ImageError {
        ImageError::NotARegistry {
            url: format!("{}/{path}", self.base),
            content_type: kind.unwrap_or_else(|| "nothing".into()),
        }
    }

    fn check_not_html(&self, path: &str, headers: &HeaderMap) -> Result<()> {
        match content_type(headers).filter(|kind| kind.starts_with("text/html")) {
            Some(kind) => Err(self.not_a_registry(path, Some(kind))),
            None => Ok(()),
        }
    }

    fn check_length(&self, what: &str, headers: &HeaderMap, wanted: u64, path: &str) -> Result<()> {
        let length = headers.get(CONTENT_LENGTH).and_then(|value| value.to_str().ok()?.parse::<u64>().ok());
        match length {
            Some(got) if got != wanted => {
                self.check_not_html(path, headers)?;
                Err(ImageError::WrongSize { what: what.to_owned(), wanted, got })
            }
            _ => Ok(()),
        }
    }

    /// A whole body of at most `limit` bytes.
    async fn body(&self, path: &str, mut response: Response, limit: u64) -> Result<Vec<u8>> {
        let mut bytes = Vec::new();
        let mut pace = Pace::new(self.patience);
        let failed = |broken| match broken {
            Broken::Off(Some(source)) => self.network(path.to_owned(), source),
            Broken::Fatal(error) => error,
            Broken::Off(None) | Broken::Slow | Broken::NoRanges => self.slow(path.to_owned()),
        };
        while let Some(chunk) = pace.chunk(&mut response).await.map_err(failed)? {
            bytes.extend_from_slice(&chunk);
            if bytes.len() as u64 > limit {
                return Err(ImageError::TooBig {
                    what: format!("answer of {} to {path}", self.name),
                    limit,
                    unit: "bytes",
                });
            }
        }
        Ok(bytes)
    }
}

/// A request.
struct Ask {
    method: Method,
    url: Url,
    headers: Vec<(HeaderName, String)>,
    body: Option<Bytes>,
}

impl Ask {
    /// For messages.
    fn title(&self) -> String {
        let path = self.url.path();
        let short = ["/manifests/", "/blobs/"].into_iter().find_map(|part| path.rfind(part));
        format!("{} {}", self.method, short.map_or(path, |at| &path[at + 1..]))
    }
}

/// The certificates in a PEM file.
fn certificates(file: &Path) -> Result<Vec<Certificate>> {
    let bytes = std::fs::read(file).map_err(at("read", file))?;
    Certificate::from_pem_bundle(&bytes).ok().filter(|found| !found.is_empty()).ok_or_else(|| ImageError::BadSettings {
        file: file.to_path_buf(),
        why: "it has no certificate in PEM".to_owned(),
    })
}

/// - `trusted`: certificates besides those of the system.
fn client(plain: bool, loopback: bool, trusted: &[Certificate]) -> reqwest::Result<Client> {
    static PROVIDER: Once = Once::new();
    PROVIDER.call_once(|| {
        // Fails only if the program has chosen one before, which is then used.
        let _ = rustls::crypto::ring::default_provider().install_default();
    });
    let builder = || {
        let builder = Client::builder()
            .user_agent(concat!("gantry/", env!("CARGO_PKG_VERSION")))
            .dns_resolver(Arc::new(Resolver::default()))
            .connect_timeout(CONNECT_TIME_MAX)
            .read_timeout(SILENCE_MAX)
            .redirect(redirects());
        let builder = if trusted.is_empty() { builder } else { builder.tls_certs_merge(trusted.iter().cloned()) };
        // A proxy of the environment cannot reach our loopback.
        if loopback { builder.no_proxy() } else { builder }
    };
    match builder().build() {
        // A host without any CA certificates can still talk to its own registry.
        Err(_) if plain => builder().tls_certs_only([]).build(),
        other => other,
    }
}

/// Followed, but never from HTTPS to HTTP. reqwest takes the `Authorization` header off when the host changes.
fn redirects() -> reqwest::redirect::Policy {
    reqwest::redirect::Policy::custom(|attempt| {
        let downgrade =
            attempt.url().scheme() == "http" && attempt.previous().iter().any(|url| url.scheme() == "https");
        if downgrade {
            attempt.error("redirected from HTTPS to HTTP")
        } else if attempt.previous().len() > REDIRECTS_MAX {
            attempt.error("redirected too often")
        } else {
            attempt.follow()
        }
    })
}

fn manifest_types() -> String {
    [OCI_INDEX, OCI_MANIFEST, DOCKER_LIST, DOCKER_MANIFEST].join(", ")
}

fn content_type(headers: &HeaderMap) -> Option<String> {
    let value = headers.get(CONTENT_TYPE)?.to_str().ok()?;
    Some(value.split(';').next().unwrap_or(value).trim().to_ascii_lowercase())
}

fn may_pass(status: StatusCode) -> bool {
    matches!(status, StatusCode::REQUEST_TIMEOUT | StatusCode::TOO_MANY_REQUESTS)
        || status.is_server_error() && status != StatusCode::NOT_IMPLEMENTED
}

/// Seconds; the form with a date is not used by registries.
fn retry_after(headers: &HeaderMap) -> Option<Duration> {
    headers.get(RETRY_AFTER)?.to_str().ok()?.trim().parse().ok().map(Duration::from_secs)
}

fn pause(failures: u32) -> Duration {
    let base = PAUSE * 2u32.saturating_pow(failures.saturating_sub(1).min(8));
    let random = RandomState::new().build_hasher().finish() % 512;
    base + base * u32::try_from(random).unwrap_or(0) / 1024
}

/// What a registry says about an error: its JSON form, or nothing. Never more than a line.
fn detail(body: &[u8]) -> String {
    #[derive(Deserialize)]
    struct Errors {
        errors: Vec<Item>,
    }
    #[derive(Deserialize)]
    struct Item {
        #[serde(default)]
        code: String,
        #[serde(default)]
        message: String,
    }
    let Ok(parsed) = serde_json::from_slice::<Errors>(body) else {
        return String::new();
    };
    let one = |item: &Item| {
        if item.message.is_empty() { item.code.clone() } else { item.message.clone() }
    };
    let text = parsed.errors.iter().map(one).collect::<Vec<_>>().join("; ");
    text.chars().map(|c| if c.is_control() { ' ' } else { c }).take(300).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses_grow_and_are_bounded() {
        for (failures, ms) in [(1, 200), (2, 400), (3, 800), (100, 51_200)] {
            let pause = pause(failures).as_millis();
            assert!((ms..ms * 3 / 2 + 1).contains(&pause), "{failures}: {pause}");
        }
    }

    #[test]
    fn the_words_of_a_registry_are_one_short_line() {
        for (body, expected) in [
            (&br#"{"errors":[{"code":"DENIED","message":"no\naccess"},{"code":"X"}]}"#[..], "no access; X"),
            (b"<html>", ""),
            (b"", ""),
        ] {
            assert_eq!(detail(body), expected);
        }
    }
}
