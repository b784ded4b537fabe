//! The process that stays with a container: what it holds, how often it wakes, and how fast it copies.

use super::stage::{Runtime, Stage};
use super::{Aim, Report, fresh, plain, timed};
use crate::error::{Error, Result};
use crate::{files, process};
use serde_json::Value;
use std::fmt::Write as _;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

/// Supervisors at once, so that what they share counts as shared.
const COUNT: usize = 4;
/// How long an idle one is watched.
const WATCH: Duration = Duration::from_secs(5);
/// How much a chatty container writes.
const BYTES: u64 = 1 << 30;
/// How much of it is compared byte by byte.
const CHECKED: u64 = 64 << 20;
/// How long it may take.
const LIMIT: Duration = Duration::from_secs(120);

/// Measures all three.
pub(super) fn measure(stage: &Stage, report: &mut Report) -> Result<()> {
    let [ours, ..] = stage.runtimes();
    idle(stage, &ours, report)?;
    for (name, line) in [("long lines", 4096), ("lines of 100 bytes", 100)] {
        let checked = chatty(stage, &ours, CHECKED, line)?;
        if checked.lost > 0 {
            return Err(Error::broken("every byte in the log", format!("{} are missing", checked.lost)));
        }
        let mut best: Vec<f64> = Vec::new();
        for _ in 0..5 {
            let copied = chatty(stage, &ours, BYTES, line)?;
            if copied.lost > 0 {
                return Err(Error::broken("every byte in the log", format!("{} are missing", copied.lost)));
            }
            best.push(BYTES as f64 / 1e6 / copied.time.as_secs_f64());
        }
        let _ = writeln!(report.raw, "log throughput, {name}: {best:.0?} MB/s");
        best.sort_by(f64::total_cmp);
        report.figures.push(plain(&format!("log throughput, {name}"), best[best.len() / 2], "MB/s", Aim::Least(500.0)));
    }
    Ok(())
}

/// A supervised container.
struct Container {
    id: String,
    log: PathBuf,
    exit: PathBuf,
}

fn start(stage: &Stage, runtime: &Runtime, bundle: &Path) -> Result<Container> {
    let id = fresh();
    let file = |kind: &str| stage.folder.join(format!("{id}.{kind}"));
    let container = Container { log: file("log"), exit: file("exit"), id: id.clone() };
    let mut create = runtime.command(&["create", "--supervise", "--log-max-bytes", "8000000000", "--bundle"]);
    create.arg(bundle).arg("--container-log").arg(&container.log).arg("--exit-file").arg(&container.exit);
    timed(create.arg(&id))?;
    Ok(container)
}

fn idle(stage: &Stage, runtime: &Runtime, report: &mut Report) -> Result<()> {
    let bundle = stage.bundle("pause", &["/program", "pause"], 256 << 20)?;
    let mut containers = Vec::new();
    let result = (|| {
        let mut supervisors = Vec::new();
        for _ in 0..COUNT {
            let container = start(stage, runtime, &bundle)?;
            let id = container.id.clone();
            containers.push(container);
            timed(&mut runtime.command(&["start", &id]))?;
            let state = process::text(&mut runtime.command(&["state", &id]))?;
            let state: Value = serde_json::from_str(&state).map_err(|error| Error::input("state", error))?;
            let status = files::read(Path::new(&format!("/proc/{}/status", state["pid"])))?;
            supervisors.push(number(&status, "PPid:").ok_or_else(|| Error::input("status", "has no parent"))?);
        }
        std::thread::sleep(Duration::from_millis(200)); // their starts are over
        let switches = |pid: u64| -> Result<u64> {
            let status = files::read(Path::new(&format!("/proc/{pid}/status")))?;
            let one = |key| number(&status, key).unwrap_or_default();
            Ok(one("voluntary_ctxt_switches:") + one("nonvoluntary_ctxt_switches:"))
        };
        let sum = |list: &[u64]| list.iter().try_fold(0, |sum, pid| switches(*pid).map(|count| sum + count));
        let before = sum(&supervisors)?;
        std::thread::sleep(WATCH); // what is watched
        let woken = sum(&supervisors)? - before;
        let mut private = 0;
        for pid in &supervisors {
            let maps = files::read(Path::new(&format!("/proc/{pid}/smaps_rollup")))?;
            private += number(&maps, "Private_Clean:").unwrap_or_default();
            private += number(&maps, "Private_Dirty:").unwrap_or_default();
            let _ = writeln!(report.raw, "supervisor {pid}\n{maps}");
        }
        let kib = private as f64 / COUNT as f64;
        report.figures.push(plain("supervisor private memory", kib, "KiB", Aim::Most(300.0)));
        let name = format!("wake-ups of {COUNT} idle supervisors in {} s", WATCH.as_secs());
        report.figures.push(plain(&name, woken as f64, "wake-ups", Aim::Most(0.0)));
        Ok(())
    })();
    for container in &containers {
        remove(runtime, container);
    }
    result
}

