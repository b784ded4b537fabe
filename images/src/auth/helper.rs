//! Credential helpers: programs that know the credentials of registries, asked for one at a time.
//!
//! # Source
//! docker-credential-helpers, "Development": `docker-credential-NAME get`, the server on standard input, JSON on standard
//! output.

use std::io::{Read, Write};
use std::process::{Child, Command, Stdio};
use std::sync::mpsc;
use std::time::Duration;

use serde::Deserialize;

use super::Credentials;

/// A helper may ask a service on the network, but not a person.
const ANSWER_WITHIN: Duration = Duration::from_secs(10);

/// Larger than any real answer.
const ANSWER_MAX: u64 = 1 << 20;

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Answer {
    username: String,
    secret: String,
}

/// What the helper `name` has for `server`; `None` if it has nothing. Otherwise the reason, in words.
pub(super) fn ask(name: &str, server: &str) -> Result<Option<Credentials>, String> {
    if name.is_empty() || !name.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_' | b'.')) {
        return Err(format!("`{name}` cannot be the name of a credential helper"));
    }
    let program = format!("docker-credential-{name}");
    let mut command = Command::new(&program);
    command.arg("get").stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::null());
    let mut child = command.spawn().map_err(|error| format!("credential helper `{program}` cannot be run: {error}"))?;
    let answer = exchange(&mut child, server);
    if answer.is_none() {
        // Ended already is as good.
        let _ = child.kill();
    }
    let status = child.wait().map_err(|error| format!("credential helper `{program}` is lost: {error}"))?;
    let Some(answer) = answer else {
        return Err(format!("credential helper `{program}` gives no answer within {} s", ANSWER_WITHIN.as_secs()));
    };
    let text = String::from_utf8_lossy(&answer);
    if !status.success() {
        // The protocol has these words for "none", and no other way to say it.
        return match text.contains("credentials not found") {
            true => Ok(None),
            false => Err(format!("credential helper `{program}` fails: {}", first_line(&text))),
        };
    }
    let answer: Answer =
        serde_json::from_str(&text).map_err(|_| format!("credential helper `{program}` does not answer with JSON"))?;
    let known = !answer.username.is_empty() && !answer.secret.is_empty();
    Ok(known.then_some(Credentials { username: answer.username, password: answer.secret }))
}

/// All it writes, if it ends writing in time.
fn exchange(child: &mut Child, server: &str) -> Option<Vec<u8>> {
    let (mut input, output) = (child.stdin.take()?, child.stdout.take()?);
    let (sender, receiver) = mpsc::channel();
    std::thread::spawn(move || {
        let mut answer = Vec::new();
        if output.take(ANSWER_MAX).read_to_end(&mut answer).is_ok() {
            // Nobody waits any more: then it came too late.
            let _ = sender.send(answer);
        }
    });
    // A helper that reads nothing still has an answer to give.
    let _ = input.write_all(server.as_bytes());
    drop(input);
    receiver.recv_timeout(ANSWER_WITHIN).ok()
}

fn first_line(text: &str) -> String {
    text.lines().next().unwrap_or("").chars().filter(|c| !c.is_control()).take(200).collect()
}
