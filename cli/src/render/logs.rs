//! Output of several replicas in one stream: `api-2 | line`.

use super::style::{Colour, Style};
use gantry_api::http::LogLine;
use gantry_api::ids::ReplicaName;
use std::collections::HashMap;

/// What stands before each line.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Prefix {
    /// Nothing: one replica's output as it is.
    None,
    /// Service and number.
    Name,
}

/// Puts prefixes before lines. Replicas get their colour and the column its width as they are first seen.
#[derive(Debug)]
pub(crate) struct Prefixer {
    prefix: Prefix,
    timestamps: bool,
    style: Style,
    colours: HashMap<ReplicaName, usize>,
    width: usize,
}

impl Prefixer {
    /// For lines of `known` replicas; others may come later.
    pub(crate) fn new(prefix: Prefix, timestamps: bool, style: Style, known: &[ReplicaName]) -> Self {
        let width = known.iter().map(|name| label(name).len()).max().unwrap_or(0);
        Self { prefix, timestamps, style, colours: HashMap::new(), width }
    }

    /// The line to print, with its end.
    pub(crate) fn line(&mut self, log: &LogLine) -> String {
        let time = if self.timestamps { format!("{} ", log.time) } else { String::new() };
        if self.prefix == Prefix::None {
            return format!("{time}{}\n", log.line);
        }
        let next = self.colours.len();
        let colour = *self.colours.entry(log.name.clone()).or_insert(next);
        let label = label(&log.name);
        self.width = self.width.max(label.len());
        let padded = format!("{label:width$} |", width = self.width);
        format!("{} {time}{}\n", self.style.paint(Colour::Nth(colour), &padded), log.line)
    }
}

/// Service and number: the app is the same on every line.
fn label(name: &ReplicaName) -> String {
    format!("{}-{}", name.service, name.number)
}

#[cfg(test)]
mod tests {
    use super::*;
    use gantry_api::ids::ReplicaId;

    fn log(service: &str, number: u32, line: &str) -> LogLine {
        let name = ReplicaName { app: "shop".parse().unwrap(), service: service.parse().unwrap(), number };
        LogLine {
            time: "2026-11-24T08:00:00.000000001Z".to_owned(),
            replica: ReplicaId::new(&name, 1),
            name,
            stream: "stdout".to_owned(),
            line: line.to_owned(),
        }
    }

    #[test]
    fn prefixes_are_aligned_and_grow_for_newcomers() {
        let mut prefixer = Prefixer::new(Prefix::Name, false, Style::Plain, &[log("api", 2, "").name]);
        assert_eq!(prefixer.line(&log("api", 2, "ready")), "api-2 | ready\n");
        assert_eq!(prefixer.line(&log("worker", 1, "")), "worker-1 | \n");
        assert_eq!(prefixer.line(&log("api", 2, "  x ")), "api-2    |   x \n");
    }

    #[test]
    fn each_replica_keeps_its_colour() {
        let mut prefixer = Prefixer::new(Prefix::Name, false, Style::Colour, &[]);
        let first = prefixer.line(&log("api", 1, "a"));
        let second = prefixer.line(&log("api", 2, "a"));
        assert_eq!(first, "\x1b[36mapi-1 |\x1b[0m a\n");
        assert_eq!(second, "\x1b[33mapi-2 |\x1b[0m a\n");
        assert_eq!(prefixer.line(&log("api", 1, "a")), first);
    }

    #[test]
    fn timestamps_come_after_the_prefix() {
        let line = log("api", 1, "a");
        let mut prefixer = Prefixer::new(Prefix::Name, true, Style::Plain, &[]);
        assert_eq!(prefixer.line(&line), "api-1 | 2026-11-24T08:00:00.000000001Z a\n");
        let mut prefixer = Prefixer::new(Prefix::None, true, Style::Plain, &[]);
        assert_eq!(prefixer.line(&line), "2026-11-24T08:00:00.000000001Z a\n");
        let mut prefixer = Prefixer::new(Prefix::None, false, Style::Colour, &[]);
        assert_eq!(prefixer.line(&line), "a\n");
    }
}
