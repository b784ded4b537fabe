//! A plain HTTP/1.1 client: one GET on one connection, with a deadline.

use crate::error::{Error, Result};
use serde_json::Value;
use std::io::{self, Read, Write};
use std::net::{SocketAddr, TcpStream, ToSocketAddrs};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::{Duration, Instant};

/// An answer longer than this is not one of ours.
const ANSWER_BYTES_MAX: usize = 1 << 20;

/// An answer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Answer {
    pub(crate) status: u16,
    pub(crate) body: String,
}

/// `GET url` (`http://host[:port]/path`), answered within `limit`.
pub(crate) fn get(url: &str, limit: Duration) -> Result<Answer> {
    let (host, path) = split(url).ok_or_else(|| Error::input(url, "is not http://HOST[:PORT]/PATH"))?;
    ask(&host, path, limit).map_err(|source| Error::Http { url: url.to_owned(), source })
}

/// Host with port, and path.
fn split(url: &str) -> Option<(String, &str)> {
    let rest = url.strip_prefix("http://")?;
    let (host, path) = rest.find('/').map_or((rest, "/"), |at| rest.split_at(at));
    if host.is_empty() {
        return None;
    }
    let with_port = if host.rsplit_once(':').is_some_and(|(_, port)| port.parse::<u16>().is_ok()) {
        host.to_owned()
    } else {
        format!("{host}:80")
    };
    Some((with_port, path))
}

fn ask(host: &str, path: &str, limit: Duration) -> io::Result<Answer> {
    let end = Instant::now() + limit;
    let address: SocketAddr = host.to_socket_addrs()?.next().ok_or_else(|| io::Error::other("no such host"))?;
    let mut stream = TcpStream::connect_timeout(&address, limit)?;
    stream.set_nodelay(true)?;
    stream.set_write_timeout(Some(limit))?;
    converse(&mut stream, host, path, end, |stream, left| stream.set_read_timeout(Some(left)))
}

/// `GET path` on a unix socket, answered within `limit`, as JSON.
pub(crate) fn get_json(socket: &Path, path: &str, limit: Duration) -> Result<Value> {
    let url = || format!("{}:{path}", socket.display());
    let end = Instant::now() + limit;
    let answer = UnixStream::connect(socket)
        .and_then(|mut stream| {
            stream.set_write_timeout(Some(limit))?;
            converse(&mut stream, "localhost", path, end, |stream, left| stream.set_read_timeout(Some(left)))
        })
        .map_err(|source| Error::Http { url: url(), source })?;
    if answer.status != 200 {
        return Err(Error::broken(format!("an answer from {}", url()), format!("{}: {}", answer.status, answer.body)));
    }
    serde_json::from_str(&answer.body).map_err(|error| Error::input(url(), error))
}

fn converse<S: Read + Write>(
    stream: &mut S,
    host: &str,
    path: &str,
    end: Instant,
    wait_at_most: impl Fn(&S, Duration) -> io::Result<()>,
) -> io::Result<Answer> {
    stream.write_all(
        format!("GET {path} HTTP/1.1\r\nHost: {host}\r\nUser-Agent: xtask\r\nConnection: close\r\n\r\n").as_bytes(),
    )?;
    let mut bytes = Vec::new();
    let mut buffer = [0; 8192];
    loop {
        let left = end.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Err(io::ErrorKind::TimedOut.into());
        }
        wait_at_most(stream, left)?;
        let count = match stream.read(&mut buffer) {
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Err(io::ErrorKind::TimedOut.into()),
            other => other?,
        };
        bytes.extend_from_slice(&buffer[..count]);
        let ended = count == 0;
        if let Some(answer) = parse(&bytes, ended)? {
            return Ok(answer);
        }
        if ended {
            let what = if bytes.is_empty() { "the connection was closed without an answer" } else { "half an answer" };
            return Err(io::Error::new(io::ErrorKind::UnexpectedEof, what));
        }
        if bytes.len() > ANSWER_BYTES_MAX {
            return Err(io::Error::other("an answer without end"));
        }
    }
}

