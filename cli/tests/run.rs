//! `gantry run` and its relatives on the real kernel, each test in network and mount namespaces of its own.
//!
//! The image is made here from the host's static busybox (Debian: `busybox-static`).

use gantry_images::Digest;
use std::collections::BTreeSet;
use std::fs;
use std::io::{Read, Write};
use std::net::TcpStream;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Once, OnceLock};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

const PREFIX: &str = "gantry-test-run-";
const ALIVE: &str = "alive";
const SECONDS: Duration = Duration::from_secs(1);
const IMAGE: &str = "box:1";

/// One test's directories and cgroup.
struct Bed {
    dir: PathBuf,
    parent: String,
    /// Held as long as the bed is in use, whatever process namespace its user is in.
    _alive: fs::File,
}

/// Runs a test in namespaces of its own, which take with them whatever it leaves there.
fn alone(test: impl FnOnce(&Bed) + Send) {
    use nix::mount::{MsFlags, mount};
    use nix::sched::{CloneFlags, unshare};
    let inside = || {
        unshare(CloneFlags::CLONE_NEWNET | CloneFlags::CLONE_NEWNS).expect("these tests need root");
        let private = MsFlags::MS_REC | MsFlags::MS_PRIVATE;
        mount(None::<&str>, "/", None::<&str>, private, None::<&str>).unwrap();
        assert!(Command::new("ip").args(["link", "set", "lo", "up"]).status().unwrap().success());
        let bed = Bed::new();
        test(&bed);
    };
    let joined = std::thread::scope(|scope| scope.spawn(inside).join());
    joined.unwrap_or_else(|panic| std::panic::resume_unwind(panic));
}

impl Bed {
    fn new() -> Self {
        static SWEPT: Once = Once::new();
        static NUMBER: AtomicU32 = AtomicU32::new(0);
        SWEPT.call_once(sweep);
        let number = NUMBER.fetch_add(1, Ordering::Relaxed);
        // The same process number may be in use in another process namespace.
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap().subsec_micros();
        let parent = format!("{PREFIX}{}-{number}-{now}", std::process::id());
        let dir = std::env::temp_dir().join(&parent);
        // Locked before it has the name that others sweep by.
        let fresh = std::env::temp_dir().join(format!(".{parent}"));
        fs::create_dir(&fresh).unwrap();
        let alive = fs::File::create(fresh.join(ALIVE)).unwrap();
        alive.lock().unwrap();
        fs::rename(&fresh, &dir).unwrap();
        let bed = Self { dir, parent, _alive: alive };
        fs::write(bed.dir.join("image.tar"), image()).unwrap();
        bed.ok(&format!("load -i {}", bed.dir.join("image.tar").display()));
        bed
    }

