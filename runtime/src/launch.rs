//! Bring a container into being: everything between a command and a process that waits for its start.
//!
//! ```text
//! claim ROOT/ID → record the intent → cgroup → open host trees → clone3 → record the process → messages → created
//! ```
//! With cgroups of v1 only, and a cgroup namespace, the process comes first: it mounts while the cgroup is made.
//! Whatever fails, an [`Undo`] takes back what was made. A crash leaves the record, from which `delete --force` works.

use crate::cgroup::owner;
use crate::cgroup::systemd::{self, Placeholder, Unit};
use crate::cgroup::{self, Cgroup, Doors, Made};
use crate::config::{self, Config};
use crate::container::channel::{Channel, Message};
use crate::container::hooks;
use crate::container::idmap;
use crate::container::init::{self, Init, Start, Terminal};
use crate::container::labels;
use crate::container::mounts::{self, Prepared};
use crate::container::namespaces::Namespaces;
use crate::container::process::Program;
use crate::container::{net_devices, resctrl, rlimits};
use crate::error::{Because, Failure, InStep, Outcome, is_absent};
use crate::foreground::{OomGuard, Signals};
use crate::pidfd::Receiver;
use crate::readiness::Manager;
use crate::rootless::{self, Rootless};
use crate::seccomp::{self, Filter};
use crate::state::{self, Held, Lock, ProcessId, Record, StateDir, Status};
use crate::sys::clone::{self, Side};
use crate::sys::{file, process, signal};
use std::fs;
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::time::SystemTime;

/// More mounts than this, and the limit of open files is raised.
const MOUNTS_MANY: usize = 32;

/// What `create` and `run` have in common.
#[derive(Debug, Clone, Default)]
pub struct Options {
    /// State root.
    pub root: PathBuf,
    /// Container.
    pub id: String,
    /// Bundle directory.
    pub bundle: PathBuf,
    /// File for the process number.
    pub pid_file: Option<PathBuf>,
    /// Socket that takes the terminal.
    pub console_socket: Option<PathBuf>,
    /// Socket that takes a pidfd of the first process.
    pub pidfd_socket: Option<PathBuf>,
    /// Descriptors to keep beyond standard error.
    pub preserve_fds: u32,
    /// Make the cgroup through systemd.
    pub systemd_cgroup: bool,
    /// Use chroot rather than pivot_root.
    pub no_pivot: bool,
    /// Keep the caller's session keyring.
    pub no_new_keyring: bool,
    /// `--rootless`.
    pub rootless: Rootless,
    /// Who wants to hear that the program is ready.
    pub manager: Option<Manager>,
}

/// When the program runs, and who has its standard streams.
#[derive(Debug)]
pub struct Manner {
    /// `start` decides, or the creator at once.
    pub later: bool,
    /// The runtime process keeps the terminal.
    pub keep_terminal: bool,
    /// Replacements for standard input, output and error.
    pub stdio: Option<[OwnedFd; 3]>,
    /// The runtime process stays as supervisor.
    pub supervised: bool,
}

/// A bundle whose configuration can be carried out.
#[derive(Debug)]
pub struct Bundle {
    /// Where it is.
    pub path: PathBuf,
    /// Its configuration.
    pub config: Config,
    /// The same as text, for the state directory.
    pub text: Vec<u8>,
    /// Its compiled system call filter.
    pub filter: Option<Filter>,
}

/// Read and check a configuration.
///
/// # Errors
/// It is not JSON of the right shape, or asks for what cannot be done.
pub fn parse_config(text: &[u8], name: &str) -> Outcome<Config> {
    let mut config: Config = config::read::read(text, name)?;
    idmap::fill_in(&mut config)?;
    config::check::check(&config).map_err(|error| {
        let failure = Failure::new(error.to_string());
        match error.hint() {
            Some(hint) => failure.hint(hint),
            None => failure,
        }
    })?;
    Ok(config)
}

