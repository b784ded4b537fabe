//! Who we are to a registry: challenges, docker's `config.json`, base64.
//!
//! # Source
//! RFC 9110 section 11 (challenges); distribution `docs/spec/auth/token.md`; docker's `config.json`.

mod helper;

use std::collections::BTreeMap;
use std::fmt;
use std::path::{Path, PathBuf};

use serde::Deserialize;

use crate::error::{ImageError, Result};
use crate::files;
use crate::reference::DEFAULT_REGISTRY;

/// Larger than any real file of credentials.
const FILE_MAX: u64 = 4 << 20;

/// The name that helpers and files give with an identity token, which is exchanged for tokens of the registry.
const TOKEN_USER: &str = "<token>";

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
    /// The identity token, if it is one.
    pub(crate) fn identity_token(&self) -> Option<&str> {
        (self.username == TOKEN_USER).then_some(self.password.as_str())
    }

    /// The value of an `Authorization` header.
    pub(crate) fn basic(&self) -> String {
        format!("Basic {}", encode_base64(format!("{}:{}", self.username, self.password).as_bytes()))
    }
}

/// Where docker and podman keep credentials: the first of these files that is there, or else where docker would write.
///
/// `$REGISTRY_AUTH_FILE`, `$DOCKER_CONFIG/config.json`, `~/.docker/config.json`,
/// `$XDG_RUNTIME_DIR/containers/auth.json`, `~/.config/containers/auth.json`.
pub fn default_auth_file() -> Option<PathBuf> {
    let variable = |name: &str| std::env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from);
    let home = variable("HOME");
    let docker = match variable("DOCKER_CONFIG") {
        Some(dir) => Some(dir),
        None => home.as_ref().map(|home| home.join(".docker")),
    };
    let docker = docker.map(|dir| dir.join("config.json"));
    let places = [
        variable("REGISTRY_AUTH_FILE"),
        docker.clone(),
        variable("XDG_RUNTIME_DIR").map(|dir| dir.join("containers/auth.json")),
        home.map(|home| home.join(".config/containers/auth.json")),
    ];
    places.into_iter().flatten().find(|path| path.is_file()).or(docker)
}

