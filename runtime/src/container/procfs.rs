//! A procfs that no image can have put anything over: made for one use, attached nowhere.

use super::mounts::new_filesystem;
use super::options::Options;
use crate::error::{Because, Failure, Outcome};
use rustix::fs::{Mode, OFlags, ResolveFlags};
use std::os::fd::OwnedFd;

/// `PROC_SUPER_MAGIC`.
const PROC_MAGIC: u64 = 0x9fa0;
/// `PROC_ROOT_INO`.
const PROC_ROOT: u64 = 1;

/// Our own view of the current PID namespace.
pub struct Procfs(OwnedFd);

impl Procfs {
    /// Make one.
    ///
    /// # Errors
    /// No right to mount.
    pub fn new() -> Outcome<Self> {
        new_filesystem("proc", Some("proc"), &Options::default()).map(Self)
    }

    /// One of our own, or, for a user namespace that may not mount one (its processes are the host's, or every visible
    /// one has something mounted over parts of it), the one on `/proc`. What is mounted over its files is refused.
    ///
    /// # Errors
    /// Neither is to be had.
    pub fn any() -> Outcome<Self> {
        Self::new().or_else(|failure| Self::mounted().ok_or(failure))
    }

    fn mounted() -> Option<Self> {
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let fd = rustix::fs::open("/proc", flags, Mode::empty()).ok()?;
        let is_proc = rustix::fs::fstatfs(&fd).is_ok_and(|found| found.f_type as u64 == PROC_MAGIC);
        let is_its_root = rustix::fs::fstat(&fd).is_ok_and(|found| found.st_ino == PROC_ROOT);
        (is_proc && is_its_root).then_some(Self(fd))
    }

    /// Write to a file in it.
    ///
    /// # Errors
    /// The kernel does not have the file or refuses the value.
    pub fn write(&self, path: &str, value: &str) -> Outcome<()> {
        let what = || format!("cannot write `{value}` to `/proc/{path}`");
        let resolve =
            ResolveFlags::BENEATH | ResolveFlags::NO_XDEV | ResolveFlags::NO_MAGICLINKS | ResolveFlags::NO_SYMLINKS;
        let file = rustix::fs::openat2(&self.0, path, OFlags::WRONLY | OFlags::CLOEXEC, Mode::empty(), resolve)
            .because(what)?;
        match rustix::io::write(&file, value.as_bytes()).because(what)? {
            count if count == value.len() => Ok(()),
            count => Err(Failure::new(format!("{}: only {count} bytes were taken", what()))),
        }
    }
}

/// Path of a kernel parameter: dots separate, unless slashes do, so that interface names may contain dots.
pub fn parameter_path(name: &str) -> String {
    if name.contains('/') { format!("sys/{name}") } else { format!("sys/{}", name.replace('.', "/")) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parameters() {
        for (name, want) in [
            ("net.ipv4.ip_forward", "sys/net/ipv4/ip_forward"),
            ("net/ipv4/conf/eth0.100/forwarding", "sys/net/ipv4/conf/eth0.100/forwarding"),
        ] {
            assert_eq!(parameter_path(name), want);
        }
    }
}
