//! What the store acknowledged survives SIGKILL at any moment, and a transaction is there whole or not at all.
#![allow(missing_docs)]

use gantry_scheduler::store::{Op, Outcome, Store, Transaction, embedded::Embedded};
use std::io::{BufRead, BufReader};
use std::path::PathBuf;
use std::process::{Command, Stdio};

const KILLS: u64 = 12;
const FOLDER: &str = "GANTRY_STORE_KILL_DIR";

fn pair(number: u64) -> Vec<Op> {
    let value = number.to_string().repeat(200).into_bytes();
    let put = |side: &str| Op::Put { key: format!("/{side}/{number:010}"), value: value.clone() };
    vec![put("a"), put("b")]
}

/// Not a test of its own: what the killed process runs. It says each number after its commit was acknowledged.
#[test]
fn child_commits_until_killed() {
    let Some(dir) = std::env::var_os(FOLDER).map(PathBuf::from) else { return };
    let store = Embedded::open(&dir.join("store.redb")).unwrap();
    let mut number = store.revision().unwrap();
    loop {
        number += 1;
        let outcome = store.commit(&Transaction { conditions: Vec::new(), ops: pair(number) }).unwrap();
        assert_eq!(outcome, Outcome::Done(number));
        println!("acknowledged {number}");
    }
}

#[test]
fn what_was_acknowledged_survives_a_kill() {
    let dir = tempfile::tempdir().unwrap();
    let mut acknowledged = 0;
    for round in 0..KILLS {
        let mut child = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "child_commits_until_killed", "--nocapture"])
            .env(FOLDER, dir.path())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let lines = BufReader::new(child.stdout.take().unwrap()).lines();
        // A different number of commits each round, so that the kill falls into different moments.
        for line in lines.map_while(Result::ok) {
            if let Some(number) = line.strip_prefix("acknowledged ").and_then(|text| text.parse::<u64>().ok()) {
                assert!(number > acknowledged, "numbers rise over restarts");
                acknowledged = number;
                if number % (7 + round * 3) == 0 {
                    break;
                }
            }
        }
        child.kill().unwrap();
        child.wait().unwrap();

        let store = Embedded::open(&dir.path().join("store.redb")).unwrap();
        let revision = store.revision().unwrap();
        assert!(revision >= acknowledged, "revision {revision}, but {acknowledged} was acknowledged");
        let keys = |side: &str| store.range(&format!("/{side}/")).unwrap().1.len() as u64;
        assert_eq!((keys("a"), keys("b")), (revision, revision), "half a transaction is there");
        for number in 1..=revision {
            for op in pair(number) {
                let Op::Put { key, value } = op else { unreachable!("pairs are puts") };
                assert_eq!(store.get(&key).unwrap().unwrap().value, value);
            }
        }
    }
    assert!(acknowledged > KILLS);
}
