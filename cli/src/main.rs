//! The user's command, and the daemons' entry.
#![allow(unreachable_pub)] // a program exports nothing: `pub` says what a module offers to its neighbours

mod error;
mod global;
mod lab;
mod local;

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
    Run(local::Run),
    Stop(local::Stop),
    Kill(local::Kill),
    Start(local::Start),
    Rm(local::Rm),
    Pull(local::Pull),
    Images(local::Images),
    Rmi(local::Rmi),
    Load(local::Load),
    /// Waits for a detached container's end and clears up after it.
    #[command(hide = true)]
    RunWatch(local::Watch),
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
        Command::Run(args) => args.run(&cli.global),
        Command::Stop(args) => args.run(&cli.global),
        Command::Kill(args) => args.run(&cli.global),
        Command::Start(args) => args.run(&cli.global),
        Command::Rm(args) => args.run(&cli.global),
        Command::Pull(args) => args.run(&cli.global),
        Command::Images(args) => args.run(&cli.global),
        Command::Rmi(args) => args.run(&cli.global),
        Command::Load(args) => args.run(&cli.global),
        Command::RunWatch(args) => args.run(&cli.global),
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
