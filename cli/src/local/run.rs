//! `gantry run`: one container from an image, in the foreground or behind.
//!
//! Until the image is there, an interrupt just ends the command: nothing was made. From the reservation on, signals are
//! held and looked at between the steps, so that whatever was made is taken away again.

use super::error::LocalError;
use super::images;
use super::life::{Host, now_ms};
use super::options::{Run, Wish};
use super::record::{Ended, Phase, Place, Record};
use super::runtime::foreground_trouble;
use crate::error::Outcome;
use crate::global::Global;
use crate::lab::state::{Process, boot_id};
use crate::lab::sys;
use gantry_images::Image;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::signal::{SigSet, Signal};
use nix::sys::signalfd::{SfdFlags, SignalFd};
use rustix::process::{Pid, PidfdFlags, pidfd_open};
use std::ffi::CString;
use std::fs::File;
use std::io::{IsTerminal, Write};
use std::os::fd::AsFd;
use std::os::unix::process::ExitStatusExt;
use std::process::{Child, ExitStatus};
use std::time::Duration;

/// Where a signal comes from: the kernel, for a key typed on the terminal, sends it to the runtime as well.
const SI_KERNEL: i32 = 0x80;
/// Signals that a user means for the container.
const PASSED: [Signal; 7] = [
    Signal::SIGINT,
    Signal::SIGTERM,
    Signal::SIGHUP,
    Signal::SIGQUIT,
    Signal::SIGUSR1,
    Signal::SIGUSR2,
    Signal::SIGCONT,
];
/// Those that end it while there is no container yet.
const ENDING: [Signal; 4] = [Signal::SIGINT, Signal::SIGTERM, Signal::SIGHUP, Signal::SIGQUIT];
/// A supervisor writes the exit file right after the process has ended.
pub const EXIT_FILE_WITHIN: Duration = Duration::from_secs(5);

impl Run {
    /// Runs the container. Not from a process with threads.
    ///
    /// # Errors
    /// 125 when Gantry failed; 126 and 127 for a command that cannot be executed or is not there.
    pub fn run(&self, global: &Global) -> Outcome {
        self.carry_out(global).map_err(LocalError::of_run)
    }

    fn carry_out(&self, global: &Global) -> Result<u8, LocalError> {
        let wish = self.wish()?;
        if wish.tty && wish.interactive && !self.detach && !std::io::stdin().is_terminal() {
            return Err(LocalError::option(
                "input for a terminal",
                "-i -t",
                "standard input is no terminal; leave -t away",
            ));
        }
        let host = Host::open(global, "run")?;
        let image = images::ensure(&host.store, &self.image, self.pull.into(), &self.insecure_registry)?;
        let signals = Signals::hold()?;
        let mut record = self.reserve(&host, wish, &image)?;
        let place = host.shelf.place(&record.id);
        let done = signals.check().and_then(|()| host.prepare(&mut record, &place, &image)).and_then(|()| {
            signals.check()?;
            record.phase = Phase::Running;
            record.started_ms = Some(now_ms());
            place.save(&record)
        });
        if let Err(error) = done {
            clear(&host, &record);
            return Err(error);
        }
        if self.detach {
            start_detached(&host, &mut record, &place).inspect_err(|_| clear(&host, &record))?;
            let mut out = std::io::stdout();
            drop(writeln!(out, "{}", record.id)); // nobody reads it
            return Ok(0);
        }
        foreground(&host, record, &place, &signals)
    }

    /// Sweeps, chooses id and name, and writes the first record.
    fn reserve(&self, host: &Host, wish: Wish, image: &Image) -> Result<Record, LocalError> {
        let lock = host.shelf.lock()?;
        host.sweep();
        let (id, name) = host.shelf.reserve(self.name.as_deref())?;
        let stop_signal = wish.stop_signal.clone().unwrap_or_else(|| image.config.stop_signal.clone());
        let record = Record {
            image: self.image.clone(),
            digest: image.digest.to_string(),
            command: Vec::new(),
            wish,
            stop_signal: if stop_signal.is_empty() { "TERM".to_owned() } else { stop_signal },
            detached: self.detach,
            remove: self.rm,
            created_ms: now_ms(),
            started_ms: None,
            address: None,
            boot: boot_id(),
            owner: Process::now(std::process::id() as i32),
            phase: Phase::Creating,
            id,
            name,
        };
        let saved = host.shelf.place(&record.id).save(&record);
        drop(lock);
        saved.inspect_err(|_| clear(host, &record))?;
        Ok(record)
    }
}

