//! `gantry node`.

use crate::client::{Client, block_on};
use crate::error::Outcome;
use crate::global::Global;
use crate::render::{nodes, out, time};
use gantry_api::ids::NodeName;

/// List and forget nodes.
#[derive(Debug, clap::Subcommand)]
pub(crate) enum Node {
    /// List nodes: whether they can be counted on, and what they have and use.
    #[command(visible_alias = "list")]
    Ls {
        /// Print JSON.
        #[arg(long)]
        json: bool,
        /// Print names only.
        #[arg(short, long, conflicts_with = "json")]
        quiet: bool,
    },
    /// Forget lost nodes, so that they are no longer expected back.
    Rm {
        /// Nodes to forget.
        #[arg(required = true)]
        node: Vec<NodeName>,
    },
}

/// Does it.
pub(crate) fn run(command: Node, global: &Global) -> Outcome {
    let client = Client::new(global)?;
    match command {
        Node::Ls { json, quiet } => list(&client, json, quiet),
        Node::Rm { node } => block_on(async {
            for name in &node {
                client.remove_node(name).await?;
                out::line(name)?;
            }
            Ok(0)
        }),
    }
}

fn list(client: &Client, json: bool, quiet: bool) -> Outcome {
    let mut list = block_on(client.nodes())?;
    list.sort_by(|a, b| a.name.cmp(&b.name));
    if json {
        return out::json(&list);
    }
    if quiet {
        out::write(&list.iter().map(|node| format!("{}\n", node.name)).collect::<String>())?;
        return Ok(0);
    }
    out::write(&nodes::listing(&list, time::now_ms()))?;
    let problems = nodes::problems(&list);
    if !problems.is_empty() {
        out::note(problems.trim_end());
    }
    Ok(0)
}
