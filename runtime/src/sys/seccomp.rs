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

const SECCOMP_SET_MODE_FILTER: libc::c_uint = 1;

/// Whether the kernel knows these `SECCOMP_FILTER_FLAG_*`: it looks at them before it looks at the program.
pub fn knows_flags(flags: u32) -> bool {
    // SAFETY: a null program is never followed: the kernel answers EFAULT for good flags and EINVAL for others.
    let result = unsafe { libc::syscall(libc::SYS_seccomp, SECCOMP_SET_MODE_FILTER, flags, std::ptr::null::<u8>()) };
    check(result).is_err_and(|error| error.raw_os_error() == Some(libc::EFAULT))
}

/// `SECCOMP_FILTER_FLAG_NEW_LISTENER`.
const NEW_LISTENER: u32 = 8;

/// `SECCOMP_SET_MODE_FILTER`; returns the listener when the flags ask for one.
///
/// # Errors
/// `EACCES` without `CAP_SYS_ADMIN` or no_new_privs, `EINVAL` for a bad program or an unknown flag, `EBUSY` when
/// another filter of this process has a listener.
pub fn set_filter(program: &[Instruction], flags: u32) -> io::Result<Option<OwnedFd>> {
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