/// Compile the filter of a configuration.
///
/// # Errors
/// The profile cannot be carried out, or the agent it names is not there.
pub fn compile_filter(config: &Config) -> Outcome<Option<Filter>> {
    let Some(profile) = &config.linux.seccomp else { return Ok(None) };
    let filter = seccomp::compile(profile).map_err(|error| {
        let failure = Failure::new(error.to_string());
        match error.hint() {
            Some(hint) => failure.hint(hint),
            None => failure,
        }
    })?;
    if filter.notifies {
        seccomp::notify::check(profile).in_step("seccomp agent")?;
    }
    Ok(Some(filter))
}

impl Bundle {
    /// Load a bundle.
    ///
    /// # Errors
    /// No `config.json`, or one that cannot be carried out.
    pub fn load(path: &Path) -> Outcome<Self> {
        let (path, text) = match crate::files::read_in(path, "config.json", crate::files::CONFIG_BYTES_MAX) {
            Ok(found) => found,
            Err(_) => Self::find(path)?,
        };
        let file = path.join("config.json");
        let config = parse_config(&text, &file.display().to_string())?;
        labels::check_host(&config)?;
        let filter = compile_filter(&config)?;
        check_root(&config, &path)?;
        Ok(Self { path, config, text, filter })
    }

    /// Where a bundle is and what is in its configuration, one after the other: also what stands in the way.
    fn find(path: &Path) -> Outcome<(PathBuf, Vec<u8>)> {
        let path = file::resolve(path)
            .because(|| format!("cannot open bundle `{}`", path.display()))
            .or_hint("--bundle names a directory with a config.json and a root filesystem")?;
        let file = path.join("config.json");
        let text = crate::files::read(&file, crate::files::CONFIG_BYTES_MAX)
            .because(|| format!("cannot read `{}`", file.display()))
            .or_hint("`gantry-runtime spec` writes one to start from")?;
        Ok((path, text))
    }
}

/// The root filesystem must be a directory, and not a link to one, which could lead elsewhere at any moment.
fn check_root(config: &Config, bundle: &Path) -> Outcome<()> {
    let root = mounts::root_path(config, bundle);
    let problem = match fs::symlink_metadata(&root) {
        Ok(found) if found.is_dir() => return Ok(()),
        Ok(found) if found.is_symlink() => "is a symbolic link".to_owned(),
        Ok(_) => "is not a directory".to_owned(),
        Err(error) if is_absent(&error) => "does not exist".to_owned(),
        Err(error) => format!("cannot be opened: {error}"),
    };
    let given = config.root.as_ref().map_or("", |root| root.path.as_str());
    Err(Failure::new(format!("config.json: $.root.path: `{given}`: root filesystem `{}` {problem}", root.display()))
        .hint("a directory is wanted, relative to the bundle or absolute"))
}

/// A container that waits for its start.
#[derive(Debug)]
pub struct Launched {
    /// Its state directory.
    pub dir: StateDir,
    /// The same, open.
    pub held: Held,
    /// What is recorded there.
    pub record: Record,
    /// Its cgroup.
    pub cgroup: Cgroup,
    /// Its first process.
    pub pidfd: OwnedFd,
    /// The terminal, if the runtime keeps it.
    pub terminal: Option<OwnedFd>,
    /// To the first process.
    pub channel: Channel,
}

/// Takes back what was made, unless told that all went well.
struct Undo {
    dir: StateDir,
    /// Nobody else removes it meanwhile.
    lock: Option<Lock>,
    cgroup: Option<Cgroup>,
    pidfd: Option<OwnedFd>,
    placeholder: Option<Placeholder>,
    resctrl: Option<resctrl::Group>,
    /// Hooks for the end, once there was a container.
    poststop: Option<(Vec<config::Hook>, state::State)>,
}

