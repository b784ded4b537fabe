//! What `create` and `run` have in common: options, and the way from a bundle to a running program.

use crate::args::{Global, Opt, UsageError};
use crate::cgroup::Cgroup;
use crate::config::{Hook, Seccomp, check};
use crate::container::channel::{Channel, Message};
use crate::container::hooks;
use crate::container::process::capability_warnings;
use crate::error::{Failure, InStep, Outcome};
use crate::foreground::{OomGuard, Signals};
use crate::launch::{self, Bundle};
use crate::readiness::Manager;
use crate::remove::remove_ended;
use crate::report;
use crate::rootless::Rootless;
use crate::seccomp::notify;
use crate::state::{Held, Record, StateDir, Status};
use crate::supervisor;
use std::marker::PhantomData;
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};

/// Size at which a container's log is rotated.
const DEFAULT_LOG_BYTES_MAX: u64 = 10 * 1024 * 1024;
/// Files of a container's log, the current one included.
const DEFAULT_LOG_FILES_MAX: u32 = 5;

/// Options of `create` and `run`.
#[derive(Debug, Default)]
pub struct Common {
    /// For the launch; the state root is filled in later.
    pub launch: launch::Options,
    /// `--supervise` and its options, once checked.
    pub settings: Option<supervisor::Settings>,
    supervise: bool,
    container_log: Option<PathBuf>,
    log_bytes_max: Option<u64>,
    log_files_max: Option<u32>,
    exit_file: Option<PathBuf>,
}

/// A command with these options.
pub trait HasCommon {
    /// Where they go.
    fn common(&mut self) -> &mut Common;
}

/// The options as a table for any such command.
#[derive(Debug)]
pub struct CommonOptions<C>(PhantomData<C>);

impl<C: HasCommon + 'static> CommonOptions<C> {
    /// What a new container needs.
    pub const LAUNCH: &'static [Opt<C>] = &[
        Opt::value("bundle", "DIR", "bundle directory [default: .]", |command: &mut C, value| {
            // Resolved when it is opened.
            value.text().map(|path| command.common().launch.bundle = PathBuf::from(path))
        })
        .short('b'),
        Opt::value("pid-file", "FILE", "write the number of the container's first process here", |command, value| {
            value.path().map(|path| command.common().launch.pid_file = Some(path))
        }),
        Opt::value("console-socket", "PATH", "send the terminal to this unix socket", |command, value| {
            value.path().map(|path| command.common().launch.console_socket = Some(path))
        }),
        Opt::value(
            "pidfd-socket",
            "PATH",
            "send a pidfd of the first process to this unix socket",
            |command, value| value.path().map(|path| command.common().launch.pidfd_socket = Some(path)),
        ),
        Opt::value("preserve-fds", "N", "keep N descriptors beyond standard error open", |command, value| {
            value.number().map(|number| command.common().launch.preserve_fds = number)
        }),
        Opt::switch(
            "no-pivot",
            "move the root instead of pivot_root, for hosts on an initial ramfs",
            |command, value| value.on().map(|on| command.common().launch.no_pivot = on),
        ),
        Opt::switch("no-new-keyring", "keep the caller's session keyring", |command, value| {
            value.on().map(|on| command.common().launch.no_new_keyring = on)
        }),
    ];

    /// The supervisor's.
    pub const SUPERVISOR: &'static [Opt<C>] = &[
        Opt::switch("supervise", "leave a supervisor, which owns output and exit status", |command: &mut C, value| {
            value.on().map(|on| command.common().supervise = on)
        }),
        Opt::value("container-log", "FILE", "with --supervise: output in CRI format", |command, value| {
            value.path().map(|path| command.common().container_log = Some(path))
        }),
        Opt::value("log-max-bytes", "N", "rotate the log at this size [default: 10485760]", |command, value| {
            value.number().map(|number| command.common().log_bytes_max = Some(number))
        }),
        Opt::value("log-max-files", "N", "keep this many log files [default: 5]", |command, value| {
            value.number().map(|number| command.common().log_files_max = Some(number))
        }),
        Opt::value("exit-file", "FILE", "with --supervise: how the container ended, as JSON", |command, value| {
            value.path().map(|path| command.common().exit_file = Some(path))
        }),
    ];
}

