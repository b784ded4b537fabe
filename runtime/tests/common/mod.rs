//! Bundles, containers and waiting for tests on the real kernel, as root.
//!
//! Each test has a directory, a state root and container ids of its own; dropping it removes every container in it.
//! The root filesystem is a static busybox.
#![allow(dead_code)] // every test file uses a part

use serde_json::{Value, json};
use std::fs;
use std::io::{Read, Seek, SeekFrom};
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

/// How long anything may take on a loaded machine; `GANTRY_TEST_PATIENCE` (seconds) gives an emulated one more.
pub(crate) fn patience() -> Duration {
    let given = std::env::var("GANTRY_TEST_PATIENCE").ok().and_then(|text| text.parse().ok());
    Duration::from_secs(given.unwrap_or(30))
}

/// A bundle, a state root, and the containers made from them.
pub(crate) struct Bed {
    dir: tempfile::TempDir,
    /// The configuration that the next container gets.
    pub(crate) config: Value,
}

/// What a command did.
#[derive(Debug)]
pub(crate) struct Ran {
    /// Exit code, or 128 + signal.
    pub(crate) code: i32,
    /// Standard output.
    pub(crate) out: String,
    /// Standard error.
    pub(crate) err: String,
}

static NEXT: AtomicU32 = AtomicU32::new(0);

/// A container id nobody else has.
pub(crate) fn id(word: &str) -> String {
    format!("gt-{word}-{}-{}", std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed))
}

/// The static busybox of the host.
fn busybox() -> PathBuf {
    let places = ["/bin/busybox", "/usr/bin/busybox"].map(PathBuf::from);
    places.into_iter().find(|path| path.exists()).expect("tests need busybox: apt-get install busybox-static")
}

impl Bed {
    /// A bundle that runs a shell script.
    pub(crate) fn new(script: &str) -> Self {
        // In memory where possible: the disk of a busy machine may stall for longer than any test should wait.
        let mut builder = tempfile::Builder::new();
        builder.prefix("gantry-runtime-test-");
        let dir = builder.tempdir_in("/dev/shm").or_else(|_| builder.tempdir()).expect("a directory");
        let bin = dir.path().join("bundle/rootfs/bin");
        fs::create_dir_all(&bin).expect("the root filesystem");
        fs::copy(busybox(), bin.join("busybox")).expect("busybox");
        for applet in APPLETS {
            symlink("busybox", bin.join(applet)).expect("an applet");
        }
        fs::create_dir(dir.path().join("bundle/rootfs/etc")).expect("etc");
        let config = gantry_runtime::config::example::config(false);
        let mut config = serde_json::to_value(config).expect("the example as JSON");
        config["process"]["args"] = json!(["sh", "-c", script]);
        Self { dir, config }
    }

    /// The test's own directory.
    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// The container's root filesystem.
    pub(crate) fn rootfs(&self, name: &str) -> PathBuf {
        self.path("bundle/rootfs").join(name)
    }

    /// The bundle's directory.
    pub(crate) fn bundle(&self) -> PathBuf {
        self.path("bundle")
    }

    /// Write the configuration.
    pub(crate) fn save(&self) {
        let text = serde_json::to_vec_pretty(&self.config).expect("JSON");
        fs::write(self.bundle().join("config.json"), text).expect("config.json");
    }

    /// A command of the runtime on this bed's state root, in the bundle.
    pub(crate) fn command(&self, args: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_gantry-runtime"));
        command.arg("--root").arg(self.path("state")).args(args).current_dir(self.bundle()).stdin(Stdio::null());
        command
    }

    /// Run a command to its end.
    pub(crate) fn run(&self, args: &[&str]) -> Ran {
        self.save();
        finish(&mut self.command(args))
    }

    /// Run a command that must succeed; returns its standard output.
    pub(crate) fn ok(&self, args: &[&str]) -> String {
        let ran = self.run(args);
        assert_eq!(ran.code, 0, "{args:?}: {}", ran.err);
        ran.out
    }

    /// Run the bundle in the foreground; returns what it printed, and insists on success.
    pub(crate) fn says(&self) -> String {
        let id = id("says");
        let ran = self.run(&["run", &id]);
        assert_eq!(ran.code, 0, "out: {} err: {}", ran.out, ran.err);
        self.assert_gone(&id);
        ran.out
    }

    /// Run the bundle in the foreground; returns the message it is refused with.
    pub(crate) fn refuses(&self) -> String {
        self.refuses_with(1)
    }