impl Drop for Undo {
    fn drop(&mut self) {
        if let Some(pidfd) = &self.pidfd {
            let _ = clone::pidfd_send_signal(pidfd.as_fd(), libc::SIGKILL);
            let _ = clone::wait(pidfd.as_fd());
        }
        if let Some(cgroup) = &self.cgroup {
            // Without descriptors left, its processes cannot be listed, but an empty directory goes all the same.
            let _ = cgroup.kill();
            let _ = cgroup.remove();
        }
        if let Some(group) = &self.resctrl {
            let _ = group.remove();
        }
        if let Some((list, state)) = &self.poststop {
            let line = state.with(Status::Stopped, Some(0)).to_line();
            for failure in hooks::run_each("poststop", list, &line) {
                eprintln!("gantry-runtime: warning: {failure}");
            }
        }
        let _ = self.dir.remove();
    }
}

/// Make a container.
///
/// # Errors
/// A step fails, or a signal ends the attempt; nothing is left then.
pub fn launch(options: &Options, bundle: &Bundle, manner: Manner, signals: &Signals) -> Outcome<Launched> {
    let config = &bundle.config;
    if rootless::is_ordinary_user() {
        check_for_ordinary_user(config)?;
    }
    let terminal = terminal_receiver(options, config, &manner)?;
    let pidfd_receiver = Receiver::connect(options.pidfd_socket.as_ref())?;
    let unit = unit(options, config).in_step("cgroup")?;
    let dir = StateDir::new(&options.root, &options.id)?;
    let lock = dir.claim().in_step("claim id")?;
    let mut undo = Undo {
        dir: dir.clone(),
        lock: Some(lock),
        cgroup: None,
        pidfd: None,
        placeholder: None,
        resctrl: None,
        poststop: None,
    };
    let mut record = intent(options, bundle, &manner, unit.as_ref())?;
    dir.write_first(&record).in_step("record intent")?;
    let with_socket = match &options.manager {
        Some(manager) => manager.add_to(config, &dir).in_step("notify socket")?,
        None => None,
    };
    let config = with_socket.as_ref().unwrap_or(config);

    let mut cgroup = Cgroup::at(record.cgroup.clone()).in_step("cgroup")?.with_unit(unit);
    let namespaces = Namespaces::plan(config).in_step("namespaces")?;
    let cgroup_comes = may_come_later(config, &cgroup, &namespaces);
    let (mut doors, mut aside) = (Doors::default(), None);
    if !cgroup_comes {
        doors = set_up_cgroup(options, config, &mut cgroup, &mut record, &mut undo)?;
        aside = cgroup.aside(&config.linux.resources);
    }

    undo.resctrl = resctrl::prepare(config, &options.id).in_step("resctrl")?;

    // One descriptor per bind mount is held.
    let open_files = if config.mounts.len() > MOUNTS_MANY { rlimits::raise_open_files() } else { None };
    let prepared = Prepared::open_early(config, &bundle.path, &cgroup).in_step("open mounts")?;
    let (ours, theirs) = Channel::pair().in_step("clone")?;
    let start = match manner.later {
        true => Start::Later(listen(&dir).in_step("clone")?),
        false => Start::AtOnce,
    };
    let keyring = format!("_ses.{}", options.id);
    let process = config.process.as_ref().ok_or_else(|| Failure::new("there is nothing to run"))?;
    let state = record.state(Status::Creating, None);
    let ignored = signal::ignored().in_step("clone")?;
    let listen_fds = listen_fds();
    let between = namespaces.needs_go_between();
    if namespaces.makes_user() {
        give_streams(process, &config.linux.uid_mappings, manner.stdio.as_ref());
    }
    let more_doors = undo.resctrl.as_ref().map_or(Ok(Vec::new()), resctrl::Group::doors).in_step("resctrl")?;
    let back = if between { None } else { namespaces.join_pid_for_children().in_step("join namespaces")? };
    let born_into = if between { 0 } else { namespaces.born_into };
    let (side, mut doors) = clone_into(&cgroup, doors, born_into).in_step("clone")?;
    doors.add(Doors::from(more_doors));
    match side {
        Side::Child => {
            // The death of the creator must free the container for others.
            if let Some(lock) = undo.lock.take() {
                lock.leave();
            }
            std::mem::forget(undo);
            drop(ours);
            let program = Program {
                process,
                filter: bundle.filter.as_ref(),
                preserve_fds: options.preserve_fds.saturating_add(listen_fds),
                listen_fds,
                open_files,
                ignored,
                keyring: (!options.no_new_keyring).then_some(keyring.as_str()),
                // After the pivot.
                at_root: true,
                same_rights: !between && !namespaces.makes_user(),
            };
            if between {
                go_between(config, process, &namespaces, &theirs);
                // Both processes write to one socket; nothing may come before our number.
                if theirs.wait_for_go().is_err() {
                    process::exit_now(1);
                }
            }
            init::run(Init {
                config,
                bundle: &bundle.path,
                prepared,
                cgroup,
                cgroup_comes,
                doors,
                aside,
                namespaces: &namespaces,
                channel: theirs,
                program,
                start,
                terminal,
                stdio: manner.stdio,
                state: &state,
                no_pivot: options.no_pivot,
                joined: between,
                host_pid: 0,
                ready: None,
            })
        }
        Side::Parent { pid, pidfd } => {
            drop((theirs, start, prepared, terminal, manner.stdio));
            doors.leave_open();
            drop(aside);
            let pid = match between {
                false => {
                    undo.pidfd = Some(pidfd);
                    if cgroup_comes {
                        let doors = set_up_cgroup(options, config, &mut cgroup, &mut record, &mut undo)?;
                        // If nobody is there to hear it, there is a message that says why.
                        let _ = ours.send_doors(&doors, cgroup.is_located());
                        doors.leave_open();
                    }
                    pid
                }
                true => {
                    let (pid, pidfd) = identity(&ours, pidfd, signals)?;
                    undo.pidfd = Some(pidfd);
                    pid
                }
            };
            if let Some(own) = back {
                // Hooks and other programs that we run are not the container's.
                clone::setns(own.as_fd(), libc::CLONE_NEWPID)
                    .because(|| "cannot go back to the runtime's pid namespace".to_owned())
                    .in_step("join namespaces")?;
            }
            record.init = match &undo.pidfd {
                Some(pidfd) => Some(ProcessId::held(pid, pidfd.as_fd())?),
                None => None,
            };
            // Hooks may ask for the state. Nobody else is served by a record of a process that is not there yet: should
            // we die, it ends by itself.
            if !config.hooks.prestart.is_empty() || !config.hooks.create_runtime.is_empty() {
                dir.write(&record).in_step("record process")?;
            }
            // Written while the process is at work, so that little is left to do when it is ready.
            record.complete = true;
            dir.draft(&record).in_step("record process")?;
            dir.write_config(&bundle.text).in_step("record process")?;
            set_oom_score(process.oom_score_adj, pid).in_step("OOM score")?;
            if !config.hooks.poststop.is_empty() {
                undo.poststop = Some((config.hooks.poststop.clone(), state.clone()));
            }
            net_devices::move_all(config, pid).in_step("network devices")?;
            let terminal = converse(config, &ours, pid, &cgroup, &state, signals)?;
            undo.placeholder = None;
            dir.publish().in_step("record process")?;
            if let Some(file) = &options.pid_file {
                state::write_atomically(file, pid.to_string().as_bytes(), false).in_step("pid file")?;
            }
            if let Some(pidfd) = &undo.pidfd {
                pidfd_receiver.send(pidfd.as_fd())?;
            }
            let pidfd = undo.pidfd.take().ok_or_else(|| Failure::new("the process is lost"))?;
            let lock = undo.lock.take().ok_or_else(|| Failure::new("the state directory is lost"))?;
            let held = lock.release();
            std::mem::forget(undo);
            Ok(Launched { dir, held, record, cgroup, pidfd, terminal, channel: ours })
        }
    }
}

