//! Filters in the real kernel: what docker's profile refuses, and agents that decide about calls.
#![allow(unsafe_code)] // the ioctls of a listener

mod common;

use common::{Bed, id, until};
use gantry_runtime::sys::socket;
use serde_json::{Value, json};
use std::fs;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::{Arc, Mutex};
use std::thread;

/// What an agent answers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Answer {
    /// Let it happen.
    Continue,
    /// Fail with this.
    Error(i32),
    /// Read the first, then close the listener.
    Die,
}

/// `struct seccomp_notif`.
#[repr(C)]
#[derive(Debug, Clone, Copy, Default)]
struct Notification {
    id: u64,
    pid: u32,
    flags: u32,
    number: i32,
    architecture: u32,
    instruction: u64,
    arguments: [u64; 6],
}

/// `struct seccomp_notif_resp`.
#[repr(C)]
struct Response {
    id: u64,
    value: i64,
    error: i32,
    flags: u32,
}

/// A program that decides about calls: listens on a socket, gets listeners, answers.
struct Agent {
    path: PathBuf,
    /// What came with each listener.
    states: Arc<Mutex<Vec<Value>>>,
    /// Numbers of the calls it was asked about.
    asked: Arc<Mutex<Vec<i32>>>,
}

impl Agent {
    fn new(path: PathBuf, answer: Answer) -> Self {
        // Through a descriptor, so that the path may be longer than a socket address.
        let directory = fs::File::open(path.parent().expect("a directory")).expect("the directory");
        let name = path.file_name().expect("a name").to_str().expect("text");
        let short = format!("/proc/self/fd/{}/{name}", directory.as_raw_fd());
        let listener = UnixListener::bind(short).expect("a socket");
        let agent = Self { path, states: Arc::default(), asked: Arc::default() };
        let (states, asked) = (Arc::clone(&agent.states), Arc::clone(&agent.asked));
        thread::spawn(move || {
            while let Ok((stream, _)) = listener.accept() {
                let (state, descriptor) = take(&stream);
                states.lock().expect("states").push(state);
                let asked = Arc::clone(&asked);
                thread::spawn(move || serve(&descriptor, answer, &asked));
            }
        });
        agent
    }

    fn states(&self) -> Vec<Value> {
        self.states.lock().expect("states").clone()
    }
}

/// One message: the state and the listener.
fn take(stream: &UnixStream) -> (Value, OwnedFd) {
    let mut bytes = vec![0; 64 * 1024];
    let (count, descriptor) = socket::receive(stream.as_fd(), &mut bytes).expect("a message");
    let mut rest = Vec::new();
    std::io::Read::read_to_end(&mut &*stream, &mut rest).expect("its end");
    bytes.truncate(count);
    bytes.extend(rest);
    (serde_json::from_slice(&bytes).expect("the state is JSON"), descriptor.expect("a listener"))
}

/// Answer until no process has the filter any more.
fn serve(listener: &OwnedFd, answer: Answer, asked: &Mutex<Vec<i32>>) {
    const RECEIVE: libc::c_ulong = 0xc050_2100;
    const SEND: libc::c_ulong = 0xc018_2101;
    const CONTINUE: u32 = 1;
    loop {
        let mut poll = libc::pollfd { fd: listener.as_raw_fd(), events: libc::POLLIN, revents: 0 };
        // SAFETY: one live pollfd.
        unsafe { libc::poll(&raw mut poll, 1, -1) };
        if poll.revents & libc::POLLIN == 0 {
            return;
        }
        let mut notification = Notification::default();
        // SAFETY: the kernel fills in one `struct seccomp_notif`, which this is.
        if unsafe { libc::ioctl(listener.as_raw_fd(), RECEIVE as _, &raw mut notification) } < 0 {
            continue;
        }
        asked.lock().expect("asked").push(notification.number);
        let (error, flags) = match answer {
            Answer::Continue => (0, CONTINUE),
            Answer::Error(number) => (-number, 0),
            Answer::Die => return,
        };
        let response = Response { id: notification.id, value: 0, error, flags };
        // SAFETY: the kernel reads one `struct seccomp_notif_resp`, which this is.
        unsafe { libc::ioctl(listener.as_raw_fd(), SEND as _, &raw const response) };
    }
}

/// A bundle whose calls of these names an agent decides about.
fn watched(script: &str, names: &[&str], agent: &Path) -> Bed {
    let mut bed = Bed::new(script);
    bed.config["linux"]["seccomp"] = json!({
        "defaultAction": "SCMP_ACT_ALLOW",
        "listenerPath": agent,
        "listenerMetadata": "some words",
        "syscalls": [{"names": names, "action": "SCMP_ACT_NOTIFY"}],
    });
    bed
}

