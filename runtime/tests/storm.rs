//! Many containers at once, signals at any moment, and callers in a bad state: it works or says why, and nothing is left.

mod common;

use common::{Bed, Ran, finish, id, until};
use serde_json::json;
use std::fs;
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

/// Nothing of this bed is left anywhere.
fn assert_nothing_left(bed: &Bed, names: &[String]) {
    until("no process is left", || !bed.is_in_use());
    let left: Vec<_> =
        fs::read_dir(bed.path("state")).into_iter().flatten().flatten().map(|entry| entry.path()).collect();
    assert!(left.is_empty(), "states are left: {left:?}");
    for name in names {
        bed.assert_gone(name);
    }
    let table = fs::read_to_string("/proc/self/mountinfo").expect("mounts");
    let path = bed.path("").display().to_string();
    assert!(!table.lines().any(|line| line.contains(path.trim_end_matches('/'))), "mounts are left");
    let children = fs::read_to_string("/proc/thread-self/children").unwrap_or_default();
    assert_eq!(children, "", "children are left");
}

#[test]
fn a_thousand_runs_eight_at_a_time() {
    let count = std::env::var("GANTRY_TEST_ROUNDS").ok().and_then(|text| text.parse().ok()).unwrap_or(1000);
    let bed = Bed::new("exit 3");
    bed.save();
    let names: Vec<String> = (0..count).map(|_| id("storm")).collect();
    let next = AtomicUsize::new(0);
    std::thread::scope(|scope| {
        for _ in 0..8 {
            scope.spawn(|| {
                while let Some(name) = names.get(next.fetch_add(1, Ordering::Relaxed)) {
                    let ran = finish(&mut bed.command(&["run", name]));
                    assert_eq!((ran.code, ran.err.as_str()), (3, ""), "{name}");
                }
            });
        }
    });
    assert_nothing_left(&bed, &names);
}

#[test]
fn signals_at_any_moment() {
    let bed = Bed::new("trap 'exit 0' INT TERM HUP; while :; do sleep 0.01; done");
    bed.save();
    let mut names = Vec::new();
    for round in 0..48_u64 {
        let name = id("signal");
        names.push(name.clone());
        let mut child = bed.command(&["run", &name]).stderr(Stdio::null()).spawn().expect("the runtime");
        // Spread over the time that a start takes, a little longer each time.
        std::thread::sleep(Duration::from_micros(round * 400));
        let signal = ["INT", "TERM", "HUP", "KILL"][round as usize % 4];
        until(&format!("{signal} ends it in round {round}"), || {
            let pid = child.id().to_string();
            if child.try_wait().expect("waiting").is_some() {
                return true;
            }
            let _ = Command::new("kill").args(["-s", signal, &pid]).stderr(Stdio::null()).status();
            false
        });
        if signal == "KILL" {
            // The container may go on; who made it is gone.
            bed.ok(&["delete", "--force", &name]);
        }
        until(&format!("{signal} in round {round} leaves nothing"), || common::cgroups(&name).is_empty());
        bed.assert_gone(&name);
    }
    assert_nothing_left(&bed, &names);
}

/// Run a shell script that becomes the runtime: `$@` is its command line, `$STATE` its state root.
fn shell(bed: &Bed, script: &str, args: &[&str]) -> Ran {
    bed.save();
    let mut shell = Command::new("sh");
    shell.args(["-c", script, "sh", env!("CARGO_BIN_EXE_gantry-runtime"), "--root"]).arg(bed.path("state")).args(args);
    shell.env("STATE", bed.path("state")).current_dir(bed.bundle()).stdin(Stdio::null());
    finish(&mut shell)
}

/// It worked, or failed with a message.
fn assert_clear(why: &str, ran: &Ran, out: &str) {
    match ran.code {
        0 => assert_eq!(ran.out, out, "{why}: {ran:?}"),
        _ => assert!(ran.err.contains("gantry-runtime: ") && !ran.err.contains("panicked"), "{why}: {ran:?}"),
    }
}

