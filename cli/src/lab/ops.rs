//! What `gantry lab` does.

use super::api::{self, AskError};
use super::cgroup::Groups;
use super::error::LabError;
use super::helper::{self, tail};
use super::state::{self, Lock, Node, Paths, Process, State, ensure_dir, name, remove_dir};
use super::{NODES_MAX, forward, node, switch, sys};
use crate::global::Global;
use crate::render::count;
use gantry_api::http::{Node as ApiNode, NodeState, Token, TokenRequest};
use gantry_api::wire::API_PORT;
use std::fs::{self, File};
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

/// Long enough for nodes that are started later; a new one is made with each start anyway.
const TOKEN_TTL_S: u64 = 24 * 60 * 60;
/// How often a state is looked at while waiting for it.
const LOOK: Duration = Duration::from_millis(20);
/// Bytes of a log that `logs` shows when not told how many lines.
const LOG_SHOWN_BYTES: u64 = 1 << 20;

/// One lab's commands.
#[derive(Debug)]
pub struct Ops {
    paths: Paths,
    groups: Groups,
    begun: Instant,
}

impl Ops {
    /// For the lab of this name.
    ///
    /// # Errors
    /// Not root, a bad name, no cgroups.
    pub fn new(global: &Global, name: &str) -> Result<Self, LabError> {
        if !nix::unistd::geteuid().is_root() {
            return Err(LabError::NotRoot { command: "lab" });
        }
        let paths = Paths::new(global, name)?;
        let groups = Groups::discover(&global.cgroup_parent, name)?;
        Ok(Self { paths, groups, begun: Instant::now() })
    }

    fn say(&self, text: &str) {
        eprintln!("[{:5.2} s] {text}", self.begun.elapsed().as_secs_f64());
    }

    // ------------------------------------------------------------------------------------------------ up and down

    /// Makes or completes the lab.
    pub fn up(&self, count: u32, timeout_s: u64, daemon: Option<&str>) -> Result<(), LabError> {
        if !(1..=NODES_MAX).contains(&count) {
            return Err(LabError::Count(count));
        }
        let deadline = self.begun + Duration::from_secs(timeout_s);
        let lock = Lock::take(&self.paths)?;
        let mut state = match State::load(&self.paths)? {
            Some(state) => state,
            None => self.new_state()?,
        };
        if let Some(words) = daemon {
            state.daemon = Some(words.split_whitespace().map(str::to_owned).collect());
        }
        for number in 1..=count {
            state.nodes.entry(number).or_default();
        }
        state.save(&self.paths)?;
        self.write_etc(&state)?;
        self.ensure_switch(&mut state)?;
        self.ensure_forward(&mut state)?;
        let numbers: Vec<u32> = state.nodes.keys().copied().collect();
        for number in numbers {
            self.ensure_node(&mut state, number, deadline, timeout_s)?;
        }
        drop(lock);
        if state.daemon.is_none() {
            self.wait_ready(&state, deadline, timeout_s)?;
        }
        self.explain(&state);
        Ok(())
    }

    /// A lab that no state file knows of yet. Processes in its cgroup are another's then.
    fn new_state(&self) -> Result<State, LabError> {
        let strangers = self.groups.pids(None).len();
        if strangers > 0 {
            return Err(LabError::Foreign {
                name: self.paths.name.clone(),
                count: strangers,
                cgroup: self.groups.name(),
                data_dir: self.paths.global.data_dir.clone(),
            });
        }
        ensure_dir(&self.paths.data, 0o755)?;
        let used = state::subnets_used(&self.paths);
        // Subnets of labs may even be the same, as nothing joins them; different ones are easier to read.
        let subnet = (0..=u8::MAX).find(|subnet| !used.contains(subnet)).unwrap_or_default();
        Ok(State::new(subnet))
    }

