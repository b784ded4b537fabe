//! Bundles that the specification does not allow, and those at its edge that it does: path, value, and what is allowed.

mod common;

use common::{Bed, id};
use serde_json::{Value, json};
use std::fs;
use std::os::unix::fs::symlink;

#[test]
fn the_root_filesystem_is_a_directory_and_no_link() {
    for (path, want) in [
        ("nowhere", "`nowhere`: root filesystem `"),
        ("file", "is not a directory"),
        ("link", "is a symbolic link"),
        ("dangling", "is a symbolic link"),
        ("../bundle/rootfs", "`../bundle/rootfs` leaves the bundle; give a path below it, or an absolute one"),
        ("", "$.root.path: is empty"),
        ("/no/such/root", "`/no/such/root`: root filesystem `/no/such/root` does not exist"),
    ] {
        let mut bed = Bed::new("echo started");
        fs::write(bed.path("bundle/file"), "").expect("a file");
        symlink("rootfs", bed.path("bundle/link")).expect("a link");
        symlink("nowhere", bed.path("bundle/dangling")).expect("a link");
        bed.config["root"]["path"] = json!(path);
        let message = bed.refuses();
        assert!(message.contains("config.json: $.root.path: ") && message.contains(want), "{path}: {message}");
    }
    let mut bed = Bed::new("echo started");
    for path in [json!(bed.rootfs("")), json!("./rootfs"), json!("rootfs/../rootfs/")] {
        bed.config["root"]["path"] = path;
        assert_eq!(bed.says(), "started\n");
    }
    bed.config["root"] = json!(null);
    assert!(bed.refuses().contains("config.json: $.root: is missing"));
}

#[test]
fn versions_of_the_specification() {
    for (version, code, want) in [
        ("1.0.0", 0, ""),
        ("1.0.2-dev", 0, ""),
        ("1.3.0", 0, ""),
        (
            "1.7.0",
            0,
            "warning: config.json: $.ociVersion: `1.7.0` is newer than 1.3.0; keys that came later are ignored",
        ),
        ("2.0.0", 1, "$.ociVersion: `2.0.0` is not a version of the form 1.x.y, up to 1.3.0"),
        ("", 1, "$.ociVersion: `` is not a version"),
        ("one", 1, "$.ociVersion: `one` is not a version"),
    ] {
        let mut bed = Bed::new("true");
        bed.config["ociVersion"] = json!(version);
        let ran = bed.run(&["run", &id("version")]);
        assert!(ran.code == code && ran.err.contains(want), "{version}: {ran:?}");
        assert!(!want.is_empty() || ran.err.is_empty(), "{version}: {ran:?}");
    }
}

#[test]
fn wrong_types_are_at_their_path() {
    for (pointer, value, want) in [
        ("/process/args", json!("sh"), "$.process.args: invalid type: string \"sh\", expected an array"),
        ("/process/env", json!({"A": "b"}), "$.process.env: invalid type: an object, expected an array"),
        (
            "/process/user",
            json!({"uid": -1}),
            "$.process.user.uid: invalid value: integer `-1`, expected a whole number from 0",
        ),
        ("/process/terminal", json!("yes"), "$.process.terminal: invalid type: string \"yes\", expected true or false"),
        ("/process/consoleSize", json!({"height": 70_000, "width": 1}), "$.process.consoleSize.height: invalid value"),
        ("/mounts/1/options", json!("ro"), "$.mounts[1].options: invalid type: string \"ro\""),
        ("/mounts/2", json!(7), "$.mounts[2]: invalid type: integer `7`"),
        ("/hostname", json!(["a"]), "$.hostname"),
        ("/linux/sysctl", json!({"net.a": 1}), "$.linux.sysctl.net.a: invalid type: integer `1`, expected a string"),
        ("/linux/namespaces/0/type", json!(3), "$.linux.namespaces[0].type: invalid type"),
        ("/linux/netDevices", json!({"eth0": 3}), "$.linux.netDevices.eth0: invalid type"),
        ("/hooks", json!({"poststop": [{"path": "/x", "timeout": "1"}]}), "$.hooks.poststop[0].timeout: invalid type"),
    ] {
        let mut bed = Bed::new("true");
        let (parent, key) = pointer.rsplit_once('/').expect("a pointer has a slash");
        match bed.config.pointer_mut(parent).expect("the parent") {
            Value::Array(list) => list[key.parse::<usize>().expect("a number")] = value,
            object => object[key] = value,
        }
        let message = bed.refuses();
        assert!(message.contains(&format!("config.json: {want}")), "{pointer}: {message}");
    }
}

