//! `gantry down`.

use crate::client::{Client, block_on};
use crate::error::Outcome;
use crate::global::Global;
use crate::project::Project;
use crate::render::{count, out};
use crate::wait::{self, Limit};
use gantry_api::ids::AppName;

/// Remove an app: its services and replicas, with `--volumes` its data too.
///
/// Done when no replica is left. With `--detach`, done when the scheduler has recorded it.
///
/// Exit codes: 0 done, 1 refused, 2 wrong usage, 3 not gone in time, 130 interrupted (the removal goes on).
#[derive(Debug, clap::Args)]
pub(crate) struct Down {
    /// App to remove. Default: the one of the manifest.
    #[arg(conflicts_with_all = ["file", "project_name"])]
    app: Option<AppName>,
    #[command(flatten)]
    project: Project,
    /// Delete the data in its named volumes.
    #[arg(short, long)]
    volumes: bool,
    /// Return when the removal is recorded.
    #[arg(short, long, visible_alias = "no-wait")]
    detach: bool,
    /// Wait until no replica is left; the default.
    #[arg(long, conflicts_with = "detach")]
    wait: bool,
    #[command(flatten)]
    limit: Limit,
}

/// Does it.
pub(crate) fn run(args: Down, global: &Global) -> Outcome {
    let app = match args.app.or_else(|| args.project.project_name.clone()) {
        Some(app) => app,
        None => args.project.load()?.name,
    };
    let client = Client::new(global)?;
    block_on(async {
        let removed = client.delete_app(&app, args.volumes).await?;
        if !args.detach {
            let code = wait::until_gone(&client, &app, args.limit).await?;
            if code != 0 {
                return Ok(code);
            }
        }
        let what = if args.detach { "is being removed" } else { "is removed" };
        out::note(format_args!("{app} {what} ({})", count(removed.changes.len() as u64, "service")));
        Ok(0)
    })
}
