//! `gantry token`.

use crate::client::{Client, block_on};
use crate::error::{CliError, Outcome};
use crate::global::Global;
use crate::render::{out, time};
use gantry_api::http::Node;
use gantry_api::units::Millis;
use gantry_api::wire::API_PORT;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::Path;

/// Beside the scheduler's socket: where other hosts reach it, written by the daemon that knows.
const ADDRESS_FILE: &str = "gantry.address";

/// Make tokens that let hosts join.
#[derive(Debug, clap::Subcommand)]
pub(crate) enum Token {
    /// Make a token and print the command that joins a host with it.
    Create {
        /// How long it can be used.
        #[arg(long, value_name = "TIME", default_value = "1h", value_parser = ttl)]
        ttl: Millis,
        /// Address of the scheduler to print, HOST[:PORT]. Default: what the scheduler was told to advertise.
        #[arg(long, value_name = "ADDRESS")]
        server: Option<String>,
        /// Print the token only.
        #[arg(short, long)]
        quiet: bool,
    },
}

fn ttl(text: &str) -> Result<Millis, String> {
    match text.parse::<Millis>() {
        Ok(ttl) if ttl.0 >= 1000 => Ok(ttl),
        Ok(_) => Err("a token that is of use lives for a second or more".to_owned()),
        Err(error) => Err(error.to_string()),
    }
}

/// Does it.
pub(crate) fn run(command: Token, global: &Global) -> Outcome {
    let Token::Create { ttl, server, quiet } = command;
    let client = Client::new(global)?;
    block_on(async {
        let server = match (quiet, server) {
            (true, _) => String::new(),
            (false, Some(server)) => server,
            (false, None) => advertised(&client).await?,
        };
        let token = client.token(ttl.0.div_ceil(1000)).await?;
        if quiet {
            out::line(&token.token)?;
        } else {
            out::line(join_command(&server, &token.token))?;
            out::note(format_args!("The token can be used until {}.", time::stamp(token.expires_at_ms)));
        }
        Ok(0)
    })
}

/// What to type on the host that joins.
pub(crate) fn join_command(server: &str, token: &str) -> String {
    format!("gantry join {server} --token {token}")
}

/// Where other hosts reach the scheduler.
async fn advertised(client: &Client) -> Result<String, CliError> {
    if let Some(address) = read_address(client.socket()) {
        return Ok(address);
    }
    let nodes = client.nodes().await?;
    on_this_host(&nodes, &local_addresses()).map(|address| format!("{address}:{API_PORT}")).ok_or_else(|| {
        CliError::new("cannot tell at which address other hosts reach this scheduler")
            .hint("name it: `gantry token create --server HOST:PORT`")
    })
}

/// Leaves the scheduler's address for `gantry token create`.
///
/// # Errors
/// The file cannot be written.
pub(crate) fn write_address(socket: &Path, address: SocketAddr) -> Result<(), CliError> {
    let file = socket.with_file_name(ADDRESS_FILE);
    std::fs::write(&file, format!("{address}\n"))
        .map_err(|error| CliError::new(format!("cannot write {}: {error}", file.display())))
}

fn read_address(socket: &Path) -> Option<String> {
    let text = std::fs::read_to_string(socket.with_file_name(ADDRESS_FILE)).ok()?;
    Some(text.trim().to_owned()).filter(|text| !text.is_empty())
}

/// The socket is this host's, so the node on this host is the scheduler's.
fn on_this_host(nodes: &[Node], local: &[Ipv4Addr]) -> Option<Ipv4Addr> {
    nodes.iter().map(|node| node.underlay).find(|underlay| local.contains(underlay))
}

fn local_addresses() -> Vec<Ipv4Addr> {
    let Ok(interfaces) = nix::ifaddrs::getifaddrs() else {
        return Vec::new();
    };
    interfaces.filter_map(|interface| Some(interface.address?.as_sockaddr_in()?.ip())).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::render::samples::node;
    use gantry_api::http::NodeState;

    #[test]
    fn the_schedulers_address_is_the_written_one_or_this_hosts_node() {
        let dir = tempfile::tempdir().unwrap();
        let socket = dir.path().join("gantry.sock");
        assert_eq!(read_address(&socket), None);
        write_address(&socket, "192.0.2.1:7400".parse().unwrap()).unwrap();
        assert_eq!(read_address(&socket).as_deref(), Some("192.0.2.1:7400"));

        let nodes = [node("n1", NodeState::Ready)];
        assert_eq!(on_this_host(&nodes, &[nodes[0].underlay]), Some(nodes[0].underlay));
        assert_eq!(on_this_host(&nodes, &[Ipv4Addr::LOCALHOST]), None);
        assert!(local_addresses().contains(&Ipv4Addr::LOCALHOST));
    }

    #[test]
    fn a_ttl_is_a_duration_of_use() {
        assert_eq!(ttl("1h"), Ok(Millis(3_600_000)));
        assert!(ttl("0").is_err() && ttl("5").is_err() && ttl("-1h").is_err());
    }
}
