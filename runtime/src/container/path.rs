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

/// What to make where nothing is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    Directory,
    File,
}

impl Kind {
    const fn or_file(self) -> &'static str {
        match self {
            Self::Directory => "directory ",
            Self::File => "file ",
        }
    }
}

impl std::fmt::Display for Kind {
    /// With a space behind it, or nothing: what is opened for a file may be of any kind.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(if *self == Self::Directory { "directory " } else { "" })
    }
}

/// Links with nothing behind them, one leading to the next, that are followed.
const LINKS_MAX: u32 = 8;

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
        self.make(&clean(path), Kind::Directory, links, 0)
    }

    /// Something to mount a file on: what is there, or a new empty file.
    ///
    /// # Errors
    /// As [`RootDir::make_dir`].
    pub fn make_file(&self, path: &str, links: Links) -> Outcome<OwnedFd> {
        self.make(&clean(path), Kind::File, links, 0)
    }

    /// Open what is there, or make it; where a link has nothing behind it, make that.
    ///
    /// - `followed`: links of this kind that led here.
    fn make(&self, path: &str, kind: Kind, links: Links, followed: u32) -> Outcome<OwnedFd> {
        let flags = match kind {
            Kind::Directory => OFlags::PATH | OFlags::DIRECTORY,
            Kind::File => OFlags::PATH,
        };
        match self.open(path, flags, links) {
            Err(Errno::NOENT) => {}
            result => {
                let checked = result.and_then(|found| self.check(found, links, followed));
                return checked.because(|| format!("cannot open {kind}`{path}` in the root filesystem")).map_err(
                    |failure| match TRUSTED.iter().any(|place| path.strip_prefix('/') == Some(place)) {
                        true => failure.hint(format!("`{path}` must be mounted on ordinary directory")),
                        false => failure,
                    },
                );
            }
        }
        let what = || format!("cannot make {}`{path}` in the root filesystem", kind.or_file());
        let (above, name) = path.rsplit_once('/').unwrap_or(("", path));
        if matches!(name, "" | "." | "..") {
            return Err(Errno::NOENT).because(what);
        }
        let parent = self.make(if above.is_empty() { "/" } else { above }, Kind::Directory, links, followed)?;
        let made = match kind {
            Kind::Directory => rustix::fs::mkdirat(&parent, name, Mode::from_raw_mode(0o755)),
            Kind::File => {
                let flags = OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::WRONLY | OFlags::CLOEXEC;
                rustix::fs::openat(&parent, name, flags, Mode::from_raw_mode(0o644)).map(drop)
            }
        };
        match made {
            Ok(()) => {}
            Err(Errno::EXIST) => {
                if let Some(target) = self.target_of(&parent, name, links, followed) {
                    let next = if target.starts_with('/') { target } else { format!("{above}/{target}") };
                    return self.make(&next, kind, links, followed + 1);
                }
            }
            Err(error) => return Err(error).because(what),
        }
        let flags = flags | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let found = rustix::fs::openat(&parent, name, flags, Mode::empty());
        found.and_then(|found| self.check(found, links, followed)).because(what)
    }

    /// Where a link points that may be followed and has nothing behind it.
    fn target_of(&self, parent: &OwnedFd, name: &str, links: Links, followed: u32) -> Option<String> {
        if links == Links::Refuse || followed >= LINKS_MAX {
            return None;
        }
        rustix::fs::readlinkat(parent, name, Vec::new()).ok()?.into_string().ok()
    }

    /// What a link led to must be in a place that links may lead to.
    fn check(&self, found: OwnedFd, links: Links, followed: u32) -> Result<OwnedFd, Errno> {
        match followed > 0 && links == Links::Elsewhere && !self.is_elsewhere(&found)? {
            true => Err(Errno::LOOP),
            false => Ok(found),
        }
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
        // An absolute link is resolved from the container's root, where its target does not exist: it is made there.
        root.make_dir("/etc/x", Links::Follow).expect("made inside");
        let made = inside.path().join(outside.path().strip_prefix("/").expect("an absolute path"));
        assert!(made.join("x").is_dir());
        symlink("../etc/../new/file", inside.path().join("real/up")).expect("a link");
        root.make_file("/alias/up", Links::Follow).expect("made where the links lead");
        assert!(made.parent().expect("a parent").join("new/file").is_file(), "by links, not by words");
        symlink("loop", inside.path().join("loop")).expect("a link");
        assert!(root.make_dir("/loop", Links::Follow).is_err());
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
