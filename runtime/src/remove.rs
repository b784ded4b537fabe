//! Take a container away: processes, cgroup, state. Every part succeeds when its object is gone already.

use crate::cgroup::{self, Cgroup};
use crate::config::Config;
use crate::container::{hooks, resctrl};
use crate::error::{Because, Failure, InStep, Outcome};
use crate::files;
use crate::rootless;
use crate::state::{Grip, Held, Lock, ProcessId, Record, StateDir, Status};
use crate::sys::clone;
use rustix::event::{PollFd, PollFlags, Timespec};
use std::fs;
use std::os::fd::AsFd;
use std::thread;
use std::time::{Duration, Instant};

/// How long a killed process or a supervisor may take to end.
const END_WITHIN: Timespec = Timespec { tv_sec: 10, tv_nsec: 0 };

/// How long another process may take that makes or removes the same container: longer than it waits itself.
const TAKE_WITHIN: Duration = Duration::from_secs(30);

/// How often to start over when processes keep appearing.
const REMOVE_ATTEMPTS_MAX: u32 = 3;

/// Kill what still runs and remove everything. Hooks that fail are returned as warnings; `None` means that somebody
/// else has removed it, and that another container may have its ID by now.
///
/// - `seen`: the record of the container that is meant, if there is one that can be read.
///
/// # Errors
/// A process hangs in the kernel, or a directory cannot be removed.
pub fn remove(dir: &StateDir, seen: Option<&Record>, id: &str) -> Outcome<Option<Vec<String>>> {
    let _lock = match take(dir, seen)? {
        Some(lock) => Some(lock),
        None if seen.is_some() => return Ok(None),
        None => {
            // Its state is lost; perhaps there is a cgroup.
            if !Cgroup::at(place_of(dir, None, id)).in_step("cgroup")?.exists() {
                return Ok(None);
            }
            // Nobody may make a container of this ID meanwhile. Where nothing can be written, nobody does.
            dir.claim().ok()
        }
    };
    let now = dir.read().ok().flatten();
    if let (Some(seen), Some(now)) = (seen, &now)
        && seen.creator != now.creator
    {
        return Ok(None);
    }
    let record = now.as_ref().or(seen);
    if let Some(record) = record.filter(|record| record.init.is_none())
        && belongs_to_another(dir, record)
    {
        // Creation was cut short before it could find that the place is taken.
        kill_and_wait(&record.creator, None);
        dir.remove()?;
        return Ok(Some(Vec::new()));
    }
    let left_out = record.map_or(&[][..], |record| &record.cgroup_left_out);
    let unit = record.and_then(|record| record.unit.clone());
    let mut cgroup = Cgroup::at(place_of(dir, record, id)).in_step("cgroup")?.without(left_out).with_unit(unit);
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
    Ok(Some(warnings))
}

/// Get the lock, ending whoever makes the container and waiting for whoever removes it; `None` when it is gone.
fn take(dir: &StateDir, seen: Option<&Record>) -> Outcome<Option<Lock>> {
    let deadline = Instant::now() + TAKE_WITHIN;
    loop {
        match dir.try_lock().in_step("state")? {
            Grip::Locked(lock) => return Ok(Some(lock)),
            Grip::Absent => return Ok(None),
            Grip::Busy => {}
        }
        let record = dir.read().ok().flatten();
        if let Some(record) = record.filter(|record| !record.complete)
            && seen.is_none_or(|seen| seen.creator == record.creator)
        {
            kill_and_wait(&record.creator, None);
            // It goes with its creator, unless that was killed before it could ask for it.
            if let Some(init) = &record.init {
                kill_and_wait(init, None);
            }
        }
        if Instant::now() > deadline {
            let what = format!("`{}` is being made or removed by another process, which hangs", dir.path().display());
            return Err(Failure::new(what).in_step("state"));
        }
        thread::sleep(Duration::from_millis(1));
    }
}

/// Whether the cgroup is that of another container of this state root.
fn belongs_to_another(dir: &StateDir, record: &Record) -> bool {
    let Some(root) = dir.path().parent() else { return false };
    let others = fs::read_dir(root).into_iter().flatten().flatten().filter_map(|entry| {
        let id = entry.file_name().into_string().ok()?;
        StateDir::new(root, &id).ok()?.read().ok()?
    });
    others.into_iter().any(|other| other.id != record.id && other.cgroup == record.cgroup && other.init.is_some())
}

/// Where the cgroup is: by the record, or by the configuration when that is damaged, or where it is by default.
fn place_of(dir: &StateDir, record: Option<&Record>, id: &str) -> String {
    if let Some(record) = record {
        return record.cgroup.clone();
    }
    let saved = saved_config(dir).ok();
    cgroup::place(saved.as_ref().and_then(|(_, config)| config.linux.cgroups_path.as_deref()), id)
}

/// The same for a container whose first process has been reaped, with the directory and the cgroup it was made with:
/// most often nothing is left to look for.
///
/// # Errors
/// As [`remove`].
pub fn remove_ended(dir: &StateDir, held: Held, record: &Record, cgroup: &Cgroup) -> Outcome<Vec<String>> {
    let thoroughly = || remove(dir, Some(record), &record.id).map(Option::unwrap_or_default);
    let lock = match dir.lock_again(held).in_step("state")? {
        Grip::Locked(lock) => lock,
        Grip::Busy => return thoroughly(),
        // Somebody else has deleted it, and perhaps made another one of its ID.
        Grip::Absent => return Ok(Vec::new()),
    };
    if cgroup.remove().is_err() {
        drop(lock);
        return thoroughly();
    }
    let warnings = run_hooks(dir, Some(record));
    dir.remove()?;
    // Of a directory that is gone.
    lock.keep();
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
    let Ok(text) = files::read(&dir.file("config.json"), files::CONFIG_BYTES_MAX) else {
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
    let text = files::read(&file, files::CONFIG_BYTES_MAX).because(|| format!("cannot read `{}`", file.display()))?;
    let config = crate::launch::parse_config(&text, &file.display().to_string())?;
    Ok((text, config))
}
