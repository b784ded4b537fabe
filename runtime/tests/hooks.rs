//! Hooks: when, where and with what they run, and what their failure means.

mod common;

use common::{Bed, id};
use serde_json::{Value, json};
use std::fs;
use std::os::unix::fs::PermissionsExt;

const POINTS: [&str; 6] = ["prestart", "createRuntime", "createContainer", "startContainer", "poststart", "poststop"];

/// A hook that runs a script of the host's shell.
fn hook(script: &str) -> Value {
    json!({"path": "/bin/sh", "args": ["sh", "-c", script, "hook"], "env": ["PATH=/usr/sbin:/usr/bin:/sbin:/bin", "MARK=yes"]})
}

/// A bed with a directory that hooks on both sides can write to.
fn bed(script: &str) -> Bed {
    let mut bed = Bed::new(script);
    let log = bed.path("log.d");
    fs::create_dir(&log).expect("a directory");
    let mounts = bed.config["mounts"].as_array_mut().expect("mounts");
    mounts.push(json!({"destination": log, "source": log, "options": ["bind"]}));
    bed
}

#[test]
fn order_state_environment_and_namespaces() {
    let mut bed = bed("echo program >> \"$LOG/order\"; readlink /proc/self/ns/mnt > \"$LOG/program.ns\"");
    let log = bed.path("log.d");
    bed.config["process"]["env"] = json!(["PATH=/bin", format!("LOG={}", log.display())]);
    bed.config["annotations"] = json!({"org.example.key": "a value"});
    for point in POINTS {
        let one = |number: u32| {
            hook(&format!(
                "cd {0} && cat > {point}.state && echo {point}{number} >> order && readlink /proc/self/ns/mnt > {point}.ns && \
                 echo \"$MARK:$LOG:$0\" > {point}.env",
                log.display()
            ))
        };
        bed.config["hooks"][point] = json!([one(1), one(2)]);
    }
    let name = id("hooks");
    let read = |file: &str| fs::read_to_string(log.join(file)).unwrap_or_default();
    bed.ok(&["create", &name]);
    let created = "prestart1 prestart2 createRuntime1 createRuntime2 createContainer1 createContainer2";
    assert_eq!(read("order").split_whitespace().collect::<Vec<_>>().join(" "), created);
    let pid = bed.pid(&name);
    let inside = fs::read_link(format!("/proc/{pid}/ns/mnt")).expect("a namespace").display().to_string();
    let outside = fs::read_link("/proc/self/ns/mnt").expect("a namespace").display().to_string();
    bed.ok(&["start", &name]);
    bed.wait_for_status(&name, "stopped");
    bed.ok(&["delete", &name]);
    let order = read("order").split_whitespace().collect::<Vec<_>>().join(" ");
    // The program runs beside the hooks that come after its start.
    let without = order.replace(" program", "");
    assert_eq!(without, format!("{created} startContainer1 startContainer2 poststart1 poststart2 poststop1 poststop2"));
    let place = |word: &str| order.find(word).unwrap_or_else(|| panic!("{word} in {order}"));
    assert!(place("startContainer2") < place("program"), "{order}");
    for (point, status, namespace, has_pid) in [
        ("prestart", "creating", &outside, true),
        ("createRuntime", "creating", &outside, true),
        ("createContainer", "creating", &inside, true),
        ("startContainer", "created", &inside, true),
        ("poststart", "running", &outside, true),
        ("poststop", "stopped", &outside, false),
    ] {
        let state: Value = serde_json::from_str(&read(&format!("{point}.state"))).expect("the state is JSON");
        assert_eq!(state["id"], json!(name), "{point}");
        // A program as short as this one may have ended before a later hook looks.
        assert!(state["status"] == json!(status), "{point}: {state}");
        assert_eq!(state["ociVersion"], json!("1.3.0"), "{point}");
        assert_eq!(state["bundle"], json!(bed.bundle()), "{point}");
        assert_eq!(state["annotations"]["org.example.key"], json!("a value"), "{point}");
        assert_eq!(state["pid"], if has_pid { json!(pid) } else { json!(0) }, "{point}");
        assert_eq!(read(&format!("{point}.ns")).trim(), *namespace, "{point}");
        assert_eq!(read(&format!("{point}.env")), "yes::hook\n", "{point}: its own environment and arguments only");
    }
}

