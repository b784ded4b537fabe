//! `gantry join`.

use super::{Membership, agent, failed, netd};
use crate::daemon::{self, Daemons, Log};
use crate::error::{CliError, Outcome};
use crate::global::Global;
use crate::host::{self, Server};
use crate::render::out;
use gantry_agent::{JoinConfig, Joined};
use gantry_api::wire::JoinToken;

/// Make this host a node of a cluster, and run what the cluster assigns to it.
///
/// Joins at SERVER when this host is not a node yet, then runs its agent and network daemon. SIGTERM and SIGINT end
/// them; replicas, their traffic and their logs go on, and the next start adopts them.
///
/// Exit codes: 0 told to stop, 1 failed, 2 wrong usage.
#[derive(Debug, clap::Args)]
pub struct Join {
    /// The cluster's first host, as address or name from /etc/hosts.
    #[arg(value_name = "SERVER[:PORT]")]
    server: Server,
    /// From `gantry token create` on the first host.
    #[arg(long, value_name = "TOKEN")]
    token: JoinToken,
    #[command(flatten)]
    membership: Membership,
    #[command(flatten)]
    log: Log,
}

/// Does it.
pub fn run(args: Join, global: &Global) -> Outcome {
    host::require_root("join")?;
    args.log.start();
    let server = host::resolve(&args.server)?;
    let worker = &args.membership.worker;
    let advertise = worker.advertise.map_or_else(|| host::advertise(Some(server.ip())), Ok)?;
    let name = args.membership.name()?;
    let config = JoinConfig { data_dir: global.data_dir.clone(), server, token: args.token, name, advertise };
    daemon::block_on(async {
        let mut daemons = Daemons::new()?;
        let joined = daemons.meanwhile(join(config)).await?;
        netd::start(&mut daemons, global).await?;
        agent::start(&mut daemons, global, worker, advertise)?;
        let how = if joined.already { "is" } else { "has joined as" };
        out::note(format_args!("This host {how} node {} at {advertise}.", joined.name));
        daemon::tell_ready();
        daemons.until_told().await
    })
}

/// Makes this host a node, once.
///
/// # Errors
/// See [`gantry_agent::JoinError`].
pub async fn join(config: JoinConfig) -> Result<Joined, CliError> {
    gantry_agent::join(config).await.map_err(|error| failed!(error))
}
