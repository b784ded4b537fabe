//! A further process in a running container.
//!
//! ```text
//! check record → pidfd of init → open cgroup doors → setns(pid) → clone3 → in the child:
//!   undumpable, cgroup, setns(all others at once), session, terminal, credentials, filter, exec
//! ```

use crate::cgroup::{Cgroup, Doors};
use crate::config::check::check_process;
use crate::config::read::read;
use crate::config::{Config, Process, Seccomp};
use crate::container::capabilities;
use crate::container::channel::{Channel, Message};
use crate::container::init::{Terminal, hand_over};
use crate::container::labels;
use crate::container::namespaces::{Kind, MountsOf, become_root};
use crate::container::process::{self as program, Program};
use crate::container::{resctrl, scheduling};
use crate::error::{Because, Failure, InStep, Outcome};
use crate::foreground::{self, OomGuard, Signals};
use crate::launch::{self, compile_filter, connect_console};
use crate::pidfd::Receiver;
use crate::remove::saved_config;
use crate::rootless;
use crate::seccomp::notify;
use crate::state::{self, StateDir, Status};
use crate::sys::clone::{self, Side};
use crate::sys::{process, signal};
use rustix::event::{PollFd, PollFlags, Timespec};
use rustix::fs::{Mode, OFlags};
use std::fmt;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::path::PathBuf;

/// What the command line asks for.
#[derive(Debug, Clone, Default)]
pub struct Options {
    /// State root.
    pub root: PathBuf,
    /// Container.
    pub id: String,
    /// `--process`.
    pub process: Option<PathBuf>,
    /// Command and arguments.
    pub args: Vec<String>,
    /// `--tty`.
    pub tty: bool,
    /// `--console-socket`.
    pub console_socket: Option<PathBuf>,
    /// `--cwd`.
    pub cwd: Option<String>,
    /// `--env`.
    pub env: Variables,
    /// `--user`.
    pub user: Option<(u32, Option<u32>)>,
    /// `--additional-gids`.
    pub additional_gids: Vec<u32>,
    /// `--cap`.
    pub capabilities: Vec<String>,
    /// `--no-new-privs`.
    pub no_new_privs: bool,
    /// `--detach`.
    pub detach: bool,
    /// `--pid-file`.
    pub pid_file: Option<PathBuf>,
    /// `--preserve-fds`.
    pub preserve_fds: u32,
    /// `--pidfd-socket`.
    pub pidfd_socket: Option<PathBuf>,
    /// `--apparmor`.
    pub apparmor: Option<String>,
    /// `--process-label`.
    pub process_label: Option<String>,
    /// `--cgroup`: below the container's.
    pub cgroups: Vec<SubCgroup>,
    /// `--ignore-paused`.
    pub ignore_paused: bool,
}

/// Variables of an environment, `NAME=VALUE`. Values are often secrets, so only names are shown in a log.
#[derive(Clone, Default)]
pub struct Variables(pub Vec<String>);

impl fmt::Debug for Variables {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list().entries(self.0.iter().map(|entry| name_of(entry))).finish()
    }
}

/// The name of a variable.
fn name_of(entry: &str) -> &str {
    entry.split_once('=').map_or(entry, |(name, _)| name)
}

/// A cgroup below the container's, for some controllers or all.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SubCgroup {
    /// v1 controllers it is for; none stands for all.
    pub controllers: Vec<String>,
    /// Its path below the container's own cgroup.
    pub path: String,
}

impl SubCgroup {
    /// `[CONTROLLER[,CONTROLLER...]:]PATH`; `None` when the path would leave the container's cgroup.
    pub fn parse(text: &str) -> Option<Self> {
        let (controllers, path) = text.rsplit_once(':').unwrap_or(("", text));
        let controllers = controllers.split(',').filter(|name| !name.is_empty()).map(str::to_owned).collect();
        if path.split('/').any(|part| part == "..") {
            return None;
        }
        Some(Self { controllers, path: path.trim_matches('/').to_owned() })
    }

    fn is_for(&self, v1: Option<&[String]>) -> bool {
        self.controllers.is_empty() || v1.is_some_and(|names| names.iter().any(|name| self.controllers.contains(name)))
    }
}

/// The content of `--process`.
fn given_process(options: &Options) -> Outcome<Option<Process>> {
    let Some(file) = &options.process else { return Ok(None) };
    let text = crate::files::read_given(file, crate::files::CONFIG_BYTES_MAX)
        .because(|| format!("cannot read `{}`", file.display()))?;
    Ok(Some(read::<Process>(&text, &file.display().to_string())?))
}

