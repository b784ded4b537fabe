//! Pulls of one real image beside containerd, podman, docker, and skopeo with umoci, all from Debian.
//!
//! The image is made of Debian packages (13 layers, gzip as the world has it) and comes from Debian's docker-registry on
//! the loopback of a network namespace of the bench. Every pull begins with a fresh ext4, made by `mkfs.ext4` with its
//! journal, on a loop device in memory, and with a fresh daemon: a file system where trees were deleted before, above
//! all one without a journal, can make the same work many times slower. The tools take turns. CPU is what a
//! cgroup of the run has used, daemon and client together, without the kernel's own threads.

mod stage;
mod tool;

use super::{Aim, Figure, Options, Report, median};
use crate::error::{Error, Result};
use crate::process;
use stage::{GZIP, Stage, ZSTD};
use std::fmt::Write as _;
use std::time::Duration;
use tool::{Run, Tool};

/// Warm pulls in one process, of which the median counts.
const WARM: usize = 50;
/// As many as a full host has.
const ROOTS: usize = 1000;

/// What the runs of one tool took.
struct Samples {
    name: &'static str,
    runs: Vec<Run>,
}

impl Samples {
    fn median(&self, of: impl Fn(&Run) -> Duration) -> f64 {
        median(&self.runs.iter().map(of).collect::<Vec<_>>())
    }

    fn peak(&self) -> f64 {
        self.runs.iter().map(|run| run.peak_kib as f64 / 1024.0).fold(0.0, f64::max)
    }
}

/// Runs the bench; what it made is removed, also after a failure.
pub(super) fn run(options: &Options) -> Result<Report> {
    let stage = Stage::set()?;
    let mut report = Report::default();
    let _ = writeln!(report.raw, "{}; {}", stage.versions()?, load());

    let tools = tool::all();
    let mut samples: Vec<Samples> = tools.iter().map(|tool| Samples { name: tool.name, runs: Vec::new() }).collect();
    let mut zstd = Samples { name: "gantry, zstd", runs: Vec::new() };
    for round in 1..=options.rounds {
        for (tool, samples) in tools.iter().zip(&mut samples) {
            pull(&stage, tool, GZIP, samples, &mut report)?;
        }
        pull(&stage, &tools[0], ZSTD, &mut zstd, &mut report)?;
        say(&format!("round {round} of {}: {}", options.rounds, load()));
    }
    cold(&mut report, &samples, &zstd);
    warm(&stage, &mut report)?;
    let _ = writeln!(report.raw, "{}", load());
    Ok(report)
}

fn say(what: &str) {
    eprintln!("bench images: {what}");
}

fn load() -> String {
    let text = std::fs::read_to_string("/proc/loadavg").unwrap_or_default();
    format!("load {}", text.split(' ').take(3).collect::<Vec<_>>().join(" "))
}

fn pull(stage: &Stage, tool: &Tool, tag: &str, samples: &mut Samples, report: &mut Report) -> Result<()> {
    let disk = stage.disk()?;
    let run = tool.run(stage, tag)?;
    disk.end()?;
    let seconds = |time: Duration| time.as_secs_f64();
    let line = format!(
        "{} {tag}: {:.3} s, on disk after {:.3} s, CPU {:.2} s, peak RSS {:.1} MiB",
        tool.name,
        seconds(run.wall),
        seconds(run.synced),
        seconds(run.cpu),
        run.peak_kib as f64 / 1024.0
    );
    say(&line);
    let _ = writeln!(report.raw, "{line}");
    samples.runs.push(run);
    Ok(())
}

/// Ours beside the best of the others.
fn beside(name: &str, all: &[Samples], of: impl Fn(&Run) -> Duration, times: f64) -> Figure {
    let value = all[0].median(&of);
    let others = all[1..].iter().map(|peer| (peer.name.to_owned(), peer.median(&of)));
    let peer = others.min_by(|a, b| a.1.total_cmp(&b.1));
    Figure { name: name.into(), value, unit: "s", peer, aim: Aim::Times(times) }
}

fn plain(name: &str, value: f64, unit: &'static str, aim: f64) -> Figure {
    Figure { name: name.into(), value, unit, peer: None, aim: Aim::Most(aim) }
}

