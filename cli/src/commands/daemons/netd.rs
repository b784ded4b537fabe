//! `gantry netd`.

use super::{failed, netd_config};
use crate::daemon::{self, Daemons, Log};
use crate::error::{CliError, Outcome};
use crate::global::Global;
use crate::host;
use std::path::Path;
use std::time::Duration;

/// It makes its socket in a fraction of a second or fails.
const SOCKET_MAX: Duration = Duration::from_secs(15);
/// Between two looks for the socket.
const POLL_INTERVAL: Duration = Duration::from_millis(20);

/// Run the network daemon of this node alone.
///
/// It makes links, addresses, routes, service addresses and names as the agent tells it. SIGTERM and SIGINT end it;
/// traffic goes on.
///
/// Exit codes: 0 told to stop, 1 failed, 2 wrong usage.
#[derive(Debug, clap::Args)]
pub struct Netd {
    #[command(flatten)]
    log: Log,
}

/// Does it.
pub fn run(args: Netd, global: &Global) -> Outcome {
    host::require_root("netd")?;
    args.log.start();
    daemon::block_on(async {
        let mut daemons = Daemons::new()?;
        start(&mut daemons, global).await?;
        daemon::tell_ready();
        daemons.until_told().await
    })
}

/// Starts the network daemon; when this returns, it serves.
///
/// # Errors
/// See [`gantry_netd::NetError`].
pub async fn start(daemons: &mut Daemons, global: &Global) -> Result<(), CliError> {
    let config = netd_config(global);
    let socket = config.socket.clone();
    let stop = daemons.stop();
    daemons.start("netd", async move { gantry_netd::run(config, stop).await.map_err(|error| failed!(error)) });
    daemons.meanwhile(answers(&socket)).await
}

async fn answers(socket: &Path) -> Result<(), CliError> {
    let looking = async {
        while tokio::net::UnixStream::connect(socket).await.is_err() {
            tokio::time::sleep(POLL_INTERVAL).await;
        }
    };
    tokio::time::timeout(SOCKET_MAX, looking)
        .await
        .map_err(|_| CliError::new(format!("netd does not serve {} after {SOCKET_MAX:?}", socket.display())))
}
