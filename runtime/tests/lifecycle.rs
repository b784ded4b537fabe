//! create, start, exec, kill, delete, run: what callers rely on.

mod common;

use common::{Bed, cgroups, finish, id, runs, signal, until, wait};
use serde_json::{Value, json};
use std::fs;
use std::io::{Read, Write};
use std::os::unix::net::UnixListener;
use std::process::Stdio;

#[test]
fn create_start_kill_delete() {
    let bed = Bed::new("trap 'exit 3' TERM; echo ready; while :; do sleep 0.05; done");
    let name = id("life");
    bed.ok(&["create", "--pid-file", "pid", &name]);
    assert_eq!(bed.status(&name), "created");
    let pid: i32 = fs::read_to_string(bed.bundle().join("pid")).expect("the pid file").parse().expect("a number");
    assert_eq!(bed.pid(&name), pid);
    assert!(bed.run(&["create", &name]).err.contains("already exists"));
    bed.ok(&["start", &name]);
    assert_eq!(bed.status(&name), "running");
    assert!(bed.run(&["start", &name]).err.contains("cannot start an already running container"));
    let refused = bed.run(&["delete", &name]);
    assert!(refused.code == 1 && refused.err.contains("not stopped: running"), "{refused:?}");
    // Its program may not have set the trap yet, and process 1 ignores what it does not handle.
    until("the program has ended", || {
        bed.run(&["kill", &name, "TERM"]);
        !runs(pid)
    });
    assert_eq!(bed.status(&name), "stopped");
    assert!(bed.run(&["kill", &name]).err.contains("not running"));
    bed.ok(&["delete", &name]);
    bed.assert_gone(&name);
    assert!(bed.run(&["state", &name]).err.contains("does not exist"));
    assert_eq!(bed.run(&["delete", &name]).code, 1);
    bed.ok(&["delete", "--force", &name]);
}

#[test]
fn a_created_container_can_be_deleted() {
    let bed = Bed::new("true");
    let name = id("created");
    bed.ok(&["create", &name]);
    bed.ok(&["delete", &name]);
    bed.assert_gone(&name);
}

#[test]
fn exit_codes_of_run() {
    for (script, want) in [("exit 0", 0), ("exit 42", 42), ("kill -9 $$; sleep 9", 0), ("exec false_program", 127)] {
        let bed = Bed::new(script);
        let name = id("code");
        // Process 1 cannot kill itself, so the third case goes on, until killed from outside.
        if want == 0 && script.contains("kill") {
            bed.save();
            let child = bed.command(&["run", &name]).spawn().expect("the runtime");
            until("it runs", || bed.run(&["state", &name]).code == 0 && bed.status(&name) == "running");
            until("it is killed", || {
                bed.run(&["kill", &name, "KILL"]).code == 0 || !bed.path("state").join(&name).exists()
            });
            assert_eq!(wait(child), 137);
        } else {
            assert_eq!(bed.run(&["run", &name]).code, want, "{script}");
        }
        bed.assert_gone(&name);
    }
}

#[test]
fn standard_streams_pass_through() {
    let bed = Bed::new("cat; echo done >&2");
    bed.save();
    let name = id("pipe");
    let mut child = bed
        .command(&["run", &name])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("the runtime");
    child.stdin.take().expect("stdin").write_all(b"through\n").expect("written");
    let output = child.wait_with_output().expect("its end");
    assert_eq!((output.stdout.as_slice(), output.stderr.as_slice()), (&b"through\n"[..], &b"done\n"[..]));
}

#[test]
fn signals_are_passed_on_and_interrupting_leaves_nothing() {
    let bed = Bed::new("trap 'echo got; exit 5' INT; echo up; while :; do sleep 0.05; done");
    bed.save();
    let name = id("int");
    let mut child = bed.command(&["run", &name]).stdout(Stdio::piped()).spawn().expect("the runtime");
    let mut first = [0; 3];
    child.stdout.as_mut().expect("stdout").read_exact(&mut first).expect("its first line");
    signal(child.id() as i32, 2);
    assert_eq!(wait(child), 5);
    bed.assert_gone(&name);
}

