//! Files and arguments that are not what they should be, and privileges that must not leak.

mod common;

use common::{Bed, field, finish, id, runs, until};
use gantry_runtime::state::{ProcessId, StateDir, Status};
use rustix::fs::{CWD, FileType, Mode};
use serde_json::{Value, json};
use std::fs;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Instant;

/// The five sets of a `/proc/PID/status`, without leading zeros.
fn sets(status: &str) -> [String; 5] {
    ["CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb"].map(|name| {
        let set = field(status, name).trim_start_matches('0');
        if set.is_empty() { "0".to_owned() } else { set.to_owned() }
    })
}

#[test]
fn capabilities_of_exec_are_exact() {
    // The container has much; what is executed in it has what it asks for and nothing else.
    let mut bed = Bed::new("sleep 1000");
    let much = json!(["CAP_KILL", "CAP_CHOWN", "CAP_NET_RAW", "CAP_SETUID", "CAP_SETPCAP"]);
    bed.config["process"]["capabilities"] =
        json!({"bounding": much, "effective": much, "permitted": much, "inheritable": much, "ambient": much});
    let name = id("caps");
    bed.ok(&["run", "-d", &name]);
    let kill = json!(["CAP_KILL"]);
    for (why, uid, capabilities, no_new_privileges, want) in [
        ("no sets at all", 0, json!(null), false, ["0"; 5]),
        ("empty sets", 0, json!({}), true, ["0"; 5]),
        ("bounding alone", 0, json!({"bounding": kill}), false, ["0", "20", "20", "20", "0"]),
        ("bounding alone, no new privileges", 1000, json!({"bounding": kill}), true, ["0", "0", "0", "20", "0"]),
        (
            "no ambient without inheritable",
            1000,
            json!({"bounding": kill, "permitted": kill, "effective": kill, "ambient": kill}),
            false,
            ["0", "0", "0", "20", "0"],
        ),
        (
            "all five",
            1000,
            json!({"bounding": kill, "permitted": kill, "effective": kill, "inheritable": kill, "ambient": kill}),
            true,
            ["20"; 5],
        ),
    ] {
        let process = json!({"args": ["cat", "/proc/self/status"], "cwd": "/", "env": ["PATH=/bin"],
            "user": {"uid": uid, "gid": uid}, "capabilities": capabilities, "noNewPrivileges": no_new_privileges});
        fs::write(bed.path("process.json"), process.to_string()).expect("a file");
        let file = bed.path("process.json").display().to_string();
        let status = bed.ok(&["exec", "--process", &file, &name]);
        // Root without securebits gains what the bounding set allows, as execve(2) has it.
        assert_eq!(sets(&status), want, "{why}");
        assert_eq!(field(&status, "NoNewPrivs"), if no_new_privileges { "1" } else { "0" }, "{why}");
        assert_eq!(field(&status, "Groups"), "", "{why}");
    }
    // What the caller has in its inheritable and ambient sets goes no further.
    let caller = "exec setpriv --inh-caps +kill,+chown,+net_raw --ambient-caps +kill,+chown,+net_raw -- \"$@\"";
    bed.config["process"]["capabilities"] = json!({"bounding": kill});
    bed.config["process"]["user"] = json!({"uid": 1000, "gid": 1000});
    bed.config["process"]["args"] = json!(["cat", "/proc/self/status"]);
    bed.save();
    let other = id("ambient");
    let runtime = env!("CARGO_BIN_EXE_gantry-runtime");
    let state = bed.path("state").display().to_string();
    for args in [vec!["run", &other], vec!["exec", "--user", "1000", &name, "cat", "/proc/self/status"]] {
        let mut command = Command::new("sh");
        command.args(["-c", caller, "sh", runtime, "--root", &state]).args(&args).current_dir(bed.bundle());
        let ran = finish(command.stdin(Stdio::null()));
        assert_eq!(ran.code, 0, "{args:?}: {}", ran.err);
        if args[0] == "run" {
            assert_eq!(sets(&ran.out), ["0", "0", "0", "20", "0"], "{args:?}");
        } else {
            // Those of the container, which the command line does not change.
            let all: Vec<String> = sets(&ran.out).into_iter().collect();
            assert!(all.iter().all(|set| *set == all[0]) && all[0] != "0", "{all:?}");
        }
    }
}

