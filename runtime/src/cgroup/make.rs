//! Make and remove the directories of one container, with as few system calls as the kernel's answers allow.

use super::hierarchy::{read, words};
use super::{Directory, write_file};
use crate::error::is_absent;
use crate::sys::file;
use rustix::fs::{Mode, OFlags};
use std::fs;
use std::io;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::thread;
use std::time::{Duration, Instant};

/// How long to wait for the kernel to let go of a directory whose processes have ended.
const EMPTY_WITHIN: Duration = Duration::from_secs(10);

/// Open the file through which a single-threaded process moves itself into a v1 directory.
pub(super) fn door(directory: &Path, file: &str) -> io::Result<OwnedFd> {
    let flags = OFlags::WRONLY | OFlags::CLOEXEC;
    Ok(rustix::fs::open(directory.join(file), flags, Mode::empty())?)
}

/// Make a directory and its parents; true when it was there before.
pub(super) fn make(directory: &Directory) -> io::Result<bool> {
    // The common case: the parent is there.
    let mut existed = match rustix::fs::mkdir(&directory.path, Mode::from(0o755)) {
        Ok(()) => Some(false),
        Err(rustix::io::Errno::EXIST) => Some(true),
        // The latter for a parent that is about to be removed.
        Err(rustix::io::Errno::NOENT | rustix::io::Errno::NODEV) => None,
        Err(error) => return Err(error.into()),
    };
    // A parent may vanish between two steps when somebody tidies up: start over.
    for _ in 0..64 {
        if existed.is_some() {
            break;
        }
        existed = match make_with_parents(directory) {
            Err(error) if is_absent(&error) || error.raw_os_error() == Some(libc::ENODEV) => {
                thread::yield_now();
                None
            }
            result => Some(result?),
        };
    }
    let Some(existed) = existed else {
        return Err(io::Error::new(io::ErrorKind::NotFound, "its parent keeps vanishing"));
    };
    if directory.v1.as_ref().is_some_and(|v1| v1.has("cpuset")) {
        fill_cpuset(directory).inspect_err(|_| {
            if !existed {
                let _ = rustix::fs::rmdir(&directory.path);
            }
        })?;
    }
    Ok(existed)
}

/// Directories from the mount point, which is not among them, to the container's.
fn levels(directory: &Directory) -> Vec<PathBuf> {
    let below = directory.path.strip_prefix(&directory.mount).unwrap_or(&directory.path);
    let mut path = directory.mount.clone();
    below
        .components()
        .map(|part| {
            path.push(part);
            path.clone()
        })
        .collect()
}

fn make_with_parents(directory: &Directory) -> io::Result<bool> {
    let mut existed = false;
    for path in levels(directory) {
        existed = match fs::create_dir(&path) {
            Ok(()) => false,
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => true,
            Err(error) => return Err(error),
        };
    }
    Ok(existed)
}

/// An empty set takes no process, and a new v1 directory is empty unless its parent clones. Ours do from the first
/// container on, which saves the later ones twelve system calls and a wait for the kernel's hotplug work.
fn fill_cpuset(directory: &Directory) -> io::Result<()> {
    let mut start = [0; 2];
    let count = file::read_once(&directory.path.join("cpuset.cpus"), &mut start)?;
    if start[..count].iter().any(|byte| !byte.is_ascii_whitespace()) {
        return Ok(());
    }
    let levels = levels(directory);
    let mut parent = directory.mount.clone();
    for path in &levels {
        for file in ["cpuset.cpus", "cpuset.mems"] {
            if read(path.join(file))?.trim().is_empty() {
                write_file(&path.join(file), read(parent.join(file))?.trim())?;
            }
        }
        if *path != directory.path && path.ends_with(super::DEFAULT_PARENT) {
            write_file(&path.join("cgroup.clone_children"), "1")?;
        }
        parent.clone_from(path);
    }
    Ok(())
}

/// On v2 a controller works in a directory only when every parent hands it down. Nothing is done when all of the
/// root's controllers have arrived.
pub(super) fn hand_down(mount: &Path, path: &Path) {
    let available = words(&mount.join("cgroup.controllers"));
    let arrived = words(&path.join("cgroup.controllers"));
    if available.iter().all(|name| arrived.contains(name)) {
        return;
    }
    let below = path.strip_prefix(mount).unwrap_or(path);
    let mut parent = mount.to_owned();
    for part in below.components() {
        hand_down_from(&parent);
        parent.push(part);
    }
}