#[test]
fn a_file_that_is_no_json() {
    for text in ["", "{", "nonsense", "{\"ociVersion\": \"1.0.0\"", "[]", "{\"a\": \"\u{0}\"}"] {
        let bed = Bed::new("true");
        fs::write(bed.bundle().join("config.json"), text).expect("a file");
        let output = bed.command(&["run", &id("json")]).output().expect("the runtime");
        let err = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.code() == Some(1) && err.contains("config.json"), "{text:?}: {err}");
    }
}

#[test]
fn values_are_shown_with_what_is_allowed() {
    for (pointer, value, want) in [
        (
            "/process/scheduler",
            json!({"policy": "FIFO"}),
            "$.process.scheduler.policy: `FIFO` is not one of SCHED_OTHER, ",
        ),
        ("/process/scheduler", json!({}), "$.process.scheduler.policy: `` is not one of"),
        (
            "/process/ioPriority",
            json!({"class": "RT"}),
            "$.process.ioPriority.class: `RT` is not one of IOPRIO_CLASS_RT, ",
        ),
        ("/linux/memoryPolicy", json!({"mode": "x"}), "$.linux.memoryPolicy.mode: `x` is not one of MPOL_DEFAULT, "),
        ("/linux/rootfsPropagation", json!("x"), "`x` is not one of shared, slave, private, unbindable"),
        ("/process/oomScoreAdj", json!(1001), "$.process.oomScoreAdj: 1001 is outside -1000 to 1000"),
        ("/linux/intelRdt", json!({"memBwSchema": "L3:0=1"}), "$.linux.intelRdt.memBwSchema: `L3:0=1` is not one line"),
        (
            "/process/rlimits",
            json!([{"type": "RLIMIT_CPU", "soft": 1, "hard": 1}, {"type": "RLIMIT_CPU", "soft": 1, "hard": 1}]),
            "$.process.rlimits[1]: `RLIMIT_CPU` is given twice",
        ),
        ("/annotations", json!({"": ""}), "$.annotations: has an empty key"),
        (
            "/hooks",
            json!({"poststart": [{"path": "hook"}]}),
            "$.hooks.poststart[0].path: `hook` is not an absolute path",
        ),
    ] {
        let mut bed = Bed::new("true");
        let (parent, key) = pointer.rsplit_once('/').expect("a pointer has a slash");
        bed.config.pointer_mut(parent).expect("the parent")[key] = value;
        let message = bed.refuses();
        assert!(message.contains(want), "{pointer}: {message}");
    }
}

#[test]
fn annotations_and_unknown_keys_are_no_error() {
    let mut bed = Bed::new("sleep 1000");
    bed.config["annotations"] = json!({"org.example.a": "1", "org.opencontainers.image.os": "linux", "empty": ""});
    bed.config["later"] = json!({"key": [1, 2]});
    bed.config["linux"]["later"] = json!(true);
    bed.config["process"]["user"]["username"] = json!("windows only");
    let name = id("notes");
    bed.ok(&["create", &name]);
    let state: Value = serde_json::from_str(&bed.ok(&["state", &name])).expect("the state");
    assert_eq!(state["annotations"], bed.config["annotations"]);
    bed.ok(&["delete", "--force", &name]);
}
