//! `gantry plan`.

use crate::client::{Client, block_on};
use crate::error::Outcome;
use crate::global::Global;
use crate::project::Project;
use crate::render::style::Style;
use crate::render::{out, plan};

/// Show what `up` would change, and change nothing.
///
/// `+` is new, `~` changed, `-` removed; below each, field: old → new.
///
/// Exit codes: 0 with or without changes, 1 refused, 2 wrong usage.
#[derive(Debug, clap::Args)]
pub(crate) struct Plan {
    #[command(flatten)]
    project: Project,
    /// Print JSON.
    #[arg(long)]
    json: bool,
}

/// Does it.
pub(crate) fn run(args: Plan, global: &Global) -> Outcome {
    let app = args.project.load()?;
    let changes = block_on(Client::new(global)?.put_app(&app, true))?;
    if args.json {
        return out::json(&changes);
    }
    out::write(&plan::text(&changes, Style::stdout()))?;
    Ok(0)
}
