//! The node's network: what netd's own measurements find, each beside its aim.
//!
//! They are tests of the crate that are ignored otherwise (`measure`), in network namespaces of their own; a figure is a
//! line `figure|NAME|VALUE|UNIT`, and `|PEER|VALUE` where it has a peer.

use super::{Aim, Figure, Options, Report};
use crate::error::{Error, Result};
use crate::{files, host, process};
use std::process::Command;

/// By the beginning of a figure's name; the first that fits.
const AIMS: &[(&str, Aim)] = &[
    ("connection, same node: programs", Aim::Times(1.03)),
    ("connection, other node: programs", Aim::Times(1.06)),
    ("connection, same node: rules", Aim::Times(1.39)),
    ("connection, other node: rules", Aim::Times(1.15)),
    ("request, same node: programs", Aim::Times(1.02)),
    ("request, other node: programs", Aim::Times(1.02)),
    ("request, same node: rules", Aim::Times(1.35)),
    ("request, other node: rules", Aim::Times(1.10)),
    ("one endpoint changed", Aim::Most(20.0)),
    ("finding what changed", Aim::Most(5000.0)),
    ("all built, programs, 50000", Aim::Most(1250.0)),
    ("all built, rules, 50000", Aim::Most(1250.0)),
    ("all built", Aim::Most(250.0)),
];

/// Runs the bench.
pub(crate) fn run(options: &Options) -> Result<Report> {
    host::check_root("bench net")?;
    let mut report = Report::default();
    for target in [&["--test", "measure", "ways_to_a_service"][..], &["--lib", "measure::kernel_writes"]] {
        let mut command = Command::new(env!("CARGO"));
        command
            .args(["test", "--release", "--locked", "--package", "gantry-netd"])
            .args(target)
            .args(["--", "--exact", "--ignored", "--nocapture"])
            .env("GANTRY_BENCH_ROUNDS", options.rounds.to_string())
            .current_dir(files::root());
        let text = process::text(&mut command)?;
        let figures: Vec<&str> = text.lines().filter_map(|line| line.split_once("figure|")).map(|(_, f)| f).collect();
        if figures.is_empty() {
            return Err(Error::broken(
                "a measurement to find something",
                format!("{} printed no figure", process::shown(&command)),
            ));
        }
        for line in figures {
            report.figures.push(figure(line)?);
            report.raw.push_str(line);
            report.raw.push('\n');
        }
    }
    Ok(report)
}

/// `NAME|VALUE|UNIT`, or `NAME|VALUE|UNIT|PEER|VALUE`.
fn figure(line: &str) -> Result<Figure> {
    let wrong = || Error::broken("a figure", format!("`{line}`"));
    let words: Vec<&str> = line.split('|').collect();
    let number = |text: &str| text.parse::<f64>().map_err(|_| wrong());
    let (name, value, unit, peer) = match words[..] {
        [name, value, unit] => (name, number(value)?, unit, None),
        [name, value, unit, peer, other] => (name, number(value)?, unit, Some((peer.to_owned(), number(other)?))),
        _ => return Err(wrong()),
    };
    let unit = ["µs", "ms"].into_iter().find(|known| *known == unit).ok_or_else(wrong)?;
    let aim = AIMS.iter().find(|(begin, _)| name.starts_with(begin)).map(|(_, aim)| *aim).ok_or_else(wrong)?;
    Ok(Figure { name: name.to_owned(), value, unit, peer, aim })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_figure_has_its_aim() {
        let found = figure("connection, same node: programs|50.5|µs|direct|50").unwrap();
        assert_eq!(found.aim, Aim::Times(1.03));
        assert!(found.met());
        let found = figure("all built, rules, 10000 services|251|ms").unwrap();
        assert_eq!((found.aim, found.met()), (Aim::Most(250.0), false));
        for wrong in ["", "x|1|µs", "all built|many|ms", "all built|1|parsec", "all built|1|ms|peer"] {
            assert!(figure(wrong).is_err(), "{wrong}");
        }
    }
}