    fn ensure_switch(&self, state: &mut State) -> Result<(), LabError> {
        if state.switch.is_some_and(Process::lives) {
            return Ok(());
        }
        self.groups.remove(Some("switch"))?;
        let boot = switch::Boot { join: self.groups.ensure("switch")?, gateway: state.gateway() };
        let started = helper::start(&self.paths, "switch", "lab-switch", &boot, sys::NEW_NET)?;
        state.switch = Some(started.process);
        state.save(&self.paths)?;
        started.go()?;
        if !state.cuts.is_empty() {
            switch::apply_cuts(&self.paths, state)?;
        }
        self.say(&format!("switch is up ({}/24, no uplink)", state.gateway()));
        Ok(())
    }

    fn ensure_forward(&self, state: &mut State) -> Result<(), LabError> {
        let boot = forward::Boot {
            join: self.groups.ensure("forward")?,
            socket: self.paths.socket(),
            switch: state.switch.map_or_else(PathBuf::new, |holder| format!("/proc/{}/ns/net", holder.pid).into()),
            report: self.paths.forward(),
            nodes: state.nodes.keys().map(|number| state.address(*number)).collect(),
        };
        let file = self.paths.etc("forward").join("boot.json");
        let same = serde_json::to_vec_pretty(&boot).ok() == fs::read(file).ok();
        if same && state.forward.is_some_and(Process::lives) {
            return Ok(());
        }
        // Another switch or other nodes than it knows: a new one takes over, and connections through it are cut.
        self.groups.remove(Some("forward"))?;
        self.groups.ensure("forward")?;
        ensure_dir(&self.paths.run, 0o755)?;
        let started = helper::start(&self.paths, "forward", "lab-forward", &boot, 0)?;
        state.forward = Some(started.process);
        state.save(&self.paths)?;
        started.go()?;
        self.say("forwarder is up (published ports appear on 127.0.0.1)");
        Ok(())
    }

    /// `/etc/hosts` and the like of every node; in place, since the files are mounted in nodes that run.
    fn write_etc(&self, state: &State) -> Result<(), LabError> {
        let names: String =
            state.nodes.keys().map(|number| format!("{} {}\n", state.address(*number), name(*number))).collect();
        for number in state.nodes.keys() {
            let node = name(*number);
            let folder = self.paths.etc(&node);
            ensure_dir(&folder, 0o755)?;
            let hosts = format!("127.0.0.1 localhost\n{} switch\n{names}", state.gateway());
            let resolv = "# The lab has no uplink: there is no server to ask.\n";
            for (file, text) in [("hosts", hosts.as_str()), ("hostname", &format!("{node}\n")), ("resolv.conf", resolv)]
            {
                let file = folder.join(file);
                fs::write(&file, text).map_err(LabError::file("write", &file))?;
            }
        }
        Ok(())
    }

    /// Starts a node that does not run, and plugs it in.
    fn ensure_node(&self, state: &mut State, number: u32, deadline: Instant, timeout_s: u64) -> Result<(), LabError> {
        let node = name(number);
        let present = state.nodes.get(&number).and_then(|node| node.init).filter(|init| init.lives());
        if let Some(init) = present {
            switch::ensure_cable(&self.paths, state, number, init)?;
            return Ok(());
        }
        let daemon = self.daemon(state, number, deadline, timeout_s)?;
        self.groups.remove(Some(&node))?;
        switch::unplug(&self.paths, state, &node)?;
        let (disk, run) = (self.paths.disk(&node), self.paths.run_of(&node));
        remove_dir(&run)?; // what a boot would not leave either
        ensure_dir(&run, 0o755)?;
        ensure_dir(&disk, 0o755)?;
        let boot = node::Boot {
            name: node.clone(),
            join: self.groups.ensure(&node)?,
            hierarchies: self.groups.hierarchies.clone(),
            disk,
            run,
            etc: self.paths.etc(&node),
            foreign: self.foreign(),
            daemon,
        };
        let started = helper::start(&self.paths, &node, "lab-node", &boot, sys::NODE_NAMESPACES | sys::NEW_TIME)?;
        let plugged = switch::ensure_cable(&self.paths, state, number, started.process);
        if let Err(error) = plugged {
            started.end();
            return Err(error);
        }
        state.nodes.insert(number, Node { init: Some(started.process) });
        state.save(&self.paths)?;
        started.go()?;
        self.say(&format!("{node} is up ({})", state.address(number)));
        Ok(())
    }

