//! System calls that neither nix nor rustix wrap: clone3, and what a child does between clone and exec.
//!
//! No policy here: descriptors and flags in, `io::Result` out.
#![allow(unsafe_code)] // this module only

use nix::sys::signal::{SigHandler, Signal};
use std::ffi::CString;
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::process::CommandExt;
use std::process::Command;

/// New namespaces of every kind but user and cgroup. (A cgroup namespace is rooted where its maker is, so the child
/// makes its own after it has joined its cgroups.)
pub const NODE_NAMESPACES: u64 =
    (libc::CLONE_NEWNET | libc::CLONE_NEWNS | libc::CLONE_NEWPID | libc::CLONE_NEWUTS | libc::CLONE_NEWIPC) as u64;
/// A time namespace, Linux 5.6; the bit lies where clone(2) keeps the exit signal, so only clone3 takes it.
pub const NEW_TIME: u64 = 0x80;
/// A network namespace.
pub const NEW_NET: u64 = libc::CLONE_NEWNET as u64;

/// A program to start detached.
#[derive(Debug)]
pub struct Detached<'a> {
    /// Namespaces to make.
    pub namespaces: u64,
    /// Program, and arguments after it.
    pub argv: &'a [CString],
    /// `KEY=VALUE`.
    pub environment: &'a [CString],
    /// Standard input.
    pub stdin: BorrowedFd<'a>,
    /// Standard output.
    pub stdout: BorrowedFd<'a>,
    /// Standard error.
    pub stderr: BorrowedFd<'a>,
}

/// `clone3(2)` and exec in a session of its own, with no other descriptor than the three given.
///
/// A program that cannot be executed exits with 127 after a line on its standard error.
///
/// # Errors
/// `EPERM` without the right to make namespaces, `EINVAL` for a kind the kernel lacks, `ENOSPC` at a limit of them.
pub fn spawn(program: &Detached<'_>) -> io::Result<(i32, OwnedFd)> {
    let pointers = |texts: &[CString]| {
        texts.iter().map(|text| text.as_ptr()).chain([std::ptr::null()]).collect::<Vec<*const libc::c_char>>()
    };
    let (argv, environment) = (pointers(program.argv), pointers(program.environment));
    let streams = [program.stdin.as_raw_fd(), program.stdout.as_raw_fd(), program.stderr.as_raw_fd()];
    let mut pidfd: RawFd = -1;
    // SAFETY: `clone_args` is a C struct of integers, for which all zeros is a valid value.
    let mut arguments: libc::clone_args = unsafe { std::mem::zeroed() };
    arguments.flags = program.namespaces | libc::CLONE_PIDFD as u64;
    arguments.pidfd = (&raw mut pidfd) as u64;
    arguments.exit_signal = libc::SIGCHLD as u64;
    // SAFETY: without CLONE_VM the child gets a copy of this memory, so both sides go on as after fork(2). `arguments`
    // and `pidfd` live until the call returns. The child runs only `exec_in_child`, which never returns.
    let pid = unsafe {
        libc::syscall(libc::SYS_clone3, (&raw mut arguments).cast::<libc::c_void>(), size_of::<libc::clone_args>())
    };
    match pid {
        -1 => Err(io::Error::last_os_error()),
        // SAFETY: both arrays end with a null pointer and point into `program`, which the child has a copy of.
        0 => unsafe { exec_in_child(&argv, &environment, streams) },
        // SAFETY: the kernel put a new descriptor there because of CLONE_PIDFD; nothing else holds it.
        pid => Ok((pid as i32, unsafe { OwnedFd::from_raw_fd(pidfd) })),
    }
}

