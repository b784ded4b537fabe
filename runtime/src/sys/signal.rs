//! Signals as descriptors, and the mask the container must not inherit.
#![allow(unsafe_code)] // sigprocmask, signalfd, sigaction

use super::{check_int, file};
use crate::error::{Because, Outcome};
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
use std::path::Path;

/// A set of signals.
#[derive(Clone, Copy)]
pub struct SignalSet(libc::sigset_t);

impl SignalSet {
    /// Every signal, except those no process can block and SIGCHLD-free faults that must stay deadly.
    pub fn all_but_faults() -> Self {
        let mut set = Self::empty();
        // SAFETY: `set.0` is an initialised signal set.
        unsafe {
            libc::sigfillset(&raw mut set.0);
            for fault in [libc::SIGSEGV, libc::SIGBUS, libc::SIGFPE, libc::SIGILL, libc::SIGABRT, libc::SIGTRAP] {
                libc::sigdelset(&raw mut set.0, fault);
            }
        }
        set
    }

    /// No signal.
    pub fn empty() -> Self {
        // SAFETY: an all-zero sigset_t is a valid value of a plain C structure; sigemptyset then defines it.
        unsafe {
            let mut set: libc::sigset_t = std::mem::zeroed();
            libc::sigemptyset(&raw mut set);
            Self(set)
        }
    }
}

/// Replace the blocked set, returning the former one.
///
/// # Errors
/// None known.
pub fn set_mask(set: &SignalSet) -> io::Result<SignalSet> {
    let mut before = SignalSet::empty();
    // SAFETY: both sets are initialised and live across the call.
    check_int(unsafe { libc::sigprocmask(libc::SIG_SETMASK, &raw const set.0, &raw mut before.0) })?;
    Ok(before)
}

