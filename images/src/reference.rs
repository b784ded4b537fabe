//! Names of images, by docker's rules: `busybox` is `docker.io/library/busybox:latest`.

use std::fmt;
use std::net::IpAddr;
use std::str::FromStr;

use serde::{Deserialize, Deserializer, Serialize, Serializer};

use crate::digest::Digest;
use crate::error::ImageError;

/// The registry that a name without one means.
pub const DEFAULT_REGISTRY: &str = "docker.io";

/// The tag that a name without one means.
pub const DEFAULT_TAG: &str = "latest";

/// Longest path of a repository (distribution reference grammar).
const REPOSITORY_MAX: usize = 255;

/// Longest tag (distribution reference grammar).
const TAG_MAX: usize = 128;

/// A full name: registry, repository, and a tag or a digest.
///
/// A reference with both means the digest; the tag is kept for the reader.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Reference {
    registry: String,
    repository: String,
    tag: Option<String>,
    digest: Option<Digest>,
}

impl Reference {
    /// Host, and port if given: `docker.io`, `registry.example.com:5000`.
    pub fn registry(&self) -> &str {
        &self.registry
    }

    /// Path within the registry: `library/busybox`.
    pub fn repository(&self) -> &str {
        &self.repository
    }

    /// The tag; `None` only if there is a digest.
    pub fn tag(&self) -> Option<&str> {
        self.tag.as_deref()
    }

    /// The digest, if the reference is pinned.
    pub fn digest(&self) -> Option<Digest> {
        self.digest
    }

    /// Registry and repository, without tag and digest.
    pub fn name(&self) -> String {
        format!("{}/{}", self.registry, self.repository)
    }

    /// The short form that a person would type: `busybox:latest`, `shop/api:2`.
    pub fn familiar(&self) -> String {
        let full = self.to_string();
        match full.strip_prefix("docker.io/library/") {
            // `docker.io/library/a/b` would come back as `a/b`, another repository.
            Some(short) if !self.repository["library/".len()..].contains('/') => short.to_owned(),
            _ => match full.strip_prefix("docker.io/") {
                // So would one whose first part looks like a host.
                Some(short)
                    if short.contains('/')
                        && !self.repository.starts_with("library/")
                        && split_registry(short).0 == DEFAULT_REGISTRY =>
                {
                    short.to_owned()
                }
                _ => full,
            },
        }
    }

    /// The same repository at `tag`.
    ///
    /// # Errors
    /// `tag` is not well formed.
    pub fn with_tag(&self, tag: &str) -> Result<Self, ImageError> {
        check_tag(tag).map_err(|why| bad(tag, why))?;
        Ok(Self { tag: Some(tag.to_owned()), digest: None, ..self.clone() })
    }

    /// The same repository at `digest`, without a tag.
    pub fn with_digest(&self, digest: Digest) -> Self {
        Self { tag: None, digest: Some(digest), ..self.clone() }
    }
}

fn bad(reference: &str, why: impl Into<String>) -> ImageError {
    ImageError::BadReference { reference: reference.to_owned(), why: why.into() }
}

impl FromStr for Reference {
    type Err = ImageError;

    fn from_str(text: &str) -> Result<Self, ImageError> {
        parse(text).map_err(|why| bad(text, why))
    }
}

fn parse(text: &str) -> Result<Reference, String> {
    check_whole(text)?;
    let (rest, digest) = match text.split_once('@') {
        Some((rest, digest)) => (rest, Some(digest)),
        None => (text, None),
    };
    let digest = digest.map(str::parse::<Digest>).transpose();
    let digest = digest.map_err(|error| error.to_string())?;
    let (registry, path) = split_registry(rest);
    let (path, tag) = match path.rsplit_once(':') {
        Some((path, tag)) if !tag.contains('/') => (path, Some(tag)),
        _ => (path, None),
    };
    check_registry(registry)?;
    tag.map_or(Ok(()), check_tag)?;
    check_repository(path)?;
    let official = registry == DEFAULT_REGISTRY && !path.contains('/');
    if official && Digest::from_hex(path).is_some() {
        return Err("64 hexadecimal digits are an id, not a name".into());
    }
    let tag = match (tag, digest) {
        (None, None) => Some(DEFAULT_TAG),
        (tag, _) => tag,
    };
    Ok(Reference {
        registry: registry.to_owned(),
        repository: format!("{}{path}", if official { "library/" } else { "" }),
        tag: tag.map(str::to_owned),
        digest,
    })
}

