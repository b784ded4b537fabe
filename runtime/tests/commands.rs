//! The command line as a whole: what is not understood, where errors go, and options that every command shares.

mod common;

use common::{Bed, id, until};
use serde_json::{Value, json};
use std::fs;
use std::process::Stdio;

/// Every command with lines it cannot take: exit code, and what it says.
#[test]
fn wrong_lines_are_named() {
    let bed = Bed::new("true");
    for (line, code, text) in [
        ("fly", 3, "there is no command `fly`"),
        ("--fly", 1, "there is no option `--fly`"),
        ("--root", 1, "--root needs a value"),
        ("--log-format xml list", 1, "--log-format takes text or json, not `xml`"),
        ("--rootless maybe list", 1, "--rootless takes true or false, not `maybe`"),
        ("create", 1, "\"create\" requires a container id"),
        ("create a b", 1, "\"create\" does not take `b`"),
        ("create --bundle", 1, "--bundle needs a value"),
        ("create --bundle /nowhere a", 1, "cannot open bundle `/nowhere`"),
        ("create --preserve-fds many a", 1, "--preserve-fds takes a number, not `many`"),
        ("create --detach a", 1, "`create` has no option `--detach`"),
        ("create --no-pivot=perhaps a", 1, "--no-pivot takes true or false, not `perhaps`"),
        ("create a/b", 1, "invalid container id `a/b`"),
        ("create --console-socket /nowhere a", 1, "`process.terminal` is false"),
        ("create --pidfd-socket /nowhere a", 1, "cannot connect to pidfd socket `/nowhere`"),
        ("run", 1, "\"run\" requires a container id"),
        ("run --keep", 1, "\"run\" requires a container id"),
        ("start", 1, "\"start\" requires a container id"),
        ("start nobody", 1, "container does not exist: `nobody`"),
        ("state nobody", 1, "container does not exist: `nobody`"),
        ("state --format json nobody", 1, "`state` has no option `--format`"),
        ("kill nobody", 1, "container does not exist: `nobody`"),
        ("kill nobody NOPE", 1, "unknown signal \"NOPE\""),
        ("kill nobody 65", 1, "unknown signal \"65\""),
        ("kill nobody TERM KILL", 1, "\"kill\" does not take `KILL`"),
        ("delete", 1, "\"delete\" requires a container id"),
        ("delete nobody", 1, "container does not exist: `nobody`"),
        ("delete --force nobody", 0, ""),
        ("exec", 1, "\"exec\" requires a container id"),
        ("exec nobody", 1, "`exec` needs either a command or --process"),
        ("exec nobody true", 255, "container does not exist: `nobody`"),
        ("exec -p /f nobody true", 1, "`exec` needs either a command or --process"),
        ("exec --user root nobody true", 1, "--user takes UID or UID:GID in numbers, not `root`"),
        ("exec --additional-gids x nobody true", 1, "--additional-gids takes a number, not `x`"),
        ("exec --cap CAP_FLY nobody true", 255, "warning: --cap: `CAP_FLY` is not a capability"),
        ("exec --cgroup ../.. nobody true", 1, "../.. is not a sub cgroup path"),
        ("list --format xml", 1, "--format takes table or json, not `xml`"),
        ("list all", 1, "\"list\" does not take `all`"),
        ("list", 0, ""),
        ("spec more", 1, "\"spec\" does not take `more`"),
        ("spec --bundle /nowhere", 1, "cannot write `/nowhere/config.json`"),
        ("features more", 1, "\"features\" does not take `more`"),
        ("checkpoint", 1, "\"checkpoint\" requires a container id"),
        ("checkpoint nobody", 1, "container does not exist: `nobody`"),
        ("checkpoint --lazy-pages nobody", 1, "--lazy-pages is not supported"),
        ("checkpoint --manage-cgroups-mode loose nobody", 1, "ignore, soft, full or strict, not `loose`"),
        ("checkpoint --page-server here nobody", 1, "--page-server takes ADDRESS:PORT, not `here`"),
        ("restore", 1, "\"restore\" requires a container id"),
        ("restore --empty-ns pid nobody", 1, "--empty-ns takes network, not `pid`"),
        ("--criu /nowhere/criu restore nobody", 1, "`/nowhere/criu`, which is not installed"),
    ] {
        let args: Vec<&str> = line.split(' ').collect();
        let ran = bed.run(&args);
        assert_eq!(ran.code, code, "{line}: {ran:?}");
        if text.is_empty() {
            assert_eq!(ran.err, "", "{line}");
            continue;
        }
        assert!(ran.err.starts_with("gantry-runtime: ") && ran.err.contains(text), "{line}: {ran:?}");
        assert!(!bed.path("state/nobody").exists() && !bed.path("state/a").exists(), "{line} leaves nothing");
    }
}

