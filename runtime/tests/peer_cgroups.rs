//! The same bundle with runc and with us: every cgroup file must read the same afterwards.

mod common;

use common::{Bed, finish, id};
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

const ROOT: &str = "/sys/fs/cgroup";

/// Files that count what happens rather than say what is allowed, and those that differ by intent: ours clones cpusets
/// below its own parent, and turns shares into weights on the scale that runc has since 2025.
fn is_figure(name: &str) -> bool {
    let exact = [
        "tasks",
        "cgroup.procs",
        "cgroup.threads",
        "cgroup.clone_children",
        "cpu.weight",
        "cpu.weight.nice",
        "cgroup.stat",
        "cpu.stat",
        "cpu.stat.local",
        "memory.stat",
        "memory.numa_stat",
        "memory.kmem.slabinfo",
        "io.stat",
        "cgroup.events",
        "devices.list",
        "pids.current",
        "pids.peak",
        "cpuset.memory_pressure",
        "memory.oom_control",
    ];
    exact.contains(&name)
        || ["cpuacct.", "usage", "current", "peak", "failcnt", "pressure", "events", "io_service", "events.local"]
            .iter()
            .any(|part| name.contains(part))
}

/// Every directory of a place.
fn directories(place: &str) -> Vec<(String, PathBuf)> {
    let mut found = vec![("v2".to_owned(), Path::new(ROOT).join(place))];
    for entry in fs::read_dir(ROOT).expect("cgroups").flatten() {
        found.push((entry.file_name().to_string_lossy().into_owned(), entry.path().join(place)));
    }
    found.retain(|(_, path)| path.is_dir());
    found
}

fn settings(place: &str) -> BTreeMap<String, String> {
    let mut all = BTreeMap::new();
    for (hierarchy, path) in directories(place) {
        for entry in fs::read_dir(&path).expect("a cgroup").flatten() {
            let name = entry.file_name().to_string_lossy().into_owned();
            // Write-only files, and those of features that are off, cannot be read.
            if let Ok(text) = fs::read_to_string(entry.path())
                && !is_figure(&name)
            {
                all.insert(format!("{hierarchy}: {name}"), text);
            }
        }
        if let Ok(list) = fs::read_to_string(path.join("devices.list")) {
            let mut lines: Vec<&str> = list.lines().collect();
            // runc lets every container use /dev/net/tun, which the specification does not.
            lines.retain(|line| *line != "c 10:200 rwm");
            lines.sort_unstable();
            all.insert(format!("{hierarchy}: devices.list"), lines.join("\n"));
        }
    }
    all
}

struct Peer(Bed, String);

impl Peer {
    fn command(&self, args: &[&str]) -> Command {
        let mut command = Command::new("runc");
        command.arg("--root").arg(self.0.path("peer")).args(args).current_dir(self.0.bundle()).stdin(Stdio::null());
        command
    }
}

impl Drop for Peer {
    fn drop(&mut self) {
        let _ = self.command(&["delete", "--force", &self.1]).output();
    }
}

/// Run the bundle with both; then updates; compare after each.
fn compare(why: &str, resources: &Value, updates: &[&[&str]]) {
    let place = |word: &str| format!("gantry-runtime/{}", id(word));
    let bed = |place: &str| {
        let mut bed = Bed::new("sleep 1000");
        for (key, value) in resources.as_object().expect("an object") {
            bed.config["linux"]["resources"][key] = value.clone();
        }
        bed.config["linux"]["cgroupsPath"] = json!(format!("/{place}"));
        bed.save();
        bed
    };
    let (own_place, peer_place) = (place("own"), place("peer"));
    let own = bed(&own_place);
    let (own_name, peer) = (id("own"), Peer(bed(&peer_place), id("peer")));
    own.ok(&["run", "-d", &own_name]);
    let ran = finish(&mut peer.command(&["run", "-d", &peer.1]));
    assert_eq!(ran.code, 0, "{why}: runc: {ran:?}");
    let same = |after: &str| {
        let (own, peer) = (settings(&own_place), settings(&peer_place));
        assert!(own.len() > 10, "{why}: {own:?}");
        for (file, text) in &own {
            assert_eq!(Some(text), peer.get(file), "{why}, {after}: {file}, ours and runc's");
        }
        assert_eq!(own.keys().collect::<Vec<_>>(), peer.keys().collect::<Vec<_>>(), "{why}, {after}");
    };
    same("created");
    for options in updates {
        own.ok(&[&["update"], *options, &[&own_name]].concat());
        let ran = finish(&mut peer.command(&[&["update"], *options, &[&peer.1]].concat()));
        assert_eq!(ran.code, 0, "{why}, {options:?}: runc: {ran:?}");
        same(&options.join(" "));
    }
    own.ok(&["delete", "--force", &own_name]);
    let left: Vec<_> = directories(&own_place);
    assert!(left.is_empty(), "{why}: {left:?}");
}

#[test]
fn every_file_reads_as_with_runc() {
    if !Command::new("runc").arg("--version").output().is_ok_and(|output| output.status.success()) {
        eprintln!("skipped: runc is not installed");
        return;
    }
    let deny = json!({"allow": false, "access": "rwm"});
    for (why, resources, updates) in [
        ("no limit", json!({"devices": [deny]}), &[][..]),
        (
            "memory",
            json!({"devices": [deny], "memory": {"limit": 64 << 20, "reservation": 32 << 20}}),
            &[&["--memory", "100m"][..], &["--memory-reservation", "10m"], &["--memory", "-1"]],
        ),
        (
            "memory and swap",
            json!({"devices": [deny], "memory": {"limit": 64 << 20, "swap": 128 << 20}}),
            &[&["--memory", "200m", "--memory-swap", "300m"], &["--memory", "50m", "--memory-swap", "50m"]],
        ),
        (
            "cpu",
            json!({"devices": [deny], "cpu": {"shares": 512, "quota": 50_000, "period": 100_000}}),
            &[&["--cpu-quota", "20000"], &["--cpu-period", "50000"], &["--cpu-quota", "-1"]],
        ),
        ("cpuset", json!({"devices": [deny], "cpu": {"cpus": "0", "mems": "0"}}), &[]),
        (
            "pids",
            json!({"devices": [deny], "pids": {"limit": 33}}),
            &[&["--pids-limit", "44"], &["--pids-limit", "-1"]],
        ),
        (
            "zeros of Go",
            json!({"devices": [deny], "memory": {"limit": 0, "swap": 0, "reservation": 0}, "pids": {"limit": 0},
                "cpu": {"shares": 0, "quota": 0, "period": 0, "cpus": "", "mems": ""}, "blockIO": {"weight": 0}}),
            &[],
        ),
        (
            "devices",
            json!({"devices": [deny, {"allow": true, "type": "b", "major": 8, "minor": 0, "access": "r"},
                {"allow": true, "type": "c", "major": 10, "access": "rw"}]}),
            &[],
        ),
        ("all devices", json!({"devices": [{"allow": true, "access": "rwm"}]}), &[]),
    ] {
        compare(why, &resources, updates);
    }
}