fn agent_path(bed: &Bed) -> PathBuf {
    bed.path("agent.sock")
}

const MKDIR: &str = "mkdir /dev/shm/x; echo $?; true";

#[test]
fn an_agent_decides_with_and_without_no_new_privileges_for_any_user() {
    for (no_new_privileges, uid) in [(false, 0), (true, 0), (false, 1000), (true, 1000)] {
        let mut bed = watched(MKDIR, &["mkdir"], Path::new(""));
        let agent = Agent::new(agent_path(&bed), Answer::Error(libc::ENOMEDIUM));
        bed.config["linux"]["seccomp"]["listenerPath"] = json!(agent.path);
        bed.config["process"]["noNewPrivileges"] = json!(no_new_privileges);
        bed.config["process"]["user"] = json!({"uid": uid, "gid": uid});
        let ran = bed.run(&["run", &id("agent")]);
        assert!(ran.code == 0 && ran.out == "1\n" && ran.err.contains("No medium found"), "{uid}: {ran:?}");
        let [state] = &agent.states()[..] else { panic!("one state: {:?}", agent.states()) };
        assert_eq!(state["fds"], json!(["seccompFd"]));
        assert_eq!(state["metadata"], json!("some words"));
        assert_eq!(state["pid"], state["state"]["pid"]);
        assert!(state["pid"].as_i64().expect("a number") > 1);
        assert_eq!(state["state"]["status"], json!("created"));
        assert_eq!(state["ociVersion"], bed.config["ociVersion"]);
        assert_eq!(state["state"]["bundle"], json!(bed.bundle()));
    }
}

#[test]
fn an_agent_serves_start_and_exec() {
    let mut bed = watched("sleep 1000", &["mkdir"], Path::new(""));
    let agent = Agent::new(agent_path(&bed), Answer::Error(libc::ENOMEDIUM));
    bed.config["linux"]["seccomp"]["listenerPath"] = json!(agent.path);
    let id = id("served");
    bed.ok(&["create", &id]);
    assert_eq!(agent.states().len(), 0, "there is nothing to decide about before the start");
    bed.ok(&["start", &id]);
    let ran = bed.run(&["exec", &id, "sh", "-c", MKDIR]);
    assert!(ran.code == 0 && ran.out == "1\n" && ran.err.contains("No medium found"), "{ran:?}");
    let states = agent.states();
    let [init, exec] = &states[..] else { panic!("two states: {states:?}") };
    assert_eq!(init["pid"], json!(bed.pid(&id)));
    assert_eq!(exec["state"]["pid"], json!(bed.pid(&id)));
    assert_ne!(exec["pid"], init["pid"], "the process that was added");
    assert_eq!((&init["state"]["id"], &exec["state"]["status"]), (&json!(id), &json!("running")));
    bed.ok(&["delete", "--force", &id]);
}

#[test]
fn an_agent_serves_a_supervised_container() {
    let mut bed = watched(MKDIR, &["mkdir"], Path::new(""));
    let agent = Agent::new(agent_path(&bed), Answer::Error(libc::ENOMEDIUM));
    bed.config["linux"]["seccomp"]["listenerPath"] = json!(agent.path);
    let id = id("supervised");
    let options = bed.supervised();
    let mut args = vec!["run", "--detach"];
    args.extend(options.iter().map(String::as_str));
    args.push(&id);
    bed.ok(&args);
    let exit = bed.exit_record();
    assert_eq!(exit["exit_code"], json!(0), "{exit}");
    assert!(bed.logged().contains("No medium found"), "{}", bed.logged());
    bed.ok(&["delete", &id]);
}

