//! From a newborn process to the program: the steps of a container's start, by name.
//!
//! This runs in the container's first process. Every step is fatal (invariant 2); its failure goes back through the
//! channel with the name of the step.

use super::channel::{Channel, Message};
use super::hooks;
use super::labels;
use super::mounts::{self, Context, Prepared};
use super::namespaces::{Kind, Namespaces, become_root};
use super::nodes;
use super::process::{self as program, Program, Ready};
use super::scheduling;
use super::sysctl;
use crate::cgroup::aside::Aside;
use crate::cgroup::{Cgroup, Doors};
use crate::config::Config;
use crate::error::{Because, Failure, Outcome};
use crate::rootless;
use crate::state::Status;
use crate::sys::{clone, mount, process, socket};
use rustix::fs::OFlags;
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;

/// Who gets the master side of the container's terminal.
#[derive(Debug)]
pub enum Terminal {
    /// There is none.
    None,
    /// A connected `--console-socket`.
    Send(OwnedFd),
    /// The runtime process, through the channel.
    Keep,
}

/// How the process learns that it may run the program.
#[derive(Debug)]
pub enum Start {
    /// From the creator, through the channel.
    AtOnce,
    /// From `start`, which connects to this listening socket.
    Later(OwnedFd),
}

/// What the steps work on.
pub struct Init<'a> {
    /// Configuration.
    pub config: &'a Config,
    /// The bundle's directory.
    pub bundle: &'a std::path::Path,
    /// Trees opened on the host; if not by the runtime process, then here.
    pub prepared: Option<Prepared>,
    /// The container's cgroup.
    pub cgroup: Cgroup,
    /// It is being made, and a message says when that is done.
    pub cgroup_comes: bool,
    /// The ways into it.
    pub doors: Doors,
    /// For a memory limit too small for what is made here.
    pub aside: Option<Aside>,
    /// Namespaces to make and join.
    pub namespaces: &'a Namespaces,
    /// To the creator, then to `start`.
    pub channel: Channel,
    /// What to run.
    pub program: Program<'a>,
    /// When to run it.
    pub start: Start,
    /// Who gets the terminal.
    pub terminal: Terminal,
    /// Replacements for standard input, output and error.
    pub stdio: Option<[OwnedFd; 3]>,
    /// The container's state without its process number, for hooks.
    pub state: &'a crate::state::State,
    /// `--no-pivot`.
    pub no_pivot: bool,
    /// Went through a go-between, so namespaces are joined already.
    pub joined: bool,
    /// Number of this process for the runtime; found on the way.
    pub host_pid: i32,
    /// The program, once found.
    pub ready: Option<Ready>,
}

/// One step.
struct Step {
    name: &'static str,
    run: fn(&mut Init<'_>) -> Outcome<()>,
}

/// The start of a container.
const STEPS: &[Step] = &[
    Step { name: "self-protection", run: |init| init.protect() },
    Step { name: "join namespaces", run: |init| init.join_namespaces() },
    Step { name: "open mounts", run: |init| init.open_mounts() },
    Step { name: "user namespace", run: |init| init.enter_user_namespace() },
    Step { name: "session", run: |init| init.new_session() },
    Step { name: "root filesystem", run: |init| mounts::attach_root(init.prepared(), init.place_for_hooks()) },
    Step { name: "mounts", run: |init| init.context().mount_some(0..init.cgroup_mount()) },
    Step { name: "kernel parameters", run: |init| sysctl::apply(init.config) },
    Step { name: "names", run: |init| init.set_names() },
    Step { name: "loopback", run: |init| init.loopback_up() },
    Step { name: "join cgroup", run: |init| init.join_cgroup() },
    Step { name: "late namespaces", run: |init| init.unshare_late() },
    Step { name: "mounts", run: |init| init.context().mount_some(init.cgroup_mount()..init.config.mounts.len()) },
    Step { name: "devices", run: |init| nodes::make(&init.context()) },
    Step { name: "terminal", run: |init| init.open_terminal() },
    Step { name: "masked paths", run: |init| init.context().mask() },
    Step { name: "read-only paths", run: |init| init.context().make_readonly() },
    Step { name: "runtime hooks", run: |init| init.runtime_hooks() },
    Step { name: "container hooks", run: |init| init.container_hooks() },
    Step { name: "working directory", run: |init| init.make_working_directory() },
    Step { name: "pivot root", run: |init| init.pivot() },
    Step { name: "seal root", run: |init| init.context().seal() },
    Step { name: "wait for start", run: |init| init.announce() },
    Step { name: "personality", run: |init| init.set_personality() },
    Step {
        name: "memory policy",
        run: |init| scheduling::apply_memory_policy(init.config.linux.memory_policy.as_ref()),
    },
    Step { name: "find program", run: |init| init.find_program() },
    Step { name: "wait for start", run: |init| init.wait_for_start() },
    Step { name: "start hooks", run: |init| init.start_hooks() },
];

/// Run the steps and become the program; report a failure and end otherwise.
pub fn run(mut init: Init<'_>) -> ! {
    let failure = match init.run() {
        Ok(never) => match never {},
        Err(failure) => failure,
    };
    // Nobody left to tell means nobody left to care: the parent's death is what failed.
    let _ = init.channel.send(&Message::Failed(failure));
    process::exit_now(1)
}

impl Init<'_> {
    fn run(&mut self) -> Outcome<std::convert::Infallible> {
        for step in STEPS {
            (step.run)(self).map_err(|failure| failure.in_step(step.name))?;
        }
        let ready = self.ready.take().ok_or_else(|| Failure::new("no program was found").in_step("exec"))?;
        self.program.become_it(&ready, &self.channel, || self.wait_last())
    }

