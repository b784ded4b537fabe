//! What each command does, from parsed values to an exit code.

use crate::args::{self, Command, Global};
use crate::cgroup::Cgroup;
use crate::config::example;
use crate::container::channel::{Channel, Message};
use crate::container::hooks;
use crate::container::process::capability_warnings;
use crate::error::{Because, Failure, InStep, Outcome, is_absent};
use crate::exec;
use crate::foreground::{self, OomGuard, Signals};
use crate::launch::{self, Bundle, Launched, Manner};
use crate::remove::{remove, saved_config};
use crate::report;
use crate::state::{Record, StateDir, Status};
use crate::supervisor::log::{ContainerLog, Stream};
use crate::supervisor::{self, Settings, Streams};
use crate::sys::clone::{self, Side};
use crate::sys::process;
use std::fs;
use std::os::fd::AsFd;
use std::path::Path;

/// Carry out a command.
///
/// # Errors
/// It failed; nothing half-done is left but what `delete --force` removes.
pub fn run(global: &Global, command: Command) -> Outcome<i32> {
    if global.systemd_cgroup {
        return Err(Failure::new("--systemd-cgroup is not supported, cgroups are made directly")
            .hint("set the cgroup driver of the caller to `cgroupfs`"));
    }
    // Whatever enters a container must do so from a program file that cannot be written through.
    if matches!(command, Command::Create { .. } | Command::Run { .. } | Command::Exec(_)) {
        crate::sealed::ensure()?;
    }
    match command {
        Command::Help(usage) => {
            print!("{}", usage.map_or_else(args::help, args::command_help));
            Ok(0)
        }
        Command::Version => {
            println!("gantry-runtime version {}\nspec: 1.2.0", env!("CARGO_PKG_VERSION"));
            Ok(0)
        }
        Command::Spec { bundle } => spec(&bundle),
        Command::Create { options, supervise: None } => create(global, &options),
        Command::Create { options, supervise: Some(settings) } => supervised(global, &options, &settings, true),
        Command::Run { options, supervise: Some(settings), .. } => supervised(global, &options, &settings, false),
        Command::Run { options, supervise: None, detach, keep } => run_here(global, &options, detach, keep),
        Command::Start { id } => start(global, &id),
        Command::State { id } => state(global, &id),
        Command::Kill { id, signal, all } => kill(global, &id, signal, all),
        Command::Delete { id, force } => delete(global, &id, force),
        Command::Exec(options) => exec::exec(&options),
        Command::List { json, quiet } => list(global, json, quiet),
    }
}

fn spec(bundle: &Path) -> Outcome<i32> {
    let file = bundle.join("config.json");
    if file.exists() {
        return Err(Failure::new(format!("`{}` exists", file.display())).hint("remove it first, or use --bundle"));
    }
    let mut text = serde_json::to_string_pretty(&example::config(true)).because(|| "cannot encode".to_owned())?;
    text.push('\n');
    fs::write(&file, text).because(|| format!("cannot write `{}`", file.display()))?;
    Ok(0)
}

/// Load a bundle and say what it asks for in vain.
fn load(global: &Global, bundle: &Path) -> Outcome<Bundle> {
    let bundle = Bundle::load(bundle)?;
    let in_user_namespace = bundle.config.namespace("user").is_some();
    if let Some(process) = &bundle.config.process {
        for warning in capability_warnings(process, in_user_namespace) {
            report::warning(global, &warning);
        }
    }
    Ok(bundle)
}

fn create(global: &Global, options: &launch::Options) -> Outcome<i32> {
    let signals = Signals::hold()?;
    let bundle = load(global, &options.bundle)?;
    let manner = Manner { later: true, keep_terminal: false, stdio: None, supervised: false };
    launch::launch(options, &bundle, manner, &signals)?;
    Ok(0)
}

/// Let a container's process go on to its program, and wait until it is executed.
fn let_go(channel: &Channel, pid: i32, cgroup: &Cgroup, signals: &Signals) -> Outcome<()> {
    channel.go()?;
    match OomGuard::new(pid, Some(cgroup)).receive(channel, signals)? {
        Message::End => Ok(()),
        Message::Failed(failure) => Err(failure),
        _ => Err(Failure::new("the container's process sent a message out of order")),
    }
}

