//! Who we are to a registry: challenges, docker's `config.json`, base64.
//!
//! # Source
//! RFC 9110 section 11 (challenges); distribution `docs/spec/auth/token.md`; docker's `config.json`.

use std::collections::BTreeMap;
use std::fmt;
use std::path::{Path, PathBuf};

use serde::Deserialize;

use crate::error::{ImageError, Result};
use crate::files;
use crate::reference::DEFAULT_REGISTRY;

/// Larger than any real file of credentials.
const FILE_MAX: u64 = 4 << 20;

/// A user's name and password, or token.
#[derive(Clone, PartialEq, Eq)]
pub struct Credentials {
    /// Name of the user.
    pub username: String,
    /// Password or personal token.
    pub password: String,
}

impl fmt::Debug for Credentials {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Credentials").field("username", &self.username).finish_non_exhaustive()
    }
}

impl Credentials {
    /// The value of an `Authorization` header.
    pub(crate) fn basic(&self) -> String {
        format!("Basic {}", encode_base64(format!("{}:{}", self.username, self.password).as_bytes()))
    }
}

/// `DOCKER_CONFIG/config.json`, or `.docker/config.json` in the home directory.
pub fn default_auth_file() -> Option<PathBuf> {
    let dir = match std::env::var_os("DOCKER_CONFIG").filter(|dir| !dir.is_empty()) {
        Some(dir) => PathBuf::from(dir),
        None => PathBuf::from(std::env::var_os("HOME").filter(|dir| !dir.is_empty())?).join(".docker"),
    };
    Some(dir.join("config.json"))
}

#[derive(Deserialize)]
struct DockerConfig {
    #[serde(default)]
    auths: BTreeMap<String, DockerAuth>,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct DockerAuth {
    auth: String,
    username: String,
    password: String,
}

/// The credentials for `registry` in docker's `config.json`; none if the file or the entry is not there.
pub(crate) fn from_file(file: &Path, registry: &str) -> Result<Option<Credentials>> {
    let Some(bytes) = files::read_limited(file, FILE_MAX)? else {
        return Ok(None);
    };
    let bad = |why: &str| ImageError::BadCredentials { file: file.to_path_buf(), why: why.to_owned() };
    let config: DockerConfig = serde_json::from_slice(&bytes).map_err(|e| bad(&e.to_string()))?;
    let Some((_, auth)) = config.auths.iter().find(|(key, _)| key_host(key) == registry) else {
        return Ok(None);
    };
    if auth.auth.is_empty() {
        let (username, password) = (auth.username.clone(), auth.password.clone());
        // An entry without both is a mark that a credential helper has them.
        return Ok((!username.is_empty() && !password.is_empty()).then_some(Credentials { username, password }));
    }
    let decoded = decode_base64(&auth.auth).and_then(|bytes| String::from_utf8(bytes).ok());
    let decoded = decoded.ok_or_else(|| bad(&format!("`auth` of {registry} is not base64")))?;
    let (username, password) =
        decoded.split_once(':').ok_or_else(|| bad(&format!("`auth` of {registry} has no colon")))?;
    Ok(Some(Credentials { username: username.to_owned(), password: password.trim_end_matches('\0').to_owned() }))
}

/// Keys are hosts or old addresses such as `https://index.docker.io/v1/`.
fn key_host(key: &str) -> &str {
    let key = key.strip_prefix("https://").or_else(|| key.strip_prefix("http://")).unwrap_or(key);
    let host = key.split('/').next().unwrap_or(key);
    if matches!(host, "index.docker.io" | "registry-1.docker.io") { DEFAULT_REGISTRY } else { host }
}

/// One way to log in that a server offers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Challenge {
    /// In lower case: `bearer`, `basic`.
    pub(crate) scheme: String,
    /// Keys in lower case.
    pub(crate) parameters: BTreeMap<String, String>,
}

/// The challenges of a `WWW-Authenticate` header; what is malformed is left out.
pub(crate) fn parse_challenges(header: &str) -> Vec<Challenge> {
    let mut challenges: Vec<Challenge> = Vec::new();
    let mut rest = header.trim_start();
    while !rest.is_empty() {
        let end = rest.find(|c: char| !is_token(c)).unwrap_or(rest.len());
        let (word, after) = rest.split_at(end);
        let after_space = after.trim_start();
        if word.is_empty() {
            // A comma between items, or something that does not belong here.
            rest = rest.split_at(rest.chars().next().map_or(0, char::len_utf8)).1.trim_start();
        } else if let Some(value) = after_space.strip_prefix('=').filter(|_| !challenges.is_empty()) {
            let (value, tail) = parse_value(value.trim_start());
            if let Some(challenge) = challenges.last_mut() {
                challenge.parameters.insert(word.to_ascii_lowercase(), value);
            }
            rest = tail.trim_start();
        } else {
            challenges.push(Challenge { scheme: word.to_ascii_lowercase(), parameters: BTreeMap::new() });
            rest = after_space;
        }
    }
    challenges
}

fn is_token(c: char) -> bool {
    c.is_ascii_alphanumeric() || "!#$%&'*+-.^_`|~".contains(c)
}

