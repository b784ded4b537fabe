//! What a user sees when something is wrong: the step, the object, the cause, and what to do.

mod common;

use common::{Bed, id};
use serde_json::{Value, json};
use std::fs;
use std::os::unix::fs::PermissionsExt;

/// A change to a bundle.
type Change = Box<dyn FnOnce(&mut Bed)>;

/// Run with a change to the configuration; returns the message.
fn refused(change: impl FnOnce(&mut Bed)) -> String {
    let mut bed = Bed::new("true");
    change(&mut bed);
    bed.refuses()
}

#[test]
fn programs_that_cannot_be_run_end_as_in_a_shell() {
    let cases: Vec<(&str, i32, Change, &str)> = vec![
        (
            "no such program",
            127,
            Box::new(|bed| bed.config["process"]["args"] = json!(["foo"])),
            "find program: exec: \"foo\": executable file not found in $PATH",
        ),
        (
            "no such path",
            127,
            Box::new(|bed| bed.config["process"]["args"] = json!(["/bin/foo"])),
            "exec: \"/bin/foo\": stat /bin/foo: no such file or directory",
        ),
        (
            "not executable",
            126,
            Box::new(|bed| {
                fs::write(bed.rootfs("bin/data"), "x").expect("a file");
                fs::set_permissions(bed.rootfs("bin/data"), fs::Permissions::from_mode(0o644)).expect("its mode");
                bed.config["process"]["args"] = json!(["/bin/data"]);
            }),
            "exec: \"/bin/data\": permission denied",
        ),
        (
            "no interpreter",
            126,
            Box::new(|bed| {
                fs::write(bed.rootfs("bin/script"), "#!/none\n").expect("a file");
                fs::set_permissions(bed.rootfs("bin/script"), fs::Permissions::from_mode(0o755)).expect("its mode");
                bed.config["process"]["args"] = json!(["script"]);
            }),
            "exec: exec: \"/bin/script\": no such file or directory\nhint: the file exists, so its interpreter",
        ),
    ];
    for (why, code, change, want) in cases {
        let mut bed = Bed::new("true");
        change(&mut bed);
        let message = bed.refuses_with(code);
        assert!(message.starts_with("gantry-runtime: ") && message.contains(want), "{why}: {message}");
    }
}

#[test]
fn mistakes_in_the_bundle() {
    let cases: Vec<(&str, Change, &str)> = vec![
        (
            "no root filesystem",
            Box::new(|bed| bed.config["root"]["path"] = json!("nowhere")),
            "$.root.path: `nowhere`: root filesystem `",
        ),
        (
            "unknown filesystem",
            Box::new(|bed| {
                bed.config["mounts"]
                    .as_array_mut()
                    .expect("mounts")
                    .push(json!({"destination": "/x", "type": "moonfs"}));
            }),
            "$.mounts[7] on `/x`: ",
        ),
        (
            "unknown option of a filesystem",
            Box::new(|bed| {
                let mount = json!({"destination": "/dev/shm", "type": "tmpfs", "options": ["colour=blue"]});
                bed.config["mounts"].as_array_mut().expect("mounts").push(mount);
            }),
            "tmpfs refuses the option `colour=blue`",
        ),
        (
            "no bind source",
            Box::new(|bed| {
                let mount = json!({"destination": "/x", "type": "bind", "source": "/no/where", "options": ["bind"]});
                bed.config["mounts"].as_array_mut().expect("mounts").push(mount);
            }),
            "open mounts: $.mounts[7] on `/x`: cannot open bind source `/no/where`: no such file",
        ),
        (
            "a namespace file that is not there",
            Box::new(|bed| {
                let joined = json!({"type": "network", "path": "/no/where"});
                bed.config["linux"]["namespaces"].as_array_mut().expect("namespaces")[1] = joined;
            }),
            "namespaces: $.linux.namespaces[1].path: cannot open the network namespace `/no/where`",
        ),
        (
            "a key that is not carried out",
            Box::new(|bed| bed.config["vm"] = json!({"kernel": {"path": "/x"}})),
            "config.json: $.vm is not supported by this runtime\nhint: remove `vm`",
        ),
        (
            "seccomp notify for everything",
            Box::new(|bed| bed.config["linux"]["seccomp"] = json!({"defaultAction": "SCMP_ACT_NOTIFY"})),
            "$.linux.seccomp.defaultAction: SCMP_ACT_NOTIFY cannot be used as default action",
        ),
        (
            "a sysctl of the host",
            Box::new(|bed| bed.config["linux"]["sysctl"] = json!({"vm.swappiness": "1"})),
            "$.linux.sysctl.vm.swappiness",
        ),
        (
            "wrong type",
            Box::new(|bed| bed.config["process"]["args"] = json!("sh")),
            "config.json: $.process.args: invalid type: string \"sh\", expected an array",
        ),
        (
            "a limit that no controller carries",
            Box::new(|bed| bed.config["linux"]["resources"]["network"] = json!({"classID": 5})),
            "limits: config.json: $.linux.resources.network.classID",
        ),
        (
            "a limit that is no number of processors",
            Box::new(|bed| bed.config["linux"]["resources"]["cpu"] = json!({"cpus": "99"})),
            "limits: cannot write `99` to ",
        ),
        (
            "terminal with nobody to take it",
            Box::new(|bed| {
                bed.config["process"]["terminal"] = json!(true);
                bed.config["mounts"].as_array_mut().expect("mounts").retain(|mount| mount["destination"] != "/dev/pts");
            }),
            "terminal: cannot open a terminal in the container",
        ),
    ];
    for (why, change, want) in cases {
        let message = refused(change);
        assert!(message.starts_with("gantry-runtime: ") && message.contains(want), "{why}: {message}");
    }
}

