//! `cargo xtask bench`: measured figures, each beside its aim and, where there is one, a peer.
//!
//! A figure is one line: `NAME: VALUE UNIT; PEER VALUE; ratio R; aim A; met|short`.

mod images;
mod net;
mod runtime;
mod shop;

use crate::error::{Error, Result};
use crate::{files, process};
use std::fmt::Write as _;
use std::process::Command;
use std::time::Duration;

/// Measures.
type Bench = fn(&Options) -> Result<Report>;

/// Benches: name, what it measures, how many rounds it takes by itself, and how.
const BENCHES: &[(&str, &str, usize, Bench)] = &[
    ("shop", "the example app on a lab: deploy, a replica's death, a worker's death", 5, shop::run),
    (
        "images",
        "pulls of a real image beside containerd, podman, docker, skopeo with umoci; root file systems",
        3,
        images::run,
    ),
    ("net", "the node's network: a connection to a service, one changed endpoint, thousands of services", 15, net::run),
    ("runtime", "gantry-runtime beside crun, runc and the least that any runtime does", 60, runtime::run),
];

/// What the command line asks for.
#[derive(Debug, Clone)]
pub(crate) struct Options {
    /// Repetitions; the median counts.
    pub(crate) rounds: usize,
}

/// What a bench found.
#[derive(Debug, Default)]
pub(crate) struct Report {
    pub(crate) figures: Vec<Figure>,
    /// All samples and circumstances, for `--save`.
    pub(crate) raw: String,
}

/// What a figure should be.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) enum Aim {
    /// No more than this.
    Most(f64),
    /// No less than this.
    Least(f64),
    /// No more than this times the peer's.
    Times(f64),
}

/// One figure.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Figure {
    pub(crate) name: String,
    pub(crate) value: f64,
    pub(crate) unit: &'static str,
    /// Another program's figure, measured in the same run.
    pub(crate) peer: Option<(String, f64)>,
    pub(crate) aim: Aim,
}

impl Figure {
    fn met(&self) -> bool {
        match self.aim {
            Aim::Most(most) => self.value <= most,
            Aim::Least(least) => self.value >= least,
            Aim::Times(most) => self.peer.as_ref().is_some_and(|(_, peer)| self.value <= most * peer),
        }
    }

    fn line(&self) -> String {
        let mut line = format!("{}: {} {}", self.name, short(self.value), self.unit);
        if let Some((peer, value)) = &self.peer {
            let _ = write!(line, "; {peer} {}; ratio {:.2}", short(*value), self.value / value);
        }
        let aim = match self.aim {
            Aim::Most(most) => short(most),
            Aim::Least(least) => format!("at least {}", short(least)),
            Aim::Times(most) => format!("{}x", short(most)),
        };
        let _ = write!(line, "; aim {aim}; {}", if self.met() { "met" } else { "short" });
        line
    }
}

/// Three digits that matter.
fn short(value: f64) -> String {
    let text = match value.abs() {
        0.0..1.0 => format!("{value:.3}"),
        1.0..100.0 => format!("{value:.2}"),
        _ => format!("{value:.0}"),
    };
    if text.contains('.') { text.trim_end_matches('0').trim_end_matches('.').to_owned() } else { text }
}

/// The middle sample; of two middle ones the mean.
pub(crate) fn median(samples: &[Duration]) -> f64 {
    let mut seconds: Vec<f64> = samples.iter().map(Duration::as_secs_f64).collect();
    seconds.sort_by(f64::total_cmp);
    match seconds.len() {
        0 => f64::NAN,
        odd if odd % 2 == 1 => seconds[odd / 2],
        even => f64::midpoint(seconds[even / 2 - 1], seconds[even / 2]),
    }
}

