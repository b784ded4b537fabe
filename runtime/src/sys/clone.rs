//! Make a process: `clone3(2)` with a descriptor for the child, and the namespaces it starts in.
#![allow(unsafe_code)] // raw clone3 and setns

use super::{check, check_int};
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd};

/// `CLONE_INTO_CGROUP`, Linux 5.7. The libc crate's constant is a `c_int` on glibc, where this bit is lost.
const CLONE_INTO_CGROUP: u64 = 0x2_0000_0000;

/// `struct clone_args` from `linux/sched.h`, version 2 (88 bytes).
#[repr(C)]
#[derive(Default)]
struct CloneArgs {
    flags: u64,
    pidfd: u64,
    child_tid: u64,
    parent_tid: u64,
    exit_signal: u64,
    stack: u64,
    stack_size: u64,
    tls: u64,
    set_tid: u64,
    set_tid_size: u64,
    cgroup: u64,
}

/// Which of the two processes is running after [`clone3`].
#[derive(Debug)]
pub enum Side {
    /// The new process.
    Child,
    /// The caller, with the child's number in the caller's PID namespace and a descriptor of it.
    Parent {
        /// Process number as the caller sees it.
        pid: i32,
        /// The child, immune to reuse of its number.
        pidfd: OwnedFd,
    },
}

/// `clone3(2)` without shared memory: a fork into new namespaces, optionally born inside a cgroup2 directory.
///
/// # Errors
/// `EPERM` without the privilege for a namespace, `ENOSYS` before Linux 5.3, `EACCES`/`EOPNOTSUPP`/`EBUSY` when the
/// cgroup cannot take a process.
pub fn clone3(namespaces: u64, cgroup: Option<BorrowedFd<'_>>) -> io::Result<Side> {
    let mut pidfd: libc::c_int = -1;
    let mut args = CloneArgs {
        flags: namespaces | libc::CLONE_PIDFD as u64,
        pidfd: (&raw mut pidfd) as u64,
        exit_signal: libc::SIGCHLD as u64,
        ..CloneArgs::default()
    };
    if let Some(cgroup) = cgroup {
        args.flags |= CLONE_INTO_CGROUP;
        args.cgroup = cgroup.as_raw_fd() as u64;
    }
    // SAFETY: `args` lives across the call and has the size given; without CLONE_VM the child gets a copy of our
    // memory, and this program has one thread, so no lock is held by a thread that is missing in the child.
    let pid = check(unsafe { libc::syscall(libc::SYS_clone3, &raw mut args, size_of::<CloneArgs>()) })?;
    if pid == 0 {
        return Ok(Side::Child);
    }
    // SAFETY: the kernel stored a new descriptor in `pidfd` because of CLONE_PIDFD; nothing else owns it.
    let pidfd = unsafe { OwnedFd::from_raw_fd(pidfd) };
    Ok(Side::Parent { pid: pid as i32, pidfd })
}

/// Like [`clone3`], but the new process is a child of our parent (`CLONE_PARENT`).
///
/// Returns 0 in the new process, its number in the caller.
///
/// # Errors
/// As [`clone3`]; `EINVAL` when the caller is init of a PID namespace.
pub fn clone3_sibling(namespaces: u64) -> io::Result<i32> {
    let mut args = CloneArgs { flags: namespaces | libc::CLONE_PARENT as u64, ..CloneArgs::default() };
    // SAFETY: as in `clone3`; CLONE_PARENT wants an exit signal of zero, which the default gives.
    let pid = check(unsafe { libc::syscall(libc::SYS_clone3, &raw mut args, size_of::<CloneArgs>()) })?;
    Ok(pid as i32)
}

/// `setns(2)`: join the namespaces selected by `kinds`, from a namespace file or a pidfd.
///
/// # Errors
/// `EINVAL` for a wrong kind, `EPERM` without privilege in the owning user namespace.
pub fn setns(fd: BorrowedFd<'_>, kinds: libc::c_int) -> io::Result<()> {
    // SAFETY: two integers by value; the kernel touches no memory of ours.
    check_int(unsafe { libc::setns(fd.as_raw_fd(), kinds) }).map(drop)
}

