//! Every command as a process, against a double of the scheduler: exit codes, standard output, standard error.

mod double;

use double::{Answer, Asked, Double, Echo, gantry, json, refusal, run};
use gantry_api::frame::Frame;
use gantry_api::http::{
    AppDetail, AppSummary, Change, ChangeAction, Event, LogLine, Node, NodeState, Plan, Replica, ServiceSummary, Token,
    Version,
};
use gantry_api::ids::{ReplicaId, ReplicaName, Revision};
use gantry_api::network::Published;
use gantry_api::spec::{App, Protocol};
use gantry_api::wire::{Capacity, ReplicaState};
use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::Ipv4Addr;
use std::path::Path;
use std::time::{Duration, Instant};

const MANIFEST: &str = "
name: shop
services:
  api:
    image: api:1
    ports: ['8080:80']
";

/// Between two looks at a state that is waited for.
const POLL: Duration = Duration::from_millis(5);
/// A state that is not there by then will never be.
const PATIENCE: Duration = Duration::from_secs(20);

fn replica(service: &str, number: u32, state: ReplicaState) -> Replica {
    let name = ReplicaName { app: "shop".parse().unwrap(), service: service.parse().unwrap(), number };
    Replica {
        id: ReplicaId::new(&name, number),
        name,
        node: Some("n1".parse().unwrap()),
        state,
        ready: state == ReplicaState::Running,
        healthy: None,
        current: true,
        image: format!("{service}:1"),
        address: Some(Ipv4Addr::new(10, 210, 0, 10)),
        message: None,
        restarts: 0,
        started_at_ms: None,
        last_exit: None,
        used: Capacity::default(),
    }
}

fn detail(ready: u32, wanted: u32, revision: u64) -> AppDetail {
    let service = ServiceSummary {
        name: "api".parse().unwrap(),
        image: "api:1".to_owned(),
        wanted,
        running: ready,
        ready,
        updated: ready,
        completed: 0,
        address: None,
        ports: vec![Published { published: 8080, target: 80, protocol: Protocol::Tcp }],
        settled: ready == wanted,
        message: (ready != wanted).then(|| "waits for db to be healthy".to_owned()),
    };
    let name: gantry_api::ids::AppName = "shop".parse().unwrap();
    AppDetail {
        summary: AppSummary { name: name.clone(), services: vec![service], revision: Revision(revision) },
        spec: App { name, services: BTreeMap::new(), volumes: BTreeMap::new() },
        replicas: vec![replica("api", 1, ReplicaState::Running), replica("job", 1, ReplicaState::Completed)],
    }
}

fn plan(action: ChangeAction, revision: u64) -> Plan {
    let details = vec!["image: api:0 → api:1".to_owned()];
    Plan { changes: vec![Change { service: "api".parse().unwrap(), action, details }], revision: Revision(revision) }
}

fn node(name: &str) -> Node {
    Node {
        id: "0123456789abcdef".parse().unwrap(),
        name: name.parse().unwrap(),
        state: NodeState::Ready,
        underlay: Ipv4Addr::new(192, 0, 2, 1),
        capacity: Capacity::default(),
        reserved: Capacity::default(),
        used: Capacity::default(),
        replicas: 1,
        labels: BTreeMap::new(),
        version: "0.1.0".to_owned(),
        arch: "amd64".to_owned(),
        kernel: "6.18.0".to_owned(),
        problems: vec!["no nftables".to_owned()],
        seen_ms: 1,
    }
}

fn log(service: &str, number: u32, line: &str) -> String {
    let name = replica(service, number, ReplicaState::Running).name;
    let line = LogLine {
        time: "2026-11-24T08:00:00.000000001Z".to_owned(),
        replica: ReplicaId::new(&name, number),
        name,
        stream: "stdout".to_owned(),
        line: line.to_owned(),
    };
    serde_json::to_string(&line).unwrap() + "\n"
}

fn replicas() -> Answer {
    json(&[
        replica("api", 1, ReplicaState::Preparing),
        replica("api", 2, ReplicaState::Running),
        replica("db", 1, ReplicaState::Running),
    ])
}

fn lines(asked: &Asked) -> Vec<&str> {
    asked.iter().map(|(line, _)| line.as_str()).collect()
}

/// A double in whose directory lies the manifest.
fn with_manifest(answers: &[(&str, Answer)]) -> Double {
    let double = Double::new(answers);
    std::fs::write(double.run_dir().join("compose.yaml"), MANIFEST).unwrap();
    double
}