/// `cargo xtask bench NAME [--rounds N] [--check] [--save]`.
pub(crate) fn task(args: &[String]) -> Result<()> {
    let mut rounds = None;
    let (mut check, mut save, mut name) = (false, false, None);
    let mut words = args.iter();
    while let Some(word) = words.next() {
        match word.as_str() {
            "--check" => check = true,
            "--save" => save = true,
            "--rounds" => {
                let count = words.next().and_then(|count| count.parse().ok()).filter(|count| *count > 0);
                rounds = Some(count.ok_or_else(|| Error::Usage("--rounds needs a number above 0".into()))?);
            }
            flag if flag.starts_with('-') => return Err(Error::Usage(format!("bench does not know `{flag}`"))),
            word => name = Some(word.to_owned()),
        }
    }
    let list = || BENCHES.iter().map(|(name, what, ..)| format!("{name}: {what}")).collect::<Vec<_>>().join("; ");
    let name = name.ok_or_else(|| Error::Usage(format!("which bench? There are: {}", list())))?;
    let (_, _, usual, run) = BENCHES
        .iter()
        .find(|(known, ..)| *known == name)
        .ok_or_else(|| Error::Usage(format!("no bench `{name}`. There are: {}", list())))?;
    let options = Options { rounds: rounds.unwrap_or(*usual) };
    let report = run(&options)?;
    let lines: Vec<String> = report.figures.iter().map(Figure::line).collect();
    lines.iter().for_each(|line| println!("{line}"));
    if save {
        keep(&name, &options, &lines, &report.raw)?;
    }
    let short = report.figures.iter().filter(|figure| !figure.met()).count();
    if check && short > 0 {
        return Err(Error::broken("every figure to meet its aim", format!("{short} fell short")));
    }
    Ok(())
}

/// Writes figures, samples and circumstances to docs/benchmarks/NAME.txt.
fn keep(name: &str, options: &Options, lines: &[String], raw: &str) -> Result<()> {
    let say = |program: &str, args: &[&str]| {
        process::text(Command::new(program).args(args).current_dir(files::root())).unwrap_or_default().trim().to_owned()
    };
    let processors = std::thread::available_parallelism().map_or(0, usize::from);
    let text = format!(
        "cargo xtask bench {name} --rounds {}\n{}, commit {}\n{}, {processors} processors\n\n{}\n\n{raw}",
        options.rounds,
        say("date", &["-u", "+%Y-%m-%d %H:%M UTC"]),
        say("git", &["rev-parse", "--short", "HEAD"]),
        say("uname", &["-srm"]),
        lines.join("\n"),
    );
    let path = files::root().join(format!("docs/benchmarks/{name}.txt"));
    files::replace(&path, text.as_bytes())?;
    println!("kept in {}", crate::binaries::shown(&path));
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_figure_is_one_line() {
        let figure = |value, peer, aim| Figure { name: "start".into(), value, unit: "s", peer, aim };
        let runc = || Some(("runc".into(), 0.4));
        for (figure, line) in [
            (figure(0.0872, None, Aim::Most(0.1)), "start: 0.087 s; aim 0.1; met"),
            (figure(0.2, runc(), Aim::Most(0.1)), "start: 0.2 s; runc 0.4; ratio 0.50; aim 0.1; short"),
            (figure(0.2, runc(), Aim::Times(0.5)), "start: 0.2 s; runc 0.4; ratio 0.50; aim 0.5x; met"),
            (figure(0.2, None, Aim::Times(0.5)), "start: 0.2 s; aim 0.5x; short"),
            (figure(0.2, None, Aim::Least(0.5)), "start: 0.2 s; aim at least 0.5; short"),
            (figure(0.5, None, Aim::Least(0.5)), "start: 0.5 s; aim at least 0.5; met"),
        ] {
            assert_eq!(figure.line(), line);
        }
    }

    #[test]
    fn numbers_have_the_digits_that_matter() {
        for (value, text) in [(0.0123, "0.012"), (1.0, "1"), (2.506, "2.51"), (1234.5, "1234"), (100.0, "100")] {
            assert_eq!(short(value), text);
        }
    }

    #[test]
    fn the_median_is_in_the_middle() {
        let of = |list: &[u64]| median(&list.iter().map(|ms| Duration::from_millis(*ms)).collect::<Vec<_>>());
        assert_eq!(of(&[3000, 1000, 2000]), 2.0);
        assert_eq!(of(&[1000, 2000]), 1.5);
        assert!(of(&[]).is_nan());
    }

    #[test]
    fn an_unknown_bench_names_those_there_are() {
        for args in [vec![], vec!["nix".to_owned()]] {
            let error = task(&args).unwrap_err();
            assert!(error.to_string().contains("shop: "), "{error}");
        }
        assert!(task(&["shop".into(), "--rounds".into(), "0".into()]).is_err());
    }
}