fn check_whole(text: &str) -> Result<(), String> {
    match text {
        "" => Err("it is empty".into()),
        text if text.len() > 1024 => Err("it is longer than 1024 characters".into()),
        text if text.contains("://") => Err("it must not start with a scheme such as https://".into()),
        _ => Ok(()),
    }
}

/// The first part is a host if it looks like one: it has a dot or a port, or is `localhost`.
fn split_registry(text: &str) -> (&str, &str) {
    match text.split_once('/') {
        Some((first, rest))
            if first == "localhost"
                || first.contains(['.', ':'])
                || first.starts_with('[')
                || first.bytes().any(|b| b.is_ascii_uppercase()) =>
        {
            let host =
                if matches!(first, "index.docker.io" | "registry-1.docker.io") { DEFAULT_REGISTRY } else { first };
            (host, rest)
        }
        _ => (DEFAULT_REGISTRY, text),
    }
}

/// Host name, IPv4 or `[IPv6]` address, with a port or without.
fn check_registry(registry: &str) -> Result<(), String> {
    let (host, port) = split_port(registry);
    if let Some(port) = port
        && port.parse::<u16>().ok().filter(|p| *p > 0).is_none()
    {
        return Err(format!("`{port}` is not a port"));
    }
    if let Some(inside) = host.strip_prefix('[') {
        let address = inside.strip_suffix(']').and_then(|a| a.parse::<std::net::Ipv6Addr>().ok());
        return address.map(|_| ()).ok_or_else(|| format!("`{host}` is not an IPv6 address"));
    }
    let label = |l: &str| {
        !l.is_empty()
            && !l.starts_with('-')
            && !l.ends_with('-')
            && l.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-' || b == b'_')
    };
    if host.len() <= 253 && host.split('.').all(label) { Ok(()) } else { Err(format!("`{host}` is not a host name")) }
}

/// `host:port`, where the host may be an IPv6 address in brackets.
pub(crate) fn split_port(registry: &str) -> (&str, Option<&str>) {
    match registry.rsplit_once(':') {
        Some((host, port)) if !port.contains(']') => (host, Some(port)),
        _ => (registry, None),
    }
}

/// Whether the host of a registry is this machine.
pub(crate) fn is_loopback(registry: &str) -> bool {
    let host = split_port(registry).0;
    let host = host.strip_prefix('[').and_then(|h| h.strip_suffix(']')).unwrap_or(host);
    host == "localhost" || host.parse::<IpAddr>().is_ok_and(|address| address.is_loopback())
}

/// Parts of lower-case letters and digits, joined by one dot, one or two underscores, or dashes.
fn check_repository(path: &str) -> Result<(), String> {
    if path.len() > REPOSITORY_MAX {
        return Err(format!("the name is longer than {REPOSITORY_MAX} characters"));
    }
    for part in path.split('/') {
        if part.is_empty() {
            return Err("a part of the name is empty".into());
        }
        if part.bytes().any(|b| b.is_ascii_uppercase()) {
            return Err(format!("`{part}` must be lower case"));
        }
        if let Some(other) = part.chars().find(|c| !matches!(c, 'a'..='z' | '0'..='9' | '.' | '_' | '-')) {
            return Err(format!("`{other}` must not be in a name"));
        }
        let joined_well = part
            .split(|c: char| c.is_ascii_alphanumeric())
            .enumerate()
            .all(|(at, gap)| gap.is_empty() || (at > 0 && good_gap(gap)));
        if !joined_well || !part.ends_with(|c: char| c.is_ascii_alphanumeric()) {
            return Err(format!("`{part}` has separators at an end or too many in a row"));
        }
    }
    Ok(())
}

fn good_gap(gap: &str) -> bool {
    matches!(gap, "." | "_" | "__") || gap.bytes().all(|b| b == b'-')
}

fn check_tag(tag: &str) -> Result<(), String> {
    let word = |b: u8| b.is_ascii_alphanumeric() || b == b'_';
    let good = (1..=TAG_MAX).contains(&tag.len())
        && tag.bytes().next().is_some_and(word)
        && tag.bytes().all(|b| word(b) || b == b'.' || b == b'-');
    if good {
        Ok(())
    } else {
        Err(format!(
            "tag `{tag}` must be up to {TAG_MAX} letters, digits, `_`, `.` and `-`, and start with one of the first three"
        ))
    }
}

