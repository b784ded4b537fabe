//! Programs of the operator that run at points of a container's life, with its state on their standard input.
//!
//! A hook gets nothing of ours but what the specification names: its arguments, its environment, the state, and
//! descriptors 0 to 2; signals are as in a fresh process. About a hook without the key `env` the specification is silent:
//! as with runc and crun it has the runtime's environment, and one of `startContainer` that of the program. Input and output are memory files and not pipes, so that a
//! hook that never reads, and a child that it leaves behind with its output open, keep nobody waiting.

use super::channel::{Channel, Message};
use crate::config::Hook;
use crate::error::{Because, Failure, Outcome};
use crate::sys::clone::{self, Exit, Side};
use crate::sys::{process, signal};
use rustix::event::{PollFd, PollFlags, Timespec};
use std::ffi::{CString, OsString};
use std::fs::File;
use std::io::{Read, Seek, SeekFrom, Write};
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::ffi::OsStrExt;
use std::time::{Duration, Instant};

/// How much of a failed hook's output is shown.
const OUTPUT_SHOWN: u64 = 2048;

/// Run the hooks of one point, in order.
///
/// # Errors
/// The first that cannot be run, fails, or takes longer than its timeout.
pub fn run(point: &'static str, hooks: &[Hook], state: &str) -> Outcome<()> {
    run_with(point, hooks, state, &inherited(), &|| Ok(()))
}

/// The environment of this process.
fn inherited() -> Vec<CString> {
    // Without zero bytes and with an equals sign: that is how the kernel gave it to us.
    let entry = |(name, value): (OsString, OsString)| [name.as_bytes(), value.as_bytes()].join(&b'=');
    std::env::vars_os().filter_map(|pair| CString::new(entry(pair)).ok()).collect()
}

/// The same, with something to do in the hook's process before it becomes the hook.
///
/// - `environment`: for hooks that have none of their own.
///
/// # Errors
/// As [`run`], or that fails.
pub fn run_with(
    point: &'static str,
    hooks: &[Hook],
    state: &str,
    environment: &[CString],
    before: &dyn Fn() -> Outcome<()>,
) -> Outcome<()> {
    for (index, hook) in hooks.iter().enumerate() {
        named(run_one(hook, state, environment, before), point, index, hook)?;
    }
    Ok(())
}

/// Run all hooks of one point, whatever becomes of the others; returns what failed.
pub fn run_each(point: &'static str, hooks: &[Hook], state: &str) -> Vec<Failure> {
    let environment = inherited();
    let failed = |(index, hook)| named(run_one(hook, state, &environment, &|| Ok(())), point, index, hook).err();
    hooks.iter().enumerate().filter_map(failed).collect()
}

/// Say which hook it was.
fn named(result: Outcome<()>, point: &'static str, index: usize, hook: &Hook) -> Outcome<()> {
    result.map_err(|mut failure| {
        failure.what = format!("error running hook $.hooks.{point}[{index}]: `{}` {}", hook.path, failure.what);
        // Not the code of a program that is not there: that means the container's.
        failure.code(crate::error::FAILED)
    })
}

/// A file in memory.
fn memory_file(name: &str) -> std::io::Result<File> {
    Ok(File::from(rustix::fs::memfd_create(name, rustix::fs::MemfdFlags::CLOEXEC)?))
}

fn run_one(hook: &Hook, state: &str, environment: &[CString], before: &dyn Fn() -> Outcome<()>) -> Outcome<()> {
    let what = || "cannot be run".to_owned();
    let mut input = memory_file("hook-input").because(what)?;
    input.write_all(state.as_bytes()).and_then(|()| input.rewind()).because(what)?;
    let mut output = memory_file("hook-output").because(what)?;
    let program = Program::of(hook, environment)?;
    let (ours, theirs) = Channel::pair()?;
    let (pid, pidfd) = match clone::clone3(0, None).because(what)? {
        Side::Child => {
            drop(ours);
            let failure = match program.become_it(input.as_fd(), output.as_fd(), before) {
                Ok(never) => match never {},
                Err(failure) => failure,
            };
            let _ = theirs.send(&Message::Failed(failure));
            process::exit_now(1)
        }
        Side::Parent { pid, pidfd } => (pid, pidfd),
    };
    drop((theirs, input));
    let started = ours.receive();
    let ended = wait(pidfd.as_fd(), pid, hook.timeout)?;
    match started? {
        Message::End => {}
        Message::Failed(failure) => return Err(failure),
        _ => return Err(Failure::new("sent a message out of order")),
    }
    let failure = match ended {
        Some(Exit::Code(0)) => return Ok(()),
        Some(Exit::Code(code)) => Failure::new(format!("failed with exit code {code}")),
        Some(Exit::Signal(signal)) => Failure::new(format!("died of signal {signal}{}", in_words(signal))),
        None => Failure::new(format!("took longer than its timeout of {} s", hook.timeout.unwrap_or(0))),
    };
    Err(Failure { cause: said(&mut output), ..failure })
}

