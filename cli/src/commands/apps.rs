//! `gantry apps`.

use crate::client::{Client, block_on};
use crate::error::Outcome;
use crate::global::Global;
use crate::render::{apps, out};
use gantry_api::ids::AppName;

/// List apps, or the services of one.
///
/// Exit codes: 0 done, 1 refused, 2 wrong usage.
#[derive(Debug, clap::Args)]
pub(crate) struct Apps {
    /// List the services of this app.
    app: Option<AppName>,
    /// Print JSON.
    #[arg(long)]
    json: bool,
    /// Print names only.
    #[arg(short, long, conflicts_with = "json")]
    quiet: bool,
}

/// Does it.
pub(crate) fn run(args: Apps, global: &Global) -> Outcome {
    let client = Client::new(global)?;
    if let Some(app) = &args.app {
        let summary = block_on(client.app(app))?.summary;
        return match (args.json, args.quiet) {
            (true, _) => out::json(&summary),
            (_, true) => names(summary.services.iter().map(|service| service.name.to_string())),
            _ => out::write(&apps::services(&summary)).map(|()| 0),
        };
    }
    let list = block_on(client.apps())?;
    match (args.json, args.quiet) {
        (true, _) => out::json(&list),
        (_, true) => names(list.iter().map(|app| app.name.to_string())),
        _ => out::write(&apps::listing(&list)).map(|()| 0),
    }
}

fn names(names: impl Iterator<Item = String>) -> Outcome {
    out::write(&names.map(|name| format!("{name}\n")).collect::<String>())?;
    Ok(0)
}
