//! Programs of the operator that run at points of a container's life, with its state on their standard input.

use crate::config::Hook;
use crate::error::{Because, Failure, Outcome};
use crate::sys::clone;
use rustix::event::{PollFd, PollFlags, Timespec};
use std::io::{Read, Seek, SeekFrom, Write};
use std::os::fd::AsFd;
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::process::{Child, Command, Stdio};

/// How much of a failed hook's output is shown.
const OUTPUT_SHOWN: u64 = 2048;

/// Run the hooks of one point, in order.
///
/// # Errors
/// The first that cannot be run, fails, or takes longer than its timeout.
pub fn run(point: &'static str, hooks: &[Hook], state: &str) -> Outcome<()> {
    for (index, hook) in hooks.iter().enumerate() {
        run_one(hook, state).map_err(|mut failure| {
            failure.what = format!("hook $.hooks.{point}[{index}] `{}` {}", hook.path, failure.what);
            failure
        })?;
    }
    Ok(())
}

fn run_one(hook: &Hook, state: &str) -> Outcome<()> {
    let what = || "cannot be run".to_owned();
    // A memory file, and not a pipe: a child the hook leaves behind may keep it open as long as it likes.
    let output = rustix::fs::memfd_create("hook-output", rustix::fs::MemfdFlags::CLOEXEC).because(what)?;
    let mut output = std::fs::File::from(output);
    let copy = || output.try_clone().map(Stdio::from);
    let mut command = Command::new(&hook.path);
    if let Some((name, rest)) = hook.args.split_first() {
        command.arg0(name).args(rest);
    }
    command.env_clear().envs(hook.env.iter().filter_map(|entry| entry.split_once('=')));
    command.stdin(Stdio::piped()).stdout(copy().because(what)?).stderr(copy().because(what)?).process_group(0);
    let mut child = command.spawn().because(what)?;
    if let Some(mut input) = child.stdin.take() {
        // A hook that does not read its input is fine.
        let _ = input.write_all(state.as_bytes());
    }
    let status = match wait(&mut child, hook.timeout)? {
        Some(status) => status,
        None => {
            return Err(Failure::new(format!("took longer than its timeout of {} s", hook.timeout.unwrap_or(0))));
        }
    };
    if status.success() {
        return Ok(());
    }
    let how = match (status.code(), status.signal()) {
        (Some(code), _) => format!("failed with exit code {code}"),
        (_, Some(signal)) => format!("died of signal {signal}"),
        _ => "failed".to_owned(),
    };
    let failure = Failure::new(how);
    match said(&mut output) {
        Some(text) => Err(Failure { cause: Some(text), ..failure }),
        None => Err(failure),
    }
}

/// The last lines a hook wrote.
fn said(output: &mut std::fs::File) -> Option<String> {
    let length = output.metadata().ok()?.len();
    output.seek(SeekFrom::Start(length.saturating_sub(OUTPUT_SHOWN))).ok()?;
    let mut bytes = Vec::new();
    output.take(OUTPUT_SHOWN).read_to_end(&mut bytes).ok()?;
    let text = String::from_utf8_lossy(&bytes).trim().replace('\n', "; ");
    (!text.is_empty()).then_some(text)
}

/// The status of a child, or `None` after it was killed for its timeout.
fn wait(child: &mut Child, timeout: Option<i64>) -> Outcome<Option<std::process::ExitStatus>> {
    let what = || "cannot be waited for".to_owned();
    let in_time = match timeout {
        None => true,
        Some(seconds) => {
            let pidfd = clone::pidfd_open(child.id() as i32).because(what)?;
            let limit = Timespec { tv_sec: seconds, tv_nsec: 0 };
            let mut fds = [PollFd::from_borrowed_fd(pidfd.as_fd(), PollFlags::IN)];
            rustix::event::poll(&mut fds, Some(&limit)).because(what)? > 0
        }
    };
    if !in_time && let Some(group) = rustix::process::Pid::from_raw(child.id() as i32) {
        let _ = rustix::process::kill_process_group(group, rustix::process::Signal::KILL);
    }
    let status = child.wait().because(what)?;
    Ok(in_time.then_some(status))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shell(script: &str, timeout: Option<i64>) -> Hook {
        let args = ["sh", "-c", script].map(str::to_owned).to_vec();
        Hook { path: "/bin/sh".to_owned(), args, env: vec!["A=b".to_owned()], timeout }
    }

    #[test]
    fn hooks_succeed_fail_and_time_out() {
        for (why, hook, want) in [
            ("reads the state", shell("read state; [ \"$state\" = '{\"id\":\"x\"}' ]", None), ""),
            ("ignores the state", shell("exit 0", None), ""),
            ("has only its own environment", shell("[ \"$A\" = b ] && [ -z \"$HOME\" ]", None), ""),
            (
                "fails",
                shell("echo no luck >&2; exit 3", None),
                "hook $.hooks.poststop[0] `/bin/sh` failed with exit code 3: no luck",
            ),
            (
                "hangs",
                shell("sleep 60", Some(1)),
                "hook $.hooks.poststop[0] `/bin/sh` took longer than its timeout of 1 s",
            ),
        ] {
            let got =
                run("poststop", &[hook], "{\"id\":\"x\"}\n").err().map_or(String::new(), |error| error.to_string());
            assert_eq!(got, want, "{why}");
        }
    }
}