/// The same for a created container, over a connection made for it; false when it did not hear us.
fn let_go_later(channel: &Channel, pid: i32, signals: &Signals) -> Outcome<bool> {
    if channel.go().is_err() {
        return Ok(false);
    }
    let mut guard = OomGuard::new(pid, None);
    let mut heard = false;
    loop {
        match guard.receive(channel, signals)? {
            Message::Executing => heard = true,
            Message::End => return Ok(heard),
            Message::Failed(failure) => return Err(failure),
            _ => return Err(Failure::new("the container's process sent a message out of order")),
        }
    }
}

/// Run the hooks that come after the start. Their failure ends the container, as the specification has it.
fn poststart(dir: &StateDir, record: &Record, bundle_hooks: &[crate::config::Hook]) -> Outcome<()> {
    if bundle_hooks.is_empty() {
        return Ok(());
    }
    let pid = record.init.map(|init| init.pid);
    let line = dir.state(record).with(Status::Running, pid).to_line();
    hooks::run("poststart", bundle_hooks, &line).in_step("poststart hooks")
}

/// Remove a container after a failure or at its end, reporting what could not be done.
fn clean_up(global: &Global, dir: &StateDir, record: &Record) {
    match remove(dir, Some(record), &record.id) {
        Ok(warnings) => warnings.iter().flatten().for_each(|text| report::warning(global, text)),
        Err(failure) => report::failure(global, &failure.in_step("clean up")),
    }
}

fn run_here(global: &Global, options: &launch::Options, detach: bool, keep: bool) -> Outcome<i32> {
    let signals = Signals::hold()?;
    let bundle = load(global, &options.bundle)?;
    let manner = Manner { later: false, keep_terminal: !detach, stdio: None, supervised: false };
    let launched = launch::launch(options, &bundle, manner, &signals)?;
    let Launched { dir, record, pidfd, terminal, channel, cgroup, .. } = launched;
    let pid = record.init.map_or(0, |init| init.pid);
    let started = let_go(&channel, pid, &cgroup, &signals)
        .and_then(|()| poststart(&dir, &record, &bundle.config.hooks.poststart));
    if let Err(failure) = started {
        let _ = clone::pidfd_send_signal(pidfd.as_fd(), libc::SIGKILL);
        let _ = clone::wait(pidfd.as_fd());
        clean_up(global, &dir, &record);
        return Err(failure);
    }
    if detach {
        return Ok(0);
    }
    let exit = foreground::attend(pidfd.as_fd(), &signals, terminal)?;
    // Not when a child alone was killed and the program dealt with it.
    if exit == clone::Exit::Signal(libc::SIGKILL) && cgroup.account().oom_killed {
        report::warning(global, "the container was killed because it used more memory than its limit");
    }
    if !keep {
        clean_up(global, &dir, &record);
    }
    Ok(exit.shell_code())
}

/// `create` and `run --detach` with a supervisor: a clone of this process makes the container and stays; this one
/// returns when the container is there.
fn supervised(global: &Global, options: &launch::Options, settings: &Settings, later: bool) -> Outcome<i32> {
    let signals = Signals::hold()?;
    // Found before anything is made, and with the caller's idea of the current directory.
    let bundle = load(global, &options.bundle)?;
    let log = ContainerLog::open(&settings.log, settings.log_bytes_max, settings.log_files_max)?;
    prepare_exit_file(&settings.exit_file).in_step("exit file")?;
    let (ours, theirs) = Channel::pair()?;
    let side = clone::clone3(0, None).because(|| "cannot make the supervisor".to_owned()).in_step("supervisor")?;
    match side {
        Side::Child => {
            drop((ours, signals));
            let code = match supervisor_main(options, settings, later, bundle, log, &theirs) {
                Ok(()) => 0,
                Err(failure) => {
                    // Before the container is there, the caller hears of it; later, the log file is all there is.
                    if theirs.send(&Message::Failed(failure.clone())).is_err() {
                        report::failure(global, &failure);
                    }
                    1
                }
            };
            process::exit_now(code)
        }
        Side::Parent { pidfd, .. } => {
            drop((theirs, log));
            // The container's process has the supervisor's end as well, until it executes its program.
            let message = signals.receive_from(&ours, pidfd.as_fd()).or_else(|_| {
                // Interrupted: the supervisor undoes what it has made, and says so.
                let _ = clone::pidfd_send_signal(pidfd.as_fd(), libc::SIGTERM);
                signals.receive_from(&ours, pidfd.as_fd())
            });
            match message? {
                Message::Created => Ok(0),
                Message::Failed(failure) => Err(failure),
                _ => Err(Failure::new("the supervisor died before the container was there")
                    .hint(format!("remove what is left: gantry-runtime delete --force {}", options.id))),
            }
        }
    }
}