#[test]
fn up_waits_until_the_app_is_as_described() {
    let double = with_manifest(&[
        ("PUT /v1/apps/shop", json(&plan(ChangeAction::Create, 7))),
        ("GET /v1/apps/shop", json(&detail(1, 1, 6))),
        ("GET /v1/apps/shop", json(&detail(0, 1, 7))),
        ("GET /v1/apps/shop", json(&detail(1, 1, 7))),
    ]);
    let ended = double.run(&["up"], "");
    assert_eq!(ended.code, Some(0), "{}", ended.stderr);
    assert_eq!(ended.stdout, "");
    assert_eq!(
        ended.stderr,
        "+ api\napi: 1/1 ready\napi: 0/1 ready: waits for db to be healthy\napi: 1/1 ready\n\
         shop is up; on every node: port 8080 for api\n"
    );
    let asked = double.asked();
    assert_eq!(lines(&asked), ["PUT /v1/apps/shop", "GET /v1/apps/shop", "GET /v1/apps/shop", "GET /v1/apps/shop"]);
    let sent: App = serde_json::from_str(&asked[0].1).unwrap();
    assert_eq!(sent.services.values().next().unwrap().template.image, "api:1");
}

#[test]
fn up_on_a_terminal_draws_a_line_per_service() {
    let double = with_manifest(&[
        ("PUT /v1/apps/shop", json(&plan(ChangeAction::Create, 7))),
        ("GET /v1/apps/shop", json(&detail(0, 1, 7))),
        ("GET /v1/apps/shop", json(&detail(1, 1, 7))),
    ]);
    let size = nix::pty::Winsize { ws_col: 100, ws_row: 24, ws_xpixel: 0, ws_ypixel: 0 };
    let pty = nix::pty::openpty(Some(&size), None).unwrap();
    let mut command = gantry(double.run_dir(), double.run_dir(), &["up"]);
    command.env("TERM", "xterm").stderr(pty.slave);
    let mut child = command.spawn().unwrap();
    drop(command);
    let mut terminal = std::fs::File::from(pty.master);
    let seen = read_until(&mut terminal, "shop is up");
    assert!(seen.contains("api  0/1 ready: waits for db to be healthy"), "{seen:?}");
    assert!(seen.contains("✔ api  1/1 ready"), "{seen:?}");
    assert!(seen.contains("\x1b[32m+ api\x1b[0m"), "{seen:?}");
    assert_eq!(child.wait().unwrap().code(), Some(0));
}

#[test]
fn up_detached_returns_when_it_is_recorded() {
    for (flag, action, told) in [
        ("-d", ChangeAction::Replace, "~ api (replaces its replicas)\nshop is recorded\n"),
        ("--no-wait", ChangeAction::Keep, "shop is as described already\n"),
    ] {
        let double = with_manifest(&[("PUT /v1/apps/shop", json(&plan(action, 7)))]);
        let ended = double.run(&["up", flag], "");
        assert_eq!((ended.code, ended.stderr.as_str()), (Some(0), told));
        assert_eq!(lines(&double.asked()), ["PUT /v1/apps/shop"]);
    }
}

#[test]
fn up_that_is_late_says_what_is_missing_and_ends_with_3() {
    let double = with_manifest(&[
        ("PUT /v1/apps/shop", json(&plan(ChangeAction::Create, 7))),
        ("GET /v1/apps/shop", json(&detail(0, 1, 7))),
    ]);
    let ended = double.run(&["up", "--timeout", "500ms"], "");
    assert_eq!(ended.code, Some(3));
    let told = "gantry: shop is not ready after 500ms (api 0/1 ready: waits for db to be healthy)\n\
                hint: what was recorded stays in force; look with `gantry ps shop` and `gantry logs shop`\n";
    assert!(ended.stderr.ends_with(told), "{}", ended.stderr);
}

#[test]
fn up_interrupted_leaves_things_as_they_are_and_ends_with_130() {
    let double = with_manifest(&[
        ("PUT /v1/apps/shop", json(&plan(ChangeAction::Create, 7))),
        ("GET /v1/apps/shop", json(&detail(0, 1, 7))),
    ]);
    let mut child = gantry(double.run_dir(), double.run_dir(), &["up"]).spawn().unwrap();
    let mut stderr = BufReader::new(child.stderr.take().unwrap());
    let mut seen = String::new();
    while !seen.contains("0/1 ready") {
        assert_ne!(stderr.read_line(&mut seen).unwrap(), 0, "{seen}");
    }
    let pid = nix::unistd::Pid::from_raw(i32::try_from(child.id()).unwrap());
    nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGINT).unwrap();
    stderr.read_to_string(&mut seen).unwrap();
    assert_eq!(child.wait().unwrap().code(), Some(130));
    let told = "gantry: interrupted; what was recorded goes on. Look with `gantry ps shop` and `gantry logs shop`\n";
    assert!(seen.ends_with(told), "{seen}");
    assert!(!lines(&double.asked()).iter().any(|line| line.starts_with("DELETE")));
}

