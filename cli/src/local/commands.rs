//! Containers of this host, after `gantry run`: stop, kill, start, rm, logs, and the list of them.

use super::error::LocalError;
use super::images;
use super::life::{Host, now_ms};
use super::record::{Phase, Record, Shelf};
use super::run::{EXIT_FILE_WITHIN, Signals, exit_code, start_detached};
use super::runtime::foreground_trouble;
use crate::error::{CliError, Outcome};
use crate::global::Global;
use crate::lab::state::{Process, boot_id};
use gantry_agent::cri::{self, At, Line};
use gantry_api::network::Published;
use gantry_images::PullPolicy;
use std::io::{self, Write};
use std::net::Ipv4Addr;
use std::time::{Duration, Instant};

/// After SIGKILL, and for whoever clears up behind the container.
const END_WITHIN: Duration = Duration::from_secs(15);
const LOOK: Duration = Duration::from_millis(10);
/// Characters of a command in a table.
const COMMAND_SHOWN: usize = 40;

/// Where a container of this host is in its life.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize)]
#[serde(rename_all = "snake_case", tag = "state")]
pub enum LocalState {
    /// Being made.
    Created,
    /// Its program runs.
    Running,
    /// Its program has ended.
    Exited {
        /// Exit code, 128 + signal; `None` when nobody saw it.
        code: Option<i32>,
        /// Whether its memory limit ended it.
        oom_killed: bool,
        /// When, milliseconds since 1970.
        at_ms: u64,
    },
}

/// A container of this host, made by `gantry run`.
#[derive(Debug, Clone, PartialEq, serde::Serialize)]
pub struct LocalContainer {
    /// Its id.
    pub id: String,
    /// Its name.
    pub name: String,
    /// Image, as the user wrote it.
    pub image: String,
    /// Program and arguments.
    pub command: Vec<String>,
    /// Where it is in its life.
    #[serde(flatten)]
    pub state: LocalState,
    /// When it was made, milliseconds since 1970.
    pub created_ms: u64,
    /// When its program was last started.
    pub started_ms: Option<u64>,
    /// Published ports.
    pub ports: Vec<Published>,
    /// Its address.
    pub address: Option<Ipv4Addr>,
    /// Whether it runs in the background.
    pub detached: bool,
}

impl From<Record> for LocalContainer {
    fn from(record: Record) -> Self {
        let stale = record.stale();
        let state = match record.phase {
            Phase::Ended(ended) => {
                LocalState::Exited { code: ended.code, oom_killed: ended.oom_killed, at_ms: ended.at_ms }
            }
            // Its `gantry run` was killed: the next command clears it away.
            _ if stale => LocalState::Exited { code: None, oom_killed: false, at_ms: now_ms() },
            Phase::Creating => LocalState::Created,
            Phase::Running => LocalState::Running,
        };
        Self {
            id: record.id,
            name: record.name,
            image: record.image,
            command: record.command,
            state,
            created_ms: record.created_ms,
            started_ms: record.started_ms,
            ports: record.wish.ports,
            address: record.address,
            detached: record.detached,
        }
    }
}

/// The containers of this host, oldest first. Needs no daemon and changes nothing.
///
/// # Errors
/// Their directory is not for this user.
pub fn list(global: &Global) -> Result<Vec<LocalContainer>, CliError> {
    let shelf = Shelf::new(global);
    if shelf.forbidden() {
        return Err(LocalError::NotRoot("ps --local").into());
    }
    Ok(shelf.records().into_iter().map(LocalContainer::from).collect())
}

/// Whether this host has any container of `gantry run`.
pub fn any(global: &Global) -> bool {
    list(global).is_ok_and(|containers| !containers.is_empty())
}

/// `gantry ps --local`: the containers of this host.
///
/// - `all`: also those that have ended.
///
/// # Errors
/// As [`list`].
pub fn ps(global: &Global, all: bool, json: bool, quiet: bool) -> Outcome {
    let mut containers = list(global)?;
    containers.retain(|container| all || !matches!(container.state, LocalState::Exited { .. }));
    let text = if json {
        format!("{}\n", serde_json::to_string_pretty(&containers).unwrap_or_default())
    } else if quiet {
        containers.iter().map(|container| format!("{}\n", container.id)).collect()
    } else {
        table(&containers, now_ms())
    };
    drop(io::stdout().write_all(text.as_bytes())); // nobody reads it
    Ok(0)
}

