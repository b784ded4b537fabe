//! The lab on the real kernel, with something simple in place of the nodes' daemon.
//!
//! Every lab here has directories and a cgroup of its own; what an earlier run left when it was killed is swept first.
//! The helpers at the end run inside nodes, as this very program.

use std::collections::BTreeSet;
use std::fs;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::os::unix::net::UnixListener;
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::sync::Once;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

const PREFIX: &str = "gantry-test-lab-";
const ALIVE: &str = "alive";
const SECONDS: Duration = Duration::from_secs(1);

/// One test's directories and cgroup.
struct Bed {
    dir: PathBuf,
    parent: String,
    /// Held as long as the bed is in use, whatever process namespace its user is in.
    _alive: fs::File,
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
        Self { dir, parent, _alive: alive }
    }

    fn gantry(&self) -> Command {
        gantry(&self.dir, &self.parent)
    }

    fn lab(&self, words: &str) -> Command {
        let mut command = self.gantry();
        command.arg("lab").args(words.split_whitespace());
        command
    }

    /// Runs `gantry lab …`, which must succeed.
    fn ok(&self, words: &str) -> String {
        let done = self.lab(words).output().unwrap();
        assert!(done.status.success(), "lab {words}: {}", text(&done.stderr));
        text(&done.stdout)
    }

    /// Runs `gantry lab …`, which must fail; what it says.
    fn refused(&self, words: &str) -> (i32, String) {
        let done = self.lab(words).output().unwrap();
        assert!(!done.status.success(), "lab {words} should be refused");
        (done.status.code().unwrap_or(-1), text(&done.stderr))
    }

    fn sh(&self, node: &str, script: &str) -> Output {
        self.lab(&format!("exec {node} -- sh -c")).arg(script).output().unwrap()
    }

    /// A process of the lab on the host's side.
    fn status(&self, words: &str) -> serde_json::Value {
        serde_json::from_str(&self.ok(&format!("status --json {words}"))).unwrap()
    }

    /// What is left of this bed on the machine.
    fn leftovers(&self) -> BTreeSet<String> {
        let mut left = BTreeSet::new();
        for mount in cgroup_mounts() {
            if mount.join(&self.parent).exists() {
                left.insert(format!("cgroup {}", mount.join(&self.parent).display()));
            }
        }
        for entry in fs::read_dir("/proc").unwrap().flatten() {
            let words = fs::read(entry.path().join("cmdline")).unwrap_or_default();
            let own = entry.file_name().to_string_lossy() == std::process::id().to_string();
            if !own && text(&words).contains(&*self.dir.to_string_lossy()) {
                left.insert(format!("process {}: {}", entry.file_name().display(), text(&words).replace('\0', " ")));
            }
        }
        let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap();
        left.extend(mounts.lines().filter(|line| line.contains(&self.parent)).map(|line| format!("mount {line}")));
        for entry in fs::read_dir(&self.dir).unwrap().flatten().filter(|entry| entry.file_name() != ALIVE) {
            left.insert(format!("file {}", entry.path().display()));
        }
        left
    }

    fn nothing_left(&self) {
        assert_eq!(self.leftovers(), BTreeSet::new());
    }
}

impl Drop for Bed {
    fn drop(&mut self) {
        remove(&self.dir, &self.parent);
    }
}

fn gantry(dir: &Path, parent: &str) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_gantry"));
    command.env("GANTRY_DATA_DIR", dir.join("data")).env("GANTRY_RUN_DIR", dir.join("run"));
    command.env("GANTRY_CGROUP_PARENT", format!("/{parent}")).env_remove("GANTRY_LAB").stdin(Stdio::null());
    command
}

fn cgroup_mounts() -> Vec<PathBuf> {
    let text = fs::read_to_string("/proc/self/mountinfo").unwrap();
    let cgroups = text.lines().filter(|line| line.contains(" - cgroup"));
    cgroups.filter_map(|line| line.split(' ').nth(4)).map(PathBuf::from).collect()
}