#[test]
fn a_wait_outlives_a_scheduler_that_restarts() {
    let double = with_manifest(&[
        ("PUT /v1/apps/shop", json(&plan(ChangeAction::Create, 7))),
        ("GET /v1/apps/shop", json(&detail(0, 1, 7))),
    ]);
    let (run_dir, socket) = (double.run_dir().to_owned(), double.run_dir().join("gantry.sock"));
    let mut child = gantry(&run_dir, &run_dir, &["up", "--timeout", "20"]).spawn().unwrap();
    let mut stderr = BufReader::new(child.stderr.take().unwrap());
    let mut seen = String::new();
    let mut until = |text: &str, seen: &mut String| {
        while !seen.contains(text) {
            assert_ne!(stderr.read_line(seen).unwrap(), 0, "{text} not in {seen}");
        }
    };
    until("0/1 ready", &mut seen);
    std::fs::rename(&socket, run_dir.join("away")).unwrap();
    until("scheduler: cannot reach the scheduler at", &mut seen);
    std::fs::rename(run_dir.join("away"), &socket).unwrap();
    // It is told again that the service waits, and goes on to wait.
    let before = double.asked().len();
    let deadline = Instant::now() + PATIENCE;
    while double.asked().len() < before + 2 {
        assert!(Instant::now() < deadline, "it no longer asks");
        std::thread::sleep(POLL);
    }
    child.kill().unwrap();
    child.wait().unwrap();
}

#[test]
fn a_refused_deploy_shows_the_schedulers_words_and_hint() {
    let double = with_manifest(&[(
        "PUT /v1/apps/shop",
        refusal(422, "cannot_fit", "api: 3 nodes: 3 short of memory", Some("lower its reservation")),
    )]);
    let ended = double.run(&["up"], "");
    assert_eq!(ended.code, Some(1));
    assert_eq!(ended.stderr, "gantry: api: 3 nodes: 3 short of memory\nhint: lower its reservation\n");
}

#[test]
fn a_manifest_is_read_from_stdin_from_files_and_from_above() {
    let double = with_manifest(&[("PUT /v1/apps/other", json(&plan(ChangeAction::Create, 7)))]);
    let ended = double.run(&["up", "-d", "-f", "-"], &MANIFEST.replace("name: shop", "name: other"));
    assert_eq!(ended.code, Some(0), "{}", ended.stderr);
    let ended = double.run(&["up", "-d", "-f", "compose.yaml", "-p", "other"], "");
    assert_eq!(ended.code, Some(0), "{}", ended.stderr);
    let deep = double.run_dir().join("a/b");
    std::fs::create_dir_all(&deep).unwrap();
    let ended = run(double.run_dir(), &deep, &["up", "-d", "-p", "other"], "");
    assert_eq!(ended.code, Some(0), "{}", ended.stderr);
    assert_eq!(lines(&double.asked()), ["PUT /v1/apps/other"; 3]);
}

#[test]
fn a_wrong_manifest_is_told_with_its_place_and_nothing_is_asked() {
    let double = Double::new(&[]);
    std::fs::write(double.run_dir().join("compose.yaml"), "services:\n  api:\n    imagee: api:1\n").unwrap();
    let ended = double.run(&["up"], "");
    assert_eq!(ended.code, Some(1));
    assert!(ended.stderr.contains("compose.yaml:3:") && ended.stderr.contains("imagee"), "{}", ended.stderr);
    assert!(ended.stderr.contains("hint: docs/manifest.md"), "{}", ended.stderr);
    let ended = double.run(&["up", "-f", "nothing.yaml"], "");
    assert_eq!(ended.code, Some(1));
    assert!(ended.stderr.contains("/nothing.yaml: ") && ended.stderr.contains("hint: name the"), "{}", ended.stderr);
    assert!(double.asked().is_empty());
    let elsewhere = tempfile::tempdir().unwrap();
    let ended = run(double.run_dir(), elsewhere.path(), &["up"], "");
    assert_eq!(ended.code, Some(1));
    assert!(ended.stderr.contains("there is no compose.yaml in"), "{}", ended.stderr);
}

#[test]
fn plan_shows_changes_and_makes_none() {
    let double = with_manifest(&[("PUT /v1/apps/shop?dry_run=true", json(&plan(ChangeAction::Replace, 0)))]);
    let ended = double.run(&["plan"], "");
    assert_eq!(ended.code, Some(0), "{}", ended.stderr);
    assert_eq!(ended.stdout, "~ api (replaces its replicas)\n    image: api:0 → api:1\n1 to replace\n");
    let ended = double.run(&["plan", "--json"], "");
    assert_eq!(serde_json::from_str::<Plan>(&ended.stdout).unwrap(), plan(ChangeAction::Replace, 0));
}

