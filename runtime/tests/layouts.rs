//! Hosts whose cgroup hierarchies are not where they usually are, or are missing: in mount namespaces of the test's own.

mod common;

use common::{Bed, finish, id};
use serde_json::json;
use std::fs;
use std::path::Path;
use std::process::{Command, Stdio};

/// Run a shell script in a new mount namespace, with `$G` as the runtime on this bed and `$DIR` as a scratch directory.
fn in_namespace(bed: &Bed, script: &str) -> common::Ran {
    bed.save();
    fs::create_dir_all(bed.path("scratch")).expect("a directory");
    let runtime = format!("{} --root {}", env!("CARGO_BIN_EXE_gantry-runtime"), bed.path("state").display());
    let mut command = Command::new("unshare");
    command.args(["-m", "--propagation", "private", "sh", "-ec", script]);
    command.env("G", runtime).env("DIR", bed.path("scratch")).current_dir(bed.bundle()).stdin(Stdio::null());
    finish(&mut command)
}

/// Move every v1 hierarchy but those whose name is in `$LEAVE_OUT` to a directory of another name.
const MOVE: &str = r#"
    mount -t tmpfs none "$DIR"
    for d in /sys/fs/cgroup/*; do
        name=${d##*/}
        case " $LEAVE_OUT " in *" $name "*) continue;; esac
        [ -e "$d/tasks" ] || continue
        mkdir "$DIR/odd-$name"; mount --bind "$d" "$DIR/odd-$name"
    done
    mount -t tmpfs none /sys/fs/cgroup
"#;

fn has_v1() -> bool {
    let found = Path::new("/sys/fs/cgroup/memory/tasks").exists() && Path::new("/sys/fs/cgroup/freezer/tasks").exists();
    if !found {
        eprintln!("nothing to test: the controllers of this host are not in cgroup v1");
    }
    found
}

#[test]
fn hierarchies_in_unusual_places_are_found() {
    if !has_v1() {
        return;
    }
    let mut bed = Bed::new("sleep 1000");
    bed.config["linux"]["resources"]["memory"] = json!({"limit": 64 << 20});
    bed.config["linux"]["resources"]["pids"] = json!({"limit": 20});
    let name = id("odd");
    let script = format!(
        r#"{MOVE}
        $G run -d {name}
        cat "$DIR/odd-memory/gantry-runtime/{name}/memory.limit_in_bytes"
        $G exec {name} echo entered
        $G pause {name}; $G state {name} | grep '"status"'; cat "$DIR/odd-freezer/gantry-runtime/{name}/freezer.state"
        $G resume {name}
        $G update --pids-limit 7 {name}; cat "$DIR/odd-pids/gantry-runtime/{name}/pids.max"
        $G ps -f json {name} | grep -c '\[[0-9]'
        $G delete --force {name}
        ls -d "$DIR"/odd-*/gantry-runtime/{name} 2>/dev/null || echo gone
        rmdir /sys/fs/cgroup/* 2>/dev/null || echo nothing was made in the empty place"#
    );
    let ran = in_namespace(&bed, &script);
    assert_eq!(ran.code, 0, "{ran:?}");
    let mut lines = ran.out.lines().map(str::trim);
    for want in ["67108864", "entered", r#""status": "paused","#, "FROZEN", "7", "1", "gone"] {
        assert_eq!(lines.next(), Some(want), "{ran:?}");
    }
    assert_eq!(lines.next(), Some("nothing was made in the empty place"), "{ran:?}");
    bed.assert_gone(&name);
}

#[test]
fn a_missing_hierarchy_matters_only_to_who_asks_for_it() {
    if !has_v1() {
        return;
    }
    let mut bed = Bed::new("echo ran");
    let name = id("missing");
    let script = format!("LEAVE_OUT='pids freezer'\n{MOVE}\n$G run {name}");
    let ran = in_namespace(&bed, &script);
    assert_eq!((ran.code, ran.out.as_str()), (0, "ran\n"), "{ran:?}");
    bed.config["linux"]["resources"]["pids"] = json!({"limit": 20});
    let ran = in_namespace(&bed, &script);
    assert_eq!(ran.code, 1, "{ran:?}");
    assert!(ran.err.contains("pids.limit") && ran.err.contains("no `pids` cgroup controller"), "{}", ran.err);
    bed.assert_gone(&name);
}

#[test]
fn an_empty_directory_is_no_hierarchy() {
    if !has_v1() {
        return;
    }
    // Directories of the usual names that nothing is mounted on, as some minimal hosts have them.
    let bed = Bed::new("echo ran");
    let name = id("empty");
    let script =
        format!("{MOVE}\nmkdir /sys/fs/cgroup/memory /sys/fs/cgroup/pids\n$G run {name}\nls /sys/fs/cgroup/memory");
    let ran = in_namespace(&bed, &script);
    assert_eq!((ran.code, ran.out.as_str()), (0, "ran\n"), "nothing is left in them: {ran:?}");
    bed.assert_gone(&name);
}

/// There, with a cgroup namespace, the container's process mounts while its cgroup is made.
#[test]
fn with_v1_alone_limits_and_failures_are_as_elsewhere() {
    if !has_v1() {
        return;
    }
    let limits = "cat /sys/fs/cgroup/pids/pids.max /sys/fs/cgroup/memory/memory.limit_in_bytes";
    let mut bed = Bed::new(&format!("grep -c ':/$' /proc/self/cgroup; {limits}"));
    let namespaces = bed.config["linux"]["namespaces"].as_array_mut().expect("a list");
    if !namespaces.iter().any(|namespace| namespace["type"] == "cgroup") {
        namespaces.push(json!({"type": "cgroup"}));
    }
    bed.config["linux"]["resources"]["memory"] = json!({"limit": 64 << 20});
    bed.config["linux"]["resources"]["pids"] = json!({"limit": 20});
    // In their usual places, and elsewhere.
    for layout in ["umount -l /sys/fs/cgroup/unified 2>/dev/null || true", MOVE] {
        for command in ["$G run NAME", "$G create NAME; $G start NAME; $G delete --force NAME"] {
            let name = id("alone");
            let ran = in_namespace(&bed, &format!("{layout}\n{}", command.replace("NAME", &name)));
            if command.starts_with("$G run") {
                assert_eq!((ran.code, ran.err.as_str()), (0, ""), "{ran:?}");
                let lines: Vec<&str> = ran.out.lines().collect();
                assert!(lines[0].parse::<u32>().is_ok_and(|count| count > 2), "{ran:?}");
                assert_eq!(&lines[1..], ["20", "67108864"], "{ran:?}");
            } else {
                assert_eq!(ran.code, 0, "{ran:?}");
            }
            bed.assert_gone(&name);
        }
        // What fails on either side, while the other is at work, is told and leaves nothing.
        let good = bed.config.clone();
        for (why, key, value, code, word) in [
            ("the cgroup", "/linux/resources/memory/limit", json!(1), 1, "memory"),
            ("a mount", "/mounts/0/options", json!(["no-such-option"]), 1, "no-such-option"),
            ("the program", "/process/args", json!(["/none"]), 127, "/none"),
        ] {
            match bed.config.pointer_mut(key) {
                Some(place) => *place = value,
                None => bed.config["mounts"][0]["options"] = value,
            }
            let name = id("alone");
            let ran = in_namespace(&bed, &format!("{layout}\n$G run {name}"));
            assert_eq!(ran.code, code, "{why}: {ran:?}");
            assert!(ran.err.contains(word), "{why}: {ran:?}");
            bed.assert_gone(&name);
            bed.config = good.clone();
        }
    }
}