#[test]
fn users_are_numbers_or_refused() {
    let bed = Bed::new("sleep 1000");
    let name = id("users");
    bed.ok(&["run", "-d", &name]);
    for wrong in [
        "",
        ":",
        "0:",
        ":0",
        "root",
        "0:root",
        "-1",
        "0:-1",
        "+0",
        " 0",
        "0 ",
        "0x0",
        "4294967295",
        "4294967296",
        "1:4294967295",
        "99999999999999999999",
        "0:0:0",
        "１",
        "1e0",
        "0\n",
    ] {
        let ran = bed.run(&["exec", "--user", wrong, &name, "id", "-u"]);
        assert!(ran.code != 0 && ran.out.is_empty() && ran.err.contains("--user takes"), "{wrong:?}: {ran:?}");
    }
    for (good, want) in [("0", "0"), ("007", "7"), ("4294967294:5", "4294967294")] {
        assert_eq!(bed.ok(&["exec", "--user", good, &name, "id", "-u"]).trim(), want, "{good}");
    }
    for wrong in [json!(-1), json!("0"), json!(4_294_967_296_u64), json!(1.5), json!(""), json!([0]), json!(true)] {
        for key in ["uid", "gid"] {
            let mut bed = Bed::new("echo started");
            bed.config["process"]["user"][key] = wrong.clone();
            let message = bed.refuses();
            assert!(message.contains("config.json"), "{key} {wrong}: {message}");
        }
    }
    let mut bed = Bed::new("echo started");
    bed.config["process"]["user"]["uid"] = json!(u32::MAX);
    bed.refuses();
}

fn pipe(path: &Path) {
    rustix::fs::mknodat(CWD, path, FileType::Fifo, Mode::from_raw_mode(0o666), 0).expect("a pipe");
}

#[test]
fn files_of_another_kind_are_named_and_keep_nobody_waiting() {
    let begun = Instant::now();
    // The configuration.
    let bed = Bed::new("echo started");
    for kind in ["pipe", "directory", "device", "huge", "endless", "empty", "absent"] {
        let file = bed.bundle().join("config.json");
        match kind {
            "pipe" => pipe(&file),
            "directory" => fs::create_dir(&file).expect("a directory"),
            "device" => std::os::unix::fs::symlink("/dev/zero", &file).expect("a link"),
            "huge" => fs::File::create(&file).and_then(|file| file.set_len(1 << 40)).expect("a sparse file"),
            "endless" => fs::write(&file, "[".repeat(1 << 20)).expect("a file"),
            "empty" => fs::write(&file, "").expect("a file"),
            _ => {}
        }
        let ran = finish(&mut bed.command(&["run", &id("config")]));
        assert!(ran.code == 1 && ran.err.contains("config.json"), "{kind}: {ran:?}");
        let _ = fs::remove_file(&file).or_else(|_| fs::remove_dir(&file));
    }
    // The root filesystem.
    for kind in ["pipe", "file", "device", "absent"] {
        let mut bed = Bed::new("echo started");
        let root = bed.path("root");
        match kind {
            "pipe" => pipe(&root),
            "file" => fs::write(&root, "").expect("a file"),
            "device" => std::os::unix::fs::symlink("/dev/null", &root).expect("a link"),
            _ => {}
        }
        bed.config["root"]["path"] = json!(root);
        assert!(bed.refuses().contains("root filesystem"), "{kind}");
    }
    // Namespaces to join.
    let me = std::process::id();
    for kind in ["network", "ipc", "uts", "pid", "cgroup", "user", "time"] {
        let mut bed = Bed::new("echo started");
        let (fifo, file) = (bed.path("fifo"), bed.path("file"));
        pipe(&fifo);
        fs::write(&file, "").expect("a file");
        let other = if kind == "uts" { "ipc" } else { "uts" };
        for path in [
            fifo.display().to_string(),
            file.display().to_string(),
            bed.bundle().display().to_string(),
            "/dev/zero".to_owned(),
            "/proc/self/mem".to_owned(),
            format!("/proc/{me}/ns/{other}"),
            "/nowhere".to_owned(),
        ] {
            let list = bed.config["linux"]["namespaces"].as_array_mut().expect("namespaces");
            list.retain(|namespace| namespace["type"] != kind);
            list.push(json!({"type": kind, "path": path}));
            if kind == "uts" {
                bed.config["hostname"] = json!(null);
            }
            assert!(bed.refuses().contains("namespace"), "{kind} from {path}");
        }
    }
    // The process for exec.
    let bed = Bed::new("sleep 1000");
    let name = id("process");
    bed.ok(&["run", "-d", &name]);
    let file = bed.path("process.json");
    pipe(&file);
    let ran = bed.run(&["exec", "--process", &file.display().to_string(), &name]);
    assert!(ran.code != 0 && ran.err.contains("process.json"), "{ran:?}");
    assert!(begun.elapsed() < common::patience(), "something has waited");
}

