//! Images between nodes: who holds what, and where a node may fetch what it lacks.
//!
//! ```text
//! agent ── ImageNews: all it holds, then what changed ──► scheduler
//! agent ◄── Sources: for each image it lacks, which nodes to ask ── scheduler
//! agent ── GET /v1/blobs/{digest}, mutual TLS, port BLOBS_PORT ──► agent of another node
//! ```
//!
//! Nothing that a node says of an image is believed: whoever fetches checks digests and the operator's trust.

use crate::ids::NodeId;
use serde::{Deserialize, Serialize};
use std::net::Ipv4Addr;

/// Port on which each node serves its blobs to the other nodes of its cluster.
pub const BLOBS_PORT: u16 = 7401;
/// Names that one node tells of at most; the ones that came last.
pub const HELD_MAX: usize = 4_096;
/// A longer name is not told.
pub const NAME_BYTES_MAX: usize = 512;

/// One name of an image that a node has whole.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct HeldImage {
    /// Full name, as [`canonical`] writes it.
    pub name: String,
    /// What the registry gave for that name: the digest of an index, if the node keeps it, or of a manifest.
    pub digest: String,
    /// Digest of the manifest that was chosen for the node.
    pub manifest: String,
    /// When it came, milliseconds since 1970.
    pub since_ms: u64,
}

/// What changed of the images that a node holds. The first one of a stream tells all.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ImageNews {
    /// Whether `held` is all there is.
    #[serde(default)]
    pub whole: bool,
    /// New, or under another digest than before.
    #[serde(default)]
    pub held: Vec<HeldImage>,
    /// Names that are gone.
    #[serde(default)]
    pub gone: Vec<String>,
}

/// Where one node may fetch the images that it lacks, besides registries; replaces what was said before.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Sources {
    /// By image, in order of name.
    pub images: Vec<ImageSources>,
}

/// Where one image is to be had.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ImageSources {
    /// Full name, as [`canonical`] writes it.
    pub name: String,
    /// The digest that nodes know for this name, the last that came; used while no registry answers.
    #[serde(default)]
    pub digest: Option<String>,
    /// Whom to ask, best first; none means that this node is the first to fetch it.
    #[serde(default)]
    pub nodes: Vec<Source>,
}

/// A node that has an image, or is fetching it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Source {
    /// Which.
    pub node: NodeId,
    /// Its address; the port is [`BLOBS_PORT`].
    pub address: Ipv4Addr,
    /// It has all of the image. Otherwise it is fetching it and is worth waiting for.
    pub whole: bool,
}

/// The full form of an image's name, by docker's rules: `busybox` is `docker.io/library/busybox:latest`; a name with a
/// digest has no tag. What is no name comes back in some form that no image has.
pub fn canonical(name: &str) -> String {
    let (rest, digest) = name.split_once('@').map_or((name, None), |(rest, digest)| (rest, Some(digest)));
    let is_host = |first: &str| {
        first == "localhost" || first.contains(['.', ':', '[']) || first.bytes().any(|c| c.is_ascii_uppercase())
    };
    let (registry, path) = match rest.split_once('/') {
        Some(("index.docker.io" | "registry-1.docker.io", path)) => ("docker.io", path),
        Some((first, path)) if is_host(first) => (first, path),
        _ => ("docker.io", rest),
    };
    let (path, tag) = match path.rsplit_once(':') {
        Some((path, tag)) if !tag.contains('/') => (path, tag),
        _ => (path, "latest"),
    };
    let library = if registry == "docker.io" && !path.contains('/') { "library/" } else { "" };
    match digest {
        Some(digest) => format!("{registry}/{library}{path}@{digest}"),
        None => format!("{registry}/{library}{path}:{tag}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_has_one_full_form() {
        for (name, full) in [
            ("busybox", "docker.io/library/busybox:latest"),
            ("busybox:1", "docker.io/library/busybox:1"),
            ("docker.io/busybox:1", "docker.io/library/busybox:1"),
            ("index.docker.io/shop/api", "docker.io/shop/api:latest"),
            ("shop/api:2", "docker.io/shop/api:2"),
            ("localhost/web", "localhost/web:latest"),
            ("registry.example.com:5000/api", "registry.example.com:5000/api:latest"),
            ("[::1]:5000/api:3", "[::1]:5000/api:3"),
            ("busybox:1@sha256:ab", "docker.io/library/busybox@sha256:ab"),
            ("", "docker.io/library/:latest"),
        ] {
            assert_eq!(canonical(name), full, "{name}");
            assert_eq!(canonical(full), full, "{name}");
        }
    }
}