fn table(containers: &[LocalContainer], now_ms: u64) -> String {
    let ago = |ms: u64| age(now_ms.saturating_sub(ms));
    let row = |container: &LocalContainer| {
        let state = match &container.state {
            LocalState::Created => "created".to_owned(),
            LocalState::Running => format!("up {}", ago(container.started_ms.unwrap_or(container.created_ms))),
            LocalState::Exited { oom_killed: true, at_ms, .. } => format!("out of memory {} ago", ago(*at_ms)),
            LocalState::Exited { code: Some(code), at_ms, .. } => format!("exited ({code}) {} ago", ago(*at_ms)),
            LocalState::Exited { code: None, .. } => "exited".to_owned(),
        };
        let ports: Vec<String> =
            container.ports.iter().map(|port| format!("{}->{}", port.published, port.target)).collect();
        let mut command = container.command.join(" ");
        if command.chars().count() > COMMAND_SHOWN {
            command = command.chars().take(COMMAND_SHOWN - 1).chain(['…']).collect();
        }
        [container.id.clone(), container.name.clone(), container.image.clone(), state, ports.join(", "), command]
    };
    let head = ["ID", "NAME", "IMAGE", "STATUS", "PORTS", "COMMAND"].map(str::to_owned);
    let rows: Vec<[String; 6]> = std::iter::once(head).chain(containers.iter().map(row)).collect();
    let wide: Vec<usize> = (0..6).map(|i| rows.iter().map(|row| row[i].chars().count()).max().unwrap_or(0)).collect();
    let line = |row: &[String; 6]| {
        let cells: Vec<String> = row.iter().zip(&wide).map(|(cell, wide)| format!("{cell:wide$}")).collect();
        format!("{}\n", cells.join("  ").trim_end())
    };
    rows.iter().map(line).collect()
}

/// The largest unit is enough for a table.
fn age(ms: u64) -> String {
    let s = ms / 1000;
    match s {
        0..60 => format!("{s}s"),
        60..3600 => format!("{}m", s / 60),
        3600..86_400 => format!("{}h", s / 3600),
        _ => format!("{}d", s / 86_400),
    }
}

/// How a command is run in a container of this host.
#[derive(Debug, Clone, Default)]
pub struct ExecOptions {
    /// Pass standard input on.
    pub interactive: bool,
    /// Give it a terminal.
    pub tty: bool,
    /// `KEY=VALUE` on top of the container's.
    pub env: Vec<String>,
    /// `uid` or `uid:gid`.
    pub user: Option<String>,
    /// Directory to start in.
    pub workdir: Option<String>,
}

/// Runs it; its exit code.
///
/// # Errors
/// 125 when Gantry failed; the container does not run.
pub fn exec(global: &Global, name: &str, options: &ExecOptions, command: &[String]) -> Outcome {
    let act = || -> Result<u8, LocalError> {
        let host = Host::open(global, "exec")?;
        let record = host.shelf.find(name)?;
        if record.phase != Phase::Running || !record.owned() {
            return Err(LocalError::NotRunning(record.name));
        }
        let number = |text: &str| !text.is_empty() && text.bytes().all(|c| c.is_ascii_digit());
        if let Some(user) = options.user.as_ref().filter(|user| !user.splitn(2, ':').all(number)) {
            return Err(LocalError::option("user", user, "write numbers, UID or UID:GID"));
        }
        let mut words: Vec<String> = options.env.iter().flat_map(|word| ["--env".to_owned(), word.clone()]).collect();
        words.extend(options.tty.then(|| "--tty".to_owned()));
        for (option, value) in [("--user", &options.user), ("--cwd", &options.workdir)] {
            words.extend(value.iter().flat_map(|value| [option.to_owned(), value.clone()]));
        }
        words.push(record.id.clone());
        words.extend(command.iter().cloned());
        let log = host.shelf.place(&record.id).dir.join(format!("exec-{}.log", std::process::id()));
        let signals = Signals::hold()?;
        let status = signals.attend(host.runtime.exec(&words, options.interactive, &log)?);
        let trouble = foreground_trouble(&log);
        drop(std::fs::remove_file(&log)); // there only after a complaint
        // The runtime has told it already, so only its code is left.
        trouble.map_or_else(|| status.map(exit_code), |trouble| Ok(trouble.of_run().code))
    };
    act().map_err(LocalError::of_run)
}