/// The process to run: that of a file, or the container's own with what the command line changes.
fn process_of(options: &Options, given: Option<Process>, config: &Config) -> Outcome<Process> {
    let process = if let Some(process) = given {
        process
    } else {
        let mut process = config.process.clone().unwrap_or_default();
        process.args = options.args.clone();
        process.terminal = false;
        process.console_size = None;
        process
    };
    let mut process = process;
    process.terminal |= options.tty;
    if let Some(cwd) = &options.cwd {
        process.cwd.clone_from(cwd);
    }
    if process.cwd.is_empty() {
        process.cwd = "/".to_owned();
    }
    override_env(&mut process.env, &options.env.0);
    if let Some((uid, gid)) = options.user {
        process.user.uid = uid;
        process.user.gid = gid.unwrap_or(0);
        process.user.additional_gids.clear();
    }
    process.user.additional_gids.extend(&options.additional_gids);
    process.no_new_privileges |= options.no_new_privs;
    if options.apparmor.is_some() {
        process.apparmor_profile.clone_from(&options.apparmor);
    }
    if options.process_label.is_some() {
        process.selinux_label.clone_from(&options.process_label);
    }
    if !options.capabilities.is_empty() {
        let sets = process.capabilities.get_or_insert_default();
        for set in [&mut sets.bounding, &mut sets.effective, &mut sets.permitted] {
            set.extend(options.capabilities.iter().cloned());
        }
    }
    check_process(&process, "process").map_err(|error| Failure::new(error.to_string()))?;
    labels::check_host_process(&process)?;
    Ok(process)
}

/// Add variables; one that is there already is replaced, since programs differ in which of two they take.
fn override_env(env: &mut Vec<String>, added: &[String]) {
    for entry in added {
        env.retain(|old| name_of(old) != name_of(entry));
        env.push(entry.clone());
    }
}

