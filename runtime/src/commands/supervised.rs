//! `create` and `run --detach` with a supervisor.

use super::launching::{let_go, load, poststart};
use crate::args::Global;
use crate::container::channel::{Channel, Message};
use crate::error::{Because, Failure, InStep, Outcome, is_absent};
use crate::foreground::Signals;
use crate::launch::{self, Bundle, Launched, Manner};
use crate::remove::remove;
use crate::report;
use crate::supervisor::log::{ContainerLog, Stream};
use crate::supervisor::{self, Settings, Streams};
use crate::sys::clone::{self, Side};
use crate::sys::process;
use std::fs;
use std::os::fd::AsFd;
use std::path::Path;

/// `create` and `run --detach` with a supervisor: a clone of this process makes the container and stays; this one
/// returns when the container is there.
///
/// # Errors
/// The container could not be made; nothing of it is left.
pub fn supervised(global: &Global, options: &launch::Options, settings: &Settings, later: bool) -> Outcome<i32> {
    let signals = Signals::hold()?;
    // Found before anything is made, and with the caller's idea of the current directory.
    let bundle = load(global, &options.bundle)?;
    let log = ContainerLog::open(&settings.log, settings.log_bytes_max, settings.log_files_max)?;
    prepare_exit_file(&settings.exit_file).in_step("exit file")?;
    let (ours, theirs) = Channel::pair()?;
    let side = clone::clone3(0, None).because(|| "cannot make the supervisor".to_owned()).in_step("supervisor")?;
    match side {
        Side::Child => {
            drop((ours, signals));
            let code = match supervisor_main(options, settings, later, bundle, log, &theirs) {
                Ok(()) => 0,
                Err(failure) => {
                    // Before the container is there, the caller hears of it; later, the log file is all there is.
                    if theirs.send(&Message::Failed(failure.clone())).is_err() {
                        report::failure(global, &failure);
                    }
                    1
                }
            };
            process::exit_now(code)
        }
        Side::Parent { pidfd, .. } => {
            drop((theirs, log));
            // The container's process has the supervisor's end as well, until it executes its program.
            let message = signals.receive_from(&ours, pidfd.as_fd()).or_else(|_| {
                // Interrupted: the supervisor undoes what it has made, and says so.
                let _ = clone::pidfd_send_signal(pidfd.as_fd(), libc::SIGTERM);
                signals.receive_from(&ours, pidfd.as_fd())
            });
            match message? {
                Message::Created => Ok(0),
                Message::Failed(failure) => Err(failure),
                _ => Err(Failure::new("the supervisor died before the container was there")
                    .hint(format!("remove what is left: gantry-runtime delete --force {}", options.id))),
            }
        }
    }
}

/// Take a container back that was made in vain.
fn undo(launched: &Launched, id: &str) {
    let _ = clone::pidfd_send_signal(launched.pidfd.as_fd(), libc::SIGKILL);
    let _ = clone::wait(launched.pidfd.as_fd());
    let _ = remove(&launched.dir, Some(&launched.record), id);
}

/// The exit file must be writable at the end, and what an earlier container left there must not be taken for it.
fn prepare_exit_file(file: &Path) -> Outcome<()> {
    let directory = file.parent().unwrap_or(Path::new("/"));
    if !directory.is_dir() {
        return Err(Failure::new(format!("`{}` is not a directory", directory.display()))
            .hint("the directory of --exit-file must exist"));
    }
    match fs::remove_file(file) {
        Err(error) if !is_absent(&error) => {
            Err(error).because(|| format!("cannot remove the old `{}`", file.display()))
        }
        _ => Ok(()),
    }
}

fn supervisor_main(
    options: &launch::Options,
    settings: &Settings,
    later: bool,
    bundle: Bundle,
    log: ContainerLog,
    caller: &Channel,
) -> Outcome<()> {
    supervisor::detach().in_step("supervisor")?;
    let signals = Signals::hold()?;
    let terminal = bundle.config.process.as_ref().is_some_and(|process| process.terminal);
    let mut outputs = Vec::new();
    let mut stdio = None;
    if !terminal {
        let streams = Streams::make().in_step("supervisor")?;
        stdio = Some(streams.theirs);
        outputs.push((Stream::Stdout, streams.stdout));
        outputs.push((Stream::Stderr, streams.stderr));
    }
    let keep_terminal = terminal && options.console_socket.is_none();
    let manner = Manner { later, keep_terminal, stdio, supervised: true };
    let mut launched = launch::launch(options, &bundle, manner, &signals)?;
    if let Some(master) = launched.terminal.take() {
        outputs.push((Stream::Stdout, master));
    }
    if !later {
        let Launched { dir, record, channel, cgroup, .. } = &launched;
        let started = let_go(channel, &signals, dir, record, cgroup, || Ok(bundle.config.linux.seccomp.clone()))
            .and_then(|()| poststart(&launched.dir, &launched.record, &bundle.config.hooks.poststart));
        if let Err(failure) = started {
            undo(&launched, &options.id);
            return Err(failure);
        }
    }
    drop(bundle);
    if let Err(failure) = caller.send(&Message::Created) {
        // Nobody knows of the container, so nobody would remove it.
        undo(&launched, &options.id);
        return Err(failure);
    }
    supervisor::supervise(launched, outputs, log, settings, signals)
}
