//! PID 1 of a container whose service asks for one (`init: true`): this same binary, called as `/dev/init -- COMMAND`.
//!
//! It starts the command in a process group of its own, passes signals on, reaps whatever is left to it, and ends as
//! the command ends. It is one thread and makes no runtime: a container should not pay for it.

mod sys;

use crate::error::{NOT_FOUND, NOT_INVOKABLE, NOT_RUN};
use crate::render::out;
use nix::sys::signal::{SigSet, SigmaskHow};
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use std::ffi::OsString;
use std::io;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Child, Command};

/// The command, when this process was called as init.
pub fn called(arguments: impl IntoIterator<Item = OsString>) -> Option<Vec<OsString>> {
    let mut arguments = arguments.into_iter();
    let name = arguments.next()?;
    (Path::new(&name).file_name()? == "init").then(|| {
        let rest: Vec<OsString> = arguments.collect();
        match rest.split_first() {
            Some((first, command)) if first == "--" => command.to_vec(),
            _ => rest,
        }
    })
}

/// Runs the command to its end; returns its exit code, or 128 + the signal that ended it.
pub fn run(command: &[OsString]) -> u8 {
    // Signals are taken in the loop and nowhere else; the command gets its mask back before it is executed.
    let before = match SigSet::all().thread_swap_mask(SigmaskHow::SIG_SETMASK) {
        Ok(before) => before,
        Err(error) => return refuse(&format!("cannot hold signals back: {error}"), NOT_RUN),
    };
    let child = match start(command, before) {
        Ok(child) => child,
        Err((message, code)) => return refuse(&message, code),
    };
    loop {
        match sys::next_signal() {
            libc::SIGCHLD => {
                if let Some(code) = reap(&child) {
                    return code;
                }
            }
            // Ours alone: the terminal stops background readers and writers.
            libc::SIGTTIN | libc::SIGTTOU => {}
            number => pass(&child, number),
        }
    }
}

fn refuse(message: &str, code: u8) -> u8 {
    out::note(format_args!("init: {message}"));
    code
}

fn start(command: &[OsString], mask: SigSet) -> Result<Child, (String, u8)> {
    let Some((program, arguments)) = command.split_first() else {
        return Err(("no command is given".to_owned(), NOT_RUN));
    };
    let mut child = Command::new(program);
    child.args(arguments).process_group(0);
    sys::before_exec(&mut child, mask);
    child.spawn().map_err(|error| {
        let code = match error.kind() {
            io::ErrorKind::NotFound => NOT_FOUND,
            io::ErrorKind::PermissionDenied => NOT_INVOKABLE,
            _ => NOT_RUN,
        };
        (format!("cannot run `{}`: {error}", program.display()), code)
    })
}

fn pass(child: &Child, number: i32) {
    let Ok(pid) = i32::try_from(child.id()) else { return };
    sys::kill(pid, number);
}

/// Reaps all that ended; the exit code when the command is among them.
fn reap(child: &Child) -> Option<u8> {
    let mut code = None;
    loop {
        let (pid, ended) = match waitpid(None, Some(WaitPidFlag::WNOHANG)) {
            Ok(WaitStatus::Exited(pid, code)) => (pid, code),
            Ok(WaitStatus::Signaled(pid, signal, _)) => (pid, 128 + signal as i32),
            Ok(WaitStatus::StillAlive) | Err(_) => return code,
            Ok(_) => continue,
        };
        if u32::try_from(pid.as_raw()) == Ok(child.id()) {
            code = Some(ended.to_le_bytes()[0]);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_name_init_makes_an_init() {
        let words = |line: &str| line.split(' ').map(OsString::from).collect::<Vec<_>>();
        assert_eq!(called(words("/dev/init -- sh -c ls")), Some(words("sh -c ls")));
        assert_eq!(called(words("init sh -- x")), Some(words("sh -- x")));
        assert_eq!(called(words("/usr/bin/gantry init")), None);
        assert_eq!(called(Vec::new()), None);
    }
}
