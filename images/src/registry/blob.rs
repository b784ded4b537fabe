//! The bytes of a layer: a small one as one stream, a large one in several ranges at once; taken up where they broke
//! off.
//!
//! One connection over a long way carries as much as its window; several carry that many times as much. Ranges are kept
//! in memory until those before them have come, so they are small, and one layer at a time comes that way.

use std::time::{Duration, Instant};

use bytes::Bytes;
use futures_util::{StreamExt, stream};
use reqwest::header::{CONTENT_RANGE, HeaderMap};
use reqwest::{Method, Response, StatusCode};

use super::{ATTEMPTS, Registry, pause};
use crate::error::{ImageError, Result};
use crate::manifest::LayerSpec;

/// From this size on a layer comes in ranges: below, the requests would cost more than they bring.
const RANGED_MIN: u64 = 16 << 20;

/// Asked for at once. With the number of them, 3 MiB are in memory at most.
const RANGE: u64 = 768 << 10;
const RANGES_AT_ONCE: usize = 4;

/// Fewer bytes than this are no progress.
pub(crate) const PROGRESS_MIN: u64 = 64 << 10;

/// Gives up a connection that brings something, but too little: a byte a minute keeps a timeout from firing for ever.
#[derive(Debug)]
pub(super) struct Pace {
    patience: Duration,
    /// Spent waiting for bytes since the last progress; not the time in which nobody asked for any.
    waited: Duration,
    got: u64,
}

impl Pace {
    pub(super) fn new(patience: Duration) -> Self {
        Self { patience, waited: Duration::ZERO, got: 0 }
    }

    /// How long may be waited for the next bytes.
    fn left(&self) -> Duration {
        self.patience.saturating_sub(self.waited)
    }

    fn arrived(&mut self, bytes: u64, waited: Duration) {
        self.got += bytes;
        self.waited += waited;
        if self.got >= PROGRESS_MIN {
            (self.got, self.waited) = (0, Duration::ZERO);
        }
    }

    /// The next bytes of an answer.
    pub(super) async fn chunk(&mut self, response: &mut Response) -> Result<Option<Bytes>, Broken> {
        let begun = Instant::now();
        let chunk = tokio::time::timeout(self.left(), response.chunk()).await.map_err(|_| Broken::Slow)?;
        let chunk = chunk.map_err(|source| Broken::Off(Some(source)))?;
        self.arrived(chunk.as_ref().map_or(0, |bytes| bytes.len() as u64), begun.elapsed());
        Ok(chunk)
    }
}

/// Why something did not come whole.
pub(super) enum Broken {
    /// The connection ended; another may go on.
    Off(Option<reqwest::Error>),
    /// Too little came in too long a time.
    Slow,
    /// The registry does not give ranges.
    NoRanges,
    Fatal(ImageError),
}

impl From<ImageError> for Broken {
    fn from(error: ImageError) -> Self {
        Self::Fatal(error)
    }
}

impl Registry {
    /// The bytes of a layer from `offset` on, given to `sink` in order; what breaks off is taken up where it broke.
    ///
    /// `sink` answers false when it wants no more.
    pub(crate) async fn layer<F, W>(&self, spec: &LayerSpec, offset: u64, mut sink: F) -> Result<()>
    where
        F: FnMut(Bytes, u64) -> W,
        W: Future<Output = bool>,
    {
        let (mut done, mut failures, mut ranged) = (offset, 0, true);
        while done < spec.size {
            let before = done;
            let turn = if ranged && spec.size - done >= RANGED_MIN { self.ranged.try_acquire().ok() } else { None };
            let some = match turn {
                Some(_turn) => self.in_ranges(spec, &mut done, &mut sink).await,
                None => self.some_of_layer(spec, &mut done, &mut sink).await,
            };
            let broken = match some {
                Ok(true) => Broken::Off(None),
                Ok(false) => return Ok(()),
                Err(Broken::Fatal(error)) => return Err(error),
                Err(Broken::NoRanges) => {
                    ranged = false;
                    continue;
                }
                Err(broken) => broken,
            };
            if done >= spec.size {
                break;
            }
            failures = if done - before >= PROGRESS_MIN { 1 } else { failures + 1 };
            if failures >= ATTEMPTS {
                let what = format!("layer {}", spec.digest);
                return Err(match broken {
                    Broken::Off(Some(source)) if done == 0 => self.network(format!("GET {}", spec.digest), source),
                    Broken::Slow => self.slow(what),
                    _ => ImageError::Truncated { what, wanted: spec.size, got: done },
                });
            }
            tracing::debug!(layer = %spec.digest, done, "broken off, going on");
            tokio::time::sleep(pause(failures)).await;
        }
        Ok(())
    }

