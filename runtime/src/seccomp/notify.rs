//! Give the listener of a filter to the agent that decides about calls.
//!
//! ```text
//! process                              runtime                          agent
//!   Listener + shared words ─────────►   connects to listenerPath
//!                           ◄───────── Go
//!   loads the filter
//!   words: OFFERED, number               pidfd_getfd(number) ───────────► state as JSON, listener
//!   spins                   ◄── words: TAKEN
//!   execve
//! ```
//! From the load on, every system call of the process may be one that waits for the agent, which does not have the
//! listener yet. So the process makes none: it says through shared memory which descriptor the listener is, and the
//! runtime, which has no filter, takes a copy of it. Where the runtime may not (it takes `CAP_SYS_PTRACE` or the same
//! user), the process sends it over the channel, which works unless the profile forbids `sendmsg`.

use crate::config::Seccomp;
use crate::container::channel::{Channel, Message};
use crate::error::{Because, Failure, InStep, Outcome};
use crate::state::State;
use crate::sys::shared::{self, Words};
use crate::sys::{clone, seccomp, socket};
use rustix::event::{PollFd, PollFlags, Timespec};
use rustix::fs::{Mode, OFlags};
use serde::Serialize;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::path::Path;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

/// Nothing has been offered yet.
const WAITING: u32 = 0;
/// The listener is the descriptor of the second word.
const OFFERED: u32 = 1;
/// The agent has it.
const TAKEN: u32 = 2;
/// It must be sent.
const SEND: u32 = 3;

/// Turns to wait for the runtime: some ten seconds, after which it is gone.
const SPINS_MAX: u64 = 1 << 29;
/// How long an agent, or the kernel on a busy host, may take.
const PATIENCE: Duration = Duration::from_secs(10);

/// What an agent gets with the listener.
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct ContainerProcessState<'a> {
    oci_version: &'a str,
    fds: [&'a str; 1],
    pid: i32,
    #[serde(skip_serializing_if = "str::is_empty")]
    metadata: &'a str,
    state: &'a State,
}

/// Load a filter that has a listener, in the process it is for. Returns when the agent has the listener; from the
/// load until then this makes no system call.
///
/// # Errors
/// There is no agent, or the kernel refuses the filter.
pub fn load(filter: &super::Filter, channel: &Channel) -> Outcome<()> {
    let (words, file) = Words::new().because(|| "cannot share memory with the runtime".to_owned())?;
    channel.send(&Message::Listener(file))?;
    channel.wait_for_go()?;
    let listener = seccomp::set_filter(&filter.program, filter.flags)
        .because(|| "cannot load the filter".to_owned())
        .or_hint("is there another filter with a listener? Linux takes one for a process, from 5.0 on")?
        .ok_or_else(|| Failure::new("the kernel gave no listener"))?;
    words.word(true).store(listener.as_raw_fd() as u32, Ordering::Relaxed);
    words.word(false).store(OFFERED, Ordering::Release);
    for _ in 0..SPINS_MAX {
        match words.word(false).load(Ordering::Acquire) {
            OFFERED => std::hint::spin_loop(),
            SEND => {
                channel.send(&Message::Listener(listener))?;
                std::mem::forget(words);
                return Ok(());
            }
            _ => {
                // The program's execution closes and unmaps; each by itself would be a call.
                std::mem::forget((listener, words));
                return Ok(());
            }
        }
    }
    shared::trap()
}

/// Refuse a profile whose agent cannot be there, before anything is made.
///
/// # Errors
/// The path is no socket.
pub fn check(profile: &Seccomp) -> Outcome<()> {
    let path = profile.listener_path.as_deref().unwrap_or("");
    if !path.starts_with('/') {
        let problem = format!("`{}` is not an absolute path", path.escape_debug());
        return Err(Failure::new(format!("config.json: $.linux.seccomp.listenerPath: {problem}")));
    }
    match std::fs::metadata(path) {
        Ok(metadata) if std::os::unix::fs::FileTypeExt::is_socket(&metadata.file_type()) => Ok(()),
        Ok(_) => Err(no_agent(path, "it is not a socket")),
        Err(error) => Err(no_agent(path, &error.to_string())),
    }
}

fn no_agent(path: &str, cause: &str) -> Failure {
    Failure {
        cause: Some(cause.to_owned()),
        ..Failure::new(format!("$.linux.seccomp.listenerPath: failed to connect with seccomp agent `{path}`"))
            .hint("start the agent that `linux.seccomp.listenerPath` names, or use a profile without SCMP_ACT_NOTIFY")
    }
}

/// The process whose listener an agent gets.
#[derive(Debug, Clone, Copy)]
pub struct Process<'a> {
    /// Descriptor.
    pub pidfd: BorrowedFd<'a>,
    /// Number as the runtime sees it.
    pub pid: i32,
    /// State of its container.
    pub state: &'a State,
}

