//! Paths inside a root filesystem, resolved by the kernel with that root (invariant 3).
//!
//! The filesystem belongs to an image and may hold any symbolic link; other processes may rename things while we
//! work. So a path is resolved once, into a descriptor, and never again.

use crate::error::{Because, Outcome};
use rustix::fs::{Mode, OFlags, ResolveFlags};
use rustix::io::Errno;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};

/// Remove `.`, `..` and double slashes from an absolute path, without looking at any file.
pub fn clean(path: &str) -> String {
    let mut parts: Vec<&str> = Vec::new();
    for part in path.split('/') {
        match part {
            "" | "." => {}
            ".." => {
                parts.pop();
            }
            name => parts.push(name),
        }
    }
    format!("/{}", parts.join("/"))
}

/// The directory that a path is resolved in.
#[derive(Debug, Clone, Copy)]
pub struct RootDir<'a>(pub BorrowedFd<'a>);

/// Whether symbolic links in the image may be followed (inside the root).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Links {
    /// Follow them, as programs in the container would.
    Follow,
    /// Follow them, but not to [`TRUSTED`] places: what the bundle mounts elsewhere must not end up there.
    Elsewhere,
    /// Refuse: for the directories the runtime and the container must trust.
    Refuse,
}

impl Links {
    /// Paths below `/proc`, `/sys` and `/dev` may not go through a link: an image could redirect what is mounted there.
    pub fn for_path(clean: &str) -> Self {
        if is_trusted(clean) { Self::Refuse } else { Self::Elsewhere }
    }
}

/// Places that the runtime and the container must be able to trust.
const TRUSTED: [&str; 3] = ["proc", "sys", "dev"];

fn is_trusted(clean: &str) -> bool {
    TRUSTED.contains(&clean.split('/').nth(1).unwrap_or(""))
}

/// Resolution stays in the root and goes through no magic link, whatever else.
const INSIDE: ResolveFlags = ResolveFlags::IN_ROOT.union(ResolveFlags::NO_MAGICLINKS);

/// The path of what a descriptor refers to, by the kernel's word; for a judgement only, never to be opened again.
fn name_of(fd: BorrowedFd<'_>) -> Result<String, Errno> {
    let link = rustix::fs::readlink(format!("/proc/self/fd/{}", fd.as_raw_fd()), Vec::new())?;
    Ok(link.to_string_lossy().into_owned())
}

/// Attempts when a rename elsewhere makes the kernel give up (`EAGAIN`).
const ATTEMPTS: u32 = 64;

