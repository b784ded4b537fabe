//! `pause` and `resume`, and what other commands do with a paused container.

mod common;

use common::{Bed, id, runs, signal, until};
use std::fs;
use std::time::Duration;

/// A container that counts in a file of its root filesystem.
fn counting() -> Bed {
    let mut bed = Bed::new("n=0; while :; do n=$((n+1)); echo $n > /count; done");
    bed.config["root"]["readonly"] = false.into();
    bed
}

fn count(bed: &Bed) -> u64 {
    fs::read_to_string(bed.rootfs("count")).ok().and_then(|text| text.trim().parse().ok()).unwrap_or(0)
}

fn wait_for_count(bed: &Bed) {
    let before = count(bed);
    until("it counts", || count(bed) > before);
}

#[test]
fn a_paused_container_does_nothing_until_it_is_resumed() {
    let bed = counting();
    let name = id("pause");
    bed.ok(&["run", "-d", &name]);
    wait_for_count(&bed);
    bed.ok(&["pause", &name]);
    assert_eq!(bed.status(&name), "paused");
    assert!(bed.ok(&["list"]).contains("paused"));
    let text = fs::read_to_string(bed.rootfs("count")).expect("the count");
    // Long enough for some thousand rounds; shorter on a machine that is busy only makes the test weaker.
    std::thread::sleep(Duration::from_millis(50));
    assert_eq!(fs::read_to_string(bed.rootfs("count")).expect("the count"), text);
    bed.ok(&["resume", &name]);
    assert_eq!(bed.status(&name), "running");
    wait_for_count(&bed);
    bed.ok(&["delete", "--force", &name]);
    bed.assert_gone(&name);
}

#[test]
fn what_is_refused() {
    let bed = counting();
    let name = id("refused");
    bed.ok(&["run", "-d", &name]);
    let refuse = |args: &[&str], text: &str| {
        let ran = bed.run(args);
        assert_eq!(ran.code, 1, "{args:?}: {}", ran.err);
        assert!(ran.err.contains(text), "{args:?}: {}", ran.err);
    };
    refuse(&["resume", &name], "container not paused");
    bed.ok(&["pause", &name]);
    refuse(&["pause", &name], "container not running");
    let ran = bed.run(&["exec", &name, "true"]);
    assert!(ran.code != 0, "{ran:?}");
    assert!(ran.err.contains("cannot exec in a paused container (use --ignore-paused to override)"), "{ran:?}");
    refuse(&["delete", &name], "that is not stopped: paused");
    bed.ok(&["resume", &name]);
    signal(bed.pid(&name), libc::SIGKILL);
    bed.wait_for_status(&name, "stopped");
    refuse(&["pause", &name], "container not running");
    refuse(&["resume", &name], "container not paused");
    bed.ok(&["delete", &name]);
    refuse(&["pause", &name], "does not exist");
}

#[test]
fn exec_may_wait_for_the_resume() {
    let bed = counting();
    let name = id("ignore");
    bed.ok(&["run", "-d", &name]);
    bed.ok(&["pause", &name]);
    bed.save();
    let child = bed
        .command(&["exec", "--ignore-paused", &name, "echo", "late"])
        .stdout(std::process::Stdio::piped())
        .spawn()
        .expect("the runtime");
    bed.ok(&["resume", &name]);
    let output = child.wait_with_output().expect("its output");
    assert_eq!(String::from_utf8_lossy(&output.stdout), "late\n");
    bed.ok(&["delete", "--force", &name]);
}

#[test]
fn a_paused_container_dies_of_kill() {
    for args in [&["kill"][..], &["kill", "--all"]] {
        let bed = counting();
        let name = id("kill");
        bed.ok(&["run", "-d", &name]);
        let pid = bed.pid(&name);
        bed.ok(&["pause", &name]);
        bed.ok(&[args, &[&name, "KILL"]].concat());
        until("it is dead", || !runs(pid));
        bed.wait_for_status(&name, "stopped");
        bed.ok(&["delete", &name]);
        bed.assert_gone(&name);
    }
}

#[test]
fn a_paused_container_is_deleted_by_force() {
    let bed = counting();
    let name = id("force");
    bed.ok(&["run", "-d", &name]);
    let pid = bed.pid(&name);
    bed.ok(&["pause", &name]);
    bed.ok(&["delete", "--force", &name]);
    assert!(!runs(pid));
    bed.assert_gone(&name);
}

#[test]
fn a_created_container_can_be_paused() {
    let bed = counting();
    let name = id("created");
    bed.ok(&["create", &name]);
    bed.ok(&["pause", &name]);
    assert_eq!(bed.status(&name), "paused");
    bed.ok(&["resume", &name]);
    assert_eq!(bed.status(&name), "created");
    bed.ok(&["start", &name]);
    wait_for_count(&bed);
    bed.ok(&["delete", "--force", &name]);
    bed.assert_gone(&name);
}
