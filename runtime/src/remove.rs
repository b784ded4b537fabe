//! Take a container away: processes, cgroup, state. Every part succeeds when its object is gone already.

use crate::cgroup::{self, Cgroup};
use crate::config::Config;
use crate::container::{hooks, resctrl};
use crate::error::{Because, InStep, Outcome};
use crate::rootless;
use crate::state::{ProcessId, Record, StateDir, Status};
use crate::sys::clone;
use rustix::event::{PollFd, PollFlags, Timespec};
use std::fs;
use std::os::fd::AsFd;

/// How long a killed process or a supervisor may take to end.
const END_WITHIN: Timespec = Timespec { tv_sec: 10, tv_nsec: 0 };

/// How often to start over when processes keep appearing.
const REMOVE_ATTEMPTS_MAX: u32 = 3;

/// Kill what still runs and remove everything. Hooks that fail are returned as warnings.
///
/// # Errors
/// A process hangs in the kernel, or a directory cannot be removed.
pub fn remove(dir: &StateDir, record: Option<&Record>, id: &str) -> Outcome<Vec<String>> {
    let place = record.map_or_else(|| cgroup::place(None, id), |record| record.cgroup.clone());
    let left_out = record.map_or(&[][..], |record| &record.cgroup_left_out);
    let unit = record.and_then(|record| record.unit.clone());
    let mut cgroup = Cgroup::at(place).in_step("cgroup")?.without(left_out).with_unit(unit);
    if rootless::is_ordinary_user() {
        cgroup = cgroup.without_foreign();
    }
    if let Some(record) = record {
        if record.init.is_none() && dir.status(record) == Status::Creating {
            // Half-made and its creator is at work: without it nothing new appears.
            kill_and_wait(&record.creator, None);
        }
        if let Some(init) = &record.init {
            kill_and_wait(init, Some(&cgroup));
        }
    }
    for attempt in 1.. {
        if let Some(supervisor) = record.and_then(|record| record.supervisor) {
            // It writes the exit file from the cgroup's figures, and ends by itself.
            wait(&supervisor);
        }
        match cgroup.remove() {
            Ok(()) => break,
            // Processes are left in it, or a creator that is not recorded yet has put a new one there meanwhile; when
            // that is dead, so is the attempt to create.
            Err(_) if attempt < REMOVE_ATTEMPTS_MAX => cgroup.kill().in_step("kill processes")?,
            Err(failure) => return Err(failure.in_step("cgroup")),
        }
    }
    let warnings = run_hooks(dir, record);
    dir.remove()?;
    Ok(warnings)
}

/// The same for a container whose first process has been reaped, with the cgroup it was made with: most often nothing
/// is left to look for.
///
/// # Errors
/// As [`remove`].
pub fn remove_ended(dir: &StateDir, record: &Record, cgroup: &Cgroup) -> Outcome<Vec<String>> {
    if cgroup.remove().is_err() {
        return remove(dir, Some(record), &record.id);
    }
    let warnings = run_hooks(dir, Some(record));
    dir.remove()?;
    Ok(warnings)
}

fn kill_and_wait(process: &ProcessId, frozen: Option<&Cgroup>) {
    if let Some(pidfd) = process.open() {
        let _ = clone::pidfd_send_signal(pidfd.as_fd(), libc::SIGKILL);
        // On v1 a frozen process dies when it is let go.
        frozen.inspect(|cgroup| cgroup.thaw());
        wait(process);
    }
}

fn wait(process: &ProcessId) {
    if process.pid == std::process::id() as i32 {
        return;
    }
    if let Some(pidfd) = process.open() {
        let mut fds = [PollFd::from_borrowed_fd(pidfd.as_fd(), PollFlags::IN)];
        // A timeout shows itself in the next step, which finds the process in the cgroup.
        let _ = rustix::event::poll(&mut fds, Some(&END_WITHIN));
    }
}

fn run_hooks(dir: &StateDir, record: Option<&Record>) -> Vec<String> {
    let Some(record) = record.filter(|record| record.poststop) else {
        return Vec::new();
    };
    let Ok(text) = fs::read(dir.file("config.json")) else {
        return Vec::new();
    };
    let Ok(config) = serde_json::from_slice::<Config>(&text) else {
        return Vec::new();
    };
    let line = dir.state(record).with(Status::Stopped, record.init.map(|_| 0)).to_line();
    let group = resctrl::of(&config, &record.id).and_then(|group| group.map_or(Ok(()), |group| group.remove()));
    let failed = hooks::run_each("poststop", &config.hooks.poststop, &line);
    group.err().into_iter().chain(failed).map(|failure| failure.to_string()).collect()
}

/// The configuration a container was created with.
///
/// # Errors
/// It cannot be read.
pub fn saved_config(dir: &StateDir) -> Outcome<(Vec<u8>, Config)> {
    let file = dir.file("config.json");
    let text = fs::read(&file).because(|| format!("cannot read `{}`", file.display()))?;
    let config = crate::launch::parse_config(&text, &file.display().to_string())?;
    Ok((text, config))
}