/// Takes away what a failure left; the failure itself is told, and this only if it fails as well.
fn clear(host: &Host, record: &Record) {
    if let Err(error) = host.destroy(record) {
        let error = crate::error::CliError::from(error);
        eprintln!("gantry: container {} cannot be cleared: {}", record.id, error.message);
    }
}

/// Starts it with a supervisor and leaves a watcher.
///
/// # Errors
/// The runtime's complaint. The caller clears up.
pub fn start_detached(host: &Host, record: &mut Record, place: &Place) -> Result<(), LocalError> {
    host.runtime.start_detached(&record.id, place)?;
    record.owner = Some(spawn_watcher(host, &record.id)?);
    place.save(record)
}

/// `gantry run-watch ID`, in a session of its own.
fn spawn_watcher(host: &Host, id: &str) -> Result<Process, LocalError> {
    let program = std::env::current_exe().map_err(LocalError::kernel("find this program's file"))?;
    let absolute =
        |path: &std::path::Path| std::path::absolute(path).unwrap_or_else(|_| path.to_owned()).display().to_string();
    let global = &host.global;
    let mut words = vec![
        program.display().to_string(),
        "--data-dir".to_owned(),
        absolute(&global.data_dir),
        "--run-dir".to_owned(),
        absolute(&global.run_dir),
        "--cgroup-parent".to_owned(),
        global.cgroup_parent.clone(),
    ];
    if let Some(runtime) = &global.runtime {
        words.extend(["--runtime".to_owned(), absolute(runtime)]);
    }
    words.extend(["run-watch".to_owned(), id.to_owned()]);
    let argv: Vec<CString> = words.into_iter().filter_map(|word| CString::new(word).ok()).collect();
    let path = CString::new(format!("PATH={}", std::env::var("PATH").unwrap_or_default())).unwrap_or_default();
    let null =
        File::options().read(true).write(true).open("/dev/null").map_err(LocalError::file("open", "/dev/null"))?;
    let spawned = sys::spawn(&sys::Detached {
        namespaces: 0,
        argv: &argv,
        environment: &[path],
        stdin: null.as_fd(),
        stdout: null.as_fd(),
        stderr: null.as_fd(),
    });
    let (pid, _) = spawned.map_err(LocalError::kernel("start the container's watcher"))?;
    let gone = std::io::Error::from_raw_os_error(libc::ESRCH);
    Process::now(pid).ok_or_else(|| LocalError::kernel("start the container's watcher")(gone))
}

/// Waits for a detached container's end and clears up after it (hidden command `run-watch`).
#[derive(Debug, clap::Args)]
pub struct Watch {
    /// Its id.
    id: String,
}

impl Watch {
    /// Watches.
    ///
    /// # Errors
    /// There is no such container.
    pub fn run(&self, global: &Global) -> Outcome {
        let host = Host::open(global, "run-watch")?;
        let place = host.shelf.place(&self.id);
        wait_detached(&host, &self.id);
        let Ok(_lock) = place.lock() else {
            return Ok(0); // removed meanwhile
        };
        if let Some(mut record) = place.load()?
            && record.phase == Phase::Running
        {
            let ended = host.exit_record(&place);
            host.end(&mut record, ended)?;
        }
        Ok(0)
    }
}

