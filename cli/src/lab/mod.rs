//! `gantry lab`: a real cluster on one machine, made of namespaces.
//!
//! ```text
//!            host                              switch: network namespace without uplink
//!  gantry lab-forward ── 127.0.0.1:PORT          br0 10.88.x.1 ── n1, n2, n3 (ports)
//!                                                                  │
//!  cgroup <parent>/lab-<name>/{n1,n2,…,switch,forward}             ▼
//!                                              n1: own net, mount, PID, UTS, IPC, cgroup, time namespaces
//!                                                  PID 1 `gantry lab-node` ─► `gantry server` or `gantry join`
//! ```
//! Killing a node is one SIGKILL. The cgroups are the record of what runs: `down` needs no file.

mod api;
mod cgroup;
mod error;
mod forward;
mod helper;
mod netlink;
mod node;
mod ops;
pub mod state;
mod switch;
pub mod sys;
mod tree;

pub use forward::problems as port_problems;

use crate::error::Outcome;
use crate::global::Global;
use std::path::PathBuf;

/// The last byte of an address is 10 + the node's number.
pub const NODES_MAX: u32 = 240;

/// Make, use and break a cluster on this machine.
#[derive(Debug, clap::Args)]
#[command(arg_required_else_help = true)]
pub struct Lab {
    /// Which lab, when there are several.
    #[arg(long, global = true, value_name = "NAME", env = "GANTRY_LAB", default_value = "lab")]
    name: String,
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, clap::Subcommand)]
enum Command {
    /// Make the lab, or complete it: start what is missing, add nodes.
    ///
    /// Done when every node is ready in the scheduler. May be repeated, also after it was interrupted.
    Up(Up),
    /// Show nodes, forwarded ports and problems.
    Status {
        /// For programs.
        #[arg(long)]
        json: bool,
    },
    /// Run a command on a node; its streams and exit code pass through.
    Exec {
        /// Node, or `switch` for a client beside the nodes.
        node: String,
        /// Program and arguments.
        #[arg(trailing_var_arg = true, allow_hyphen_values = true, required = true)]
        command: Vec<String>,
    },
    /// Load image archives on every running node.
    Load {
        /// Archive (`docker save`, OCI), directory with an OCI layout, or `-` for standard input.
        #[arg(value_name = "FILE", required = true)]
        files: Vec<PathBuf>,
    },
    /// Take the power from a node: one SIGKILL, everything on it is gone but its disk.
    Kill {
        /// Node.
        node: String,
    },
    /// Start a node that was killed, with its disk as it was left.
    Start {
        /// Node.
        node: String,
    },
    /// Drop all traffic of a node silently, or what two nodes say to each other.
    Cut {
        /// Node.
        node: String,
        /// Only between the two.
        other: Option<String>,
    },
    /// Undo `cut`.
    Heal {
        /// Only what this node is part of.
        node: Option<String>,
    },
    /// Show what a node's daemon says.
    Logs {
        /// Node, `switch` or `forward`.
        node: String,
        /// Go on as lines come.
        #[arg(long, short)]
        follow: bool,
        /// Only the last so many lines.
        #[arg(long, short = 'n', value_name = "LINES")]
        tail: Option<usize>,
    },
    /// Remove the lab and all that is in it, whatever its state.
    Down,
}

/// Make the lab, or complete it.
#[derive(Debug, clap::Args)]
struct Up {
    /// Nodes in the lab; a lab with more keeps them.
    #[arg(long, value_name = "COUNT", default_value_t = 3)]
    nodes: u32,
    /// Wait up to SECONDS until all nodes are ready.
    #[arg(long, value_name = "SECONDS", default_value_t = 60)]
    timeout: u64,
    /// Run this in place of the nodes' daemon, and wait for nothing (words separated by spaces).
    #[arg(long, value_name = "COMMAND", hide = true)]
    daemon: Option<String>,
}

impl Lab {
    /// Carries the command out. Not from a process with threads: `exec` enters namespaces.
    ///
    /// # Errors
    /// See [`error::LabError`].
    pub fn run(&self, global: &Global) -> Outcome {
        let lab = ops::Ops::new(global, &self.name)?;
        let code = match &self.command {
            Command::Up(up) => lab.up(up.nodes, up.timeout, up.daemon.as_deref()).map(|()| 0),
            Command::Status { json } => lab.status(*json).map(|()| 0),
            Command::Exec { node, command } => lab.exec(node, command),
            Command::Load { files } => lab.load(files).map(|()| 0),
            Command::Kill { node } => lab.kill(node).map(|()| 0),
            Command::Start { node } => lab.start(node).map(|()| 0),
            Command::Cut { node, other } => lab.cut(node, other.as_deref()).map(|()| 0),
            Command::Heal { node } => lab.heal(node.as_deref()).map(|()| 0),
            Command::Logs { node, follow, tail } => lab.logs(node, *follow, *tail).map(|()| 0),
            Command::Down => lab.down().map(|()| 0),
        };
        Ok(code?)
    }
}

/// PID 1 of a lab's node.
#[derive(Debug, clap::Args)]
pub struct LabNode {
    #[command(flatten)]
    file: helper::BootFile,
}

impl LabNode {
    /// Returns only when the node could not be made.
    ///
    /// # Errors
    /// None: what went wrong was told to `lab up`.
    pub fn run(&self) -> Outcome {
        Ok(node::run(&self.file))
    }
}

/// Holder of a lab's switch.
#[derive(Debug, clap::Args)]
pub struct LabSwitch {
    #[command(flatten)]
    file: helper::BootFile,
}

impl LabSwitch {
    /// Returns only when the switch could not be made.
    ///
    /// # Errors
    /// As above.
    pub fn run(&self) -> Outcome {
        Ok(switch::run(&self.file))
    }
}

/// A lab's port forwarder.
#[derive(Debug, clap::Args)]
pub struct LabForward {
    #[command(flatten)]
    file: helper::BootFile,
}

impl LabForward {
    /// Returns only when it could not begin.
    ///
    /// # Errors
    /// As above.
    pub fn run(&self) -> Outcome {
        Ok(forward::run(&self.file))
    }
}

#[cfg(test)]
mod tests {
    #[test]
    fn the_manual_names_every_command_and_option() {
        let manual = include_str!("../../../docs/lab.md");
        let lab = <super::Lab as clap::Args>::augment_args(clap::Command::new("lab"));
        for command in std::iter::once(&lab).chain(lab.get_subcommands()) {
            let name = command.get_name();
            assert!(name == "lab" || manual.contains(&format!("| `{name}")), "{name} is not in docs/lab.md");
            for option in command.get_arguments().filter(|option| !option.is_hide_set()) {
                let long = option.get_long().map(|long| format!("--{long}"));
                let short = option.get_short().map(|short| format!("-{short}"));
                let named = [&long, &short].into_iter().flatten().any(|word| manual.contains(word.as_str()));
                assert!(named || long.is_none(), "{name} {long:?} is not in docs/lab.md");
            }
        }
    }
}