    /// The same, with this exit code.
    pub(crate) fn refuses_with(&self, code: i32) -> String {
        let id = id("refused");
        let ran = self.run(&["run", &id]);
        assert_eq!(ran.code, code, "out: {} err: {}", ran.out, ran.err);
        self.assert_gone(&id);
        ran.err
    }

    /// State and cgroups of a container are gone.
    pub(crate) fn assert_gone(&self, id: &str) {
        assert!(!self.path("state").join(id).exists(), "state of {id} is left");
        assert_eq!(cgroups(id), Vec::<PathBuf>::new(), "cgroups of {id} are left");
    }

    /// Status of a container.
    pub(crate) fn status(&self, id: &str) -> String {
        let state: Value = serde_json::from_str(&self.ok(&["state", id])).expect("the state is JSON");
        state["status"].as_str().expect("a status").to_owned()
    }

    /// Process number of a container.
    pub(crate) fn pid(&self, id: &str) -> i32 {
        let state: Value = serde_json::from_str(&self.ok(&["state", id])).expect("the state is JSON");
        state["pid"].as_i64().expect("a pid") as i32
    }

    /// Wait until a container has a status.
    pub(crate) fn wait_for_status(&self, id: &str, status: &str) {
        until(&format!("{id} is {status}"), || self.status(id) == status);
    }

    /// Whether a process of the runtime works on this bed.
    pub(crate) fn is_in_use(&self) -> bool {
        let root = self.path("state").display().to_string();
        fs::read_dir("/proc").expect("processes").flatten().any(|entry| {
            let command = fs::read(entry.path().join("cmdline")).unwrap_or_default();
            String::from_utf8_lossy(&command).contains(&root)
        })
    }

    /// Options for a supervised container.
    pub(crate) fn supervised(&self) -> [String; 5] {
        let (log, exit) = (self.path("log").display().to_string(), self.path("exit").display().to_string());
        ["--supervise".into(), "--container-log".into(), log, "--exit-file".into(), exit]
    }

    /// The exit file, once it is there.
    pub(crate) fn exit_record(&self) -> Value {
        until("the exit file is there", || self.path("exit").exists());
        serde_json::from_slice(&fs::read(self.path("exit")).expect("the exit file")).expect("JSON")
    }

    /// The container's output from the log of the supervisor, joined, oldest file first.
    pub(crate) fn logged(&self) -> String {
        let mut text = String::new();
        for number in (1..10).rev() {
            text += &fs::read_to_string(self.path(&format!("log.{number}"))).unwrap_or_default();
        }
        text += &fs::read_to_string(self.path("log")).unwrap_or_default();
        let mut output = String::new();
        for line in text.split_terminator('\n') {
            let mut words = line.splitn(4, ' ');
            let (_, _, tag) = (words.next(), words.next(), words.next().expect("a tag"));
            output += words.next().unwrap_or("");
            if tag == "F" {
                output.push('\n');
            }
        }
        output
    }
}

impl Drop for Bed {
    fn drop(&mut self) {
        for entry in fs::read_dir(self.path("state")).into_iter().flatten().flatten() {
            let name = entry.file_name().into_string().unwrap_or_default();
            let _ = self.command(&["delete", "--force", &name]).output();
        }
    }
}

const APPLETS: &[&str] = &[
    "sh",
    "ls",
    "cat",
    "echo",
    "sleep",
    "true",
    "id",
    "mount",
    "ps",
    "hostname",
    "mkdir",
    "touch",
    "head",
    "dd",
    "yes",
    "kill",
    "env",
    "stat",
    "ip",
    "grep",
    "pwd",
    "seq",
    "tail",
    "wc",
    "chmod",
    "mknod",
    "readlink",
    "stty",
    "tty",
    "tr",
    "awk",
    "umount",
    "rm",
    "printf",
    "test",
    "setuidgid",
    "unshare",
];