#[test]
fn three_interrupts_kill_what_does_not_listen() {
    let bed = Bed::new("trap '' INT; echo up; while :; do sleep 0.05; done");
    bed.save();
    let name = id("int3");
    let mut child = bed.command(&["run", &name]).stdout(Stdio::piped()).spawn().expect("the runtime");
    let mut first = [0; 3];
    child.stdout.as_mut().expect("stdout").read_exact(&mut first).expect("its first line");
    let pid = child.id() as i32;
    // Equal signals that are pending at once count as one, so it is sent until it has worked.
    let code = loop {
        if let Some(status) = child.try_wait().expect("waiting") {
            break status.code();
        }
        signal(pid, 2);
        std::thread::sleep(std::time::Duration::from_millis(5));
    };
    assert_eq!(code, Some(137));
    bed.assert_gone(&name);
}

#[test]
fn an_interrupt_at_any_moment_leaves_nothing() {
    let bed = Bed::new("trap 'exit 0' INT TERM; while :; do sleep 0.01; done");
    bed.save();
    for step in 0..20 {
        let name = id("any");
        let child = bed.command(&["run", &name]).stderr(Stdio::null()).spawn().expect("the runtime");
        std::thread::sleep(std::time::Duration::from_millis(step));
        let pid = child.id() as i32;
        let mut child = child;
        let _ = common::until_or(|| {
            if child.try_wait().expect("waiting").is_some() {
                return true;
            }
            let _ = std::process::Command::new("kill").args(["-2", &pid.to_string()]).stderr(Stdio::null()).status();
            false
        });
        bed.assert_gone(&name);
    }
}

#[test]
fn exec_runs_inside_with_its_own_settings() {
    let mut bed = Bed::new("sleep 1000");
    bed.config["process"]["capabilities"]["bounding"] = json!(["CAP_KILL", "CAP_CHOWN"]);
    let name = id("exec");
    bed.ok(&["run", "--detach", &name]);
    let pid = bed.pid(&name);
    for kind in ["pid", "net", "ipc", "uts", "mnt", "cgroup"] {
        let inside = bed.ok(&["exec", &name, "readlink", &format!("/proc/self/ns/{kind}")]);
        let want = fs::read_link(format!("/proc/{pid}/ns/{kind}")).expect("a namespace");
        assert_eq!(inside.trim(), want.display().to_string(), "{kind}");
    }
    let cgroup = bed.ok(&["exec", &name, "cat", "/proc/self/cgroup"]);
    assert!(cgroup.lines().all(|line| line.ends_with(":/")), "in the container's cgroups: {cgroup}");
    assert_eq!(bed.run(&["exec", &name, "sh", "-c", "exit 9"]).code, 9);
    assert_eq!(bed.run(&["exec", &name, "sh", "-c", "kill -9 $$"]).code, 137);
    let out = bed.ok(&[
        "exec",
        "--user",
        "7:8",
        "--cwd",
        "/etc",
        "-e",
        "A=b",
        "-g",
        "9",
        &name,
        "sh",
        "-c",
        "id; pwd; echo $A",
    ]);
    assert_eq!(out, "uid=7 gid=8 groups=8,9\n/etc\nb\n".replace("groups=8,9", "groups=9"), "{out}");
    let status = bed.ok(&["exec", "--cap", "CAP_CHOWN", &name, "cat", "/proc/self/status"]);
    assert!(common::field(&status, "CapEff").ends_with("00000021"), "{status}");
    assert_eq!(common::field(&status, "NoNewPrivs"), "1");
    let missing = bed.run(&["exec", &name, "nothing"]);
    assert!(missing.code == 127 && missing.err.contains("executable file not found in $PATH"), "{missing:?}");
    let nowhere = bed.run(&["exec", "--cwd", "/nowhere", &name, "true"]);
    assert!(nowhere.code == 126 && nowhere.err.contains("working directory `/nowhere`"), "{nowhere:?}");
    let process = json!({"args": ["sh", "-c", "echo $X; pwd"], "cwd": "/bin", "env": ["X=y", "PATH=/bin"], "user": {"uid": 0, "gid": 0}});
    fs::write(bed.path("process.json"), process.to_string()).expect("a file");
    let file = bed.path("process.json").display().to_string();
    assert_eq!(bed.ok(&["exec", "--process", &file, &name]), "y\n/bin\n");
    let env = bed.ok(&["exec", "-e", "X=1", "-e", "PATH=/none:/bin", "-e", "X=2", &name, "env"]);
    let set: Vec<&str> = env.lines().filter(|line| line.starts_with("X=") || line.starts_with("PATH=")).collect();
    assert_eq!(set, ["PATH=/none:/bin", "X=2"], "the later one replaces: {env}");
    bed.ok(&["exec", "--detach", "--pid-file", "exec-pid", &name, "sleep", "1000"]);
    let second: i32 = fs::read_to_string(bed.bundle().join("exec-pid")).expect("a pid").parse().expect("a number");
    assert!(runs(second));
    bed.ok(&["delete", "--force", &name]);
    assert!(!runs(second), "the PID namespace took it along");
    assert!(bed.run(&["exec", &name, "true"]).err.contains("does not exist"));
}