    fn context(&self) -> Context<'_> {
        Context { config: self.config, prepared: self.prepared(), cgroup: &self.cgroup }
    }

    fn prepared(&self) -> &Prepared {
        self.prepared.as_ref().expect("the step `open mounts` comes first")
    }

    /// Late, in the mount namespace this is for, and while we still are the user who may reach the bundle.
    fn open_mounts(&mut self) -> Outcome<()> {
        if self.prepared.is_none() {
            self.prepared = Some(Prepared::open(self.config, self.bundle, &self.cgroup)?);
        }
        Ok(())
    }

    /// Keep others from reaching our binary through `/proc/PID/exe`, and end with the creator.
    fn protect(&mut self) -> Outcome<()> {
        if self.namespaces.makes_user() && self.namespaces.unshare_time && !self.joined {
            // Clocks are set through a file that is ours only before the next step, and nobody sees us yet.
            unshare_time(self.config, true)?;
        }
        // An ordinary user can write the ID maps of a dumpable process only. In a new user namespace none but that
        // user's own processes on the host may look at it.
        if !(rootless::is_ordinary_user() && self.namespaces.makes_user()) {
            process::set_not_dumpable().because(|| "cannot make the process undumpable".to_owned())?;
        }
        self.end_with_creator()?;
        let hooks = &self.config.hooks;
        if hooks.create_container.is_empty() && hooks.start_container.is_empty() {
            return Ok(());
        }
        // The host's procfs still shows the number that the host knows.
        let link = rustix::fs::readlink("/proc/self", Vec::new()).because(|| "cannot read `/proc/self`".to_owned())?;
        self.host_pid = link.to_str().ok().and_then(|text| text.parse().ok()).unwrap_or(0);
        Ok(())
    }

    /// Where in the list of mounts the first of a cgroup filesystem is. That one must be made inside the container's
    /// cgroup; what was made before it is not counted against the memory limit, which may be smaller than that.
    fn cgroup_mount(&self) -> usize {
        let mounts = &self.config.mounts;
        let first = mounts.iter().position(|mount| matches!(mount.kind.as_deref(), Some("cgroup" | "cgroup2")));
        first.unwrap_or(mounts.len())
    }

    fn end_with_creator(&self) -> Outcome<()> {
        process::set_parent_death_signal(libc::SIGKILL).because(|| "cannot ask for a death signal".to_owned())
    }

    fn join_cgroup(&mut self) -> Outcome<()> {
        if self.cgroup_comes {
            let (doors, located) = self.channel.receive_doors()?;
            self.doors.add(doors);
            if located {
                self.cgroup = self.cgroup.located();
            }
        }
        // They are closed by the exec.
        self.doors.enter()?;
        Ok(())
    }

    fn join_namespaces(&mut self) -> Outcome<()> {
        if self.joined { Ok(()) } else { self.namespaces.join_now(Kind::Pid) }
    }

    fn enter_user_namespace(&mut self) -> Outcome<()> {
        if !self.namespaces.makes_user() {
            return Ok(());
        }
        self.channel.send(&Message::NeedMaps)?;
        self.channel.wait_for_go()?;
        become_root(self.program.process)?;
        // The change of user has taken that back.
        self.end_with_creator()
    }

    fn unshare_late(&mut self) -> Outcome<()> {
        if self.namespaces.unshare_cgroup {
            clone::unshare(libc::CLONE_NEWCGROUP).because(|| "cannot make a cgroup namespace".to_owned())?;
        }
        if self.namespaces.unshare_time && !self.namespaces.makes_user() && !self.joined {
            unshare_time(self.config, true)?;
        }
        self.aside.as_ref().map_or(Ok(()), Aside::step_out)
    }

    fn new_session(&mut self) -> Outcome<()> {
        process::set_session().because(|| "cannot make a session".to_owned())?;
        process::set_umask(0);
        for (number, fd) in self.stdio.take().into_iter().flatten().enumerate() {
            process::dup_to(fd.as_fd(), number as i32).because(|| "cannot set up standard streams".to_owned())?;
        }
        Ok(())
    }

    fn open_terminal(&mut self) -> Outcome<()> {
        if !self.program.process.terminal {
            return Ok(());
        }
        let root = super::path::RootDir(self.prepared().root.as_fd());
        let flags = OFlags::PATH | OFlags::DIRECTORY;
        let dev = root
            .open("/dev", flags, super::path::Links::Refuse)
            .because(|| "cannot open `/dev` of the container".to_owned())?;
        let (master, slave) = program::open_terminal(&dev, self.program.process)?;
        labels::label_file(self.config, slave.as_fd())?;
        if self.prepared().may_mount() {
            let console = program::console_mount(&slave)?;
            self.context().cover(console.as_fd(), "/dev/console")?;
        }
        hand_over(&self.channel, &self.terminal, master)?;
        self.terminal = Terminal::None;
        program::take_terminal(&slave)
    }

    fn set_names(&mut self) -> Outcome<()> {
        if let Some(name) = self.config.hostname.as_deref().filter(|name| !name.is_empty()) {
            mount::set_hostname(name).because(|| format!("cannot set the host name `{name}`"))?;
        }
        if let Some(name) = self.config.domainname.as_deref().filter(|name| !name.is_empty()) {
            mount::set_domainname(name).because(|| format!("cannot set the domain name `{name}`"))?;
        }
        Ok(())
    }

    fn loopback_up(&mut self) -> Outcome<()> {
        if self.namespaces.born_into & libc::CLONE_NEWNET as u64 == 0 {
            return Ok(());
        }
        mount::loopback_up().because(|| "cannot bring up `lo`".to_owned())
    }

    /// Where hooks look for the root filesystem, if there are any before the pivot.
    fn place_for_hooks(&self) -> Option<&Path> {
        let hooks = &self.config.hooks;
        let some = !(hooks.prestart.is_empty() && hooks.create_runtime.is_empty() && hooks.create_container.is_empty());
        (some || self.no_pivot).then_some(self.state.rootfs.as_path())
    }

    fn pivot(&mut self) -> Outcome<()> {
        mounts::pivot(self.prepared(), self.no_pivot)
    }

    /// What the runtime process does while this one waits: network devices and hooks.
    fn runtime_hooks(&mut self) -> Outcome<()> {
        let hooks = &self.config.hooks;
        let devices = &self.config.linux.net_devices;
        if hooks.prestart.is_empty() && hooks.create_runtime.is_empty() && devices.is_empty() {
            return Ok(());
        }
        self.channel.send(&Message::NeedHooks)?;
        self.channel.wait_for_go()
    }

    fn state_as(&self, status: Status) -> String {
        self.state.with(status, Some(self.host_pid)).to_line()
    }

    fn container_hooks(&mut self) -> Outcome<()> {
        if self.config.hooks.create_container.is_empty() {
            return Ok(());
        }
        // As other runtimes have it, they start in the root filesystem.
        rustix::process::fchdir(&self.prepared().root).because(|| "cannot enter the root filesystem".to_owned())?;
        hooks::run("createContainer", &self.config.hooks.create_container, &self.state_as(Status::Creating))
    }

    /// The specification does not say that it must exist, and every other runtime makes it.
    fn make_working_directory(&mut self) -> Outcome<()> {
        if self.program.process.cwd == "/" {
            return Ok(());
        }
        let root = super::path::RootDir(self.prepared().root.as_fd());
        root.make_dir(&self.program.process.cwd, super::path::Links::Follow).map(drop)
    }

    fn set_personality(&mut self) -> Outcome<()> {
        const PER_LINUX: u64 = 0;
        const PER_LINUX32: u64 = 8;
        let Some(personality) = &self.config.linux.personality else {
            return Ok(());
        };
        let domain = if personality.domain == "LINUX32" { PER_LINUX32 } else { PER_LINUX };
        process::set_personality(domain).because(|| format!("cannot set personality {}", personality.domain))
    }

    fn find_program(&mut self) -> Outcome<()> {
        self.ready = Some(self.program.prepare()?);
        Ok(())
    }

    /// Whether the last steps to the program are taken while the creator records that the container is made, and it is
    /// waited for only then: what remains are changes of this process that no other can see. Hooks can.
    fn goes_on(&self) -> bool {
        matches!(self.start, Start::AtOnce) && self.config.hooks.start_container.is_empty()
    }

    fn announce(&mut self) -> Outcome<()> {
        if self.goes_on() { self.channel.send(&Message::Created) } else { Ok(()) }
    }

    /// What is done as late as it can be: each change of our credentials before it is memory that is charged to somebody.
    fn wait_last(&self) -> Outcome<()> {
        if self.goes_on() {
            self.wait_for_go().map_err(|failure| failure.in_step("wait for start"))?;
        }
        self.aside.as_ref().map_or(Ok(()), |aside| aside.step_in())
    }

    fn wait_for_go(&self) -> Outcome<()> {
        self.channel.wait_for_go()?;
        self.live_without_creator()
    }

    /// From here on the container does not depend on its creator.
    fn live_without_creator(&self) -> Outcome<()> {
        process::set_parent_death_signal(0).because(|| "cannot take back the death signal".to_owned())
    }

    fn wait_for_start(&mut self) -> Outcome<()> {
        if self.goes_on() {
            return Ok(());
        }
        self.live_without_creator()?;
        self.channel.send(&Message::Created)?;
        match &self.start {
            Start::AtOnce => self.channel.wait_for_go(),
            Start::Later(listener) => {
                self.channel = accept_start(listener)?;
                self.channel.send(&Message::Executing)
            }
        }
    }

    fn start_hooks(&mut self) -> Outcome<()> {
        let hooks = &self.config.hooks.start_container;
        if hooks.is_empty() {
            return Ok(());
        }
        // They come from the image, so they get no more rights than its program.
        let restrict = || self.program.restrict();
        let environment = self.ready.as_ref().map_or(&[][..], Ready::environment);
        hooks::run_with("startContainer", hooks, &self.state_as(Status::Created), environment, &restrict)
    }
}