/// Whether the cgroup can be made while the container's process makes its mounts, which takes as long. Not when that
/// process is born in it, shows it to the container as a directory of the host, must not be charged for its start, or is
/// waiting for something else.
fn may_come_later(config: &Config, cgroup: &Cgroup, namespaces: &Namespaces) -> bool {
    cgroup.is_plain_v1(&config.linux.resources)
        && namespaces.unshare_cgroup
        && !namespaces.makes_user()
        && !namespaces.needs_go_between()
        && !rootless::is_ordinary_user()
}

/// Make the cgroup with its limits, and record where it is if that is not where it was meant to be. Returns the files to
/// join it by.
fn set_up_cgroup(
    options: &Options,
    config: &Config,
    cgroup: &mut Cgroup,
    record: &mut Record,
    undo: &mut Undo,
) -> Outcome<Doors> {
    let made = make_cgroup(options, config, cgroup).in_step("cgroup")?;
    if !cgroup.left_out().is_empty() || cgroup.path() != record.cgroup {
        record.cgroup = cgroup.path().to_owned();
        record.cgroup_left_out = cgroup.left_out().to_vec();
        undo.dir.write(record).in_step("record intent")?;
    }
    undo.cgroup = Some(cgroup.clone());
    undo.placeholder = made.placeholder;
    cgroup.apply(&config.linux.resources).in_step("limits")?;
    if let Some(user) = owner::of(config) {
        cgroup.give_to(user).in_step("cgroup")?;
    }
    Ok(made.doors)
}

