//! `gantry-runtime`: one OCI bundle becomes one container on this kernel.
//!
//! ```text
//! args ─► commands ─► launch ─► container::{mounts, namespaces, init ...}   in two processes, over a channel
//!             │          └────► cgroup, seccomp, config
//!             ├─► exec, remove, foreground
//!             └─► supervisor                                               stays with a supervised container
//! ```
//! Synchronous and single-threaded, so that it may clone and enter namespaces at any point.

pub mod args;
pub mod cgroup;
pub mod commands;
pub mod config;
pub mod container;
pub mod criu;
pub mod error;
pub mod exec;
pub mod files;
pub mod foreground;
pub mod launch;
pub mod pidfd;
pub mod readiness;
pub mod remove;
pub mod report;
pub mod rootless;
pub mod sealed;
pub mod seccomp;
pub mod state;
pub mod supervisor;
pub mod sys;
pub mod time;

use error::Failure;
use std::ffi::OsString;
use std::time::Instant;

/// Carry out a command line, without the name of the program; returns the exit code.
pub fn run(arguments: impl IntoIterator<Item = OsString>) -> u8 {
    let begun = Instant::now();
    let (global, parsed) = args::parse(arguments);
    if let Ok(args::Parsed::Command(command)) = &parsed {
        report::debug(&global, &format!("{command:?}"));
    }
    let outcome = parsed.map_err(|error| usage(&error)).and_then(|parsed| commands::run(&global, &parsed));
    let code = match outcome {
        Ok(code) => u8::try_from(code).unwrap_or(u8::MAX),
        Err(failure) => {
            report::failure(&global, &failure);
            failure.code
        }
    };
    report::debug(&global, &format!("exit code {code} after {:?}", begun.elapsed()));
    code
}

fn usage(error: &args::UsageError) -> Failure {
    let command = error.command.map(|name| format!(" {name}")).unwrap_or_default();
    Failure::new(error.to_string()).hint(format!("see `gantry-runtime{command} --help`")).code(error.code)
}
