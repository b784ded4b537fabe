//! What a container has from outside of itself, which images cannot hold: mounts of host files, joined namespaces, and
//! standard streams. Each gets a name at the checkpoint, and is given back under it at the restore.

use crate::cgroup::Cgroup;
use crate::config::{Config, Namespace};
use crate::container::options;
use crate::container::path::clean;
use crate::error::{Because, Failure, Outcome};
use rustix::fs::{Mode, OFlags, ResolveFlags};
use std::collections::BTreeSet;
use std::fs;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

/// A mount from the host: where the container has it, and what it shows.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HostMount {
    /// In the container, and its name in the images.
    pub destination: String,
    /// On the host.
    pub source: PathBuf,
}

/// Every mount that shows something of the host.
///
/// - `bundle`: what relative sources are relative to.
pub fn host_mounts(config: &Config, bundle: &Path, cgroup: &Cgroup) -> Vec<HostMount> {
    let mut list = Vec::new();
    for mount in &config.mounts {
        let destination = clean(&mount.destination);
        let bind = options::parse(&mount.options).is_ok_and(|options| options.bind.is_some());
        let hierarchies = cgroup.hierarchies();
        match mount.kind.as_deref() {
            Some("cgroup" | "cgroup2") if !hierarchies.v1.is_empty() => {
                for v1 in &hierarchies.v1 {
                    let destination = format!("{destination}/{}", v1.directory_name());
                    list.push(HostMount { destination, source: cgroup.path_in(&v1.mount) });
                }
                if let Some(v2) = &hierarchies.v2 {
                    let destination = format!("{destination}/unified");
                    list.push(HostMount { destination, source: cgroup.path_in(v2) });
                }
            }
            kind if bind || kind == Some("bind") => {
                let source = bundle.join(mount.source.as_deref().unwrap_or(""));
                list.push(HostMount { destination, source });
            }
            _ => {}
        }
    }
    for path in &config.linux.masked_paths {
        list.push(HostMount { destination: clean(path), source: PathBuf::from("/dev/null") });
    }
    list
}

/// Those of them that a running container has, each with its real place: links on the way are resolved as the container
/// would. A masked directory is covered by an empty filesystem of the container's own.
///
/// # Errors
/// The container's root or mount table cannot be read.
pub fn present(mounts: Vec<HostMount>, pid: i32) -> Outcome<Vec<(String, HostMount)>> {
    let root = format!("/proc/{pid}/root");
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let root = rustix::fs::open(&root, flags, Mode::empty()).because(|| format!("cannot open `{root}`"))?;
    let table = format!("/proc/{pid}/mountinfo");
    let table = fs::read_to_string(&table).because(|| format!("cannot read `{table}`"))?;
    let points: BTreeSet<&str> = table.lines().filter_map(|line| line.split(' ').nth(4)).collect();
    let mut list = Vec::new();
    for mount in mounts {
        let Some(place) = real_place(&root, &mount.destination) else { continue };
        if points.contains(place.as_str()) {
            let is_mask = mount.source == Path::new("/dev/null");
            if !is_mask || !is_directory(&root, &place) {
                list.push((place, mount));
            }
        }
    }
    Ok(list)
}

fn in_root(root: &OwnedFd, path: &str) -> Option<OwnedFd> {
    let relative = path.trim_start_matches('/');
    let relative = if relative.is_empty() { "." } else { relative };
    rustix::fs::openat2(root, relative, OFlags::PATH | OFlags::CLOEXEC, Mode::empty(), ResolveFlags::IN_ROOT).ok()
}

/// The kernel names a file in another mount namespace by its path from the root of that namespace.
fn real_place(root: &OwnedFd, path: &str) -> Option<String> {
    let found = in_root(root, path)?;
    let link = fs::read_link(format!("/proc/self/fd/{}", found.as_raw_fd())).ok()?;
    link.to_str().map(str::to_owned)
}

fn is_directory(root: &OwnedFd, path: &str) -> bool {
    in_root(root, path)
        .and_then(|found| rustix::fs::fstat(&found).ok())
        .is_some_and(|stat| rustix::fs::FileType::from_raw_mode(stat.st_mode).is_dir())
}

/// Namespaces that were there before the container, by what CRIU does with them.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Joined {
    /// Named in the images and given back as a descriptor: kind, name, path.
    pub named: Vec<(&'static str, &'static str, PathBuf)>,
    /// Joined again by CRIU: kind and path.
    pub entered: Vec<(&'static str, PathBuf)>,
}

