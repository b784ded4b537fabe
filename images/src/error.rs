//! What can go wrong with an image, told apart by what the user would do about it.

use std::io;
use std::path::{Path, PathBuf};

use crate::digest::Digest;
use crate::platform::Platform;
use crate::reference::Reference;

/// Everything in this crate that can fail returns this.
pub type Result<T, E = ImageError> = std::result::Result<T, E>;

/// A failure of the image store, of a registry or of the making of a bundle.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ImageError {
    /// A system call on a file of the store failed.
    #[error("cannot {action} {}", path.display())]
    Io {
        /// The verb, such as `write`.
        action: &'static str,
        /// The file.
        path: PathBuf,
        /// What the kernel said.
        source: io::Error,
    },
    /// The file system of the store has no room, or no inodes, left.
    #[error("no space left in {}{}", dir.display(), needed.map(|n| format!(": {n} bytes are needed")).unwrap_or_default())]
    DiskFull {
        /// The directory of the store.
        dir: PathBuf,
        /// What would be needed, if known beforehand.
        needed: Option<u64>,
    },
    /// The directory is used by something that is not an image store of this version.
    #[error("{} is not an image store: {why}", dir.display())]
    BadStore {
        /// The directory.
        dir: PathBuf,
        /// What is wrong with it.
        why: String,
    },
    /// An image reference is not well formed.
    #[error("`{reference}` is not an image reference: {why}")]
    BadReference {
        /// As given.
        reference: String,
        /// The rule it breaks.
        why: String,
    },
    /// No image of that name, digest or id is in the store.
    #[error("image `{0}` is not in the store")]
    NotFound(String),
    /// The registry answers, but has no such repository, tag or digest.
    #[error("`{reference}` is not in registry {registry}{}", part_of.as_ref().map(|whole| format!(", but is a part of `{whole}`")).unwrap_or_default())]
    NotInRegistry {
        /// Host of the registry.
        registry: String,
        /// What was asked for.
        reference: String,
        /// The image that needs it, if that is another.
        part_of: Option<String>,
    },
    /// A short id or digest fits more than one image.
    #[error("`{prefix}` fits several images: {}", matches.join(", "))]
    Ambiguous {
        /// As given.
        prefix: String,
        /// What it could mean.
        matches: Vec<String>,
    },
    /// Content does not have the digest that it should have.
    #[error("{what} is damaged: digest should be {wanted}, is {got}")]
    Damaged {
        /// Such as `layer sha256:…`.
        what: String,
        /// The digest that was announced.
        wanted: Digest,
        /// The digest of what arrived.
        got: Digest,
    },
    /// Content does not have the size that was announced.
    #[error("{what} has the wrong size: should be {wanted} bytes, is {got}")]
    WrongSize {
        /// Such as `layer sha256:…`.
        what: String,
        /// Bytes announced.
        wanted: u64,
        /// Bytes seen; at least this many.
        got: u64,
    },
    /// A stream ended too early, also after the retries.
    #[error("{what} is cut off: {got} of {wanted} bytes arrived")]
    Truncated {
        /// Such as `layer sha256:…`.
        what: String,
        /// Bytes announced.
        wanted: u64,
        /// Bytes that arrived.
        got: u64,
    },
    /// Content exceeds a limit of the store.
    #[error("{what} is too big: more than {limit} {unit}")]
    TooBig {
        /// Such as `layer sha256:…`.
        what: String,
        /// The limit.
        limit: u64,
        /// What is counted.
        unit: &'static str,
    },
    /// The registry wants other credentials than it got.
    #[error("registry {registry} refuses access to `{repository}`{}", detail_suffix(detail))]
    Unauthorized {
        /// Host of the registry.
        registry: String,
        /// The repository asked for.
        repository: String,
        /// What the registry said, may be empty.
        detail: String,
    },
    /// The image exists, but not for the platform wanted.
    #[error("`{reference}` is not for {wanted}, but for {available}")]
    WrongPlatform {
        /// The image.
        reference: String,
        /// The platform wanted.
        wanted: Platform,
        /// What there is.
        available: String,
    },
    /// A container uses the image.
    #[error("image `{image}` is used by {}", containers.iter().map(|c| format!("container `{c}`")).collect::<Vec<_>>().join(", "))]
    InUse {
        /// The image.
        image: String,
        /// The containers.
        containers: Vec<String>,
    },
    /// An image given by id has several names.
    #[error("image `{image}` has several names: {}", names.join(", "))]
    SeveralNames {
        /// As given.
        image: String,
        /// The names.
        names: Vec<String>,
    },
    /// The snapshot exists, for another image.
    #[error("container `{id}` has a root file system of another image, {image}")]
    SnapshotExists {
        /// The container.
        id: String,
        /// Digest of the image that it is made of.
        image: Digest,
    },
    /// An archive or layer is malformed, or does something that an image must not do.
    #[error("{archive}: {why}")]
    BadArchive {
        /// File name, or `layer sha256:…`.
        archive: String,
        /// What is wrong, with the entry's name.
        why: String,
    },
    /// A manifest, index or image configuration is malformed.
    #[error("{what} is not valid: {why}")]
    BadImage {
        /// Such as `manifest of …`.
        what: String,
        /// What is wrong.
        why: String,
    },
    /// The registry answered with an error.
    #[error("registry {registry} answers {status} to {request}{}", detail_suffix(detail))]
    Registry {
        /// Host of the registry.
        registry: String,
        /// HTTP status.
        status: u16,
        /// Method and path.
        request: String,
        /// What the registry said, may be empty.
        detail: String,
    },
    /// What answers is not a registry; a captive portal, for instance.
    #[error("{url} does not answer like a registry: it sends {content_type}")]
    NotARegistry {
        /// The address asked.
        url: String,
        /// What it said it sends.
        content_type: String,
    },
    /// The registry cannot be reached.
    #[error("cannot reach registry {registry} for {request}")]
    Network {
        /// Host of the registry.
        registry: String,
        /// Method and path.
        request: String,
        /// What the connection said.
        source: reqwest::Error,
    },
    /// The registry sends something, but hardly anything, also after the retries.
    #[error("registry {registry} sends {what} too slowly: less than 64 KiB in {seconds} s")]
    TooSlow {
        /// Host of the registry.
        registry: String,
        /// Such as `layer sha256:…`.
        what: String,
        /// The patience that it was given.
        seconds: u64,
    },
    /// The operator's settings for registries cannot be used.
    #[error("cannot use the settings in {}: {why}", file.display())]
    BadSettings {
        /// The file.
        file: PathBuf,
        /// What is wrong.
        why: String,
    },
    /// The operator does not want this image.
    #[error("`{reference}` is not trusted: {why}")]
    Untrusted {
        /// The image.
        reference: String,
        /// What it lacks.
        why: String,
    },
    /// A file of credentials cannot be used.
    #[error("cannot use credentials in {}: {why}", file.display())]
    BadCredentials {
        /// The file.
        file: PathBuf,
        /// What is wrong.
        why: String,
    },
    /// The kernel does not mount the root file system.
    #[error("cannot mount the root file system at {}{}", target.display(), detail_suffix(detail))]
    Mount {
        /// Where.
        target: PathBuf,
        /// The kernel's own words, may be empty.
        detail: String,
        /// The error number.
        source: io::Error,
    },
    /// A file cannot be copied between a host and a container.
    #[error("cannot copy {path}: {why}")]
    Copy {
        /// The file, and the place it was copied from or to.
        path: String,
        /// What is in the way.
        why: String,
    },
    /// The file system cannot limit what a container writes.
    #[error("cannot limit the size of the root file system in {}: {why}", dir.display())]
    NoQuota {
        /// The directory of the store.
        dir: PathBuf,
        /// What is missing.
        why: String,
    },
    /// A user or group is not known inside the image.
    #[error("no {kind} `{name}` in {file} of the image")]
    UnknownUser {
        /// `user` or `group`.
        kind: &'static str,
        /// As given.
        name: String,
        /// The file that should have it.
        file: &'static str,
    },
    /// An option of a container has a value that cannot be.
    #[error("{field} `{value}`: {why}")]
    BadOption {
        /// The option.
        field: &'static str,
        /// Its value.
        value: String,
        /// What is wrong with it.
        why: String,
    },
    /// A background task ended without a result: the program is shutting down.
    #[error("the image store is shutting down")]
    Stopped,
}