#[derive(Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
struct AuthFile {
    auths: BTreeMap<String, AuthEntry>,
    /// Registries whose credentials a program has.
    cred_helpers: BTreeMap<String, String>,
    /// The program for all others.
    creds_store: String,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct AuthEntry {
    auth: String,
    username: String,
    password: String,
    identitytoken: String,
}

/// The credentials for a repository of a registry in a docker `config.json` or a containers `auth.json`; none if the
/// file or the entry is not there. The entry of the longest path that fits counts.
///
/// # Errors
/// `BadCredentials`: the file is malformed, or its helper fails or does not answer.
pub(crate) fn from_file(file: &Path, registry: &str, repository: &str) -> Result<Option<Credentials>> {
    let Some(bytes) = files::read_limited(file, FILE_MAX)? else {
        return Ok(None);
    };
    let bad = |why: String| ImageError::BadCredentials { file: file.to_path_buf(), why };
    let config: AuthFile = serde_json::from_slice(&bytes).map_err(|e| bad(e.to_string()))?;
    let helper = config.cred_helpers.iter().find(|(key, _)| key_parts(key).0 == registry).map(|(_, name)| name);
    if let Some(name) = helper {
        return helper::ask(name, &server(registry)).map_err(bad);
    }
    let fits = |key: &str| {
        let (host, path) = key_parts(key);
        let inside = path.is_empty()
            || repository.strip_prefix(path).is_some_and(|rest| rest.is_empty() || rest.starts_with('/'));
        (host == registry && inside).then_some(path.len())
    };
    let entry =
        config.auths.iter().filter_map(|(key, entry)| Some((fits(key)?, entry))).max_by_key(|(length, _)| *length);
    if let Some(credentials) = entry.map(|(_, entry)| entry.read(registry)).transpose().map_err(bad)?.flatten() {
        return Ok(Some(credentials));
    }
    // An entry without anything is a mark that the program has it.
    if config.creds_store.is_empty() {
        Ok(None)
    } else {
        helper::ask(&config.creds_store, &server(registry)).map_err(bad)
    }
}

impl AuthEntry {
    /// What a person can read, or why not.
    fn read(&self, registry: &str) -> Result<Option<Credentials>, String> {
        if !self.identitytoken.is_empty() {
            return Ok(Some(Credentials { username: TOKEN_USER.to_owned(), password: self.identitytoken.clone() }));
        }
        if self.auth.is_empty() {
            let (username, password) = (self.username.clone(), self.password.clone());
            return Ok((!username.is_empty() && !password.is_empty()).then_some(Credentials { username, password }));
        }
        let decoded = decode_base64(&self.auth).and_then(|bytes| String::from_utf8(bytes).ok());
        let decoded = decoded.ok_or_else(|| format!("`auth` of {registry} is not base64"))?;
        let (username, password) =
            decoded.split_once(':').ok_or_else(|| format!("`auth` of {registry} has no colon"))?;
        let password = password.trim_end_matches('\0').to_owned();
        Ok(Some(Credentials { username: username.to_owned(), password }))
    }
}

/// Host and path of a key: hosts, hosts with a path (`quay.io/team`), or old addresses such as
/// `https://index.docker.io/v1/`.
fn key_parts(key: &str) -> (&str, &str) {
    let address = key.strip_prefix("https://").or_else(|| key.strip_prefix("http://"));
    let (host, path) = address.unwrap_or(key).split_once('/').unwrap_or((address.unwrap_or(key), ""));
    let path = if address.is_some() || matches!(path, "v1/" | "v2/" | "v1" | "v2") { "" } else { path };
    let host = if matches!(host, "index.docker.io" | "registry-1.docker.io") { DEFAULT_REGISTRY } else { host };
    (host, path.trim_end_matches('/'))
}

/// What docker calls a registry when it speaks to a helper.
fn server(registry: &str) -> String {
    if registry == DEFAULT_REGISTRY { "https://index.docker.io/v1/".to_owned() } else { registry.to_owned() }
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
pub(crate) fn encode_base64(bytes: &[u8]) -> String {
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

pub(crate) fn decode_base64(text: &str) -> Option<Vec<u8>> {
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
    fn credentials_are_found_under_the_keys_that_docker_and_podman_write() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("config.json");
        let text = r#"{"auths":{"https://index.docker.io/v1/":{"auth":"dXNlcjpwYTpzcw=="},"reg:5000":{"username":"u","password":"p"},
            "quay.io":{"auth":"YTpi"},"quay.io/team":{"auth":"Yzpk"},"id.example":{"identitytoken":"tok"},
            "helper.example":{},"broken.example":{"auth":"!"}}}"#;
        std::fs::write(&file, text).unwrap();
        let find = |name: &str| {
            let reference: crate::Reference = name.parse().unwrap();
            let found = from_file(&file, reference.registry(), reference.repository());
            found.map(|c| c.map(|c| (c.username, c.password)))
        };
        let pair = |a: &str, b: &str| Some((a.to_owned(), b.to_owned()));
        for (name, expected) in [
            ("busybox", pair("user", "pa:ss")),
            ("reg:5000/a", pair("u", "p")),
            ("quay.io/other/a", pair("a", "b")),
            ("quay.io/teams/a", pair("a", "b")),
            ("quay.io/team/a", pair("c", "d")),
            ("id.example/a", pair("<token>", "tok")),
            ("helper.example/a", None),
            ("other.example/a", None),
        ] {
            assert_eq!(find(name).unwrap(), expected, "{name}");
        }
        assert!(find("broken.example/a").unwrap_err().to_string().contains("base64"));
        assert!(from_file(&dir.path().join("absent"), "docker.io", "library/a").unwrap().is_none());
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