/// Returns when the container's process is dead and how it ended is written.
fn wait_detached(host: &Host, id: &str) {
    let pid = host.runtime.state(id).and_then(|state| state.pid).and_then(Pid::from_raw);
    if let Some(pidfd) = pid.and_then(|pid| pidfd_open(pid, PidfdFlags::empty()).ok()) {
        // Its number may have been taken by another since: then the runtime says that it has stopped.
        let runs = host.runtime.state(id).is_some_and(|state| state.status == "running" || state.status == "paused");
        if runs {
            let mut waits = [PollFd::new(pidfd.as_fd(), PollFlags::POLLIN)];
            while poll(&mut waits, PollTimeout::NONE) == Err(nix::errno::Errno::EINTR) {}
        }
    }
    let deadline = std::time::Instant::now() + EXIT_FILE_WITHIN;
    let exit = host.shelf.place(id).exit();
    while !exit.exists() && exit.parent().is_some_and(std::path::Path::exists) && std::time::Instant::now() < deadline {
        std::thread::sleep(Duration::from_millis(10));
    }
}

/// Stays with the container; its exit code.
fn foreground(host: &Host, mut record: Record, place: &Place, signals: &Signals) -> Result<u8, LocalError> {
    let child = host.runtime.run(&record.id, place, record.wish.interactive);
    let status = match child.and_then(|child| signals.attend(child)) {
        Ok(status) => status,
        Err(error) => {
            clear(host, &record);
            return Err(error);
        }
    };
    if let Some(trouble) = foreground_trouble(&place.complaints()) {
        // The runtime has told it already, so only its code is left.
        clear(host, &record);
        return Ok(trouble.of_run().code);
    }
    let code = exit_code(status);
    let lock = place.lock();
    if lock.is_err() && !place.dir.exists() {
        return Ok(code); // `gantry rm -f` took it away
    }
    host.end(&mut record, Ended { code: Some(code.into()), oom_killed: false, at_ms: now_ms() })?;
    Ok(code)
}

/// As a shell has it: 128 + the signal that ended it.
pub fn exit_code(status: ExitStatus) -> u8 {
    status.code().or_else(|| status.signal().map(|signal| 128 + signal)).unwrap_or(1) as u8
}

/// Signals, held until somebody looks.
pub struct Signals(SignalFd);

impl Signals {
    /// Holds them from now on.
    ///
    /// # Errors
    /// Out of descriptors.
    pub fn hold() -> Result<Self, LocalError> {
        let mut mask = SigSet::empty();
        PASSED.iter().chain([&Signal::SIGCHLD]).for_each(|signal| mask.add(*signal));
        mask.thread_block().map_err(LocalError::kernel("hold signals"))?;
        let made = SignalFd::with_flags(&mask, SfdFlags::SFD_CLOEXEC | SfdFlags::SFD_NONBLOCK);
        made.map(Self).map_err(LocalError::kernel("watch signals"))
    }

    /// While nothing runs yet: whether the user wants to end.
    fn check(&self) -> Result<(), LocalError> {
        while let Ok(Some(signal)) = self.0.read_signal() {
            if ENDING.iter().any(|ending| *ending as i32 == signal.ssi_signo as i32) {
                return Err(LocalError::Interrupted(signal.ssi_signo as i32));
            }
        }
        Ok(())
    }

    /// Passes signals to the runtime, which passes them to the container, until it ends.
    ///
    /// # Errors
    /// It cannot be waited for.
    pub fn attend(&self, mut child: Child) -> Result<ExitStatus, LocalError> {
        loop {
            if let Some(status) = child.try_wait().map_err(LocalError::kernel("wait for the runtime"))? {
                return Ok(status);
            }
            match poll(&mut [PollFd::new(self.0.as_fd(), PollFlags::POLLIN)], PollTimeout::NONE) {
                Ok(_) | Err(nix::errno::Errno::EINTR) => {}
                Err(error) => return Err(LocalError::kernel("wait for signals")(error)),
            }
            while let Ok(Some(signal)) = self.0.read_signal() {
                let number = signal.ssi_signo as i32;
                let passed = PASSED.iter().copied().find(|passed| *passed as i32 == number);
                if let Some(passed) = passed.filter(|_| signal.ssi_code != SI_KERNEL) {
                    // It was not waited for yet, so its number is its own.
                    let _ = nix::sys::signal::kill(nix::unistd::Pid::from_raw(child.id() as i32), passed);
                }
            }
        }
    }
}
