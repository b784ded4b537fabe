//! The user's command, and the daemons' entry.
#![allow(unreachable_pub)] // a program exports nothing: `pub` says what a module offers to its neighbours

mod error;
mod global;
mod lab;

use clap::Parser;
use std::process::ExitCode;

/// Linux hosts as one container platform.
#[derive(Debug, Parser)]
#[command(name = "gantry", version, propagate_version = true)]
struct Cli {
    #[command(flatten)]
    global: global::Global,
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, clap::Subcommand)]
enum Command {
    /// Make, use and break a cluster on this machine.
    Lab(lab::Lab),
    /// PID 1 of a lab's node.
    #[command(hide = true)]
    LabNode(lab::helper::BootFile),
    /// Holder of a lab's switch.
    #[command(hide = true)]
    LabSwitch(lab::helper::BootFile),
    /// A lab's port forwarder.
    #[command(hide = true)]
    LabForward(lab::helper::BootFile),
}

fn main() -> ExitCode {
    let cli = Cli::parse();
    let outcome = match &cli.command {
        Command::Lab(lab) => lab.run(&cli.global),
        Command::LabNode(file) => Ok(lab::node(file)),
        Command::LabSwitch(file) => Ok(lab::switch(file)),
        Command::LabForward(file) => Ok(lab::forward(file)),
    };
    match outcome {
        Ok(code) => ExitCode::from(code),
        Err(error) => {
            error.print();
            ExitCode::from(error.code)
        }
    }
}
