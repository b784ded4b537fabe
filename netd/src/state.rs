//! What netd keeps on disk: the table in force, and the attachments.

use crate::allocator::Allocator;
use crate::error::NetError;
use gantry_api::network::AttachRequest;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::fs::{File, Permissions};
use std::io::{self, Write};
use std::net::Ipv4Addr;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

/// One container's network.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Record {
    pub(crate) request: AttachRequest,
    pub(crate) address: Ipv4Addr,
    /// Name of the host's end.
    pub(crate) link: String,
}

/// All containers' networks of a node.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Attachments {
    #[serde(default)]
    pub(crate) records: BTreeMap<String, Record>,
    #[serde(default)]
    pub(crate) addresses: Allocator,
}

/// Whether data must be on the disk, or only in the kernel, when a file counts as written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Durability {
    /// Survives a power cut.
    Power,
    /// Survives the process. Enough for what a power cut ends anyway, such as network namespaces.
    Process,
}

/// Read a file of ours; `None` when it is absent, or damaged (which is logged: it is rebuilt).
pub(crate) fn load<T: DeserializeOwned>(path: &Path) -> Result<Option<T>, NetError> {
    let bytes = match std::fs::read(path) {
        Ok(bytes) => bytes,
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(e) => return Err(NetError::file("read", path, e)),
    };
    match serde_json::from_slice(&bytes) {
        Ok(value) => Ok(Some(value)),
        Err(error) => {
            tracing::warn!(path = %path.display(), %error, "state file is damaged and is ignored");
            Ok(None)
        }
    }
}

/// Replace a file of ours, all or nothing.
pub(crate) fn store<T: Serialize>(path: &Path, value: &T, durability: Durability) -> Result<(), NetError> {
    let bytes = serde_json::to_vec(value).map_err(|e| NetError::file("encode", path, io::Error::other(e)))?;
    let new = path.with_extension("new");
    let write = |file: &mut File| -> io::Result<()> {
        file.write_all(&bytes)?;
        if durability == Durability::Power { file.sync_all() } else { Ok(()) }
    };
    let mut file = File::create(&new).map_err(|e| NetError::file("create", &new, e))?;
    write(&mut file).map_err(|e| NetError::file("write", &new, e))?;
    std::fs::rename(&new, path).map_err(|e| NetError::file("replace", path, e))
}

/// Make a directory of ours that only root may look into.
pub(crate) fn private_directory(path: &Path) -> Result<(), NetError> {
    std::fs::create_dir_all(path).map_err(|e| NetError::file("create directory", path, e))?;
    std::fs::set_permissions(path, Permissions::from_mode(0o700)).map_err(|e| NetError::file("protect", path, e))
}

/// Hold a lock file for as long as the answer lives; `None` when somebody else does.
pub(crate) fn try_lock(path: &Path) -> Result<Option<File>, NetError> {
    let file = File::create(path).map_err(|e| NetError::file("create", path, e))?;
    match rustix::fs::flock(&file, rustix::fs::FlockOperation::NonBlockingLockExclusive) {
        Ok(()) => Ok(Some(file)),
        Err(rustix::io::Errno::WOULDBLOCK) => Ok(None),
        Err(e) => Err(NetError::file("lock", path, e)),
    }
}

/// Wait for a lock file.
pub(crate) fn lock(path: &Path) -> Result<File, NetError> {
    let file = File::create(path).map_err(|e| NetError::file("create", path, e))?;
    rustix::fs::flock(&file, rustix::fs::FlockOperation::LockExclusive).map_err(|e| NetError::file("lock", path, e))?;
    Ok(file)
}

/// Check an id before it becomes a file name.
pub(crate) fn check_id(id: &str) -> Result<(), NetError> {
    const LENGTH_MAX: usize = 200;
    let plain = |c: u8| c.is_ascii_alphanumeric() || matches!(c, b'-' | b'_' | b'.');
    let first = id.bytes().next().is_some_and(|c| c.is_ascii_alphanumeric());
    if first && id.len() <= LENGTH_MAX && id.bytes().all(plain) { Ok(()) } else { Err(NetError::Id(id.to_owned())) }
}

/// Where a namespace is kept.
pub(crate) fn netns_path(run_dir: &Path, id: &str) -> PathBuf {
    run_dir.join("netns").join(id)
}

impl Attachments {
    /// A name for the host's end that no other record has.
    ///
    /// - `prefix`: two letters; a link's name has at most 15.
    pub(crate) fn link_name(&self, prefix: &str, id: &str) -> String {
        let name = |salt: u32| format!("{prefix}{:012x}", crate::hash::fnv1a(format!("{id}{salt}").as_bytes()) >> 16);
        let taken = |name: &String| self.records.values().any(|record| record.link == *name);
        (0..).map(name).find(|name| !taken(name)).unwrap_or_else(|| unreachable!("2^48 names are not all taken"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_id_is_a_plain_file_name() {
        for (id, good) in [
            ("shop-api-2-3f9c1a", true),
            ("a.b_C", true),
            ("", false),
            (".", false),
            ("..", false),
            ("a/b", false),
            ("-a", false),
            ("a b", false),
        ] {
            assert_eq!(check_id(id).is_ok(), good, "{id}");
        }
        assert!(check_id(&"a".repeat(201)).is_err());
    }

    #[test]
    fn a_damaged_file_is_as_good_as_none() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("attachments.json");
        assert_eq!(load::<Attachments>(&path).unwrap(), None);
        store(&path, &Attachments::default(), Durability::Process).unwrap();
        assert_eq!(load::<Attachments>(&path).unwrap(), Some(Attachments::default()));
        for damaged in [&b""[..], b"{", b"[1]", b"{\"records\":{\"a\":1}}"] {
            std::fs::write(&path, damaged).unwrap();
            assert_eq!(load::<Attachments>(&path).unwrap(), None);
        }
    }

    #[test]
    fn link_names_fit_and_differ() {
        let mut all = Attachments::default();
        let first = all.link_name("gv", "web");
        assert!(first.len() <= 15 && first.starts_with("gv"), "{first}");
        let request = AttachRequest { id: "other".into(), app: None, hostname: "h".into(), ports: vec![] };
        let record = Record { request, address: Ipv4Addr::LOCALHOST, link: first.clone() };
        all.records.insert("other".into(), record);
        assert_ne!(all.link_name("gv", "web"), first, "a name of another record is not used again");
    }

    #[test]
    fn a_lock_is_held_once() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("lock");
        let held = try_lock(&path).unwrap();
        assert!(held.is_some());
        assert!(try_lock(&path).unwrap().is_none());
        drop(held);
        assert!(try_lock(&path).unwrap().is_some());
    }
}