/// Whether `name` is a container of this host: for commands that take replicas of a cluster as well.
pub fn knows(global: &Global, name: &str) -> bool {
    Shelf::new(global).find(name).is_ok()
}

/// Which lines of a log are wanted.
#[derive(Debug, Clone, Default)]
pub struct LogOptions {
    /// Go on as lines come, until the container ends.
    pub follow: bool,
    /// Only the last so many.
    pub tail: Option<usize>,
    /// With the time in front.
    pub timestamps: bool,
}

/// Shows the log of a detached container: its standard output on ours, its standard error on ours.
///
/// # Errors
/// No such container, or it ran in the foreground.
pub fn logs(global: &Global, name: &str, options: &LogOptions) -> Outcome {
    let shelf = Shelf::new(global);
    let record = shelf.find(name)?;
    let place = shelf.place(&record.id);
    if !record.detached {
        return Err(LocalError::NoLog(record.name).into());
    }
    let path = place.log();
    let read = |error: io::Error| CliError::from(LocalError::file("read", &path)(error));
    let mut lines = Vec::new();
    let mut reader = cri::Reader::new(&path);
    loop {
        // Asked before the log is read to its end: only then is that end final.
        let ended = place.load()?.is_none_or(|record| record.stale() || matches!(record.phase, Phase::Ended(_)));
        let at = reader.read(&mut lines).map_err(read)?;
        if at == At::More {
            keep_last(&mut lines, options.tail);
            continue;
        }
        if ended || !options.follow {
            lines.extend(reader.rest());
        }
        keep_last(&mut lines, options.tail);
        if !show(&lines, options.timestamps) || ended || !options.follow || at == At::Gone {
            return Ok(0);
        }
        lines.clear();
        // From now on all that comes is wanted.
        return follow(&place, reader, options.timestamps);
    }
}

fn keep_last(lines: &mut Vec<Line>, tail: Option<usize>) {
    if let Some(count) = tail {
        lines.drain(..lines.len().saturating_sub(count));
    }
}

fn follow(place: &super::record::Place, mut reader: cri::Reader, timestamps: bool) -> Outcome {
    let path = place.log();
    loop {
        let ended = place.load()?.is_none_or(|record| record.stale() || matches!(record.phase, Phase::Ended(_)));
        let mut lines = Vec::new();
        let at = reader.read(&mut lines).map_err(LocalError::file("read", &path))?;
        let last = at == At::Gone || (ended && at == At::End);
        if last {
            lines.extend(reader.rest());
        }
        if !show(&lines, timestamps) || last {
            return Ok(0);
        }
        if at == At::End {
            std::thread::sleep(LOOK * 5);
        }
    }
}

/// `false` when nobody reads any more.
fn show(lines: &[Line], timestamps: bool) -> bool {
    let (mut out, mut err) = (io::stdout().lock(), io::stderr().lock());
    let mut one = |line: &Line| {
        let time = if timestamps { format!("{} ", line.time) } else { String::new() };
        if line.stream == "stderr" {
            writeln!(err, "{time}{}", line.text)
        } else {
            writeln!(out, "{time}{}", line.text)
        }
    };
    lines.iter().all(|line| one(line).is_ok()) && io::stdout().flush().is_ok()
}

/// Stop containers of this host: their stop signal, then SIGKILL.
#[derive(Debug, clap::Args)]
pub struct Stop {
    /// Seconds to wait before SIGKILL.
    #[arg(long, short, value_name = "SECONDS", default_value_t = 10)]
    time: u64,
    /// Containers, by name or id.
    #[arg(required = true, value_name = "CONTAINER")]
    containers: Vec<String>,
}