/// Sort the joined namespaces of a configuration.
///
/// # Errors
/// One that CRIU cannot join.
pub fn joined(config: &Config) -> Outcome<Joined> {
    let mut joined = Joined::default();
    let list: Vec<&Namespace> = config.linux.namespaces.iter().collect();
    for namespace in list {
        let Some(path) = namespace.joined().map(PathBuf::from) else { continue };
        match namespace.kind.as_str() {
            "network" => joined.named.push(("net", "extRootNetNS", path)),
            "pid" => joined.named.push(("pid", "extRootPidNS", path)),
            "ipc" => joined.entered.push(("ipc", path)),
            "uts" => joined.entered.push(("uts", path)),
            kind => {
                return Err(Failure::new(format!("a container that has joined a `{kind}` namespace cannot be saved"))
                    .hint("criu saves containers whose joined namespaces are of kind network, pid, ipc or uts"));
            }
        }
    }
    Ok(joined)
}

/// The inode of a namespace file, which is its identity.
///
/// # Errors
/// It is not there.
pub fn inode(path: &Path) -> Outcome<u64> {
    fs::metadata(path).map(|found| found.ino()).because(|| format!("cannot read namespace `{}`", path.display()))
}

/// Name of the file beside the images that tells what the standard streams were.
pub const STREAMS: &str = "descriptors.json";

/// The standard streams of a process, by the names that CRIU knows what comes from outside under; those of the
/// container itself have their procfs link for a name.
///
/// # Errors
/// The process has gone.
pub fn streams(pid: i32) -> Outcome<Vec<String>> {
    let table = format!("/proc/{pid}/mountinfo");
    let table = fs::read_to_string(&table).because(|| format!("cannot read `{table}`"))?;
    let own: BTreeSet<&str> = table.lines().filter_map(|line| line.split(' ').next()).collect();
    Ok((0..3).map(|number| stream(pid, number, &own).unwrap_or_default()).collect())
}

/// - `own`: numbers of the container's mounts.
fn stream(pid: i32, number: i32, own: &BTreeSet<&str>) -> Option<String> {
    let file = format!("/proc/{pid}/fd/{number}");
    let link = fs::read_link(&file).ok()?.display().to_string();
    let info = fs::read_to_string(format!("/proc/{pid}/fdinfo/{number}")).ok()?;
    let mount = info.lines().find_map(|line| line.strip_prefix("mnt_id:"))?.trim();
    if !link.starts_with('/') || own.contains(mount) {
        return Some(link);
    }
    let found = fs::metadata(&file).ok()?;
    let mount: u32 = mount.parse().ok()?;
    Some(if is_terminal(found.rdev()) {
        format!("tty[{:x}:{:x}]", found.rdev(), found.dev())
    } else {
        format!("file[{mount:x}:{:x}]", found.ino())
    })
}

/// Whether a stream is to be given back at the restore.
pub fn is_outside(stream: &str) -> bool {
    ["pipe:", "tty[", "file["].iter().any(|start| stream.starts_with(start))
}

/// Unix98 terminals have eight major numbers, of which Linux uses the first.
fn is_terminal(device: u64) -> bool {
    (136..144).contains(&rustix::fs::major(device))
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn mounts_of_the_host() {
        let config: Config = serde_json::from_value(json!({
            "mounts": [
                {"destination": "/proc", "type": "proc", "source": "proc"},
                {"destination": "/data/", "type": "none", "source": "/srv", "options": ["rbind", "ro"]},
                {"destination": "/conf", "type": "bind", "source": "conf"},
                {"destination": "/tmp", "type": "tmpfs", "source": "tmpfs"},
            ],
            "linux": {"maskedPaths": ["/proc/keys"]},
        }))
        .expect("a configuration");
        let cgroup = Cgroup::at("x".into()).expect("hierarchies");
        let found = host_mounts(&config, Path::new("/b"), &cgroup);
        let shown: Vec<_> = found.iter().map(|m| format!("{} {}", m.destination, m.source.display())).collect();
        assert_eq!(shown, ["/data /srv", "/conf /b/conf", "/proc/keys /dev/null"]);
    }

    #[test]
    fn joined_namespaces() {
        let config = |kind: &str, path: &str| -> Config {
            serde_json::from_value(json!({"linux": {"namespaces": [{"type": kind, "path": path}]}})).expect("one")
        };
        assert_eq!(joined(&config("pid", "")).expect("new"), Joined::default());
        assert_eq!(joined(&config("network", "/n")).expect("named").named, [("net", "extRootNetNS", "/n".into())]);
        assert_eq!(joined(&config("ipc", "/n")).expect("entered").entered, [("ipc", "/n".into())]);
        assert!(joined(&config("user", "/n")).expect_err("refused").to_string().contains("`user`"));
    }
}