    /// Where others' mounts are that a node must not hold on to.
    fn foreign(&self) -> Vec<PathBuf> {
        let fixed = ["/proc", "/sys", "/run", "/dev/shm", "/dev/mqueue", "/var/lib", "/var/log"];
        let own = [&self.paths.global.data_dir, &self.paths.global.run_dir];
        let own = own.map(|path| std::path::absolute(path).unwrap_or_else(|_| path.clone()));
        fixed.into_iter().map(PathBuf::from).chain(own).collect()
    }

    /// The node's daemon. All but the first need a token from the first.
    fn daemon(&self, state: &State, number: u32, deadline: Instant, timeout_s: u64) -> Result<Vec<String>, LabError> {
        if let Some(daemon) = &state.daemon {
            return Ok(daemon.clone());
        }
        let program = std::env::current_exe().map_err(LabError::kernel("find this program's file"))?;
        let mut words = vec![program.display().to_string()];
        if let Some(runtime) = &self.paths.global.runtime {
            let absolute = std::path::absolute(runtime).unwrap_or_else(|_| runtime.clone());
            words.extend(["--runtime".to_owned(), absolute.display().to_string()]);
        }
        if number == 1 {
            words.push("server".to_owned());
        } else {
            let token = self.token(state, deadline, timeout_s)?;
            words.extend(["join".to_owned(), format!("{}:{API_PORT}", state.address(1)), "--token".to_owned(), token]);
        }
        words.extend(["--name".to_owned(), name(number), "--advertise".to_owned(), state.address(number).to_string()]);
        Ok(words)
    }

    /// A token to join with: a new one, or the last one when the scheduler is not there (a node that has joined
    /// before needs none, it is only that its command line has the place for it).
    fn token(&self, state: &State, deadline: Instant, timeout_s: u64) -> Result<String, LabError> {
        let file = self.paths.token();
        let scheduler_on = state.nodes.get(&1).and_then(|node| node.init).is_some_and(Process::lives);
        if !scheduler_on && let Ok(token) = fs::read_to_string(&file) {
            return Ok(token);
        }
        let body = serde_json::json!(TokenRequest { ttl_s: TOKEN_TTL_S });
        let token = loop {
            match api::ask::<Token>(&self.paths.socket(), "/v1/tokens", Some(&body)) {
                Ok(token) => break token.token,
                Err(AskError::Refused(message)) => {
                    return Err(LabError::Api { lab: self.paths.name.clone(), message });
                }
                Err(AskError::Away(_)) if Instant::now() < deadline => std::thread::sleep(LOOK),
                Err(AskError::Away(error)) => {
                    let what = format!("the scheduler on n1 does not answer ({error})");
                    return Err(self.not_ready(what, "n1", timeout_s));
                }
            }
        };
        state::write_whole(&file, token.as_bytes(), 0o600)?;
        Ok(token)
    }

    fn not_ready(&self, what: String, node: &str, seconds: u64) -> LabError {
        let last = helper::last_line(&self.paths.log(node));
        let logs = format!("`gantry lab logs --name {} {node}` (its last line: {last})", self.paths.name);
        LabError::NotReady { what, seconds, logs }
    }