impl Stop {
    /// Done when they have ended.
    ///
    /// # Errors
    /// The first failure; the others were tried.
    pub fn run(&self, global: &Global) -> Outcome {
        let host = Host::open(global, "stop")?;
        each(&self.containers, |name| stop(&host, &host.shelf.find(name)?, self.time))
    }
}

/// Send a signal to containers of this host.
#[derive(Debug, clap::Args)]
pub struct Kill {
    /// Signal, by name or number.
    #[arg(long, short, value_name = "SIGNAL", default_value = "KILL")]
    signal: String,
    /// Containers, by name or id.
    #[arg(required = true, value_name = "CONTAINER")]
    containers: Vec<String>,
}

impl Kill {
    /// Done when the signal is sent.
    ///
    /// # Errors
    /// One does not run, or the signal does not exist.
    pub fn run(&self, global: &Global) -> Outcome {
        let host = Host::open(global, "kill")?;
        each(&self.containers, |name| {
            let record = host.shelf.find(name)?;
            if record.phase != Phase::Running {
                return Err(LocalError::NotRunning(record.name));
            }
            host.runtime.kill(&record.id, &self.signal)
        })
    }
}

/// Remove containers of this host, with all that is theirs.
#[derive(Debug, clap::Args)]
pub struct Rm {
    /// Kill those that run.
    #[arg(long, short)]
    force: bool,
    /// Containers, by name or id.
    #[arg(required = true, value_name = "CONTAINER")]
    containers: Vec<String>,
}

impl Rm {
    /// Done when nothing is left of them.
    ///
    /// # Errors
    /// One runs, or is not there (with `--force` that is fine).
    pub fn run(&self, global: &Global) -> Outcome {
        let host = Host::open(global, "rm")?;
        {
            let _lock = host.shelf.lock()?;
            host.sweep();
        }
        each(&self.containers, |name| match host.shelf.find(name) {
            Err(LocalError::NoContainer(_)) if self.force => Ok(()),
            Err(error) => Err(error),
            Ok(record) => remove(&host, &record, self.force),
        })
    }
}

fn remove(host: &Host, record: &Record, force: bool) -> Result<(), LocalError> {
    if record.owned() && !matches!(record.phase, Phase::Ended(_)) {
        if !force {
            return Err(LocalError::Running(record.name.clone()));
        }
        let _ = host.runtime.kill(&record.id, "KILL"); // it may just have ended
        await_end(host, record, END_WITHIN)?;
    }
    let place = host.shelf.place(&record.id);
    match place.lock() {
        // Removed by whoever looked after it.
        Err(_) if !place.dir.exists() => Ok(()),
        Err(error) => Err(error),
        Ok(_lock) => host.destroy(record),
    }
}

/// Start containers of this host again, in the background.
#[derive(Debug, clap::Args)]
pub struct Start {
    /// Containers, by name or id.
    #[arg(required = true, value_name = "CONTAINER")]
    containers: Vec<String>,
}

impl Start {
    /// Done when they run.
    ///
    /// # Errors
    /// The image is gone, or what `gantry run` fails for.
    pub fn run(&self, global: &Global) -> Outcome {
        let host = Host::open(global, "start")?;
        {
            let _lock = host.shelf.lock()?;
            host.sweep();
        }
        each(&self.containers, |name| start(&host, &host.shelf.find(name)?))
    }
}

fn start(host: &Host, record: &Record) -> Result<(), LocalError> {
    let place = host.shelf.place(&record.id);
    let _lock = place.lock()?;
    let Some(mut record) = place.load()? else {
        return Err(LocalError::NoContainer(record.name.clone()));
    };
    if !matches!(record.phase, Phase::Ended(_)) {
        return Ok(());
    }
    let before = record.clone();
    let image = images::ensure(&host.store, &record.digest, PullPolicy::Never, &[])
        .or_else(|_| images::ensure(&host.store, &record.image, PullPolicy::Never, &[]))?;
    record.detached = true;
    record.phase = Phase::Creating;
    record.owner = Process::now(std::process::id() as i32);
    record.boot = boot_id();
    place.save(&record)?;
    let begun = host.prepare(&mut record, &place, &image).and_then(|()| {
        record.phase = Phase::Running;
        record.started_ms = Some(now_ms());
        place.save(&record)?;
        start_detached(host, &mut record, &place)
    });
    begun.inspect_err(|_| {
        // It stays what it was: ended.
        let _ = host.release(&record);
        let _ = place.save(&before);
    })
}

