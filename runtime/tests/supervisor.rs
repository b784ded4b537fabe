//! The supervisor: output, rotation, exit file, and its own death.

mod common;

use common::{Bed, id, runs, signal, until};
use serde_json::{Value, json};
use std::fs;

/// Create a supervised container; returns its id.
fn create(bed: &Bed, word: &str, extra: &[&str]) -> String {
    let name = id(word);
    let options = bed.supervised();
    let mut args = vec!["create"];
    args.extend(options.iter().map(String::as_str));
    args.extend(extra);
    args.push(&name);
    bed.ok(&args);
    name
}

/// The supervisor of a container, from its record.
fn supervisor(bed: &Bed, name: &str) -> i32 {
    let text = fs::read(bed.path("state").join(name).join("state.json")).expect("the record");
    let record: Value = serde_json::from_slice(&text).expect("JSON");
    record["supervisor"]["pid"].as_i64().expect("a supervisor") as i32
}

#[test]
fn output_is_logged_and_the_exit_recorded() {
    let bed = Bed::new("echo out; echo err >&2; printf 'no end'; exit 7");
    let name = create(&bed, "log", &[]);
    assert!(!bed.path("exit").exists());
    let pid = bed.pid(&name);
    bed.ok(&["start", &name]);
    let record = bed.exit_record();
    assert_eq!((&record["id"], &record["pid"]), (&json!(name), &json!(pid)));
    assert_eq!((&record["exit_code"], &record["signal"]), (&json!(7), &json!(null)));
    assert_eq!(record["oom_killed"], json!(false));
    for key in ["started_at", "finished_at"] {
        assert!(record[key].as_str().is_some_and(|time| time.ends_with('Z') && time.len() == 30), "{record}");
    }
    let log = fs::read_to_string(bed.path("log")).expect("the log");
    for entry in [" stdout F out\n", " stderr F err\n", " stdout P no end\n"] {
        assert!(log.contains(entry), "{entry}: {log}");
    }
    assert_eq!(bed.status(&name), "stopped");
    bed.ok(&["delete", &name]);
    bed.assert_gone(&name);
}

#[test]
fn a_signal_is_recorded_and_force_waits_for_the_exit_file() {
    let bed = Bed::new("sleep 1000");
    let name = create(&bed, "sig", &[]);
    bed.ok(&["start", &name]);
    bed.ok(&["delete", "--force", &name]);
    assert!(bed.path("exit").exists(), "written before delete returns");
    let record = bed.exit_record();
    assert_eq!((&record["exit_code"], &record["signal"]), (&json!(null), &json!(9)));
    bed.assert_gone(&name);
}

#[test]
fn run_detached_is_supervised_too() {
    let bed = Bed::new("echo hello");
    let options = bed.supervised();
    let name = id("rund");
    let mut args = vec!["run", "--detach"];
    args.extend(options.iter().map(String::as_str));
    args.push(&name);
    bed.ok(&args);
    assert_eq!(bed.exit_record()["exit_code"], json!(0));
    assert_eq!(bed.logged(), "hello\n");
    // And a failure to start is reported to the caller.
    let mut bad = Bed::new("");
    bad.config["process"]["args"] = json!(["nothing"]);
    let options = bad.supervised();
    let name = id("rundbad");
    let mut args = vec!["run", "--detach"];
    args.extend(options.iter().map(String::as_str));
    args.push(&name);
    let ran = bad.run(&args);
    assert!(ran.code == 127 && ran.err.contains("executable file not found"), "{ran:?}");
    bad.assert_gone(&name);
}

#[test]
fn no_byte_is_lost_over_rotations() {
    let bed = Bed::new("seq 1 20000; head -c 40000 /dev/zero | tr '\\0' x; echo");
    let name = create(&bed, "rot", &["--log-max-bytes", "200000", "--log-max-files", "9"]);
    bed.ok(&["start", &name]);
    bed.exit_record();
    let numbers: String = (1..=20_000).map(|number| format!("{number}\n")).collect();
    assert_eq!(bed.logged(), numbers + &"x".repeat(40_000) + "\n");
    assert!(bed.path("log.1").exists(), "it was rotated");
    assert!(fs::metadata(bed.path("log.1")).expect("a file").len() <= 200_000);
    let long = fs::read_to_string(bed.path("log")).expect("the log");
    assert!(long.contains(" stdout P xxx"), "a long line comes in pieces");
    assert!(long.lines().all(|line| line.len() <= 16 * 1024 + 64));
}