    /// Waits until the scheduler counts on every node that runs.
    fn wait_ready(&self, state: &State, deadline: Instant, timeout_s: u64) -> Result<(), LabError> {
        let wanted: Vec<String> = state.nodes.keys().map(|number| name(*number)).collect();
        loop {
            let nodes: Vec<ApiNode> = api::ask(&self.paths.socket(), "/v1/nodes", None).unwrap_or_default();
            let ready =
                |wanted: &str| nodes.iter().any(|n| n.name.to_string() == wanted && n.state == NodeState::Ready);
            let missing: Vec<&String> = wanted.iter().filter(|wanted| !ready(wanted)).collect();
            let Some(first) = missing.first() else {
                let verb = if wanted.len() == 1 { "is" } else { "are" };
                self.say(&format!("{} {verb} ready", count(wanted.len() as u64, "node")));
                return Ok(());
            };
            if Instant::now() > deadline {
                let names: Vec<&str> = missing.iter().map(|name| name.as_str()).collect();
                return Err(self.not_ready(format!("{} not ready", names.join(", ")), first, timeout_s));
            }
            std::thread::sleep(LOOK);
        }
    }

    fn explain(&self, state: &State) {
        let option = if self.paths.name == "lab" { String::new() } else { format!(" --name {}", self.paths.name) };
        let address = format!("unix://{}", self.paths.socket().display());
        let command = |words: &str| format!("gantry lab{option} {words}");
        let last = state.nodes.keys().last().map_or_else(|| name(1), |number| name(*number));
        eprintln!("\nLab `{}` runs with {}.", self.paths.name, count(state.nodes.len() as u64, "node"));
        for (command, what) in [
            ("gantry node ls".to_owned(), "the nodes"),
            ("gantry up".to_owned(), "deploy compose.yaml of this directory"),
            (command("load FILE..."), "give image archives to every node"),
            (command(&format!("kill {last}")), "take the power from a node"),
            (command("down"), "remove all of it"),
        ] {
            eprintln!("  {command:<32} {what}");
        }
        eprintln!(
            "The only running lab is found by itself; with several, or in a script:\n  export GANTRY_HOST={address}"
        );
    }

    /// Removes all of the lab. Needs no state file: the cgroups tell what runs.
    pub fn down(&self) -> Result<(), LabError> {
        let lock = Lock::take(&self.paths)?;
        let existed = self.groups.exist() || self.paths.data.exists() || self.paths.run.exists();
        if let Ok(Some(state)) = State::load(&self.paths) {
            // Cables first, so that nobody sees connections end.
            for number in state.nodes.keys() {
                drop(switch::unplug(&self.paths, &state, &name(*number))); // the switch may be gone
            }
            let inits = state.nodes.values().filter_map(|node| node.init);
            for pidfd in inits.chain(state.forward).chain(state.switch).filter_map(Process::open) {
                // It may just have ended.
                let _ = rustix::process::pidfd_send_signal(&pidfd, rustix::process::Signal::KILL);
            }
        }
        self.groups.remove(None)?;
        // The state file last: until then the lab is known, and `down` can be repeated.
        for entry in fs::read_dir(&self.paths.data).into_iter().flatten().flatten() {
            if entry.path() != self.paths.state() && entry.path().is_dir() {
                remove_dir(&entry.path())?;
            }
        }
        remove_dir(&self.paths.run)?;
        remove_dir(&self.paths.data)?;
        lock.remove()?;
        for folder in [&self.paths.data, &self.paths.run] {
            for parent in folder.ancestors().skip(1).take(2) {
                drop(fs::remove_dir(parent)); // in use by others, mostly
            }
        }
        self.say(if existed { "lab is removed" } else { "there was nothing to remove" });
        Ok(())
    }

    // ------------------------------------------------------------------------------------------------- faults

    /// Power loss.
    pub fn kill(&self, node: &str) -> Result<(), LabError> {
        let _lock = Lock::take(&self.paths)?;
        let mut state = State::need(&self.paths)?;
        let number = state.number(&self.paths, node)?;
        let Some(pidfd) = state.nodes[&number].init.and_then(Process::open) else {
            self.groups.remove(Some(node))?;
            self.say(&format!("{node} was not running"));
            return Ok(());
        };
        if state.switch.is_some_and(Process::lives) {
            switch::unplug(&self.paths, &state, node)?; // power that fails says no last word
        }
        helper::end(&pidfd);
        state.nodes.insert(number, Node { init: None });
        state.save(&self.paths)?;
        self.groups.remove(Some(node))?;
        remove_dir(&self.paths.run_of(node))?;
        self.say(&format!("{node} is dead"));
        Ok(())
    }