/// The answer in these bytes; `None` when more are needed. `ended`: no more will come.
fn parse(bytes: &[u8], ended: bool) -> io::Result<Option<Answer>> {
    let wrong = || io::Error::new(io::ErrorKind::InvalidData, "this is not HTTP");
    let Some(end) = bytes.windows(4).position(|window| window == b"\r\n\r\n") else {
        return if bytes.len() >= 5 && !bytes.starts_with(b"HTTP/") { Err(wrong()) } else { Ok(None) };
    };
    let head = std::str::from_utf8(&bytes[..end]).map_err(|_| wrong())?;
    let mut lines = head.split("\r\n");
    let mut first = lines.next().unwrap_or_default().split(' ');
    if !first.next().is_some_and(|version| version.starts_with("HTTP/1.")) {
        return Err(wrong());
    }
    let status = first.next().and_then(|status| status.parse().ok()).ok_or_else(wrong)?;
    let mut length: Option<usize> = None;
    let mut chunked = false;
    for (name, value) in lines.filter_map(|line| line.split_once(':')) {
        match name.to_ascii_lowercase().as_str() {
            "content-length" => length = Some(value.trim().parse().map_err(|_| wrong())?),
            "transfer-encoding" => chunked = value.to_ascii_lowercase().contains("chunked"),
            _ => {}
        }
    }
    let rest = &bytes[end + 4..];
    let body = match (chunked, length) {
        (true, _) => dechunk(rest)?,
        (false, Some(length)) => rest.get(..length).map(<[u8]>::to_vec),
        (false, None) => ended.then(|| rest.to_vec()),
    };
    Ok(body.map(|body| Answer { status, body: String::from_utf8_lossy(&body).into_owned() }))
}

/// The body in these chunks; `None` when the last one is not here yet.
fn dechunk(mut rest: &[u8]) -> io::Result<Option<Vec<u8>>> {
    let wrong = || io::Error::new(io::ErrorKind::InvalidData, "a chunk of no size");
    let mut body = Vec::new();
    loop {
        let Some(end) = rest.windows(2).position(|window| window == b"\r\n") else { return Ok(None) };
        let size = std::str::from_utf8(&rest[..end]).map_err(|_| wrong())?;
        let size = usize::from_str_radix(size.split(';').next().unwrap_or_default().trim(), 16).map_err(|_| wrong())?;
        let Some(chunk) = size.checked_add(end + 2).and_then(|to| rest.get(end + 2..to)) else { return Ok(None) };
        if size == 0 {
            return Ok(Some(body));
        }
        body.extend_from_slice(chunk);
        let Some(next) = rest.get(end + 2 + size + 2..) else { return Ok(None) };
        rest = next;
    }
}

/// What `/api/visit` of the shop answers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Visit {
    pub(crate) visits: u64,
    pub(crate) served_by: String,
}

/// One visit of the shop; anything but a count is an error.
pub(crate) fn visit(url: &str, limit: Duration) -> Result<Visit> {
    read_visit(url, &get(url, limit)?)
}

/// The count in an answer.
pub(crate) fn read_visit(url: &str, answer: &Answer) -> Result<Visit> {
    let said = || Error::broken(format!("a count from {url}"), format!("{}: {}", answer.status, answer.body.trim()));
    let document: Value = serde_json::from_str(&answer.body).map_err(|_| said())?;
    match (answer.status, document["visits"].as_u64(), document["served_by"].as_str()) {
        (200, Some(visits), Some(served_by)) => Ok(Visit { visits, served_by: served_by.to_owned() }),
        _ => Err(said()),
    }
}

/// `xtask fetch COUNT URL`: for use inside a node; prints `STATUS BODY` or `error WHY`, a line per request.
pub(crate) fn task(args: &[String]) -> Result<()> {
    let [count, url] = args else { return Err(Error::Usage("fetch COUNT URL".into())) };
    let count: u32 = count.parse().map_err(|_| Error::Usage(format!("`{count}` is not a number of requests")))?;
    for _ in 0..count {
        match get(url, Duration::from_secs(5)) {
            Ok(answer) => println!("{} {}", answer.status, answer.body.trim().replace('\n', " ")),
            Err(error) => println!("error {}", error.chain()),
        }
    }
    Ok(())
}

