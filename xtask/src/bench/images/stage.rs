//! What is measured, made ready: the programs, a registry with the image, fresh disks, and a cgroup that counts.

use crate::error::{Error, Result};
use crate::images::recipe::BENCH_IMAGE;
use crate::{binaries, files, host, images, process, sys};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

/// Tags of the two forms of the image.
pub(super) const GZIP: &str = "gzip";
pub(super) const ZSTD: &str = "zstd";

const LIMIT: Duration = Duration::from_secs(120);
/// Nobody else is in the network namespace.
const ADDRESS: &str = "127.0.0.1:5000";
/// The most that a tool needs, with packed layers kept twice; in memory, and only what is written of it.
const DISK: &str = "6G";

/// Everything in its place; goes away with this value.
pub(super) struct Stage {
    folder: PathBuf,
    measure: PathBuf,
    cgroup: Cgroup,
    registry: Option<Child>,
}

/// Counts the CPU time of the processes in it.
struct Cgroup {
    folder: PathBuf,
    /// File with the count, the word before it in its line, and its unit.
    counter: (&'static str, &'static str, Duration),
}

impl Cgroup {
    fn make() -> Result<Self> {
        let name = format!("gantry-bench-{}", std::process::id());
        let first = Path::new("/sys/fs/cgroup/cpuacct");
        let (folder, counter) = if first.is_dir() {
            (first.join(name), ("cpuacct.usage", "", Duration::from_nanos(1)))
        } else {
            (Path::new("/sys/fs/cgroup").join(name), ("cpu.stat", "usage_usec ", Duration::from_micros(1)))
        };
        std::fs::create_dir(&folder).map_err(Error::file("make", &folder))?;
        Ok(Self { folder, counter })
    }

    fn used(&self) -> Result<Duration> {
        let (file, word, unit) = self.counter;
        let path = self.folder.join(file);
        let text = files::read(&path)?;
        let count = text.lines().find_map(|line| line.strip_prefix(word)?.trim().parse::<u64>().ok());
        let count = count.ok_or_else(|| Error::input(path.display(), "has no count of CPU time"))?;
        Ok(Duration::from_nanos(count.saturating_mul(unit.as_nanos() as u64)))
    }

    fn processes(&self) -> Vec<i32> {
        let text = std::fs::read_to_string(self.folder.join("cgroup.procs")).unwrap_or_default();
        text.lines().filter_map(|line| line.parse().ok()).collect()
    }
}

/// The largest resident set that a process has had; 0 when it is gone.
fn peak_kib(pid: i32) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"));
    line.and_then(|line| line.trim().trim_end_matches(" kB").parse().ok()).unwrap_or_default()
}

impl Stage {
    /// Installs the peers, makes the image, and gives this process namespaces of its own.
    pub(super) fn set() -> Result<Self> {
        host::check_root("bench images")?;
        host::install(&[
            ("containerd", "containerd"),
            ("podman", "podman"),
            ("dockerd", "docker.io"),
            ("skopeo", "skopeo"),
            ("umoci", "umoci"),
            ("docker-registry", "docker-registry"),
            ("mkfs.ext4", "e2fsprogs"),
            ("ip", "iproute2"),
        ])?;
        let image = images::build(&[BENCH_IMAGE.to_owned()], false)?.remove(0);
        let folder = PathBuf::from(format!("/dev/shm/gantry-bench-{}", std::process::id()));
        std::fs::create_dir(&folder).map_err(Error::file("make", &folder))?;
        let cgroup = Cgroup::make()?;
        let mut stage = Self { measure: folder.join("measure"), folder, cgroup, registry: None };
        let built = binaries::example("gantry-images", "measure")?;
        std::fs::copy(&built, &stage.measure).map_err(Error::file("copy", &built))?;
        sys::own_mount_namespace("/run/containerd").map_err(Error::file("leave", Path::new("/proc/self/ns/mnt")))?;
        sys::own_network_namespace().map_err(Error::file("leave", Path::new("/proc/self/ns/net")))?;
        process::run(Command::new("ip").args(["link", "set", "lo", "up"]))?;
        // docker would use a containerd of the host, and be measured without it.
        if Path::new("/run/containerd").is_dir() {
            process::run(Command::new("mount").args(["-t", "tmpfs", "tmpfs", "/run/containerd"]))?;
        }
        for name in ["run", "disk"] {
            let dir = stage.folder.join(name);
            std::fs::create_dir(&dir).map_err(Error::file("make", &dir))?;
        }
        stage.registry = Some(stage.serve()?);
        let from = format!("oci-archive:{}", image.archive.display());
        // zstd first, and gzip as it is: skopeo would send a layer that the registry has in the other form by its name.
        stage.push(&from, ZSTD, &["--dest-compress-format", "zstd", "--dest-compress-level", "3"])?;
        stage.push(&from, GZIP, &["--preserve-digests"])?;
        Ok(stage)
    }

