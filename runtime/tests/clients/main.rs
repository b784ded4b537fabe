//! Real clients with Debian's packages and default settings: whatever works with runc works with this runtime.
//!
//! Each client is one test. It runs a table of steps twice, at the same time, each in a sandbox (a host of its own made
//! of namespaces, see `sandbox.sh`): once with runc, once with `gantry-runtime`, where no other runtime can be executed.
//! A step passes when runc does what the table says, and this runtime does exactly the same: exit code and output,
//! without what is different in every run (see `plain`).

mod containerd;
mod docker;
mod podman;
mod sandbox;

use sandbox::{Host, Sandbox};
use std::fmt::Write as _;

/// One row of a client's table.
struct Step {
    name: &'static str,
    /// Lines for bash, with `prelude.sh`.
    does: &'static str,
    /// Exit code with either runtime.
    code: i32,
    /// Lines of these texts come in this order, with either runtime.
    says: &'static str,
    /// Whether all of the output is the same.
    same: bool,
}

/// A step that succeeds.
const fn step(name: &'static str, does: &'static str, says: &'static str) -> Step {
    Step { name, does, code: 0, says, same: true }
}

/// A step that ends with this exit code.
const fn ends(code: i32, name: &'static str, does: &'static str, says: &'static str) -> Step {
    Step { name, does, code, says, same: true }
}

/// A step whose output names the runtime or its figures: only what the table says is compared.
const fn about(name: &'static str, does: &'static str, says: &'static str) -> Step {
    Step { name, does, code: 0, says, same: false }
}

/// What a step did with one runtime.
struct Did {
    code: i32,
    out: String,
    took: String,
}

/// Runs a client's table with both runtimes and compares.
fn compare(client: &str, programs: &[(&str, &str)], setup: &str, steps: &[Step]) {
    sandbox::require(programs);
    let [runc, ours] = [Host::Runc, Host::Gantry].map(|host| Sandbox::start(client, host, setup, steps));
    let (runc, ours) = (runc.finish(), ours.finish());
    let mut wrong = String::new();
    for (number, step) in steps.iter().enumerate() {
        let (with_runc, with_ours) = (&runc[number], &ours[number]);
        println!("{:>7} {:>7}  {}", with_runc.took, with_ours.took, step.name);
        let verdicts = verdicts(step, with_runc, with_ours);
        if !verdicts.is_empty() {
            let _ = writeln!(wrong, "\n=== {}: {}\n{}", step.name, verdicts.join("; "), step.does.trim());
            let _ = writeln!(wrong, "--- runc: exit code {}\n{}", with_runc.code, short(&with_runc.out));
            let _ = writeln!(wrong, "--- ours: exit code {}\n{}", with_ours.code, short(&with_ours.out));
        }
    }
    assert!(wrong.is_empty(), "{client}:{wrong}");
}

/// The beginning of a long output.
fn short(text: &str) -> &str {
    &text[..text.floor_char_boundary(2000)]
}

/// What is wrong with a step.
fn verdicts(step: &Step, runc: &Did, ours: &Did) -> Vec<String> {
    let mut wrong = Vec::new();
    for (name, did) in [("runc", runc), ("ours", ours)] {
        if did.code != step.code {
            wrong.push(format!("{name} ended with {}, not {}", did.code, step.code));
        }
        if let Some(line) = missing(&did.out, step.says) {
            wrong.push(format!("{name} does not say `{line}`"));
        }
    }
    if step.same && runc.out != ours.out {
        wrong.push("the output differs".into());
    }
    wrong
}

/// The first line of `wanted` that `text` does not have after the ones before it.
fn missing<'a>(text: &str, wanted: &'a str) -> Option<&'a str> {
    let mut lines = text.lines();
    wanted.lines().map(str::trim).find(|want| !want.is_empty() && !lines.any(|line| line.contains(want)))
}

/// Output without what no two runs have in common: ids, times, and the name of the runtime.
fn plain(text: &str) -> String {
    let mut out = String::new();
    let mut rest = text;
    while !rest.is_empty() {
        if let Some((_, after)) = rest.strip_prefix("time=\"").and_then(|rest| rest.split_once('"')) {
            out.push_str("time=T");
            rest = after;
        }
        let is_word = |c: char| c.is_ascii_alphanumeric();
        let word = rest.find(|c| !is_word(c)).unwrap_or(rest.len());
        if word == 0 {
            let end = rest.find(is_word).unwrap_or(rest.len());
            out.push_str(&rest[..end]);
            rest = &rest[end..];
            continue;
        }
        let (head, tail) = rest.split_at(word);
        rest = tail;
        let hex = head.bytes().all(|b| b.is_ascii_digit() || (b'a'..=b'f').contains(&b));
        out.push_str(match head.len() {
            64 | 32 | 12 if hex => "ID",
            26 if head.bytes().all(|b| b.is_ascii_digit() || b.is_ascii_uppercase()) => "LAYER",
            _ => head,
        });
    }
    out
}

#[test]
fn podman_works_as_with_runc() {
    compare("podman", podman::PROGRAMS, podman::SETUP, podman::STEPS);
}

#[test]
fn docker_works_as_with_runc() {
    compare("docker", docker::PROGRAMS, docker::SETUP, docker::STEPS);
}

#[test]
fn containerd_works_as_with_runc() {
    compare("containerd", containerd::PROGRAMS, containerd::SETUP, containerd::STEPS);
}

#[test]
fn what_differs_in_every_run_is_not_compared() {
    let id = "3f".repeat(32);
    for (text, same) in [
        (format!("a {id} b"), "a ID b"),
        ("overlay/l/ABCDEFGHIJKLMNOPQRSTUVWXYZ:x".into(), "overlay/l/LAYER:x"),
        ("0123456789ab".into(), "ID"),
        (r#"time="2026-11-24T11:52:16Z" level=warning"#.into(), "time=T level=warning"),
        ("0123456789abc, short 0123".into(), "0123456789abc, short 0123"),
    ] {
        assert_eq!(plain(&text), same);
    }
    assert_eq!(missing("one\ntwo\nthree", "on\nthree"), None);
    assert_eq!(missing("one\ntwo", "two\none"), Some("one"));
}
