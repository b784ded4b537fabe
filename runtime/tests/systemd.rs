//! `--systemd-cgroup`: containers as scopes. Where systemd does not run, only the refusal can be tested.

mod common;

use common::{Bed, id, runs, signal, until};
use serde_json::{Value, json};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

fn systemd_runs() -> bool {
    let found = Path::new("/run/systemd/system").is_dir();
    if !found {
        eprintln!("nothing to test: this host was not booted with systemd");
    }
    found
}

/// A container in a scope of its own.
struct Scoped {
    bed: Bed,
    name: String,
    unit: String,
}

impl Scoped {
    fn new(script: &str) -> Self {
        let mut bed = Bed::new(script);
        let name = id("scope");
        bed.config["linux"]["cgroupsPath"] = json!(format!("system-gt.slice:gt:{name}"));
        Self { unit: format!("gt-{name}.scope"), bed, name }
    }

    fn limit(&mut self, resources: Value) {
        for (key, value) in resources.as_object().expect("an object") {
            self.bed.config["linux"]["resources"][key] = value.clone();
        }
    }

    fn start(&self) {
        self.bed.ok(&["--systemd-cgroup", "run", "-d", &self.name]);
    }

    fn ok(&self, args: &[&str]) -> String {
        self.bed.ok(&[args, &[&self.name]].concat())
    }

    /// A property as systemd sees it.
    fn shows(&self, property: &str) -> String {
        show(&self.unit, property)
    }

    fn directory(&self) -> PathBuf {
        Path::new("/sys/fs/cgroup/system.slice/system-gt.slice").join(&self.unit)
    }

    fn reads(&self, file: &str) -> String {
        let file = self.directory().join(file);
        fs::read_to_string(&file).unwrap_or_else(|error| panic!("{}: {error}", file.display())).trim().to_owned()
    }

    fn assert_gone(&self) {
        assert_eq!(show(&self.unit, "LoadState"), "not-found", "{} is left", self.unit);
        assert!(!self.directory().exists(), "its cgroup is left");
        assert!(!self.bed.path("state").join(&self.name).exists(), "its state is left");
    }
}

fn show(unit: &str, property: &str) -> String {
    let output = Command::new("systemctl").args(["show", "-p", property, "--value", unit]).output().expect("systemctl");
    String::from_utf8_lossy(&output.stdout).trim().to_owned()
}

fn systemctl(args: &[&str]) {
    let status = Command::new("systemctl").args(args).status().expect("systemctl");
    assert!(status.success(), "systemctl {args:?}");
}

#[test]
fn without_systemd_it_is_refused_in_the_words_of_runc() {
    if Path::new("/run/systemd/system").is_dir() {
        return;
    }
    let bed = Bed::new("true");
    for command in ["create", "run"] {
        let name = id("none");
        let ran = bed.run(&["--systemd-cgroup", command, &name]);
        assert_eq!(ran.code, 1, "{ran:?}");
        let text = "systemd not running on this host, cannot use systemd cgroups manager";
        assert!(ran.err.contains(text) && ran.err.contains("hint: leave out --systemd-cgroup"), "{}", ran.err);
        bed.assert_gone(&name);
    }
}

