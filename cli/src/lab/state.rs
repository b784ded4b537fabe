//! What a lab remembers: its files, its lock and its processes.
//!
//! ```text
//! <data_dir>/labs/<name>/lab.json      this state
//!                        n1/           /var/lib/gantry of node n1: outlives `kill`
//!                        etc/n1/       hosts, hostname, resolv.conf and boot.json of n1
//!                        log/n1.log    what the node's daemon says
//! <run_dir>/labs/<name>.lock           one changing command at a time
//! <run_dir>/labs/<name>/n1/            /run/gantry of node n1: empty after each start
//!                      /forward.json   what the forwarder does
//! ```

use super::error::LabError;
use crate::global::Global;
use rustix::process::{Pid, PidfdFlags, pidfd_open};
use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, File};
use std::io::{self, Write};
use std::net::Ipv4Addr;
use std::os::fd::OwnedFd;
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

/// Where a lab's things are.
#[derive(Debug, Clone)]
pub struct Paths {
    /// The lab's name.
    pub name: String,
    /// Its part of the data directory.
    pub data: PathBuf,
    /// Its part of the run directory.
    pub run: PathBuf,
    /// As given.
    pub global: Global,
}

impl Paths {
    /// For a lab of this name.
    ///
    /// # Errors
    /// The name cannot be a directory, a cgroup and part of a host name.
    pub fn new(global: &Global, name: &str) -> Result<Self, LabError> {
        let inner = name.bytes().all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || c == b'-');
        let first = name.bytes().next().is_some_and(|c| c.is_ascii_lowercase());
        if !inner || !first || name.len() > 20 {
            return Err(LabError::Name(name.to_owned()));
        }
        let absolute = |path: &Path| std::path::absolute(path).unwrap_or_else(|_| path.to_owned());
        Ok(Self {
            name: name.to_owned(),
            data: absolute(&global.data_dir).join("labs").join(name),
            run: absolute(&global.run_dir).join("labs").join(name),
            global: global.clone(),
        })
    }

    /// The state file.
    pub fn state(&self) -> PathBuf {
        self.data.join("lab.json")
    }

    /// The node's `/var/lib/gantry`.
    pub fn disk(&self, node: &str) -> PathBuf {
        self.data.join(node)
    }

    /// The node's files for `/etc`.
    pub fn etc(&self, node: &str) -> PathBuf {
        self.data.join("etc").join(node)
    }

    /// The log of a node, of the switch or of the forwarder.
    pub fn log(&self, who: &str) -> PathBuf {
        self.data.join("log").join(format!("{who}.log"))
    }

    /// The node's `/run/gantry`.
    pub fn run_of(&self, node: &str) -> PathBuf {
        self.run.join(node)
    }

    /// The scheduler's API, in node n1.
    pub fn socket(&self) -> PathBuf {
        self.run_of("n1").join("gantry.sock")
    }

    /// What the forwarder last reported.
    pub fn forward(&self) -> PathBuf {
        self.run.join(super::forward::REPORT)
    }

    /// The join token, for root only.
    pub fn token(&self) -> PathBuf {
        self.data.join("token")
    }
}

/// A process, told from a later one with the same number.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Process {
    /// Its number.
    pub pid: i32,
    /// When it started, in clock ticks since boot.
    pub start: u64,
}

impl Process {
    /// The process that has this number now.
    pub fn now(pid: i32) -> Option<Self> {
        start_time(pid).map(|start| Self { pid, start })
    }

    /// A descriptor of it, if it still runs: what is done through it hits no other process.
    pub fn open(self) -> Option<OwnedFd> {
        let pidfd = pidfd_open(Pid::from_raw(self.pid)?, PidfdFlags::empty()).ok()?;
        (start_time(self.pid) == Some(self.start)).then_some(pidfd)
    }

    /// Whether it still runs.
    pub fn lives(self) -> bool {
        start_time(self.pid) == Some(self.start)
    }
}

/// Start time of a process that is not dead yet.
fn start_time(pid: i32) -> Option<u64> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    let mut fields = stat.rsplit_once(')')?.1.split_whitespace();
    if matches!(fields.next()?, "Z" | "X" | "x") {
        return None;
    }
    fields.nth(18)?.parse().ok()
}

/// One node.
#[derive(Debug, Clone, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Node {
    /// Its PID 1, while it is on.
    pub init: Option<Process>,
}

/// The state file.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct State {
    /// Of this layout.
    pub version: u32,
    /// Boot of the machine in which the processes below were started.
    pub boot: String,
    /// Third byte of the subnet.
    pub subnet: u8,
    /// Holder of the switch's network namespace.
    pub switch: Option<Process>,
    /// The port forwarder.
    pub forward: Option<Process>,
    /// Nodes by number.
    pub nodes: BTreeMap<u32, Node>,
    /// Nodes that are cut off (one name), and pairs that are cut from each other (two names).
    pub cuts: BTreeSet<Vec<String>>,
    /// Run in place of the node's daemon; tests only.
    #[serde(default)]
    pub daemon: Option<Vec<String>>,
}