/// Serve [`load`]: answer the first message of a process about its listener. Ends the process when that fails, since
/// it may be unable to end itself.
///
/// # Errors
/// There is no agent, or it does not take the listener.
pub fn serve(profile: Option<&Seccomp>, process: Process<'_>, channel: &Channel, file: &OwnedFd) -> Outcome<()> {
    let result = match profile {
        Some(profile) => deliver(profile, process, channel, file),
        None => Err(Failure::new("the container's process sent a message out of order")),
    };
    result.in_step("seccomp agent").inspect_err(|_| {
        let _ = clone::pidfd_send_signal(process.pidfd, libc::SIGKILL);
    })
}

fn deliver(profile: &Seccomp, process: Process<'_>, channel: &Channel, file: &OwnedFd) -> Outcome<()> {
    let path = profile.listener_path.as_deref().unwrap_or("");
    let agent = connect(path)?;
    let words = Words::open(file.as_fd()).because(|| "cannot share memory with the container's process".to_owned())?;
    channel.go()?;
    wait_for_offer(&words, channel)?;
    let number = words.word(true).load(Ordering::Relaxed) as i32;
    let listener = match clone::pidfd_getfd(process.pidfd, number) {
        Ok(listener) => listener,
        Err(error) if error.raw_os_error() == Some(libc::EPERM) => {
            words.word(false).store(SEND, Ordering::Release);
            wait(channel, PATIENCE)?;
            match channel.receive()? {
                Message::Listener(listener) => listener,
                Message::Failed(failure) => return Err(failure),
                _ => return Err(cannot_fetch(&error)),
            }
        }
        Err(error) => return Err(error).because(|| "cannot fetch the listener".to_owned()),
    };
    let message = ContainerProcessState {
        oci_version: &process.state.oci_version,
        fds: ["seccompFd"],
        pid: process.pid,
        metadata: profile.listener_metadata.as_deref().unwrap_or(""),
        state: process.state,
    };
    let bytes = serde_json::to_vec(&message).because(|| "cannot encode the state".to_owned())?;
    socket::send_all(agent.as_fd(), &bytes, listener.as_fd())
        .because(|| format!("cannot send the listener to seccomp agent `{path}`"))?;
    words.word(false).store(TAKEN, Ordering::Release);
    Ok(())
}

fn cannot_fetch(error: &std::io::Error) -> Failure {
    Failure { cause: Some(error.to_string()), ..Failure::new("cannot fetch the listener") }
        .hint("give the runtime CAP_SYS_PTRACE, or allow `sendmsg` in the profile without SCMP_ACT_NOTIFY")
}

/// Connect through a descriptor, since socket paths are short and this one may be long.
fn connect(path: &str) -> Outcome<OwnedFd> {
    use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType, sockopt};
    let what = |error: rustix::io::Errno| no_agent(path, &error.to_string());
    let place = rustix::fs::open(Path::new(path), OFlags::PATH | OFlags::CLOEXEC, Mode::empty()).map_err(what)?;
    let socket =
        rustix::net::socket_with(AddressFamily::UNIX, SocketType::STREAM, SocketFlags::CLOEXEC, None).map_err(what)?;
    // Also how long to wait when the agent does not accept.
    sockopt::set_socket_timeout(&socket, sockopt::Timeout::Send, Some(PATIENCE)).map_err(what)?;
    let address = SocketAddrUnix::new(format!("/proc/self/fd/{}", place.as_raw_fd())).map_err(what)?;
    rustix::net::connect(&socket, &address).map_err(what)?;
    Ok(socket)
}

/// Wait until the process has loaded its filter.
fn wait_for_offer(words: &Words, channel: &Channel) -> Outcome<()> {
    let deadline = Instant::now() + PATIENCE;
    while words.word(false).load(Ordering::Acquire) == WAITING {
        if Instant::now() > deadline {
            return Err(Failure::new("the container's process does not load its filter"));
        }
        // It says nothing now unless it fails, so this is a short sleep.
        if wait(channel, Duration::from_micros(100)).is_ok() {
            return Err(match channel.receive()? {
                Message::Failed(failure) => failure,
                _ => Failure::new("the container's process died while it loaded its filter"),
            });
        }
    }
    Ok(())
}

/// Wait for a message; an error when none comes.
fn wait(channel: &Channel, patience: Duration) -> Outcome<()> {
    let timeout = Timespec { tv_sec: patience.as_secs() as i64, tv_nsec: i64::from(patience.subsec_nanos()) };
    let mut fds = [PollFd::from_borrowed_fd(channel.fd(), PollFlags::IN)];
    match rustix::event::poll(&mut fds, Some(&timeout)) {
        Ok(1..) => Ok(()),
        _ => Err(Failure::new("the container's process cannot send its listener: its filter keeps it from that")
            .hint("give the runtime CAP_SYS_PTRACE, or allow `sendmsg` in the profile without SCMP_ACT_NOTIFY")),
    }
}