fn remove(runtime: &Runtime, container: &Container) {
    let _ = process::output(&mut runtime.command(&["delete", "--force", &container.id]));
    for file in [&container.log, &container.exit] {
        let _ = std::fs::remove_file(file);
    }
}

/// The first number after a key.
fn number(text: &str, key: &str) -> Option<u64> {
    let line = text.lines().find_map(|line| line.strip_prefix(key))?;
    line.split_whitespace().next()?.parse().ok()
}

struct Copied {
    time: Duration,
    lost: u64,
}

/// Time from the start of a container that writes so much until all is in the log, and how much of it is not there.
fn chatty(stage: &Stage, runtime: &Runtime, bytes: u64, line: u64) -> Result<Copied> {
    let args = ["/program", "write", &bytes.to_string(), &line.to_string()];
    let bundle = stage.bundle("chatty", &args, 256 << 20)?;
    let container = start(stage, runtime, &bundle)?;
    let result = (|| {
        let begun = Instant::now();
        timed(&mut runtime.command(&["start", &container.id]))?;
        while !container.exit.exists() {
            if begun.elapsed() > LIMIT {
                return Err(Error::broken("the container to end", format!("it runs after {} s", LIMIT.as_secs())));
            }
            std::thread::sleep(Duration::from_millis(1));
        }
        let time = begun.elapsed();
        // The program writes whole lines only.
        let want = bytes / line * line;
        let got = if bytes > CHECKED { content_size(&container.log, line)? } else { content(&container.log, line)? };
        Ok(Copied { time, lost: want.abs_diff(got) })
    })();
    remove(runtime, &container);
    result
}

/// Bytes of the container in a log, every one looked at.
fn content(log: &Path, line: u64) -> Result<u64> {
    let text = std::fs::read(log).map_err(Error::file("read", log))?;
    let mut total = 0;
    for entry in text.split_inclusive(|byte| *byte == b'\n') {
        let mut parts = entry.splitn(4, |byte| *byte == b' ');
        let (tag, text) = (parts.nth(2).unwrap_or_default(), parts.next().unwrap_or_default());
        let text = if tag == b"F" { text } else { text.strip_suffix(b"\n").unwrap_or(text) };
        if !text.iter().all(|byte| matches!(byte, b'x' | b'\n')) || text.len() as u64 > line {
            return Err(Error::broken("the container's lines in its log", String::from_utf8_lossy(entry)));
        }
        total += text.len() as u64;
    }
    Ok(total)
}

/// The same from the log's size, in which every entry has a head of one length: a look at every byte takes longer than
/// the copying.
fn content_size(log: &Path, line: u64) -> Result<u64> {
    use std::io::{BufRead as _, BufReader};
    const HEAD: u64 = "2026-11-24T08:00:00.123456789Z stdout F ".len() as u64;
    let file = std::fs::File::open(log).map_err(Error::file("open", log))?;
    let mut total = 0;
    let mut reader = BufReader::with_capacity(1 << 20, file);
    let mut entry = Vec::with_capacity(line as usize + 64);
    loop {
        entry.clear();
        let size = reader.read_until(b'\n', &mut entry).map_err(Error::file("read", log))? as u64;
        if size == 0 {
            return Ok(total);
        }
        // A piece ends with a line end that is not the container's.
        let piece = entry.get(HEAD as usize - 2) == Some(&b'P');
        total += size.saturating_sub(HEAD + u64::from(piece));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_ways_of_counting_agree() {
        let scratch = files::Scratch::new().unwrap();
        let log = scratch.path().join("log");
        let head = "2026-11-24T08:00:00.123456789Z stdout";
        std::fs::write(&log, format!("{head} F xxx\n{head} P xx\n{head} F x\n")).unwrap();
        assert_eq!(content(&log, 4).unwrap(), 8);
        assert_eq!(content_size(&log, 4).unwrap(), 8);
        assert!(content(&log, 3).is_err(), "a line longer than any written");
        std::fs::write(&log, format!("{head} F lost\n")).unwrap();
        assert!(content(&log, 100).is_err());
    }

    #[test]
    fn numbers_by_key() {
        assert_eq!(number("PPid:\t42\nPrivate_Clean:      16 kB\n", "Private_Clean:"), Some(16));
        assert_eq!(number("PPid:\t42\n", "Uid:"), None);
    }
}
