//! The command line, compatible with runc's: parsed into plain values, options before or after positionals.

use crate::container::capabilities;
use crate::exec;
use crate::launch;
use crate::rootless::{self, Rootless};
use crate::supervisor;
use crate::sys::signal;
use lexopt::prelude::*;
use std::ffi::OsString;
use std::path::PathBuf;

/// Size at which a container's log is rotated.
const DEFAULT_LOG_BYTES_MAX: u64 = 10 * 1024 * 1024;
/// Files of a container's log, the current one included.
const DEFAULT_LOG_FILES_MAX: u32 = 5;

/// A line that cannot be understood.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct UsageError(String);

impl From<lexopt::Error> for UsageError {
    fn from(error: lexopt::Error) -> Self {
        Self(error.to_string())
    }
}

/// Options before every command.
#[derive(Debug, Clone, Default)]
pub struct Global {
    /// `--root`.
    pub root: PathBuf,
    /// `--log`.
    pub log: Option<PathBuf>,
    /// `--log-format json`.
    pub log_json: bool,
    /// `--debug`.
    pub debug: bool,
    /// `--systemd-cgroup`.
    pub systemd_cgroup: bool,
    /// `--rootless`.
    pub rootless: Rootless,
}

/// What to do.
#[derive(Debug, Clone)]
pub enum Command {
    /// Print the help of a command, or of all.
    Help(Option<&'static Usage>),
    /// Print the version.
    Version,
    /// `spec`.
    Spec {
        /// `--bundle`.
        bundle: PathBuf,
        /// `--rootless`.
        rootless: bool,
    },
    /// `create`.
    Create {
        /// Common options.
        options: launch::Options,
        /// `--supervise` and its options.
        supervise: Option<supervisor::Settings>,
    },
    /// `run`.
    Run {
        /// Common options.
        options: launch::Options,
        /// `--supervise` and its options.
        supervise: Option<supervisor::Settings>,
        /// `--detach`.
        detach: bool,
        /// `--keep`.
        keep: bool,
    },
    /// `start`.
    Start {
        /// Container.
        id: String,
    },
    /// `state`.
    State {
        /// Container.
        id: String,
    },
    /// `kill`.
    Kill {
        /// Container.
        id: String,
        /// Signal number.
        signal: i32,
        /// `--all`.
        all: bool,
    },
    /// `delete`.
    Delete {
        /// Container.
        id: String,
        /// `--force`.
        force: bool,
    },
    /// `exec`.
    Exec(exec::Options),
    /// `list`.
    List {
        /// `--format json`.
        json: bool,
        /// `--quiet`.
        quiet: bool,
    },
}

/// Name and help of a command.
#[derive(Debug)]
pub struct Usage {
    /// Command.
    pub name: &'static str,
    /// One line.
    pub summary: &'static str,
    /// The rest.
    pub text: &'static str,
}

const COMMON: &str = "\
      --bundle, -b DIR       bundle directory [default: .]
      --pid-file FILE        write the number of the container's first process here
      --console-socket PATH  send the terminal to this unix socket
      --preserve-fds N       keep N descriptors beyond standard error open
      --no-pivot             chroot instead of pivot_root, for hosts on an initial ramfs
      --no-new-keyring       keep the caller's session keyring
      --supervise            leave a supervisor, which owns output and exit status; needs the two files
      --container-log FILE   with --supervise: output in CRI format
      --log-max-bytes N      rotate the log at this size [default: 10485760]
      --log-max-files N      keep this many log files [default: 5]
      --exit-file FILE       with --supervise: how the container ended, as JSON
";

/// Every command.
pub const USAGES: &[Usage] = &[
    Usage {
        name: "create",
        summary: "make a container from a bundle, without running its program",
        text: "gantry-runtime create [OPTIONS] ID",
    },
    Usage { name: "start", summary: "run the program of a created container", text: "gantry-runtime start ID\n" },
    Usage {
        name: "run",
        summary: "create and start; stays until the program ends unless detached",
        text: "gantry-runtime run [OPTIONS] ID",
    },
    Usage { name: "state", summary: "print the state of a container as JSON", text: "gantry-runtime state ID\n" },
    Usage {
        name: "kill",
        summary: "send a signal to a container",
        text: "gantry-runtime kill [--all, -a] ID [SIGNAL]\n
      --all, -a   send it to every process of the container
      SIGNAL      name with or without SIG, or number [default: TERM]\n",
    },
    Usage {
        name: "delete",
        summary: "remove a container that has stopped",
        text: "gantry-runtime delete [--force, -f] ID\n
      --force, -f   kill it first; succeeds when it does not exist\n",
    },
    Usage {
        name: "exec",
        summary: "run another program in a running container",
        text: "gantry-runtime exec [OPTIONS] ID COMMAND [ARG...]\n
      --process, -p FILE        the process as JSON, instead of COMMAND
      --tty, -t                 with a terminal
      --console-socket PATH     send the terminal to this unix socket
      --cwd DIR                 working directory
      --env, -e NAME=VALUE      add to the environment; may be repeated
      --user, -u UID[:GID]      as this user
      --additional-gids, -g N   another group; may be repeated
      --cap, -c NAME            another capability; may be repeated
      --no-new-privs            set no_new_privs
      --detach, -d              do not wait for it
      --pid-file FILE           write the number of the process here
      --preserve-fds N          keep N descriptors beyond standard error open\n",
    },
    Usage {
        name: "list",
        summary: "list containers",
        text: "gantry-runtime list [--format table|json, -f] [--quiet, -q]\n",
    },
    Usage {
        name: "spec",
        summary: "write an example config.json",
        text: "gantry-runtime spec [--bundle DIR, -b] [--rootless]\n
      --rootless   for the user that runs this command, in a user namespace\n",
    },
];

/// Help for one command.
pub fn command_help(usage: &Usage) -> String {
    let options = match usage.name {
        "create" => format!("\n\n{COMMON}"),
        "run" => format!(
            "\n\n{COMMON}      --detach, -d           return when the program runs\n      \
             --keep                 do not remove the container when the program has ended\n"
        ),
        _ => String::new(),
    };
    format!("{}\n\nUsage: {}{options}", usage.summary, usage.text)
}

/// Help for all.
pub fn help() -> String {
    let mut text = "\
gantry-runtime runs OCI bundles as containers on Linux.

Usage: gantry-runtime [GLOBAL OPTIONS] COMMAND [OPTIONS] ...

Commands:
"
    .to_owned();
    for usage in USAGES {
        text += &format!("  {:8}{}\n", usage.name, usage.summary);
    }
    text += "\nGlobal options:
  --root DIR              where states are kept [default: /run/gantry-runtime, or
                          $XDG_RUNTIME_DIR/gantry-runtime when not run by root]
  --rootless auto|true|false  go without cgroups that may not be used, when no limit
                          needs them [default: auto, which is when not run by root]
  --log FILE              also write errors to this file
  --log-format text|json  its format [default: text]
  --debug                 also log exit code and duration of every command
  --help, -h              this text, or that of a command
  --version, -v           the version

Exit codes: run and exec give the program's code, or 128 + the signal that ended it;
otherwise 0 done, 1 failed, 2 wrong usage, 126 the program cannot be executed,
127 it is not there.
";
    text
}

/// Everything an option may set, whatever the command; which ones a command takes is checked where they are read.
#[derive(Default)]
struct Raw {
    positionals: Vec<String>,
    launch: launch::Options,
    exec: exec::Options,
    detach: bool,
    keep: bool,
    all: bool,
    force: bool,
    json: bool,
    quiet: bool,
    spec_rootless: bool,
    supervise: bool,
    container_log: Option<PathBuf>,
    log_bytes_max: Option<u64>,
    log_files_max: Option<u32>,
    exit_file: Option<PathBuf>,
}

fn usage_error(text: impl Into<String>) -> UsageError {
    UsageError(text.into())
}

fn text(value: OsString) -> Result<String, UsageError> {
    value.into_string().map_err(|value| usage_error(format!("`{}` is not valid UTF-8", value.to_string_lossy())))
}

/// A relative path is meant from here, and the supervisor changes its directory.
fn absolute(value: OsString) -> Result<PathBuf, UsageError> {
    std::path::absolute(&value).map_err(|error| usage_error(format!("`{}`: {error}", value.to_string_lossy())))
}

fn number<T: std::str::FromStr>(option: &str, value: OsString) -> Result<T, UsageError> {
    let value = text(value)?;
    value.parse().map_err(|_| usage_error(format!("{option} takes a number, not `{value}`")))
}

/// `UID[:GID]`, strictly: a name or a missing number is never taken for root.
fn user(value: &str) -> Result<(u32, Option<u32>), UsageError> {
    let wrong = || usage_error(format!("--user takes UID or UID:GID in numbers, not `{value}`"));
    let id = |text: &str| -> Result<u32, UsageError> {
        if text.is_empty() || !text.bytes().all(|byte| byte.is_ascii_digit()) {
            return Err(wrong());
        }
        text.parse::<u32>().ok().filter(|&id| id != u32::MAX).ok_or_else(wrong)
    };
    match value.split_once(':') {
        None => Ok((id(value)?, None)),
        Some((uid, gid)) => Ok((id(uid)?, Some(id(gid)?))),
    }
}

/// Parse a command line, without the name of the program.
///
/// # Errors
/// An unknown command or option, or a missing or superfluous value.
pub fn parse(arguments: impl IntoIterator<Item = OsString>) -> Result<(Global, Command), UsageError> {
    let mut parser = lexopt::Parser::from_args(arguments);
    let mut global = Global { root: rootless::state_root().unwrap_or_default(), ..Global::default() };
    let mut command: Option<&'static Usage> = None;
    let mut raw = Raw::default();
    while let Some(argument) = parser.next()? {
        match argument {
            Long("root") => global.root = absolute(parser.value()?)?,
            Long("log") => global.log = Some(absolute(parser.value()?)?),
            Long("log-format") => {
                global.log_json = match text(parser.value()?)?.as_str() {
                    "json" => true,
                    "text" => false,
                    other => {
                        return Err(usage_error(format!("--log-format is text or json, not `{other}`")));
                    }
                }
            }
            Long("debug") => global.debug = true,
            Long("systemd-cgroup") => global.systemd_cgroup = true,
            Long("rootless") if command.is_none_or(|usage| usage.name != "spec") => {
                let value = text(parser.value()?)?;
                global.rootless = Rootless::parse(&value)
                    .ok_or_else(|| usage_error(format!("--rootless is auto, true or false, not `{value}`")))?;
            }
            Short('h') | Long("help") => return Ok((global, Command::Help(command))),
            Long("version") => return Ok((global, Command::Version)),
            Short('v') if command.is_none() => return Ok((global, Command::Version)),
            Value(value) => match command {
                None => {
                    let name = text(value)?;
                    if name == "help" {
                        return Ok((global, Command::Help(None)));
                    }
                    let found = USAGES.iter().find(|usage| usage.name == name);
                    command = Some(found.ok_or_else(|| usage_error(format!("there is no command `{name}`")))?);
                }
                Some(usage) => {
                    raw.positionals.push(text(value)?);
                    // What follows the command of exec belongs to that command.
                    if usage.name == "exec" && raw.positionals.len() == 2 {
                        for rest in parser.raw_args()? {
                            raw.positionals.push(text(rest)?);
                        }
                    }
                }
            },
            other => match command {
                Some(usage) => {
                    let name = match other {
                        Long(name) => name.to_owned(),
                        Short(letter) => letter.to_string(),
                        Value(_) => String::new(),
                    };
                    option(usage.name, &name, &mut parser, &mut raw)?;
                }
                None => return Err(other.unexpected().into()),
            },
        }
    }
    let command = command.ok_or_else(|| usage_error("a command is missing"))?;
    finish(command.name, raw, &global).map(|command| (global, command))
}

/// Options of a command.
fn option(command: &str, name: &str, parser: &mut lexopt::Parser, raw: &mut Raw) -> Result<(), UsageError> {
    match (command, name) {
        ("create" | "run" | "spec", "bundle" | "b") => raw.launch.bundle = absolute(parser.value()?)?,
        ("spec", "rootless") => raw.spec_rootless = true,
        ("create" | "run", "pid-file") => raw.launch.pid_file = Some(absolute(parser.value()?)?),
        ("create" | "run", "console-socket") => raw.launch.console_socket = Some(absolute(parser.value()?)?),
        ("create" | "run", "preserve-fds") => raw.launch.preserve_fds = number("--preserve-fds", parser.value()?)?,
        ("create" | "run", "no-pivot") => raw.launch.no_pivot = true,
        ("create" | "run", "no-new-keyring") => raw.launch.no_new_keyring = true,
        ("create" | "run", "supervise") => raw.supervise = true,
        ("create" | "run", "container-log") => raw.container_log = Some(absolute(parser.value()?)?),
        ("create" | "run", "exit-file") => raw.exit_file = Some(absolute(parser.value()?)?),
        ("create" | "run", "log-max-bytes") => raw.log_bytes_max = Some(number("--log-max-bytes", parser.value()?)?),
        ("create" | "run", "log-max-files") => raw.log_files_max = Some(number("--log-max-files", parser.value()?)?),
        ("run" | "exec", "detach" | "d") => raw.detach = true,
        ("run", "keep") => raw.keep = true,
        ("kill", "all" | "a") => raw.all = true,
        ("delete", "force" | "f") => raw.force = true,
        ("list", "quiet" | "q") => raw.quiet = true,
        ("list", "format" | "f") => {
            raw.json = match text(parser.value()?)?.as_str() {
                "json" => true,
                "table" => false,
                other => {
                    return Err(usage_error(format!("--format is table or json, not `{other}`")));
                }
            }
        }
        ("exec", _) => return exec_option(name, parser, &mut raw.exec),
        _ => return Err(unknown_option(command, name)),
    }
    Ok(())
}

fn exec_option(name: &str, parser: &mut lexopt::Parser, exec: &mut exec::Options) -> Result<(), UsageError> {
    match name {
        "process" | "p" => exec.process = Some(absolute(parser.value()?)?),
        "tty" | "t" => exec.tty = true,
        "console-socket" => exec.console_socket = Some(absolute(parser.value()?)?),
        "cwd" => exec.cwd = Some(text(parser.value()?)?),
        "env" | "e" => exec.env.push(text(parser.value()?)?),
        "user" | "u" => exec.user = Some(user(&text(parser.value()?)?)?),
        "additional-gids" | "g" => exec.additional_gids.push(number("--additional-gids", parser.value()?)?),
        "cap" | "c" => {
            let name = text(parser.value()?)?;
            if capabilities::bit(&name).is_none() {
                return Err(usage_error(format!("`{name}` is not a capability")));
            }
            exec.capabilities.push(name);
        }
        "no-new-privs" => exec.no_new_privs = true,
        "pid-file" => exec.pid_file = Some(absolute(parser.value()?)?),
        "preserve-fds" => exec.preserve_fds = number("--preserve-fds", parser.value()?)?,
        _ => return Err(unknown_option("exec", name)),
    }
    Ok(())
}

fn unknown_option(command: &str, name: &str) -> UsageError {
    let dashes = if name.chars().count() == 1 { "-" } else { "--" };
    usage_error(format!("`{command}` has no option `{dashes}{name}`"))
}

/// Exactly the positionals a command takes.
fn finish(command: &str, raw: Raw, global: &Global) -> Result<Command, UsageError> {
    let mut positionals = raw.positionals.into_iter();
    let mut id = || positionals.next().ok_or_else(|| usage_error(format!("`{command}` needs a container id")));
    let here = || absolute(OsString::from("."));
    let mut options = raw.launch;
    options.root.clone_from(&global.root);
    options.rootless = global.rootless;
    let bundle = if options.bundle.as_os_str().is_empty() { here()? } else { options.bundle.clone() };
    options.bundle.clone_from(&bundle);
    let supervise = match (raw.supervise, raw.container_log, raw.exit_file) {
        (true, Some(log), Some(exit_file)) => Some(supervisor::Settings {
            log,
            exit_file,
            log_bytes_max: raw.log_bytes_max.unwrap_or(DEFAULT_LOG_BYTES_MAX).max(1024),
            log_files_max: raw.log_files_max.unwrap_or(DEFAULT_LOG_FILES_MAX).max(1),
        }),
        (true, ..) => {
            return Err(usage_error("--supervise needs --container-log and --exit-file"));
        }
        (false, None, None) if raw.log_bytes_max.is_none() && raw.log_files_max.is_none() => None,
        (false, ..) => return Err(usage_error("options of the supervisor need --supervise")),
    };
    let parsed = match command {
        "create" => Command::Create { options: launch::Options { id: id()?, ..options }, supervise },
        "run" => {
            if supervise.is_some() && !raw.detach {
                return Err(usage_error("`run --supervise` needs --detach"));
            }
            let options = launch::Options { id: id()?, ..options };
            Command::Run { options, supervise, detach: raw.detach, keep: raw.keep }
        }
        "start" => Command::Start { id: id()? },
        "state" => Command::State { id: id()? },
        "delete" => Command::Delete { id: id()?, force: raw.force },
        "kill" => {
            let id = id()?;
            let name = positionals.next().unwrap_or_else(|| "TERM".to_owned());
            let signal = signal::parse(&name).ok_or_else(|| usage_error(format!("`{name}` is not a signal")))?;
            Command::Kill { id, signal, all: raw.all }
        }
        "exec" => {
            let id = id()?;
            let args: Vec<String> = positionals.by_ref().collect();
            if args.is_empty() != raw.exec.process.is_some() {
                return Err(usage_error("`exec` needs either a command or --process"));
            }
            Command::Exec(exec::Options { root: global.root.clone(), id, args, detach: raw.detach, ..raw.exec })
        }
        "list" => Command::List { json: raw.json, quiet: raw.quiet },
        _ => Command::Spec { bundle, rootless: raw.spec_rootless },
    };
    match positionals.next() {
        None => Ok(parsed),
        Some(extra) => Err(usage_error(format!("`{command}` does not take `{extra}`"))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shown(line: &str) -> String {
        match parse(line.split(' ').map(OsString::from)) {
            Err(error) => format!("error: {error}"),
            Ok((global, command)) => format!("{} {command:?}", global.root.display()),
        }
    }

    #[test]
    fn lines() {
        for (line, wanted) in [
            ("--root /r create --bundle /b web", vec!["/r Create", "id: \"web\"", "bundle: \"/b\"", "supervise: None"]),
            ("create web -b /b", vec!["/run/gantry-runtime Create", "id: \"web\"", "bundle: \"/b\""]),
            ("create --bundle=/b --pid-file=/p web", vec!["bundle: \"/b\"", "pid_file: Some(\"/p\")"]),
            ("run -d web --keep", vec!["detach: true, keep: true"]),
            ("kill web 9", vec!["signal: 9"]),
            ("kill --all web SIGINT", vec!["signal: 2", "all: true"]),
            ("kill web", vec!["signal: 15"]),
            ("kill web NOPE", vec!["error: `NOPE` is not a signal"]),
            ("delete -f web", vec!["force: true"]),
            ("exec -t -u 1:2 web ls -l --color", vec!["tty: true", "(1, Some(2))", "[\"ls\", \"-l\", \"--color\"]"]),
            ("exec web -- ls -l", vec!["args: [\"ls\", \"-l\"]"]),
            ("exec -p /f web", vec!["process: Some(\"/f\")", "args: []"]),
            ("exec -p /f web ls", vec!["error: `exec` needs either"]),
            ("exec web", vec!["error: `exec` needs either"]),
            ("exec -u root web ls", vec!["error: --user takes"]),
            ("exec -u 1: web ls", vec!["error: --user takes"]),
            ("exec -u -1 web ls", vec!["error: --user takes"]),
            ("exec -u 4294967295 web ls", vec!["error: --user takes"]),
            ("list -f json -q", vec!["json: true, quiet: true"]),
            ("create", vec!["error: `create` needs a container id"]),
            ("state a b", vec!["error: `state` does not take `b`"]),
            ("state --force a", vec!["error: `state` has no option `--force`"]),
            ("fly a", vec!["error: there is no command `fly`"]),
            ("--fly", vec!["error: invalid option '--fly'"]),
            ("create --supervise a", vec!["error: --supervise needs"]),
            ("create --exit-file /e a", vec!["error: options of the supervisor"]),
            ("run --supervise --container-log /l --exit-file /e a", vec!["error: `run --supervise` needs --detach"]),
            (
                "create --supervise --container-log /l --exit-file /e a",
                vec!["log_bytes_max: 10485760, log_files_max: 5"],
            ),
            ("create a --preserve-fds x", vec!["error: --preserve-fds takes a number"]),
            ("--version", vec!["Version"]),
            ("--rootless true run a", vec!["rootless: Yes"]),
            ("--rootless=auto run a", vec!["rootless: Auto"]),
            ("run --rootless false a", vec!["rootless: No"]),
            ("--rootless maybe run a", vec!["error: --rootless is auto, true or false, not `maybe`"]),
            ("spec --rootless", vec!["Spec", "rootless: true"]),
            ("run --help", vec!["name: \"run\""]),
        ] {
            let got = shown(line);
            for want in wanted {
                assert!(got.contains(want), "{line}: {want} is not in {got}");
            }
        }
    }
}