#[test]
fn down_waits_until_no_replica_is_left() {
    let left = json(&[replica("api", 1, ReplicaState::Stopping)]);
    let double = with_manifest(&[
        ("DELETE /v1/apps/shop?volumes=true", json(&plan(ChangeAction::Remove, 8))),
        ("GET /v1/replicas?app=shop", left),
        ("GET /v1/replicas?app=shop", json(&Vec::<Replica>::new())),
        ("DELETE /v1/apps/shop", json(&plan(ChangeAction::Remove, 8))),
    ]);
    let ended = double.run(&["down", "-v"], "");
    assert_eq!(ended.code, Some(0), "{}", ended.stderr);
    assert_eq!(ended.stderr, "shop: 1 replica left\nshop is removed (1 service)\n");
    let ended = double.run(&["down", "shop", "--detach"], "");
    assert_eq!((ended.code, ended.stderr.as_str()), (Some(0), "shop is being removed (1 service)\n"));
    let ended = double.run(&["down", "blog"], "");
    assert_eq!(ended.code, Some(1));
    assert!(ended.stderr.contains("hint: `gantry apps`"), "{}", ended.stderr);
}

#[test]
fn lists_are_tables_or_json_or_names() {
    let app = detail(1, 1, 7);
    let double = Double::new(&[
        ("GET /v1/apps", json(&[&app.summary])),
        ("GET /v1/apps/shop", json(&app)),
        ("GET /v1/replicas", replicas()),
        ("GET /v1/nodes", json(&[node("n2"), node("n1")])),
    ]);
    let run = |args: &[&str]| {
        let ended = double.run(args, "");
        assert_eq!(ended.code, Some(0), "{args:?}: {}", ended.stderr);
        ended
    };
    let apps = "NAME   SERVICES   READY   STATUS    PORTS\nshop   1          1/1     settled   8080->80/tcp\n";
    assert_eq!(run(&["apps"]).stdout, apps);
    assert_eq!(run(&["ls"]).stdout, apps);
    assert_eq!(run(&["apps", "-q"]).stdout, "shop\n");
    let parsed: Vec<AppSummary> = serde_json::from_str(&run(&["apps", "--json"]).stdout).unwrap();
    assert_eq!(parsed, std::slice::from_ref(&app.summary));
    assert!(run(&["apps", "shop"]).stdout.starts_with("SERVICE   IMAGE   READY"));

    assert_eq!(run(&["ps", "-q"]).stdout, "shop-api-1-000001\nshop-api-2-000002\nshop-db-1-000001\n");
    assert_eq!(run(&["ps", "shop", "-q"]).stdout, "shop-api-1-000001\n", "what ended well is left out");
    assert_eq!(run(&["ps", "shop", "-aq"]).stdout, "shop-api-1-000001\nshop-job-1-000001\n");
    assert!(run(&["ps"]).stdout.contains("\nshop-api-1   api:1   n1     Preparing   0          10.210.0.10\n"));
    let parsed: Vec<Replica> = serde_json::from_str(&run(&["ps", "--json"]).stdout).unwrap();
    assert_eq!(parsed.len(), 3);

    let nodes = run(&["node", "ls"]);
    let names: Vec<&str> = nodes.stdout.lines().map(|line| line.split_whitespace().next().unwrap()).collect();
    assert_eq!(names, ["NAME", "n1", "n2"]);
    assert_eq!(nodes.stderr, "n1: no nftables\nn2: no nftables\n");
    let parsed: Vec<Node> = serde_json::from_str(&run(&["node", "ls", "--json"]).stdout).unwrap();
    assert_eq!(parsed, [node("n1"), node("n2")]);
}

#[test]
fn ps_of_an_unknown_app_is_an_error() {
    let double = Double::new(&[("GET /v1/apps/blog", refusal(404, "not_found", "there is no app blog", None))]);
    let ended = double.run(&["ps", "blog"], "");
    assert_eq!(
        (ended.code, ended.stderr.as_str()),
        (
            Some(1),
            "gantry: there is no app blog\nhint: `gantry apps`, `gantry ps -a` and `gantry node ls` list what there is\n"
        )
    );
}

#[test]
fn logs_carry_the_replica_in_front() {
    let all = log("api", 1, "started") + &log("worker", 10, "  busy") + &log("db", 1, "ready");
    let app = [&detail(1, 1, 7).summary].map(Clone::clone);
    let double = Double::new(&[
        ("GET /v1/replicas", replicas()),
        ("GET /v1/apps", json(&app)),
        ("GET /v1/logs?app=shop", Answer::Body(200, all.clone())),
        ("GET /v1/logs?app=shop&service=api&follow=true&tail=5", Answer::Body(200, log("api", 1, "one"))),
        ("GET /v1/logs?app=shop&replica=shop-api-2-000002", Answer::Body(200, log("api", 2, "mine"))),
    ]);
    let run = |args: &[&str]| {
        let ended = double.run(args, "");
        assert_eq!(ended.code, Some(0), "{args:?}: {}", ended.stderr);
        ended.stdout
    };
    assert_eq!(run(&["logs", "shop"]), "api-1 | started\nworker-10 |   busy\ndb-1      | ready\n");
    assert_eq!(run(&["logs", "shop", "api", "db"]), "api-1 | started\ndb-1  | ready\n");
    assert_eq!(run(&["logs", "-f", "-n", "5", "shop", "api"]), "api-1 | one\n");
    assert_eq!(run(&["logs", "shop-api-2"]), "mine\n");
    assert_eq!(run(&["logs", "-t", "shop-api-2"]), "2026-11-24T08:00:00.000000001Z mine\n");
    let ended = double.run(&["logs", "blog"], "");
    assert_eq!(ended.code, Some(1));
    assert!(ended.stderr.starts_with("gantry: there is no replica or service `blog`\nhint: "), "{}", ended.stderr);
}

