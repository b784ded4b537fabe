//! `events` and `ps`: what a container uses and runs, in the shape of runc's.

mod common;

use common::{Bed, id, until};
use serde_json::{Value, json};
use std::fs;
use std::io::{BufRead, BufReader};
use std::process::{Child, Command, Stdio};
use std::time::Instant;

/// A process that may be killed for memory, whatever the tests themselves may not be.
const KILLABLE: i32 = 500;

fn stats(bed: &Bed, name: &str) -> Value {
    serde_json::from_str(&bed.ok(&["events", "--stats", name])).expect("JSON")
}

#[test]
fn figures_of_a_container() {
    let mut bed = Bed::new("dd if=/dev/zero of=/dev/null bs=64k count=2000; sleep 1000 & sleep 1000; true");
    bed.config["linux"]["resources"]["memory"] = json!({"limit": 64 << 20});
    bed.config["linux"]["resources"]["pids"] = json!({"limit": 30});
    let name = id("stats");
    bed.ok(&["run", "-d", &name]);
    until("it has two sleepers", || stats(&bed, &name)["data"]["pids"]["current"] == 3);
    let stats = stats(&bed, &name);
    assert_eq!((&stats["type"], &stats["id"]), (&json!("stats"), &json!(name)));
    let data = &stats["data"];
    assert_eq!(data["pids"], json!({"current": 3, "limit": 30}));
    assert_eq!(data["memory"]["usage"]["limit"], 64 << 20);
    let number = |path: &str| data.pointer(path).and_then(Value::as_u64).unwrap_or_else(|| panic!("{path}: {data}"));
    assert!(number("/memory/usage/usage") > 0);
    assert!(number("/cpu/usage/total") > 1_000_000, "more than a millisecond in nanoseconds: {data}");
    assert!(number("/cpu/usage/total") < 100_000_000_000);
    assert!(data["memory"]["raw"].as_object().is_some_and(|raw| raw.len() > 10), "{data}");
    bed.ok(&["delete", "--force", &name]);
}

/// Every key of an object and those below, without the values.
fn shape(value: &Value) -> Value {
    match value {
        Value::Object(map) => map.iter().map(|(key, value)| (key.clone(), shape(value))).collect(),
        Value::Array(list) => list.first().map_or(json!([]), |first| json!([shape(first)])),
        Value::Null => Value::Null,
        _ => json!(0),
    }
}

/// Containers of another runtime, removed with this.
struct Peer<'a> {
    bed: &'a Bed,
    name: String,
}

impl<'a> Peer<'a> {
    /// Run the bed's bundle with runc; `None` where it is not installed.
    fn run(bed: &'a Bed) -> Option<Self> {
        let found = Command::new("runc").arg("--version").output().is_ok_and(|output| output.status.success());
        if !found {
            eprintln!("skipped: runc is not installed");
            return None;
        }
        let peer = Self { bed, name: id("peer") };
        bed.save();
        let ran = common::finish(peer.command(&["run", "-d", &peer.name]).stdin(Stdio::null()));
        assert_eq!(ran.code, 0, "{ran:?}");
        Some(peer)
    }

    fn command(&self, args: &[&str]) -> Command {
        let mut command = Command::new("runc");
        command.arg("--root").arg(self.bed.path("peer")).args(args).current_dir(self.bed.bundle());
        command
    }

    fn ok(&self, args: &[&str]) -> String {
        let ran = common::finish(&mut self.command(args));
        assert_eq!(ran.code, 0, "{args:?}: {ran:?}");
        ran.out
    }
}

impl Drop for Peer<'_> {
    fn drop(&mut self) {
        let _ = self.command(&["delete", "--force", &self.name]).output();
    }
}