/// The systemd unit to make, found out before anything is made.
///
/// # Errors
/// systemd does not run, or `linux.cgroupsPath` names no unit.
pub fn unit(options: &Options, config: &Config) -> Outcome<Option<Unit>> {
    if !options.systemd_cgroup {
        return Ok(None);
    }
    systemd::require()?;
    Unit::new(config.linux.cgroups_path.as_deref(), &options.id, &config.annotations).map(Some)
}

/// What `state.json` says before anything is made.
///
/// # Errors
/// `/proc` is not readable.
pub fn intent(options: &Options, bundle: &Bundle, manner: &Manner, unit: Option<&Unit>) -> Outcome<Record> {
    let me = ProcessId::own()?;
    let config = &bundle.config;
    Ok(Record {
        id: options.id.clone(),
        oci_version: config.oci_version.clone(),
        bundle: bundle.path.clone(),
        rootfs: mounts::root_path(config, &bundle.path),
        created: crate::time::rfc3339(SystemTime::now()),
        boot_id: state::boot_id().to_owned(),
        cgroup: match unit {
            Some(unit) => unit.place()?,
            None => cgroup::place(config.linux.cgroups_path.as_deref(), &options.id),
        },
        unit: unit.cloned(),
        cgroup_left_out: Vec::new(),
        annotations: config.annotations.clone(),
        creator: me,
        init: None,
        supervisor: manner.supervised.then_some(me),
        complete: false,
        poststart: !config.hooks.poststart.is_empty(),
        poststop: !config.hooks.poststop.is_empty(),
    })
}

/// What an ordinary user cannot have, before anything is made.
fn check_for_ordinary_user(config: &Config) -> Outcome<()> {
    if config.namespace("user").is_none() {
        return Err(Failure::new(
            "$.linux.namespaces: rootless container requires user namespaces: there is no `user`",
        )
        .hint("`gantry-runtime spec --rootless` writes a bundle for an ordinary user; or run as root"));
    }
    for (index, mount) in config.mounts.iter().enumerate() {
        let idmap = |option: &String| matches!(option.split('=').next(), Some("idmap" | "ridmap"));
        if !mount.uid_mappings.is_empty() || mount.options.iter().any(idmap) {
            let text = format!("$.mounts[{index}]: mapping the IDs of a mount takes the rights of the host's root");
            return Err(Failure::new(text).hint("remove `idmap` and the maps of the mount, or run as root"));
        }
    }
    Ok(())
}

