//! One module per command: parse into plain values, ask the scheduler, print.

mod apps;
mod completion;
mod daemons;
mod down;
mod events;
mod exec;
mod inspect;
mod logs;
mod node;
mod plan;
mod ps;
mod scale;
mod token;
mod up;
mod version;

use crate::error::Outcome;
use crate::global::Global;
use crate::{lab, local};

/// Every command. One line each here and one in [`Command::run`].
#[derive(Debug, clap::Subcommand)]
pub(crate) enum Command {
    // An app.
    Up(up::Up),
    Down(down::Down),
    Plan(plan::Plan),
    Scale(scale::Scale),
    // What is there.
    #[command(visible_alias = "ls")]
    Apps(apps::Apps),
    Ps(ps::Ps),
    Logs(logs::Logs),
    Exec(exec::Exec),
    Inspect(inspect::Inspect),
    Events(events::Events),
    // Containers and images of this host without a cluster (`local`), clusters on this machine (`lab`): see
    // `crate::local` and `crate::lab`.
    Run(Box<local::Run>),
    Start(local::Start),
    Stop(local::Stop),
    Kill(local::Kill),
    Rm(local::Rm),
    Cp(local::Cp),
    Diff(local::Diff),
    Commit(local::Commit),
    Pull(local::Pull),
    Images(local::Images),
    Rmi(local::Rmi),
    Load(local::Load),
    Save(local::Save),
    Tag(local::Tag),
    Push(local::Push),
    #[command(subcommand)]
    Image(local::Image),
    #[command(subcommand)]
    System(local::System),
    Lab(lab::Lab),
    #[command(hide = true)]
    RunWatch(local::Watch),
    #[command(hide = true)]
    LabNode(lab::LabNode),
    #[command(hide = true)]
    LabSwitch(lab::LabSwitch),
    #[command(hide = true)]
    LabForward(lab::LabForward),
    // Nodes and daemons.
    Server(daemons::server::Server),
    Join(daemons::join::Join),
    Scheduler(daemons::scheduler::Scheduler),
    Agent(daemons::agent::Agent),
    Netd(daemons::netd::Netd),
    #[command(subcommand)]
    Node(node::Node),
    #[command(subcommand)]
    Token(token::Token),
    // The command itself.
    Version(version::Version),
    Completion(completion::Completion),
}

impl Command {
    /// Does what was asked.
    pub(crate) fn run(self, global: &Global) -> Outcome {
        match self {
            Self::Up(args) => up::run(args, global),
            Self::Down(args) => down::run(args, global),
            Self::Plan(args) => plan::run(args, global),
            Self::Scale(args) => scale::run(args, global),
            Self::Apps(args) => apps::run(args, global),
            Self::Ps(args) => ps::run(args, global),
            Self::Logs(args) => logs::run(args, global),
            Self::Exec(args) => exec::run(args, global),
            Self::Inspect(args) => inspect::run(args, global),
            Self::Events(args) => events::run(args, global),
            Self::Run(args) => args.run(global),
            Self::Start(args) => args.run(global),
            Self::Stop(args) => args.run(global),
            Self::Kill(args) => args.run(global),
            Self::Rm(args) => args.run(global),
            Self::Cp(args) => args.run(global),
            Self::Diff(args) => args.run(global),
            Self::Commit(args) => args.run(global),
            Self::Pull(args) => args.run(global),
            Self::Images(args) => args.run(global),
            Self::Rmi(args) => args.run(global),
            Self::Load(args) => args.run(global),
            Self::Save(args) => args.run(global),
            Self::Tag(args) => args.run(global),
            Self::Push(args) => args.run(global),
            Self::Image(command) => command.run(global),
            Self::System(command) => command.run(global),
            Self::Lab(args) => args.run(global),
            Self::RunWatch(args) => args.run(global),
            Self::LabNode(args) => args.run(),
            Self::LabSwitch(args) => args.run(),
            Self::LabForward(args) => args.run(),
            Self::Server(args) => daemons::server::run(args, global),
            Self::Join(args) => daemons::join::run(args, global),
            Self::Scheduler(args) => daemons::scheduler::run(args, global),
            Self::Agent(args) => daemons::agent::run(args, global),
            Self::Netd(args) => daemons::netd::run(args, global),
            Self::Node(command) => node::run(command, global),
            Self::Token(command) => token::run(command, global),
            Self::Version(args) => version::run(args, global),
            Self::Completion(args) => completion::run(args),
        }
    }
}
