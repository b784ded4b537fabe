//! Our own program file, out of reach of containers.
//!
//! While a process of ours is inside a container, `/proc/PID/exe` leads there, and a root of the container that is the
//! host's root as well could write through it (CVE-2019-5736). Hiding is not enough: the image may let us execute
//! `/proc/self/exe` as its program or as the `#!` of it, and with `CAP_SYS_PTRACE` every process can be looked into.
//! So whatever enters a container is executed from a view of the file that nobody can write through: a read-only mount
//! of it that is attached nowhere and goes with its last user. Where mounting is not allowed, from a sealed copy.

use crate::error::{Because, InStep, Outcome};
use crate::sys::mount::{MountAttr, mount_setattr};
use crate::sys::process;
use rustix::fs::{MemfdFlags, Mode, OFlags, SealFlags, StatVfsMountFlags};
use rustix::mount::OpenTreeFlags;
use std::ffi::CString;
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::OsStringExt;
use std::sync::atomic::{AtomicBool, Ordering};

/// `MOUNT_ATTR_RDONLY`, `MOUNT_ATTR_NOSUID` and `MOUNT_ATTR_NODEV`.
const LOCKED: u64 = 0x1 | 0x2 | 0x4;

/// Whether the first instructions of this program have seen that nobody can write through its file.
static SEEN: AtomicBool = AtomicBool::new(false);

/// Nobody can write through the file that this process runs from: no need to look again.
pub fn was_seen() {
    SEEN.store(true, Ordering::Relaxed);
}

/// Go on from a file that nobody can write through; returns at once when this process does so already.
///
/// # Errors
/// `/proc` is not mounted, or there is neither the right to mount nor memory for a copy.
pub fn ensure() -> Outcome<()> {
    if SEEN.load(Ordering::Relaxed) {
        return Ok(());
    }
    let own = own_file().or_hint("is /proc mounted?").in_step("self-protection")?;
    if is_sealed(&own) {
        return Ok(());
    }
    let what = || "cannot protect our own program file".to_owned();
    let arguments: Vec<CString> = std::env::args_os()
        .map(|argument| CString::new(argument.into_vec()))
        .collect::<Result<_, _>>()
        .because(what)
        .in_step("self-protection")?;
    let sealed = read_only_mount(&own).or_else(|_| sealed_copy(own)).because(what).in_step("self-protection")?;
    let error = process::execute_again(sealed.as_fd(), &arguments);
    Err(error).because(|| "cannot execute our own program file".to_owned()).in_step("self-protection")
}

fn own_file() -> Outcome<OwnedFd> {
    rustix::fs::open("/proc/self/exe", OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty())
        .because(|| "cannot open our own program file".to_owned())
}

fn is_sealed(file: &OwnedFd) -> bool {
    let read_only = rustix::fs::fstatvfs(file).is_ok_and(|found| found.f_flag.contains(StatVfsMountFlags::RDONLY));
    read_only || rustix::fs::fcntl_get_seals(file).is_ok_and(|seals| seals.contains(SealFlags::WRITE))
}

fn read_only_mount(file: &OwnedFd) -> io::Result<OwnedFd> {
    let flags = OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC | OpenTreeFlags::AT_EMPTY_PATH;
    let tree = rustix::mount::open_tree(file, "", flags)?;
    mount_setattr(tree.as_fd(), false, &MountAttr { set: LOCKED, ..MountAttr::default() })?;
    Ok(tree)
}

fn sealed_copy(file: OwnedFd) -> io::Result<OwnedFd> {
    let flags = MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING;
    // Linux 6.3 and newer may be told to make no copy executable that does not ask for it.
    let copy = rustix::fs::memfd_create("gantry-runtime", flags | MemfdFlags::EXEC)
        .or_else(|_| rustix::fs::memfd_create("gantry-runtime", flags))?;
    let mut target = File::from(copy.try_clone()?);
    io::copy(&mut File::from(file), &mut target)?;
    drop(target);
    let seals = SealFlags::SEAL | SealFlags::SHRINK | SealFlags::GROW | SealFlags::WRITE;
    rustix::fs::fcntl_add_seals(&copy, seals)?;
    Ok(copy)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::fd::AsRawFd;

    #[test]
    fn neither_view_can_be_written_through() {
        for (why, sealed) in [
            ("mount", read_only_mount(&own_file().expect("our file")).expect("root may mount")),
            ("copy", sealed_copy(own_file().expect("our file")).expect("a copy")),
        ] {
            let again = File::open(format!("/proc/self/fd/{}", sealed.as_raw_fd())).expect("it can be read");
            assert!(is_sealed(&OwnedFd::from(again)), "{why}");
            let path = format!("/proc/self/fd/{}", sealed.as_raw_fd());
            let written =
                File::options().write(true).open(path).and_then(|mut file| io::Write::write_all(&mut file, b"x"));
            assert!(written.is_err(), "{why}");
        }
        assert!(!is_sealed(&OwnedFd::from(tempfile::tempfile().expect("a file"))), "an ordinary file is none");
    }
}