/// How many sockets a service manager opened for the program, as descriptors from 3 on.
fn listen_fds() -> u32 {
    /// More than a service manager opens, and few enough to count with.
    const MAX: u32 = 4096;
    let given = std::env::var("LISTEN_FDS").ok().and_then(|text| text.parse().ok());
    given.filter(|count| *count <= MAX).unwrap_or(0)
}

/// Make the cgroup; a rootless runtime leaves out what it may not make, unless the bundle names a place and gets none.
fn make_cgroup(options: &Options, config: &Config, cgroup: &mut Cgroup) -> Outcome<Made> {
    let resources = &config.linux.resources;
    let named = config.linux.cgroups_path.as_deref().is_some_and(|path| !path.is_empty());
    if !rootless::is_ordinary_user() {
        match cgroup.create(resources) {
            Err(_) if options.rootless.tolerates() => {}
            result => return result,
        }
    } else if options.rootless == Rootless::No || options.systemd_cgroup {
        return cgroup.create(resources);
    }
    if let Some(made) = cgroup.create_where_allowed()? {
        return Ok(made);
    }
    if named {
        return Err(Failure::new(format!("cannot make cgroup `{}`: permission denied", cgroup.path()))
            .hint("remove `linux.cgroupsPath`, or let a directory above it be delegated to the user"));
    }
    let membership = fs::read_to_string("/proc/self/cgroup").unwrap_or_default();
    let v2 = cgroup.hierarchies().v2.clone();
    if let Some(place) = v2.and_then(|mount| rootless::delegated_place(&membership, &mount, &options.id)) {
        let mut delegated = cgroup.clone().moved_to(place);
        let made = delegated.create_where_allowed()?;
        *cgroup = delegated;
        return Ok(made.unwrap_or_default());
    }
    Ok(Made::default())
}

/// Let the program of a container with a user namespace open `/dev/stdout` and the like: pipes belong to whoever made
/// them, and in the namespace we cannot give them away any more.
fn give_streams(process: &config::Process, map: &[config::IdMapping], stdio: Option<&[OwnedFd; 3]>) {
    use rustix::fs::{FileType, Uid};
    let Some(uid) = idmap::to_host(map, process.user.uid) else { return };
    if rootless::is_ordinary_user() {
        return;
    }
    for number in 0..3 {
        let fd = match stdio {
            Some(replaced) => Some(replaced[number].as_fd()),
            None => process::inherited(number as i32),
        };
        let Some(fd) = fd else { continue };
        let is_pipe = rustix::fs::fstat(fd).is_ok_and(|stat| FileType::from_raw_mode(stat.st_mode).is_fifo());
        if is_pipe {
            // Not ours to give: the program can still read and write it.
            let _ = rustix::fs::fchown(fd, Some(Uid::from_raw(uid)), None);
        }
    }
}

/// Clone into the container's v2 directory, or, where the kernel refuses that, move there through its file.
fn clone_into(cgroup: &Cgroup, mut doors: Doors, flags: u64) -> Outcome<(Side, Doors)> {
    let birthplace = cgroup.birthplace()?;
    let what = || "cannot make the container's process".to_owned();
    let hint = "are namespaces enabled in this kernel and allowed by its limits (/proc/sys/user/max_*_namespaces)?";
    if let Some(birthplace) = &birthplace {
        if let Ok(side) = clone::clone3(flags, Some(birthplace.as_fd())) {
            return Ok((side, doors));
        }
        cgroup.add_v2_door(&mut doors)?;
    }
    Ok((clone::clone3(flags, None).because(what).or_hint(hint)?, doors))
}

