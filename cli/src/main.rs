//! The user's command, and the daemons' entry.

mod error;
mod global;

use clap::Parser;
use std::process::ExitCode;

/// Linux hosts as one container platform.
#[derive(Debug, Parser)]
#[command(name = "gantry", version, propagate_version = true)]
struct Cli {
    #[command(flatten)]
    global: global::Global,
}

fn main() -> ExitCode {
    let _ = Cli::parse();
    ExitCode::from(error::USAGE)
}