#[test]
fn a_container_is_a_scope_with_its_limits() {
    if !systemd_runs() {
        return;
    }
    let mut scoped = Scoped::new("sleep 1000");
    scoped.limit(json!({
        "memory": {"limit": 64 << 20, "reservation": 32 << 20, "swap": 96 << 20}, "pids": {"limit": 20},
        "cpu": {"shares": 1024, "quota": 25_500, "period": 100_000, "cpus": "0"},
    }));
    scoped.start();
    assert_eq!(scoped.shows("ActiveState"), "active");
    assert_eq!(scoped.shows("Slice"), "system-gt.slice");
    assert_eq!(scoped.shows("Delegate"), "yes");
    let pid = scoped.bed.pid(&scoped.name);
    assert_eq!(scoped.reads("cgroup.procs"), pid.to_string(), "the container alone, without the placeholder");
    for (property, want) in [
        ("MemoryMax", "67108864"),
        ("MemoryLow", "33554432"),
        ("MemorySwapMax", "33554432"),
        ("TasksMax", "20"),
        ("CPUWeight", "100"),
        ("CPUQuotaPerSecUSec", "260ms"),
        ("AllowedCPUs", "0"),
        ("DevicePolicy", "strict"),
    ] {
        assert_eq!(scoped.shows(property), want, "{property}");
    }
    let holds = |when: &str| {
        for (file, want) in [
            ("memory.max", "67108864"),
            ("memory.low", "33554432"),
            ("memory.swap.max", "33554432"),
            ("pids.max", "20"),
            ("cpuset.cpus", "0"),
        ] {
            assert_eq!(scoped.reads(file), want, "{file} {when}");
        }
    };
    holds("after the start");
    assert_eq!(scoped.reads("cpu.max"), "25500 100000", "exactly, where systemd rounds");
    systemctl(&["daemon-reload"]);
    holds("after a reload");
    assert_eq!(scoped.bed.ok(&["exec", &scoped.name, "cat", "/proc/self/cgroup"]), "0::/\n");
    scoped.ok(&["delete", "--force"]);
    assert!(!runs(pid));
    scoped.assert_gone();
}

#[test]
fn updates_reach_systemd() {
    if !systemd_runs() {
        return;
    }
    let mut scoped = Scoped::new("sleep 1000");
    scoped.limit(json!({"memory": {"limit": 64 << 20}, "pids": {"limit": 20}}));
    scoped.start();
    scoped.ok(&["update", "--memory", "100m", "--pids-limit", "33", "--cpu-quota", "50000", "--cpu-share", "2048"]);
    for (property, want) in [("MemoryMax", "104857600"), ("TasksMax", "33"), ("CPUQuotaPerSecUSec", "500ms")] {
        assert_eq!(scoped.shows(property), want, "{property}");
    }
    let holds = || {
        assert_eq!(scoped.reads("memory.max"), "104857600");
        assert_eq!(scoped.reads("pids.max"), "33");
        assert_eq!(scoped.reads("cpu.max"), "50000 100000");
    };
    holds();
    systemctl(&["daemon-reload"]);
    holds();
    scoped.ok(&["update", "--memory", "-1", "--pids-limit", "-1"]);
    assert_eq!((scoped.shows("MemoryMax"), scoped.shows("TasksMax")), ("infinity".to_owned(), "infinity".to_owned()));
    scoped.ok(&["delete", "--force"]);
    scoped.assert_gone();
}

#[test]
fn life_and_death_of_a_scope() {
    if !systemd_runs() {
        return;
    }
    let scoped = Scoped::new("sleep 1000");
    scoped.bed.ok(&["--systemd-cgroup", "create", &scoped.name]);
    assert_eq!(scoped.shows("ActiveState"), "active");
    // Another container cannot have the same unit.
    let other = id("other");
    let ran = scoped.bed.run(&["--systemd-cgroup", "create", &other]);
    assert!(ran.code == 1 && ran.err.contains("UnitExists"), "{ran:?}");
    assert!(!scoped.bed.path("state").join(&other).exists());
    assert_eq!(scoped.shows("ActiveState"), "active", "the first one's is as before");
    scoped.ok(&["start"]);
    scoped.ok(&["pause"]);
    assert_eq!(scoped.bed.status(&scoped.name), "paused");
    scoped.ok(&["resume"]);
    // It dies by itself: the scope goes, and the rest is removed without force.
    let pid = scoped.bed.pid(&scoped.name);
    signal(pid, libc::SIGKILL);
    scoped.bed.wait_for_status(&scoped.name, "stopped");
    until("systemd has seen the end", || show(&scoped.unit, "ActiveState") != "active");
    scoped.ok(&["delete"]);
    scoped.assert_gone();
    // And the name is free again.
    scoped.start();
    scoped.ok(&["delete", "--force"]);
    scoped.assert_gone();
}