/// In the process between: join, make the container's process as our sibling, tell who it is, and end. Returns in the
/// new process only.
fn go_between(config: &Config, process: &config::Process, namespaces: &Namespaces, channel: &Channel) {
    let join = || -> Outcome<i32> {
        if let Some(value) = process.oom_score_adj.filter(|_| rootless::is_ordinary_user()) {
            // The last moment at which this user may: in the container's user namespace the file is root's.
            set_score("/proc/self/oom_score_adj", value)?;
        }
        // The process to come is seen by those that are in the namespaces already, and our binary through it.
        process::set_not_dumpable().because(|| "cannot make the process undumpable".to_owned())?;
        namespaces.join_around_user(process)?;
        if namespaces.unshare_time {
            // Before there is a process in it; nothing of the container sees this one, which is in no namespace of it
            // that shows processes.
            process::set_dumpable().because(|| "cannot make the process dumpable".to_owned())?;
            init::unshare_time(config, false)?;
            process::set_not_dumpable().because(|| "cannot make the process undumpable".to_owned())?;
        }
        clone::clone3_sibling(namespaces.born_into).because(|| "cannot make the process".to_owned())
    };
    match join() {
        Ok(0) => {}
        Ok(pid) => {
            let _ = channel.send(&Message::Identity(pid));
            process::exit_now(0)
        }
        Err(failure) => {
            let _ = channel.send(&Message::Failed(failure.in_step("join namespaces")));
            process::exit_now(1)
        }
    }
}

/// Learn from a go-between which process is the container's, and bury the go-between.
///
/// # Errors
/// It failed, or the process has gone.
pub fn identity(channel: &Channel, between: OwnedFd, signals: &Signals) -> Outcome<(i32, OwnedFd)> {
    // It ends by itself whatever happens: when it has sent its message, or when nobody listens any more.
    let message = signals.receive(channel).inspect_err(|_| {
        let _ = clone::pidfd_send_signal(between.as_fd(), libc::SIGKILL);
    });
    clone::wait(between.as_fd()).because(|| "cannot reap the go-between".to_owned())?;
    match message? {
        Message::Identity(pid) => {
            let pidfd = clone::pidfd_open(pid).because(|| "the container's process has gone".to_owned())?;
            channel.go()?;
            Ok((pid, pidfd))
        }
        other => Err(unexpected(other)),
    }
}

fn unexpected(message: Message) -> Failure {
    match message {
        Message::Failed(failure) => failure,
        Message::End => Failure::new("the container's process died before it was ready")
            .hint("too small a memory limit kills it; see `dmesg` and `linux.resources.memory.limit`"),
        _ => Failure::new("the container's process sent a message out of order"),
    }
}

/// Serve the container's process until it is ready; returns the terminal if one came.
fn converse(
    config: &Config,
    channel: &Channel,
    pid: i32,
    cgroup: &Cgroup,
    state: &state::State,
    signals: &Signals,
) -> Outcome<Option<OwnedFd>> {
    let mut terminal = None;
    let is_hopeless = || cgroup.waits_for_memory();
    let mut guard = OomGuard::new(pid, &is_hopeless);
    loop {
        match guard.receive(channel, signals)? {
            Message::NeedMaps => {
                let linux = &config.linux;
                idmap::write(pid, &linux.uid_mappings, &linux.gid_mappings).in_step("user namespace")?;
                config.process.iter().for_each(|process| rlimits::raise_of(pid, &process.rlimits));
                channel.go()?;
            }
            Message::NeedHooks => {
                let line = state.with(Status::Creating, Some(pid)).to_line();
                // As other runtimes have it, they start in the bundle. Our own paths are all absolute.
                rustix::process::chdir(&state.bundle).because(|| "cannot enter the bundle".to_owned())?;
                hooks::run("prestart", &config.hooks.prestart, &line).in_step("runtime hooks")?;
                hooks::run("createRuntime", &config.hooks.create_runtime, &line).in_step("runtime hooks")?;
                channel.go()?;
            }
            Message::Terminal(master) => terminal = Some(master),
            Message::Created => return Ok(terminal),
            other => return Err(unexpected(other)),
        }
    }
}

fn set_oom_score(value: Option<i32>, pid: i32) -> Outcome<()> {
    value.map_or(Ok(()), |value| set_score(&format!("/proc/{pid}/oom_score_adj"), value))
}

