//! A procfs that no image can have put anything over: made for one use, attached nowhere.

use super::mounts::new_filesystem;
use super::options::Options;
use crate::error::{Because, Failure, Outcome};
use rustix::fs::{AtFlags, Mode, OFlags, ResolveFlags};
use rustix::io::Errno;
use std::os::fd::{AsFd, OwnedFd};

/// `PROC_SUPER_MAGIC`.
const PROC_MAGIC: u64 = 0x9fa0;
/// Inode of the root of every procfs.
const PROC_ROOT: u64 = 1;

/// Our own view of the current PID namespace.
pub struct Procfs(OwnedFd);

impl Procfs {
    /// Make one. Where a user namespace may not (part of `/proc` is masked there), take the one on `/proc`, if its root
    /// is that of a procfs; what is mounted over anything below is found by never crossing into another mount.
    ///
    /// # Errors
    /// No right to mount, and no procfs on `/proc`.
    pub fn new() -> Outcome<Self> {
        new_filesystem("proc", Some("proc"), &Options::default())
            .or_else(|failure| {
                let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
                let there = rustix::fs::open("/proc", flags, Mode::empty()).map_err(|_| failure.clone())?;
                let magic = rustix::fs::fstatfs(&there).map(|found| found.f_type as u64);
                let inode = rustix::fs::fstat(&there).map(|found| found.st_ino);
                if (magic, inode) == (Ok(PROC_MAGIC), Ok(PROC_ROOT)) { Ok(there) } else { Err(failure) }
            })
            .map(Self)
    }

    fn open(&self, path: &str, flags: OFlags) -> Result<OwnedFd, Errno> {
        let resolve =
            ResolveFlags::BENEATH | ResolveFlags::NO_XDEV | ResolveFlags::NO_MAGICLINKS | ResolveFlags::NO_SYMLINKS;
        rustix::fs::openat2(self.0.as_fd(), path, flags | OFlags::CLOEXEC, Mode::empty(), resolve)
    }

    /// Whether there is such a file.
    ///
    /// # Errors
    /// Other than that there is none.
    pub fn has(&self, path: &str) -> Outcome<bool> {
        match self.open(path, OFlags::PATH) {
            Ok(file) => Ok(rustix::fs::statat(file, "", AtFlags::EMPTY_PATH).is_ok()),
            Err(Errno::NOENT | Errno::NOTDIR) => Ok(false),
            Err(error) => Err(error).because(|| format!("cannot look at `/proc/{path}`")),
        }
    }

    /// Write to a file in it.
    ///
    /// # Errors
    /// The kernel does not have the file or refuses the value.
    pub fn write(&self, path: &str, value: &str) -> Outcome<()> {
        let what = || format!("cannot write `{value}` to `/proc/{path}`");
        let file = self.open(path, OFlags::WRONLY).because(what)?;
        match rustix::io::write(&file, value.as_bytes()).because(what)? {
            count if count == value.len() => Ok(()),
            count => Err(Failure::new(format!("{}: only {count} bytes were taken", what()))),
        }
    }
}