#[test]
fn state_roots_that_take_no_writes() {
    let bed = Bed::new("echo ran");
    fs::create_dir(bed.path("state")).expect("a directory");
    // Full after 1, 2, 3 ... files, or pages.
    let mut worked = 0;
    for size in 1..12 {
        for limit in [format!("nr_inodes={size}"), format!("size={}k", (size - 1) * 4)] {
            if limit == "size=0k" {
                continue; // Unlimited.
            }
            let script = format!(
                "mount -t tmpfs -o {limit} t \"$STATE\" || exit 90; \"$@\"; code=$?; ls -A \"$STATE\"; exit $code"
            );
            let name = id("full");
            let script = format!("exec unshare -m sh -c '{script}' \"$@\"");
            let ran = shell(&bed, &script.replace("' \"$@\"", "' sh \"$@\""), &["run", &name]);
            assert_ne!(ran.code, 90, "{ran:?}");
            assert_clear(&limit, &ran, "ran\n");
            assert!(ran.code == 0 || ran.out.is_empty(), "{limit}: something is left: {ran:?}");
            worked += u32::from(ran.code == 0);
            bed.assert_gone(&name);
        }
    }
    assert!(worked > 0, "it works with enough room");
    let name = id("readonly");
    let script = "exec unshare -m sh -c 'mount -t tmpfs -o ro t \"$STATE\" || exit 90; exec \"$@\"' sh \"$@\"";
    let ran = shell(&bed, script, &["run", &name]);
    assert!(ran.code == 1 && ran.err.contains("Read-only file system"), "{ran:?}");
    let ran = shell(&bed, script, &["delete", "--force", &name]);
    assert_eq!(ran.code, 0, "there is nothing to delete: {ran:?}");
    assert_nothing_left(&bed, &[name]);
}

#[test]
fn few_descriptors() {
    let mut bed = Bed::new("echo ran");
    // Not to be raised without privilege.
    bed.config["process"]["rlimits"] = json!([]);
    let mut names = Vec::new();
    let mut worked = 0;
    for limit in (3..24).chain([32, 48, 64]) {
        let name = id("files");
        let ran = shell(&bed, &format!("ulimit -n {limit}; exec \"$@\""), &["run", &name]);
        worked += u32::from(ran.code == 0);
        // Below ten, not even the message may come out of the start of the program.
        if limit >= 10 {
            assert_clear(&format!("{limit} files"), &ran, "ran\n");
        }
        bed.assert_gone(&name);
        names.push(name);
    }
    assert!(worked > 0, "it works with enough");
    assert_nothing_left(&bed, &names);
}

#[test]
fn no_free_processes() {
    let v1 = Path::new("/sys/fs/cgroup/pids");
    let root = if v1.is_dir() { v1 } else { Path::new("/sys/fs/cgroup") };
    let group = root.join(id("caller"));
    fs::create_dir(&group).expect("a cgroup");
    struct Remove<'a>(&'a Path);
    impl Drop for Remove<'_> {
        fn drop(&mut self) {
            let _ = fs::remove_dir(self.0);
        }
    }
    let _remove = Remove(&group);
    if !group.join("pids.max").exists() {
        eprintln!("nothing to test: no pids controller");
        return;
    }
    let mut bed = Bed::new("echo ran");
    bed.config["hooks"] = json!({"createRuntime": [{"path": "/bin/true"}]});
    let mut names = Vec::new();
    for limit in 1..5 {
        let name = id("pids");
        let script = format!("echo {limit} > {0}/pids.max; echo $$ > {0}/cgroup.procs; exec \"$@\"", group.display());
        let ran = shell(&bed, &script, &["run", &name]);
        assert!(limit > 1 || ran.code == 1, "{ran:?}");
        assert!(limit < 4 || ran.code == 0, "{ran:?}");
        assert_clear(&format!("{limit} processes"), &ran, "ran\n");
        bed.assert_gone(&name);
        names.push(name);
    }
    assert_nothing_left(&bed, &names);
}

#[test]
fn closed_streams_confuse_no_descriptor() {
    let mut bed =
        Bed::new("echo out; echo err >&2; ls -l /proc/self/fd 2>/dev/null | grep -c ' [0-2] -> /dev/null'; true");
    bed.config["root"]["readonly"] = json!(false);
    let mut names = Vec::new();
    for closed in ["<&-", ">&-", "2>&-", "<&- >&-", "<&- 2>&-", ">&- 2>&-", "<&- >&- 2>&-"] {
        for args in [&["run"][..], &["run", "--keep"], &["run", "-d"]] {
            let name = id("closed");
            let ran = shell(&bed, &format!("exec \"$@\" {closed}"), &[args, &[name.as_str()]].concat());
            assert_eq!(ran.code, 0, "{closed} {args:?}: {ran:?}");
            assert!(closed.contains("2>") || args.len() > 1 || ran.err == "err\n", "{closed} {args:?}: {ran:?}");
            if args.len() > 1 {
                // Nothing the program wrote has gone into our own files.
                bed.wait_for_status(&name, "stopped");
                for file in ["state.json", "config.json"] {
                    let text = fs::read(bed.path("state").join(&name).join(file)).expect(file);
                    serde_json::from_slice::<serde_json::Value>(&text).expect("whole");
                }
                bed.ok(&["delete", &name]);
            }
            names.push(name);
        }
    }
    assert_nothing_left(&bed, &names);
}

