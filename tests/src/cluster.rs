//! A lab of the test's own, driven by the real command.

use crate::{binary, seconds, until};
use gantry_api::http;
use std::net::{SocketAddr, TcpListener};
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use tempfile::TempDir;

/// What a command left behind.
#[derive(Debug)]
pub struct Done {
    /// Exit code; -1 when a signal ended it.
    pub code: i32,
    /// Standard output.
    pub out: String,
    /// Standard error.
    pub err: String,
}

impl From<Output> for Done {
    fn from(output: Output) -> Self {
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        Self { code: output.status.code().unwrap_or(-1), out: text(&output.stdout), err: text(&output.stderr) }
    }
}

impl Done {
    /// The output of a command that must succeed.
    ///
    /// # Panics
    /// It did not.
    pub fn ok(self) -> String {
        assert_eq!(self.code, 0, "exit code {}\n{}{}", self.code, self.out, self.err);
        self.out
    }
}

/// A running lab; gone when dropped.
#[derive(Debug)]
pub struct Cluster {
    name: String,
    root: TempDir,
    down: bool,
}

static COUNT: AtomicU32 = AtomicU32::new(0);

impl Cluster {
    /// A lab with so many ready nodes and the image `probe:1` on each.
    ///
    /// # Panics
    /// It does not come up.
    pub fn up(nodes: u32) -> Self {
        let cluster = Self::bare();
        cluster.lab(&["up", "--nodes", &nodes.to_string()]).ok();
        let image = crate::probe_image(cluster.root.path());
        cluster.lab(&["load", &image.to_string_lossy()]).ok();
        cluster
    }

    /// Names and folders of a lab that is not up yet.
    ///
    /// # Panics
    /// No temporary folder can be made.
    pub fn bare() -> Self {
        let name = format!("t{}x{}", std::process::id(), COUNT.fetch_add(1, Ordering::Relaxed));
        Self { name, root: tempfile::Builder::new().prefix("gantry-test-").tempdir().expect("a folder"), down: false }
    }

    /// The test's folder, for manifests and the like.
    pub fn folder(&self) -> &Path {
        self.root.path()
    }

    /// The lab's name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The command `gantry` with this lab's places.
    pub fn command(&self) -> Command {
        let root = self.root.path();
        let mut command = Command::new(binary("GANTRY_BIN", "gantry"));
        command
            .env_remove("GANTRY_HOST")
            .env("GANTRY_DATA_DIR", root.join("data"))
            .env("GANTRY_RUN_DIR", root.join("run"))
            .env("GANTRY_CGROUP_PARENT", format!("/gantry-{}", self.name))
            .env("GANTRY_RUNTIME", binary("GANTRY_RUNTIME_BIN", "gantry-runtime"))
            .stdin(Stdio::null());
        command
    }

    /// Runs `gantry …`.
    ///
    /// # Panics
    /// The binary cannot be started.
    pub fn gantry(&self, args: &[&str]) -> Done {
        self.command().args(args).output().expect("gantry starts").into()
    }

    /// Runs `gantry lab VERB --name … …`.
    pub fn lab(&self, args: &[&str]) -> Done {
        let (verb, rest) = args.split_first().expect("a verb");
        let mut all = vec!["lab", verb, "--name", &self.name];
        all.extend(rest);
        self.gantry(&all)
    }

    /// Runs a program on a node.
    pub fn on(&self, node: &str, args: &[&str]) -> Done {
        let mut all = vec!["exec", node, "--"];
        all.extend(args);
        self.lab(&all)
    }

    /// Writes `text` as the manifest of a folder of its own and answers its path.
    ///
    /// # Panics
    /// It cannot be written.
    pub fn manifest(&self, name: &str, text: &str) -> String {
        let folder = self.root.path().join(name);
        std::fs::create_dir_all(&folder).expect("a folder");
        let path = folder.join("compose.yaml");
        std::fs::write(&path, text).expect("a manifest");
        path.to_string_lossy().into_owned()
    }

    /// Replicas as `gantry ps --json` tells them.
    ///
    /// # Panics
    /// The command fails or prints something else.
    pub fn replicas(&self, app: &str) -> Vec<http::Replica> {
        let out = self.gantry(&["ps", app, "--json"]).ok();
        serde_json::from_str(&out).unwrap_or_else(|error| panic!("{error}: {out}"))
    }

    /// Ready replicas of one service.
    pub fn ready(&self, app: &str, service: &str) -> Vec<http::Replica> {
        let all = self.replicas(app);
        all.into_iter().filter(|replica| replica.ready && replica.name.service.as_str() == service).collect()
    }

