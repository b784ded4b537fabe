//! `gantry completion`.

use crate::error::Outcome;
use crate::render::out;
use clap::CommandFactory;

/// Print a completion script for a shell.
///
/// For bash: `gantry completion bash > /etc/bash_completion.d/gantry`.
#[derive(Debug, clap::Args)]
pub(crate) struct Completion {
    /// Shell to complete in.
    shell: Shell,
}

/// Shells that we complete in.
#[derive(Debug, Clone, Copy, clap::ValueEnum)]
enum Shell {
    /// GNU bash.
    Bash,
    /// Z shell.
    Zsh,
    /// Fish.
    Fish,
}

/// Does it.
pub(crate) fn run(args: Completion) -> Outcome {
    let shell = match args.shell {
        Shell::Bash => clap_complete::Shell::Bash,
        Shell::Zsh => clap_complete::Shell::Zsh,
        Shell::Fish => clap_complete::Shell::Fish,
    };
    let mut script = Vec::new();
    clap_complete::generate(shell, &mut crate::Cli::command(), "gantry", &mut script);
    out::write(&String::from_utf8_lossy(&script))?;
    Ok(0)
}
