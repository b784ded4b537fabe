//! The tools: how each pulls the image, and what that took.

use super::stage::Stage;
use crate::error::{Error, Result};
use crate::{files, process, sys};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

/// What one pull took.
#[derive(Debug, Clone, Copy)]
pub(super) struct Run {
    /// Until the command returned.
    pub(super) wall: Duration,
    /// The same, and until all of it is on disk.
    pub(super) synced: Duration,
    pub(super) cpu: Duration,
    /// Of all processes at once, daemons included.
    pub(super) peak_kib: u64,
}

/// Makes commands.
type Make = fn(&Stage, &str) -> Vec<Command>;

/// A program that must run before, and the question that it answers once it does.
#[derive(Clone, Copy)]
struct Daemon {
    start: fn(&Stage) -> Result<Command>,
    answers: fn(&Stage) -> Command,
}

/// A way to get an image from a registry to where a container could be made of it.
pub(super) struct Tool {
    pub(super) name: &'static str,
    daemon: Option<Daemon>,
    pull: Make,
}

/// Ours first.
pub(super) fn all() -> [Tool; 5] {
    let containerd = Daemon { start: containerd, answers: containerd_answers };
    let dockerd = Daemon { start: dockerd, answers: docker_answers };
    [
        Tool { name: "gantry", daemon: None, pull: gantry },
        Tool { name: "containerd", daemon: Some(containerd), pull: ctr },
        Tool { name: "podman", daemon: None, pull: podman },
        Tool { name: "docker", daemon: Some(dockerd), pull: docker },
        Tool { name: "skopeo+umoci", daemon: None, pull: skopeo_umoci },
    ]
}

fn gantry(stage: &Stage, tag: &str) -> Vec<Command> {
    let mut command = stage.measure();
    command.arg("pull").arg(stage.place("gantry")).arg(stage.reference(tag));
    vec![command]
}

/// With its snapshots and its content on the disk, and nothing else but defaults.
fn containerd(stage: &Stage) -> Result<Command> {
    let (run, config) = (stage.run_dir(), stage.run_dir().join("containerd.toml"));
    let text = format!(
        "version = 2\nroot = '{}'\nstate = '{}'\ndisabled_plugins = ['io.containerd.grpc.v1.cri']\n\
         [grpc]\naddress = '{}'\n[plugins.'io.containerd.internal.v1.opt']\npath = '{}'\n",
        stage.place("containerd").display(),
        run.join("containerd").display(),
        containerd_socket(stage).display(),
        stage.place("opt").display(),
    );
    files::replace(&config, text.as_bytes())?;
    let mut command = Command::new("containerd");
    command.arg("--config").arg(config).args(["--log-level", "error"]);
    Ok(command)
}

fn containerd_socket(stage: &Stage) -> PathBuf {
    stage.run_dir().join("containerd.sock")
}

fn ctr_command(stage: &Stage, args: &[&str]) -> Command {
    let mut command = Command::new("ctr");
    command.arg("--address").arg(containerd_socket(stage)).args(args);
    command
}

fn containerd_answers(stage: &Stage) -> Command {
    ctr_command(stage, &["version"])
}

fn ctr(stage: &Stage, tag: &str) -> Vec<Command> {
    vec![ctr_command(stage, &["images", "pull", "--plain-http", &stage.reference(tag)])]
}

fn podman(stage: &Stage, tag: &str) -> Vec<Command> {
    let mut command = Command::new("podman");
    command.arg("--root").arg(stage.place("podman")).arg("--runroot").arg(stage.run_dir().join("podman"));
    command.args(["--storage-driver", "overlay", "pull", "--quiet", "--tls-verify=false", &stage.reference(tag)]);
    command.env("TMPDIR", stage.place("tmp"));
    vec![command]
}

fn docker_socket(stage: &Stage) -> String {
    format!("unix://{}", stage.run_dir().join("docker.sock").display())
}