/// A token or a quoted string, and what follows.
fn parse_value(text: &str) -> (String, &str) {
    let Some(quoted) = text.strip_prefix('"') else {
        let end = text.find(|c: char| c == ',' || c.is_whitespace()).unwrap_or(text.len());
        return (text[..end].to_owned(), &text[end..]);
    };
    let (mut value, mut escaped) = (String::new(), false);
    for (at, c) in quoted.char_indices() {
        match c {
            _ if escaped => {
                value.push(c);
                escaped = false;
            }
            '\\' => escaped = true,
            '"' => return (value, &quoted[at + 1..]),
            c => value.push(c),
        }
    }
    (value, "")
}

const ALPHABET: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";

/// RFC 4648, standard alphabet, with padding.
fn encode_base64(bytes: &[u8]) -> String {
    let mut text = String::new();
    for group in bytes.chunks(3) {
        let bits = group.iter().fold(0u32, |bits, byte| (bits << 8) | u32::from(*byte)) << (8 * (3 - group.len()));
        for at in 0..4 {
            let digit = ALPHABET[(bits >> (18 - 6 * at)) as usize & 63];
            text.push(if at <= group.len() { char::from(digit) } else { '=' });
        }
    }
    text
}

fn decode_base64(text: &str) -> Option<Vec<u8>> {
    let text = text.trim().trim_end_matches('=');
    let (mut bytes, mut bits, mut count) = (Vec::new(), 0u32, 0);
    for digit in text.bytes() {
        let value = ALPHABET.iter().position(|other| *other == digit)?;
        bits = (bits << 6) | u32::try_from(value).ok()?;
        count += 6;
        if count >= 8 {
            count -= 8;
            bytes.push(u8::try_from((bits >> count) & 0xff).ok()?);
        }
    }
    (count < 6).then_some(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn challenges_of_real_registries_are_understood() {
        type Parameters<'a> = &'a [(&'a str, &'a str)];
        type Expected<'a> = &'a [(&'a str, Parameters<'a>)];
        let table: &[(&str, Expected<'_>)] = &[
            (
                r#"Bearer realm="https://auth.docker.io/token",service="registry.docker.io",scope="repository:library/busybox:pull""#,
                &[(
                    "bearer",
                    &[
                        ("realm", "https://auth.docker.io/token"),
                        ("scope", "repository:library/busybox:pull"),
                        ("service", "registry.docker.io"),
                    ],
                )],
            ),
            (
                r#"bearer Realm = "https://a/?x=1,2" , scope="repository:a:pull,push repository:b:pull", error=invalid_token"#,
                &[(
                    "bearer",
                    &[
                        ("error", "invalid_token"),
                        ("realm", "https://a/?x=1,2"),
                        ("scope", "repository:a:pull,push repository:b:pull"),
                    ],
                )],
            ),
            (r#"Basic realm="a \"quoted\" one""#, &[("basic", &[("realm", r#"a "quoted" one"#)])]),
            (
                r#"Basic realm="x", Bearer realm="y",service=z"#,
                &[("basic", &[("realm", "x")]), ("bearer", &[("realm", "y"), ("service", "z")])],
            ),
            ("Negotiate", &[("negotiate", &[])]),
            (r#"Bearer realm="unclosed"#, &[("bearer", &[("realm", "unclosed")])]),
            ("", &[]),
            (" , ;", &[]),
        ];
        for (header, expected) in table {
            let got = parse_challenges(header);
            let got: Vec<(&str, Vec<(&str, &str)>)> = got
                .iter()
                .map(|c| (c.scheme.as_str(), c.parameters.iter().map(|(k, v)| (k.as_str(), v.as_str())).collect()))
                .collect();
            let expected: Vec<(&str, Vec<(&str, &str)>)> = expected.iter().map(|(s, p)| (*s, p.to_vec())).collect();
            assert_eq!(got, expected, "{header}");
        }
    }

    #[test]
    fn credentials_are_found_under_the_keys_that_docker_writes() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("config.json");
        let text = r#"{"auths":{"https://index.docker.io/v1/":{"auth":"dXNlcjpwYTpzcw=="},"reg:5000":{"username":"u","password":"p"},
            "helper.example":{},"broken.example":{"auth":"!"}},"credsStore":"desktop"}"#;
        std::fs::write(&file, text).unwrap();
        let find = |registry: &str| from_file(&file, registry).map(|c| c.map(|c| (c.username, c.password)));
        let pair = |a: &str, b: &str| Some((a.to_owned(), b.to_owned()));
        assert_eq!(find("docker.io").unwrap(), pair("user", "pa:ss"));
        assert_eq!(find("reg:5000").unwrap(), pair("u", "p"));
        assert_eq!(find("helper.example").unwrap(), None);
        assert_eq!(find("other.example").unwrap(), None);
        assert!(find("broken.example").unwrap_err().to_string().contains("base64"));
        assert!(from_file(&dir.path().join("absent"), "docker.io").unwrap().is_none());
    }

    #[test]
    fn a_password_is_never_shown() {
        let shown = format!("{:?}", Credentials { username: "u".into(), password: "secret".into() });
        assert!(!shown.contains("secret"), "{shown}");
    }

    proptest! {
        #[test]
        fn base64_comes_back(bytes in proptest::collection::vec(any::<u8>(), 0..50)) {
            prop_assert_eq!(decode_base64(&encode_base64(&bytes)), Some(bytes));
        }

        #[test]
        fn no_header_makes_the_parser_panic_or_hang(header in "\\PC{0,80}") {
            let _ = parse_challenges(&header);
        }
    }
}
