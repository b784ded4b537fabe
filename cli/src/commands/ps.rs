//! `gantry ps`.

use crate::client::{self, Client, block_on};
use crate::error::Outcome;
use crate::global::Global;
use crate::render::{out, replicas, time};
use gantry_api::ids::AppName;
use gantry_api::wire::ReplicaState;

/// List replicas: where they run, how they are and why.
///
/// Replicas that ended well and have nothing more to do are left out without `--all`; failing ones are not.
///
/// Exit codes: 0 done, 1 refused, 2 wrong usage.
#[derive(Debug, clap::Args)]
pub(crate) struct Ps {
    /// Only those of this app.
    app: Option<AppName>,
    /// Containers of this host that `gantry run` made, instead of replicas; shown anyway where there is no cluster.
    #[arg(long, conflicts_with = "app")]
    local: bool,
    /// Also those that ended well.
    #[arg(short, long)]
    all: bool,
    /// Print JSON.
    #[arg(long)]
    json: bool,
    /// Print ids only.
    #[arg(short, long, conflicts_with = "json")]
    quiet: bool,
}

/// Does it.
pub(crate) fn run(args: Ps, global: &Global) -> Outcome {
    // Without a cluster the containers of this host are what a person means; a script asks for what it wants.
    let alone = || global.host.is_none() && args.app.is_none() && !args.json;
    if args.local || (alone() && !client::socket(global)?.exists() && crate::local::any(global)) {
        return crate::local::ps(global, args.all, args.json, args.quiet);
    }
    let client = Client::new(global)?;
    let mut list = block_on(async {
        match &args.app {
            // A wrong name is an error, not an empty list.
            Some(app) => client.app(app).await.map(|detail| detail.replicas),
            None => client.replicas(None).await,
        }
    })?;
    list.retain(|replica| args.all || replica.state != ReplicaState::Completed);
    list.sort_by(|a, b| (&a.name, &a.id).cmp(&(&b.name, &b.id)));
    if args.json {
        return out::json(&list);
    }
    let text = match args.quiet {
        true => list.iter().map(|replica| format!("{}\n", replica.id)).collect(),
        false => replicas::listing(&list, time::now_ms()),
    };
    out::write(&text)?;
    Ok(0)
}
