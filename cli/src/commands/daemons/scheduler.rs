//! `gantry scheduler`.

use super::failed;
use crate::commands::token;
use crate::daemon::{self, Daemons, Log};
use crate::error::{CliError, Outcome};
use crate::global::Global;
use crate::host;
use gantry_api::network::Ipv4Net;
use gantry_api::wire::API_PORT;
use gantry_scheduler::Config;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};

/// Run the scheduler alone: it decides what runs where, and serves the API.
///
/// SIGTERM and SIGINT end it; everything that runs goes on.
///
/// Exit codes: 0 told to stop, 1 failed, 2 wrong usage.
#[derive(Debug, clap::Args)]
pub struct Scheduler {
    #[command(flatten)]
    options: Options,
    /// This host's IPv4 address for other hosts. Default: the one of the default route.
    #[arg(long, value_name = "ADDRESS")]
    advertise: Option<Ipv4Addr>,
    #[command(flatten)]
    log: Log,
}

/// Where the scheduler serves and which nets the cluster has.
#[derive(Debug, Clone, clap::Args)]
pub struct Options {
    /// Where other hosts reach the API.
    #[arg(long, value_name = "ADDRESS[:PORT]", default_value = "0.0.0.0:7400", value_parser = listen)]
    listen: SocketAddr,
    /// All replicas' addresses, a /24 per node; fixed once a node has joined.
    #[arg(long, value_name = "NET", default_value = "10.210.0.0/16")]
    replica_net: Ipv4Net,
    /// All services' addresses; fixed once an app is there.
    #[arg(long, value_name = "NET", default_value = "10.211.0.0/16")]
    service_net: Ipv4Net,
}

fn listen(text: &str) -> Result<SocketAddr, String> {
    if let Ok(ip) = text.parse::<IpAddr>() {
        return Ok(SocketAddr::new(ip, API_PORT));
    }
    text.parse().map_err(|_| format!("write an address of this host, such as 0.0.0.0:{API_PORT}"))
}

/// Does it.
pub fn run(args: Scheduler, global: &Global) -> Outcome {
    host::require_root("scheduler")?;
    args.log.start();
    let advertise = args.advertise.map_or_else(|| host::advertise(None), Ok)?;
    let name = host::node_name().map_or_else(|_| String::new(), |name| name.to_string());
    let config = args.options.config(global, advertise, name);
    daemon::block_on(async {
        let mut daemons = Daemons::new()?;
        start(&mut daemons, config, advertise).await?;
        daemon::tell_ready();
        daemons.until_told().await
    })
}

impl Options {
    /// The scheduler's configuration.
    pub fn config(&self, global: &Global, advertise: Ipv4Addr, name: String) -> Config {
        Config {
            data_dir: global.data_dir.clone(),
            run_dir: global.run_dir.clone(),
            listen: self.listen,
            advertise,
            socket: global.run_dir.join("gantry.sock"),
            name,
            replica_net: self.replica_net,
            service_net: self.service_net,
        }
    }
}

/// Starts the scheduler; when this returns, it serves. The address is where this host's agent reaches it.
///
/// # Errors
/// See [`gantry_scheduler::Error`].
pub async fn start(daemons: &mut Daemons, config: Config, advertise: Ipv4Addr) -> Result<SocketAddr, CliError> {
    let socket = config.socket.clone();
    let scheduler = gantry_scheduler::Scheduler::start(config).await.map_err(|error| failed!(error))?;
    let listens = scheduler.address();
    let stop = daemons.stop();
    daemons.start("scheduler", async move { scheduler.run_until(stop).await.map_err(|error| failed!(error)) });
    token::write_address(&socket, SocketAddr::new(advertise.into(), listens.port()))?;
    let from_here = if listens.ip().is_unspecified() { IpAddr::V4(advertise) } else { listens.ip() };
    Ok(SocketAddr::new(from_here, listens.port()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn where_to_listen_is_an_address() {
        assert_eq!(listen("192.0.2.1"), Ok("192.0.2.1:7400".parse().unwrap()));
        assert_eq!(listen("[::]:80"), Ok("[::]:80".parse().unwrap()));
        assert!(listen("first:80").is_err() && listen(":80").is_err());
    }
}
