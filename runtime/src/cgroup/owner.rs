//! A container that may make cgroups of its own on v2: its directory belongs to the user of its process.
//!
//! Nothing that sets limits is given away: the kernel lists the files that a delegate may have.

use super::Cgroup;
use super::hierarchy::read;
use crate::config::Config;
use crate::container::options;
use crate::container::path::clean;
use crate::error::{Because, Outcome};
use crate::rootless;
use rustix::fs::{AtFlags, CWD, Uid};
use rustix::io::Errno;
use std::path::Path;

/// Where Linux names the files of a cgroup that go to whoever it is delegated to.
const DELEGATE: &str = "/sys/kernel/cgroup/delegate";
/// The same where Linux is older than that list (4.15).
const FILES: &str = "cgroup.procs\ncgroup.subtree_control\ncgroup.threads\n";

/// The user, as the host knows it, that the container's cgroup is for; `None` when it stays as it was made.
///
/// # Source
/// runtime-spec `config-linux.md`, "Cgroup ownership": a new cgroup namespace and a writable mount at `/sys/fs/cgroup`.
pub fn of(config: &Config) -> Option<u32> {
    let mount = config.mounts.iter().rev().find(|mount| clean(&mount.destination) == "/sys/fs/cgroup")?;
    let is_cgroup = matches!(mount.kind.as_deref(), Some("cgroup" | "cgroup2"));
    let options = options::parse(&mount.options).ok()?;
    let is_writable = (options.attr.set | options.recursive_attr.set) & options::READ_ONLY == 0;
    if !(is_cgroup && is_writable && config.makes("cgroup")) {
        return None;
    }
    let user = config.process.as_ref().map_or(0, |process| process.user.uid);
    let Some(namespace) = config.namespace("user") else {
        return Some(user);
    };
    // The map of one that is joined is not in the bundle.
    namespace.joined().is_none().then(|| crate::container::idmap::to_host(&config.linux.uid_mappings, user))?
}

impl Cgroup {
    /// Give the container's directory, and the files in it that may be, to a user. On v1 nothing is ever given away.
    ///
    /// # Errors
    /// The owner cannot be changed.
    pub fn give_to(&self, user: u32) -> Outcome<()> {
        if !self.hierarchies().is_pure_v2() {
            return Ok(());
        }
        let Some(directory) = self.v2_directory() else { return Ok(()) };
        let list = read(DELEGATE).unwrap_or_else(|_| FILES.to_owned());
        let files =
            list.lines().filter(|name| !name.is_empty() && !name.contains('/')).map(|name| directory.join(name));
        give(&directory, user)?;
        // A controller that is not handed down has no files here.
        files.into_iter().try_for_each(|file| give(&file, user))
    }
}

fn give(path: &Path, user: u32) -> Outcome<()> {
    match rustix::fs::chownat(CWD, path, Some(Uid::from_raw(user)), None, AtFlags::SYMLINK_NOFOLLOW) {
        Err(Errno::NOENT) => Ok(()),
        // An ordinary user can give to nobody, and has what there is.
        Err(Errno::PERM) if rootless::is_rootless() => Ok(()),
        result => result.because(|| format!("cannot give `{}` to user {user}", path.display())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn who_gets_the_cgroup() {
        let writable = json!([{"destination": "/sys/fs/cgroup/", "type": "cgroup", "options": ["nosuid", "rw"]}]);
        let read_only = json!([{"destination": "/sys/fs/cgroup", "type": "cgroup2", "options": ["ro"]}]);
        let elsewhere = json!([{"destination": "/cgroup", "type": "cgroup"}]);
        let bind = json!([{"destination": "/sys/fs/cgroup", "type": "bind", "source": "/sys/fs/cgroup"}]);
        let own = json!({"type": "cgroup"});
        let joined = json!({"type": "cgroup", "path": "/proc/1/ns/cgroup"});
        let mapped = json!({"type": "user"});
        let users = json!({"type": "user", "path": "/proc/1/ns/user"});
        for (why, mounts, namespaces, user, want) in [
            ("no user namespace", &writable, vec![&own], 7, Some(7)),
            ("mapped root", &writable, vec![&own, &mapped], 0, Some(1000)),
            ("mapped user", &writable, vec![&own, &mapped], 7, Some(1007)),
            ("a user that is not mapped", &writable, vec![&own, &mapped], 70, None),
            ("a map that is not ours", &writable, vec![&own, &users], 0, None),
            ("read-only", &read_only, vec![&own, &mapped], 0, None),
            ("mounted elsewhere", &elsewhere, vec![&own, &mapped], 0, None),
            ("the host's", &bind, vec![&own, &mapped], 0, None),
            ("the runtime's cgroup namespace", &writable, vec![&mapped], 0, None),
            ("that of others", &writable, vec![&joined, &mapped], 0, None),
        ] {
            let config: Config = serde_json::from_value(json!({
                "ociVersion": "1.3.0",
                "process": {"user": {"uid": user, "gid": 0}},
                "mounts": mounts,
                "linux": {
                    "namespaces": namespaces,
                    "uidMappings": [{"containerID": 0, "hostID": 1000, "size": 10}],
                },
            }))
            .expect("a configuration");
            assert_eq!(of(&config), want, "{why}");
        }
    }
}