#[test]
fn a_reader_that_leaves_early_is_no_error() {
    let many = log("api", 1, &"x".repeat(1000)).repeat(2000);
    let app = [&detail(1, 1, 7).summary].map(Clone::clone);
    let double = Double::new(&[
        ("GET /v1/replicas", replicas()),
        ("GET /v1/apps", json(&app)),
        ("GET /v1/logs?app=shop", Answer::Body(200, many)),
    ]);
    let mut child = gantry(double.run_dir(), double.run_dir(), &["logs", "shop"]).spawn().unwrap();
    let mut first = [0; 8];
    let mut stdout = child.stdout.take().unwrap();
    stdout.read_exact(&mut first).unwrap();
    drop(stdout);
    let ended: double::Ended = child.wait_with_output().unwrap().into();
    assert_eq!((ended.code, ended.stderr.as_str()), (Some(0), ""));
}

#[test]
fn exec_carries_streams_and_the_exit_code() {
    let frames = vec![Frame::Stdout(b"out".to_vec()), Frame::Stderr(b"err".to_vec()), Frame::Exit(7)];
    let double = Double::new(&[
        ("GET /v1/replicas", replicas()),
        ("POST /v1/exec", Answer::Frames(frames, Echo::Input)),
        ("POST /v1/exec", Answer::Frames(vec![Frame::Exit(0)], Echo::Nothing)),
    ]);
    let input = "line\n".repeat(20_000);
    let ended = double.run(&["exec", "-i", "-e", "A=1", "-u", "1:1", "-w", "/srv", "shop/api", "cat", "-n"], &input);
    assert_eq!((ended.code, ended.stderr.as_str()), (Some(7), "err"));
    assert!(ended.stdout == input + "out", "{} bytes", ended.stdout.len());
    let ended = double.run(&["exec", "-p", "shop", "db", "true"], "");
    assert_eq!((ended.code, ended.stdout.as_str(), ended.stderr.as_str()), (Some(0), "", ""));

    let asked: Vec<serde_json::Value> = double
        .asked()
        .iter()
        .filter(|(line, _)| line == "POST /v1/exec")
        .map(|(_, body)| serde_json::from_str(body).unwrap())
        .collect();
    let want = serde_json::json!({
        "replica": "shop-api-2-000002", "command": ["cat", "-n"], "tty": false, "stdin": true,
        "environment": ["A=1"], "user": "1:1", "working_dir": "/srv", "size": null,
    });
    assert_eq!(asked[0], want, "the first ready replica");
    assert_eq!(asked[1]["replica"], "shop-db-1-000001");
    assert_eq!(asked[1]["stdin"], false);
}

#[test]
fn exec_that_cannot_run_ends_as_docker_does() {
    let frame = |text: &str| Answer::Frames(vec![Frame::Error(text.to_owned())], Echo::Nothing);
    let double = Double::new(&[
        ("GET /v1/replicas", replicas()),
        ("POST /v1/exec", frame("cannot run `foo`: No such file or directory")),
        ("POST /v1/exec", frame("cannot run `/etc`: Permission denied")),
        ("POST /v1/exec", Answer::Frames(Vec::new(), Echo::Nothing)),
        ("POST /v1/exec", refusal(503, "unavailable", "node n1 is away", Some("wait for it"))),
    ]);
    for (code, told) in [
        (127, "gantry: cannot run `foo`: No such file or directory\n"),
        (126, "gantry: cannot run `/etc`: Permission denied\n"),
        (125, "gantry: the connection broke before the command ended: it was closed\n"),
        (125, "gantry: node n1 is away\nhint: wait for it\n"),
    ] {
        let ended = double.run(&["exec", "shop-api-2", "foo"], "");
        assert_eq!(ended.code, Some(code), "{}", ended.stderr);
        assert!(ended.stderr.starts_with(told), "{}", ended.stderr);
    }
    for args in [["exec", "shop-api-9", "sh"], ["exec", "shop-api-1", "sh"]] {
        let ended = double.run(&args, "");
        assert_eq!(ended.code, Some(125), "{}", ended.stderr);
    }
    let ended = double.run(&["exec", "-it", "shop-api-2", "sh"], "");
    assert_eq!(ended.code, Some(125));
    assert!(ended.stderr.contains("standard input is not a terminal"), "{}", ended.stderr);
    assert_eq!(double.run(&["exec", "shop-api-2"], "").code, Some(2), "no command");
}

