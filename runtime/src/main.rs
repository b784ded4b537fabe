//! `gantry-runtime`: one OCI bundle becomes one container on this kernel.
//!
//! ```text
//! args ─► commands ─► launch ─► container::{mounts, namespaces, init ...}   in two processes, over a channel
//!             │          └────► cgroup, seccomp, config
//!             ├─► exec, remove, foreground
//!             └─► supervisor                                               stays with a supervised container
//! ```
//! Synchronous and single-threaded, so that it may clone and enter namespaces at any point.

mod args;
mod cgroup;
mod commands;
mod config;
mod container;
mod error;
mod exec;
mod foreground;
mod launch;
mod remove;
mod report;
mod seccomp;
mod state;
mod supervisor;
mod sys;
mod time;

use std::process::ExitCode;

/// Exit code for a line that cannot be understood.
const WRONG_USAGE: u8 = 2;

fn main() -> ExitCode {
    let (global, command) = match args::parse(std::env::args_os().skip(1)) {
        Ok(parsed) => parsed,
        Err(error) => {
            eprintln!("gantry-runtime: {error}\nhint: see `gantry-runtime --help`");
            return ExitCode::from(WRONG_USAGE);
        }
    };
    match commands::run(&global, command) {
        Ok(code) => ExitCode::from(u8::try_from(code).unwrap_or(u8::MAX)),
        Err(failure) => {
            report::failure(&global, &failure);
            ExitCode::FAILURE
        }
    }
}