#[test]
fn a_record_cut_or_changed_anywhere_is_refused_and_removed() {
    let mut bed = Bed::new("sleep 1000");
    // A place of its own, which only the record and the saved configuration know.
    let place = format!("/gantry-runtime/place-{}", std::process::id());
    bed.config["linux"]["cgroupsPath"] = json!(place);
    let name = id("cut");
    bed.ok(&["create", &name]);
    let root = bed.path("state");
    let dir = StateDir::new(&root, &name).expect("a good id");
    let file = root.join(&name).join("state.json");
    let whole = fs::read(&file).expect("the record");
    let good = dir.read().expect("readable").expect("there");
    // Cut at every byte: refused, with the file's name and the remedy.
    // (Empty is what it is before creation has begun.)
    for length in 1..whole.len() {
        fs::write(&file, &whole[..length]).expect("cut");
        let failure = dir.read().expect_err("half a record");
        assert!(failure.to_string().contains("state.json") && failure.hint.is_some(), "{length}: {failure}");
    }
    // Every byte changed in two ways: refused, or about the same container and nothing of others.
    for at in 0..whole.len() {
        for bit in [0x01, 0x10] {
            let mut changed = whole.clone();
            changed[at] ^= bit;
            fs::write(&file, &changed).expect("changed");
            if let Ok(Some(record)) = dir.read() {
                assert_eq!(record.id, name, "byte {at}");
                assert!(!record.cgroup.is_empty() && !record.cgroup.contains(".."), "byte {at}: {}", record.cgroup);
                let same_process = record
                    .init
                    .is_none_or(|init| init.open().is_none() || Some(init.pid) == good.init.map(|init| init.pid));
                assert!(same_process, "byte {at}: {:?} instead of {:?}", record.init, good.init);
            }
        }
    }
    // Records that would lead to what belongs to others.
    for (pointer, value) in [
        ("/cgroup", json!("")),
        ("/cgroup", json!("/")),
        ("/cgroup", json!(".")),
        ("/cgroup", json!("../..")),
        ("/cgroup", json!("a/../../b")),
        ("/cgroup", json!("/etc")),
        ("/id", json!("another")),
        ("/init/pid", json!(1)),
        ("/init/pid", json!(0)),
        ("/init/pid", json!(-1)),
        ("/creator/pid", json!(1)),
    ] {
        let mut record: Value = serde_json::from_slice(&whole).expect("JSON");
        *record.pointer_mut(pointer).expect("a key") = value.clone();
        fs::write(&file, record.to_string()).expect("changed");
        assert!(dir.read().is_err(), "{pointer} {value}");
    }
    // The commands say so; only `delete --force` acts, and finds everything by the saved configuration.
    for cut in [1, whole.len() / 2, whole.len() - 1] {
        fs::write(&file, &whole[..cut]).expect("cut");
        for command in [&["state"][..], &["start"], &["kill"], &["delete"], &["exec"]] {
            let rest: &[&str] = if command == ["exec"] { &["true"] } else { &[] };
            let ran = bed.run(&[command, &[name.as_str()], rest].concat());
            assert!(ran.code != 0 && ran.err.contains("state.json"), "{command:?} at {cut}: {ran:?}");
        }
        assert_eq!(bed.run(&["list", "-q"]).out, "", "a warning instead");
    }
    let init = good.init.expect("its process");
    assert!(runs(init.pid));
    bed.ok(&["delete", "--force", &name]);
    until("its process is gone", || !runs(init.pid));
    bed.assert_gone(&name);
    let mut find = Command::new("find");
    find.args(["/sys/fs/cgroup", "-maxdepth", "3", "-name"]).arg(place.rsplit('/').next().expect("a name"));
    assert_eq!(finish(&mut find).out, "", "cgroups are left");
}

/// A process of this number that is not this one.
fn identity(process: ProcessId, later: u64) -> Value {
    let mut wrong = serde_json::to_value(process).expect("JSON");
    for key in ["inode", "start_time"] {
        if let Some(number) = wrong[key].as_u64().filter(|&number| number > 0) {
            wrong[key] = json!(number + later);
        }
    }
    wrong
}

