//! `gantry-runtime` beside Debian's crun and runc, and beside the least that any runtime does.
//!
//! All of them run one bundle in one mount namespace that shows cgroup v1 only, in turns, so that what else the machine
//! does meets all alike. The median counts.

mod life;
mod stage;
mod supervised;

use super::{Aim, Figure, Options, Report, median};
use crate::error::{Error, Result};
use crate::{process, sys};
use stage::Stage;
use std::fmt::Write as _;
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

const MIB: f64 = 1024.0 * 1024.0;
/// Before a run that finds the machine idle.
const IDLE: Duration = Duration::from_secs(1);
/// How many containers make a host that is full.
const LIVE: usize = 1000;

/// Runs of one command.
#[derive(Debug, Default, Clone)]
struct Samples {
    wall: Vec<Duration>,
    cpu: Vec<Duration>,
}

impl Samples {
    fn p95(&self) -> f64 {
        let mut sorted = self.wall.clone();
        sorted.sort_unstable();
        sorted.get(sorted.len() * 95 / 100).map_or(f64::NAN, Duration::as_secs_f64)
    }

    fn line(&self, name: &str) -> String {
        let ms = |seconds: f64| seconds * 1e3;
        let all: Vec<String> = self.wall.iter().map(|wall| format!("{:.2}", ms(wall.as_secs_f64()))).collect();
        format!(
            "{name}: median {:.2} ms, p95 {:.2}, CPU {:.2}; {}\n",
            ms(median(&self.wall)),
            ms(self.p95()),
            ms(median(&self.cpu)),
            all.join(" ")
        )
    }
}

/// A container id, or a cgroup's name, that nobody else has.
fn fresh() -> String {
    static NEXT: AtomicU32 = AtomicU32::new(0);
    format!("gantry-bench-{}-{}", std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed))
}

/// Runs a command to its end and measures it.
fn timed(command: &mut Command) -> Result<(Duration, sys::Used)> {
    command.stdin(Stdio::null()).stdout(Stdio::null());
    let begun = Instant::now();
    let child = command
        .spawn()
        .map_err(|source| Error::Spawn { program: command.get_program().to_string_lossy().into_owned(), source })?;
    let used = sys::wait(child.id()).map_err(Error::file("wait for", std::path::Path::new("a child")))?;
    let wall = begun.elapsed();
    if used.status != 0 {
        let reason = format!("wait status {:#x}", used.status);
        return Err(Error::Failed { command: process::shown(command), reason });
    }
    Ok((wall, used))
}

fn sample(command: &mut Command, samples: &mut Samples) -> Result<()> {
    let (wall, used) = timed(command)?;
    samples.wall.push(wall);
    samples.cpu.push(used.cpu);
    Ok(())
}

/// Makes a command, each time with an id of its own.
type Make = Box<dyn Fn() -> Command>;