/// What usual signals mean, in the words of a shell.
fn in_words(signal: i32) -> &'static str {
    match signal {
        libc::SIGABRT => " (aborted)",
        libc::SIGBUS => " (bus error)",
        libc::SIGILL => " (illegal instruction)",
        libc::SIGKILL => " (killed)",
        libc::SIGSEGV => " (segmentation fault)",
        libc::SIGSYS => " (bad system call)",
        libc::SIGTERM => " (terminated)",
        _ => "",
    }
}

/// A hook as `execve` takes it.
struct Program {
    path: CString,
    arguments: Vec<CString>,
    environment: Vec<CString>,
}

impl Program {
    fn of(hook: &Hook, inherited: &[CString]) -> Outcome<Self> {
        let text = |text: &String| {
            CString::new(text.as_str()).because(|| format!("has a zero byte in `{}`", text.escape_debug()))
        };
        let path = text(&hook.path)?;
        let arguments = match hook.args.as_slice() {
            [] => vec![path.clone()],
            list => list.iter().map(text).collect::<Outcome<_>>()?,
        };
        let environment = match &hook.env {
            Some(list) => list.iter().map(text).collect::<Outcome<_>>()?,
            None => inherited.to_vec(),
        };
        Ok(Self { path, arguments, environment })
    }

    /// In the new process: become the hook. Returns only on failure.
    fn become_it(
        &self,
        input: BorrowedFd<'_>,
        output: BorrowedFd<'_>,
        before: &dyn Fn() -> Outcome<()>,
    ) -> Outcome<std::convert::Infallible> {
        let what = || "cannot be run".to_owned();
        // With those that it starts, a group of its own, which a timeout ends as a whole.
        rustix::process::setpgid(None, None).because(what)?;
        process::set_parent_death_signal(libc::SIGKILL).because(what)?;
        for (fd, number) in [(input, 0), (output, 1), (output, 2)] {
            process::dup_to(fd, number).because(what)?;
        }
        before()?;
        process::close_on_exec_from(3).because(what)?;
        // All of them: a hook should not have to know what the caller of its runtime ignores.
        signal::stop_ignoring(u64::MAX);
        signal::set_mask(&signal::SignalSet::empty()).because(what)?;
        Err(process::execve(&self.path, &self.arguments, &self.environment)).because(what)
    }
}

/// The last lines a hook wrote.
fn said(output: &mut File) -> Option<String> {
    let length = output.metadata().ok()?.len();
    output.seek(SeekFrom::Start(length.saturating_sub(OUTPUT_SHOWN))).ok()?;
    let mut bytes = Vec::new();
    output.take(OUTPUT_SHOWN).read_to_end(&mut bytes).ok()?;
    let text = String::from_utf8_lossy(&bytes).trim().replace('\n', "; ");
    (!text.is_empty()).then_some(text)
}

/// How a hook ended, or `None` after it was killed, with its group, for its timeout.
fn wait(pidfd: BorrowedFd<'_>, pid: i32, timeout: Option<i64>) -> Outcome<Option<Exit>> {
    let what = || "cannot be waited for".to_owned();
    let in_time = match timeout {
        None => true,
        Some(seconds) => ends_within(pidfd, Duration::from_secs(seconds.unsigned_abs())).because(what)?,
    };
    if !in_time && let Some(group) = rustix::process::Pid::from_raw(pid) {
        let _ = rustix::process::kill_process_group(group, rustix::process::Signal::KILL);
    }
    let exit = clone::wait(pidfd).because(what)?;
    Ok(in_time.then_some(exit))
}