/// `signalfd(2)`, close-on-exec and non-blocking.
///
/// # Errors
/// `EMFILE`, `ENOMEM`.
pub fn signalfd(set: &SignalSet) -> io::Result<OwnedFd> {
    // SAFETY: `set` is initialised; -1 asks for a new descriptor.
    let fd = check_int(unsafe { libc::signalfd(-1, &raw const set.0, libc::SFD_CLOEXEC | libc::SFD_NONBLOCK) })?;
    // SAFETY: created just above, owned by nobody else.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// The next pending signal of a signalfd, or `None`.
///
/// # Errors
/// Those of `read(2)` other than `EAGAIN`.
pub fn next(fd: BorrowedFd<'_>) -> io::Result<Option<i32>> {
    // SAFETY: an all-zero signalfd_siginfo is a valid value of a plain C structure.
    let mut info: libc::signalfd_siginfo = unsafe { std::mem::zeroed() };
    let size = size_of::<libc::signalfd_siginfo>();
    // SAFETY: `info` is writable for `size` bytes.
    let count = unsafe { libc::read(fd.as_raw_fd(), (&raw mut info).cast(), size) };
    if count == size as isize {
        return Ok(Some(info.ssi_signo as i32));
    }
    let error = io::Error::last_os_error();
    match error.kind() {
        io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted => Ok(None),
        _ => Err(error),
    }
}

/// Signals this process ignores because its caller did, one bit each from signal 1 on.
///
/// # Errors
/// `/proc` is not mounted.
pub fn ignored() -> Outcome<u64> {
    let what = || "cannot read `/proc/self/status`".to_owned();
    let mut buffer = [0; 4096];
    let count = file::read_once(Path::new("/proc/self/status"), &mut buffer).because(what)?;
    let line = buffer[..count].split(|&byte| byte == b'\n').find_map(|line| line.strip_prefix(b"SigIgn:"));
    let digits = line.and_then(|line| std::str::from_utf8(line).ok()).unwrap_or("").trim();
    u64::from_str_radix(digits, 16).because(what)
}

/// Reset ignored signals to their default action, as a program expects that has just been executed; handlers go with
/// the exec.
pub fn stop_ignoring(ignored: u64) {
    (1..=64).filter(|signal| ignored >> (signal - 1) & 1 == 1).for_each(reset_handler);
}

/// Reset a signal to its default action. By system call: glibc refuses to touch the two signals it keeps for itself,
/// which a caller may have left ignored.
pub fn reset_handler(signal: i32) {
    /// The kernel's `struct sigaction`, all zero: `SIG_DFL`, no flags, nothing blocked.
    #[repr(C)]
    struct Default([u64; 4]);
    let default = Default([0; 4]);
    // SAFETY: `default` is at least as large as the kernel's structure and installs no code of ours; a signal that
    // cannot be changed returns an error, which is right.
    unsafe {
        libc::syscall(libc::SYS_rt_sigaction, signal, &raw const default, std::ptr::null::<u8>(), size_of::<u64>());
    }
}

/// Names of the standard signals, without `SIG`.
const NAMES: &[(&str, i32)] = &[
    ("HUP", libc::SIGHUP),
    ("INT", libc::SIGINT),
    ("QUIT", libc::SIGQUIT),
    ("ILL", libc::SIGILL),
    ("TRAP", libc::SIGTRAP),
    ("ABRT", libc::SIGABRT),
    ("IOT", libc::SIGIOT),
    ("BUS", libc::SIGBUS),
    ("FPE", libc::SIGFPE),
    ("KILL", libc::SIGKILL),
    ("USR1", libc::SIGUSR1),
    ("SEGV", libc::SIGSEGV),
    ("USR2", libc::SIGUSR2),
    ("PIPE", libc::SIGPIPE),
    ("ALRM", libc::SIGALRM),
    ("TERM", libc::SIGTERM),
    ("STKFLT", libc::SIGSTKFLT),
    ("CHLD", libc::SIGCHLD),
    ("CLD", libc::SIGCHLD),
    ("CONT", libc::SIGCONT),
    ("STOP", libc::SIGSTOP),
    ("TSTP", libc::SIGTSTP),
    ("TTIN", libc::SIGTTIN),
    ("TTOU", libc::SIGTTOU),
    ("URG", libc::SIGURG),
    ("XCPU", libc::SIGXCPU),
    ("XFSZ", libc::SIGXFSZ),
    ("VTALRM", libc::SIGVTALRM),
    ("PROF", libc::SIGPROF),
    ("WINCH", libc::SIGWINCH),
    ("IO", libc::SIGIO),
    ("POLL", libc::SIGIO),
    ("PWR", libc::SIGPWR),
    ("SYS", libc::SIGSYS),
];

/// Lowest and highest real-time signal that programs may use under glibc.
const REALTIME: (i32, i32) = (34, 64);

/// A signal from its number, `NAME`, `SIGNAME`, `RTMIN+n` or `RTMAX-n`; upper and lower case are the same.
pub fn parse(text: &str) -> Option<i32> {
    if let Ok(number) = text.parse::<i32>() {
        return (0..=64).contains(&number).then_some(number);
    }
    let upper = text.to_ascii_uppercase();
    let name = upper.strip_prefix("SIG").unwrap_or(&upper);
    if let Some(&(_, number)) = NAMES.iter().find(|(known, _)| *known == name) {
        return Some(number);
    }
    let number = if let Some(rest) = name.strip_prefix("RTMIN") {
        let above = if rest.is_empty() { 0 } else { rest.strip_prefix('+')?.parse::<i32>().ok()? };
        REALTIME.0.checked_add(above)?
    } else if let Some(rest) = name.strip_prefix("RTMAX") {
        let below = if rest.is_empty() { 0 } else { rest.strip_prefix('-')?.parse::<i32>().ok()? };
        REALTIME.1.checked_sub(below)?
    } else {
        return None;
    };
    (REALTIME.0..=REALTIME.1).contains(&number).then_some(number)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn signals_by_name_and_number() {
        for (text, want) in [
            ("9", Some(9)),
            ("KILL", Some(9)),
            ("SIGKILL", Some(9)),
            ("sigterm", Some(15)),
            ("0", Some(0)),
            ("SIGRTMIN", Some(34)),
            ("RTMIN+3", Some(37)),
            ("RTMAX-1", Some(63)),
            ("RTMAX-99", None),
            ("RTMIN+2147483647", None),
            ("65", None),
            ("-1", None),
            ("SIG", None),
            ("NOPE", None),
            ("", None),
        ] {
            assert_eq!(parse(text), want, "{text:?}");
        }
    }
}