impl RootDir<'_> {
    /// Open what is there.
    ///
    /// # Errors
    /// `ENOENT`, `ELOOP` for a refused link, and the rest of `openat2(2)`.
    pub fn open(&self, path: &str, flags: OFlags, links: Links) -> Result<OwnedFd, Errno> {
        match links {
            Links::Follow => self.resolve(path, flags, INSIDE),
            Links::Refuse => self.resolve(path, flags, INSIDE | ResolveFlags::NO_SYMLINKS),
            // Nearly always there is no link on the way, and then it is where it says.
            Links::Elsewhere => match self.resolve(path, flags, INSIDE | ResolveFlags::NO_SYMLINKS) {
                Err(Errno::LOOP) => {
                    let found = self.resolve(path, flags, INSIDE)?;
                    if self.is_elsewhere(&found)? { Ok(found) } else { Err(Errno::LOOP) }
                }
                result => result,
            },
        }
    }

    fn resolve(&self, path: &str, flags: OFlags, how: ResolveFlags) -> Result<OwnedFd, Errno> {
        let path = if path == "/" { "." } else { path };
        for _ in 0..ATTEMPTS {
            match rustix::fs::openat2(self.0, path, flags | OFlags::CLOEXEC, Mode::empty(), how) {
                Err(Errno::AGAIN | Errno::INTR) => {}
                result => return result,
            }
        }
        Err(Errno::AGAIN)
    }

    /// Whether what was found lies in the root and in no trusted place. Shared memory is no such place: images have
    /// links to it.
    fn is_elsewhere(&self, found: &OwnedFd) -> Result<bool, Errno> {
        let (root, found) = (name_of(self.0)?, name_of(found.as_fd())?);
        let Some(inside) = found.strip_prefix(root.strip_suffix('/').unwrap_or(&root)) else {
            return Ok(false);
        };
        Ok(!is_trusted(inside) || inside == "/dev/shm" || inside.starts_with("/dev/shm/"))
    }

    /// A directory, made with its parents where missing.
    ///
    /// # Errors
    /// A part is no directory, is a refused link, or cannot be made.
    pub fn make_dir(&self, path: &str, links: Links) -> Outcome<OwnedFd> {
        let path = clean(path);
        match self.open(&path, OFlags::PATH | OFlags::DIRECTORY, links) {
            Err(Errno::NOENT) => {}
            result => {
                return result.because(|| format!("cannot open directory `{path}` in the root filesystem"));
            }
        }
        let (parent, name) = self.parent(&path, links)?;
        let what = || format!("cannot make directory `{path}` in the root filesystem");
        match rustix::fs::mkdirat(&parent, name.as_str(), Mode::from_raw_mode(0o755)) {
            Ok(()) | Err(Errno::EXIST) => {}
            Err(error) => return Err(error).because(what),
        }
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        rustix::fs::openat(&parent, name.as_str(), flags, Mode::empty()).because(what)
    }

    /// Something to mount a file on: what is there, or a new empty file.
    ///
    /// # Errors
    /// As [`RootDir::make_dir`].
    pub fn make_file(&self, path: &str, links: Links) -> Outcome<OwnedFd> {
        let path = clean(path);
        match self.open(&path, OFlags::PATH, links) {
            Err(Errno::NOENT) => {}
            result => {
                return result.because(|| format!("cannot open `{path}` in the root filesystem"));
            }
        }
        let (parent, name) = self.parent(&path, links)?;
        let what = || format!("cannot make file `{path}` in the root filesystem");
        let flags = OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::WRONLY | OFlags::CLOEXEC;
        match rustix::fs::openat(&parent, name.as_str(), flags, Mode::from_raw_mode(0o644)) {
            Ok(_) | Err(Errno::EXIST) => {}
            Err(error) => return Err(error).because(what),
        }
        let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        rustix::fs::openat(&parent, name.as_str(), flags, Mode::empty()).because(what)
    }

    /// The directory that holds a path, made where missing, and the last name.
    ///
    /// # Errors
    /// As [`RootDir::make_dir`].
    pub fn parent(&self, path: &str, links: Links) -> Outcome<(OwnedFd, String)> {
        let path = clean(path);
        let (parent, name) = path.rsplit_once('/').unwrap_or(("", &path));
        let parent = if parent.is_empty() { "/" } else { parent };
        Ok((self.make_dir(parent, links)?, name.to_owned()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;
    use std::os::unix::fs::symlink;

    #[test]
    fn cleaning() {
        for (path, want) in
            [("/", "/"), ("", "/"), ("/a//b/./c/", "/a/b/c"), ("/a/../../b", "/b"), ("a/b", "/a/b"), ("/..", "/")]
        {
            assert_eq!(clean(path), want, "{path:?}");
        }
    }

    #[test]
    fn no_link_leads_to_a_trusted_place() {
        let inside = tempfile::tempdir().expect("a directory");
        for place in ["proc/sys", "dev/shm/x", "sys", "data"] {
            fs::create_dir_all(inside.path().join(place)).expect("a directory");
        }
        for (link, target) in [("p", "/proc"), ("up", "data/../proc"), ("d", "dev"), ("s", "/dev/shm"), ("x", "/data")]
        {
            symlink(target, inside.path().join(link)).expect("a link");
        }
        let fd = fs::File::open(inside.path()).expect("the root");
        let root = RootDir(fd.as_fd());
        for (path, good) in [
            ("/data", true),
            ("/x", true),
            ("/x/deep/er", true),
            ("/s/x", true),
            ("/s/y", true),
            ("/p", false),
            ("/p/sys", false),
            ("/p/new", false),
            ("/up/sys", false),
            ("/d", false),
            ("/d/null", false),
        ] {
            assert_eq!(root.make_dir(path, Links::for_path(path)).is_ok(), good, "{path}");
        }
        assert!(!inside.path().join("proc/new").exists() && !inside.path().join("dev/null").exists());
    }

    #[test]
    fn links_stay_inside_or_are_refused() {
        let outside = tempfile::tempdir().expect("a directory");
        let inside = tempfile::tempdir().expect("a directory");
        symlink(outside.path(), inside.path().join("etc")).expect("a link");
        symlink("/nowhere", inside.path().join("proc")).expect("a link");
        symlink("real", inside.path().join("alias")).expect("a link");
        fs::create_dir(inside.path().join("real")).expect("a directory");
        let fd = fs::File::open(inside.path()).expect("the root");
        let root = RootDir(fd.as_fd());
        // An absolute link is resolved from the container's root, where its target does not exist: the dangling last
        // part is refused rather than created through.
        assert!(root.make_dir("/etc", Links::Follow).is_err());
        assert!(root.make_dir("/etc/x", Links::Follow).is_err());
        assert!(root.make_file("/etc", Links::Follow).is_ok_and(|fd| {
            rustix::fs::fstat(fd).is_ok_and(|stat| rustix::fs::FileType::from_raw_mode(stat.st_mode).is_symlink())
        }));
        assert!(root.make_dir("/proc", Links::for_path("/proc")).is_err());
        assert!(root.make_dir("/alias/deep/er", Links::Follow).is_ok());
        assert!(inside.path().join("real/deep/er").is_dir());
        assert!(root.make_dir("/alias/other", Links::Refuse).is_err());
        root.make_dir("/../../up", Links::Follow).expect("`..` stops at the root");
        assert!(inside.path().join("up").is_dir());
        root.make_file("/a/b/file", Links::Follow).expect("a file with its parents");
        assert!(inside.path().join("a/b/file").is_file());
        assert_eq!(fs::read_dir(outside.path()).expect("outside").count(), 0, "nothing was made outside");
    }
}