#[test]
fn the_same_keys_and_limits_as_runc() {
    let mut bed = Bed::new("sleep 1000");
    bed.config["linux"]["resources"]["memory"] = json!({"limit": 64 << 20, "reservation": 32 << 20});
    bed.config["linux"]["resources"]["pids"] = json!({"limit": 30});
    bed.config["linux"]["resources"]["cpu"] = json!({"quota": 50_000, "period": 100_000, "cpus": "0"});
    let Some(peer) = Peer::run(&bed) else { return };
    let name = id("shape");
    bed.ok(&["run", "-d", &name]);
    let own = stats(&bed, &name);
    let theirs: Value = serde_json::from_str(&peer.ok(&["events", "--stats", &peer.name])).expect("JSON");
    // Keys that are left out when zero, which a peer of the same age may have or not.
    let plain = |stats: &Value| {
        let mut keys = shape(stats);
        for path in ["/data/cpu/throttling", "/data/memory/usage", "/data/memory/swap", "/data/memory/kernel"] {
            if let Some(Value::Object(map)) = keys.pointer_mut(path) {
                map.retain(|key, _| matches!(key.as_str(), "limit" | "failcnt"));
            }
        }
        keys.pointer_mut("/data/memory").and_then(Value::as_object_mut).map(|memory| memory.remove("cache"));
        keys.pointer_mut("/data").and_then(Value::as_object_mut).map(|data| data.remove("blkio"));
        keys
    };
    assert_eq!(plain(&own), plain(&theirs), "ours {own}\ntheirs {theirs}");
    for path in [
        "/data/cpuset",
        "/data/memory/usage/limit",
        "/data/memory/swap/limit",
        "/data/memory/kernel/limit",
        "/data/memory/kernelTCP/limit",
        "/data/pids",
        "/data/hugetlb",
        "/data/intel_rdt",
        "/data/network_interfaces",
    ] {
        assert_eq!(own.pointer(path), theirs.pointer(path), "{path}");
    }
    // And the same processes in the same words.
    let heading = |text: &str| text.lines().next().unwrap_or_default().split_whitespace().collect::<Vec<_>>().join(" ");
    for options in [&[][..], &["-e", "-o", "pid,comm"], &["aux"]] {
        let own = bed.ok(&[&["ps", &name], options].concat());
        let theirs = peer.ok(&[&["ps", &peer.name], options].concat());
        assert_eq!(heading(&own), heading(&theirs), "{options:?}");
        assert_eq!(own.lines().count(), theirs.lines().count(), "{options:?}: {own}\n{theirs}");
    }
    assert_eq!(bed.ok(&["ps", "--format", "json", &name]), format!("[{}]\n", bed.pid(&name)));
    bed.ok(&["delete", "--force", &name]);
}

/// `events` that goes on, ended with this.
struct Following(Child);

impl Following {
    fn start(bed: &Bed, name: &str, interval: &str) -> Self {
        let child = bed
            .command(&["events", "--interval", interval, name])
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .expect("the runtime");
        Self(child)
    }
}

impl Drop for Following {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[test]
fn lack_of_memory_is_told_and_the_end_ends_it() {
    let mut bed = Bed::new("sleep 1000");
    bed.config["linux"]["resources"]["memory"] = json!({"limit": 30 << 20});
    bed.config["process"]["oomScoreAdj"] = KILLABLE.into();
    if !fs::exists("/sys/fs/cgroup/memory").unwrap_or(false) {
        // So that it cannot flee into swap.
        bed.config["linux"]["resources"]["memory"]["swap"] = json!(30 << 20);
    }
    let name = id("oom");
    bed.ok(&["run", "-d", &name]);
    let mut events = Following::start(&bed, &name, "100ms");
    let mut lines = BufReader::new(events.0.stdout.take().expect("its output")).lines();
    let mut next =
        || -> Option<Value> { lines.next().map(|line| serde_json::from_str(&line.expect("a line")).expect("JSON")) };
    assert_eq!(next().expect("figures")["type"], "stats");
    let ran = bed.run(&["exec", &name, "dd", "if=/dev/zero", "of=/dev/null", "bs=100M", "count=1"]);
    assert_eq!(ran.code, 137, "{ran:?}");
    let deadline = Instant::now() + common::patience();
    loop {
        let event = next().expect("it goes on");
        if event["type"] == "oom" {
            assert_eq!(event, json!({"type": "oom", "id": name}));
            break;
        }
        assert!(Instant::now() < deadline, "no event");
    }
    bed.ok(&["delete", "--force", &name]);
    while next().is_some() {
        assert!(Instant::now() < deadline, "it does not end");
    }
    assert!(events.0.wait().expect("its end").success());
}

#[test]
fn what_is_refused() {
    let bed = Bed::new("true");
    let name = id("refused");
    bed.ok(&["run", "-d", &name]);
    bed.wait_for_status(&name, "stopped");
    for (args, text) in [
        (&["events", "--stats", &name][..], format!("container with id {name} is not running")),
        (&["events", &name], format!("container with id {name} is not running")),
        (&["events", "--interval", "0s", &name], "duration interval must be greater than 0".to_owned()),
        (&["events", "--interval", "x", &name], "--interval".to_owned()),
        (&["ps", "--format", "xml", &name], "--format".to_owned()),
        (&["ps", &name, "-o", "comm"], "couldn't find PID field in ps output".to_owned()),
        (&["ps", &name, "--no-such-option"], "`ps` failed".to_owned()),
        (&["ps"], "container id".to_owned()),
    ] {
        let ran = bed.run(args);
        assert!(ran.code != 0, "{args:?}");
        assert!(ran.err.contains(&text), "{args:?}: {}", ran.err);
    }
    assert_eq!(bed.ok(&["ps", "-f", "json", &name]), "null\n");
    bed.ok(&["delete", &name]);
}