fn detail_suffix(detail: &str) -> String {
    if detail.is_empty() { String::new() } else { format!(": {detail}") }
}

impl ImageError {
    /// What the operator can do next; `None` when only the message knows.
    pub fn hint(&self) -> Option<String> {
        let text = match self {
            Self::DiskFull { dir, .. } => format!(
                "free space or inodes on the file system of {}, remove images that are not needed, or use another data directory",
                dir.display()
            ),
            Self::BadStore { .. } => "choose an empty directory, or remove this one if it holds nothing of value".into(),
            Self::BadReference { .. } => {
                "write [HOST[:PORT]/]NAME[:TAG][@sha256:DIGEST], for instance nginx:1.27 or registry.example.com:5000/shop/api:2".into()
            }
            Self::Untrusted { .. } => "the rules are under `trust` in the settings for registries".into(),
            Self::NotFound(_) => "pull or load it first, or list what is there".into(),
            Self::NotInRegistry { part_of: Some(_), .. } => {
                "the registry has lost a part of the image: push the image again, or pull another tag".into()
            }
            Self::NotInRegistry { .. } => "check the name and the tag; a tag may have been removed".into(),
            Self::Ambiguous { .. } => "give more characters".into(),
            Self::Damaged { .. } | Self::WrongSize { .. } | Self::Truncated { .. } => {
                "fetch it again; if it stays so, the source is broken and nothing of it was kept".into()
            }
            Self::TooBig { .. } => "the limits protect the host; make the image smaller if it is really yours".into(),
            Self::Unauthorized { registry, .. } => format!(
                "the repository may not exist, or needs a login for {registry}: in the `auths` of docker's config.json, or from a credential helper"
            ),
            Self::WrongPlatform { .. } => "ask for that platform by name if you have an emulator for it".into(),
            Self::InUse { .. } => "remove the container first, or force it: the names go, the content stays until the container is gone".into(),
            Self::SeveralNames { .. } => "remove one name, or force it to remove all".into(),
            Self::SnapshotExists { id, .. } => format!("remove container {id} first"),
            Self::NotARegistry { .. } => "is a log-in page of the network in the way, or is the address that of a web site?".into(),
            Self::Network { registry, source, .. } if says(source, "certificate") => format!(
                "if the certificate is right, name its issuer as `ca` of registry.\"{registry}\" in /etc/gantry/registries.toml"
            ),
            Self::Network { source, .. } if says(source, "address") && says(source, "name server") => {
                "check the host name, and the name servers in /etc/resolv.conf".into()
            }
            Self::Network { source, .. } if source.is_connect() => {
                "check the host name, the network, and that the registry speaks HTTPS (or is listed as insecure)".into()
            }
            Self::Network { .. } | Self::TooSlow { .. } => "check the network to the registry, and try again".into(),
            Self::Registry { status: 429, .. } => "the registry limits requests: wait, or log in".into(),
            Self::Registry { status: 500.., .. } => "the registry has a problem: try again later".into(),
            Self::Registry { .. } => "check the name of the image; the log of the registry may tell more".into(),
            Self::BadImage { .. } => "nothing of it is used: it must be built or pushed again".into(),
            Self::BadCredentials { .. } => "correct the file, or log in again with the tool that wrote it".into(),
            Self::BadSettings { .. } => "correct the file; docs/images.md has an example".into(),
            Self::Mount { .. } => {
                "the data directory must be on a file system that overlayfs can write to (ext4, xfs, btrfs, tmpfs), not on an overlay".into()
            }
            Self::NoQuota { .. } => {
                "put the data directory on XFS or ext4 (made with `-O quota,project`), mounted with `prjquota`, or start without a size".into()
            }
            Self::UnknownUser { .. } => "use a number, or a name that the image knows".into(),
            Self::BadArchive { .. } => {
                "give a whole archive as `docker save` or `skopeo copy … oci-archive:FILE` writes it, or a directory with an OCI layout".into()
            }
            Self::Copy { .. } | Self::Io { .. } | Self::BadOption { .. } | Self::Stopped => return None,
        };
        Some(text)
    }