/// The runtime makes such calls itself, up to the very end; none of them may wait for an agent that is not there yet.
#[test]
fn calls_of_the_runtime_itself_do_not_deadlock() {
    let names = [
        "execve",
        "openat",
        "open",
        "read",
        "close",
        "capset",
        "capget",
        "prctl",
        "sendmsg",
        "sendto",
        "recvmsg",
        "recvfrom",
        "futex",
        "mmap",
        "munmap",
        "mprotect",
        "brk",
        "setuid",
        "setresuid",
        "setgid",
        "setresgid",
        "setgroups",
        "chdir",
        "getcwd",
        "umask",
        "close_range",
        "rt_sigaction",
        "rt_sigprocmask",
        "exit",
        "exit_group",
        "seccomp",
        "wait4",
        "clone",
        "clone3",
        "fstat",
        "poll",
        "ppoll",
        "memfd_create",
        "pidfd_getfd",
        "getpid",
        "rt_sigreturn",
    ];
    for (no_new_privileges, uid) in [(false, 0), (true, 0), (false, 1000), (true, 1000)] {
        let mut bed = watched("true && echo done", &names, Path::new(""));
        let agent = Agent::new(agent_path(&bed), Answer::Continue);
        bed.config["linux"]["seccomp"]["listenerPath"] = json!(agent.path);
        bed.config["process"]["noNewPrivileges"] = json!(no_new_privileges);
        bed.config["process"]["user"] = json!({"uid": uid, "gid": uid});
        assert_eq!(bed.says(), "done\n");
        let asked = agent.asked.lock().expect("asked");
        assert!(asked.contains(&(libc::SYS_execve as i32)), "{asked:?}");
        let first = asked.iter().position(|&number| number == libc::SYS_execve as i32);
        assert!(first <= Some(8), "little is left to do between the filter and the program: {asked:?}");
    }
}

#[test]
fn an_agent_that_dies_leaves_enosys() {
    let mut bed = watched(&format!("{MKDIR}; mkdir /dev/shm/y"), &["mkdir"], Path::new(""));
    let agent = Agent::new(agent_path(&bed), Answer::Die);
    bed.config["linux"]["seccomp"]["listenerPath"] = json!(agent.path);
    let ran = bed.run(&["run", &id("dies")]);
    assert!(ran.code == 1 && ran.err.matches("Function not implemented").count() == 2, "{ran:?}");
}

#[test]
fn a_path_longer_than_a_socket_address() {
    let mut bed = watched(MKDIR, &["mkdir"], Path::new(""));
    let deep = bed.path(&"long".repeat(40));
    fs::create_dir(&deep).expect("a directory");
    let agent = Agent::new(deep.join("agent.sock"), Answer::Error(libc::ENOMEDIUM));
    bed.config["linux"]["seccomp"]["listenerPath"] = json!(agent.path);
    let ran = bed.run(&["run", &id("long")]);
    assert!(ran.code == 0 && ran.err.contains("No medium found"), "{ran:?}");
}

#[test]
fn without_an_agent_nothing_starts() {
    let mut bed = watched("true", &["mkdir"], Path::new(""));
    let gone = bed.path("gone.sock");
    drop(UnixListener::bind(&gone).expect("a socket that nobody listens on"));
    for (path, text) in [
        (gone.to_str().expect("text"), "Connection refused"),
        ("/no/such/agent.sock", "No such file or directory"),
        ("/etc/passwd", "it is not a socket"),
    ] {
        bed.config["linux"]["seccomp"]["listenerPath"] = json!(path);
        let message = bed.refuses();
        let want = format!(
            "seccomp agent: $.linux.seccomp.listenerPath: failed to connect with seccomp agent `{path}`: {text}"
        );
        assert!(message.contains(&want) && message.contains("hint: start the agent"), "{message}");
    }
    bed.config["linux"]["seccomp"]["listenerPath"] = json!("agent.sock");
    assert!(bed.refuses().contains("$.linux.seccomp.listenerPath: `agent.sock` is not an absolute path"));
    // Without a rule that needs it, the path does not matter.
    bed.config["linux"]["seccomp"]["syscalls"] = json!([]);
    assert_eq!(bed.says(), "");
}

/// An agent that goes away between `create` and `start`.
#[test]
fn a_start_without_its_agent_fails_and_leaves_no_process() {
    let mut bed = watched("sleep 1000", &["mkdir"], Path::new(""));
    let path = agent_path(&bed);
    let listener = UnixListener::bind(&path).expect("a socket");
    bed.config["linux"]["seccomp"]["listenerPath"] = json!(path);
    let id = id("orphan");
    bed.ok(&["create", &id]);
    let pid = bed.pid(&id);
    drop(listener);
    let ran = bed.run(&["start", &id]);
    assert!(ran.code == 1 && ran.err.contains("failed to connect with seccomp agent"), "{ran:?}");
    until("its process is gone", || !common::runs(pid));
    bed.ok(&["delete", &id]);
    bed.assert_gone(&id);
}

/// Build a program that makes raw calls, into a bundle.
fn build_probe(bed: &Bed) {
    let source = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/data/probe.c");
    let built = Command::new("cc").args(["-static", "-O1", "-o"]).arg(bed.rootfs("bin/probe")).arg(source).output();
    let built = built.expect("tests need a C compiler");
    assert!(built.status.success(), "{}", String::from_utf8_lossy(&built.stderr));
}

