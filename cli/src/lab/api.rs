//! Three questions to the lab's scheduler, over its unix socket, without an async runtime.

use serde::de::DeserializeOwned;
use std::io::{self, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;

/// The scheduler is on this machine; it answers in milliseconds or not at all.
const ANSWER_WITHIN: Duration = Duration::from_secs(5);
/// A list of thousands of apps; more is not ours.
const ANSWER_BYTES_MAX: u64 = 64 << 20;

/// Why there is no answer.
#[derive(Debug)]
pub enum AskError {
    /// Nobody listens, or the connection broke: it may be better soon.
    Away(io::Error),
    /// It says no, or what nobody understands: asking again would be the same.
    Refused(String),
}

impl From<io::Error> for AskError {
    fn from(error: io::Error) -> Self {
        Self::Away(error)
    }
}

/// `GET path`, or `POST path` with a JSON body.
///
/// # Errors
/// See [`AskError`].
pub fn ask<T: DeserializeOwned>(socket: &Path, path: &str, body: Option<&serde_json::Value>) -> Result<T, AskError> {
    let mut stream = UnixStream::connect(socket)?;
    stream.set_read_timeout(Some(ANSWER_WITHIN))?;
    stream.set_write_timeout(Some(ANSWER_WITHIN))?;
    let (method, body) = body.map_or(("GET", String::new()), |body| ("POST", body.to_string()));
    let request = format!(
        "{method} {path} HTTP/1.1\r\nhost: gantry\r\nconnection: close\r\ncontent-type: application/json\r\n\
         content-length: {}\r\n\r\n{body}",
        body.len()
    );
    stream.write_all(request.as_bytes())?;
    let mut answer = Vec::new();
    stream.take(ANSWER_BYTES_MAX).read_to_end(&mut answer)?;
    let (status, body) = parse(&answer).ok_or_else(|| io::Error::from(io::ErrorKind::UnexpectedEof))?;
    if !(200..300).contains(&status) {
        let refusal = serde_json::from_slice::<gantry_api::http::ApiError>(&body).map(|refusal| refusal.message);
        return Err(AskError::Refused(refusal.unwrap_or_else(|_| format!("HTTP status {status}"))));
    }
    serde_json::from_slice(&body).map_err(|error| AskError::Refused(format!("an answer not understood: {error}")))
}

/// Status and body of a whole HTTP/1.1 answer.
fn parse(answer: &[u8]) -> Option<(u16, Vec<u8>)> {
    let end = answer.windows(4).position(|window| window == b"\r\n\r\n")?;
    let head = std::str::from_utf8(&answer[..end]).ok()?;
    let body = &answer[end + 4..];
    let mut lines = head.split("\r\n");
    let status = lines.next()?.strip_prefix("HTTP/1.1 ")?.get(..3)?.parse().ok()?;
    let headers: Vec<(String, &str)> =
        lines.filter_map(|line| line.split_once(':')).map(|(key, value)| (key.to_lowercase(), value.trim())).collect();
    let header = |name: &str| headers.iter().find(|(key, _)| key == name).map(|(_, value)| *value);
    if header("transfer-encoding").is_some_and(|value| value.eq_ignore_ascii_case("chunked")) {
        return Some((status, unchunk(body)?));
    }
    match header("content-length").map(str::parse::<usize>) {
        Some(length) => Some((status, body.get(..length.ok()?)?.to_vec())),
        None => Some((status, body.to_vec())),
    }
}

fn unchunk(mut rest: &[u8]) -> Option<Vec<u8>> {
    let mut out = Vec::new();
    loop {
        let end = rest.windows(2).position(|window| window == b"\r\n")?;
        let size = std::str::from_utf8(&rest[..end]).ok()?.split(';').next()?.trim();
        let size = usize::from_str_radix(size, 16).ok()?;
        rest = &rest[end + 2..];
        if size == 0 {
            return Some(out);
        }
        out.extend(rest.get(..size)?);
        rest = rest.get(size.checked_add(2)?..)?;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn answers_are_read_whole_or_not_at_all() {
        for (answer, want) in [
            ("HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n[]", Some((200, "[]"))),
            ("HTTP/1.1 200 OK\r\ncontent-length: 3\r\n\r\n[]", None),
            ("HTTP/1.1 404 Not Found\r\n\r\n", Some((404, ""))),
            (
                "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\n[1\r\n1;x=y\r\n]\r\n0\r\n\r\n",
                Some((200, "[1]")),
            ),
            ("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\n[1\r\n", None),
            ("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nffffffffffffffff\r\n", None),
            ("HTTP/1.1 200 OK\r\nhalf", None),
            ("220 smtp\r\n\r\n", None),
            ("", None),
        ] {
            let got = parse(answer.as_bytes());
            assert_eq!(got, want.map(|(status, body)| (status, body.as_bytes().to_vec())), "{answer}");
        }
    }
}
