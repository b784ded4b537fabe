//! `start`: let a created container run its program.

use super::launching::{attend_start, poststart};
use super::one::OnOne;
use super::open;
use crate::args::Global;
use crate::error::{Because, Failure, InStep, Outcome, is_absent};
use crate::foreground::{self, Signals};
use crate::launch;
use crate::readiness::{Listener, Manager};
use crate::remove::saved_config;
use crate::state::Status;
use crate::sys::clone;
use std::fs;
use std::os::fd::AsFd;

/// `start`.
#[derive(Debug, Default)]
pub struct Start;

impl OnOne for Start {
    const NAME: &'static str = "start";
    const SUMMARY: &'static str = "run the program of a created container";

    fn run(global: &Global, id: &str) -> Outcome<i32> {
        start(global, id)
    }
}

fn start(global: &Global, id: &str) -> Outcome<i32> {
    let signals = Signals::hold()?;
    let (dir, record) = open(global, id)?;
    let status = dir.status(&record);
    if status != Status::Created {
        let what = match status {
            Status::Stopped => "cannot start a container that has stopped".to_owned(),
            Status::Running => "cannot start an already running container".to_owned(),
            other => format!("cannot start a container that is {}", other.name()),
        };
        return Err(
            Failure::new(format!("{what}: `{id}`")).hint("only a created container can be started, and only once")
        );
    }
    let hooks = if record.poststart { saved_config(&dir)?.1.hooks.poststart } else { Vec::new() };
    let remove_socket = || match fs::remove_file(dir.file("start.sock")) {
        Err(error) if !is_absent(&error) => Err(error).because(|| "cannot remove the start socket".to_owned()),
        _ => Ok(()),
    };
    let Some(channel) = launch::connect_start(&dir)? else {
        remove_socket()?;
        return Err(Failure::new(format!("cannot start an already running container: `{id}`")));
    };
    let listener = Listener::open(&dir, Manager::from_environment()).in_step("notify socket")?;
    let profile = || Ok(saved_config(&dir)?.1.linux.seccomp);
    let is_hopeless = || record.own_cgroup().is_ok_and(|cgroup| cgroup.waits_for_memory());
    let result = match channel.go() {
        Ok(()) => attend_start(&channel, &signals, &dir, &record, &is_hopeless, profile),
        Err(_) => Ok(false),
    };
    if matches!(result, Ok(false)) {
        // Another `start` was first, or it was killed meanwhile. The socket is not ours to remove.
        let what = match dir.status(&record) {
            Status::Stopped => "cannot start a container that has stopped",
            _ => "cannot start an already running container",
        };
        return Err(Failure::new(format!("{what}: `{id}`")));
    }
    remove_socket()?;
    result?;
    if let Err(failure) = poststart(&dir, &record, &hooks) {
        if let Some(pidfd) = record.init.and_then(|init| init.open()) {
            let _ = clone::pidfd_send_signal(pidfd.as_fd(), libc::SIGKILL);
        }
        return Err(failure);
    }
    if let (Some(listener), Some(init)) = (&listener, &record.init)
        && let Some(pidfd) = init.open()
    {
        foreground::await_ready(listener, init.pid, pidfd.as_fd(), &signals)?;
    }
    Ok(0)
}