impl fmt::Display for Reference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.registry, self.repository)?;
        if let Some(tag) = &self.tag {
            write!(f, ":{tag}")?;
        }
        if let Some(digest) = &self.digest {
            write!(f, "@{digest}")?;
        }
        Ok(())
    }
}

impl Serialize for Reference {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Reference {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(serde::de::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const HEX: &str = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";

    #[test]
    fn names_mean_what_docker_says() {
        let pinned = format!("busybox@sha256:{HEX}");
        let both = format!("reg.example.com:5000/a/b:1@sha256:{HEX}");
        for (text, full, familiar) in [
            ("busybox", "docker.io/library/busybox:latest", "busybox:latest"),
            ("busybox:1.36", "docker.io/library/busybox:1.36", "busybox:1.36"),
            ("shop/api:2", "docker.io/shop/api:2", "shop/api:2"),
            ("docker.io/busybox", "docker.io/library/busybox:latest", "busybox:latest"),
            ("index.docker.io/library/busybox", "docker.io/library/busybox:latest", "busybox:latest"),
            ("localhost/a", "localhost/a:latest", "localhost/a:latest"),
            ("localhost:5000/a", "localhost:5000/a:latest", "localhost:5000/a:latest"),
            ("host:5000/a:b", "host:5000/a:b", "host:5000/a:b"),
            ("[::1]:5000/a", "[::1]:5000/a:latest", "[::1]:5000/a:latest"),
            ("[::1]/a", "[::1]/a:latest", "[::1]/a:latest"),
            ("127.0.0.1/a", "127.0.0.1/a:latest", "127.0.0.1/a:latest"),
            ("ghcr.io/o/r-x__y.z:V1.2_3", "ghcr.io/o/r-x__y.z:V1.2_3", "ghcr.io/o/r-x__y.z:V1.2_3"),
            ("docker.io/library/a/b", "docker.io/library/a/b:latest", "docker.io/library/a/b:latest"),
            (&pinned, &format!("docker.io/library/{pinned}"), &pinned),
            (&both, &both, &both),
        ] {
            let reference: Reference = text.parse().unwrap_or_else(|e| panic!("{text}: {e}"));
            assert_eq!(reference.to_string(), full, "{text}");
            assert_eq!(reference.familiar(), familiar, "{text}");
            assert_eq!(full.parse::<Reference>().unwrap(), reference, "{full}");
        }
    }

    #[test]
    fn a_bad_name_says_why() {
        for (text, why) in [
            ("", "empty"),
            ("https://a/b", "scheme"),
            ("Busybox", "lower case"),
            ("a//b", "empty"),
            ("a/", "empty"),
            ("-a", "separators"),
            ("a-", "separators"),
            ("a..b", "separators"),
            ("a___b", "separators"),
            ("a:", "tag"),
            ("a:-x", "tag"),
            ("a b", "` ` must not"),
            ("a@sha256:12", "digest"),
            ("a@md5:12", "digest"),
            ("host:99999/a", "port"),
            ("host:0/a", "port"),
            ("[::g]/a", "IPv6"),
            ("-x.com/a", "host name"),
            ("../etc", "host name"),
            ("a/../b", "separators"),
            (HEX, "id"),
        ] {
            let error = text.parse::<Reference>().expect_err(text).to_string();
            assert!(error.contains(why), "{text}: {error}");
        }
        assert!("a".repeat(2000).parse::<Reference>().is_err());
    }

    #[test]
    fn loopback_is_recognised_with_and_without_port() {
        for (registry, expected) in [
            ("localhost", true),
            ("localhost:5000", true),
            ("127.0.0.1:80", true),
            ("127.9.9.9", true),
            ("[::1]:5000", true),
            ("[::1]", true),
            ("docker.io", false),
            ("10.0.0.1:5000", false),
            ("localhost.example.com", false),
            ("[2001:db8::1]:5000", false),
        ] {
            assert_eq!(is_loopback(registry), expected, "{registry}");
        }
    }

    proptest! {
        #[test]
        fn any_text_parses_or_is_refused_and_both_forms_come_back(text in "[a-zA-Z0-9:/@._\\[\\]-]{0,40}|\\PC{0,30}") {
            if let Ok(reference) = text.parse::<Reference>() {
                prop_assert_eq!(&reference.to_string().parse::<Reference>().unwrap(), &reference);
                prop_assert_eq!(&reference.familiar().parse::<Reference>().unwrap(), &reference);
            }
        }
    }
}
