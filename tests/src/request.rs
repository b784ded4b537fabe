//! The smallest HTTP client that tells a test what it must know.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::Duration;

/// What a server said.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Answer {
    /// Status code.
    pub status: u16,
    /// Body as text.
    pub body: String,
}

/// One `GET` on a connection of its own.
///
/// # Errors
/// What went wrong, in words: refused, timed out, closed early, not HTTP.
pub fn get(address: SocketAddr, path: &str) -> Result<Answer, String> {
    let limit = Duration::from_secs(2);
    let mut stream = TcpStream::connect_timeout(&address, limit).map_err(|error| format!("connect: {error}"))?;
    stream.set_read_timeout(Some(limit)).and_then(|()| stream.set_write_timeout(Some(limit))).expect("a timeout");
    write!(stream, "GET {path} HTTP/1.0\r\nHost: {address}\r\n\r\n").map_err(|error| format!("send: {error}"))?;
    let mut text = String::new();
    stream.read_to_string(&mut text).map_err(|error| format!("receive: {error}"))?;
    let (head, body) = text.split_once("\r\n\r\n").ok_or_else(|| format!("closed early after {text:?}"))?;
    let status = head.split(' ').nth(1).and_then(|code| code.parse().ok());
    let status = status.ok_or_else(|| format!("not HTTP: {head:?}"))?;
    Ok(Answer { status, body: body.to_owned() })
}
