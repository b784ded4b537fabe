//! `update`: limits that change while the container runs.

mod common;

use common::{Bed, id};
use serde_json::{Value, json};
use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::Stdio;

const ROOT: &str = "/sys/fs/cgroup";

/// A container with limits that runs.
struct Limited {
    bed: Bed,
    name: String,
}

impl Limited {
    fn new(resources: Value) -> Self {
        let mut bed = Bed::new("sleep 1000");
        for (key, value) in resources.as_object().expect("an object") {
            bed.config["linux"]["resources"][key] = value.clone();
        }
        let name = id("update");
        bed.ok(&["run", "-d", &name]);
        Self { bed, name }
    }

    /// A file of a controller, by its name on v1 or on v2.
    fn file(&self, controller: &str, v1: &str, v2: &str) -> PathBuf {
        let place = format!("gantry-runtime/{}", self.name);
        let directory = Path::new(ROOT).join(controller);
        if directory.is_dir() { directory.join(place).join(v1) } else { Path::new(ROOT).join(place).join(v2) }
    }

    fn reads(&self, controller: &str, v1: &str, v2: &str) -> String {
        let file = self.file(controller, v1, v2);
        fs::read_to_string(&file).unwrap_or_else(|error| panic!("{}: {error}", file.display())).trim().to_owned()
    }

    fn update(&self, args: &[&str]) {
        self.bed.ok(&[&["update"], args, &[&self.name]].concat());
    }

    fn assert(&self, files: &[(&str, &str, &str, &[&str])]) {
        for (controller, v1, v2, want) in files {
            let got = self.reads(controller, v1, v2);
            assert!(want.contains(&got.as_str()), "{v1} or {v2}: {got}");
        }
    }
}

const MEMORY: (&str, &str, &str) = ("memory", "memory.limit_in_bytes", "memory.max");

fn is_v1(controller: &str) -> bool {
    Path::new(ROOT).join(controller).is_dir()
}

#[test]
fn every_single_option() {
    let limited = Limited::new(json!({
        "memory": {"limit": 64 << 20, "reservation": 32 << 20}, "pids": {"limit": 20},
        "cpu": {"shares": 100, "quota": 500_000, "period": 1_000_000, "cpus": "0", "mems": "0"},
    }));
    limited.update(&["--memory", "100m", "--memory-reservation", "50MB", "--pids-limit", "10"]);
    limited.update(&["--cpu-period", "900000", "--cpu-quota=600000", "--cpu-share", "200"]);
    let cpus = fs::read_to_string("/sys/devices/system/cpu/online").expect("CPUs").trim().to_owned();
    limited.update(&["--cpuset-cpus", &cpus, "--cpuset-mems", "0"]);
    limited.assert(&[
        ("memory", MEMORY.1, MEMORY.2, &["104857600"]),
        ("memory", "memory.soft_limit_in_bytes", "memory.low", &["52428800"]),
        ("pids", "pids.max", "pids.max", &["10"]),
        ("cpu", "cpu.cfs_period_us", "cpu.max", &["900000", "600000 900000"]),
        ("cpu", "cpu.cfs_quota_us", "cpu.max", &["600000", "600000 900000"]),
        ("cpu", "cpu.shares", "cpu.weight", &["200", "29", "30", "31"]),
        ("cpuset", "cpuset.cpus", "cpuset.cpus", &[&cpus]),
    ]);
    // One of two that belong together keeps the other; lower than the kernel takes with the old one.
    limited.update(&["--cpu-period", "100000", "--cpu-quota", "50000"]);
    limited.update(&["--cpu-quota", "40000"]);
    limited.assert(&[
        ("cpu", "cpu.cfs_period_us", "cpu.max", &["100000", "40000 100000"]),
        ("cpu", "cpu.cfs_quota_us", "cpu.max", &["40000", "40000 100000"]),
    ]);
    limited.update(&["--cpu-burst", "20000"]);
    limited.assert(&[("cpu", "cpu.cfs_burst_us", "cpu.max.burst", &["20000"])]);
    // A quota below the burst there was, with a burst that fits.
    limited.update(&["--cpu-quota", "10000", "--cpu-burst", "5000"]);
    limited.assert(&[("cpu", "cpu.cfs_burst_us", "cpu.max.burst", &["5000"])]);
    limited.update(&["--cpu-idle", "1"]);
    limited.assert(&[("cpu", "cpu.idle", "cpu.idle", &["1"])]);
    limited.update(&["--cpu-idle", "0"]);
    limited.update(&["--pids-limit", "-1"]);
    limited.assert(&[("pids", "pids.max", "pids.max", &["max"])]);
    limited.bed.ok(&["delete", "--force", &limited.name]);
}

