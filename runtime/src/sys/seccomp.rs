//! Load a classic BPF filter with `seccomp(2)`.
#![allow(unsafe_code)] // raw seccomp

use super::check;
use std::io;
use std::os::fd::{FromRawFd, OwnedFd};

/// One classic BPF instruction, `struct sock_filter`.
#[repr(C)]
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Instruction {
    /// Operation.
    pub code: u16,
    /// Instructions to skip when true.
    pub jt: u8,
    /// Instructions to skip when false.
    pub jf: u8,
    /// Constant operand.
    pub k: u32,
}

/// `SECCOMP_FILTER_FLAG_NEW_LISTENER`.
const NEW_LISTENER: u32 = 8;

/// `SECCOMP_SET_MODE_FILTER`; returns the listener when the flags ask for one.
///
/// # Errors
/// `EACCES` without `CAP_SYS_ADMIN` or no_new_privs, `EINVAL` for a bad program or an unknown flag, `EBUSY` when
/// another filter of this process has a listener.
pub fn set_filter(program: &[Instruction], flags: u32) -> io::Result<Option<OwnedFd>> {
    const SECCOMP_SET_MODE_FILTER: libc::c_uint = 1;
    #[repr(C)]
    struct Program {
        length: u16,
        filter: *const Instruction,
    }
    let length = u16::try_from(program.len()).map_err(|_| io::Error::from_raw_os_error(libc::E2BIG))?;
    let program = Program { length, filter: program.as_ptr() };
    // SAFETY: `Program` is `struct sock_fprog`, its pointer and length come from one live slice of `sock_filter`.
    let result =
        check(unsafe { libc::syscall(libc::SYS_seccomp, SECCOMP_SET_MODE_FILTER, flags, &raw const program) })?;
    if flags & NEW_LISTENER == 0 {
        return Ok(None);
    }
    // SAFETY: with this flag the call returns a descriptor it has just made, and nothing else holds it.
    Ok(Some(unsafe { OwnedFd::from_raw_fd(result as i32) }))
}