/// Run a process; returns its exit code, or 0 at once when detached.
///
/// # Errors
/// The container does not run, or a step fails.
pub fn exec(options: &Options) -> Outcome<i32> {
    // It may be a pipe to wait for, which a signal should be able to end.
    let given = given_process(options)?;
    let signals = Signals::hold()?;
    let dir = StateDir::new(&options.root, &options.id)?;
    let record = dir.read_complete()?;
    let (status, opened) = dir.look(&record);
    if status == Status::Paused && !options.ignore_paused {
        return Err(Failure::new("cannot exec in a paused container (use --ignore-paused to override)")
            .hint(format!("`gantry-runtime resume {}` lets it go on", options.id)));
    }
    let init = match (status, record.init) {
        (Status::Running | Status::Created | Status::Paused, Some(init)) => opened.map(|opened| (init.pid, opened)),
        _ => None,
    };
    let Some((init_pid, init)) = init else {
        return Err(Failure::new(format!("cannot exec in a {} container: `{}`", status.name(), options.id))
            .hint("only a running container can take another process"));
    };
    let (_, config) = saved_config(&dir)?;
    let process = process_of(options, given, &config)?;
    let filter = compile_filter(&config)?;
    let terminal = match (&options.console_socket, process.terminal, options.detach) {
        (Some(path), true, _) => Terminal::Send(connect_console(path)?),
        (Some(_), false, _) => {
            return Err(Failure::new("--console-socket is given without a terminal").hint("add --tty"));
        }
        (None, true, true) => {
            return Err(Failure::new("a detached terminal needs a receiver").hint("give --console-socket"));
        }
        (None, true, false) => Terminal::Keep,
        (None, false, _) => Terminal::None,
    };
    let pidfd_receiver = Receiver::connect(options.pidfd_socket.as_ref())?;
    let cgroup = Cgroup::at(record.cgroup.clone()).in_step("cgroup")?.without(&record.cgroup_left_out);
    let kinds = kinds(&config);
    // With the rights of its owner only, the user namespace must be joined before the others, and for good.
    let ordinary = rootless::is_ordinary_user() && kinds & libc::CLONE_NEWUSER != 0;
    let exposed = is_exposed(&config, kinds);
    let traced = exposed && (traces(config.process.as_ref()) || dir.is_traced());
    if exposed && !traced && traces(Some(&process)) {
        // For those that come after it: this one may look at them.
        dir.mark_traced()?;
    }
    let between = ordinary || traced;
    if !between && kinds & libc::CLONE_NEWPID != 0 {
        clone::setns(init.as_fd(), libc::CLONE_NEWPID)
            .because(|| "cannot join the pid namespace".to_owned())
            .in_step("join namespaces")?;
    }
    let ignored = signal::ignored().in_step("clone")?;
    let root = match MountsOf::of(&config) {
        MountsOf::Container => None,
        _ => Some(root_of(init_pid).in_step("join namespaces")?),
    };
    let (ours, theirs) = Channel::pair().in_step("clone")?;
    let resctrl = resctrl::of(&config, &options.id).in_step("resctrl")?;
    scheduling::apply_initial_affinity(&process)?;
    let (side, mut doors) = match options.cgroups.as_slice() {
        [] => clone_into(&cgroup, init_pid).in_step("clone")?,
        chosen => clone_below(&cgroup, chosen).in_step("cgroup")?,
    };
    match side {
        Side::Child => {
            drop(ours);
            if between {
                if ordinary {
                    go_between(init.as_fd(), kinds, &process, &theirs);
                } else {
                    approach(init.as_fd(), kinds, std::mem::take(&mut doors), &theirs, &terminal, options.preserve_fds);
                }
                if theirs.wait_for_go().is_err() {
                    process::exit_now(1);
                }
            }
            let program = Program {
                process: &process,
                filter: filter.as_ref(),
                preserve_fds: options.preserve_fds,
                listen_fds: 0,
                open_files: None,
                ignored,
                keyring: None,
                at_root: false,
                same_rights: false,
            };
            if let Some(group) = &resctrl {
                match group.doors() {
                    Ok(more) => doors.add(more.into()),
                    Err(failure) => {
                        let _ = theirs.send(&Message::Failed(failure.in_step("resctrl")));
                        process::exit_now(1)
                    }
                }
            }
            let memory_policy = config.linux.memory_policy.as_ref();
            let kinds = if between { 0 } else { kinds };
            let child =
                Child { init: init.as_fd(), kinds, memory_policy, root, doors, terminal, channel: &theirs, program };
            let failure = match child.run() {
                Ok(never) => match never {},
                Err(failure) => failure,
            };
            let _ = theirs.send(&Message::Failed(failure));
            process::exit_now(1)
        }
        Side::Parent { pid, pidfd } => {
            drop((theirs, init, root, terminal, doors));
            let (pid, pidfd) = if between { launch::identity(&ours, pidfd, &signals)? } else { (pid, pidfd) };
            let state = dir.state(&record);
            let process = notify::Process { pidfd: pidfd.as_fd(), pid, state: &state };
            let profile = config.linux.seccomp.as_ref();
            let terminal = await_exec(&ours, &signals, profile, process).inspect_err(|_| {
                let _ = clone::pidfd_send_signal(pidfd.as_fd(), libc::SIGKILL);
                reap(pidfd.as_fd());
            })?;
            if let Some(file) = &options.pid_file {
                state::write_atomically(file, pid.to_string().as_bytes(), false).in_step("pid file")?;
            }
            pidfd_receiver.send(pidfd.as_fd())?;
            if options.detach {
                return Ok(0);
            }
            foreground::attend(pidfd.as_fd(), &signals, terminal, None).map(clone::Exit::shell_code)
        }
    }
}

/// How long a killed process may take to end.
const END_WITHIN: Timespec = Timespec { tv_sec: 2, tv_nsec: 0 };

/// See a killed process end, but not wait for it: in a container that is paused (v1) it ends only when that goes on.
fn reap(pidfd: BorrowedFd<'_>) {
    let mut fds = [PollFd::from_borrowed_fd(pidfd, PollFlags::IN)];
    // Signals are blocked, so nothing interrupts this.
    if rustix::event::poll(&mut fds, Some(&END_WITHIN)).is_ok_and(|ended| ended > 0) {
        let _ = clone::wait(pidfd);
    }
}

/// The root directory of a container that shares its mount namespace with others.
fn root_of(init_pid: i32) -> Outcome<OwnedFd> {
    let path = format!("/proc/{init_pid}/root");
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    rustix::fs::open(path.as_str(), flags, Mode::empty()).because(|| format!("cannot open `{path}`"))
}

