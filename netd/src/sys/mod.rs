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