#[test]
fn a_record_of_another_boot_or_another_process_hits_nobody() {
    let bed = Bed::new("sleep 1000");
    let name = id("other");
    bed.ok(&["run", "-d", &name]);
    let file = bed.path("state").join(&name).join("state.json");
    let whole: Value = serde_json::from_slice(&fs::read(&file).expect("the record")).expect("JSON");
    let mut bystander = Command::new("sleep").arg("1000").spawn().expect("sleep");
    let other = ProcessId::of(bystander.id() as i32).expect("its identity");
    let pid = whole["init"]["pid"].as_i64().expect("a pid") as i32;
    for (why, key, value) in [
        ("the number was used again", "init", identity(other, 1)),
        ("the start time is another", "init", identity(ProcessId { pid, ..other }, 1000)),
        ("the boot is another", "bootId", json!("00000000-0000-0000-0000-000000000000")),
    ] {
        let mut record = whole.clone();
        record[key] = value;
        fs::write(&file, record.to_string()).expect("changed");
        assert_eq!(bed.status(&name), "stopped", "{why}");
        let ran = bed.run(&["kill", &name, "KILL"]);
        if key == "init" {
            assert!(ran.code == 1 && ran.err.contains("not running"), "{why}: {ran:?}");
        }
        assert!(runs(other.pid), "{why}: another process was hit");
    }
    bed.ok(&["delete", "--force", &name]);
    assert!(runs(other.pid), "another process was hit");
    bed.assert_gone(&name);
    bystander.kill().expect("its end");
    bystander.wait().expect("its end");
}

#[test]
fn a_number_that_was_used_again_is_not_signalled() {
    // In a PID namespace of its own, the number of a dead container's process is given to a bystander.
    let bed = Bed::new("sleep 1000");
    bed.save();
    let script = r#"
        mount -t proc proc /proc || exit 90
        "$0" --root "$1" run -d "$2" || exit 91
        pid=$("$0" --root "$1" state "$2" | sed -n 's/.*"pid": *\([0-9]*\).*/\1/p')
        [ "$pid" -gt 1 ] || exit 92
        kill -KILL "$pid"
        while [ -e /proc/$pid ]; do sleep 0.01; done
        n=0
        while [ ! -e /proc/$pid ]; do
            n=$((n + 1)); [ $n -lt 200 ] || exit 93
            echo $((pid - 1)) > /proc/sys/kernel/ns_last_pid || exit 94
            sleep 1000 &
            last=$!
            [ $last = $pid ] || kill $last
        done
        "$0" --root "$1" kill "$2" KILL && exit 95
        "$0" --root "$1" exec "$2" true && exit 96
        "$0" --root "$1" delete --force "$2" || exit 97
        kill -0 $pid || exit 98
        case $(cat /proc/$pid/stat) in *" Z "*) exit 99 ;; esac
        kill -KILL $pid
        exit 0
    "#;
    let name = id("again");
    let mut command = Command::new("unshare");
    command.args(["--pid", "--fork", "--mount", "--kill-child", "sh", "-c", script]);
    command.arg(env!("CARGO_BIN_EXE_gantry-runtime")).arg(bed.path("state")).arg(&name);
    let ran = finish(command.current_dir(bed.bundle()).stdin(Stdio::null()));
    assert_eq!(ran.code, 0, "{ran:?}");
    bed.assert_gone(&name);
}

#[test]
fn a_half_made_container_does_not_take_another_along() {
    // Two bundles name one cgroup, and the second attempt dies before it can see that the place is taken.
    let mut bed = Bed::new("sleep 1000");
    bed.config["linux"]["cgroupsPath"] = json!(format!("/gantry-runtime/shared-{}", std::process::id()));
    let (first, second) = (id("first"), id("second"));
    bed.ok(&["run", "-d", &first]);
    let pid = bed.pid(&first);
    assert!(bed.run(&["run", "-d", &second]).err.contains("already contains processes"));
    assert!(runs(pid));
    let root = bed.path("state");
    let mut record = StateDir::new(&root, &first).and_then(|dir| dir.read()).expect("readable").expect("there");
    record.id.clone_from(&second);
    record.init = None;
    record.complete = false;
    record.creator.start_time += 1;
    record.creator.inode += 1;
    let dir = StateDir::new(&root, &second).expect("a good id");
    drop(dir.claim().expect("free"));
    dir.write(&record).expect("written");
    assert_eq!(dir.status(&record), Status::Stopped);
    bed.ok(&["delete", "--force", &second]);
    assert!(runs(pid), "the first one was taken along");
    assert_eq!(bed.status(&first), "running");
    bed.ok(&["delete", "--force", &first]);
}