/// One by one, because one that cannot (`cpu` beside real-time tasks) would spoil the others; a limit that misses its
/// controller fails by itself later.
fn hand_down_from(parent: &Path) {
    let handed = words(&parent.join("cgroup.subtree_control"));
    let missing: Vec<String> =
        words(&parent.join("cgroup.controllers")).into_iter().filter(|name| !handed.contains(name)).collect();
    if missing.is_empty() || refuses_to_hand_down(parent) {
        return;
    }
    for name in missing {
        let _ = write_file(&parent.join("cgroup.subtree_control"), &format!("+{name}"));
    }
}

/// A directory that has processes cannot be a parent with controllers, but for the root of all (the only one without a
/// type). The kernel would let it hand down `cpu` and `pids` and take that as the wish for a threaded tree, in which no
/// container can be.
fn refuses_to_hand_down(parent: &Path) -> bool {
    let is_root = !parent.join("cgroup.type").exists();
    !is_root && read(parent.join("cgroup.procs")).is_ok_and(|text| !text.is_empty())
}

/// The topmost directory above `path` that does not hand a controller down, `mount` included and the last one not.
pub(super) fn first_that_keeps(mount: &Path, path: &str, controller: &str) -> Option<PathBuf> {
    first_without(mount, path, |directory| {
        words(&directory.join("cgroup.subtree_control")).iter().any(|name| name == controller)
    })
}

fn first_without(mount: &Path, path: &str, has: impl Fn(&Path) -> bool) -> Option<PathBuf> {
    let mut directory = mount.to_owned();
    for part in path.split('/') {
        if !has(&directory) {
            return Some(directory);
        }
        directory.push(part);
    }
    None
}

/// What became of a directory that was to be removed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Removed {
    /// It is gone now.
    Now,
    /// It was not there.
    Absent,
}

/// Remove a cgroup directory and those below it. One system call when nothing is in it; it is looked into only when the
/// kernel says that it is busy, which it also is for a moment after its last process has ended.
pub(super) fn remove_tree(path: &Path) -> io::Result<Removed> {
    let mut deadline = None;
    let mut pause = Duration::from_micros(100);
    loop {
        match rustix::fs::rmdir(path) {
            Ok(()) => return Ok(Removed::Now),
            Err(rustix::io::Errno::NOENT) => return Ok(Removed::Absent),
            Err(error @ (rustix::io::Errno::BUSY | rustix::io::Errno::NOTEMPTY)) => {
                for_each_below(path, &mut |below| {
                    if below != path {
                        let _ = fs::remove_dir(below);
                    }
                });
                let deadline = *deadline.get_or_insert_with(|| Instant::now() + EMPTY_WITHIN);
                if Instant::now() > deadline || !processes_below(path).is_empty() {
                    return Err(error.into());
                }
            }
            Err(error) => return Err(error.into()),
        }
        thread::sleep(pause);
        pause = (pause * 2).min(Duration::from_millis(10));
    }
}

/// Processes in a directory and below it.
pub(super) fn processes_below(path: &Path) -> Vec<i32> {
    let mut found = Vec::new();
    for_each_below(path, &mut |path| {
        let text = read(path.join("cgroup.procs")).unwrap_or_default();
        found.extend(text.lines().filter_map(|line| line.parse::<i32>().ok()).filter(|&pid| pid > 0));
    });
    found
}

/// Visit a directory and those below it, deepest first.
pub(super) fn for_each_below(path: &Path, visit: &mut dyn FnMut(&Path)) {
    for entry in fs::read_dir(path).into_iter().flatten().flatten() {
        if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            for_each_below(&entry.path(), visit);
        }
    }
    visit(path);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_directory_that_stops_a_controller() {
        let mount = Path::new("/cg");
        for (lacking, want) in
            [("", None), ("/cg", Some("/cg")), ("/cg/a", Some("/cg/a")), ("/cg/a/b", None), ("/cg/x", None)]
        {
            let found = first_without(mount, "a/b", |directory| directory != Path::new(lacking));
            assert_eq!(found, want.map(PathBuf::from), "{lacking}");
        }
    }

    #[test]
    fn levels_from_the_mount_down() {
        let directory = Directory { mount: "/cg".into(), path: "/cg/a/b".into(), v1: None };
        assert_eq!(levels(&directory), ["/cg/a", "/cg/a/b"].map(PathBuf::from));
    }

    #[test]
    fn removing_what_is_not_there() {
        let dir = tempfile::tempdir().expect("a directory");
        assert_eq!(remove_tree(&dir.path().join("absent")).expect("success"), Removed::Absent);
        fs::create_dir_all(dir.path().join("a/b/c")).expect("directories");
        assert_eq!(remove_tree(&dir.path().join("a")).expect("success"), Removed::Now);
    }
}