    /// Waits until exactly `count` replicas of a service are ready and answers them.
    pub fn until_ready(&self, app: &str, service: &str, count: usize) -> Vec<http::Replica> {
        until(&format!("{count} ready replicas of {service}"), seconds(60), || {
            let ready = self.ready(app, service);
            if ready.len() == count { Ok(ready) } else { Err(format!("{:#?}", self.replicas(app))) }
        })
    }

    /// Path of a node's files on this machine.
    pub fn node_data(&self, node: &str) -> PathBuf {
        self.root.path().join("data/labs").join(&self.name).join(node)
    }

    /// Ends the lab and checks that nothing of it is left.
    ///
    /// # Panics
    /// Something is left.
    pub fn down(mut self) {
        self.lab(&["down"]).ok();
        self.down = true;
        let left = leftovers(&self.name, self.root.path());
        assert!(left.is_empty(), "left after `lab down`:\n{}", left.join("\n"));
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        if !self.down {
            if std::thread::panicking() {
                for part in ["events", "node ls", "apps"] {
                    let args: Vec<&str> = part.split(' ').collect();
                    eprintln!("--- gantry {part}\n{}", self.gantry(&args).out);
                }
            }
            self.lab(&["down"]);
        }
    }
}

/// A port of 127.0.0.1 that nobody holds right now.
///
/// # Panics
/// None is free.
pub(crate) fn free_port() -> u16 {
    let listener = TcpListener::bind(("127.0.0.1", 0)).expect("a free port");
    listener.local_addr().expect("its address").port()
}

impl Cluster {
    /// A port of this machine for a manifest to publish, and the address at which the lab's forwarder will answer.
    pub fn port(&self) -> (u16, SocketAddr) {
        let port = free_port();
        (port, SocketAddr::from(([127, 0, 0, 1], port)))
    }
}

/// Cgroups, mounts and processes that carry the lab's name or lie below its folder.
fn leftovers(name: &str, root: &Path) -> Vec<String> {
    let mut left = Vec::new();
    let root = root.to_string_lossy().into_owned();
    let mounts = std::fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
    left.extend(mounts.lines().filter(|line| line.contains(&root)).map(|line| format!("mount {line}")));
    for hierarchy in std::fs::read_dir("/sys/fs/cgroup").into_iter().flatten().flatten() {
        let path = hierarchy.path().join(format!("gantry-{name}"));
        if path.exists() {
            left.push(format!("cgroup {}", path.display()));
        }
    }
    for process in std::fs::read_dir("/proc").into_iter().flatten().flatten() {
        let line = std::fs::read(process.path().join("cmdline")).unwrap_or_default();
        let line = String::from_utf8_lossy(&line).replace('\0', " ");
        let environment = std::fs::read(process.path().join("environ")).unwrap_or_default();
        let mine = process.file_name().to_string_lossy() == std::process::id().to_string();
        if !mine && (line.contains(&root) || String::from_utf8_lossy(&environment).contains(&root)) {
            left.push(format!("process {} {line}", process.file_name().to_string_lossy()));
        }
    }
    for place in ["data/labs", "run/labs"] {
        let path = Path::new(&root).join(place).join(name);
        if path.exists() {
            left.push(format!("files {}", path.display()));
        }
    }
    left
}

/// SIGKILL by number of a process that the test knows to be its own.
///
/// # Panics
/// There is no such process.
pub fn kill(pid: i32) {
    let pid = rustix::process::Pid::from_raw(pid).expect("a process number");
    rustix::process::kill_process(pid, rustix::process::Signal::KILL).expect("it can be killed");
}

/// Host PIDs of the Gantry daemons on a node: `gantry server` or `gantry join` below the node's first process.
pub fn daemons(cluster: &Cluster, node: &str) -> Vec<i32> {
    let mut found = Vec::new();
    for process in std::fs::read_dir("/proc").into_iter().flatten().flatten() {
        let Ok(pid) = process.file_name().to_string_lossy().parse::<i32>() else { continue };
        let groups = std::fs::read_to_string(process.path().join("cgroup")).unwrap_or_default();
        let line = std::fs::read(process.path().join("cmdline")).unwrap_or_default();
        let words: Vec<&str> = std::str::from_utf8(&line).unwrap_or_default().split('\0').collect();
        let here = groups.lines().any(|line| line.contains(&format!("lab-{}/{node}", cluster.name)));
        if here && words.iter().any(|word| matches!(*word, "server" | "join")) {
            found.push(pid);
        }
    }
    found
}
