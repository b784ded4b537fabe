//! `gantry agent`.

use super::{Worker, agent_config, failed};
use crate::daemon::{self, Daemons, Log};
use crate::error::{CliError, Outcome};
use crate::global::Global;
use crate::host;
use std::net::Ipv4Addr;

/// Run the agent of this node alone, on a host that has joined.
///
/// It runs what the scheduler assigns to this node, and goes on without the scheduler. It needs `gantry netd` beside it.
/// SIGTERM and SIGINT end it; replicas go on.
///
/// Exit codes: 0 told to stop, 1 failed, 2 wrong usage.
#[derive(Debug, clap::Args)]
pub struct Agent {
    #[command(flatten)]
    worker: Worker,
    #[command(flatten)]
    log: Log,
}

/// Does it.
pub fn run(args: Agent, global: &Global) -> Outcome {
    host::require_root("agent")?;
    args.log.start();
    let advertise = args.worker.advertise.map_or_else(|| host::advertise(None), Ok)?;
    daemon::block_on(async {
        let mut daemons = Daemons::new()?;
        start(&mut daemons, global, &args.worker, advertise)?;
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