/// Set a score, unless it is the one wanted. Without privilege it can be raised only: a rootless container that wants
/// a lower one keeps what its caller has, and is killed the earlier.
///
/// # Errors
/// The kernel refuses.
pub fn set_score(path: &str, value: i32) -> Outcome<()> {
    let now: Option<i32> = fs::read_to_string(path).ok().and_then(|text| text.trim().parse().ok());
    if now == Some(value) {
        return Ok(());
    }
    match fs::write(path, value.to_string()) {
        Err(_) if now.is_some_and(|now| value < now) && rootless::is_rootless() => Ok(()),
        result => result
            .because(|| format!("cannot set `process.oomScoreAdj` to {value}"))
            .or_hint("lowering it below the runtime's own takes CAP_SYS_RESOURCE"),
    }
}

/// A socket on which the container's process waits for `start`. Bound through a descriptor, since socket paths are
/// short and the state root may not be.
fn listen(dir: &StateDir) -> Outcome<OwnedFd> {
    use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType};
    let what = || "cannot make the start socket".to_owned();
    let path = socket_path(dir)?;
    let socket = rustix::net::socket_with(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None)
        .because(what)?;
    let address = SocketAddrUnix::new(path.1.as_str()).because(what)?;
    rustix::net::bind(&socket, &address).because(what)?;
    rustix::net::listen(&socket, 4).because(what)?;
    Ok(socket)
}

/// A short path to the start socket, and the descriptor that keeps it valid.
fn socket_path(dir: &StateDir) -> Outcome<(OwnedFd, String)> {
    use rustix::fs::{Mode, OFlags};
    use std::os::fd::AsRawFd;
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let fd = rustix::fs::open(dir.path(), flags, Mode::empty())
        .because(|| format!("cannot open `{}`", dir.path().display()))?;
    let path = format!("/proc/self/fd/{}/start.sock", fd.as_raw_fd());
    Ok((fd, path))
}

/// Connect to a created container's start socket; `None` when nobody listens any more.
///
/// # Errors
/// The socket cannot be reached.
pub fn connect_start(dir: &StateDir) -> Outcome<Option<Channel>> {
    use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType};
    let what = || "cannot reach the start socket".to_owned();
    let path = socket_path(dir)?;
    let socket = rustix::net::socket_with(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None)
        .because(what)?;
    let address = SocketAddrUnix::new(path.1.as_str()).because(what)?;
    match rustix::net::connect(&socket, &address) {
        Ok(()) => Ok(Some(Channel(socket))),
        Err(rustix::io::Errno::CONNREFUSED | rustix::io::Errno::NOENT) => Ok(None),
        Err(error) => Err(error).because(what),
    }
}

/// Who takes the terminal, checked before anything is made.
///
/// # Errors
/// Nobody does, or the socket cannot be reached.
pub fn terminal_receiver(options: &Options, config: &Config, manner: &Manner) -> Outcome<Terminal> {
    let wanted = config.process.as_ref().is_some_and(|process| process.terminal);
    match (&options.console_socket, wanted) {
        (None, false) => Ok(Terminal::None),
        (Some(_), false) => Err(Failure::new("--console-socket is given, but `process.terminal` is false")
            .hint("set `process.terminal` in config.json, or leave the option out")),
        (Some(path), true) => connect_console(path).map(Terminal::Send),
        (None, true) if manner.keep_terminal => Ok(Terminal::Keep),
        (None, true) => Err(Failure::new("`process.terminal` is true, but nobody takes the terminal")
            .hint("give --console-socket, run in the foreground, or set `process.terminal` to false")),
    }
}

/// Connect to a socket that takes a terminal.
///
/// # Errors
/// Nobody listens there.
pub fn connect_console(path: &Path) -> Outcome<OwnedFd> {
    let what = || format!("cannot connect to console socket `{}`", path.display());
    std::os::unix::net::UnixStream::connect(path).map(OwnedFd::from).because(what)
}
