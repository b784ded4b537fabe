//! Saving and restoring with CRIU, where it works; clear errors where it does not.

mod common;

use common::{Bed, Ran, field, finish, id, until};
use serde_json::json;
use std::fs;
use std::io::{Read, Write};
use std::process::{Command, Stdio};

/// A counter that shows whether memory, files and the process itself go on.
const COUNT: &str = "i=0; while :; do i=$((i+1)); echo $i > /count; sleep 0.05; done";

/// Whether CRIU can work here; says why not.
fn criu_works() -> bool {
    match Command::new("criu").arg("check").output() {
        Err(error) => eprintln!("skipped: criu cannot be run ({error})"),
        Ok(output) if output.status.success() => return true,
        Ok(output) => eprintln!("skipped: criu check: {}", String::from_utf8_lossy(&output.stderr).trim()),
    }
    false
}

fn counting() -> Bed {
    let mut bed = Bed::new(COUNT);
    bed.config["root"]["readonly"] = json!(false);
    bed
}

fn count(bed: &Bed) -> u64 {
    fs::read_to_string(bed.rootfs("count")).ok().and_then(|text| text.trim().parse().ok()).unwrap_or(0)
}

fn counts_on(bed: &Bed, from: u64) {
    until("it counts on", || count(bed) > from);
}

fn images(bed: &Bed) -> String {
    bed.path("images").display().to_string()
}

/// Run a command that must succeed, with CRIU's log when it does not.
fn done(bed: &Bed, args: &[&str]) -> Ran {
    let ran = bed.run(args);
    let log =
        ["dump.log", "restore.log"].map(|name| fs::read_to_string(bed.path("images").join(name)).unwrap_or_default());
    let tail = |text: &String| text.lines().rev().take(20).collect::<Vec<_>>().join("\n");
    assert_eq!(ran.code, 0, "{args:?}: {ran:?}\n{}\n{}", tail(&log[0]), tail(&log[1]));
    ran
}

#[test]
fn without_criu_the_error_says_what_to_do() {
    let bed = counting();
    let name = id("nocriu");
    bed.ok(&["run", "-d", &name]);
    let images = images(&bed);
    for (program, want) in [("/nowhere/criu", "which is not installed"), ("/bin/true", "criu ended without an answer")]
    {
        let ran = bed.run(&["--criu", program, "checkpoint", "--image-path", &images, &name]);
        assert!(ran.code == 1 && ran.err.contains(want) && ran.err.contains("hint: "), "{ran:?}");
        let ran = bed.run(&["--criu", program, "restore", "--image-path", &images, &id("none")]);
        assert!(ran.code == 1 && ran.err.contains("hint: "), "{ran:?}");
    }
    assert_eq!(bed.status(&name), "running", "it is left alone");
    assert_eq!(bed.ok(&["list", "-q"]), format!("{name}\n"), "nothing is left of the attempts");
    bed.ok(&["delete", "--force", &name]);
    let ran = bed.run(&["restore", "--image-path", "/nowhere", &id("none")]);
    assert!(ran.code == 1, "{ran:?}");
}

#[test]
fn only_a_running_container_is_saved() {
    let bed = counting();
    let name = id("created");
    bed.ok(&["create", &name]);
    let ran = bed.run(&["checkpoint", &name]);
    assert!(ran.code == 1 && ran.err.contains("container cannot be checkpointed in created state"), "{ran:?}");
    bed.ok(&["delete", "--force", &name]);
}

#[test]
fn a_saved_container_goes_on_where_it_was() {
    if !criu_works() {
        return;
    }
    let mut bed = counting();
    fs::create_dir(bed.path("data")).expect("a directory");
    fs::write(bed.path("data/file"), "of the host").expect("a file");
    let mount = json!({"destination": "/data", "type": "bind", "source": bed.path("data"), "options": ["rbind", "ro"]});
    bed.config["mounts"].as_array_mut().expect("mounts").push(mount);
    bed.config["linux"]["resources"]["pids"] = json!({"limit": 50});
    let (first, second) = (id("saved"), id("restored"));
    let images = images(&bed);
    bed.ok(&["run", "-d", &first]);
    counts_on(&bed, 3);
    done(&bed, &["checkpoint", "--image-path", &images, &first]);
    bed.assert_gone(&first);
    let before = count(&bed);
    let pid_file = bed.path("pid").display().to_string();
    done(&bed, &["restore", "-d", "--image-path", &images, "--pid-file", &pid_file, &second]);
    assert_eq!(bed.status(&second), "running");
    assert_eq!(fs::read_to_string(&pid_file).expect("the pid file"), bed.pid(&second).to_string());
    counts_on(&bed, before);
    assert!(count(&bed) < before + 1000, "it did not begin anew");
    let places = fs::read_to_string(format!("/proc/{}/cgroup", bed.pid(&second))).expect("its cgroups");
    assert!(places.lines().all(|line| line.ends_with(&format!("/{second}"))), "{places}");
    for place in common::cgroups(&second) {
        let limit = fs::read_to_string(place.join("pids.max")).unwrap_or("50\n".into());
        assert_eq!(limit, "50\n", "{}", place.display());
    }
    let inside = bed.ok(&["exec", &second, "sh", "-c", "cat /data/file; grep -c . /proc/self/status"]);
    assert!(inside.starts_with("of the host"), "{inside}");
    let status = bed.ok(&["exec", &second, "cat", "/proc/1/status"]);
    assert_eq!(field(&status, "Seccomp"), "0");
    assert_eq!(field(&status, "NoNewPrivs"), "1");
    bed.ok(&["delete", "--force", &second]);
    bed.assert_gone(&second);
}