/// Asks, waits, kills, waits.
fn stop(host: &Host, record: &Record, seconds: u64) -> Result<(), LocalError> {
    if record.phase != Phase::Running || !record.owned() {
        return Ok(());
    }
    if host.runtime.kill(&record.id, &record.stop_signal).is_ok()
        && await_end(host, record, Duration::from_secs(seconds)).is_ok()
    {
        return Ok(());
    }
    let _ = host.runtime.kill(&record.id, "KILL"); // it may just have ended
    await_end(host, record, END_WITHIN)
}

/// Until its owner has cleared up behind it.
fn await_end(host: &Host, record: &Record, within: Duration) -> Result<(), LocalError> {
    let place = host.shelf.place(&record.id);
    let deadline = Instant::now() + within;
    loop {
        match place.load()? {
            Some(now) if now.started_ms == record.started_ms && now.phase == Phase::Running && now.owned() => {}
            _ => return Ok(()),
        }
        // Dead, and only its owner is not done yet: that is worth a moment more.
        let dead = host.runtime.state(&record.id).is_none_or(|state| state.status == "stopped");
        if Instant::now() > deadline + if dead { EXIT_FILE_WITHIN } else { Duration::ZERO } {
            return Err(LocalError::Stuck(record.name.clone()));
        }
        std::thread::sleep(LOOK);
    }
}

/// Does it for each, prints the names that succeeded; the first failure is told last, the others at once.
fn each(names: &[String], mut act: impl FnMut(&str) -> Result<(), LocalError>) -> Outcome {
    let mut failure: Option<CliError> = None;
    for name in names {
        match act(name) {
            Ok(()) => drop(writeln!(io::stdout(), "{name}")), // nobody reads it
            Err(error) => {
                if let Some(earlier) = failure.replace(error.into()) {
                    earlier.print();
                }
            }
        }
    }
    failure.map_or(Ok(0), Err)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::local::record::Ended;
    use crate::local::record::tests::record;

    #[test]
    fn a_record_is_shown_as_what_it_is() {
        let own = Process::now(std::process::id() as i32);
        let state = |owner, phase| LocalContainer::from(Record { owner, phase, ..record("a", "a") }).state;
        let ended = Phase::Ended(Ended { code: Some(3), oom_killed: true, at_ms: 7 });
        assert_eq!(state(own, Phase::Creating), LocalState::Created);
        assert_eq!(state(own, Phase::Running), LocalState::Running);
        assert_eq!(state(None, ended), LocalState::Exited { code: Some(3), oom_killed: true, at_ms: 7 });
        assert!(matches!(state(None, Phase::Running), LocalState::Exited { code: None, .. }), "its owner was killed");
    }

    #[test]
    fn containers_are_a_table_for_people() {
        let mut web = LocalContainer::from(record("aa11", "web"));
        web.state = LocalState::Running;
        web.ports = vec![Published { published: 8080, target: 80, protocol: gantry_api::spec::Protocol::Tcp }];
        web.command = vec!["x".repeat(50)];
        let mut old = LocalContainer::from(record("bb22", "old"));
        old.state = LocalState::Exited { code: Some(3), oom_killed: false, at_ms: 1 };
        insta::assert_snapshot!(table(&[web, old], 7_200_001), @r"
        ID    NAME  IMAGE    STATUS             PORTS     COMMAND
        aa11  web   busybox  up 2h              8080->80  xxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxx…
        bb22  old   busybox  exited (3) 2h ago            sh
        ");
    }

    #[test]
    fn the_first_failure_does_not_keep_the_others_from_being_tried() {
        let mut seen = Vec::new();
        let names = ["a", "b", "c"].map(str::to_owned);
        let done = each(&names, |name| {
            seen.push(name.to_owned());
            if name == "b" { Err(LocalError::NoContainer(name.to_owned())) } else { Ok(()) }
        });
        assert_eq!(seen, names);
        assert_eq!(done.unwrap_err().message, "there is no container `b` on this host");
    }
}