/// Reads from a terminal's other end until `text` has come.
fn read_until(terminal: &mut std::fs::File, text: &str) -> String {
    let mut seen = Vec::new();
    let mut chunk = [0; 256];
    while !String::from_utf8_lossy(&seen).contains(text) {
        let read = terminal.read(&mut chunk).unwrap();
        assert_ne!(read, 0, "{text} not in {}", String::from_utf8_lossy(&seen));
        seen.extend_from_slice(&chunk[..read]);
    }
    String::from_utf8_lossy(&seen).into_owned()
}

#[test]
fn exec_on_a_terminal_passes_keys_and_size_and_restores_it() {
    use nix::sys::termios::{LocalFlags, tcgetattr};
    let double = Double::new(&[
        ("GET /v1/replicas", replicas()),
        ("POST /v1/exec", Answer::Frames(vec![Frame::Exit(5)], Echo::Keys)),
    ]);
    let size = |columns, rows| nix::pty::Winsize { ws_col: columns, ws_row: rows, ws_xpixel: 0, ws_ypixel: 0 };
    let pty = nix::pty::openpty(Some(&size(80, 24)), None).unwrap();
    let mut command = gantry(double.run_dir(), double.run_dir(), &["exec", "-it", "shop-api-2", "sh"]);
    command.stdin(pty.slave.try_clone().unwrap()).stdout(pty.slave.try_clone().unwrap());
    let mut child = command.spawn().unwrap();
    let mut keys = std::fs::File::from(pty.master);
    let cooked =
        |terminal: &std::os::fd::OwnedFd| tcgetattr(terminal).unwrap().local_flags.contains(LocalFlags::ICANON);
    let until = |what: &str, state: &dyn Fn() -> bool| {
        let deadline = Instant::now() + PATIENCE;
        while !state() {
            assert!(Instant::now() < deadline, "{what}");
            std::thread::sleep(POLL);
        }
    };

    until("raw mode", &|| !cooked(&pty.slave));
    keys.write_all(b"ls\r").unwrap();
    read_until(&mut keys, "ls\r");
    rustix::termios::tcsetwinsize(
        &keys,
        rustix::termios::Winsize { ws_col: 100, ws_row: 30, ws_xpixel: 0, ws_ypixel: 0 },
    )
    .unwrap();
    let pid = nix::unistd::Pid::from_raw(i32::try_from(child.id()).unwrap());
    nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGWINCH).unwrap();
    until("the new size", &|| double.asked().contains(&("frame".to_owned(), "Resize(100, 30)".to_owned())));
    keys.write_all(b"\x03").unwrap();

    assert_eq!(child.wait().unwrap().code(), Some(5), "Ctrl-C is a key for the command");
    assert!(cooked(&pty.slave), "the terminal is as it was");
    let (_, body) = double.asked().into_iter().find(|(line, _)| line == "POST /v1/exec").unwrap();
    let body: serde_json::Value = serde_json::from_str(&body).unwrap();
    assert_eq!((&body["tty"], &body["size"]), (&serde_json::json!(true), &serde_json::json!([80, 24])));
}

#[test]
fn exec_without_a_terminal_passes_signals_on_and_a_third_interrupt_leaves() {
    let double = Double::new(&[
        ("GET /v1/replicas", replicas()),
        ("POST /v1/exec", Answer::Frames(vec![Frame::Exit(0)], Echo::Keys)),
    ]);
    let mut child = gantry(double.run_dir(), double.run_dir(), &["exec", "-i", "shop-api-2", "sh"]).spawn().unwrap();
    let mut stdin = child.stdin.take().unwrap();
    stdin.write_all(b"x").unwrap();
    let mut echoed = [0];
    child.stdout.as_mut().unwrap().read_exact(&mut echoed).unwrap();
    let pid = nix::unistd::Pid::from_raw(i32::try_from(child.id()).unwrap());
    for number in 1..=3 {
        nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGINT).unwrap();
        let signals = || double.asked().iter().filter(|(_, frame)| frame == "Signal(2)").count();
        let deadline = Instant::now() + PATIENCE;
        while number < 3 && signals() < number {
            assert!(Instant::now() < deadline, "signal {number}");
            std::thread::sleep(POLL);
        }
    }
    let ended: double::Ended = child.wait_with_output().unwrap().into();
    assert_eq!(ended.code, Some(130));
    assert_eq!(ended.stderr, "gantry: interrupted; the command is ended with the connection\n");
    drop(stdin);
}

#[test]
fn scale_records_numbers_and_waits_when_told() {
    let double = Double::new(&[
        ("PUT /v1/apps/shop/services/api/replicas", json(&plan(ChangeAction::Update, 9))),
        ("PUT /v1/apps/shop/services/web/replicas", json(&plan(ChangeAction::Update, 8))),
        ("GET /v1/apps/shop", json(&detail(1, 3, 9))),
        ("GET /v1/apps/shop", json(&detail(3, 3, 9))),
    ]);
    let ended = double.run(&["scale", "shop", "api=3", "web=0"], "");
    assert_eq!((ended.code, ended.stderr.as_str()), (Some(0), "shop/api: 3 wanted\nshop/web: 0 wanted\n"));
    assert_eq!(double.asked()[0].1, "{\"replicas\":3}");
    let ended = double.run(&["scale", "api=3", "-p", "shop", "--wait"], "");
    assert_eq!(ended.code, Some(0), "{}", ended.stderr);
    assert!(ended.stderr.ends_with("api: 3/3 ready\n"), "{}", ended.stderr);
    assert_eq!(double.run(&["scale", "shop"], "").code, Some(2));
    assert_eq!(double.run(&["scale", "blog", "api=1"], "").code, Some(1));
}