impl Common {
    /// Check what belongs together, once all options are there.
    ///
    /// # Errors
    /// The supervisor lacks a file, or has options without being asked for.
    pub fn finish(&mut self, id: String) -> Result<(), UsageError> {
        self.launch.id = id;
        if self.launch.bundle.as_os_str().is_empty() {
            self.launch.bundle = PathBuf::from(".");
        }
        self.settings = match (self.supervise, self.container_log.take(), self.exit_file.take()) {
            (true, Some(log), Some(exit_file)) => Some(supervisor::Settings {
                log,
                exit_file,
                log_bytes_max: self.log_bytes_max.unwrap_or(DEFAULT_LOG_BYTES_MAX).max(1024),
                log_files_max: self.log_files_max.unwrap_or(DEFAULT_LOG_FILES_MAX).max(1),
            }),
            (true, ..) => return Err(UsageError::new("--supervise needs --container-log and --exit-file")),
            (false, None, None) if self.log_bytes_max.is_none() && self.log_files_max.is_none() => None,
            (false, ..) => return Err(UsageError::new("options of the supervisor need --supervise")),
        };
        Ok(())
    }

    /// For the launch, on this state root.
    pub fn options(&self, global: &Global) -> launch::Options {
        launch::Options {
            root: global.root.clone(),
            systemd_cgroup: global.systemd_cgroup,
            rootless: Rootless::from(global.rootless),
            // Whoever wants a supervisor hears of the container from that.
            manager: if self.settings.is_some() { None } else { Manager::from_environment() },
            ..self.launch.clone()
        }
    }
}

/// Load a bundle and say what it asks for in vain.
///
/// # Errors
/// It cannot be carried out.
pub fn load(global: &Global, bundle: &Path) -> Outcome<Bundle> {
    let bundle = Bundle::load(bundle)?;
    for warning in check::warnings(&bundle.config) {
        report::warning(global, &warning);
    }
    let in_user_namespace = bundle.config.namespace("user").is_some();
    if let Some(process) = &bundle.config.process {
        for warning in capability_warnings(process, in_user_namespace) {
            report::warning(global, &warning);
        }
    }
    for warning in crate::cgroup::warnings(&bundle.config.linux.resources) {
        report::warning(global, &warning);
    }
    for warning in bundle.filter.iter().flat_map(|filter| &filter.warnings) {
        report::warning(global, warning);
    }
    Ok(bundle)
}

/// Let a container's process go on to its program, and wait until it is executed.
///
/// - `profile`: of its configuration, asked for only when an agent decides about system calls.
///
/// # Errors
/// Why it was not.
pub fn let_go(
    channel: &Channel,
    signals: &Signals,
    dir: &StateDir,
    record: &Record,
    cgroup: &Cgroup,
    profile: impl Fn() -> Outcome<Option<Seccomp>>,
) -> Outcome<()> {
    let sent = channel.go();
    // It may have failed meanwhile, and says why.
    attend_start(channel, signals, dir, record, &|| cgroup.waits_for_memory(), profile)?;
    sent
}

/// Wait until the program is executed; false when nobody said that it would be.
///
/// - `is_hopeless`: as for [`OomGuard::new`].
///
/// # Errors
/// Why it was not.
pub fn attend_start(
    channel: &Channel,
    signals: &Signals,
    dir: &StateDir,
    record: &Record,
    is_hopeless: &dyn Fn() -> bool,
    profile: impl Fn() -> Outcome<Option<Seccomp>>,
) -> Outcome<bool> {
    let mut guard = OomGuard::new(record.init.map_or(0, |init| init.pid), is_hopeless);
    let mut heard = false;
    loop {
        let file = match guard.receive(channel, signals)? {
            Message::Executing => {
                heard = true;
                continue;
            }
            Message::End => return Ok(heard),
            Message::Failed(failure) => return Err(failure),
            Message::Listener(file) => file,
            _ => return Err(Failure::new("the container's process sent a message out of order")),
        };
        let Some((pid, pidfd)) = record.init.and_then(|init| Some((init.pid, init.open()?))) else {
            return Err(Failure::new("the container's process has gone"));
        };
        let state = dir.state(record).with(Status::Created, Some(pid));
        let process = notify::Process { pidfd: pidfd.as_fd(), pid, state: &state };
        notify::serve(profile()?.as_ref(), process, channel, &file)?;
    }
}

/// Run the hooks that come after the start. Their failure ends the container, as the specification has it.
///
/// # Errors
/// A hook failed.
pub fn poststart(dir: &StateDir, record: &Record, bundle_hooks: &[Hook]) -> Outcome<()> {
    if bundle_hooks.is_empty() {
        return Ok(());
    }
    let pid = record.init.map(|init| init.pid);
    let line = dir.state(record).with(Status::Running, pid).to_line();
    hooks::run("poststart", bundle_hooks, &line).in_step("poststart hooks")
}

/// Remove a container after a failure or at its end, reporting what could not be done.
pub fn clean_up(global: &Global, dir: &StateDir, held: Held, record: &Record, cgroup: &Cgroup) {
    match remove_ended(dir, held, record, cgroup) {
        Ok(warnings) => warnings.iter().for_each(|text| report::warning(global, text)),
        Err(failure) => report::failure(global, &failure.in_step("clean up")),
    }
}