fn ends_within(pidfd: BorrowedFd<'_>, time: Duration) -> Result<bool, rustix::io::Errno> {
    let start = Instant::now();
    loop {
        let left = time.saturating_sub(start.elapsed());
        let limit =
            Timespec { tv_sec: left.as_secs().min(i64::MAX as u64) as i64, tv_nsec: left.subsec_nanos().into() };
        let mut fds = [PollFd::from_borrowed_fd(pidfd, PollFlags::IN)];
        match rustix::event::poll(&mut fds, Some(&limit)) {
            Err(rustix::io::Errno::INTR) => {}
            result => return result.map(|ready| ready > 0),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn hook(args: &[&str], timeout: Option<i64>) -> Hook {
        let args: Vec<String> = args.iter().map(|&text| text.to_owned()).collect();
        Hook { path: "/bin/sh".to_owned(), args, env: Some(vec!["A=b".to_owned()]), timeout }
    }

    fn shell(script: &str, timeout: Option<i64>) -> Hook {
        hook(&["sh", "-c", script], timeout)
    }

    fn outcome(hook: Hook, state: &str) -> String {
        run("poststop", &[hook], state).err().map_or(String::new(), |error| error.to_string())
    }

    #[test]
    fn hooks_succeed_fail_and_time_out() {
        let absent = Hook { path: "/no/hook".to_owned(), ..Hook::default() };
        for (why, hook, want) in [
            ("reads the state", shell("read state; [ \"$state\" = '{\"id\":\"x\"}' ]", None), ""),
            ("reads it to the end", shell("[ \"$(cat)\" = '{\"id\":\"x\"}' ]", None), ""),
            ("ignores the state", shell("exit 0", None), ""),
            ("has only its own environment", shell("[ \"$(env | grep -v -e PWD -e SHLVL -e _=)\" = A=b ]", None), ""),
            ("gets its arguments", hook(&["zero", "-c", "[ \"$0:$1:$2\" = 'a:b c:' ]", "a", "b c", ""], None), ""),
            ("in time", shell("exit 0", Some(20)), ""),
            ("the longest time", shell("exit 0", Some(i64::MAX)), ""),
            (
                "fails",
                shell("echo no luck >&2; exit 3", None),
                "error running hook $.hooks.poststop[0]: `/bin/sh` failed with exit code 3: no luck",
            ),
            (
                "dies",
                shell("kill -9 $$", None),
                "error running hook $.hooks.poststop[0]: `/bin/sh` died of signal 9 (killed)",
            ),
            (
                "hangs",
                shell("echo waiting; sleep 60", Some(1)),
                "error running hook $.hooks.poststop[0]: `/bin/sh` took longer than its timeout of 1 s: waiting",
            ),
            (
                "is absent",
                absent,
                "error running hook $.hooks.poststop[0]: `/no/hook` cannot be run: no such file or directory",
            ),
        ] {
            assert_eq!(outcome(hook, "{\"id\":\"x\"}\n"), want, "{why}");
        }
    }

    #[test]
    fn a_state_larger_than_any_pipe_and_nobody_reads_it() {
        let state = "x".repeat(4 << 20);
        assert_eq!(outcome(shell("exit 0", None), &state), "");
        assert_eq!(outcome(shell("[ $(wc -c) = 4194304 ]", None), &state), "");
    }

    #[test]
    fn a_child_left_behind_keeps_nobody_waiting() {
        let start = Instant::now();
        assert_eq!(outcome(shell("sleep 20 & exit 0", None), ""), "");
        assert!(start.elapsed() < Duration::from_secs(15));
    }

    #[test]
    fn signals_and_descriptors_are_those_of_a_fresh_process() {
        let script = "grep -q 'SigBlk:.0*$' /proc/self/status && [ $(ls /proc/self/fd | wc -l) = 4 ]";
        let blocked = signal::SignalSet::all_but_faults();
        signal::set_mask(&blocked).expect("this thread's mask");
        let got = outcome(shell(script, None), "");
        signal::set_mask(&signal::SignalSet::empty()).expect("this thread's mask");
        assert_eq!(got, "");
    }
}
