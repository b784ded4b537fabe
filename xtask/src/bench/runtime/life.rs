//! The life of a container, one command at a time, and many containers at once.

use super::stage::{Runtime, Stage};
use super::{Report, beside, fresh, timed};
use crate::error::{Error, Result};
use crate::process;
use std::fmt::Write as _;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

/// What is timed, in its order.
const STEPS: [&str; 6] = ["create", "start", "state", "exec", "kill", "delete"];
/// How long a killed container may take to be gone.
const LIMIT: Duration = Duration::from_secs(10);

/// Times every command for each runtime in turns.
pub(super) fn measure(stage: &Stage, rounds: usize, report: &mut Report) -> Result<()> {
    let bundle = stage.bundle("pause", &["/program", "pause"], 256 << 20)?;
    let runtimes = stage.runtimes();
    let mut samples = vec![vec![Vec::new(); STEPS.len()]; runtimes.len()];
    for round in 0..=rounds {
        for (runtime, samples) in runtimes.iter().zip(&mut samples) {
            let times = one_life(stage, runtime, &bundle)?;
            if round > 0 {
                samples.iter_mut().zip(times).for_each(|(samples, time)| samples.push(time));
            }
        }
    }
    let cycles: Vec<Vec<Duration>> = samples.iter().map(|steps| cycle(steps)).collect();
    for ((runtime, steps), cycle) in runtimes.iter().zip(&samples).zip(&cycles) {
        let _ = write!(report.raw, "{}: cycle median {:.2} ms", runtime.name, super::median(cycle) * 1e3);
        for (step, times) in STEPS.iter().zip(steps) {
            let _ = write!(report.raw, ", {step} {:.2}", super::median(times) * 1e3);
        }
        report.raw.push('\n');
    }
    let (ours, runc) = (&samples[0], &samples[runtimes.len() - 1]);
    let all = "create + start + kill + delete".to_owned();
    report.figures.push(beside(all, &cycles[0], "runc", &cycles[runtimes.len() - 1], 0.14));
    for (step, times) in [("exec", 0.07), ("state", 0.3), ("kill", 0.3), ("delete", 0.3)] {
        let at = STEPS.iter().position(|known| *known == step).unwrap_or_default();
        report.figures.push(beside(step.to_owned(), &ours[at], "runc", &runc[at], times));
    }
    Ok(())
}

/// The sum of the steps that every container goes through, per round.
fn cycle(steps: &[Vec<Duration>]) -> Vec<Duration> {
    let rounds = steps.first().map_or(0, Vec::len);
    let counted: Vec<&Vec<Duration>> = STEPS
        .iter()
        .zip(steps)
        .filter(|(step, _)| !matches!(**step, "state" | "exec"))
        .map(|(_, times)| times)
        .collect();
    (0..rounds).map(|round| counted.iter().filter_map(|times| times.get(round)).sum()).collect()
}

fn one_life(stage: &Stage, runtime: &Runtime, bundle: &Path) -> Result<Vec<Duration>> {
    let id = fresh();
    let pid_file = stage.folder.join("pid");
    let time = |args: &[&str]| timed(&mut runtime.command(args)).map(|(wall, _)| wall);
    let mut create = runtime.command(&["create", "--bundle"]);
    create.arg(bundle).arg("--pid-file").arg(&pid_file).arg(&id);
    let result = (|| {
        let mut times = vec![timed(&mut create)?.0];
        times.push(time(&["start", &id])?);
        times.push(time(&["state", &id])?);
        times.push(time(&["exec", &id, "/program"])?);
        times.push(time(&["kill", &id, "KILL"])?);
        wait_for_end(&pid_file)?;
        times.push(time(&["delete", &id])?);
        Ok(times)
    })();
    if result.is_err() {
        let _ = process::output(&mut runtime.command(&["delete", "--force", &id]));
    }
    result
}

/// Wait until a killed process is gone, or waits for whoever is to reap it.
fn wait_for_end(pid_file: &Path) -> Result<()> {
    let pid = crate::files::read(pid_file)?;
    let end = Instant::now() + LIMIT;
    while std::fs::read_to_string(format!("/proc/{}/stat", pid.trim()))
        .is_ok_and(|stat| !stat.rsplit(')').next().is_some_and(|rest| rest.trim_start().starts_with(['Z', 'X'])))
    {
        if Instant::now() > end {
            return Err(Error::broken("a killed container to end", format!("process {} lives", pid.trim())));
        }
        std::thread::sleep(Duration::from_micros(200));
    }
    Ok(())
}

/// Containers that do nothing.
pub(super) struct Live {
    runtime: Runtime,
    ids: Vec<String>,
}

impl Live {
    /// Start some.
    pub(super) fn start(runtime: &Runtime, bundle: &PathBuf, count: usize) -> Result<Self> {
        let mut live = Self { runtime: runtime.clone(), ids: Vec::new() };
        for _ in 0..count {
            let id = fresh();
            live.ids.push(id.clone());
            let started = timed(runtime.command(&["run", "--detach", "--bundle"]).arg(bundle).arg(&id));
            if let Err(error) = started {
                live.end()?;
                return Err(error);
            }
        }
        Ok(live)
    }

    /// Remove them; all are tried.
    pub(super) fn end(self) -> Result<()> {
        let mut first = Ok(());
        for id in &self.ids {
            let removed = timed(&mut self.runtime.command(&["delete", "--force", id])).map(drop);
            first = first.and(removed);
        }
        first
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cycle_is_the_sum_of_what_every_container_goes_through() {
        let ms = |list: [u64; 2]| list.map(Duration::from_millis).to_vec();
        let steps = [ms([1, 2]), ms([10, 20]), ms([500, 500]), ms([500, 500]), ms([100, 200]), ms([1000, 2000])];
        assert_eq!(cycle(&steps), ms([1111, 2222]));
        assert_eq!(cycle(&[]), Vec::<Duration>::new());
    }
}
