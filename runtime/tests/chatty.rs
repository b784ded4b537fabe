//! The supervisor under load and at rest: nothing of a large output is lost, and nothing wakes it when there is none.

mod common;

use common::{Bed, id, until};
use serde_json::Value;
use std::fs;
use std::time::{Duration, Instant};

/// Run a supervised container to its end; returns its output from the log.
fn output(script: &str) -> (Bed, String) {
    let bed = Bed::new(script);
    let name = id("chatty");
    let options = bed.supervised();
    let mut args = vec!["create"];
    args.extend(options.iter().map(String::as_str));
    args.extend(["--log-max-bytes", "1000000000", name.as_str()]);
    bed.ok(&args);
    bed.ok(&["start", &name]);
    assert_eq!(bed.exit_record()["exit_code"], 0);
    bed.ok(&["delete", &name]);
    let text = bed.logged();
    (bed, text)
}

#[test]
fn many_short_lines_are_all_there_and_in_order() {
    let (_bed, text) = output("seq 1 200000");
    let mut next = 1;
    for line in text.lines() {
        assert_eq!(line, next.to_string());
        next += 1;
    }
    assert_eq!(next, 200_001);
}

#[test]
fn a_line_without_end_comes_whole_and_in_pieces() {
    const SIZE: usize = 5_000_000;
    let (bed, text) = output(&format!("head -c {SIZE} /dev/zero | tr '\\0' x"));
    assert_eq!(text.len(), SIZE);
    assert!(text.bytes().all(|byte| byte == b'x'));
    let log = fs::read_to_string(bed.path("log")).expect("the log");
    for entry in log.lines() {
        let piece = entry.splitn(4, ' ').nth(3).expect("a text");
        assert!(piece.len() <= 16 * 1024, "{} bytes in one entry", piece.len());
    }
}

#[test]
fn nothing_wakes_an_idle_supervisor() {
    let bed = Bed::new("echo ready; sleep 1000");
    let name = id("idle");
    let options = bed.supervised();
    let mut args = vec!["create"];
    args.extend(options.iter().map(String::as_str));
    args.push(&name);
    bed.ok(&args);
    bed.ok(&["start", &name]);
    until("the line is in the log", || bed.logged() == "ready\n");
    let record = fs::read(bed.path("state").join(&name).join("state.json")).expect("the record");
    let record: Value = serde_json::from_slice(&record).expect("JSON");
    let pid = record["supervisor"]["pid"].as_i64().expect("a supervisor");
    let woken = || -> u64 {
        let status = fs::read_to_string(format!("/proc/{pid}/status")).expect("the supervisor");
        let count = |key| common::field(&status, key).parse::<u64>().expect("a number");
        count("voluntary_ctxt_switches") + count("nonvoluntary_ctxt_switches")
    };
    // It goes to sleep after the line; from then on, nothing may change for a while.
    let (mut count, mut since) = (woken(), Instant::now());
    until("it sleeps for half a second", || {
        let now = woken();
        if now != count {
            (count, since) = (now, Instant::now());
        }
        since.elapsed() > Duration::from_millis(500)
    });
    bed.ok(&["delete", "--force", &name]);
}