fn dockerd(stage: &Stage) -> Result<Command> {
    let run = stage.run_dir();
    let config = run.join("dockerd.json"); // not that of the host
    files::replace(&config, b"{}")?;
    let mut command = Command::new("dockerd");
    command.arg("--data-root").arg(stage.place("docker")).arg("--exec-root").arg(run.join("docker"));
    command.arg("--pidfile").arg(run.join("docker.pid")).args(["--host", &docker_socket(stage)]);
    command.args(["--bridge=none", "--iptables=false", "--ip6tables=false", "--storage-driver=overlay2"]);
    command.arg("--config-file").arg(config).arg("--log-level=error");
    Ok(command)
}

fn docker_command(stage: &Stage, args: &[&str]) -> Command {
    // The one of the distribution, like the daemon.
    let program = Path::new("/usr/bin/docker");
    let mut command = Command::new(if program.exists() { program } else { Path::new("docker") });
    command.args(["--host", &docker_socket(stage)]).args(args).env("DOCKER_CONFIG", stage.run_dir());
    command
}

fn docker_answers(stage: &Stage) -> Command {
    docker_command(stage, &["info"])
}

fn docker(stage: &Stage, tag: &str) -> Vec<Command> {
    vec![docker_command(stage, &["pull", "--quiet", &stage.reference(tag)])]
}

fn skopeo_umoci(stage: &Stage, tag: &str) -> Vec<Command> {
    let layout = stage.place("layout");
    let mut copy = Command::new("skopeo");
    copy.args(["copy", "--quiet", "--insecure-policy", "--src-tls-verify=false"]);
    copy.arg(format!("docker://{}", stage.reference(tag))).arg(format!("oci:{}:bench", layout.display()));
    copy.env("TMPDIR", stage.place("tmp"));
    let mut unpack = Command::new("umoci");
    unpack.args(["unpack", "--image"]).arg(format!("{}:bench", layout.display())).arg(stage.place("bundle"));
    vec![copy, unpack]
}

impl Tool {
    /// Pulls the image onto the fresh disk, with a fresh daemon.
    pub(super) fn run(&self, stage: &Stage, tag: &str) -> Result<Run> {
        let daemon = match self.daemon {
            None => None,
            Some(Daemon { start, answers }) => {
                let command = start(stage)?;
                let child = stage.counted(&command).stdin(Stdio::null()).stdout(Stdio::null()).spawn();
                let child = child.map_err(|source| Error::Spawn { program: self.name.into(), source })?;
                stage.wait(&format!("{} to answer", self.name), || {
                    process::output(&mut answers(stage)).is_ok_and(|output| output.status.success())
                })?;
                Some(child)
            }
        };
        let run = self.pull(stage, tag);
        stage.end_daemons()?;
        if let Some(mut daemon) = daemon {
            daemon.wait().map_err(Error::file("wait for", Path::new(self.name)))?;
        }
        run
    }

    fn pull(&self, stage: &Stage, tag: &str) -> Result<Run> {
        let (done, peak) = (AtomicBool::new(false), AtomicU64::new(0));
        std::thread::scope(|scope| {
            // A process that ends takes its count along, so it is looked at while it runs.
            scope.spawn(|| {
                while !done.load(Ordering::Relaxed) {
                    peak.fetch_max(stage.peak_kib(), Ordering::Relaxed);
                    std::thread::sleep(Duration::from_millis(20));
                }
            });
            let before = stage.cpu();
            let begun = Instant::now();
            let outputs: Result<Vec<Vec<u8>>> =
                (self.pull)(stage, tag).iter().map(|command| process::stdout(&mut stage.counted(command))).collect();
            let wall = begun.elapsed();
            peak.fetch_max(stage.peak_kib(), Ordering::Relaxed);
            done.store(true, Ordering::Relaxed);
            let (outputs, used) = (outputs?, stage.cpu()?.saturating_sub(before?));
            let disk = stage.place("");
            sys::sync_file_system(&disk).map_err(Error::file("sync", &disk))?;
            // Ours tells by itself, to the last page.
            let told = outputs.last().and_then(|text| std::str::from_utf8(text).ok()?.trim().parse().ok());
            let peak_kib = told.unwrap_or_else(|| peak.load(Ordering::Relaxed));
            Ok(Run { wall, synced: begun.elapsed(), cpu: used, peak_kib })
        })
    }
}
