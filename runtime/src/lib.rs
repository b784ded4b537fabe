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
pub mod error;
pub mod exec;
pub mod files;
pub mod foreground;
pub mod launch;
pub mod remove;
pub mod report;
pub mod sealed;
pub mod seccomp;
pub mod state;
pub mod supervisor;
pub mod sys;
pub mod time;

use std::ffi::OsString;
use std::time::Instant;

/// Exit code for a line that cannot be understood.
const WRONG_USAGE: u8 = 2;

/// Carry out a command line, without the name of the program; returns the exit code.
pub fn run(arguments: impl IntoIterator<Item = OsString>) -> u8 {
    let (global, command) = match args::parse(arguments) {
        Ok(parsed) => parsed,
        Err(error) => {
            eprintln!("gantry-runtime: {error}\nhint: see `gantry-runtime --help`");
            return WRONG_USAGE;
        }
    };
    let begun = Instant::now();
    let code = match commands::run(&global, command) {
        Ok(code) => u8::try_from(code).unwrap_or(u8::MAX),
        Err(failure) => {
            report::failure(&global, &failure);
            failure.code
        }
    };
    report::debug(&global, &format!("exit code {code} after {:?}", begun.elapsed()));
    code
}