    fn gantry(&self, words: &str) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_gantry"));
        command.env("GANTRY_DATA_DIR", self.dir.join("data")).env("GANTRY_RUN_DIR", self.dir.join("run"));
        command.env("GANTRY_CGROUP_PARENT", format!("/{}", self.parent)).env("GANTRY_RUNTIME", runtime());
        command.args(words.split_whitespace()).stdin(Stdio::null()).current_dir(&self.dir);
        command
    }

    fn output(&self, words: &str) -> Output {
        self.gantry(words).output().unwrap()
    }

    /// Must succeed.
    fn ok(&self, words: &str) -> String {
        let done = self.output(words);
        assert!(done.status.success(), "gantry {words}: {:?} {}", done.status.code(), text(&done.stderr));
        text(&done.stdout)
    }

    /// Runs a shell script in a container with `--rm` and more options.
    fn sh(&self, options: &str, script: &str) -> Output {
        self.gantry(&format!("run --rm {options} {IMAGE} sh -c")).arg(script).output().unwrap()
    }

    fn ps(&self) -> Vec<serde_json::Value> {
        serde_json::from_str(&self.ok("ps --local --all --json")).unwrap()
    }

    fn state(&self, name: &str) -> String {
        let all = self.ps();
        let one = all.iter().find(|container| container["name"] == name);
        one.map_or_else(|| "gone".to_owned(), |one| one["state"].as_str().unwrap_or_default().to_owned())
    }

    /// What is left of containers.
    fn leftovers(&self) -> BTreeSet<String> {
        let mut left = BTreeSet::new();
        for mount in cgroup_mounts() {
            let parent = mount.join(&self.parent);
            let below = fs::read_dir(&parent).into_iter().flatten().flatten().filter(|entry| entry.path().is_dir());
            left.extend(below.map(|entry| format!("cgroup {}", entry.path().display())));
        }
        for folder in ["data/run", "data/images/containers", "run/run", "run/netns"] {
            let entries = fs::read_dir(self.dir.join(folder)).into_iter().flatten().flatten();
            let files = entries.filter(|entry| entry.file_name() != "lock");
            left.extend(files.map(|entry| format!("file {}", entry.path().display())));
        }
        let mounts = fs::read_to_string("/proc/thread-self/mountinfo").unwrap();
        left.extend(mounts.lines().filter(|line| line.contains(&self.parent)).map(|line| format!("mount {line}")));
        let links = fs::read_to_string("/proc/thread-self/net/dev").unwrap();
        let links = links.lines().skip(2).filter_map(|line| line.split(':').next());
        left.extend(links.map(str::trim).filter(|name| *name != "lo").map(|name| format!("link {name}")));
        left.extend(self.processes());
        left
    }

    fn processes(&self) -> Vec<String> {
        let entries = fs::read_dir("/proc").unwrap().flatten();
        let own = |entry: &fs::DirEntry| {
            let words = text(&fs::read(entry.path().join("cmdline")).unwrap_or_default()).replace('\0', " ");
            words.contains(&*self.dir.to_string_lossy()).then(|| format!("process {words}"))
        };
        entries.filter_map(|entry| own(&entry)).collect()
    }

    /// A watcher is done a moment after its container is gone.
    fn nothing_left(&self) {
        let deadline = Instant::now() + 30 * SECONDS;
        while Instant::now() < deadline && !self.leftovers().is_empty() {
            std::thread::sleep(Duration::from_millis(20));
        }
        assert_eq!(self.leftovers(), BTreeSet::new());
    }
}

impl Drop for Bed {
    fn drop(&mut self) {
        let all: Vec<serde_json::Value> =
            serde_json::from_slice(&self.output("ps --local --all --json").stdout).unwrap_or_default();
        for container in all {
            self.output(&format!("rm -f {}", container["id"].as_str().unwrap_or_default()));
        }
        remove(&self.dir, &self.parent);
    }
}

fn runtime() -> &'static Path {
    static PROGRAM: OnceLock<PathBuf> = OnceLock::new();
    PROGRAM.get_or_init(|| {
        if let Some(given) = std::env::var_os("GANTRY_RUNTIME") {
            return given.into();
        }
        let cargo = std::env::var_os("CARGO").unwrap_or("cargo".into());
        let built =
            Command::new(cargo).args(["build", "--quiet", "--locked", "-p", "gantry-runtime"]).status().unwrap();
        assert!(built.success(), "the runtime builds");
        Path::new(env!("CARGO_BIN_EXE_gantry")).with_file_name("gantry-runtime")
    })
}

fn cgroup_mounts() -> Vec<PathBuf> {
    let text = fs::read_to_string("/proc/self/mountinfo").unwrap();
    let cgroups = text.lines().filter(|line| line.contains(" - cgroup"));
    cgroups.filter_map(|line| line.split(' ').nth(4)).map(PathBuf::from).collect()
}

/// What namespaces do not take along: cgroups with their processes, and files.
fn remove(dir: &Path, parent: &str) {
    let deadline = Instant::now() + 5 * SECONDS;
    while Instant::now() < deadline {
        let mut busy = false;
        for top in cgroup_mounts().iter().map(|mount| mount.join(parent)) {
            for group in
                fs::read_dir(&top).into_iter().flatten().flatten().map(|entry| entry.path()).chain([top.clone()])
            {
                let pids = fs::read_to_string(group.join("cgroup.procs")).unwrap_or_default();
                for pid in pids.lines().filter_map(|pid| pid.parse().ok()) {
                    let _ = nix::sys::signal::kill(nix::unistd::Pid::from_raw(pid), nix::sys::signal::Signal::SIGKILL);
                }
                drop(fs::remove_dir(&group));
            }
            busy |= top.exists();
        }
        if !busy {
            break;
        }
        std::thread::sleep(Duration::from_millis(10));
    }
    drop(fs::remove_dir_all(dir));
}