#[test]
fn memory_and_swap_up_and_down() {
    let swap = if is_v1("memory") { "memory/memory.memsw.limit_in_bytes" } else { "cgroup.controllers" };
    if !Path::new(ROOT).join(swap).exists() {
        eprintln!("nothing to test: this kernel does not count swap");
        return;
    }
    let limited = Limited::new(json!({"memory": {"limit": 50 << 20, "swap": 60 << 20}}));
    let mib = |count: u64| (count << 20).to_string();
    // On v1 each of these fails when the two files are written in the wrong order.
    for (memory, total) in [(100, 200), (30, 40), (45, 300), (200, 250), (20, 20), (40, 50)] {
        limited.update(&["--memory", &mib(memory), "--memory-swap", &mib(total)]);
        limited.assert(&[
            ("memory", MEMORY.1, MEMORY.2, &[&mib(memory)]),
            ("memory", "memory.memsw.limit_in_bytes", "memory.swap.max", &[&mib(total), &mib(total - memory)]),
        ]);
    }
    // Memory alone: the sum stays.
    limited.update(&["--memory", &mib(45)]);
    limited.assert(&[("memory", "memory.memsw.limit_in_bytes", "memory.swap.max", &[&mib(50), &mib(5)])]);
    // No limit of memory is no limit of swap.
    limited.update(&["--memory", "-1"]);
    for (v1, v2) in [(MEMORY.1, MEMORY.2), ("memory.memsw.limit_in_bytes", "memory.swap.max")] {
        let got = limited.reads("memory", v1, v2);
        assert!(got == "max" || got.parse::<u64>().is_ok_and(|limit| limit > 1 << 60), "{v1}: {got}");
    }
    limited.bed.ok(&["delete", "--force", &limited.name]);
}