    fn serve(&self) -> Result<Child> {
        let config = format!(
            "version: 0.1\nlog: {{level: error}}\nstorage: {{filesystem: {{rootdirectory: {}}}}}\nhttp: {{addr: '{ADDRESS}'}}\n",
            self.folder.join("registry").display()
        );
        let path = self.run_dir().join("registry.yml");
        files::replace(&path, config.as_bytes())?;
        let log = self.log();
        let out = std::fs::File::create(&log).map_err(Error::file("make", &log))?;
        let mut command = Command::new("docker-registry");
        command.arg("serve").arg(&path).stdin(Stdio::null()).stdout(out).stderr(Stdio::null());
        let child = command.spawn().map_err(|source| Error::Spawn { program: "docker-registry".into(), source })?;
        self.wait("docker-registry to listen", || std::net::TcpStream::connect(ADDRESS).is_ok())?;
        Ok(child)
    }

    fn push(&self, from: &str, tag: &str, options: &[&str]) -> Result<()> {
        let mut command = Command::new("skopeo");
        command.args(["copy", "--quiet", "--insecure-policy", "--dest-tls-verify=false"]).args(options);
        let to = format!("docker://{}", self.reference(tag));
        process::stdout(command.arg(from).arg(&to).env("TMPDIR", self.run_dir()))?;
        let manifest = process::text(Command::new("skopeo").args(["inspect", "--raw", "--tls-verify=false"]).arg(&to))?;
        let layers = manifest.matches(&format!(".tar+{tag}\"")).count();
        if layers == 0 || manifest.matches(".tar").count() != layers {
            return Err(Error::input(to, format!("has layers that are not {tag}")));
        }
        Ok(())
    }

    /// Waits until something is so.
    pub(super) fn wait(&self, what: &str, is_so: impl Fn() -> bool) -> Result<()> {
        let end = Instant::now() + LIMIT;
        while !is_so() {
            if Instant::now() > end {
                return Err(Error::broken(what, format!("not so after {} s", LIMIT.as_secs())));
            }
            std::thread::sleep(Duration::from_millis(10)); // a start-up that is not measured
        }
        Ok(())
    }

    /// What the registry has printed: a line for each request.
    fn log(&self) -> PathBuf {
        self.folder.join("registry.log")
    }

    /// Requests that the registry has answered.
    pub(super) fn requests(&self) -> Result<usize> {
        let text = files::read(&self.log())?;
        Ok(text.lines().filter(|line| ["\"GET /v2/", "\"HEAD /v2/"].iter().any(|verb| line.contains(verb))).count())
    }

    /// The image in the registry.
    pub(super) fn reference(&self, tag: &str) -> String {
        format!("{ADDRESS}/bench:{tag}")
    }

    /// A directory on the fresh disk.
    pub(super) fn place(&self, name: &str) -> PathBuf {
        self.folder.join("disk").join(name)
    }

    /// Sockets, settings and what else is no image, in memory.
    pub(super) fn run_dir(&self) -> PathBuf {
        self.folder.join("run")
    }

    /// Our program.
    pub(super) fn measure(&self) -> Command {
        Command::new(&self.measure)
    }