/// Beds of runs that were killed.
fn sweep() {
    let folders = cgroup_mounts().into_iter().chain([std::env::temp_dir()]);
    for entry in folders.flat_map(|folder| fs::read_dir(folder).into_iter().flatten().flatten()) {
        let name = entry.file_name().to_string_lossy().into_owned();
        let dir = std::env::temp_dir().join(&name);
        let in_use = || fs::File::open(dir.join(ALIVE)).is_ok_and(|file| file.try_lock().is_err());
        if name.starts_with(PREFIX) && !in_use() {
            remove(&dir, &name);
        }
    }
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

fn eventually(what: &str, mut found: impl FnMut() -> bool) {
    let deadline = Instant::now() + 60 * SECONDS;
    while !found() {
        assert!(Instant::now() < deadline, "not in time: {what}");
        std::thread::sleep(Duration::from_millis(10));
    }
}

// ------------------------------------------------------------------------------------------------ the image

/// One member of a tar archive (POSIX ustar).
fn member(name: &str, kind: u8, mode: u32, link: &str, content: &[u8]) -> Vec<u8> {
    let mut header = [0u8; 512];
    let mut put = |at: usize, text: &str| header[at..at + text.len()].copy_from_slice(text.as_bytes());
    put(0, name);
    put(100, &format!("{mode:07o}"));
    put(108, "0000000");
    put(116, "0000000");
    put(124, &format!("{:011o}", content.len()));
    put(136, "00000000000");
    put(148, "        ");
    put(157, link);
    put(257, "ustar\x0000");
    header[156] = kind;
    let sum: u32 = header.iter().map(|byte| u32::from(*byte)).sum();
    header[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
    let mut out = header.to_vec();
    out.extend(content);
    out.resize(out.len().next_multiple_of(512), 0);
    out
}

/// An archive as `docker save` writes it.
fn image() -> Vec<u8> {
    let busybox = ["/usr/bin/busybox", "/bin/busybox"].iter().find_map(|path| fs::read(path).ok());
    let busybox = busybox.expect("busybox-static is installed");
    let mut layer = Vec::new();
    for folder in ["bin/", "etc/", "data/", "root/"] {
        layer.extend(member(folder, b'5', 0o755, "", &[]));
    }
    layer.extend(member("tmp/", b'5', 0o1777, "", &[]));
    layer.extend(member("bin/busybox", b'0', 0o755, "", &busybox));
    for name in ["sh", "cat", "ls", "sleep", "id", "hostname", "tty", "ip", "httpd", "touch", "env", "kill", "true"] {
        layer.extend(member(&format!("bin/{name}"), b'2', 0o777, "busybox", &[]));
    }
    layer.extend(member("etc/plain", b'0', 0o644, "", b"not a program\n"));
    layer.extend(member("etc/passwd", b'0', 0o644, "", b"root:x:0:0::/root:/bin/sh\napp:x:1000:1000::/data:/bin/sh\n"));
    layer.extend(member("data/seed", b'0', 0o644, "", b"seed\n"));
    layer.extend([0; 1024]);
    let config = serde_json::json!({
        "architecture": if cfg!(target_arch = "x86_64") { "amd64" } else { "arm64" },
        "os": "linux",
        "config": { "Cmd": ["sh", "-c", "echo default"], "Env": ["PATH=/bin", "FROM=image"] },
        "rootfs": { "type": "layers", "diff_ids": [Digest::of(&layer).to_string()] },
    });
    let manifest = serde_json::json!([{ "Config": "config.json", "RepoTags": [IMAGE], "Layers": ["layer.tar"] }]);
    let mut archive = member("layer.tar", b'0', 0o644, "", &layer);
    archive.extend(member("config.json", b'0', 0o644, "", config.to_string().as_bytes()));
    archive.extend(member("manifest.json", b'0', 0o644, "", manifest.to_string().as_bytes()));
    archive.extend([0; 1024]);
    archive
}

// ------------------------------------------------------------------------------------------------ foreground

#[test]
fn exit_codes_are_docker_s() {
    alone(|bed| {
        assert_eq!(bed.ok(&format!("run --rm {IMAGE}")), "default\n");
        for (options, command, code, part) in [
            ("", "sh -c true", 0, ""),
            ("", "nosuch", 127, "nosuch"),
            ("", "/no/such", 127, "/no/such"),
            ("", "/etc/plain", 126, "/etc/plain"),
            ("", "/etc", 126, "/etc"),
            ("-u nobody-known", "true", 125, "nobody-known"),
            ("-v /a:b", "true", 125, "absolute path"),
        ] {
            let done = bed.output(&format!("run --rm {options} {IMAGE} {command}"));
            let said = text(&done.stderr);
            assert_eq!(done.status.code(), Some(code), "{command}: {said}");
            assert!(said.contains(part), "{command}: {said}");
        }
        assert_eq!(bed.sh("", "exit 7").status.code(), Some(7));
        assert_eq!(
            bed.sh("", "kill -9 $$; exit 1").status.code().unwrap_or(0) & 0x7f,
            1,
            "PID 1 ignores its own signals"
        );
        let absent = bed.output("run --rm --pull never nosuch:1 true");
        assert_eq!(absent.status.code(), Some(125));
        assert!(text(&absent.stderr).contains("nosuch:1"), "{}", text(&absent.stderr));
        bed.nothing_left();
    });
}

#[test]
fn options_reach_the_container() {
    alone(|bed| {
        for (options, script, want) in [
            ("-h box", "hostname; cat /etc/hostname", "box\nbox\n"),
            ("-e A=1 -e FROM=me", "echo $A $FROM", "1 me\n"),
            ("-w /data", "pwd; ls", "/data\nseed\n"),
            ("-u app", "id -u; id -g", "1000\n1000\n"),
            ("-u 5:6", "id -u; id -g", "5\n6\n"),
            ("--read-only", "touch /x 2>/dev/null || echo denied", "denied\n"),
            ("--tmpfs /mem:size=1m", "touch /mem/x && ls /mem", "x\n"),
            ("--network none", "ls /sys/class/net", "lo\n"),
            ("--init", "cat /proc/1/comm", "init\n"),
            ("--cap-drop ALL", "grep -c CapEff:.0000000000000000 /proc/self/status || true", ""),
        ] {
            let done = bed.sh(options, script);
            let out = text(&done.stdout);
            if !want.is_empty() {
                assert_eq!(out, want, "{options}: {}", text(&done.stderr));
            }
        }
        let status = text(&bed.sh("--cap-drop ALL", "cat /proc/self/status").stdout);
        assert!(status.contains("CapEff:\t0000000000000000"), "{status}");
        let entry = bed.output(&format!("run --rm --entrypoint hostname -h other {IMAGE}"));
        assert_eq!(text(&entry.stdout), "other\n");
        let mut piped = bed
            .gantry(&format!("run --rm -i {IMAGE} cat"))
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        piped.stdin.take().unwrap().write_all(b"through\0").unwrap();
        assert_eq!(piped.wait_with_output().unwrap().stdout, b"through\0");
        assert_eq!(text(&bed.sh("", "cat").stdout), "", "without -i there is nothing to read");
        bed.nothing_left();
    });
}

#[test]
fn limits_are_set() {
    alone(|bed| {
        let script = "cat /sys/fs/cgroup/memory/memory.limit_in_bytes /sys/fs/cgroup/memory.max 2>/dev/null";
        assert_eq!(text(&bed.sh("-m 64m", script).stdout), "67108864\n");
        let eater = bed.sh("-m 16m", "exec tail /dev/zero");
        let words = text(&eater.stderr);
        assert!(eater.status.code() == Some(137) && words.contains("more memory than its limit"), "{words}");
        let script = "cat /sys/fs/cgroup/pids/pids.max /sys/fs/cgroup/pids.max 2>/dev/null";
        assert_eq!(text(&bed.sh("--pids-limit 33", script).stdout), "33\n");
        bed.nothing_left();
    });
}

#[test]
fn volumes_hold_what_is_written() {
    alone(|bed| {
        fs::create_dir(bed.dir.join("here")).unwrap();
        fs::write(bed.dir.join("here/in"), "from the host\n").unwrap();
        let done = bed.sh("-v ./here:/v", "cat /v/in; echo from inside >/v/out");
        assert_eq!(text(&done.stdout), "from the host\n", "{}", text(&done.stderr));
        assert_eq!(fs::read_to_string(bed.dir.join("here/out")).unwrap(), "from inside\n");
        let done = bed.sh("-v ./here:/v:ro", "touch /v/x");
        assert!(!done.status.success() && !bed.dir.join("here/x").exists());
        // A named volume begins with the image's files and outlives its containers.
        assert_eq!(text(&bed.sh("-v keep:/data", "cat /data/seed; echo more >/data/own").stdout), "seed\n");
        assert_eq!(text(&bed.sh("-v keep:/data", "cat /data/own").stdout), "more\n");
        // What cannot be mounted is told with a remedy.
        let done = bed.sh("-v ./here/in:/bin", "true");
        let words = text(&done.stderr);
        assert!(done.status.code() == Some(125) && words.contains("a file on a file"), "{words}");
        // An anonymous one goes with its container.
        assert_eq!(text(&bed.sh("-v /data", "cat /data/seed").stdout), "seed\n");
        bed.nothing_left();
    });
}

#[test]
fn files_are_copied_in_and_out() {
    alone(|bed| {
        let write = |name: &str, content: &str| {
            fs::create_dir_all(bed.dir.join(name).parent().unwrap()).unwrap();
            fs::write(bed.dir.join(name), content).unwrap();
        };
        write("site/index.html", "hello");
        write("site/css/a", "b");
        write("volume/there", "on the host");
        bed.ok(&format!("run -d --name web --network none -v ./volume:/vol --tmpfs /scratch {IMAGE} sleep 600"));
        // Running: what its processes see, volumes and memory too.
        bed.ok("cp site web:/srv");
        bed.ok("cp site/index.html web:/scratch/page");
        let inside = |script: &str| {
            let done = bed.gantry("exec web sh -c").arg(script).output().unwrap();
            format!("{}{}", text(&done.stdout), text(&done.stderr))
        };
        assert_eq!(inside("cat /srv/index.html /srv/css/a /scratch/page; stat -c %u /srv/css/a"), "hellobhello0\n");
        bed.ok("cp web:/vol/there got");
        assert_eq!(fs::read_to_string(bed.dir.join("got")).unwrap(), "on the host");
        inside("ln -s /etc /out; echo own > /etc/own; mkfifo /srv/pipe");
        bed.ok("cp web:/out/own own");
        assert_eq!(fs::read_to_string(bed.dir.join("own")).unwrap(), "own\n");
        let df: serde_json::Value = serde_json::from_str(&bed.ok("system df --json -v")).unwrap();
        let one = &df["each_container"][0];
        assert!(one["name"] == "web" && one["running"] == true && one["inodes"].as_u64() > Some(4), "{df}");
        // A stream from one to another place.
        let stream = bed.gantry("cp web:/srv/css -").output().unwrap();
        assert!(stream.status.success(), "{}", text(&stream.stderr));
        let mut back = bed.gantry("cp - web:/vol").stdin(Stdio::piped()).spawn().unwrap();
        back.stdin.take().unwrap().write_all(&stream.stdout).unwrap();
        assert!(back.wait().unwrap().success());
        assert_eq!(fs::read_to_string(bed.dir.join("volume/css/a")).unwrap(), "b");
        for (words, code, why) in [
            ("cp web:/none x", 1, "cannot copy web:/none: No such file"),
            ("cp none:/a x", 1, "there is no container `none`"),
            ("cp site web:/etc/own", 1, "cannot be copied to what is none"),
            ("cp site elsewhere", 2, "one of the two must be CONTAINER:PATH"),
            ("cp web:/a web:/b", 2, "container to container"),
            ("cp web: x", 2, "write CONTAINER:PATH"),
        ] {
            let done = bed.output(words);
            let told = text(&done.stderr);
            assert_eq!(done.status.code(), Some(code), "{words}: {told}");
            assert!(told.contains(why), "{words}: {told}");
        }
        bed.ok("stop -t 0 web");
        // Stopped: its root file system, but no volumes.
        bed.ok("cp web:/srv copy");
        assert_eq!(fs::read_to_string(bed.dir.join("copy/css/a")).unwrap(), "b");
        bed.ok("cp got web:/srv/later");
        let refused = bed.output("cp web:/vol/there x");
        assert!(text(&refused.stderr).contains("`/vol` is a volume of container `web`"), "{}", text(&refused.stderr));
        bed.ok("start web");
        assert_eq!(inside("cat /srv/later"), "on the host");
        bed.ok("rm -f web");
        bed.nothing_left();
    });
}

#[test]
fn a_terminal_is_carried() {
    alone(|bed| {
        let pty = nix::pty::openpty(None, None).unwrap();
        let master: OwnedFd = pty.master;
        let slave = |fd: &OwnedFd| Stdio::from(fd.try_clone().unwrap());
        let mut command = bed.gantry(&format!("run --rm -it {IMAGE} sh"));
        command.stdin(slave(&pty.slave)).stdout(slave(&pty.slave)).stderr(slave(&pty.slave));
        command.process_group(0);
        let mut child = command.spawn().unwrap();
        drop(command);
        drop(pty.slave);
        let mut terminal = fs::File::from(master.as_fd().try_clone_to_owned().unwrap());
        terminal.write_all(b"tty; echo $((6*7)); exit 9\n").unwrap();
        let mut seen = Vec::new();
        let mut part = [0; 4096];
        while let Ok(length @ 1..) = terminal.read(&mut part) {
            seen.extend(&part[..length]);
        }
        let seen = text(&seen);
        assert!(seen.contains("/dev/pts/0") && seen.contains("42"), "{seen}");
        assert_eq!(child.wait().unwrap().code(), Some(9));
        let refused = bed.output(&format!("run --rm -it {IMAGE} sh"));
        assert!(refused.status.code() == Some(125) && text(&refused.stderr).contains("no terminal"));
        bed.nothing_left();
    });
}

#[test]
fn signals_end_the_container_and_leave_nothing() {
    alone(|bed| {
        let script = "trap 'exit 42' TERM INT; echo ready; while :; do sleep 0.01; done";
        for signal in [nix::sys::signal::Signal::SIGTERM, nix::sys::signal::Signal::SIGINT] {
            let mut child =
                bed.gantry(&format!("run --rm {IMAGE} sh -c")).arg(script).stdout(Stdio::piped()).spawn().unwrap();
            let mut out = child.stdout.take().unwrap();
            out.read_exact(&mut [0; 6]).unwrap();
            nix::sys::signal::kill(nix::unistd::Pid::from_raw(child.id() as i32), signal).unwrap();
            assert_eq!(child.wait().unwrap().code(), Some(42), "{signal}");
            bed.nothing_left();
        }
        // At any moment, also before there is a container.
        for ms in [0, 3, 6, 10, 15, 20, 30, 40, 60, 90] {
            let mut child = bed
                .gantry(&format!("run --rm {IMAGE} sh -c"))
                .arg(script)
                .stdout(Stdio::null())
                .stderr(Stdio::null())
                .spawn()
                .unwrap();
            std::thread::sleep(Duration::from_millis(ms)); // a point, not a wait
            nix::sys::signal::kill(nix::unistd::Pid::from_raw(child.id() as i32), nix::sys::signal::Signal::SIGTERM)
                .unwrap();
            let deadline = Instant::now() + 60 * SECONDS; // a loaded disk
            while child.try_wait().unwrap().is_none() {
                assert!(Instant::now() < deadline, "told to end after {ms} ms, it does not");
                // It may have come between the start of the program and its `trap`, where PID 1 ignores it.
                let pid = nix::unistd::Pid::from_raw(child.id() as i32);
                let _ = nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGTERM);
                std::thread::sleep(Duration::from_millis(20));
            }
            bed.nothing_left();
        }
    });
}

#[test]
fn what_a_killed_command_left_is_swept() {
    alone(|bed| {
        for ms in [2, 8, 14, 20, 30, 45, 70, 120] {
            let mut child =
                bed.gantry(&format!("run --name same {IMAGE} sleep 1000")).stderr(Stdio::null()).spawn().unwrap();
            std::thread::sleep(Duration::from_millis(ms)); // a point, not a wait
            child.kill().unwrap();
            child.wait().unwrap();
        }
        bed.ok(&format!("run --rm --name same {IMAGE} true"));
        bed.nothing_left();
    });
}

// ------------------------------------------------------------------------------------------------ background

#[test]
fn a_detached_container_lives_stops_and_starts() {
    alone(|bed| {
        let id = bed.ok(&format!("run -d --name web -p 8080:80 {IMAGE} httpd -f -p 80 -h /etc"));
        assert_eq!(id.trim().len(), 12);
        let fetch = || {
            let mut stream = TcpStream::connect("127.0.0.1:8080").ok()?;
            stream.set_read_timeout(Some(SECONDS)).ok()?;
            stream.write_all(b"GET /plain HTTP/1.0\r\n\r\n").ok()?;
            let mut answer = String::new();
            stream.read_to_string(&mut answer).ok()?;
            Some(answer)
        };
        eventually("the published port answers", || fetch().is_some_and(|answer| answer.contains("not a program")));
        assert_eq!(bed.state("web"), "running");
        let taken = bed.output(&format!("run -d -p 8080:80 {IMAGE} sleep 9"));
        assert!(taken.status.code() == Some(125) && text(&taken.stderr).contains("8080"), "{}", text(&taken.stderr));
        let taken = bed.output(&format!("run -d --name web {IMAGE} sleep 9"));
        assert!(text(&taken.stderr).contains("container name `web` is in use"), "{}", text(&taken.stderr));
        assert_eq!(text(&bed.output("exec web sh -c hostname").stdout), format!("{}\n", id.trim()));
        for (command, code) in [("nosuch", 127), ("/etc/plain", 126), ("sh -c exit", 0)] {
            assert_eq!(bed.output(&format!("exec web {command}")).status.code(), Some(code), "{command}");
        }
        assert_eq!(bed.output("exec nosuch-container true").status.code(), Some(125));
        assert!(text(&bed.output("rm web").stderr).contains("is running"));
        bed.ok("stop -t 0 web");
        assert_eq!(bed.state("web"), "exited");
        assert!(fetch().is_none());
        assert_eq!(bed.ps()[0]["code"], 137);
        bed.ok("stop web"); // may be repeated
        bed.ok(&format!("start {}", &id[..4]));
        eventually("it answers again", || fetch().is_some());
        bed.ok("rm -f web");
        bed.ok("rm -f web");
        assert!(text(&bed.output("rm web").stderr).contains("there is no container `web`"));
        bed.nothing_left();
    });
}

#[test]
fn logs_are_kept_and_followed() {
    alone(|bed| {
        let script = "echo one; echo two >&2; while [ ! -e /v/go ]; do sleep 0.01; done; echo three; exit 5";
        fs::create_dir(bed.dir.join("v")).unwrap();
        bed.gantry(&format!("run -d --name talk -v ./v:/v {IMAGE} sh -c")).arg(script).output().unwrap();
        eventually("two lines", || {
            let done = bed.output("logs talk");
            (text(&done.stdout), text(&done.stderr)) == ("one\n".into(), "two\n".into())
        });
        let follow = bed.gantry("logs -f talk").stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        fs::write(bed.dir.join("v/go"), "").unwrap();
        let done = follow.wait_with_output().unwrap();
        assert_eq!((text(&done.stdout), text(&done.stderr)), ("one\nthree\n".into(), "two\n".into()));
        assert_eq!(bed.ok("logs -n 1 talk"), "three\n");
        assert!(bed.ok("logs -t -n 1 talk").contains("Z three"));
        eventually("it has ended", || bed.ps()[0]["code"] == 5);
        bed.ok("rm talk");
        bed.nothing_left();
    });
}

#[test]
fn a_detached_container_with_rm_goes_by_itself() {
    alone(|bed| {
        bed.ok(&format!("run -d --rm --name brief {IMAGE} true"));
        eventually("it is gone", || bed.state("brief") == "gone");
        bed.nothing_left();
        bed.ok(&format!("run -d --rm --name long {IMAGE} sleep 1000"));
        bed.ok("kill long");
        eventually("it is gone", || bed.state("long") == "gone");
        bed.nothing_left();
        let failed = bed.output(&format!("run -d --name never {IMAGE} nosuch"));
        assert_eq!(failed.status.code(), Some(127), "{}", text(&failed.stderr));
        assert_eq!(bed.state("never"), "gone", "what never ran is not kept");
        bed.nothing_left();
    });
}

#[test]
fn a_foreground_container_without_rm_is_kept_until_removed() {
    alone(|bed| {
        bed.ok(&format!("run --name kept {IMAGE} touch /data/mark"));
        assert_eq!(bed.state("kept"), "exited");
        assert!(text(&bed.output("logs kept").stderr).contains("ran in the foreground"));
        assert!(!bed.output(&format!("rmi {IMAGE}")).status.success(), "its image is in use");
        bed.ok("rm kept");
        bed.nothing_left();
    });
}

#[test]
fn images_are_listed_and_removed() {
    alone(|bed| {
        assert!(bed.ok("images").contains(IMAGE));
        let list: Vec<serde_json::Value> = serde_json::from_str(&bed.ok("images --json")).unwrap();
        assert!(list[0]["names"][0].as_str().unwrap().ends_with(IMAGE));
        let short = bed.ok("images -q");
        let mut load = bed.gantry("load").stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
        load.stdin.take().unwrap().write_all(&image()).unwrap();
        assert!(text(&load.wait_with_output().unwrap().stdout).contains(IMAGE));
        assert!(!bed.output("load -i /etc/passwd").status.success());
        assert!(!bed.output("rmi nosuch").status.success());
        bed.ok("rmi -f nosuch");
        assert!(bed.ok(&format!("rmi {}", short.trim())).contains("untagged"));
        assert_eq!(bed.ok("images -q"), "");
        bed.nothing_left();
    });
}

#[test]
fn images_are_named_saved_checked_and_pruned() {
    alone(|bed| {
        let json = |words: &str| -> serde_json::Value { serde_json::from_str(&bed.ok(words)).unwrap() };
        let refused = |words: &str, code: i32, what: &str| {
            let done = bed.output(words);
            assert_eq!(done.status.code(), Some(code), "{words}: {}", text(&done.stderr));
            let told = text(&done.stderr) + &text(&done.stdout);
            assert!(told.contains(what), "{words}: {told}");
        };
        bed.ok(&format!("tag {IMAGE} shop/box:2"));
        refused("tag nosuch shop/box:2", 1, "not in the store");
        refused(&format!("tag {IMAGE} Shop:2"), 1, "not an image reference");
        bed.ok("save -o saved.tar shop/box:2");
        assert_eq!(
            bed.gantry("save shop/box:2").output().unwrap().stdout,
            fs::read(bed.dir.join("saved.tar")).unwrap()
        );
        refused("save -o nowhere/saved.tar shop/box:2", 1, "cannot write nowhere/saved.tar");
        refused("save -o other.tar shop/box:2 nosuch", 1, "`nosuch` is not in the store");
        assert!(!bed.dir.join("other.tar").exists(), "no half archive");
        let inspected = json(&format!("image inspect {IMAGE}"));
        assert_eq!(inspected[0]["names"].as_array().unwrap().len(), 2);
        assert!(bed.ok(&format!("image history {IMAGE}")).contains("CREATED BY"));
        assert!(bed.ok("image verify").contains("intact"));
        let diff_id = inspected[0]["layers"][0]["diff_id"].as_str().unwrap().replace("sha256:", "");
        let file = bed.dir.join("data/images/layers").join(diff_id).join("fs/bin/busybox");
        fs::write(&file, "not busybox").unwrap();
        refused(&format!("image verify {IMAGE}"), 1, "/bin/busybox: its");
        assert!(bed.ok(&format!("image verify --repair {IMAGE}")).contains("repaired"));
        assert_eq!(bed.sh("", "echo works").stdout, b"works\n");
        refused("push 127.0.0.1:9/box:1", 1, "not in the store");
        bed.ok(&format!("tag {IMAGE} 127.0.0.1:9/box:1"));
        refused("push 127.0.0.1:9/box:1", 1, "127.0.0.1:9");
        refused("image prune", 1, "add --force");
        let before = json("system df --json");
        assert_eq!((before["images"]["count"].as_u64(), before["containers"]["count"].as_u64()), (Some(1), Some(0)));
        bed.ok("image prune -f");
        assert_eq!(json("system df --json"), before, "it has names");
        assert!(bed.ok("system prune -af").contains("untagged shop/box:2"));
        assert_eq!(json("system df --json")["images"]["count"], 0);
        bed.ok("load -i saved.tar");
        assert!(bed.ok("image ls").contains("shop/box:2"));
        bed.nothing_left();
    });
}

#[test]
fn images_are_made_from_containers_and_directories() {
    alone(|bed| {
        bed.ok(&format!("run --name edited {IMAGE} touch /data/mark"));
        assert!(bed.ok("diff edited").contains("A /data/mark"), "{}", bed.ok("diff edited"));
        bed.ok("commit -m by-hand edited edited:1");
        let there = bed.gantry("run --rm edited:1 sh -c").arg("test -e /data/mark").output().unwrap();
        assert!(there.status.success(), "{}", text(&there.stderr));
        assert!(!bed.output("commit nosuch x:1").status.success());
        let root = bed.dir.join("root");
        fs::create_dir_all(root.join("bin")).unwrap();
        fs::copy("/bin/busybox", root.join("bin/busybox")).unwrap();
        let make = "image from-rootfs --time 0 --entrypoint /bin/busybox --cmd echo --cmd made root made:1";
        assert_eq!(bed.ok(make), bed.ok(make), "reproducible");
        assert_eq!(bed.ok("run --rm made:1"), "made\n");
        assert_eq!(bed.output("image from-rootfs --env A root x:1").status.code(), Some(2));
        assert_eq!(bed.output("image from-rootfs nosuch x:1").status.code(), Some(1));
        assert_eq!(bed.output("image from-rootfs --compression lzma root x:1").status.code(), Some(2));
        bed.ok("rm edited");
        bed.nothing_left();
    });
}