#[test]
fn a_bundle_without_configuration() {
    let bed = Bed::new("true");
    let output = bed.command(&["run", &id("none")]).output().expect("the runtime");
    let err = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(1));
    assert!(err.contains("config.json`: no such file") && err.contains("hint: `gantry-runtime spec`"), "{err}");
}

#[test]
fn ids_that_are_no_ids() {
    let bed = Bed::new("true");
    for bad in ["..", "a/b", "a b", ""] {
        let ran = bed.run(&["create", bad]);
        assert!(ran.code == 1 && ran.err.contains("invalid container id"), "{bad:?}: {ran:?}");
    }
}

#[test]
fn wrong_usage_is_an_error_and_help_is_none() {
    let bed = Bed::new("true");
    for (args, code, text) in [
        (&["fly"][..], 3, "no command `fly`"),
        (&["create"], 1, "requires a container id"),
        (&["kill", "x", "NOPE"], 1, "unknown signal \"NOPE\""),
        (&["--systemd-cgroup", "create", "x"], 1, "cgroupfs"),
    ] {
        let ran = bed.run(args);
        assert!(ran.code == code && ran.err.contains(text), "{args:?}: {ran:?}");
    }
    for args in [&["--help"][..], &["run", "--help"], &["--version"]] {
        let ran = bed.run(args);
        assert!(ran.code == 0 && ran.out.contains("gantry-runtime"), "{args:?}: {ran:?}");
    }
}

#[test]
fn errors_go_to_the_log_file_as_callers_read_them() {
    let bed = Bed::new("true");
    let file = bed.path("errors").display().to_string();
    bed.run(&["--log", &file, "--log-format", "json", "state", "nobody"]);
    let line: Value = serde_json::from_str(fs::read_to_string(&file).expect("the log").trim()).expect("JSON");
    assert_eq!(line["level"], json!("error"));
    assert!(line["msg"].as_str().expect("a message").contains("container does not exist: `nobody`"), "{line}");
    assert!(line["time"].is_string());
}

#[test]
fn spec_writes_what_run_takes() {
    let bed = Bed::new("true");
    let output = bed.command(&["spec"]).output().expect("spec");
    assert!(output.status.success());
    let text = fs::read_to_string(bed.bundle().join("config.json")).expect("the configuration");
    let config: Value = serde_json::from_str(&text).expect("JSON");
    assert_eq!(config["process"]["args"], json!(["sh"]));
    assert_eq!(config["process"]["user"], json!({"uid": 0, "gid": 0}), "what is edited most is there");
    assert_eq!(bed.command(&["spec"]).output().expect("spec").status.code(), Some(1), "it is not overwritten");
}

#[test]
fn a_cgroup_with_processes_is_refused() {
    let mut bed = Bed::new("sleep 1000");
    let first = id("first");
    bed.config["linux"]["cgroupsPath"] = json!(format!("/gantry-runtime/{first}"));
    bed.ok(&["run", "-d", &first]);
    let second = bed.run(&["run", "-d", &id("second")]);
    assert!(second.code == 1 && second.err.contains("already contains processes"), "{second:?}");
    assert_eq!(bed.status(&first), "running", "the first is left alone");
    bed.ok(&["delete", "--force", &first]);
    bed.assert_gone(&first);
}

#[test]
fn capabilities_that_cannot_be_given_are_a_warning() {
    let mut bed = Bed::new("grep CapEff /proc/self/status");
    bed.config["process"]["capabilities"] = json!({
        "bounding": ["CAP_KILL"], "permitted": ["CAP_KILL"], "effective": ["CAP_KILL"], "ambient": ["CAP_KILL"],
    });
    let ran = bed.run(&["run", &id("ambient")]);
    assert!(ran.code == 0 && ran.out.contains("0000000000000020"), "{ran:?}");
    assert!(ran.err.contains("warning: process.capabilities.ambient: CAP_KILL would have to be"), "{ran:?}");
}
