//! `gantry exec`.

use crate::client::{Client, block_on, nowhere};
use crate::error::{CliError, NOT_RUN, Outcome, REFUSED};
use crate::global::Global;
use crate::local;
use crate::target;
use crate::tunnel::{self, Input, Terminal};
use gantry_api::ids::AppName;
use gantry_api::wire::ExecRequest;
use std::io::IsTerminal;

/// Run a command in a replica.
///
/// SIGINT, SIGTERM, SIGHUP and SIGQUIT are passed on to the command; a third Ctrl-C leaves, which ends
/// it.
///
/// Exit codes: the command's own (128 + signal when one ended it); 125 when Gantry failed, 126 when the command
/// cannot be invoked, 127 when it is not there, 2 wrong usage.
#[derive(Debug, clap::Args)]
pub(crate) struct Exec {
    /// Pass standard input on.
    #[arg(short, long)]
    interactive: bool,
    /// Give the command a terminal.
    #[arg(short, long)]
    tty: bool,
    /// Set a variable; without a value, to ours.
    #[arg(short, long, value_name = "KEY[=VALUE]")]
    env: Vec<String>,
    /// Run as this user: `user`, `uid`, `user:group`, `uid:gid`.
    #[arg(short, long, value_name = "USER")]
    user: Option<String>,
    /// Run in this directory.
    #[arg(short, long, value_name = "DIR")]
    workdir: Option<String>,
    /// App that TARGET is a service of.
    #[arg(short, long, value_name = "APP")]
    project_name: Option<AppName>,
    /// Replica (`shop-api-2`) or service (`shop/api`, or `api` with `-p shop`), whose first ready replica is taken.
    target: String,
    /// Command and its arguments.
    #[arg(required = true, trailing_var_arg = true, allow_hyphen_values = true)]
    command: Vec<String>,
}

/// Does it.
pub(crate) fn run(args: Exec, global: &Global) -> Outcome {
    if args.project_name.is_none() && local::knows(global, &args.target) {
        let options = local::ExecOptions {
            interactive: args.interactive,
            tty: args.tty,
            env: environment(args.env, |name| std::env::var(name).ok()),
            user: args.user,
            workdir: args.workdir,
        };
        return local::exec(global, &args.target, &options, &args.command);
    }
    let target = args.target.clone();
    let outcome = Client::new(global).and_then(|client| block_on(execute(args, &client)));
    outcome
        .map_err(|error| nowhere(error, &target))
        .map_err(|error| if error.code == REFUSED { error.code(NOT_RUN) } else { error })
}

async fn execute(args: Exec, client: &Client) -> Outcome {
    if args.tty && args.interactive && !std::io::stdin().is_terminal() {
        return Err(CliError::new("standard input is not a terminal").hint("leave out -t"));
    }
    let replicas = client.replicas(None).await?;
    let replica = target::running(&replicas, &args.target, args.project_name.as_ref())?;
    let request = ExecRequest {
        replica: replica.id.clone(),
        command: args.command,
        tty: args.tty,
        stdin: args.interactive,
        environment: environment(args.env, |name| std::env::var(name).ok()),
        user: args.user,
        working_dir: args.workdir,
        size: if args.tty { tunnel::terminal_size() } else { None },
    };
    let stream = client.exec(&request).await?;
    let input = if args.interactive { Input::Standard } else { Input::None };
    let terminal = if args.tty { Terminal::Ours } else { Terminal::None };
    tunnel::carry(stream, input, terminal).await
}

/// `KEY=VALUE` as given; of `KEY` alone our own value, or nothing when we have none (as docker).
fn environment(given: Vec<String>, own: impl Fn(&str) -> Option<String>) -> Vec<String> {
    let full = |entry: String| match entry.contains('=') {
        true => Some(entry),
        false => own(&entry).map(|value| format!("{entry}={value}")),
    };
    given.into_iter().filter_map(full).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_variable_without_value_takes_ours() {
        let given = ["A=1", "HOME", "UNSET", "B="].map(str::to_owned).to_vec();
        let own = |name: &str| (name == "HOME").then(|| "/root".to_owned());
        assert_eq!(environment(given, own), ["A=1", "HOME=/root", "B="]);
    }
}
