//! `gantry server`.

use super::{Membership, agent, join, netd, scheduler};
use crate::client::Client;
use crate::commands::token::join_command;
use crate::daemon::{self, Daemons, Log};
use crate::error::{CliError, Outcome};
use crate::global::Global;
use crate::host;
use crate::render::out;
use gantry_agent::JoinConfig;
use gantry_api::http::NodeState;
use gantry_api::ids::NodeName;
use std::io::IsTerminal;
use std::net::SocketAddr;
use std::time::Duration;

/// Its own agent needs the token at once.
const OWN_TOKEN_S: u64 = 60;
/// Long enough to walk to the other hosts.
const SHOWN_TOKEN_S: u64 = 3600;
/// The agent is counted on a moment after it starts; longer than this is worth a word.
const NODE_MAX: Duration = Duration::from_secs(15);
/// Between two looks whether the node is ready.
const POLL_INTERVAL: Duration = Duration::from_millis(50);

/// Run a cluster on this host: scheduler, network daemon and agent in one process.
///
/// The first start makes the cluster, later ones go on with it and adopt what runs. On a terminal, prints the command
/// that joins other hosts. SIGTERM and SIGINT end it; replicas, their traffic and their logs go on.
///
/// Exit codes: 0 told to stop, 1 failed, 2 wrong usage.
#[derive(Debug, clap::Args)]
pub struct Server {
    #[command(flatten)]
    scheduler: scheduler::Options,
    #[command(flatten)]
    membership: Membership,
    #[command(flatten)]
    log: Log,
}

/// Does it.
pub fn run(args: Server, global: &Global) -> Outcome {
    host::require_root("server")?;
    args.log.start();
    daemon::block_on(async {
        let mut daemons = Daemons::new()?;
        match start(&mut daemons, &args, global).await {
            Ok(()) => daemons.until_told().await,
            Err(error) => daemons.end(Err(error)).await,
        }
    })
}

/// Starts everything; when this returns, the cluster has this host as a node.
async fn start(daemons: &mut Daemons, args: &Server, global: &Global) -> Result<(), CliError> {
    let worker = &args.membership.worker;
    let advertise = worker.advertise.map_or_else(|| host::advertise(None), Ok)?;
    let name = args.membership.name()?;
    let config = args.scheduler.config(global, advertise, name.to_string());
    let client = Client::at(config.socket.clone());
    let server = scheduler::start(daemons, config, advertise).await?;
    netd::start(daemons, global).await?;
    let own = async {
        let token = client.token(OWN_TOKEN_S).await?.token;
        let token = token.parse().map_err(|error| CliError::chain(&error))?;
        let config = JoinConfig { data_dir: global.data_dir.clone(), server, token, name: name.clone(), advertise };
        join::join(config).await
    };
    daemons.meanwhile(own).await?;
    agent::start(daemons, global, worker, advertise)?;
    let ready = daemons.meanwhile(node_is_ready(&client, &name)).await?;
    if !ready {
        tracing::warn!("node {name} is not ready after {NODE_MAX:?}; `gantry node ls` tells more");
    }
    announce(&client, &name, SocketAddr::new(advertise.into(), server.port())).await;
    daemon::tell_ready();
    Ok(())
}

/// Whether the scheduler counts on this node in time.
async fn node_is_ready(client: &Client, name: &NodeName) -> Result<bool, CliError> {
    let looking = async {
        loop {
            let nodes = client.nodes().await?;
            if nodes.iter().any(|node| node.name == *name && node.state == NodeState::Ready) {
                return Ok(true);
            }
            tokio::time::sleep(POLL_INTERVAL).await;
        }
    };
    tokio::time::timeout(NODE_MAX, looking).await.unwrap_or(Ok(false))
}

/// Tells how to go on. The token is a secret: it is shown to a person, never written to a log.
async fn announce(client: &Client, name: &NodeName, address: SocketAddr) {
    out::note(format_args!("Gantry is ready: node {name} at {address}."));
    if !std::io::stderr().is_terminal() {
        out::note("`gantry token create` prints the command that joins other hosts.");
        return;
    }
    match client.token(SHOWN_TOKEN_S).await {
        Ok(token) => {
            out::note("On other hosts, within an hour:");
            out::note(format_args!("  {}", join_command(&address.to_string(), &token.token)));
        }
        Err(error) => tracing::warn!("cannot make a join token: {error}"),
    }
}