#[test]
fn create_hooks_see_the_mounts_of_the_container_at_the_root_filesystem() {
    for no_pivot in [false, true] {
        let mut bed = bed("cat /made/by-hook /added/file; ls /proc/1/root >/dev/null && echo proc");
        let (log, root) = (bed.path("log.d"), bed.rootfs(""));
        let root = root.display().to_string();
        let root = root.trim_end_matches('/');
        fs::create_dir(bed.path("host")).expect("a directory");
        fs::write(bed.path("host/file"), "bound by a hook\n").expect("a file");
        let mounts = bed.config["mounts"].as_array_mut().expect("mounts");
        mounts.push(json!({"destination": "/made", "type": "tmpfs", "source": "t"}));
        mounts.push(json!({"destination": "/added", "type": "tmpfs", "source": "t"}));
        bed.config["hooks"]["createContainer"] = json!([hook(&format!(
            "ls {root}/proc/1 >/dev/null && echo hello > {root}/made/by-hook && cat {}/host/file > /dev/null && grep -c ' {root}' /proc/self/mountinfo > {}/count",
            bed.path("").display().to_string().trim_end_matches('/'),
            log.display()
        ))]);
        // A hook of the runtime's namespace reaches the same place through the process it is told of.
        bed.config["hooks"]["createRuntime"] = json!([hook(&format!(
            "pid=$(sed 's/.*\"pid\":\\([0-9]*\\).*/\\1/') && nsenter -m -t $pid mount --bind {0}/host {root}/added",
            bed.path("").display().to_string().trim_end_matches('/'),
        ))]);
        let name = id("place");
        let args: &[&str] = if no_pivot { &["run", "--no-pivot", &name] } else { &["run", &name] };
        let ran = bed.run(args);
        assert_eq!(ran.code, 0, "{ran:?}");
        assert_eq!(ran.out, "hello\nbound by a hook\nproc\n", "no_pivot {no_pivot}: {}", ran.err);
    }
}

#[test]
fn a_failing_hook_means_what_the_specification_says() {
    // Point, exit code of `run`, whether the program has run.
    for (point, code, runs) in [
        ("prestart", 1, false),
        ("createRuntime", 1, false),
        ("createContainer", 1, false),
        ("startContainer", 1, false),
        ("poststart", 1, true),
        ("poststop", 0, true),
    ] {
        let mut bed = bed("echo ran > \"$LOG/ran\"; test -z \"$STAY\" || sleep 1000");
        let log = bed.path("log.d");
        let stay = if point == "poststart" { "STAY=1" } else { "STAY=" };
        bed.config["process"]["env"] = json!(["PATH=/bin", format!("LOG={}", log.display()), stay]);
        bed.config["hooks"]["poststop"] = json!([hook(&format!("echo after >> {}/after", log.display()))]);
        let wait = if point == "poststart" { "while ! test -e ran; do sleep 0.01; done;" } else { "" };
        let failing = hook(&format!("cd {}; {wait} echo no luck; exit 3", log.display()));
        match point {
            // The one that comes after it runs all the same.
            "poststop" => bed.config["hooks"]["poststop"].as_array_mut().expect("hooks").insert(0, failing),
            _ => bed.config["hooks"][point] = json!([failing, hook(&format!("touch {}/second", log.display()))]),
        }
        let name = id("fails");
        let ran = bed.run(&["run", &name]);
        assert_eq!(ran.code, code, "{point}: {ran:?}");
        let shell = if point == "startContainer" { "no luck" } else { "`/bin/sh` failed with exit code 3: no luck" };
        assert!(
            ran.err.contains(&format!("error running hook $.hooks.{point}[0]: ")) && ran.err.contains(shell),
            "{point}: {}",
            ran.err
        );
        assert_eq!(ran.err.contains("warning: "), point == "poststop", "{point}: {}", ran.err);
        assert_eq!(log.join("ran").exists(), runs, "{point}");
        assert!(!log.join("second").exists(), "{point}: the next hook of a failed point does not run");
        assert_eq!(
            fs::read_to_string(log.join("after")).unwrap_or_default(),
            "after\n",
            "{point}: poststop hooks run once"
        );
        bed.assert_gone(&name);
    }
}