/// Make a time namespace with the clocks of the bundle, for children, or to `enter` at once.
///
/// # Errors
/// The kernel has none, or refuses an offset.
pub fn unshare_time(config: &Config, enter: bool) -> Outcome<()> {
    clone::unshare(libc::CLONE_NEWTIME).because(|| "cannot make a time namespace".to_owned())?;
    let line = |(clock, offset): (&String, &crate::config::TimeOffset)| {
        format!("{clock} {} {}\n", offset.secs, offset.nanosecs)
    };
    let offsets: String = config.linux.time_offsets.iter().map(line).collect();
    if !offsets.is_empty() {
        std::fs::write("/proc/self/timens_offsets", offsets).because(|| "cannot set `linux.timeOffsets`".to_owned())?;
    }
    if !enter {
        return Ok(());
    }
    let flags = OFlags::RDONLY | OFlags::CLOEXEC;
    let file = rustix::fs::open("/proc/self/ns/time_for_children", flags, rustix::fs::Mode::empty())
        .because(|| "cannot open the time namespace".to_owned())?;
    clone::setns(file.as_fd(), libc::CLONE_NEWTIME).because(|| "cannot enter the time namespace".to_owned())
}

/// Wait for a `start` that means it.
fn accept_start(listener: &OwnedFd) -> Outcome<Channel> {
    loop {
        let flags = rustix::net::SocketFlags::CLOEXEC;
        let connection = match rustix::net::accept_with(listener, flags) {
            Err(rustix::io::Errno::INTR | rustix::io::Errno::CONNABORTED) => continue,
            result => result.because(|| "cannot take the start command".to_owned())?,
        };
        let channel = Channel(connection);
        if channel.wait_for_go().is_ok() {
            return Ok(channel);
        }
    }
}

/// Give the master side of the terminal to whoever is meant to have it.
///
/// # Errors
/// The receiver is gone.
pub fn hand_over(channel: &Channel, terminal: &Terminal, master: OwnedFd) -> Outcome<()> {
    match terminal {
        Terminal::None => {
            Err(Failure::new("nobody takes the terminal").hint("give --console-socket, or run in the foreground"))
        }
        Terminal::Keep => channel.send(&Message::Terminal(master)),
        Terminal::Send(socket) => {
            let number = crate::sys::tty::number(master.as_fd()).because(|| "cannot name the terminal".to_owned())?;
            let name = format!("/dev/pts/{number}");
            socket::send(socket.as_fd(), name.as_bytes(), Some(master.as_fd()))
                .because(|| "cannot send the terminal to the console socket".to_owned())
        }
    }
}
