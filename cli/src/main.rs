//! The user's command, and the daemons' entry.
#![allow(unreachable_pub)] // a program exports nothing: `pub` says what a module offers to its neighbours

mod client;
mod commands;
mod daemon;
mod error;
mod global;
mod host;
mod init;
mod lab;
mod local;
mod project;
mod render;
mod target;
mod tunnel;
mod wait;

use clap::Parser;
use std::process::ExitCode;

const EXIT_CODES: &str = "\
Exit codes:
  0    done
  1    refused or failed
  2    wrong usage
  3    not ready within the time given
  130  interrupted with Ctrl-C; what was recorded stays in force
`run` and `exec` end with the command's own code;
125 when Gantry itself failed, 126 when the command cannot be invoked, 127 when it is not there.";

/// Linux hosts as one container platform.
#[derive(Debug, Parser)]
#[command(name = "gantry", version, propagate_version = true, arg_required_else_help = true, after_help = EXIT_CODES)]
struct Cli {
    #[command(flatten)]
    global: global::Global,
    #[command(subcommand)]
    command: commands::Command,
}

fn main() -> ExitCode {
    if let Some(command) = init::called(std::env::args_os()) {
        return ExitCode::from(init::run(&command));
    }
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(error) if error.kind() == clap::error::ErrorKind::MissingSubcommand => {
            // Variables such as GANTRY_RUN_DIR count as arguments, so clap would list names instead of helping.
            let help = std::env::args_os().chain(["--help".into()]);
            eprint!("{}", Cli::try_parse_from(help).err().unwrap_or(error));
            return ExitCode::from(error::USAGE);
        }
        Err(error) => error.exit(),
    };
    match cli.command.run(&cli.global) {
        Ok(code) => ExitCode::from(code),
        Err(error) => {
            error.print();
            ExitCode::from(error.code)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory;

    #[test]
    fn the_command_line_is_consistent() {
        Cli::command().debug_assert();
    }

    #[test]
    fn help_lists_every_command_and_every_exit_code() {
        let help = Cli::command().render_help().to_string();
        for name in [
            "server",
            "join",
            "scheduler",
            "agent",
            "netd",
            "up",
            "down",
            "plan",
            "apps",
            "ps",
            "logs",
            "exec",
            "scale",
            "node",
            "inspect",
            "events",
            "token",
            "version",
            "completion",
        ] {
            let listed =
                help.lines().any(|line| line.strip_prefix("  ").is_some_and(|l| l.starts_with(&format!("{name} "))));
            assert!(listed, "`{name}` is not in:\n{help}");
        }
        for code in ["  0 ", "  1 ", "  2 ", "  3 ", "  130 ", "125", "126", "127"] {
            assert!(help.contains(code), "exit code {code}");
        }
    }

    #[test]
    fn every_command_explains_itself() {
        for command in Cli::command().get_subcommands() {
            assert!(command.get_about().is_some(), "{}", command.get_name());
            for argument in command.get_arguments().filter(|a| a.get_id() != "help" && a.get_id() != "version") {
                assert!(argument.get_help().is_some(), "{} {}", command.get_name(), argument.get_id());
            }
        }
    }

    #[test]
    fn the_manual_names_every_command_and_every_option() {
        let manual = include_str!("../../docs/cli.md");
        let elsewhere = [
            "run", "start", "stop", "kill", "rm", "pull", "images", "rmi", "load", "save", "tag", "push", "image",
            "system", "commit", "diff", "cp", "lab",
        ];
        for command in Cli::command().get_subcommands().filter(|command| !command.is_hide_set()) {
            let name = command.get_name();
            assert!(manual.contains(&format!("`gantry {name}")), "{name} is not in docs/cli.md");
            let leaves: Vec<_> = std::iter::once(command).chain(command.get_subcommands()).collect();
            for option in leaves.iter().flat_map(|leaf| leaf.get_arguments()).filter_map(|argument| argument.get_long())
            {
                let whole = |rest: &str| !rest.starts_with(|c: char| c.is_ascii_alphanumeric() || c == '-');
                let known = elsewhere.contains(&name) || manual.split(&format!("--{option}")).skip(1).any(whole);
                assert!(known, "{name} --{option} is not in docs/cli.md");
            }
        }
    }

    #[test]
    fn command_lines_are_read_as_docker_and_compose_write_them() {
        for (line, good) in [
            ("up", true),
            ("up -d", true),
            ("up -f a.yaml -f b.yaml -p shop --profile dev --profile x --env-file .env --timeout 90", true),
            ("up --wait --timeout 2m", true),
            ("up --no-wait", true),
            ("up --wait --no-wait", false),
            ("up --wait -d", false),
            ("up --timeout soon", false),
            ("up -p Bad.Name", false),
            ("down", true),
            ("down shop -v", true),
            ("down shop -f a.yaml", false),
            ("down --volumes -f a.yaml", true),
            ("plan --json", true),
            ("apps --json", true),
            ("ls", true),
            ("ps -a -q shop", true),
            ("logs -f --tail 10 --since 10m -t shop api db", true),
            ("logs -n all shop", true),
            ("logs --tail some shop", false),
            ("logs --since 2026-11-24T08:00:00Z shop", true),
            ("logs --since yesterday shop", false),
            ("logs", false),
            ("logs -p shop", true),
            ("exec -it shop-api-1 sh -c ls", true),
            ("exec -e A=1 -e B -u 1000:1000 -w /srv -p shop api env -i", true),
            ("exec shop-api-1", false),
            ("scale shop api=3 web=2 --wait", true),
            ("scale -p shop api=3", true),
            ("scale api=x", false),
            ("scale", false),
            ("node ls --json", true),
            ("node rm worker-1", true),
            ("inspect shop", true),
            ("inspect", false),
            ("token create --ttl 1h", true),
            ("token create --ttl never", false),
            ("events -f --json", true),
            ("completion bash", true),
            ("completion tcsh", false),
            ("version --json", true),
            ("ps --host unix:///x", true),
            ("-H unix:///x ps", true),
            ("", false),
            ("nonsense", false),
        ] {
            let words = std::iter::once("gantry").chain(line.split_whitespace());
            let parsed = Cli::try_parse_from(words);
            assert_eq!(parsed.is_ok(), good, "gantry {line}: {parsed:?}");
        }
    }
}