#[test]
fn what_the_caller_hands_down() {
    let mut bed = Bed::new("grep -E '^Sig(Blk|Ign)' /proc/self/status; exit 7");
    bed.config["hooks"] = json!({"createRuntime": [{"path": "/bin/sh", "args": ["sh", "-c", "exit 0"]}]});
    let clean = "SigBlk:\t0000000000000000\nSigIgn:\t0000000000000000\n";
    for (why, script) in [
        ("SIGCHLD ignored", "trap '' CHLD; exec \"$@\""),
        ("signals blocked", "exec env --block-signal \"$@\""),
        ("signals ignored", "exec env --ignore-signal \"$@\""),
        (
            "a huge environment",
            "export A=$(head -c 100000 /dev/zero | tr '\\0' a); export B=$A C=$A D=$A E=$A; exec \"$@\"",
        ),
        ("no environment", "exec env -i \"$@\""),
        ("the lowest priority", "exec nice -n 19 \"$@\""),
        ("no stack to speak of", "ulimit -s 256; exec \"$@\""),
    ] {
        let ran = shell(&bed, script, &["run", &id("caller")]);
        assert_eq!((ran.code, ran.out.as_str()), (7, clean), "{why}: {ran:?}");
    }
    // A directory deeper than a path can say.
    let deep = "cd \"$STATE/..\"; n=$(head -c 200 /dev/zero | tr '\\0' d); i=0
        while [ $i -lt 30 ]; do mkdir -p $n; cd -P $n; i=$((i + 1)); done; exec \"$@\"";
    let bundle = bed.bundle().display().to_string();
    fs::create_dir_all(bed.path("state")).expect("a directory");
    let ran = shell(&bed, deep, &["run", "--bundle", &bundle, &id("deep")]);
    assert_eq!((ran.code, ran.out.as_str()), (7, clean), "{ran:?}");
    let ran = shell(&bed, deep, &["run", &id("deep")]);
    assert!(ran.code != 0 && ran.code != 7 && ran.err.starts_with("gantry-runtime: "), "{ran:?}");
    // A directory that is gone.
    let gone = "mkdir \"$STATE/../gone\"; cd \"$STATE/../gone\"; rmdir ../gone; exec \"$@\"";
    let ran = shell(&bed, gone, &["run", "--bundle", &bundle, &id("gone")]);
    assert_eq!((ran.code, ran.out.as_str()), (7, clean), "{ran:?}");
    assert_nothing_left(&bed, &[]);
}

#[test]
fn without_proc() {
    let bed = Bed::new("echo ran");
    let name = id("noproc");
    let script = "exec unshare -m sh -c 'umount -l /proc || exit 90; exec \"$@\"' sh \"$@\"";
    for args in [&["run", &name][..], &["create", &name], &["state", &name], &["delete", "--force", &name], &["list"]] {
        let ran = shell(&bed, script, args);
        assert!(ran.code != 90 && !ran.err.contains("panicked"), "{args:?}: {ran:?}");
        assert_clear(&format!("{args:?}"), &ran, &ran.out);
        if matches!(args[0], "run" | "create") {
            assert!(ran.code == 1 && ran.err.contains("/proc"), "{args:?}: {ran:?}");
        }
    }
    assert_nothing_left(&bed, &[name]);
}

#[test]
fn no_memory_for_the_start() {
    if !Path::new("/sys/fs/cgroup/memory/memory.oom_control").exists() {
        eprintln!("nothing to test: no memory controller in v1");
        return;
    }
    for (why, score, disabled) in [
        ("killed at once", 500, false),
        // Without the privilege, this is refused; with it, the process is killed after a second.
        ("must not be killed", -1000, false),
        ("sleeps for ever", 500, true),
    ] {
        let mut bed = Bed::new("echo ran");
        bed.config["linux"]["resources"]["memory"] = json!({"limit": 4096, "disableOOMKiller": disabled});
        bed.config["process"]["oomScoreAdj"] = json!(score);
        let (name, other) = (id("oom"), id("oom"));
        let ran = bed.run(&["run", &name]);
        assert!(ran.code != 0 && ran.err.contains("gantry-runtime: "), "{why}: {ran:?}");
        assert!(!disabled || ran.err.contains("no memory left"), "{why}: {ran:?}");
        bed.assert_gone(&name);
        let supervised = bed.supervised();
        let mut args = vec!["create", other.as_str()];
        args.extend(supervised.iter().map(String::as_str));
        if bed.run(&args).code == 0 {
            // There was just enough for that; then there is not for the program.
            let ran = bed.run(&["start", &other]);
            assert!(ran.code == 0 || ran.err.contains("gantry-runtime: "), "{why}: {ran:?}");
            bed.ok(&["delete", "--force", &other]);
        }
        bed.assert_gone(&other);
        assert_nothing_left(&bed, &[name, other]);
    }
}