    /// Power on.
    pub fn start(&self, node: &str) -> Result<(), LabError> {
        let _lock = Lock::take(&self.paths)?;
        let mut state = State::need(&self.paths)?;
        let number = state.number(&self.paths, node)?;
        let seconds = 30;
        self.ensure_switch(&mut state)?;
        self.ensure_node(&mut state, number, Instant::now() + Duration::from_secs(seconds), seconds)
    }

    /// Silent loss of all traffic of a node, or between two.
    pub fn cut(&self, node: &str, other: Option<&str>) -> Result<(), LabError> {
        self.change_cuts(|state| {
            state.number(&self.paths, node)?;
            let mut names = vec![node.to_owned()];
            if let Some(other) = other.filter(|other| *other != node) {
                state.number(&self.paths, other)?;
                names.push(other.to_owned());
            }
            names.sort();
            state.cuts.insert(names);
            Ok(())
        })
    }

    /// Undoes cuts.
    pub fn heal(&self, node: Option<&str>) -> Result<(), LabError> {
        self.change_cuts(|state| {
            if let Some(node) = node {
                state.number(&self.paths, node)?;
            }
            state.cuts.retain(|cut| node.is_some_and(|node| !cut.iter().any(|name| name == node)));
            Ok(())
        })
    }

    fn change_cuts(&self, change: impl FnOnce(&mut State) -> Result<(), LabError>) -> Result<(), LabError> {
        let _lock = Lock::take(&self.paths)?;
        let mut state = State::need(&self.paths)?;
        change(&mut state)?;
        // Written first: a switch that starts later obeys it too.
        state.save(&self.paths)?;
        switch::apply_cuts(&self.paths, &state)
    }

    // ------------------------------------------------------------------------------------------------- use

    /// Runs a command on a node, or in the switch's network namespace.
    pub fn exec(&self, node: &str, argv: &[String]) -> Result<u8, LabError> {
        let state = State::need(&self.paths)?;
        let folder = std::env::current_dir().ok();
        // Asked now: in the node's /proc this process is not to be seen.
        let own = std::env::current_exe().map_err(LabError::kernel("find this program's file"))?;
        if node == "switch" {
            let namespace = switch::open(&self.paths, &state)?;
            nix::sched::setns(&namespace, nix::sched::CloneFlags::CLONE_NEWNET)
                .map_err(LabError::kernel("enter the switch"))?;
            self.groups.ensure("switch")?.enter_root()?;
        } else {
            let (_, pidfd) = state.need_node(&self.paths, node)?;
            self.enter(node, &pidfd)?;
        }
        // The same place, where the node has it.
        if folder.is_none_or(|folder| std::env::set_current_dir(folder).is_err()) {
            std::env::set_current_dir("/").map_err(LabError::file("change to", "/"))?;
        }
        self.run_inside(node, argv, &own)
    }

    fn enter(&self, node: &str, pidfd: &OwnedFd) -> Result<(), LabError> {
        self.groups.visit(node).enter_root()?;
        let kinds = sys::NODE_NAMESPACES | libc::CLONE_NEWCGROUP as u64;
        let entered = match sys::enter(pidfd.as_fd(), kinds | sys::NEW_TIME) {
            Err(error) if error.raw_os_error() == Some(libc::EINVAL) => sys::enter(pidfd.as_fd(), kinds),
            other => other,
        };
        entered.map_err(LabError::kernel(format!("enter {node}")))
    }

