//! The runtime killed with SIGKILL at every system call of every command: `delete --force` cleans up what is left, and
//! the same container can be made again.
//!
//! `strace` lists the system calls of a command that comes through, and then injects the signal at each of them. Usually
//! every [`STRIDE`]th is tried; with `GANTRY_TEST_EVERY_SYSCALL=1` all of them.

mod common;

use common::{Bed, Ran, finish, id, runs, signal, until, wait};
use serde_json::json;
use std::fs;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

/// Distance of the system calls that are usually tried; odd and no divisor of anything, so that loops are not always
/// met at the same place.
const STRIDE: usize = 23;
/// How long one case may usually take. Where it ends is no matter of right or wrong.
const BUDGET: Duration = Duration::from_secs(5);

/// What is killed, and how it is prepared.
struct Case {
    name: &'static str,
    /// Commands before, which must succeed.
    before: &'static [&'static [&'static str]],
    /// The command that is killed.
    killed: &'static [&'static str],
    /// Have a supervisor.
    supervised: bool,
    /// Kill every process of it at its own Nth call, and not only the one that was started.
    all: bool,
}

fn strace_is_there() -> bool {
    let found = Command::new("strace").arg("-V").stdout(Stdio::null()).stderr(Stdio::null()).status().is_ok();
    if !found {
        eprintln!("nothing to test: apt-get install strace");
    }
    found
}

/// Where mounts of this bed would show.
fn mounts(bed: &Bed) -> usize {
    let table = fs::read_to_string("/proc/self/mountinfo").expect("mounts");
    let (bundle, root) = (bed.bundle().display().to_string(), bed.path("state").display().to_string());
    table.lines().filter(|line| line.contains(&bundle) || line.contains(&root)).count()
}

/// Remove by force; then nothing is left.
fn clean_up(bed: &Bed, name: &str, why: &str) {
    let ran = bed.run(&["delete", "--force", name]);
    assert_eq!(ran.code, 0, "{why}: {}", ran.err);
    bed.assert_gone(name);
    until(&format!("no process is left {why}"), || !bed.is_in_use());
    assert_eq!(mounts(bed), 0, "{why}");
    // A process that was on its way into a cgroup must not have come after the removal.
    bed.assert_gone(name);
}

/// A point in a process: the Nth call of that name.
type Point = (String, usize);

impl Case {
    fn sweep(&self) {
        if !strace_is_there() {
            return;
        }
        let every = std::env::var_os("GANTRY_TEST_EVERY_SYSCALL").is_some();
        let begun = Instant::now();
        let mut bed = Bed::new("exec sleep 100000");
        if self.name == "run" {
            bed.config["process"]["args"] = json!(["true"]);
        }
        bed.save();
        let points = self.points(&bed);
        let (mut killed, mut came_through) = (0, 0);
        for (name, number) in points.iter().step_by(if every { 1 } else { STRIDE }) {
            let inject = format!("inject={name}:signal=SIGKILL:when={number}");
            let container = id("killed");
            let ran = self.attempt(&bed, &container, &["-qqq", "-o", "/dev/null", "-e", &inject]);
            let why = format!("after call {number} of {name} in {}: {ran:?}", self.name);
            clean_up(&bed, &container, &why);
            // A call more or less than before is possible, so some come through.
            *if ran.code == 0 { &mut came_through } else { &mut killed } += 1;
            // It works as if nothing had happened.
            bed.ok(&["create", &container]);
            clean_up(&bed, &container, &why);
            if !every && begun.elapsed() > BUDGET {
                break;
            }
        }
        let all = points.len();
        eprintln!(
            "{}: killed at {killed} of {all} system calls, {came_through} came through, {:?}",
            self.name,
            begun.elapsed()
        );
        assert!(killed > came_through, "it was killed");
    }

