//! `gantry events`.

use crate::client::{Client, block_on};
use crate::error::Outcome;
use crate::global::Global;
use crate::render::{events, out};
use gantry_api::http::Event;

/// Show what happened to apps, replicas and nodes, and why.
///
/// Exit codes: 0 done, 1 refused, 2 wrong usage.
#[derive(Debug, clap::Args)]
pub(crate) struct Events {
    /// Go on as things happen.
    #[arg(short, long)]
    follow: bool,
    /// Print JSON; with `--follow`, one event per line.
    #[arg(long)]
    json: bool,
}

/// Does it.
pub(crate) fn run(args: Events, global: &Global) -> Outcome {
    let client = Client::new(global)?;
    if args.follow {
        return block_on(follow(&client, args.json));
    }
    let list = block_on(client.events())?;
    if args.json {
        return out::json(&list);
    }
    out::write(&list.iter().map(|event| events::line(event) + "\n").collect::<String>())?;
    Ok(0)
}

async fn follow(client: &Client, json: bool) -> Outcome {
    let mut stream = client.follow_events().await?;
    while let Some(event) = stream.next_event::<Event>().await? {
        if json {
            out::line(serde_json::to_string(&event).expect("our own types are JSON"))?;
        } else {
            out::line(events::line(&event))?;
        }
    }
    Ok(0)
}
