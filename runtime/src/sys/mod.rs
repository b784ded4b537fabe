//! System calls that the standard library and rustix lack, one thin function each.
//!
//! Descriptors and plain values in, `io::Result` out. No policy, no retry, no log line. All `unsafe` of the
//! runtime lives below this module.

pub mod bpf;
pub mod clone;
pub mod file;
pub mod mount;
pub mod process;
pub mod seccomp;
pub mod shared;
pub mod signal;
pub mod socket;
pub mod tty;

use std::io;

/// Turn a raw system call result into a `Result`, taking `errno` on -1.
fn check(result: libc::c_long) -> io::Result<libc::c_long> {
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(result) }
}

/// [`check`] for calls that return an `int`.
fn check_int(result: libc::c_int) -> io::Result<libc::c_int> {
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(result) }
}