    /// Every system call of the command when nothing happens, and of its children if they are meant, too.
    fn points(&self, bed: &Bed) -> Vec<Point> {
        let container = id("traced");
        let trace = bed.path("trace");
        let how: &[&str] = if self.all { &["-ff"] } else { &[] };
        let path = trace.display().to_string();
        let ran = self.attempt(bed, &container, &[how, &["-qqq", "-o", &path]].concat());
        assert_eq!(ran.code, 0, "{}", ran.err);
        clean_up(bed, &container, "after tracing");
        let mut points = Vec::new();
        let files = fs::read_dir(bed.path("")).expect("files").flatten();
        for file in files.filter(|file| file.file_name().to_string_lossy().starts_with("trace")) {
            let mut counts = std::collections::HashMap::new();
            for line in fs::read_to_string(file.path()).expect("a trace").lines() {
                let Some((name, _)) = line.split_once('(') else { continue };
                let number = counts.entry(name.to_owned()).or_insert(0);
                *number += 1;
                // Calls that begin with `<` or `+` are no calls.
                let is_name = name.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'_');
                if is_name && !points.contains(&(name.to_owned(), *number)) {
                    points.push((name.to_owned(), *number));
                }
            }
            fs::remove_file(file.path()).expect("removed");
        }
        points
    }

    /// Prepare, then run the command below strace.
    fn attempt(&self, bed: &Bed, container: &str, strace: &[&str]) -> Ran {
        let with_id = |args: &[&str]| -> Vec<String> {
            let mut line: Vec<String> = args.iter().map(|arg| arg.replace("ID", container)).collect();
            if matches!(args[0], "create" | "run") && self.supervised {
                line.splice(1..1, bed.supervised());
            }
            line
        };
        for args in self.before {
            let line = with_id(args);
            bed.ok(&line.iter().map(String::as_str).collect::<Vec<_>>());
        }
        // The tracer in the background: it stays until the last process has ended.
        let mut command = Command::new("strace");
        command.arg("-D").args(if self.all { &["-f"][..] } else { &[] }).args(strace);
        command.arg(env!("CARGO_BIN_EXE_gantry-runtime")).arg("--root").arg(bed.path("state"));
        finish(command.args(with_id(self.killed)).current_dir(bed.bundle()).stdin(Stdio::null()))
    }
}

macro_rules! cases {
    ($($test:ident: $name:literal, $before:expr, $killed:expr, $supervised:expr, $all:expr;)*) => {$(
        #[test]
        fn $test() {
            Case { name: $name, before: $before, killed: $killed, supervised: $supervised, all: $all }.sweep();
        }
    )*};
}

cases! {
    create: "create", &[], &["create", "ID"], false, false;
    create_and_its_child: "create and its child", &[], &["create", "ID"], false, true;
    create_with_a_supervisor: "create with a supervisor", &[], &["create", "ID"], true, true;
    start: "start", &[&["create", "ID"]], &["start", "ID"], false, false;
    run: "run", &[], &["run", "ID"], false, false;
    run_and_its_child: "run", &[], &["run", "ID"], false, true;
    delete: "delete", &[&["run", "-d", "ID"]], &["delete", "--force", "ID"], false, false;
    delete_with_a_supervisor: "delete", &[&["run", "-d", "ID"]], &["delete", "--force", "ID"], true, false;
    exec: "exec", &[&["run", "-d", "ID"]], &["exec", "ID", "true"], false, false;
    exec_and_its_child: "exec", &[&["run", "-d", "ID"]], &["exec", "ID", "true"], false, true;
}

#[test]
fn a_supervisor_killed_at_any_moment() {
    let bed = Bed::new("i=0; while :; do i=$((i+1)); echo $i; done");
    bed.save();
    for step in 0..12 {
        let name = id("supervisor");
        let supervised = bed.supervised();
        let mut args = vec!["run", "--detach", name.as_str()];
        args.extend(supervised.iter().map(String::as_str));
        // While it is made, and while it runs.
        let child = bed.command(&args).stdout(Stdio::null()).stderr(Stdio::null()).spawn().expect("the runtime");
        let mut child = Some(child);
        match child.take_if(|_| step % 2 == 0) {
            Some(child) => drop(wait(child)),
            None => std::thread::sleep(Duration::from_millis(step)),
        }
        let file = bed.path("state").join(&name).join("state.json");
        let record = fs::read(&file).unwrap_or_default();
        let record: serde_json::Value = serde_json::from_slice(&record).unwrap_or_default();
        if let Some(pid) = record["supervisor"]["pid"].as_i64().filter(|&pid| runs(pid as i32)) {
            let _ = Command::new("kill").args(["-KILL", &pid.to_string()]).stderr(Stdio::null()).status();
            until("it is dead", || !runs(pid as i32));
        }
        child.map(wait);
        clean_up(&bed, &name, &format!("supervisor killed at step {step}"));
    }
}

#[test]
fn an_init_killed_before_its_start_is_reported() {
    let bed = Bed::new("true");
    let name = id("init");
    bed.ok(&["create", &name]);
    signal(bed.pid(&name), 9);
    bed.wait_for_status(&name, "stopped");
    let ran = bed.run(&["start", &name]);
    assert!(ran.code == 1 && ran.err.contains("stopped"), "{ran:?}");
    bed.ok(&["delete", &name]);
    bed.assert_gone(&name);
}