/// One whole run: of ours, of a peer, or of the floor.
fn runs(stage: &Stage) -> Result<Vec<(&'static str, Make)>> {
    let bundle = stage.bundle("true", &["/program"], 256 << 20)?;
    let mut list: Vec<(&'static str, Make)> = Vec::new();
    for runtime in stage.runtimes() {
        let bundle = bundle.clone();
        list.push((
            runtime.name,
            Box::new(move || {
                let mut command = runtime.command(&["run", "--bundle"]);
                command.arg(&bundle).arg(fresh());
                command
            }),
        ));
    }
    let (floor, rootfs) = (stage.floor.clone(), bundle.join("rootfs"));
    list.push((
        "floor",
        Box::new(move || {
            let mut command = Command::new(&floor);
            command.arg(fresh()).arg(&rootfs).arg("/program");
            command
        }),
    ));
    Ok(list)
}

/// Runs all in turns.
///
/// - `pause`: before each run.
fn in_turns(list: &[(&'static str, Make)], rounds: usize, pause: Duration) -> Result<Vec<(&'static str, Samples)>> {
    let mut samples: Vec<(&'static str, Samples)> = list.iter().map(|(name, _)| (*name, Samples::default())).collect();
    // The first round fills caches and does not count.
    for round in 0..=rounds {
        for ((_, command), (_, samples)) in list.iter().zip(&mut samples) {
            if !pause.is_zero() && round > 0 {
                std::thread::sleep(pause); // the idle second that is measured
            }
            let mut warming = Samples::default();
            sample(&mut command(), if round == 0 { &mut warming } else { samples })?;
        }
    }
    Ok(samples)
}

fn find<'a>(samples: &'a [(&'static str, Samples)], name: &str) -> &'a Samples {
    static NONE: Samples = Samples { wall: Vec::new(), cpu: Vec::new() };
    samples.iter().find(|(known, _)| *known == name).map_or(&NONE, |(_, samples)| samples)
}

/// Milliseconds beside a peer's.
fn beside(name: String, ours: &[Duration], peer: &str, theirs: &[Duration], times: f64) -> Figure {
    let peer = Some((peer.to_owned(), median(theirs) * 1e3));
    Figure { name, value: median(ours) * 1e3, unit: "ms", peer, aim: Aim::Times(times) }
}

fn plain(name: &str, value: f64, unit: &'static str, aim: Aim) -> Figure {
    Figure { name: name.to_owned(), value, unit, peer: None, aim }
}

/// Runs the bench; what it made is removed, also after a failure.
pub(super) fn run(options: &Options) -> Result<Report> {
    let stage = Stage::set()?;
    let mut report = Report::default();
    let list = runs(&stage)?;

    say("run, back to back");
    let busy = in_turns(&list, options.rounds, Duration::ZERO)?;
    whole(&mut report, "run", &busy);
    say("run, after an idle second each");
    let idle = in_turns(&list, options.rounds, IDLE)?;
    whole(&mut report, "run after 1 s idle", &idle);
    let ours = find(&busy, "gantry");
    let spread = ours.p95() / median(&ours.wall);
    report.figures.push(plain("run p95 / median", spread, "times", Aim::Most(1.5)));
    report.figures.push(beside("run CPU".into(), &ours.cpu, "floor", &find(&busy, "floor").cpu, 1.4));

    say("create, start, exec, state, kill, delete");
    life::measure(&stage, options.rounds, &mut report)?;

    let peak = peak_rss(&stage, &list, &mut report)?;
    report.figures.push(plain("peak RSS of run", peak, "MiB", Aim::Most(2.5)));
    say("lowest memory limit");
    let lowest = lowest_memory_limit(&stage, &mut report)?;
    report.figures.push(plain("lowest memory limit that starts", lowest, "KiB", Aim::Most(128.0)));
    let calls = system_calls(&stage, &list, &mut report)?;
    report.figures.push(plain("system calls of run", calls, "calls", Aim::Most(300.0)));
    let compile = process::text(stage.seccomp_filter().arg("time"))?;
    let compile: f64 = compile.trim().parse().map_err(|error| Error::input("the time of a profile", error))?;
    report.figures.push(plain("seccomp profile compiled", compile, "µs", Aim::Most(100.0)));
    let size = std::fs::metadata(&stage.ours).map_err(Error::file("read", &stage.ours))?.len() as f64 / MIB;
    report.figures.push(plain("size of the program", size, "MiB", Aim::Most(2.0)));

    say("supervisor");
    supervised::measure(&stage, &mut report)?;

    say("1,000 live containers");
    full_host(&stage, options.rounds, &mut report)?;
    Ok(report)
}

fn say(what: &str) {
    eprintln!("bench runtime: {what}");
}

fn whole(report: &mut Report, name: &str, samples: &[(&'static str, Samples)]) {
    let ours = find(samples, "gantry");
    for (peer, times) in [("floor", 1.35), ("crun", 0.27), ("runc", 0.13)] {
        let theirs = find(samples, peer);
        report.figures.push(beside(format!("{name} beside {peer}"), &ours.wall, peer, &theirs.wall, times));
    }
    for (runtime, samples) in samples {
        report.raw += &samples.line(&format!("{name}, {runtime}"));
    }
}

/// The smallest of some limits, in KiB, under which the bundle starts three times of three.
fn lowest_memory_limit(stage: &Stage, report: &mut Report) -> Result<f64> {
    let mut lowest = f64::INFINITY;
    for kib in [4096, 1024, 512, 256, 192, 160, 128, 112, 96, 80] {
        let bundle = stage.bundle("limit", &["/program"], kib << 10)?;
        for runtime in stage.runtimes() {
            let starts = || {
                let mut command = runtime.command(&["run", "--bundle"]);
                let id = fresh();
                let good = timed(command.arg(&bundle).arg(&id).stderr(Stdio::null())).is_ok();
                if !good {
                    let _ = process::output(&mut runtime.command(&["delete", "--force", &id]));
                }
                good
            };
            let good = (0..3).filter(|_| starts()).count();
            let _ = writeln!(report.raw, "memory limit {kib} KiB, {}: {good} of 3 start", runtime.name);
            if runtime.name == "gantry" && good == 3 {
                lowest = lowest.min(kib as f64);
            }
        }
    }
    Ok(lowest)
}

/// Largest resident set of a run, in MiB.
fn peak_rss(stage: &Stage, list: &[(&'static str, Make)], report: &mut Report) -> Result<f64> {
    let mut ours = f64::NAN;
    for (name, command) in list {
        let command = command();
        let mut measured = Command::new(stage.folder.join("true/rootfs/program"));
        measured.arg("rss").arg(command.get_program()).args(command.get_args());
        let text = process::text(&mut measured)?;
        let kib: f64 = text.trim().parse().map_err(|error| Error::input("the largest resident set", error))?;
        let _ = writeln!(report.raw, "peak RSS, {name}: {kib} KiB");
        if *name == "gantry" {
            ours = kib / 1024.0;
        }
    }
    Ok(ours)
}

/// System calls of one run, with those of the program that runs in it.
fn system_calls(stage: &Stage, list: &[(&'static str, Make)], report: &mut Report) -> Result<f64> {
    let table = stage.folder.join("strace");
    let mut ours = f64::NAN;
    for (name, command) in list {
        let command = command();
        let mut traced = Command::new("strace");
        traced.args(["-f", "-c", "-o"]).arg(&table).arg(command.get_program()).args(command.get_args());
        process::stdout(&mut traced)?;
        let text = crate::files::read(&table)?;
        let calls = total_calls(&text).ok_or_else(|| Error::input("strace -c", "has no total"))?;
        let _ = writeln!(report.raw, "system calls, {name}: {calls}");
        if *name == "gantry" {
            ours = calls;
            report.raw += &text;
        }
    }
    Ok(ours)
}

/// The number of calls in the last line of `strace -c`.
fn total_calls(table: &str) -> Option<f64> {
    let line = table.lines().rev().find(|line| line.trim_end().ends_with("total"))?;
    line.split_whitespace().nth(3)?.parse().ok()
}

/// What a host full of containers costs a start.
fn full_host(stage: &Stage, rounds: usize, report: &mut Report) -> Result<()> {
    let list: Vec<_> = runs(stage)?.into_iter().filter(|(name, _)| matches!(*name, "gantry" | "floor")).collect();
    let [ours, ..] = stage.runtimes();
    let bundle = stage.bundle("live", &["/program", "pause"], 256 << 20)?;
    let before = in_turns(&list, rounds, Duration::ZERO)?;
    let live = life::Live::start(&ours, &bundle, LIVE)?;
    let during = in_turns(&list, rounds, Duration::ZERO);
    live.end()?;
    let during = during?;
    let after = in_turns(&list, rounds, Duration::ZERO)?;
    for (when, samples) in [("before", &before), ("with", &during), ("after", &after)] {
        for (name, samples) in samples {
            report.raw += &samples.line(&format!("{when} {LIVE} live containers, {name}"));
        }
    }
    // Half of the samples from before and half from after, so that a drift of the machine does not count.
    let without = |runtime| [&find(&before, runtime).wall[..], &find(&after, runtime).wall].concat();
    let name = format!("run beside {LIVE} live containers");
    report.figures.push(beside(name, &find(&during, "gantry").wall, "without", &without("gantry"), 1.05));
    // What the kernel's own lists cost whoever starts a container.
    let slowdown = |runtime| median(&find(&during, runtime).wall) / median(&without(runtime));
    let floor = Some(("floor".to_owned(), slowdown("floor")));
    let name = format!("slowdown beside {LIVE} live containers");
    let aim = Aim::Times(1.05);
    report.figures.push(Figure { name, value: slowdown("gantry"), unit: "times", peer: floor, aim });
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_total_of_strace() {
        let table = "% time     seconds  usecs/call     calls    errors syscall\n\
            ------ ----------- ----------- --------- --------- ----------------\n \
            12.85    0.001221        1221         1           waitid\n\
            100.00    0.005085           4      1031        63 total\n";
        assert_eq!(total_calls(table), Some(1031.0));
        assert_eq!(total_calls(""), None);
    }

    #[test]
    fn the_95th_of_a_hundred() {
        let wall = (1..=100).map(Duration::from_millis).collect();
        assert_eq!(Samples { wall, ..Samples::default() }.p95(), 0.096);
        assert!(Samples::default().p95().is_nan());
    }
}
