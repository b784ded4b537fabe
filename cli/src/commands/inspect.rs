//! `gantry inspect`.

use crate::client::{Client, block_on};
use crate::error::{CliError, Outcome};
use crate::global::Global;
use crate::render::out;
use crate::target;

/// Print all that is known of an app, a replica or a node, as JSON.
///
/// A name is looked for among apps, then replicas, then nodes. Contents of secrets are left out.
///
/// Exit codes: 0 done, 1 refused or unknown, 2 wrong usage.
#[derive(Debug, clap::Args)]
pub(crate) struct Inspect {
    /// App, replica (name or id), or node (name or id).
    #[arg(value_name = "APP|REPLICA|NODE")]
    name: String,
    /// Look among these only.
    #[arg(long = "type", value_name = "TYPE")]
    only: Option<Kind>,
}

/// What a name may be of.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
enum Kind {
    /// An app.
    App,
    /// A replica.
    Replica,
    /// A node.
    Node,
}

/// Does it.
pub(crate) fn run(args: Inspect, global: &Global) -> Outcome {
    let client = Client::new(global)?;
    block_on(async {
        let among = |kind| args.only.is_none_or(|only| only == kind);
        if among(Kind::App)
            && let Ok(app) = args.name.parse()
        {
            match client.app(&app).await {
                Ok(detail) => return out::json(&detail),
                Err(error) if error.is_not_found() => {}
                Err(error) => return Err(error.into()),
            }
        }
        if among(Kind::Replica) {
            let replicas = client.replicas(None).await?;
            let named = |r: &&_| is_called(r, &args.name);
            let found: Vec<_> = replicas.iter().filter(named).collect();
            if !found.is_empty() {
                return out::json(target::best(&found));
            }
        }
        if among(Kind::Node) {
            let nodes = client.nodes().await?;
            if let Some(node) = nodes.iter().find(|n| n.name.as_str() == args.name || n.id.as_str() == args.name) {
                return out::json(node);
            }
        }
        Err(CliError::new(format!("there is no app, replica or node `{}`", args.name))
            .hint("`gantry apps`, `gantry ps -a` and `gantry node ls` list what there is"))
    })
}

fn is_called(replica: &gantry_api::http::Replica, name: &str) -> bool {
    replica.id.as_str() == name || replica.name.to_string() == name
}