/// Removes every lab of a bed by what its cgroups and files say.
fn remove(dir: &Path, parent: &str) {
    let mut labs = BTreeSet::from(["lab".to_owned()]);
    for folder in cgroup_mounts().iter().map(|mount| mount.join(parent)).chain([dir.join("data/labs")]) {
        for entry in fs::read_dir(folder).into_iter().flatten().flatten() {
            let name = entry.file_name().to_string_lossy().into_owned();
            labs.insert(name.strip_prefix("lab-").unwrap_or(&name).to_owned());
        }
    }
    for lab in labs {
        drop(gantry(dir, parent).args(["lab", "down", "--name", &lab]).output());
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

/// Looks until `found` is true.
fn eventually(what: &str, within: Duration, mut found: impl FnMut() -> bool) {
    let deadline = Instant::now() + within;
    while !found() {
        assert!(Instant::now() < deadline, "not within {within:?}: {what}");
        std::thread::sleep(Duration::from_millis(10));
    }
}

/// A process that is ended with the test.
struct Running(Child);

impl Drop for Running {
    fn drop(&mut self) {
        drop(self.0.kill());
        drop(self.0.wait());
    }
}

/// This program as a helper inside a node.
fn helper(bed: &Bed, node: &str, helper: &str, address: &str) -> Command {
    let mut command = bed.lab(&format!("exec {node} --"));
    command.arg(std::env::current_exe().unwrap()).args(["--ignored", "--exact", helper, "--nocapture"]);
    command.env("TEST_ADDRESS", address).stdout(Stdio::null()).stderr(Stdio::null());
    command
}

fn listen(bed: &Bed, node: &str, address: &str) -> Running {
    Running(helper(bed, node, "helper_listens", address).spawn().unwrap())
}

/// 0: connected and greeted; 1: refused; 2: no answer.
fn connect(bed: &Bed, node: &str, address: &str) -> i32 {
    helper(bed, node, "helper_connects", address).status().unwrap().code().unwrap()
}

#[test]
fn three_nodes_talk_are_cut_and_healed() {
    let bed = Bed::new();
    bed.ok("up --nodes 3 --daemon true");
    let _server = listen(&bed, "n2", "10.88.0.12:9000");
    let reach = |node: &str| connect(&bed, node, "10.88.0.12:9000");
    eventually("n2 listens", 60 * SECONDS, || reach("n1") == 0);
    assert_eq!([reach("n3"), reach("switch")], [0, 0], "everybody reaches n2");
    for (words, n1, n3, switch) in [
        ("cut n2", 2, 2, 2),
        ("heal n2", 0, 0, 0),
        ("cut n1 n2", 2, 0, 0),
        ("cut n3 n2", 2, 2, 0),
        ("heal n3", 2, 0, 0),
        ("heal", 0, 0, 0),
    ] {
        bed.ok(words);
        assert_eq!([reach("n1"), reach("n3"), reach("switch")], [n1, n3, switch], "after {words}");
    }
    let (code, message) = bed.refused("cut n9");
    assert!(code == 1 && message.contains("no node `n9`; it has n1, n2, n3"), "{message}");
    bed.ok("down");
    bed.nothing_left();
}

#[test]
fn a_killed_node_loses_everything_but_its_disk() {
    let bed = Bed::new();
    bed.ok("up --nodes 2 --daemon true");
    let wrote = bed.sh("n2", "echo kept >/var/lib/gantry/file; echo lost >/run/gantry/file; echo lost >/var/lib/other");
    assert!(wrote.status.success());
    let mut sleeper = Running(bed.lab("exec n2 sleep 1000").spawn().unwrap());
    eventually("the sleeper runs in n2", 60 * SECONDS, || {
        text(&bed.sh("n2", "ps -A -o args").stdout).contains("sleep 1000")
    });
    bed.ok("kill n2");
    assert_eq!(sleeper.0.wait().unwrap().code(), Some(128 + 9), "everything in the node dies with it");
    let (code, message) = bed.refused("exec n2 true");
    assert!(code == 1 && message.contains("hint: gantry lab start --name lab n2"), "{message}");
    assert_eq!(connect(&bed, "n1", "10.88.0.12:9000"), 2, "a dead node does not even refuse");
    bed.ok("kill n2"); // may be repeated
    bed.ok("start n2");
    bed.ok("start n2");
    let seen = bed.sh("n2", "cat /var/lib/gantry/file; cat /run/gantry/file /var/lib/other; ls /run/gantry");
    assert_eq!(text(&seen.stdout), "kept\n");
    assert_eq!(connect(&bed, "n1", "10.88.0.12:9000"), 1, "it is back on the network");
    bed.ok("kill n1");
    bed.ok("up --nodes 1"); // completes: starts what is off, keeps what is more
    assert!(bed.status("")["nodes"].as_array().unwrap().iter().all(|node| node["running"] == true));
    bed.ok("down");
    bed.nothing_left();
}

#[test]
fn a_cut_survives_a_restart_of_the_node() {
    let bed = Bed::new();
    bed.ok("up --nodes 2 --daemon true");
    bed.ok("cut n2");
    bed.ok("kill n2");
    bed.ok("start n2");
    assert_eq!(connect(&bed, "n1", "10.88.0.12:9000"), 2);
    assert_eq!(bed.status("")["nodes"][1]["cut"][0], "all");
    bed.ok("heal");
    assert_eq!(connect(&bed, "n1", "10.88.0.12:9000"), 1);
}

#[test]
fn a_node_is_a_machine_of_its_own() {
    let bed = Bed::new();
    bed.ok("up --nodes 2 --daemon true");
    let script = "hostname; cat /etc/hostname; readlink /proc/1/exe; ls /sys/class/net | tr '\\n' ' '; \
                  cut -d: -f3 /proc/self/cgroup | sort -u | tr '\\n' ' '; ls -A /run | tr '\\n' ' '; getent hosts n1";
    let seen = text(&bed.sh("n2", script).stdout);
    let exe = Path::new(env!("CARGO_BIN_EXE_gantry")).canonicalize().unwrap();
    assert!(seen.starts_with(&format!("n2\nn2\n{}\n", exe.display())), "{seen}");
    for part in ["eth0 lo", "gantry lock", "10.88.0.11"] {
        assert!(seen.contains(part), "{part} in {seen}");
    }
    assert!(!seen.contains("lab-lab"), "the node sees its own cgroup as the root: {seen}");
    let inside = |kind: &str| text(&bed.sh("n1", &format!("readlink /proc/self/ns/{kind}")).stdout);
    for kind in ["net", "mnt", "pid", "uts", "ipc", "cgroup"] {
        let outside = fs::read_link(format!("/proc/self/ns/{kind}")).unwrap();
        assert_ne!(inside(kind).trim(), outside.to_string_lossy(), "{kind}");
        assert_ne!(inside(kind), text(&bed.sh("n2", &format!("readlink /proc/self/ns/{kind}")).stdout), "{kind}");
    }
    // A mount made in a node is seen by nobody else.
    assert!(bed.sh("n1", "mount -t tmpfs none /mnt").status.success());
    assert!(!fs::read_to_string("/proc/self/mountinfo").unwrap().contains(" /mnt rw"));
    // An orphan is reaped by the node's PID 1.
    assert!(bed.sh("n1", "(sh -c 'sleep 0.01 & exit' &)").status.success());
    eventually("no zombie in n1", 60 * SECONDS, || !text(&bed.sh("n1", "ps -A -o stat,comm").stdout).contains("Z "));
}

#[test]
fn exec_passes_streams_and_exit_codes() {
    let bed = Bed::new();
    bed.ok("up --nodes 1 --daemon true");
    for (script, code) in [("exit 0", 0), ("exit 7", 7), ("kill -9 $$", 137), ("kill -TERM $$", 143)] {
        assert_eq!(bed.sh("n1", script).status.code(), Some(code), "{script}");
    }
    let (code, message) = bed.refused("exec n1 /no/such/program");
    assert!(code == 127 && message.contains("cannot run `/no/such/program` on node `n1`"), "{code} {message}");
    assert_eq!(bed.refused("exec n1 /etc/hosts").0, 126);
    let mut cat = bed
        .lab("exec n1 -- sh -c")
        .arg("cat; echo err >&2")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    cat.stdin.take().unwrap().write_all(b"in\0out").unwrap();
    let done = cat.wait_with_output().unwrap();
    assert_eq!((done.stdout.as_slice(), done.stderr.as_slice()), (&b"in\0out"[..], &b"err\n"[..]));
    // A command that is killed takes what it ran along.
    let mut exec = bed.lab("exec n1 sleep 999").spawn().unwrap();
    let sleeps = || text(&bed.sh("n1", "ps -A -o args").stdout).contains("sleep 999");
    eventually("sleep runs", 60 * SECONDS, sleeps);
    exec.kill().unwrap();
    assert_eq!(exec.wait().unwrap().signal(), Some(9));
    eventually("sleep is gone", 60 * SECONDS, || !sleeps());
}

#[test]
fn the_daemon_is_restarted_when_it_dies() {
    let bed = Bed::new();
    let script = bed.dir.join("daemon");
    fs::write(&script, "echo started; echo x >>/var/lib/gantry/starts; exit 3\n").unwrap();
    bed.ok("up --nodes 1 --daemon /no/such/daemon");
    let log = || bed.ok("logs n1");
    eventually("the log tells of the failure", 60 * SECONDS, || log().contains("cannot run"));
    bed.ok("down");
    let mut up = bed.lab("up --nodes 1 --daemon");
    assert!(up.arg(format!("sh {}", script.display())).output().unwrap().status.success());
    let starts = || text(&bed.sh("n1", "cat /var/lib/gantry/starts").stdout).lines().count();
    eventually("three starts", 60 * SECONDS, || starts() >= 3);
    assert!(log().contains("started") && log().contains("the daemon exited with 3"), "{}", log());
    assert_eq!(bed.ok("logs n1 --tail 1").lines().count(), 1);
    drop(fs::remove_file(script));
    bed.ok("down");
    bed.nothing_left();
}

#[test]
fn up_that_is_killed_anywhere_can_be_removed_or_completed() {
    let bed = Bed::new();
    for (round, ms) in [0, 2, 4, 6, 8, 11, 14, 18, 22, 27, 33, 40, 60].into_iter().enumerate() {
        let mut up = bed.lab("up --nodes 5 --daemon true").stderr(Stdio::null()).spawn().unwrap();
        // Not a wait for anything: a point at which to kill it.
        std::thread::sleep(Duration::from_millis(ms));
        drop(up.kill());
        drop(up.wait());
        if round % 2 == 0 {
            bed.ok("up --nodes 5 --daemon true");
            let status = bed.status("");
            assert_eq!(status["nodes"].as_array().unwrap().len(), 5);
            assert!(status["nodes"].as_array().unwrap().iter().all(|node| node["running"] == true), "{status}");
            assert_eq!(status["problems"].as_array().unwrap().len(), 0, "{status}");
            assert_eq!(connect(&bed, "n5", "10.88.0.11:9000"), 1, "they reach each other");
        }
        bed.ok("down");
        bed.nothing_left();
    }
    bed.ok("down");
    bed.nothing_left();
}

#[test]
fn down_needs_no_files() {
    let bed = Bed::new();
    bed.ok("up --nodes 2 --daemon true");
    fs::remove_dir_all(bed.dir.join("data")).unwrap();
    fs::remove_dir_all(bed.dir.join("run")).unwrap();
    let (_, message) = bed.refused("up --nodes 2 --daemon true");
    assert!(
        message.contains("has no state of lab `lab`") && message.contains("gantry lab down --name lab"),
        "{message}"
    );
    bed.ok("down");
    bed.nothing_left();
    bed.ok("up --nodes 1 --daemon true");
    fs::write(bed.dir.join("data/labs/lab/lab.json"), "{ not json").unwrap();
    assert!(bed.refused("status").1.contains("`gantry lab down` removes the lab"));
    bed.ok("down");
    bed.nothing_left();
}

#[test]
fn two_labs_live_side_by_side() {
    let bed = Bed::new();
    let both = ["a", "b"].map(|name| bed.lab(&format!("up --nodes 2 --name {name} --daemon true")).spawn().unwrap());
    for mut up in both {
        assert!(up.wait().unwrap().success());
    }
    bed.ok("up --nodes 2 --name c --daemon true");
    let third = bed.status("--name c");
    assert_eq!(third["subnet"].as_str().unwrap().matches('.').count(), 3);
    let host = bed.ok("exec --name c n1 -- cat /proc/net/fib_trie");
    assert!(host.contains(third["nodes"][0]["address"].as_str().unwrap()));
    bed.ok("down --name a");
    assert!(bed.status("--name b")["nodes"][0]["running"] == true);
    bed.ok("exec --name b n2 true");
    bed.ok("down --name b");
    bed.ok("down --name c");
    bed.nothing_left();
}

#[test]
fn a_real_cluster_is_ready_and_outlives_its_first_node() {
    let bed = Bed::new();
    let up = |words: &str| bed.lab(words).env("GANTRY_RUNTIME", runtime()).output().unwrap();
    let made = up("up --nodes 2");
    assert!(made.status.success(), "{}", text(&made.stderr));
    let ready = || bed.status("")["nodes"].as_array().unwrap().iter().all(|node| node["scheduler"] == "ready");
    assert!(ready(), "`up` is done when all are ready: {}", bed.status(""));
    let inside = bed.ok("exec n1 -- gantry node ls --json");
    assert!(inside.contains("\"n2\""), "inside, `gantry` is found and finds its scheduler: {inside}");
    bed.ok("kill n2");
    eventually("n2 is lost", 60 * SECONDS, || bed.status("")["nodes"][1]["scheduler"] == "lost");
    assert!(up("start n2").status.success());
    eventually("n2 is back", 60 * SECONDS, ready);
    bed.ok("kill n1");
    assert!(bed.status("")["nodes"][1]["running"] == true, "the other goes on");
    assert!(up("up --nodes 3").status.success(), "completes and grows it");
    assert!(ready() && bed.status("")["nodes"].as_array().unwrap().len() == 3);
    bed.ok("down");
    bed.nothing_left();
}

/// The runtime's binary, built if it is not.
fn runtime() -> PathBuf {
    if let Some(given) = std::env::var_os("GANTRY_RUNTIME") {
        return given.into();
    }
    let cargo = std::env::var_os("CARGO").unwrap_or("cargo".into());
    let built = Command::new(cargo).args(["build", "--quiet", "--locked", "-p", "gantry-runtime"]).status().unwrap();
    assert!(built.success(), "the runtime builds");
    Path::new(env!("CARGO_BIN_EXE_gantry")).with_file_name("gantry-runtime")
}

#[test]
fn wrong_use_says_what_to_do() {
    let bed = Bed::new();
    for (words, code, part) in [
        ("status", 1, "hint: make it with `gantry lab up --name lab`"),
        ("kill n1", 1, "there is no lab `lab`"),
        ("up --name Bad", 2, "is not a lab name"),
        ("up --nodes 0", 2, "a lab has 1 to 240"),
        ("up --nodes 241", 2, "a lab has 1 to 240"),
        ("exec n1", 2, "COMMAND"),
    ] {
        let (got, message) = bed.refused(words);
        assert!(got == code && message.contains(part), "{words}: {got} {message}");
    }
    drop(bed.lab("kill n1").output());
    bed.ok("down");
    bed.nothing_left();
}

#[test]
fn published_ports_are_reached_on_the_hosts_loopback() {
    // The host's loopback is that of a namespace of this test's own.
    let test = || {
        nix::sched::unshare(nix::sched::CloneFlags::CLONE_NEWNET).unwrap();
        assert!(Command::new("ip").args(["link", "set", "lo", "up"]).status().unwrap().success());
        forwards();
    };
    std::thread::spawn(test).join().unwrap();
}

fn forwards() {
    let bed = Bed::new();
    let taken = TcpListener::bind("127.0.0.1:8081").unwrap();
    let program = std::env::current_exe().unwrap();
    let daemon = format!("{} --ignored --exact helper_schedules --nocapture", program.display());
    assert!(bed.lab("up --nodes 2 --daemon").arg(&daemon).output().unwrap().status.success());
    let greeted = |port: u16| greeting(SocketAddr::from(([127, 0, 0, 1], port))) == 0;
    eventually("8080 is forwarded", 60 * SECONDS, || greeted(8080));
    eventually("the port that is taken is told", 60 * SECONDS, || {
        bed.status("")["problems"].to_string().contains("port 8081/tcp of this host: another program holds it")
    });
    // Both ways, half-closed: what is sent comes back only after the sender has ended his side.
    let mut stream = TcpStream::connect("127.0.0.1:8082").unwrap();
    let sent: Vec<u8> = (0..2_000_000u32).map(|n| n as u8).collect();
    let mut writer = stream.try_clone().unwrap();
    let copy = sent.clone();
    let writing = std::thread::spawn(move || {
        writer.write_all(&copy).unwrap();
        writer.shutdown(std::net::Shutdown::Write).unwrap();
    });
    let mut back = Vec::new();
    stream.read_to_end(&mut back).unwrap();
    writing.join().unwrap();
    assert!(back == sent, "{} of {} bytes came back", back.len(), sent.len());
    let udp = UdpSocket::bind("127.0.0.1:0").unwrap();
    udp.set_read_timeout(Some(SECONDS / 5)).unwrap();
    udp.connect("127.0.0.1:8083").unwrap();
    eventually("a datagram comes back", 60 * SECONDS, || {
        let mut back = [0; 16];
        udp.send(b"ping").is_ok() && udp.recv(&mut back).is_ok_and(|length| &back[..length] == b"ping")
    });
    drop(taken);
    eventually("the port that was taken is forwarded once free", 60 * SECONDS, || greeted(8081));
    bed.ok("kill n2");
    for _ in 0..4 {
        assert!(greeted(8080), "another node is tried when one is dead");
    }
    bed.ok("down");
    assert!(TcpStream::connect("127.0.0.1:8080").is_err());
    bed.nothing_left();
}

// ------------------------------------------------------------------------------- helpers, run inside nodes

/// Greets whoever connects to `TEST_ADDRESS`.
#[test]
#[ignore = "a helper of the other tests"]
fn helper_listens() {
    greet(TcpListener::bind(address()).unwrap());
}

/// Connects to `TEST_ADDRESS`.
#[test]
#[ignore = "a helper of the other tests"]
fn helper_connects() {
    std::process::exit(greeting(address()));
}

/// A node's daemon: greets on 8080 and 8081, echoes on 8082 (TCP) and 8083 (UDP), and on n1 answers like a scheduler.
#[test]
#[ignore = "a helper of the other tests"]
fn helper_schedules() {
    for port in [8080, 8081] {
        std::thread::spawn(move || greet(TcpListener::bind(("0.0.0.0", port)).unwrap()));
    }
    std::thread::spawn(|| {
        for mut stream in TcpListener::bind("0.0.0.0:8082").unwrap().incoming().flatten() {
            std::thread::spawn(move || {
                let mut whole = Vec::new();
                stream.read_to_end(&mut whole).and_then(|_| stream.write_all(&whole)).unwrap();
            });
        }
    });
    std::thread::spawn(|| {
        let socket = UdpSocket::bind("0.0.0.0:8083").unwrap();
        let mut datagram = [0; 2048];
        while let Ok((length, from)) = socket.recv_from(&mut datagram) {
            socket.send_to(&datagram[..length], from).unwrap();
        }
    });
    for stream in UnixListener::bind("/run/gantry/gantry.sock").unwrap().incoming().flatten() {
        let mut reader = BufReader::new(&stream);
        let mut line = String::new();
        reader.read_line(&mut line).unwrap();
        let mut rest = String::new();
        while rest != "\r\n" {
            rest.clear();
            reader.read_line(&mut rest).unwrap();
        }
        let body = if line.contains("/v1/apps") { APPS } else { "[]" };
        let answer = format!("HTTP/1.1 200 OK\r\ncontent-length: {}\r\n\r\n{body}", body.len());
        (&stream).write_all(answer.as_bytes()).unwrap();
    }
}

const APPS: &str = r#"[{"name":"shop","revision":1,"services":[{"name":"web","image":"x","wanted":1,"running":1,
"ready":1,"updated":1,"completed":0,"address":null,"settled":true,"message":null,"ports":[
{"published":8080,"target":80,"protocol":"tcp"},{"published":8081,"target":80,"protocol":"tcp"},
{"published":8082,"target":80,"protocol":"tcp"},{"published":8083,"target":80,"protocol":"udp"}]}]}]"#;

fn address() -> SocketAddr {
    std::env::var("TEST_ADDRESS").unwrap().parse().unwrap()
}

fn greet(listener: TcpListener) {
    for mut stream in listener.incoming().flatten() {
        drop(stream.write_all(b"hello"));
    }
}

/// As [`connect`].
fn greeting(address: SocketAddr) -> i32 {
    match TcpStream::connect_timeout(&address, Duration::from_millis(1500)) {
        Ok(mut stream) => {
            let mut word = String::new();
            i32::from(stream.read_to_string(&mut word).is_err() || word != "hello")
        }
        Err(error) if error.kind() == std::io::ErrorKind::ConnectionRefused => 1,
        Err(_) => 2,
    }
}
