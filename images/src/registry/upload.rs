//! Sends blobs and manifests to a repository.
//!
//! ```text
//! HEAD blob ─ there ─► done
//!    └ no ─► POST, mount from another repository ─ 201 ─► done
//!               └ 202 ─► PATCH … PATCH (broken off? GET tells how far) ─► PUT ?digest
//! ```
//!
//! # Source
//! OCI distribution-spec 1.1, "Push".

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::Path;

use bytes::Bytes;
use reqwest::header::{CONTENT_LENGTH, CONTENT_RANGE, CONTENT_TYPE, HeaderMap, HeaderName, LOCATION, RANGE};
use reqwest::{Method, Response, StatusCode, Url};

use super::{ATTEMPTS, Ask, Registry, pause};
use crate::digest::Digest;
use crate::error::{ImageError, Result, at};

/// Sent at once: large enough that its answer does not matter, small enough to be sent again.
const PIECE: u64 = 8 << 20;

impl Registry {
    /// Whether the repository has a blob.
    pub(crate) async fn has_blob(&self, digest: Digest) -> Result<bool> {
        let path = format!("blobs/{digest}");
        let response = self.ask(&Ask::new(Method::HEAD, self.url(&path))).await?;
        match response.status() {
            StatusCode::OK => Ok(true),
            StatusCode::NOT_FOUND => Ok(false),
            _ => Err(self.refused(Method::HEAD, &path, response).await),
        }
    }

    /// Send the blob in `file`, or have the registry take it from its repository `from`. True if it was sent.
    ///
    /// - `told`: called with the bytes that have arrived.
    pub(crate) async fn push_blob(
        &self,
        digest: Digest,
        size: u64,
        file: &Path,
        from: Option<&str>,
        told: &(dyn Fn(u64) + Sync),
    ) -> Result<bool> {
        if self.has_blob(digest).await? {
            return Ok(false);
        }
        let Some(place) = self.begin(digest, from).await? else {
            return Ok(false);
        };
        let blob = File::open(file).map_err(at("open", file))?;
        let place = self.pieces(place, size, &blob, file, told).await?;
        let mut url = place;
        url.query_pairs_mut().append_pair("digest", &digest.to_string());
        let what = "the end of an upload";
        let response = self.ask(&Ask::new(Method::PUT, url).header(CONTENT_LENGTH, "0")).await?;
        match response.status() {
            StatusCode::CREATED | StatusCode::NO_CONTENT => Ok(true),
            _ => Err(self.refused(Method::PUT, what, response).await),
        }
    }

    /// Where to send a blob; `None` if the registry has it after all.
    async fn begin(&self, digest: Digest, from: Option<&str>) -> Result<Option<Url>> {
        let mut url = self.url("blobs/uploads/");
        if let Some(from) = from {
            url.query_pairs_mut().append_pair("mount", &digest.to_string()).append_pair("from", from);
        }
        let response = self.ask(&Ask::new(Method::POST, url.clone()).header(CONTENT_LENGTH, "0")).await?;
        match response.status() {
            StatusCode::CREATED => Ok(None),
            StatusCode::ACCEPTED => self.place(&url, response.headers()).map(Some),
            // Not every registry takes from another repository, and the token may not reach there.
            StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN | StatusCode::NOT_FOUND if from.is_some() => {
                Box::pin(self.begin(digest, None)).await
            }
            _ => Err(self.refused(Method::POST, "blobs/uploads/", response).await),
        }
    }

    /// The address of an upload, as the registry gives it anew with every answer.
    fn place(&self, asked: &Url, headers: &HeaderMap) -> Result<Url> {
        let location = headers.get(LOCATION).and_then(|value| value.to_str().ok()).unwrap_or_default();
        let place = asked.join(location).ok().filter(|_| !location.is_empty());
        let usable = |place: &Url| place.scheme() == "https" || self.plain && place.scheme() == "http";
        place.filter(usable).ok_or_else(|| ImageError::Registry {
            registry: self.name.clone(),
            status: StatusCode::ACCEPTED.as_u16(),
            request: "POST blobs/uploads/".into(),
            detail: format!("it sends no usable place for an upload, but `{location}`"),
        })
    }

    async fn pieces(
        &self,
        mut place: Url,
        size: u64,
        blob: &File,
        file: &Path,
        told: &(dyn Fn(u64) + Sync),
    ) -> Result<Url> {
        let (mut sent, mut failures) = (0, 0);
        while sent < size {
            let mut piece = vec![0; usize::try_from((size - sent).min(PIECE)).unwrap_or(0)];
            blob.read_exact_at(&mut piece, sent).map_err(at("read", file))?;
            let end = sent + piece.len() as u64;
            let ask = Ask::new(Method::PATCH, place.clone())
                .header(CONTENT_TYPE, "application/octet-stream")
                .header(CONTENT_RANGE, format!("{sent}-{}", end - 1))
                .body(Bytes::from(piece));
            match self.once(&ask).await {
                Ok(response) if response.status() == StatusCode::ACCEPTED => {
                    place = self.place(&place, response.headers())?;
                    (sent, failures) = (end, 0);
                    told(sent);
                }
                // Broken off, or another piece is wanted: the registry knows how far it got.
                answer => {
                    failures += 1;
                    if failures >= ATTEMPTS {
                        return Err(self.not_taken(answer).await);
                    }
                    tokio::time::sleep(pause(failures)).await;
                    (place, sent) = self.progress(place, sent.min(size)).await?;
                }
            }
        }
        Ok(place)
    }

    async fn not_taken(&self, answer: Result<Response>) -> ImageError {
        match answer {
            Ok(response) => self.refused(Method::PATCH, "a piece of a layer", response).await,
            Err(error) => error,
        }
    }

    /// Where an upload goes on, and from which byte.
    async fn progress(&self, place: Url, sent: u64) -> Result<(Url, u64)> {
        let response = self.ask(&Ask::new(Method::GET, place.clone())).await?;
        if response.status() != StatusCode::NO_CONTENT {
            return Err(self.refused(Method::GET, "an upload", response).await);
        }
        let arrived = arrived(response.headers()).unwrap_or(sent);
        let next = self.place(&place, response.headers()).unwrap_or(place);
        Ok((next, arrived))
    }

    /// Send a manifest under a tag or digest.
    pub(crate) async fn push_manifest(&self, what: &str, media_type: &str, bytes: Vec<u8>) -> Result<()> {
        let path = format!("manifests/{what}");
        let ask = Ask::new(Method::PUT, self.url(&path)).header(CONTENT_TYPE, media_type).body(Bytes::from(bytes));
        let response = self.ask(&ask).await?;
        match response.status() {
            StatusCode::CREATED | StatusCode::OK => Ok(()),
            _ => Err(self.refused(Method::PUT, &path, response).await),
        }
    }
}

/// `Range: 0-LAST`; nothing has arrived if it says `0-0`, since nobody sends a single byte.
fn arrived(headers: &HeaderMap) -> Option<u64> {
    let last: u64 = headers.get(RANGE)?.to_str().ok()?.trim_start_matches("bytes=").split_once('-')?.1.parse().ok()?;
    Some(if last == 0 { 0 } else { last + 1 })
}

impl Ask {
    pub(super) fn new(method: Method, url: Url) -> Self {
        Self { method, url, headers: Vec::new(), body: None }
    }

    pub(super) fn header(mut self, name: HeaderName, value: impl Into<String>) -> Self {
        self.headers.push((name, value.into()));
        self
    }

    fn body(mut self, body: Bytes) -> Self {
        self.body = Some(body);
        self
    }
}
