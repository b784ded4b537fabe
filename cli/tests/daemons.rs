//! The daemons as processes, in a network namespace of the test's own, with folders of its own.
//!
//! Needs root, and `ip`, `unshare` and `nsenter`. The runtime is a double that has no containers: what it does with
//! some is tested in `tests/`.

use std::io::{BufRead, BufReader};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::CommandExt;
use std::process::{Child, Command, Output, Stdio};
use std::sync::mpsc;
use std::time::Duration;

/// Whatever is not there by then will never be.
const PATIENCE: Duration = Duration::from_secs(30);

/// How a command ended.
#[derive(Debug)]
struct Ended {
    code: Option<i32>,
    stdout: String,
    stderr: String,
}

impl From<Output> for Ended {
    fn from(output: Output) -> Self {
        let text = |bytes| String::from_utf8(bytes).unwrap();
        Self { code: output.status.code(), stdout: text(output.stdout), stderr: text(output.stderr) }
    }
}

/// A network without a way out, and a host's folders.
struct Host {
    holder: Child,
    folder: tempfile::TempDir,
}

impl Host {
    fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let runtime = folder.path().join("gantry-runtime");
        std::fs::write(&runtime, "#!/bin/sh\ncase \"$*\" in *list*) echo '[]';; *) echo 0.1.0;; esac\n").unwrap();
        std::fs::set_permissions(&runtime, std::fs::Permissions::from_mode(0o755)).unwrap();
        let mut holder = Command::new("unshare")
            .args(["--net", "sh", "-c", "ip link set lo up && echo up && exec cat"])
            .stdin(Stdio::piped()) // it ends when the test does, even a killed one
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut line = String::new();
        BufReader::new(holder.stdout.take().unwrap()).read_line(&mut line).unwrap();
        assert_eq!(line, "up\n");
        Self { holder, folder }
    }

    fn command(&self, args: &[&str]) -> Command {
        let at = |name: &str| self.folder.path().join(name);
        let mut command = Command::new("nsenter");
        command.arg("--net").arg("--target").arg(self.holder.id().to_string());
        command.arg(env!("CARGO_BIN_EXE_gantry")).args(args);
        command.env_remove("RUST_LOG").env_remove("GANTRY_HOST").env_remove("NOTIFY_SOCKET");
        command.env("GANTRY_DATA_DIR", at("data")).env("GANTRY_RUN_DIR", at("run"));
        command.env("GANTRY_CGROUP_PARENT", "/gantry-test-daemons").env("GANTRY_RUNTIME", at("gantry-runtime"));
        command
    }

    fn run(&self, args: &[&str]) -> Ended {
        self.command(args).output().unwrap().into()
    }

    fn start(&self, args: &[&str]) -> Daemon {
        Daemon::new(self.command(args))
    }

    /// Waits until a node is there and ready.
    fn until_ready(&self, name: &str) {
        let deadline = std::time::Instant::now() + PATIENCE;
        loop {
            let nodes = self.run(&["node", "ls"]);
            if nodes.stdout.lines().any(|line| line.starts_with(&format!("{name} ")) && line.contains(" ready ")) {
                return;
            }
            assert!(std::time::Instant::now() < deadline, "{nodes:?}");
            std::thread::sleep(Duration::from_millis(20));
        }
    }
}

impl Drop for Host {
    fn drop(&mut self) {
        let _ = self.holder.kill();
        let _ = self.holder.wait();
    }
}

/// A daemon; killed when dropped.
struct Daemon {
    child: Child,
    lines: mpsc::Receiver<String>,
    seen: String,
}