#[test]
fn inspect_finds_apps_replicas_and_nodes() {
    let app = detail(1, 1, 7);
    let double = Double::new(&[
        ("GET /v1/apps/shop", json(&app)),
        ("GET /v1/replicas", replicas()),
        ("GET /v1/nodes", json(&[node("n1")])),
    ]);
    let inspect = |name: &str| -> serde_json::Value {
        let ended = double.run(&["inspect", name], "");
        assert_eq!(ended.code, Some(0), "{name}: {}", ended.stderr);
        serde_json::from_str(&ended.stdout).unwrap()
    };
    assert_eq!(inspect("shop"), serde_json::to_value(&app).unwrap());
    assert_eq!(inspect("shop-api-2")["id"], "shop-api-2-000002");
    assert_eq!(inspect("shop-api-2-000002")["id"], "shop-api-2-000002");
    assert_eq!(inspect("n1"), serde_json::to_value(node("n1")).unwrap());
    assert_eq!(inspect("0123456789abcdef")["name"], "n1");
    let ended = double.run(&["inspect", "nothing"], "");
    assert_eq!(ended.code, Some(1));
    assert!(ended.stderr.starts_with("gantry: there is no app, replica or node `nothing`\n"), "{}", ended.stderr);
    assert_eq!(double.run(&["inspect", "--type", "node", "shop"], "").code, Some(1));
}

#[test]
fn node_rm_forgets_nodes() {
    let double = Double::new(&[("DELETE /v1/nodes/n2", json(&()))]);
    let ended = double.run(&["node", "rm", "n2"], "");
    assert_eq!((ended.code, ended.stdout.as_str()), (Some(0), "n2\n"));
    assert_eq!(double.run(&["node", "rm", "n3"], "").code, Some(1));
}

#[test]
fn a_token_comes_with_the_command_that_uses_it() {
    let token = format!("GANTRY-1-{}-secret", "0a".repeat(32));
    let double = Double::new(&[
        ("POST /v1/tokens", json(&Token { token: token.clone(), expires_at_ms: 1500 })),
        ("GET /v1/nodes", json(&[node("n1")])),
    ]);
    let ended = double.run(&["token", "create", "--ttl", "90m", "--server", "192.0.2.9"], "");
    assert_eq!(ended.code, Some(0), "{}", ended.stderr);
    assert_eq!(ended.stdout, format!("gantry join 192.0.2.9 --token {token}\n"));
    assert_eq!(double.asked()[0], ("POST /v1/tokens".to_owned(), "{\"ttl_s\":5400}".to_owned()));
    assert_eq!(double.run(&["token", "create", "-q"], "").stdout, format!("{token}\n"));
    let ended = double.run(&["token", "create"], "");
    assert_eq!(ended.code, Some(1), "none of the nodes is on this host");
    assert!(ended.stderr.contains("hint: name it: `gantry token create --server HOST:PORT`"), "{}", ended.stderr);
    std::fs::write(double.run_dir().join("gantry.address"), "192.0.2.1:7400\n").unwrap();
    let ended = double.run(&["token", "create"], "");
    assert_eq!(ended.stdout, format!("gantry join 192.0.2.1:7400 --token {token}\n"));
}

#[test]
fn events_are_listed_and_followed() {
    let event = Event {
        sequence: 1,
        at_ms: 1500,
        revision: Revision(3),
        kind: "node.lost".to_owned(),
        subject: "n2".to_owned(),
        message: "silent for 3s".to_owned(),
    };
    let one = serde_json::to_string(&event).unwrap();
    let stream = format!(": hello\n\nid: 1\nevent: x\ndata: {one}\n\ndata:{one}\n\n");
    let double =
        Double::new(&[("GET /v1/events", json(&[&event])), ("GET /v1/events?follow=true", Answer::Body(200, stream))]);
    let line = "1970-01-01T00:00:01.500Z  node.lost           n2: silent for 3s\n";
    assert_eq!(double.run(&["events"], "").stdout, line);
    assert_eq!(double.run(&["events", "-f"], "").stdout, line.repeat(2));
    assert_eq!(double.run(&["events", "-f", "--json"], "").stdout, format!("{one}\n{one}\n"));
    assert_eq!(serde_json::from_str::<Vec<Event>>(&double.run(&["events", "--json"], "").stdout).unwrap(), [event]);
}