#[test]
fn start_fails_with_its_hooks_and_ends_the_container() {
    for point in ["startContainer", "poststart"] {
        let mut bed = bed("sleep 1000");
        bed.config["hooks"][point] = json!([{"path": "/bin/sh", "args": ["sh", "-c", "exit 4"]}]);
        let name = id("start");
        bed.ok(&["create", &name]);
        let ran = bed.run(&["start", &name]);
        assert!(ran.code == 1 && ran.err.contains(&format!("$.hooks.{point}[0]")), "{point}: {ran:?}");
        bed.wait_for_status(&name, "stopped");
        bed.ok(&["delete", &name]);
        bed.assert_gone(&name);
    }
}

#[test]
fn hooks_that_do_not_read_hang_or_are_not_there() {
    let mut bed = bed("echo ran");
    // A state that no pipe would hold, for hooks that never look at it.
    bed.config["annotations"] = json!({"big": "x".repeat(1 << 20)});
    for point in POINTS {
        bed.config["hooks"][point] = json!([{"path": "/bin/true"}]);
    }
    assert_eq!(bed.says(), "ran\n");
    bed.config["annotations"] = json!({});
    let plain = bed.path("plain");
    fs::write(&plain, "text").expect("a file");
    for (hook, want) in [
        (json!({"path": "/no/such/hook"}), "`/no/such/hook` cannot be run: no such file or directory"),
        (json!({"path": plain}), "/plain` cannot be run: permission denied"),
        (
            json!({"path": "/bin/sh", "args": ["sh", "-c", "sleep 1000 & wait"], "timeout": 1}),
            "took longer than its timeout of 1 s",
        ),
        (json!({"path": "/bin/sh", "args": ["sh", "-c", "kill -11 $$"]}), "`/bin/sh` died of signal 11"),
    ] {
        for point in ["createRuntime", "createContainer"] {
            let mut bed = Bed::new("echo ran");
            bed.config["hooks"][point] = json!([hook]);
            let message = bed.refuses();
            assert!(
                message.contains(&format!("error running hook $.hooks.{point}[0]: ")) && message.contains(want),
                "{point}: {message}"
            );
        }
    }
}

#[test]
fn hooks_get_no_signals_blocked_and_no_descriptor_of_ours() {
    let mut bed = bed("true");
    let log = bed.path("log.d");
    for point in ["createRuntime", "createContainer", "poststart", "poststop"] {
        bed.config["hooks"][point] = json!([hook(&format!(
            "grep SigBlk /proc/self/status > {0}/{point}; ls /proc/self/fd | wc -l >> {0}/{point}",
            log.display()
        ))]);
    }
    bed.says();
    for point in ["createRuntime", "createContainer", "poststart", "poststop"] {
        let text = fs::read_to_string(log.join(point)).expect("what the hook saw");
        assert_eq!(text.split_whitespace().collect::<Vec<_>>(), ["SigBlk:", "0000000000000000", "4"], "{point}");
    }
}

#[test]
fn a_start_hook_of_the_image_has_no_more_rights_than_its_program() {
    let mut bed = bed("grep -E '^(Cap|NoNewPrivs|Seccomp:|Uid)' /proc/self/status");
    let log = bed.path("log.d");
    fs::set_permissions(&log, fs::Permissions::from_mode(0o777)).expect("a mode");
    bed.config["process"]["user"] = json!({"uid": 1000, "gid": 1000});
    bed.config["linux"]["seccomp"] = json!({"defaultAction": "SCMP_ACT_ALLOW", "syscalls": [
        {"names": ["mkdir"], "action": "SCMP_ACT_ERRNO"},
    ]});
    let script = format!("grep -E '^(Cap|NoNewPrivs|Seccomp:|Uid)' /proc/self/status > {}/hook", log.display());
    bed.config["hooks"]["startContainer"] =
        json!([{"path": "/bin/sh", "args": ["sh", "-c", script], "env": ["PATH=/bin"]}]);
    for no_new_privileges in [true, false] {
        bed.config["process"]["noNewPrivileges"] = json!(no_new_privileges);
        let program = bed.says();
        let hook = fs::read_to_string(log.join("hook")).expect("what the hook saw");
        assert!(hook.contains("Seccomp:\t2") && hook.contains("Uid:\t1000"), "{hook}");
        assert_eq!(hook, program);
    }
}
