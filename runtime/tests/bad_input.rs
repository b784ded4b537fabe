//! Bad bundles and what is said about them: the place, the value, what would be right, and the exit code.
//!
//! Every line runs the binary. Nothing may be left behind by any of them.

mod common;

use common::{Bed, id};
use serde_json::{Value, json};
use std::fs;
use std::os::unix::fs::PermissionsExt;

/// A key by its JSON pointer, what it becomes, then what must be in the message.
type Case<'a> = (&'a str, Value, &'a [&'a str]);

/// Refuse each, with the message and the exit code.
fn refuse(code: i32, cases: &[Case<'_>]) {
    let mut bed = Bed::new("true");
    let base = bed.config.clone();
    fs::write(bed.rootfs("bin/data"), "text").expect("a file");
    fs::set_permissions(bed.rootfs("bin/data"), fs::Permissions::from_mode(0o644)).expect("its mode");
    for (pointer, value, wanted) in cases {
        bed.config = base.clone();
        let (parent, key) = pointer.rsplit_once('/').expect("a pointer has a slash");
        let parent = bed.config.pointer_mut(parent).unwrap_or_else(|| panic!("{pointer} has a parent"));
        match (parent, value) {
            (Value::Array(list), value) if key == "-" => list.push(value.clone()),
            (Value::Array(list), value) => list[key.parse::<usize>().expect("an index")] = value.clone(),
            (Value::Object(map), Value::Null) => drop(map.remove(key)),
            (parent, value) => parent[key] = value.clone(),
        }
        let message = bed.refuses_with(code);
        assert!(message.starts_with("gantry-runtime: "), "{pointer}: {message}");
        for want in *wanted {
            assert!(message.contains(want), "{pointer} as {value}: `{want}` is not in: {message}");
        }
    }
}

#[test]
fn programs() {
    refuse(
        127,
        &[
            (
                "/process/args",
                json!(["absent"]),
                &["exec: \"absent\": executable file not found in $PATH", "hint: PATH"],
            ),
            (
                "/process/args",
                json!(["/bin/absent"]),
                &["stat /bin/absent: no such file or directory", "hint: is the path"],
            ),
        ],
    );
    refuse(
        126,
        &[
            ("/process/args", json!(["/bin/data"]), &["\"/bin/data\": permission denied", "hint: the file must be"]),
            ("/process/args", json!(["/bin"]), &["/bin"]),
            ("/process/args", json!(["data"]), &["\"/bin/data\": permission denied"]),
        ],
    );
}

#[test]
fn paths() {
    refuse(
        1,
        &[
            ("/root/path", json!("nowhere"), &["bundle/nowhere` ", "hint: a directory is wanted"]),
            ("/root/path", json!("/no/where"), &["`/no/where` ", "hint: a directory is wanted"]),
            ("/root/path", json!(""), &["$.root.path", "is empty"]),
            ("/root", json!(null), &["$.root", "is missing"]),
            ("/process/cwd", json!("work"), &["$.process.cwd: `work` is not an absolute path"]),
            ("/process/cwd", json!("../.."), &["$.process.cwd: `../..` is not an absolute path"]),
            (
                "/mounts/-",
                json!({"destination": "../../etc", "type": "tmpfs"}),
                &["destination: `../../etc` leaves the root filesystem; use an absolute path"],
            ),
            (
                "/mounts/-",
                json!({"destination": "a/../../b", "type": "tmpfs"}),
                &["destination: `a/../../b` leaves the root filesystem"],
            ),
            ("/mounts/-", json!({"destination": "/../..", "type": "tmpfs"}), &["destination: "]),
            (
                "/mounts/-",
                json!({"destination": "/x", "source": "/no/where", "options": ["bind"]}),
                &["on `/x`: cannot open bind source `/no/where`: no such file"],
            ),
            ("/mounts/-", json!({"destination": "/x", "options": ["bind"]}), &["source", "is missing"]),
            ("/mounts/-", json!({"destination": "/x"}), &["type", "is missing"]),
            ("/mounts/-", json!({"destination": ""}), &["destination", "is empty"]),
            ("/linux/maskedPaths", json!(["../etc"]), &["$.linux.maskedPaths[0]: `../etc` is not an absolute path"]),
            ("/linux/readonlyPaths", json!(["etc"]), &["$.linux.readonlyPaths[0]: `etc` is not an absolute path"]),
            (
                "/linux/devices",
                json!([{"type": "c", "path": "../dev/x", "major": 1, "minor": 3}]),
                &["$.linux.devices[0].path: `../dev/x` is not an absolute path"],
            ),
            ("/linux/cgroupsPath", json!("../../x"), &["$.linux.cgroupsPath: `../../x` contains `..`"]),
            (
                "/hooks",
                json!({"poststop": [{"path": "x"}]}),
                &["$.hooks.poststop[0].path: `x` is not an absolute path"],
            ),
        ],
    );
}

/// What leaves by way of the root itself ends there, as in any Unix.
#[test]
fn absolute_paths_do_not_leave() {
    let mut bed = Bed::new("cat /proc/mounts; pwd");
    let mount = json!({"destination": "/../../inside", "type": "tmpfs"});
    bed.config["mounts"].as_array_mut().expect("mounts").push(mount);
    bed.config["process"]["cwd"] = json!("/../../work");
    let out = bed.says();
    assert!(out.contains(" /inside tmpfs ") && out.ends_with("\n/work\n"), "{out}");
}

#[test]
fn words_that_mean_nothing() {
    refuse(
        1,
        &[
            ("/ociVersion", json!("2.0.0"), &["$.ociVersion: `2.0.0` is not a version of the form 1.x.y"]),
            ("/ociVersion", json!(null), &["$.ociVersion"]),
            ("/process/args", json!([]), &["$.process.args: is empty; its first entry must name a program"]),
            (
                "/process/args",
                json!("sh"),
                &["$.process.args: invalid type: string \"sh\", expected an array", "hint: it must be"],
            ),
            ("/process/args", json!(["a\u{0}b"]), &["$.process.args[0]: contains a zero byte"]),
            (
                "/process/user",
                json!({"uid": -1}),
                &["$.process.user.uid: invalid value: integer `-1`, expected a whole number from 0"],
            ),
            ("/process/oomScoreAdj", json!(2000), &["$.process.oomScoreAdj: 2000 is outside -1000 to 1000"]),
            (
                "/linux/namespaces/-",
                json!({"type": "moon"}),
                &["type: `moon` is not one of ", "pid", "network", "time"],
            ),
            ("/linux/namespaces/-", json!({"type": "pid"}), &["`pid` is given twice"]),
            ("/linux/rootfsPropagation", json!("sideways"), &["$.linux.rootfsPropagation", "`sideways`", "private"]),
            ("/linux/personality", json!({"domain": "BSD"}), &["$.linux.personality.domain", "LINUX32"]),
            ("/linux/sysctl", json!({"vm.swappiness": "1"}), &["$.linux.sysctl.vm.swappiness"]),
            (
                "/linux/devices",
                json!([{"type": "x", "path": "/dev/x"}]),
                &["$.linux.devices[0].type: `x` is not one of c, b, u, p"],
            ),
            (
                "/linux/seccomp",
                json!({"defaultAction": "SCMP_ACT_MAYBE"}),
                &["$.linux.seccomp.defaultAction: `SCMP_ACT_MAYBE` is not one of SCMP_ACT_ALLOW, "],
            ),
            (
                "/linux/seccomp",
                json!({"defaultAction": "SCMP_ACT_ALLOW", "architectures": ["SCMP_ARCH_Z80"]}),
                &["$.linux.seccomp.architectures[0]: `SCMP_ARCH_Z80` is not one of SCMP_ARCH_X86_64, "],
            ),
            (
                "/linux/seccomp",
                json!({"defaultAction": "SCMP_ACT_ALLOW", "syscalls": [{"names": ["mkdir"], "action": "SCMP_ACT_NOTIFY"}],
                       "listenerPath": "/no/agent"}),
                &["failed to connect with seccomp agent `/no/agent`: No such file", "hint: start the agent"],
            ),
        ],
    );
}

#[test]
fn impossible_limits() {
    refuse(
        1,
        &[
            (
                "/process/rlimits",
                json!([{"type": "RLIMIT_MOON", "soft": 1, "hard": 1}]),
                &["$.process.rlimits[0].type: `RLIMIT_MOON`"],
            ),
            (
                "/process/rlimits",
                json!([{"type": "RLIMIT_CORE", "soft": 2, "hard": 1}]),
                &["$.process.rlimits[0]: soft limit 2 is above hard limit 1"],
            ),
            (
                "/linux/resources/memory",
                json!({"limit": 2_000_000, "swap": 1_000_000}),
                &["$.linux.resources.memory.swap: 1000000 is below the memory limit 2000000"],
            ),
            (
                "/linux/resources/memory",
                json!({"limit": "5m"}),
                &["$.linux.resources.memory.limit: invalid type: string \"5m\""],
            ),
            ("/linux/resources/cpu", json!({"cpus": "4000"}), &["limits: ", "4000"]),
            ("/linux/resources/cpu", json!({"cpus": "one"}), &["limits: ", "one"]),
            ("/linux/resources/cpu", json!({"quota": 5, "period": 100_000}), &["limits: ", "5"]),
            ("/linux/resources/hugepageLimits", json!([{"pageSize": "3KB", "limit": 5}]), &["3KB"]),
            ("/linux/resources/unified", json!({"no.such": "1"}), &["no.such"]),
        ],
    );
}

#[test]
fn a_missing_controller_is_named() {
    let controllers = fs::read_to_string("/proc/self/cgroup").unwrap_or_default();
    let v2 = fs::read_to_string("/sys/fs/cgroup/cgroup.controllers").unwrap_or_default();
    if controllers.contains("rdma") || v2.contains("rdma") {
        return;
    }
    refuse(
        1,
        &[("/linux/resources/rdma", json!({"mlx5_0": {"hcaHandles": 5}}), &["$.linux.resources.rdma", "hint: "])],
    );
}

#[test]
fn an_unknown_capability_is_a_warning() {
    let mut bed = Bed::new("true");
    bed.config["process"]["capabilities"] = json!({"bounding": ["CAP_MOON"]});
    let ran = bed.run(&["run", &id("capability")]);
    assert_eq!(ran.code, 0, "{ran:?}");
    assert!(ran.err.contains("warning: process.capabilities.bounding: `CAP_MOON`"), "{ran:?}");
    bed.config["process"]["capabilities"] = json!({});
    let ran = bed.run(&["run", "-d", &id("exec")]);
    assert_eq!(ran.code, 0, "{ran:?}");
}

/// Words of a bundle cannot pretend to be other lines, or move the cursor.
#[test]
fn errors_are_one_line_whatever_they_quote() {
    let mut bed = Bed::new("true");
    bed.config["process"]["cwd"] = json!("x\nhint: all is well\u{1b}[2J");
    let message = bed.refuses();
    assert_eq!(message.lines().count(), 1, "{message}");
    assert!(message.contains("`x\\nhint: all is well\\u{1b}[2J` is not an absolute path"), "{message}");
}

#[test]
fn files_that_are_no_configuration() {
    let bed = Bed::new("true");
    for (text, wanted) in [
        (&b""[..], "$: EOF while parsing a value"),
        (b"\0\0\0", "$: expected value"),
        (b"[]", "config.json: $: invalid type: an array, expected an object"),
        (b"{\"process\": {\"args\": [\"a\", ]}}", "$.process.args"),
        (b"{\"root\": {\"path\": \"x\", \"path\": \"y\"}}", "$.root.path: duplicate field `path`"),
    ] {
        fs::write(bed.bundle().join("config.json"), text).expect("config.json");
        let ran = common::finish(&mut bed.command(&["run", &id("text")]));
        assert!(ran.code == 1 && ran.err.contains(wanted) && ran.err.contains("hint: it must be JSON"), "{ran:?}");
    }
    let deep = "[".repeat(1_000_000);
    fs::write(bed.bundle().join("config.json"), deep).expect("config.json");
    let ran = common::finish(&mut bed.command(&["run", &id("deep")]));
    assert!(ran.code == 1 && ran.err.contains("invalid type"), "{}", &ran.err[..ran.err.len().min(300)]);
}