/// Take a container back that was made in vain.
fn undo(launched: &Launched, id: &str) {
    let _ = clone::pidfd_send_signal(launched.pidfd.as_fd(), libc::SIGKILL);
    let _ = clone::wait(launched.pidfd.as_fd());
    let _ = remove(&launched.dir, Some(&launched.record), id);
}

/// The exit file must be writable at the end, and what an earlier container left there must not be taken for it.
fn prepare_exit_file(file: &Path) -> Outcome<()> {
    let directory = file.parent().unwrap_or(Path::new("/"));
    if !directory.is_dir() {
        return Err(Failure::new(format!("`{}` is not a directory", directory.display()))
            .hint("the directory of --exit-file must exist"));
    }
    match fs::remove_file(file) {
        Err(error) if !is_absent(&error) => {
            Err(error).because(|| format!("cannot remove the old `{}`", file.display()))
        }
        _ => Ok(()),
    }
}

fn supervisor_main(
    options: &launch::Options,
    settings: &Settings,
    later: bool,
    bundle: Bundle,
    log: ContainerLog,
    caller: &Channel,
) -> Outcome<()> {
    supervisor::detach().in_step("supervisor")?;
    let signals = Signals::hold()?;
    let terminal = bundle.config.process.as_ref().is_some_and(|process| process.terminal);
    let mut outputs = Vec::new();
    let mut stdio = None;
    if !terminal {
        let streams = Streams::make().in_step("supervisor")?;
        stdio = Some(streams.theirs);
        outputs.push((Stream::Stdout, streams.stdout));
        outputs.push((Stream::Stderr, streams.stderr));
    }
    let keep_terminal = terminal && options.console_socket.is_none();
    let manner = Manner { later, keep_terminal, stdio, supervised: true };
    let mut launched = launch::launch(options, &bundle, manner, &signals)?;
    if let Some(master) = launched.terminal.take() {
        outputs.push((Stream::Stdout, master));
    }
    if !later {
        let pid = launched.record.init.map_or(0, |init| init.pid);
        let started = let_go(&launched.channel, pid, &launched.cgroup, &signals)
            .and_then(|()| poststart(&launched.dir, &launched.record, &bundle.config.hooks.poststart));
        if let Err(failure) = started {
            undo(&launched, &options.id);
            return Err(failure);
        }
    }
    drop(bundle);
    if let Err(failure) = caller.send(&Message::Created) {
        // Nobody knows of the container, so nobody would remove it.
        undo(&launched, &options.id);
        return Err(failure);
    }
    supervisor::supervise(launched, outputs, log, settings, signals)
}

fn open(global: &Global, id: &str) -> Outcome<(StateDir, Record)> {
    let dir = StateDir::new(&global.root, id)?;
    let record = dir.read_complete()?;
    Ok((dir, record))
}

fn start(global: &Global, id: &str) -> Outcome<i32> {
    let signals = Signals::hold()?;
    let (dir, record) = open(global, id)?;
    let status = dir.status(&record);
    if status != Status::Created {
        return Err(Failure::new(format!("cannot start container `{id}`: it is {}", status.name()))
            .hint("only a created container can be started, and only once"));
    }
    let (_, config) = saved_config(&dir)?;
    let remove_socket = || match fs::remove_file(dir.file("start.sock")) {
        Err(error) if !is_absent(&error) => Err(error).because(|| "cannot remove the start socket".to_owned()),
        _ => Ok(()),
    };
    let Some(channel) = launch::connect_start(&dir)? else {
        remove_socket()?;
        return Err(Failure::new(format!("cannot start container `{id}`: it has been started already")));
    };
    let pid = record.init.map_or(0, |init| init.pid);
    let result = let_go_later(&channel, pid, &signals);
    if matches!(result, Ok(false)) {
        // Another `start` was first, or it was killed meanwhile. The socket is not ours to remove.
        let status = dir.status(&record);
        let how = if status == Status::Stopped { "it is stopped" } else { "it has been started already" };
        return Err(Failure::new(format!("cannot start container `{id}`: {how}")));
    }
    remove_socket()?;
    result?;
    if let Err(failure) = poststart(&dir, &record, &config.hooks.poststart) {
        if let Some(pidfd) = record.init.and_then(|init| init.open()) {
            let _ = clone::pidfd_send_signal(pidfd.as_fd(), libc::SIGKILL);
        }
        return Err(failure);
    }
    Ok(0)
}