    /// As a child: the PID namespace that was entered is one for children.
    fn run_inside(&self, node: &str, argv: &[String], own: &Path) -> Result<u8, LabError> {
        let (program, arguments) = argv.split_first().unwrap_or_else(|| unreachable!("clap requires a command"));
        let folder = own.parent().unwrap_or(Path::new("/usr/bin"));
        let path = std::env::var("PATH").unwrap_or_else(|_| "/usr/sbin:/usr/bin:/sbin:/bin".to_owned());
        let mut command = Command::new(program);
        command.args(arguments).env("PATH", format!("{}:{path}", folder.display()));
        // The host's settings are not the node's.
        for (key, _) in std::env::vars_os().filter(|(key, _)| key.to_string_lossy().starts_with("GANTRY_")) {
            command.env_remove(key);
        }
        sys::prepare(&mut command, true);
        // A key typed for the command reaches it too; this process only waits for it.
        let ignore = nix::sys::signal::SigHandler::SigIgn;
        let mut child = command.spawn().map_err(|source| LabError::Exec {
            node: node.to_owned(),
            program: program.clone(),
            source,
        })?;
        for signal in [nix::sys::signal::Signal::SIGINT, nix::sys::signal::Signal::SIGQUIT] {
            sys::on_signal(signal, ignore).map_err(LabError::kernel("ignore keys meant for the command"))?;
        }
        let status = child.wait().map_err(LabError::kernel(format!("wait for {program}")))?;
        let signal = status.signal().map(|signal| 128 + signal);
        Ok(status.code().or(signal).unwrap_or(1) as u8)
    }

    /// Loads image archives, one after the other, on every running node at once. One that fails does not keep back the
    /// others.
    pub fn load(&self, files: &[PathBuf]) -> Result<(), LabError> {
        let state = State::need(&self.paths)?;
        let mut failed = Vec::new();
        for file in files {
            match self.load_one(&state, file) {
                Ok(nodes) if nodes.is_empty() => {}
                Ok(nodes) => failed.push(format!("{} not loaded on {nodes}", file.display())),
                // Said together with what else fails, or alone as it is.
                Err(error) if files.len() > 1 => failed.push(crate::error::CliError::chain(&error).message),
                Err(error) => return Err(error),
            }
        }
        if failed.is_empty() { Ok(()) } else { Err(LabError::Load(failed.join("; "))) }
    }

    /// Names of the nodes where it failed; why was said.
    fn load_one(&self, state: &State, file: &Path) -> Result<String, LabError> {
        let nodes: Vec<String> =
            state.nodes.iter().filter(|(_, n)| n.init.is_some_and(Process::lives)).map(|(n, _)| name(*n)).collect();
        if nodes.is_empty() {
            return Err(LabError::NodeDown { lab: self.paths.name.clone(), node: "n1".to_owned() });
        }
        let spooled = if file == Path::new("-") { Some(self.spool()?) } else { None };
        let begun: Result<Vec<_>, LabError> =
            nodes.iter().map(|node| self.load_on(node, file, spooled.as_ref()).map(|child| (node, child))).collect();
        let mut failed: Vec<&str> = Vec::new();
        for (node, child) in begun? {
            let done = child.wait_with_output().map_err(LabError::kernel(format!("wait for {node}")))?;
            let words =
                String::from_utf8_lossy(if done.status.success() { &done.stdout } else { &done.stderr }).into_owned();
            for line in words.lines() {
                let line = line.strip_prefix("gantry: ").unwrap_or(line);
                // What came over a pipe has no name there.
                eprintln!("{node}: {}", line.replace("the archive: ", &format!("{}: ", file.display())));
            }
            if !done.status.success() {
                failed.push(node.as_str());
            }
        }
        Ok(failed.join(", "))
    }

    /// Standard input can be read once, by one: so into a file without a name first.
    fn spool(&self) -> Result<File, LabError> {
        let path = self.paths.run.join("load");
        let mut file = fs::OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(true)
            .open(&path)
            .map_err(LabError::file("make", &path))?;
        fs::remove_file(&path).map_err(LabError::file("remove", &path))?;
        io::copy(&mut io::stdin().lock(), &mut file).map_err(LabError::file("fill", &path))?;
        Ok(file)
    }