/// In the process between: join, make the new process as our sibling, tell who it is, and end. Returns in the new
/// process only.
fn go_between(init: BorrowedFd<'_>, kinds: i32, process: &Process, channel: &Channel) {
    let join = || -> Outcome<i32> {
        if let Some(value) = process.oom_score_adj {
            // The last moment at which this user may: in the container's user namespace the file is root's.
            launch::set_score("/proc/self/oom_score_adj", value)?;
        }
        process::set_not_dumpable().because(|| "cannot make the process undumpable".to_owned())?;
        clone::setns(init, kinds).because(|| "cannot join the namespaces".to_owned())?;
        become_root(process)?;
        clone::clone3_sibling(0).because(|| "cannot make the process".to_owned())
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

/// Whether a process of the container with the right to trace could look into ours. Then it must have nothing of the
/// host left when it appears there: no root, no directory, no descriptor.
fn is_exposed(config: &Config, kinds: i32) -> bool {
    let own_users = kinds & libc::CLONE_NEWUSER != 0;
    let own_root = matches!(MountsOf::of(config), MountsOf::Container);
    own_root && !own_users && kinds & libc::CLONE_NEWPID != 0
}

/// Whether a process can look into every other in its PID namespace, or get the right to.
fn traces(process: Option<&Process>) -> bool {
    let capabilities = process.and_then(|process| process.capabilities.as_ref());
    let is_it = |name: &String| capabilities::bit(name) == capabilities::bit("CAP_SYS_PTRACE");
    capabilities.is_some_and(|sets| sets.bounding.iter().any(is_it))
}

/// Join everything in a process that the container cannot see, make the one that it can see as our sibling, tell who it
/// is, and end. Returns in the new process only, which then has what `terminal`, `channel` and the user need, no more.
fn approach(init: BorrowedFd<'_>, kinds: i32, doors: Doors, channel: &Channel, terminal: &Terminal, preserve_fds: u32) {
    let join = || -> Outcome<i32> {
        process::set_not_dumpable().because(|| "cannot make the process undumpable".to_owned())?;
        doors.enter()?;
        clone::setns(init, kinds).because(|| "cannot join the namespaces".to_owned())?;
        let mut keep = vec![channel.fd().as_raw_fd()];
        if let Terminal::Send(socket) = terminal {
            keep.push(socket.as_raw_fd());
        }
        process::close_all_from(3 + preserve_fds as i32, &keep);
        clone::clone3_sibling(0).because(|| "cannot make the process".to_owned())
    };
    let result = join();
    // Closed already.
    doors.leave_open();
    match result {
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

/// Namespaces the container has of its own, new or joined.
fn kinds(config: &Config) -> i32 {
    Kind::ALL
        .into_iter()
        .filter(|kind| config.namespace(kind.name()).is_some())
        .fold(0, |flags, kind| flags | kind.flag())
}

/// Clone into the container's v2 directory, or beside its first process when the container has made cgroups of its own
/// and its directory takes no process any more, or, where the kernel refuses both, move there through its file.
fn clone_into(cgroup: &Cgroup, init_pid: i32) -> Outcome<(Side, Doors)> {
    let birthplace = cgroup.birthplace()?;
    let mut doors = cgroup.doors()?;
    if let Some(birthplace) = birthplace {
        for place in std::iter::once(birthplace).chain(cgroup.place_of(init_pid)) {
            if let Ok(side) = clone::clone3(0, Some(place.as_fd())) {
                return Ok((side, doors));
            }
        }
        cgroup.add_v2_door(&mut doors)?;
    }
    Ok((clone::clone3(0, None).because(|| "cannot make the process".to_owned())?, doors))
}

/// Clone, to move into chosen cgroups below the container's.
fn clone_below(cgroup: &Cgroup, chosen: &[SubCgroup]) -> Outcome<(Side, Doors)> {
    let known = |name: &String| cgroup.hierarchies().v1_of(name).is_some();
    if let Some(name) = chosen.iter().flat_map(|choice| &choice.controllers).find(|name| !known(name)) {
        return Err(Failure::new(format!("unknown controller `{name}`"))
            .hint("--cgroup CONTROLLER:PATH is for cgroup v1; see /proc/cgroups"));
    }
    // The last one given for a controller counts.
    let doors = cgroup.doors_below(|v1| {
        chosen.iter().rev().find(|choice| choice.is_for(v1)).map_or("", |choice| choice.path.as_str())
    })?;
    Ok((clone::clone3(0, None).because(|| "cannot make the process".to_owned())?, doors))
}

/// Wait until the program has been executed; returns the terminal if one came.
fn await_exec(
    channel: &Channel,
    signals: &Signals,
    profile: Option<&Seccomp>,
    process: notify::Process<'_>,
) -> Outcome<Option<OwnedFd>> {
    let mut terminal = None;
    let mut guard = OomGuard::new(process.pid, &|| false);
    loop {
        match guard.receive(channel, signals)? {
            Message::Terminal(master) => terminal = Some(master),
            Message::Listener(file) => notify::serve(profile, process, channel, &file)?,
            Message::End => return Ok(terminal),
            Message::Failed(failure) => return Err(failure),
            _ => return Err(Failure::new("the process sent a message out of order")),
        }
    }
}

/// What the new process works with.
struct Child<'a> {
    init: BorrowedFd<'a>,
    kinds: i32,
    memory_policy: Option<&'a crate::config::MemoryPolicy>,
    root: Option<OwnedFd>,
    doors: Doors,
    terminal: Terminal,
    channel: &'a Channel,
    program: Program<'a>,
}

impl Child<'_> {
    fn run(self) -> Outcome<std::convert::Infallible> {
        // Before anything of the container can see us: our binary must not be reachable through /proc.
        process::set_not_dumpable()
            .because(|| "cannot make the process undumpable".to_owned())
            .in_step("self-protection")?;
        self.doors.enter().in_step("join cgroup")?;
        let score = self.program.process.oom_score_adj;
        if let Some(value) = score.filter(|_| !rootless::is_ordinary_user()) {
            // By the host's procfs, and while we are the host's root.
            launch::set_score("/proc/self/oom_score_adj", value).in_step("OOM score")?;
        }
        scheduling::apply_final_affinity(self.program.process)?;
        scheduling::apply_memory_policy(self.memory_policy)?;
        let others = self.kinds & !libc::CLONE_NEWPID;
        if others != 0 {
            clone::setns(self.init, others)
                .because(|| "cannot join the namespaces".to_owned())
                .in_step("join namespaces")?;
        }
        if let Some(root) = &self.root {
            rustix::process::fchdir(root)
                .and_then(|()| rustix::process::chroot("."))
                .because(|| "cannot change the root".to_owned())
                .in_step("join namespaces")?;
        }
        if self.kinds & libc::CLONE_NEWUSER != 0 {
            become_root(self.program.process).in_step("join namespaces")?;
        }
        process::set_session().because(|| "cannot make a session".to_owned()).in_step("session")?;
        if self.program.process.terminal {
            self.open_terminal().in_step("terminal")?;
        }
        let ready = self.program.prepare().in_step("find program")?;
        self.program.become_it(&ready, self.channel, || Ok(()))
    }

    fn open_terminal(&self) -> Outcome<()> {
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let dev = rustix::fs::open("/dev", flags, Mode::empty())
            .because(|| "cannot open `/dev` of the container".to_owned())?;
        let (master, slave) = program::open_terminal(&dev, self.program.process)?;
        if matches!(self.terminal, Terminal::Keep) {
            // Standard output is the runtime's until the terminal takes its place.
            foreground::suit_output(master.as_fd());
        }
        hand_over(self.channel, &self.terminal, master)?;
        program::take_terminal(&slave)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cgroups_below() {
        let parsed = |text: &str| SubCgroup::parse(text).map(|sub| (sub.controllers.join("+"), sub.path));
        for (text, want) in [
            ("/", Some(("", ""))),
            ("/a/b/", Some(("", "a/b"))),
            ("memory:/a", Some(("memory", "a"))),
            ("cpu,cpuacct:a", Some(("cpu+cpuacct", "a"))),
            ("a/../..", None),
            ("memory:..", None),
        ] {
            let want = want.map(|(controllers, path)| (controllers.to_owned(), path.to_owned()));
            assert_eq!(parsed(text), want, "{text}");
        }
        let memory = ["memory".to_owned()];
        let one = SubCgroup::parse("memory:/a").expect("good");
        assert!(one.is_for(Some(&memory)) && !one.is_for(None) && !one.is_for(Some(&["cpu".to_owned()])));
        assert!(SubCgroup::parse("/a").expect("good").is_for(None));
    }

    #[test]
    fn a_later_variable_replaces_an_earlier_one() {
        for (why, own, added, want) in [
            ("nothing added", "A=1 B=2", "", "A=1 B=2"),
            ("another", "A=1", "B=2", "A=1 B=2"),
            ("the container's own is dropped", "A=1 B=2", "A=3", "B=2 A=3"),
            ("the last of two wins", "A=1", "A=2 A=3", "A=3"),
            ("twice in the bundle", "A=1 A=2", "A=3", "A=3"),
            ("a name that another begins with", "AB=1 A=1", "A=2", "AB=1 A=2"),
            ("a value with the same sign", "A=x=y", "A=z=w", "A=z=w"),
            ("empty", "A=1", "A=", "A="),
        ] {
            let list = |text: &str| text.split_whitespace().map(str::to_owned).collect::<Vec<_>>();
            let mut env = list(own);
            override_env(&mut env, &list(added));
            assert_eq!(env, list(want), "{why}");
        }
    }
}