#[test]
fn our_binary_is_out_of_reach_during_exec() {
    // A process of the container that opens every /proc/PID/exe it sees, while exec goes on.
    let bed = Bed::new("while :; do for p in /proc/[0-9]*; do readlink $p/exe | grep gantry; done; done 2>/dev/null");
    let name = id("exe");
    let mut bed = bed;
    bed.config["linux"]["namespaces"].as_array_mut().expect("namespaces");
    let supervised = bed.supervised();
    let mut args = vec!["run", "--detach", &name];
    args.extend(supervised.iter().map(String::as_str));
    bed.ok(&args);
    for _ in 0..30 {
        bed.ok(&["exec", &name, "true"]);
    }
    bed.ok(&["delete", "--force", &name]);
    bed.exit_record();
    assert_eq!(bed.logged(), "", "it saw our binary");
}

#[test]
fn terminals() {
    // Through a console socket, as engines do.
    let mut bed = Bed::new("tty; stty size; stat -c %t:%T /dev/console; exit 6");
    bed.config["process"]["terminal"] = json!(true);
    bed.config["process"]["consoleSize"] = json!({"height": 33, "width": 77});
    let name = id("tty");
    let path = bed.path("console");
    let listener = UnixListener::bind(&path).expect("a socket");
    bed.ok(&["create", "--console-socket", &path.display().to_string(), &name]);
    let (socket, _) = listener.accept().expect("a connection");
    let mut buffer = [0; 64];
    use std::os::fd::AsFd;
    let (count, master) = gantry_runtime::sys::socket::receive(socket.as_fd(), &mut buffer).expect("a message");
    assert!(buffer[..count].starts_with(b"/dev/pts/"));
    let mut master = fs::File::from(master.expect("the terminal"));
    bed.ok(&["start", &name]);
    let mut text = Vec::new();
    let mut chunk = [0; 1024];
    while let Ok(count @ 1..) = master.read(&mut chunk) {
        text.extend_from_slice(&chunk[..count]);
    }
    assert_eq!(String::from_utf8_lossy(&text), "/dev/pts/0\r\n33 77\r\n88:0\r\n");
    bed.ok(&["delete", "--force", &name]);
}

#[test]
fn a_terminal_in_the_foreground_is_relayed() {
    let mut bed = Bed::new("tty; read line; echo \"got $line\"; exit 6");
    bed.config["process"]["terminal"] = json!(true);
    bed.save();
    let name = id("fg");
    let mut command = bed.command(&["run", &name]);
    command.stdin(Stdio::piped()).stdout(Stdio::piped());
    let mut child = command.spawn().expect("the runtime");
    child.stdin.as_mut().expect("stdin").write_all(b"typed\n").expect("written");
    let output = child.wait_with_output().expect("its end");
    let text = String::from_utf8_lossy(&output.stdout).replace('\r', "");
    assert_eq!(output.status.code(), Some(6), "{text}");
    assert!(text.contains("/dev/pts/0\n") && text.ends_with("got typed\n"), "{text}");
    bed.assert_gone(&name);
    // And for exec.
    let other = Bed::new("sleep 1000");
    let name = id("fgx");
    other.ok(&["run", "-d", &name]);
    let output = other.command(&["exec", "-t", &name, "sh", "-c", "tty; exit 4"]).output().expect("exec");
    assert_eq!((output.status.code(), String::from_utf8_lossy(&output.stdout).as_ref()), (Some(4), "/dev/pts/0\n"));
}