#[test]
fn the_log_has_what_callers_read() {
    let bed = Bed::new("true");
    let file = bed.path("the.log").display().to_string();
    // As containerd's and podman's conmon call it; the first word of an error they read is in `msg`.
    for (args, code, want) in [
        (vec!["state", "nobody"], 1, "container does not exist: `nobody`"),
        (vec!["exec", "nobody", "true"], 255, "container does not exist: `nobody`"),
        (vec!["kill", "nobody", "NOPE"], 1, "unknown signal \"NOPE\""),
    ] {
        let _ = fs::remove_file(&file);
        let all: Vec<&str> = ["--log", &file, "--log-format", "json"].into_iter().chain(args).collect();
        assert_eq!(bed.run(&all).code, code);
        let text = fs::read_to_string(&file).expect("the log");
        // One object and nothing else: podman parses the file as a whole.
        let line: Value = serde_json::from_str(&text).expect("one JSON object");
        let keys: Vec<&String> = line.as_object().expect("an object").keys().collect();
        assert_eq!(keys, ["level", "msg", "time"]);
        assert_eq!((&line["level"], line["msg"].as_str()), (&json!("error"), Some(want)));
    }
    let plain = bed.path("plain.log").display().to_string();
    bed.run(&["--log", &plain, "state", "nobody"]);
    let text = fs::read_to_string(&plain).expect("the log");
    assert!(text.starts_with("time=\"") && text.contains("level=error msg=\"container does not exist"), "{text}");
}

#[test]
fn debug_lines_go_to_the_log_or_to_standard_error() {
    let bed = Bed::new("true");
    let ran = bed.run(&["--debug", "list"]);
    assert!(ran.code == 0 && ran.err.contains("level=debug msg=\""), "{ran:?}");
    let file = bed.path("the.log").display().to_string();
    let ran = bed.run(&["--debug", "--log", &file, "--log-format", "json", "list"]);
    assert!(ran.code == 0 && ran.err.is_empty(), "{ran:?}");
    for line in fs::read_to_string(&file).expect("the log").lines() {
        let line: Value = serde_json::from_str(line).expect("JSON");
        assert_eq!(line["level"], json!("debug"));
    }
}

#[test]
fn an_answer_that_cannot_be_written_is_an_error() {
    let bed = Bed::new("true");
    for args in [&["features"][..], &["--help"], &["run", "--help"], &["--version"], &["list"]] {
        let full = fs::OpenOptions::new().write(true).open("/dev/full").expect("a full device");
        let output = bed.command(args).stdout(full).stderr(Stdio::piped()).output().expect("the runtime");
        let err = String::from_utf8_lossy(&output.stderr).into_owned();
        assert_eq!(output.status.code(), Some(1), "{args:?}: {err}");
        assert!(err.contains("cannot write to standard output"), "{args:?}: {err}");
    }
}

