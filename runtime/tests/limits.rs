//! Limits that hold: what the kernel does to a container that asks for more, and where its processes are counted.
//!
//! The same tests run where the controllers live in v1 and where they live in v2; those about rules that only v2 has
//! say so and do nothing elsewhere.

mod common;

use common::{Bed, id, until};
use serde_json::json;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Instant;

const ROOT: &str = "/sys/fs/cgroup";

/// Score of a process that may be killed for memory: whoever runs the tests may be protected and hand that down.
const KILLABLE: i32 = 500;

/// Directory of a cgroup where a controller counts.
fn directory(controller: &str, place: &str) -> PathBuf {
    let v1 = Path::new(ROOT).join(controller);
    if v1.is_dir() { v1.join(place) } else { Path::new(ROOT).join(place) }
}

fn read(path: &Path) -> String {
    fs::read_to_string(path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

/// The unified hierarchy when the memory and pids controllers live there.
fn unified() -> Option<&'static Path> {
    let root = Path::new(ROOT);
    let controllers = fs::read_to_string(root.join("cgroup.controllers")).unwrap_or_default();
    let has = |name| controllers.split_whitespace().any(|controller| controller == name);
    let found = has("memory") && has("pids");
    if !found {
        eprintln!("nothing to test: {ROOT} is not a unified hierarchy with its controllers");
    }
    found.then_some(root)
}

/// A cgroup directory of the test's own, removed with those below it.
struct Group(PathBuf);

impl Group {
    fn new(word: &str) -> Self {
        let path = Path::new(ROOT).join(id(word));
        fs::create_dir(&path).expect("a cgroup");
        Self(path)
    }

    fn name(&self) -> &str {
        self.0.file_name().and_then(|name| name.to_str()).expect("a name")
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        for entry in fs::read_dir(&self.0).into_iter().flatten().flatten() {
            let _ = fs::remove_dir(entry.path());
        }
        let _ = fs::remove_dir(&self.0);
    }
}

/// A process that ends with the test.
struct Sleeper(Child);

impl Sleeper {
    fn new() -> Self {
        Self(Command::new("sleep").arg("1000").stdin(Stdio::null()).spawn().expect("sleep"))
    }
}

impl Drop for Sleeper {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[test]
fn a_cpu_quota_slows_it_down() {
    let mut bed = Bed::new("while :; do :; done");
    bed.config["linux"]["resources"]["cpu"] = json!({"quota": 5_000, "period": 100_000});
    let name = id("quota");
    let place = format!("gantry-runtime/{name}");
    let used_us = || {
        let v1 = directory("cpuacct", &place).join("cpuacct.usage");
        if v1.exists() {
            return read(&v1).trim().parse::<u64>().expect("a number") / 1000;
        }
        let stat = read(&directory("cpu", &place).join("cpu.stat"));
        common::field(&stat, "usage_usec").parse().expect("a number")
    };
    bed.ok(&["run", "-d", &name]);
    // A share so small that a busy machine has it to give: from one period's full use twenty periods' more take two
    // seconds, never less.
    until("it has used its first share", || used_us() > 5_000);
    let (start, before) = (Instant::now(), used_us());
    until("it has used a tenth of a second", || used_us() > before + 100_000);
    let (wall, used) = (start.elapsed(), used_us() - before);
    let share = used as f64 / wall.as_micros() as f64;
    assert!(share < 0.07, "{share:.3} of a CPU: {used} us in {wall:?}");
    let stat = read(&directory("cpu", &place).join("cpu.stat"));
    assert!(common::field(&stat, "nr_throttled").parse::<u64>().expect("a number") > 5, "{stat}");
    eprintln!("quota 0.050, measured {share:.3} of a CPU");
    bed.ok(&["delete", "--force", &name]);
    bed.assert_gone(&name);
}

#[test]
fn more_processes_than_the_limit_are_refused() {
    let mut bed = Bed::new("for n in 1 2 3 4 5 6 7 8; do sleep 1000 & echo $n; done 2>&1");
    bed.config["linux"]["resources"]["pids"] = json!({"limit": 5});
    let ran = bed.run(&["run", &id("pids")]);
    assert!(ran.out.contains("4\n") && ran.out.contains("can't fork"), "{ran:?}");
    assert!(!ran.out.contains("6\n"), "{ran:?}");
}

#[test]
fn a_child_killed_for_lack_of_memory_is_recorded() {
    // The first process goes on and ends by itself: the exit alone would not tell.
    let mut bed = Bed::new("dd if=/dev/zero of=/dev/null bs=100M count=1; echo code $?; exit 3");
    bed.config["linux"]["resources"]["memory"] = json!({"limit": 30 << 20});
    bed.config["process"]["oomScoreAdj"] = KILLABLE.into();
    if unified().is_some() {
        // v1 has this only where the kernel was told to account for swap.
        bed.config["linux"]["resources"]["memory"]["swap"] = json!(30 << 20);
    }
    let name = id("child-oom");
    let options = bed.supervised();
    let mut args = vec!["run", "--detach", &name];
    args.extend(options.iter().map(String::as_str));
    bed.ok(&args);
    let record = bed.exit_record();
    assert_eq!((&record["exit_code"], &record["oom_killed"]), (&json!(3), &json!(true)), "{record}");
    let peak = record["memory_peak_bytes"].as_u64().expect("a peak");
    assert!(peak > 20 << 20 && peak <= 31 << 20, "{record}");
    assert!(bed.logged().contains("code 137\n"), "{}", bed.logged());
}

#[test]
fn another_process_joins_the_cgroup() {
    let mut bed = Bed::new("sleep 1000");
    bed.config["linux"]["resources"]["memory"] = json!({"limit": 40 << 20});
    bed.config["process"]["oomScoreAdj"] = KILLABLE.into();
    let name = id("joins");
    bed.ok(&["run", "-d", &name]);
    bed.ok(&["exec", "-d", "--pid-file", "second", &name, "sleep", "1000"]);
    let second = read(&bed.bundle().join("second"));
    for controller in ["memory", "pids", "cpu"] {
        let procs = read(&directory(controller, &format!("gantry-runtime/{name}")).join("cgroup.procs"));
        assert!(procs.lines().any(|pid| pid == second) && procs.lines().count() == 2, "{controller}: {procs}");
    }
    let ran = bed.run(&["exec", &name, "dd", "if=/dev/zero", "of=/dev/null", "bs=100M", "count=1"]);
    assert_eq!(ran.code, 137, "its memory counts as the container's: {ran:?}");
    bed.ok(&["delete", "--force", &name]);
    bed.assert_gone(&name);
}

#[test]
fn limits_arrive_in_a_deep_place_and_on_every_level_above() {
    let mut bed = Bed::new("sleep 1000");
    let (name, top) = (id("deep"), id("top"));
    let place = format!("{top}/a/b/{name}");
    bed.config["linux"]["cgroupsPath"] = json!(format!("/{place}"));
    bed.config["linux"]["resources"] = json!({
        "memory": {"limit": 64 << 20, "reservation": 32 << 20}, "pids": {"limit": 77},
        "cpu": {"shares": 2048, "quota": 50_000, "period": 100_000, "cpus": "0", "mems": "0"},
    });
    bed.ok(&["run", "-d", &name]);
    let value = |controller: &str, v1: &str, v2: &str| {
        let directory = directory(controller, &place);
        let v1 = directory.join(v1);
        read(&if v1.exists() { v1 } else { directory.join(v2) }).trim().to_owned()
    };
    for (controller, v1, v2, want) in [
        ("memory", "memory.limit_in_bytes", "memory.max", &["67108864"][..]),
        ("memory", "memory.soft_limit_in_bytes", "memory.low", &["33554432"]),
        ("pids", "pids.max", "pids.max", &["77"]),
        ("cpu", "cpu.shares", "cpu.weight", &["2048", "170", "173", "174"]),
        ("cpu", "cpu.cfs_quota_us", "cpu.max", &["50000", "50000 100000"]),
        ("cpuset", "cpuset.cpus", "cpuset.cpus", &["0"]),
    ] {
        let found = value(controller, v1, v2);
        assert!(want.contains(&found.as_str()), "{v1} or {v2}: {found}");
    }
    if let Some(root) = unified() {
        for above in ["", &top, &format!("{top}/a"), &format!("{top}/a/b")] {
            let handed = read(&root.join(above).join("cgroup.subtree_control"));
            for controller in ["cpu", "cpuset", "memory", "pids"] {
                assert!(handed.contains(controller), "{above}: {handed}");
            }
        }
    }
    bed.ok(&["delete", "--force", &name]);
    let mut hierarchies = vec![PathBuf::from(ROOT)];
    hierarchies.extend(fs::read_dir(ROOT).expect("cgroups").flatten().map(|entry| entry.path()));
    for hierarchy in hierarchies {
        assert!(!hierarchy.join(&place).exists(), "left in {}", hierarchy.display());
        // The parents are the caller's to keep, and here the test's to remove.
        for above in ["a/b", "a", ""] {
            let _ = fs::remove_dir(hierarchy.join(&top).join(above));
        }
    }
}

#[test]
fn a_parent_with_processes_of_its_own_is_named() {
    if unified().is_none() {
        return;
    }
    let group = Group::new("busy");
    let sleeper = Sleeper::new();
    fs::write(group.0.join("cgroup.procs"), sleeper.0.id().to_string()).expect("the process moves");
    let mut bed = Bed::new("true");
    let place = format!("{}/web", group.name());
    bed.config["linux"]["cgroupsPath"] = json!(format!("/{place}"));
    bed.config["linux"]["resources"]["memory"] = json!({"limit": 64 << 20});
    let message = bed.refuses();
    let (parent, key) = (format!("`{}` has processes of its own", group.0.display()), "linux.resources.memory.limit");
    assert!(message.contains(&parent) && message.contains(key), "{message}");
    assert!(!group.0.join("web").exists(), "taken back");
    // Without a limit there is nothing to hand down, and it runs.
    let resources = bed.config["linux"]["resources"].as_object_mut().expect("resources");
    resources.remove("memory");
    bed.says();
    drop(sleeper);
}

#[test]
fn a_place_that_hands_controllers_down_is_refused() {
    if unified().is_none() {
        return;
    }
    let group = Group::new("hands");
    let handed = read(&Path::new(ROOT).join("cgroup.subtree_control"));
    if !handed.contains("pids") {
        fs::write(Path::new(ROOT).join("cgroup.subtree_control"), "+pids").expect("handed down");
    }
    fs::write(group.0.join("cgroup.subtree_control"), "+pids").expect("handed down");
    let mut bed = Bed::new("true");
    bed.config["linux"]["cgroupsPath"] = json!(group.name());
    let message = bed.refuses();
    assert!(message.contains("hands `pids` to others below it"), "{message}");
    assert!(group.0.exists(), "it was not ours");
    // As a parent it is just right.
    bed.config["linux"]["cgroupsPath"] = json!(format!("{}/web", group.name()));
    bed.config["linux"]["resources"]["pids"] = json!({"limit": 9});
    bed.says();
}

#[test]
fn a_container_that_makes_cgroups_of_its_own_can_be_entered_and_removed() {
    if unified().is_none() {
        return;
    }
    let mut bed = Bed::new(
        "cd /sys/fs/cgroup && mkdir in other other/deep && echo 1 > in/cgroup.procs && echo +pids > cgroup.subtree_control &&
         echo 9 > in/pids.max && echo arranged > /dev/shm/arranged; sleep 1000",
    );
    for mount in bed.config["mounts"].as_array_mut().expect("mounts") {
        if mount["type"] == "cgroup" {
            mount["options"] = json!(["nosuid", "noexec", "nodev"]);
        }
    }
    let name = id("inner");
    bed.ok(&["run", "-d", &name]);
    // Until it has moved its first process away, `exec` is in the same directory and would keep it busy; so look from
    // outside.
    let inner = Path::new(ROOT).join("gantry-runtime").join(&name);
    until("it has arranged its cgroups", || {
        fs::read_to_string(inner.join("in/pids.max")).is_ok_and(|text| text == "9\n")
    });
    assert_eq!(bed.ok(&["exec", &name, "cat", "/proc/self/cgroup"]), "0::/in\n");
    bed.ok(&["delete", "--force", &name]);
    bed.assert_gone(&name);
}