#[test]
fn resources_as_json() {
    let limited = Limited::new(json!({"memory": {"limit": 64 << 20}, "pids": {"limit": 20}}));
    let text = json!({
        "memory": {"limit": 80 << 20, "swap": 0, "reservation": 0, "kernel": 0, "kernelTCP": 0},
        "cpu": {"shares": 0, "quota": 30_000, "period": 100_000, "realtimeRuntime": 0, "cpus": "", "mems": ""},
        "pids": {"limit": 0}, "blockIO": {"weight": 0},
    })
    .to_string();
    // From standard input, with options that do not count beside it.
    let mut child = limited
        .bed
        .command(&["update", "-r", "-", "--pids-limit", "3", &limited.name])
        .stdin(Stdio::piped())
        .spawn()
        .expect("the runtime");
    child.stdin.take().expect("its input").write_all(text.as_bytes()).expect("written");
    assert!(child.wait().expect("its end").success());
    let holds = || {
        limited.assert(&[
            ("memory", MEMORY.1, MEMORY.2, &["83886080"]),
            ("cpu", "cpu.cfs_quota_us", "cpu.max", &["30000", "30000 100000"]),
            ("pids", "pids.max", "pids.max", &["20"]),
        ]);
    };
    holds();
    fs::write(limited.bed.path("limits"), json!({"pids": {"limit": 20}}).to_string()).expect("written");
    limited.update(&["--resources", &limited.bed.path("limits").display().to_string()]);
    holds();
    for (content, text) in [("{", "cannot understand"), (r#"{"pids": {"limit": "x"}}"#, "cannot understand")] {
        fs::write(limited.bed.path("limits"), content).expect("written");
        let ran = limited.bed.run(&["update", "-r", &limited.bed.path("limits").display().to_string(), &limited.name]);
        assert!(ran.code == 1 && ran.err.contains(text), "{ran:?}");
    }
    limited.bed.ok(&["delete", "--force", &limited.name]);
}

#[test]
fn what_is_refused() {
    let limited = Limited::new(json!({"memory": {"limit": 64 << 20}}));
    let refuse = |args: &[&str], text: &str| {
        let ran = limited.bed.run(&[&["update"], args, &[&limited.name]].concat());
        assert_eq!(ran.code, 1, "{args:?}: {ran:?}");
        assert!(ran.err.contains(text), "{args:?}: {}", ran.err);
    };
    refuse(&["--memory", "lots"], "--memory");
    refuse(&["--cpu-quota", "x"], "--cpu-quota");
    refuse(&["--cpuset-cpus", "4095"], "cpuset.cpus");
    refuse(&["--blkio-weight", "5"], "blockIO.weight");
    refuse(&["-r", "/no/such/file"], "/no/such/file");
    if !Path::new("/sys/fs/resctrl/info").exists() {
        refuse(&["--l3-cache-schema", "L3:0=f"], "Intel RDT/CAT: l3 cache schema is not enabled");
        refuse(&["--mem-bw-schema", "MB:0=10"], "Intel RDT/MBA: memory bandwidth schema is not enabled");
    }
    if is_v1("memory") {
        // The words of runc.
        refuse(&["--memory", "4096"], "unable to set memory limit to 4096 (current usage: ");
    } else {
        fs::write(limited.bed.path("limits"), r#"{"memory": {"limit": 4096, "checkBeforeUpdate": true}}"#)
            .expect("written");
        refuse(&["-r", &limited.bed.path("limits").display().to_string()], "rejecting memory limit 4096 <= usage ");
    }
    limited.assert(&[("memory", MEMORY.1, MEMORY.2, &["67108864"])]);
    let ran = limited.bed.run(&["update", "--kernel-memory", "5m", "--kernel-memory-tcp", "5m", &limited.name]);
    assert_eq!(ran.code, 0, "{ran:?}");
    assert!(ran.err.contains("Setting --kernel-memory is ignored"), "{}", ran.err);
    common::signal(limited.bed.pid(&limited.name), libc::SIGKILL);
    limited.bed.wait_for_status(&limited.name, "stopped");
    refuse(&["--pids-limit", "5"], "container not running");
    limited.bed.ok(&["delete", &limited.name]);
}

#[test]
fn a_paused_container_can_be_updated() {
    let limited = Limited::new(json!({"pids": {"limit": 20}}));
    limited.bed.ok(&["pause", &limited.name]);
    limited.update(&["--pids-limit", "7"]);
    limited.assert(&[("pids", "pids.max", "pids.max", &["7"])]);
    assert_eq!(limited.bed.status(&limited.name), "paused");
    limited.bed.ok(&["delete", "--force", &limited.name]);
    limited.bed.assert_gone(&limited.name);
}

#[test]
fn the_new_limit_holds() {
    let limited = Limited::new(json!({"pids": {"limit": 50}}));
    limited.update(&["--pids-limit", "4"]);
    let script = "for n in 1 2 3 4 5 6; do sleep 100 & echo $n; done 2>&1";
    let ran = limited.bed.run(&["exec", &limited.name, "sh", "-c", script]);
    assert!(ran.out.contains("can't fork"), "{ran:?}");
    limited.bed.ok(&["delete", "--force", &limited.name]);
    limited.bed.assert_gone(&limited.name);
}