#[test]
fn old_files_are_dropped() {
    let bed = Bed::new("seq 1 20000");
    let name = create(&bed, "drop", &["--log-max-bytes", "50000", "--log-max-files", "3"]);
    bed.ok(&["start", &name]);
    bed.exit_record();
    assert!(bed.path("log.2").exists() && !bed.path("log.3").exists());
    assert!(bed.logged().ends_with("19999\n20000\n"));
}

#[test]
fn memory_exhaustion_is_recorded() {
    let mut bed = Bed::new("dd if=/dev/zero of=/dev/null bs=100M count=1");
    bed.config["linux"]["resources"]["memory"] = json!({"limit": 20 << 20});
    // Whoever runs the tests may be protected from such an end.
    bed.config["process"]["oomScoreAdj"] = json!(500);
    let accounts = std::path::Path::new("/sys/fs/cgroup/memory").exists()
        || fs::read_to_string("/sys/fs/cgroup/cgroup.controllers").is_ok_and(|text| text.contains("memory"));
    assert!(accounts, "this test needs a memory controller");
    let name = create(&bed, "oom", &[]);
    bed.ok(&["start", &name]);
    let record = bed.exit_record();
    assert_eq!(record["oom_killed"], json!(true), "{record}");
    let peak = record["memory_peak_bytes"].as_u64().expect("a peak");
    assert!(peak > 10 << 20 && peak <= 21 << 20, "{record}");
}

#[test]
fn the_supervisor_keeps_its_protection_to_itself() {
    let bed = Bed::new("cat /proc/self/oom_score_adj; sleep 1000");
    let name = create(&bed, "score", &[]);
    bed.ok(&["start", &name]);
    let ours = fs::read_to_string("/proc/self/oom_score_adj").expect("our score");
    until("it has told its score", || fs::read_to_string(bed.path("log")).is_ok_and(|text| text.ends_with('\n')));
    assert_eq!(bed.logged(), ours);
    // CAP_SYS_RESOURCE is bit 24; without it the supervisor cannot be protected.
    let status = fs::read_to_string("/proc/self/status").expect("our status");
    let capabilities = u64::from_str_radix(common::field(&status, "CapEff"), 16).expect("a set");
    if capabilities & 1 << 24 != 0 {
        let theirs = fs::read_to_string(format!("/proc/{}/oom_score_adj", supervisor(&bed, &name))).expect("its score");
        assert_eq!(theirs, "-999\n");
    }
    bed.ok(&["delete", "--force", &name]);
}

#[test]
fn a_terminal_is_logged_as_standard_output() {
    let mut bed = Bed::new("tty; echo err >&2");
    bed.config["process"]["terminal"] = json!(true);
    let name = create(&bed, "tty", &[]);
    bed.ok(&["start", &name]);
    bed.exit_record();
    assert_eq!(bed.logged(), "/dev/pts/0\r\nerr\r\n");
}

#[test]
fn the_supervisor_is_small_idle_and_alone() {
    let bed = Bed::new("sleep 1000");
    let name = create(&bed, "small", &[]);
    bed.ok(&["start", &name]);
    let pid = supervisor(&bed, &name);
    until("it sleeps", || {
        let status = fs::read_to_string(format!("/proc/{pid}/status")).expect("its status");
        common::field(&status, "State").starts_with('S')
    });
    let wakeups = || {
        let status = fs::read_to_string(format!("/proc/{pid}/status")).expect("its status");
        common::field(&status, "voluntary_ctxt_switches").parse::<u64>().expect("a number")
    };
    let before = wakeups();
    std::thread::sleep(std::time::Duration::from_millis(300));
    assert_eq!(wakeups(), before, "nothing wakes it");
    let fds = fs::read_dir(format!("/proc/{pid}/fd")).expect("its descriptors").count();
    assert!(fds <= 8, "{fds} descriptors");
    assert_eq!(fs::read_link(format!("/proc/{pid}/cwd")).expect("its directory"), std::path::Path::new("/"));
    bed.ok(&["delete", "--force", &name]);
}