/// Run a command to its end, with output into files: a container it leaves behind keeps them open, and must not keep
/// us waiting.
pub(crate) fn finish(command: &mut Command) -> Ran {
    let (mut out, mut err) = (tempfile::tempfile().expect("a file"), tempfile::tempfile().expect("a file"));
    command.stdout(out.try_clone().expect("a file")).stderr(err.try_clone().expect("a file"));
    let deadline = Instant::now() + patience();
    let child = loop {
        match command.spawn() {
            // A program that was just written is open in whatever another thread forks, until that executes its own.
            Err(error) if error.kind() == std::io::ErrorKind::ExecutableFileBusy && Instant::now() < deadline => {
                std::thread::sleep(Duration::from_millis(2));
            }
            result => break result.expect("the runtime"),
        }
    };
    let code = wait(child);
    let read = |file: &mut fs::File| {
        let mut bytes = Vec::new();
        file.seek(SeekFrom::Start(0)).expect("the start");
        file.read_to_end(&mut bytes).expect("the output");
        String::from_utf8_lossy(&bytes).into_owned()
    };
    Ran { code, out: read(&mut out), err: read(&mut err) }
}

/// Exit code of a child, or 128 + signal; kills it when it takes too long.
pub(crate) fn wait(mut child: Child) -> i32 {
    use std::os::unix::process::ExitStatusExt;
    let deadline = Instant::now() + patience();
    loop {
        if let Some(status) = child.try_wait().expect("waiting") {
            return status.code().unwrap_or_else(|| 128 + status.signal().unwrap_or(0));
        }
        if Instant::now() > deadline {
            let where_it_hangs = hangs(child.id());
            let _ = child.kill();
            let _ = child.wait();
            panic!("the command did not end: {where_it_hangs}");
        }
        std::thread::sleep(Duration::from_millis(2));
    }
}

/// Where a process and its children wait inside the kernel.
fn hangs(pid: u32) -> String {
    let read = |file: &str| fs::read_to_string(format!("/proc/{pid}/{file}")).unwrap_or_default();
    let command = read("cmdline").replace('\0', " ");
    let mut text = format!("\n{pid} `{command}` in {}: {}", read("wchan"), read("stack"));
    for child in read(&format!("task/{pid}/children")).split_whitespace() {
        text += &child.parse().map_or(String::new(), hangs);
    }
    text
}

/// Wait until something holds.
pub(crate) fn until(what: &str, mut holds: impl FnMut() -> bool) {
    let deadline = Instant::now() + patience();
    while !holds() {
        assert!(Instant::now() < deadline, "did not come true: {what}");
        std::thread::sleep(Duration::from_millis(2));
    }
}

/// Every cgroup directory of a container, by its id.
pub(crate) fn cgroups(id: &str) -> Vec<PathBuf> {
    let mut mounts: Vec<PathBuf> = vec![PathBuf::from("/sys/fs/cgroup")];
    mounts.extend(fs::read_dir("/sys/fs/cgroup").into_iter().flatten().flatten().map(|entry| entry.path()));
    mounts.into_iter().map(|mount| mount.join("gantry-runtime").join(id)).filter(|path| path.exists()).collect()
}

/// Whether this kernel is at least of a version.
pub(crate) fn has_kernel(major: u32, minor: u32) -> bool {
    let version = fs::read_to_string("/proc/sys/kernel/osrelease").expect("a version");
    let numbers: Vec<u32> = version.split(['.', '-']).map_while(|part| part.parse().ok()).collect();
    numbers >= vec![major, minor]
}

/// Whether a process runs: there and no zombie.
pub(crate) fn runs(pid: i32) -> bool {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    let state = stat.rsplit(')').next().and_then(|rest| rest.trim().chars().next());
    state.is_some_and(|state| state != 'Z' && state != 'X')
}

/// Send a signal to a process the test started.
pub(crate) fn signal(pid: i32, signal: i32) {
    let status = Command::new("kill").arg(format!("-{signal}")).arg(pid.to_string()).status().expect("kill");
    assert!(status.success(), "signal {signal} to {pid}");
}

/// A line of a table such as `/proc/self/status`.
pub(crate) fn field<'a>(text: &'a str, name: &str) -> &'a str {
    let line = text.lines().find(|line| line.starts_with(name)).unwrap_or_else(|| panic!("no {name} in {text}"));
    line[name.len()..].trim_start_matches(':').trim()
}

/// A file the container must not have touched.
pub(crate) fn assert_untouched(path: &Path, content: &str) {
    assert_eq!(fs::read_to_string(path).expect("the host's file"), content);
}

/// Try something until it returns true or patience ends; says whether it did.
pub(crate) fn until_or(mut holds: impl FnMut() -> bool) -> bool {
    let deadline = Instant::now() + patience();
    while Instant::now() < deadline {
        if holds() {
            return true;
        }
        std::thread::sleep(Duration::from_millis(2));
    }
    false
}