/// `NS_GET_NSTYPE`: the `CLONE_NEW*` flag of an open namespace file.
///
/// # Errors
/// `ENOTTY` when the file is no namespace.
pub fn namespace_kind(fd: BorrowedFd<'_>) -> io::Result<libc::c_int> {
    const NS_GET_NSTYPE: libc::c_ulong = 0xb703;
    // SAFETY: the request takes no argument and touches no memory of ours.
    check_int(unsafe { libc::ioctl(fd.as_raw_fd(), NS_GET_NSTYPE as _) })
}

/// `unshare(2)`.
///
/// # Errors
/// `EPERM` without privilege, `EINVAL` for a kind the kernel lacks.
pub fn unshare(kinds: libc::c_int) -> io::Result<()> {
    // SAFETY: one integer by value; only namespaces are unshared, never memory or descriptors of a thread.
    check_int(unsafe { libc::unshare(kinds) }).map(drop)
}

/// `pidfd_open(2)`, Linux 5.3.
///
/// # Errors
/// `ESRCH` when `pid` is gone.
pub fn pidfd_open(pid: i32) -> io::Result<OwnedFd> {
    // SAFETY: two integers by value; the kernel reads and writes no memory of ours.
    let fd = check(unsafe { libc::syscall(libc::SYS_pidfd_open, pid, 0) })?;
    // SAFETY: `fd` was created by the call above and nothing else holds it.
    Ok(unsafe { OwnedFd::from_raw_fd(fd as i32) })
}

/// `pidfd_getfd(2)`, Linux 5.6: a copy of a descriptor that another process has.
///
/// # Errors
/// `EBADF` when it has none of this number, `EPERM` when this process may not trace it.
pub fn pidfd_getfd(pidfd: BorrowedFd<'_>, number: i32) -> io::Result<OwnedFd> {
    // SAFETY: three integers by value.
    let fd = check(unsafe { libc::syscall(libc::SYS_pidfd_getfd, pidfd.as_raw_fd(), number, 0) })?;
    // SAFETY: `fd` was created by the call above and nothing else holds it.
    Ok(unsafe { OwnedFd::from_raw_fd(fd as i32) })
}

/// `pidfd_send_signal(2)`, Linux 5.1.
///
/// # Errors
/// `ESRCH` when the process has been reaped.
pub fn pidfd_send_signal(pidfd: BorrowedFd<'_>, signal: i32) -> io::Result<()> {
    // SAFETY: integers and a null siginfo, which the kernel takes as "fill it as kill(2) does".
    check(unsafe {
        libc::syscall(libc::SYS_pidfd_send_signal, pidfd.as_raw_fd(), signal, std::ptr::null::<libc::siginfo_t>(), 0)
    })
    .map(drop)
}

/// How a child ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Exit {
    /// It returned this code.
    Code(i32),
    /// It died of this signal.
    Signal(i32),
}

impl Exit {
    /// The exit code a shell would show: the code, or 128 + signal.
    pub fn shell_code(self) -> i32 {
        match self {
            Self::Code(code) => code,
            Self::Signal(signal) => 128 + signal,
        }
    }
}

/// `waitid(2)` on a pidfd: reap the child, blocking until it has ended.
///
/// # Errors
/// `ECHILD` when it is not our child.
pub fn wait(pidfd: BorrowedFd<'_>) -> io::Result<Exit> {
    loop {
        // SAFETY: an all-zero siginfo_t is a valid value of a plain C structure.
        let mut info: libc::siginfo_t = unsafe { std::mem::zeroed() };
        let id = pidfd.as_raw_fd() as libc::id_t;
        // SAFETY: `info` is writable and of the type the call wants.
        match check_int(unsafe { libc::waitid(libc::P_PIDFD, id, &raw mut info, libc::WEXITED) }) {
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
            Ok(_) => {
                // SAFETY: after a successful waitid the SIGCHLD member of the union is the valid one.
                let status = unsafe { info.si_status() };
                return Ok(if info.si_code == libc::CLD_EXITED { Exit::Code(status) } else { Exit::Signal(status) });
            }
        }
    }
}