#[test]
fn it_may_go_on_and_be_saved_in_parts() {
    if !criu_works() {
        return;
    }
    let bed = counting();
    let name = id("parts");
    bed.ok(&["run", "-d", &name]);
    counts_on(&bed, 3);
    let (early, late) = (bed.path("images/early").display().to_string(), bed.path("images/late").display().to_string());
    done(&bed, &["checkpoint", "--pre-dump", "--image-path", &early, &name]);
    counts_on(&bed, count(&bed));
    let wrong = bed.run(&["checkpoint", "--parent-path", "none", "--image-path", &late, &name]);
    assert!(wrong.code == 1 && wrong.err.contains("--parent-path: no images in `none`"), "{wrong:?}");
    done(&bed, &["checkpoint", "--leave-running", "--parent-path", "../early", "--image-path", &late, &name]);
    assert_eq!(bed.status(&name), "running");
    counts_on(&bed, count(&bed));
    bed.ok(&["delete", "--force", &name]);
    done(&bed, &["restore", "-d", "--image-path", &late, &name]);
    counts_on(&bed, count(&bed));
    bed.ok(&["delete", "--force", &name]);
    bed.assert_gone(&name);
}

#[test]
fn pipes_are_given_back_and_the_exit_code_comes_through() {
    if !criu_works() {
        return;
    }
    let bed = Bed::new("while read word; do echo got $word; done; exit 7");
    bed.save();
    let (first, second) = (id("pipes"), id("pipes"));
    let mut child = bed.command(&["run", &first]);
    let mut child = child.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().expect("the runtime");
    let (mut input, mut output) = (child.stdin.take().expect("a pipe"), child.stdout.take().expect("a pipe"));
    writeln!(input, "one").expect("it reads");
    let mut word = [0; 8];
    output.read_exact(&mut word).expect("its answer");
    assert_eq!(&word, b"got one\n");
    let images = images(&bed);
    done(&bed, &["checkpoint", "--image-path", &images, &first]);
    drop((input, output));
    common::wait(child);
    let mut restore = bed.command(&["restore", "--image-path", &images, &second]);
    let mut child = restore.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().expect("the runtime");
    let mut input = child.stdin.take().expect("a pipe");
    let mut output = child.stdout.take().expect("a pipe");
    writeln!(input, "two").expect("it reads");
    output.read_exact(&mut word).expect("its answer");
    assert_eq!(&word, b"got two\n");
    drop(input);
    assert_eq!(common::wait(child), 7);
    bed.assert_gone(&second);
}

#[test]
fn a_terminal_is_made_anew() {
    if !criu_works() {
        return;
    }
    let mut bed = counting();
    bed.config["process"]["terminal"] = json!(true);
    bed.save();
    let socket = bed.path("console");
    let listener = std::os::unix::net::UnixListener::bind(&socket).expect("a socket");
    let socket = socket.display().to_string();
    let (first, second) = (id("tty"), id("tty"));
    let images = images(&bed);
    let master = |listener: &std::os::unix::net::UnixListener| {
        use std::os::fd::AsFd;
        let (connection, _) = listener.accept().expect("a connection");
        let mut name = [0; 64];
        gantry_runtime::sys::socket::receive(connection.as_fd(), &mut name).expect("a message").1.expect("a terminal")
    };
    bed.ok(&["run", "-d", "--console-socket", &socket, &first]);
    let held = master(&listener);
    counts_on(&bed, 3);
    done(&bed, &["checkpoint", "--image-path", &images, &first]);
    drop(held);
    let before = count(&bed);
    let mut restore = bed.command(&["restore", "-d", "--image-path", &images, "--console-socket", &socket, &second]);
    let ran = finish(&mut restore);
    let log = fs::read_to_string(bed.path("images/restore.log")).unwrap_or_default();
    assert_eq!(ran.code, 0, "{ran:?}\n{log}");
    let _held = master(&listener);
    counts_on(&bed, before);
    assert_eq!(bed.ok(&["exec", &second, "readlink", "/proc/1/fd/0"]), "/dev/pts/0\n");
    bed.ok(&["delete", "--force", &second]);
}