const VERSION: u32 = 1;

impl State {
    /// A lab with nothing in it.
    pub fn new(subnet: u8) -> Self {
        Self {
            version: VERSION,
            boot: boot_id(),
            subnet,
            switch: None,
            forward: None,
            nodes: BTreeMap::new(),
            cuts: BTreeSet::new(),
            daemon: None,
        }
    }

    /// Reads the state; `None` when there is none.
    ///
    /// # Errors
    /// The file is not ours to understand.
    pub fn load(paths: &Paths) -> Result<Option<Self>, LabError> {
        let path = paths.state();
        let text = match fs::read(&path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            other => other.map_err(LabError::file("read", &path))?,
        };
        let wrong = |reason: String| LabError::State { path: path.clone(), reason };
        let mut state: Self = serde_json::from_slice(&text).map_err(|error| wrong(error.to_string()))?;
        if state.version != VERSION {
            return Err(wrong(format!("it has version {}, this gantry reads {VERSION}", state.version)));
        }
        let boot = boot_id();
        if state.boot != boot {
            // The machine was booted since: no process of then is left.
            state.boot = boot;
            (state.switch, state.forward) = (None, None);
            state.nodes.values_mut().for_each(|node| node.init = None);
        }
        Ok(Some(state))
    }

    /// The state of a lab that must be there.
    ///
    /// # Errors
    /// There is none.
    pub fn need(paths: &Paths) -> Result<Self, LabError> {
        Self::load(paths)?
            .ok_or_else(|| LabError::NoLab { name: paths.name.clone(), data_dir: paths.global.data_dir.clone() })
    }

    /// Writes the state; a crash leaves the one before or this one.
    ///
    /// # Errors
    /// The disk.
    pub fn save(&self, paths: &Paths) -> Result<(), LabError> {
        let text = serde_json::to_vec_pretty(self)
            .map_err(|error| LabError::State { path: paths.state(), reason: error.to_string() })?;
        write_whole(&paths.state(), &text, 0o644)
    }

    /// The number of a node by its name, which must be there.
    ///
    /// # Errors
    /// Names those that are.
    pub fn number(&self, paths: &Paths, node: &str) -> Result<u32, LabError> {
        let number = node.strip_prefix('n').and_then(|digits| digits.parse().ok());
        match number.filter(|number| self.nodes.contains_key(number) && name(*number) == node) {
            Some(number) => Ok(number),
            None => {
                let there: Vec<String> = self.nodes.keys().map(|number| name(*number)).collect();
                Err(LabError::NoNode { lab: paths.name.clone(), node: node.to_owned(), there: there.join(", ") })
            }
        }
    }

    /// The node's PID 1, which must run.
    ///
    /// # Errors
    /// There is no such node, or it is off.
    pub fn need_node(&self, paths: &Paths, node: &str) -> Result<(Process, OwnedFd), LabError> {
        let number = self.number(paths, node)?;
        let init = self.nodes[&number].init;
        init.and_then(|init| init.open().map(|pidfd| (init, pidfd)))
            .ok_or_else(|| LabError::NodeDown { lab: paths.name.clone(), node: node.to_owned() })
    }

    /// Address of a node.
    pub fn address(&self, number: u32) -> Ipv4Addr {
        Ipv4Addr::new(10, 88, self.subnet, (10 + number) as u8)
    }

    /// Address of the switch.
    pub fn gateway(&self) -> Ipv4Addr {
        Ipv4Addr::new(10, 88, self.subnet, 1)
    }
}

/// The name of node `number`.
pub fn name(number: u32) -> String {
    format!("n{number}")
}

/// Which boot of the machine this is.
pub fn boot_id() -> String {
    fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap_or_default().trim().to_owned()
}

/// Third bytes of the subnets that other labs in this data directory use.
pub fn subnets_used(paths: &Paths) -> BTreeSet<u8> {
    let labs = paths.data.parent().map(fs::read_dir);
    let entries = labs.and_then(Result::ok).into_iter().flatten().flatten();
    entries
        .filter(|entry| entry.file_name() != paths.name.as_str())
        .filter_map(|entry| fs::read(entry.path().join("lab.json")).ok())
        .filter_map(|text| serde_json::from_slice::<State>(&text).ok())
        .map(|state| state.subnet)
        .collect()
}

/// Replaces a file as a whole.
///
/// # Errors
/// The disk.
pub fn write_whole(path: &Path, content: &[u8], mode: u32) -> Result<(), LabError> {
    let fresh = path.with_extension("new");
    let written = || {
        let mut file = fs::OpenOptions::new().write(true).create(true).truncate(true).mode(mode).open(&fresh)?;
        file.write_all(content)?;
        file.sync_data()?;
        fs::rename(&fresh, path)
    };
    written().map_err(LabError::file("write", path))
}

/// Makes a directory and those above it.
///
/// # Errors
/// The disk.
pub fn ensure_dir(path: &Path, mode: u32) -> Result<(), LabError> {
    fs::DirBuilder::new().recursive(true).mode(mode).create(path).map_err(LabError::file("make", path))
}