    /// One request for the rest of a layer. `Ok(false)`: the sink wants no more.
    async fn some_of_layer<F, W>(&self, spec: &LayerSpec, done: &mut u64, sink: &mut F) -> Result<bool, Broken>
    where
        F: FnMut(Bytes, u64) -> W,
        W: Future<Output = bool>,
    {
        let path = format!("blobs/{}", spec.digest);
        let what = format!("layer {}", spec.digest);
        let range = (*done > 0).then(|| format!("bytes={done}-"));
        let mut response = self.send(Method::GET, &path, "*/*", range.as_deref()).await?;
        // A registry without ranges sends all of it again: what we have is skipped.
        let mut skip = match response.status() {
            StatusCode::PARTIAL_CONTENT if is_range(response.headers(), *done, spec.size - 1, spec.size) => 0,
            StatusCode::OK => *done,
            _ => {
                return Err(Broken::Fatal(self.refused(Method::GET, &path, response).await));
            }
        };
        self.check_length(&what, response.headers(), spec.size - *done + skip, &path)?;
        let mut pace = Pace::new(self.patience);
        while let Some(mut bytes) = pace.chunk(&mut response).await? {
            let skipped = usize::try_from(skip).unwrap_or(usize::MAX).min(bytes.len());
            let bytes = bytes.split_off(skipped);
            skip -= skipped as u64;
            if bytes.is_empty() {
                continue;
            }
            *done += bytes.len() as u64;
            if *done > spec.size {
                return Err(Broken::Fatal(ImageError::WrongSize { what, wanted: spec.size, got: *done }));
            }
            if !sink(bytes, *done).await {
                return Ok(false);
            }
        }
        Ok(true)
    }

    /// As `some_of_layer`, by several requests at once.
    async fn in_ranges<F, W>(&self, spec: &LayerSpec, done: &mut u64, sink: &mut F) -> Result<bool, Broken>
    where
        F: FnMut(Bytes, u64) -> W,
        W: Future<Output = bool>,
    {
        let (first, size) = (*done, spec.size);
        let starts = (0..).map(|number| first + number * RANGE).take_while(|start| *start < size);
        let requests = starts.map(|start| self.range(spec, start, size.min(start + RANGE) - 1));
        let mut ranges = stream::iter(requests).buffered(RANGES_AT_ONCE);
        while let Some(range) = ranges.next().await {
            for bytes in range? {
                *done += bytes.len() as u64;
                if !sink(bytes, *done).await {
                    return Ok(false);
                }
            }
        }
        Ok(true)
    }

    /// The bytes from `first` to `last`, and not one else.
    async fn range(&self, spec: &LayerSpec, first: u64, last: u64) -> Result<Vec<Bytes>, Broken> {
        let path = format!("blobs/{}", spec.digest);
        let mut response = self.send(Method::GET, &path, "*/*", Some(&format!("bytes={first}-{last}"))).await?;
        match response.status() {
            StatusCode::PARTIAL_CONTENT if is_range(response.headers(), first, last, spec.size) => {}
            StatusCode::PARTIAL_CONTENT | StatusCode::OK => return Err(Broken::NoRanges),
            _ => return Err(Broken::Fatal(self.refused(Method::GET, &path, response).await)),
        }
        let (mut pieces, mut left) = (Vec::new(), last - first + 1);
        let mut pace = Pace::new(self.patience);
        while left > 0 {
            let bytes = pace.chunk(&mut response).await?.ok_or(Broken::Off(None))?;
            // More than was asked for: whatever it is, it is not what the header says.
            left = left.checked_sub(bytes.len() as u64).ok_or(Broken::NoRanges)?;
            pieces.push(bytes);
        }
        Ok(pieces)
    }
}

/// Whether an answer says `Content-Range: bytes FIRST-LAST/SIZE`, exactly; the size may be unknown to it (`*`).
fn is_range(headers: &HeaderMap, first: u64, last: u64, size: u64) -> bool {
    let text = headers.get(CONTENT_RANGE).and_then(|value| value.to_str().ok()?.strip_prefix("bytes "));
    text == Some(&format!("{first}-{last}/{size}")) || text == Some(&format!("{first}-{last}/*"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_range_that_was_asked_for_will_do() {
        for (value, right) in [
            ("bytes 10-19/100", true),
            ("bytes 10-19/*", true),
            ("bytes 10-18/100", false),
            ("bytes 0-19/100", false),
            ("bytes 10-19/99", false),
            ("bytes 10-19", false),
            ("items 10-19/100", false),
            ("", false),
        ] {
            let headers = HeaderMap::from_iter([(CONTENT_RANGE, value.parse().unwrap())]);
            assert_eq!(is_range(&headers, 10, 19, 100), right, "{value}");
        }
        assert!(!is_range(&HeaderMap::new(), 10, 19, 100));
    }

    #[test]
    fn patience_ends_without_progress_however_many_bytes_come() {
        let second = Duration::from_secs(1);
        let mut pace = Pace::new(60 * second);
        for _ in 0..59 {
            pace.arrived(1, second);
        }
        assert_eq!(pace.left(), second, "a byte a second");
        pace.arrived(PROGRESS_MIN, second / 2);
        assert_eq!(pace.left(), 60 * second, "progress");
        pace.arrived(0, 61 * second);
        assert_eq!(pace.left(), Duration::ZERO);
    }
}
