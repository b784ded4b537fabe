//! The system calls of init that no library wraps as safe.
#![allow(unsafe_code)] // this module only

use nix::sys::signal::SigSet;
use std::io;
use std::os::unix::process::CommandExt;
use std::process::Command;

/// What the command does between fork and exec: takes the terminal, and gets its signal mask back.
pub fn before_exec(command: &mut Command, mask: SigSet) {
    let prepare = move || {
        // The terminal's Ctrl-C is for the command, not for us; without a terminal there is nothing to hand over.
        let _ = rustix::termios::tcsetpgrp(io::stdin(), rustix::process::getpid());
        mask.thread_set_mask().map_err(io::Error::from)
    };
    // SAFETY: between fork and exec the closure makes three system calls (ioctl, getpid, rt_sigprocmask) and
    // allocates nothing.
    unsafe { command.pre_exec(prepare) };
}

/// The next signal sent to this process, by number: real-time signals have no name. sigwait(3).
pub fn next_signal() -> i32 {
    let mut number = 0;
    // SAFETY: the set is initialised and lives through the call, which writes one integer to `number`.
    let failed = unsafe { libc::sigwait(SigSet::all().as_ref(), &raw mut number) };
    assert_eq!(failed, 0, "the set is valid");
    number
}

/// kill(2); a process that has ended meanwhile needs no signal.
pub fn kill(pid: i32, number: i32) {
    // SAFETY: two integers by value; the caller has not reaped its child yet, so the number is not another's.
    unsafe { libc::kill(pid, number) };
}