/// Removes a directory and all in it; gone is fine.
///
/// # Errors
/// The disk.
pub fn remove_dir(path: &Path) -> Result<(), LabError> {
    match super::tree::remove(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(LabError::file("remove", path)(error)),
        _ => Ok(()),
    }
}

/// The right to change a lab, until dropped.
#[derive(Debug)]
pub struct Lock {
    file: File,
    path: PathBuf,
}

impl Lock {
    /// Waits for its turn; says so when it has to.
    ///
    /// # Errors
    /// The run directory cannot be written.
    pub fn take(paths: &Paths) -> Result<Self, LabError> {
        let path = paths.run.with_extension("lock");
        loop {
            ensure_dir(paths.run.parent().unwrap_or(&paths.run), 0o755)?;
            let opened = fs::OpenOptions::new().write(true).create(true).truncate(false).mode(0o600).open(&path);
            let file = match opened {
                // `down` of another lab may have removed the empty directory meanwhile.
                Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
                other => other.map_err(LabError::file("open", &path))?,
            };
            if file.try_lock().is_err() {
                eprintln!("lab: waiting for another `gantry lab` command on `{}` to finish", paths.name);
                file.lock().map_err(LabError::file("lock", &path))?;
            }
            // `down` removes the file while it holds the lock: whoever waited has to look again.
            let same = fs::metadata(&path).ok().zip(file.metadata().ok()).is_some_and(|(a, b)| a.ino() == b.ino());
            if same {
                return Ok(Self { file, path });
            }
        }
    }

    /// Removes the lock's file too.
    ///
    /// # Errors
    /// The disk.
    pub fn remove(self) -> Result<(), LabError> {
        fs::remove_file(&self.path).map_err(LabError::file("remove", &self.path))?;
        drop(self.file);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn global(dir: &Path) -> Global {
        Global {
            data_dir: dir.join("data"),
            run_dir: dir.join("run"),
            cgroup_parent: "/x".into(),
            host: None,
            runtime: None,
        }
    }

    #[test]
    fn lab_names_are_checked() {
        let dir = tempfile::tempdir().unwrap();
        for (name, good) in [
            ("lab", true),
            ("a-1", true),
            ("", false),
            ("1a", false),
            ("A", false),
            ("a/b", false),
            ("..", false),
            ("a.b", false),
            ("aaaaaaaaaaaaaaaaaaaaa", false),
        ] {
            assert_eq!(Paths::new(&global(dir.path()), name).is_ok(), good, "{name}");
        }
    }

    #[test]
    fn state_is_read_as_written_and_forgets_processes_of_another_boot() {
        let dir = tempfile::tempdir().unwrap();
        let paths = Paths::new(&global(dir.path()), "lab").unwrap();
        assert_eq!(State::load(&paths).unwrap(), None);
        ensure_dir(&paths.data, 0o755).unwrap();
        let mut state = State::new(3);
        let own = Process::now(std::process::id() as i32).unwrap();
        state.nodes.insert(2, Node { init: Some(own) });
        state.cuts.insert(vec!["n1".into(), "n2".into()]);
        state.save(&paths).unwrap();
        assert_eq!(State::load(&paths).unwrap(), Some(state.clone()));
        state.boot = "another".into();
        state.save(&paths).unwrap();
        let later = State::load(&paths).unwrap().unwrap();
        assert_eq!((later.nodes[&2].init, later.cuts.len()), (None, 1));
        fs::write(paths.state(), "{").unwrap();
        assert!(matches!(State::load(&paths), Err(LabError::State { .. })));
    }

    #[test]
    fn nodes_are_found_by_their_exact_name() {
        let dir = tempfile::tempdir().unwrap();
        let paths = Paths::new(&global(dir.path()), "lab").unwrap();
        let mut state = State::new(0);
        state.nodes.insert(1, Node::default());
        for (text, found) in [("n1", true), ("n01", false), ("n2", false), ("1", false), ("", false), ("n-1", false)] {
            assert_eq!(state.number(&paths, text).is_ok(), found, "{text}");
        }
        assert!(matches!(state.need_node(&paths, "n1"), Err(LabError::NodeDown { .. })));
        assert_eq!(state.address(1).to_string(), "10.88.0.11");
    }

    #[test]
    fn a_process_is_not_its_number() {
        let own = Process::now(std::process::id() as i32).unwrap();
        assert!(own.lives() && own.open().is_some());
        let other = Process { start: own.start + 1, ..own };
        assert!(!other.lives() && other.open().is_none());
    }

    #[test]
    fn subnets_of_other_labs_are_seen() {
        let dir = tempfile::tempdir().unwrap();
        let other = Paths::new(&global(dir.path()), "other").unwrap();
        ensure_dir(&other.data, 0o755).unwrap();
        State::new(0).save(&other).unwrap();
        let paths = Paths::new(&global(dir.path()), "lab").unwrap();
        assert_eq!(subnets_used(&paths), BTreeSet::from([0]));
        assert_eq!(subnets_used(&other), BTreeSet::new());
    }
}