#[test]
fn a_supervisor_that_is_killed_leaves_what_force_removes() {
    let bed = Bed::new("echo up; sleep 1000");
    let name = create(&bed, "orphan", &[]);
    bed.ok(&["start", &name]);
    let (init, keeper) = (bed.pid(&name), supervisor(&bed, &name));
    signal(keeper, 9);
    until("the supervisor is gone", || !runs(keeper));
    assert!(runs(init), "the container goes on");
    assert_eq!(bed.status(&name), "running");
    assert_eq!(bed.ok(&["exec", &name, "echo", "alive"]), "alive\n");
    bed.ok(&["delete", "--force", &name]);
    assert!(!runs(init));
    bed.assert_gone(&name);
}

#[test]
fn the_supervisor_ignores_what_ends_its_caller() {
    let bed = Bed::new("sleep 1000");
    let name = create(&bed, "stay", &[]);
    bed.ok(&["start", &name]);
    let keeper = supervisor(&bed, &name);
    for number in [1, 2, 13, 15] {
        signal(keeper, number);
    }
    assert_eq!(bed.ok(&["exec", &name, "echo", "alive"]), "alive\n");
    assert!(runs(keeper));
    bed.ok(&["delete", "--force", &name]);
    assert_eq!(bed.exit_record()["signal"], json!(9));
}

#[test]
fn a_created_container_that_is_never_started_ends_with_a_record() {
    let bed = Bed::new("true");
    let name = create(&bed, "never", &[]);
    bed.ok(&["delete", "--force", &name]);
    assert_eq!(bed.exit_record()["signal"], json!(9));
    bed.assert_gone(&name);
}

#[test]
fn started_at_is_when_start_came() {
    let bed = Bed::new("true");
    let name = create(&bed, "when", &[]);
    let state: Value = serde_json::from_str(&bed.ok(&["state", &name])).expect("JSON");
    let between = gantry_runtime::time::rfc3339(std::time::SystemTime::now());
    bed.ok(&["start", &name]);
    let record = bed.exit_record();
    let times = [&state["created"], &json!(between), &record["started_at"], &record["finished_at"]];
    let times: Vec<&str> = times.iter().map(|time| time.as_str().expect("a time")).collect();
    assert!(times.is_sorted(), "{times:?}");
}

#[test]
fn a_caller_killed_at_any_moment_leaves_what_force_removes() {
    let bed = Bed::new("sleep 1000");
    bed.save();
    let options = bed.supervised();
    for step in 0..25 {
        let name = id("caller");
        let mut args = vec!["create"];
        args.extend(options.iter().map(String::as_str));
        args.push(&name);
        let mut child = bed.command(&args).stderr(std::process::Stdio::null()).spawn().expect("the runtime");
        std::thread::sleep(std::time::Duration::from_micros(step * 900));
        let _ = child.kill();
        let _ = child.wait();
        // The supervisor may be on its way still: it either undoes its work or has finished it.
        until("nothing is left", || {
            bed.ok(&["delete", "--force", &name]);
            !bed.is_in_use() && !bed.path("state").join(&name).exists() && common::cgroups(&name).is_empty()
        });
    }
}

#[test]
fn an_exit_file_that_cannot_be_written_is_refused_at_once() {
    let bed = Bed::new("true");
    let log = bed.path("log").display().to_string();
    let name = id("noexit");
    let ran = bed.run(&["create", "--supervise", "--container-log", &log, "--exit-file", "/no/where/exit", &name]);
    assert!(ran.code == 1 && ran.err.contains("exit file: `/no/where` is not a directory"), "{ran:?}");
    // And an old one does not stand for a new container.
    fs::write(bed.path("exit"), "{}").expect("an old file");
    let name = create(&bed, "old", &[]);
    assert!(!bed.path("exit").exists());
    bed.ok(&["delete", "--force", &name]);
}