    /// A command in the cgroup.
    pub(super) fn counted(&self, command: &Command) -> Command {
        let mut counted = Command::new("sh");
        counted.args(["-c", "echo 0 >\"$0\" && exec \"$@\""]).arg(self.cgroup.folder.join("cgroup.procs"));
        counted.arg(command.get_program()).args(command.get_args());
        for (key, value) in command.get_envs() {
            counted.env(key, value.unwrap_or_default());
        }
        counted
    }

    /// CPU time used in the cgroup so far.
    pub(super) fn cpu(&self) -> Result<Duration> {
        self.cgroup.used()
    }

    /// Largest resident sets of the processes that are in the cgroup now, together.
    pub(super) fn peak_kib(&self) -> u64 {
        self.cgroup.processes().into_iter().map(peak_kib).sum()
    }

    /// Ask what is left in the cgroup to end, then make it.
    pub(super) fn end_daemons(&self) -> Result<()> {
        let all = |signal: fn(i32) -> std::io::Result<()>| {
            // One that has gone in the meantime is what is wanted.
            self.cgroup.processes().into_iter().for_each(|pid| drop(signal(pid)));
        };
        all(sys::terminate);
        let end = Instant::now() + Duration::from_secs(20);
        while !self.cgroup.processes().is_empty() && Instant::now() < end {
            std::thread::sleep(Duration::from_millis(10)); // nothing is measured
        }
        all(sys::kill);
        self.wait("the daemons to be gone", || self.cgroup.processes().is_empty())
    }

    /// A fresh file system for one run.
    pub(super) fn disk(&self) -> Result<Disk> {
        let image = self.folder.join("disk.img");
        let _ = std::fs::remove_file(&image); // of the run before
        process::stdout(Command::new("truncate").args(["-s", DISK]).arg(&image))?;
        // Nothing is left for a thread of the kernel to do later.
        let whole = "lazy_itable_init=0,lazy_journal_init=0";
        process::stdout(Command::new("mkfs.ext4").args(["-q", "-F", "-E", whole]).arg(&image))?;
        let disk = Disk { at: self.folder.join("disk"), image, mounted: true };
        process::stdout(Command::new("mount").args(["-o", "loop"]).arg(&disk.image).arg(&disk.at))?;
        std::fs::create_dir(disk.at.join("tmp")).map_err(Error::file("make", &disk.at))?;
        Ok(disk)
    }

    /// What the peers are.
    pub(super) fn versions(&self) -> Result<String> {
        let mut all = Vec::new();
        for (program, flag) in [
            ("containerd", "--version"),
            ("podman", "--version"),
            ("dockerd", "--version"),
            ("skopeo", "--version"),
            ("umoci", "--version"),
            ("docker-registry", "--version"),
        ] {
            let text = process::text(Command::new(program).arg(flag))?;
            all.push(text.lines().next().unwrap_or_default().trim().to_owned());
        }
        Ok(all.join("; "))
    }
}

impl Drop for Stage {
    fn drop(&mut self) {
        let ended = self.end_daemons();
        if let Some(registry) = &mut self.registry {
            // Already gone is fine.
            let _ = registry.kill().and_then(|()| registry.wait());
        }
        if let Err(error) = ended {
            eprintln!("xtask: {}", error.chain());
        }
        for (what, done) in [
            (&self.folder, std::fs::remove_dir_all(&self.folder)),
            (&self.cgroup.folder, std::fs::remove_dir(&self.cgroup.folder)),
        ] {
            if let Err(error) = done {
                eprintln!("xtask: cannot remove {}: {error}", what.display());
            }
        }
    }
}

/// A mounted file system, which goes away with this value.
pub(super) struct Disk {
    at: PathBuf,
    image: PathBuf,
    mounted: bool,
}

impl Disk {
    /// Unmounts it.
    pub(super) fn end(mut self) -> Result<()> {
        self.mounted = false;
        process::stdout(Command::new("umount").arg("-R").arg(&self.at))?;
        std::fs::remove_file(&self.image).map_err(Error::file("remove", &self.image))
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        if self.mounted {
            // After a failure, which is the one to tell; the mount would go with the namespace.
            let _ = process::output(Command::new("umount").args(["-R", "-l"]).arg(&self.at));
        }
    }
}