#[test]
fn a_failed_start_leaves_no_unit() {
    if !systemd_runs() {
        return;
    }
    for (pointer, value) in [
        ("/process/args", json!(["/no/such/program"])),
        ("/linux/resources/cpu", json!({"cpus": "4095"})),
        ("/linux/resources/unified", json!({"memory.max": "nonsense"})),
    ] {
        let mut scoped = Scoped::new("true");
        match scoped.bed.config.pointer_mut(pointer) {
            Some(place) => *place = value,
            None => scoped.bed.config["linux"]["resources"][pointer.rsplit('/').next().expect("a key")] = value,
        }
        let ran = scoped.bed.run(&["--systemd-cgroup", "run", &scoped.name]);
        assert_ne!(ran.code, 0, "{pointer}");
        until(&format!("the unit is gone: {pointer}: {}", ran.err), || show(&scoped.unit, "LoadState") == "not-found");
        scoped.assert_gone();
    }
}

#[test]
fn devices_stay_denied_after_a_reload() {
    if !systemd_runs() {
        return;
    }
    let scoped = Scoped::new("sleep 1000");
    scoped.start();
    let tries = "rm -f /dev/mem2 /dev/null2; mknod /dev/mem2 c 1 1; mknod /dev/null2 c 1 3;
        cat /dev/mem2 2>&1 | head -c 100; echo yes > /dev/null2 && echo null";
    let mut config = scoped.bed.config["process"].clone();
    config["args"] = json!(["sh", "-c", tries]);
    for set in ["bounding", "effective", "permitted"] {
        config["capabilities"][set].as_array_mut().expect("a set").push(json!("CAP_MKNOD"));
    }
    fs::write(scoped.bed.path("process.json"), config.to_string()).expect("written");
    let file = scoped.bed.path("process.json").display().to_string();
    for round in ["at first", "after a reload"] {
        let said = scoped.bed.ok(&["exec", "-p", &file, &scoped.name]);
        assert!(said.contains("not permitted") && said.contains("null"), "{round}: {said}");
        systemctl(&["daemon-reload"]);
    }
    scoped.ok(&["delete", "--force"]);
    scoped.assert_gone();
}

#[test]
fn a_container_killed_for_memory_leaves_no_failed_unit() {
    if !systemd_runs() {
        return;
    }
    let mut scoped = Scoped::new("dd if=/dev/zero of=/dev/null bs=100M count=1");
    scoped.limit(json!({"memory": {"limit": 30 << 20, "swap": 30 << 20}}));
    scoped.bed.config["process"]["args"] = json!(["dd", "if=/dev/zero", "of=/dev/null", "bs=100M", "count=1"]);
    scoped.bed.config["process"]["oomScoreAdj"] = 500.into();
    let ran = scoped.bed.run(&["--systemd-cgroup", "run", &scoped.name]);
    assert_eq!(ran.code, 137, "{ran:?}");
    assert!(ran.err.contains("more memory than its limit"), "{}", ran.err);
    scoped.assert_gone();
}

#[test]
fn annotations_are_properties() {
    if !systemd_runs() {
        return;
    }
    let mut scoped = Scoped::new("sleep 1000");
    scoped.bed.config["annotations"] = json!({
        "org.systemd.property.TimeoutStopUSec": "uint64 7000000",
        "org.systemd.property.CollectMode": "'inactive-or-failed'",
    });
    scoped.start();
    assert_eq!(scoped.shows("TimeoutStopUSec"), "7s");
    assert_eq!(scoped.shows("CollectMode"), "inactive-or-failed");
    scoped.ok(&["delete", "--force"]);
    scoped.assert_gone();
}