    fn load_on(&self, node: &str, file: &Path, spooled: Option<&File>) -> Result<std::process::Child, LabError> {
        let own = std::env::current_exe().map_err(LabError::kernel("find this program's file"))?;
        let global = &self.paths.global;
        let mut command = Command::new(&own);
        command.arg("--data-dir").arg(&global.data_dir).arg("--run-dir").arg(&global.run_dir);
        command.args(["--cgroup-parent", &global.cgroup_parent, "lab", "exec", "--name", &self.paths.name, node]);
        command.arg("--").arg(&own).args(["load", "-i"]);
        // An archive is handed over open, so that it may lie where the node cannot see it.
        let stdin = match spooled {
            Some(open) => {
                let again = File::open(format!("/proc/self/fd/{}", std::os::fd::AsRawFd::as_raw_fd(open)));
                Some(again.map_err(LabError::file("open", file))?)
            }
            None if file.is_dir() => None,
            None => Some(File::open(file).map_err(LabError::file("open", file))?),
        };
        match stdin {
            Some(open) => command.arg("-").stdin(open),
            None => command.arg(file.canonicalize().map_err(LabError::file("find", file))?).stdin(Stdio::null()),
        };
        command.stdout(Stdio::piped()).stderr(Stdio::piped());
        command.spawn().map_err(LabError::kernel(format!("load on {node}")))
    }

    /// Shows a log, and goes on showing it.
    pub fn logs(&self, node: &str, follow: bool, lines: Option<usize>) -> Result<(), LabError> {
        let state = State::need(&self.paths)?;
        if !matches!(node, "switch" | "forward") {
            state.number(&self.paths, node)?;
        }
        let path = self.paths.log(node);
        let shown = tail(&path, LOG_SHOWN_BYTES).map_err(LabError::file("read", &path))?;
        let count = shown.lines().count();
        let mut out = io::stdout().lock();
        for line in shown.lines().skip(count.saturating_sub(lines.unwrap_or(usize::MAX))) {
            if writeln!(out, "{line}").is_err() {
                return Ok(()); // nobody reads any more
            }
        }
        let mut file = File::open(&path).map_err(LabError::file("open", &path))?;
        let mut at = file.seek(SeekFrom::End(0)).map_err(LabError::file("read", &path))?;
        if !follow {
            return Ok(());
        }
        loop {
            let length = file.metadata().map_err(LabError::file("read", &path))?.len();
            if length < at {
                at = file.seek(SeekFrom::Start(0)).map_err(LabError::file("read", &path))?; // it began anew
            }
            let mut fresh = Vec::new();
            at += file.read_to_end(&mut fresh).map_err(LabError::file("read", &path))? as u64;
            if out.write_all(&fresh).and_then(|()| out.flush()).is_err() {
                return Ok(());
            }
            std::thread::sleep(LOOK * 5);
        }
    }

    /// Shows what there is.
    pub fn status(&self, json: bool) -> Result<(), LabError> {
        let state = State::need(&self.paths)?;
        let status = self.observe(&state);
        let mut out = io::stdout().lock();
        let written = if json {
            let text = serde_json::to_string_pretty(&status).unwrap_or_default();
            writeln!(out, "{text}")
        } else {
            write!(out, "{}", render(&status))
        };
        drop(written); // nobody reads any more
        Ok(())
    }