fn state(global: &Global, id: &str) -> Outcome<i32> {
    let (dir, record) = open(global, id)?;
    let text = serde_json::to_string_pretty(&dir.state(&record)).because(|| "cannot encode the state".to_owned())?;
    println!("{text}");
    Ok(0)
}

fn kill(global: &Global, id: &str, signal: i32, all: bool) -> Outcome<i32> {
    let (dir, record) = open(global, id)?;
    if all {
        let cgroup = crate::cgroup::Cgroup::at(record.cgroup.clone())?;
        cgroup.signal_all(signal);
        return Ok(0);
    }
    let Some(pidfd) = record.init.and_then(|init| init.open()) else {
        let status = dir.status(&record).name();
        return Err(Failure::new(format!("container not running: `{id}` is {status}")));
    };
    clone::pidfd_send_signal(pidfd.as_fd(), signal).because(|| format!("cannot send signal {signal}"))?;
    Ok(0)
}

fn delete(global: &Global, id: &str, force: bool) -> Outcome<i32> {
    let dir = StateDir::new(&global.root, id)?;
    let record = match dir.read() {
        Ok(record) => record,
        // Not there, or not to be understood: what can be found without it still goes.
        Err(_) if force => None,
        Err(failure) => return Err(failure),
    };
    if !force {
        let status = record.as_ref().map_or(Status::Stopped, |record| dir.status(record));
        if matches!(status, Status::Running | Status::Creating) {
            return Err(Failure::new(format!("cannot delete container `{id}` that is not stopped: {}", status.name()))
                .hint(format!("stop it with `kill {id} KILL`, or use `delete --force {id}`")));
        }
    }
    match remove(&dir, record.as_ref(), id)? {
        Some(warnings) => warnings.iter().for_each(|warning| report::warning(global, warning)),
        None if force => {}
        None => return Err(Failure::new(format!("container `{id}` does not exist")).hint("it was deleted meanwhile")),
    }
    Ok(0)
}

fn list(global: &Global, json: bool, quiet: bool) -> Outcome<i32> {
    let mut states = Vec::new();
    let entries = match fs::read_dir(&global.root) {
        Err(error) if is_absent(&error) => None,
        result => Some(result.because(|| format!("cannot read `{}`", global.root.display()))?),
    };
    for entry in entries.into_iter().flatten().flatten() {
        let Ok(id) = entry.file_name().into_string() else {
            continue;
        };
        let Ok(dir) = StateDir::new(&global.root, &id) else {
            continue;
        };
        match dir.read() {
            Ok(Some(record)) => states.push(dir.state(&record)),
            Ok(None) => {}
            Err(failure) => report::warning(global, &failure.to_string()),
        }
    }
    states.sort_by(|a, b| a.id.cmp(&b.id));
    if quiet {
        states.iter().for_each(|state| println!("{}", state.id));
    } else if json {
        println!("{}", serde_json::to_string(&states).because(|| "cannot encode the list".to_owned())?);
    } else {
        let width = states.iter().map(|state| state.id.len()).max().unwrap_or(0).max(4);
        println!("{:width$}  {:8}  {:8}  {:30}  BUNDLE", "ID", "PID", "STATUS", "CREATED");
        for state in &states {
            let (pid, status) = (state.pid.unwrap_or(0), state.status.name());
            println!("{:width$}  {pid:<8}  {status:8}  {:30}  {}", state.id, state.created, state.bundle.display());
        }
    }
    Ok(0)
}
