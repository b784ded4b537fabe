//! `gantry agent`.

use super::{Membership, Worker, agent_config, failed, join};
use crate::daemon::{self, Daemons, Log};
use crate::error::{CliError, Outcome};
use crate::global::Global;
use crate::host::{self, Server};
use gantry_agent::JoinConfig;
use gantry_api::wire::JoinToken;
use std::net::Ipv4Addr;

/// Run the agent of this node alone.
///
/// It runs what the scheduler assigns to this node, and goes on without the scheduler. It needs `gantry netd` beside it.
/// SIGTERM and SIGINT end it; replicas go on.
///
/// Exit codes: 0 told to stop, 1 failed, 2 wrong usage.
#[derive(Debug, clap::Args)]
pub struct Agent {
    /// Join the cluster at this address first, when this host is not a node yet.
    #[arg(long, value_name = "SERVER[:PORT]", requires = "token")]
    server: Option<Server>,
    /// From `gantry token create` on the first host.
    #[arg(long, value_name = "TOKEN", requires = "server")]
    token: Option<JoinToken>,
    #[command(flatten)]
    membership: Membership,
    #[command(flatten)]
    log: Log,
}

/// Does it.
pub fn run(args: Agent, global: &Global) -> Outcome {
    host::require_root("agent")?;
    args.log.start();
    let worker = &args.membership.worker;
    let server = args.server.as_ref().map(host::resolve).transpose()?;
    let towards = server.map(|server| server.ip());
    let advertise = worker.advertise.map_or_else(|| host::advertise(towards), Ok)?;
    let (data_dir, name) = (global.data_dir.clone(), args.membership.name()?);
    let config = server.zip(args.token).map(|(server, token)| JoinConfig { data_dir, server, token, name, advertise });
    daemon::block_on(async {
        let mut daemons = Daemons::new()?;
        if let Some(config) = config {
            daemons.meanwhile(join::join(config)).await?;
        }
        start(&mut daemons, global, worker, advertise)?;
        daemon::tell_ready();
        daemons.until_told().await
    })
}

/// Starts the agent.
///
/// # Errors
/// There is no runtime.
pub fn start(daemons: &mut Daemons, global: &Global, worker: &Worker, advertise: Ipv4Addr) -> Result<(), CliError> {
    let config = agent_config(global, worker, advertise)?;
    let stop = daemons.stop();
    daemons.start("agent", async move { gantry_agent::run(config, stop).await.map_err(|error| failed!(error)) });
    Ok(())
}
