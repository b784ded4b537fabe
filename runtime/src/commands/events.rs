//! `events`: what a container uses, now and then, and when it runs out of memory.

use super::open;
use crate::args::{Command, Global, Operands, Opt, UsageError};
use crate::cgroup::Cgroup;
use crate::cgroup::oom::{Heard, OomWatch};
use crate::cgroup::stats::Stats;
use crate::error::{Because, Failure, Outcome};
use crate::state::Status;
use rustix::event::{PollFd, PollFlags, Timespec};
use serde::Serialize;
use std::io::Write;
use std::os::fd::AsFd;
use std::time::{Duration, Instant};

/// `events`.
#[derive(Debug)]
pub struct Events {
    id: String,
    stats: bool,
    interval: Duration,
}

impl Default for Events {
    fn default() -> Self {
        Self { id: String::new(), stats: false, interval: Duration::from_secs(5) }
    }
}

impl Command for Events {
    const NAME: &'static str = "events";
    const SUMMARY: &'static str = "print what a container uses, and when it runs out of memory";
    const OPERANDS: &'static str = "ID";
    const NOTES: &'static str = "One JSON object a line, until the container has stopped.";
    const OPTIONS: &'static [&'static [Opt<Self>]] = &[&[
        Opt::switch("stats", "print once and end", |events: &mut Self, value| value.on().map(|on| events.stats = on)),
        Opt::value(
            "interval",
            "TIME",
            "time between two, such as 5s, 1m30s or 500ms [default: 5s]",
            |events, value| {
                let text = value.text()?;
                events.interval = duration(&text).ok_or_else(|| value.wrong("a time such as 5s or 500ms", &text))?;
                Ok(())
            },
        ),
    ]];

    fn operands(&mut self, operands: &mut Operands) -> Result<(), UsageError> {
        self.id = operands.id()?;
        Ok(())
    }

    fn run(&self, global: &Global) -> Outcome<i32> {
        let (dir, record) = open(global, &self.id)?;
        if self.interval.is_zero() {
            return Err(Failure::new("duration interval must be greater than 0").hint("for example --interval 5s"));
        }
        let init = record.init.filter(|_| dir.status(&record) != Status::Stopped).and_then(|init| init.open());
        let Some(init) = init else {
            return Err(Failure::new(format!("container with id {} is not running", self.id)));
        };
        let cgroup = record.own_cgroup()?;
        if self.stats {
            self.print_stats(&cgroup)?;
            return Ok(0);
        }
        let mut watch = OomWatch::new(&cgroup)?;
        let mut next = Instant::now() + self.interval;
        loop {
            let left = next.saturating_duration_since(Instant::now());
            let (ended, heard) = wait(init.as_fd(), &watch, left)?;
            match heard.then(|| watch.hear()).transpose()? {
                Some(Heard::Oom) => self.print("oom", None)?,
                Some(Heard::End) => return Ok(0),
                Some(Heard::Nothing) | None if ended => return Ok(0),
                Some(Heard::Nothing) | None => {}
            }
            if Instant::now() >= next {
                self.print_stats(&cgroup)?;
                next += self.interval;
            }
        }
    }
}

impl Events {
    fn print_stats(&self, cgroup: &Cgroup) -> Outcome<()> {
        self.print("stats", Some(cgroup.stats()))
    }

    fn print(&self, kind: &str, data: Option<Stats>) -> Outcome<()> {
        #[derive(Serialize)]
        struct Event<'a> {
            r#type: &'a str,
            id: &'a str,
            #[serde(skip_serializing_if = "Option::is_none")]
            data: Option<Stats>,
        }
        let event = Event { r#type: kind, id: &self.id, data };
        let mut line = serde_json::to_vec(&event).because(|| "cannot encode the event".to_owned())?;
        line.push(b'\n');
        std::io::stdout().write_all(&line).because(|| "cannot write the event".to_owned())
    }
}

/// Wait for the end of the container, for a memory event, or for a time; says which of the first two came.
fn wait(init: std::os::fd::BorrowedFd<'_>, watch: &OomWatch, time: Duration) -> Outcome<(bool, bool)> {
    let mut fds = [PollFd::from_borrowed_fd(init, PollFlags::IN), PollFd::from_borrowed_fd(watch.fd(), PollFlags::IN)];
    let seconds = i64::try_from(time.as_secs()).unwrap_or(i64::MAX);
    let time = Timespec { tv_sec: seconds, tv_nsec: time.subsec_nanos().into() };
    match rustix::event::poll(&mut fds, Some(&time)) {
        Ok(_) => Ok((!fds[0].revents().is_empty(), !fds[1].revents().is_empty())),
        Err(rustix::io::Errno::INTR) => Ok((false, false)),
        Err(error) => Err(error).because(|| "cannot wait for events".to_owned()),
    }
}

/// A time as Go writes it: numbers with units in a row.
fn duration(text: &str) -> Option<Duration> {
    if text == "0" {
        return Some(Duration::ZERO);
    }
    let mut rest = text;
    let mut total = Duration::ZERO;
    while !rest.is_empty() {
        let digits = rest.find(|letter: char| !letter.is_ascii_digit() && letter != '.')?;
        let value: f64 = rest[..digits].parse().ok()?;
        rest = &rest[digits..];
        let unit_end = rest.find(|letter: char| letter.is_ascii_digit() || letter == '.').unwrap_or(rest.len());
        let seconds = match &rest[..unit_end] {
            "ns" => 1e-9,
            "us" | "µs" | "μs" => 1e-6,
            "ms" => 1e-3,
            "s" => 1.0,
            "m" => 60.0,
            "h" => 3600.0,
            _ => return None,
        };
        total = total.checked_add(Duration::try_from_secs_f64(value * seconds).ok()?)?;
        rest = &rest[unit_end..];
    }
    (!text.is_empty()).then_some(total)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_as_go_writes_them() {
        for (text, want) in [
            ("5s", Some(5000)),
            ("1m30s", Some(90_000)),
            ("100ms", Some(100)),
            ("1.5h", Some(5_400_000)),
            ("0", Some(0)),
            ("0s", Some(0)),
            ("5", None),
            ("", None),
            ("s", None),
            ("-5s", None),
            ("5 s", None),
            ("99999999999999999999h", None),
        ] {
            assert_eq!(duration(text), want.map(Duration::from_millis), "{text:?}");
        }
    }
}
