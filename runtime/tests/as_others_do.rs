//! Details that runc and crun agree on and their own test suites ask for.

mod common;

use common::{Bed, Ran, finish, id, until};
use serde_json::json;
use std::fs;
use std::io::Write;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::process::{Command, Stdio};

#[test]
fn a_process_and_limits_may_come_from_a_pipe() {
    let bed = Bed::new("sleep 1000");
    let name = id("pipe");
    bed.ok(&["run", "-d", &name]);
    let piped = |arguments: &[&str], text: &[u8]| -> Ran {
        let (reader, mut writer) = std::io::pipe().expect("a pipe");
        let mut command = bed.command(arguments);
        command.stdin(Stdio::from(reader));
        writer.write_all(text).expect("into the pipe");
        drop(writer);
        finish(&mut command)
    };
    let process = json!({"args": ["sh", "-c", "echo $WORD"], "env": ["PATH=/bin", "WORD=heard"], "cwd": "/"});
    let ran = piped(&["exec", "-p", "/dev/stdin", &name], process.to_string().as_bytes());
    assert_eq!((ran.code, ran.out.as_str()), (0, "heard\n"), "{}", ran.err);
    let ran = piped(&["exec", "-p", "/dev/stdin", &name], b"");
    assert!(ran.code == 255 && ran.err.contains("/dev/stdin"), "nothing came: {ran:?}");
    let ran = piped(&["update", "-r", "/dev/stdin", &name], br#"{"pids": {"limit": 77}}"#);
    assert_eq!(ran.code, 0, "{}", ran.err);
    let limits = bed.ok(&["exec", &name, "sh", "-c", "cat /sys/fs/cgroup/pids.max /sys/fs/cgroup/pids/pids.max; true"]);
    assert_eq!(limits.trim(), "77");
}

#[test]
fn a_terminal_that_is_copied_to_a_file_keeps_its_newlines() {
    let mut bed = Bed::new("tty >/dev/null && echo one && echo two");
    bed.config["process"]["terminal"] = json!(true);
    bed.config["process"]["args"] = json!(["sh", "-c", "tty >/dev/null && echo one && echo two"]);
    assert_eq!(bed.says(), "one\ntwo\n");
    bed.config["process"]["args"] = json!(["sleep", "1000"]);
    bed.config["process"]["terminal"] = json!(false);
    let name = id("newlines");
    bed.ok(&["run", "-d", &name]);
    assert_eq!(bed.ok(&["exec", "-t", &name, "sh", "-c", "echo one; echo two"]), "one\ntwo\n");
}

/// A hook that writes two variables to a file on the host.
fn report(file: &std::path::Path) -> serde_json::Value {
    let script = format!("echo \"$MARK:$ONE\" > {}", file.display());
    json!({"path": "/bin/sh", "args": ["sh", "-c", script]})
}

#[test]
fn hooks_without_an_environment_have_that_of_their_starter() {
    let mut bed = Bed::new("true");
    let seen = bed.path("seen");
    fs::create_dir(&seen).expect("a directory");
    bed.config["mounts"]
        .as_array_mut()
        .expect("mounts")
        .push(json!({"destination": seen, "source": seen, "options": ["bind"]}));
    bed.config["process"]["env"] = json!(["PATH=/bin", "ONE=container's"]);
    let points = ["prestart", "createRuntime", "createContainer", "startContainer", "poststart", "poststop"];
    for point in points {
        let mut empty = report(&seen.join(format!("{point}.empty")));
        empty["env"] = json!([]);
        bed.config["hooks"][point] = json!([report(&seen.join(point)), empty]);
    }
    bed.save();
    let ran = finish(bed.command(&["run", &id("hooks")]).env("MARK", "runtime's").env_remove("ONE"));
    assert_eq!(ran.code, 0, "{}", ran.err);
    for point in points {
        let read = |name: String| fs::read_to_string(seen.join(name)).unwrap_or_default();
        let want = if point == "startContainer" { ":container's\n" } else { "runtime's:\n" };
        assert_eq!(read(point.to_owned()), want, "{point}");
        assert_eq!(read(format!("{point}.empty")), ":\n", "{point} with an empty list");
    }
}

#[test]
fn a_bind_mount_has_no_filesystem_to_tell_values_to() {
    let mut bed = Bed::new("grep ' /data ' /proc/mounts");
    let data = bed.path("data");
    fs::create_dir(&data).expect("a directory");
    fs::set_permissions(&data, fs::Permissions::from_mode(0o711)).expect("a mode");
    let mount = |options: &[&str]| json!({"destination": "/data", "source": data, "options": options});
    let count = bed.config["mounts"].as_array().expect("mounts").len();
    bed.config["mounts"].as_array_mut().expect("mounts").push(mount(&["bind", "ro", "mode=700", "size=1k"]));
    assert!(bed.says().contains(" ro,"), "the other options hold");
    let mode = fs::metadata(&data).expect("the source").permissions().mode() & 0o777;
    assert_eq!(mode, 0o711, "nothing was changed on the host");
    bed.config["mounts"][count] = mount(&["bind", "noexce"]);
    assert!(bed.refuses().contains("`noexce` is not an option of a bind mount"), "a word may be misspelt");
}

#[test]
fn links_with_nothing_behind_them_are_made_whole() {
    for (why, link, target, found) in [
        ("relative", "etc/link", "../made/deep/file", "made/deep/file"),
        ("absolute", "etc/link", "/made/deep/file", "made/deep/file"),
        ("through another", "etc/link", "step/file", "made/file"),
        ("out of the root", "etc/link", "../../../../made", "made"),
    ] {
        for (source, is_dir) in [("dir", true), ("file", false)] {
            let mut bed =
                Bed::new("grep -c /made /proc/mounts; cat /made/deep/file /made/file /made 2>/dev/null; true");
            fs::create_dir(bed.path("dir")).expect("a directory");
            fs::write(bed.path("file"), "the host's").expect("a file");
            symlink(target, bed.rootfs(link)).expect("a link");
            symlink("/made", bed.rootfs("etc/step")).expect("a link");
            let mount = json!({"destination": format!("/{link}"), "source": bed.path(source), "options": ["bind"]});
            bed.config["mounts"].as_array_mut().expect("mounts").push(mount);
            let out = bed.says();
            let want = if is_dir { "1\n" } else { "1\nthe host's" };
            assert_eq!(out, want, "{why}, {source}");
            let made = fs::metadata(bed.rootfs(found)).unwrap_or_else(|error| panic!("{why}, {source}: {error}"));
            assert_eq!(made.is_dir(), is_dir, "{why}, {source}");
        }
    }
    for (why, target) in [
        ("a place to trust", "/proc/gantry/file"),
        ("a place to trust that is not there yet", "../sys/gantry"),
        ("itself", "link"),
    ] {
        let mut bed = Bed::new("true");
        fs::write(bed.path("file"), "").expect("a file");
        symlink(target, bed.rootfs("etc/link")).expect("a link");
        let mount = json!({"destination": "/etc/link", "source": bed.path("file"), "options": ["bind"]});
        bed.config["mounts"].as_array_mut().expect("mounts").insert(0, mount);
        assert!(bed.refuses().contains("/etc/link"), "{why}");
    }
}

#[test]
fn a_link_in_the_place_of_a_trusted_directory_is_named() {
    for place in ["proc", "sys", "dev"] {
        let bed = Bed::new("true");
        let _ = fs::remove_dir(bed.rootfs(place));
        symlink("/elsewhere", bed.rootfs(place)).expect("a link");
        let message = bed.refuses();
        assert!(message.contains(&format!("`/{place}` must be mounted on ordinary directory")), "{message}");
    }
}

#[test]
fn an_unknown_capability_of_exec_is_left_out() {
    let bed = Bed::new("sleep 1000");
    let name = id("cap");
    bed.ok(&["run", "-d", &name]);
    let ran = bed.run(&["exec", "--cap", "CAP_FLY", "--cap", "CAP_KILL", &name, "grep", "CapEff", "/proc/self/status"]);
    assert_eq!(ran.code, 0, "{}", ran.err);
    let set = u64::from_str_radix(ran.out.trim_start_matches("CapEff:").trim(), 16).expect("a set");
    assert_eq!(set & 1 << 5, 1 << 5, "the other one is there: {}", ran.out);
    assert!(ran.err.contains("warning: --cap: `CAP_FLY` is not a capability"), "{}", ran.err);
}

#[test]
fn a_user_namespace_gets_devices_that_the_host_does_not_have() {
    let version = fs::read_to_string("/proc/sys/kernel/osrelease").expect("a version");
    let numbers: Vec<u32> = version.split(['.', '-']).map_while(|part| part.parse().ok()).collect();
    if numbers < vec![6, 15] {
        return; // the host's or none: `device_files.rs`
    }
    let mut bed = Bed::new("stat -c '%a %u:%g %t:%T %F' /dev/nothing; head -c 3 /dev/nothing | wc -c");
    let owner = Command::new("chown").args(["-hR", "100000:100000"]).arg(bed.rootfs("")).status();
    assert!(owner.expect("chown").success());
    fs::set_permissions(bed.path(""), fs::Permissions::from_mode(0o755)).expect("its mode");
    let map = json!([{"containerID": 0, "hostID": 100_000, "size": 1000}]);
    bed.config["linux"]["uidMappings"] = map.clone();
    bed.config["linux"]["gidMappings"] = map;
    bed.config["linux"]["namespaces"].as_array_mut().expect("namespaces").push(json!({"type": "user"}));
    let device =
        json!({"path": "/dev/nothing", "type": "c", "major": 1, "minor": 5, "fileMode": 0o640, "uid": 0, "gid": 7});
    bed.config["linux"]["devices"] = json!([device]);
    bed.config["linux"]["resources"]["devices"] = json!([{"allow": true, "access": "rwm"}]);
    assert_eq!(bed.says(), "640 0:7 1:5 character special file\n3\n");
    bed.config["linux"]["devices"][0]["gid"] = json!(1000);
    assert!(bed.refuses().contains("device `/dev/nothing`: group 1000 is not mapped"));
}

#[test]
fn an_exec_that_waits_for_a_resume_can_be_interrupted() {
    let bed = Bed::new("sleep 1000");
    let name = id("waits");
    bed.ok(&["run", "-d", &name]);
    bed.ok(&["pause", &name]);
    let mut command = bed.command(&["exec", "--ignore-paused", &name, "true"]);
    let log = bed.path("err");
    command.stdout(Stdio::null()).stderr(fs::File::create(&log).expect("a file"));
    let child = command.spawn().expect("the runtime");
    let pid = child.id() as i32;
    // Its process is there, and cannot go on.
    let children = format!("/proc/{pid}/task/{pid}/children");
    until("it waits", || fs::read_to_string(&children).is_ok_and(|text| !text.trim().is_empty()));
    common::signal(pid, 15);
    assert_eq!(common::wait(child), 255, "before the container goes on");
    assert!(fs::read_to_string(&log).expect("its words").contains("interrupted by signal 15"));
    bed.ok(&["resume", &name]);
    bed.ok(&["exec", &name, "true"]);
}

#[test]
fn sockets_of_a_service_manager_are_handed_on() {
    let mut bed = Bed::new("echo $LISTEN_FDS $LISTEN_PID $$; cat <&3; cat <&4; ls /proc/self/fd | tr '\\n' ' '");
    bed.config["process"]["env"] = json!(["PATH=/bin"]);
    bed.save();
    let files = ["a", "b", "c", "d"].map(|name| bed.path(name).display().to_string());
    files.iter().for_each(|file| fs::write(file, format!("{}\n", &file[file.len() - 1..])).expect("a file"));
    let [a, b, c, d] = files;
    let mut shell = Command::new("sh");
    // Two of the service manager, one more to keep, and one that is nobody's.
    let script = format!("exec 3<{a} 4<{b} 5<{c} 6<{d}; exec \"$@\"");
    shell.args(["-c", &script, "sh", env!("CARGO_BIN_EXE_gantry-runtime"), "--root"]).arg(bed.path("state"));
    shell.args(["run", "--preserve-fds", "1", &id("listen")]).env("LISTEN_FDS", "2").env("LISTEN_PID", "1");
    let ran = finish(shell.current_dir(bed.bundle()).stdin(Stdio::null()));
    assert_eq!(ran.out, "2 1 1\na\nb\n0 1 2 3 4 5 6 ", "the last is that of `ls`: {}", ran.err);
}

#[test]
fn a_debug_log_shows_no_values_of_variables() {
    let bed = Bed::new("sleep 1000");
    let name = id("debug");
    bed.ok(&["run", "-d", &name]);
    let log = bed.path("log").display().to_string();
    bed.ok(&["--debug", "--log", &log, "exec", "-e", "TOKEN=hunter2", &name, "true"]);
    let log = fs::read_to_string(log).expect("the log");
    assert!(log.contains("TOKEN") && !log.contains("hunter2"), "{log}");
}