    fn observe(&self, state: &State) -> Status {
        let seen: Vec<ApiNode> = api::ask(&self.paths.socket(), "/v1/nodes", None).unwrap_or_default();
        let nodes = state.nodes.iter().map(|(number, node)| {
            let name = name(*number);
            let live = node.init.filter(|init| init.lives());
            let cut: Vec<String> = state
                .cuts
                .iter()
                .filter(|cut| cut.contains(&name))
                .map(|cut| cut.iter().find(|other| **other != name).cloned().unwrap_or_else(|| "all".to_owned()))
                .collect();
            let scheduler = seen.iter().find(|node| node.name.to_string() == name).map(|node| match node.state {
                NodeState::Ready => "ready",
                NodeState::Suspect => "suspect",
                NodeState::Lost => "lost",
            });
            NodeStatus {
                address: state.address(*number),
                running: live.is_some(),
                pid: live.map(|init| init.pid),
                scheduler: scheduler.map(str::to_owned),
                cut,
                name,
            }
        });
        let report = fs::read(self.paths.forward()).ok().and_then(|text| serde_json::from_slice(&text).ok());
        let report: forward::Report = report.unwrap_or_default();
        let mut problems = report.problems;
        for (what, process) in [("the switch", state.switch), ("the forwarder", state.forward)] {
            if !process.is_some_and(Process::lives) {
                problems.push(format!("{what} is not running: `gantry lab up --name {}` starts it", self.paths.name));
            }
        }
        Status {
            name: self.paths.name.clone(),
            socket: self.paths.socket(),
            subnet: format!("10.88.{}.0/24", state.subnet),
            nodes: nodes.collect(),
            ports: if state.forward.is_some_and(Process::lives) { report.open } else { Vec::new() },
            problems,
        }
    }
}

/// `lab status --json`.
#[derive(Debug, serde::Serialize)]
struct Status {
    name: String,
    socket: PathBuf,
    subnet: String,
    nodes: Vec<NodeStatus>,
    ports: Vec<String>,
    problems: Vec<String>,
}

#[derive(Debug, serde::Serialize)]
struct NodeStatus {
    name: String,
    address: std::net::Ipv4Addr,
    running: bool,
    pid: Option<i32>,
    scheduler: Option<String>,
    cut: Vec<String>,
}

fn render(status: &Status) -> String {
    let mut text =
        format!("{:<6} {:<14} {:<8} {:<10} {:<8} CUT FROM\n", "NODE", "ADDRESS", "POWER", "SCHEDULER", "PID");
    for node in &status.nodes {
        let power = if node.running { "on" } else { "off" };
        let pid = node.pid.map_or_else(|| "-".to_owned(), |pid| pid.to_string());
        let cut = if node.cut.is_empty() { "-".to_owned() } else { node.cut.join(", ") };
        let scheduler = node.scheduler.as_deref().unwrap_or("-");
        text += &format!("{:<6} {:<14} {power:<8} {scheduler:<10} {pid:<8} {cut}\n", node.name, node.address);
    }
    if !status.ports.is_empty() {
        text += &format!("on 127.0.0.1: {}\n", status.ports.join(", "));
    }
    for problem in &status.problems {
        text += &format!("problem: {problem}\n");
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn status_is_a_table_for_people() {
        let status = Status {
            name: "lab".into(),
            socket: "/run/x".into(),
            subnet: "10.88.0.0/24".into(),
            nodes: vec![
                NodeStatus {
                    name: "n1".into(),
                    address: [10, 88, 0, 11].into(),
                    running: true,
                    pid: Some(7),
                    scheduler: Some("ready".into()),
                    cut: vec![],
                },
                NodeStatus {
                    name: "n2".into(),
                    address: [10, 88, 0, 12].into(),
                    running: false,
                    pid: None,
                    scheduler: None,
                    cut: vec!["n3".into()],
                },
            ],
            ports: vec!["8080/tcp".into()],
            problems: vec!["port 80/tcp of this host: another program holds it".into()],
        };
        insta::assert_snapshot!(render(&status), @r"
        NODE   ADDRESS        POWER    SCHEDULER  PID      CUT FROM
        n1     10.88.0.11     on       ready      7        -
        n2     10.88.0.12     off      -          -        n3
        on 127.0.0.1: 8080/tcp
        problem: port 80/tcp of this host: another program holds it
        ");
    }
}