#[test]
fn limits_hold() {
    let mut bed = Bed::new("for i in 1 2 3 4 5 6 7 8; do sleep 5 & done; wait");
    bed.config["linux"]["resources"]["pids"] = json!({"limit": 4});
    let name = id("pids");
    let ran = bed.run(&["run", &name]);
    assert!(ran.code != 0 && ran.err.contains("can't fork"), "{ran:?}");
    let mut bed = Bed::new(
        "cat /sys/fs/cgroup/memory/memory.limit_in_bytes /sys/fs/cgroup/cpu/cpu.cfs_quota_us /sys/fs/cgroup/cpu/cpu.shares 2>/dev/null || cat /sys/fs/cgroup/memory.max",
    );
    if !std::path::Path::new("/sys/fs/cgroup/memory").exists() {
        return; // The host has no v1 hierarchies; the table test covers the values.
    }
    bed.config["linux"]["resources"]["memory"] = json!({"limit": 64 << 20});
    bed.config["linux"]["resources"]["cpu"] = json!({"quota": 50_000, "period": 100_000, "shares": 512});
    assert_eq!(bed.says(), format!("{}\n50000\n512\n", 64 << 20));
}

#[test]
fn the_v2_directory_is_joined_too() {
    let bed = Bed::new("sleep 1000");
    let name = id("v2");
    bed.ok(&["run", "-d", &name]);
    let pid = bed.pid(&name);
    let membership = fs::read_to_string(format!("/proc/{pid}/cgroup")).expect("its cgroups");
    let places: Vec<&str> = membership.lines().map(|line| line.rsplit(':').next().expect("a path")).collect();
    assert!(places.iter().all(|place| *place == format!("/gantry-runtime/{name}")), "{membership}");
    assert!(cgroups(&name).len() >= places.len().min(2));
    bed.ok(&["delete", "-f", &name]);
    bed.assert_gone(&name);
}

#[test]
fn hooks_run_in_order_with_the_state() {
    let mut bed = Bed::new("echo program >> /log");
    bed.config["root"]["readonly"] = json!(false);
    let log = bed.rootfs("log");
    fs::write(&log, "").expect("the log");
    let outside = |word: &str| json!([{"path": "/bin/sh", "args": ["sh", "-c", format!("read s; echo {word} \"$s\" >> {}", log.display())]}]);
    let inside = json!([{"path": "/bin/sh", "args": ["sh", "-c", "read s; echo startContainer \"$s\" >> /log"], "env": ["PATH=/bin"]}]);
    bed.config["hooks"] = json!({
        "prestart": outside("prestart"), "createRuntime": outside("createRuntime"),
        "createContainer": outside("createContainer"), "startContainer": inside,
        "poststart": outside("poststart"), "poststop": outside("poststop"),
    });
    let name = id("hooks");
    bed.ok(&["create", &name]);
    bed.ok(&["start", &name]);
    bed.wait_for_status(&name, "stopped");
    bed.ok(&["delete", &name]);
    let text = fs::read_to_string(&log).expect("the log");
    let words: Vec<&str> = text.lines().map(|line| line.split(' ').next().expect("a word")).collect();
    let before: Vec<&str> = words.iter().copied().filter(|word| !matches!(*word, "program" | "poststart")).collect();
    assert_eq!(before, ["prestart", "createRuntime", "createContainer", "startContainer", "poststop"], "{text}");
    assert!(words.contains(&"program") && words.contains(&"poststart"), "{text}");
    for line in text.lines().filter(|line| !line.starts_with("program")) {
        let state: Value = serde_json::from_str(&line[line.find('{').expect("JSON")..]).expect("JSON");
        assert_eq!(state["id"], json!(name), "{line}");
        assert!(state["status"].is_string() && state["bundle"].is_string(), "{line}");
    }
}