#[test]
fn a_pidfd_comes_through_the_socket() {
    let bed = Bed::new("sleep 1000");
    let path = bed.path("pidfd");
    let listener = std::os::unix::net::UnixListener::bind(&path).expect("a socket");
    let socket = path.to_str().expect("a path");
    let name = id("pidfd");
    bed.ok(&["run", "-d", "--pidfd-socket", socket, &name]);
    let (first, _) = listener.accept().expect("a connection");
    let mut word = [0; 16];
    let received = receive_descriptor(&first, &mut word);
    assert_eq!(&word[..5], b"pidfd");
    let pid = fs::read_to_string(format!("/proc/self/fdinfo/{received}")).expect("about the descriptor");
    assert_eq!(common::field(&pid, "Pid").parse(), Ok(bed.pid(&name)));
    bed.ok(&["exec", "-d", "--pidfd-socket", socket, &name, "sleep", "1000"]);
    let (second, _) = listener.accept().expect("a connection");
    let of_exec = receive_descriptor(&second, &mut word);
    let other = fs::read_to_string(format!("/proc/self/fdinfo/{of_exec}")).expect("about the descriptor");
    assert_ne!(common::field(&pid, "Pid"), common::field(&other, "Pid"));
    bed.ok(&["delete", "--force", &name]);
    // Both processes have gone with the container.
    until("the descriptors know of the end", || {
        let text = fs::read_to_string(format!("/proc/self/fdinfo/{received}")).expect("about the descriptor");
        common::field(&text, "Pid") == "-1"
    });
}

fn receive_descriptor(socket: &std::os::unix::net::UnixStream, word: &mut [u8]) -> i32 {
    use std::os::fd::{AsFd, IntoRawFd};
    let (_, fd) = gantry_runtime::sys::socket::receive(socket.as_fd(), word).expect("a message");
    // Lives as long as the test's process.
    fd.expect("a descriptor").into_raw_fd()
}

#[test]
fn exec_goes_into_a_cgroup_below() {
    let mut bed = Bed::new("sleep 1000");
    bed.config["linux"]["namespaces"].as_array_mut().expect("namespaces").retain(|entry| entry["type"] != "cgroup");
    let name = id("below");
    bed.ok(&["run", "-d", &name]);
    let places = common::cgroups(&name);
    for place in &places {
        let below = place.join("sub");
        fs::create_dir(&below).expect("a cgroup below");
        for file in ["cpuset.cpus", "cpuset.mems"].into_iter().filter(|file| place.join(file).exists()) {
            fs::write(below.join(file), fs::read(place.join(file)).expect("the parent's")).expect("the same below");
        }
    }
    let there = bed.ok(&["exec", "--cgroup", "/sub", &name, "cat", "/proc/self/cgroup"]);
    let inside = |text: &str, end: &str| text.lines().filter(|line| line.ends_with(end)).count();
    assert_eq!(inside(&there, &format!("{name}/sub")), places.len(), "{there}");
    let plain = bed.ok(&["exec", &name, "cat", "/proc/self/cgroup"]);
    assert_eq!(inside(&plain, &name), places.len(), "{plain}");
    if places.len() > 1 {
        let one = bed.ok(&["exec", "--cgroup", "pids:sub", &name, "cat", "/proc/self/cgroup"]);
        assert_eq!(inside(&one, &format!("{name}/sub")), 1, "{one}");
        assert!(one.contains(&format!("pids:/gantry-runtime/{name}/sub")), "{one}");
        let unknown = bed.run(&["exec", "--cgroup", "whaaat:/", &name, "true"]);
        assert!(unknown.code == 255 && unknown.err.contains("unknown controller `whaaat`"), "{unknown:?}");
    }
    let absent = bed.run(&["exec", "--cgroup", "none", &name, "true"]);
    assert!(absent.code == 255 && absent.err.contains(&format!("{name}/none/")), "{absent:?}");
    bed.ok(&["delete", "--force", &name]);
    bed.assert_gone(&name);
}

#[test]
fn a_rootless_example_has_a_user_namespace_and_no_limits() {
    let bed = Bed::new("true");
    let output = bed.command(&["spec", "--rootless"]).output().expect("spec");
    assert!(output.status.success());
    let text = fs::read_to_string(bed.bundle().join("config.json")).expect("the configuration");
    let config: Value = serde_json::from_str(&text).expect("JSON");
    let kinds: Vec<&str> = config["linux"]["namespaces"]
        .as_array()
        .expect("a list")
        .iter()
        .filter_map(|one| one["type"].as_str())
        .collect();
    assert!(kinds.contains(&"user") && !kinds.contains(&"network"), "{kinds:?}");
    assert_eq!(config["linux"]["uidMappings"][0]["size"], json!(1));
    assert!(config["linux"].get("resources").is_none_or(|resources| resources == &json!({})), "{config}");
}