#[test]
fn version_tells_both_sides() {
    let server = Version { version: "9.9.9".to_owned(), api: "v1".to_owned() };
    let double = Double::new(&[("GET /v1/version", json(&server))]);
    let ended = double.run(&["version"], "");
    assert_eq!(ended.code, Some(0), "{}", ended.stderr);
    let lines: Vec<&str> = ended.stdout.lines().collect();
    assert!(lines[0].starts_with(&format!("client  {} (linux, ", env!("CARGO_PKG_VERSION"))), "{}", lines[0]);
    assert!(lines[1].starts_with("server  9.9.9 (API v1) at /"), "{}", lines[1]);
    let value: serde_json::Value = serde_json::from_str(&double.run(&["version", "--json"], "").stdout).unwrap();
    assert_eq!(value["server"]["version"], "9.9.9");

    let nowhere = tempfile::tempdir().unwrap();
    let ended = run(nowhere.path(), nowhere.path(), &["version"], "");
    assert_eq!(ended.code, Some(1));
    assert!(ended.stdout.starts_with("client  ") && ended.stdout.lines().count() == 1, "{}", ended.stdout);
}

#[test]
fn without_a_scheduler_there_is_one_clear_error() {
    let nowhere = tempfile::tempdir().unwrap();
    std::fs::write(nowhere.path().join("compose.yaml"), MANIFEST).unwrap();
    let socket = nowhere.path().join("gantry.sock");
    let want = format!(
        "gantry: cannot reach the scheduler at {}: No such file or directory (os error 2)\n\
         hint: start one with `gantry server` (this host as a cluster) or `gantry lab up` (a cluster on this machine)\n",
        socket.display()
    );
    for (args, code) in [
        (vec!["up"], 1),
        (vec!["down", "shop"], 1),
        (vec!["plan"], 1),
        (vec!["apps"], 1),
        (vec!["ps"], 1),
        (vec!["logs", "shop"], 1),
        (vec!["exec", "shop-api-1", "sh"], 125),
        (vec!["scale", "shop", "api=1"], 1),
        (vec!["node", "ls"], 1),
        (vec!["inspect", "shop"], 1),
        (vec!["token", "create"], 1),
        (vec!["events"], 1),
    ] {
        let ended = run(nowhere.path(), nowhere.path(), &args, "");
        // These two look among the containers of this host first.
        let want = match args[0] {
            "logs" | "exec" => {
                want.replace("cannot", &format!("`{}` is no container of this host, and cannot", args[1]))
            }
            _ => want.clone(),
        };
        assert_eq!(
            (ended.code, ended.stdout.as_str(), ended.stderr.as_str()),
            (Some(code), "", want.as_str()),
            "{args:?}"
        );
    }
}

#[test]
fn what_is_no_scheduler_is_told_apart() {
    let double = Double::new(&[
        ("GET /v1/nodes", Answer::Body(200, "<html>".to_owned())),
        ("GET /v1/apps", Answer::Body(502, "bad gateway".to_owned())),
    ]);
    for (args, detail) in [(["node", "ls"], "expected value"), (["apps", "-q"], "status 502 Bad Gateway")] {
        let ended = double.run(&args, "");
        assert_eq!(ended.code, Some(1));
        assert!(ended.stderr.contains("does not speak Gantry's API"), "{}", ended.stderr);
        assert!(ended.stderr.contains(detail), "{}", ended.stderr);
    }
}

#[test]
fn completion_is_a_script_of_the_shell() {
    let here = Path::new("/");
    for (shell, part) in [("bash", "complete -F _gantry"), ("zsh", "#compdef gantry"), ("fish", "complete -c gantry")] {
        let ended = run(here, here, &["completion", shell], "");
        assert_eq!(ended.code, Some(0), "{}", ended.stderr);
        assert!(ended.stdout.contains(part) && ended.stdout.contains("token"), "{shell}");
    }
}

#[test]
fn wrong_usage_ends_with_2_and_help_with_0() {
    let here = Path::new("/");
    for (args, code) in
        [(vec![], 2), (vec!["nonsense"], 2), (vec!["ps", "A.B"], 2), (vec!["--help"], 0), (vec!["up", "-h"], 0)]
    {
        assert_eq!(run(here, here, &args, "").code, Some(code), "{args:?}");
    }
}

#[test]
fn a_full_disk_is_an_error() {
    let double = Double::new(&[("GET /v1/nodes", json(&[node("n1")]))]);
    let mut command = gantry(double.run_dir(), double.run_dir(), &["node", "ls"]);
    command.stdout(std::fs::File::options().write(true).open("/dev/full").unwrap());
    let mut child = command.spawn().unwrap();
    child.stdin.take().unwrap().flush().unwrap();
    let ended: double::Ended = child.wait_with_output().unwrap().into();
    assert_eq!(ended.code, Some(1));
    assert!(ended.stderr.starts_with("gantry: cannot write to standard output: "), "{}", ended.stderr);
}