#[test]
fn a_hook_that_fails_undoes_the_container() {
    for point in ["prestart", "createRuntime", "createContainer"] {
        let mut bed = Bed::new("true");
        bed.config["hooks"] = json!({point: [{"path": "/bin/sh", "args": ["sh", "-c", "echo no luck >&2; exit 1"]}]});
        let message = bed.refuses();
        assert!(message.contains(&format!("$.hooks.{point}[0]")) && message.contains("no luck"), "{message}");
    }
}

#[test]
fn twenty_at_once_leave_nothing() {
    let bed = Bed::new("echo $((6*7))");
    bed.save();
    let names: Vec<String> = (0..20).map(|_| id("many")).collect();
    std::thread::scope(|scope| {
        for name in &names {
            scope.spawn(|| {
                let ran = finish(&mut bed.command(&["run", name]));
                assert_eq!((ran.code, ran.out.as_str()), (0, "42\n"), "{}", ran.err);
            });
        }
    });
    names.iter().for_each(|name| bed.assert_gone(name));
    assert_eq!(bed.ok(&["list", "-q"]), "");
}

#[test]
fn a_creator_killed_at_any_moment_leaves_what_force_removes() {
    let bed = Bed::new("sleep 1000");
    bed.save();
    for step in 0..25 {
        let name = id("crash");
        let mut child = bed.command(&["create", &name]).stderr(Stdio::null()).spawn().expect("the runtime");
        std::thread::sleep(std::time::Duration::from_micros(step * 700));
        let _ = child.kill();
        let _ = child.wait();
        bed.ok(&["delete", "--force", &name]);
        bed.assert_gone(&name);
    }
}

#[test]
fn delete_force_works_from_the_cgroup_alone() {
    let bed = Bed::new("sleep 1000");
    let name = id("lost");
    bed.ok(&["run", "-d", &name]);
    let pid = bed.pid(&name);
    fs::remove_dir_all(bed.path("state").join(&name)).expect("the state is lost");
    bed.ok(&["delete", "--force", &name]);
    until("the process is gone", || !runs(pid));
    bed.assert_gone(&name);
}

#[test]
fn a_frozen_container_can_be_deleted() {
    let freezer = std::path::Path::new("/sys/fs/cgroup/freezer");
    let bed = Bed::new("sleep 1000");
    let name = id("frozen");
    bed.ok(&["run", "-d", &name]);
    if freezer.exists() {
        let place = freezer.join("gantry-runtime").join(&name).join("freezer.state");
        fs::write(place, "FROZEN").expect("frozen");
    } else {
        let place = std::path::Path::new("/sys/fs/cgroup/gantry-runtime").join(&name);
        fs::write(place.join("cgroup.freeze"), "1").expect("frozen");
        until("it is frozen", || {
            fs::read_to_string(place.join("cgroup.events")).is_ok_and(|text| text.contains("frozen 1"))
        });
    }
    bed.ok(&["delete", "--force", &name]);
    bed.assert_gone(&name);
}

#[test]
fn list_shows_them() {
    let bed = Bed::new("sleep 1000");
    let name = id("listed");
    assert_eq!(bed.ok(&["list", "-q"]), "");
    bed.ok(&["create", &name]);
    assert_eq!(bed.ok(&["list", "-q"]), format!("{name}\n"));
    let list: Value = serde_json::from_str(&bed.ok(&["list", "--format", "json"])).expect("JSON");
    assert_eq!((&list[0]["id"], &list[0]["status"]), (&json!(name), &json!("created")));
    assert!(bed.ok(&["list"]).contains(&name));
}

#[test]
fn kill_all_reaches_every_process() {
    let bed = Bed::new("sleep 1001 & sleep 1002 & wait; wait; sleep 1000");
    let name = id("all");
    bed.ok(&["run", "-d", &name]);
    until("both children run", || {
        bed.ok(&["exec", &name, "ps"]).lines().filter(|line| line.contains("sleep 100")).count() >= 3
    });
    bed.ok(&["kill", "--all", &name, "KILL"]);
    bed.wait_for_status(&name, "stopped");
}