impl Daemon {
    fn new(mut command: Command) -> Self {
        let mut child = command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped()).spawn().unwrap();
        let (sender, lines) = mpsc::channel();
        let stderr = BufReader::new(child.stderr.take().unwrap());
        std::thread::spawn(move || stderr.lines().map_while(Result::ok).try_for_each(|line| sender.send(line)));
        Self { child, lines, seen: String::new() }
    }

    /// Waits for a line with `text` on standard error.
    fn says(&mut self, text: &str) {
        while !self.seen.contains(text) {
            match self.lines.recv_timeout(PATIENCE) {
                Ok(line) => self.seen.push_str(&(line + "\n")),
                Err(error) => panic!("no `{text}` ({error}) in:\n{}", self.seen),
            }
        }
    }

    fn signal(&self, signal: nix::sys::signal::Signal) {
        let pid = nix::unistd::Pid::from_raw(i32::try_from(self.child.id()).unwrap());
        nix::sys::signal::kill(pid, signal).unwrap();
    }

    /// Tells it to stop; its exit code.
    fn stop(mut self, signal: nix::sys::signal::Signal) -> Option<i32> {
        self.signal(signal);
        self.says("containers, their traffic and their logs go on");
        self.child.wait().unwrap().code()
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

const SERVER: [&str; 5] = ["server", "--name", "n1", "--advertise", "127.0.0.1"];

#[test]
fn a_server_is_a_cluster_and_goes_on_after_it_was_stopped_or_killed() {
    use nix::sys::signal::Signal;
    let host = Host::new();
    let mut server = host.start(&SERVER);
    server.says("Gantry is ready: node n1 at 127.0.0.1:7400.");
    assert!(!server.seen.contains("GANTRY-1-"), "no secret in a log: {}", server.seen);
    host.until_ready("n1");
    let token = host.run(&["token", "create", "--ttl", "1m"]).stdout;
    assert!(token.starts_with("gantry join 127.0.0.1:7400 --token GANTRY-1-"), "{token}");

    let mut second = host.start(&SERVER);
    second.says("is in use by another process");
    assert_eq!(second.child.wait().unwrap().code(), Some(1), "two do not run on the same folders");

    server.signal(Signal::SIGKILL);
    server.child.wait().unwrap();
    for signal in [Signal::SIGTERM, Signal::SIGINT] {
        let mut server = host.start(&SERVER);
        server.says("Gantry is ready");
        host.until_ready("n1");
        assert_eq!(server.stop(signal), Some(0));
    }
    assert_eq!(host.run(&["ps"]).code, Some(1), "nobody is there any more");
}

#[test]
fn the_daemons_run_apart_and_a_host_joins_once() {
    use nix::sys::signal::Signal;
    let host = Host::new();
    let mut agent = host.start(&["agent", "--advertise", "127.0.0.1"]);
    agent.says("hint: gantry join");
    let mut scheduler = host.start(&["scheduler", "--advertise", "127.0.0.1", "--listen", "127.0.0.1:7411"]);
    scheduler.says("scheduler serves");
    let mut netd = host.start(&["netd"]);
    netd.says("netd ready");
    let token = host.run(&["token", "create", "-q"]).stdout;
    let args = ["--server", "127.0.0.1:7411", "--token", token.trim(), "--name", "n1", "--advertise", "127.0.0.1"];
    let all: Vec<&str> = std::iter::once("agent").chain(args).chain(["--label", "disk=ssd"]).collect();
    let mut agent = host.start(&all);
    agent.says("connected");
    host.until_ready("n1");
    let node: serde_json::Value = serde_json::from_str(&host.run(&["inspect", "n1"]).stdout).unwrap();
    assert_eq!(node["labels"]["disk"], "ssd");
    agent.signal(Signal::SIGKILL);
    agent.child.wait().unwrap();
    // It is a node for good: the same command, or none of it, brings it back.
    let mut agent = host.start(&["agent", "--advertise", "127.0.0.1", "--name", "n1"]);
    agent.says("connected");
    for daemon in [agent, netd, scheduler] {
        assert_eq!(daemon.stop(Signal::SIGTERM), Some(0));
    }
}

#[test]
fn systemd_is_told_of_readiness_and_of_the_end() {
    let host = Host::new();
    let path = host.folder.path().join("notify");
    let socket = std::os::unix::net::UnixDatagram::bind(&path).unwrap();
    socket.set_read_timeout(Some(PATIENCE)).unwrap();
    let mut command = host.command(&["netd"]);
    command.env("NOTIFY_SOCKET", &path);
    let netd = Daemon::new(command);
    let told = || {
        let mut message = [0; 64];
        let length = socket.recv(&mut message).unwrap();
        String::from_utf8_lossy(&message[..length]).trim().to_owned()
    };
    assert_eq!(told(), "READY=1");
    assert_eq!(netd.stop(nix::sys::signal::Signal::SIGTERM), Some(0));
    assert_eq!(told(), "STOPPING=1");
}

#[test]
fn daemons_need_root() {
    for name in ["server", "scheduler", "agent", "netd"] {
        let mut command = Command::new(env!("CARGO_BIN_EXE_gantry"));
        let ended: Ended = command.arg(name).uid(65534).output().unwrap().into();
        let told = format!("gantry: `gantry {name}` needs root\nhint: sudo gantry {name} …\n");
        assert_eq!((ended.code, ended.stderr), (Some(1), told));
    }
}
