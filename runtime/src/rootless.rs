//! Who runs us: root, root of a user namespace only, or an ordinary user.
//!
//! | | mounts, namespaces | ID maps | cgroups |
//! |---|---|---|---|
//! | root | by itself | any | must work |
//! | root of a user namespace | by itself | of its own IDs | where it may write |
//! | ordinary user | in a new user namespace | one ID, more by `newuidmap` | where it may write |
//!
//! Nothing here costs root a system call: the user comes from the auxiliary vector, and whether root is only that of a
//! user namespace is asked after the kernel has refused something.

use crate::sys::process;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::OnceLock;

/// Where root's containers are kept.
const ROOT_OF_ROOT: &str = "/run/gantry-runtime";
/// Name of the directory in `XDG_RUNTIME_DIR`.
const NAME: &str = "gantry-runtime";

/// `--rootless`: whether cgroups that we may not use are left out when no limit needs them.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Rootless {
    /// For ordinary users, and root of a user namespace.
    #[default]
    Auto,
    /// Always.
    Yes,
    /// Never.
    No,
}

impl Rootless {
    /// Whether a container may start without a cgroup that we have no right to.
    pub fn tolerates(self) -> bool {
        match self {
            Self::Auto => is_rootless(),
            Self::Yes => true,
            Self::No => false,
        }
    }
}

impl From<Option<bool>> for Rootless {
    /// From the command line, where nothing is `auto`.
    fn from(given: Option<bool>) -> Self {
        match given {
            None => Self::Auto,
            Some(true) => Self::Yes,
            Some(false) => Self::No,
        }
    }
}

/// Whether we run as an ordinary user.
pub fn is_ordinary_user() -> bool {
    ids().0 != 0
}

/// Effective user and group.
pub fn ids() -> (u32, u32) {
    process::ids_at_start()
}

/// Whether we lack the rights of the host's root. Reads a file the first time when the user is 0.
pub fn is_rootless() -> bool {
    is_ordinary_user() || in_user_namespace()
}

/// Whether we are in a user namespace other than the host's.
pub fn in_user_namespace() -> bool {
    static FOUND: OnceLock<bool> = OnceLock::new();
    *FOUND.get_or_init(|| fs::read_to_string("/proc/self/uid_map").is_ok_and(|map| !is_identity(&map)))
}

/// Whether a `uid_map` is the host's.
fn is_identity(map: &str) -> bool {
    map.split_whitespace().eq(["0", "0", "4294967295"])
}

/// State root without `--root`; `None` when an ordinary user has no runtime directory.
pub fn state_root() -> Option<PathBuf> {
    let given = std::env::var_os("XDG_RUNTIME_DIR").filter(|value| !value.is_empty()).map(PathBuf::from);
    let as_root = !is_ordinary_user();
    if as_root {
        // Root of a user namespace that an ordinary user made, and not a root whose environment was inherited.
        let is_root = std::env::var_os("USER").is_some_and(|name| name == "root");
        let theirs = given.filter(|_| !is_root && in_user_namespace());
        return Some(theirs.map_or_else(|| PathBuf::from(ROOT_OF_ROOT), |directory| directory.join(NAME)));
    }
    given.map(|directory| directory.join(NAME))
}

/// Places for a container's cgroup when its bundle names none and we may not write at the top: beside our own cgroup,
/// or in it. A process can only be moved below a directory that is ours together with where it comes from.
///
/// - `membership`: our `/proc/self/cgroup`.
/// - `mount`: of the v2 hierarchy.
pub fn delegated_place(membership: &str, mount: &Path, id: &str) -> Option<String> {
    let own = membership.lines().find_map(|line| line.strip_prefix("0::/"))?;
    let parent = own.rsplit_once('/').map_or("", |(parent, _)| parent);
    [parent, own].into_iter().find_map(|place| {
        let directory = mount.join(place);
        let may = |path: &Path| rustix::fs::access(path, rustix::fs::Access::WRITE_OK).is_ok();
        let writable = may(&directory) && may(&directory.join("cgroup.procs"));
        let prefix = if place.is_empty() { String::new() } else { format!("{place}/") };
        writable.then(|| format!("{prefix}gantry-runtime-{id}"))
    })
}

/// The processes of a container without a cgroup: those in the PID namespace of its first one, or, when that is our own
/// and tells nothing, that one.
pub fn members(init: i32) -> Vec<i32> {
    let namespace = |process: &str| fs::read_link(format!("/proc/{process}/ns/pid")).ok();
    let theirs = namespace(&init.to_string());
    if theirs.is_none() || theirs == namespace("self") {
        return vec![init];
    }
    let names =
        fs::read_dir("/proc").into_iter().flatten().flatten().filter_map(|entry| entry.file_name().into_string().ok());
    names.filter_map(|name| name.parse::<i32>().ok()).filter(|pid| namespace(&pid.to_string()) == theirs).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn maps_of_the_host_and_others() {
        for (map, host) in [
            ("         0          0 4294967295\n", true),
            ("0 1000 1\n", false),
            ("0 0 1\n", false),
            ("0 0 4294967294\n1 1 1\n", false),
            ("", false),
        ] {
            assert_eq!(is_identity(map), host, "{map:?}");
        }
    }

    #[test]
    fn a_place_is_found_only_where_we_may_write() {
        let dir = tempfile::tempdir().expect("a directory");
        fs::create_dir_all(dir.path().join("user/session")).expect("directories");
        let place = |membership| delegated_place(membership, dir.path(), "web");
        assert_eq!(place("0::/user/session\n"), None, "no cgroup.procs");
        fs::write(dir.path().join("user/session/cgroup.procs"), "").expect("a file");
        assert_eq!(place("0::/user/session\n").as_deref(), Some("user/session/gantry-runtime-web"));
        fs::write(dir.path().join("user/cgroup.procs"), "").expect("a file");
        assert_eq!(place("3:pids:/x\n0::/user/session\n").as_deref(), Some("user/gantry-runtime-web"), "beside first");
        assert_eq!(place("3:pids:/x\n"), None, "no v2");
    }
}