/// The lines that [`task`] printed.
pub(crate) fn read_lines(url: &str, text: &str) -> Vec<Result<Visit>> {
    text.lines()
        .map(|line| {
            let (status, body) = line.split_once(' ').unwrap_or((line, ""));
            match status.parse() {
                Ok(status) => read_visit(url, &Answer { status, body: body.to_owned() }),
                Err(_) => Err(Error::broken(format!("an answer from {url}"), line)),
            }
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_is_split() {
        for (url, want) in [
            ("http://127.0.0.1:8080/api/visit", Some(("127.0.0.1:8080", "/api/visit"))),
            ("http://10.0.0.1", Some(("10.0.0.1:80", "/"))),
            ("http://[::1]:81/x", Some(("[::1]:81", "/x"))),
            ("https://x/", None),
            ("http:///x", None),
        ] {
            assert_eq!(split(url), want.map(|(host, path)| (host.to_owned(), path)), "{url}");
        }
    }

    #[test]
    fn answers_are_read_as_they_come() {
        let answer = |status, body: &str| Ok(Some(Answer { status, body: body.into() }));
        for (why, bytes, ended, want) in [
            ("by length", "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nokX", false, answer(200, "ok")),
            ("more to come", "HTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\nok", false, Ok(None)),
            ("no end of the head", "HTTP/1.1 200 OK\r\n", false, Ok(None)),
            ("until the end", "HTTP/1.0 404 Not Found\r\nA: b\r\n\r\ngone", true, answer(404, "gone")),
            ("not the end", "HTTP/1.0 404 Not Found\r\nA: b\r\n\r\ngo", false, Ok(None)),
            (
                "chunks",
                "HTTP/1.1 200 OK\r\ntransfer-encoding: Chunked\r\n\r\n3\r\nabc\r\n2;x=y\r\nde\r\n0\r\n\r\n",
                false,
                answer(200, "abcde"),
            ),
            ("half a chunk", "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nab", true, Ok(None)),
            ("no chunk", "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n", true, Err(())),
            ("huge chunk", "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nffffffffffffffff\r\n", true, Ok(None)),
            ("another protocol", "SSH-2.0-OpenSSH\r\n", false, Err(())),
            ("no status", "HTTP/1.1 OK\r\n\r\n", true, Err(())),
            ("no length", "HTTP/1.1 200 OK\r\nContent-Length: many\r\n\r\n", true, Err(())),
        ] {
            assert_eq!(parse(bytes.as_bytes(), ended).map_err(|_| ()), want, "{why}");
        }
    }

    #[test]
    fn a_visit_is_a_count_and_nothing_else() {
        let read =
            |status, body: &str| read_visit("u", &Answer { status, body: body.into() }).map_err(|e| e.to_string());
        assert_eq!(
            read(200, r#"{"visits": 7, "served_by": "api-1"}"#),
            Ok(Visit { visits: 7, served_by: "api-1".into() })
        );
        for (status, body) in [(503, r#"{"error": "x"}"#), (200, "<html>"), (200, r#"{"visits": "7"}"#), (502, "")] {
            assert!(read(status, body).unwrap_err().contains(&status.to_string()), "{status} {body}");
        }
    }

    #[test]
    fn lines_of_a_fetch_are_visits_or_errors() {
        let text = "200 {\"visits\": 1, \"served_by\": \"a\"}\n502 bad gateway\nerror no answer\n";
        let got: Vec<bool> = read_lines("u", text).iter().map(Result::is_ok).collect();
        assert_eq!(got, [true, false, false]);
    }

    #[test]
    fn a_unix_socket_is_asked() {
        let scratch = crate::files::Scratch::new().unwrap();
        let path = scratch.path().join("s");
        let server = std::os::unix::net::UnixListener::bind(&path).unwrap();
        let answering = std::thread::spawn(move || {
            for (status, body) in [(200, "[1]"), (404, "{}"), (200, "[")] {
                let (mut stream, _) = server.accept().unwrap();
                let mut request = [0; 512];
                let count = stream.read(&mut request).unwrap();
                assert!(request[..count].starts_with(b"GET /v1/x HTTP/1.1\r\n"));
                write!(stream, "HTTP/1.1 {status} X\r\nContent-Length: {}\r\n\r\n{body}", body.len()).unwrap();
            }
        });
        let ask = || get_json(&path, "/v1/x", Duration::from_secs(5));
        assert_eq!(ask().unwrap(), serde_json::json!([1]));
        assert!(ask().unwrap_err().to_string().contains("404"));
        assert!(ask().is_err(), "not JSON");
        answering.join().unwrap();
    }

    #[test]
    fn a_server_that_says_nothing_is_left_in_time() {
        let server = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let url = format!("http://{}/", server.local_addr().unwrap());
        let begun = Instant::now();
        assert!(get(&url, Duration::from_millis(50)).is_err());
        assert!(begun.elapsed() < Duration::from_secs(5));
    }
}