/// # Safety
/// Only in a fresh child; both arrays hold pointers to NUL-ended strings and end with a null pointer. Only
/// async-signal-safe calls are made.
unsafe fn exec_in_child(argv: &[*const libc::c_char], environment: &[*const libc::c_char], streams: [RawFd; 3]) -> ! {
    // SAFETY: plain system calls on integers, on pointers to live arrays (the caller's promise), and on `mask`, which
    // sigemptyset initialises.
    unsafe {
        libc::setsid();
        libc::chdir(c"/".as_ptr());
        // Lift them above 2 first: one of them may sit where another must go.
        let lifted = streams.map(|fd| libc::fcntl(fd, libc::F_DUPFD, 10));
        for (target, fd) in lifted.into_iter().enumerate() {
            libc::dup2(fd, target as i32);
        }
        libc::syscall(libc::SYS_close_range, 3u32, u32::MAX, 0u32);
        let mut mask: libc::sigset_t = std::mem::zeroed();
        libc::sigemptyset(&raw mut mask);
        libc::sigprocmask(libc::SIG_SETMASK, &raw const mask, std::ptr::null_mut());
        libc::execve(argv[0], argv.as_ptr(), environment.as_ptr());
        let text = b"gantry: cannot execute itself\n";
        libc::write(2, text.as_ptr().cast(), text.len());
        libc::_exit(127)
    }
}

/// Makes the command's child start with no signal blocked (std hands the mask down), and end when this process ends
/// if `bound` is set.
pub fn prepare(command: &mut Command, bound: bool) {
    // SAFETY: the closure makes two async-signal-safe system calls and touches no memory but its own `mask`.
    unsafe {
        command.pre_exec(move || {
            let mut mask: libc::sigset_t = std::mem::zeroed();
            libc::sigemptyset(&raw mut mask);
            libc::sigprocmask(libc::SIG_SETMASK, &raw const mask, std::ptr::null_mut());
            if bound && libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL) != 0 {
                return Err(io::Error::last_os_error());
            }
            Ok(())
        });
    }
}

/// `setns(2)` with a pidfd: all the namespaces named by `kinds` at once, Linux 5.8.
///
/// # Errors
/// `ESRCH` when the process is gone, `EUSERS` for a time namespace when this process has threads.
pub fn enter(pidfd: BorrowedFd<'_>, kinds: u64) -> io::Result<()> {
    // SAFETY: two integers by value; the kernel reads and writes no memory of ours.
    match unsafe { libc::setns(pidfd.as_raw_fd(), kinds as libc::c_int) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

/// `sigaction(2)` with a disposition that runs no code of ours (ignore or default).
///
/// # Errors
/// `EINVAL` for SIGKILL and SIGSTOP, or when given a handler.
pub fn on_signal(signal: Signal, disposition: SigHandler) -> io::Result<()> {
    if !matches!(disposition, SigHandler::SigIgn | SigHandler::SigDfl) {
        return Err(io::Error::from_raw_os_error(libc::EINVAL));
    }
    // SAFETY: ignoring or the default action runs no handler, so none can break what signal handlers may do.
    unsafe { nix::sys::signal::signal(signal, disposition) }?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Read;
    use std::os::fd::AsFd;

    #[test]
    fn a_detached_child_has_its_streams_and_nothing_else() {
        let (mut reader, writer) = io::pipe().unwrap();
        let null = std::fs::File::open("/dev/null").unwrap();
        let argv = [c"/bin/sh".to_owned(), c"-c".to_owned(), c"echo $A; ls /proc/self/fd | wc -l".to_owned()];
        let environment = [c"A=b".to_owned(), c"PATH=/usr/bin:/bin".to_owned()];
        let (pid, pidfd) = spawn(&Detached {
            namespaces: 0,
            argv: &argv,
            environment: &environment,
            stdin: null.as_fd(),
            stdout: writer.as_fd(),
            stderr: null.as_fd(),
        })
        .unwrap();
        drop(writer);
        let mut text = String::new();
        reader.read_to_string(&mut text).unwrap();
        rustix::process::waitid(rustix::process::WaitId::PidFd(pidfd.as_fd()), rustix::process::WaitIdOptions::EXITED)
            .unwrap();
        assert!(pid > 0);
        // 0, 1, 2 and the one that `ls` reads the directory with
        assert_eq!(text, "b\n4\n");
    }
}