fn cold(report: &mut Report, all: &[Samples], zstd: &Samples) {
    let gzip = all[0].median(|run| run.cpu);
    let figures = &mut report.figures;
    figures.push(beside("pull until it is on disk", all, |run| run.synced, 0.45));
    figures.push(beside("pull until the command returns", all, |run| run.wall, 0.45));
    figures.push(beside("pull, CPU", all, |run| run.cpu, 0.4));
    figures.push(plain("pull, peak RSS", all[0].peak().max(zstd.peak()), "MiB", 32.0));
    let zstd = zstd.median(|run| run.cpu);
    let peer = Some(("gzip".to_owned(), gzip));
    figures.push(Figure { name: "pull of zstd, CPU".into(), value: zstd, unit: "s", peer, aim: Aim::Times(0.6) });
    for samples in all {
        let _ = writeln!(
            report.raw,
            "{}: median {:.3} s, on disk {:.3} s, CPU {:.2} s, peak RSS {:.1} MiB",
            samples.name,
            samples.median(|run| run.wall),
            samples.median(|run| run.synced),
            samples.median(|run| run.cpu),
            samples.peak()
        );
    }
}

/// What is there already: pulls, and root file systems.
fn warm(stage: &Stage, report: &mut Report) -> Result<()> {
    let disk = stage.disk()?;
    let reference = stage.reference(GZIP);
    process::stdout(stage.measure().arg("pull").arg(stage.place("gantry")).arg(&reference))?;
    let listed = process::text(stage.measure().arg("images").arg(stage.place("gantry")))?;
    let words: Vec<f64> = listed.split(' ').filter_map(|word| word.parse().ok()).collect();
    let (layers, bytes) = (words.first().copied().unwrap_or_default(), words.get(1).copied().unwrap_or_default());
    report.figures.push(Figure {
        name: "unpacked size of the image".into(),
        value: bytes / 1e6,
        unit: "MB",
        peer: None,
        aim: Aim::Least(700.0),
    });
    report.figures.push(Figure {
        name: "layers of the image".into(),
        value: layers,
        unit: "layers",
        peer: None,
        aim: Aim::Least(12.0),
    });

    let before = stage.requests()?;
    let text =
        process::text(stage.measure().arg("warm").arg(stage.place("gantry")).arg(&reference).arg(WARM.to_string()))?;
    let requests = (stage.requests()? - before) as f64 / WARM as f64;
    report.figures.push(plain("warm pull", median(&numbers(&text, "")), "ms", 5.0));
    report.figures.push(plain("requests of a warm pull", requests, "requests", 1.0));
    let _ = writeln!(report.raw, "warm pulls, ms: {}", text.split_whitespace().collect::<Vec<_>>().join(" "));

    let text =
        process::text(stage.measure().arg("roots").arg(stage.place("gantry")).arg(&reference).arg(ROOTS.to_string()))?;
    for (verb, done) in [("make", "made"), ("remove", "removed")] {
        let times = numbers(&text, &format!("{verb} "));
        if times.len() != ROOTS {
            return Err(Error::broken(
                format!("{ROOTS} root file systems {done}"),
                format!("there were {}", times.len()),
            ));
        }
        let sum: Duration = times.iter().sum();
        report.figures.push(plain(&format!("{verb} a root file system"), median(&times), "ms", 0.3));
        report.figures.push(plain(&format!("{ROOTS} root file systems {done}"), sum.as_secs_f64() / 1e3, "s", 0.5));
        let mut sorted = times;
        sorted.sort_unstable();
        let p99 = sorted[ROOTS * 99 / 100].as_secs_f64();
        let _ = writeln!(report.raw, "{verb} a root file system: p99 {p99:.3} ms");
    }
    disk.end()
}

/// The numbers of lines that begin with `head`; milliseconds, kept as seconds, since only their order and sum count.
fn numbers(text: &str, head: &str) -> Vec<Duration> {
    let one = |line: &str| line.strip_prefix(head)?.parse::<f64>().ok().map(Duration::from_secs_f64);
    text.lines().filter_map(one).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn samples(name: &'static str, seconds: &[u64]) -> Samples {
        let run = |s: &u64| Run {
            wall: Duration::from_secs(*s),
            synced: Duration::from_secs(s + 1),
            cpu: Duration::from_secs(2 * s),
            peak_kib: 1024 * s,
        };
        Samples { name, runs: seconds.iter().map(run).collect() }
    }

    #[test]
    fn the_best_peer_is_the_one_to_beat() {
        let all = [samples("ours", &[2, 1, 3]), samples("slow", &[9, 9, 9]), samples("fast", &[4, 6, 5])];
        let figure = beside("pull", &all, |run| run.synced, 0.5);
        assert_eq!((figure.value, figure.peer), (3.0, Some(("fast".into(), 6.0))));
        assert_eq!(all[0].peak(), 3.0);
    }

    #[test]
    fn only_lines_of_the_kind_count() {
        let text = "make 0.5\nremove 2\nmake 1.5\nmake x\n";
        assert_eq!(median(&numbers(text, "make ")), 1.0);
        assert_eq!(median(&numbers(text, "remove ")), 2.0);
        assert_eq!(numbers("", "").len(), 0);
    }
}