    /// The error for a failed call on `path`; a full disk is its own kind.
    pub(crate) fn io(action: &'static str, path: impl AsRef<Path>, source: impl Into<io::Error>) -> Self {
        let (path, source) = (path.as_ref(), source.into());
        if is_disk_full(&source) {
            return Self::DiskFull { dir: path.to_path_buf(), needed: None };
        }
        Self::Io { action, path: path.to_path_buf(), source }
    }

    /// Name the image that was pulled, where the error is only about a part of it.
    pub(crate) fn in_pull(self, image: &Reference) -> Self {
        let (short, full) = (image.familiar(), image.to_string());
        let named = |text: String| if text.contains(&short) { text } else { format!("{text} of {full}") };
        match self {
            Self::Damaged { what, wanted, got } => Self::Damaged { what: named(what), wanted, got },
            Self::WrongSize { what, wanted, got } => Self::WrongSize { what: named(what), wanted, got },
            Self::Truncated { what, wanted, got } => Self::Truncated { what: named(what), wanted, got },
            Self::TooBig { what, limit, unit } => Self::TooBig { what: named(what), limit, unit },
            Self::BadArchive { archive, why } => Self::BadArchive { archive: named(archive), why },
            Self::BadImage { what, why } => Self::BadImage { what: named(what), why },
            Self::Network { registry, request, source } => Self::Network { registry, request: named(request), source },
            Self::Registry { registry, status, request, detail } => {
                Self::Registry { registry, status, request: named(request), detail }
            }
            Self::NotInRegistry { registry, reference, part_of: None } if !full.ends_with(&reference) => {
                Self::NotInRegistry { registry, reference, part_of: Some(full) }
            }
            other => other,
        }
    }

    /// Name the directory of the store where the disk is full: what the operator knows it by.
    pub(crate) fn in_store(self, root: &Path) -> Self {
        match self {
            Self::DiskFull { needed, .. } => Self::DiskFull { dir: root.to_path_buf(), needed },
            other => other,
        }
    }
}

/// Whether a cause, or the cause of that, has this word.
fn says(error: &dyn std::error::Error, word: &str) -> bool {
    let mut cause = Some(error);
    // Bounded by the chain, which is a few long.
    while let Some(error) = cause {
        if error.to_string().contains(word) {
            return true;
        }
        cause = error.source();
    }
    false
}

/// No blocks, no inodes, or no quota.
pub(crate) fn is_disk_full(error: &io::Error) -> bool {
    matches!(error.raw_os_error(), Some(libc::ENOSPC | libc::EDQUOT))
}

/// For `map_err`: `.map_err(at("read", &path))`.
pub(crate) fn at<'a, E: Into<io::Error>>(action: &'static str, path: &'a Path) -> impl FnOnce(E) -> ImageError + 'a {
    move |source| ImageError::io(action, path, source)
}
