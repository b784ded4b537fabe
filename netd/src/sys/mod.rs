//! The system calls that no library wraps as safe.
#![allow(unsafe_code)] // this module and those below it only

pub(crate) mod bpf;

use rustix::thread::UnshareFlags;
use std::io;

/// `unshare(2)` of the network namespace, for the calling thread only.
///
/// # Errors
/// `EPERM` without privilege.
pub(crate) fn unshare_network() -> io::Result<()> {
    // SAFETY: only the network namespace of this thread changes; no descriptor table is unshared.
    unsafe { rustix::thread::unshare_unsafe(UnshareFlags::NEWNET) }.map_err(Into::into)
}

/// The same of the mount namespace, too.
///
/// # Errors
/// As there.
#[cfg(test)]
pub(crate) fn unshare_network_and_mounts() -> io::Result<()> {
    // SAFETY: only namespaces and working directory of this thread change; no descriptor table is unshared.
    unsafe { rustix::thread::unshare_unsafe(UnshareFlags::NEWNS | UnshareFlags::NEWNET | UnshareFlags::FS) }
        .map_err(Into::into)
}