#[test]
#[cfg(target_arch = "x86_64")]
fn the_kernel_decides_as_dockers_profile_says() {
    const X32: i64 = 0x4000_0000;
    let mut bed = Bed::new("true");
    build_probe(&bed);
    let profile = include_str!("data/docker-seccomp.json");
    bed.config["linux"]["seccomp"] = serde_json::from_str(profile).expect("JSON");
    let (eperm, enosys) = (libc::EPERM, libc::ENOSYS);
    let cases = [
        (format!("{}", libc::SYS_getpid), 0),
        (format!("{}", libc::SYS_mount), eperm),
        (format!("{}", libc::SYS_unshare), eperm),
        (format!("{}", libc::SYS_keyctl), eperm),
        (format!("{}", libc::SYS_bpf), eperm),
        (format!("{}", libc::SYS_clone3), enosys),
        // Newer than all it speaks of.
        ("449".into(), libc::EINVAL),
        ("450".into(), enosys),
        ("462".into(), enosys),
        ("600".into(), enosys),
        (format!("{}", 0x3fff_ffff), enosys),
        // Conditions.
        (format!("{},0xffffffff", libc::SYS_personality), 0),
        (format!("{},4", libc::SYS_personality), eperm),
        (format!("{},40,1,0", libc::SYS_socket), eperm),
        (format!("{},0x10000000", libc::SYS_clone), eperm),
        // The other ways to make a call.
        ("x86:20".into(), 0),
        ("x86:21".into(), eperm),
        ("x86:136,0xffffffff".into(), 0),
        ("x86:136,4".into(), eperm),
        ("x86:359,40,1,0".into(), eperm),
        ("x86:600".into(), enosys),
        (format!("{}", X32 + libc::SYS_mount), eperm),
        (format!("{}", X32 + 600), enosys),
    ];
    let mut args = vec!["/bin/probe".to_owned()];
    args.extend(cases.iter().map(|(call, _)| call.clone()));
    bed.config["process"]["args"] = json!(args);
    let out = bed.says();
    for ((call, want), line) in cases.iter().zip(out.lines()) {
        assert_eq!(line, format!("{call}={want}"), "all: {out}");
    }
    // Without the other architectures their calls end the thread.
    bed.config["linux"]["seccomp"]["architectures"] = json!(["SCMP_ARCH_X86_64"]);
    for call in ["x86:20".to_owned(), format!("{}", X32 + libc::SYS_getpid)] {
        bed.config["process"]["args"] = json!(["/bin/probe", call]);
        assert_eq!(bed.run(&["run", &id("foreign")]).code, 128 + libc::SIGSYS, "{call}");
    }
}

#[test]
fn actions_end_programs_as_they_should() {
    for (action, code) in
        [("SCMP_ACT_KILL", 31), ("SCMP_ACT_KILL_PROCESS", 31), ("SCMP_ACT_TRAP", 31), ("SCMP_ACT_LOG", 0)]
    {
        let mut bed = Bed::new("true");
        build_probe(&bed);
        bed.config["linux"]["seccomp"] = json!({
            "defaultAction": "SCMP_ACT_ALLOW", "syscalls": [{"names": ["mkdir"], "action": action}],
        });
        let number = if cfg!(target_arch = "x86_64") { "83,0" } else { return };
        bed.config["process"]["args"] = json!(["/bin/probe", number]);
        let ran = bed.run(&["run", &id("action")]);
        assert_eq!(ran.code, if code == 0 { 0 } else { 128 + code }, "{action}: {ran:?}");
    }
}

#[test]
fn flags_reach_the_kernel() {
    for flags in [
        json!([]),
        json!(["SECCOMP_FILTER_FLAG_TSYNC"]),
        json!(["SECCOMP_FILTER_FLAG_LOG", "SECCOMP_FILTER_FLAG_SPEC_ALLOW"]),
        json!(["SECCOMP_FILTER_FLAG_WAIT_KILLABLE_RECV"]),
    ] {
        let mut bed = watched("grep Seccomp: /proc/self/status", &["mkdir"], Path::new(""));
        bed.config["linux"]["seccomp"]["flags"] = flags.clone();
        let agent = Agent::new(agent_path(&bed), Answer::Continue);
        bed.config["linux"]["seccomp"]["listenerPath"] = json!(agent.path);
        assert_eq!(bed.says().split_whitespace().last(), Some("2"), "{flags}, with an agent");
        bed.config["linux"]["seccomp"]["syscalls"] = json!([]);
        assert_eq!(bed.says().split_whitespace().last(), Some("2"), "{flags}");
    }
}
